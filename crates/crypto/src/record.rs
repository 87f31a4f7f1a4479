//! Sealing of stored records: AES-256-GCM under a key used once.
//!
//! Sealed record, format version 1 (docs/formats/sealed-record.md):
//! `version u8 = 1 | kind u8 | epoch u32 LE | record version u64 LE | salt 24 bytes | ciphertext | tag 16 bytes`.
//! Key = SP 800-108 counter mode, HMAC-SHA-256 (data key of the epoch, label "holdfast record v1" ‖ 0x00 ‖ salt),
//! 32 bytes; the nonce is zero, as the key is used once. Associated data: the header fields before the salt, then
//! pool id, domain id, class, MAC of the name.

use crate::SecretBytes;
use domain::guid::Guid;
use domain::pool::PoolClass;

/// The random key of one epoch, from which each record's single-use key is derived.
pub struct DataKey {
    // private
}

/// A data key as stored and backed up: AES-256-GCM under the domain KEK (docs/formats/wrapped-data-key.md).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrappedDataKey(pub Vec<u8>);

/// MACs names, so that the engine learns nothing legible.
pub struct NameKey {
    // private
}

impl NameKey {
    /// HMAC-SHA-256(name key, kind ‖ name): the name under which a record of `kind` is stored.
    pub fn mac(&self, _kind: u8, _name: &[u8]) -> [u8; 32] {
        todo!()
    }

    /// HMAC-SHA-256 under a key derived from the name key, for the pool digest: one term for a (kind, name MAC,
    /// record version) triple. The digest is the sum of all terms modulo 2^256 (a keyed multiset hash).
    pub fn digest_term(&self, _kind: u8, _name_mac: &[u8; 32], _record_version: u64) -> [u8; 32] {
        todo!()
    }
}

/// Where a record belongs: all of it is associated data.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlace<'a> {
    pub pool: Guid,
    pub security_domain: Guid,
    pub class: PoolClass,
    pub kind: u8,
    pub name_mac: &'a [u8; 32],
    pub record_version: u64,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum RecordError {
    #[error("the record is not of a format version that this release reads")]
    UnknownFormat,
    #[error("the record is of epoch {actual}, not {expected}")]
    WrongEpoch { expected: u32, actual: u32 },
    /// Damaged, moved from another name, kind, version or pool, or sealed under another key.
    #[error("the record does not open at its place")]
    DoesNotOpen,
}

impl DataKey {
    pub fn epoch(&self) -> u32 {
        todo!()
    }

    pub fn seal(&self, _place: &RecordPlace<'_>, _plaintext: &SecretBytes) -> Vec<u8> {
        todo!()
    }

    /// `place.record_version` is taken from the record's own header (see [`header`]); the caller checks it against
    /// what it expects.
    pub fn open(&self, _place: &RecordPlace<'_>, _sealed: &[u8]) -> Result<SecretBytes, RecordError> {
        todo!()
    }
}

/// The clear header of a sealed record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordHeader {
    pub kind: u8,
    pub epoch: u32,
    pub record_version: u64,
}

/// Reads the header without opening the record.
pub fn header(_sealed: &[u8]) -> Result<RecordHeader, RecordError> {
    todo!()
}
