//! Whatever is read, decided and committed, against what is done at the same moment: on two threads, many times, and in
//! orders that a runtime of one thread makes certain.
//!
//! Revocation of every kind is held to one promise: a use that begins after its answer does not succeed.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use aws_lc_rs::rand::SystemRandom as AwsRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::*;
use domain::access::{BuiltInRole, CustomRole, DataAction, Permission, RoleAssignment, Scope};
use domain::algorithm::{Curve, KeySpec, OctSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{Tags, VersionChange};
use domain::name::KeyName;
use domain::time::IntDate;
use serde_json::json;
use service::{
    AssignmentFilter, Error, KeyReference, NewAssignment, NotAuthenticated, PageRequest, Pool, PoolLimits,
    Random, Recorded, SystemRandom,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const STRANGER: Guid = Guid([9; 16]);
const ROUNDS: usize = 20;

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

fn result<T>(recorded: Recorded<T>) -> Result<T, Error> {
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "an answer without a receipt");
    result
}

async fn sign(pool: &Arc<Pool>, principal: Guid, key: &KeyReference) -> Result<(), Error> {
    let signed = pool.sign(ticket(pool, principal), key.clone(), SignatureAlgorithm::Es256, vec![7; 32]);
    result(signed.await).map(drop)
}

async fn assign(pool: &Arc<Pool>, scope: &str, role: Guid, principal: Guid) -> RoleAssignment {
    let scope = Scope::parse(scope).unwrap();
    let new = NewAssignment { name: SystemRandom.guid(), scope, role, principal };
    ok(pool.create_assignment(ticket(pool, ADMIN), new).await)
}

fn enabled(enabled: bool) -> VersionChange {
    VersionChange { enabled: Some(enabled), ..VersionChange::default() }
}

fn role(id: u8, name: &str, actions: &[DataAction]) -> CustomRole {
    let permission = Permission { data_actions: actions.to_vec(), not_data_actions: vec![] };
    CustomRole::new(Guid([id; 16]), name.into(), String::new(), vec![permission]).unwrap()
}

/// Two tasks use something again and again while `revoke` runs. None of the uses that begin after its answer may
/// succeed.
async fn no_use_begins_after<U, F>(uses: U, revoke: impl Future<Output = ()>)
where
    U: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let revoked = Arc::new(AtomicBool::new(false));
    let succeeded = Arc::new(AtomicUsize::new(0));
    let users: Vec<_> = (0..2)
        .map(|_| {
            let (uses, revoked, succeeded) = (uses.clone(), revoked.clone(), succeeded.clone());
            tokio::spawn(async move {
                loop {
                    let begins_after = revoked.load(Ordering::SeqCst);
                    let success = uses().await;
                    if begins_after {
                        assert!(!success, "a use that began after the answer succeeded");
                        return;
                    }
                    succeeded.fetch_add(usize::from(success), Ordering::SeqCst);
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    while succeeded.load(Ordering::SeqCst) < 4 {
        tokio::task::yield_now().await;
    }
    revoke.await;
    revoked.store(true, Ordering::SeqCst);
    for user in users {
        user.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_was_taken_away_signs_no_more() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    for _ in 0..ROUNDS {
        let held = assign(&pool, "/keys/k", BuiltInRole::CryptoUser.id(), STRANGER).await;
        let signer = pool.clone();
        let uses = move || {
            let pool = signer.clone();
            async move { sign(&pool, STRANGER, &current("k")).await.is_ok() }
        };
        let revoke = pool.delete_assignment(ticket(&pool, ADMIN), held.scope, held.name);
        no_use_begins_after(uses, async { drop(ok(revoke.await)) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_was_defined_anew_gives_what_it_says_now() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let define = |actions: &[DataAction]| {
        pool.define_role(ticket(&pool, ADMIN), Scope::Root, role(1, "signer", actions))
    };
    ok(define(&[DataAction::Sign]).await);
    assign(&pool, "/keys/k", Guid([1; 16]), STRANGER).await;
    for _ in 0..ROUNDS {
        ok(define(&[DataAction::Sign]).await);
        let signer = pool.clone();
        let uses = move || {
            let pool = signer.clone();
            async move { sign(&pool, STRANGER, &current("k")).await.is_ok() }
        };
        no_use_begins_after(uses, async { drop(ok(define(&[DataAction::Verify]).await)) }).await;
    }
}

/// Disabled, deleted and purged, a key signs no more, and its clear form is kept nowhere, whoever was using it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_disabled_deleted_or_purged_signs_no_more_and_is_not_kept() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for round in 0..ROUNDS {
        let made = create(&pool, "k", EC).await;
        let key = KeyReference { version: Some(made.version.version), ..current("k") };
        let uses = {
            let (pool, key) = (pool.clone(), key.clone());
            move || {
                let (pool, key) = (pool.clone(), key.clone());
                async move { sign(&pool, APP, &key).await.is_ok() }
            }
        };
        let disable = pool.update_key(ticket(&pool, APP), key.clone(), enabled(false));
        no_use_begins_after(uses.clone(), async { drop(ok(disable.await)) }).await;
        assert_eq!(pool.loaded_keys(), 0, "round {round}: disabled");
        ok(pool.update_key(ticket(&pool, APP), key.clone(), enabled(true)).await);

        let delete = pool.delete_key(ticket(&pool, APP), name("k"));
        no_use_begins_after(uses.clone(), async { drop(ok(delete.await)) }).await;
        assert_eq!(pool.loaded_keys(), 0, "round {round}: deleted");
        ok(pool.recover_key(ticket(&pool, OFFICER), name("k")).await);

        let gone = async {
            ok(pool.delete_key(ticket(&pool, APP), name("k")).await);
            ok(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
        };
        no_use_begins_after(uses, gone).await;
        assert_eq!(pool.loaded_keys(), 0, "round {round}: purged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_that_was_set_ends_use() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let signer = pool.clone();
    let uses = move || {
        let pool = signer.clone();
        async move { sign(&pool, APP, &current("k")).await.is_ok() }
    };
    let past = VersionChange { expires: Some(IntDate::from_unix_seconds(1)), ..VersionChange::default() };
    let expire = pool.update_key(ticket(&pool, APP), current("k"), past);
    no_use_begins_after(uses, async { drop(ok(expire.await)) }).await;
}

/// A pool with an issuer whose key is at hand.
fn with_issuer(bench: &mut Bench) -> EcdsaKeyPair {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "x": x, "y": y });
    bench.genesis.issuer.key_set = json!({ "keys": [jwk] }).to_string().into_bytes();
    key
}

/// A token of [`APP`].
fn token(key: &EcdsaKeyPair, issued_at: i64) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "ES256", "kid": "1", "typ": "JWT" }));
    let claims = part(json!({
        "iss": "https://issuer.example/t/v2.0", "aud": "https://managedhsm.localhost", "tid": "t",
        "oid": APP.to_string(), "iat": issued_at, "nbf": issued_at, "exp": issued_at + 36_000,
    }));
    let signed = format!("{header}.{claims}");
    let signature = key.sign(&AwsRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// The token is remembered as verified; that it was withdrawn is seen all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remembered_token_that_was_withdrawn_lets_nobody_in() {
    let mut bench = Bench::new();
    let key = with_issuer(&mut bench);
    let pool = bench.open().await;
    for _ in 0..ROUNDS {
        let text = token(&key, pool.now().int_date().unix_seconds());
        let verifier = pool.clone();
        let uses = move || {
            let (pool, text) = (verifier.clone(), text.clone());
            async move { pool.authenticate(&text).await.is_ok() }
        };
        let withdraw = pool.set_not_before(ticket(&pool, ADMIN), APP, None);
        no_use_begins_after(uses, async { assert_eq!(ok(withdraw.await).principal, APP) }).await;
        bench.clock.pass(1_000);
    }
}

/// One administrator is slow, another withdraws a second later and is answered first. What that answer promised holds.
#[tokio::test]
async fn a_withdrawal_is_not_taken_back_by_an_earlier_one_that_comes_late() {
    let mut bench = Bench::new();
    let key = with_issuer(&mut bench);
    let pool = bench.open().await;
    bench.clock.pass(1_000);
    let later = pool.now().int_date();
    let stolen = token(&key, later.unix_seconds());
    let quick = pool.set_not_before(ticket(&pool, ADMIN), APP, None);
    let slow = async {
        bench.clock.pass(-1_000);
        pool.set_not_before(ticket(&pool, ADMIN), APP, None).await
    };
    let (quick, slow) = tokio::join!(quick, slow);
    assert_eq!(ok(quick).not_before, later);
    assert_eq!(ok(slow).not_before, later, "the answer says what holds");
    bench.clock.pass(1_000);
    assert!(matches!(pool.authenticate(&stolen).await, Err(NotAuthenticated::Withdrawn)));
    // Nor does one that names an earlier moment; only taking it back does.
    let earlier = Some(IntDate::from_unix_seconds(1));
    ok(pool.set_not_before(ticket(&pool, ADMIN), APP, earlier).await);
    assert!(matches!(pool.authenticate(&stolen).await, Err(NotAuthenticated::Withdrawn)));
    ok(pool.clear_not_before(ticket(&pool, ADMIN), APP).await);
    assert!(pool.authenticate(&stolen).await.is_ok());
}

/// Both become versions of one key, in whatever spelling they were asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_creates_of_one_name_make_two_versions_of_one_key() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for round in 0..ROUNDS {
        let spell = |text: &str| {
            let (pool, text) = (pool.clone(), format!("{text}{round}"));
            tokio::spawn(async move { create(&pool, &text, KeySpec::Oct(OctSize::Oct128)).await })
        };
        let (first, second) = tokio::join!(spell("k"), spell("K"));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(first.version.name.to_string(), second.version.name.to_string(), "one spelling");
        let all = PageRequest { limit: 25, after: None };
        let listed = pool.list_versions(ticket(&pool, APP), name(&format!("k{round}")), all);
        let listed: BTreeSet<_> =
            ok(listed.await).items.into_iter().map(|view| view.version.version.0).collect();
        assert_eq!(listed, BTreeSet::from([first.version.version.0, second.version.version.0]));
    }
    pool.close().await;
    let pool = bench.open().await;
    let all = PageRequest { limit: 25, after: None };
    assert_eq!(ok(pool.list_keys(ticket(&pool, APP), all).await).items.len(), ROUNDS);
}

/// Each changes another member: neither is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_updates_of_one_version_both_hold() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    for round in 0..ROUNDS {
        let tags = Tags::new(BTreeMap::from([("round".to_owned(), round.to_string())])).unwrap();
        let change = |change: VersionChange| {
            let pool = pool.clone();
            tokio::spawn(async move { ok(pool.update_key(ticket(&pool, APP), current("k"), change).await) })
        };
        let is_enabled = round % 2 == 0;
        let tagged = VersionChange { tags: Some(tags.clone()), ..VersionChange::default() };
        let (tagged, switched) = tokio::join!(change(tagged), change(enabled(is_enabled)));
        tagged.unwrap();
        switched.unwrap();
        let held = ok(pool.read_key(ticket(&pool, APP), current("k")).await).version;
        assert_eq!((held.tags, held.attributes.enabled), (tags, is_enabled), "round {round}");
    }
}

/// One of the two happens, and whoever was refused is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_recovered_or_purged_and_never_both() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for round in 0..ROUNDS {
        let key = format!("k{round}");
        create(&pool, &key, EC).await;
        ok(pool.delete_key(ticket(&pool, APP), name(&key)).await);
        let recover = {
            let (pool, key) = (pool.clone(), name(&key));
            tokio::spawn(async move { result(pool.recover_key(ticket(&pool, OFFICER), key).await) })
        };
        let purge = {
            let (pool, key) = (pool.clone(), name(&key));
            tokio::spawn(async move { result(pool.purge_key(ticket(&pool, OFFICER), key).await) })
        };
        let (recovered, purged) = tokio::join!(recover, purge);
        let (recovered, purged) = (recovered.unwrap(), purged.unwrap());
        assert_ne!(recovered.is_ok(), purged.is_ok(), "round {round}");
        for refused in [recovered.as_ref().err(), purged.as_ref().err()].into_iter().flatten() {
            assert!(matches!(refused, Error::DeletedKeyNotFound { .. }), "{refused}");
        }
        assert_eq!(sign(&pool, APP, &current(&key)).await.is_ok(), recovered.is_ok());
    }
}

/// The same, each first in turn.
#[tokio::test]
async fn whoever_comes_first_of_recovery_and_purge_wins() {
    for recovery_is_first in [true, false] {
        let bench = Bench::new();
        let pool = bench.open().await;
        create(&pool, "k", EC).await;
        ok(pool.delete_key(ticket(&pool, APP), name("k")).await);
        let recover = pool.recover_key(ticket(&pool, OFFICER), name("k"));
        let purge = pool.purge_key(ticket(&pool, OFFICER), name("k"));
        let (recovered, purged) = if recovery_is_first {
            let (recovered, purged) = tokio::join!(recover, purge);
            (result(recovered), result(purged))
        } else {
            let (purged, recovered) = tokio::join!(purge, recover);
            (result(recovered), result(purged))
        };
        assert_eq!((recovered.is_ok(), purged.is_ok()), (recovery_is_first, !recovery_is_first));
    }
}

/// An update that was answered is there when the key comes back, or it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_beside_a_deletion_holds_or_is_refused() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for round in 0..ROUNDS {
        let key = format!("k{round}");
        create(&pool, &key, EC).await;
        let update = {
            let (pool, key) = (pool.clone(), current(&key));
            tokio::spawn(
                async move { result(pool.update_key(ticket(&pool, APP), key, enabled(false)).await) },
            )
        };
        let delete = {
            let (pool, key) = (pool.clone(), name(&key));
            tokio::spawn(async move { drop(ok(pool.delete_key(ticket(&pool, APP), key).await)) })
        };
        let (updated, deleted) = tokio::join!(update, delete);
        deleted.unwrap();
        let updated = updated.unwrap();
        let refused = updated.as_ref().err();
        assert!(refused.is_none_or(|error| matches!(error, Error::KeyNotFound { .. })), "{refused:?}");
        let back = ok(pool.recover_key(ticket(&pool, OFFICER), name(&key)).await);
        assert_eq!(back.version.attributes.enabled, updated.is_err(), "round {round}");
    }
}

/// Names of custom roles are compared among all of them, and two definitions write different records.
#[tokio::test]
async fn two_definitions_of_one_name_do_not_both_come_to_be() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let define = |id: u8, name: &str| {
        let role = role(id, name, &[DataAction::Sign]);
        pool.define_role(ticket(&pool, ADMIN), Scope::Root, role)
    };
    let (first, second) = tokio::join!(define(1, "signer"), define(2, "Signer"));
    ok(first);
    assert!(matches!(refused(second), Error::RoleNameTaken(_)));
    // Nor by renaming.
    ok(define(3, "other").await);
    let (first, second) = tokio::join!(define(3, "third"), define(4, "third"));
    ok(first);
    assert!(matches!(refused(second), Error::RoleNameTaken(_)));
}

/// One name, two contents: the second is told that it is taken. One assignment, two removals: the second finds nothing.
#[tokio::test]
async fn an_assignments_name_is_taken_once_and_removed_once() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let assign = |principal: Guid| {
        let role = BuiltInRole::CryptoUser.id();
        let new = NewAssignment { name: Guid([8; 16]), scope: Scope::Keys, role, principal };
        pool.create_assignment(ticket(&pool, ADMIN), new)
    };
    let (first, second) = tokio::join!(assign(STRANGER), assign(OFFICER));
    ok(first);
    assert!(matches!(refused(second), Error::AssignmentExists { .. }));
    let remove = || pool.delete_assignment(ticket(&pool, ADMIN), Scope::Keys, Guid([8; 16]));
    let (first, second) = tokio::join!(remove(), remove());
    ok(first);
    assert!(matches!(refused(second), Error::AssignmentNotFound { .. }));
}

/// How many of two dozen attempts at one moment are done; each of the others must be refused for a limit.
async fn within_limit<F>(attempt: impl Fn(u8) -> F) -> usize
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    let attempts: Vec<_> = (1..=24).map(|number| tokio::spawn(attempt(number))).collect();
    let mut done = 0;
    for attempt in attempts {
        let attempted = attempt.await.unwrap();
        assert!(matches!(attempted, Ok(()) | Err(Error::LimitReached { .. })), "{attempted:?}");
        done += usize::from(attempted.is_ok());
    }
    done
}

/// Each of them finds the last places free when it decides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold_for_those_who_come_at_one_moment() {
    let limits = PoolLimits {
        keys: 5,
        assignments_at_pool_scope: 8,
        assignments_at_key_scope: 3,
        ..PoolLimits::default()
    };
    let bench = Bench { limits, ..Bench::new() };
    let pool = bench.open().await;
    let create = |number: u8| {
        let pool = pool.clone();
        async move {
            let new = new_key(&format!("key-{number}"), KeySpec::Oct(OctSize::Oct256));
            result(pool.create_key(ticket(&pool, APP), new).await).map(drop)
        }
    };
    assert_eq!(within_limit(create).await, 5);
    let before =
        ok(pool.list_assignments(ticket(&pool, ADMIN), Scope::Root, AssignmentFilter::Here).await).len();
    // Of a key that is not there nothing is written, by which one would meet another.
    for (scope, left) in [("/", 8 - before), ("/keys/not-there", 3)] {
        let assign = |_| {
            let (pool, scope) = (pool.clone(), Scope::parse(scope).unwrap());
            let role = BuiltInRole::CryptoUser.id();
            let new = NewAssignment { name: SystemRandom.guid(), scope, role, principal: STRANGER };
            async move { result(pool.create_assignment(ticket(&pool, ADMIN), new).await).map(drop) }
        };
        assert_eq!(within_limit(assign).await, left, "at {scope}");
    }
}
