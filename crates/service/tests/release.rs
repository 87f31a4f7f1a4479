//! Secure key release: who proves to be what the policy asks for gets the key, wrapped; everybody else learns why not, and
//! each attempt is an event.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

#[path = "../../api-data/tests/common/attestation.rs"]
mod attestation;
mod common;

use async_trait::async_trait;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{ADMIN, APP, Bench, OFFICER, current, new_key, ok, refused, ticket};
use crypto::certificate::Purpose;
use crypto::domain_secrets::DomainSecrets;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, KeySpec, OctSize, RsaSize};
use domain::guid::Guid;
use domain::key::{PublicKey, VersionChange};
use domain::pool::PoolClass;
use domain::release::ReleasePolicy;
use domain::setting::SettingValue;
use identity::attestation::{AuthoritySource, AuthoritySourceError};
use serde_json::{Value, json};
use service::{
    AssignmentFilter, Error, KeyView, KeyWrap, NewAssignment, NewKey, NewRotationPolicy, Pool,
    ReleaseRequest, ReleasedKey, SecretBytes,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

fn exportable(name: &str, spec: KeySpec) -> NewKey {
    let release = ReleasePolicy::new(attestation::document(), None, false).unwrap();
    NewKey { exportable: true, release: Some(release), ..new_key(name, spec) }
}

fn request(target: &str, wrap: KeyWrap) -> ReleaseRequest {
    ReleaseRequest { target: target.to_owned(), wrap }
}

fn payload(released: &ReleasedKey) -> Value {
    let kid = &released.release_kid;
    json!({ "wrapped": URL_SAFE_NO_PAD.encode(&released.wrapped), "kid": kid, "enc": released.wrap.as_str() })
}

async fn connected(bench: &Bench) -> Arc<Pool> {
    let pool = bench.open().await;
    pool.connect_authorities(Arc::new(attestation::Authority));
    pool
}

async fn release(pool: &Arc<Pool>, who: Guid, name: &str, target: &str) -> Result<String, Error> {
    let recorded =
        pool.release_key(ticket(pool, who), current(name), request(target, KeyWrap::Sha1), payload).await;
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "a release without an event");
    result
}

async fn last_event(pool: &Arc<Pool>) -> Value {
    pool.audit_page(0, 10_000).await.unwrap().pop().unwrap()
}

fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// What an environment does with an answer.
fn open(token: &str) -> Vec<u8> {
    let payload = part(token, 1);
    let wrapped = URL_SAFE_NO_PAD.decode(payload["wrapped"].as_str().unwrap()).unwrap();
    let key = PrivateDecryptingKey::from_pkcs8(&attestation::environment()).unwrap();
    let key = OaepPrivateDecryptingKey::new(key).unwrap();
    let (outer, inner) = wrapped.split_at(256);
    let hash = match payload["enc"].as_str().unwrap() {
        "CKM_RSA_AES_KEY_WRAP" => &OAEP_SHA1_MGF1SHA1,
        "RSA_AES_KEY_WRAP_256" => &OAEP_SHA256_MGF1SHA256,
        _ => &OAEP_SHA384_MGF1SHA384,
    };
    let mut aes = vec![0; 256];
    let aes = key.decrypt(hash, outer, &mut aes, None).unwrap();
    let mut material = vec![0; inner.len()];
    let kek = AesKek::new(&AES_256, aes).unwrap();
    kek.unwrap_with_padding(inner, &mut material).unwrap().to_vec()
}

#[tokio::test]
async fn a_released_key_is_the_key_and_the_answer_is_the_pools() {
    let bench = Bench::new();
    let pool = connected(&bench).await;
    let specs = [KeySpec::Ec(Curve::P256), KeySpec::Rsa(RsaSize::Rsa2048), KeySpec::Oct(OctSize::Oct256)];
    for (number, spec) in specs.into_iter().enumerate() {
        let name = format!("key-{number}");
        let view: KeyView = ok(pool.create_key(ticket(&pool, APP), exportable(&name, spec)).await);
        let mut first = None;
        for wrap in KeyWrap::ALL {
            let target = attestation::assertion();
            let asked = request(&target, wrap);
            let token = ok(pool.release_key(ticket(&pool, APP), current(&name), asked, payload).await);
            let material = open(&token);
            match &view.version.public {
                PublicKey::Ec { x, y, .. } => {
                    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &material).unwrap();
                    assert_eq!(key.public_key().as_ref()[1..], [x.as_slice(), y].concat());
                }
                PublicKey::Rsa { modulus, .. } => {
                    let key = RsaKeyPair::from_pkcs8(&material).unwrap();
                    assert_eq!(key.public_key().modulus().big_endian_without_leading_zero(), modulus);
                }
                PublicKey::Oct => assert_eq!(material.len(), 32),
            }
            assert_eq!(*first.get_or_insert(material.clone()), material, "the same key each time");

            let secrets = DomainSecrets::import(&SecretBytes::new(bench.secrets.clone())).unwrap();
            let header = part(&token, 0);
            let certificate = STANDARD.decode(header["x5c"][0].as_str().unwrap()).unwrap();
            let owner = secrets.owner_key().public_key();
            let (claims, key) = owner.verify_certificate(&certificate).unwrap();
            assert_eq!(claims.purpose, Purpose::Release);
            let (signed, signature) = token.rsplit_once('.').unwrap();
            assert!(key.verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()));

            let event = last_event(&pool).await;
            let detail = event.to_string();
            for words in
                ["https://attest.example", "policy SHA-256", "TpmEphemeralEncryptionKey", wrap.as_str()]
            {
                assert!(detail.contains(words), "{words}: {detail}");
            }
        }
    }
}

#[tokio::test]
async fn what_proves_nothing_is_refused_with_its_reason_and_an_event() {
    let bench = Bench::new();
    let pool = connected(&bench).await;
    ok(pool.create_key(ticket(&pool, APP), exportable("k", KeySpec::Ec(Curve::P256))).await);
    for (name, words) in [
        ("forged", "its signature does not verify"),
        ("changed", "its signature does not verify"),
        ("expired", "it expired at"),
        ("not yet valid", "it is not valid before"),
        ("other issuer", "its issuer `https://evil.example` is not an authority"),
        (
            "debuggable",
            "the condition on claim `x-ms-sevsnpvm-is-debuggable` at anyOf[0].allOf[0] is not met",
        ),
        ("debuggable as text", "is not met"),
        ("none", "is not RS256 or PS256"),
        ("HS256", "is not RS256 or PS256"),
        ("no kid", "no kid"),
        ("unknown key", "not among its authority's keys"),
        ("not chained", "not signed by the one that follows"),
        ("confused", "its n is not that of its certificate"),
        ("duplicate claim", "occurs twice"),
        ("deep", "is not a JSON object"),
        ("no runtime", "no claim x-ms-runtime"),
        ("keys at the top", "holds no key to wrap"),
        ("keys in isolation-tee", "holds no key to wrap"),
        ("key of 1024 bits", "1024 bits"),
        ("key with exponent 1", "its exponent is even, 1"),
    ] {
        let refused = release(&pool, APP, "k", attestation::token(name)).await.unwrap_err().to_string();
        assert!(refused.contains(words), "{name}: {refused}");
        let event = last_event(&pool).await;
        assert!(event.to_string().contains(words.split('`').next().unwrap()), "{name}: {event}");
        assert_ne!(event["resultType"], "Success", "{name}");
    }
    let huge = format!("{}.{}", attestation::token("good"), "A".repeat(100_000));
    assert!(release(&pool, APP, "k", &huge).await.unwrap_err().to_string().contains("over the limit"));
    assert!(release(&pool, APP, "k", attestation::token("good")).await.is_ok(), "the control");
}

#[tokio::test]
async fn an_assertion_is_for_whoever_used_it_first() {
    let bench = Bench::new();
    let pool = connected(&bench).await;
    let release_user = (OFFICER, BuiltInRole::CryptoServiceReleaseUser, Scope::Root);
    pool.bootstrap_assignments(vec![release_user]).await.unwrap();
    for name in ["one", "other"] {
        ok(pool.create_key(ticket(&pool, APP), exportable(name, KeySpec::Oct(OctSize::Oct128))).await);
    }
    let target = attestation::assertion();
    // Several keys, and again where an answer was lost.
    for name in ["one", "other", "one"] {
        assert!(release(&pool, OFFICER, name, &target).await.is_ok());
    }
    let refused = release(&pool, APP, "one", &target).await;
    assert!(matches!(refused, Err(Error::AssertionReplayed)), "{refused:?}");
    assert!(release(&pool, APP, "one", &attestation::assertion()).await.is_ok());
}

#[tokio::test]
async fn a_key_leaves_only_if_it_may() {
    let bench = Bench::new();
    let pool = connected(&bench).await;
    let good = || attestation::assertion();
    ok(pool.create_key(ticket(&pool, APP), new_key("kept", KeySpec::Ec(Curve::P256))).await);
    ok(pool.create_key(ticket(&pool, APP), exportable("k", KeySpec::Ec(Curve::P256))).await);
    let message = |result: Result<String, Error>| result.unwrap_err().to_string();
    assert!(message(release(&pool, APP, "kept", &good()).await).contains("it never leaves this pool"));
    assert!(matches!(release(&pool, OFFICER, "k", &good()).await, Err(Error::Denied(_))));
    assert!(matches!(release(&pool, ADMIN, "k", &good()).await, Err(Error::Denied(_))));
    assert!(matches!(release(&pool, APP, "none", &good()).await, Err(Error::KeyNotFound { .. })));
    let update = async |change| pool.update_key(ticket(&pool, APP), current("k"), change).await;
    ok(update(VersionChange { enabled: Some(false), ..VersionChange::default() }).await);
    assert!(message(release(&pool, APP, "k", &good()).await).contains("disabled"));
    let past = domain::time::IntDate::from_unix_seconds(1_000);
    let expired = VersionChange { enabled: Some(true), expires: Some(past), ..VersionChange::default() };
    ok(update(expired).await);
    assert!(release(&pool, APP, "k", &good()).await.is_ok(), "after exp a key may still be released");
    ok(pool.delete_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    assert!(matches!(release(&pool, APP, "k", &good()).await, Err(Error::KeyNotFound { .. })));
}

#[tokio::test]
async fn without_the_authoritys_keys_nothing_leaves() {
    let bench = Bench::new();
    let pool = bench.open().await;
    ok(pool.create_key(ticket(&pool, APP), exportable("k", KeySpec::Ec(Curve::P256))).await);
    let refused = release(&pool, APP, "k", &attestation::assertion()).await;
    assert!(matches!(refused, Err(Error::AuthorityUnavailable(_))), "{refused:?}");
}

/// An authority that answers when it is let.
struct Slow {
    asked: Semaphore,
    let_go: Semaphore,
}

#[async_trait]
impl AuthoritySource for Slow {
    async fn get(&self, origin: &str, path: &str) -> Result<Vec<u8>, AuthoritySourceError> {
        self.asked.add_permits(1);
        self.let_go.acquire().await.unwrap().forget();
        attestation::Authority.get(origin, path).await
    }
}

#[tokio::test]
async fn a_right_that_is_withdrawn_while_the_authority_is_asked_is_none() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let slow = Arc::new(Slow { asked: Semaphore::new(0), let_go: Semaphore::new(0) });
    pool.connect_authorities(slow.clone());
    ok(pool.create_key(ticket(&pool, APP), exportable("k", KeySpec::Ec(Curve::P256))).await);
    let target = attestation::assertion();
    let withdrawn = async {
        slow.asked.acquire().await.unwrap().forget();
        let held = pool.list_assignments(ticket(&pool, ADMIN), Scope::Root, AssignmentFilter::Here).await;
        let mut held = ok(held).into_iter();
        let assignment = held.find(|assignment| assignment.principal == APP).unwrap();
        ok(pool.delete_assignment(ticket(&pool, ADMIN), Scope::Root, assignment.name).await);
        slow.let_go.add_permits(100);
    };
    let (released, ()) = tokio::join!(release(&pool, APP, "k", &target), withdrawn);
    assert!(matches!(released, Err(Error::Denied(_))), "{released:?}");
}

/// Backups, rotation and restarts keep the policy, and what is immutable stays.
#[tokio::test]
async fn a_policy_goes_where_its_key_goes() {
    let bench = Bench::new();
    let pool = connected(&bench).await;
    let spec = KeySpec::Ec(Curve::P256);
    ok(pool.create_key(ticket(&pool, APP), exportable("k", spec)).await);
    let immutable = ReleasePolicy::new(attestation::document(), None, true).unwrap();
    let change = VersionChange { release: Some(immutable.clone()), ..VersionChange::default() };
    let view = ok(pool.update_key(ticket(&pool, APP), current("k"), change).await);
    assert_eq!(view.version.release, Some(immutable.clone()));
    let back = ReleasePolicy::new(attestation::document(), None, false).unwrap();
    let change = VersionChange { release: Some(back), ..VersionChange::default() };
    let error = refused(pool.update_key(ticket(&pool, APP), current("k"), change).await);
    assert!(error.to_string().contains("immutable"), "{error}");

    let period = domain::rotation::Period::parse("P90D").unwrap();
    let policy = NewRotationPolicy {
        actions: vec![(
            domain::rotation::LifetimeAction::Rotate,
            domain::rotation::Trigger::AfterCreate(period),
        )],
        expiry: Some(domain::rotation::Period::parse("P200D").unwrap()),
    };
    ok(pool.set_rotation_policy(ticket(&pool, APP), "k".parse().unwrap(), policy).await);
    let rotated = ok(pool.rotate_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    assert_eq!(rotated.version.release, Some(immutable.clone()));
    assert!(rotated.version.attributes.exportable);

    let blob = ok(pool.backup_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    ok(pool.delete_key(ticket(&pool, APP), "k".parse().unwrap()).await);
    ok(pool.purge_key(ticket(&pool, OFFICER), "k".parse().unwrap()).await);
    let restored = ok(pool.restore_key(ticket(&pool, APP), blob).await);
    assert_eq!(restored.version.release, Some(immutable.clone()));
    pool.close().await;

    let pool = connected(&bench).await;
    let read = ok(pool.read_key(ticket(&pool, APP), current("k")).await);
    assert_eq!(read.version.release, Some(immutable));
    assert!(release(&pool, APP, "k", &attestation::assertion()).await.is_ok());
    let bare = NewKey { release: None, ..exportable("bare", spec) };
    assert!(matches!(refused(pool.create_key(ticket(&pool, APP), bare).await), Error::Release(_)));
}

/// In class production an Administrator says whose word counts, before and after a key has its policy.
#[tokio::test]
async fn in_production_an_administrator_chooses_the_authorities() {
    let mut bench = Bench::new();
    bench.genesis.class = PoolClass::Production;
    let pool = connected(&bench).await;
    let crypto_user = NewAssignment {
        name: Guid([9; 16]),
        scope: Scope::Root,
        role: BuiltInRole::CryptoUser.id(),
        principal: APP,
    };
    ok(pool.create_assignment(ticket(&pool, ADMIN), crypto_user).await);
    let create = async |name: &str| {
        pool.create_key(ticket(&pool, APP), exportable(name, KeySpec::Ec(Curve::P256))).await
    };
    let error = refused(create("k").await);
    assert!(matches!(error, Error::AuthorityNotAllowed(_)), "{error}");
    let set = async |who, value: &str| {
        let name = "HoldfastReleaseAuthorities".to_owned();
        pool.update_setting(ticket(&pool, who), name, SettingValue::Text(value.into())).await
    };
    assert!(matches!(refused(set(APP, "https://attest.example").await), Error::Denied(_)));
    assert!(matches!(refused(set(ADMIN, "attest.example").await), Error::Setting(_)));
    ok(set(ADMIN, "https://other.example, https://attest.example").await);
    ok(create("k").await);
    assert!(release(&pool, APP, "k", &attestation::assertion()).await.is_ok());
    ok(set(ADMIN, "https://other.example").await);
    let refused = release(&pool, APP, "k", &attestation::assertion()).await;
    assert!(matches!(refused, Err(Error::AuthorityNotAllowed(_))), "{refused:?}");
}
