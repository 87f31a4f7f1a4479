//! Client assertions through the issuer's routes: by certificate and by federation, and every way to get them wrong.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use common::{NOW, Signer, at, base64url, ec_jwk, part, rsa_jwk};
use domain::principal::TenantId;
use domain::time::Time;
use identity::Audiences;
use identity::issuer::{
    ClientCertificate, ClientRegistration, DEFAULT_TOKEN_LIFETIME, FEDERATION_AUDIENCE, FederatedCredential,
    Issuer, IssuerConfig, MAX_ASSERTION_LIFETIME_SECONDS, MAX_FEDERATED_LIFETIME_SECONDS, SigningKey,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use tower::ServiceExt as _;

const BASE: &str = "https://localhost:8446";
const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const CLIENT: &str = "22222222-2222-4222-8222-222222222222";
/// Has neither secret nor certificate, only a federated credential.
const WORKLOAD: &str = "33333333-3333-4333-8333-333333333333";
const OTHER_ISSUER: &str = "https://kubernetes.example";
const SUBJECT: &str = "system:serviceaccount:default:app";
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const CERTIFICATE: &[u8] = include_bytes!("golden/client-certificate.der");

static CLIENT_KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| {
    let lines = include_str!("golden/client-key.pem").lines().filter(|line| !line.starts_with('-'));
    RsaKeyPair::from_pkcs8(&STANDARD.decode(lines.collect::<String>()).unwrap()).unwrap()
});
static PEM: LazyLock<String> =
    LazyLock::new(|| SigningKey::generate().unwrap().to_pkcs8_pem().unwrap().to_string());

/// An issuer whose clock the test moves.
struct Bench {
    router: Router,
    now: Arc<AtomicI64>,
}

impl Bench {
    fn new() -> Self {
        let now = Arc::new(AtomicI64::new(NOW));
        let clock = now.clone();
        let clock = Arc::new(move || -> Time { at(clock.load(Ordering::Relaxed)) });
        let issuer = Issuer::new(config(), SigningKey::from_pkcs8_pem(&PEM).unwrap(), clock).unwrap();
        Self { router: Arc::new(issuer).router(), now }
    }

    /// The status, and the number after AADSTS, 0 where a token was issued.
    fn ask(&self, fields: &[(&str, &str)]) -> (u16, u64, Value) {
        let encode = |text: &str| {
            percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
        };
        let body: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let request = Request::post(format!("/{TENANT}/oauth2/v2.0/token"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(body.join("&")))
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let response = self.router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            let number = answer["error_codes"][0].as_u64().unwrap_or(0);
            assert_eq!(number == 0, answer["access_token"].is_string(), "{answer}");
            (status, number, answer)
        })
    }

    fn present(&self, client: &str, assertion: &str) -> (u16, u64, Value) {
        self.present_for(client, assertion, "https://managedhsm.localhost:8443/.default")
    }

    fn present_for(&self, client: &str, assertion: &str, scope: &str) -> (u16, u64, Value) {
        self.ask(&[
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_assertion_type", ASSERTION_TYPE),
            ("client_assertion", assertion),
            ("scope", scope),
        ])
    }
}

fn config() -> IssuerConfig {
    let key_set = json!({"keys": [rsa_jwk("rsa"), ec_jwk("ec")]}).to_string();
    let federated = |subject: &str| {
        FederatedCredential::new(
            OTHER_ISSUER.into(),
            subject.into(),
            FEDERATION_AUDIENCE.into(),
            key_set.clone(),
        )
        .unwrap()
    };
    let client = |id: &str| ClientRegistration {
        client_id: id.parse().unwrap(),
        object_id: id.parse().unwrap(),
        display_name: "test".into(),
        secret_sha256: None,
        certificates: Vec::new(),
        federated: Vec::new(),
    };
    let certified = ClientRegistration {
        certificates: vec![ClientCertificate::from_der(CERTIFICATE).unwrap()],
        ..client(CLIENT)
    };
    let workload =
        ClientRegistration { federated: vec![federated("another"), federated(SUBJECT)], ..client(WORKLOAD) };
    IssuerConfig {
        base_url: BASE.into(),
        issuer: None,
        tenant: TenantId::parse(TENANT).unwrap(),
        alias_tenant: Some(TenantId::parse("adfs").unwrap()),
        audiences: Audiences::new(["managedhsm.localhost"], ["https://management.azure.com"]).unwrap(),
        clients: vec![certified, workload],
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    }
}

/// As MSAL for Python makes it, but for `jti`.
fn claims(jti: &str) -> Value {
    json!({
        "aud": format!("{BASE}/{TENANT}/oauth2/v2.0/token"), "iss": CLIENT, "sub": CLIENT, "jti": jti,
        "iat": NOW as f64 + 0.25, "exp": NOW as f64 + 600.25,
    })
}

fn header() -> Value {
    json!({"alg": "RS256", "typ": "JWT", "x5t": URL_SAFE.encode(sha1())})
}

fn sign(header: &Value, claims: &Value) -> String {
    let encoding: &'static dyn RsaEncoding =
        if header["alg"] == "PS256" { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
    let signed = format!("{}.{}", part(header), part(claims));
    let mut signature = vec![0; CLIENT_KEY.public_modulus_len()];
    CLIENT_KEY.sign(encoding, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", base64url(signature))
}

fn sha1() -> Vec<u8> {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, CERTIFICATE).as_ref().to_vec()
}

fn sha256() -> Vec<u8> {
    digest(&SHA256, CERTIFICATE).as_ref().to_vec()
}

fn with(mut json: Value, member: &str, value: Value) -> Value {
    if value.is_null() {
        json.as_object_mut().unwrap().remove(member);
    } else {
        json[member] = value;
    }
    json
}

#[test]
fn each_way_that_clients_write_a_certificate_is_understood() {
    let bench = Bench::new();
    let pem_lines: String = STANDARD
        .encode(CERTIFICATE)
        .as_bytes()
        .chunks(64)
        .map(|line| format!("{}\n", std::str::from_utf8(line).unwrap()))
        .collect();
    let bare = json!({"alg": "RS256", "typ": "JWT"});
    let headers = [
        header(),
        with(header(), "typ", Value::Null),
        with(header(), "alg", json!("PS256")),
        with(header(), "kid", json!("not looked at")),
        with(bare.clone(), "x5t", json!(base64url(sha1()))),
        with(bare.clone(), "x5t", json!(STANDARD.encode(sha1()))),
        with(bare.clone(), "x5t#S256", json!(base64url(sha256()))),
        with(bare.clone(), "x5t#S256", json!(URL_SAFE.encode(sha256()))),
        with(bare.clone(), "x5c", json!([STANDARD.encode(CERTIFICATE)])),
        with(header(), "x5c", json!([pem_lines, "its issuer"])),
        with(header(), "x5t#S256", json!(base64url(sha256()))),
    ];
    for (index, header) in headers.iter().enumerate() {
        let (status, _, answer) = bench.present(CLIENT, &sign(header, &claims(&index.to_string())));
        assert_eq!(status, 200, "{header}: {answer}");
    }
}

#[test]
fn each_audience_that_clients_write_is_understood() {
    let bench = Bench::new();
    for (index, audience) in [
        json!(format!("{BASE}/{TENANT}/oauth2/v2.0/token")),
        json!(format!("{BASE}/{TENANT}/oauth2/token")),
        json!(format!("{BASE}/{TENANT}/oauth2/token/")),
        json!(format!("https://localhost/{TENANT}/oauth2/v2.0/token")),
        json!(format!("https://localhost/{TENANT}/oauth2/token")),
        json!(format!("https://LOCALHOST:8446/{TENANT}/oauth2/v2.0/token")),
        json!(format!("{BASE}/adfs/oauth2/v2.0/token")),
        json!(format!("{BASE}/{TENANT}/v2.0")),
        json!([format!("{BASE}/{TENANT}/v2.0")]),
    ]
    .into_iter()
    .enumerate()
    {
        let claims = with(claims(&index.to_string()), "aud", audience.clone());
        let (status, _, answer) = bench.present(CLIENT, &sign(&header(), &claims));
        assert_eq!(status, 200, "{audience}: {answer}");
    }
}

#[test]
fn the_client_id_may_be_left_to_the_assertion() {
    let assertion = sign(&header(), &claims("1"));
    let fields = |kind| {
        vec![
            ("grant_type", "client_credentials"),
            ("client_assertion_type", kind),
            ("client_assertion", assertion.as_str()),
            ("scope", "https://managedhsm.localhost/.default openid offline_access profile"),
        ]
    };
    assert_eq!(Bench::new().ask(&fields(ASSERTION_TYPE)).0, 200);
    assert_eq!(
        Bench::new().ask(&fields("urn:ietf:params:oauth:client-assertion-type:saml2-bearer")).1,
        90_023
    );
    let without_type: Vec<_> =
        fields("").into_iter().filter(|(name, _)| *name != "client_assertion_type").collect();
    assert_eq!(Bench::new().ask(&without_type).1, 900_144);
}

#[test]
fn each_bad_claim_is_refused() {
    let bench = Bench::new();
    let never = MAX_ASSERTION_LIFETIME_SECONDS + 301;
    for (claim, value, number) in [
        ("aud", json!("https://login.microsoftonline.com/x/oauth2/v2.0/token"), 700_023),
        ("aud", json!(format!("{BASE}/{TENANT}/oauth2/v2.0/token/more")), 700_023),
        ("aud", json!(format!("https://localhost:9446/{TENANT}/oauth2/v2.0/token")), 700_023),
        ("aud", json!(format!("https://evil.example/{TENANT}/oauth2/v2.0/token")), 700_023),
        ("aud", json!(format!("{BASE}/{WORKLOAD}/oauth2/v2.0/token")), 700_023),
        ("aud", json!(BASE), 700_023),
        ("aud", json!([format!("{BASE}/{TENANT}/v2.0"), "another"]), 50_027),
        ("aud", json!([]), 50_027),
        ("aud", json!({}), 50_027),
        ("aud", Value::Null, 50_027),
        ("sub", json!(WORKLOAD), 700_021),
        ("sub", Value::Null, 700_021),
        ("iss", json!(WORKLOAD), 700_211),
        ("iss", Value::Null, 700_211),
        ("iss", json!(7), 50_027),
        ("exp", Value::Null, 50_027),
        ("exp", json!((NOW + 600).to_string()), 50_027),
        ("exp", json!(NOW), 700_024),
        ("exp", json!(NOW - 1), 700_024),
        ("exp", json!(NOW + never), 700_024),
        ("exp", json!(1e300), 50_027),
        ("nbf", json!(NOW + 301), 700_024),
        ("nbf", json!("soon"), 50_027),
        ("iat", json!(NOW + 301), 700_024),
        ("jti", Value::Null, 50_027),
        ("jti", json!(""), 50_027),
        ("jti", json!("x".repeat(257)), 50_027),
        ("jti", json!(1), 50_027),
    ] {
        let claims = with(claims("bad"), claim, value.clone());
        let (status, found, answer) = bench.present(CLIENT, &sign(&header(), &claims));
        assert_eq!((status, found), (401, number), "{claim} = {value}: {answer}");
        assert_eq!(answer["error"], "invalid_client");
    }
    assert_eq!(bench.present(CLIENT, &sign(&header(), &claims("bad"))).0, 200, "refusals use nothing up");
}

#[test]
fn a_certificate_that_is_not_the_clients_gains_nothing() {
    let bench = Bench::new();
    let other = include_bytes!("golden/client-certificate-ec.der");
    let zero = |length| json!(base64url(vec![0; length]));
    for (header, number) in [
        (with(header(), "x5t", Value::Null), 700_027),
        (with(header(), "x5t", zero(20)), 700_027),
        (with(header(), "x5t", json!("")), 700_027),
        (with(header(), "x5t", json!("!")), 700_027),
        // SHA-256 where SHA-1 is expected, and the other way round.
        (with(header(), "x5t", json!(base64url(sha256()))), 700_027),
        (with(header(), "x5t#S256", json!(base64url(sha1()))), 700_027),
        // The right SHA-1 beside another certificate: all ways must name the same one.
        (with(header(), "x5t#S256", zero(32)), 700_027),
        (with(header(), "x5c", json!([STANDARD.encode(other)])), 700_027),
        (with(header(), "x5c", json!([])), 700_027),
        (with(header(), "x5c", json!(STANDARD.encode(CERTIFICATE))), 50_027),
        (with(header(), "alg", json!("ES256")), 700_027),
        (with(header(), "alg", json!("none")), 50_027),
        (with(header(), "alg", json!("HS256")), 50_027),
        (with(header(), "alg", json!("RS512")), 50_027),
        (with(header(), "typ", json!("at+jwt")), 50_027),
        (with(header(), "crit", json!(["x5t"])), 50_027),
    ] {
        let (status, found, answer) = bench.present(CLIENT, &sign(&header, &claims("bad")));
        assert_eq!((status, found), (401, number), "{header}: {answer}");
    }

    // The right name, another key: an access token's, or anybody's.
    for signer in [Signer::Rs256, Signer::Ps256] {
        let header =
            with(header(), "alg", json!(if matches!(signer, Signer::Rs256) { "RS256" } else { "PS256" }));
        let forged = signer.token_with_header(&header, &claims("bad"));
        assert_eq!(bench.present(CLIENT, &forged).1, 700_027);
    }
    // A good assertion, for somebody else.
    let good = sign(&header(), &claims("good"));
    assert_eq!(bench.present(WORKLOAD, &good).1, 700_211);
    assert_eq!(bench.present(TENANT, &good).1, 700_016);
    // A secret is no way in for a client without one: not even one that would hash to nothing.
    for secret in ["", "x", "0"] {
        let fields = [
            ("grant_type", "client_credentials"),
            ("client_id", CLIENT),
            ("client_secret", secret),
            ("scope", "https://managedhsm.localhost/.default"),
        ];
        assert!(matches!(bench.ask(&fields).1, 7_000_215 | 900_144));
    }
    let tampered = good.replacen('.', ".e30", 1);
    assert_ne!(bench.present(CLIENT, &tampered).0, 200);
    assert_eq!(bench.present(CLIENT, &good).0, 200);
}

#[test]
fn a_certificate_is_good_within_its_validity_only() {
    let bench = Bench::new();
    for (now, number) in [(1_767_323_044, 700_027), (2_840_238_245, 0), (2_840_238_246, 700_027)] {
        bench.now.store(now, Ordering::Relaxed);
        let claims = with(with(claims(&now.to_string()), "exp", json!(now + 600)), "iat", Value::Null);
        let (_, found, answer) = bench.present(CLIENT, &sign(&header(), &claims));
        assert_eq!(found, number, "{now}: {answer}");
    }
}

#[test]
fn an_assertion_is_good_for_one_token_per_resource() {
    let bench = Bench::new();
    let assertion = sign(&header(), &claims("once"));
    let arm = "https://management.azure.com/.default";
    assert_eq!(bench.present(CLIENT, &assertion).0, 200);
    // Several threads that ask at the same moment send the same assertion.
    assert_eq!(bench.present(CLIENT, &assertion).0, 200);
    // Another assertion with the same jti, at that very moment.
    let (status, number, answer) =
        bench.present(CLIENT, &sign(&header(), &with(claims("once"), "nbf", json!(NOW))));
    assert_eq!((status, number), (401, 700_024), "{answer}");
    assert!(answer["error_description"].as_str().unwrap().contains("used before"), "{answer}");

    bench.now.store(NOW + 11, Ordering::Relaxed);
    assert_eq!(bench.present(CLIENT, &assertion).1, 700_024);
    assert_eq!(bench.present_for(CLIENT, &assertion, arm).0, 200, "another resource");
    assert_eq!(bench.present_for(CLIENT, &assertion, "https://evil.example/.default").1, 70_011);
    bench.now.store(NOW + 601, Ordering::Relaxed);
    assert_eq!(bench.present_for(CLIENT, &assertion, arm).1, 700_024, "expired");
}

/// A token of another issuer, as Kubernetes writes it.
fn workload_claims() -> Value {
    json!({
        "aud": [FEDERATION_AUDIENCE], "iss": OTHER_ISSUER, "sub": SUBJECT, "iat": NOW - 60, "nbf": NOW - 60,
        "exp": NOW + 3600, "kubernetes.io": {"namespace": "default"},
    })
}

#[test]
fn a_federated_token_stands_for_its_principal_as_often_as_it_is_presented() {
    let bench = Bench::new();
    for signer in [Signer::Rs256, Signer::Ps256, Signer::Es256] {
        let token = signer.token(&workload_claims());
        for time in [NOW, NOW + 3599] {
            bench.now.store(time, Ordering::Relaxed);
            let (status, _, answer) = bench.present(WORKLOAD, &token);
            assert_eq!(status, 200, "{answer}");
        }
        bench.now.store(NOW, Ordering::Relaxed);
    }
}

#[test]
fn a_federated_token_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let never = MAX_FEDERATED_LIFETIME_SECONDS + 301;
    for (claim, value, number) in [
        ("iss", json!("https://kubernetes.example/"), 700_211),
        ("iss", json!(WORKLOAD), 700_027),
        ("iss", Value::Null, 700_211),
        ("sub", json!("system:serviceaccount:default:other"), 700_213),
        ("sub", json!(SUBJECT.to_uppercase()), 700_213),
        ("sub", Value::Null, 700_213),
        ("aud", json!("https://kubernetes.default.svc"), 700_212),
        ("aud", json!([FEDERATION_AUDIENCE, "https://kubernetes.default.svc"]), 50_027),
        ("exp", json!(NOW), 700_024),
        ("exp", json!(NOW + never), 700_024),
        ("exp", Value::Null, 50_027),
        ("nbf", json!(NOW + 301), 700_024),
        ("iat", json!(NOW + 301), 700_024),
    ] {
        let token = Signer::Es256.token(&with(workload_claims(), claim, value.clone()));
        let (status, found, answer) = bench.present(WORKLOAD, &token);
        assert_eq!((status, found), (401, number), "{claim} = {value}: {answer}");
    }
    for header in [
        json!({"alg": "ES256"}),
        json!({"alg": "ES256", "kid": "unknown"}),
        json!({"alg": "ES256", "kid": "rsa"}),
        json!({"alg": "RS256", "kid": "ec"}),
        json!({"alg": "ES256", "kid": "unknown", "jwk": ec_jwk("ec")}),
        json!({"alg": "ES256", "x5t": "AAAA"}),
    ] {
        let token = Signer::Es256.token_with_header(&header, &workload_claims());
        assert_eq!(bench.present(WORKLOAD, &token).1, 700_027, "{header}");
    }
    // The issuer's own access token is of another issuer than any that is registered.
    let unsigned = format!("{}.{}.", part(&json!({"alg": "ES256", "kid": "ec"})), part(&workload_claims()));
    assert_eq!(bench.present(WORKLOAD, &unsigned).1, 700_027);
    // Federated for one principal is nothing for another.
    assert_eq!(bench.present(CLIENT, &Signer::Es256.token(&workload_claims())).1, 700_211);
}

#[test]
fn messages_repeat_no_more_than_a_bounded_claim() {
    let bench = Bench::new();
    let long = "a".repeat(4000);
    for claim in ["iss", "sub", "aud"] {
        let token = Signer::Es256.token(&with(workload_claims(), claim, json!(long)));
        let (_, _, answer) = bench.present(WORKLOAD, &token);
        assert!(answer["error_description"].as_str().unwrap().len() < 600, "{claim}");
    }
    let (_, number, _) = bench.present(CLIENT, &"x".repeat(20_000));
    assert_eq!(number, 50_027);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_assertions_never_pass_nor_panic(header in "[ -~]{0,80}", payload in "[ -~]{0,120}", text in "\\PC{0,80}") {
        let bench = Bench::new();
        let assertion = format!("{}.{}.{}", base64url(header), base64url(payload), base64url(&text));
        prop_assert!(bench.present(CLIENT, &assertion).0 != 200);
        prop_assert!(bench.present(WORKLOAD, &text).0 != 200);
    }
}
