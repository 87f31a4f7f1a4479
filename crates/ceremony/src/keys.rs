//! The seam for RSA: who wraps to a certificate, and who holds a private key.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use crypto::SecretBytes;
use crypto::transport::{TransportCertificate, TransportKey};
use std::fmt;
use std::str::FromStr;

/// SHA-256 of a certificate's DER; as text base64url, 43 characters (`x5t#S256`).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Thumbprint(pub [u8; 32]);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a thumbprint: expected 43 characters of base64url")]
pub struct MalformedThumbprint;

impl Thumbprint {
    pub fn of(certificate: &TransportCertificate) -> Self {
        Self(certificate.thumbprint())
    }
}

impl FromStr for Thumbprint {
    type Err = MalformedThumbprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedThumbprint)?;
        bytes.try_into().map(Self).map_err(|_| MalformedThumbprint)
    }
}

impl fmt::Display for Thumbprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("RSA-OAEP-256 failed")]
pub struct TransportFailed;

/// Wraps keys to certificates: RSA-OAEP, SHA-256 for both hashes, no label.
pub trait KeyTransport {
    fn wrap(&self, to: &TransportCertificate, key: &SecretBytes) -> Result<Vec<u8>, TransportFailed>;
}

/// Whoever can use the private key of a certificate: a file that was opened, a token, a pool's exchange key.
pub trait KeyHolder {
    /// Of the certificate by which files name this holder.
    fn thumbprint(&self) -> Thumbprint;

    fn unwrap(&self, wrapped: &[u8]) -> Result<SecretBytes, TransportFailed>;
}

/// The library that this project links.
#[derive(Clone, Copy, Debug, Default)]
pub struct LibraryTransport;

impl KeyTransport for LibraryTransport {
    fn wrap(&self, to: &TransportCertificate, key: &SecretBytes) -> Result<Vec<u8>, TransportFailed> {
        to.wrap(key).map_err(|_| TransportFailed)
    }
}

/// A private key in memory.
pub struct LibraryHolder {
    key: TransportKey,
    thumbprint: Thumbprint,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the private key is not that of the certificate")]
pub struct NotThatKey;

impl LibraryHolder {
    pub fn new(key: TransportKey, certificate: &TransportCertificate) -> Result<Self, NotThatKey> {
        if !key.is_for(certificate) {
            return Err(NotThatKey);
        }
        Ok(Self { key, thumbprint: Thumbprint::of(certificate) })
    }
}

impl KeyHolder for LibraryHolder {
    fn thumbprint(&self) -> Thumbprint {
        self.thumbprint
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<SecretBytes, TransportFailed> {
        self.key.unwrap(wrapped).map_err(|_| TransportFailed)
    }
}
