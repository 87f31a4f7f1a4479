//! What a backup holds, without its versions' contents: enough to see that it is whole, and what restoring it changes.

use super::stream::{Next, Reader};
use crate::error::Error;
use bytes::Bytes;
use crypto::full_backup::{FullBackupHeader, FullBackupRefused};
use domain::access::{CustomRole, RoleAssignment};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::{KeyName, KeyVersion};
use std::collections::{BTreeMap, HashMap};
use storage::{Counts, InvocationsRecord, Manifest, Record};

pub(super) struct Outline {
    pub header: FullBackupHeader,
    pub header_bytes: Bytes,
    pub manifest: Manifest,
    pub keys: BTreeMap<KeyName, OutlinedKey>,
    pub assignments: BTreeMap<Guid, RoleAssignment>,
    pub roles: BTreeMap<Guid, CustomRole>,
    pub invocations: HashMap<KeyName, InvocationsRecord>,
}

/// A key, and which of its versions are enabled.
pub(super) struct OutlinedKey {
    pub key: Key,
    pub enabled: HashMap<KeyVersion, bool>,
}

impl Outline {
    /// Reads all of a backup. What this gives is whole: each chunk opened at its place, the manifest signed and counting
    /// what there is, no key without its versions and no version without its key.
    pub async fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let mut gathered = Gathered::default();
        let manifest = loop {
            match reader.next().await? {
                Next::Records(records) => records.into_iter().try_for_each(|record| gathered.add(record))?,
                Next::End(manifest) => break manifest,
            }
        };
        gathered.finish(*reader.header(), reader.header_bytes(), manifest)
    }
}

#[derive(Default)]
struct Gathered {
    counts: Counts,
    keys: BTreeMap<KeyName, Key>,
    /// In whatever order they come: a version may come before its key.
    versions: HashMap<KeyName, HashMap<KeyVersion, bool>>,
    assignments: BTreeMap<Guid, RoleAssignment>,
    roles: BTreeMap<Guid, CustomRole>,
    invocations: HashMap<KeyName, InvocationsRecord>,
}

impl Gathered {
    fn add(&mut self, record: Record) -> Result<(), Error> {
        self.counts.add(&record);
        let is_new = match record {
            Record::Key(record) => self.keys.insert(record.key.name.clone(), record.key).is_none(),
            Record::Version(record) => {
                let version = record.version;
                let of_key = self.versions.entry(version.name).or_default();
                of_key.insert(version.version, version.attributes.enabled).is_none()
            }
            Record::Assignment(assignment) => self.assignments.insert(assignment.name, assignment).is_none(),
            Record::Role(role) => self.roles.insert(role.id(), role).is_none(),
            Record::Invocations(record) => self.invocations.insert(record.name.clone(), record).is_none(),
            // Never in a chunk.
            Record::RoleNames(_)
            | Record::Setting(_)
            | Record::NotBefore(_)
            | Record::Activation(_)
            | Record::Jobs(_)
            | Record::TestMode(_)
            | Record::Outbox(_) => false,
        };
        if is_new { Ok(()) } else { Err(inconsistent("it holds one record twice".into())) }
    }

    fn finish(
        self,
        header: FullBackupHeader,
        header_bytes: Bytes,
        manifest: Manifest,
    ) -> Result<Outline, Error> {
        let Self { counts, keys, mut versions, assignments, roles, invocations } = self;
        if counts != manifest.counts {
            return Err(inconsistent("its records are not as many as its manifest counts".into()));
        }
        let mut outlined = BTreeMap::new();
        for (name, key) in keys {
            let enabled = versions.remove(&name).unwrap_or_default();
            let named = key.versions();
            if enabled.len() != named.len() || !named.iter().all(|version| enabled.contains_key(version)) {
                return Err(inconsistent(format!("key {name} does not have the versions that it names")));
            }
            outlined.insert(name, OutlinedKey { key, enabled });
        }
        if let Some(name) = versions.into_keys().next() {
            return Err(inconsistent(format!("it has versions of key {name}, and not the key")));
        }
        let counted = |record: &InvocationsRecord| {
            let key = outlined.get(&record.name);
            key.is_some_and(|held| record.leased.keys().all(|version| held.enabled.contains_key(version)))
        };
        if let Some(record) = invocations.values().find(|record| !counted(record)) {
            return Err(inconsistent(format!(
                "it counts encryptions of key {} that has no such version",
                record.name
            )));
        }
        Ok(Outline { header, header_bytes, manifest, keys: outlined, assignments, roles, invocations })
    }
}

fn inconsistent(what: String) -> Error {
    FullBackupRefused::Inconsistent(what).into()
}
