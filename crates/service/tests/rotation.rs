//! Rotation on real parts: on demand, by the pool, over years and restarts, and against whatever happens meanwhile.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test
mod common;

use common::gated::{Gate, Gated};
use common::*;
use crypto::PartitionError;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyOperation, VersionChange};
use domain::name::KeyName;
use domain::rotation::{LifetimeAction, Period, RotationRefused, Trigger};
use domain::time::IntDate;
use service::{
    DecryptInput, EncryptInput, Error, KeyReference, NewAssignment, NewRotationPolicy, PageRequest, Pool,
    PoolLimits, Random, Recorded, RotationView, Schedule, SecretBytes, SystemRandom, Tick,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const DAY: i64 = 86_400_000;
const NOTHING: NewRotationPolicy = NewRotationPolicy { actions: vec![], expiry: None };

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn after(period: &str, expiry: &str) -> NewRotationPolicy {
    let trigger = Trigger::AfterCreate(Period::parse(period).unwrap());
    NewRotationPolicy {
        actions: vec![(LifetimeAction::Rotate, trigger)],
        expiry: Some(Period::parse(expiry).unwrap()),
    }
}

fn before(period: &str, expiry: &str) -> NewRotationPolicy {
    let trigger = Trigger::BeforeExpiry(Period::parse(period).unwrap());
    NewRotationPolicy { actions: vec![(LifetimeAction::Rotate, trigger)], ..after("P28D", expiry) }
}

async fn set(pool: &Arc<Pool>, key: &str, policy: NewRotationPolicy) -> RotationView {
    ok(pool.set_rotation_policy(ticket(pool, APP), name(key), policy).await)
}

async fn versions(pool: &Arc<Pool>, key: &str) -> usize {
    let page = PageRequest { limit: 200, after: None };
    ok(pool.list_versions(ticket(pool, APP), name(key), page).await).items.len()
}

async fn tick(schedule: &mut Schedule, pool: &Arc<Pool>) -> usize {
    match schedule.tick(pool).await.unwrap() {
        Tick::Done { purged: 0, rotated } => rotated,
        other => panic!("{other:?}"),
    }
}

fn error<T>(recorded: Recorded<T>) -> Error {
    refused(recorded)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_is_of_its_kind_and_its_old_versions_still_open() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let mut new = new_key("k", KeySpec::Oct(OctSize::Oct256));
    new.tags = domain::key::Tags::new([("team".into(), "pay".into())].into()).unwrap();
    let first = ok(pool.create_key(ticket(&pool, APP), new).await);
    let refused = error(pool.rotate_key(ticket(&pool, APP), name("k")).await);
    assert!(matches!(refused, Error::Rotation(RotationRefused::NoPolicy)), "{refused}");
    assert_eq!(versions(&pool, "k").await, 1);
    set(&pool, "k", after("P90D", "P2Y")).await;

    let text = EncryptInput {
        plaintext: Arc::new(SecretBytes::new(b"text".to_vec())),
        iv: None,
        additional_data: None,
    };
    let gcm = EncryptionAlgorithm::parse("A256GCM").unwrap();
    let sealed = ok(pool.encrypt(ticket(&pool, APP), current("k"), gcm, text).await);
    let second = ok(pool.rotate_key(ticket(&pool, APP), name("K")).await);
    assert_ne!(second.version.version, first.version.version);
    let (one, other) = (&first.version, &second.version);
    assert_eq!((one.spec, one.operations, &one.tags), (other.spec, other.operations, &other.tags));
    assert_eq!(other.name.to_string(), "k", "as its creator wrote it");
    let life = other.attributes.expires.unwrap().unix_seconds() - other.attributes.created.unix_seconds();
    assert!((730..=731).contains(&(life / 86_400)), "{life}");
    assert_eq!(one.attributes.expires, None, "the version before is not touched");

    let input = DecryptInput {
        ciphertext: sealed.result.bytes.clone(),
        iv: sealed.result.iv.clone(),
        additional_data: None,
        tag: sealed.result.tag.clone(),
    };
    let old = KeyReference { version: Some(one.version), ..current("k") };
    let opened = ok(pool.decrypt(ticket(&pool, APP), old, gcm, input.clone()).await);
    assert_eq!(opened.result.danger_expose(), b"text");
    error(pool.decrypt(ticket(&pool, APP), current("k"), gcm, input).await);
}

/// Makes a key when it is let.
#[derive(Default)]
struct Slow {
    /// Shared by who passes: whoever has it alone holds that up.
    makes: Arc<tokio::sync::RwLock<()>>,
    asked: AtomicUsize,
}

impl Gate for Slow {
    fn admit_generation(&self) -> Result<(), PartitionError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        drop(self.makes.blocking_read());
        Ok(())
    }
}

/// Its owner disables the version before while the next one is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_was_long_in_the_making_is_as_the_key_is_by_then() {
    let limits = PoolLimits { ready_keys: 0, ..PoolLimits::default() };
    let bench = Bench { limits, ..Bench::new() };
    let partition = Gated::new(&bench, Slow::default());
    let pool = bench.open_with(partition.clone()).await;
    let slow = &partition.gate;
    create(&pool, "k", KeySpec::Rsa(RsaSize::Rsa2048)).await;
    set(&pool, "k", after("P28D", "P1Y")).await;
    let hold = slow.makes.clone().write_owned().await;
    let asked = slow.asked.load(Ordering::SeqCst);
    let rotating = tokio::spawn({
        let pool = pool.clone();
        async move { ok(pool.rotate_key(ticket(&pool, APP), name("k")).await) }
    });
    while slow.asked.load(Ordering::SeqCst) == asked {
        tokio::task::yield_now().await;
    }
    let tags = domain::key::Tags::new([("team".into(), "pay".into())].into()).unwrap();
    let signing = [KeyOperation::Sign].into_iter().collect();
    let change = VersionChange {
        enabled: Some(false),
        tags: Some(tags.clone()),
        operations: Some(signing),
        ..VersionChange::default()
    };
    ok(pool.update_key(ticket(&pool, APP), current("k"), change).await);
    set(&pool, "k", after("P28D", "P2Y")).await;
    drop(hold);
    let made = rotating.await.unwrap().version;
    assert!(!made.attributes.enabled);
    assert_eq!((made.operations, made.tags), (signing, tags));
    let life = made.attributes.expires.unwrap().unix_seconds() - made.attributes.created.unix_seconds();
    assert!((730..=731).contains(&(life / 86_400)), "{life}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_rotate_may_not_enable() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    set(&pool, "k", after("P28D", "P1Y")).await;
    let disable = VersionChange { enabled: Some(false), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("k"), disable).await);
    let rotated = ok(pool.rotate_key(ticket(&pool, APP), name("k")).await);
    assert!(!rotated.version.attributes.enabled);
    error(pool.sign(ticket(&pool, APP), current("k"), SignatureAlgorithm::Es256, vec![7; 32]).await);
    // Nor does the pool go on with a key that its owner has taken out of use.
    let mut schedule = Schedule::default();
    bench.clock.pass(400 * DAY);
    assert_eq!(tick(&mut schedule, &pool).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_lives_and_dies_with_its_key() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let none = ok(pool.read_rotation_policy(ticket(&pool, APP), name("k")).await);
    assert_eq!(none.policy, None);
    let first = set(&pool, "k", after("P90D", "P1Y")).await.policy.unwrap();
    bench.clock.pass(5_000);
    let second = set(&pool, "k", before("P30D", "P1Y")).await.policy.unwrap();
    assert_eq!(first.created, second.created);
    assert_eq!(second.updated.unix_seconds() - first.updated.unix_seconds(), 5);
    create(&pool, "k", EC).await;
    let blob = ok(pool.backup_key(ticket(&pool, APP), name("k")).await);
    ok(pool.delete_key(ticket(&pool, APP), name("k")).await);
    let gone = error(pool.read_rotation_policy(ticket(&pool, APP), name("k")).await);
    assert!(matches!(gone, Error::KeyNotFound { .. }));
    ok(pool.recover_key(ticket(&pool, OFFICER), name("k")).await);
    pool.close().await;

    let pool = bench.open().await;
    let read = || async { ok(pool.read_rotation_policy(ticket(&pool, APP), name("k")).await).policy };
    assert_eq!(read().await, Some(second.clone()));
    ok(pool.delete_key(ticket(&pool, APP), name("k")).await);
    ok(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
    ok(pool.restore_key(ticket(&pool, APP), blob).await);
    assert_eq!(read().await, Some(second));
    set(&pool, "k", NOTHING).await;
    assert_eq!(read().await, None);
    ok(pool.delete_key(ticket(&pool, APP), name("k")).await);
    ok(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
    create(&pool, "k", EC).await;
    assert_eq!(read().await, None);
}

/// Twenty years of a key that rotates every eighteen months and expires after two years, with a restart in each.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_years_make_a_version_for_each_time_that_was_due() {
    let bench = Bench::new();
    let mut pool = bench.open().await;
    create(&pool, "k", EC).await;
    create(&pool, "still", EC).await;
    set(&pool, "k", after("P18M", "P2Y")).await;
    set(&pool, "still", NewRotationPolicy { actions: vec![], ..after("P28D", "P1Y") }).await;
    let mut rotated = 0;
    for _ in 0..20 {
        pool.close().await;
        pool = bench.open().await;
        let mut schedule = Schedule::default();
        for _ in 0..73 {
            bench.clock.pass(5 * DAY);
            rotated += tick(&mut schedule, &pool).await;
            assert_eq!(tick(&mut schedule, &pool).await, 0, "twice for one time");
        }
    }
    // 7,300 days are thirteen times eighteen months, even where each is seen up to five days late.
    assert_eq!((rotated, versions(&pool, "k").await, versions(&pool, "still").await), (13, 14, 1));
    let events = pool.audit_page(0, 10_000).await.unwrap();
    let by_pool: Vec<_> = events.iter().filter(|event| event["operationName"] == "KeyRotateIfDue").collect();
    assert_eq!(by_pool.len(), 13);
    let now = ok(pool.read_key(ticket(&pool, APP), current("k")).await).version.attributes;
    assert!(now.expires.unwrap() > now.created);
}

/// A pool that was down for years makes one version, not all those that would have been due.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_missed_is_made_up_for_once() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    set(&pool, "k", after("P28D", "P1Y")).await;
    pool.close().await;
    bench.clock.pass(2_000 * DAY);
    let pool = bench.open().await;
    let mut schedule = Schedule::default();
    assert_eq!((tick(&mut schedule, &pool).await, tick(&mut schedule, &pool).await), (1, 0));
    bench.clock.pass(28 * DAY - 1_000);
    assert_eq!(tick(&mut schedule, &pool).await, 0);
    bench.clock.pass(1_000);
    assert_eq!(tick(&mut schedule, &pool).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_rotates_nothing() {
    for jump in [300 * DAY, -300 * DAY] {
        let bench = Bench::new();
        let pool = bench.open().await;
        create(&pool, "k", EC).await;
        set(&pool, "k", after("P28D", "P1Y")).await;
        let mut schedule = Schedule::default();
        bench.clock.set_ahead(jump);
        assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
        bench.clock.set_ahead(-jump);
        bench.clock.pass(40 * DAY);
        assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
        assert_eq!(versions(&pool, "k").await, 1);
    }
}

/// An `exp` in the past makes no version every minute until there are a hundred.
#[tokio::test(flavor = "multi_thread")]
async fn versions_that_expire_at_once_are_still_weeks_apart() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    set(&pool, "k", before("P28D", "P56D")).await;
    let mut schedule = Schedule::default();
    bench.clock.pass(28 * DAY);
    assert_eq!(tick(&mut schedule, &pool).await, 0, "a version without exp is never due");
    let past = VersionChange { expires: Some(IntDate::from_unix_seconds(1)), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("k"), past.clone()).await);
    assert_eq!(tick(&mut schedule, &pool).await, 1);
    ok(pool.update_key(ticket(&pool, APP), current("k"), past).await);
    bench.clock.pass(27 * DAY);
    assert_eq!(tick(&mut schedule, &pool).await, 0);
    bench.clock.pass(DAY);
    assert_eq!(tick(&mut schedule, &pool).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_all_its_versions_keeps_no_other_from_its_own() {
    let mut bench = Bench::new();
    bench.limits = PoolLimits { versions_per_key: 2, ..PoolLimits::default() };
    let pool = bench.open().await;
    for key in ["full", "other"] {
        create(&pool, key, EC).await;
        set(&pool, key, after("P28D", "P1Y")).await;
    }
    ok(pool.rotate_key(ticket(&pool, APP), name("full")).await);
    let refused = error(pool.rotate_key(ticket(&pool, APP), name("full")).await);
    assert!(matches!(refused, Error::Key(domain::key::KeyRefused::TooManyVersions { limit: 2 })));
    let mut schedule = Schedule::default();
    bench.clock.pass(28 * DAY);
    assert_eq!(tick(&mut schedule, &pool).await, 1);
    assert_eq!((versions(&pool, "full").await, versions(&pool, "other").await), (2, 2));
}

/// The right at one key is no right at another, and neither reading nor writing a key is a right to rotate it.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_is_denied_to_whoever_may_not() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    create(&pool, "mine", EC).await;
    for key in ["k", "mine"] {
        set(&pool, key, after("P28D", "P1Y")).await;
    }
    let stranger = Guid([9; 16]);
    let new = NewAssignment {
        name: SystemRandom.guid(),
        scope: Scope::Key(name("mine")),
        role: BuiltInRole::CryptoUser.id(),
        principal: stranger,
    };
    ok(pool.create_assignment(ticket(&pool, ADMIN), new).await);
    ok(pool.rotate_key(ticket(&pool, stranger), name("mine")).await);
    for principal in [stranger, ADMIN, OFFICER] {
        let denied = error(pool.rotate_key(ticket(&pool, principal), name("k")).await);
        assert!(matches!(denied, Error::Denied(_)), "{denied}");
        let denied = error(pool.set_rotation_policy(ticket(&pool, principal), name("k"), NOTHING).await);
        assert!(matches!(denied, Error::Denied(_)), "{denied}");
    }
    assert_eq!(versions(&pool, "k").await, 1);
}

/// Rotations on demand each make a version; the pool's own makes none where one has just been made.
#[tokio::test(flavor = "multi_thread")]
async fn rotations_at_one_moment_neither_get_lost_nor_doubled() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    set(&pool, "k", after("P28D", "P1Y")).await;
    bench.clock.pass(28 * DAY);
    let by_pool: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.rotate_due_keys().await.unwrap() })
        })
        .collect();
    let mut rotated = 0;
    for one in by_pool {
        rotated += one.await.unwrap();
    }
    assert_eq!((rotated, versions(&pool, "k").await), (1, 2));
    let on_demand: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(
                async move { ok(pool.rotate_key(ticket(&pool, APP), name("k")).await).version.version },
            )
        })
        .collect();
    let mut made = BTreeSet::new();
    for one in on_demand {
        made.insert(one.await.unwrap());
    }
    assert_eq!((made.len(), versions(&pool, "k").await), (4, 6));
}
