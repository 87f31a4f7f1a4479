//! The control plane over a real engine. The provisioner is the tests' own: it notes what it is asked, and can fail.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use async_trait::async_trait;
use fabric::access::Scope;
use fabric::pools::{Life, PoolRecord};
use fabric::{
    CreateMode, CreatePool, Fabric, FabricConfig, FabricError, InstanceState, Network, Parameters,
    ProvisionError, Provisioner, Role, StoreError, UpdateNetwork, UpdatePool,
};
use host::{Commit, CommitOutcome, Engine, Mutation, OperationId};
use host_embedded::{EngineOptions, RedbEngine};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

const OWNER: &str = "00000000-0000-0000-0000-000000000001";
const DAY: i64 = 24 * 60 * 60;
static NOW: AtomicI64 = AtomicI64::new(1_700_000_000);

#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    fails: AtomicBool,
}

impl Recorder {
    fn note(&self, what: &str, name: &str) -> Result<(), ProvisionError> {
        self.calls.lock().unwrap().push(format!("{what} {name}"));
        if self.fails.load(Ordering::Relaxed) { Err(ProvisionError("no room".into())) } else { Ok(()) }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

#[async_trait]
impl Provisioner for Recorder {
    async fn start(&self, parameters: &Parameters) -> Result<(), ProvisionError> {
        self.note("start", &parameters.name)
    }
    async fn stop(&self, name: &str) -> Result<(), ProvisionError> {
        self.note("stop", name)
    }
    async fn remove(&self, name: &str) -> Result<(), ProvisionError> {
        self.note("remove", name)
    }
    fn check_network(&self, network: Network) -> Result<Network, String> {
        if network.ip_rules.iter().any(|rule| rule == "nonsense") {
            Err("nonsense".into())
        } else {
            Ok(network)
        }
    }
    async fn set_network(&self, name: &str, network: &Network) -> Result<(), ProvisionError> {
        self.note(&format!("{:?} for", network.ip_rules), name)
    }
    fn state(&self, _: &str) -> InstanceState {
        InstanceState::NotActivated
    }
    fn uri(&self, name: &str) -> String {
        format!("https://{name}.example/")
    }
}

fn engine(directory: &Path) -> Arc<dyn Engine> {
    Arc::new(RedbEngine::open(directory, EngineOptions::default()).unwrap())
}

async fn open(engine: Arc<dyn Engine>, recorder: &Arc<Recorder>) -> Result<Fabric, StoreError> {
    let config = FabricConfig {
        name: "cloud".into(),
        tenant: "t".into(),
        subscription: "s".into(),
        resource_group: "g".into(),
        location: "here".into(),
        now: || NOW.load(Ordering::Relaxed),
    };
    let fabric = Fabric::open(config, engine, recorder.clone(), vec![]).await?;
    fabric.bootstrap("first", OWNER, Role::Owner).await?;
    Ok(fabric)
}

fn asked() -> CreatePool {
    CreatePool {
        mode: CreateMode::Default,
        location: None,
        tenant: None,
        administrators: Some(vec![OWNER.into()]),
        retention_days: Some(7),
        purge_protection: None,
        tags: None,
        network: UpdateNetwork::default(),
    }
}

async fn put(engine: &dyn Engine, key: &[u8], value: Option<Vec<u8>>) {
    let mutation = match value {
        Some(value) => Mutation::Put { key: key.to_vec(), value },
        None => Mutation::Delete { key: key.to_vec() },
    };
    static NEXT: AtomicI64 = AtomicI64::new(1);
    let mut operation = [0xee; 16];
    operation[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    let operation = OperationId(operation);
    let commit = Commit { operation, expectations: vec![], mutations: vec![mutation] };
    assert!(matches!(engine.commit(commit).await.unwrap(), CommitOutcome::Committed(_)));
}

/// A flipped bit, a removed entry, an entry from elsewhere, a shortened head: the store does not open.
#[tokio::test]
async fn a_changed_activity_log_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    drop(fabric);
    let key = |index: u64| format!("activity/{index:016x}").into_bytes();
    let held = async |key: &[u8]| engine.get(key).await.unwrap().unwrap().value;
    let (first, second, head) = (held(&key(0)).await, held(&key(1)).await, held(b"head").await);
    let mut flipped = second.clone();
    let at = flipped.windows(6).position(|window| window == b"caller").unwrap() + 10;
    flipped[at] ^= 1;
    let shorter = String::from_utf8(head.clone()).unwrap().replace("\"length\":3", "\"length\":2");
    for (damaged, value, good) in [
        (key(1), Some(flipped), second.clone()),
        (key(1), None, second.clone()),
        (key(1), Some(first.clone()), second),
        (b"head".to_vec(), Some(shorter.into_bytes()), head),
    ] {
        put(engine.as_ref(), &damaged, value).await;
        let opened = open(engine.clone(), &recorder).await;
        assert!(matches!(opened, Err(StoreError::BrokenChain { .. })), "{damaged:?}");
        put(engine.as_ref(), &damaged, Some(good)).await;
        open(engine.clone(), &recorder).await.unwrap();
    }
}

/// What was asked for and could not be made is gone on with, by whoever asks again or by the next start.
#[tokio::test]
async fn a_creation_that_failed_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    recorder.fails.store(true, Ordering::Relaxed);
    let failed = fabric.put_pool(OWNER, "payroll", asked()).await;
    assert!(matches!(failed, Err(FabricError::Provision(_))));
    assert_eq!(fabric.pool(OWNER, "payroll").await.unwrap().record.life, Life::Creating);
    recorder.fails.store(false, Ordering::Relaxed);
    // With other administrators than it was begun with: an instance may have been founded with those.
    let other = CreatePool { administrators: Some(vec!["x".into()]), ..asked() };
    assert!(matches!(fabric.put_pool(OWNER, "payroll", other).await, Err(FabricError::Invalid(_))));
    assert_eq!(fabric.put_pool(OWNER, "payroll", asked()).await.unwrap().record.life, Life::Present);
    recorder.take();
    drop(fabric);
    open(engine, &recorder).await.unwrap().reconcile().await;
    assert_eq!(recorder.take(), ["start payroll"]);
}

/// A purge that was cut short is finished by the next start, and recovered by nobody.
#[tokio::test]
async fn a_purge_that_failed_is_finished() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    fabric.delete_pool(OWNER, "payroll").await.unwrap();
    recorder.fails.store(true, Ordering::Relaxed);
    assert!(fabric.purge_pool(OWNER, "payroll").await.is_err());
    assert!(fabric.is_purging("payroll").await);
    let recovery = CreatePool { mode: CreateMode::Recover, ..asked() };
    assert!(matches!(fabric.put_pool(OWNER, "payroll", recovery).await, Err(FabricError::NoDeletedPool(_))));
    assert!(fabric.put_pool(OWNER, "payroll", asked()).await.is_err());
    recorder.fails.store(false, Ordering::Relaxed);
    drop(fabric);
    recorder.take();
    let fabric = open(engine, &recorder).await.unwrap();
    fabric.reconcile().await;
    assert_eq!(recorder.take(), ["remove payroll"]);
    assert!(!fabric.is_purging("payroll").await);
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
}

/// Not a second before its retention has passed; then whatever its purge protection.
#[tokio::test]
async fn a_deleted_pool_is_purged_when_its_retention_has_passed() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine(directory.path()), &recorder).await.unwrap();
    let kept = CreatePool { purge_protection: Some(true), ..asked() };
    fabric.put_pool(OWNER, "payroll", kept).await.unwrap();
    fabric.delete_pool(OWNER, "payroll").await.unwrap();
    assert!(matches!(fabric.purge_pool(OWNER, "payroll").await, Err(FabricError::NotAllowed(_))));
    let (at, purge_at) = fabric.deleted_pool(OWNER, "payroll").await.unwrap().deleted().unwrap();
    assert_eq!(purge_at - at, 7 * DAY);
    NOW.store(purge_at - 1, Ordering::Relaxed);
    fabric.purge_due().await;
    assert!(fabric.deleted_pool(OWNER, "payroll").await.is_ok());
    NOW.store(purge_at, Ordering::Relaxed);
    fabric.purge_due().await;
    assert!(fabric.deleted_pool(OWNER, "payroll").await.is_err());
    assert_eq!(recorder.take().last().unwrap(), "remove payroll");
}

/// A right at one pool is one there, and none over what was given above it.
#[tokio::test]
async fn an_assignment_is_managed_where_it_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let fabric = open(engine(directory.path()), &Arc::default()).await.unwrap();
    let (pool, other) = (fabric.config.pool_scope("payroll"), fabric.config.pool_scope("other"));
    fabric.put_assignment(OWNER, &pool, "A1", "ada", Role::UserAccessAdministrator).await.unwrap();
    let subscription = fabric.config.subscription_scope();
    for scope in [&other, &subscription, &Scope::new("/")] {
        let given = fabric.put_assignment("ada", scope, "a2", "ada", Role::Owner).await;
        assert!(matches!(given, Err(FabricError::Denied(_))), "{scope}");
    }
    assert!(matches!(
        fabric.delete_assignment("ada", &pool, "first").await,
        Err(FabricError::NoAssignment(_))
    ));
    fabric.put_assignment("ada", &pool, "a2", "ada", Role::Reader).await.unwrap();
    fabric.delete_assignment("ada", &pool, "a1").await.unwrap();
    assert!(matches!(fabric.delete_assignment("ada", &pool, "a2").await, Err(FabricError::Denied(_))));
}

/// What an earlier release wrote is read; a later format and anything else is named and refused.
#[tokio::test]
async fn the_golden_records_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let golden = include_str!("golden/fabric-store-v1.txt");
    for line in golden.lines() {
        let (key, value) = line.split_once(' ').unwrap();
        put(engine.as_ref(), key.as_bytes(), Some(value.as_bytes().to_vec())).await;
    }
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    let held: PoolRecord = fabric.deleted_pool(OWNER, "payroll").await.unwrap();
    assert_eq!((held.retention_days, held.deleted()), (7, Some((1_700_000_000, 1_700_604_800))));
    // Written again, they are the same bytes.
    for line in golden.lines().filter(|line| !line.starts_with("head") && !line.starts_with("activity")) {
        let (key, value) = line.split_once(' ').unwrap();
        let json = if key.starts_with("pool") {
            serde_json::to_string(&held).unwrap()
        } else {
            serde_json::to_string(
                &fabric.assignment(OWNER, &fabric.config.subscription_scope(), "first").await.unwrap(),
            )
            .unwrap()
        };
        assert_eq!(json, value);
    }
    // With the member that came later.
    let (_, value) = include_str!("golden/fabric-store-v1-network.txt").trim_end().split_once(' ').unwrap();
    let ruled: PoolRecord = serde_json::from_str(value).unwrap();
    assert_eq!(ruled.network.ip_rules, ["192.0.2.0/24", "2001:db8::1"]);
    assert!(ruled.network.deny_by_default && !ruled.network.bypass && !ruled.network.public_access);
    assert_eq!(serde_json::to_string(&ruled).unwrap(), value);
    drop(fabric);
    let later = serde_json::to_string(&held).unwrap().replace("\"version\":1", "\"version\":2");
    for (value, named) in [(later.as_str(), "version 2"), ("{}", "damaged"), ("\u{1}", "damaged")] {
        put(engine.as_ref(), b"pool/payroll", Some(value.as_bytes().to_vec())).await;
        let error = open(engine.clone(), &recorder).await.err().unwrap().to_string();
        assert!(error.contains("pool/payroll") && error.contains(named), "{error}");
    }
}

/// The record is what lasts: the pool gets it now, and at each start.
#[tokio::test]
async fn network_rules_reach_the_pool_once_they_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let engine = engine(directory.path());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    assert_eq!(recorder.take(), ["start payroll"]);
    let of = |network| UpdatePool { network, ..UpdatePool::default() };
    let rule =
        |text: &str| UpdateNetwork { ip_rules: Some(vec![text.to_owned()]), ..UpdateNetwork::default() };
    let changed = fabric.patch_pool(OWNER, "payroll", of(rule("192.0.2.1"))).await.unwrap();
    assert_eq!(changed.record.network.ip_rules, ["192.0.2.1"]);
    assert_eq!(recorder.take(), [r#"["192.0.2.1"] for payroll"#]);
    // What is not said stays, and what does not change disturbs nobody.
    let deny = UpdateNetwork { deny_by_default: Some(true), ..UpdateNetwork::default() };
    let changed = fabric.patch_pool(OWNER, "payroll", of(deny.clone())).await.unwrap();
    assert_eq!(changed.record.network.ip_rules, ["192.0.2.1"]);
    assert_eq!(recorder.take().len(), 1);
    fabric.patch_pool(OWNER, "payroll", of(deny)).await.unwrap();
    assert_eq!(recorder.take(), [""; 0]);
    // Refused rules change nothing.
    let refused = fabric.patch_pool(OWNER, "payroll", of(rule("nonsense"))).await;
    assert!(matches!(refused, Err(FabricError::Invalid(_))));
    assert_eq!(recorder.take(), [""; 0]);
    // A pool that fails to take them has them all the same from its next start on.
    recorder.fails.store(true, Ordering::Relaxed);
    let failed = fabric.patch_pool(OWNER, "payroll", of(rule("192.0.2.9"))).await;
    assert!(matches!(failed, Err(FabricError::Provision(_))));
    drop(fabric);
    let fabric = open(engine, &recorder).await.unwrap();
    let held = fabric.pool(OWNER, "payroll").await.unwrap();
    assert_eq!(held.record.network.ip_rules, ["192.0.2.9"]);
    assert!(held.record.network.deny_by_default);
}
