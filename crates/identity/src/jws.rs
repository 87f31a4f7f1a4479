//! Signed JWTs (RFC 7519, RFC 7515) taken apart: what tokens for a pool and assertions for the issuer share.

use crate::key_set::{TokenAlgorithm, VerificationKey};
use crate::text::{LAST_SECOND, base64url_decode};
use crate::token::TokenError;
use domain::time::Time;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The parts of a compact serialization, still encoded.
pub(crate) struct Jws<'a> {
    /// `header.payload`, which the signature covers.
    pub(crate) signed: &'a str,
    pub(crate) header: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) signature: &'a str,
}

impl<'a> Jws<'a> {
    pub(crate) fn split(token: &'a str) -> Result<Self, TokenError> {
        let three = || {
            let (signed, signature) = token.rsplit_once('.')?;
            let (header, payload) = signed.split_once('.')?;
            (!payload.contains('.')).then_some(Self { signed, header, payload, signature })
        };
        three().ok_or_else(|| TokenError::NotThreeParts { found: token.split('.').count() })
    }

    /// Whether `key` made the signature, with `algorithm`, for which it must be.
    pub(crate) fn verify(&self, key: &VerificationKey, algorithm: TokenAlgorithm) -> Result<(), TokenError> {
        let parsed = key
            .for_algorithm(algorithm)
            .ok_or_else(|| TokenError::AlgorithmMismatch { algorithm, key_is_for: key.purpose() })?;
        let signature = decode(self.signature, "signature")?;
        parsed.verify_sig(self.signed.as_bytes(), &signature).map_err(|_| TokenError::BadSignature)
    }
}

fn decode(encoded: &str, part: &'static str) -> Result<Vec<u8>, TokenError> {
    base64url_decode(encoded).ok_or(TokenError::NotBase64Url { part })
}

/// Only the position of a JSON error is kept: its text may repeat parts of the token.
pub(crate) fn json<T: DeserializeOwned>(encoded: &str, part: &'static str) -> Result<T, TokenError> {
    let bytes = decode(encoded, part)?;
    // serde would also take an array for a struct.
    if bytes.trim_ascii_start().first() != Some(&b'{') {
        return Err(TokenError::NotJson { part, column: 1 });
    }
    // Nor would it look at what is in a member that is passed over (RFC 8259 section 8.1).
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| TokenError::NotJson { part, column: error.valid_up_to() + 1 })?;
    serde_json::from_str(text).map_err(|error| TokenError::NotJson { part, column: error.column() })
}

/// A NumericDate (RFC 7519 section 2): seconds, with a fraction or without; some issuers and clients write fractions.
pub(crate) fn numeric_date(value: &Value) -> Option<Time> {
    let milliseconds = match (value.as_i64(), value.as_f64()) {
        (Some(seconds), _) if (0..=LAST_SECOND).contains(&seconds) => seconds * 1000,
        (None, Some(seconds)) if (0.0..=LAST_SECOND as f64).contains(&seconds) => {
            (seconds * 1000.0).floor() as i64
        }
        _ => return None,
    };
    Some(Time::from_unix_milliseconds(milliseconds))
}

/// For a member whose presence in any form counts, `null` included.
pub(crate) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}
