//! The boundary behind which clear key material lives.

use crate::import::{PrivateParts, WrappedKind};
use crate::release::{KeyWrap, ReleaseKey};
use crate::secret::SecretBytes;
use domain::algorithm::{EncryptionAlgorithm, KeySpec, SignatureAlgorithm};
use domain::key::PublicKey;
use std::sync::Arc;

/// Key material as it leaves a partition: encrypted under the partition wrapping key, bound to one key version.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MaskedMaterial(pub Vec<u8>);

/// What masked material is bound to (pool, key name, version, type): associated data, so that material moved to
/// another record does not load.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MaterialBinding(pub Vec<u8>);

/// A new key.
pub struct Generated {
    pub public: PublicKey,
    pub masked: MaskedMaterial,
}

/// Input of an encryption or key wrap.
pub struct Encrypt<'a> {
    /// At most what the algorithm takes in one call; a key for wrapKey.
    pub plaintext: &'a [u8],
    /// AES-CBC only: 16 bytes. AES-GCM makes its own.
    pub iv: Option<&'a [u8]>,
    /// AES-GCM only.
    pub additional_data: Option<&'a [u8]>,
}

/// Output of an encryption or key wrap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ciphertext {
    pub bytes: Vec<u8>,
    /// AES-GCM: 12 bytes. AES-CBC: 16 bytes.
    pub iv: Option<Vec<u8>>,
    /// AES-GCM: 16 bytes.
    pub tag: Option<Vec<u8>>,
}

/// Input of a decryption or unwrap.
pub struct Decrypt<'a> {
    pub ciphertext: &'a [u8],
    pub iv: Option<&'a [u8]>,
    pub additional_data: Option<&'a [u8]>,
    pub tag: Option<&'a [u8]>,
}

/// Why a partition did not do as asked. Messages are for the caller and hold nothing secret.
#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum PartitionError {
    /// The algorithm does not go with the key's type and size.
    #[error("{algorithm} does not go with a key of type {spec}")]
    AlgorithmMismatch { algorithm: &'static str, spec: KeySpec },
    #[error("{algorithm} takes a digest of {expected} bytes, not {actual}")]
    DigestLength { algorithm: &'static str, expected: usize, actual: usize },
    /// Plaintext, ciphertext, IV or tag of a length that the algorithm does not take; says which.
    #[error("{0}")]
    InputLength(String),
    /// The one answer for every failed decryption or unwrap: wrong key, damaged input, bad padding and bad tag
    /// look alike.
    #[error("the ciphertext does not decrypt with this key and algorithm")]
    DecryptionFailed,
    /// Masked material that this partition did not make, or made for another record.
    #[error("the key material does not belong to this key and partition")]
    ForeignMaterial,
    /// Material that is not a well-formed key of the type it claims.
    #[error("{0}")]
    InvalidMaterial(String),
    /// Memory for keys is full. There is room again once others are dropped.
    #[error("the partition failed to {0}")]
    NoRoom(&'static str),
    /// The library refused; nothing about the input explains it.
    #[error("the partition failed to {0}")]
    Internal(&'static str),
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
#[error("self-test of {0} failed")]
pub struct SelfTestFailed(pub &'static str);

/// Makes keys, and turns masked material into keys that can be used. Clear material exists only inside.
pub trait Partition: Send + Sync {
    /// Makes a key. RSA: public exponent 65537 unless `public_exponent` says otherwise and the partition can.
    fn generate(
        &self,
        spec: KeySpec,
        public_exponent: Option<u64>,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError>;

    /// Takes in a private key that its owner hands over, checked as a key of `spec` in every relation between its parts.
    ///
    /// # Errors
    /// `InvalidMaterial` for whatever is not consistent; the message names parts and never holds a value.
    fn import(
        &self,
        spec: KeySpec,
        parts: &PrivateParts,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError>;

    /// Opens a private key that was wrapped for `kek` with CKM_RSA_AES_KEY_WRAP (PKCS#11 3.0 section 6.1.15): RSA-OAEP with
    /// SHA-1 over an AES key, then that key's wrap with padding (RFC 5649) of the key in PKCS#8, or of a symmetric key as
    /// it is. What it holds is checked by [`Partition::import`].
    ///
    /// # Errors
    /// `InvalidMaterial`, saying at which layer.
    fn unwrap(
        &self,
        kek: &dyn LoadedKey,
        kind: WrappedKind,
        wrapped: &[u8],
    ) -> Result<PrivateParts, PartitionError>;

    /// Unmasks and parses. Costs 27 to 44 percent of an RSA signature, so callers keep the result.
    fn load(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
    ) -> Result<Arc<dyn LoadedKey>, PartitionError>;

    /// Masks anew, bound to `to`, what was masked for `from`: for a key that comes from another pool of the same
    /// security domain.
    fn rebind(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        from: &MaterialBinding,
        to: &MaterialBinding,
    ) -> Result<MaskedMaterial, PartitionError>;

    /// Wraps masked material for `to`: RSA and EC keys in PKCS#8 (DER), symmetric ones as they are. The one way by which a
    /// key leaves a partition other than masked; whether it may is for the caller to have decided.
    fn release(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
        to: &ReleaseKey,
        wrap: KeyWrap,
    ) -> Result<Vec<u8>, PartitionError>;

    /// Fills `out` with random bytes.
    fn random(&self, out: &mut [u8]) -> Result<(), PartitionError>;

    /// Known-answer tests of every algorithm in use. A core that fails one does not start.
    fn self_test(&self) -> Result<(), SelfTestFailed>;
}

/// A key ready for use. Dropping the last reference wipes the clear material.
pub trait LoadedKey: Send + Sync {
    fn spec(&self) -> KeySpec;

    /// Signs a digest (HMAC: computes a MAC over the digest's bytes). ECDSA signatures are r‖s of fixed length.
    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, PartitionError>;

    /// `Ok(false)` for any signature that does not verify, of whatever length.
    fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<bool, PartitionError>;

    fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Encrypt<'_>,
    ) -> Result<Ciphertext, PartitionError>;

    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Decrypt<'_>,
    ) -> Result<SecretBytes, PartitionError>;
}
