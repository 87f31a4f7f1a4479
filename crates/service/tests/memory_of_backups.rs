//! What a full backup and a restore hold in memory does not grow with the pool.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use domain::algorithm::{KeySpec, OctSize};
use domain::guid::Guid;
use domain::key::Tags;
use domain::pool::Genesis;
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use peak_alloc::PeakAlloc;
use service::backup::{
    BackupTarget, BackupTargets, BlobWriter, JobView, RestoreSource, StorageAccess, StorageLocation,
    TargetError,
};
use service::{NewKey, Pool};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Counts what is allocated: no other test is in this binary.
#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const KIB: usize = 1024;
/// Keys of the small pool, of two versions each, with as many tags as a version may have: about 8 KiB for each version, so
/// that a pool held twice shows, and no window or chunk is still growing when the small one ends.
const KEYS: usize = 250;
/// How much larger the large pool is.
const TIMES: usize = 8;
/// By how much more than with the small pool the peak may be with the large one. A name and a version for each of the 4,000
/// versions are 300 KiB, the large pool itself is 32 MiB.
const TOLERANCE: usize = 64 * KIB;
/// Where the store is written: redb's own lists, and the operations that the engine remembers, of which there are at most
/// 16,384.
const TOLERANCE_WRITING: usize = 320 * KIB;
const WORKERS: usize = 32;
const RUNS: usize = 3;

/// One folder of files: a target in memory would be counted.
#[derive(Clone)]
struct Files(PathBuf);

#[async_trait]
impl BackupTargets for Files {
    async fn open(&self, _location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError> {
        Ok(Box::new(self.clone()))
    }
}

fn failed(error: std::io::Error) -> TargetError {
    TargetError::Io(error.to_string())
}

#[async_trait]
impl BackupTarget for Files {
    async fn check(&self, _write: bool) -> Result<(), TargetError> {
        Ok(())
    }

    async fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, TargetError> {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).map_err(failed)?;
        Ok(Box::new(Blob(File::create_new(path).map_err(failed)?)))
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, TargetError> {
        Ok(Some(std::fs::metadata(self.0.join(name)).map_err(failed)?.len()))
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, TargetError> {
        let mut bytes = vec![0; length];
        let file = File::open(self.0.join(name)).map_err(failed)?;
        file.read_exact_at(&mut bytes, offset).map_err(failed)?;
        Ok(bytes.into())
    }
}

struct Blob(File);

#[async_trait]
impl BlobWriter for Blob {
    async fn write(&mut self, bytes: Bytes) -> Result<(), TargetError> {
        self.0.write_all(&bytes).map_err(failed)
    }

    async fn finish(self: Box<Self>) -> Result<(), TargetError> {
        Ok(())
    }
}

fn location() -> StorageLocation {
    StorageLocation { container: "files".into(), access: StorageAccess::ManagedIdentity }
}

/// With small caches: they are bounded by themselves, and would hide what is looked for until they are full.
async fn open(bench: &Bench, files: &Files) -> Arc<Pool> {
    let options = EngineOptions {
        cache_bytes: 256 * KIB,
        history_commits: 1,
        history_bytes: 64 * KIB,
        ..EngineOptions::default()
    };
    let engine = Arc::new(RedbEngine::open(bench.path().join("store"), options).unwrap());
    let log = Arc::new(FileLog::open(bench.path().join("audit"), LogOptions::default()).unwrap());
    bench.open_backing_up_to(engine, log, Arc::new(files.clone())).await
}

async fn fill(pool: &Arc<Pool>, keys: usize) {
    let long = |number: usize| format!("{}{number:02}", "t".repeat(254));
    let tags = Tags::new((0..15).map(|number| (long(number), long(number))).collect::<BTreeMap<_, _>>());
    let tags = tags.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let (pool, tags) = (pool.clone(), tags.clone());
        workers.spawn(async move {
            for number in (worker..keys * 2).step_by(WORKERS) {
                let name = format!("key-{:06}", number / 2);
                let new = NewKey { tags: tags.clone(), ..new_key(&name, KeySpec::Oct(OctSize::Oct256)) };
                ok(pool.create_key(ticket(&pool, APP), new).await);
            }
        });
    }
    workers.join_all().await;
}

async fn ended(pool: &Arc<Pool>, begun: JobView) -> JobView {
    let is_backup = begun.0.kind == service::JobKind::Backup;
    loop {
        let id = begun.0.id;
        let asked = if is_backup {
            pool.backup_job(ticket(pool, ADMIN), id).await
        } else {
            pool.restore_job(ticket(pool, ADMIN), id).await
        };
        let job = ok(asked);
        if let Some(end) = &job.0.end {
            assert_eq!(end.failure, None);
            return job;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// The most that was held during `work` beyond what was held before or after it, whichever is more.
async fn beyond<T>(work: impl Future<Output = T>) -> (usize, T) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let done = work.await;
    let peak = MEMORY.peak_usage();
    (peak - before.max(MEMORY.current_usage()), done)
}

/// The least that is needed of a few runs: what else the pool does meanwhile is counted too, and comes by chance.
async fn least<T>(mut work: impl AsyncFnMut() -> T) -> (usize, T) {
    let mut found = beyond(work()).await;
    for _ in 1..RUNS {
        let again = beyond(work()).await;
        if again.0 < found.0 {
            found = again;
        }
    }
    found
}

/// What a backup needs, then a look at what restoring it would change, a restore into the same pool, and one into a pool
/// without keys.
async fn measure(keys: usize) -> [usize; 4] {
    let directory = tempfile::tempdir().unwrap();
    let files = Files(directory.path().to_owned());
    let bench = Bench::new();
    let pool = open(&bench, &files).await;
    fill(&pool, keys).await;
    let begin = async || ok(pool.start_backup(ticket(&pool, ADMIN), location()).await);
    let (backup, job) = least(async || ended(&pool, begin().await).await).await;
    let folder = job.0.folder.unwrap();
    let source = || RestoreSource { location: location(), folder: folder.clone() };
    let restore = async |pool: &Arc<Pool>| {
        let begun = ok(pool.start_restore(ticket(pool, ADMIN), source()).await);
        ended(pool, begun).await;
    };
    let look = async || ok(pool.preview_restore(ticket(&pool, ADMIN), source()).await);
    let (preview, _) = least(look).await;
    let (restored, ()) = least(async || restore(&pool).await).await;
    pool.close().await;
    let genesis = Genesis { pool: Guid([9; 16]), name: "sibling".parse().unwrap(), ..genesis() };
    let other = Bench { secrets: bench.secrets.clone(), genesis, ..Bench::new() };
    let there = open(&other, &files).await;
    let (rebuilt, ()) = beyond(restore(&there)).await;
    there.close().await;
    [backup, preview, restored, rebuilt]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_and_a_restore_need_does_not_grow_with_the_pool() {
    let small = measure(KEYS).await;
    let large = measure(KEYS * TIMES).await;
    println!("{small:?} bytes with {KEYS} keys, {large:?} with {}", KEYS * TIMES);
    let limits = [
        ("backup", TOLERANCE),
        ("preview", TOLERANCE),
        ("restore", TOLERANCE_WRITING),
        ("rebuilding", TOLERANCE_WRITING),
    ];
    for ((what, tolerance), (small, large)) in limits.into_iter().zip(small.into_iter().zip(large)) {
        assert!(large <= small + tolerance, "{what}: {small} bytes for {KEYS} keys, {large} for more");
    }
}
