//! The log's promises: what was acknowledged is there, in order, once; what was changed is found.

mod common;

use audit::tree::{leaf_hash, verify_consistency, verify_inclusion};
use audit::verify::Witness;
use audit::{AuditError, CheckpointMark, Flaw, OpenError};
use common::{GENESIS_HASH, MemoryLog, POOL, Pool, SECTOR, append, leaf, number, numbers, sealer};
use crypto::certificate::Purpose;
use domain::guid::Guid;
use domain::time::{IntDate, Time};
use host::LogError;
use proptest::prelude::*;
use std::time::Duration;

fn none() -> Vec<String> {
    Vec::new()
}

#[tokio::test]
async fn events_are_kept_in_order_over_restarts_and_segments() {
    let pool = Pool::with_segments_of(4_000);
    let log = MemoryLog::default();
    let mut mark = CheckpointMark::default();
    for start in [0, 10, 20] {
        let opened = pool.open(&log, Some(mark)).await.unwrap();
        assert_eq!(opened.size, u64::from(start));
        append(&opened.log, start..start + 10).await;
        mark = opened.log.latest();
        assert_eq!(numbers(&opened.log).await, (0..start + 10).collect::<Vec<_>>());
        for from in (0..u64::from(start) + 10).rev() {
            let page = opened.log.read(from, 2).await.unwrap();
            assert_eq!((page[0].0, u64::from(number(&page[0].1))), (from, from));
        }
        assert_eq!(opened.log.read(u64::from(start) + 10, 2).await.unwrap(), []);
        assert_eq!(opened.log.read(u64::MAX, 2).await.unwrap(), []);
        opened.log.close().await;
        assert!(matches!(opened.log.append(leaf(99)).await, Err(AuditError::Unavailable(_))));
    }
    assert!(log.memory().segments.len() > 3);
    let report = pool.report(&log, &[]).await;
    assert_eq!(report.failures, []);
    assert_eq!((report.events, report.complete_to, report.root), (30, 30, mark.root));
    let spans: Vec<_> = report.incarnations.iter().map(|held| (held.first_index, held.last_index)).collect();
    assert_eq!(spans, [(0, 9), (10, 19), (20, 29)]);
    let opened = pool.open(&log, None).await.unwrap();
    let event = audit::open_event(&opened.log.read(7, 1).await.unwrap()[0].1, &sealer());
    assert_eq!(event.unwrap().detail, "event 7");
}

#[tokio::test]
async fn what_waits_while_a_group_is_written_shares_the_next_checkpoint() {
    let log = MemoryLog::default();
    let opened = Pool::new().open(&log, None).await.unwrap();
    let pending: Vec<_> = (0..100).map(|number| opened.log.enqueue(leaf(number)).unwrap()).collect();
    for (index, pending) in (0..).zip(pending) {
        let receipt = pending.await.unwrap();
        assert_eq!(
            (receipt.index, receipt.tree_size(), receipt.root()),
            (index, 100, opened.log.latest().root)
        );
    }
    // The segment's header, and one group.
    assert_eq!(log.memory().appends, 2);
}

/// Long enough that waiting for nothing would end no test.
const A_DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn a_group_waits_for_what_is_announced_as_long_as_all_in_it_have_time() {
    let log = MemoryLog::default();
    let opened = Pool::new().open(&log, None).await.unwrap().log;
    // Four requests under way: the first two to be recorded are half of them.
    let announced: Vec<_> = (0..4).map(|_| opened.announce()).collect();
    let append = |number| {
        let opened = opened.clone();
        tokio::spawn(async move { opened.append_after(leaf(number), A_DAY).await.unwrap() })
    };
    let mut announced = announced.into_iter();
    drop(announced.next());
    let first = append(1);
    // However often the writer runs, it holds the group back.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((first.is_finished(), log.memory().appends), (false, 0));
    drop(announced.next());
    let second = append(2);
    let sizes = (first.await.unwrap().tree_size(), second.await.unwrap().tree_size());
    assert_eq!(sizes, (2, 2));

    // Who has no time takes the group along.
    let patient = append(3);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!patient.is_finished());
    assert_eq!(opened.append(leaf(4)).await.unwrap().tree_size(), 4);
    assert_eq!(patient.await.unwrap().tree_size(), 4);
}

#[tokio::test]
async fn an_event_that_is_alone_waits_for_nobody() {
    let opened = Pool::new().open(&MemoryLog::default(), None).await.unwrap().log;
    drop(opened.announce());
    assert_eq!(opened.append_after(leaf(1), A_DAY).await.unwrap().index, 0);
    // Quick requests wait for nobody either, however many are under way.
    let _announced = [opened.announce(), opened.announce()];
    assert_eq!(opened.append_after(leaf(2), Duration::from_millis(3)).await.unwrap().index, 1);
}

#[tokio::test]
async fn what_is_announced_and_never_comes_delays_a_group_by_its_limit_alone() {
    let mut pool = Pool::new();
    pool.longest_wait = Duration::from_millis(2);
    let opened = pool.open(&MemoryLog::default(), None).await.unwrap().log;
    let _announced = [opened.announce(), opened.announce()];
    assert_eq!(opened.append_after(leaf(1), A_DAY).await.unwrap().index, 0);
    let pending = opened.append_after(leaf(2), A_DAY);
    opened.close().await;
    assert!(matches!(pending.await, Err(AuditError::Unavailable(_))));
}

#[tokio::test]
async fn groups_and_the_queue_are_bounded() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    let big = audit::Leaf::from_bytes([[1].as_slice(), &[5; 60_000]].concat()).unwrap();
    let pending: Vec<_> = (0..40).map(|_| opened.log.enqueue(big.clone()).unwrap()).collect();
    for pending in pending {
        pending.await.unwrap();
    }
    assert!(log.memory().appends > 3, "40 leaves of 60,000 bytes are at least three groups of a mebibyte");
    // Nothing runs in between, so nothing leaves the queue.
    let mut waiting = Vec::new();
    let refused = loop {
        match opened.log.enqueue(leaf(1)) {
            Ok(pending) => waiting.push(pending),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, AuditError::Busy) && waiting.len() == 16 * 1024, "{}", waiting.len());
    for pending in waiting {
        pending.await.unwrap();
    }
    assert_eq!(pool.failures(&log).await, none());
    assert_eq!(opened.log.latest().size, 40 + 16 * 1024);
}

#[tokio::test]
async fn a_leaf_is_written_although_nobody_waits_for_it() {
    let log = MemoryLog::default();
    let opened = Pool::new().open(&log, None).await.unwrap();
    for number in 0..2000 {
        drop(opened.log.enqueue(leaf(number)).unwrap());
    }
    opened.log.close().await;
    assert_eq!(numbers(&opened.log).await, (0..2000).collect::<Vec<_>>());
}

/// Power fails in each append in turn, with each set of its sectors written.
#[tokio::test]
async fn a_write_cut_short_loses_nothing_acknowledged() {
    let pool = Pool::with_segments_of(2_500);
    for at in 0..8 {
        for sectors in 0..16u64 {
            let log = MemoryLog::default();
            log.memory().power_loss = Some((at, sectors));
            let opened = pool.open(&log, None).await.unwrap();
            let mut acknowledged = Vec::new();
            for number in 0..6 {
                if opened.log.append(leaf(number)).await.is_ok() {
                    acknowledged.push(number);
                }
            }
            let mark = opened.log.latest();
            assert_eq!(mark.size, acknowledged.len() as u64);
            let log = log.restarted();
            let report = pool.report(&log, &[Witness::Mark(mark)]).await;
            assert_eq!(report.failures, [], "append {at}, sectors {sectors:b}");
            let recovered = pool.open(&log, Some(mark)).await.unwrap();
            assert_eq!(recovered.torn_bytes_dropped, report.torn_bytes);
            append(&recovered.log, 50..52).await;
            let kept = numbers(&recovered.log).await;
            let (before, after) = kept.split_at(kept.len() - 2);
            assert!(before.starts_with(&acknowledged) && before.len() <= acknowledged.len() + 1, "{kept:?}");
            assert_eq!(after, [50, 51]);
            assert_eq!(pool.failures(&log).await, none());
        }
    }
}

#[tokio::test]
async fn each_flipped_bit_is_found_by_verify_and_at_start() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..3).await;
    let (bytes, written) = log.memory().segments[0].clone();
    // All that was written, and the next two sectors.
    for bit in 0..(written + 2 * SECTOR) * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let flipped = MemoryLog::of(vec![(flipped, written)]);
        // One bit of each byte that was never written: the checks there take the same way for all eight.
        if bit / 8 >= written && bit % 8 != bit / 8 % 8 {
            continue;
        }
        let report = pool.report(&flipped, &[]).await;
        let reported = !report.failures.is_empty();
        assert!(reported || bit / 8 >= written && report.torn_bytes > 0, "bit {bit}");
        if bit % 31 == 0 {
            let opened = pool.open(&flipped, None).await;
            assert_eq!(opened.is_err(), reported, "bit {bit}");
            assert!(matches!(opened, Err(OpenError::Damaged { .. }) | Ok(_)), "bit {bit}");
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_in_any_segment_is_found_by_verify() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..6).await;
    let segments = log.memory().segments.clone();
    assert!(segments.len() > 2);
    for (number, (_, written)) in segments.iter().enumerate() {
        for bit in (number * 31..written * 8).step_by(97) {
            let flipped = MemoryLog::of(segments.clone());
            flipped.memory().segments[number].0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(pool.failures(&flipped).await, none(), "segment {number}, bit {bit}");
        }
    }
}

#[tokio::test]
async fn verifying_goes_on_behind_damage() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..12).await;
    let honest = pool.report(&log, &[]).await;
    assert!(log.memory().segments.len() > 3 && honest.failures.is_empty());
    // In the first segment's second and last group.
    let second_group = log.memory().segments[0].1 - SECTOR;
    log.memory().segments[0].0[second_group + 100] ^= 1;
    // And a whole sector of the third segment's first group.
    log.memory().segments[2].0[SECTOR..2 * SECTOR].fill(0);
    let report = pool.report(&log, &[]).await;
    let failures: Vec<_> = report.failures.iter().map(ToString::to_string).collect();
    assert_eq!(report.complete_to, 1, "{failures:?}");
    assert_eq!(report.segments, honest.segments);
    assert_eq!((report.events, report.root), (honest.events, honest.root));
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert_eq!(
        failures[0],
        format!("segment 0, byte {second_group}, group 1: the frame's content does not check")
    );
    assert!(failures[1].starts_with("segment 2, byte 512, group 0: a sector is missing"), "{failures:?}");
    // The certificate was in that group.
    assert!(failures[2].contains("no certificate in this segment"), "{failures:?}");
}

/// A segment is followed by the next only once its last group is durable.
#[tokio::test]
async fn a_write_cut_short_in_a_segment_that_is_not_the_last_is_damage() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..1).await;
    let group = log.memory().segments[0].1;
    let together: Vec<_> = (1..6).map(|number| opened.log.enqueue(leaf(number)).unwrap()).collect();
    for pending in together {
        pending.await.unwrap();
    }
    append(&opened.log, 6..7).await;
    assert_eq!(log.memory().segments.len(), 2);
    log.memory().segments[0].0[group + SECTOR..group + 2 * SECTOR].fill(0);
    let refused = pool.open(&log.restarted(), None).await.err();
    let flaw = Flaw::TornBeforeLaterSegment;
    assert!(
        matches!(&refused, Some(OpenError::Damaged { flaw: found, .. }) if *found == flaw),
        "{refused:?}"
    );
    assert_eq!(pool.failures(&log).await, [format!("segment 0, byte {group}, group 1: {flaw}")]);
}

#[tokio::test]
async fn a_log_that_was_cut_or_forked_does_not_open() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..2).await;
    let prefix = log.restarted();
    let fork = log.restarted();
    let mut marks = Vec::new();
    let mut receipts = Vec::new();
    for number in 2..12 {
        receipts.push(opened.log.append(leaf(number)).await.unwrap());
        marks.push(opened.log.latest());
    }
    let mark = opened.log.latest();

    let refused = pool.open(&prefix, Some(mark)).await.err();
    assert!(matches!(refused, Some(OpenError::DoesNotExtend { found: 2, expected: 12 })), "{refused:?}");

    let forked = pool.open(&fork, None).await.unwrap();
    append(&forked.log, 100..130).await;
    for mark in &marks {
        let refused = pool.open(&fork.restarted(), Some(*mark)).await.err();
        assert!(matches!(refused, Some(OpenError::DoesNotExtend { found: 32, .. })), "{refused:?}");
    }

    // The honest log opens at any earlier mark, in whichever segment that is.
    for mark in &marks {
        assert_eq!(pool.open(&log.restarted(), Some(*mark)).await.unwrap().size, 12);
    }

    // The fork is flawless in itself; a receipt shows what it is.
    let report = pool.report(&fork, &[]).await;
    assert_eq!((report.failures.as_slice(), report.complete_to), (&[][..], 32));
    let receipt = Witness::Receipt(receipts[3].header_value(true).parse().unwrap());
    for kept in [receipt, Witness::Mark(marks[3])] {
        let failures = pool.report(&fork, &[kept]).await.failures;
        assert_eq!(
            failures[0].to_string(),
            "witness 0: the log was changed or forked: another root was witnessed at this size"
        );
    }
}

#[tokio::test]
async fn receipts_witness_the_log_up_to_where_they_reach() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..3).await;
    let receipt = opened.log.append(leaf(3)).await.unwrap();
    let cut = log.restarted();
    append(&opened.log, 4..9).await;
    let later = opened.log.append(leaf(9)).await.unwrap();

    let kept = |full| Witness::Receipt(receipt.header_value(full).parse().unwrap());
    let report = pool.report(&log, &[kept(true), kept(false)]).await;
    assert_eq!(report.failures, []);
    assert_eq!(report.to_string(), "complete up to 10 events, witnessed by 2 receipts up to 4");

    for full in [true, false] {
        let later = Witness::Receipt(later.header_value(full).parse().unwrap());
        let report = pool.report(&cut, &[kept(true), later]).await;
        assert_eq!(
            report.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["witness 1: the log does not have the receipt's event, or does not check up to it"]
        );
    }
    let forge = |change: fn(&mut audit::Checkpoint)| {
        let mut forged: audit::ReceiptText = receipt.header_value(true).parse().unwrap();
        change(forged.checkpoint.as_mut().unwrap());
        Witness::Receipt(forged)
    };
    for forged in [
        forge(|checkpoint| checkpoint.root[0] ^= 1),
        forge(|checkpoint| checkpoint.signature[0] ^= 1),
        forge(|checkpoint| checkpoint.incarnation = Guid([9; 16])),
    ] {
        let report = pool.report(&log, &[forged]).await;
        assert_eq!(
            report.failures.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["witness 0: the receipt was not signed by an incarnation that this log knows"]
        );
        assert_eq!(report.witnesses, 0);
    }
}

#[tokio::test]
async fn swapped_segments_do_not_open_or_verify() {
    let pool = Pool::with_segments_of(2_500);
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..8).await;
    let segments = log.memory().segments.clone();
    assert!(segments.len() > 3);
    for (one, other) in [(0, 1), (1, 2), (1, segments.len() - 1)] {
        let mut swapped = segments.clone();
        swapped.swap(one, other);
        let swapped = MemoryLog::of(swapped);
        let refused = pool.open(&swapped, None).await.err();
        assert!(
            matches!(refused, Some(OpenError::Damaged { flaw: Flaw::OutOfOrder { .. }, .. })),
            "{refused:?}"
        );
        assert!(pool.failures(&swapped).await.len() > 1);
    }
    // A segment of another log of the same pool and node, in its place.
    let other = MemoryLog::default();
    append(&pool.open(&other, None).await.unwrap().log, 100..108).await;
    let mut spliced = segments.clone();
    spliced[1] = other.memory().segments[1].clone();
    let spliced = MemoryLog::of(spliced);
    let failures = pool.failures(&spliced).await;
    assert_eq!(failures[0], "segment 1, byte 0, group 0: the segment does not continue the one before it");
    let last = segments.len() - 1;
    let mut spliced = segments;
    spliced[last] = other.memory().segments[last].clone();
    let refused = pool.open(&MemoryLog::of(spliced), None).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { flaw: Flaw::DoesNotContinue, .. })), "{refused:?}");
}

#[tokio::test]
async fn another_pools_or_nodes_log_does_not_open() {
    let (pool, other) = (Pool::new(), Pool::new());
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..2).await;
    let refused = other.open(&log, None).await.err();
    assert!(matches!(refused, Some(OpenError::Damaged { flaw: Flaw::Certificate(_), .. })), "{refused:?}");
    for change in [
        |claims: &mut crypto::certificate::InstanceClaims| claims.genesis_hash = [7; 32],
        |claims: &mut crypto::certificate::InstanceClaims| claims.node = Guid([7; 16]),
        |claims: &mut crypto::certificate::InstanceClaims| claims.pool = Guid([7; 16]),
    ] {
        let refused = pool.open_log(std::sync::Arc::new(log.clone()), None, change).await.err();
        assert!(matches!(refused, Some(OpenError::Damaged { flaw: Flaw::Foreign, .. })), "{refused:?}");
    }
    let owner = pool.secrets.owner_key().public_key();
    let report = audit::verify::verify(&log, &owner, Some([7; 32]), &[]).await.unwrap();
    assert_eq!(report.failures[0].to_string(), "the log's genesis is not the expected one");
    assert_eq!((report.pool, report.genesis_hash), (Some(POOL), Some(GENESIS_HASH)));
}

#[tokio::test]
async fn a_key_that_is_certified_for_another_purpose_opens_no_log() {
    let pool = Pool::new();
    let log = std::sync::Arc::new(MemoryLog::default());
    let refused = pool.open_log(log, None, |claims| claims.purpose = Purpose::Release).await.err();
    assert!(matches!(refused, Some(OpenError::NotCertified(Flaw::ForeignCertificate))), "{refused:?}");
}

#[tokio::test]
async fn checkpoints_never_run_backwards_nor_past_the_certificate() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    let at = |seconds: i64| *pool.now.lock().unwrap() = Time::from_unix_milliseconds(seconds * 1000);
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..1).await;
    at(4000);
    append(&opened.log, 1..2).await;
    let log = log.restarted();
    let certified_later = |claims: &mut crypto::certificate::InstanceClaims| {
        claims.not_before = IntDate::from_unix_seconds(6000);
    };
    let opened = pool.open_log(std::sync::Arc::new(log.clone()), None, certified_later).await.unwrap();
    assert_eq!(opened.last_checkpoint, Some(Time::from_unix_milliseconds(5_000_000)));
    append(&opened.log, 2..3).await;
    at(10_000);
    append(&opened.log, 3..4).await;
    at(10_001);
    assert!(matches!(opened.log.append(leaf(4)).await, Err(AuditError::Unavailable(_))));
    assert_eq!(pool.failures(&log).await, none());
    assert_eq!(opened.log.latest().size, 4);
    // A start at which the clock is wrong by more than a certificate's life.
    let certified_earlier = |claims: &mut crypto::certificate::InstanceClaims| {
        claims.not_after = IntDate::from_unix_seconds(9_999);
    };
    let refused = pool.open_log(std::sync::Arc::new(log), None, certified_earlier).await.err();
    assert!(
        matches!(refused, Some(OpenError::ClockBehind { last: 10_000, not_after: 9_999 })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_full_disk_refuses_and_later_works_again_and_a_broken_one_closes_the_log() {
    // Each group needs a new segment.
    for pool in [Pool::new(), Pool::with_segments_of(1)] {
        let log = MemoryLog::default();
        let opened = pool.open(&log, None).await.unwrap();
        append(&opened.log, 0..1).await;
        let mark = opened.log.latest();
        log.memory().fail = Some(|| LogError::DiskFull);
        let refused: Vec<_> = (0..3).map(|_| opened.log.enqueue(leaf(1)).unwrap()).collect();
        for pending in refused {
            assert!(matches!(pending.await, Err(AuditError::DiskFull)));
        }
        assert_eq!(opened.log.latest(), mark);
        log.memory().fail = None;
        append(&opened.log, 2..3).await;
        assert_eq!(numbers(&opened.log).await, [0, 2]);
        log.memory().fail = Some(|| LogError::Unavailable("sync failed".into()));
        assert!(matches!(opened.log.append(leaf(3)).await, Err(AuditError::Unavailable(_))));
        log.memory().fail = None;
        assert!(matches!(opened.log.append(leaf(4)).await, Err(AuditError::Unavailable(_))));
        assert_eq!(pool.failures(&log).await, none());
    }
}

#[tokio::test]
async fn events_in_the_outbox_are_found_in_the_log() {
    let opened = Pool::with_segments_of(2_500).open(&MemoryLog::default(), None).await.unwrap();
    append(&opened.log, 0..5).await;
    let wanted = [1, 4, 9].map(|number| leaf(number).event_id()).into_iter().collect();
    let found = opened.log.contains(&wanted, 2).await.unwrap();
    assert_eq!(found, [leaf(4).event_id()].into_iter().collect());
}

#[tokio::test]
async fn events_and_growth_can_be_proven() {
    let opened = Pool::with_segments_of(2_500).open(&MemoryLog::default(), None).await.unwrap();
    let mut marks = Vec::new();
    for number in 0..9 {
        append(&opened.log, number..number + 1).await;
        marks.push(opened.log.latest());
    }
    let CheckpointMark { size, root } = opened.log.latest();
    for (index, leaf) in opened.log.read(0, 100).await.unwrap() {
        let proof = opened.log.prove_inclusion(index, size).await.unwrap();
        assert!(verify_inclusion(&leaf_hash(leaf.as_bytes()), index, size, &root, &proof));
    }
    for mark in marks {
        let proof = opened.log.prove_consistency(mark.size, size).await.unwrap();
        assert!(verify_consistency(mark.size, &mark.root, size, &root, &proof));
    }
    assert!(matches!(opened.log.prove_inclusion(9, 9).await, Err(AuditError::OutOfRange)));
    assert!(matches!(opened.log.prove_consistency(1, 10).await, Err(AuditError::OutOfRange)));
}

/// One life of a core: how many events it logs, in which append power fails and which sectors of that are written.
fn life() -> impl Strategy<Value = (u16, usize, u64, bool)> {
    (0u16..12, 0usize..14, any::<u64>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any sequence of starts, appends and power losses: acknowledged events are all there, in order, once.
    #[test]
    fn acknowledged_events_survive_any_crashes(
        lives in proptest::collection::vec(life(), 1..8),
        segment_bytes in 1u64..8_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let pool = Pool::with_segments_of(segment_bytes);
            let mut log = MemoryLog::default();
            let mut next = 0;
            let mut attempted = Vec::new();
            let mut acknowledged = Vec::new();
            let mut mark = CheckpointMark::default();
            for (events, at, sectors, together) in lives {
                log.memory().power_loss = Some((at, sectors));
                let opened = pool.open(&log, Some(mark)).await.unwrap();
                let found = numbers(&opened.log).await;
                let mut rest = found.iter();
                assert!(acknowledged.iter().all(|event| rest.any(|other| other == event)), "{acknowledged:?} {found:?}");
                assert!(found.iter().is_sorted() && found.iter().all(|event| attempted.contains(event)));
                assert!(found.windows(2).all(|pair| pair[0] != pair[1]), "{found:?}");
                acknowledged = found;
                let mut pending = Vec::new();
                for number in next..next + events {
                    attempted.push(number);
                    let waiting = opened.log.enqueue(leaf(number)).unwrap();
                    if together {
                        pending.push((number, waiting));
                    } else if waiting.await.is_ok() {
                        acknowledged.push(number);
                    }
                }
                for (number, waiting) in pending {
                    if waiting.await.is_ok() {
                        acknowledged.push(number);
                    }
                }
                next += events;
                mark = opened.log.latest();
                log = log.restarted();
                let report = pool.report(&log, &[Witness::Mark(mark)]).await;
                if !log.memory().segments.is_empty() {
                    assert_eq!(report.failures, []);
                }
            }
        });
    }

    /// Whatever a segment holds, opening and verifying it end without a panic.
    #[test]
    fn arbitrary_segments_never_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..4_000),
        at in 0usize..10,
        length in 0usize..6_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let pool = Pool::new();
            let log = MemoryLog::default();
            append(&pool.open(&log, None).await.unwrap().log, 0..2).await;
            let (mut bytes, position) = log.memory().segments[0].clone();
            let at = at * SECTOR / 2;
            let end = (at + noise.len()).min(bytes.len());
            bytes.splice(at.min(end)..end, noise);
            bytes.truncate(length);
            for segments in [vec![(bytes.clone(), 0)], vec![(bytes, 0), (vec![], position)]] {
                let log = MemoryLog::of(segments);
                let _ = pool.report(&log, &[]).await;
                let _ = pool.open(&log.restarted(), None).await;
            }
        });
    }
}
