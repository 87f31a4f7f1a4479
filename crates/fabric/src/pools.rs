//! The use cases of the control plane. Each checks its caller first and leaves an entry in the activity log.

use crate::access::{self, Assignment, Denied, Role, Scope};
use crate::private_link::{self, EndpointRecord};
use crate::provision::{InstanceState, Network, Parameters, ProvisionError, Provisioner};
use crate::store::{Change, Event, Store, StoreError};
use host::Engine;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::{Mutex, RwLock};

/// Pools, deleted ones included, and assignments: what a record costs is bounded, and so is their number.
pub const MAX_POOLS: usize = 64;
pub const MAX_ASSIGNMENTS: usize = 2000;
/// As the service has it.
pub const MAX_ADMINISTRATORS: usize = 10;
pub const MAX_TAGS: usize = 50;
const MAX_TAG_NAME: usize = 512;
const MAX_TAG_VALUE: usize = 256;
const DAY_SECONDS: i64 = 24 * 60 * 60;
pub const POOL_TYPE: &str = "Microsoft.KeyVault/managedHSMs";

pub const READ: &str = "Microsoft.KeyVault/managedHSMs/read";
pub const WRITE: &str = "Microsoft.KeyVault/managedHSMs/write";
pub const DELETE: &str = "Microsoft.KeyVault/managedHSMs/delete";
pub const READ_DELETED: &str = "Microsoft.KeyVault/locations/deletedManagedHsms/read";
pub const PURGE: &str = "Microsoft.KeyVault/locations/deletedManagedHsms/purge/action";
pub const CHECK_NAME: &str = "Microsoft.KeyVault/checkMhsmNameAvailability/action";
pub const READ_ASSIGNMENTS: &str = "Microsoft.Authorization/roleAssignments/read";
pub const WRITE_ASSIGNMENTS: &str = "Microsoft.Authorization/roleAssignments/write";
pub const DELETE_ASSIGNMENTS: &str = "Microsoft.Authorization/roleAssignments/delete";

/// What does not change while the control plane runs.
#[derive(Clone, Debug)]
pub struct FabricConfig {
    /// Of the cloud, its tenant and its subscription.
    pub name: String,
    pub tenant: String,
    pub subscription: String,
    pub resource_group: String,
    pub location: String,
    /// Where the operator has clients of private networks come in, by the networks' names.
    pub private_networks: BTreeMap<String, IpAddr>,
    /// Seconds since 1970.
    pub now: fn() -> i64,
}

impl FabricConfig {
    pub fn subscription_scope(&self) -> Scope {
        Scope::new(&format!("/subscriptions/{}", self.subscription))
    }

    pub fn group_scope(&self) -> Scope {
        Scope::new(&format!("/subscriptions/{}/resourceGroups/{}", self.subscription, self.resource_group))
    }

    pub fn pool_scope(&self, name: &str) -> Scope {
        Scope::new(&format!("{}/providers/{POOL_TYPE}/{name}", self.group_scope()))
    }
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub enum Life {
    /// It is being made, or making it failed: asked for again, it is gone on with.
    Creating,
    Present,
    Deleted {
        at: i64,
        purge_at: i64,
    },
    /// Its data are being destroyed; no way back.
    Purging,
}

/// A pool as it is stored.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRecord {
    pub version: u32,
    pub name: String,
    pub administrators: Vec<String>,
    pub retention_days: u8,
    pub purge_protection: bool,
    pub tags: BTreeMap<String, String>,
    /// Open, in records that do not say.
    #[serde(default, skip_serializing_if = "Network::is_default")]
    pub network: Network,
    pub created_at: i64,
    pub created_by: String,
    pub life: Life,
}

impl PoolRecord {
    pub fn deleted(&self) -> Option<(i64, i64)> {
        match self.life {
            Life::Deleted { at, purge_at } => Some((at, purge_at)),
            Life::Creating | Life::Present | Life::Purging => None,
        }
    }

    fn is_listed(&self) -> bool {
        matches!(self.life, Life::Creating | Life::Present)
    }
}

/// A pool as it is shown.
#[derive(Clone, Debug)]
pub struct PoolResource {
    pub record: PoolRecord,
    pub state: InstanceState,
    pub uri: String,
    pub connections: Vec<EndpointRecord>,
    /// Provisioned elsewhere: it is shown, and cannot be changed here.
    pub is_fixed: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CreateMode {
    Default,
    Recover,
}

/// `None`: not said.
#[derive(Clone, Debug)]
pub struct CreatePool {
    pub mode: CreateMode,
    pub location: Option<String>,
    pub tenant: Option<String>,
    pub administrators: Option<Vec<String>>,
    pub retention_days: Option<u8>,
    pub purge_protection: Option<bool>,
    pub tags: Option<BTreeMap<String, String>>,
    pub network: UpdateNetwork,
}

/// What is said of it; the rest stays.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct UpdateNetwork {
    pub deny_by_default: Option<bool>,
    pub bypass: Option<bool>,
    pub ip_rules: Option<Vec<String>>,
    pub public_access: Option<bool>,
}

impl UpdateNetwork {
    fn of(self, held: &Network) -> Network {
        Network {
            deny_by_default: self.deny_by_default.unwrap_or(held.deny_by_default),
            bypass: self.bypass.unwrap_or(held.bypass),
            ip_rules: self.ip_rules.unwrap_or_else(|| held.ip_rules.clone()),
            public_access: self.public_access.unwrap_or(held.public_access),
        }
    }
}

/// A pool takes network rules from here once it is made, and nothing else: what is given beside them and tags has to be what
/// it is.
#[derive(Clone, Debug, Default)]
pub struct UpdatePool {
    pub administrators: Option<Vec<String>>,
    pub retention_days: Option<u8>,
    pub purge_protection: Option<bool>,
    pub tags: Option<BTreeMap<String, String>>,
    pub network: UpdateNetwork,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameAvailability {
    Available,
    Malformed,
    Taken,
}

/// Whether what was asked for was there already.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Put {
    Made,
    Unchanged,
}

#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("there is no {POOL_TYPE} resource '{0}'")]
    NoPool(String),
    #[error("there is no deleted {POOL_TYPE} resource '{0}'")]
    NoDeletedPool(String),
    #[error("there is no role assignment '{0}'")]
    NoAssignment(String),
    #[error("the role assignment '{0}' gives the same already")]
    AssignmentExists(String),
    #[error("a role assignment of this name gives something else")]
    AssignmentFixed,
    #[error("there is no private endpoint '{0}'")]
    NoEndpoint(String),
    #[error("there is no private endpoint connection '{0}'")]
    NoConnection(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    NotAllowed(String),
    #[error("the pool cannot be served")]
    Provision(#[from] ProvisionError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub struct Fabric {
    pub config: FabricConfig,
    pub(crate) provisioner: Arc<dyn Provisioner>,
    /// Shown beside the others.
    fixed: Vec<PoolRecord>,
    pub(crate) store: RwLock<Store>,
    /// One change after the other, reads meanwhile.
    pub(crate) changes: Mutex<()>,
}

impl Fabric {
    /// `fixed`: pools that are made elsewhere.
    pub async fn open(
        config: FabricConfig,
        engine: Arc<dyn Engine>,
        provisioner: Arc<dyn Provisioner>,
        fixed: Vec<PoolRecord>,
    ) -> Result<Self, StoreError> {
        let store = RwLock::new(Store::open(engine).await?);
        Ok(Self { config, provisioner, fixed, store, changes: Mutex::new(()) })
    }

    /// Gives a role at the subscription, unless it is given. It comes back at each start, in place of whatever another was
    /// given under its id: a quickstart's principals are not to be locked out of it.
    pub async fn bootstrap(&self, id: &str, principal: &str, role: Role) -> Result<(), StoreError> {
        let _changing = self.changes.lock().await;
        let scope = self.config.subscription_scope();
        let assignment = Assignment {
            version: 1,
            id: id.to_owned(),
            principal: principal.to_owned(),
            role,
            scope: scope.clone(),
        };
        if self.store.read().await.assignments.get(id).is_some_and(|held| held.gives_as(&assignment)) {
            return Ok(());
        }
        self.commit(vec![Change::PutAssignment(assignment)], "holdfast", WRITE_ASSIGNMENTS, &scope, true)
            .await
    }

    /// Starts what should run and finishes what was begun. A pool that cannot be served is logged, and the others serve.
    pub async fn reconcile(&self) {
        let names: Vec<String> = self.store.read().await.pools.keys().cloned().collect();
        for name in names {
            let _changing = self.changes.lock().await;
            // As it is by now: requests come in meanwhile, and what they were answered holds.
            let held = self.store.read().await.pools.get(&name).cloned();
            let Some(record) = held else { continue };
            let done = match record.life {
                Life::Creating => self.finish_creating("holdfast", record.clone()).await.map(drop),
                Life::Present => {
                    let parameters = self.parameters(&record).await;
                    self.provisioner.start(&parameters).await.map_err(FabricError::from)
                }
                Life::Purging => self.destroy(&record, "holdfast").await,
                Life::Deleted { .. } => Ok(()),
            };
            if let Err(error) = done {
                tracing::error!(pool = record.name, %error, "a pool is not as it should be");
            }
        }
    }

    /// Destroys deleted pools whose retention has passed.
    pub async fn purge_due(&self) {
        let _changing = self.changes.lock().await;
        let now = (self.config.now)();
        let due = |record: &&PoolRecord| record.deleted().is_some_and(|(_, purge_at)| purge_at <= now);
        let due: Vec<PoolRecord> = self.store.read().await.pools.values().filter(due).cloned().collect();
        for record in due {
            if let Err(error) = self.destroy(&record, "holdfast").await {
                tracing::error!(pool = record.name, %error, "a pool whose retention has passed cannot be purged");
            }
        }
    }

    pub async fn authorize(&self, caller: &str, action: &str, scope: &Scope) -> Result<(), FabricError> {
        let store = self.store.read().await;
        Ok(access::authorize(store.assignments.values(), caller, action, scope)?)
    }

    /// The roles that hold for `caller` at `scope`.
    pub async fn roles(&self, caller: &str, scope: &Scope) -> Vec<Role> {
        let store = self.store.read().await;
        let held = store
            .assignments
            .values()
            .filter(|held| held.principal.eq_ignore_ascii_case(caller) && held.scope.covers(scope));
        held.map(|held| held.role).collect()
    }

    /// Whether `caller` has any role here at all: without one, nothing is shown.
    pub async fn is_known(&self, caller: &str) -> bool {
        self.store.read().await.assignments.values().any(|held| held.principal.eq_ignore_ascii_case(caller))
    }

    // --- pools

    pub async fn pool(&self, caller: &str, name: &str) -> Result<PoolResource, FabricError> {
        self.authorize(caller, READ, &self.config.pool_scope(name)).await?;
        let store = self.store.read().await;
        let found = self.fixed_named(name).or_else(|| store.pools.get(&name.to_ascii_lowercase()));
        let found = found.filter(|record| record.is_listed());
        found.map(|record| self.shown(&store, record)).ok_or_else(|| FabricError::NoPool(name.to_owned()))
    }

    /// Those that `caller` may read.
    pub async fn pools(&self, caller: &str) -> Vec<PoolResource> {
        let store = self.store.read().await;
        let readable = |record: &&PoolRecord| {
            let scope = self.config.pool_scope(&record.name);
            record.is_listed() && access::authorize(store.assignments.values(), caller, READ, &scope).is_ok()
        };
        let readable = self.fixed.iter().chain(store.pools.values()).filter(readable);
        readable.map(|held| self.shown(&store, held)).collect()
    }

    pub async fn deleted_pools(&self, caller: &str) -> Result<Vec<PoolRecord>, FabricError> {
        self.authorize(caller, READ_DELETED, &self.config.subscription_scope()).await?;
        let store = self.store.read().await;
        Ok(store.pools.values().filter(|record| record.deleted().is_some()).cloned().collect())
    }

    pub async fn deleted_pool(&self, caller: &str, name: &str) -> Result<PoolRecord, FabricError> {
        self.authorize(caller, READ_DELETED, &self.config.subscription_scope()).await?;
        let store = self.store.read().await;
        let held = store.pools.get(&name.to_ascii_lowercase()).filter(|record| record.deleted().is_some());
        held.cloned().ok_or_else(|| FabricError::NoDeletedPool(name.to_owned()))
    }

    pub async fn name_availability(&self, caller: &str, name: &str) -> Result<NameAvailability, FabricError> {
        self.authorize(caller, CHECK_NAME, &self.config.subscription_scope()).await?;
        if !is_pool_name(name) {
            return Ok(NameAvailability::Malformed);
        }
        let name = name.to_ascii_lowercase();
        let is_taken = self.fixed_named(&name).is_some() || self.store.read().await.pools.contains_key(&name);
        Ok(if is_taken { NameAvailability::Taken } else { NameAvailability::Available })
    }

    /// Creates, recovers, or updates what is there, as PUT does.
    pub async fn put_pool(
        &self,
        caller: &str,
        name: &str,
        asked: CreatePool,
    ) -> Result<PoolResource, FabricError> {
        let scope = self.config.pool_scope(name);
        self.authorize(caller, WRITE, &scope).await?;
        let _changing = self.changes.lock().await;
        self.check_common(name, &asked)?;
        let name = name.to_ascii_lowercase();
        let held = self.store.read().await.pools.get(&name).cloned();
        match (held.map(|held| (held.life, held)), asked.mode) {
            (Some((Life::Deleted { .. }, held)), CreateMode::Recover) => self.recover(caller, held).await,
            (Some((Life::Deleted { .. } | Life::Purging, _)), CreateMode::Default) => {
                Err(FabricError::Conflict(format!(
                    "A managed HSM named '{name}' is deleted. Recover it with createMode 'recover', or purge it to use its name again."
                )))
            }
            (Some((Life::Purging, _)) | None, CreateMode::Recover) => Err(FabricError::NoDeletedPool(name)),
            (Some((Life::Creating | Life::Present, _)), CreateMode::Recover) => {
                Err(FabricError::Conflict(format!("The managed HSM '{name}' is not deleted.")))
            }
            (Some((Life::Creating, held)), CreateMode::Default) => {
                // What it was begun with stays: an instance may be founded with it already.
                let begun = self.update(caller, held, asked_to_update(asked)).await?.record;
                self.finish_creating(caller, begun).await
            }
            (Some((Life::Present, held)), CreateMode::Default) => {
                self.update(caller, held, asked_to_update(asked)).await
            }
            (None, CreateMode::Default) if self.fixed_named(&name).is_some() => Err(fixed(&name)),
            (None, CreateMode::Default) => self.create(caller, &name, asked).await,
        }
    }

    pub async fn patch_pool(
        &self,
        caller: &str,
        name: &str,
        asked: UpdatePool,
    ) -> Result<PoolResource, FabricError> {
        self.authorize(caller, WRITE, &self.config.pool_scope(name)).await?;
        let _changing = self.changes.lock().await;
        let held = self.present(name).await?;
        self.update(caller, held, asked).await
    }

    /// The pool stops serving; its sealed data stay for as long as its keys would.
    pub async fn delete_pool(&self, caller: &str, name: &str) -> Result<(), FabricError> {
        let scope = self.config.pool_scope(name);
        self.authorize(caller, DELETE, &scope).await?;
        let _changing = self.changes.lock().await;
        let mut record = self.present(name).await?;
        let at = (self.config.now)();
        let purge_at = at.saturating_add(i64::from(record.retention_days) * DAY_SECONDS);
        record.life = Life::Deleted { at, purge_at };
        let name = record.name.clone();
        // First what lasts: stopped and not deleted, it would be started again.
        let mut changes = private_link::disconnected(&*self.store.read().await, &name);
        changes.extend(access::given_within(self.store.read().await.assignments.values(), &scope));
        changes.push(Change::PutPool(record));
        self.commit(changes, caller, DELETE, &scope, true).await?;
        Ok(self.provisioner.stop(&name).await?)
    }

    pub async fn purge_pool(&self, caller: &str, name: &str) -> Result<(), FabricError> {
        self.authorize(caller, PURGE, &self.config.subscription_scope()).await?;
        let _changing = self.changes.lock().await;
        let held = self.store.read().await.pools.get(&name.to_ascii_lowercase()).cloned();
        let record = held.filter(|held| matches!(held.life, Life::Deleted { .. } | Life::Purging));
        let record = record.ok_or_else(|| FabricError::NoDeletedPool(name.to_owned()))?;
        if record.purge_protection && record.life != Life::Purging {
            return Err(FabricError::NotAllowed(format!(
                "The managed HSM '{name}' has purge protection: it is purged when its retention has passed, and not before."
            )));
        }
        self.destroy(&record, caller).await
    }

    pub async fn is_purging(&self, name: &str) -> bool {
        let store = self.store.read().await;
        store.pools.get(&name.to_ascii_lowercase()).is_some_and(|held| held.life == Life::Purging)
    }

    fn check_common(&self, name: &str, asked: &CreatePool) -> Result<(), FabricError> {
        if !is_pool_name(name) {
            return Err(FabricError::Invalid(
                "The managed HSM's name must be 3 to 24 characters of 0-9, a-z, A-Z and -, start with a letter, end with a letter or digit, and have no two hyphens in a row.".to_owned(),
            ));
        }
        self.check_location(asked.location.as_deref())?;
        if let Some(tenant) = &asked.tenant
            && !tenant.eq_ignore_ascii_case(&self.config.tenant)
        {
            return Err(FabricError::Invalid(
                "properties.tenantId is not the tenant of this subscription.".to_owned(),
            ));
        }
        Ok(())
    }

    pub(crate) fn check_location(&self, location: Option<&str>) -> Result<(), FabricError> {
        if location.is_none_or(|location| location.eq_ignore_ascii_case(&self.config.location)) {
            return Ok(());
        }
        Err(FabricError::Invalid(format!("The only location here is '{}'.", self.config.location)))
    }

    async fn create(&self, caller: &str, name: &str, asked: CreatePool) -> Result<PoolResource, FabricError> {
        let administrators = asked.administrators.unwrap_or_default();
        if administrators.is_empty() || administrators.len() > MAX_ADMINISTRATORS {
            return Err(FabricError::Invalid(format!(
                "properties.initialAdminObjectIds must name 1 to {MAX_ADMINISTRATORS} principals."
            )));
        }
        let retention_days = asked.retention_days.unwrap_or(90);
        if !(7..=90).contains(&retention_days) {
            return Err(FabricError::Invalid(
                "properties.softDeleteRetentionInDays must be 7 to 90.".to_owned(),
            ));
        }
        let tags = asked.tags.unwrap_or_default();
        check_tags(&tags)?;
        let network = self.checked(asked.network.of(&Network::default()))?;
        if self.store.read().await.pools.len() >= MAX_POOLS {
            return Err(FabricError::Conflict(format!(
                "There are {MAX_POOLS} managed HSMs, deleted ones included, which is the most that this machine has."
            )));
        }
        let record = PoolRecord {
            version: 1,
            name: name.to_owned(),
            administrators,
            retention_days,
            purge_protection: asked.purge_protection.unwrap_or(false),
            tags,
            network,
            created_at: (self.config.now)(),
            created_by: caller.to_owned(),
            life: Life::Creating,
        };
        let scope = self.config.pool_scope(name);
        self.commit(vec![Change::PutPool(record.clone())], caller, WRITE, &scope, true).await?;
        self.finish_creating(caller, record).await
    }

    async fn finish_creating(
        &self,
        caller: &str,
        mut record: PoolRecord,
    ) -> Result<PoolResource, FabricError> {
        let scope = self.config.pool_scope(&record.name);
        if let Err(error) = self.provisioner.start(&self.parameters(&record).await).await {
            self.commit(vec![], caller, WRITE, &scope, false).await?;
            return Err(error.into());
        }
        record.life = Life::Present;
        self.commit(vec![Change::PutPool(record.clone())], caller, WRITE, &scope, true).await?;
        Ok(self.shown(&*self.store.read().await, &record))
    }

    async fn recover(&self, caller: &str, mut record: PoolRecord) -> Result<PoolResource, FabricError> {
        record.life = Life::Present;
        let scope = self.config.pool_scope(&record.name);
        // First what lasts: one that serves is never one that is to be destroyed.
        self.commit(vec![Change::PutPool(record.clone())], caller, WRITE, &scope, true).await?;
        self.provisioner.start(&self.parameters(&record).await).await?;
        Ok(self.shown(&*self.store.read().await, &record))
    }

    async fn update(
        &self,
        caller: &str,
        mut record: PoolRecord,
        asked: UpdatePool,
    ) -> Result<PoolResource, FabricError> {
        check_unchanged(&record, &asked)?;
        if let Some(tags) = asked.tags {
            check_tags(&tags)?;
            record.tags = tags;
        }
        let network = self.checked(asked.network.of(&record.network))?;
        let changes_network = network != record.network;
        record.network = network;
        let scope = self.config.pool_scope(&record.name);
        // First what lasts: whatever happens now, the pool gets the rules at its next start.
        self.commit(vec![Change::PutPool(record.clone())], caller, WRITE, &scope, true).await?;
        if changes_network {
            self.provisioner.set_reach(&record.name, &self.parameters(&record).await.reach).await?;
        }
        Ok(self.shown(&*self.store.read().await, &record))
    }

    fn checked(&self, network: Network) -> Result<Network, FabricError> {
        let refused = |why: String| FabricError::Invalid(format!("properties.networkAcls: {why}."));
        self.provisioner.check_network(network).map_err(refused)
    }

    /// Marked first: a start that finds the mark goes on.
    async fn destroy(&self, record: &PoolRecord, caller: &str) -> Result<(), FabricError> {
        let scope = self.config.pool_scope(&record.name);
        let marked = PoolRecord { life: Life::Purging, ..record.clone() };
        self.commit(vec![Change::PutPool(marked)], caller, PURGE, &scope, true).await?;
        self.provisioner.remove(&record.name).await?;
        let gone = vec![Change::DeletePool(record.name.clone())];
        Ok(self.commit(gone, caller, PURGE, &scope, true).await?)
    }

    pub(crate) async fn present(&self, name: &str) -> Result<PoolRecord, FabricError> {
        if self.fixed_named(name).is_some() {
            return Err(fixed(name));
        }
        let held = self.store.read().await.pools.get(&name.to_ascii_lowercase()).cloned();
        held.filter(PoolRecord::is_listed).ok_or_else(|| FabricError::NoPool(name.to_owned()))
    }

    pub(crate) fn fixed_named(&self, name: &str) -> Option<&PoolRecord> {
        self.fixed.iter().find(|record| record.name.eq_ignore_ascii_case(name))
    }

    async fn parameters(&self, record: &PoolRecord) -> Parameters {
        Parameters {
            name: record.name.clone(),
            administrators: record.administrators.clone(),
            retention_days: record.retention_days,
            purge_protection: record.purge_protection,
            reach: private_link::reach(&self.config, &*self.store.read().await, record),
        }
    }

    fn shown(&self, store: &Store, record: &PoolRecord) -> PoolResource {
        PoolResource {
            connections: private_link::connections_to(store, &record.name),
            state: self.provisioner.state(&record.name),
            uri: self.provisioner.uri(&record.name),
            is_fixed: self.fixed_named(&record.name).is_some(),
            record: record.clone(),
        }
    }

    // --- role assignments

    /// Those that hold at `scope`, and those below it.
    pub async fn assignments(&self, caller: &str, scope: &Scope) -> Result<Vec<Assignment>, FabricError> {
        self.authorize(caller, READ_ASSIGNMENTS, scope).await?;
        let store = self.store.read().await;
        let concerned = |held: &&Assignment| held.scope.covers(scope) || scope.covers(&held.scope);
        Ok(store.assignments.values().filter(concerned).cloned().collect())
    }

    pub async fn assignment(&self, caller: &str, scope: &Scope, id: &str) -> Result<Assignment, FabricError> {
        self.authorize(caller, READ_ASSIGNMENTS, scope).await?;
        self.held_assignment(scope, id).await
    }

    pub async fn put_assignment(
        &self,
        caller: &str,
        scope: &Scope,
        id: &str,
        principal: &str,
        role: Role,
    ) -> Result<(Assignment, Put), FabricError> {
        self.authorize(caller, WRITE_ASSIGNMENTS, scope).await?;
        let _changing = self.changes.lock().await;
        let assignment = Assignment {
            version: 1,
            id: id.to_ascii_lowercase(),
            principal: principal.to_ascii_lowercase(),
            role,
            scope: scope.clone(),
        };
        {
            let store = self.store.read().await;
            // The same again is what a client that lost its answer sends, or a template that is deployed twice.
            match store.assignments.get(&assignment.id) {
                Some(held) if held.gives_as(&assignment) => return Ok((held.clone(), Put::Unchanged)),
                Some(_) => return Err(FabricError::AssignmentFixed),
                None => {}
            }
            if let Some(held) = store.assignments.values().find(|held| held.gives_as(&assignment)) {
                return Err(FabricError::AssignmentExists(held.id.clone()));
            }
            if store.assignments.len() >= MAX_ASSIGNMENTS {
                return Err(FabricError::Conflict(format!(
                    "There are {MAX_ASSIGNMENTS} role assignments, which is the most there can be."
                )));
            }
        }
        let change = vec![Change::PutAssignment(assignment.clone())];
        self.commit(change, caller, WRITE_ASSIGNMENTS, scope, true).await?;
        Ok((assignment, Put::Made))
    }

    pub async fn delete_assignment(
        &self,
        caller: &str,
        scope: &Scope,
        id: &str,
    ) -> Result<Assignment, FabricError> {
        self.authorize(caller, DELETE_ASSIGNMENTS, scope).await?;
        let _changing = self.changes.lock().await;
        let held = self.held_assignment(scope, id).await?;
        let change = vec![Change::DeleteAssignment(held.id.clone())];
        self.commit(change, caller, DELETE_ASSIGNMENTS, scope, true).await?;
        Ok(held)
    }

    /// An assignment is found at its own scope only: a right at a pool is none over what was given above it.
    async fn held_assignment(&self, scope: &Scope, id: &str) -> Result<Assignment, FabricError> {
        let store = self.store.read().await;
        let held = store.assignments.get(&id.to_ascii_lowercase());
        let held = held.filter(|held| held.scope.covers(scope) && scope.covers(&held.scope));
        held.cloned().ok_or_else(|| FabricError::NoAssignment(id.to_owned()))
    }

    pub(crate) async fn commit(
        &self,
        changes: Vec<Change>,
        caller: &str,
        action: &str,
        scope: &Scope,
        succeeded: bool,
    ) -> Result<(), StoreError> {
        let event = Event { time: (self.config.now)(), caller, action, scope: scope.as_str(), succeeded };
        self.store.write().await.commit(changes, event).await
    }
}

pub(crate) fn fixed(name: &str) -> FabricError {
    FabricError::Conflict(format!(
        "The managed HSM '{name}' is not made by the control plane, and cannot be changed by it."
    ))
}

fn asked_to_update(asked: CreatePool) -> UpdatePool {
    let CreatePool { administrators, retention_days, purge_protection, tags, network, .. } = asked;
    UpdatePool { administrators, retention_days, purge_protection, tags, network }
}

fn check_unchanged(record: &PoolRecord, asked: &UpdatePool) -> Result<(), FabricError> {
    let refuse = |what: &str| {
        Err(FabricError::Invalid(format!(
            "properties.{what} is fixed when the managed HSM is made, and cannot be changed here."
        )))
    };
    let UpdatePool { administrators, retention_days, purge_protection, tags: _, network: _ } = asked;
    if administrators.as_ref().is_some_and(|asked| *asked != record.administrators) {
        return refuse("initialAdminObjectIds");
    }
    if retention_days.is_some_and(|asked| asked != record.retention_days) {
        return refuse("softDeleteRetentionInDays");
    }
    if purge_protection.is_some_and(|asked| asked != record.purge_protection) {
        return refuse("enablePurgeProtection");
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), FabricError> {
    let is_good = |(name, value): (&String, &String)| {
        !name.is_empty() && name.len() <= MAX_TAG_NAME && value.len() <= MAX_TAG_VALUE
    };
    if tags.len() <= MAX_TAGS && tags.iter().all(is_good) {
        return Ok(());
    }
    Err(FabricError::Invalid(format!(
        "tags must be at most {MAX_TAGS}, with names of 1 to {MAX_TAG_NAME} and values of at most {MAX_TAG_VALUE} bytes."
    )))
}

/// As the pools themselves have it: the name is a label of a host name and of a path.
pub fn is_pool_name(name: &str) -> bool {
    (3..=24).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && !name.ends_with('-')
        && !name.contains("--")
}
