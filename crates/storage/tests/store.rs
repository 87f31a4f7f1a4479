//! The store's promises: one winner for each conflict, nothing acknowledged lost, nothing put back unnoticed.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

use crypto::MaskedMaterial;
use crypto::domain_secrets::DomainSecrets;
use domain::access::{BuiltInRole, RoleAssignment, Scope};
use domain::algorithm::{KeySpec, OctSize};
use domain::guid::Guid;
use domain::key::{Attributes, KeyOperations, Origin, PublicKey, Tags, Version};
use domain::name::KeyVersion;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::IntDate;
use host::{Change, Commit, Engine, Mutation, OperationId, Revision};
use host_embedded::{EngineOptions, RedbEngine};
use std::collections::HashSet;
use std::sync::Arc;
use storage::{
    CheckpointMark, CommitError, Contents, OpenError, OutboxRecord, Record, RecordId, Stamp, Store,
    Transaction, VersionRecord,
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

fn engine(disk: &SimDisk) -> Arc<RedbEngine> {
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::default() };
    Arc::new(RedbEngine::open_in(Arc::new(disk.clone()), options).unwrap())
}

async fn open(engine: Arc<dyn Engine>, secrets: &DomainSecrets) -> Result<(Store, Contents), OpenError> {
    storage::found(engine.as_ref(), secrets, genesis(), vec![Record::Assignment(assignment(0))]).await?;
    let checkpoint = Arc::new(|| CheckpointMark { size: 7, root: [8; 32] });
    Store::open(engine, secrets, checkpoint, Arc::new(|_, _, _| {})).await
}

fn assignment(number: u8) -> RoleAssignment {
    RoleAssignment {
        name: Guid([number; 16]),
        scope: Scope::Keys,
        role: BuiltInRole::CryptoUser.id(),
        principal: Guid([number; 16]),
    }
}

fn put(number: u8, expected: Option<Stamp>) -> Transaction {
    let record = Record::Assignment(assignment(number));
    Transaction {
        expectations: vec![(record.id(), expected)],
        puts: vec![record],
        deletes: vec![],
        event: event(number),
    }
}

fn event(number: u8) -> OutboxRecord {
    let mut event_id = [number; 16];
    crypto::digest::random(&mut event_id[1..]);
    OutboxRecord { event_id, not_before_index: 0, leaf: vec![number; 30] }
}

/// Numbers of the assignments that a store holds.
fn held(contents: &Contents) -> HashSet<u8> {
    let number = |record: &Record| match record {
        Record::Assignment(assignment) => Some(assignment.name.0[0]),
        _ => None,
    };
    contents.records.iter().filter_map(|record| number(&record.value)).collect()
}

fn outbox(contents: &Contents) -> usize {
    contents.records.iter().filter(|record| matches!(record.value, Record::Outbox(_))).count()
}

#[tokio::test]
async fn of_two_changes_to_one_record_the_later_is_told() {
    let (store, _) = open(engine(&SimDisk::new()), &DomainSecrets::generate()).await.unwrap();
    let (one, two) = tokio::join!(store.commit(put(1, None)), store.commit(put(1, None)));
    let stamp = one.unwrap().stamp;
    assert!(matches!(two, Err(CommitError::Conflict)));
    assert!(matches!(store.commit(put(1, None)).await, Err(CommitError::Conflict)));
    let later = store.commit(put(1, Some(stamp))).await.unwrap().stamp;
    assert!(later > stamp);
    assert!(matches!(store.commit(put(1, Some(stamp))).await, Err(CommitError::Conflict)));
}

#[tokio::test]
async fn what_waits_is_committed_together_and_all_of_it_is_read_back() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let (store, _) = open(engine(&disk), &secrets).await.unwrap();
    let store = Arc::new(store);
    let before = disk.syncs();
    let commits: Vec<_> = (1..=40)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { store.commit(put(number, None)).await })
        })
        .collect();
    let mut stamps = HashSet::new();
    for commit in commits {
        stamps.insert(commit.await.unwrap().unwrap().stamp);
    }
    // Three mutations each, at most 120 in a group.
    assert!(stamps.len() <= 5, "{} groups", stamps.len());
    assert!(disk.syncs() - before <= 40);
    Arc::into_inner(store).unwrap().close().await;
    let (_, contents) = open(engine(&disk), &secrets).await.unwrap();
    assert_eq!(held(&contents), (0..=40).collect());
    assert_eq!((outbox(&contents), contents.checkpoint.size), (40, 7));
}

#[tokio::test]
async fn events_that_the_log_has_leave_the_outbox() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let (store, _) = open(engine(&disk), &secrets).await.unwrap();
    for number in 1..=5 {
        let transaction = put(number, None);
        let event_id = transaction.event.event_id;
        store.commit(transaction).await.unwrap();
        if number != 3 {
            store.drained(event_id).await;
        }
    }
    store.close().await;
    let (_, contents) = open(engine(&disk), &secrets).await.unwrap();
    assert_eq!(outbox(&contents), 1);
}

#[tokio::test]
async fn acknowledged_changes_survive_power_loss_at_each_write() {
    let secrets = DomainSecrets::generate();
    async fn workload(disk: &SimDisk, secrets: &DomainSecrets) -> Vec<u8> {
        let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::default() };
        let mut acknowledged = Vec::new();
        let Ok(engine) = RedbEngine::open_in(Arc::new(disk.clone()), options) else { return acknowledged };
        let Ok((store, _)) = open(Arc::new(engine), secrets).await else { return acknowledged };
        for number in 1..=4 {
            match store.commit(put(number, None)).await {
                Ok(_) => acknowledged.push(number),
                Err(_) => break,
            }
        }
        store.close().await;
        acknowledged
    }
    let whole = SimDisk::new();
    assert_eq!(workload(&whole, &secrets).await, [1, 2, 3, 4]);
    for write in 0..whole.writes() {
        let disk = SimDisk::new();
        disk.fail_at(write, Fault::PowerLoss);
        let acknowledged = workload(&disk, &secrets).await;
        for loss in Loss::variants(write, 2) {
            let after = disk.after_power_loss(loss);
            let (_, contents) = open(engine(&after), &secrets).await.unwrap();
            let held = held(&contents);
            assert!(
                acknowledged.iter().all(|number| held.contains(number)),
                "write {write}, {loss:?}: {held:?}"
            );
            // Each change has its event, or the event's removal was committed with a later one.
            assert_eq!(outbox(&contents), held.len() - 1, "write {write}, {loss:?}");
        }
    }
}

/// A host that removes a record, or puts an older version of it back, and leaves the rest as it is.
#[tokio::test]
async fn a_removed_or_reverted_record_is_found_at_start() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let engine = engine(&disk);
    let (store, _) = open(engine.clone(), &secrets).await.unwrap();
    let stamp = store.commit(put(1, None)).await.unwrap().stamp;
    let written = engine.health().await.unwrap();
    let older = entry_written_at(engine.as_ref(), written).await;
    store.commit(put(1, Some(stamp))).await.unwrap();
    store.close().await;
    let newer = engine.get(&older.0).await.unwrap().unwrap().value;

    let forge = async |mutation: Mutation| {
        let mut operation = [0; 16];
        crypto::digest::random(&mut operation);
        let commit =
            Commit { operation: OperationId(operation), expectations: vec![], mutations: vec![mutation] };
        engine.commit(commit).await.unwrap();
        open(engine.clone(), &secrets).await.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let (key, value) = older;
    let reverted = forge(Mutation::Put { key: key.clone(), value }).await;
    assert!(reverted.contains("do not match the pool state"), "{reverted}");
    let removed = forge(Mutation::Delete { key: key.clone() }).await;
    assert!(removed.contains("do not match the pool state"), "{removed}");
    let mut damaged = newer.clone();
    damaged[40] ^= 1;
    let damaged = forge(Mutation::Put { key: key.clone(), value: damaged }).await;
    assert!(damaged.starts_with("record a/") && damaged.contains("does not open"), "{damaged}");
    assert_eq!(forge(Mutation::Put { key, value: newer }).await, "");
}

#[tokio::test]
async fn another_core_on_the_same_store_is_noticed_at_its_first_write() {
    let engine = engine(&SimDisk::new());
    let secrets = DomainSecrets::generate();
    let (first, _) = open(engine.clone(), &secrets).await.unwrap();
    let (second, _) = open(engine, &secrets).await.unwrap();
    first.commit(put(1, None)).await.unwrap();
    for number in [2, 3] {
        let refused = second.commit(put(number, None)).await;
        assert!(matches!(refused, Err(CommitError::Unavailable(_))), "{refused:?}");
    }
    first.commit(put(4, None)).await.unwrap();
}

#[tokio::test]
async fn another_security_domain_does_not_open_the_store() {
    let engine = engine(&SimDisk::new());
    open(engine.clone(), &DomainSecrets::generate()).await.unwrap();
    let refused = open(engine, &DomainSecrets::generate()).await.err();
    assert!(matches!(refused, Some(OpenError::AlreadyFounded)), "{refused:?}");
}

/// Nothing of a record's content is legible in the engine, in any of its keys or values.
#[tokio::test]
async fn the_engine_sees_neither_names_nor_contents() {
    let engine = engine(&SimDisk::new());
    let (store, _) = open(engine.clone(), &DomainSecrets::generate()).await.unwrap();
    let number = 0x5a;
    store.commit(put(number, None)).await.unwrap();
    let mut scan = engine.scan(b"").await.unwrap();
    let entries = scan.next_page(1000).await.unwrap();
    assert!(entries.len() > 4);
    for entry in entries {
        for bytes in [&entry.key, &entry.value] {
            assert!(!bytes.windows(8).any(|window| window == [number; 8] || window == b"Managed "));
        }
    }
    assert_eq!(RecordId::Assignment(Guid([number; 16])), Record::Assignment(assignment(number)).id());
}

async fn entry_written_at(engine: &dyn Engine, revision: Revision) -> (Vec<u8>, Vec<u8>) {
    let mut watch = engine.watch(Revision(revision.0 - 1)).await.unwrap();
    let batch = watch.next().await.unwrap();
    let is_assignment = |change: &Change| match change {
        Change::Put(entry) if entry.key[0] == b'a' => Some((entry.key.clone(), entry.value.clone())),
        Change::Put(_) | Change::Deleted { .. } => None,
    };
    batch.changes.iter().find_map(is_assignment).unwrap()
}

/// `count` versions of `bytes` each, as a restored key has them.
fn put_versions(name: &str, count: u8, bytes: usize) -> Transaction {
    let spec = KeySpec::Oct(OctSize::Oct256);
    let now = IntDate::from_unix_seconds(1_800_000_000);
    let attributes = Attributes {
        enabled: true,
        not_before: None,
        expires: None,
        created: now,
        updated: now,
        exportable: false,
    };
    let record = |number| {
        let version = Version {
            name: name.parse().unwrap(),
            version: KeyVersion([number; 16]),
            spec,
            public: PublicKey::Oct,
            operations: KeyOperations::default_for(spec),
            attributes,
            tags: Tags::default(),
            origin: Origin::Generated,
            release: None,
        };
        Record::Version(VersionRecord { version, material: MaskedMaterial(vec![0; bytes]) })
    };
    let puts: Vec<_> = (0..count).map(record).collect();
    let expectations = puts.iter().map(|record| (record.id(), None)).collect();
    Transaction { expectations, puts, deletes: vec![], event: event(1) }
}

/// Each fits an engine's commit; together they do not.
#[tokio::test]
async fn large_transactions_that_wait_at_once_are_all_committed() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let (store, _) = open(engine(&disk), &secrets).await.unwrap();
    let store = Arc::new(store);
    let mut waiting = Vec::new();
    for number in 0..40 {
        // A hundred versions with long tags, and single ones between them.
        let (count, bytes) = if number % 10 == 5 { (100, 12_000) } else { (1, 31_000) };
        let (store, transaction) = (store.clone(), put_versions(&format!("k{number}"), count, bytes));
        waiting.push(tokio::spawn(async move { store.commit(transaction).await }));
    }
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

/// As two restores of keys with long policies at one moment: few mutations, and too many bytes together.
#[tokio::test]
async fn few_large_records_that_wait_at_once_do_not_share_a_commit_that_is_too_large() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let (store, _) = open(engine(&disk), &secrets).await.unwrap();
    let large = |name: &str| store.commit(put_versions(name, 9, 95_000));
    let (first, second, small, third) =
        tokio::join!(large("a"), large("b"), store.commit(put(1, None)), large("c"));
    for outcome in [first, second, small, third] {
        outcome.unwrap();
    }
}

/// Refused, and nothing else is.
#[tokio::test]
async fn a_transaction_over_the_engines_limit_does_not_end_the_store() {
    let disk = SimDisk::new();
    let secrets = DomainSecrets::generate();
    let (store, _) = open(engine(&disk), &secrets).await.unwrap();
    let refused = store.commit(put_versions("large", 100, 30_000)).await;
    assert!(matches!(refused, Err(CommitError::Unavailable(_))), "{refused:?}");
    store.commit(put(1, None)).await.unwrap();
}
