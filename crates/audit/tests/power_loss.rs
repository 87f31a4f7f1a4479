//! The log on its real host, log files, over a simulated disk that loses power at each write in turn.

mod common;

use audit::CheckpointMark;
use audit::verify::Witness;
use common::{Pool, leaf, numbers};
use host_embedded::{FileLog, LogDurability, LogOptions};
use std::sync::Arc;
use testkit::{Fault, Loss, SimDisk};

fn open(disk: &SimDisk) -> Option<Arc<FileLog>> {
    let options = LogOptions {
        durability: LogDurability::Synced,
        ahead_bytes: 4096,
        step_bytes: 2048,
        reserve_bytes: 0,
    };
    FileLog::open_in(Arc::new(disk.clone()), options).ok().map(Arc::new)
}

/// Starts the log and appends, one event at a time and then some together; what was acknowledged, and the mark.
async fn life(
    pool: &Pool,
    disk: &SimDisk,
    first: u16,
    mark: CheckpointMark,
) -> Option<(Vec<u16>, CheckpointMark)> {
    let opened = pool.open_log(open(disk)?, Some(mark), |_| {}).await.ok()?;
    let mut acknowledged = Vec::new();
    for number in first..first + 3 {
        if opened.log.append(leaf(number)).await.is_ok() {
            acknowledged.push(number);
        }
    }
    let together: Vec<_> =
        (first + 3..first + 8).map(|number| (number, opened.log.enqueue(leaf(number)))).collect();
    for (number, pending) in together {
        if let Ok(pending) = pending
            && pending.await.is_ok()
        {
            acknowledged.push(number);
        }
    }
    let mark = opened.log.latest();
    opened.log.close().await;
    Some((acknowledged, mark))
}

/// What power loss at any write leaves opens, verifies, and has all that was acknowledged, in order, once.
#[tokio::test]
async fn acknowledged_events_survive_power_loss_at_each_write() {
    let pool = Pool::with_segments_of(2_500);
    let disk = SimDisk::new();
    let (_, first_mark) = life(&pool, &disk, 0, CheckpointMark::default()).await.unwrap();
    let base = disk.after_power_loss(Loss::Nothing);
    life(&pool, &disk, 100, first_mark).await.unwrap();
    let writes = disk.writes();

    let mut struck = 0;
    for crash_at in 0..writes {
        let disk = base.after_power_loss(Loss::Nothing);
        disk.fail_at(crash_at, Fault::PowerLoss);
        let (acknowledged, mark) = life(&pool, &disk, 100, first_mark).await.unwrap_or_default();
        struck += u64::from(disk.power_lost());
        let mark = if mark.size < first_mark.size { first_mark } else { mark };
        for loss in Loss::variants(crash_at, 3) {
            let disk = disk.after_power_loss(loss);
            let log = open(&disk).unwrap();
            let report = pool.report(log.as_ref(), &[Witness::Mark(mark)]).await;
            assert_eq!(report.failures, [], "crash at write {crash_at}, {loss:?}");
            let opened = pool.open_log(log, Some(mark), |_| {}).await;
            let opened =
                opened.unwrap_or_else(|error| panic!("crash at write {crash_at}, {loss:?}: {error}"));
            let found = numbers(&opened.log).await;
            let (before, after) = found.split_at(8);
            assert_eq!(before, (0..8).collect::<Vec<_>>());
            assert!(after.starts_with(&acknowledged), "crash at write {crash_at}, {loss:?}: {found:?}");
            assert!(after.iter().copied().eq(100..100 + after.len() as u16), "{found:?}");
            assert!(opened.log.append(leaf(200)).await.is_ok());
        }
    }
    assert!(struck > 10, "power was lost {struck} times");
}

/// A disk error that is not power loss closes the log; opened again, it has what was acknowledged.
#[tokio::test]
async fn acknowledged_events_survive_an_error_at_each_write() {
    let pool = Pool::with_segments_of(2_500);
    let disk = SimDisk::new();
    life(&pool, &disk, 0, CheckpointMark::default()).await.unwrap();
    for fault in [Fault::Eio, Fault::Enospc] {
        for fail_at in 0..disk.writes() {
            let disk = SimDisk::new();
            disk.fail_at(fail_at, fault);
            let (acknowledged, mark) =
                life(&pool, &disk, 0, CheckpointMark::default()).await.unwrap_or_default();
            for loss in [Loss::Nothing, Loss::All, Loss::Seed(fail_at)] {
                let disk = disk.after_power_loss(loss);
                let opened = pool.open_log(open(&disk).unwrap(), Some(mark), |_| {}).await;
                let opened =
                    opened.unwrap_or_else(|error| panic!("{fault:?} at write {fail_at}, {loss:?}: {error}"));
                let found = numbers(&opened.log).await;
                let mut rest = found.iter();
                assert!(
                    acknowledged.iter().all(|event| rest.any(|other| other == event)),
                    "{fault:?} at write {fail_at}, {loss:?}: {acknowledged:?}, {found:?}"
                );
                assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
            }
        }
    }
}
