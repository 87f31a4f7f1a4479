//! A certificate by which a client proves who it is: it signs assertions with the certificate's key (RFC 7523).
//!
//! Who signed the certificate is of no interest. It was registered for the client, and its SHA-256 names it; that is
//! what a stored certificate and a presented one are compared by.

use crate::der::{Certificate, rsa_components};
use crate::key_set::VerificationKey;
use crate::text::sha256;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use domain::time::Time;
use std::fmt;
use subtle::ConstantTimeEq;

/// Largest certificate that is registered, in bytes of DER.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// A registered certificate with an RSA key.
#[derive(Clone)]
pub struct ClientCertificate {
    der: Vec<u8>,
    sha256: [u8; 32],
    /// Some clients name their certificate by nothing else. It selects among a client's certificates and proves nothing.
    sha1: [u8; 20],
    not_before: Time,
    not_after: Time,
    key: VerificationKey,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ClientCertificateError {
    #[error("certificate is {length} bytes long, over the limit of {MAX_CERTIFICATE_BYTES}")]
    TooLong { length: usize },
    #[error("not an X.509 certificate in DER")]
    Malformed,
    #[error("certificate is not of an RSA key")]
    NotRsa,
    #[error("the certificate's key {0}")]
    Key(String),
}

impl ClientCertificate {
    pub fn from_der(der: &[u8]) -> Result<Self, ClientCertificateError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(ClientCertificateError::TooLong { length: der.len() });
        }
        let read = Certificate::parse(der).ok_or(ClientCertificateError::Malformed)?;
        let key = read.rsa_public_key.ok_or(ClientCertificateError::NotRsa)?;
        let (modulus, exponent) = rsa_components(key).ok_or(ClientCertificateError::Malformed)?;
        let key = VerificationKey::rsa(modulus, exponent).map_err(ClientCertificateError::Key)?;
        Ok(Self {
            der: der.to_vec(),
            sha256: sha256(der),
            sha1: sha1(der),
            not_before: read.not_before,
            not_after: read.not_after,
            key,
        })
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// SHA-256 of the DER: the certificate's name.
    pub fn thumbprint(&self) -> &[u8; 32] {
        &self.sha256
    }

    pub(super) fn key(&self) -> &VerificationKey {
        &self.key
    }

    pub(super) fn is_valid_at(&self, now: Time) -> bool {
        // The end is a whole second, and belongs to the validity.
        self.not_before <= now && now.int_date() <= self.not_after.int_date()
    }

    pub(super) fn has_sha256(&self, thumbprint: &[u8]) -> bool {
        self.sha256.ct_eq(thumbprint).into()
    }

    pub(super) fn has_sha1(&self, thumbprint: &[u8]) -> bool {
        self.sha1.ct_eq(thumbprint).into()
    }

    /// Whether `der` is this certificate.
    pub(super) fn is(&self, der: &[u8]) -> bool {
        self.has_sha256(&sha256(der))
    }
}

impl PartialEq for ClientCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.is(&other.der)
    }
}

/// The thumbprint names the certificate; the rest would only be long.
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientCertificate").field(&hex::encode(self.sha256)).finish()
    }
}

fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut hash = [0; 20];
    hash.copy_from_slice(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/client-certificate.der");
    const GOLDEN_EC: &[u8] = include_bytes!("../../tests/golden/client-certificate-ec.der");

    #[test]
    fn only_a_certificate_of_an_rsa_key_is_registered() {
        let certificate = ClientCertificate::from_der(GOLDEN).unwrap();
        assert!(certificate.is(GOLDEN) && !certificate.is(GOLDEN_EC));
        assert!(certificate.has_sha256(certificate.thumbprint()) && !certificate.has_sha1(&[0; 20]));
        let refused = |der: &[u8]| ClientCertificate::from_der(der).unwrap_err();
        assert_eq!(refused(GOLDEN_EC), ClientCertificateError::NotRsa);
        assert_eq!(refused(&GOLDEN[1..]), ClientCertificateError::Malformed);
        assert!(matches!(
            refused(&[0x30; MAX_CERTIFICATE_BYTES + 1]),
            ClientCertificateError::TooLong { .. }
        ));
    }

    #[test]
    fn validity_includes_both_ends() {
        let certificate = ClientCertificate::from_der(GOLDEN).unwrap();
        let valid = |milliseconds| certificate.is_valid_at(Time::from_unix_milliseconds(milliseconds));
        assert!(!valid(1_767_323_044_999) && valid(1_767_323_045_000));
        assert!(valid(2_840_238_245_999) && !valid(2_840_238_246_000));
    }
}
