//! The owner key and the instance certificates that it issues.
//!
//! The owner key (P-384) is a CA and nothing else. Each start of a core makes its own keys, never exported, and has
//! them certified here with pool, node, incarnation, purpose, class, genesis hash and expiry (X.509 v3, one private
//! extension under a 2.25 (UUID) arc; docs/formats/instance-certificate.md).

use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::IntDate;

/// Certifies instance keys; signs the genesis record. P-384, ECDSA with SHA-384.
pub struct OwnerKey {
    // private
}

/// The public half, as an owner compares and an auditor holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OwnerPublicKey {
    /// Uncompressed point, 97 bytes.
    pub point: Vec<u8>,
}

/// What an incarnation key is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Purpose {
    AuditCheckpoint,
    Attestation,
    Release,
}

/// What a certificate says of the key it certifies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstanceClaims {
    pub pool: Guid,
    pub node: Guid,
    /// Random for each start of a core.
    pub incarnation: Guid,
    pub purpose: Purpose,
    pub class: PoolClass,
    /// SHA-256 of the signed genesis record.
    pub genesis_hash: [u8; 32],
    pub not_before: IntDate,
    pub not_after: IntDate,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum CertificateError {
    #[error("not a certificate, or not one of this project's instance certificates")]
    Malformed,
    #[error("the certificate was not issued by this owner key")]
    WrongIssuer,
}

impl OwnerKey {
    pub fn public_key(&self) -> OwnerPublicKey {
        todo!()
    }

    /// ECDSA P-384 with SHA-384 over `message`, r‖s, 96 bytes. For the genesis record.
    pub fn sign_genesis(&self, _message: &[u8]) -> Vec<u8> {
        todo!()
    }

    /// DER of an X.509 certificate for `key` (uncompressed P-256 point).
    pub fn certify(&self, _claims: &InstanceClaims, _key: &InstanceKey) -> Vec<u8> {
        todo!()
    }
}

impl OwnerPublicKey {
    /// SHA-256 of the point, hex: what people compare.
    pub fn fingerprint(&self) -> String {
        todo!()
    }

    pub fn verify_genesis(&self, _message: &[u8], _signature: &[u8]) -> bool {
        todo!()
    }

    /// Checks the issuer's signature, reads claims and key. Does not judge time or purpose: callers do.
    pub fn verify_certificate(&self, _der: &[u8]) -> Result<(InstanceClaims, InstancePublicKey), CertificateError> {
        todo!()
    }

    /// Base64 PEM "HOLDFAST OWNER PUBLIC KEY"… or SubjectPublicKeyInfo PEM ("PUBLIC KEY"), for `audit verify`.
    pub fn to_pem(&self) -> String {
        todo!()
    }

    pub fn from_pem(_text: &str) -> Result<Self, CertificateError> {
        todo!()
    }
}

/// A key of this incarnation: P-256, made at start, never exported.
pub struct InstanceKey {
    // private
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstancePublicKey {
    /// Uncompressed point, 65 bytes.
    pub point: Vec<u8>,
}

impl InstanceKey {
    pub fn generate() -> Self {
        todo!()
    }

    pub fn public_key(&self) -> InstancePublicKey {
        todo!()
    }

    /// ECDSA P-256 with SHA-256 over `message`, r‖s, 64 bytes.
    pub fn sign(&self, _message: &[u8]) -> [u8; 64] {
        todo!()
    }
}

impl InstancePublicKey {
    pub fn verify(&self, _message: &[u8], _signature: &[u8]) -> bool {
        todo!()
    }
}
