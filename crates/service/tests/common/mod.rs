//! A pool on real parts (redb, log files, the software partition) with a clock that tests set.
#![allow(dead_code)] // each test binary uses a part of it

pub mod gated;
pub mod targets;

use crypto::Partition;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::KeySpec;
use domain::guid::Guid;
use domain::key::Tags;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::{Caller, TenantId};
use domain::time::{IntDate, Time};
use host::{Engine, Log};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::backup::BackupTargets;
use service::{
    ActivationRecord, Clock, Error, KeyReference, KeyView, NewKey, OpenPoolError, Pool, PoolLimits,
    PoolParts, Random, Recorded, RequestFacts, SecretBytes, Shown, SystemRandom, Ticket,
};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

pub const ADMIN: Guid = Guid([0xa1; 16]);
pub const APP: Guid = Guid([0xa2; 16]);
pub const OFFICER: Guid = Guid([0xa3; 16]);

/// Wall time, and by how much it was set: monotonic time does not know of that.
pub struct TestClock(AtomicI64, AtomicI64);

impl TestClock {
    pub fn pass(&self, milliseconds: i64) {
        self.0.fetch_add(milliseconds, Ordering::SeqCst);
    }

    pub fn set_ahead(&self, milliseconds: i64) {
        self.1.fetch_add(milliseconds, Ordering::SeqCst);
        self.pass(milliseconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time::from_unix_milliseconds(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        let passed = self.0.load(Ordering::SeqCst) - self.1.load(Ordering::SeqCst);
        Duration::from_millis(passed.unsigned_abs())
    }
}

/// A pool's directory and secrets, from which it can be opened again and again.
pub struct Bench {
    pub directory: tempfile::TempDir,
    pub secrets: Vec<u8>,
    pub clock: Arc<TestClock>,
    pub clock_is_right: bool,
    pub limits: PoolLimits,
    pub genesis: Genesis,
    pub targets: targets::MemoryTargets,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            secrets: DomainSecrets::generate().danger_export().danger_expose().to_vec(),
            clock: Arc::new(TestClock(AtomicI64::new(1_800_000_000_000), AtomicI64::new(0))),
            clock_is_right: false,
            limits: PoolLimits::default(),
            genesis: genesis(),
            targets: targets::MemoryTargets::default(),
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub async fn open(&self) -> Arc<Pool> {
        let engine = RedbEngine::open(self.path().join("store"), EngineOptions::default()).unwrap();
        let log = FileLog::open(self.path().join("audit"), LogOptions::default()).unwrap();
        self.open_on(Arc::new(engine), Arc::new(log)).await
    }

    pub async fn open_on(&self, engine: Arc<dyn Engine>, log: Arc<dyn Log>) -> Arc<Pool> {
        let partition = SoftwarePartition::new(self.secrets().partition_wrapping_key());
        self.open_parts(engine, log, Arc::new(partition), Arc::new(self.targets.clone())).await
    }

    pub async fn open_backing_up_to(
        &self,
        engine: Arc<dyn Engine>,
        log: Arc<dyn Log>,
        targets: Arc<dyn BackupTargets>,
    ) -> Arc<Pool> {
        let partition = SoftwarePartition::new(self.secrets().partition_wrapping_key());
        self.open_parts(engine, log, Arc::new(partition), targets).await
    }

    pub async fn open_with(&self, partition: Arc<dyn Partition>) -> Arc<Pool> {
        let engine = RedbEngine::open(self.path().join("store"), EngineOptions::default()).unwrap();
        let log = FileLog::open(self.path().join("audit"), LogOptions::default()).unwrap();
        self.open_parts(Arc::new(engine), Arc::new(log), partition, Arc::new(self.targets.clone())).await
    }

    pub fn secrets(&self) -> DomainSecrets {
        DomainSecrets::import(&SecretBytes::new(self.secrets.clone())).unwrap()
    }

    async fn open_parts(
        &self,
        engine: Arc<dyn Engine>,
        log: Arc<dyn Log>,
        partition: Arc<dyn Partition>,
        targets: Arc<dyn BackupTargets>,
    ) -> Arc<Pool> {
        self.try_open(engine, log, partition, targets).await.unwrap()
    }

    /// What keeps it closed.
    pub async fn refusal(&self) -> OpenPoolError {
        let engine = RedbEngine::open(self.path().join("store"), EngineOptions::default()).unwrap();
        let log = FileLog::open(self.path().join("audit"), LogOptions::default()).unwrap();
        let partition = SoftwarePartition::new(self.secrets().partition_wrapping_key());
        let targets = Arc::new(self.targets.clone());
        let opened = self.try_open(Arc::new(engine), Arc::new(log), Arc::new(partition), targets).await;
        let refusal = opened.map(drop).unwrap_err();
        // What holds them ends on its own.
        while RedbEngine::open(self.path().join("store"), EngineOptions::default()).is_err()
            || FileLog::open(self.path().join("audit"), LogOptions::default()).is_err()
        {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        refusal
    }

    async fn try_open(
        &self,
        engine: Arc<dyn Engine>,
        log: Arc<dyn Log>,
        partition: Arc<dyn Partition>,
        targets: Arc<dyn BackupTargets>,
    ) -> Result<Arc<Pool>, OpenPoolError> {
        let secrets = self.secrets();
        Pool::found(engine.as_ref(), &secrets, self.genesis.clone(), Some(active())).await.unwrap();
        let parts = PoolParts {
            engine,
            log,
            partition,
            secrets,
            opened_with: "none".into(),
            node: Guid([3; 16]),
            clock: self.clock.clone(),
            clock_is_right: self.clock_is_right,
            random: Arc::new(SystemRandom),
            limits: self.limits,
            resource_suffixes: vec!["managedhsm.localhost".into()],
            installer: None,
            backup_targets: Some(targets),
        };
        let pool = Pool::open(parts).await?;
        if self.genesis.class == PoolClass::Test {
            let roles = [(APP, BuiltInRole::CryptoUser), (OFFICER, BuiltInRole::CryptoOfficer)];
            let everywhere = roles.map(|(principal, role)| (principal, role, Scope::Root));
            pool.bootstrap_assignments(everywhere.to_vec()).await.unwrap();
        }
        Ok(pool)
    }
}

pub fn genesis() -> Genesis {
    Genesis {
        pool: Guid([1; 16]),
        name: "demo".parse().unwrap(),
        security_domain: Guid([2; 16]),
        class: PoolClass::Test,
        tenant: TenantId::parse("t").unwrap(),
        issuer: IssuerPin {
            issuers: vec!["https://issuer.example/t/v2.0".into()],
            authority: "https://issuer.example/t".into(),
            key_set: include_bytes!("../issuer-key-set.json").to_vec(),
            audiences: vec![],
            key_source: None,
        },
        initial_administrators: vec![ADMIN],
        break_glass_group: None,
        retention: RetentionDays::DEFAULT,
        purge_protection: false,
        audit_durability: AuditDurability::Synced,
        allow_domain_redownload: false,
    }
}

pub fn ticket(pool: &Arc<Pool>, principal: Guid) -> Ticket {
    ticket_in(pool, principal, &[])
}

/// Of a principal that is in `groups`.
pub fn ticket_in(pool: &Arc<Pool>, principal: Guid, groups: &[Guid]) -> Ticket {
    let caller = Caller {
        tenant: TenantId::parse("t").unwrap(),
        object_id: principal,
        groups: groups.to_vec(),
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

pub fn new_key(name: &str, spec: KeySpec) -> NewKey {
    NewKey {
        name: name.parse().unwrap(),
        spec,
        public_exponent: None,
        operations: None,
        enabled: true,
        not_before: None,
        expires: None,
        exportable: false,
        release: None,
        tags: Tags::default(),
    }
}

pub fn current(name: &str) -> KeyReference {
    KeyReference { name: name.parse().unwrap(), version: None }
}

pub fn ok<T>(recorded: Recorded<T>) -> T {
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "an answer without a receipt");
    result.unwrap()
}

pub fn refused<T>(recorded: Recorded<T>) -> Error {
    let (result, receipt) = recorded.into_parts();
    assert!(receipt.is_some(), "a refusal without a receipt");
    result.err().unwrap()
}

pub async fn create(pool: &Arc<Pool>, name: &str, spec: KeySpec) -> KeyView {
    ok(pool.create_key(ticket(pool, APP), new_key(name, spec)).await)
}

/// Operation names and results of all events that requests left.
pub async fn events(pool: &Arc<Pool>) -> Vec<String> {
    let page = pool.audit_page(0, 10_000).await.unwrap();
    let text = |event: &serde_json::Value, member: &str| event[member].as_str().unwrap().to_owned();
    page.iter()
        .filter(|event| event["httpStatusCode"] != 0)
        .map(|event| format!("{} {}", text(event, "operationName"), text(event, "resultType")))
        .collect()
}

/// A pool that nobody asked for its domain yet, and that serves all the same.
pub fn active() -> ActivationRecord {
    ActivationRecord {
        at: domain::time::IntDate::from_unix_seconds(0),
        domain_file: None,
        holders: vec![],
        required: 0,
        awaits_confirmation: false,
    }
}
