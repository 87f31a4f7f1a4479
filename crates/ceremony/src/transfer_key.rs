//! The exchange key of a pool that waits for its security domain: `docs/formats/transfer-key.md`.

use crate::keys::{KeyHolder, Thumbprint, TransportFailed};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use crypto::SecretBytes;
use crypto::transport::{SelfSigned, TransportCertificate, TransportKey};
use domain::guid::Guid;
use domain::name::PoolName;
use domain::time::IntDate;
use serde::Serialize;

const URI_PREFIX: &str = "holdfast:transfer-key?v=1&pool=";
const MAGIC: &[u8; 6] = b"HFXFR\x01";
const LENGTH_BYTES: usize = 4;

/// RSA-3072, for one pool. The private half leaves only through [`TransferKey::danger_export`], to be sealed.
pub struct TransferKey {
    pool: Guid,
    key: TransportKey,
    certificate: TransportCertificate,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TransferKeyError {
    #[error("not a transfer key (format version 1)")]
    Malformed,
    #[error("the certificate is not that of a pool's transfer key")]
    NotATransferKey,
}

#[derive(Serialize)]
struct ResponseWire {
    key_format: &'static str,
    /// JSON inside a string: the client parses it once more, whatever its model says.
    transfer_key: String,
}

#[derive(Serialize)]
struct KeyWire {
    kid: String,
    kty: &'static str,
    key_ops: [&'static str; 3],
    n: String,
    e: String,
    x5c: [String; 1],
    x5t: String,
    #[serde(rename = "x5t#S256")]
    x5t_s256: String,
    alg: &'static str,
}

impl TransferKey {
    /// A new key for `pool`, whose name is for people. Takes a good part of a second.
    pub fn generate(pool: Guid, pool_name: &PoolName, not_before: IntDate, not_after: IntDate) -> Self {
        let key = TransportKey::generate();
        let (common_name, uri) =
            (format!("Holdfast transfer key of {pool_name}"), format!("{URI_PREFIX}{pool}"));
        let says = SelfSigned { common_name: &common_name, uri: Some(&uri), not_before, not_after };
        let certificate = key.certify(&says).expect("the names of a pool fit a certificate");
        Self { pool, key, certificate }
    }

    pub fn pool(&self) -> Guid {
        self.pool
    }

    pub fn certificate(&self) -> &TransportCertificate {
        &self.certificate
    }

    /// The body that answers a client.
    pub fn to_response(&self) -> String {
        let url = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let thumbprint = Thumbprint::of(&self.certificate).to_string();
        let key = KeyWire {
            kid: thumbprint.clone(),
            kty: "RSA",
            key_ops: ["verify", "encrypt", "wrapKey"],
            n: url(self.certificate.modulus()),
            e: url(self.certificate.exponent()),
            x5c: [BASE64_STANDARD.encode(self.certificate.der())],
            x5t: url(&self.certificate.sha1_thumbprint()),
            x5t_s256: thumbprint,
            alg: "RSA-OAEP-256",
        };
        let transfer_key = serde_json::to_string(&key).expect("texts can be written");
        let response = ResponseWire { key_format: "jwk", transfer_key };
        serde_json::to_string(&response).expect("texts can be written")
    }

    /// Format version 1. For sealing, so that the key survives a restart.
    pub fn danger_export(&self) -> SecretBytes {
        let (der, pkcs8) = (self.certificate.der(), self.key.danger_export_pkcs8());
        let mut bytes = Vec::with_capacity(MAGIC.len() + LENGTH_BYTES + der.len() + pkcs8.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(der.len() as u32).to_be_bytes());
        bytes.extend_from_slice(der);
        bytes.extend_from_slice(pkcs8.danger_expose());
        SecretBytes::new(bytes)
    }

    pub fn import(bytes: &SecretBytes) -> Result<Self, TransferKeyError> {
        let malformed = TransferKeyError::Malformed;
        let bytes = bytes.danger_expose().strip_prefix(MAGIC.as_slice()).ok_or(malformed)?;
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>().ok_or(malformed)?;
        let (der, pkcs8) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or(malformed)?;
        let certificate = TransportCertificate::from_der(der).map_err(|_| malformed)?;
        let key = TransportKey::from_pkcs8(SecretBytes::new(pkcs8.to_vec())).map_err(|_| malformed)?;
        if !key.is_for(&certificate) {
            return Err(malformed);
        }
        Ok(Self { pool: pool_of(&certificate)?, key, certificate })
    }
}

/// The pool that a transfer key's certificate names. It signs itself: whoever made it may claim any pool.
pub fn pool_of(certificate: &TransportCertificate) -> Result<Guid, TransferKeyError> {
    let pool = certificate.uri().and_then(|uri| uri.strip_prefix(URI_PREFIX));
    pool.and_then(|pool| pool.parse().ok()).ok_or(TransferKeyError::NotATransferKey)
}

impl KeyHolder for TransferKey {
    fn thumbprint(&self) -> Thumbprint {
        Thumbprint::of(&self.certificate)
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<SecretBytes, TransportFailed> {
        self.key.unwrap(wrapped).map_err(|_| TransportFailed)
    }
}
