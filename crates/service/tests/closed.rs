//! What keeps a pool closed, where to go on without it would let everybody in.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use common::*;
use domain::algorithm::{Curve, KeySpec};
use domain::pool::{Genesis, PoolClass};
use host_embedded::FileLog;
use service::OpenPoolError;
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_issuer_has_no_usable_key_stays_closed() {
    for key_set in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","kid":"1","k":"AAAA"}]}"#] {
        let mut bench = Bench::new();
        bench.genesis.issuer.key_set = key_set.as_bytes().to_vec();
        let refusal = bench.refusal().await;
        assert!(matches!(refusal, OpenPoolError::KeySet(_)), "{key_set}: {refusal:?}");
    }
}

/// What was revoked, deleted or activated since would be undone, and nothing in the store tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_older_than_its_log_keeps_the_pool_closed() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", KeySpec::Ec(Curve::P256)).await;
    let (store, kept) = (bench.path().join("store"), bench.path().join("kept"));
    // While it runs, as after a kill, and after a close.
    copy(&store, &kept.join("running"));
    pool.close().await;
    copy(&store, &kept.join("closed"));
    let pool = bench.open().await;
    ok(pool.delete_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    pool.close().await;
    copy(&store, &kept.join("last"));
    for older in ["running", "closed"] {
        copy(&kept.join(older), &store);
        let refusal = bench.refusal().await;
        assert!(matches!(refusal, OpenPoolError::StoreIsOlder { .. }), "{older}: {refusal:?}");
    }
    copy(&kept.join("last"), &store);
    bench.open().await.close().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_behind_the_log_keeps_a_production_pool_closed_until_somebody_vouches_for_it() {
    let mut bench = Bench::new();
    bench.genesis = Genesis { class: PoolClass::Production, ..genesis() };
    bench.open().await.close().await;
    bench.clock.set_ahead(-3_600_000);
    bench.open().await.close().await;
    bench.clock.set_ahead(-1);
    let refusal = bench.refusal().await;
    assert!(matches!(refusal, OpenPoolError::ClockBehind(_)), "{refusal:?}");
    assert!(
        refusal.to_string().contains("3600 s behind") && refusal.to_string().contains("--clock-is-right")
    );
    bench.clock_is_right = true;
    assert_eq!(alarms(&bench).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_behind_the_log_is_told_where_it_keeps_nothing_closed() {
    let bench = Bench::new();
    bench.open().await.close().await;
    assert_eq!(alarms(&bench).await, 0);
    bench.clock.set_ahead(-3_600_001);
    assert_eq!(alarms(&bench).await, 1);
}

/// As after a start with a clock battery that was empty, or on a machine whose clock somebody has set.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_clock_was_years_ahead_is_gone_on_with() {
    const YEARS: i64 = 3 * 366 * 86_400_000;
    for class in [PoolClass::Test, PoolClass::Production] {
        let mut bench = Bench::new();
        bench.genesis = Genesis { class, ..genesis() };
        bench.clock.set_ahead(YEARS);
        bench.open().await.close().await;
        bench.clock.set_ahead(-YEARS);
        if class == PoolClass::Production {
            assert!(matches!(bench.refusal().await, OpenPoolError::ClockBehind(_)));
            bench.clock_is_right = true;
        }
        for start in 1..3 {
            assert_eq!(alarms(&bench).await, start);
        }
        let log = FileLog::open_read_only(bench.path().join("audit")).unwrap();
        let owner = bench.secrets().owner_key().public_key();
        let report = audit::verify::verify(&log, &owner, None, &[]).await.unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
    }
}

/// How many a start leaves in the log.
async fn alarms(bench: &Bench) -> usize {
    let pool = bench.open().await;
    let events = pool.audit_page(0, 100).await.unwrap();
    pool.close().await;
    events.iter().filter(|event| event["operationName"] == "ClockJumpAlarm").count()
}
