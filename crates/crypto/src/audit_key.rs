//! Sealing of audit events. The construction is that of a sealed record, under the audit key.
//!
//! The audit key opens audit events and nothing else, so it can be given to an auditor.

use crate::SecretBytes;
use crate::single_use;
use domain::guid::Guid;

const LABEL: &[u8] = b"holdfast event v1";

/// Seals and opens audit events of one pool and one audit epoch.
pub struct AuditSealer {
    key: SecretBytes,
    pool: Guid,
    epoch: u32,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
#[error("the audit event does not open with this audit key")]
pub struct EventDoesNotOpen;

impl AuditSealer {
    /// From the domain KEK: SP 800-108, label "holdfast audit key v1", context pool id ‖ epoch.
    pub(crate) fn derive(kek: &SecretBytes, pool: Guid, epoch: u32) -> Self {
        let context = [pool.0.as_slice(), &epoch.to_le_bytes()].concat();
        Self { key: single_use::derive(kek.danger_expose(), b"holdfast audit key v1", &context), pool, epoch }
    }

    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The audit key itself, 32 bytes, to give to an auditor.
    pub fn danger_export(&self) -> SecretBytes {
        SecretBytes::copy(self.key.danger_expose())
    }

    /// The sealer of `pool` and `epoch` from an audit key given out by [`AuditSealer::danger_export`]; `None` unless
    /// it is 32 bytes.
    pub fn from_exported(key: &SecretBytes, pool: Guid, epoch: u32) -> Option<Self> {
        (key.len() == 32).then(|| Self { key: SecretBytes::copy(key.danger_expose()), pool, epoch })
    }

    /// `salt 24 bytes | ciphertext | tag 16 bytes`; associated data: pool ‖ epoch ‖ `event_id`.
    pub fn seal(&self, event_id: &[u8; 16], plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::new();
        self.seal_into(event_id, plaintext, &mut sealed);
        sealed
    }

    /// As [`AuditSealer::seal`], behind what `out` holds.
    pub fn seal_into(&self, event_id: &[u8; 16], plaintext: &[u8], out: &mut Vec<u8>) {
        self.seal_with_salt(event_id, plaintext, single_use::fresh_salt(), out);
    }

    fn seal_with_salt(
        &self,
        event_id: &[u8; 16],
        plaintext: &[u8],
        salt: [u8; single_use::SALT_BYTES],
        out: &mut Vec<u8>,
    ) {
        let associated = self.associated_data(event_id);
        single_use::seal(self.key.danger_expose(), LABEL, &salt, &associated, plaintext, out);
    }

    pub fn open(&self, event_id: &[u8; 16], sealed: &[u8]) -> Result<SecretBytes, EventDoesNotOpen> {
        single_use::open(self.key.danger_expose(), LABEL, &self.associated_data(event_id), sealed)
            .ok_or(EventDoesNotOpen)
    }

    fn associated_data(&self, event_id: &[u8; 16]) -> [u8; 36] {
        let mut data = [0; 36];
        data[..16].copy_from_slice(&self.pool.0);
        data[16..20].copy_from_slice(&self.epoch.to_le_bytes());
        data[20..].copy_from_slice(event_id);
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer() -> AuditSealer {
        AuditSealer::from_exported(&SecretBytes::new(vec![6; 32]), Guid([1; 16]), 1).unwrap()
    }

    #[test]
    fn a_sealed_event_matches_its_golden_file() {
        let golden = include_bytes!("../tests/golden/audit-event-sealing-v1.bin");
        let mut sealed = Vec::new();
        sealer().seal_with_salt(&[2; 16], b"an event", [3; single_use::SALT_BYTES], &mut sealed);
        assert_eq!(sealed, golden);
        assert_eq!(sealer().open(&[2; 16], golden).unwrap().danger_expose(), b"an event");
    }

    #[test]
    fn an_event_opens_only_under_its_own_id_pool_and_epoch() {
        let sealed = sealer().seal(&[2; 16], b"an event");
        let key = sealer().danger_export();
        assert_eq!(sealer().open(&[3; 16], &sealed).err(), Some(EventDoesNotOpen));
        for (pool, epoch) in [(Guid([9; 16]), 1), (Guid([1; 16]), 2)] {
            let other = AuditSealer::from_exported(&key, pool, epoch).unwrap();
            assert_eq!(other.open(&[2; 16], &sealed).err(), Some(EventDoesNotOpen));
        }
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(sealer().open(&[2; 16], &damaged).is_err(), "bit {bit}");
        }
    }
}
