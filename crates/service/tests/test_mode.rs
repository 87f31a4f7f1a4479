//! Test mode on real parts: what it alters, what it leaves alone, and that class production has none of it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test
mod common;

use common::*;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, KeySpec, SignatureAlgorithm};
use domain::guid::Guid;
use domain::name::KeyName;
use domain::pool::{Genesis, PoolClass};
use domain::rotation::{LifetimeAction, Period, Trigger};
use domain::test_mode::{TestModeChange, Throttle};
use service::{Error, NewAssignment, NewRotationPolicy, PageRequest, Pool, Schedule, Tick};
use std::sync::Arc;

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const DAY_SECONDS: u64 = 86_400;

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn advance(days: u64) -> TestModeChange {
    TestModeChange { advance_seconds: days * DAY_SECONDS, ..TestModeChange::default() }
}

async fn change(pool: &Arc<Pool>, change: TestModeChange) -> service::TestModeView {
    ok(pool.update_test_mode(ticket(pool, ADMIN), change).await)
}

async fn versions(pool: &Arc<Pool>, key: &str) -> Vec<i64> {
    let page = PageRequest { limit: 200, after: None };
    let listed = ok(pool.list_versions(ticket(pool, APP), name(key), page).await).items;
    listed.iter().map(|view| view.version.attributes.created.unix_seconds()).collect()
}

/// Twenty years in steps of a month and a bit, with a restart each year: every step is one rotation and no more.
#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_over_twenty_years_of_virtual_time() {
    let bench = Bench::new();
    let mut pool = bench.open().await;
    create(&pool, "k", EC).await;
    let trigger = Trigger::AfterCreate(Period::parse("P90D").unwrap());
    let policy = NewRotationPolicy {
        actions: vec![(LifetimeAction::Rotate, trigger)],
        expiry: Some(Period::parse("P1Y").unwrap()),
    };
    ok(pool.set_rotation_policy(ticket(&pool, APP), name("k"), policy).await);
    for step in 1..=80 {
        change(&pool, advance(91)).await;
        assert_eq!(versions(&pool, "k").await.len(), step + 1);
        if step % 4 == 0 {
            pool.close().await;
            pool = bench.open().await;
            assert_eq!(pool.test_mode().clock_offset_seconds(), step as u64 * 91 * DAY_SECONDS);
        }
    }
    let created = versions(&pool, "k").await;
    assert!(created.windows(2).all(|pair| pair[1] - pair[0] == 91 * DAY_SECONDS as i64), "{created:?}");
    // The clock has not jumped: it is another clock.
    let mut schedule = Schedule::default();
    change(&pool, advance(1)).await;
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    bench.clock.set_ahead(2 * 3_600_000);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_about_the_life_of_keys_stays_on_the_machines_clock() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let now = pool.now();
    let view = change(&pool, advance(1_000)).await;
    assert_eq!(pool.now(), now);
    assert_eq!(view.key_time.unix_seconds() - now.int_date().unix_seconds(), 1_000 * DAY_SECONDS as i64);
    // A moment to come, by the machine's clock: it would lock out whoever it is set for.
    let refused_one = refused(pool.set_not_before(ticket(&pool, ADMIN), APP, Some(view.key_time)).await);
    assert!(refused_one.to_string().contains("must not be in the future"), "{refused_one}");
    let attested = ok(pool.attest_key(ticket(&pool, APP), current("k")).await);
    let statement = crypto::attestation::SignedStatement::parse(&attested.attestation.private).unwrap();
    assert_eq!(statement.statement.at, now.int_date());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_arrives_after_its_delay_and_leaves_after_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let delay = TestModeChange { role_delay_seconds: Some(30), ..TestModeChange::default() };
    change(&pool, delay).await;
    let (principal, assignment) = (Guid([7; 16]), Guid([8; 16]));
    let new =
        NewAssignment { name: assignment, scope: Scope::Root, role: BuiltInRole::CryptoUser.id(), principal };
    let may = async || {
        let signed =
            pool.sign(ticket(&pool, principal), current("k"), SignatureAlgorithm::Es256, vec![7; 32]).await;
        signed.into_parts().0.is_ok()
    };
    bench.clock.pass(100_000);
    ok(pool.create_assignment(ticket(&pool, ADMIN), new).await);
    bench.clock.pass(29_000);
    assert!(!may().await);
    bench.clock.pass(1_000);
    assert!(may().await);
    ok(pool.delete_assignment(ticket(&pool, ADMIN), Scope::Root, assignment).await);
    bench.clock.pass(29_000);
    assert!(may().await);
    bench.clock.pass(1_000);
    assert!(!may().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn class_production_has_no_test_mode() {
    let mut bench = Bench::new();
    bench.genesis =
        Genesis { class: PoolClass::Production, initial_administrators: vec![ADMIN], ..genesis() };
    let pool = bench.open().await;
    let throttle = Some(Some(Throttle { every: 1, retry_after_seconds: 1 }));
    for wanted in [
        advance(90),
        TestModeChange { throttle, ..TestModeChange::default() },
        TestModeChange { role_delay_seconds: Some(30), ..TestModeChange::default() },
    ] {
        let error = refused(pool.update_test_mode(ticket(&pool, ADMIN), wanted).await);
        assert!(matches!(error, Error::TestClassOnly(PoolClass::Production)), "{error}");
    }
    let error = refused(pool.read_test_mode(ticket(&pool, ADMIN)).await);
    assert!(matches!(error, Error::TestClassOnly(PoolClass::Production)), "{error}");
    assert!(!pool.test_mode().alters() && pool.simulate_load().is_ok());
}
