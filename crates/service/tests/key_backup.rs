//! Keys backed up and restored: in their own pool, in another of the same security domain, and nowhere else.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use common::*;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyRefused, MAX_TAG_CHARACTERS, MAX_TAGS, Tags, VersionChange};
use domain::pool::{Genesis, PoolClass};
use domain::time::IntDate;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use service::{
    BackupRefused, EncryptInput, Error, KeyView, MAX_BACKUP_BYTES, NewKey, PageRequest, Pool, PoolLimits,
    SecretBytes,
};
use std::sync::Arc;

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const OCT: KeySpec = KeySpec::Oct(OctSize::Oct256);

async fn backup(pool: &Arc<Pool>, name: &str) -> Vec<u8> {
    ok(pool.backup_key(ticket(pool, APP), name.parse().unwrap()).await)
}

async fn restore(pool: &Arc<Pool>, blob: &[u8]) -> KeyView {
    ok(pool.restore_key(ticket(pool, APP), blob.to_vec()).await)
}

async fn restore_refused(pool: &Arc<Pool>, principal: Guid, blob: &[u8]) -> Error {
    refused(pool.restore_key(ticket(pool, principal), blob.to_vec()).await)
}

async fn delete(pool: &Arc<Pool>, name: &str) {
    ok(pool.delete_key(ticket(pool, APP), name.parse().unwrap()).await);
}

async fn purge(pool: &Arc<Pool>, name: &str) {
    delete(pool, name).await;
    ok(pool.purge_key(ticket(pool, OFFICER), name.parse().unwrap()).await);
}

async fn versions(pool: &Arc<Pool>, name: &str) -> Vec<KeyView> {
    let request = PageRequest { after: None, limit: 1000 };
    ok(pool.list_versions(ticket(pool, APP), name.parse().unwrap(), request).await).items
}

/// Another pool of `bench`'s security domain.
fn sibling(bench: &Bench) -> Bench {
    let genesis = Genesis { pool: Guid([9; 16]), name: "sibling".parse().unwrap(), ..genesis() };
    Bench { secrets: bench.secrets.clone(), genesis, ..Bench::new() }
}

/// Versions of one key, in the order of their making.
fn any_key() -> impl Strategy<Value = Vec<NewKey>> {
    let spec = prop_oneof![
        Just(EC),
        Just(KeySpec::Ec(Curve::P521)),
        Just(KeySpec::Oct(OctSize::Oct128)),
        Just(OCT),
    ];
    let time = proptest::option::of((1_700_000_000_i64..1_800_000_000).prop_map(IntDate::from_unix_seconds));
    let later = proptest::option::of((1_800_000_001_i64..1_900_000_000).prop_map(IntDate::from_unix_seconds));
    let tags = proptest::collection::btree_map("\\PC{1,20}", "\\PC{0,20}", 0..MAX_TAGS)
        .prop_map(|tags| Tags::new(tags).unwrap());
    let version =
        (spec, any::<bool>(), time, later, tags).prop_map(|(spec, enabled, not_before, expires, tags)| {
            NewKey { enabled, not_before, expires, tags, ..new_key("Any-Key", spec) }
        });
    proptest::collection::vec(version, 1..5)
}

#[test]
fn a_restored_key_is_what_it_was_in_each_pool_of_its_domain() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let bench = Bench::new();
    let other = sibling(&bench);
    let (here, there) = runtime.block_on(async { (bench.open().await, other.open().await) });
    let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let property = |key: Vec<NewKey>| {
        runtime.block_on(async {
            for version in key {
                ok(here.create_key(ticket(&here, APP), version).await);
                bench.clock.pass(1000);
            }
            let was = versions(&here, "any-key").await;
            let blob = backup(&here, "ANY-KEY").await;
            purge(&here, "any-key").await;
            for pool in [&here, &there] {
                let restored = restore(pool, &blob).await;
                assert_eq!(Some(&restored), was.last());
                assert_eq!(restored.version.name.as_str(), "Any-Key");
                assert_eq!(versions(pool, "any-key").await, was);
                // What was restored is as good a source as what was made here.
                let again = backup(pool, "any-key").await;
                purge(pool, "any-key").await;
                restore(pool, &again).await;
                assert_eq!(versions(pool, "any-key").await, was);
                purge(pool, "any-key").await;
            }
        });
        Ok(())
    };
    runner.run(&any_key(), property).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn all_versions_of_a_restored_key_work_and_outlast_a_restart() {
    let bench = Bench::new();
    let other = sibling(&bench);
    let pool = bench.open().await;
    let digest = vec![7; 32];
    let es256 = SignatureAlgorithm::Es256;
    let mut signed = Vec::new();
    for _ in 0..2 {
        create(&pool, "k", EC).await;
        signed.push(ok(pool.sign(ticket(&pool, APP), current("k"), es256, digest.clone()).await));
    }
    let blob = backup(&pool, "k").await;
    let there = other.open().await;
    restore(&there, &blob).await;
    there.close().await;
    let there = other.open().await;
    for old in signed {
        let key = service::KeyReference { version: Some(old.version), ..current("k") };
        let verify = there.verify(ticket(&there, APP), key.clone(), es256, digest.clone(), old.result);
        assert!(ok(verify.await).result);
        let new = ok(there.sign(ticket(&there, APP), key.clone(), es256, digest.clone()).await).result;
        assert!(ok(pool.verify(ticket(&pool, APP), key, es256, digest.clone(), new).await).result);
    }
    // Its next version is one more, not another key.
    create(&there, "k", EC).await;
    assert_eq!(versions(&there, "k").await.len(), 3);
    assert!(events(&there).await.contains(&"Unknown Success".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_key_is_bound_by_its_attributes_as_before() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    let change = VersionChange {
        enabled: Some(false),
        expires: Some(IntDate::from_unix_seconds(1_700_000_000)),
        ..VersionChange::default()
    };
    ok(pool.update_key(ticket(&pool, APP), current("k"), change).await);
    let blob = backup(&pool, "k").await;
    purge(&pool, "k").await;
    assert!(!restore(&pool, &blob).await.version.attributes.enabled);
    let sign = pool.sign(ticket(&pool, APP), current("k"), SignatureAlgorithm::Es256, vec![0; 32]);
    assert!(matches!(refused(sign.await), Error::UseRefused(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_refused() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", OCT).await;
    let blob = backup(&pool, "k").await;
    assert!(matches!(restore_refused(&pool, APP, &blob).await, Error::KeyExists { .. }));
    delete(&pool, "k").await;
    assert!(matches!(restore_refused(&pool, APP, &blob).await, Error::Key(KeyRefused::Deleted)));
    // A deleted key is not backed up either.
    let deleted = refused(pool.backup_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    assert!(matches!(deleted, Error::KeyNotFound { .. }));
    let absent = refused(pool.backup_key(ticket(&pool, APP), "absent".parse().unwrap()).await);
    assert!(matches!(absent, Error::KeyNotFound { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_restorers_of_one_blob_make_one_key() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", OCT).await;
    let blob = backup(&pool, "k").await;
    purge(&pool, "k").await;
    let restorers: Vec<_> = (0..8)
        .map(|_| {
            let (pool, blob) = (pool.clone(), blob.clone());
            tokio::spawn(async move { pool.restore_key(ticket(&pool, APP), blob).await.into_parts().0 })
        })
        .collect();
    let mut made = 0;
    for restorer in restorers {
        match restorer.await.unwrap() {
            Ok(_) => made += 1,
            Err(error) => assert!(matches!(error, Error::KeyExists { .. }), "{error}"),
        }
    }
    assert_eq!(made, 1);
    assert_eq!(versions(&pool, "k").await.len(), 1);
}

/// As many tags as a version may have, as long as they may be, of `character`.
fn longest_tags(character: &str) -> Tags {
    let long = |number: usize| format!("{}{number:02}", character.repeat(MAX_TAG_CHARACTERS - 2));
    Tags::new((0..MAX_TAGS).map(|number| (long(number), long(number))).collect()).unwrap()
}

/// One commit, of about the size that an engine takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_all_the_versions_it_may_have_is_restored_as_one_and_limits_hold() {
    let bench = Bench::new();
    let pool = bench.open().await;
    // About as many bytes as RSA-4096 has with ASCII alone.
    for number in 0..100 {
        let tags = longest_tags(if number % 6 == 0 { "\u{1f511}" } else { "t" });
        ok(pool.create_key(ticket(&pool, APP), NewKey { tags, ..new_key("k", OCT) }).await);
    }
    let was = versions(&pool, "k").await;
    let blob = backup(&pool, "k").await;
    assert!(blob.len() > 1_100_000 && blob.len() < MAX_BACKUP_BYTES, "{}", blob.len());
    purge(&pool, "k").await;
    restore(&pool, &blob).await;
    assert_eq!(versions(&pool, "k").await, was);

    let fewer = PoolLimits { versions_per_key: 99, ..PoolLimits::default() };
    let other = Bench { limits: fewer, ..sibling(&bench) };
    let there = other.open().await;
    let error = restore_refused(&there, APP, &blob).await;
    assert!(matches!(error, Error::LimitReached { limit: 99, .. }), "{error}");
    let other = Bench { limits: PoolLimits { keys: 1, ..PoolLimits::default() }, ..sibling(&bench) };
    let full = other.open().await;
    create(&full, "other", OCT).await;
    let error = restore_refused(&full, APP, &blob).await;
    assert!(matches!(error, Error::LimitReached { limit: 1, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_domain_or_class_and_damage_are_refused_each_with_its_message() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", OCT).await;
    let blob = backup(&pool, "k").await;
    purge(&pool, "k").await;

    let other = Bench::new();
    let stranger = other.open().await;
    let error = restore_refused(&stranger, APP, &blob).await;
    let Error::Backup(BackupRefused::OtherDomain { theirs, ours }) = &error else { panic!("{error}") };
    let message = error.to_string();
    assert!(theirs != ours && message.contains(theirs) && message.contains(ours), "{message}");

    let production =
        Genesis { class: PoolClass::Production, initial_administrators: vec![ADMIN], ..genesis() };
    let other = Bench { genesis: production, ..sibling(&bench) };
    let production = other.open().await;
    // Nobody may restore there yet, so what is asked is whether anybody learns more than that.
    assert!(matches!(restore_refused(&production, APP, &blob).await, Error::Denied(_)));

    for bit in 0..blob.len() * 8 {
        let mut damaged = blob.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let error = restore_refused(&pool, APP, &damaged).await;
        assert!(matches!(error, Error::Backup(_)), "bit {bit}: {error}");
    }
    for (wrong, expected) in [
        (&blob[..blob.len() - 1], "the backup is cut off"),
        (&blob[..20], "the backup is cut off"),
        (b"garbage".as_slice(), "this is not a backup of a key"),
        (b"", "this is not a backup of a key"),
    ] {
        let message = restore_refused(&pool, APP, wrong).await.to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    restore(&pool, &blob).await;
}

/// Who may not restore a key learns nothing of what a blob holds: not the key's name, not even whether it opens.
#[tokio::test(flavor = "multi_thread")]
async fn a_denied_caller_cannot_tell_one_blob_from_another() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let (nobody, of_mine) = (Guid([0xb1; 16]), Guid([0xb2; 16]));
    let mine = Scope::Key("mine".parse().unwrap());
    pool.bootstrap_assignments(vec![(of_mine, BuiltInRole::Restore, mine.clone())]).await.unwrap();
    let mut blobs = vec![b"garbage".to_vec()];
    for name in ["mine", "secret-plan"] {
        create(&pool, name, OCT).await;
        blobs.push(backup(&pool, name).await);
    }
    let other = Bench::new();
    let foreign = other.open().await;
    create(&foreign, "mine", OCT).await;
    blobs.push(backup(&foreign, "mine").await);
    let mut damaged = blobs[1].clone();
    damaged[100] ^= 1;
    blobs.push(damaged);
    let of_mine_alone = blobs.remove(1);

    for principal in [nobody, of_mine] {
        let expected = restore_refused(&pool, principal, &blobs[0]).await.to_string();
        assert!(expected.contains("keys/restore/action at scope /keys;"), "{expected}");
        for blob in &blobs {
            let error = restore_refused(&pool, principal, blob).await;
            assert!(matches!(error, Error::Denied(_)));
            assert_eq!(error.to_string(), expected);
        }
    }
    // Their own is refused only for what it is.
    assert!(matches!(restore_refused(&pool, nobody, &of_mine_alone).await, Error::Denied(_)));
    assert!(matches!(restore_refused(&pool, of_mine, &of_mine_alone).await, Error::KeyExists { .. }));
    purge(&pool, "mine").await;
    pool.bootstrap_assignments(vec![(of_mine, BuiltInRole::Restore, mine)]).await.unwrap();
    ok(pool.restore_key(ticket(&pool, of_mine), of_mine_alone).await);
    // And a right to restore is none to back up.
    let error = refused(pool.backup_key(ticket(&pool, of_mine), "mine".parse().unwrap()).await);
    assert!(matches!(error, Error::Denied(_)));
}

/// Better told when it is backed up than when it cannot be restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_large_to_be_restored_is_not_backed_up() {
    let bench = Bench::new();
    let pool = bench.open().await;
    for _ in 0..45 {
        let tags = longest_tags("\u{1f511}");
        ok(pool.create_key(ticket(&pool, APP), NewKey { tags, ..new_key("k", OCT) }).await);
    }
    let error = refused(pool.backup_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    assert!(matches!(error, Error::Backup(BackupRefused::TooLarge(_))), "{error}");
}

/// A restore must not make encryptions uncounted, or random IVs would come closer to meeting than anybody counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_key_has_the_count_of_its_encryptions() {
    let bench = Bench { limits: PoolLimits { gcm_encryptions: 3, ..PoolLimits::default() }, ..Bench::new() };
    let pool = bench.open().await;
    create(&pool, "k", OCT).await;
    let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
    let encrypt = || {
        let plaintext = Arc::new(SecretBytes::new(vec![5; 32]));
        let input = EncryptInput { plaintext, iv: None, additional_data: None };
        pool.encrypt(ticket(&pool, APP), current("k"), gcm, input)
    };
    ok(encrypt().await);
    let blob = backup(&pool, "k").await;
    purge(&pool, "k").await;
    restore(&pool, &blob).await;
    // All three were leased when the backup was made.
    let error = refused(encrypt().await);
    assert!(matches!(error, Error::InvocationsExhausted { limit: 3 }), "{error}");
}
