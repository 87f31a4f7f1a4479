//! What the store holds, in memory: every key version with its masked material, and the roles as a snapshot.
//!
//! Filled at start and kept by what each commit returns. An entry is replaced only by one with a later stamp, so the
//! order in which commits report back does not matter.

use arc_swap::ArcSwap;
use domain::access::{RoleAssignment, RoleTable};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::{KeyName, KeyVersion};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use storage::{Record, Stamp, Stamped, VersionRecord};

#[derive(Default)]
pub(crate) struct Index {
    keys: RwLock<HashMap<KeyName, KeyEntry>>,
    roles: ArcSwap<RoleTable>,
    /// Stamps of assignments; held while a new role table is swapped in, so that none is lost.
    assignment_stamps: Mutex<HashMap<Guid, Stamp>>,
}

#[derive(Default)]
struct KeyEntry {
    key: Option<Stamped<Arc<Key>>>,
    versions: HashMap<KeyVersion, Stamped<Arc<VersionRecord>>>,
}

impl Index {
    pub fn key(&self, name: &KeyName) -> Option<Stamped<Arc<Key>>> {
        self.keys.read().get(name)?.key.clone()
    }

    /// The named version, or the current one.
    pub fn version(&self, name: &KeyName, version: Option<KeyVersion>) -> Option<Arc<VersionRecord>> {
        let keys = self.keys.read();
        let entry = keys.get(name)?;
        let version = version.or_else(|| entry.key.as_ref().map(|key| key.value.current()))?;
        entry.versions.get(&version).map(|version| version.value.clone())
    }

    pub fn key_count(&self) -> usize {
        self.keys.read().len()
    }

    pub fn roles(&self) -> arc_swap::Guard<Arc<RoleTable>> {
        self.roles.load()
    }

    pub fn assignment(&self, name: Guid) -> Option<(RoleAssignment, Stamp)> {
        let stamps = self.assignment_stamps.lock();
        let stamp = *stamps.get(&name)?;
        Some((self.roles.load().assignment(name)?.clone(), stamp))
    }

    pub fn put(&self, record: Record, stamp: Stamp) {
        match record {
            Record::Key(record) => {
                let mut keys = self.keys.write();
                let entry = keys.entry(record.key.name.clone()).or_default();
                if entry.key.as_ref().is_none_or(|held| held.stamp < stamp) {
                    entry.key = Some(Stamped { value: Arc::new(record.key), stamp });
                }
            }
            Record::Version(record) => {
                let mut keys = self.keys.write();
                let entry = keys.entry(record.version.name.clone()).or_default();
                let version = record.version.version;
                if entry.versions.get(&version).is_none_or(|held| held.stamp < stamp) {
                    entry.versions.insert(version, Stamped { value: Arc::new(record), stamp });
                }
            }
            Record::Assignment(assignment) => self.put_assignments([(assignment, stamp)]),
            Record::Outbox(_) => {}
        }
    }

    /// Swaps in a role table with all of `assignments` at once.
    pub fn put_assignments(&self, assignments: impl IntoIterator<Item = (RoleAssignment, Stamp)>) {
        let mut stamps = self.assignment_stamps.lock();
        let mut table = RoleTable::clone(&self.roles.load());
        for (assignment, stamp) in assignments {
            if stamps.get(&assignment.name).is_none_or(|held| *held < stamp) {
                stamps.insert(assignment.name, stamp);
                table = table.with(assignment);
            }
        }
        self.roles.store(Arc::new(table));
    }

    pub fn remove_assignment(&self, name: Guid) {
        let mut stamps = self.assignment_stamps.lock();
        stamps.remove(&name);
        self.roles.store(Arc::new(self.roles.load().without(name)));
    }
}
