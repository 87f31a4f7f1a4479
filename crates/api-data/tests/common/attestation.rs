//! An attestation authority that vouches for one environment.
#![allow(dead_code)] // each test binary uses a part of it

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use identity::attestation::{AuthoritySource, AuthoritySourceError};
use serde_json::{Value, json};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Made by `make.py` beside it, with another implementation.
static CASES: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../identity/tests/golden/attestation/assertions.json")).unwrap()
});
static KEY: LazyLock<RsaKeyPair> = LazyLock::new(|| {
    RsaKeyPair::from_pkcs8(&hex::decode(CASES["authority"].as_str().unwrap()).unwrap()).unwrap()
});

pub struct Authority;

#[async_trait]
impl AuthoritySource for Authority {
    async fn get(&self, origin: &str, path: &str) -> Result<Vec<u8>, AuthoritySourceError> {
        match (origin, path) {
            ("https://attest.example", "/.well-known/openid-configuration") => {
                Ok(br#"{"jwks_uri":"https://attest.example/certs"}"#.to_vec())
            }
            ("https://attest.example", "/certs") => Ok(CASES["keys"].to_string().into_bytes()),
            other => Err(AuthoritySourceError(format!("nothing at {other:?}"))),
        }
    }
}

pub fn token(name: &str) -> &'static str {
    CASES["tokens"][name].as_str().unwrap()
}

/// The environment's private key, PKCS#8.
pub fn environment() -> Vec<u8> {
    hex::decode(CASES["environment"].as_str().unwrap()).unwrap()
}

/// One that nobody has used.
pub fn assertion() -> String {
    assertion_with(|_| ())
}

pub fn assertion_with(change: impl FnOnce(&mut Value)) -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let mut claims = CASES["claims"].clone();
    claims["jti"] = MADE.fetch_add(1, Ordering::SeqCst).into();
    // The clock of a test may go on.
    claims["exp"] = json!(2_000_000_000);
    change(&mut claims);
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(json!({ "alg": "RS256", "kid": "good" })), part(claims));
    let mut signature = vec![0; KEY.public_modulus_len()];
    KEY.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// What the environment meets.
pub fn document() -> String {
    let condition = json!({ "claim": "x-ms-sevsnpvm-is-debuggable", "equals": false });
    json!({ "anyOf": [{ "authority": "https://attest.example/", "allOf": [condition] }] }).to_string()
}

pub fn policy() -> Value {
    json!({ "data": URL_SAFE_NO_PAD.encode(document()), "contentType": "application/json", "immutable": false })
}
