//! What changes under way will add to what is limited, so that those that decide at one moment do not all take the last
//! place.

use domain::access::Scope;
use domain::name::KeyName;
use parking_lot::Mutex;
use std::sync::Arc;
use storage::{Record, RecordId, Stamp};

/// What is limited by number, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Limited {
    Keys,
    /// At `/` and `/keys` together.
    AssignmentsAtPoolScope,
    AssignmentsAtKey(KeyName),
}

impl Limited {
    pub fn assignments_at(scope: &Scope) -> Self {
        match scope {
            Scope::Root | Scope::Keys => Limited::AssignmentsAtPoolScope,
            Scope::Key(name) => Limited::AssignmentsAtKey(name.clone()),
        }
    }
}

#[derive(Default)]
pub(crate) struct Quota {
    /// Of each change that is decided and not yet seen by others, what it adds.
    under_way: Arc<Mutex<Vec<Limited>>>,
}

/// Places of one change, until it is dropped: when its commit shows in what is counted, or has failed.
pub(crate) struct Places {
    under_way: Arc<Mutex<Vec<Limited>>>,
    taken: Vec<Limited>,
}

/// Others under way may take what is left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Crowded;

impl Quota {
    /// Places for what a change adds. `left` says how many more the limit allows, beside what shows already.
    pub fn take(&self, added: Vec<Limited>, left: impl Fn(&Limited) -> usize) -> Result<Places, Crowded> {
        let mut under_way = self.under_way.lock();
        // Counted with the lock held: what is under way shows before it leaves the list, and so is counted at least once.
        let fits = |limited: &Limited| {
            let same = |other: &&Limited| *other == limited;
            under_way.iter().filter(same).count() + added.iter().filter(same).count() <= left(limited)
        };
        if !added.iter().all(fits) {
            return Err(Crowded);
        }
        under_way.extend(added.iter().cloned());
        Ok(Places { under_way: self.under_way.clone(), taken: added })
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let mut under_way = self.under_way.lock();
        for taken in &self.taken {
            if let Some(place) = under_way.iter().position(|other| other == taken) {
                under_way.swap_remove(place);
            }
        }
    }
}

/// What a change adds to what is limited: records that it puts and expects not to be there.
pub(crate) fn added(expectations: &[(RecordId, Option<Stamp>)], puts: &[Record]) -> Vec<Limited> {
    let is_new =
        |record: &Record| expectations.iter().any(|(id, stamp)| stamp.is_none() && *id == record.id());
    let limited = |record: &Record| match record {
        Record::Key(_) => Some(Limited::Keys),
        Record::Assignment(assignment) => Some(Limited::assignments_at(&assignment.scope)),
        _ => None,
    };
    puts.iter().filter_map(|record| limited(record).filter(|_| is_new(record))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_is_taken_once() {
        let quota = Quota::default();
        let key = Limited::AssignmentsAtKey("k".parse().unwrap());
        let one = |limited: &Limited| quota.take(vec![limited.clone()], |_| 1);
        let first = one(&key).unwrap();
        assert_eq!(one(&key).err(), Some(Crowded));
        // Elsewhere there is room.
        let other = one(&Limited::AssignmentsAtKey("other".parse().unwrap())).unwrap();
        drop(one(&Limited::Keys).unwrap());
        drop(first);
        drop(one(&key).unwrap());
        drop(other);
        assert_eq!(quota.take(vec![Limited::Keys, Limited::Keys], |_| 1).err(), Some(Crowded));
        assert!(quota.take(vec![Limited::Keys], |_| 0).is_err());
        assert_eq!(*quota.under_way.lock(), []);
    }
}
