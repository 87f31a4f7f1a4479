//! Restoring: everything is read and checked before anything is touched, then staged beside what is in use, then put in
//! its place in one commit. Until that commit the pool is what it was.
//!
//! Staged in the pool's own store, and not in another beside it: the switch is then one engine commit like any other,
//! which a crash leaves made or not made, and the process goes on.

use super::RestoreSource;
use super::difference::{Age, Difference, Roles};
use super::jobs::{Done, check_folder};
use super::outline::Outline;
use super::stream::{Next, Reader};
use super::target::BackupTarget;
use crate::error::Error;
use crate::index::Index;
use crate::keys::binding;
use crate::pool::Pool;
use crate::ticket::{Recorded, Ticket};
use audit::event::EventResult;
use crypto::full_backup::FullBackupRefused;
use domain::access::{Role, RoleAssignment, Scope, action};
use domain::guid::Guid;
use domain::name::KeyName;
use domain::principal::Caller;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use storage::{
    InvocationsRecord, Job, JobEnd, KeyBackup, Record, RecordId, RoleNamesRecord, Staging, Stamped,
    VersionRecord,
};
use tokio::sync::OwnedRwLockWriteGuard;

/// Staged in one commit, at most: an engine takes 128 mutations of 1.5 MiB in all.
const BATCH_RECORDS: usize = 100;
const BATCH_BYTES: usize = 900 * 1024;
/// About what a record has beside material and tags.
const RECORD_BYTES: usize = 1024;

/// The pool does nothing else while this lives.
struct Closed {
    pool: Arc<Pool>,
    /// `None` while it waits for the changes that are being made.
    no_changes: Option<OwnedRwLockWriteGuard<()>>,
    /// The switch itself has opened the pool again.
    switched: bool,
}

impl Closed {
    /// Refuses whatever is asked from now on, waits for the changes that are being made, and lets none begin.
    async fn new(pool: Arc<Pool>) -> Self {
        pool.backups().restoring.store(true, Ordering::Release);
        let mut closed = Self { pool, no_changes: None, switched: false };
        closed.no_changes = Some(closed.pool.backups().changes.clone().write_owned().await);
        closed
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // Not once it is open: the next restore may have closed it by now.
        if !self.switched {
            self.pool.backups().restoring.store(false, Ordering::Release);
        }
    }
}

/// What a restore will do, decided.
struct Plan {
    roles: Roles,
    difference: Difference,
    /// For each key: what was counted when the backup was made, or since.
    invocations: Vec<InvocationsRecord>,
}

impl Pool {
    /// What a restore would change, without changing anything.
    pub async fn preview_restore(
        self: &Arc<Self>,
        mut ticket: Ticket,
        source: RestoreSource,
    ) -> Recorded<Difference> {
        ticket.asks::<action::RestoreStart>(&Scope::Root);
        let allowed = ticket.authorize::<action::RestoreStart>(Scope::Root).map(|_| ());
        let caller = ticket.caller().clone();
        let difference = match allowed.and_then(|()| check_folder(&source.folder)) {
            Ok(()) => self.difference(&source, &caller).await,
            Err(error) => Err(error),
        };
        ticket.record(difference).await
    }

    async fn difference(&self, source: &RestoreSource, caller: &Caller) -> Result<Difference, Error> {
        let _one =
            self.backups().previews.try_lock().map_err(|_| Error::Busy("looking at another backup"))?;
        let target = self.open_target(&source.location).await?;
        let outline = self.outline(target.as_ref(), &source.folder).await?;
        let roles = self.roles_after(&outline, caller);
        Ok(Difference::new(self.index(), &outline, &roles, self.age(&outline)))
    }

    pub(super) async fn check_restore_all(
        &self,
        target: &dyn BackupTarget,
        folder: &str,
        caller: &Caller,
    ) -> Result<String, Error> {
        let outline = self.outline(target, folder).await?;
        let plan = self.plan(&outline, caller)?;
        let Difference { age, .. } = &plan.difference;
        Ok(format!("the backup, of {age}, can be restored: {}", plan.difference.summary()))
    }

    /// A backup of another pool has no place among this one's.
    fn age(&self, outline: &Outline) -> Age {
        let made_at = outline.header.created;
        let last = self.last_backup().filter(|_| outline.header.pool == self.genesis().pool);
        let older_than = last.map(|job| job.started).filter(|started| made_at < *started);
        Age { made_at, generation: outline.manifest.generation, older_than }
    }

    async fn outline(&self, target: &dyn BackupTarget, folder: &str) -> Result<Outline, Error> {
        target.check(false).await?;
        Outline::read(self.reader(target, folder).await?).await
    }

    async fn reader<'t>(&self, target: &'t dyn BackupTarget, folder: &str) -> Result<Reader<'t>, Error> {
        let keys = self.key_backups();
        Reader::open(target, folder, &keys.key, &keys.domain, &self.backups().owner).await
    }

    /// Refuses what the pool's limits or its purge protection do not allow.
    fn plan(&self, outline: &Outline, caller: &Caller) -> Result<Plan, Error> {
        self.check_was_backed_up()?;
        let limits = self.limits();
        let within = |what, count: usize, limit: usize| {
            if count > limit { Err(Error::LimitReached { what, limit }) } else { Ok(()) }
        };
        within("keys", outline.keys.len(), limits.keys)?;
        let most = outline.keys.values().map(|held| held.enabled.len()).max().unwrap_or_default();
        within("versions of a key", most, limits.versions_per_key)?;
        let roles = self.roles_after(outline, caller);
        let difference = Difference::new(self.index(), outline, &roles, self.age(outline));
        if self.genesis().purge_protection
            && let Some(destroyed) = difference.destroys()
        {
            return Err(Error::RestoreDestroys { what: destroyed.to_owned() });
        }
        Ok(Plan { roles, difference, invocations: self.invocations_after(outline) })
    }

    /// Roles and assignments after the restore: those of the backup in a pool without keys, or if the caller may write
    /// roles; else those of now, as a right to restore must not become a right to anything else.
    fn roles_after(&self, outline: &Outline, caller: &Caller) -> Roles {
        let table = self.roles();
        let replaced = self.index().key_count() == 0
            || table.authorize::<action::RoleAssignmentWrite>(caller, Scope::Root).is_ok();
        if replaced {
            let mut assignments = outline.assignments.clone();
            // Genesis names them, and no backup has a say in that: nobody is locked out of a pool that was rebuilt.
            let of_genesis = table.assignments().filter(|held| self.is_of_genesis(held));
            assignments.extend(of_genesis.map(|held| (held.name, held.clone())));
            return Roles { assignments, custom: outline.roles.clone(), replaced };
        }
        let custom = table.roles().filter_map(|role| match role {
            Role::Custom(role) => Some((role.id(), domain::access::CustomRole::clone(&role))),
            Role::BuiltIn(_) => None,
        });
        let kept = table.assignments().filter(|held| match &held.scope {
            Scope::Root | Scope::Keys => true,
            // Given for a key that is there no more, or that only has its name, it must not be found by another.
            Scope::Key(name) => self.is_the_same_key(name, outline),
        });
        let assignments: BTreeMap<Guid, RoleAssignment> =
            kept.map(|held| (held.name, held.clone())).collect();
        Roles { assignments, custom: custom.collect(), replaced }
    }

    fn is_the_same_key(&self, name: &KeyName, outline: &Outline) -> bool {
        let (Some(now), Some(then)) = (self.index().key(name), outline.keys.get(name)) else { return false };
        now.value.versions().iter().any(|version| then.enabled.contains_key(version))
    }

    /// Never fewer than either knows of: an encryption that was made is not unmade by a restore.
    fn invocations_after(&self, outline: &Outline) -> Vec<InvocationsRecord> {
        let mut counts: BTreeMap<&KeyName, BTreeMap<_, u64>> = BTreeMap::new();
        let now = self.index().all_invocations();
        for record in outline.invocations.values().chain(&now) {
            let Some((name, held)) = outline.keys.get_key_value(&record.name) else { continue };
            for (version, leased) in &record.leased {
                if held.enabled.contains_key(version) {
                    let count = counts.entry(name).or_default().entry(*version).or_default();
                    *count = (*count).max(*leased);
                }
            }
        }
        let record = |(name, leased): (&KeyName, _)| InvocationsRecord { name: name.clone(), leased };
        counts.into_iter().map(record).collect()
    }

    pub(super) async fn restore_all(
        self: &Arc<Self>,
        job: &Job,
        target: &dyn BackupTarget,
        caller: &Caller,
    ) -> Result<Done, Error> {
        let folder = job.folder.as_deref().unwrap_or_default();
        let outline = self.outline(target, folder).await?;
        // Whatever can be refused is refused while the pool still serves.
        self.plan(&outline, caller)?;
        let mut closed = Closed::new(self.clone()).await;
        let plan = self.plan(&outline, caller)?;
        let mut stager = Stager::new(self.store().new_space().await?);
        self.stage_keys(&mut stager, target, folder, &outline).await?;
        let Plan { roles, difference, invocations } = plan;
        let Roles { assignments, custom, replaced } = roles;
        for record in assignments.into_values().map(Record::Assignment) {
            stager.add(record).await?;
        }
        for record in custom.into_values().map(Record::Role) {
            stager.add(record).await?;
        }
        for record in invocations.into_iter().map(Record::Invocations) {
            stager.add(record).await?;
        }
        let said = format!(
            "{} keys with {} versions as they were in pool {} at {}; {}",
            outline.manifest.counts.keys(),
            outline.manifest.counts.versions(),
            outline.manifest.pool_name,
            difference.age,
            difference.summary()
        );
        let done = self.switch(job, stager, replaced, said).await?;
        closed.switched = true;
        Ok(done)
    }

    /// The second reading, in which each version is bound to this pool.
    async fn stage_keys(
        &self,
        stager: &mut Stager<'_>,
        target: &dyn BackupTarget,
        folder: &str,
        outline: &Outline,
    ) -> Result<(), Error> {
        let mut reader = self.same_reader(target, folder, outline).await?;
        loop {
            match reader.next().await? {
                Next::Records(records) => {
                    for record in records {
                        match record {
                            Record::Key(_) => stager.add(record).await?,
                            Record::Version(version) => {
                                let version = self.rebound(&version, outline.header.pool)?;
                                stager.add(Record::Version(version)).await?;
                            }
                            // Decided with the plan.
                            _ => {}
                        }
                    }
                }
                Next::End(_) => return Ok(()),
            }
        }
    }

    /// A reader of the very backup that was read before. What was checked then holds of it, as it opens with the same
    /// key in the same order, and nothing else does.
    async fn same_reader<'t>(
        &self,
        target: &'t dyn BackupTarget,
        folder: &str,
        outline: &Outline,
    ) -> Result<Reader<'t>, Error> {
        let reader = self.reader(target, folder).await?;
        if reader.is_same_as(&outline.header_bytes) {
            Ok(reader)
        } else {
            Err(FullBackupRefused::Inconsistent("it was replaced while it was read".into()).into())
        }
    }

    fn rebound(&self, record: &VersionRecord, from: Guid) -> Result<VersionRecord, Error> {
        let version = &record.version;
        let place = |pool| binding(pool, &version.name, version.version);
        let (from, to) = (place(from), place(self.genesis().pool));
        let material = self.partition().rebind(version.spec, &record.material, &from, &to)?;
        Ok(VersionRecord { version: version.clone(), material })
    }

    async fn switch(
        self: &Arc<Self>,
        job: &Job,
        stager: Stager<'_>,
        replaces_roles: bool,
        said: String,
    ) -> Result<Done, Error> {
        let (staging, staged) = stager.finish().await?;
        let end = JobEnd { at: self.now().int_date(), failure: None, detail: said.clone() };
        let (stamp, jobs) = self.ended(job.id, end)?;
        let mut expectations = vec![(RecordId::Jobs, stamp)];
        let mut puts = vec![Record::Jobs(jobs)];
        if replaces_roles {
            let held = self.index().role_names();
            expectations.push((RecordId::RoleNames, held.as_ref().map(|held| held.stamp)));
            let definitions = held.map_or(0, |held| held.value) + 1;
            puts.push(Record::RoleNames(RoleNamesRecord { definitions }));
        }
        let event = self.job_event(job.id, job.kind, EventResult::Success, &said);
        self.commit_switch(staging, staged, expectations, puts, self.seal_event(&event)).await?;
        Ok(Done::Recorded)
    }

    pub(super) async fn restore_one(
        self: &Arc<Self>,
        job: &Job,
        target: &dyn BackupTarget,
    ) -> Result<Done, Error> {
        let folder = job.folder.as_deref().unwrap_or_default();
        let name = job.key.as_ref().ok_or(Error::JobInterrupted)?;
        let outline = self.outline(target, folder).await?;
        let held = outline.keys.get(name).ok_or_else(|| Error::NotInBackup { name: name.clone() })?;
        if held.key.is_deleted() {
            return Err(Error::DeletedInBackup { name: name.clone() });
        }
        let mut reader = self.same_reader(target, folder, &outline).await?;
        let mut versions = HashMap::new();
        while let Next::Records(records) = reader.next().await? {
            for record in records {
                if let Record::Version(record) = record
                    && record.version.name == *name
                {
                    versions.insert(record.version.version, record);
                }
            }
        }
        let versions = held.key.versions().iter().filter_map(|version| versions.remove(version)).collect();
        let invocations = outline.invocations.get(name).cloned();
        let whole = KeyBackup::new(held.key.clone(), versions, invocations)
            .map_err(|_| FullBackupRefused::Inconsistent(format!("key {name} is not whole")))?;
        if self.is_held(&whole) {
            return Ok(Done::Ended(format!("key {name} is as in the backup already")));
        }
        self.check_restore(&whole)?;
        let versions = whole
            .versions()
            .iter()
            .map(|record| self.rebound(record, outline.header.pool))
            .collect::<Result<Vec<_>, _>>()?;
        let said =
            format!("key {name} with {} versions, out of a backup of {}", versions.len(), self.age(&outline));
        let mut event = self.job_event(job.id, job.kind, EventResult::Success, &said);
        event.key_name = Some(name.to_string());
        let decide = || {
            let mut change = self.decide_restore(&whole, &versions)?;
            let end = JobEnd { at: self.now().int_date(), failure: None, detail: said.clone() };
            let (stamp, jobs) = self.ended(job.id, end)?;
            change.expectations.push((RecordId::Jobs, stamp));
            change.puts.push(Record::Jobs(jobs));
            Ok(change)
        };
        // Where the log fails after the commit the key is there and the event comes at the next start.
        self.change(self.seal_event(&event), decide).await?;
        Ok(Done::Recorded)
    }

    /// Whether the live key of that name is the one of a backup, unchanged since. Clients restore such a key and expect
    /// that to succeed; there is nothing to do. A version's name is its own, so its material need not be compared.
    fn is_held(&self, whole: &KeyBackup) -> bool {
        let key = whole.key();
        self.index().whole(&key.name).is_some_and(|(held, versions)| {
            *held == *key
                && versions
                    .iter()
                    .map(|held| &held.version)
                    .eq(whole.versions().iter().map(|record| &record.version))
        })
    }
}

/// Writes records where nobody sees them, so many at a time as one commit takes.
struct Stager<'s> {
    staging: Staging<'s>,
    batch: Vec<Record>,
    bytes: usize,
    /// What the index becomes at the switch. It grows record by record: a list of them would be held beside it.
    staged: Index,
}

impl<'s> Stager<'s> {
    fn new(staging: Staging<'s>) -> Self {
        Self { staging, batch: Vec::new(), bytes: 0, staged: Index::default() }
    }

    async fn add(&mut self, record: Record) -> Result<(), Error> {
        let bytes = size(&record);
        if self.batch.len() >= BATCH_RECORDS || self.bytes + bytes > BATCH_BYTES {
            self.flush().await?;
        }
        self.bytes += bytes;
        self.batch.push(record);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        let stamp = self.staging.stage(batch.clone()).await?.stamp;
        self.staged.fill(batch.into_iter().map(|value| Stamped { value, stamp }));
        Ok(())
    }

    async fn finish(mut self) -> Result<(Staging<'s>, Index), Error> {
        self.flush().await?;
        Ok((self.staging, self.staged))
    }
}

fn size(record: &Record) -> usize {
    let text = |length: usize| length + 16;
    RECORD_BYTES
        + match record {
            Record::Version(record) => {
                let tags = record.version.tags.iter();
                let tags: usize = tags.map(|(name, value)| text(name.len()) + text(value.len())).sum();
                let policy =
                    record.version.release.as_ref().map_or(0, |policy| text(policy.document().len()));
                record.material.0.len() + tags + policy
            }
            Record::Key(record) => record.key.versions().len() * 16,
            Record::Role(role) => {
                let permissions = role.permissions().iter();
                let actions = permissions.map(|held| held.data_actions.len() + held.not_data_actions.len());
                role.description().len() + actions.sum::<usize>() * 100
            }
            Record::Invocations(record) => record.leased.len() * 32,
            _ => 0,
        }
}
