//! The store file of `docs/formats/engine-embedded.md`: files of format 1 stay readable.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::{Commit, CommitOutcome, Engine, Entry, Mutation, OperationId, Revision};
use host_embedded::{EngineOptions, RedbEngine};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use testkit::SimDisk;

const STORE_FILE: &str = "store.redb";

/// The commits that the golden file holds.
fn commits() -> [Commit; 3] {
    let put = |key: &[u8], value: &[u8]| Mutation::Put { key: key.to_vec(), value: value.to_vec() };
    let commit =
        |byte, mutations| Commit { operation: OperationId([byte; 16]), expectations: Vec::new(), mutations };
    [
        commit(0xa1, vec![put(b"alpha", b"first"), put(&[0, 0xff], b"")]),
        commit(0xa2, vec![put(b"beta", &[0xbe; 300])]),
        commit(0xa3, vec![put(b"alpha", b"second"), Mutation::Delete { key: vec![0, 0xff] }]),
    ]
}

async fn make() -> SimDisk {
    let disk = SimDisk::new();
    let engine = RedbEngine::open_in(Arc::new(disk.clone()), EngineOptions::default()).unwrap();
    for (revision, commit) in (1..).map(Revision).zip(commits()) {
        assert_eq!(engine.commit(commit).await.unwrap(), CommitOutcome::Committed(revision));
    }
    drop(engine);
    disk
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/engine-v1.redb")
}

#[tokio::test]
async fn the_golden_file_is_read() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(golden(), directory.path().join(STORE_FILE)).unwrap();
    let engine = RedbEngine::open(directory.path(), EngineOptions::default()).unwrap();
    let mut scan = engine.scan(b"").await.unwrap();
    assert_eq!(scan.revision(), Revision(3));
    let expected = [
        Entry { key: b"alpha".to_vec(), value: b"second".to_vec(), revision: Revision(3) },
        Entry { key: b"beta".to_vec(), value: vec![0xbe; 300], revision: Revision(2) },
    ];
    assert_eq!(scan.next_page(10).await.unwrap(), expected);
    for (byte, revision) in [(0xa1, Some(1)), (0xa2, Some(2)), (0xa3, Some(3)), (0xa4, None)] {
        assert_eq!(engine.settle(OperationId([byte; 16])).await.unwrap(), revision.map(Revision));
    }
}

/// What redb lays around our tables may change with its releases; what we put into them may not.
#[test]
fn the_golden_tables_are_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(STORE_FILE);
    std::fs::copy(golden(), &path).unwrap();
    let database = Database::open(path).unwrap();
    let transaction = database.begin_read().unwrap();

    let meta = transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
    let meta: Vec<(String, u64)> = meta
        .iter()
        .unwrap()
        .map(|row| row.map(|(name, value)| (name.value().to_owned(), value.value())).unwrap())
        .collect();
    assert_eq!(meta, [("format".to_owned(), 1), ("revision".to_owned(), 3)]);

    let operations = transaction.open_table(TableDefinition::<u64, &[u8; 24]>::new("operations")).unwrap();
    let operations: Vec<(u64, [u8; 24])> = operations
        .iter()
        .unwrap()
        .map(|row| row.map(|(slot, value)| (slot.value(), *value.value())).unwrap())
        .collect();
    let row = |revision: u8, operation: u8| {
        let mut row = [operation; 24];
        row[..8].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, revision]);
        (u64::from(revision), row)
    };
    assert_eq!(operations, [row(1, 0xa1), row(2, 0xa2), row(3, 0xa3)]);

    let data = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new("data")).unwrap();
    let data: Vec<(Vec<u8>, Vec<u8>)> = data
        .iter()
        .unwrap()
        .map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).unwrap())
        .collect();
    let beta = [&[0, 0, 0, 0, 0, 0, 0, 2][..], &[0xbe; 300]].concat();
    assert_eq!(data, [(b"alpha".to_vec(), b"\0\0\0\0\0\0\0\x03second".to_vec()), (b"beta".to_vec(), beta)]);
}

/// Holds while redb lays out its pages as it does. If a new redb ends that, the golden file stays as it is and this
/// test goes: the two above are what must hold.
#[tokio::test]
async fn the_golden_file_is_made_again_byte_for_byte() {
    let made = make().await.contents(STORE_FILE).unwrap();
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        std::fs::write(golden(), &made).unwrap();
    }
    // Not `assert_eq`, which would print two files.
    assert!(std::fs::read(golden()).unwrap() == made, "format 1 is written differently now");
}
