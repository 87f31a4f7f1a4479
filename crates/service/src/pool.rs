//! A pool in operation: its parts, how it opens, and how it changes.

use crate::attestation::Attestations;
use crate::backup::{BackupTargets, Backups};
use crate::clock::{Clock, Random, SteadyClock};
use crate::error::Error;
use crate::failures::FailureLimiter;
use crate::index::Index;
use crate::invocations::Invocations;
use crate::key_backup::KeyBackups;
use crate::network::Firewall;
use crate::owed::Owed;
use crate::quota::{Limited, Places, Quota, added};
use crate::ready_keys::ReadyKeys;
use crate::release::{Releases, UsedAssertions};
use crate::room::{Room, Roomy};
use crate::security_domain::{DomainState, Installation, Installer};
use crate::test_mode::Simulation;
use crate::ticket::{Recorded, RequestFacts, Ticket};
use crate::workers::{Idle, Workers};
use audit::event::{Event, EventResult};
use audit::{AuditConfig, AuditLog, Leaf, Receipt};
use crypto::attestation::Attestor;
use crypto::audit_key::{AuditSealer, EventSeed};
use crypto::certificate::{InstanceClaims, InstanceKey, Purpose};
use crypto::domain_secrets::DomainSecrets;
use crypto::key_backup::BackupDomain;
use crypto::{LoadedKey, Partition, SelfTestFailed};
use domain::access::{BuiltInRole, RoleAssignment, RoleTable, Scope};
use domain::guid::Guid;
use domain::name::{KeyName, KeyVersion};
use domain::pool::{Genesis, KeySource, PoolClass};
use domain::principal::{Caller, ObjectId};
use domain::time::{IntDate, Time};
use host::{Engine, Log};
use identity::attestation::AuthorityKeyCache;
use identity::{
    Audiences, KeySet, KeySetError, KeySetSource, MalformedSuffix, TokenError, TokenVerifier, VerifierConfig,
};
use quick_cache::sync::Cache;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use storage::{
    ActivationRecord, CheckpointMark, Contents, OutboxRecord, Record, RecordId, Staging, Store, Transaction,
};
use tokio::sync::OwnedRwLockReadGuard;

/// The audit key of a pool's first years; a later one comes with key rotation.
pub(crate) const AUDIT_EPOCH: u32 = 1;
/// Of the log that are read at once at a start.
const PAGE_EVENTS: usize = 1000;
/// How long an incarnation's certificates hold: longer than a process is expected to run without a restart.
const CERTIFICATE_DAYS: i64 = 400;
/// Read, decide, compare-and-commit: tried this often. Whoever loses waits a random while, longer each time, so that
/// many writers of one record take turns.
const COMMIT_TRIES: u32 = 10;
/// The longest first wait; it doubles up to [`MAX_WAIT_MILLISECONDS`].
const FIRST_WAIT_MILLISECONDS: u64 = 4;
const MAX_WAIT_MILLISECONDS: u64 = 100;
const SECONDS_PER_DAY: i64 = 86_400;

/// Limits of a pool; the defaults are the service's (behaviour section 17.1).
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    pub keys: usize,
    pub versions_per_key: usize,
    pub custom_roles: usize,
    pub assignments_at_pool_scope: usize,
    pub assignments_at_key_scope: usize,
    /// Failed `RSA1_5` decryptions per key version and hour, in class production.
    pub rsa15_failures_per_hour: u32,
    /// AES-GCM encryptions per key version (SP 800-38D section 8.3: at most 2^32 with random IVs).
    pub gcm_encryptions: u64,
    /// Parsed keys kept ready, a few KiB each.
    pub loaded_keys: usize,
    /// RSA keys of each size made ahead, once no key was asked for during `ready_keys_after`.
    pub ready_keys: usize,
    pub ready_keys_after: Duration,
    /// Verified tokens kept.
    pub cached_tokens: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            keys: 5_000,
            versions_per_key: 100,
            custom_roles: 50,
            assignments_at_pool_scope: 50,
            assignments_at_key_scope: 10,
            rsa15_failures_per_hour: 100,
            gcm_encryptions: 1 << 32,
            loaded_keys: 10_000,
            ready_keys: 2,
            ready_keys_after: Duration::from_secs(5),
            cached_tokens: identity::token::DEFAULT_CACHED_TOKENS,
        }
    }
}

/// What a pool is made from. The three parts of the host come as trait objects: the core knows nothing else of it.
pub struct PoolParts {
    pub engine: Arc<dyn Engine>,
    pub log: Arc<dyn Log>,
    pub partition: Arc<dyn Partition>,
    pub secrets: DomainSecrets,
    /// How those were opened, for the event of this start: who reads the log finds there when they were sealed anew.
    pub opened_with: String,
    pub node: Guid,
    pub clock: Arc<dyn Clock>,
    /// Said by who has looked: where the clock is behind the log, it is the log that was ahead.
    pub clock_is_right: bool,
    pub random: Arc<dyn Random>,
    pub limits: PoolLimits,
    /// Names of the pool's hosts minus their first label, such as `managedhsm.localhost`: `https://` and one of them,
    /// with or without a port, is an accepted audience beside those of genesis.
    pub resource_suffixes: Vec<String>,
    /// Makes this pool anew around an uploaded domain; without one it takes none.
    pub installer: Option<Arc<dyn Installer>>,
    /// Where full backups may go and come from; without any the pool makes none.
    pub backup_targets: Option<Arc<dyn BackupTargets>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenPoolError {
    #[error("the partition is not fit for use")]
    SelfTest(#[from] SelfTestFailed),
    #[error("the store does not open")]
    Store(#[from] storage::OpenError),
    #[error("the audit log does not open")]
    Audit(#[from] audit::OpenError),
    #[error(
        "the clock is {} s behind the last entry of the audit log, and would revive what has expired; where the clock is right and was ahead before, say so with --clock-is-right",
        .0.as_secs()
    )]
    ClockBehind(Duration),
    #[error(
        "the store is older than the log: event {index}, {operation}, was committed to a later one; put that back, or restore a backup into a new pool"
    )]
    StoreIsOlder { index: u64, operation: String },
    #[error("event {index} of the log cannot be read: {error}")]
    UnreadableEvent { index: u64, error: audit::EventUnreadable },
    #[error("events of earlier commits cannot be brought into the audit log")]
    Outbox(#[from] audit::AuditError),
    #[error("the issuer's pinned key set is unusable")]
    KeySet(#[from] KeySetError),
    #[error("a name of the pool is unusable")]
    Suffix(#[from] MalformedSuffix),
    #[error("how a job ended cannot be written down")]
    Job(#[source] Box<Error>),
    #[error("key {0} is incomplete in the store: a release with a fault wrote it")]
    IncompleteKey(KeyName),
}

/// Why a caller is not let in.
#[derive(Debug, thiserror::Error)]
pub enum NotAuthenticated {
    #[error("{0}")]
    Token(#[from] TokenError),
    #[error("the token was issued before an administrator withdrew this principal's tokens")]
    Withdrawn,
}

pub(crate) type LoadedKeys = Cache<(KeyName, KeyVersion), Arc<dyn LoadedKey>>;

pub struct Pool {
    store: Store,
    index: Arc<Index>,
    audit: AuditLog,
    owed: Owed,
    sealer: AuditSealer,
    partition: Arc<dyn Partition>,
    loaded: Arc<LoadedKeys>,
    room: Room,
    ready_keys: Arc<ReadyKeys>,
    workers: Workers,
    rsa15_failures: Option<Arc<FailureLimiter>>,
    domain: DomainState,
    invocations: Arc<Invocations>,
    key_backups: KeyBackups,
    firewall: Firewall,
    attestations: Attestations,
    backups: Backups,
    releases: Releases,
    verifier: TokenVerifier,
    /// The generation of the issuer's key set that the log knows of.
    recorded_keys: AtomicU64,
    node: Guid,
    incarnation: Guid,
    clock: Arc<SteadyClock>,
    random: Arc<dyn Random>,
    limits: PoolLimits,
    quota: Quota,
    simulation: Simulation,
}

/// A change, decided: what it rests on and what it writes.
pub(crate) struct Change<T> {
    pub expectations: Vec<(RecordId, Option<storage::Stamp>)>,
    pub puts: Vec<Record>,
    pub deletes: Vec<RecordId>,
    pub value: T,
}

/// A change that may be committed.
struct Decided<T> {
    change: Change<T>,
    places: Places,
    /// Held until the commit is made, whatever becomes of the caller: a restore waits for it.
    _open: OwnedRwLockReadGuard<()>,
}

/// A change, made: its value, and the receipt of its event.
pub(crate) struct Changed<T> {
    pub value: T,
    pub receipt: Result<Receipt, Error>,
}

impl Pool {
    /// Writes the genesis of a new pool, once. The same genesis again is no error and changes nothing. Without
    /// `activation` the pool waits for its security domain to be handed out, or for another's.
    pub async fn found(
        engine: &dyn Engine,
        secrets: &DomainSecrets,
        genesis: Genesis,
        activation: Option<ActivationRecord>,
    ) -> Result<storage::SignedGenesis, storage::OpenError> {
        let mut initial = initial_records(&genesis);
        initial.extend(activation.map(Record::Activation));
        storage::found(engine, secrets, genesis, initial).await
    }

    /// Likewise, of a pool that is made anew around a domain that was uploaded.
    pub async fn found_anew(
        engine: &dyn Engine,
        installation: Installation,
    ) -> Result<storage::SignedGenesis, storage::OpenError> {
        let Installation { secrets, genesis, activation, event } = installation;
        let mut initial = initial_records(&genesis);
        initial.extend([Record::Activation(activation), Record::Outbox(event)]);
        storage::found(engine, &secrets, genesis, initial).await
    }

    /// The genesis of the pool of this security domain that the store holds, if it holds one.
    pub async fn genesis_in(
        engine: &dyn Engine,
        secrets: &DomainSecrets,
    ) -> Result<Option<Genesis>, storage::OpenError> {
        let signed = storage::read_genesis(engine, secrets).await?;
        Ok(signed.map(|signed| signed.genesis().clone()))
    }

    /// Self-tests, reads the store, opens the log where the store left it, and finishes what a crash left between
    /// the two. A pool that fails any of this stays closed.
    pub async fn open(parts: PoolParts) -> Result<Arc<Pool>, OpenPoolError> {
        let PoolParts {
            engine,
            log,
            partition,
            secrets,
            opened_with,
            node,
            clock,
            clock_is_right,
            random,
            limits,
            resource_suffixes,
            installer,
            backup_targets,
        } = parts;
        partition.self_test()?;

        let opened: Arc<OnceLock<AuditLog>> = Arc::default();
        let index = Arc::new(Index::default());
        let loaded = Arc::new(Cache::new(limits.loaded_keys));
        let invocations_of = Arc::new(OnceLock::new());
        let observer = observer(index.clone(), loaded.clone(), invocations_of.clone());
        let (store, contents) =
            Store::open(engine, &secrets, checkpoint_source(opened.clone()), observer).await?;
        let genesis = store.genesis().genesis().clone();
        let clock = Arc::new(SteadyClock::new(clock, genesis.class));
        let incarnation = random.guid();
        let now = clock.now().int_date();
        let claims = InstanceClaims {
            pool: genesis.pool,
            node,
            incarnation,
            purpose: Purpose::Attestation,
            class: genesis.class,
            genesis_hash: store.genesis().hash(),
            not_before: now,
            not_after: certified_until(now),
        };
        let attestor = Attestor::new(secrets.owner_key(), claims.clone(), genesis.security_domain);
        let backup_key = InstanceKey::generate();
        let claims = InstanceClaims { purpose: Purpose::Backup, ..claims };
        let backup_certificate = secrets.owner_key().certify(&claims, &backup_key);
        let release_key = InstanceKey::generate();
        let claims = InstanceClaims { purpose: Purpose::Release, ..claims };
        let releases = Releases {
            certificate: secrets.owner_key().certify(&claims, &release_key),
            key: release_key,
            authorities: AuthorityKeyCache::default(),
            used: UsedAssertions::default(),
        };
        let owner = secrets.owner_key().public_key();
        let key_backups = KeyBackups {
            key: secrets.backup_key(),
            domain: BackupDomain::new(genesis.security_domain, &owner, genesis.class),
        };
        let backups = Backups::new(backup_targets, owner.clone(), backup_key, backup_certificate);
        let config = AuditConfig::new(genesis.pool, store.genesis().hash(), node, incarnation, owner);
        let expected =
            audit::CheckpointMark { size: contents.checkpoint.size, root: contents.checkpoint.root };
        let audit_clock = clock.clone();
        // Where the clock was far ahead once, checkpoints stand still until it gets there.
        let certify = |key: &InstanceKey, last: Option<Time>| {
            let latest = last.map_or(now, |last| now.max(last.int_date()));
            let (purpose, not_after) = (Purpose::AuditCheckpoint, certified_until(latest));
            secrets.owner_key().certify(&InstanceClaims { purpose, not_after, ..claims }, key)
        };
        let recovered = AuditLog::open(
            log,
            config,
            InstanceKey::generate(),
            certify,
            Some(expected),
            Arc::new(move || audit_clock.now()),
        )
        .await?;
        let behind = recovered.last_checkpoint.and_then(|last| clock.behind(last));
        if let (Some(behind), PoolClass::Production, false) = (behind, genesis.class, clock_is_right) {
            return Err(OpenPoolError::ClockBehind(behind));
        }
        let audit = recovered.log;
        // Set once, here: the store was opened a moment ago and nothing was committed in between.
        let _ = opened.set(audit.clone());

        let Contents { records, .. } = contents;
        let (outbox, records): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| matches!(record.value, Record::Outbox(_)));
        let outbox: Vec<OutboxRecord> = outbox
            .into_iter()
            .filter_map(|record| match record.value {
                Record::Outbox(record) => Some(record),
                _ => None,
            })
            .collect();
        let sealer = secrets.audit_sealer(&genesis, AUDIT_EPOCH);
        let ids = outbox.iter().map(|record| record.event_id).collect();
        check_store_is_not_older(&audit, &sealer, expected.size, &ids).await?;
        drain_outbox(&store, &audit, outbox, &ids).await?;
        index.fill(records);
        let held = index.all_invocations();
        let invocations = Arc::new(Invocations::new(limits.gcm_encryptions, &held));
        let _ = invocations_of.set(invocations.clone());
        if let Some(name) = index.incomplete() {
            return Err(OpenPoolError::IncompleteKey(name));
        }

        let verifier = TokenVerifier::new(
            VerifierConfig {
                issuers: genesis.issuer.issuers.clone(),
                tenant: genesis.tenant.clone(),
                audiences: Audiences::new(resource_suffixes, genesis.issuer.audiences.iter().cloned())?,
                cached_tokens: limits.cached_tokens,
            },
            KeySet::parse(&genesis.issuer.key_set)?,
        );
        let room = Room::new(loaded.clone());
        // Without room: a key that nobody asked for is no reason to give up those in use.
        let ready_keys = Arc::new(ReadyKeys::new(partition.clone(), genesis.pool, limits.ready_keys));
        let idle = {
            let ready_keys = ready_keys.clone();
            Idle { after: limits.ready_keys_after, work: Box::new(move || ready_keys.make_one()) }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let rsa15_failures = match genesis.class {
            PoolClass::Production => Some(FailureLimiter::new(limits.rsa15_failures_per_hour)),
            PoolClass::Test => None,
        };
        let pool = Arc::new(Pool {
            store,
            index,
            audit,
            owed: Owed::default(),
            sealer,
            partition: Arc::new(Roomy { partition, room: room.clone() }),
            loaded,
            room,
            ready_keys,
            workers: Workers::start(cores, idle),
            rsa15_failures,
            invocations,
            domain: DomainState::new(secrets, installer),
            key_backups,
            firewall: Firewall::default(),
            attestations: Attestations::new(attestor),
            backups,
            releases,
            verifier,
            recorded_keys: AtomicU64::new(0),
            node,
            incarnation,
            clock,
            random,
            limits,
            quota: Quota::default(),
            simulation: Simulation::default(),
        });
        pool.note_roles();
        pool.forget_unneeded_secrets();
        pool.record_start(recovered.torn_bytes_dropped, &opened_with).await?;
        if let Some(behind) = behind.map(|behind| behind.as_secs()) {
            pool.record_clock_alarm(format!("wall time is {behind} s behind the last entry of this log"))
                .await?;
        }
        pool.end_interrupted_job().await.map_err(|error| OpenPoolError::Job(Box::new(error)))?;
        Ok(pool)
    }

    /// The caller that a bearer token names. Whether the principal's tokens were withdrawn is looked up each time:
    /// a verified token may be cached, that may not.
    pub async fn authenticate(self: &Arc<Self>, token: &str) -> Result<Arc<Caller>, NotAuthenticated> {
        let verified = self.verifier.verify_asking(token, self.clock.now()).await;
        self.record_issuer_keys().await;
        let caller = verified?;
        if self.is_withdrawn(&caller) { Err(NotAuthenticated::Withdrawn) } else { Ok(caller) }
    }

    /// Whether the token that showed who the caller is was withdrawn. One of the same second may be older.
    pub(crate) fn is_withdrawn(&self, caller: &Caller) -> bool {
        self.index.not_before(caller.object_id).is_some_and(|held| caller.issued_at <= held.value)
    }

    /// Where the issuer's key set comes from when the pinned one does not have a key: what `connect` makes of the place that
    /// genesis names. Where it names none, the pinned set is the only one.
    pub fn connect_key_source<E>(
        &self,
        connect: impl FnOnce(&KeySource) -> Result<Arc<dyn KeySetSource>, E>,
    ) -> Result<(), E> {
        if let Some(source) = &self.genesis().issuer.key_source {
            self.verifier.set_source(connect(source)?);
        }
        Ok(())
    }

    /// Asks for the issuer's key set, so that a key that is not in it any more is good for nobody.
    pub async fn refresh_issuer_keys(self: &Arc<Self>) {
        self.verifier.refresh_keys().await;
        self.record_issuer_keys().await;
    }

    /// An event once the issuer's key set was replaced: from then on other tokens are good. It comes before the event of the
    /// request that made the pool ask.
    async fn record_issuer_keys(self: &Arc<Self>) {
        let generation = self.verifier.generation();
        let recorded = self.recorded_keys.load(Ordering::Acquire);
        if generation == recorded
            || self
                .recorded_keys
                .compare_exchange(recorded, generation, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
        {
            return;
        }
        Box::pin(self.record_new_issuer_keys(recorded)).await;
    }

    async fn record_new_issuer_keys(self: &Arc<Self>, recorded: u64) {
        let event = Event {
            operation: "IssuerKeysReplaced".into(),
            result: EventResult::Success,
            detail: format!("the issuer's keys are {}", self.verifier.key_names().join(", ")),
            ..self.blank_event()
        };
        if let Err(error) = self.append_own(&event).await {
            tracing::error!(%error, "the change of the issuer's keys cannot be recorded");
            // The next one tries again. Until the log takes events nobody is answered.
            self.recorded_keys.store(recorded, Ordering::Release);
        }
    }

    /// A ticket for an authenticated request. It leaves one event, whatever becomes of the request.
    pub fn admit(self: &Arc<Self>, caller: Arc<Caller>, facts: RequestFacts) -> Ticket {
        Ticket::new(self.clone(), caller, facts)
    }

    pub fn genesis(&self) -> &Genesis {
        self.store.genesis().genesis()
    }

    /// The machine's time, or somewhat less where it was set back. What time it is for keys, `key_time` says.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn simulation(&self) -> &Simulation {
        &self.simulation
    }

    pub(crate) fn clock(&self) -> &SteadyClock {
        &self.clock
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn firewall(&self) -> &Firewall {
        &self.firewall
    }

    pub fn random(&self) -> &dyn Random {
        self.random.as_ref()
    }

    pub fn limits(&self) -> &PoolLimits {
        &self.limits
    }

    /// Events from `from` on, opened, in Azure's schema: at most `limit`.
    pub async fn audit_page(&self, from: u64, limit: usize) -> Result<Vec<serde_json::Value>, Error> {
        let leaves = self.audit.read(from, limit).await?;
        leaves
            .into_iter()
            .map(|(index, leaf)| {
                let event = audit::open_event(&leaf, &self.sealer)
                    .map_err(|error| Error::AuditUnavailable(error.to_string()))?;
                Ok(event.to_azure_json(index))
            })
            .collect()
    }

    /// Gives `principals` their roles without a caller, for a pool of class test that is set up from a file.
    /// Assignments that are there already are left alone.
    pub async fn bootstrap_assignments(
        self: &Arc<Self>,
        wanted: Vec<(ObjectId, BuiltInRole, Scope)>,
    ) -> Result<(), Error> {
        match self.genesis().class {
            PoolClass::Test => {}
            class @ PoolClass::Production => return Err(Error::TestClassOnly(class)),
        }
        for (principal, role, scope) in wanted {
            let held = self.index.roles().assignments().any(|assignment| {
                assignment.principal == principal && assignment.role == role.id() && assignment.scope == scope
            });
            if held {
                continue;
            }
            let assignment = RoleAssignment { name: self.random.guid(), scope, role: role.id(), principal };
            let event = Event {
                operation: "RoleAssignmentCreate".into(),
                result: EventResult::Success,
                scope: Some(assignment.scope.to_string()),
                detail: format!("set up from the start: {} for principal {principal}", role.name()),
                ..self.blank_event()
            };
            let leaf = self.seal_committed(event);
            let change = || {
                Ok(Change {
                    expectations: vec![(RecordId::Assignment(assignment.name), None)],
                    puts: vec![Record::Assignment(assignment.clone())],
                    deletes: vec![],
                    value: (),
                })
            };
            self.change(leaf, change).await?.receipt?;
        }
        Ok(())
    }

    /// Stops taking changes, writes what is due, and closes the log. Requests must have ended by then.
    pub async fn close(self: Arc<Self>) {
        self.stop_job().await;
        // What stays owed is in the outbox, and comes with the next start.
        let _ = self.settle().await;
        self.audit.close().await;
        if let Some(pool) = Arc::into_inner(self) {
            pool.store.close().await;
        }
    }

    pub fn genesis_hash(&self) -> [u8; 32] {
        self.store.genesis().hash()
    }

    pub(crate) fn invocations(&self) -> &Invocations {
        &self.invocations
    }

    pub(crate) fn domain_state(&self) -> &DomainState {
        &self.domain
    }

    pub(crate) fn releases(&self) -> &Releases {
        &self.releases
    }

    pub(crate) fn key_backups(&self) -> &KeyBackups {
        &self.key_backups
    }

    pub(crate) fn attestations(&self) -> &Attestations {
        &self.attestations
    }

    /// The assignments that genesis gives.
    pub(crate) fn initial_assignments(&self) -> Vec<RoleAssignment> {
        initial_assignments(self.genesis())
    }

    pub(crate) fn backups(&self) -> &Backups {
        &self.backups
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn roles(&self) -> Arc<RoleTable> {
        self.index.roles().clone()
    }

    pub(crate) fn audit(&self) -> &AuditLog {
        &self.audit
    }

    pub(crate) fn sealer(&self) -> &AuditSealer {
        &self.sealer
    }

    pub(crate) fn owed(&self) -> &Owed {
        &self.owed
    }

    pub(crate) fn partition(&self) -> &Arc<dyn Partition> {
        &self.partition
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(crate) fn ready_keys(&self) -> &ReadyKeys {
        &self.ready_keys
    }

    /// How many RSA keys are made ahead.
    pub fn ready_key_count(&self) -> usize {
        self.ready_keys.count()
    }

    pub(crate) fn loaded(&self) -> &LoadedKeys {
        &self.loaded
    }

    pub(crate) fn room(&self) -> &Room {
        &self.room
    }

    /// How many keys are kept ready in the clear. None of them is disabled, deleted or purged.
    pub fn loaded_keys(&self) -> usize {
        self.loaded.len()
    }

    /// `None` in a pool whose keys may not matter.
    pub(crate) fn rsa15_failures(&self) -> Option<&Arc<FailureLimiter>> {
        self.rsa15_failures.as_ref()
    }

    pub(crate) fn seal_event(&self, event: &Event) -> Leaf {
        Leaf::seal(EventSeed::fresh(), event, &self.sealer)
    }

    pub(crate) fn seal_committed(&self, event: Event) -> CommittedLeaf {
        CommittedLeaf::seal(event, &self.sealer)
    }

    /// An event of this pool, node and incarnation, now, with nothing else filled in.
    pub(crate) fn blank_event(&self) -> Event {
        Event {
            time: self.clock.now(),
            pool: self.genesis().name.to_string(),
            node: self.node,
            incarnation: self.incarnation,
            ..Event::default()
        }
    }

    /// Decides and commits, again if others were faster, then brings the event into the log. Runs to its end even if
    /// the caller goes away: a change that was committed is shown to all, and its event follows at once.
    ///
    /// `decide` sees the index as it is at each try. The event is the same at each: it says what was asked.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        leaf: CommittedLeaf,
        decide: impl Fn() -> Result<Change<T>, Error>,
    ) -> Result<Changed<T>, Error> {
        self.change_beyond(None, leaf, 0, decide).await.map_err(|(_, error)| error)
    }

    /// Likewise, with so many places more than the limits have, and for a ticket: it is spent with the commit, or comes
    /// back with what stood against it.
    async fn change_beyond<T: Send + 'static>(
        self: &Arc<Self>,
        mut ticket: Option<Ticket>,
        leaf: CommittedLeaf,
        beyond: usize,
        decide: impl Fn() -> Result<Change<T>, Error>,
    ) -> Result<Changed<T>, (Option<Ticket>, Error)> {
        for tried in 0..COMMIT_TRIES {
            let decided = match self.decide(beyond, &decide).await {
                Ok(Some(decided)) => decided,
                Ok(None) => {
                    self.wait_before_trying_again(tried).await;
                    continue;
                }
                Err(error) => return Err((ticket, error)),
            };
            let pool = self.clone();
            let leaf = leaf.clone();
            // A task of its own: dropping the request's future must not stop it between commit and index. The ticket goes
            // with it, as only there it is known whether the event of a success was its own.
            let attempt = tokio::spawn(async move {
                let committed = pool.commit(decided, leaf).await;
                if let (Ok(_), Some(ticket)) = (&committed, &mut ticket) {
                    ticket.spend();
                }
                (ticket, committed)
            });
            let Ok((back, committed)) = attempt.await else {
                return Err((None, Error::StoreUnavailable("the commit was interrupted".into())));
            };
            ticket = back;
            match committed {
                Ok(changed) => return Ok(changed),
                Err(storage::CommitError::Conflict) => self.wait_before_trying_again(tried).await,
                Err(error) => return Err((ticket, error.into())),
            }
        }
        Err((ticket, Error::TooManyConflicts))
    }

    /// `None` where another that is under way has taken the last place: it decided by what shows, and decides again.
    async fn decide<T>(
        self: &Arc<Self>,
        beyond: usize,
        decide: impl Fn() -> Result<Change<T>, Error>,
    ) -> Result<Option<Decided<T>>, Error> {
        self.check_log().await?;
        let changes = self.backups.changes.clone();
        let open = match changes.clone().try_read_owned() {
            Ok(open) => self.check_readable().map(|()| open)?,
            Err(_) if self.is_restoring() => return Err(Error::Restoring),
            // It has switched and is about to go.
            Err(_) => changes.read_owned().await,
        };
        let change = decide()?;
        let added = added(&change.expectations, &change.puts);
        let places = self.quota.take(added, |limited| self.left(limited, beyond)).ok();
        Ok(places.map(|places| Decided { change, places, _open: open }))
    }

    /// How many more of it there may be, with so many places beyond what the pool's limits allow.
    fn left(&self, limited: &Limited, beyond: usize) -> usize {
        let assignments = || {
            let here = |held: &&RoleAssignment| Limited::assignments_at(&held.scope) == *limited;
            self.roles().assignments().filter(here).count()
        };
        let held = match limited {
            Limited::Keys => self.index.key_count(),
            Limited::AssignmentsAtPoolScope | Limited::AssignmentsAtKey(_) => assignments(),
        };
        self.limit(limited).1.saturating_add(beyond).saturating_sub(held)
    }

    /// That there may be one more of it.
    pub(crate) fn check_left(&self, limited: &Limited, beyond: usize) -> Result<(), Error> {
        let (what, limit) = self.limit(limited);
        if self.left(limited, beyond) == 0 { Err(Error::LimitReached { what, limit }) } else { Ok(()) }
    }

    fn limit(&self, limited: &Limited) -> (&'static str, usize) {
        match limited {
            Limited::Keys => ("keys", self.limits.keys),
            Limited::AssignmentsAtPoolScope => {
                ("role assignments at its own scope", self.limits.assignments_at_pool_scope)
            }
            Limited::AssignmentsAtKey(_) => {
                ("role assignments at the scope of one key", self.limits.assignments_at_key_scope)
            }
        }
    }

    async fn wait_before_trying_again(&self, tried: u32) {
        let longest = (FIRST_WAIT_MILLISECONDS << tried.min(10)).min(MAX_WAIT_MILLISECONDS);
        let mut random = [0; 8];
        self.random.fill(&mut random);
        tokio::time::sleep(Duration::from_millis(u64::from_le_bytes(random) % (longest + 1))).await;
    }

    /// [`Pool::change`] for a request: the ticket's event goes with the commit, or a refusal is recorded.
    pub(crate) async fn record_change<T: Send + 'static>(
        self: &Arc<Self>,
        ticket: Ticket,
        decide: impl Fn() -> Result<Change<T>, Error>,
    ) -> Recorded<T> {
        self.record_change_beyond(ticket, 0, decide).await
    }

    /// [`Pool::change_beyond`] for a request.
    pub(crate) async fn record_change_beyond<T: Send + 'static>(
        self: &Arc<Self>,
        ticket: Ticket,
        beyond: usize,
        decide: impl Fn() -> Result<Change<T>, Error>,
    ) -> Recorded<T> {
        let leaf = ticket.leaf();
        match self.change_beyond(Some(ticket), leaf, beyond, decide).await {
            Ok(changed) => Recorded::with_commit(changed.value, changed.receipt),
            Err((Some(ticket), error)) => ticket.record(Err(error)).await,
            Err((None, error)) => Recorded::interrupted(error),
        }
    }

    async fn commit<T>(
        &self,
        Decided { change, places, _open }: Decided<T>,
        leaf: CommittedLeaf,
    ) -> Result<Changed<T>, storage::CommitError> {
        let Change { expectations, puts, deletes, value } = change;
        let transaction =
            Transaction { expectations, puts, deletes, event: leaf.outbox(self.audit.latest().size) };
        self.store.commit(transaction).await?;
        // The index has it.
        drop(places);
        self.note_roles();
        Ok(Changed { value, receipt: self.log_committed(leaf).await })
    }

    /// Commits a restore: what was staged becomes all the keys and roles that there are, and `puts` and the event go with
    /// it. The pool is closed when this is called, and open again when it returns, unless the store cannot be read.
    pub(crate) async fn commit_switch(
        &self,
        staging: Staging<'_>,
        expectations: Vec<(RecordId, Option<storage::Stamp>)>,
        puts: Vec<Record>,
        leaf: CommittedLeaf,
    ) -> Result<(), Error> {
        let event = leaf.outbox(self.audit.latest().size);
        let transaction = Transaction { expectations, puts, deletes: vec![], event };
        let (index, loaded, invocations) =
            (self.index.clone(), self.loaded.clone(), self.invocations.clone());
        let (restoring, loading) = (self.backups.restoring.clone(), self.backups.loading.clone());
        let applied = move |_| {
            // Here, as whoever waits for the switch may have been stopped: a pool without an index serves nobody.
            restoring.store(true, Ordering::Release);
            loading.store(true, Ordering::Release);
            index.clear();
            invocations.clear();
            loaded.clear();
        };
        staging.switch(transaction, applied).await?;
        if let Err(error) = self.log_committed(leaf).await {
            tracing::error!(%error, "the event of a restore is owed to the log");
        }
        match self.load_restored().await {
            Ok(()) => {
                self.note_roles();
                // Before anybody learns that it is done: who asks then is answered.
                self.backups.restoring.store(false, Ordering::Release);
                self.backups.loading.store(false, Ordering::Release);
            }
            Err(reason) => {
                let reason = format!(
                    "what was restored cannot be read: {reason}; the pool is closed until its next start"
                );
                tracing::error!("{reason}");
                let _ = self.backups.unreadable.set(reason);
            }
        }
        Ok(())
    }

    /// Fills the index from the store, as a start does. The store is checked against the pool's digest on the way.
    async fn load_restored(&self) -> Result<(), String> {
        let unreadable = |error: storage::OpenError| match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let mut snapshot = self.store.snapshot().await.map_err(unreadable)?;
        let next = Index::default();
        while let Some(page) = snapshot.next_page().await.map_err(unreadable)? {
            for held in &page {
                if let Record::Invocations(record) = &held.value {
                    self.invocations.restored(record);
                }
            }
            next.fill(page.into_iter().filter(|held| storage::is_backed_up(&held.value)));
            tokio::task::yield_now().await;
        }
        if let Some(name) = next.incomplete() {
            return Err(format!("key {name} is incomplete"));
        }
        self.index.replace(next);
        Ok(())
    }

    /// A pool that only uses its keys commits nothing: without this, nobody would miss their events.
    pub(crate) async fn mark_log(&self) {
        self.store.mark().await;
    }

    async fn record_start(
        &self,
        torn_bytes_dropped: u64,
        opened_with: &str,
    ) -> Result<(), audit::AuditError> {
        let event = Event {
            operation: "PoolStart".into(),
            result: EventResult::Success,
            detail: format!(
                "self-tests passed; {torn_bytes_dropped} unacknowledged bytes dropped from the log's end; domain opened with {opened_with}"
            ),
            ..self.blank_event()
        };
        self.audit.append(self.seal_event(&event)).await.map(|_| ())
    }

    pub(crate) async fn record_clock_alarm(
        self: &Arc<Self>,
        detail: String,
    ) -> Result<(), audit::AuditError> {
        tracing::error!("{detail}");
        let event = Event {
            operation: "ClockJumpAlarm".into(),
            result: EventResult::Success,
            detail,
            ..self.blank_event()
        };
        self.append_own(&event).await
    }
}

/// The assignments that genesis gives, under names that follow from it, so that founding again finds the same.
fn initial_assignments(genesis: &Genesis) -> Vec<RoleAssignment> {
    let assignment = |principal: &ObjectId| RoleAssignment {
        name: initial_name(genesis, principal),
        scope: Scope::Root,
        role: BuiltInRole::Administrator.id(),
        principal: *principal,
    };
    genesis.initial_administrators.iter().map(assignment).collect()
}

fn certified_until(from: IntDate) -> IntDate {
    IntDate::from_unix_seconds(from.unix_seconds().saturating_add(CERTIFICATE_DAYS * SECONDS_PER_DAY))
}

fn initial_records(genesis: &Genesis) -> Vec<Record> {
    initial_assignments(genesis).into_iter().map(Record::Assignment).collect()
}

fn initial_name(genesis: &Genesis, principal: &ObjectId) -> Guid {
    let digest =
        crypto::digest::sha256(&[b"holdfast initial administrator v1", &genesis.pool.0, &principal.0]);
    let mut name = [0; 16];
    name.copy_from_slice(&digest[..16]);
    Guid::from_random(name)
}

/// Keeps the index, and drops the clear keys that may not be used any more.
fn observer(
    index: Arc<Index>,
    loaded: Arc<LoadedKeys>,
    invocations: Arc<OnceLock<Arc<Invocations>>>,
) -> storage::Observer {
    Arc::new(move |stamp, puts, deletes| {
        let mut unusable = Vec::new();
        for record in &puts {
            match record {
                Record::Version(record) if !record.version.attributes.enabled => {
                    unusable.push((record.version.name.clone(), record.version.version));
                }
                Record::Key(record) if record.key.is_deleted() => {
                    let versions = record.key.versions().iter();
                    unusable.extend(versions.map(|version| (record.key.name.clone(), *version)));
                }
                _ => {}
            }
        }
        if let Some(invocations) = invocations.get() {
            let purged = deletes.iter().filter_map(|id| match id {
                RecordId::Key(name) => Some(name),
                _ => None,
            });
            purged.for_each(|name| invocations.forget(name));
            // A lease writes the record without a version, and counts for itself.
            let restored = puts.iter().any(|record| matches!(record, Record::Version(_)));
            let counts = puts.iter().filter_map(|record| match record {
                Record::Invocations(counts) if restored => Some(counts),
                _ => None,
            });
            counts.for_each(|counts| invocations.restored(counts));
        }
        index.apply(stamp, puts, deletes);
        for place in unusable {
            loaded.remove(&place);
        }
    })
}

fn checkpoint_source(opened: Arc<OnceLock<AuditLog>>) -> Arc<dyn Fn() -> CheckpointMark + Send + Sync> {
    Arc::new(move || {
        let mark = opened.get().map(AuditLog::latest).unwrap_or_default();
        CheckpointMark { size: mark.size, root: mark.root }
    })
}

/// A sealed event that goes with a commit, and into the log only after it.
#[derive(Clone)]
pub(crate) struct CommittedLeaf(pub Leaf);

impl CommittedLeaf {
    pub fn seal(event: Event, sealer: &AuditSealer) -> Self {
        Self(Leaf::seal(EventSeed::fresh(), &Event { committed: true, ..event }, sealer))
    }

    /// What waits in the store until the log has it, at `not_before_index` at the earliest.
    pub fn outbox(&self, not_before_index: u64) -> OutboxRecord {
        let Self(leaf) = self;
        OutboxRecord { event_id: leaf.event_id(), not_before_index, leaf: leaf.as_bytes().to_vec() }
    }
}

/// Every committed event from the mark on is in the outbox: a record leaves it with a later commit, whose mark is behind its
/// event. One that is not there was committed to a store that this one is older than.
async fn check_store_is_not_older(
    audit: &AuditLog,
    sealer: &AuditSealer,
    mark: u64,
    outbox: &HashSet<[u8; 16]>,
) -> Result<(), OpenPoolError> {
    let mut next = mark;
    loop {
        let page = audit.read(next, PAGE_EVENTS).await?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        next = last + 1;
        for (index, leaf) in page.iter().filter(|(_, leaf)| !outbox.contains(&leaf.event_id())) {
            let event = audit::open_event(leaf, sealer)
                .map_err(|error| OpenPoolError::UnreadableEvent { index: *index, error })?;
            if event.committed {
                return Err(OpenPoolError::StoreIsOlder { index: *index, operation: event.operation });
            }
        }
    }
}

/// Brings events of committed changes into the log that a crash kept out of it; those that it has are not doubled.
async fn drain_outbox(
    store: &Store,
    audit: &AuditLog,
    waiting: Vec<OutboxRecord>,
    ids: &HashSet<[u8; 16]>,
) -> Result<(), audit::AuditError> {
    let Some(from) = waiting.iter().map(|record| record.not_before_index).min() else { return Ok(()) };
    let logged = audit.contains(ids, from).await?;
    for record in waiting {
        if !logged.contains(&record.event_id) {
            let leaf = Leaf::from_bytes(record.leaf).map_err(|_| audit::AuditError::MalformedLeaf)?;
            audit.append(leaf).await?;
        }
        store.drained(record.event_id).await;
    }
    Ok(())
}
