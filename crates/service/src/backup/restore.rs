//! Restoring: everything is read and checked before anything is touched, then read again and staged beside what is in use,
//! then put in its place in one commit. Until that commit the pool is what it was. Then the index is emptied, and filled
//! from the store: the old one and the new are never held at once, and nothing else that grows with either.
//!
//! Staged in the pool's own store, and not in another beside it: the switch is then one engine commit like any other,
//! which a crash leaves made or not made, and the process goes on.

use super::RestoreSource;
use super::difference::{Age, Difference};
use super::jobs::{Done, check_folder, check_location};
use super::stream::{Next, Reader};
use super::survey::{Survey, Surveying, Whole};
use super::target::BackupTarget;
use crate::error::Error;
use crate::keys::binding;
use crate::pool::Pool;
use crate::ticket::{Recorded, Ticket};
use audit::event::EventResult;
use bytes::Bytes;
use crypto::full_backup::{FullBackupHeader, FullBackupRefused};
use domain::access::{Scope, action};
use domain::guid::Guid;
use domain::key::Key;
use domain::principal::Caller;
use domain::time::IntDate;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use storage::{
    CommitError, InvocationsRecord, Job, JobEnd, KeyBackup, KeyRecord, Manifest, Record, RecordId,
    RoleNamesRecord, Staging, VersionRecord,
};
use tokio::sync::OwnedRwLockWriteGuard;

/// Staged in one commit, at most: an engine takes 128 mutations of 1.5 MiB in all.
const BATCH_RECORDS: usize = 100;
const BATCH_BYTES: usize = 900 * 1024;

/// The pool does nothing else while this lives.
struct Closed {
    pool: Arc<Pool>,
    /// `None` while it waits for the changes that are being made.
    no_changes: Option<OwnedRwLockWriteGuard<()>>,
    /// The switch is made, and has opened the pool again if it can be opened.
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
        // Not once it is open: the next restore may have closed it by now. And not without an index, where whoever waited
        // for the switch was stopped.
        if !self.switched && !self.pool.backups().loading.load(Ordering::Acquire) {
            self.pool.backups().restoring.store(false, Ordering::Release);
        }
    }
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
        let checked = allowed
            .and_then(|()| check_location(&source.location))
            .and_then(|()| check_folder(&source.folder));
        let difference = match checked {
            Ok(()) => self.difference(&source, &caller).await,
            Err(error) => Err(error),
        };
        ticket.record(difference).await
    }

    async fn difference(&self, source: &RestoreSource, caller: &Caller) -> Result<Difference, Error> {
        let _one = self.backups().reading.try_lock().map_err(|_| Error::Busy("looking at another backup"))?;
        let target = self.open_target(&source.location).await?;
        target.check(false).await?;
        let reader = self.reader(target.as_ref(), &source.folder).await?;
        Ok(self.survey(reader, caller).await?.difference)
    }

    pub(super) async fn check_restore_all(
        &self,
        target: &dyn BackupTarget,
        folder: &str,
        caller: &Caller,
    ) -> Result<String, Error> {
        let _one = self.backups().reading.lock().await;
        target.check(false).await?;
        let survey = self.survey(self.reader(target, folder).await?, caller).await?;
        self.check_allowed(&survey)?;
        let Difference { age, .. } = &survey.difference;
        Ok(format!("the backup, of {age}, can be restored: {}", survey.difference.summary()))
    }

    /// A backup of another pool has no place among this one's.
    pub(super) fn age(&self, header: &FullBackupHeader, manifest: &Manifest) -> Age {
        let made_at = header.created;
        let last = self.last_backup().filter(|_| header.pool == self.genesis().pool);
        let older_than = last.map(|job| job.started).filter(|started| made_at < *started);
        Age { made_at, generation: manifest.generation, log_size: manifest.log_size, older_than }
    }

    async fn reader<'t>(&self, target: &'t dyn BackupTarget, folder: &str) -> Result<Reader<'t>, Error> {
        let keys = self.key_backups();
        Reader::open(target, folder, &keys.key, &keys.domain, &self.backups().owner).await
    }

    /// Refuses what the pool's limits or its purge protection do not allow.
    fn check_allowed(&self, survey: &Survey) -> Result<(), Error> {
        self.check_was_backed_up()?;
        let limits = self.limits();
        let within = |what, count: u64, limit: usize| {
            if count > limit as u64 { Err(Error::LimitReached { what, limit }) } else { Ok(()) }
        };
        within("keys", survey.manifest.counts.keys(), limits.keys)?;
        within("versions of a key", survey.most_versions as u64, limits.versions_per_key)?;
        if self.genesis().purge_protection
            && let Some(destroyed) = survey.difference.destroys()
        {
            return Err(Error::RestoreDestroys { what: destroyed.to_owned() });
        }
        Ok(())
    }

    pub(super) async fn restore_all(
        self: &Arc<Self>,
        job: &Job,
        target: &dyn BackupTarget,
        caller: &Caller,
    ) -> Result<Done, Error> {
        let folder = job.folder.as_deref().unwrap_or_default();
        let _one = self.backups().reading.lock().await;
        target.check(false).await?;
        // Whatever can be refused is refused while the pool still serves.
        let first = self.survey(self.reader(target, folder).await?, caller).await?;
        self.check_allowed(&first)?;
        let mut closed = Closed::new(self.clone()).await;
        let mut stager = Stager::new(self.store().new_space().await?);
        let survey = self.stage(&mut stager, target, folder, caller, &first.header_bytes).await?;
        self.stage_counts(&mut stager, target, folder, &survey).await?;
        let said = format!(
            "{} keys with {} versions as they were in pool {} at {}; {}",
            survey.manifest.counts.keys(),
            survey.manifest.counts.versions(),
            survey.manifest.pool_name,
            survey.difference.age,
            survey.difference.summary()
        );
        let replaces_roles = survey.difference.replaces_roles;
        let done = self.switch(job, caller, stager, replaces_roles, said).await?;
        closed.switched = true;
        Ok(done)
    }

    /// The second reading: what the pool does meanwhile does not change any more what is decided, and each version is bound
    /// to this pool. All but the counts of encryptions is staged.
    async fn stage(
        &self,
        stager: &mut Stager<'_>,
        target: &dyn BackupTarget,
        folder: &str,
        caller: &Caller,
        header: &Bytes,
    ) -> Result<Survey, Error> {
        let mut reader = self.same_reader(target, folder, header).await?;
        let from = reader.header().pool;
        let now = self.key_time().int_date();
        let mut surveying = Surveying::new(self, caller);
        let survey = loop {
            match reader.next().await? {
                Next::Records(records) => {
                    for record in records {
                        surveying.add(&record);
                        let staged = match record {
                            Record::Version(version) => Some(Record::Version(self.rebound(&version, from)?)),
                            Record::Assignment(assignment) if !surveying.comparison.takes(&assignment) => {
                                None
                            }
                            Record::Role(_) if !surveying.comparison.replaces_roles() => None,
                            Record::Key(KeyRecord { key }) => {
                                Some(Record::Key(KeyRecord { key: self.kept(key, now) }))
                            }
                            Record::Assignment(_) | Record::Role(_) => Some(record),
                            _ => None,
                        };
                        if let Some(record) = staged {
                            stager.add(record).await?;
                        }
                    }
                }
                Next::End(manifest) => {
                    let age = self.age(reader.header(), &manifest);
                    break surveying.finish(&reader, manifest, age)?;
                }
            }
        };
        self.check_allowed(&survey)?;
        for record in surveying.comparison.kept() {
            stager.add(record).await?;
        }
        stager.flush().await?;
        Ok(survey)
    }

    /// Counts of encryptions, never fewer than backup or pool know of: one that was made is not unmade by a restore. Which
    /// versions there will be is known now that they are staged, so the backup is read once more, as far as it has counts.
    async fn stage_counts(
        &self,
        stager: &mut Stager<'_>,
        target: &dyn BackupTarget,
        folder: &str,
        survey: &Survey,
    ) -> Result<(), Error> {
        let mut left = survey.manifest.counts.counted_keys();
        let mut reader = self.same_reader(target, folder, &survey.header_bytes).await?;
        while left > 0 {
            let Next::Records(records) = reader.next().await? else { break };
            for record in records {
                let Record::Invocations(then) = record else { continue };
                left = left.saturating_sub(1);
                let now = self.index().invocations(&then.name).map(|held| held.value);
                stager.add_counts([Some(then), now].into_iter().flatten().collect()).await?;
            }
        }
        stager.flush().await?;
        let mut after = None;
        loop {
            let page = self.index().invocations_page(after.as_ref(), BATCH_RECORDS);
            let Some(last) = page.last() else { return stager.flush().await };
            after = Some(last.name.clone());
            for now in page {
                if !stager.has(&RecordId::Invocations(now.name.clone())).await? {
                    stager.add_counts(vec![now]).await?;
                }
            }
        }
    }

    /// A reader of the very backup that was read before. What was checked then holds of it, as it opens with the same
    /// key in the same order, and nothing else does.
    async fn same_reader<'t>(
        &self,
        target: &'t dyn BackupTarget,
        folder: &str,
        header: &Bytes,
    ) -> Result<Reader<'t>, Error> {
        let reader = self.reader(target, folder).await?;
        if reader.is_same_as(header) {
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

    /// A key that a backup has as deleted, and that this pool has and not as deleted since the same moment, is kept for its
    /// retention from `now` on: by the backup's date it could be purged at once.
    fn kept(&self, key: Key, now: IntDate) -> Key {
        match self.index().key(&key.name) {
            Some(here) if here.value.deleted_at() != key.deleted_at() => key.kept_from(now),
            Some(_) | None => key,
        }
    }

    async fn switch(
        self: &Arc<Self>,
        job: &Job,
        caller: &Caller,
        stager: Stager<'_>,
        replaces_roles: bool,
        said: String,
    ) -> Result<Done, Error> {
        // By the roles of this pool, which is closed: nobody changes them between this and the commit.
        self.check_asker(job.kind, caller)?;
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
        self.commit_switch(stager.staging, expectations, puts, self.seal_committed(event)).await?;
        Ok(Done::Recorded)
    }

    pub(super) async fn restore_one(
        self: &Arc<Self>,
        job: &Job,
        target: &dyn BackupTarget,
        caller: &Caller,
    ) -> Result<Done, Error> {
        let folder = job.folder.as_deref().unwrap_or_default();
        let name = job.key.as_ref().ok_or(Error::JobInterrupted)?;
        target.check(false).await?;
        let mut reader = self.reader(target, folder).await?;
        let from = reader.header().pool;
        let mut checked = Whole::new();
        let (mut key, mut versions, mut invocations) = (None, HashMap::new(), None);
        let manifest = loop {
            let records = match reader.next().await? {
                Next::Records(records) => records,
                Next::End(manifest) => break manifest,
            };
            for record in records {
                checked.add(&record);
                match record {
                    Record::Key(record) if record.key.name == *name => key = Some(record.key),
                    Record::Version(record) if record.version.name == *name => {
                        versions.insert(record.version.version, record);
                    }
                    Record::Invocations(record) if record.name == *name => invocations = Some(record),
                    _ => {}
                }
            }
        };
        checked.check(&manifest)?;
        let age = self.age(reader.header(), &manifest);
        let key = key.ok_or_else(|| Error::NotInBackup { name: name.clone() })?;
        if key.is_deleted() {
            return Err(Error::DeletedInBackup { name: name.clone() });
        }
        let versions = key.versions().iter().filter_map(|version| versions.remove(version)).collect();
        let whole = KeyBackup::new(key, versions, invocations)
            .map_err(|_| FullBackupRefused::Inconsistent(format!("key {name} is not whole")))?;
        if self.is_held(&whole) {
            self.check_asker(job.kind, caller)?;
            return Ok(Done::Ended(format!("key {name} is as in the backup already")));
        }
        self.check_restore(&whole)?;
        let versions = whole
            .versions()
            .iter()
            .map(|record| self.rebound(record, from))
            .collect::<Result<Vec<_>, _>>()?;
        let said = format!("key {name} with {} versions, out of a backup of {age}", versions.len());
        let mut event = self.job_event(job.id, job.kind, EventResult::Success, &said);
        event.key_name = Some(name.to_string());
        let decide = || {
            self.check_asker(job.kind, caller)?;
            let mut change = self.decide_restore(&whole, &versions)?;
            let end = JobEnd { at: self.now().int_date(), failure: None, detail: said.clone() };
            let (stamp, jobs) = self.ended(job.id, end)?;
            change.expectations.push((RecordId::Jobs, stamp));
            change.puts.push(Record::Jobs(jobs));
            Ok(change)
        };
        // Where the log fails after the commit the key is there and the event comes at the next start.
        self.change(self.seal_committed(event), decide).await?;
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
}

impl<'s> Stager<'s> {
    fn new(staging: Staging<'s>) -> Self {
        Self { staging, batch: Vec::new(), bytes: 0 }
    }

    async fn add(&mut self, record: Record) -> Result<(), Error> {
        let bytes = record.approximate_bytes();
        if self.batch.len() >= BATCH_RECORDS || self.bytes + bytes > BATCH_BYTES {
            self.flush().await?;
        }
        self.bytes += bytes;
        self.batch.push(record);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        match self.staging.stage(batch).await {
            Ok(_) => Ok(()),
            // The very record is there already, so the backup holds it twice.
            Err(CommitError::Conflict) => {
                Err(FullBackupRefused::Inconsistent("it holds one record twice".into()).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn has(&self, id: &RecordId) -> Result<bool, Error> {
        Ok(self.staged(id).await?.is_some())
    }

    /// A record that was staged and flushed.
    async fn staged(&self, id: &RecordId) -> Result<Option<Record>, Error> {
        self.staging.read(id).await.map_err(|error| Error::StoreUnavailable(error.to_string()))
    }

    /// The highest of some counts of one key, of those versions that are staged.
    async fn add_counts(&mut self, counts: Vec<InvocationsRecord>) -> Result<(), Error> {
        let Some(name) = counts.first().map(|record| record.name.clone()) else { return Ok(()) };
        let Some(Record::Key(held)) = self.staged(&RecordId::Key(name.clone())).await? else { return Ok(()) };
        let mut leased = BTreeMap::new();
        for (version, count) in counts.into_iter().flat_map(|record| record.leased) {
            if held.key.versions().contains(&version) {
                let highest: &mut u64 = leased.entry(version).or_default();
                *highest = (*highest).max(count);
            }
        }
        if leased.is_empty() {
            return Ok(());
        }
        self.add(Record::Invocations(InvocationsRecord { name, leased })).await
    }
}
