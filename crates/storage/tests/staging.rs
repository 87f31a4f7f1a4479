//! All keys and roles replaced at one moment: wholly or not at all, whatever moment the power fails at.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use crypto::domain_secrets::DomainSecrets;
use domain::access::{BuiltInRole, RoleAssignment, Scope};
use domain::guid::Guid;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::IntDate;
use host::{Commit, Engine, Mutation, OperationId};
use host_embedded::{EngineOptions, RedbEngine};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use storage::{
    CheckpointMark, CommitError, Contents, JobsRecord, OpenError, OutboxRecord, Record, Store, Transaction,
};
use testkit::{Fault, Loss, SimDisk};

fn genesis() -> Genesis {
    Genesis {
        pool: Guid([1; 16]),
        name: "demo".parse().unwrap(),
        security_domain: Guid([2; 16]),
        class: PoolClass::Test,
        tenant: TenantId::parse("t").unwrap(),
        issuer: IssuerPin {
            issuers: vec![],
            authority: String::new(),
            key_set: vec![],
            audiences: vec![],
            key_source: None,
        },
        initial_administrators: vec![Guid([3; 16])],
        break_glass_group: None,
        retention: RetentionDays::DEFAULT,
        purge_protection: false,
        audit_durability: AuditDurability::Synced,
        allow_domain_redownload: false,
    }
}

fn engine(disk: &SimDisk) -> Option<Arc<RedbEngine>> {
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::default() };
    RedbEngine::open_in(Arc::new(disk.clone()), options).ok().map(Arc::new)
}

async fn open(engine: Arc<dyn Engine>, secrets: &DomainSecrets) -> Result<(Store, Contents), OpenError> {
    let initial = [0, 1, 2].map(assignment).to_vec();
    storage::found(engine.as_ref(), secrets, genesis(), initial).await?;
    let checkpoint = Arc::new(|| CheckpointMark { size: 7, root: [8; 32] });
    Store::open(engine, secrets, checkpoint, Arc::new(|_, _, _| {})).await
}

/// One with a name of `number`, and of whoever was here before or after.
fn assignment(number: u8) -> Record {
    of_principal(number, 1)
}

fn of_principal(number: u8, principal: u8) -> Record {
    Record::Assignment(RoleAssignment {
        name: Guid([number; 16]),
        scope: Scope::Keys,
        role: BuiltInRole::CryptoUser.id(),
        principal: Guid([principal; 16]),
    })
}

fn transaction(completed: i64) -> Transaction {
    let mut event_id = [9; 16];
    crypto::digest::random(&mut event_id);
    let last_backup = Some(IntDate::from_unix_seconds(completed));
    Transaction {
        expectations: vec![],
        puts: vec![Record::Jobs(JobsRecord { last_backup, jobs: vec![] })],
        deletes: vec![],
        event: OutboxRecord { event_id, not_before_index: 0, leaf: vec![1; 30] },
    }
}

/// Numbers and principals of assignments, and whether the jobs say that the switch was made.
fn held(contents: &Contents) -> (BTreeSet<(u8, u8)>, bool) {
    let mut assignments = BTreeSet::new();
    let mut switched = false;
    for record in &contents.records {
        match &record.value {
            Record::Assignment(held) => assert!(assignments.insert((held.name.0[0], held.principal.0[0]))),
            Record::Jobs(jobs) => switched = jobs.last_backup == Some(IntDate::from_unix_seconds(2)),
            _ => {}
        }
    }
    (assignments, switched)
}

fn before() -> BTreeSet<(u8, u8)> {
    BTreeSet::from([(0, 1), (1, 1), (2, 1)])
}

/// One of before, with another principal, and others.
fn after() -> BTreeSet<(u8, u8)> {
    BTreeSet::from([(2, 9), (3, 9), (4, 9), (5, 9)])
}

/// Whether the switch was acknowledged.
async fn restore(store: &Store) -> Result<(), CommitError> {
    let staging = store.new_space().await?;
    for pair in [[2, 3], [4, 5]] {
        staging.stage(pair.map(|number| of_principal(number, 9)).to_vec()).await?;
    }
    let applied = Arc::new(AtomicBool::new(false));
    let noted = applied.clone();
    let switched = staging.switch(transaction(2), move |_| noted.store(true, Ordering::SeqCst)).await;
    assert!(switched.is_err() || applied.load(Ordering::SeqCst), "acknowledged before it was applied");
    switched.map(drop)
}

#[tokio::test]
async fn power_loss_at_each_write_leaves_all_of_the_old_or_all_of_the_new() {
    let secrets = DomainSecrets::generate();
    async fn workload(disk: &SimDisk, secrets: &DomainSecrets) -> bool {
        let Some(engine) = engine(disk) else { return false };
        let Ok((store, _)) = open(engine, secrets).await else { return false };
        let _ = store.commit(transaction(1)).await;
        let acknowledged = restore(&store).await.is_ok();
        store.close().await;
        acknowledged
    }
    let whole = SimDisk::new();
    assert!(workload(&whole, &secrets).await);
    let (mut old, mut new) = (0, 0);
    for write in 0..whole.writes() {
        let disk = SimDisk::new();
        disk.fail_at(write, Fault::PowerLoss);
        let acknowledged = workload(&disk, &secrets).await;
        for loss in Loss::variants(write, 2) {
            let survived = disk.after_power_loss(loss);
            let engine = engine(&survived).unwrap();
            let (store, contents) = open(engine.clone(), &secrets).await.unwrap();
            let (assignments, switched) = held(&contents);
            let expected = if switched { after() } else { before() };
            assert_eq!(assignments, expected, "write {write}, {loss:?}");
            assert!(switched || !acknowledged, "write {write}, {loss:?}: acknowledged and lost");
            if switched {
                new += 1
            } else {
                old += 1
            };
            // What is left over is in nobody's way, and goes.
            restore(&store).await.unwrap();
            store.close().await;
            let (_, contents) = open(engine, &secrets).await.unwrap();
            assert_eq!(held(&contents), (after(), true), "write {write}, {loss:?}");
        }
    }
    assert!(old > 10 && new > 2, "{old} old, {new} new");
}

#[tokio::test]
async fn what_was_staged_for_nothing_and_what_was_replaced_are_removed() {
    let secrets = DomainSecrets::generate();
    let engine = engine(&SimDisk::new()).unwrap();
    let assignments = async || {
        let mut scan = engine.scan(b"a").await.unwrap();
        scan.next_page(1000).await.unwrap().len()
    };
    let (store, _) = open(engine.clone(), &secrets).await.unwrap();
    let staging = store.new_space().await.unwrap();
    staging.stage(vec![of_principal(7, 9)]).await.unwrap();
    assert_eq!(assignments().await, 4);
    drop(staging);
    restore(&store).await.unwrap();
    // Not used for a while: the sweep comes when nothing else is to be done.
    while assignments().await > 4 {
        tokio::task::yield_now().await;
    }
    let (assigned, _) = held(&open(engine.clone(), &secrets).await.unwrap().1);
    assert_eq!(assigned, after());
    // Later changes are made to what is in use.
    let refused = store.commit(Transaction { puts: vec![of_principal(2, 5)], ..expecting_none(2) }).await;
    assert!(matches!(refused, Err(CommitError::Conflict)), "{refused:?}");
    store.commit(Transaction { puts: vec![of_principal(6, 9)], ..expecting_none(6) }).await.unwrap();
    store.close().await;
    let (store, contents) = open(engine.clone(), &secrets).await.unwrap();
    assert!(held(&contents).0.contains(&(6, 9)));
    let mut snapshot = store.snapshot().await.unwrap();
    let mut seen = 0;
    while let Some(page) = snapshot.next_page().await.unwrap() {
        seen += page.iter().filter(|held| matches!(held.value, Record::Assignment(_))).count();
    }
    assert_eq!(seen, 5);
    assert!(snapshot.generation().unwrap() > 6);
}

/// Twice in one batch, in two, or in a space that nobody gave: the store goes on.
#[tokio::test]
async fn a_record_is_staged_once() {
    let secrets = DomainSecrets::generate();
    let engine = engine(&SimDisk::new()).unwrap();
    let (store, _) = open(engine.clone(), &secrets).await.unwrap();
    let staging = store.new_space().await.unwrap();
    let conflict = |staged: Result<_, CommitError>| assert!(matches!(staged, Err(CommitError::Conflict)));
    conflict(staging.stage(vec![of_principal(7, 9), of_principal(7, 8)]).await);
    staging.stage(vec![of_principal(7, 9)]).await.unwrap();
    conflict(staging.stage(vec![of_principal(6, 9), of_principal(7, 8)]).await);
    let read = async |number: u8| staging.read(&assignment(number).id()).await.unwrap();
    assert_eq!((read(7).await, read(6).await), (Some(of_principal(7, 9)), None));
    assert_eq!(read(0).await, None, "what is in use is not staged");
    staging.switch(transaction(2), |_| ()).await.unwrap();
    store.commit(Transaction { puts: vec![of_principal(8, 9)], ..expecting_none(8) }).await.unwrap();
    store.close().await;
    let (assigned, _) = held(&open(engine, &secrets).await.unwrap().1);
    assert_eq!(assigned, BTreeSet::from([(7, 9), (8, 9)]));
}

/// Given up at any moment, before the switch or on its way: nothing that is in use is ever taken for a leftover.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_given_up_leaves_all_of_the_old_or_all_of_the_new() {
    let secrets = DomainSecrets::generate();
    for moment in 0..60_u32 {
        let engine = engine(&SimDisk::new()).unwrap();
        let (store, _) = open(engine.clone(), &secrets).await.unwrap();
        let store = Arc::new(store);
        let restoring = {
            let store = store.clone();
            tokio::spawn(async move { restore(&store).await })
        };
        tokio::time::sleep(std::time::Duration::from_micros(u64::from(moment) * 40)).await;
        restoring.abort();
        let _ = restoring.await;
        store.commit(Transaction { puts: vec![of_principal(8, 9)], ..expecting_none(8) }).await.unwrap();
        Arc::into_inner(store).unwrap().close().await;
        let (mut assignments, _) = held(&open(engine, &secrets).await.unwrap().1);
        assert!(assignments.remove(&(8, 9)));
        assert!(assignments == before() || assignments == after(), "{assignments:?}");
    }
}

fn expecting_none(number: u8) -> Transaction {
    let expectations = vec![(assignment(number).id(), None)];
    Transaction { expectations, puts: vec![], ..transaction(2) }
}

/// A host that gives a record of another space out as one in use.
#[tokio::test]
async fn a_record_of_another_space_is_none_of_this_one() {
    let secrets = DomainSecrets::generate();
    let engine = engine(&SimDisk::new()).unwrap();
    let (store, _) = open(engine.clone(), &secrets).await.unwrap();
    let mut scan = engine.scan(b"a").await.unwrap();
    let old = scan.next_page(1).await.unwrap().remove(0);
    restore(&store).await.unwrap();
    store.close().await;
    let forge = async |key: Vec<u8>| {
        let mut operation = [0; 16];
        crypto::digest::random(&mut operation);
        let mutations = vec![Mutation::Put { key, value: old.value.clone() }];
        let commit = Commit { operation: OperationId(operation), expectations: vec![], mutations };
        engine.commit(commit).await.unwrap();
        open(engine.clone(), &secrets).await.err().map(|error| error.to_string())
    };
    // Where it was it is left over, and counts for nothing.
    assert_eq!(forge(old.key.clone()).await, None);
    let moved = [old.key.as_slice(), &1_u32.to_be_bytes()].concat();
    let refused = forge(moved).await.unwrap();
    assert!(refused.starts_with("record a/"), "{refused}");
    let refused = forge([old.key.as_slice(), &[0; 4]].concat()).await.unwrap();
    assert!(refused.contains("the name is not a MAC"), "{refused}");
}
