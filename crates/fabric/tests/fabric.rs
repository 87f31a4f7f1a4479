//! The control plane over a real engine. The provisioner is the tests' own: it notes what it is asked, and can fail.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

use async_trait::async_trait;
use fabric::access::Scope;
use fabric::pools::{Life, PoolRecord};
use fabric::{
    ConnectionState, CreateEndpoint, CreateMode, CreatePool, EndpointRecord, Fabric, FabricConfig,
    FabricError, InstanceState, Network, Parameters, ProvisionError, Provisioner, Put, Reach, Role,
    StoreError, UpdateNetwork, UpdatePool,
};
use host::{Commit, CommitOutcome, Engine, Mutation, OperationId};
use host_embedded::{EngineOptions, RedbEngine};
use std::collections::BTreeMap;
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
    /// Who holds it holds up every start.
    slow: tokio::sync::Mutex<()>,
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
        let private = &parameters.reach.private;
        let with = if private.is_empty() { String::new() } else { format!("with {private:?} ") };
        self.note(&format!("{with}start"), &parameters.name)?;
        let _slow = self.slow.lock().await;
        Ok(())
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
    async fn set_reach(&self, name: &str, reach: &Reach) -> Result<(), ProvisionError> {
        let private =
            if reach.private.is_empty() { String::new() } else { format!(" and {:?}", reach.private) };
        self.note(&format!("{:?}{private} for", reach.network.ip_rules), name)
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
        private_networks: BTreeMap::from([
            ("office".to_owned(), [10, 0, 0, 5].into()),
            ("plant".to_owned(), [10, 0, 0, 6].into()),
        ]),
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
    let (fabric, recorder) = with_a_creation_that_failed(engine.clone()).await;
    // With other administrators than it was begun with: an instance may have been founded with those.
    let other = CreatePool { administrators: Some(vec!["x".into()]), ..asked() };
    assert!(matches!(fabric.put_pool(OWNER, "payroll", other).await, Err(FabricError::Invalid(_))));
    assert_eq!(fabric.put_pool(OWNER, "payroll", asked()).await.unwrap().record.life, Life::Present);
    recorder.take();
    drop(fabric);
    open(engine, &recorder).await.unwrap().reconcile().await;
    assert_eq!(recorder.take(), ["start payroll"]);
}

/// What failed then fails no more.
async fn with_a_creation_that_failed(engine: Arc<dyn Engine>) -> (Fabric, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine, &recorder).await.unwrap();
    recorder.fails.store(true, Ordering::Relaxed);
    let failed = fabric.put_pool(OWNER, "payroll", asked()).await;
    assert!(matches!(failed, Err(FabricError::Provision(_))));
    assert_eq!(fabric.pool(OWNER, "payroll").await.unwrap().record.life, Life::Creating);
    recorder.fails.store(false, Ordering::Relaxed);
    (fabric, recorder)
}

/// The next start makes it a pool like any other.
#[tokio::test]
async fn a_creation_that_was_cut_short_is_finished_by_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let (fabric, recorder) = with_a_creation_that_failed(engine(directory.path())).await;
    recorder.fails.store(true, Ordering::Relaxed);
    fabric.reconcile().await;
    assert_eq!(fabric.pool(OWNER, "payroll").await.unwrap().record.life, Life::Creating);
    recorder.fails.store(false, Ordering::Relaxed);
    fabric.reconcile().await;
    assert_eq!(fabric.pool(OWNER, "payroll").await.unwrap().record.life, Life::Present);
}

/// Rules that were answered with 200 hold, whether or not the pool was there when they were asked for.
#[tokio::test]
async fn who_goes_on_with_a_creation_has_the_tags_and_rules_that_he_gives() {
    let directory = tempfile::tempdir().unwrap();
    let (fabric, _) = with_a_creation_that_failed(engine(directory.path())).await;
    let network = UpdateNetwork { deny_by_default: Some(true), ..UpdateNetwork::default() };
    let tags = BTreeMap::from([("cost".to_owned(), "7".to_owned())]);
    let refused = UpdateNetwork { ip_rules: Some(vec!["nonsense".to_owned()]), ..network.clone() };
    let refused = CreatePool { network: refused, ..asked() };
    assert!(matches!(fabric.put_pool(OWNER, "payroll", refused).await, Err(FabricError::Invalid(_))));
    let changed = CreatePool { network, tags: Some(tags.clone()), ..asked() };
    fabric.put_pool(OWNER, "payroll", changed).await.unwrap();
    let held = fabric.pool(OWNER, "payroll").await.unwrap().record;
    assert_eq!((held.life, held.tags, held.network.deny_by_default), (Life::Present, tags, true));
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

/// It is the record that lasts: a pool that serves is not one that is destroyed when its retention has passed.
#[tokio::test]
async fn a_recovery_whose_start_fails_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let fabric = open(engine(directory.path()), &recorder).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    fabric.delete_pool(OWNER, "payroll").await.unwrap();
    recorder.fails.store(true, Ordering::Relaxed);
    let recovery = CreatePool { mode: CreateMode::Recover, ..asked() };
    fabric.put_pool(OWNER, "payroll", recovery).await.unwrap_err();
    assert!(fabric.deleted_pool(OWNER, "payroll").await.is_err());
    recorder.fails.store(false, Ordering::Relaxed);
    recorder.take();
    fabric.reconcile().await;
    assert_eq!(recorder.take(), ["start payroll"]);
}

/// While a pool takes its time to start, others are deleted, and purged, and made anew.
#[tokio::test]
async fn a_start_of_all_pools_goes_by_what_holds_when_it_comes_to_each() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let fabric = Arc::new(open(engine(directory.path()), &recorder).await.unwrap());
    for name in ["aaa", "bbb", "ccc"] {
        fabric.put_pool(OWNER, name, asked()).await.unwrap();
    }
    fabric.delete_pool(OWNER, "ccc").await.unwrap();
    recorder.fails.store(true, Ordering::Relaxed);
    fabric.purge_pool(OWNER, "ccc").await.unwrap_err();
    recorder.fails.store(false, Ordering::Relaxed);
    recorder.take();
    let hold = recorder.slow.lock().await;
    let reconciling = tokio::spawn({
        let fabric = fabric.clone();
        async move { fabric.reconcile().await }
    });
    while recorder.calls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let changing = tokio::spawn({
        let fabric = fabric.clone();
        async move {
            fabric.delete_pool(OWNER, "bbb").await.unwrap();
            fabric.purge_pool(OWNER, "ccc").await.unwrap();
            fabric.put_pool(OWNER, "ccc", asked()).await.unwrap();
        }
    });
    // They wait for the lock by now, and get it before the reconciliation does again.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(hold);
    reconciling.await.unwrap();
    changing.await.unwrap();
    let calls = recorder.take();
    assert_eq!(calls[0], "start aaa");
    assert!(!calls.contains(&"start bbb".to_owned()), "{calls:?}");
    let made = calls.iter().rposition(|call| call == "start ccc").unwrap();
    assert!(!calls[made..].contains(&"remove ccc".to_owned()), "{calls:?}");
}

#[tokio::test]
async fn a_right_at_a_pool_ends_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let fabric = open(engine(directory.path()), &Arc::default()).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    let scope = fabric.config.pool_scope("payroll");
    fabric.put_assignment(OWNER, &scope, "a1", "eve", Role::Owner).await.unwrap();
    fabric.delete_pool(OWNER, "payroll").await.unwrap();
    assert!(!fabric.is_known("eve").await);
    fabric.purge_pool(OWNER, "payroll").await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    assert!(matches!(fabric.delete_pool("eve", "payroll").await, Err(FabricError::Denied(_))));
    assert!(fabric.is_known(OWNER).await);
}

/// Another's assignment under the id of the first owner's does not stand in for it.
#[tokio::test]
async fn the_first_owner_is_one_after_each_start() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let fabric = open(engine.clone(), &Arc::default()).await.unwrap();
    let scope = fabric.config.subscription_scope();
    fabric.put_assignment(OWNER, &scope, "second", "eve", Role::Owner).await.unwrap();
    fabric.delete_assignment("eve", &scope, "first").await.unwrap();
    fabric.put_assignment("eve", &scope, "first", "mallory", Role::Reader).await.unwrap();
    assert!(fabric.authorize(OWNER, "x/write", &scope).await.is_err());
    drop(fabric);
    let fabric = open(engine.clone(), &Arc::default()).await.unwrap();
    fabric.authorize(OWNER, "x/write", &scope).await.unwrap();
    drop(fabric);
    // Nothing is written where nothing is missing.
    let length = engine.get(b"head").await.unwrap().unwrap().value;
    open(engine.clone(), &Arc::default()).await.unwrap();
    assert_eq!(engine.get(b"head").await.unwrap().unwrap().value, length);
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
    let made = fabric.put_assignment("ada", &pool, "a2", "ada", Role::Reader).await.unwrap();
    assert_eq!(made.1, Put::Made);
    // The same again is there already, by the same name; another name, or another right, is refused.
    let again = fabric.put_assignment("ada", &pool, "A2", "ADA", Role::Reader).await.unwrap();
    assert_eq!((again.0.id.as_str(), again.1), ("a2", Put::Unchanged));
    let twice = fabric.put_assignment("ada", &pool, "a3", "ada", Role::Reader).await;
    assert!(matches!(twice, Err(FabricError::AssignmentExists(id)) if id == "a2"));
    for (principal, role) in [("eve", Role::Reader), ("ada", Role::Owner)] {
        let changed = fabric.put_assignment("ada", &pool, "a2", principal, role).await;
        assert!(matches!(changed, Err(FabricError::AssignmentFixed)));
    }
    let moved = fabric.put_assignment(OWNER, &other, "a2", "ada", Role::Reader).await;
    assert!(matches!(moved, Err(FabricError::AssignmentFixed)));
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

fn endpoint(pool: &str, network: &str, manual: bool) -> CreateEndpoint {
    CreateEndpoint {
        location: None,
        pool: pool.into(),
        network: network.into(),
        manual,
        connection_name: "c".into(),
        request_message: "let us in".into(),
    }
}

/// From a request to an open way and back, at each step as the pool is told of it.
#[tokio::test]
async fn a_private_way_is_open_while_its_connection_is_approved() {
    let directory = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::default());
    let engine = engine(directory.path());
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    fabric.put_pool(OWNER, "payroll", asked()).await.unwrap();
    let (shut, opened) = ("[] for payroll", "[] and [10.0.0.5] for payroll");
    recorder.take();
    let made = fabric.put_endpoint(OWNER, "Desk", endpoint("Payroll", "office", true)).await.unwrap();
    assert_eq!(
        (made.name.as_str(), made.pool.as_str(), made.state),
        ("desk", "payroll", ConnectionState::Pending)
    );
    assert_eq!(recorder.take(), [shut]);
    let decide =
        async |approved| fabric.decide_connection(OWNER, "payroll", "desk", approved, "x".into()).await;
    for (approved, state, told) in [
        (true, ConnectionState::Approved, opened),
        (false, ConnectionState::Rejected, shut),
        (true, ConnectionState::Approved, opened),
    ] {
        assert_eq!(decide(approved).await.unwrap().state, state);
        assert_eq!(recorder.take(), [told]);
    }
    assert_eq!(fabric.pool(OWNER, "payroll").await.unwrap().connections.len(), 1);
    // The same again keeps what was decided; another decision-maker, network or pool needs another endpoint.
    let again = fabric.put_endpoint(OWNER, "desk", endpoint("payroll", "office", true)).await.unwrap();
    assert_eq!(again.state, ConnectionState::Approved);
    for other in [endpoint("payroll", "office", false), endpoint("payroll", "plant", true)] {
        assert!(matches!(fabric.put_endpoint(OWNER, "desk", other).await, Err(FabricError::Conflict(_))));
    }
    let second = fabric.put_endpoint(OWNER, "chair", endpoint("payroll", "office", true)).await;
    assert!(matches!(second, Err(FabricError::Conflict(_))), "one decision for one way");
    assert_eq!(recorder.take(), [""; 0]);
    drop(fabric);

    // Over a restart, and not where the operator has taken the network away.
    let fabric = open(engine.clone(), &recorder).await.unwrap();
    fabric.reconcile().await;
    assert_eq!(recorder.take(), ["with [10.0.0.5] start payroll"]);
    let mut config = fabric.config.clone();
    config.private_networks.clear();
    drop(fabric);
    let without = Fabric::open(config, engine.clone(), recorder.clone(), vec![]).await.unwrap();
    without.reconcile().await;
    assert_eq!(recorder.take(), ["start payroll"]);
    drop(without);

    // A pool that was deleted comes back without its connections, and what is left of them can ask anew.
    let fabric = open(engine, &recorder).await.unwrap();
    fabric.delete_pool(OWNER, "payroll").await.unwrap();
    assert_eq!(fabric.endpoint(OWNER, "desk").await.unwrap().state, ConnectionState::Disconnected);
    let recovery = CreatePool { mode: CreateMode::Recover, ..asked() };
    fabric.put_pool(OWNER, "payroll", recovery).await.unwrap();
    assert_eq!(recorder.take(), ["stop payroll", "start payroll"]);
    let decided = fabric.decide_connection(OWNER, "payroll", "desk", true, String::new()).await;
    assert!(matches!(decided, Err(FabricError::NoConnection(_))), "nobody approves what is gone");
    let asked_anew = fabric.put_endpoint(OWNER, "desk", endpoint("payroll", "office", false)).await.unwrap();
    assert_eq!(asked_anew.state, ConnectionState::Approved);
    assert_eq!(recorder.take(), [opened]);
    fabric.delete_connection(OWNER, "payroll", "desk").await.unwrap();
    assert_eq!(recorder.take(), [shut]);
    fabric.put_endpoint(OWNER, "desk", endpoint("payroll", "office", false)).await.unwrap();
    fabric.delete_endpoint(OWNER, "desk").await.unwrap();
    assert_eq!(recorder.take(), [opened, shut]);
    assert!(matches!(fabric.endpoint(OWNER, "desk").await, Err(FabricError::NoEndpoint(_))));
}

/// Who may ask may not decide, and who may decide may not ask; each for their own pool.
#[tokio::test]
async fn a_private_way_needs_both_its_ends() {
    let directory = tempfile::tempdir().unwrap();
    let fabric = open(engine(directory.path()), &Arc::default()).await.unwrap();
    for name in ["payroll", "other"] {
        fabric.put_pool(OWNER, name, asked()).await.unwrap();
    }
    let (group, pool) = (fabric.config.group_scope(), fabric.config.pool_scope("payroll"));
    fabric.put_assignment(OWNER, &pool, "a1", "ada", Role::ManagedHsmContributor).await.unwrap();
    let made = fabric.put_endpoint("ada", "desk", endpoint("payroll", "office", true)).await;
    assert!(matches!(made, Err(FabricError::Denied(_))), "she owns no network");
    for (name, to) in [("desk", "payroll"), ("chair", "other")] {
        fabric.put_endpoint(OWNER, name, endpoint(to, "office", true)).await.unwrap();
    }
    let approve =
        async |who, pool, name| fabric.decide_connection(who, pool, name, true, String::new()).await;
    assert!(matches!(approve("ada", "other", "chair").await, Err(FabricError::Denied(_))));
    // Not by naming another pool's connection at her own.
    assert!(matches!(approve("ada", "payroll", "chair").await, Err(FabricError::NoConnection(_))));
    approve("ada", "payroll", "desk").await.unwrap();
    for (role, asks) in
        [(Role::Reader, false), (Role::ManagedHsmContributor, false), (Role::Contributor, true)]
    {
        let id = format!("ben-{role:?}");
        fabric.put_assignment(OWNER, &group, &id, "ben", role).await.unwrap();
        let made = fabric.put_endpoint("ben", "ben", endpoint("payroll", "plant", false)).await;
        assert_eq!(made.is_ok(), asks, "{role:?}");
        fabric.delete_assignment(OWNER, &group, &id).await.unwrap();
    }
    for (name, asked) in [
        ("x", endpoint("payroll", "office", true)),
        ("-x", endpoint("payroll", "office", true)),
        ("a/b", endpoint("payroll", "office", true)),
        ("fine", endpoint("payroll", "moon", true)),
        ("fine", CreateEndpoint { request_message: "x".repeat(141), ..endpoint("payroll", "office", true) }),
        ("fine", CreateEndpoint { location: Some("moon".into()), ..endpoint("payroll", "office", true) }),
    ] {
        let refused = fabric.put_endpoint(OWNER, name, asked).await;
        assert!(matches!(refused, Err(FabricError::Invalid(_))), "{name}: {refused:?}");
    }
    let nowhere = fabric.put_endpoint(OWNER, "fine", endpoint("absent", "office", true)).await;
    assert!(matches!(nowhere, Err(FabricError::NoPool(_))));
}

#[tokio::test]
async fn the_golden_endpoint_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let engine = engine(directory.path());
    let golden = include_str!("golden/fabric-store-v1-endpoint.txt").trim_end();
    let (key, value) = golden.split_once(' ').unwrap();
    put(engine.as_ref(), key.as_bytes(), Some(value.as_bytes().to_vec())).await;
    let fabric = open(engine, &Arc::default()).await.unwrap();
    let held: EndpointRecord = fabric.endpoint(OWNER, "desk").await.unwrap();
    assert_eq!((held.state, held.network.as_str()), (ConnectionState::Approved, "office"));
    assert_eq!(serde_json::to_string(&held).unwrap(), value);
}
