//! The public keys of an issuer, read from a JSON Web Key Set (RFC 7517).
//!
//! A key is read once into a form that can only verify with the algorithms of its own type: a token's `alg` chooses
//! among them and can never make one key stand for another kind. There is no symmetric key here, so `HS*` has
//! nothing to confuse.

use crate::text::{base64url_decode, shown};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256,
    RsaPublicKeyComponents,
};
use serde::Deserialize;
use std::fmt;

/// Largest key set that is read, in bytes.
pub const MAX_KEY_SET_BYTES: usize = 256 * 1024;
/// Most keys, of whatever kind, that a set may hold.
pub const MAX_KEYS: usize = 64;
/// Accepted RSA modulus sizes, in bits.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The signature algorithms that a token may name (RFC 7518 section 3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenAlgorithm {
    Rs256,
    Ps256,
    Es256,
}

impl TokenAlgorithm {
    /// `None` for every other name, `none` included. Names are compared exactly, as RFC 7515 asks.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "PS256" => Some(Self::Ps256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
        }
    }
}

impl fmt::Display for TokenAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Verification keys, each under a `kid` or an `x5t` of its own.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<VerificationKey>,
    skipped: Vec<String>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeySetError {
    #[error("key set is {length} bytes long, over the limit of {MAX_KEY_SET_BYTES}")]
    TooLong { length: usize },
    #[error("key set is not a JSON object with an array `keys` (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("key set holds {count} keys, over the limit of {MAX_KEYS}")]
    TooMany { count: usize },
    #[error("key set holds two different keys with kid or x5t {name}")]
    Ambiguous { name: String },
    #[error("key set holds no key that can verify a token: {}", .skipped.join("; "))]
    NoUsableKey { skipped: Vec<String> },
}

impl KeySet {
    /// Reads a JSON Web Key Set.
    ///
    /// Keys that cannot verify a token here (other types, curves, algorithms or uses, too short, malformed, nameless)
    /// are left out and listed by [`skipped`](Self::skipped): issuers publish encryption keys and keys of the future
    /// beside those that we need. A set without any usable key, or with an ambiguous name, is refused.
    pub fn parse(json: &[u8]) -> Result<Self, KeySetError> {
        if json.len() > MAX_KEY_SET_BYTES {
            return Err(KeySetError::TooLong { length: json.len() });
        }
        let document: JwkSet = serde_json::from_slice(json)
            .map_err(|error| KeySetError::Json { line: error.line(), column: error.column() })?;
        if document.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany { count: document.keys.len() });
        }
        let mut set = Self { keys: Vec::new(), skipped: Vec::new() };
        for (index, jwk) in document.keys.into_iter().enumerate() {
            match VerificationKey::parse(jwk) {
                Ok(key) => set.add(key)?,
                Err(reason) => set.skipped.push(format!("key {index}: {reason}")),
            }
        }
        if set.keys.is_empty() {
            return Err(KeySetError::NoUsableKey { skipped: set.skipped });
        }
        Ok(set)
    }

    /// Why keys of the document were left out, one sentence each, for the log.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// The keys' names, made fit for a log.
    pub fn names(&self) -> Vec<String> {
        self.keys
            .iter()
            .filter_map(|key| key.kid.as_ref().or(key.x5t.as_ref()))
            .map(|name| shown(name))
            .collect()
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(crate) fn by_kid(&self, kid: &str) -> Option<&VerificationKey> {
        self.keys.iter().find(|key| key.kid.as_deref() == Some(kid))
    }

    /// `x5t`: base64url of a certificate's SHA-1; some issuers pad it.
    pub(crate) fn by_x5t(&self, x5t: &str) -> Option<&VerificationKey> {
        let x5t = x5t.trim_end_matches('=');
        self.keys.iter().find(|key| key.x5t.as_deref() == Some(x5t))
    }

    fn add(&mut self, key: VerificationKey) -> Result<(), KeySetError> {
        if self.keys.contains(&key) {
            return Ok(());
        }
        let taken = |name: &&String| {
            self.keys
                .iter()
                .any(|other| other.kid.as_ref() == Some(*name) || other.x5t.as_ref() == Some(*name))
        };
        if let Some(name) = key.kid.iter().chain(&key.x5t).find(taken) {
            return Err(KeySetError::Ambiguous { name: shown(name) });
        }
        self.keys.push(key);
        Ok(())
    }
}

/// Equal when the same names lead to the same keys, in the same order.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| (&key.kid, &key.x5t))).finish()
    }
}

/// One key, bound to the algorithms of its type and, if the document says so, to one of them.
#[derive(Clone)]
pub(crate) struct VerificationKey {
    kid: Option<String>,
    x5t: Option<String>,
    only: Option<TokenAlgorithm>,
    material: Material,
}

#[derive(Clone)]
enum Material {
    Rsa { pkcs1: ParsedPublicKey, pss: ParsedPublicKey },
    P256(ParsedPublicKey),
}

impl VerificationKey {
    /// The key that verifies `algorithm`, or `None` if this key is not for it.
    pub(crate) fn for_algorithm(&self, algorithm: TokenAlgorithm) -> Option<&ParsedPublicKey> {
        if self.only.is_some_and(|only| only != algorithm) {
            return None;
        }
        match (&self.material, algorithm) {
            (Material::Rsa { pkcs1, .. }, TokenAlgorithm::Rs256) => Some(pkcs1),
            (Material::Rsa { pss, .. }, TokenAlgorithm::Ps256) => Some(pss),
            (Material::P256(key), TokenAlgorithm::Es256) => Some(key),
            (Material::Rsa { .. }, TokenAlgorithm::Es256)
            | (Material::P256(_), TokenAlgorithm::Rs256 | TokenAlgorithm::Ps256) => None,
        }
    }

    /// What this key is for, in words.
    pub(crate) fn purpose(&self) -> &'static str {
        match (self.only, &self.material) {
            (Some(only), _) => only.as_str(),
            (None, Material::Rsa { .. }) => "RS256 or PS256",
            (None, Material::P256(_)) => "ES256",
        }
    }

    /// The key with this modulus and exponent, without a name, for RS256 and PS256.
    pub(crate) fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, String> {
        Ok(Self { kid: None, x5t: None, only: None, material: rsa_of(modulus, exponent)? })
    }

    fn parse(jwk: serde_json::Value) -> Result<Self, String> {
        let jwk: Jwk = serde_json::from_value(jwk).map_err(|_| "a member has the wrong type".to_owned())?;
        if let Some(purpose) = jwk.r#use.as_deref().filter(|purpose| *purpose != "sig") {
            return Err(format!("is for use {}, not for signatures", shown(purpose)));
        }
        if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|name| name == "verify")) {
            return Err("its key_ops do not hold verify".to_owned());
        }
        let x5t = jwk.x5t.as_deref().map(|x5t| x5t.trim_end_matches('=').to_owned());
        if jwk.kid.is_none() && x5t.is_none() {
            return Err("has neither kid nor x5t, so that no token can name it".to_owned());
        }
        let only = match jwk.alg.as_deref() {
            None => None,
            Some(name) => match TokenAlgorithm::from_name(name) {
                Some(algorithm) => Some(algorithm),
                None => return Err(format!("is for algorithm {}", shown(name))),
            },
        };
        let material = match jwk.kty.as_str() {
            "RSA" => rsa(&jwk)?,
            "EC" => p256(&jwk)?,
            other => return Err(format!("is of type {}", shown(other))),
        };
        let key = Self { kid: jwk.kid, x5t, only, material };
        if let Some(algorithm) = only
            && key.for_algorithm(algorithm).is_none()
        {
            return Err(format!("algorithm {algorithm} does not fit its type {}", jwk.kty));
        }
        Ok(key)
    }
}

impl PartialEq for VerificationKey {
    fn eq(&self, other: &Self) -> bool {
        let same_material = match (&self.material, &other.material) {
            (Material::Rsa { pkcs1: own, .. }, Material::Rsa { pkcs1: theirs, .. }) => {
                own.as_ref() == theirs.as_ref()
            }
            (Material::P256(own), Material::P256(theirs)) => own.as_ref() == theirs.as_ref(),
            (Material::Rsa { .. }, Material::P256(_)) | (Material::P256(_), Material::Rsa { .. }) => false,
        };
        same_material && self.kid == other.kid && self.x5t == other.x5t && self.only == other.only
    }
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    x5t: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

fn rsa(jwk: &Jwk) -> Result<Material, String> {
    rsa_of(&member(&jwk.n, "n")?, &member(&jwk.e, "e")?)
}

fn rsa_of(modulus: &[u8], exponent: &[u8]) -> Result<Material, String> {
    let (modulus, exponent) = (without_leading_zeros(modulus), without_leading_zeros(exponent));
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(format!(
            "is an RSA key of {bits} bits, outside {} to {}",
            RSA_BITS.start(),
            RSA_BITS.end()
        ));
    }
    // With exponent 1 anyone could "sign"; aws-lc's own upper bound is 33 bits.
    let odd = exponent.last().is_some_and(|byte| byte & 1 == 1);
    if !odd || exponent == [1] || exponent.len() > 5 {
        return Err("has an RSA exponent that is even, 1 or over 40 bits".to_owned());
    }
    let components = RsaPublicKeyComponents { n: modulus, e: exponent };
    let parsed = |parameters| {
        components.to_parsed_public_key(parameters).map_err(|_| "is not a valid RSA public key".to_owned())
    };
    Ok(Material::Rsa { pkcs1: parsed(&RSA_PKCS1_2048_8192_SHA256)?, pss: parsed(&RSA_PSS_2048_8192_SHA256)? })
}

fn p256(jwk: &Jwk) -> Result<Material, String> {
    match jwk.crv.as_deref() {
        Some("P-256") => {}
        Some(other) => return Err(format!("is on curve {}", shown(other))),
        None => return Err("has no crv".to_owned()),
    }
    let (x, y) = (member(&jwk.x, "x")?, member(&jwk.y, "y")?);
    // RFC 7518 section 6.2.1.2: full size, leading zeros kept.
    if x.len() != 32 || y.len() != 32 {
        return Err("has coordinates that are not 32 bytes each".to_owned());
    }
    let point = [&[4][..], &x, &y].concat();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .map(Material::P256)
        .map_err(|_| "is not a point on P-256".to_owned())
}

fn member(value: &Option<String>, name: &str) -> Result<Vec<u8>, String> {
    let value = value.as_deref().ok_or_else(|| format!("has no {name}"))?;
    base64url_decode(value).ok_or_else(|| format!("its {name} is not base64url without padding"))
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
    &bytes[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::base64url;
    use serde_json::{Value, json};

    /// RFC 7515 appendix A.2 and A.3: an RSA and a P-256 key.
    fn rsa_jwk() -> Value {
        json!({"kty": "RSA", "kid": "r", "e": "AQAB",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-\
                yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-\
                KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_\
                h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ"})
    }

    fn ec_jwk() -> Value {
        json!({"kty": "EC", "crv": "P-256", "kid": "e",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"})
    }

    fn parse(keys: &[Value]) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({"keys": keys, "other": 1}).to_string().as_bytes())
    }

    fn with(mut jwk: Value, member: &str, value: Value) -> Value {
        jwk[member] = value;
        jwk
    }

    #[test]
    fn a_key_serves_only_the_algorithms_of_its_type() {
        let set = parse(&[rsa_jwk(), ec_jwk()]).unwrap();
        let allowed = |kid: &str| {
            [TokenAlgorithm::Rs256, TokenAlgorithm::Ps256, TokenAlgorithm::Es256]
                .map(|algorithm| set.by_kid(kid).unwrap().for_algorithm(algorithm).is_some())
        };
        assert_eq!(allowed("r"), [true, true, false]);
        assert_eq!(allowed("e"), [false, false, true]);

        let bound = parse(&[with(rsa_jwk(), "alg", json!("PS256"))]).unwrap();
        let key = bound.by_kid("r").unwrap();
        assert!(key.for_algorithm(TokenAlgorithm::Rs256).is_none());
        assert!(key.for_algorithm(TokenAlgorithm::Ps256).is_some());
    }

    #[test]
    fn keys_that_cannot_verify_are_left_out_with_the_reason() {
        let short = base64url([0xff; 255]);
        let long = base64url([0xff; 1025]);
        for (jwk, reason) in [
            (json!({"kty": "oct", "kid": "o", "k": "AAAA"}), "is of type \"oct\""),
            (json!({"kty": 1}), "a member has the wrong type"),
            (json!("no object"), "a member has the wrong type"),
            (with(rsa_jwk(), "use", json!("enc")), "is for use \"enc\", not for signatures"),
            (with(rsa_jwk(), "key_ops", json!(["sign"])), "its key_ops do not hold verify"),
            (with(rsa_jwk(), "alg", json!("RS512")), "is for algorithm \"RS512\""),
            (with(rsa_jwk(), "alg", json!("HS256")), "is for algorithm \"HS256\""),
            (with(rsa_jwk(), "alg", json!("ES256")), "algorithm ES256 does not fit its type RSA"),
            (with(rsa_jwk(), "kid", Value::Null), "has neither kid nor x5t, so that no token can name it"),
            (with(rsa_jwk(), "n", json!(short)), "is an RSA key of 2040 bits, outside 2048 to 8192"),
            (with(rsa_jwk(), "n", json!(long)), "is an RSA key of 8200 bits, outside 2048 to 8192"),
            (with(rsa_jwk(), "n", json!("")), "is an RSA key of 0 bits, outside 2048 to 8192"),
            (with(rsa_jwk(), "n", json!("a=")), "its n is not base64url without padding"),
            (with(rsa_jwk(), "n", Value::Null), "has no n"),
            (with(rsa_jwk(), "e", json!("AQ")), "has an RSA exponent that is even, 1 or over 40 bits"),
            (with(rsa_jwk(), "e", json!("AA")), "has an RSA exponent that is even, 1 or over 40 bits"),
            (with(rsa_jwk(), "e", json!("AAAE")), "has an RSA exponent that is even, 1 or over 40 bits"),
            (with(ec_jwk(), "crv", json!("P-384")), "is on curve \"P-384\""),
            (with(ec_jwk(), "crv", Value::Null), "has no crv"),
            (with(ec_jwk(), "x", json!("AAAA")), "has coordinates that are not 32 bytes each"),
            (with(ec_jwk(), "y", json!(base64url([1; 32]))), "is not a point on P-256"),
        ] {
            let set = parse(&[jwk.clone(), with(ec_jwk(), "kid", json!("good"))]).unwrap();
            assert_eq!((set.len(), set.skipped()), (1, &[format!("key 0: {reason}")][..]), "{jwk}");
            assert!(matches!(parse(&[jwk]), Err(KeySetError::NoUsableKey { .. })));
        }
    }

    #[test]
    fn limits_and_ambiguity_are_errors() {
        let too_long = vec![b' '; MAX_KEY_SET_BYTES + 1];
        assert!(matches!(KeySet::parse(&too_long), Err(KeySetError::TooLong { .. })));
        assert!(matches!(KeySet::parse(b"{\"keys\":{}}"), Err(KeySetError::Json { .. })));
        assert!(matches!(KeySet::parse(b"\xff"), Err(KeySetError::Json { .. })));
        let many: Vec<Value> = (0..65).map(|kid| with(ec_jwk(), "kid", json!(kid.to_string()))).collect();
        assert_eq!(parse(&many), Err(KeySetError::TooMany { count: 65 }));
        assert_eq!(parse(&[ec_jwk(), ec_jwk()]).unwrap().len(), 1, "the same key twice is no ambiguity");
        let twice = [ec_jwk(), with(rsa_jwk(), "kid", json!("e"))];
        assert_eq!(parse(&twice), Err(KeySetError::Ambiguous { name: "\"e\"".to_owned() }));
        assert_eq!(parse(&[]).unwrap_err().to_string(), "key set holds no key that can verify a token: ");
    }

    #[test]
    fn equality_is_of_names_and_keys() {
        let set = parse(&[rsa_jwk(), ec_jwk()]).unwrap();
        assert_eq!(set, parse(&[with(rsa_jwk(), "extra", json!(1)), ec_jwk()]).unwrap());
        assert_ne!(set, parse(&[rsa_jwk()]).unwrap());
        assert_ne!(set, parse(&[with(rsa_jwk(), "alg", json!("RS256")), ec_jwk()]).unwrap());
        assert_ne!(set, parse(&[with(rsa_jwk(), "e", json!("Aw")), ec_jwk()]).unwrap());
    }
}
