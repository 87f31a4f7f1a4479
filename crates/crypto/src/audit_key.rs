//! Sealing of audit events. The construction is that of a sealed record, under the audit key.
//!
//! The audit key opens audit events and nothing else, so it can be given to an auditor.

use crate::SecretBytes;
use crate::digest::random;
use crate::single_use;
use domain::guid::Guid;

const LABEL: &[u8] = b"holdfast event v1";

/// Seals and opens audit events of one pool and one audit epoch.
pub struct AuditSealer {
    key: SecretBytes,
    pool: Guid,
    epoch: u32,
}

/// What makes the sealing of one event unlike that of any other: used once, and so neither copied nor made by others.
#[derive(Debug)]
pub struct EventSeed {
    pub id: [u8; 16],
    salt: [u8; single_use::SALT_BYTES],
}

impl EventSeed {
    /// In one draw, as each has a price.
    pub fn fresh() -> Self {
        let mut drawn = [0; 16 + single_use::SALT_BYTES];
        random(&mut drawn);
        let (id, salt) = drawn.split_at(16);
        let fits = "16 bytes and a salt were drawn";
        Self { id: id.try_into().expect(fits), salt: salt.try_into().expect(fits) }
    }
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

    /// Appends `salt 24 bytes | ciphertext | tag 16 bytes`; associated data: pool ‖ epoch ‖ event id.
    pub fn seal_into(&self, seed: EventSeed, plaintext: &[u8], out: &mut Vec<u8>) {
        let associated = self.associated_data(&seed.id);
        single_use::seal(self.key.danger_expose(), LABEL, &seed.salt, &associated, plaintext, out);
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
        let seed = EventSeed { id: [2; 16], salt: [3; single_use::SALT_BYTES] };
        sealer().seal_into(seed, b"an event", &mut sealed);
        assert_eq!(sealed, golden);
        assert_eq!(sealer().open(&[2; 16], golden).unwrap().danger_expose(), b"an event");
    }

    #[test]
    fn an_event_opens_only_under_its_own_id_pool_and_epoch() {
        let seed = EventSeed { id: [2; 16], ..EventSeed::fresh() };
        let mut sealed = Vec::new();
        sealer().seal_into(seed, b"an event", &mut sealed);
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
