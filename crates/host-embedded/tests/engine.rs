//! The engine suite on a real file and on the simulated disk, and what this engine promises beyond it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use host::{CommitOutcome, Engine, EngineError, Expectation, Revision};
use host_embedded::{EngineOptions, RedbEngine};
use testkit::{Random, SimDisk, commit, engine_suite, operation, put};

fn open_on(disk: &SimDisk, options: EngineOptions) -> RedbEngine {
    RedbEngine::open_in(Arc::new(disk.clone()), options).unwrap()
}

async fn write(engine: &impl Engine, number: u64) -> Revision {
    let outcome =
        engine.commit(commit(number, Vec::new(), vec![put("a", &number.to_string())])).await.unwrap();
    let CommitOutcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
    revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_file_passes_the_engine_suite() {
    let directory = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    engine_suite(|| {
        number.set(number.get() + 1);
        RedbEngine::open(directory.path().join(number.get().to_string()), EngineOptions::default()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn a_simulated_disk_passes_the_engine_suite() {
    engine_suite(|| open_on(&SimDisk::new(), EngineOptions::default())).await;
}

#[tokio::test]
async fn any_backend_of_redb_passes_the_engine_suite() {
    engine_suite(|| {
        let memory = redb::backends::InMemoryBackend::new();
        RedbEngine::open_with_backend(memory, EngineOptions::default()).unwrap()
    })
    .await;
}

#[tokio::test]
async fn revisions_count_from_one_and_survive_reopening() {
    let disk = SimDisk::new();
    let engine = open_on(&disk, EngineOptions::default());
    assert_eq!(engine.health().await.unwrap(), Revision(0));
    for number in 1..=5 {
        assert_eq!(write(&engine, number).await, Revision(number));
    }
    drop(engine);
    let engine = open_on(&disk, EngineOptions::default());
    assert_eq!(engine.health().await.unwrap(), Revision(5));
    assert_eq!(engine.settle(operation(3)).await.unwrap(), Some(Revision(3)));
    assert_eq!(write(&engine, 3).await, Revision(3), "settled before it was opened again");
    assert_eq!(write(&engine, 6).await, Revision(6));
}

#[tokio::test]
async fn what_waits_for_a_sync_shares_the_next_one() {
    let disk = SimDisk::new();
    let engine = Arc::new(open_on(&disk, EngineOptions::default()));
    write(&*engine, 1).await;
    let before = disk.syncs();
    write(&*engine, 2).await;
    let one_transaction = disk.syncs() - before;

    let hold = disk.hold_syncs();
    let send = |number, expectations| {
        let engine = Arc::clone(&engine);
        let sent = commit(number, expectations, vec![put(&format!("key/{number}"), "x")]);
        tokio::spawn(async move { engine.commit(sent).await })
    };
    let first = send(3, Vec::new());
    // The writer waits in the sync of the group that begins with the first; all others are queued by the time
    // it is let go, so they fit into that group and one more.
    tokio::task::yield_now().await;
    let mut others = Vec::new();
    for number in 4..=43 {
        // Every fourth fails its expectation, and takes nobody with it.
        let stale = Expectation { key: b"a".to_vec(), revision: Some(Revision(1)) };
        others.push(send(number, if number % 4 == 0 { vec![stale] } else { Vec::new() }));
    }
    tokio::task::yield_now().await;
    let before = disk.syncs();
    drop(hold);
    first.await.unwrap().unwrap();
    let mut revisions = Vec::new();
    for (number, other) in (4..).zip(others) {
        match other.await.unwrap().unwrap() {
            CommitOutcome::Committed(revision) => revisions.push(revision),
            CommitOutcome::Conflict { key } => assert_eq!((number % 4, key), (0, b"a".to_vec())),
        }
    }
    let consecutive: Vec<Revision> = (4..34).map(Revision).collect();
    assert_eq!(revisions, consecutive, "each commit has a revision of its own");
    let syncs = disk.syncs() - before;
    assert!(syncs <= 2 * one_transaction, "{syncs} syncs, where {one_transaction} serve one transaction");
}

#[tokio::test]
async fn a_queue_out_of_room_makes_callers_wait_and_loses_none() {
    let disk = SimDisk::new();
    let options = EngineOptions { queue_commits: 2, queue_bytes: 0, group_commits: 3, ..Default::default() };
    let engine = open_on(&disk, options);
    let value = "v".repeat(200_000);
    let commits = (0..40).map(|number| engine.commit(commit(number, Vec::new(), vec![put("a", &value)])));
    for outcome in testkit::join_all(commits).await {
        assert!(matches!(outcome, Ok(CommitOutcome::Committed(_))), "{outcome:?}");
    }
    assert_eq!(engine.health().await.unwrap(), Revision(40));
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told_to_scan_again() {
    let disk = SimDisk::new();
    let options = EngineOptions { history_commits: 10, ..Default::default() };
    let engine = open_on(&disk, options.clone());
    let mut slow = engine.watch(Revision(0)).await.unwrap();
    for number in 1..=15 {
        write(&engine, number).await;
    }
    assert!(matches!(slow.next().await, Err(EngineError::Compacted(_))));
    assert!(matches!(engine.watch(Revision(4)).await, Err(EngineError::Compacted(_))));
    let mut oldest = engine.watch(Revision(5)).await.unwrap();
    assert_eq!(oldest.next().await.unwrap().revision, Revision(6));

    drop(engine);
    assert!(matches!(oldest.next().await, Err(EngineError::Unavailable(_))), "the engine is closed");
    let engine = open_on(&disk, options);
    assert!(matches!(engine.watch(Revision(14)).await, Err(EngineError::Compacted(_))));
    let mut watch = engine.watch(Revision(15)).await.unwrap();
    write(&engine, 16).await;
    assert_eq!(watch.next().await.unwrap().revision, Revision(16));
}

#[tokio::test]
async fn history_is_bounded_in_bytes_too() {
    let options = EngineOptions { history_bytes: 300_000, ..Default::default() };
    let engine = open_on(&SimDisk::new(), options);
    let value = "v".repeat(100_000);
    for number in 1..=5 {
        engine.commit(commit(number, Vec::new(), vec![put("a", &value)])).await.unwrap();
    }
    assert!(matches!(engine.watch(Revision(2)).await, Err(EngineError::Compacted(_))));
    let mut watch = engine.watch(Revision(3)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(4));
}

#[tokio::test]
async fn old_operations_are_forgotten_and_the_file_stays_small() {
    const REMEMBERED: u64 = 16_384;
    let disk = SimDisk::new();
    let engine = open_on(&disk, EngineOptions::default());
    let mut number = 1;
    while number <= 2 * REMEMBERED {
        let commits = (number..number + 1024)
            .map(|number| engine.commit(commit(number, Vec::new(), vec![put("a", "x")])));
        testkit::join_all(commits).await.into_iter().for_each(|outcome| drop(outcome.unwrap()));
        number += 1024;
    }
    let check = async |engine: &RedbEngine| {
        let last = engine.health().await.unwrap();
        assert_eq!(last, Revision(2 * REMEMBERED));
        assert_eq!(engine.settle(operation(REMEMBERED)).await.unwrap(), None);
        assert_eq!(engine.settle(operation(REMEMBERED + 1)).await.unwrap(), Some(Revision(REMEMBERED + 1)));
    };
    check(&engine).await;
    drop(engine);
    check(&open_on(&disk, EngineOptions::default())).await;
}

#[tokio::test]
async fn files_and_directories_are_for_their_owner_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool/store");
    let engine = RedbEngine::open(&path, EngineOptions::default()).unwrap();
    write(&engine, 1).await;
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory.path().join("pool")), 0o700);
    assert_eq!(mode(&path), 0o700);
    let mut names = Vec::new();
    for entry in path.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["lock", "store.redb"]);
}

/// No flipped bit makes the engine panic or show anything but what was committed, or nothing at all.
#[tokio::test]
async fn a_flipped_bit_is_refused_or_harmless() {
    let disk = SimDisk::new();
    let engine = open_on(&disk, EngineOptions::default());
    for number in 1..=20 {
        let value = "v".repeat(500);
        engine.commit(commit(number, Vec::new(), vec![put(&number.to_string(), &value)])).await.unwrap();
    }
    let expected = contents(&engine).await.unwrap();
    drop(engine);
    let stored = disk.contents("store.redb").unwrap();
    let used: Vec<usize> = (0..stored.len()).filter(|offset| stored[*offset] != 0).collect();
    let seed = 7;
    let mut random = Random::new(seed);
    let mut refused = 0;
    for _ in 0..400 {
        let offset = used[random.below(used.len() as u64) as usize];
        let bit = random.below(8) as u8;
        let damaged = disk.after_power_loss(testkit::Loss::Nothing);
        damaged.flip_bit("store.redb", offset, bit);
        match RedbEngine::open_in(Arc::new(damaged), EngineOptions::default()) {
            Ok(engine) => match contents(&engine).await {
                Ok(found) => assert_eq!(found, expected, "bit {bit} at {offset}"),
                Err(_) => refused += 1,
            },
            Err(EngineError::Unavailable(_)) => refused += 1,
            Err(error) => panic!("bit {bit} at {offset}: {error}"),
        }
    }
    // Most of the file is pages that redb has replaced since, where a bit does no harm.
    assert!(refused > 40, "only {refused} of 400 flipped bits were noticed");
}

async fn contents(engine: &RedbEngine) -> Result<Vec<host::Entry>, EngineError> {
    let mut scan = engine.scan(b"").await?;
    scan.next_page(1000).await
}

#[tokio::test]
async fn a_later_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(RedbEngine::open(directory.path(), EngineOptions::default()).unwrap());
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    let database = redb::Database::open(directory.path().join("store.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(meta).unwrap().insert("format", 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = RedbEngine::open(directory.path(), EngineOptions::default()).unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");
}
