//! Assertions of attestation authorities (behaviour section 8.3): what an environment is, in the words of somebody whom a
//! release policy trusts.
//!
//! An assertion is judged by what its authority's key set and its own claims say. Nothing in its header is followed or
//! fetched, no member occurs twice, and what it claims is looked at only after its signature has verified, but for its
//! issuer, which chooses whose keys it must verify with.

mod authority_keys;
mod cache;

pub use authority_keys::{AuthorityKeySet, AuthorityKeySetError};
pub use cache::{AuthorityKeyCache, AuthoritySource, AuthoritySourceError, REFETCH_SECONDS};

use crate::jws::Jws;
use crate::key_set::TokenAlgorithm;
use crate::text::{LAST_SECOND, base64url_decode, rfc3339, sha256, shown};
use crate::token::TokenError;
use domain::json::{Json, Number};
use domain::time::Time;

/// Longest assertion that is looked at.
pub const MAX_ASSERTION_BYTES: usize = 64 * 1024;
/// How far the authority's clock may run ahead of ours. `exp` has no leeway.
pub const CLOCK_LEEWAY_SECONDS: i64 = 300;
/// Keys of the environment that are looked at.
const MAX_RUNTIME_KEYS: usize = 64;
const MAX_NAME_BYTES: usize = 256;

/// Why an assertion proves nothing. Messages hold names and times of it, no other claims.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AssertionError {
    #[error("it is {0} bytes long, over the limit of {MAX_ASSERTION_BYTES}")]
    TooLong(usize),
    #[error("it is not a signed JWT: three parts of base64url without padding, separated by dots")]
    NotJws,
    #[error("its {part} is not a JSON object: {reason}")]
    NotJson { part: &'static str, reason: String },
    #[error("its header has no kid that names the key it is signed with")]
    NamesNoKey,
    #[error("its header has critical extensions, which are not supported")]
    CriticalExtension,
    #[error("its type {0} is not JWT")]
    WrongType(String),
    #[error("its algorithm {0} is not RS256 or PS256")]
    UnsupportedAlgorithm(String),
    #[error("it has no claim {0}")]
    MissingClaim(&'static str),
    #[error("its claim {claim} is not {expected}")]
    MalformedClaim { claim: &'static str, expected: &'static str },
    #[error("it is signed with key {0}, which is not among its authority's keys")]
    UnknownKey(String),
    #[error("key {key} of its authority cannot be used: {reason}")]
    UnusableKey { key: String, reason: String },
    #[error("the certificate of key {key} of its authority is valid from {} to {}", rfc3339(*.from), rfc3339(*.to))]
    CertificateTime { key: String, from: Time, to: Time },
    #[error("its signature does not verify")]
    BadSignature,
    #[error("it expired at {}", rfc3339(*.0))]
    Expired(Time),
    #[error("it is not valid before {}", rfc3339(*.0))]
    NotYetValid(Time),
    #[error("it was issued in the future, at {}", rfc3339(*.0))]
    IssuedInFuture(Time),
    #[error(
        "x-ms-runtime.keys holds no key to wrap the released one to: of type RSA, with use enc or encrypt among its key_ops"
    )]
    NoReleaseKey,
    #[error("the key in x-ms-runtime.keys to wrap the released one to {0}")]
    BadReleaseKey(&'static str),
}

/// An assertion that was read and not verified.
pub struct Assertion<'a> {
    jws: Jws<'a>,
    algorithm: TokenAlgorithm,
    kid: String,
    issuer: String,
    claims: Json,
    hash: [u8; 32],
}

/// What is true of an environment, says its authority.
#[derive(Debug)]
pub struct Attested {
    pub claims: Json,
    pub expires: Time,
    pub release_key: EnvironmentKey,
    /// SHA-256 of the assertion.
    pub hash: [u8; 32],
}

/// A public RSA key whose private half the environment keeps.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnvironmentKey {
    pub kid: String,
    pub modulus: Vec<u8>,
    pub exponent: Vec<u8>,
}

impl<'a> Assertion<'a> {
    pub fn parse(token: &'a str) -> Result<Self, AssertionError> {
        if token.len() > MAX_ASSERTION_BYTES {
            return Err(AssertionError::TooLong(token.len()));
        }
        let jws = Jws::split(token).map_err(|_| AssertionError::NotJws)?;
        let header = object(jws.header, "header")?;
        let text = |name: &str| header.member(name).and_then(Json::as_text);
        if header.member("crit").is_some() {
            return Err(AssertionError::CriticalExtension);
        }
        if let Some(kind) = header.member("typ") {
            let kind = kind.as_text().unwrap_or(kind.kind());
            if !kind.eq_ignore_ascii_case("JWT") {
                return Err(AssertionError::WrongType(shown(kind)));
            }
        }
        let algorithm = text("alg").unwrap_or_default();
        let algorithm = TokenAlgorithm::from_name(algorithm)
            .filter(|algorithm| *algorithm != TokenAlgorithm::Es256)
            .ok_or_else(|| AssertionError::UnsupportedAlgorithm(shown(algorithm)))?;
        let kid = text("kid").filter(|kid| !kid.is_empty()).ok_or(AssertionError::NamesNoKey)?;
        let claims = object(jws.payload, "payload")?;
        let issuer = claims.member("iss").ok_or(AssertionError::MissingClaim("iss"))?;
        let issuer = issuer
            .as_text()
            .ok_or(AssertionError::MalformedClaim { claim: "iss", expected: "a string" })?
            .to_owned();
        let (kid, hash) = (kid.to_owned(), sha256(token.as_bytes()));
        Ok(Self { jws, algorithm, kid, issuer, claims, hash })
    }

    /// Who is said to have made it.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The name of the key with which it is said to be signed.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// What it proves at `now`, by the keys of its authority.
    pub fn verify(self, keys: &AuthorityKeySet, now: Time) -> Result<Attested, AssertionError> {
        let key = keys.key(&self.kid, self.algorithm, now)?;
        self.jws.verify(key, self.algorithm).map_err(|error| match error {
            TokenError::AlgorithmMismatch { .. } => {
                AssertionError::UnsupportedAlgorithm(shown(self.algorithm.as_str()))
            }
            _ => AssertionError::BadSignature,
        })?;
        let expires = self.time("exp")?.ok_or(AssertionError::MissingClaim("exp"))?;
        if expires <= now {
            return Err(AssertionError::Expired(expires));
        }
        let latest = now.unix_milliseconds().saturating_add(CLOCK_LEEWAY_SECONDS * 1000);
        let future = |time: &Time| time.unix_milliseconds() > latest;
        if let Some(not_before) = self.time("nbf")?.filter(future) {
            return Err(AssertionError::NotYetValid(not_before));
        }
        if let Some(issued) = self.time("iat")?.filter(future) {
            return Err(AssertionError::IssuedInFuture(issued));
        }
        let release_key = environment_key(&self.claims)?;
        Ok(Attested { claims: self.claims, expires, release_key, hash: self.hash })
    }

    fn time(&self, claim: &'static str) -> Result<Option<Time>, AssertionError> {
        let malformed = AssertionError::MalformedClaim { claim, expected: "a number of seconds since 1970" };
        let seconds = match self.claims.member(claim) {
            None => return Ok(None),
            Some(Json::Number(Number::Integer(seconds))) => i64::try_from(*seconds).ok(),
            Some(Json::Number(Number::Real(seconds))) => Some(seconds.floor() as i64),
            Some(_) => None,
        };
        match seconds {
            Some(seconds) if (0..=LAST_SECOND).contains(&seconds) => {
                Ok(Some(Time::from_unix_milliseconds(seconds * 1000)))
            }
            _ => Err(malformed),
        }
    }
}

fn object(encoded: &str, part: &'static str) -> Result<Json, AssertionError> {
    let bytes = base64url_decode(encoded).ok_or(AssertionError::NotJws)?;
    match Json::parse(&bytes) {
        Ok(json @ Json::Object(_)) => Ok(json),
        Ok(other) => Err(AssertionError::NotJson { part, reason: format!("it is {}", other.kind()) }),
        Err(malformed) => Err(AssertionError::NotJson { part, reason: malformed.to_string() }),
    }
}

/// The first key in `x-ms-runtime.keys` that is for encryption. Keys elsewhere in the assertion, such as at its top or within
/// `x-ms-isolation-tee`, are claims like any other.
fn environment_key(claims: &Json) -> Result<EnvironmentKey, AssertionError> {
    let runtime = claims.member("x-ms-runtime").ok_or(AssertionError::MissingClaim("x-ms-runtime"))?;
    let keys = runtime.member("keys").and_then(Json::as_array).ok_or(AssertionError::MalformedClaim {
        claim: "x-ms-runtime",
        expected: "an object with a list of keys",
    })?;
    let key = keys.iter().take(MAX_RUNTIME_KEYS).find(|key| is_for_encryption(key));
    let key = key.ok_or(AssertionError::NoReleaseKey)?;
    let bad = AssertionError::BadReleaseKey;
    let kid =
        key.member("kid").and_then(Json::as_text).filter(|kid| (1..=MAX_NAME_BYTES).contains(&kid.len()));
    let kid = kid.ok_or(bad("has no kid of 1 to 256 bytes"))?.to_owned();
    let number = |name: &str| {
        key.member(name).and_then(Json::as_text).and_then(|text| {
            // Some environments pad what they write.
            base64url_decode(text.trim_end_matches('='))
        })
    };
    if let (Some(modulus), Some(exponent)) = (number("n"), number("e")) {
        return Ok(EnvironmentKey { kid, modulus, exponent });
    }
    let (modulus, exponent) = key
        .member("x5c")
        .and_then(authority_keys::first_certificate_key)
        .ok_or(bad("has neither n and e nor a certificate with an RSA key"))?;
    Ok(EnvironmentKey { kid, modulus, exponent })
}

fn is_for_encryption(key: &Json) -> bool {
    let text = |name: &str| key.member(name).and_then(Json::as_text);
    let operations = key.member("key_ops").and_then(Json::as_array).unwrap_or_default();
    text("kty") == Some("RSA")
        && (text("use") == Some("enc")
            || text("key_use") == Some("enc")
            || operations.iter().any(|operation| operation.as_text() == Some("encrypt")))
}

#[cfg(test)]
mod tests;
