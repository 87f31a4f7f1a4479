//! What a pool knows of its own store: how far it has come, and a digest over all of it.

use crypto::record::NameKey;

/// How far the audit log had come, durably: its size in leaves and its Merkle root.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CheckpointMark {
    pub size: u64,
    pub root: [u8; 32],
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct PoolState {
    /// Grows by one with each commit; the record version of whatever that commit writes.
    pub generation: u64,
    pub records: u64,
    pub digest: Digest,
    pub checkpoint: CheckpointMark,
    /// Among replaceable records those of this space are in use; the others were staged, or have been replaced.
    pub space: u32,
    /// The highest space that was ever written to: none is used twice.
    pub last_space: u32,
}

/// A keyed multiset hash: the sum, modulo 2^256, of one HMAC term for each record. Adding and removing a record is one
/// addition, and without the key nobody can find another set with the same sum.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Digest(pub [u8; 32]);

impl Digest {
    pub fn add(&mut self, term: &[u8; 32]) {
        self.combine(term, 0, |byte| byte);
    }

    pub fn subtract(&mut self, term: &[u8; 32]) {
        // Two's complement: invert, and carry one in.
        self.combine(term, 1, |byte| !byte);
    }

    fn combine(&mut self, term: &[u8; 32], carry_in: u16, map: impl Fn(u8) -> u8) {
        let mut carry = carry_in;
        for (sum, term) in self.0.iter_mut().zip(term) {
            let total = u16::from(*sum) + u16::from(map(*term)) + carry;
            *sum = total as u8;
            carry = total >> 8;
        }
    }
}

impl PoolState {
    pub fn insert(&mut self, names: &NameKey, kind: u8, name_mac: &[u8; 32], record_version: u64) {
        self.digest.add(&names.digest_term(kind, name_mac, record_version));
        self.records += 1;
    }

    /// Adds the records that `other` counts.
    pub fn absorb(&mut self, other: &PoolState) {
        self.digest.add(&other.digest.0);
        self.records += other.records;
    }

    pub fn remove(&mut self, names: &NameKey, kind: u8, name_mac: &[u8; 32], record_version: u64) {
        self.digest.subtract(&names.digest_term(kind, name_mac, record_version));
        self.records -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtraction_undoes_addition_in_any_order() {
        let terms = [[0xff; 32], [0x01; 32], [0x80; 32]];
        let mut digest = Digest::default();
        terms.iter().for_each(|term| digest.add(term));
        assert_ne!(digest, Digest::default());
        digest.subtract(&terms[1]);
        digest.subtract(&terms[0]);
        let mut only = Digest::default();
        only.add(&terms[2]);
        assert_eq!(digest, only);
        digest.subtract(&terms[2]);
        assert_eq!(digest, Digest::default());
    }
}
