//! Jobs: what a request begins and goes on without it. One at a time; each is in the store from its beginning, so that
//! whoever asks learns how it ended, whatever happened in between.

use super::target::{BackupTarget, BackupTargets, StorageLocation};
use super::{RestoreSource, stream};
use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::tasks::to_its_end;
use crate::ticket::{Recorded, Shown, Ticket};
use audit::event::{Event, EventResult};
use crypto::certificate::{InstanceKey, OwnerPublicKey};
use crypto::full_backup::FullBackupHeader;
use domain::access::{Action, DataAction, Denied, Scope, action};
use domain::guid::Guid;
use domain::name::KeyName;
use domain::principal::Caller;
use domain::time::{IntDate, Time};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use storage::{Job, JobEnd, JobKind, JobsRecord, Record, RecordId};
use tokio::task::AbortHandle;

/// Jobs that can be asked for; older ones are forgotten, but the last backup that was completed.
const KEPT: usize = 32;
/// Characters of a container's URI, of what a job has to say, and of why it failed.
const MAX_CONTAINER: usize = 1024;
const MAX_TEXT: usize = 4096;
const MAX_FOLDER: usize = 200;
/// How often it is tried to write down how a job ended, a second apart: a full disk may have room again.
const END_TRIES: u32 = 30;

/// How long a stop waits for that.
const STOP_TIME: Duration = Duration::from_secs(2);

/// What a pool keeps for full backups.
pub(crate) struct Backups {
    targets: Option<Arc<dyn BackupTargets>>,
    pub owner: OwnerPublicKey,
    /// Of this incarnation.
    pub signer: InstanceKey,
    pub certificate: Vec<u8>,
    /// One at a time compares a backup with the index.
    pub reading: tokio::sync::Mutex<()>,
    /// The job that is under way, and the task that writes down how it ended.
    task: Mutex<Option<(AbortHandle, tokio::task::JoinHandle<()>)>>,
    /// While it is set nothing works but asking how the restore goes.
    pub restoring: Arc<AtomicBool>,
    /// From the switch on until the index is that of what was restored.
    pub loading: Arc<AtomicBool>,
    /// Why it never will be. The pool does nothing more; a start opens it, or says why it cannot.
    pub unreadable: OnceLock<String>,
    /// Read by each change while it is made, and held by a restore.
    pub changes: Arc<tokio::sync::RwLock<()>>,
}

impl Backups {
    pub fn new(
        targets: Option<Arc<dyn BackupTargets>>,
        owner: OwnerPublicKey,
        signer: InstanceKey,
        certificate: Vec<u8>,
    ) -> Self {
        Self {
            targets,
            owner,
            signer,
            certificate,
            reading: Default::default(),
            task: Mutex::default(),
            restoring: Arc::default(),
            loading: Arc::default(),
            unreadable: OnceLock::new(),
            changes: Arc::default(),
        }
    }
}

/// A job as whoever began it may see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobView(pub Job);

impl JobView {
    /// Where the backup is, folder included.
    pub fn location(&self) -> Option<String> {
        let folder = self.0.folder.as_ref()?;
        Some(format!("{}/{folder}", self.0.container.trim_end_matches('/')))
    }
}

/// How a job's work ended well.
pub(super) enum Done {
    /// It remains to be written down.
    Ended(String),
    /// Written down with the change itself.
    Recorded,
}

impl Pool {
    /// Begins a full backup.
    pub async fn start_backup(
        self: &Arc<Self>,
        ticket: Ticket,
        location: StorageLocation,
    ) -> Recorded<JobView> {
        self.begin::<action::BackupStart>(ticket, JobKind::Backup, &location, None, None).await
    }

    /// The checks of a backup, and no more.
    pub async fn check_backup(
        self: &Arc<Self>,
        ticket: Ticket,
        location: StorageLocation,
    ) -> Recorded<JobView> {
        self.begin::<action::BackupStart>(ticket, JobKind::PreBackup, &location, None, None).await
    }

    /// Begins to replace all keys by those of a backup.
    pub async fn start_restore(self: &Arc<Self>, ticket: Ticket, source: RestoreSource) -> Recorded<JobView> {
        let RestoreSource { location, folder } = source;
        self.begin::<action::RestoreStart>(ticket, JobKind::Restore, &location, Some(folder), None).await
    }

    /// The checks of a restore, and no more: all of the backup is read.
    pub async fn check_restore_from(
        self: &Arc<Self>,
        ticket: Ticket,
        source: RestoreSource,
    ) -> Recorded<JobView> {
        let RestoreSource { location, folder } = source;
        self.begin::<action::RestoreStart>(ticket, JobKind::PreRestore, &location, Some(folder), None).await
    }

    /// Begins to restore one key out of a full backup.
    pub async fn start_selective_restore(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: KeyName,
        source: RestoreSource,
    ) -> Recorded<JobView> {
        ticket.about_key(&name, None);
        let RestoreSource { location, folder } = source;
        let kind = JobKind::SelectiveRestore;
        self.begin::<action::RestoreStart>(ticket, kind, &location, Some(folder), Some(name)).await
    }

    pub async fn backup_job(self: &Arc<Self>, mut ticket: Ticket, id: Guid) -> Recorded<JobView> {
        ticket.asks::<action::BackupStatus>(&Scope::Root);
        let found =
            ticket.authorize::<action::BackupStatus>(Scope::Root).and_then(|_| self.job(id, is_backup));
        ticket.record(found).await
    }

    pub async fn restore_job(self: &Arc<Self>, mut ticket: Ticket, id: Guid) -> Recorded<JobView> {
        ticket.asks::<action::RestoreStatus>(&Scope::Root);
        let found = ticket
            .authorize::<action::RestoreStatus>(Scope::Root)
            .and_then(|_| self.job(id, |kind| !is_backup(kind)));
        ticket.record(found).await
    }

    fn job(&self, id: Guid, wanted: impl Fn(JobKind) -> bool) -> Result<JobView, Error> {
        let jobs = self.index().jobs();
        let found = jobs.as_ref().and_then(|held| held.value.jobs.iter().find(|job| job.id == id));
        let mut job = found.filter(|job| wanted(job.kind)).cloned().ok_or(Error::JobNotFound(id))?;
        // Its end is in the commit of the switch; to whoever asks it has ended once everything works again.
        if self.backups().loading.load(Ordering::Acquire) && self.is_last(&job) {
            job.end = None;
        }
        Ok(JobView(job))
    }

    fn is_last(&self, job: &Job) -> bool {
        let jobs = self.index().jobs();
        jobs.is_some_and(|held| held.value.jobs.last().is_some_and(|last| last.id == job.id))
    }

    async fn begin<A: Action>(
        self: &Arc<Self>,
        mut ticket: Ticket,
        kind: JobKind,
        location: &StorageLocation,
        folder: Option<String>,
        key: Option<KeyName>,
    ) -> Recorded<JobView> {
        ticket.asks::<A>(&Scope::Root);
        let allowed = ticket.authorize::<A>(Scope::Root).map(|_| ());
        let checked = allowed.and_then(|()| self.check_request(kind, folder.as_deref(), location));
        let target = match checked {
            Ok(()) => self.open_target(location).await,
            Err(error) => Err(error),
        };
        let target = match target {
            Ok(target) => target,
            Err(error) => return ticket.record(Err(error)).await,
        };
        let folder = match kind {
            JobKind::Backup => Some(self.new_folder(ticket.received_at())),
            JobKind::PreBackup | JobKind::Restore | JobKind::SelectiveRestore | JobKind::PreRestore => folder,
        };
        let container = location.container.clone();
        let started = self.now().int_date();
        let job = Job { id: self.random().guid(), kind, container, folder, key, started, end: None };
        ticket.details(describe(&job));
        let (caller, show) = (ticket.caller().clone(), ticket.show());
        let pool = self.clone();
        // A caller that hangs up leaves no job behind that nobody does.
        to_its_end(async move {
            let recorded = pool.record_change(ticket, || pool.decide_begin(&job)).await;
            // By the record and not by the answer: the log may have failed after the commit.
            if pool.job(job.id, |_| true).is_ok() {
                pool.run(job, target, caller, show);
            }
            recorded
        })
        .await
    }

    pub(super) async fn open_target(
        &self,
        location: &StorageLocation,
    ) -> Result<Box<dyn BackupTarget>, Error> {
        let targets = self.backups().targets.as_ref().ok_or(Error::NoBackupTargets)?;
        Ok(targets.open(location).await?)
    }

    fn check_request(
        &self,
        kind: JobKind,
        folder: Option<&str>,
        location: &StorageLocation,
    ) -> Result<(), Error> {
        check_location(location)?;
        folder.map_or(Ok(()), check_folder)?;
        match kind {
            JobKind::Restore | JobKind::PreRestore => self.check_was_backed_up(),
            JobKind::Backup | JobKind::PreBackup | JobKind::SelectiveRestore => Ok(()),
        }
    }

    /// What a restore replaces must be in a backup of its own. A pool without keys has nothing to lose.
    pub(super) fn check_was_backed_up(&self) -> Result<(), Error> {
        let jobs = self.index().jobs();
        let was = jobs.is_some_and(|held| held.value.last_backup.is_some());
        if was || self.index().key_count() == 0 { Ok(()) } else { Err(Error::NotBackedUp) }
    }

    /// When this pool completed its last full backup.
    pub fn last_backup_at(&self) -> Option<IntDate> {
        self.index().jobs().and_then(|held| held.value.last_backup)
    }

    /// The last backup of this pool that was completed.
    pub(super) fn last_backup(&self) -> Option<Job> {
        self.index().jobs().and_then(|held| last_backup(&held.value).cloned())
    }

    /// `mhsm-NAME-YYYYMMDDHHmmSS`; a second later where the one before was made in this second.
    fn new_folder(&self, received: Time) -> String {
        let jobs = self.index().jobs();
        let taken = |folder: &String| {
            jobs.as_ref()
                .is_some_and(|held| held.value.jobs.iter().any(|job| job.folder.as_ref() == Some(folder)))
        };
        let name = &self.genesis().name;
        let second = received.int_date().unix_seconds();
        let folder = |second| format!("mhsm-{name}-{}", compact(IntDate::from_unix_seconds(second)));
        (second..).map(folder).find(|folder| !taken(folder)).unwrap_or_else(|| folder(second))
    }

    fn decide_begin(&self, job: &Job) -> Result<Change<JobView>, Error> {
        let held = self.index().jobs();
        let mut jobs = held.as_ref().map(|held| held.value.clone()).unwrap_or_default();
        if let Some(running) = jobs.running() {
            return Err(Error::JobRunning { what: name(running.kind), id: running.id });
        }
        jobs.jobs.push(job.clone());
        let last_backup = last_backup(&jobs).map(|job| job.id);
        let mut forgotten = jobs.jobs.len().saturating_sub(KEPT);
        jobs.jobs.retain(|job| {
            let kept = forgotten == 0 || Some(job.id) == last_backup;
            forgotten -= usize::from(!kept);
            kept
        });
        Ok(Change {
            expectations: vec![(RecordId::Jobs, held.map(|held| held.stamp))],
            puts: vec![Record::Jobs(jobs)],
            deletes: vec![],
            value: JobView(job.clone()),
        })
    }

    fn run(
        self: &Arc<Self>,
        job: Job,
        target: Box<dyn BackupTarget>,
        caller: Caller,
        show: fn(&Error) -> Shown,
    ) {
        let pool = self.clone();
        let (id, kind) = (job.id, job.kind);
        let work = tokio::spawn(async move { pool.work(&job, target.as_ref(), &caller).await });
        let stop = work.abort_handle();
        let pool = self.clone();
        let ending = tokio::spawn(async move {
            let done = work.await.unwrap_or(Err(Error::JobInterrupted));
            pool.end(id, kind, done, show).await;
        });
        *self.backups().task.lock() = Some((stop, ending));
    }

    async fn work(
        self: &Arc<Self>,
        job: &Job,
        target: &dyn BackupTarget,
        caller: &Caller,
    ) -> Result<Done, Error> {
        let folder = job.folder.clone().unwrap_or_default();
        match job.kind {
            JobKind::Backup => {
                target.check(true).await?;
                self.write_full_backup(target, &folder, caller).await.map(Done::Ended)
            }
            JobKind::PreBackup => {
                target.check(true).await?;
                self.check_asker(job.kind, caller)?;
                Ok(Done::Ended("the container can be written".into()))
            }
            JobKind::Restore => self.restore_all(job, target, caller).await,
            JobKind::PreRestore => {
                let said = self.check_restore_all(target, &folder, caller).await?;
                self.check_asker(job.kind, caller)?;
                Ok(Done::Ended(said))
            }
            JobKind::SelectiveRestore => self.restore_one(job, target, caller).await,
        }
    }

    /// Whether whoever asked for a job may still do what it is for: looked at when what it made is to count, as it was when it
    /// began. Their request was answered long ago, and what was taken from them since is theirs no more.
    pub(super) fn check_asker(&self, kind: JobKind, caller: &Caller) -> Result<(), Error> {
        match kind {
            JobKind::Backup | JobKind::PreBackup => self.check_still_may::<action::BackupStart>(caller),
            JobKind::Restore | JobKind::SelectiveRestore | JobKind::PreRestore => {
                self.check_still_may::<action::RestoreStart>(caller)
            }
        }
    }

    fn check_still_may<A: Action>(&self, caller: &Caller) -> Result<(), Error> {
        if self.is_withdrawn(caller) {
            return Err(Error::TokenWithdrawn { action: A::DATA_ACTION, scope: Scope::Root });
        }
        Ok(self.roles_in_force().authorize::<A>(caller, Scope::Root).map(|_| ())?)
    }

    async fn write_full_backup(
        &self,
        target: &dyn BackupTarget,
        folder: &str,
        caller: &Caller,
    ) -> Result<String, Error> {
        let unavailable = |error: storage::OpenError| Error::StoreUnavailable(error.to_string());
        let snapshot = self.store().snapshot().await.map_err(unavailable)?;
        let (keys, genesis) = (self.key_backups(), self.genesis());
        let header =
            FullBackupHeader { domain: keys.domain, pool: genesis.pool, created: self.now().int_date() };
        let Backups { signer, certificate, .. } = self.backups();
        let sealing = (&keys.key, &header);
        let name = genesis.name.to_string();
        let signing = (signer, certificate.as_slice());
        let may_be_seen = || self.check_asker(JobKind::Backup, caller);
        let counts = stream::write(target, folder, snapshot, &name, sealing, signing, may_be_seen).await?;
        Ok(format!(
            "{} keys with {} versions, and {} role assignments",
            counts.keys(),
            counts.versions(),
            counts.assignments()
        ))
    }

    /// Writes down how a job ended, unless that is written already.
    async fn end(
        self: &Arc<Self>,
        id: Guid,
        kind: JobKind,
        done: Result<Done, Error>,
        show: fn(&Error) -> Shown,
    ) {
        let mut missing = None;
        let (result, failure, detail) = match done {
            Ok(Done::Recorded) => return,
            Ok(Done::Ended(detail)) => (EventResult::Success, None, detail),
            Err(error) => {
                missing = missing_right(&error);
                let Shown { code, inner_code, .. } = show(&error);
                let result =
                    EventResult::Failure { code: code.to_owned(), inner_code: inner_code.map(str::to_owned) };
                (
                    result,
                    Some((inner_code.unwrap_or(code).to_owned(), bounded(error.to_string()))),
                    String::new(),
                )
            }
        };
        let said = failure.as_ref().map_or(&detail, |(_, message)| message);
        let mut event = self.job_event(id, kind, result, said);
        if let Some((action, scope)) = missing {
            event.data_action = Some(action.as_str().to_owned());
            event.scope = Some(scope);
        }
        let end = JobEnd { at: self.now().int_date(), failure, detail: bounded(detail) };
        for _ in 0..END_TRIES {
            let decide = || self.decide_end(id, end.clone());
            match self.change(self.seal_committed(event.clone()), decide).await {
                Ok(_) => return,
                Err(error) => tracing::error!(%error, "how a job ended is not written down yet"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub(super) fn job_event(&self, id: Guid, kind: JobKind, result: EventResult, said: &str) -> Event {
        let operation = match kind {
            JobKind::Backup => "BackupComplete",
            JobKind::Restore => "RestoreComplete",
            JobKind::SelectiveRestore => "KeySelectiveRestoreComplete",
            JobKind::PreBackup => "PreBackupComplete",
            JobKind::PreRestore => "PreRestoreComplete",
        };
        let detail = format!("job {id}: {}", bounded(said.to_owned()));
        Event { operation: operation.into(), result, detail, ..self.blank_event() }
    }

    fn decide_end(&self, id: Guid, end: JobEnd) -> Result<Change<()>, Error> {
        let (stamp, jobs) = self.ended(id, end)?;
        Ok(Change {
            expectations: vec![(RecordId::Jobs, stamp)],
            puts: vec![Record::Jobs(jobs)],
            deletes: vec![],
            value: (),
        })
    }

    /// The jobs with one of them ended. An end stays as it was written first.
    pub(super) fn ended(&self, id: Guid, end: JobEnd) -> Result<(Option<storage::Stamp>, JobsRecord), Error> {
        let held = self.index().jobs();
        let stamp = held.as_ref().map(|held| held.stamp);
        let mut jobs = held.map(|held| held.value.clone()).unwrap_or_default();
        let job = jobs.jobs.iter_mut().find(|job| job.id == id).ok_or(Error::JobNotFound(id))?;
        if job.end.is_none() {
            if job.kind == JobKind::Backup && end.failure.is_none() {
                jobs.last_backup = Some(end.at);
            }
            job.end = Some(end);
        }
        Ok((stamp, jobs))
    }

    /// At a start: a job that the last stop cut short goes on nowhere.
    pub(crate) async fn end_interrupted_job(self: &Arc<Self>) -> Result<(), Error> {
        let jobs = self.index().jobs();
        let Some(job) = jobs.as_ref().and_then(|held| held.value.running()) else { return Ok(()) };
        let message = Error::JobInterrupted.to_string();
        let code = "Interrupted";
        let result = EventResult::Failure { code: code.into(), inner_code: None };
        let event = self.job_event(job.id, job.kind, result, &message);
        let failure = Some((code.to_owned(), message));
        let end = JobEnd { at: self.now().int_date(), failure, detail: String::new() };
        let decide = || self.decide_end(job.id, end.clone());
        self.change(self.seal_committed(event), decide).await?.receipt.map(|_| ())
    }

    /// Stops the job that is under way, and waits until that is written down.
    pub(crate) async fn stop_job(&self) {
        let task = self.backups().task.lock().take();
        if let Some((stop, ending)) = task {
            stop.abort();
            // A store that takes nothing any more must not hold up the end; the next start writes it down.
            let _ = tokio::time::timeout(STOP_TIME, ending).await;
        }
    }

    /// Refuses whatever asks a pool that lost its index.
    pub(crate) fn check_readable(&self) -> Result<(), Error> {
        match self.backups().unreadable.get() {
            None => Ok(()),
            Some(reason) => Err(Error::StoreUnavailable(reason.clone())),
        }
    }

    /// Whether a restore is under way, and nothing else works.
    pub fn is_restoring(&self) -> bool {
        self.backups().restoring.load(Ordering::Acquire)
    }
}

fn last_backup(jobs: &JobsRecord) -> Option<&Job> {
    let completed = |job: &&Job| job.end.as_ref().is_some_and(|end| end.failure.is_none());
    jobs.jobs.iter().rev().filter(completed).find(|job| job.kind == JobKind::Backup)
}

/// What a refusal says that its caller may not do, and where.
fn missing_right(error: &Error) -> Option<(DataAction, String)> {
    let (Error::Denied(Denied { action, scope, .. }) | Error::TokenWithdrawn { action, scope }) = error
    else {
        return None;
    };
    Some((*action, scope.to_string()))
}

fn is_backup(kind: JobKind) -> bool {
    matches!(kind, JobKind::Backup | JobKind::PreBackup)
}

fn name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Backup => "backup",
        JobKind::Restore => "restore",
        JobKind::SelectiveRestore => "restore of a key",
        JobKind::PreBackup => "check before a backup",
        JobKind::PreRestore => "check before a restore",
    }
}

fn describe(job: &Job) -> String {
    let folder = job.folder.as_ref().map(|folder| format!(", folder {folder}")).unwrap_or_default();
    format!("job {}: {} at {}{folder}", job.id, name(job.kind), job.container)
}

fn bounded(text: String) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// What a job keeps of it and shows is bounded; what is only looked at, likewise.
pub(super) fn check_location(location: &StorageLocation) -> Result<(), Error> {
    if location.container.chars().count() > MAX_CONTAINER {
        let reason = format!("storageResourceUri must have at most {MAX_CONTAINER} characters");
        return Err(Error::BadParameter(reason));
    }
    Ok(())
}

/// One folder of a container: no path, and nothing that some storage reads as more than a name.
pub(super) fn check_folder(folder: &str) -> Result<(), Error> {
    let is_plain =
        |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(is_plain);
    // Clients split the folder's URI after its first segment. Where that is an account, as in emulators, the container
    // comes here.
    let (container, name) = folder.split_once('/').unwrap_or(("container", folder));
    if folder.len() <= MAX_FOLDER && is_name(container) && is_name(name) {
        return Ok(());
    }
    Err(Error::BadParameter(format!(
        "the folder of a backup has 1 to {MAX_FOLDER} letters, digits, dots, hyphens and underscores, no dot in front, and at most its container and a slash before it"
    )))
}

/// `YYYYMMDDHHmmSS`, UTC.
fn compact(at: IntDate) -> String {
    let (days, second) = (at.unix_seconds().div_euclid(86_400), at.unix_seconds().rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar: eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_written_as_in_the_calendar() {
        for (second, expected) in [
            (0, "19700101000000"),
            (951_782_399, "20000228235959"),
            (951_782_400, "20000229000000"),
            (1_709_251_199, "20240229235959"),
            (1_800_000_000, "20270115080000"),
            (4_107_542_400, "21000301000000"),
        ] {
            assert_eq!(compact(IntDate::from_unix_seconds(second)), expected);
        }
    }

    #[test]
    fn a_folder_is_a_plain_name_or_one_in_a_container() {
        assert!(check_folder("mhsm-demo-20270115080000").is_ok());
        assert!(check_folder("backups/mhsm-demo-20270115080000").is_ok());
        let long = "a".repeat(MAX_FOLDER + 1);
        for folder in [
            "",
            "..",
            ".x",
            "a/",
            "/b",
            "a/b/c",
            "../b",
            "a/..",
            "a\\b",
            "a b",
            "a%2fb",
            "a?b",
            "ä",
            long.as_str(),
        ] {
            assert!(check_folder(folder).is_err(), "{folder}");
        }
    }
}
