//! How often a key version has encrypted with AES-GCM.
//!
//! The IV is random, so after 2^32 invocations with one key the chance that two had the same one is no longer
//! negligible (SP 800-38D section 8.3), and two are enough to forge. The count must survive a crash without a write for
//! each encryption: it is leased in blocks, durably, before it is used up. A restart skips what was left of a block.

use crate::deletion::replace;
use crate::error::Error;
use crate::pool::Pool;
use audit::event::{Event, EventResult};
use domain::key::Key;
use domain::name::{KeyName, KeyVersion};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use storage::{InvocationsRecord, Record, RecordId};

type Place = (KeyName, KeyVersion);

/// Invocations leased at a time: a write to the store for each 65,536 encryptions.
const BLOCK: u64 = 1 << 16;

#[derive(Clone, Copy, Debug, Default)]
struct Counter {
    used: u64,
    leased: u64,
}

pub(crate) struct Invocations {
    limit: u64,
    counters: Mutex<HashMap<Place, Counter>>,
    /// One lease at a time: whoever comes meanwhile finds the block that the first one leased.
    leasing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Eq, PartialEq)]
enum Taken {
    One,
    /// Nothing is left of what was leased; lease up to here.
    Lease(u64),
    Exhausted,
}

impl Invocations {
    /// Whatever was leased before this start counts as used.
    pub fn new<'a>(limit: u64, held: impl IntoIterator<Item = &'a InvocationsRecord>) -> Self {
        let counters = held.into_iter().flat_map(|record| {
            let counter = |leased: u64| Counter { used: leased, leased };
            record
                .leased
                .iter()
                .map(move |(version, leased)| ((record.name.clone(), *version), counter(*leased)))
        });
        Self { limit, counters: Mutex::new(counters.collect()), leasing: tokio::sync::Mutex::default() }
    }

    fn take(&self, place: &Place) -> Taken {
        let mut counters = self.counters.lock();
        let counter = counters.entry(place.clone()).or_default();
        if counter.used < counter.leased {
            counter.used += 1;
            return Taken::One;
        }
        if counter.leased >= self.limit {
            return Taken::Exhausted;
        }
        Taken::Lease((counter.leased + BLOCK).min(self.limit))
    }

    fn leased(&self, place: &Place, up_to: u64) {
        let mut counters = self.counters.lock();
        let counter = counters.entry(place.clone()).or_default();
        counter.leased = counter.leased.max(up_to);
    }

    /// A restored key goes on where its backup was made: what was leased by then counts as used.
    pub fn restored(&self, record: &InvocationsRecord) {
        let mut counters = self.counters.lock();
        for (version, leased) in &record.leased {
            let counter = Counter { used: *leased, leased: *leased };
            counters.insert((record.name.clone(), *version), counter);
        }
    }

    /// Everything is about to be restored.
    pub fn clear(&self) {
        self.counters.lock().clear();
    }

    /// A purged key's versions come back by a restore alone, with their count.
    pub fn forget(&self, name: &KeyName) {
        self.counters.lock().retain(|(held, _), _| held != name);
    }
}

impl Pool {
    /// Counts one encryption with a random IV, durably enough: what is counted here is never given out again.
    pub(crate) async fn count_invocation(
        self: &Arc<Self>,
        name: &KeyName,
        version: KeyVersion,
    ) -> Result<(), Error> {
        let invocations = self.invocations();
        let place = (name.clone(), version);
        let exhausted = || Error::InvocationsExhausted { limit: invocations.limit };
        match invocations.take(&place) {
            Taken::One => return Ok(()),
            Taken::Exhausted => return Err(exhausted()),
            Taken::Lease(_) => {}
        }
        let _one_at_a_time = invocations.leasing.lock().await;
        loop {
            match invocations.take(&place) {
                Taken::One => return Ok(()),
                Taken::Exhausted => return Err(exhausted()),
                Taken::Lease(up_to) => {
                    self.lease_invocations(&place, up_to).await?;
                    invocations.leased(&place, up_to);
                }
            }
        }
    }

    async fn lease_invocations(self: &Arc<Self>, place: &Place, up_to: u64) -> Result<(), Error> {
        let (name, version) = place;
        let event = Event {
            operation: "KeyInvocationsLease".into(),
            result: EventResult::Success,
            key_name: Some(name.to_string()),
            key_version: Some(version.to_string()),
            detail: format!("AES-GCM encryptions up to {up_to}"),
            ..self.blank_event()
        };
        let decide = || {
            let gone = || Error::KeyNotFound { name: name.clone() };
            // Together with the key, so that a purge which did not know of the record decides again.
            let key = self.index().key(name).filter(|key| !key.value.is_deleted()).ok_or_else(gone)?;
            let held = self.index().invocations(name);
            let mut leased: BTreeMap<KeyVersion, u64> =
                held.as_ref().map(|held| held.value.leased.clone()).unwrap_or_default();
            // Never lower: a restore may have brought in more since the count was read.
            let count = leased.entry(*version).or_default();
            *count = up_to.max(*count);
            let mut change = replace(&key, Key::clone(&key.value), ());
            change.expectations.push((RecordId::Invocations(name.clone()), held.map(|held| held.stamp)));
            change.puts.push(Record::Invocations(InvocationsRecord { name: name.clone(), leased }));
            Ok(change)
        };
        self.change(self.seal_committed(event), decide).await?.receipt.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        ("k".parse().unwrap(), KeyVersion([1; 16]))
    }

    #[test]
    fn no_invocation_is_given_out_twice_and_none_beyond_the_limit() {
        let (name, version) = place();
        let invocations = Invocations::new(BLOCK + 10, []);
        assert_eq!(invocations.take(&place()), Taken::Lease(BLOCK));
        invocations.leased(&place(), BLOCK);
        assert!((0..BLOCK).all(|_| invocations.take(&place()) == Taken::One));
        assert_eq!(invocations.take(&place()), Taken::Lease(BLOCK + 10));
        // A restart: of the block that was leased last nothing is used again.
        let leased = BTreeMap::from([(version, BLOCK)]);
        let again = Invocations::new(BLOCK + 10, [&InvocationsRecord { name, leased }]);
        assert_eq!(again.take(&place()), Taken::Lease(BLOCK + 10));
        again.leased(&place(), BLOCK + 10);
        assert!((0..10).all(|_| again.take(&place()) == Taken::One));
        assert_eq!(again.take(&place()), Taken::Exhausted);
    }
}
