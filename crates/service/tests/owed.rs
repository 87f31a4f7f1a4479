//! A change that is committed and its event: whatever the log or the caller does meanwhile, there is one of it, before
//! whatever comes next.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use async_trait::async_trait;
use common::*;
use domain::algorithm::{Curve, KeySpec};
use host::{Log, LogError, SegmentId, SegmentInfo};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::{Error, Pool};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

const EC: KeySpec = KeySpec::Ec(Curve::P256);

/// A log that refuses, fails or waits when it is told to.
struct Unwilling {
    log: FileLog,
    full: AtomicBool,
    broken: AtomicBool,
    /// Each append says that it waits, and goes on by a permit.
    held: AtomicBool,
    waiting: Semaphore,
    may_go_on: Semaphore,
}

impl Unwilling {
    async fn open(bench: &Bench) -> (Arc<Self>, Arc<Pool>) {
        let log = Arc::new(Self {
            log: FileLog::open(bench.path().join("audit"), LogOptions::default()).unwrap(),
            full: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            held: AtomicBool::new(false),
            waiting: Semaphore::new(0),
            may_go_on: Semaphore::new(0),
        });
        let engine = RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap();
        let pool = bench.open_on(Arc::new(engine), log.clone()).await;
        (log, pool)
    }
}

#[async_trait]
impl Log for Unwilling {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        self.log.segments().await
    }

    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
        self.log.read(segment, offset, max).await
    }

    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError> {
        self.log.resume(segment, end).await
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        self.log.roll().await
    }

    async fn append(&self, bytes: Vec<u8>) -> Result<(), LogError> {
        if self.held.load(Ordering::SeqCst) {
            self.waiting.add_permits(1);
            self.may_go_on.acquire().await.unwrap().forget();
        }
        if self.full.load(Ordering::SeqCst) {
            return Err(LogError::DiskFull);
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(LogError::Unavailable("told to fail".into()));
        }
        self.log.append(bytes).await
    }
}

async fn try_create(pool: &Arc<Pool>, name: &str) -> Result<(), Error> {
    let mut ticket = ticket(pool, APP);
    ticket.operation("KeyCreate");
    pool.create_key(ticket, new_key(name, EC)).await.into_parts().0.map(drop)
}

async fn try_get(pool: &Arc<Pool>, name: &str) -> Result<(), Error> {
    let mut ticket = ticket(pool, APP);
    ticket.operation("KeyGet");
    pool.read_key(ticket, current(name)).await.into_parts().0.map(drop)
}

/// Events about keys, oldest first.
async fn about_keys(pool: &Arc<Pool>) -> Vec<String> {
    events(pool).await.into_iter().filter(|event| event.starts_with("Key")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_event_of_a_change_that_a_full_log_refused_comes_before_any_other() {
    let bench = Bench::new();
    let (log, pool) = Unwilling::open(&bench).await;
    log.full.store(true, Ordering::SeqCst);
    let unavailable = |result| matches!(result, Err(Error::AuditUnavailable(_)));
    assert!(unavailable(try_create(&pool, "first").await));
    // It stands. Until its event is in the log nothing is answered, and nothing else is changed.
    assert!(unavailable(try_get(&pool, "first").await));
    assert!(unavailable(try_create(&pool, "second").await));
    log.full.store(false, Ordering::SeqCst);
    try_get(&pool, "first").await.unwrap();
    let missing = try_get(&pool, "second").await.unwrap_err();
    assert!(matches!(missing, Error::KeyNotFound { .. }), "{missing}");
    let expected = ["KeyCreate Success", "KeyGet Success", "KeyGet Other"];
    assert_eq!(about_keys(&pool).await, expected);
    pool.close().await;
    drop(log);
    let pool = bench.open().await;
    assert_eq!(about_keys(&pool).await, expected, "the next start doubles none");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_once_the_log_has_failed() {
    let bench = Bench::new();
    let (log, pool) = Unwilling::open(&bench).await;
    log.broken.store(true, Ordering::SeqCst);
    try_get(&pool, "any").await.unwrap_err();
    assert!(matches!(try_create(&pool, "late").await, Err(Error::AuditUnavailable(_))));
    pool.close().await;
    drop(log);
    let pool = bench.open().await;
    assert!(matches!(try_get(&pool, "late").await, Err(Error::KeyNotFound { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_during_a_change_leaves_one_event() {
    let bench = Bench::new();
    let (log, pool) = Unwilling::open(&bench).await;
    log.held.store(true, Ordering::SeqCst);
    let caller = tokio::spawn({
        let pool = pool.clone();
        async move { try_create(&pool, "k").await }
    });
    // The commit is made and its event under way.
    log.waiting.acquire().await.unwrap().forget();
    caller.abort();
    assert!(caller.await.unwrap_err().is_cancelled());
    log.held.store(false, Ordering::SeqCst);
    log.may_go_on.add_permits(1);
    try_get(&pool, "k").await.unwrap();
    assert_eq!(about_keys(&pool).await, ["KeyCreate Success", "KeyGet Success"]);
}
