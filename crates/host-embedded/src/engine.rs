//! The embedded engine: one redb file, one writer thread, group commit.
//!
//! Commits queue up; the writer drains the queue into one synced redb transaction and answers each commit
//! after the sync. Reads run on the caller's thread against redb's snapshots. A failed write is never
//! retried: the engine then refuses everything until it is opened again.
//!
//! Commits are single-phase and without quick-repair, which would cost a third of the rate. The price is that
//! opening reads the whole file; we pay it at every open, after a clean stop too, since redb trusts a file
//! that it closed itself and may panic on one that was altered since.
//!
//! The file's tables are described in `docs/formats/engine-embedded.md`.

mod backend;
mod history;
mod table;
mod writer;

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use async_trait::async_trait;
use host::{Commit, CommitOutcome, Engine, EngineError, Entry, Mutation, OperationId, Revision, Scan, Watch};
use parking_lot::Mutex;
use redb::{Database, Range, ReadableDatabase};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::backend::{DirectoryBackend, Guard, Guarded};
use self::history::{History, HistoryWatch};
use self::writer::{Job, Writer};
use crate::disk::{Directory, FileDirectory, is_disk_full};
use crate::lock::{LockError, ProcessLock};

/// Largest value, in bytes.
const MAX_VALUE_BYTES: usize = 256 * 1024;
/// Largest key, in bytes. The core's keys are short codes; this bound only keeps redb's pages readable.
const MAX_KEY_BYTES: usize = 4 * 1024;
/// Most mutations, and most expectations, in one commit.
const MAX_MUTATIONS: usize = 128;
/// Keys and values of one commit together, in bytes.
const MAX_COMMIT_BYTES: usize = 1536 * 1024;
/// A page of a scan ends after the entry that reaches this many bytes, whatever its limit.
const MAX_PAGE_BYTES: usize = 4 * 1024 * 1024;

const STORE_FILE: &str = "store.redb";
/// A new store gets its final name once it is whole: redb does not reopen a file whose creation was cut
/// short, and we do not want to guess which files are safe to discard.
const NEW_STORE_FILE: &str = "store.redb.new";

/// Explicit limits of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Commits that may wait for the writer; a caller beyond that waits for a place.
    pub queue_commits: usize,
    /// Bytes that waiting commits may hold, at least the 1.5 MiB of one.
    pub queue_bytes: usize,
    /// Commits in one synced transaction.
    pub group_commits: usize,
    /// Bytes of keys and values in one synced transaction; the last commit may exceed it.
    pub group_bytes: usize,
    /// Commits kept for watchers.
    pub history_commits: usize,
    /// Bytes of keys and values kept for watchers.
    pub history_bytes: usize,
    /// redb's page cache. Small: the core reads all at its start and hardly anything afterwards, and what a page is read
    /// again for is in the operating system's own cache.
    pub cache_bytes: usize,
    /// Commits are refused with [`EngineError::DiskFull`] while less is free: room for one group many times
    /// over, so that a disk fills up here and not in the middle of a write. More than the log asks for: a commit whose
    /// event finds no room stands without it.
    pub reserve_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            queue_commits: 1024,
            queue_bytes: 16 * MIB,
            group_commits: 256,
            group_bytes: 4 * MIB,
            history_commits: 1024,
            history_bytes: 2 * MIB,
            cache_bytes: 16 * MIB,
            reserve_bytes: 96 * MIB as u64,
        }
    }
}

/// [`Engine`] on one redb file. Dropping it finishes what was queued, closes the file and gives up the lock.
#[derive(Debug)]
pub struct RedbEngine {
    /// `None` once closed: the writer ends when the last sender is gone.
    queue: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Bytes that may still be queued.
    room: Arc<Semaphore>,
    state: Arc<State>,
    directory: Option<Arc<dyn Directory>>,
    reserve_bytes: u64,
    // The database closes before the lock is released.
    database: Arc<Database>,
    _lock: Option<ProcessLock>,
}

impl RedbEngine {
    /// Opens the store in `directory`, or makes one (directories of mode 0700, files of mode 0600).
    ///
    /// # Errors
    /// [`EngineError::InUse`] while another process, or another engine of this one, has it open;
    /// [`EngineError::DiskFull`]; [`EngineError::Unavailable`] where the file is damaged, of a later format,
    /// or cannot be read or written.
    pub fn open(directory: impl AsRef<Path>, options: EngineOptions) -> Result<Self, EngineError> {
        let path = directory.as_ref();
        let directory = FileDirectory::open(path).map_err(cannot_open)?;
        let lock = ProcessLock::acquire(path).map_err(|error| match error {
            LockError::Held { pid } => EngineError::InUse { pid, path: path.display().to_string() },
            LockError::Io(error) => cannot_open(error),
        })?;
        Self::open_locked(Arc::new(directory), &options, Some(lock))
    }

    /// Opens the store in `directory`, or makes one, without a lock: for directories that no second process
    /// can reach, such as a simulated disk.
    ///
    /// # Errors
    /// As [`RedbEngine::open`], without `InUse`.
    pub fn open_in(directory: Arc<dyn Directory>, options: EngineOptions) -> Result<Self, EngineError> {
        Self::open_locked(directory, &options, None)
    }

    /// Opens the store in `backend`, or makes one if it is empty. There is no lock and no disk reserve, and a
    /// crash while a new store is made leaves one that cannot be opened.
    ///
    /// # Errors
    /// As [`RedbEngine::open`], without `InUse`.
    pub fn open_with_backend(
        backend: impl redb::StorageBackend,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let (database, guard) = open_database(Box::new(backend), &options)?;
        Self::start(database, guard, &options, None, None)
    }

    fn open_locked(
        directory: Arc<dyn Directory>,
        options: &EngineOptions,
        lock: Option<ProcessLock>,
    ) -> Result<Self, EngineError> {
        let names = directory.list().map_err(cannot_open)?;
        if !names.iter().any(|name| name == STORE_FILE) {
            create_store(&*directory, &names, options)?;
        }
        let file = directory.open(STORE_FILE).map_err(cannot_open)?;
        let (database, guard) = open_database(Box::new(DirectoryBackend(file)), options)?;
        Self::start(database, guard, options, Some(directory), lock)
    }

    fn start(
        database: Database,
        guard: Arc<Guard>,
        options: &EngineOptions,
        directory: Option<Arc<dyn Directory>>,
        lock: Option<ProcessLock>,
    ) -> Result<Self, EngineError> {
        let (revision, operations) = guarded(|| table::load(&database)).map_err(cannot_read)?;
        let database = Arc::new(database);
        let state = Arc::new(State {
            failure: OnceLock::new(),
            history: Mutex::new(History::new(revision, options.history_commits, options.history_bytes)),
            current: watch::Sender::new(revision),
        });
        let (queue, jobs) = mpsc::channel(options.queue_commits.max(1));
        let writer = Writer {
            database: Arc::clone(&database),
            state: Arc::clone(&state),
            guard,
            operations,
            directory: directory.clone(),
            group_commits: options.group_commits,
            group_bytes: options.group_bytes,
            reserve_bytes: options.reserve_bytes,
        };
        let writer = std::thread::Builder::new()
            .name("engine-writer".into())
            .spawn(move || writer.run(jobs))
            .map_err(cannot_open)?;
        Ok(Self {
            queue: Some(queue),
            writer: Some(writer),
            room: Arc::new(Semaphore::new(options.queue_bytes.max(MAX_COMMIT_BYTES))),
            state,
            directory,
            reserve_bytes: options.reserve_bytes,
            database,
            _lock: lock,
        })
    }

    async fn enqueue(&self, job: Job) -> Result<(), EngineError> {
        let Some(queue) = &self.queue else { return Err(self.state.unavailable()) };
        queue.send(job).await.map_err(|_| self.state.unavailable())
    }
}

impl Drop for RedbEngine {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // The writer catches redb's panics; there is nobody to hand an error to.
            let _ = writer.join();
        }
        // Scans and watches may outlive the engine; they learn that it is gone.
        self.state.fail("closed");
    }
}

#[async_trait]
impl Engine for RedbEngine {
    async fn get(&self, key: &[u8]) -> Result<Option<Entry>, EngineError> {
        self.state.check()?;
        self.state.read(|| table::read_entry(&self.database, key))
    }

    async fn scan(&self, prefix: &[u8]) -> Result<Box<dyn Scan>, EngineError> {
        self.state.check()?;
        let (range, revision) = self.state.read(|| {
            let transaction = self.database.begin_read()?;
            let revision = table::revision(&transaction)?;
            let data = transaction.open_table(table::DATA)?;
            Ok((data.range::<&[u8]>((Bound::Included(prefix), Bound::Unbounded))?, revision))
        })?;
        let state = Arc::clone(&self.state);
        Ok(Box::new(RedbScan { range, prefix: prefix.to_vec(), revision, finished: false, state }))
    }

    /// A caller that gives up waiting leaves its commit queued; [`Engine::settle`] tells what became of it.
    /// A commit without mutations only compares: it returns the current revision, writes nothing and is not
    /// remembered.
    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, EngineError> {
        self.state.check()?;
        let bytes = check_limits(&commit)?;
        let share = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(share).await.map_err(|_| self.state.unavailable())?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Commit { commit, bytes, reply, room }).await?;
        // The writer answers whatever it takes; if it died instead, the commit may have reached the disk.
        answer.await.unwrap_or(Err(EngineError::OutcomeUnknown))
    }

    /// Waits its turn behind the commits queued before it, so that `None` is final for them.
    async fn settle(&self, operation: OperationId) -> Result<Option<Revision>, EngineError> {
        self.state.check()?;
        let (reply, answer) = oneshot::channel();
        self.enqueue(Job::Settle { operation, reply }).await?;
        answer.await.unwrap_or_else(|_| Err(self.state.unavailable()))
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, EngineError> {
        self.state.check()?;
        let watch = HistoryWatch::new(Arc::clone(&self.state), from);
        watch.check()?;
        Ok(Box::new(watch))
    }

    async fn health(&self) -> Result<Revision, EngineError> {
        self.state.check()?;
        check_reserve(self.directory.as_deref(), self.reserve_bytes)?;
        Ok(Revision(*self.state.current.borrow()))
    }
}

/// What readers, watchers and the writer share. It holds no file, so that a watcher left behind does not keep
/// the store open.
#[derive(Debug)]
struct State {
    /// Why the engine answers nothing any more.
    failure: OnceLock<String>,
    history: Mutex<History>,
    /// The last durable revision; also wakes watchers when the engine fails.
    current: watch::Sender<u64>,
}

impl State {
    fn check(&self) -> Result<(), EngineError> {
        match self.failure.get() {
            None => Ok(()),
            Some(_) => Err(self.unavailable()),
        }
    }

    /// Ends the engine; the first reason stands. Returns the error to answer with.
    fn fail(&self, reason: &str) -> EngineError {
        self.failure.get_or_init(|| reason.to_owned());
        self.current.send_modify(|_| {});
        self.unavailable()
    }

    fn unavailable(&self) -> EngineError {
        EngineError::Unavailable(self.failure.get().cloned().unwrap_or_else(|| "closed".to_owned()))
    }

    /// A read that fails leaves redb unusable, so it ends the engine as a failed write does.
    fn read<T>(&self, call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, EngineError> {
        guarded(call).map_err(|error| self.fail(&format!("reading failed: {error}")))
    }
}

struct RedbScan {
    /// Holds the redb snapshot, and with it the revision, for the scan's lifetime.
    range: Range<'static, &'static [u8], &'static [u8]>,
    prefix: Vec<u8>,
    revision: Revision,
    finished: bool,
    state: Arc<State>,
}

impl RedbScan {
    fn page(&mut self, limit: usize) -> Result<Vec<Entry>, redb::Error> {
        let mut page = Vec::new();
        let mut bytes = 0;
        // An empty page means the end, so even a limit of zero gives an entry.
        while !self.finished && page.len() < limit.max(1) && bytes < MAX_PAGE_BYTES {
            match self.range.next().transpose()? {
                Some((key, stored)) if key.value().starts_with(&self.prefix) => {
                    let entry = table::decode(key.value(), stored.value())?;
                    bytes += entry.key.len() + entry.value.len();
                    page.push(entry);
                }
                Some(_) | None => self.finished = true,
            }
        }
        Ok(page)
    }
}

#[async_trait]
impl Scan for RedbScan {
    fn revision(&self) -> Revision {
        self.revision
    }

    async fn next_page(&mut self, limit: usize) -> Result<Vec<Entry>, EngineError> {
        self.state.check()?;
        let state = Arc::clone(&self.state);
        state.read(|| self.page(limit))
    }
}

/// Calls redb; its panic over a damaged page becomes an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("redb panicked".to_owned())))
}

fn open_database(
    backend: Box<dyn redb::StorageBackend>,
    options: &EngineOptions,
) -> Result<(Database, Arc<Guard>), EngineError> {
    let guard = Arc::new(Guard::new(backend));
    let opened = guarded(|| {
        let database = Database::builder()
            .set_cache_size(options.cache_bytes)
            .set_check_integrity_on_open(true)
            .create_with_backend(Guarded(Arc::clone(&guard)))?;
        table::prepare(&database)?;
        Ok(database)
    });
    match opened {
        Ok(database) => Ok((database, guard)),
        Err(_) if guard.disk_was_full() => Err(EngineError::DiskFull),
        Err(error) => Err(cannot_read(error)),
    }
}

fn create_store(
    directory: &dyn Directory,
    names: &[String],
    options: &EngineOptions,
) -> Result<(), EngineError> {
    check_reserve(Some(directory), options.reserve_bytes)?;
    if names.iter().any(|name| name == NEW_STORE_FILE) {
        directory.remove(NEW_STORE_FILE).map_err(cannot_open)?;
    }
    let file = directory.create(NEW_STORE_FILE).map_err(cannot_open)?;
    let (database, guard) = open_database(Box::new(DirectoryBackend(file)), options)?;
    guarded(|| Ok(database.close()?)).map_err(|error| match guard.disk_was_full() {
        true => EngineError::DiskFull,
        false => cannot_read(error),
    })?;
    directory.rename(NEW_STORE_FILE, STORE_FILE).map_err(cannot_open)?;
    directory.sync().map_err(cannot_open)
}

fn cannot_open(error: io::Error) -> EngineError {
    match is_disk_full(&error) {
        true => EngineError::DiskFull,
        false => EngineError::Unavailable(format!("cannot open the store: {error}")),
    }
}

fn cannot_read(error: redb::Error) -> EngineError {
    EngineError::Unavailable(format!("cannot open the store: {error}"))
}

fn check_reserve(directory: Option<&dyn Directory>, reserve: u64) -> Result<(), EngineError> {
    match directory.map(Directory::free_bytes) {
        Some(Ok(free)) if free < reserve => Err(EngineError::DiskFull),
        // A disk that cannot say how full it is will say so at the write.
        Some(_) | None => Ok(()),
    }
}

/// The commit's size in bytes, if it is within every limit.
fn check_limits(commit: &Commit) -> Result<usize, EngineError> {
    let within = |bytes: usize, limit: usize| match bytes <= limit {
        true => Ok(bytes),
        false => Err(EngineError::TooLarge { bytes, limit }),
    };
    within(commit.mutations.len(), MAX_MUTATIONS)?;
    within(commit.expectations.len(), MAX_MUTATIONS)?;
    let mut bytes = 0;
    for expectation in &commit.expectations {
        bytes += within(expectation.key.len(), MAX_KEY_BYTES)?;
    }
    let mut mutated = BTreeSet::new();
    for mutation in &commit.mutations {
        let (key, value): (&[u8], &[u8]) = match mutation {
            Mutation::Put { key, value } => (key, value),
            Mutation::Delete { key } => (key, &[]),
        };
        bytes += within(key.len(), MAX_KEY_BYTES)? + within(value.len(), MAX_VALUE_BYTES)?;
        if !mutated.insert(key) {
            return Err(EngineError::Malformed("a key is mutated twice"));
        }
    }
    within(bytes, MAX_COMMIT_BYTES)
}
