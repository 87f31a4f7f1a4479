//! A pool on real parts (redb, log files, the software partition): what it does, refuses, records and survives.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::*;
use crypto::domain_secrets::DomainSecrets;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::KeyOperation;
use domain::pool::{Genesis, PoolClass};
use domain::time::IntDate;
use host_embedded::{EngineOptions, RedbEngine};
use service::{
    AssignmentFilter, DecryptInput, EncryptInput, Error, KeyReference, NewAssignment, Pool, PoolLimits,
    SecretBytes,
};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_each_type_work_and_are_found_again_after_a_restart() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let digest = vec![7; 32];
    let signing = [
        ("rsa", KeySpec::Rsa(RsaSize::Rsa2048), SignatureAlgorithm::Ps256),
        ("ec", KeySpec::Ec(Curve::P256), SignatureAlgorithm::Es256),
    ];
    let mut signatures = Vec::new();
    for (name, spec, algorithm) in signing {
        let view = create(&pool, name, spec).await;
        let signed = ok(pool.sign(ticket(&pool, APP), current(name), algorithm, digest.clone()).await);
        assert_eq!(signed.version, view.version.version);
        signatures.push((name, algorithm, view, signed.result));
    }
    create(&pool, "oct", KeySpec::Oct(OctSize::Oct256)).await;
    let input =
        EncryptInput { plaintext: Arc::new(SecretBytes::new(vec![5; 32])), iv: None, additional_data: None };
    let kw = EncryptionAlgorithm::AesKw(OctSize::Oct256);
    let wrapped = ok(pool.wrap_key(ticket(&pool, APP), current("oct"), kw, input.clone()).await).result.bytes;
    let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
    let sealed = ok(pool.encrypt(ticket(&pool, APP), current("oct"), gcm, input).await).result;
    pool.close().await;

    let pool = bench.open().await;
    for (name, algorithm, view, signature) in signatures {
        assert_eq!(ok(pool.read_key(ticket(&pool, APP), current(name)).await), view);
        let verify = |signature: Vec<u8>| {
            pool.verify(ticket(&pool, APP), current(name), algorithm, digest.clone(), signature)
        };
        let mut wrong = signature.clone();
        wrong[10] ^= 1;
        assert!(ok(verify(signature).await).result);
        assert!(!ok(verify(wrong).await).result);
    }
    let decrypt =
        |ciphertext: Vec<u8>| DecryptInput { ciphertext, iv: None, additional_data: None, tag: None };
    let unwrapped = ok(pool.unwrap_key(ticket(&pool, APP), current("oct"), kw, decrypt(wrapped)).await);
    assert_eq!(unwrapped.result.danger_expose(), [5; 32]);
    let input = DecryptInput { iv: sealed.iv, tag: sealed.tag, ..decrypt(sealed.bytes) };
    let opened = ok(pool.decrypt(ticket(&pool, APP), current("oct"), gcm, input).await);
    assert_eq!(opened.result.danger_expose(), [5; 32]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lacks_the_right_is_refused_with_the_remedy_and_leaves_one_event() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", KeySpec::Ec(Curve::P256)).await;
    let stranger = Guid([9; 16]);
    for principal in [ADMIN, stranger] {
        let error = refused(
            pool.sign(ticket(&pool, principal), current("k"), SignatureAlgorithm::Es256, vec![0; 32]).await,
        );
        let text = error.to_string();
        for part in [&principal.to_string(), "keys/sign/action", "/keys/k", "Managed HSM Crypto User"] {
            assert!(text.contains(part), "{text}");
        }
        // Absent and forbidden look alike to whoever has no right.
        let absent = refused(pool.read_key(ticket(&pool, principal), current("no-such-key")).await);
        assert!(matches!(absent, Error::Denied(_)));
    }
    let events = events(&pool).await;
    assert_eq!(events.len(), 5);
    assert_eq!(events.iter().filter(|event| *event == "Unknown Forbidden").count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_only_what_its_attributes_allow() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let now = 1_800_000_000;
    let es256 = SignatureAlgorithm::Es256;
    let ec = KeySpec::Ec(Curve::P256);
    let mut sign_only = new_key("sign-only", ec);
    sign_only.operations = Some([KeyOperation::Sign].into_iter().collect());
    let mut disabled = new_key("disabled", ec);
    disabled.enabled = false;
    let mut expiring = new_key("expiring", ec);
    expiring.expires = Some(IntDate::from_unix_seconds(now + 10));
    for key in [sign_only, disabled, expiring] {
        ok(pool.create_key(ticket(&pool, APP), key).await);
    }
    let sign = |name: &'static str| pool.sign(ticket(&pool, APP), current(name), es256, vec![0; 32]);
    let verify =
        |name: &'static str| pool.verify(ticket(&pool, APP), current(name), es256, vec![0; 32], vec![0; 64]);
    ok(sign("sign-only").await);
    assert!(refused(verify("sign-only").await).to_string().contains("key_ops"));
    assert!(refused(sign("disabled").await).to_string().contains("disabled"));
    ok(sign("expiring").await);
    bench.clock.pass(10_000);
    assert!(refused(sign("expiring").await).to_string().contains("exp"));
    assert!(!ok(verify("expiring").await).result);
    let wrong =
        pool.sign(ticket(&pool, APP), current("sign-only"), SignatureAlgorithm::Rs256, vec![0; 32]).await;
    assert!(matches!(refused(wrong), Error::Partition(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_creators_of_one_name_each_get_a_version_of_their_own() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                create(&pool, "shared", KeySpec::Oct(OctSize::Oct128)).await.version.version
            })
        })
        .collect();
    let mut versions = Vec::new();
    for task in tasks {
        versions.push(task.await.unwrap());
    }
    for version in &versions {
        let key = KeyReference { version: Some(*version), ..current("shared") };
        ok(pool.read_key(ticket(&pool, APP), key).await);
    }
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_limit_holds() {
    let bench = Bench { limits: PoolLimits { keys: 2, ..PoolLimits::default() }, ..Bench::new() };
    let pool = bench.open().await;
    let spec = KeySpec::Oct(OctSize::Oct256);
    create(&pool, "one", spec).await;
    create(&pool, "two", spec).await;
    let third = refused(pool.create_key(ticket(&pool, APP), new_key("three", spec)).await);
    assert!(matches!(third, Error::LimitReached { limit: 2, .. }));
    create(&pool, "two", spec).await;
}

/// Whoever locks the owner out can have filled what assignments there may be.
#[tokio::test(flavor = "multi_thread")]
async fn the_break_glass_group_has_places_beyond_the_limit_and_few() {
    const GROUP: Guid = Guid([0xb1; 16]);
    const MEMBER: Guid = Guid([0xb2; 16]);
    let mut bench = Bench::new();
    bench.limits.assignments_at_pool_scope = 3;
    bench.genesis.break_glass_group = Some(GROUP);
    let pool = bench.open().await;
    let wish = |number: u8, role: BuiltInRole| NewAssignment {
        name: Guid([number; 16]),
        scope: Scope::Root,
        role: role.id(),
        principal: Guid([0xb3; 16]),
    };
    let full = |refusal: Error| assert!(matches!(refusal, Error::LimitReached { limit: 3, .. }), "{refusal}");
    full(refused(pool.create_assignment(ticket(&pool, ADMIN), wish(1, BuiltInRole::Administrator)).await));
    let member = || ticket_in(&pool, MEMBER, &[GROUP]);
    for number in 1..=5 {
        ok(pool.create_assignment(member(), wish(number, BuiltInRole::Administrator)).await);
    }
    full(refused(pool.create_assignment(member(), wish(6, BuiltInRole::Administrator)).await));
    full(refused(pool.create_assignment(ticket(&pool, ADMIN), wish(6, BuiltInRole::CryptoUser)).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_request_leaves_its_event() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let mut abandoned = ticket(&pool, APP);
    abandoned.operation("KeySign");
    drop(abandoned);
    create(&pool, "k", KeySpec::Oct(OctSize::Oct256)).await;
    assert_eq!(events(&pool).await[0], "KeySign Other");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_founded_once() {
    let bench = Bench::new();
    bench.open().await.close().await;
    let secrets = DomainSecrets::import(&SecretBytes::new(bench.secrets.clone())).unwrap();
    let engine = RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap();
    let other = Genesis { class: PoolClass::Production, ..genesis() };
    assert!(Pool::found(&engine, &secrets, other, None).await.is_err());
    assert!(Pool::found(&engine, &DomainSecrets::generate(), genesis(), None).await.is_err());
    assert!(Pool::found(&engine, &secrets, genesis(), None).await.is_ok());
}

#[tokio::test]
async fn a_member_of_the_break_glass_group_makes_an_administrator_and_does_nothing_else() {
    const GROUP: Guid = Guid([0xb1; 16]);
    const MEMBER: Guid = Guid([0xb2; 16]);
    let mut bench = Bench::new();
    bench.genesis.break_glass_group = Some(GROUP);
    let pool = bench.open().await;
    let member = || ticket_in(&pool, MEMBER, &[Guid([1; 16]), GROUP]);
    let wish = |number: u8, role: BuiltInRole, scope: Scope| NewAssignment {
        name: Guid([number; 16]),
        scope,
        role: role.id(),
        principal: MEMBER,
    };
    let administrator = || wish(1, BuiltInRole::Administrator, Scope::Root);
    let denied = |refusal: Error| assert!(matches!(refusal, Error::Denied(_)), "{refusal}");
    for other in [ticket(&pool, MEMBER), ticket(&pool, GROUP), ticket_in(&pool, MEMBER, &[APP])] {
        denied(refused(pool.create_assignment(other, administrator()).await));
    }
    for (role, scope) in [
        (BuiltInRole::Administrator, Scope::Keys),
        (BuiltInRole::CryptoOfficer, Scope::Root),
        (BuiltInRole::CryptoUser, Scope::Keys),
    ] {
        denied(refused(pool.create_assignment(member(), wish(2, role, scope)).await));
    }
    denied(refused(pool.create_key(member(), new_key("k", KeySpec::Ec(Curve::P256))).await));
    denied(refused(pool.list_assignments(member(), Scope::Root, AssignmentFilter::Here).await));

    ok(pool.create_assignment(member(), administrator()).await);
    let event = pool.audit_page(0, 10_000).await.unwrap().pop().unwrap().to_string();
    assert!(event.contains(&format!("by the break-glass group {GROUP}")), "{event}");
    denied(refused(
        pool.delete_assignment(ticket_in(&pool, APP, &[GROUP]), Scope::Root, Guid([1; 16])).await,
    ));
    // From here on by the role, and that says so.
    ok(pool.create_assignment(member(), wish(3, BuiltInRole::CryptoUser, Scope::Root)).await);
    let event = pool.audit_page(0, 10_000).await.unwrap().pop().unwrap().to_string();
    assert!(!event.contains("break-glass"), "{event}");
    pool.close().await;

    let pool = Bench::new().open().await;
    denied(refused(pool.create_assignment(ticket_in(&pool, MEMBER, &[GROUP]), administrator()).await));
}
