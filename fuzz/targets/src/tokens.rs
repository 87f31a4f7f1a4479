//! Tokens and key sets.

use crate::assertions::{parts, read};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::principal::TenantId;
use domain::time::Time;
use identity::issuer::{ClientCertificate, IssuerState};
use identity::{Audiences, KeySet, TokenVerifier, VerifierConfig};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// Tokens that another library signed, with keys that nobody has: nothing else can verify under this set.
const FOREIGN: &str = include_str!("../../../crates/identity/tests/golden/foreign-tokens.json");
const FOREIGN_NOW: i64 = 1_700_000_100;
pub(crate) const TENANT: &str = "11111111-1111-4111-8111-111111111111";

fn config(issuer: &str, audience: &str) -> VerifierConfig {
    VerifierConfig {
        issuers: vec![issuer.to_owned()],
        tenant: TenantId::parse(TENANT).unwrap(),
        audiences: Audiences::new(Vec::<String>::new(), [audience.to_owned()]).unwrap(),
        cached_tokens: 16,
    }
}

fn seconds(seconds: i64) -> Time {
    Time::from_unix_milliseconds(seconds * 1000)
}

/// A whole token under a fixed key set. Only the tokens that the set's owner signed are good.
pub fn jwt(bytes: &[u8]) {
    static VERIFIER: LazyLock<(TokenVerifier, Vec<String>)> = LazyLock::new(|| {
        let foreign: Value = serde_json::from_str(FOREIGN).unwrap();
        let keys = KeySet::parse(foreign["key_set"].to_string().as_bytes()).unwrap();
        let config = config("https://issuer.example/v2.0", "https://managedhsm.example");
        let tokens = foreign["tokens"].as_object().unwrap().values();
        (TokenVerifier::new(config, keys), tokens.map(|token| token.as_str().unwrap().to_owned()).collect())
    });
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let (verifier, good) = &*VERIFIER;
    let verified = verifier.verify(token, seconds(FOREIGN_NOW));
    assert_eq!(verified.is_ok(), good.iter().any(|known| known == token), "{:?}", verified.err());
}

/// Signs whatever it is asked to: an issuer gone mad. The key is made anew for each process.
pub(crate) struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        Self { key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    pub fn key_set(&self) -> Vec<u8> {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let key = json!({ "kty": "EC", "crv": "P-256", "kid": "1", "x": x, "y": y });
        json!({ "keys": [key] }).to_string().into_bytes()
    }

    pub fn sign(&self, header: &[u8], claims: &[u8]) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Header and claims, a line feed between them, under a good signature. Whoever is let in is let in for the reasons that
/// the claims state, as another reader of JSON understands them.
pub fn jwt_claims(bytes: &[u8]) {
    const ISSUER: &str = "https://issuer.example/v2.0";
    const AUDIENCE: &str = "https://managedhsm.example";
    static PARTS: LazyLock<(Issuer, TokenVerifier)> = LazyLock::new(|| {
        let issuer = Issuer::new();
        let keys = KeySet::parse(&issuer.key_set()).unwrap();
        (issuer, TokenVerifier::new(config(ISSUER, AUDIENCE), keys))
    });
    let Some((header, claims)) = parts(bytes) else { return };
    let (issuer, verifier) = &*PARTS;
    let token = issuer.sign(header, claims);
    let Ok(caller) = verifier.verify(&token, seconds(FOREIGN_NOW)) else { return };
    let Some((header, claims)) = read(header, claims) else { return };
    assert_eq!((&header["alg"], &header["kid"]), (&json!("ES256"), &json!("1")));
    assert_eq!(claims["iss"], ISSUER);
    let audiences =
        [vec![claims["aud"].clone()], claims["aud"].as_array().cloned().unwrap_or_default()].concat();
    let is_ours = |audience: &Value| {
        audience.as_str().is_some_and(|text| text.trim_end_matches('/').eq_ignore_ascii_case(AUDIENCE))
    };
    assert!(audiences.iter().any(is_ours), "{}", claims["aud"]);
    assert!(claims["tid"].as_str().unwrap().eq_ignore_ascii_case(TENANT));
    assert!(claims["oid"].as_str().unwrap().eq_ignore_ascii_case(&caller.object_id.to_string()));
    assert!(claims["exp"].as_f64().unwrap() > FOREIGN_NOW as f64);
    assert!(claims.get("nbf").is_none_or(|nbf| nbf.as_f64().unwrap() <= (FOREIGN_NOW + 301) as f64));
    // Remembered, it is the same caller.
    assert_eq!(verifier.verify(&token, seconds(FOREIGN_NOW)), Ok(caller));
}

/// A JSON Web Key Set.
pub fn jwk_set(bytes: &[u8]) {
    match KeySet::parse(bytes) {
        Ok(set) => {
            assert!(!set.is_empty() && set.len() <= identity::key_set::MAX_KEYS);
            assert_eq!(KeySet::parse(bytes), Ok(set));
        }
        Err(error) => assert!(error.to_string().len() < 64 * 1024),
    }
}

/// What the issuer keeps between starts.
pub fn issuer_state(bytes: &[u8]) {
    let Ok(state) = IssuerState::parse(bytes) else { return };
    let written = state.to_json().unwrap();
    let again = IssuerState::parse(&written).unwrap();
    assert_eq!(*again.to_json().unwrap(), *written);
}

/// A client's certificate, as it is registered with the issuer.
pub fn client_certificate(bytes: &[u8]) {
    let Ok(certificate) = ClientCertificate::from_der(bytes) else { return };
    assert_eq!(certificate.der(), bytes);
    assert!(ClientCertificate::from_der(certificate.der()).is_ok());
}
