//! A pool on real parts (redb, log files, the software partition): what it does, refuses, records and survives.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyOperation, Tags};
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::{Caller, TenantId};
use domain::time::{IntDate, Time};
use host::Engine;
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::{
    Clock, DecryptInput, EncryptInput, Error, KeyReference, KeyView, NewKey, Pool, PoolLimits, PoolParts,
    Random, Recorded, RequestFacts, SecretBytes, Shown, SystemRandom, Ticket,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

const ADMIN: Guid = Guid([0xa1; 16]);
const APP: Guid = Guid([0xa2; 16]);

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time::from_unix_milliseconds(self.0.load(Ordering::SeqCst))
    }
}

/// A pool's directory and secrets, from which it can be opened again and again.
struct Bench {
    directory: tempfile::TempDir,
    secrets: Vec<u8>,
    clock: Arc<TestClock>,
    limits: PoolLimits,
}

impl Bench {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            secrets: DomainSecrets::generate().danger_export().danger_expose().to_vec(),
            clock: Arc::new(TestClock(AtomicI64::new(1_800_000_000_000))),
            limits: PoolLimits::default(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn open(&self) -> Arc<Pool> {
        let secrets = DomainSecrets::import(&SecretBytes::new(self.secrets.clone())).unwrap();
        let engine: Arc<dyn Engine> =
            Arc::new(RedbEngine::open(self.path().join("store"), EngineOptions::default()).unwrap());
        let log = Arc::new(FileLog::open(self.path().join("audit"), LogOptions::default()).unwrap());
        Pool::found(engine.as_ref(), &secrets, genesis()).await.unwrap();
        let parts = PoolParts {
            engine,
            log,
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            node: Guid([3; 16]),
            clock: self.clock.clone(),
            random: Arc::new(SystemRandom),
            limits: self.limits,
            resource_suffixes: vec!["managedhsm.localhost".into()],
        };
        let pool = Pool::open(parts).await.unwrap();
        let app = (APP, BuiltInRole::CryptoUser, Scope::Root);
        pool.bootstrap_assignments(vec![app]).await.unwrap();
        pool
    }
}

fn genesis() -> Genesis {
    Genesis {
        pool: Guid([1; 16]),
        name: "demo".parse().unwrap(),
        security_domain: Guid([2; 16]),
        class: PoolClass::Test,
        tenant: TenantId::parse("t").unwrap(),
        issuer: IssuerPin {
            issuers: vec!["https://issuer.example/t/v2.0".into()],
            authority: "https://issuer.example/t".into(),
            key_set: include_bytes!("issuer-key-set.json").to_vec(),
            audiences: vec![],
        },
        initial_administrators: vec![ADMIN],
        break_glass_group: None,
        retention: RetentionDays::DEFAULT,
        purge_protection: false,
        audit_durability: AuditDurability::Synced,
        allow_domain_redownload: false,
    }
}

fn ticket(pool: &Arc<Pool>, principal: Guid) -> Ticket {
    let caller = Caller {
        tenant: TenantId::parse("t").unwrap(),
        object_id: principal,
        groups: vec![],
        issued_at: IntDate::default(),
        application_id: None,
        user_principal_name: None,
    };
    let request_id = SystemRandom.guid();
    let facts = RequestFacts {
        request_id,
        correlation_id: request_id.to_string(),
        client_address: "127.0.0.1".into(),
        user_agent: "test".into(),
        uri: "https://demo.managedhsm.localhost/".into(),
        api_version: "7.6".into(),
        received: Instant::now(),
        received_at: pool.now(),
        show: |error| match error {
            Error::Denied(_) => Shown { status: 403, code: "Forbidden", inner_code: None },
            _ => Shown { status: 400, code: "Other", inner_code: None },
        },
    };
    pool.admit(Arc::new(caller), facts)
}

fn new_key(name: &str, spec: KeySpec) -> NewKey {
    NewKey {
        name: name.parse().unwrap(),
        spec,
        public_exponent: None,
        operations: None,
        enabled: true,
        not_before: None,
        expires: None,
        exportable: false,
        tags: Tags::default(),
    }
}

fn current(name: &str) -> KeyReference {
    KeyReference { name: name.parse().unwrap(), version: None }
}

fn ok<T>(recorded: Recorded<T>) -> T {
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "an answer without a receipt");
    result.unwrap()
}

fn refused<T: std::fmt::Debug>(recorded: Recorded<T>) -> Error {
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "a refusal without a receipt");
    result.unwrap_err()
}

async fn create(pool: &Arc<Pool>, name: &str, spec: KeySpec) -> KeyView {
    ok(pool.create_key(ticket(pool, APP), new_key(name, spec)).await)
}

/// Operation names and results of all events that requests left.
async fn events(pool: &Arc<Pool>) -> Vec<String> {
    let page = pool.audit_page(0, 10_000).await.unwrap();
    let text = |event: &serde_json::Value, member: &str| event[member].as_str().unwrap().to_owned();
    page.iter()
        .filter(|event| event["httpStatusCode"] != 0)
        .map(|event| format!("{} {}", text(event, "operationName"), text(event, "resultType")))
        .collect()
}

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
    bench.clock.0.fetch_add(10_000, Ordering::SeqCst);
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
    assert!(Pool::found(&engine, &secrets, other).await.is_err());
    assert!(Pool::found(&engine, &DomainSecrets::generate(), genesis()).await.is_err());
    assert!(Pool::found(&engine, &secrets, genesis()).await.is_ok());
}
