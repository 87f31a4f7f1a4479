//! Keys, tokens and a verifier with known settings.
#![allow(dead_code, reason = "each test file uses its own part")]

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::principal::TenantId;
use domain::time::Time;
use identity::token::DEFAULT_CACHED_TOKENS;
use identity::{Audiences, KeySet, TokenVerifier, VerifierConfig};
use serde_json::{Value, json};
use std::sync::LazyLock;

/// 2026-08-21T10:00:00Z
pub const NOW: i64 = 1_787_306_400;
pub const ISSUED: i64 = NOW - 300;
pub const EXPIRES: i64 = NOW + 3300;
pub const TENANT: &str = "11111111-1111-4111-8111-111111111111";
pub const OBJECT: &str = "22222222-2222-4222-8222-222222222222";
pub const GROUP: &str = "44444444-4444-4444-8444-444444444444";
pub const ISSUER: &str = "https://issuer.example/v2.0";

static RSA: LazyLock<RsaKeyPair> = LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());
static EC_PKCS8: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    pair.to_pkcs8v1().unwrap().as_ref().to_vec()
});
static EC: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &EC_PKCS8).unwrap());
static EC_DER: LazyLock<EcdsaKeyPair> =
    LazyLock::new(|| EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &EC_PKCS8).unwrap());

#[derive(Clone, Copy)]
pub enum Signer {
    Rs256,
    Ps256,
    Es256,
    /// ES256 with the signature in DER, which JWS does not use.
    Es256Der,
}

impl Signer {
    pub fn token(self, claims: &Value) -> String {
        let header = match self {
            Signer::Rs256 => json!({"alg": "RS256", "kid": "rsa", "typ": "JWT"}),
            Signer::Ps256 => json!({"alg": "PS256", "kid": "rsa", "typ": "JWT"}),
            Signer::Es256 | Signer::Es256Der => json!({"alg": "ES256", "kid": "ec", "typ": "JWT"}),
        };
        self.token_with_header(&header, claims)
    }

    pub fn token_with_header(self, header: &Value, claims: &Value) -> String {
        self.sign(&format!("{}.{}", part(header), part(claims)))
    }

    pub fn sign(self, signed: &str) -> String {
        let random = SystemRandom::new();
        let rsa = |encoding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; RSA.public_modulus_len()];
            RSA.sign(encoding, &random, signed.as_bytes(), &mut signature).unwrap();
            signature
        };
        let signature = match self {
            Signer::Rs256 => rsa(&RSA_PKCS1_SHA256),
            Signer::Ps256 => rsa(&RSA_PSS_SHA256),
            Signer::Es256 => EC.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            Signer::Es256Der => EC_DER.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
        };
        format!("{signed}.{}", base64url(signature))
    }
}

pub fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": "https://managedhsm.example:8443", "tid": TENANT, "oid": OBJECT, "sub": OBJECT,
        "appid": "an-application", "iat": ISSUED, "nbf": ISSUED, "exp": EXPIRES, "ver": "2.0",
    })
}

pub fn with(claim: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[claim] = value;
    claims
}

pub fn config() -> VerifierConfig {
    VerifierConfig {
        issuers: vec![ISSUER.to_owned()],
        tenant: TenantId::parse(TENANT).unwrap(),
        audiences: Audiences::new(["managedhsm.example"], ["https://managedhsm.azure.net"]).unwrap(),
        cached_tokens: DEFAULT_CACHED_TOKENS,
    }
}

pub fn verifier() -> TokenVerifier {
    TokenVerifier::new(config(), key_set())
}

pub fn key_set() -> KeySet {
    let mut bound = rsa_jwk("rsa-ps");
    bound["alg"] = json!("PS256");
    let mut thumbed = rsa_jwk("rsa");
    thumbed["x5t"] = json!("dGh1bWI");
    KeySet::parse(json!({"keys": [thumbed, bound, ec_jwk("ec")]}).to_string().as_bytes()).unwrap()
}

pub fn rsa_jwk(kid: &str) -> Value {
    // RSAPublicKey of 2048 bits: 9 bytes before the modulus, 2 + 3 of exponent 65537 after it.
    let der = rsa_public_key_der();
    assert_eq!(der.len(), 9 + 256 + 5);
    json!({"kty": "RSA", "use": "sig", "kid": kid, "n": base64url(&der[9..265]), "e": base64url(&der[267..])})
}

pub fn ec_jwk(kid: &str) -> Value {
    let point = EC.public_key().as_ref();
    json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": base64url(&point[1..33]), "y": base64url(&point[33..])})
}

pub fn rsa_public_key_der() -> Vec<u8> {
    RSA.public_key().as_ref().to_vec()
}

pub fn part(json: &Value) -> String {
    base64url(json.to_string())
}

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn at(unix_seconds: i64) -> Time {
    milliseconds(unix_seconds * 1000)
}

pub fn milliseconds(unix_milliseconds: i64) -> Time {
    Time::from_unix_milliseconds(unix_milliseconds)
}
