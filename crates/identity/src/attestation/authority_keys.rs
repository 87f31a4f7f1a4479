//! The key set of an attestation authority: each key is that of its first certificate.

use super::AssertionError;
use crate::der::{Certificate, rsa_components};
use crate::key_set::{MAX_KEY_SET_BYTES, MAX_KEYS, TokenAlgorithm, VerificationKey};
use crate::text::{base64url_decode, shown};
use aws_lc_rs::signature::{
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::json::{Json, MalformedJson};
use domain::time::Time;
use std::collections::BTreeMap;

const MAX_CERTIFICATES: usize = 8;
/// 1.2.840.113549.1.1.11, .12 and .13 as DER values, each with NULL parameters.
const SHA256_WITH_RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0b, 0x05, 0];
const SHA384_WITH_RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0c, 0x05, 0];
const SHA512_WITH_RSA: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 0x0d, 0x05, 0];

/// Keys by their names; in the place of one that cannot be used, the reason.
pub struct AuthorityKeySet(BTreeMap<String, Result<AuthorityKey, String>>);

struct AuthorityKey {
    key: VerificationKey,
    /// The one algorithm that it is for, if the set says so.
    only: Option<String>,
    not_before: Time,
    not_after: Time,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuthorityKeySetError {
    #[error("the key set is longer than {MAX_KEY_SET_BYTES} bytes")]
    TooLong,
    #[error("the key set is no JSON: {0}")]
    Json(#[from] MalformedJson),
    #[error("the key set is no object with a list of 1 to {MAX_KEYS} keys")]
    NoKeys,
}

impl AuthorityKeySet {
    pub fn parse(bytes: &[u8]) -> Result<Self, AuthorityKeySetError> {
        if bytes.len() > MAX_KEY_SET_BYTES {
            return Err(AuthorityKeySetError::TooLong);
        }
        let json = Json::parse(bytes)?;
        let keys = json.member("keys").and_then(Json::as_array).unwrap_or_default();
        if !(1..=MAX_KEYS).contains(&keys.len()) {
            return Err(AuthorityKeySetError::NoKeys);
        }
        let mut set = BTreeMap::new();
        for jwk in keys {
            // Without a name no assertion can be signed with it.
            let Some(kid) = jwk.member("kid").and_then(Json::as_text) else { continue };
            let key = match set.contains_key(kid) {
                true => Err("it stands in the key set twice".to_owned()),
                false => AuthorityKey::parse(jwk),
            };
            set.insert(kid.to_owned(), key);
        }
        Ok(Self(set))
    }

    pub fn holds(&self, kid: &str) -> bool {
        self.0.contains_key(kid)
    }

    pub(super) fn key(
        &self,
        kid: &str,
        algorithm: TokenAlgorithm,
        now: Time,
    ) -> Result<&VerificationKey, AssertionError> {
        match self.0.get(kid) {
            None => Err(AssertionError::UnknownKey(shown(kid))),
            Some(Err(reason)) => Err(AssertionError::UnusableKey { key: shown(kid), reason: reason.clone() }),
            Some(Ok(key)) if now < key.not_before || key.not_after < now => {
                let (from, to) = (key.not_before, key.not_after);
                Err(AssertionError::CertificateTime { key: shown(kid), from, to })
            }
            Some(Ok(AuthorityKey { only: Some(only), .. })) if only != algorithm.as_str() => {
                let reason = format!("it is for algorithm {} alone", shown(only));
                Err(AssertionError::UnusableKey { key: shown(kid), reason })
            }
            Some(Ok(key)) => Ok(&key.key),
        }
    }
}

impl AuthorityKey {
    fn parse(jwk: &Json) -> Result<Self, String> {
        let text = |name: &str| jwk.member(name).and_then(Json::as_text);
        if text("kty") != Some("RSA") {
            return Err("it is not of type RSA".to_owned());
        }
        if text("use").is_some_and(|purpose| purpose != "sig") {
            return Err("it is not for signatures".to_owned());
        }
        let chain = jwk.member("x5c").and_then(certificates).ok_or("it has no certificates in x5c")?;
        let chain: Vec<Certificate<'_>> = chain
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Option<_>>()
            .ok_or("one of its certificates is malformed")?;
        if !chain.windows(2).all(|pair| is_signed_by(&pair[0], &pair[1])) {
            return Err("one of its certificates is not signed by the one that follows".to_owned());
        }
        let first = chain.first().ok_or("it has no certificates in x5c")?;
        let (modulus, exponent) =
            first.rsa_public_key.and_then(rsa_components).ok_or("its certificate is not for an RSA key")?;
        for (name, number) in [("n", modulus), ("e", exponent)] {
            let same = |text: &str| base64url_decode(text).is_some_and(|own| without_zeros(&own) == number);
            if text(name).is_some_and(|text| !same(text)) {
                return Err(format!("its {name} is not that of its certificate"));
            }
        }
        let key = VerificationKey::rsa(modulus, exponent)?;
        let only = text("alg").map(str::to_owned);
        Ok(Self { key, only, not_before: first.not_before, not_after: first.not_after })
    }
}

/// Modulus and exponent of an RSA key in the first certificate of an `x5c`.
pub(super) fn first_certificate_key(x5c: &Json) -> Option<(Vec<u8>, Vec<u8>)> {
    let chain = certificates(x5c)?;
    let certificate = Certificate::parse(chain.first()?)?;
    let (modulus, exponent) = rsa_components(certificate.rsa_public_key?)?;
    Some((modulus.to_vec(), exponent.to_vec()))
}

/// RFC 7517 section 4.7: base64, not base64url.
fn certificates(x5c: &Json) -> Option<Vec<Vec<u8>>> {
    let chain = x5c.as_array().filter(|chain| (1..=MAX_CERTIFICATES).contains(&chain.len()))?;
    chain.iter().map(|text| STANDARD.decode(text.as_text()?).ok()).collect()
}

fn is_signed_by(certificate: &Certificate<'_>, issuer: &Certificate<'_>) -> bool {
    let algorithm = match certificate.algorithm {
        SHA256_WITH_RSA => &RSA_PKCS1_2048_8192_SHA256,
        SHA384_WITH_RSA => &RSA_PKCS1_2048_8192_SHA384,
        SHA512_WITH_RSA => &RSA_PKCS1_2048_8192_SHA512,
        _ => return false,
    };
    issuer.rsa_public_key.is_some_and(|key| {
        UnparsedPublicKey::new(algorithm, key).verify(certificate.signed, certificate.signature).is_ok()
    })
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}
