//! What the store holds, in memory: every key version with its masked material, and the roles as a snapshot.
//!
//! Filled at start, and afterwards told of each commit in the order of commits.

use arc_swap::{ArcSwap, ArcSwapOption};
use domain::access::{CustomRole, Role, RoleAssignment, RoleTable, Scope};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::{KeyName, KeyVersion};
use domain::principal::ObjectId;
use domain::setting::{Setting, SettingValue};
use domain::test_mode::TestMode;
use domain::time::IntDate;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use storage::{
    ActivationRecord, InvocationsRecord, JobsRecord, NotBeforeRecord, Record, RecordId, RoleNamesRecord,
    SettingRecord, Stamp, Stamped, VersionRecord,
};

#[derive(Default)]
pub(crate) struct Index {
    /// In the order of names, which is that of lists.
    keys: RwLock<BTreeMap<KeyName, KeyEntry>>,
    roles: ArcSwap<RoleTable>,
    /// Held while a new role table is swapped in, so that none is lost.
    role_stamps: Mutex<RoleStamps>,
    settings: RwLock<HashMap<Setting, Stamped<SettingValue>>>,
    not_before: RwLock<HashMap<ObjectId, Stamped<IntDate>>>,
    activation: ArcSwapOption<Stamped<ActivationRecord>>,
    test_mode: ArcSwapOption<Stamped<TestMode>>,
    invocations: RwLock<BTreeMap<KeyName, Stamped<InvocationsRecord>>>,
    jobs: ArcSwapOption<Stamped<JobsRecord>>,
    /// How often this was compared with a backup.
    comparisons: AtomicU64,
}

#[derive(Default)]
struct KeyEntry {
    key: Option<Stamped<Arc<Key>>>,
    versions: HashMap<KeyVersion, Stamped<Arc<VersionRecord>>>,
    /// The last comparison that met this key, and whether as the same one. Marked here, as a list of those that were met
    /// would grow with the pool.
    met: Mutex<Met>,
}

#[derive(Clone, Copy, Default)]
struct Met {
    comparison: u64,
    same: bool,
}

#[derive(Default)]
struct RoleStamps {
    assignments: HashMap<Guid, AssignmentEntry>,
    roles: HashMap<Guid, Stamp>,
    names: Option<Stamped<u64>>,
}

struct AssignmentEntry {
    stamp: Stamp,
    /// The last comparison that met it, unchanged.
    met: u64,
}

/// A key and one of its versions, as they were at one moment.
#[derive(Clone)]
pub(crate) struct Held {
    pub key: Stamped<Arc<Key>>,
    pub version: Stamped<Arc<VersionRecord>>,
}

impl Index {
    /// Adds `records` of a store, in any order, to an index that nobody reads yet.
    pub fn fill(&self, records: impl IntoIterator<Item = Stamped<Record>>) {
        let mut keys = self.keys.write();
        let mut stamps = self.role_stamps.lock();
        // Not copied for each page of many.
        let mut table = Arc::unwrap_or_clone(self.roles.swap(Arc::default()));
        for Stamped { value, stamp } in records {
            self.put(&mut keys, &mut stamps, &mut table, value, stamp);
        }
        self.roles.store(Arc::new(table));
    }

    /// What one transaction changed. Readers see all of it in keys, or none; and likewise in roles.
    pub fn apply(&self, stamp: Stamp, puts: Vec<Record>, deletes: Vec<RecordId>) {
        let mut keys = self.keys.write();
        let mut stamps = self.role_stamps.lock();
        // Most transactions are about keys alone, and the table is copied to be changed.
        let is_role = |id: &RecordId| matches!(id, RecordId::Assignment(_) | RecordId::Role(_));
        let of_roles = puts.iter().any(|record| is_role(&record.id())) || deletes.iter().any(is_role);
        let mut table = of_roles.then(|| RoleTable::clone(&self.roles.load()));
        let mut unused = RoleTable::default();
        let roles = table.as_mut().unwrap_or(&mut unused);
        for record in puts {
            self.put(&mut keys, &mut stamps, roles, record, stamp);
        }
        for id in deletes {
            match id {
                RecordId::Key(name) => {
                    keys.remove(&name);
                }
                RecordId::Version(name, version) => {
                    if let Some(entry) = keys.get_mut(&name) {
                        entry.versions.remove(&version);
                    }
                }
                RecordId::Assignment(name) => {
                    stamps.assignments.remove(&name);
                    roles.remove(name);
                }
                RecordId::Role(id) => {
                    stamps.roles.remove(&id);
                    roles.remove_role(id);
                }
                RecordId::RoleNames => stamps.names = None,
                RecordId::TestMode => self.test_mode.store(None),
                RecordId::Setting(setting) => {
                    self.settings.write().remove(&setting);
                }
                RecordId::NotBefore(principal) => {
                    self.not_before.write().remove(&principal);
                }
                RecordId::Invocations(name) => {
                    self.invocations.write().remove(&name);
                }
                // Never undone.
                RecordId::Activation | RecordId::Jobs | RecordId::Outbox(_) => {}
            }
        }
        if let Some(table) = table {
            self.roles.store(Arc::new(table));
        }
    }

    /// Forgets all keys and counts, and of the roles what is not given for the whole pool, so that it is not held beside what
    /// comes in its place. What remains says who may ask how far that is.
    pub fn clear(&self) {
        let keys = std::mem::take(&mut *self.keys.write());
        let mut stamps = self.role_stamps.lock();
        let table = self.roles.load_full();
        let for_the_pool = table.assignments().filter(|assignment| assignment.scope == Scope::Root);
        let mut kept = RoleTable::new(for_the_pool.cloned());
        for role in table.roles() {
            if let Role::Custom(role) = role {
                kept.insert_role(CustomRole::clone(&role));
            }
        }
        *stamps = RoleStamps { names: stamps.names.take(), ..RoleStamps::default() };
        self.roles.store(Arc::new(kept));
        drop(stamps);
        self.invocations.write().clear();
        drop(keys);
    }

    /// What `next` holds in the place of all keys, versions, roles, assignments and counts. Readers see all of it in keys,
    /// or none; and likewise in roles.
    pub fn replace(&self, next: Index) {
        let Index { keys: next_keys, roles, role_stamps, invocations, .. } = next;
        let mut keys = self.keys.write();
        let mut stamps = self.role_stamps.lock();
        let replaced = std::mem::replace(&mut *keys, next_keys.into_inner());
        *stamps = RoleStamps { names: stamps.names.take(), ..role_stamps.into_inner() };
        *self.invocations.write() = invocations.into_inner();
        self.roles.store(roles.into_inner());
        drop((keys, stamps));
        // It takes a while for many keys, and nobody has to wait for that.
        drop(replaced);
    }

    fn put(
        &self,
        keys: &mut BTreeMap<KeyName, KeyEntry>,
        stamps: &mut RoleStamps,
        roles: &mut RoleTable,
        record: Record,
        stamp: Stamp,
    ) {
        match record {
            Record::Key(record) => {
                let entry = keys.entry(record.key.name.clone()).or_default();
                entry.key = Some(Stamped { value: Arc::new(record.key), stamp });
            }
            Record::Version(record) => {
                let entry = keys.entry(record.version.name.clone()).or_default();
                let version = record.version.version;
                entry.versions.insert(version, Stamped { value: Arc::new(record), stamp });
            }
            Record::Assignment(assignment) => {
                stamps.assignments.insert(assignment.name, AssignmentEntry { stamp, met: 0 });
                roles.insert_all([assignment]);
            }
            Record::Role(role) => {
                stamps.roles.insert(role.id(), stamp);
                roles.insert_role(role);
            }
            Record::RoleNames(RoleNamesRecord { definitions }) => {
                stamps.names = Some(Stamped { value: definitions, stamp });
            }
            Record::TestMode(value) => self.test_mode.store(Some(Arc::new(Stamped { value, stamp }))),
            Record::Setting(SettingRecord { setting, value }) => {
                self.settings.write().insert(setting, Stamped { value, stamp });
            }
            Record::NotBefore(NotBeforeRecord { principal, not_before }) => {
                self.not_before.write().insert(principal, Stamped { value: not_before, stamp });
            }
            Record::Invocations(record) => {
                self.invocations.write().insert(record.name.clone(), Stamped { value: record, stamp });
            }
            Record::Activation(record) => {
                self.activation.store(Some(Arc::new(Stamped { value: record, stamp })));
            }
            Record::Jobs(record) => self.jobs.store(Some(Arc::new(Stamped { value: record, stamp }))),
            Record::Outbox(_) => {}
        }
    }

    /// The key of that name, live or deleted.
    pub fn key(&self, name: &KeyName) -> Option<Stamped<Arc<Key>>> {
        self.keys.read().get(name)?.key.clone()
    }

    /// The named version, or the current one, of a key that is live or deleted.
    pub fn held(&self, name: &KeyName, version: Option<KeyVersion>) -> Option<Held> {
        let keys = self.keys.read();
        let entry = keys.get(name)?;
        let key = entry.key.clone()?;
        let version = entry.versions.get(&version.unwrap_or_else(|| key.value.current()))?.clone();
        Some(Held { key, version })
    }

    /// A key, live or deleted, with all its versions, oldest first, as they were at one moment.
    pub fn whole(&self, name: &KeyName) -> Option<(Arc<Key>, Vec<Arc<VersionRecord>>)> {
        let keys = self.keys.read();
        let entry = keys.get(name)?;
        let key = entry.key.as_ref()?.value.clone();
        let version = |version| entry.versions.get(version).map(|held| held.value.clone());
        let versions = key.versions().iter().map(version).collect::<Option<_>>()?;
        Some((key, versions))
    }

    /// Keys behind `after` in the order of names, each with its current version, of which `wanted` is true:
    /// at most `limit`.
    pub fn page(
        &self,
        after: Option<&KeyName>,
        limit: usize,
        mut wanted: impl FnMut(&Key) -> bool,
    ) -> Vec<Held> {
        let keys = self.keys.read();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        keys.range::<KeyName, _>((start, Bound::Unbounded))
            .filter_map(|(_, entry)| {
                let key = entry.key.clone().filter(|key| wanted(&key.value))?;
                let version = entry.versions.get(&key.value.current())?.clone();
                Some(Held { key, version })
            })
            .take(limit)
            .collect()
    }

    pub fn key_count(&self) -> usize {
        self.keys.read().len()
    }

    pub fn roles(&self) -> arc_swap::Guard<Arc<RoleTable>> {
        self.roles.load()
    }

    pub fn assignment(&self, name: Guid) -> Option<(RoleAssignment, Stamp)> {
        let stamps = self.role_stamps.lock();
        let stamp = stamps.assignments.get(&name)?.stamp;
        Some((self.roles.load().assignment(name)?.clone(), stamp))
    }

    /// The stamp of a custom role.
    pub fn role_stamp(&self, id: Guid) -> Option<Stamp> {
        self.role_stamps.lock().roles.get(&id).copied()
    }

    /// How often custom roles were defined. Roles that are read after this are no older.
    pub fn role_names(&self) -> Option<Stamped<u64>> {
        self.role_stamps.lock().names.clone()
    }

    /// `None` where it was never changed.
    pub fn test_mode(&self) -> Option<Stamped<TestMode>> {
        self.test_mode.load().as_ref().map(|held| Stamped::clone(held))
    }

    /// What a setting was set to, if ever.
    pub fn setting(&self, setting: Setting) -> Option<Stamped<SettingValue>> {
        self.settings.read().get(&setting).cloned()
    }

    pub fn invocations(&self, name: &KeyName) -> Option<Stamped<InvocationsRecord>> {
        self.invocations.read().get(name).cloned()
    }

    pub fn all_invocations(&self) -> Vec<InvocationsRecord> {
        self.invocations.read().values().map(|held| held.value.clone()).collect()
    }

    /// `None` in a pool that waits for activation.
    pub fn activation(&self) -> Option<Arc<Stamped<ActivationRecord>>> {
        self.activation.load_full()
    }

    /// Absent until there was a job.
    pub fn jobs(&self) -> Option<Arc<Stamped<JobsRecord>>> {
        self.jobs.load_full()
    }

    /// Counts behind `after` in the order of names: at most `limit`.
    pub fn invocations_page(&self, after: Option<&KeyName>, limit: usize) -> Vec<InvocationsRecord> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let held = self.invocations.read();
        let behind = held.range::<KeyName, _>((start, Bound::Unbounded));
        behind.take(limit).map(|(_, held)| held.value.clone()).collect()
    }

    /// The number of a comparison with a backup. Of two at once neither would be right.
    pub fn new_comparison(&self) -> u64 {
        self.comparisons.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A comparison has met a key of that name, `same` if it has a version of the one that is here.
    pub fn meet(&self, name: &KeyName, comparison: u64, same: bool) {
        if let Some(entry) = self.keys.read().get(name) {
            *entry.met.lock() = Met { comparison, same };
        }
    }

    /// Whether a comparison has met that very key.
    pub fn was_met_as_same(&self, name: &KeyName, comparison: u64) -> bool {
        self.keys.read().get(name).is_some_and(|entry| {
            let met = *entry.met.lock();
            met.comparison == comparison && met.same
        })
    }

    /// The names that a comparison has not met.
    pub fn not_met(&self, comparison: u64, mut see: impl FnMut(&KeyName)) {
        let keys = self.keys.read();
        let missed = keys.iter().filter(|(_, entry)| entry.met.lock().comparison != comparison);
        missed.for_each(|(name, _)| see(name));
    }

    /// A comparison has met this very assignment.
    pub fn meet_assignment(&self, name: Guid, comparison: u64) {
        if let Some(entry) = self.role_stamps.lock().assignments.get_mut(&name) {
            entry.met = comparison;
        }
    }

    pub fn was_assignment_met(&self, name: Guid, comparison: u64) -> bool {
        self.role_stamps.lock().assignments.get(&name).is_some_and(|entry| entry.met == comparison)
    }

    pub fn not_before(&self, principal: ObjectId) -> Option<Stamped<IntDate>> {
        self.not_before.read().get(&principal).cloned()
    }

    /// In the order of principals.
    pub fn all_not_before(&self) -> Vec<NotBeforeRecord> {
        let held = self.not_before.read();
        let mut all: Vec<_> = held
            .iter()
            .map(|(principal, held)| NotBeforeRecord { principal: *principal, not_before: held.value })
            .collect();
        all.sort_by_key(|record| record.principal);
        all
    }

    /// Keys without their record, or without a version that they name. None, unless there is a fault in the code
    /// that commits.
    pub fn incomplete(&self) -> Option<KeyName> {
        let keys = self.keys.read();
        let complete = |entry: &KeyEntry| {
            entry.key.as_ref().is_some_and(|key| {
                let versions = key.value.versions();
                versions.len() == entry.versions.len()
                    && versions.iter().all(|version| entry.versions.contains_key(version))
            })
        };
        keys.iter().find(|(_, entry)| !complete(entry)).map(|(name, _)| name.clone())
    }
}
