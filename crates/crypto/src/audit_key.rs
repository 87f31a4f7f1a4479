//! Sealing of audit events. Same construction as a sealed record, under the audit key.

use crate::SecretBytes;
use domain::guid::Guid;

/// Seals and opens audit events of one pool and one audit epoch.
pub struct AuditSealer {
    // private
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
#[error("the audit event does not open with this audit key")]
pub struct EventDoesNotOpen;

impl AuditSealer {
    pub fn epoch(&self) -> u32 {
        todo!()
    }

    /// The audit key itself, 32 bytes, to give to an auditor.
    pub fn danger_export(&self) -> SecretBytes {
        todo!()
    }

    /// The sealer of `pool` and `epoch` from an audit key given out by [`AuditSealer::danger_export`].
    pub fn from_exported(_key: &SecretBytes, _pool: Guid, _epoch: u32) -> Option<Self> {
        todo!()
    }

    /// `salt 24 bytes | ciphertext | tag 16 bytes`; associated data: "holdfast event v1", pool, epoch, `event_id`.
    pub fn seal(&self, _event_id: &[u8; 16], _plaintext: &[u8]) -> Vec<u8> {
        todo!()
    }

    pub fn open(&self, _event_id: &[u8; 16], _sealed: &[u8]) -> Result<SecretBytes, EventDoesNotOpen> {
        todo!()
    }
}
