//! Deletion, recovery, purge, lists, settings and roles of a pool on real parts.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::*;
use domain::access::{BuiltInRole, CustomRole, DataAction, Permission, RoleAssignment, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyOperation, KeyRefused, VersionChange};
use domain::name::KeyName;
use domain::pool::{Genesis, PoolClass, RetentionDays};
use domain::setting::SettingValue;
use domain::time::IntDate;
use serde_json::json;
use service::{
    AssignmentFilter, DecryptInput, EncryptInput, Error, KeyReference, NewAssignment, NotAuthenticated, Page,
    PageRequest, Pool, PoolLimits, Recorded, RoleName, Schedule, SecretBytes, Tick, UsedKey,
};
use std::sync::Arc;

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const DAY: i64 = 86_400_000;

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

async fn sign(pool: &Arc<Pool>, principal: Guid, key: &str) -> Recorded<UsedKey<Vec<u8>>> {
    pool.sign(ticket(pool, principal), current(key), SignatureAlgorithm::Es256, vec![7; 32]).await
}

async fn delete(pool: &Arc<Pool>, key: &str) {
    ok(pool.delete_key(ticket(pool, APP), name(key)).await);
}

async fn assign(pool: &Arc<Pool>, scope: &str, role: Guid, principal: Guid) -> RoleAssignment {
    let scope = Scope::parse(scope).unwrap();
    let new = NewAssignment { name: service::Random::guid(&service::SystemRandom), scope, role, principal };
    ok(pool.create_assignment(ticket(pool, ADMIN), new).await)
}

fn first<C>(limit: usize) -> PageRequest<C> {
    PageRequest { limit, after: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_key_is_gone_until_it_is_recovered_and_then_as_it_was() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let made = create(&pool, "k", EC).await;
    ok(sign(&pool, APP, "k").await);
    delete(&pool, "k").await;
    let deleted = ok(pool.read_deleted_key(ticket(&pool, OFFICER), name("K")).await);
    assert_eq!(deleted.key, made);
    assert_eq!(deleted.purge_at.unix_seconds() - deleted.deleted_at.unix_seconds(), 90 * 86_400);
    for error in [
        refused(sign(&pool, APP, "k").await),
        refused(pool.read_key(ticket(&pool, APP), current("k")).await),
        refused(pool.update_key(ticket(&pool, APP), current("k"), VersionChange::default()).await),
        refused(pool.delete_key(ticket(&pool, APP), name("k")).await),
        refused(pool.list_versions(ticket(&pool, APP), name("k"), first(25)).await),
    ] {
        assert!(matches!(error, Error::KeyNotFound { .. }), "{error}");
    }
    let taken = refused(pool.create_key(ticket(&pool, APP), new_key("k", EC)).await);
    assert!(matches!(taken, Error::Key(KeyRefused::Deleted)));
    pool.close().await;

    let pool = bench.open().await;
    assert_eq!(ok(pool.recover_key(ticket(&pool, OFFICER), name("k")).await), made);
    ok(sign(&pool, APP, "k").await);
    for error in [
        refused(pool.recover_key(ticket(&pool, OFFICER), name("k")).await),
        refused(pool.purge_key(ticket(&pool, OFFICER), name("k")).await),
        refused(pool.read_deleted_key(ticket(&pool, OFFICER), name("k")).await),
    ] {
        assert!(matches!(error, Error::DeletedKeyNotFound { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_key_leaves_nothing_to_a_later_one_of_its_name() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let stranger = Guid([9; 16]);
    let old = create(&pool, "k", EC).await;
    create(&pool, "k", EC).await;
    assign(&pool, "/keys/K", BuiltInRole::CryptoUser.id(), stranger).await;
    ok(sign(&pool, stranger, "k").await);
    delete(&pool, "k").await;
    assert!(matches!(refused(pool.purge_key(ticket(&pool, APP), name("k")).await), Error::Denied(_)));
    ok(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
    create(&pool, "k", EC).await;
    pool.close().await;

    let pool = bench.open().await;
    assert!(matches!(refused(sign(&pool, stranger, "k").await), Error::Denied(_)));
    let old = KeyReference { version: Some(old.version.version), ..current("k") };
    let error = refused(pool.read_key(ticket(&pool, APP), old).await);
    assert!(matches!(error, Error::VersionNotFound { .. }));
    let scope = Scope::parse("/keys/k").unwrap();
    assert!(ok(pool.list_assignments(ticket(&pool, ADMIN), scope, AssignmentFilter::Here).await).is_empty());
}

/// As the service's specification has them.
#[tokio::test(flavor = "multi_thread")]
async fn assignments_are_listed_as_they_count_and_as_they_are_somebodys() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let somebody = Guid([9; 16]);
    create(&pool, "k", EC).await;
    for scope in ["/", "/keys", "/keys/k", "/keys/other"] {
        assign(&pool, scope, BuiltInRole::CryptoUser.id(), somebody).await;
    }
    let list = async |scope: &str, filter: AssignmentFilter| -> Vec<(Guid, String)> {
        let scope = Scope::parse(scope).unwrap();
        let held = ok(pool.list_assignments(ticket(&pool, ADMIN), scope, filter).await);
        let mut held: Vec<_> =
            held.into_iter().map(|held| (held.principal, held.scope.to_string())).collect();
        held.sort();
        held
    };
    let of = |scopes: &[&str]| scopes.iter().map(|scope| (somebody, (*scope).to_owned())).collect::<Vec<_>>();
    assert_eq!(list("/keys/k", AssignmentFilter::Here).await, of(&["/keys/k"]));
    assert_eq!(list("/keys/k", AssignmentFilter::Of(somebody)).await, of(&["/", "/keys", "/keys/k"]));
    let everywhere = ["/", "/keys", "/keys/k", "/keys/other"];
    assert_eq!(list("/", AssignmentFilter::Of(somebody)).await, of(&everywhere));
    assert_eq!(list("/", AssignmentFilter::Of(Guid([8; 16]))).await, []);
    let counting = list("/keys/k", AssignmentFilter::Counting).await;
    assert_eq!(counting.iter().filter(|held| held.0 == somebody).count(), 3);
    assert!(counting.contains(&(ADMIN, "/".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_ends_in_a_purge_and_purge_protection_lets_nobody_be_earlier() {
    let mut bench = Bench::new();
    bench.genesis =
        Genesis { retention: RetentionDays::new(7).unwrap(), purge_protection: true, ..genesis() };
    let pool = bench.open().await;
    let mut schedule = Schedule::default();
    create(&pool, "k", EC).await;
    create(&pool, "stays", EC).await;
    delete(&pool, "k").await;
    let protected = refused(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
    assert!(matches!(protected, Error::Key(KeyRefused::PurgeProtected { .. })));
    bench.clock.pass(7 * DAY - 1_000);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    bench.clock.pass(1_000);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 1, rotated: 0 });
    create(&pool, "k", EC).await;
    ok(sign(&pool, APP, "stays").await);
    let last = pool.audit_page(0, 100).await.unwrap();
    assert!(last.iter().any(|event| event["operationName"] == "KeyPurge" && event["httpStatusCode"] == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_ahead_purges_nothing() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let mut schedule = Schedule::default();
    create(&pool, "k", EC).await;
    delete(&pool, "k").await;
    bench.clock.set_ahead(91 * DAY);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
    bench.clock.set_ahead(-91 * DAY);
    bench.clock.pass(91 * DAY);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
    ok(pool.recover_key(ticket(&pool, OFFICER), name("k")).await);
    let events = pool.audit_page(0, 100).await.unwrap();
    assert_eq!(events.iter().filter(|event| event["operationName"] == "ClockJumpAlarm").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_production_pool_that_starts_with_a_clock_that_is_ahead_purges_nothing_for_a_day() {
    let mut bench = Bench::new();
    bench.genesis = Genesis { class: PoolClass::Production, purge_protection: true, ..genesis() };
    let pool = bench.open().await;
    assign(&pool, "/", BuiltInRole::CryptoUser.id(), APP).await;
    create(&pool, "k", EC).await;
    delete(&pool, "k").await;
    pool.close().await;

    bench.clock.set_ahead(91 * DAY);
    let pool = bench.open().await;
    let mut schedule = Schedule::default();
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    bench.clock.pass(DAY - 1);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    // Put right within the day: from here on it is a clock that jumps.
    bench.clock.set_ahead(-91 * DAY);
    bench.clock.pass(1);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Stopped);
    bench.clock.set_ahead(91 * DAY);
    let mut schedule = Schedule::default();
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 1, rotated: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_show_each_key_once_and_only_what_the_caller_may_see() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for number in 0..7 {
        create(&pool, &format!("k{number}"), KeySpec::Oct(OctSize::Oct128)).await;
    }
    delete(&pool, "k3").await;
    let mut seen = Vec::new();
    let mut request = first(2);
    loop {
        let Page { items, next } = ok(pool.list_keys(ticket(&pool, APP), request.clone()).await);
        assert!(items.len() <= 2);
        seen.extend(items.into_iter().map(|view| view.version.name.to_string()));
        match next {
            Some(place) => request.after = Some(place),
            None => break,
        }
    }
    assert_eq!(seen, ["k0", "k1", "k2", "k4", "k5", "k6"]);
    let stranger = Guid([9; 16]);
    assert!(matches!(refused(pool.list_keys(ticket(&pool, stranger), first(25)).await), Error::Denied(_)));
    assign(&pool, "/keys/k4", BuiltInRole::CryptoUser.id(), stranger).await;
    assign(&pool, "/keys/k3", BuiltInRole::CryptoOfficer.id(), stranger).await;
    let live = ok(pool.list_keys(ticket(&pool, stranger), first(25)).await);
    let names: Vec<_> = live.items.iter().map(|view| view.version.name.to_string()).collect();
    assert_eq!((names, live.next), (vec!["k4".to_owned()], None));
    let deleted = ok(pool.list_deleted_keys(ticket(&pool, stranger), first(25)).await);
    assert_eq!(deleted.items.len(), 1);
    assert!(matches!(refused(pool.list_deleted_keys(ticket(&pool, APP), first(25)).await), Error::Denied(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_enforced_once_it_is_answered() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let made = create(&pool, "k", EC).await;
    ok(sign(&pool, APP, "k").await);
    bench.clock.pass(5_000);
    let disable = VersionChange { enabled: Some(false), ..VersionChange::default() };
    let updated = ok(pool.update_key(ticket(&pool, APP), current("k"), disable).await);
    assert!(updated.version.attributes.updated > made.version.attributes.updated);
    assert!(matches!(refused(sign(&pool, APP, "k").await), Error::UseRefused(_)));
    let enable = VersionChange { enabled: Some(true), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("k"), enable).await);
    ok(sign(&pool, APP, "k").await);
    // A new version has attributes of its own; the old one keeps what it was given.
    create(&pool, "k", EC).await;
    let old = KeyReference { version: Some(made.version.version), ..current("k") };
    let exp = VersionChange { expires: Some(IntDate::from_unix_seconds(1)), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), old.clone(), exp).await);
    ok(sign(&pool, APP, "k").await);
    let signed = pool.sign(ticket(&pool, APP), old, SignatureAlgorithm::Es256, vec![7; 32]).await;
    assert!(matches!(refused(signed), Error::UseRefused(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_roles_give_rights_at_once_and_lose_them_at_once() {
    let mut bench = Bench::new();
    bench.limits = PoolLimits { custom_roles: 1, ..PoolLimits::default() };
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let stranger = Guid([9; 16]);
    let role = |id: u8, name: &str, actions: &[DataAction]| {
        let permission = Permission { data_actions: actions.to_vec(), not_data_actions: vec![] };
        CustomRole::new(Guid([id; 16]), name.into(), String::new(), vec![permission]).unwrap()
    };
    let define = |role: CustomRole| pool.define_role(ticket(&pool, ADMIN), Scope::Root, role);
    let signer = Guid([1; 16]);
    let unknown = NewAssignment { name: signer, scope: Scope::Keys, role: signer, principal: stranger };
    let unknown = refused(pool.create_assignment(ticket(&pool, ADMIN), unknown).await);
    assert!(matches!(unknown, Error::RoleNotFound(_)));
    ok(define(role(1, "signer", &[DataAction::Sign])).await);
    assign(&pool, "/keys/k", signer, stranger).await;
    ok(sign(&pool, stranger, "k").await);
    ok(define(role(1, "signer", &[DataAction::Verify])).await);
    assert!(matches!(refused(sign(&pool, stranger, "k").await), Error::Denied(_)));
    ok(define(role(1, "signer", &[DataAction::Sign])).await);
    assert!(matches!(
        refused(define(role(2, "managed hsm crypto user", &[])).await),
        Error::RoleNameTaken(_)
    ));
    assert!(matches!(refused(define(role(2, "other", &[])).await), Error::LimitReached { limit: 1, .. }));
    let at_keys = pool.define_role(ticket(&pool, ADMIN), Scope::Keys, role(1, "signer", &[])).await;
    assert!(matches!(refused(at_keys), Error::RoleScope));
    let by_user = pool.define_role(ticket(&pool, APP), Scope::Root, role(1, "signer", &[])).await;
    assert!(matches!(refused(by_user), Error::Denied(_)));
    let built_in = RoleName::Guid(BuiltInRole::CryptoUser.id());
    let built_in = pool.delete_role(ticket(&pool, ADMIN), Scope::Root, built_in).await;
    assert!(matches!(refused(built_in), Error::CustomRole(_)));
    pool.close().await;

    let pool = bench.open().await;
    ok(sign(&pool, stranger, "k").await);
    ok(pool.delete_role(ticket(&pool, ADMIN), Scope::Root, RoleName::Guid(signer)).await);
    assert!(matches!(refused(sign(&pool, stranger, "k").await), Error::Denied(_)));
    assert_eq!(ok(pool.list_roles(ticket(&pool, ADMIN), Scope::Root).await).len(), 9);
}

/// Both decide before either is committed; on one thread they are committed in the order of their first steps.
#[tokio::test]
async fn an_assignment_made_while_its_key_is_purged_does_not_outlive_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    delete(&pool, "k").await;
    let scope = Scope::Key(name("k"));
    let new = NewAssignment {
        name: Guid([8; 16]),
        scope: scope.clone(),
        role: BuiltInRole::CryptoUser.id(),
        principal: Guid([9; 16]),
    };
    let (assigned, purged) = tokio::join!(
        pool.create_assignment(ticket(&pool, ADMIN), new),
        pool.purge_key(ticket(&pool, OFFICER), name("k")),
    );
    ok(assigned);
    ok(purged);
    assert!(ok(pool.list_assignments(ticket(&pool, ADMIN), scope, AssignmentFilter::Here).await).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn encryptions_with_random_ivs_are_counted_over_restarts_and_end() {
    let mut bench = Bench::new();
    // One block of leases and a little of a second one.
    bench.limits = PoolLimits { gcm_encryptions: (1 << 16) + 2, ..PoolLimits::default() };
    let pool = bench.open().await;
    create(&pool, "k", KeySpec::Oct(OctSize::Oct256)).await;
    let encrypt = async |pool: &Arc<Pool>, algorithm| {
        let plaintext = Arc::new(SecretBytes::new(vec![5; 16]));
        let input = EncryptInput { plaintext, iv: None, additional_data: None };
        pool.encrypt(ticket(pool, APP), current("k"), algorithm, input).await
    };
    let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
    ok(encrypt(&pool, gcm).await);
    pool.close().await;

    // What was left of the first block is not used again.
    let pool = bench.open().await;
    for _ in 0..2 {
        ok(encrypt(&pool, gcm).await);
    }
    let exhausted = refused(encrypt(&pool, gcm).await);
    assert!(matches!(exhausted, Error::InvocationsExhausted { .. }), "{exhausted}");
    ok(encrypt(&pool, EncryptionAlgorithm::AesCbcPad(OctSize::Oct256)).await);
    // A new version has a count of its own, and a purge takes the counts along.
    create(&pool, "k", KeySpec::Oct(OctSize::Oct256)).await;
    ok(encrypt(&pool, gcm).await);
    delete(&pool, "k").await;
    ok(pool.purge_key(ticket(&pool, OFFICER), name("k")).await);
    create(&pool, "k", KeySpec::Oct(OctSize::Oct256)).await;
    ok(encrypt(&pool, gcm).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa15_can_be_turned_off_and_its_failures_are_limited_in_production() {
    let mut bench = Bench::new();
    bench.genesis = Genesis { class: PoolClass::Production, ..genesis() };
    bench.limits = PoolLimits { rsa15_failures_per_hour: 3, ..PoolLimits::default() };
    let pool = bench.open().await;
    assign(&pool, "/", BuiltInRole::CryptoUser.id(), APP).await;
    create(&pool, "k", KeySpec::Rsa(RsaSize::Rsa2048)).await;
    let decrypt = |algorithm, ciphertext: Vec<u8>| {
        let input = DecryptInput { ciphertext, iv: None, additional_data: None, tag: None };
        pool.decrypt(ticket(&pool, APP), current("k"), algorithm, input)
    };
    let garbage = || decrypt(EncryptionAlgorithm::Rsa15, vec![1; 256]);
    for _ in 0..3 {
        assert!(matches!(refused(garbage().await), Error::Partition(_)));
    }
    let limited = refused(garbage().await);
    assert!(matches!(limited, Error::TooManyFailures { limit: 3, .. }), "{limited}");
    let other = refused(decrypt(EncryptionAlgorithm::RsaOaep256, vec![1; 256]).await);
    assert!(matches!(other, Error::Partition(_)));
    bench.clock.pass(3_600_000);
    assert!(matches!(refused(garbage().await), Error::Partition(_)));
    let alarms = pool.audit_page(0, 1_000).await.unwrap();
    let alarms = alarms.iter().filter(|event| event["operationName"] == "DecryptionFailureAlarm");
    assert_eq!(alarms.count(), 1);

    let name = "holdfastallowrsa15decryption".to_owned();
    let denied =
        refused(pool.update_setting(ticket(&pool, APP), name.clone(), SettingValue::Boolean(false)).await);
    assert!(matches!(denied, Error::Denied(_)));
    ok(pool.update_setting(ticket(&pool, ADMIN), name, SettingValue::Boolean(false)).await);
    assert!(matches!(refused(garbage().await), Error::Rsa15Off));
    let unknown = refused(
        pool.update_setting(ticket(&pool, ADMIN), "nothing".into(), SettingValue::Boolean(false)).await,
    );
    assert!(matches!(unknown, Error::SettingNotFound(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn cbc_is_turned_off_by_an_administrator() {
    const SIZE: OctSize = OctSize::Oct256;
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", KeySpec::Oct(SIZE)).await;
    let encrypt = async |algorithm, iv: Option<Vec<u8>>| {
        let input =
            EncryptInput { plaintext: SecretBytes::new(vec![0; 16]).into(), iv, additional_data: None };
        pool.encrypt(ticket(&pool, APP), current("k"), algorithm, input).await
    };
    let decrypt = async |algorithm| {
        let (iv, ciphertext) = (Some(vec![0; 16]), vec![1; 16]);
        let input = DecryptInput { ciphertext, iv, additional_data: None, tag: None };
        pool.decrypt(ticket(&pool, APP), current("k"), algorithm, input).await
    };
    let zeros = || Some(vec![0; 16]);
    ok(encrypt(EncryptionAlgorithm::AesCbc(SIZE), zeros()).await);
    ok(decrypt(EncryptionAlgorithm::AesCbc(SIZE)).await);
    let name = "HoldfastAllowCbc".to_owned();
    ok(pool.update_setting(ticket(&pool, ADMIN), name, SettingValue::Boolean(false)).await);
    for algorithm in [EncryptionAlgorithm::AesCbc(SIZE), EncryptionAlgorithm::AesCbcPad(SIZE)] {
        assert!(matches!(refused(encrypt(algorithm, zeros()).await), Error::CbcOff));
        assert!(matches!(refused(decrypt(algorithm).await), Error::CbcOff));
    }
    ok(encrypt(EncryptionAlgorithm::AesGcm(SIZE), None).await);
}

/// A token of [`APP`] issued at `issued_at`, signed as the pool's issuer would.
fn token(key: &EcdsaKeyPair, issued_at: i64) -> String {
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "ES256", "kid": "1", "typ": "JWT" }));
    let claims = part(json!({
        "iss": "https://issuer.example/t/v2.0", "aud": "https://managedhsm.localhost", "tid": "t",
        "oid": APP.to_string(), "iat": issued_at, "nbf": issued_at, "exp": issued_at + 3_600,
    }));
    let signed = format!("{header}.{claims}");
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_tokens_are_refused_at_once() {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = key.public_key().as_ref()[1..].split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "x": x, "y": y });
    let mut bench = Bench::new();
    bench.genesis.issuer.key_set = json!({ "keys": [jwk] }).to_string().into_bytes();
    let pool = bench.open().await;
    let now = pool.now().int_date().unix_seconds();
    let old = token(&key, now - 10);
    let same_second = token(&key, now);
    assert_eq!(pool.authenticate(&old).await.unwrap().object_id, APP);
    ok(pool.set_not_before(ticket(&pool, ADMIN), APP, None).await);
    for token in [&old, &same_second] {
        assert!(matches!(pool.authenticate(token).await, Err(NotAuthenticated::Withdrawn)));
    }
    bench.clock.pass(1_000);
    assert!(pool.authenticate(&token(&key, now + 1)).await.is_ok());
    ok(pool.clear_not_before(ticket(&pool, ADMIN), APP).await);
    assert!(pool.authenticate(&old).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_not_before_in_the_future_is_refused() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let now = pool.now().int_date();
    let later = IntDate::from_unix_seconds(now.unix_seconds() + 1);
    let refused_ = refused(pool.set_not_before(ticket(&pool, ADMIN), ADMIN, Some(later)).await);
    assert!(matches!(refused_, Error::BadParameter(_)));
    let denied = refused(pool.set_not_before(ticket(&pool, OFFICER), ADMIN, None).await);
    assert!(matches!(denied, Error::Denied(_)));
    let set = ok(pool.set_not_before(ticket(&pool, ADMIN), APP, None).await);
    assert_eq!(set.not_before, now);
    pool.close().await;
    let pool = bench.open().await;
    assert_eq!(ok(pool.list_not_before(ticket(&pool, ADMIN)).await), vec![set]);
    ok(pool.clear_not_before(ticket(&pool, ADMIN), APP).await);
    let gone = refused(pool.clear_not_before(ticket(&pool, ADMIN), APP).await);
    assert!(matches!(gone, Error::NotBeforeNotFound(_)));
}

/// For an hour, and as long as it says what is so.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_repeated_while_it_holds() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let attest = async || ok(pool.attest_key(ticket(&pool, APP), current("k")).await).attestation;
    let first = attest().await;
    bench.clock.pass(3_599_000);
    let tags = domain::key::Tags::new([("a".into(), "b".into())].into()).unwrap();
    let tagged = VersionChange { tags: Some(tags), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("k"), tagged).await);
    assert_eq!(attest().await, first);
    let operations = Some([KeyOperation::Sign].into_iter().collect());
    let narrowed = VersionChange { operations, ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("k"), narrowed).await);
    let second = attest().await;
    assert_ne!(second.private, first.private);
    bench.clock.pass(3_600_000);
    assert_ne!(attest().await.private, second.private);
}
