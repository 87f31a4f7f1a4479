//! The disk fails at each write in turn: what was acknowledged is kept, the rest is there wholly or not at all.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use std::sync::Arc;

use host::{Commit, CommitOutcome, Engine, EngineError};
use host_embedded::{EngineOptions, RedbEngine};
use testkit::{Attempt, Fault, Loss, Model, Random, SimDisk, commit, join_all, put, random_commit};

fn options() -> EngineOptions {
    EngineOptions { reserve_bytes: 0, ..Default::default() }
}

fn open(disk: &SimDisk) -> Result<RedbEngine, EngineError> {
    RedbEngine::open_in(Arc::new(disk.clone()), options())
}

/// Commits one after the other, until one fails.
async fn short_workload(disk: &SimDisk) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut random = Random::new(1);
    let mut model = Model::default();
    let Ok(engine) = open(disk) else { return attempts };
    for _ in 0..6 {
        let commit = random_commit(&mut random, &model);
        let answer = engine.commit(commit.clone()).await;
        let failed = answer.is_err();
        if let Ok(CommitOutcome::Committed(revision)) = answer
            && !commit.mutations.is_empty()
        {
            model.apply(&commit, revision);
        }
        attempts.push(Attempt { commit, answer });
        if failed {
            assert!(matches!(engine.health().await, Err(EngineError::Unavailable(_))));
            assert!(matches!(engine.get(b"key/00").await, Err(EngineError::Unavailable(_))));
            let again = engine.commit(random_commit(&mut random, &model)).await;
            assert!(matches!(again, Err(EngineError::Unavailable(_))), "{again:?}");
            break;
        }
    }
    attempts
}

/// The disk reopens, holds what it must, and takes another commit.
async fn check(disk: &SimDisk, attempts: &[Attempt], context: &str) {
    let engine = open(disk).unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut model = Model::default();
    println!("{context}"); // shown where a check below fails
    model.reconcile(&engine, attempts).await;
    let next = commit(u64::MAX, Vec::new(), vec![put("after", "the crash")]);
    let answer = engine.commit(next.clone()).await;
    model.reconcile(&engine, &[Attempt { commit: next, answer }]).await;
}

#[tokio::test]
async fn acknowledged_commits_survive_power_loss_at_each_write() {
    let whole = SimDisk::new();
    let attempts = short_workload(&whole).await;
    assert!(attempts.iter().all(|attempt| attempt.answer.is_ok()), "{attempts:?}");
    let mut cut_short = 0;
    for crash_at in 0..whole.writes() {
        let disk = SimDisk::new();
        disk.fail_at(crash_at, Fault::PowerLoss);
        let attempts = short_workload(&disk).await;
        cut_short += usize::from(attempts.last().is_some_and(|attempt| attempt.answer.is_err()));
        for loss in Loss::variants(crash_at * 100, 4) {
            check(&disk.after_power_loss(loss), &attempts, &format!("crash at write {crash_at}, {loss:?}"))
                .await;
        }
    }
    assert!(cut_short > 20, "only {cut_short} crashes cut a commit short");
}

#[tokio::test]
async fn an_io_error_at_each_write_ends_the_engine_and_loses_nothing() {
    let whole = SimDisk::new();
    short_workload(&whole).await;
    for fail_at in 0..whole.writes() {
        let disk = SimDisk::new();
        disk.fail_at(fail_at, Fault::Eio);
        let attempts = short_workload(&disk).await;
        for loss in Loss::variants(fail_at * 100, 2) {
            let context = format!("I/O error at write {fail_at}, then {loss:?}");
            check(&disk.after_power_loss(loss), &attempts, &context).await;
        }
        // The process restarts without a loss of power, and reads the page cache.
        check(&disk, &attempts, &format!("I/O error at write {fail_at}, then a restart")).await;
    }
}

#[tokio::test]
async fn a_full_disk_at_each_write_says_so_and_loses_nothing() {
    let whole = SimDisk::new();
    short_workload(&whole).await;
    let mut said_so = 0;
    let mut unknown = 0;
    for fail_at in 0..whole.writes() {
        let disk = SimDisk::new();
        disk.fail_at(fail_at, Fault::Enospc);
        let attempts = short_workload(&disk).await;
        let last = attempts.last().map(|attempt| &attempt.answer);
        match last {
            Some(Err(EngineError::DiskFull)) => said_so += 1,
            // redb writes its header early; from there on only the next opening tells.
            Some(Err(EngineError::OutcomeUnknown)) => unknown += 1,
            Some(Ok(_)) | None => {}
            Some(Err(error)) => panic!("full at write {fail_at}: {error}"),
        }
        check(&disk.after_power_loss(Loss::Seed(fail_at)), &attempts, &format!("full at write {fail_at}"))
            .await;
    }
    assert!(said_so > 0 && unknown > 0, "{said_so} were told, {unknown} left in doubt");
}

#[tokio::test]
async fn below_the_reserve_commits_are_refused_and_reads_go_on() {
    const MIB: u64 = 1024 * 1024;
    let disk = SimDisk::with_capacity(20 * MIB);
    let options = EngineOptions { reserve_bytes: 8 * MIB, ..Default::default() };
    let engine = RedbEngine::open_in(Arc::new(disk.clone()), options).unwrap();
    let value = "v".repeat(200_000);
    let mut number = 0;
    let refused = loop {
        number += 1;
        let commit = commit(number, Vec::new(), vec![put(&number.to_string(), &value)]);
        if let Err(error) = engine.commit(commit).await {
            break error;
        }
        assert!(number < 200, "the disk never fills");
    };
    assert!(matches!(refused, EngineError::DiskFull), "{refused}");
    assert!(matches!(engine.health().await, Err(EngineError::DiskFull)));
    assert!(engine.get(b"1").await.unwrap().is_some());
    assert_eq!(engine.settle(testkit::operation(number)).await.unwrap(), None);
    let compare = engine.commit(commit(1000, Vec::new(), Vec::new())).await;
    assert!(matches!(compare, Ok(CommitOutcome::Committed(_))), "comparing needs no space: {compare:?}");

    disk.set_capacity(Some(200 * MIB));
    engine.health().await.unwrap();
    engine.commit(commit(number, Vec::new(), vec![put("a", "fits")])).await.unwrap();
}

/// So that a disk which both share is full for a commit before it is for the event of one.
#[test]
fn the_store_asks_for_more_room_than_the_log_can_take() {
    let log = host_embedded::LogOptions::default();
    let taken = log.ahead_bytes + log.step_bytes;
    assert!(EngineOptions::default().reserve_bytes > log.reserve_bytes + taken);
}

/// Rounds of concurrent commits, power loss at a random write, and again from what is left.
#[tokio::test]
async fn random_commits_match_the_model_over_many_crashes() {
    let first = std::env::var("HOLDFAST_SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds = first.map_or(0..25, |seed: u64| seed..seed + 1);
    for seed in seeds {
        println!("HOLDFAST_SEED={seed}"); // shown where a check below fails
        let mut random = Random::new(seed);
        let mut model = Model::default();
        let mut disk = SimDisk::new();
        for _crash in 0..4 {
            disk.fail_at(disk.writes() + random.below(250), Fault::PowerLoss);
            let mut round = Vec::new();
            if let Ok(engine) = open(&disk) {
                while !disk.power_lost() {
                    model.reconcile(&engine, &round).await;
                    round = concurrent_round(&engine, &mut random, &model).await;
                    // A failure in the middle of reconciling would be a failed read, so look before.
                    if round.iter().any(|attempt| attempt.answer.is_err()) {
                        break;
                    }
                }
            }
            disk = disk.after_power_loss(Loss::Seed(random.number()));
            let engine = open(&disk).unwrap();
            model.reconcile(&engine, &round).await;
        }
    }
}

async fn concurrent_round(engine: &RedbEngine, random: &mut Random, model: &Model) -> Vec<Attempt> {
    let count = 1 + random.below(8);
    let commits: Vec<Commit> = (0..count).map(|_| random_commit(random, model)).collect();
    let answers = join_all(commits.iter().map(|commit| engine.commit(commit.clone()))).await;
    commits.into_iter().zip(answers).map(|(commit, answer)| Attempt { commit, answer }).collect()
}
