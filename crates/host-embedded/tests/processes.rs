//! What only a second process shows: the lock, and a kill in the middle of writing.
//!
//! The second process is this test binary, started again with a role in its environment.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use host::{CommitOutcome, Engine, EngineError, Log, LogError, SegmentId};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use testkit::{commit, operation, put};

const ROLE: &str = "HOLDFAST_TEST_ROLE";
const DIRECTORY: &str = "HOLDFAST_TEST_DIRECTORY";
const RECORD_BYTES: usize = 100;

/// Not a test of its own: what the other process runs.
#[test]
fn other_process() {
    let (Ok(role), Ok(directory)) = (std::env::var(ROLE), std::env::var(DIRECTORY)) else { return };
    let directory = Path::new(&directory);
    match role.as_str() {
        "open" => {
            let engine = RedbEngine::open(directory.join("store"), EngineOptions::default());
            println!("engine: {}", engine.err().map_or("opened".to_owned(), |error| error.to_string()));
            let log = FileLog::open(directory.join("audit"), LogOptions::default());
            println!("log: {}", log.err().map_or("opened".to_owned(), |error| error.to_string()));
        }
        "write" => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
            runtime.block_on(write_for_ever(directory));
        }
        other => panic!("no role {other}"),
    }
}

/// Commits from four tasks and appends from a fifth, printing what is acknowledged.
async fn write_for_ever(directory: &Path) {
    let engine = Arc::new(RedbEngine::open(directory.join("store"), EngineOptions::default()).unwrap());
    let start = engine.health().await.unwrap().0 + 1_000_000;
    for task in 0..4u64 {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            for step in 0.. {
                let number = (start + step) * 4 + task;
                let puts = (0..3).map(|part| put(&format!("{number}/{part}"), &"v".repeat(1000))).collect();
                let outcome = engine.commit(commit(number, Vec::new(), puts)).await.unwrap();
                let CommitOutcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
                println!("committed {number} {}", revision.0);
            }
        });
    }
    let log = FileLog::open(directory.join("audit"), LogOptions::default()).unwrap();
    let segment = log.roll().await.unwrap();
    for count in 1u64.. {
        log.append(vec![1 + (count % 255) as u8; RECORD_BYTES]).await.unwrap();
        println!("appended {} {count}", segment.0);
    }
}

struct Other {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Other {
    fn start(role: &str, directory: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "other_process", "--nocapture"])
            .env(ROLE, role)
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The rest of the next line that begins with one of `words`.
    fn next(&mut self, words: &[&str]) -> Option<String> {
        loop {
            let line = self.lines.next()?.unwrap();
            // The test harness may have printed the test's name on the same line.
            if let Some(at) = words.iter().find_map(|word| line.find(word)) {
                return Some(line[at..].to_owned());
            }
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_second_process_is_refused_and_told_who_holds_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let audit = directory.path().join("audit");
    let engine = RedbEngine::open(&store, EngineOptions::default()).unwrap();
    let log = FileLog::open(&audit, LogOptions::default()).unwrap();
    let pid = std::process::id();

    let mut other = Other::start("open", directory.path());
    let refused = other.next(&["engine: "]).unwrap();
    assert_eq!(
        refused,
        format!("engine: another process (pid {pid}) has the store at {} open", store.display())
    );
    let refused = other.next(&["log: "]).unwrap();
    assert!(refused.contains(&format!("(pid {pid}) has the log at {} open", audit.display())), "{refused}");

    // A second engine in the same process is refused just so.
    let error = RedbEngine::open(&store, EngineOptions::default()).unwrap_err();
    assert!(matches!(error, EngineError::InUse { pid: holder, .. } if holder == pid), "{error}");
    assert!(matches!(FileLog::open(&audit, LogOptions::default()), Err(LogError::Unavailable(_))));

    drop((engine, log));
    let mut other = Other::start("open", directory.path());
    assert_eq!(other.next(&["engine: "]).unwrap(), "engine: opened");
    assert_eq!(other.next(&["log: "]).unwrap(), "log: opened");
}

#[tokio::test]
async fn a_dead_process_blocks_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let mut other = Other::start("write", directory.path());
    other.next(&["committed "]).unwrap();
    let error = RedbEngine::open(&store, EngineOptions::default()).unwrap_err();
    let holder = other.child.id();
    assert!(matches!(error, EngineError::InUse { pid, .. } if pid == holder), "{error}, not pid {holder}");
    other.kill();
    other.child.wait().unwrap();
    assert_eq!(std::fs::read_to_string(store.join("lock")).unwrap(), format!("{holder}\n"), "a stale pid");
    RedbEngine::open(&store, EngineOptions::default()).unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut committed = Vec::new();
    for round in 1..=5u64 {
        let mut other = Other::start("write", directory.path());
        let mut appended = None;
        // A different moment each time, counted in commits and appends, of which a busy machine does one faster than
        // the other; then whatever is still in the pipe was acknowledged too.
        let enough = committed.len() + round as usize * 40;
        while committed.len() < enough || appended.is_none_or(|(_, count)| count < round * 40) {
            note(&other.next(&["committed ", "appended "]).unwrap(), &mut committed, &mut appended);
        }
        other.kill();
        while let Some(line) = other.next(&["committed ", "appended "]) {
            note(&line, &mut committed, &mut appended);
        }
        other.child.wait().unwrap();

        let engine = RedbEngine::open(directory.path().join("store"), EngineOptions::default()).unwrap();
        for (number, revision) in &committed {
            let settled = engine.settle(operation(*number)).await.unwrap();
            assert_eq!(settled.map(|revision| revision.0), Some(*revision), "commit {number}");
            for part in 0..3 {
                let entry = engine.get(format!("{number}/{part}").as_bytes()).await.unwrap().unwrap();
                assert_eq!((entry.revision.0, entry.value.len()), (*revision, 1000));
            }
        }
        // Each commit is there wholly or not at all, acknowledged or not.
        let mut scan = engine.scan(b"").await.unwrap();
        let mut parts = std::collections::BTreeMap::new();
        loop {
            let page = scan.next_page(1000).await.unwrap();
            if page.is_empty() {
                break;
            }
            page.iter().for_each(|entry| *parts.entry(entry.revision).or_insert(0) += 1);
        }
        assert!(parts.values().all(|parts| *parts == 3));
        assert_eq!(parts.len() as u64, engine.health().await.unwrap().0);

        let log = FileLog::open(directory.path().join("audit"), LogOptions::default()).unwrap();
        if let Some((segment, count)) = appended {
            let found = log.read(SegmentId(segment), 0, usize::MAX).await.unwrap();
            for (record, number) in found.chunks(RECORD_BYTES).zip(1..=count) {
                assert!(record.iter().all(|byte| *byte == 1 + (number % 255) as u8), "record {number}");
            }
            assert!(found.len() as u64 >= count * RECORD_BYTES as u64);
        }
    }
    assert!(committed.len() > 500, "only {} commits were acknowledged", committed.len());
}

fn note(line: &str, committed: &mut Vec<(u64, u64)>, appended: &mut Option<(u32, u64)>) {
    let words: Vec<&str> = line.split(' ').collect();
    match (
        words[0],
        words.get(1).map(|word| word.parse::<u64>()),
        words.get(2).map(|word| word.parse::<u64>()),
    ) {
        ("committed", Some(Ok(number)), Some(Ok(revision))) => committed.push((number, revision)),
        ("appended", Some(Ok(segment)), Some(Ok(count))) => {
            *appended = Some((u32::try_from(segment).unwrap(), count));
        }
        // The kill may have cut the last line.
        _ => {}
    }
}
