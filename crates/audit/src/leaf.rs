//! A leaf of the log: a sealed event with its id.
//!
//! `version u8 = 1 | event id 16 bytes | audit epoch u32 LE | sealed event` (`docs/formats/audit-log.md`).

use crate::event::{Event, MalformedEvent};
use crypto::audit_key::{AuditSealer, EventDoesNotOpen, EventSeed};

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 21;
/// A sealed event holds bounded text only; this is far above it.
pub(crate) const MAX_LEAF_BYTES: usize = 64 * 1024;

/// One entry of the log, as it is hashed and stored. What it says is known to holders of the audit key only.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaf(Vec<u8>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a leaf of format version 1")]
pub struct MalformedLeaf;

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EventUnreadable {
    #[error("the event is of audit epoch {actual}, the key of {expected}")]
    WrongEpoch { expected: u32, actual: u32 },
    #[error("{0}")]
    Sealed(#[from] EventDoesNotOpen),
    #[error("{0}")]
    Malformed(#[from] MalformedEvent),
}

impl Leaf {
    /// Seals `event`. By the seed's id an event that was stored with a change is found again in the log.
    pub fn seal(seed: EventSeed, event: &Event, sealer: &AuditSealer) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        bytes.push(FORMAT_VERSION);
        bytes.extend_from_slice(&seed.id);
        bytes.extend_from_slice(&sealer.epoch().to_le_bytes());
        sealer.seal_into(seed, &event.encode(), &mut bytes);
        Self(bytes)
    }

    /// Takes bytes of a leaf that was sealed before: 21 bytes to 64 KiB of version 1.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, MalformedLeaf> {
        let well_formed =
            (HEADER_BYTES..=MAX_LEAF_BYTES).contains(&bytes.len()) && bytes[0] == FORMAT_VERSION;
        if well_formed { Ok(Self(bytes)) } else { Err(MalformedLeaf) }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn event_id(&self) -> [u8; 16] {
        self.0[1..17].try_into().expect("a leaf has a header")
    }

    fn epoch(&self) -> u32 {
        u32::from_le_bytes(self.0[17..HEADER_BYTES].try_into().expect("a leaf has a header"))
    }
}

/// The event in a leaf, for a holder of the audit key.
pub fn open_event(leaf: &Leaf, sealer: &AuditSealer) -> Result<Event, EventUnreadable> {
    if leaf.epoch() != sealer.epoch() {
        return Err(EventUnreadable::WrongEpoch { expected: sealer.epoch(), actual: leaf.epoch() });
    }
    let plaintext = sealer.open(&leaf.event_id(), &leaf.0[HEADER_BYTES..])?;
    Ok(Event::decode(plaintext.danger_expose())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::SecretBytes;
    use domain::guid::Guid;

    fn sealer(epoch: u32) -> AuditSealer {
        AuditSealer::from_exported(&SecretBytes::new(vec![6; 32]), Guid([1; 16]), epoch).unwrap()
    }

    #[test]
    fn a_leaf_opens_for_the_audit_key_and_only_as_it_was_sealed() {
        let event = Event { operation: "KeySign".into(), ..Event::default() };
        let seed = EventSeed::fresh();
        let id = seed.id;
        let leaf = Leaf::seal(seed, &event, &sealer(3));
        assert_eq!(leaf.event_id(), id);
        assert_eq!(open_event(&leaf, &sealer(3)), Ok(event));
        let refused = EventUnreadable::WrongEpoch { expected: 4, actual: 3 };
        assert_eq!(open_event(&leaf, &sealer(4)), Err(refused));
        for bit in 0..leaf.as_bytes().len() * 8 {
            let mut bytes = leaf.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(changed) = Leaf::from_bytes(bytes) {
                assert!(open_event(&changed, &sealer(3)).is_err(), "bit {bit}");
            }
        }
    }

    /// The longest event that there can be.
    #[test]
    fn every_event_fits_a_leaf() {
        let long = || "x".repeat(100_000);
        let event = Event {
            operation: long(),
            request_uri: long(),
            detail: long(),
            scope: Some(long()),
            pool: long(),
            user_agent: long(),
            ..Event::default()
        };
        let leaf = Leaf::seal(EventSeed::fresh(), &event, &sealer(1));
        assert!(Leaf::from_bytes(leaf.as_bytes().to_vec()).is_ok());
        assert_eq!(Leaf::from_bytes(vec![1; HEADER_BYTES - 1]), Err(MalformedLeaf));
        assert_eq!(Leaf::from_bytes(vec![2; HEADER_BYTES]), Err(MalformedLeaf));
    }
}
