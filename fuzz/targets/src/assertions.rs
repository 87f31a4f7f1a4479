//! Client assertions, as the embedded issuer takes them at its token endpoint: from a client with a certificate, and from
//! another issuer that was pinned for a client.

use crate::tokens::{Issuer as ForeignIssuer, TENANT};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use domain::principal::TenantId;
use domain::time::Time;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use identity::Audiences;
use identity::issuer::{
    ClientCertificate, ClientRegistration, DEFAULT_TOKEN_LIFETIME, FEDERATION_AUDIENCE, FederatedCredential,
    Issuer, IssuerConfig, MAX_ASSERTION_LIFETIME_SECONDS, MAX_FEDERATED_LIFETIME_SECONDS, ManagedClient,
    ManagedIdentity, SigningKey,
};
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const BASE: &str = "https://localhost:8446";
/// Has a certificate, whose key is known here.
const CLIENT: &str = "22222222-2222-4222-8222-222222222222";
/// Has a federated credential.
const WORKLOAD: &str = "33333333-3333-4333-8333-333333333333";
const OTHER_ISSUER: &str = "https://kubernetes.example";
/// Of managed identity.
const IDENTITY_HEADER: &str = "header-that-a-program-knows";
const SUBJECT: &str = "system:serviceaccount:default:app";
/// Within the time of the certificate.
const NOW: i64 = 1_787_306_400;
const LEEWAY_SECONDS: i64 = 300;
const KEY: &str = include_str!("../../../crates/identity/tests/golden/client-key.pem");
const CERTIFICATE: &[u8] = include_bytes!("../../../crates/identity/tests/golden/client-certificate.der");

struct Bench {
    issuer: Arc<Issuer>,
    runtime: Runtime,
    client: RsaKeyPair,
    foreign: ForeignIssuer,
    managed: Arc<ManagedIdentity>,
}

static BENCH: LazyLock<Bench> = LazyLock::new(|| {
    let lines = KEY.lines().filter(|line| !line.starts_with('-')).collect::<String>();
    let foreign = ForeignIssuer::new();
    let key_set = String::from_utf8(foreign.key_set()).unwrap();
    let registration = |id: &str| ClientRegistration {
        client_id: id.parse().unwrap(),
        object_id: id.parse().unwrap(),
        display_name: "fuzz".into(),
        secret_sha256: None,
        certificates: Vec::new(),
        federated: Vec::new(),
    };
    let certified = ClientRegistration {
        certificates: vec![ClientCertificate::from_der(CERTIFICATE).unwrap()],
        ..registration(CLIENT)
    };
    let credential =
        FederatedCredential::new(OTHER_ISSUER.into(), SUBJECT.into(), FEDERATION_AUDIENCE.into(), key_set);
    let workload = ClientRegistration { federated: vec![credential.unwrap()], ..registration(WORKLOAD) };
    let config = IssuerConfig {
        base_url: BASE.into(),
        issuer: None,
        tenant: TenantId::parse(TENANT).unwrap(),
        alias_tenant: None,
        audiences: Audiences::new(["managedhsm.localhost"], Vec::<String>::new()).unwrap(),
        clients: vec![certified, workload],
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    };
    let clock = Arc::new(|| Time::from_unix_milliseconds(NOW * 1000));
    let issuer = Arc::new(Issuer::new(config, SigningKey::generate().unwrap(), clock).unwrap());
    let client = ManagedClient { client_id: CLIENT.parse().unwrap(), resource_id: Some("/vm/app".into()) };
    let managed = Arc::new(ManagedIdentity::new(issuer.clone(), vec![client], IDENTITY_HEADER).unwrap());
    Bench {
        issuer,
        managed,
        runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        client: RsaKeyPair::from_pkcs8(&STANDARD.decode(lines).unwrap()).unwrap(),
        foreign,
    }
});

impl Bench {
    /// As the client with the certificate signs.
    fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.client.public_modulus_len()];
        self.client.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// Whether an access token is given for `assertion`. Whatever it is, it is a client's mistake and not the server's.
    fn accepts(&self, client: Option<&str>, assertion: &str) -> bool {
        let client = client.map(|id| format!("client_id={id}&")).unwrap_or_default();
        let body = format!(
            "{client}grant_type=client_credentials&scope=https%3A%2F%2Fmanagedhsm.localhost%2F.default\
             &client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer\
             &client_assertion={assertion}"
        );
        self.accepts_form(body.into())
    }

    fn accepts_form(&self, body: Bytes) -> bool {
        let request = Request::post(format!("/{TENANT}/oauth2/v2.0/token"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Full::new(body))
            .unwrap();
        self.runtime.block_on(async {
            let answer = self.issuer.clone().router().oneshot(request).await.unwrap();
            let status = answer.status().as_u16();
            assert!(status == 200 || (400..500).contains(&status), "{status}");
            let body: Value =
                serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
            assert_eq!(status == 200, body["access_token"].is_string(), "{body}");
            status == 200
        })
    }
}

/// Any text in the place of an assertion, as a form has it: nobody's signature is in it.
pub fn assertion(bytes: &[u8]) {
    let text: String = bytes.iter().map(|byte| format!("%{byte:02x}")).collect();
    assert!(!BENCH.accepts(Some(CLIENT), &text));
    assert!(!BENCH.accepts(None, &text));
}

/// A whole form, without a good signature in it.
pub fn token_form(bytes: &[u8]) {
    assert!(!BENCH.accepts_form(Bytes::copy_from_slice(bytes)));
}

/// A request for a managed identity's token: path and query, then a header a line. Who gets one knows the secret or sends
/// what no page's script can, from this machine and for it, and gets it for a resource of the issuer's.
pub fn managed_identity(bytes: &[u8]) {
    is_given_a_token(bytes);
}

fn is_given_a_token(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut request = Request::get(lines.next().unwrap_or_default());
    for line in lines {
        let mut sides = line.splitn(2, |byte| *byte == b':');
        let (Some(name), Some(value)) = (sides.next(), sides.next()) else { continue };
        request = request.header(name, value.trim_ascii());
    }
    let Ok(request) = request.body(Full::<Bytes>::default()) else { return false };
    let headers = request.headers().clone();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (status, body) = BENCH.runtime.block_on(async {
        let answer = BENCH.managed.clone().router().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body: Value =
            serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap();
        (status, body)
    });
    assert_eq!(status == 200, body["access_token"].is_string(), "{body}");
    if status != 200 {
        assert!((400..500).contains(&status), "{status}");
        return false;
    }
    let host = text("host").unwrap().to_ascii_lowercase();
    let before_port = host.split(':').next().unwrap();
    let is_v4 = before_port.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback());
    let in_brackets = host.strip_prefix('[').and_then(|rest| rest.split(']').next()?.parse().ok());
    let is_v6 = in_brackets.is_some_and(|address: Ipv6Addr| address.is_loopback());
    assert!(is_v4 || is_v6 || before_port == "localhost", "{host}");
    assert!(
        ["x-forwarded-for", "x-forwarded-host", "forwarded"].iter().all(|name| !headers.contains_key(*name))
    );
    let knows = text("x-identity-header") == Some(IDENTITY_HEADER);
    assert!(knows || text("metadata").unwrap().eq_ignore_ascii_case("true"), "{headers:?}");
    assert_eq!(body["client_id"], CLIENT);
    let resource = body["resource"].as_str().unwrap();
    assert!(resource.starts_with("https://managedhsm.localhost"), "{body}");
    true
}

/// Header and claims, a line feed between them, signed by the client. Whoever is let in said so in the claims.
pub fn client_assertion(bytes: &[u8]) {
    let Some((header, claims)) = parts(bytes) else { return };
    if !BENCH.accepts(Some(CLIENT), &BENCH.sign(header, claims)) {
        return;
    }
    let Some((header, claims)) = read(header, claims) else { return };
    assert_eq!(header["alg"], "RS256");
    for member in ["iss", "sub"] {
        assert!(claims[member].as_str().unwrap().eq_ignore_ascii_case(CLIENT), "{claims}");
    }
    assert!(only_audience(&claims).to_ascii_lowercase().starts_with("https://localhost"), "{claims}");
    assert!(!claims["jti"].as_str().unwrap().is_empty());
    within_time(&claims, MAX_ASSERTION_LIFETIME_SECONDS);
}

/// Likewise, signed by the issuer that is pinned for a client.
pub fn federated_token(bytes: &[u8]) {
    let Some((header, claims)) = parts(bytes) else { return };
    if !BENCH.accepts(Some(WORKLOAD), &BENCH.foreign.sign(header, claims)) {
        return;
    }
    let Some((header, claims)) = read(header, claims) else { return };
    assert_eq!(header["alg"], "ES256");
    assert_eq!((claims["iss"].as_str(), claims["sub"].as_str()), (Some(OTHER_ISSUER), Some(SUBJECT)));
    assert_eq!(only_audience(&claims), FEDERATION_AUDIENCE);
    within_time(&claims, MAX_FEDERATED_LIFETIME_SECONDS);
}

/// What stands before the first line feed, and behind it.
pub(crate) fn parts(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    Some((parts.next()?, parts.next()?))
}

/// As another reader of JSON understands them, which refuses half of a surrogate pair also in a member that nobody reads.
pub(crate) fn read(header: &[u8], claims: &[u8]) -> Option<(Value, Value)> {
    let header: Value = serde_json::from_slice(header).ok()?;
    assert!(header.get("crit").is_none());
    Some((header, serde_json::from_slice(claims).ok()?))
}

fn only_audience(claims: &Value) -> &str {
    match &claims["aud"] {
        Value::Array(several) => {
            assert_eq!(several.len(), 1, "{claims}");
            several[0].as_str().unwrap()
        }
        one => one.as_str().unwrap(),
    }
}

fn within_time(claims: &Value, longest_seconds: i64) {
    let expires = claims["exp"].as_f64().unwrap();
    assert!(expires > NOW as f64, "{claims}");
    assert!(expires <= (NOW + longest_seconds + LEEWAY_SECONDS + 1) as f64, "{claims}");
    for begins in ["nbf", "iat"] {
        let begins = claims.get(begins).filter(|value| !value.is_null());
        assert!(begins.is_none_or(|begins| begins.as_f64().unwrap() <= (NOW + LEEWAY_SECONDS + 1) as f64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nothing ever was accepted, the promises of the targets would say nothing.
    #[test]
    fn the_good_ones_of_the_corpus_are_accepted() {
        let (header, claims) = parts(include_bytes!("../../corpus/client_assertion/x5t")).unwrap();
        assert!(BENCH.accepts(Some(CLIENT), &BENCH.sign(header, claims)));
        let (header, claims) = parts(include_bytes!("../../corpus/federated_token/good")).unwrap();
        assert!(BENCH.accepts(Some(WORKLOAD), &BENCH.foreign.sign(header, claims)));
        assert!(!BENCH.accepts(Some(CLIENT), &BENCH.foreign.sign(header, claims)));
        assert!(is_given_a_token(include_bytes!("../../corpus/managed_identity/metadata")));
        assert!(is_given_a_token(include_bytes!("../../corpus/managed_identity/app-service")));
        assert!(!is_given_a_token(include_bytes!("../../corpus/managed_identity/page")));
    }
}
