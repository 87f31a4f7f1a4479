//! A transactional key-value store with etcd's semantics, so that the embedded engine and etcd mean the same.

use async_trait::async_trait;

/// The position of a commit in the engine's history. Starts at 1 and grows by one for each commit that
/// changed something, over all keys.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Revision(pub u64);

/// Names one commit attempt: 128 random bits, so that a commit whose answer was lost can be settled.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OperationId(pub [u8; 16]);

/// One stored key with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    /// The commit that last wrote this key.
    pub revision: Revision,
}

/// What must still hold when a commit is applied: `key` was last written at `revision`, or does not exist.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expectation {
    pub key: Vec<u8>,
    pub revision: Option<Revision>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mutation {
    Put { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
}

/// Compare, then write, all or nothing. No key may be mutated twice in one commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit {
    pub operation: OperationId,
    pub expectations: Vec<Expectation>,
    pub mutations: Vec<Mutation>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CommitOutcome {
    /// Written and durable.
    Committed(Revision),
    /// An expectation did not hold; nothing was written. `key` is the first that failed.
    Conflict { key: Vec<u8> },
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    Put(Entry),
    Deleted { key: Vec<u8> },
}

/// All changes of one commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WatchBatch {
    pub revision: Revision,
    pub operation: OperationId,
    pub changes: Vec<Change>,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The commit may or may not have been applied: ask [`Engine::settle`], never repeat it blindly.
    #[error("the answer to a commit was lost")]
    OutcomeUnknown,
    /// The watcher fell behind what the engine keeps; scan again.
    #[error("history before revision {0:?} is gone")]
    Compacted(Revision),
    #[error("another process (pid {pid}) has the store at {path} open")]
    InUse { pid: u32, path: String },
    #[error("a value of {bytes} bytes is over the limit of {limit}")]
    TooLarge { bytes: usize, limit: usize },
    /// A commit that no engine accepts, whatever is stored.
    #[error("malformed commit: {0}")]
    Malformed(&'static str),
    #[error("the disk is full")]
    DiskFull,
    /// The engine answers nothing any more: closed, or failed at a write.
    #[error("the engine is unavailable: {0}")]
    Unavailable(String),
}

/// Entries in key order, all at one revision.
#[async_trait]
pub trait Scan: Send {
    /// The revision that every page shows.
    fn revision(&self) -> Revision;
    /// At most `limit` further entries; an empty page is the end.
    async fn next_page(&mut self, limit: usize) -> Result<Vec<Entry>, EngineError>;
}

/// Commits in order, each exactly once.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next commit. [`EngineError::Compacted`] means: scan again and watch from there.
    async fn next(&mut self) -> Result<WatchBatch, EngineError>;
}

#[async_trait]
pub trait Engine: Send + Sync {
    async fn get(&self, key: &[u8]) -> Result<Option<Entry>, EngineError>;
    /// All entries whose key starts with `prefix`.
    async fn scan(&self, prefix: &[u8]) -> Result<Box<dyn Scan>, EngineError>;
    /// Durable on return. Values are at most 256 KiB; a commit at most 128 mutations and 1.5 MiB.
    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, EngineError>;
    /// Whether the commit named `operation` was applied, and at which revision. Engines remember at least
    /// the last 10,000 operations.
    async fn settle(&self, operation: OperationId) -> Result<Option<Revision>, EngineError>;
    /// Every commit after `from`.
    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, EngineError>;
    /// Ok while commits can succeed.
    async fn health(&self) -> Result<Revision, EngineError>;
}
