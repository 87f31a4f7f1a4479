//! The log on the simulated disk and on a real directory.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use host::{Log, LogError, SegmentId, SegmentInfo};
use host_embedded::{Directory, FileLog, LogDurability, LogOptions};
use testkit::{Fault, Loss, Random, SECTOR_BYTES, SimDisk, join_all};

const STEP: u64 = 4096;

fn options() -> LogOptions {
    LogOptions {
        durability: LogDurability::Synced,
        ahead_bytes: 3 * STEP,
        step_bytes: STEP,
        reserve_bytes: 0,
    }
}

fn open(disk: &SimDisk) -> FileLog {
    FileLog::open_in(Arc::new(disk.clone()), options()).unwrap()
}

async fn whole(log: &impl Log, segment: SegmentId) -> Vec<u8> {
    log.read(segment, 0, usize::MAX).await.unwrap()
}

/// What one run was told, to be compared with what a later one finds.
#[derive(Default)]
struct Told {
    /// By segment: bytes that were acknowledged.
    acknowledged: Vec<Vec<u8>>,
    /// What was under way in the last segment when the disk failed.
    under_way: Vec<u8>,
    failure: Option<LogError>,
}

/// Rolls and appends until something fails. Records never contain a zero, so that a missing sector shows.
async fn short_workload(disk: &SimDisk) -> Told {
    let mut told = Told::default();
    let log = match FileLog::open_in(Arc::new(disk.clone()), options()) {
        Ok(log) => log,
        Err(error) => return Told { failure: Some(error), ..told },
    };
    let mut random = Random::new(3);
    for _segment in 0..2 {
        match log.roll().await {
            Ok(id) => assert_eq!(id.0 as usize, told.acknowledged.len()),
            Err(error) => return Told { failure: Some(error), ..told },
        }
        told.acknowledged.push(Vec::new());
        for _append in 0..6 {
            let length = 1 + random.below(5000);
            let record: Vec<u8> = (0..length).map(|_| 1 + random.below(255) as u8).collect();
            match log.append(record.clone()).await {
                Ok(()) => told.acknowledged.last_mut().unwrap().extend(record),
                Err(error) => {
                    assert_ends_for_good(&log, &error).await;
                    return Told { under_way: record, failure: Some(error), ..told };
                }
            }
        }
    }
    told
}

async fn assert_ends_for_good(log: &FileLog, error: &LogError) {
    match error {
        LogError::Unavailable(_) => {
            for _ in 0..2 {
                assert!(matches!(log.append(vec![1]).await, Err(LogError::Unavailable(_))));
                assert!(matches!(log.roll().await, Err(LogError::Unavailable(_))));
            }
        }
        LogError::DiskFull => {}
        LogError::NoSuchSegment(_) => panic!("no answer to an append: {error}"),
    }
}

/// What was acknowledged is there; behind it is nothing but whole sectors of what was under way.
async fn check(disk: &SimDisk, told: &Told, context: &str) {
    let log = FileLog::open_in(Arc::new(disk.clone()), options())
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    let segments = log.segments().await.unwrap();
    assert!(segments.len() >= told.acknowledged.len(), "{context}: {segments:?}");
    assert!(segments.len() <= told.acknowledged.len() + 1, "{context}: {segments:?}");
    for (index, segment) in segments.iter().enumerate() {
        assert_eq!(segment.id.0 as usize, index, "{context}");
        let found = whole(&log, segment.id).await;
        assert_eq!(found.len() as u64, segment.bytes, "{context}");
        let acknowledged = told.acknowledged.get(index).map_or(&[][..], Vec::as_slice);
        assert!(found.starts_with(acknowledged), "{context}: segment {index} lost what was acknowledged");
        let mut expected = acknowledged.to_vec();
        if index + 1 == told.acknowledged.len() {
            expected.extend(&told.under_way);
        }
        expected.resize(found.len().max(expected.len()), 0);
        let mut at = acknowledged.len();
        while at < found.len() {
            let end = (at / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES).min(found.len());
            let zero = found[at..end].iter().all(|byte| *byte == 0);
            let arrived = found[at..end] == expected[at..end];
            assert!(
                zero || arrived,
                "{context}: segment {index} at {at} is neither zero nor what was written"
            );
            at = end;
        }
    }
    // The log goes on from the end that was acknowledged.
    if let Some(last) = segments.last() {
        let end = told.acknowledged.get(last.id.0 as usize).map_or(0, Vec::len);
        log.resume(last.id, end as u64).await.unwrap();
        assert!(whole(&log, last.id).await[end..].iter().all(|byte| *byte == 0), "{context}");
        log.append(b"after".to_vec()).await.unwrap();
        drop(log);
        let after = disk.after_power_loss(Loss::All);
        let found = whole(&open(&after), last.id).await;
        assert_eq!(&found[end..end + 5], b"after", "{context}");
        assert!(found[end + 5..].iter().all(|byte| *byte == 0), "{context}");
    } else {
        assert_eq!(log.roll().await.unwrap(), SegmentId(0), "{context}");
        log.append(b"after".to_vec()).await.unwrap();
    }
}

#[tokio::test]
async fn acknowledged_appends_survive_power_loss_at_each_write() {
    let disk = SimDisk::new();
    let told = short_workload(&disk).await;
    assert!(told.failure.is_none());
    let writes = disk.writes();
    assert!(writes > 40, "{writes}");
    let mut torn = 0;
    for crash_at in 0..writes {
        let disk = SimDisk::new();
        disk.fail_at(crash_at, Fault::PowerLoss);
        let told = short_workload(&disk).await;
        torn += usize::from(!told.under_way.is_empty());
        for loss in Loss::variants(crash_at * 100, 10) {
            check(&disk.after_power_loss(loss), &told, &format!("crash at write {crash_at}, {loss:?}")).await;
        }
    }
    assert!(torn > 15, "only {torn} crashes cut an append short");
}

#[tokio::test]
async fn an_io_error_at_each_write_ends_the_log_and_loses_nothing() {
    let disk = SimDisk::new();
    short_workload(&disk).await;
    for fail_at in 0..disk.writes() {
        let disk = SimDisk::new();
        disk.fail_at(fail_at, Fault::Eio);
        let told = short_workload(&disk).await;
        assert!(!matches!(told.failure, Some(LogError::DiskFull)));
        for loss in Loss::variants(fail_at * 100, 3) {
            check(&disk.after_power_loss(loss), &told, &format!("I/O error at write {fail_at}, {loss:?}"))
                .await;
        }
    }
}

/// "Full" is said only where nothing of the append was written, and the log then goes on.
#[tokio::test]
async fn a_full_disk_at_each_write_loses_nothing() {
    let disk = SimDisk::new();
    short_workload(&disk).await;
    let (mut refused, mut ended) = (0, 0);
    for fail_at in 0..disk.writes() {
        let disk = SimDisk::new();
        disk.fail_at(fail_at, Fault::Enospc);
        let told = short_workload(&disk).await;
        match told.failure {
            Some(LogError::DiskFull) => refused += 1,
            Some(LogError::Unavailable(_)) => ended += 1,
            Some(LogError::NoSuchSegment(_)) | None => {}
        }
        for loss in Loss::variants(fail_at * 100, 3) {
            check(&disk.after_power_loss(loss), &told, &format!("full at write {fail_at}, {loss:?}")).await;
        }
    }
    assert!(ended > 0, "{refused} refused, {ended} ended");
}

#[tokio::test]
async fn a_full_disk_refuses_appends_until_there_is_space() {
    let disk = SimDisk::with_capacity(20 * STEP);
    let options = LogOptions { reserve_bytes: 4 * STEP, ..options() };
    let log = FileLog::open_in(Arc::new(disk.clone()), options).unwrap();
    log.roll().await.unwrap();
    let record = vec![7; 1000];
    let mut appended = 0;
    let refused = loop {
        match log.append(record.clone()).await {
            Ok(()) => appended += 1,
            Err(error) => break error,
        }
        assert!(appended < 100, "the disk never fills");
    };
    assert!(matches!(refused, LogError::DiskFull), "{refused}");
    assert!(disk.free_bytes().unwrap() >= 4 * STEP, "the reserve stays free");
    assert!(appended * 1000 > 14 * STEP as usize, "{appended}: what was filled ahead is used first");
    assert!(matches!(log.append(record.clone()).await, Err(LogError::DiskFull)), "and again");
    assert!(matches!(log.roll().await, Err(LogError::DiskFull)), "no room for a segment either");
    assert_eq!(log.segments().await.unwrap().len(), 1);

    disk.set_capacity(Some(200 * STEP));
    log.append(record.clone()).await.unwrap();
    assert_eq!(log.roll().await.unwrap(), SegmentId(1));
    let found = whole(&log, SegmentId(0)).await;
    let end = (appended + 1) * 1000;
    assert!(found[..end].iter().all(|byte| *byte == 7), "a refused append leaves no trace");
    assert!(found[end..].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn an_append_is_one_write_and_one_sync() {
    let disk = SimDisk::new();
    let log = open(&disk);
    log.roll().await.unwrap();
    let (writes, syncs) = (disk.writes(), disk.syncs());
    log.append(vec![1; 100]).await.unwrap();
    assert_eq!((disk.writes() - writes, disk.syncs() - syncs), (2, 1), "its zeros are there already");

    let disk = SimDisk::new();
    let options = LogOptions { durability: LogDurability::Written, ..options() };
    let log = FileLog::open_in(Arc::new(disk.clone()), options).unwrap();
    log.roll().await.unwrap();
    let syncs = disk.syncs();
    log.append(vec![1; 100]).await.unwrap();
    assert_eq!(disk.syncs() - syncs, 0, "written, not synced");
    assert_eq!(whole(&log, SegmentId(0)).await[..100], [1; 100]);
    assert_eq!(whole(&open(&disk.after_power_loss(Loss::All)), SegmentId(0)).await[..100], [0; 100]);
}

#[tokio::test]
async fn appends_that_wait_share_a_sync_and_keep_their_order() {
    let disk = SimDisk::new();
    let log = open(&disk);
    log.roll().await.unwrap();
    let hold = disk.hold_syncs();
    let syncs = disk.syncs();
    let appends = join_all((1..=50u8).map(|byte| log.append(vec![byte; 10])));
    // Polled first, `appends` queues all of them; only then is the disk let go.
    let ((), answers) = {
        let mut appends = std::pin::pin!(appends);
        let first = std::future::poll_fn(|context| {
            assert!(appends.as_mut().poll(context).is_pending());
            std::task::Poll::Ready(())
        });
        (first.await, {
            drop(hold);
            appends.await
        })
    };
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(disk.syncs() - syncs <= 3, "{} syncs for two groups and a refill", disk.syncs() - syncs);
    let expected: Vec<u8> = (1..=50u8).flat_map(|byte| [byte; 10]).collect();
    assert_eq!(whole(&log, SegmentId(0)).await[..500], expected);
}

#[tokio::test]
async fn only_the_last_segment_is_resumed_and_only_once() {
    let disk = SimDisk::new();
    let log = open(&disk);
    assert!(matches!(log.append(vec![1]).await, Err(LogError::Unavailable(_))), "nothing to append to");
    assert!(matches!(log.resume(SegmentId(0), 0).await, Err(LogError::NoSuchSegment(SegmentId(0)))));
    log.roll().await.unwrap();
    log.append(vec![1; 10]).await.unwrap();
    log.roll().await.unwrap();
    log.append(vec![2; 10]).await.unwrap();
    assert!(
        matches!(log.resume(SegmentId(1), 0).await, Err(LogError::Unavailable(_))),
        "it is being written"
    );
    drop(log);

    let log = open(&disk);
    assert!(matches!(log.append(vec![1]).await, Err(LogError::Unavailable(_))), "not resumed");
    assert!(matches!(log.resume(SegmentId(0), 10).await, Err(LogError::Unavailable(_))));
    assert!(matches!(log.resume(SegmentId(2), 0).await, Err(LogError::NoSuchSegment(SegmentId(2)))));
    assert!(matches!(log.resume(SegmentId(1), u64::MAX).await, Err(LogError::Unavailable(_))));
    log.resume(SegmentId(1), 5).await.unwrap();
    log.append(vec![3; 3]).await.unwrap();
    assert_eq!(whole(&log, SegmentId(1)).await[..12], [2, 2, 2, 2, 2, 3, 3, 3, 0, 0, 0, 0]);
    assert_eq!(whole(&log, SegmentId(0)).await[..12], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0]);
}

#[tokio::test]
async fn reads_stay_within_the_segment() {
    let disk = SimDisk::new();
    let log = open(&disk);
    log.roll().await.unwrap();
    log.append((1..=100).collect()).await.unwrap();
    let bytes = log.segments().await.unwrap()[0].bytes;
    assert_eq!(bytes, 3 * STEP);
    assert_eq!(log.read(SegmentId(0), 10, 5).await.unwrap(), [11, 12, 13, 14, 15]);
    assert_eq!(log.read(SegmentId(0), bytes - 3, 100).await.unwrap(), [0; 3]);
    assert_eq!(log.read(SegmentId(0), bytes, 100).await.unwrap(), []);
    assert_eq!(log.read(SegmentId(0), u64::MAX, 100).await.unwrap(), []);
    assert!(matches!(log.read(SegmentId(1), 0, 1).await, Err(LogError::NoSuchSegment(SegmentId(1)))));
}

#[tokio::test]
async fn a_missing_segment_is_refused() {
    let disk = SimDisk::new();
    for name in ["segment-00000000.log", "segment-00000002.log", "other", "segment-1.log"] {
        disk.file(name).unwrap();
    }
    let error = FileLog::open_in(Arc::new(disk.clone()), options()).unwrap_err();
    assert!(error.to_string().contains("segment-00000001.log is missing"), "{error}");
    disk.file("segment-00000001.log").unwrap();
    let log = open(&disk);
    let ids = [0, 1, 2].map(|id| SegmentInfo { id: SegmentId(id), bytes: 0 });
    assert_eq!(log.segments().await.unwrap(), ids, "other files are left alone");
}

/// The layout of `docs/formats/log-directory.md`, byte for byte.
#[tokio::test]
async fn the_directory_is_as_documented() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool/audit");
    let log = FileLog::open(&path, LogOptions { reserve_bytes: 0, ..Default::default() }).unwrap();
    log.roll().await.unwrap();
    log.append(b"one".to_vec()).await.unwrap();
    log.append(b"two".to_vec()).await.unwrap();
    for id in 1..=10 {
        assert_eq!(log.roll().await.unwrap(), SegmentId(id));
    }
    assert_eq!(std::fs::read_to_string(path.join("lock")).unwrap(), format!("{}\n", std::process::id()));
    let mut names = Vec::new();
    for entry in path.read_dir().unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        names.push(entry.file_name().into_string().unwrap());
    }
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    names.sort();
    let segments = (0..=10).map(|id| format!("segment-{id:08}.log"));
    assert_eq!(names, std::iter::once("lock".to_owned()).chain(segments).collect::<Vec<_>>());
    let mut expected = vec![0; 4 * 1024 * 1024];
    expected[..6].copy_from_slice(b"onetwo");
    assert_eq!(std::fs::read(path.join("segment-00000000.log")).unwrap(), expected);

    // A reader sees it while the owner has it open, and can change nothing.
    let reader = FileLog::open_read_only(&path).unwrap();
    assert_eq!(reader.segments().await.unwrap().len(), 11);
    assert_eq!(reader.read(SegmentId(0), 0, 6).await.unwrap(), b"onetwo");
    assert!(matches!(reader.append(vec![1]).await, Err(LogError::Unavailable(_))));
    assert!(matches!(reader.roll().await, Err(LogError::Unavailable(_))));
    assert!(matches!(reader.resume(SegmentId(10), 0).await, Err(LogError::Unavailable(_))));
    assert!(FileLog::open_read_only(directory.path().join("absent")).is_err());
    assert!(!directory.path().join("absent").exists());
}
