//! Private endpoints: ways to a pool from a network that the operator named at the start, whatever the pool's other network
//! rules are. Whoever may write private endpoints asks for one; whoever may approve connections to the pool decides. An
//! endpoint and its connection are one record, with one name.

use crate::access::Scope;
use crate::pools::{Fabric, FabricConfig, FabricError, PoolRecord, fixed};
use crate::provision::Reach;
use crate::store::{Change, Store};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// As the service has it: of one pool.
pub const MAX_CONNECTIONS: usize = 64;
/// Those that lead nowhere any more included.
pub const MAX_ENDPOINTS: usize = 1000;
/// As the service has it.
pub const MAX_MESSAGE: usize = 140;
pub const ENDPOINT_TYPE: &str = "Microsoft.Network/privateEndpoints";

const READ: &str = "Microsoft.Network/privateEndpoints/read";
pub const WRITE: &str = "Microsoft.Network/privateEndpoints/write";
const DELETE: &str = "Microsoft.Network/privateEndpoints/delete";
const READ_CONNECTION: &str = "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/read";
pub const WRITE_CONNECTION: &str = "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/write";
const DELETE_CONNECTION: &str = "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/delete";
/// What an endpoint that is not to wait for anybody needs beside its own right.
const APPROVE: &str = "Microsoft.KeyVault/managedHSMs/privateEndpointConnectionsApproval/action";

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ConnectionState {
    Pending,
    Approved,
    Rejected,
    /// The connection was deleted, or its pool was. Nothing but asking anew brings it back.
    Disconnected,
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointRecord {
    pub version: u32,
    pub name: String,
    pub pool: String,
    /// As the operator named it.
    pub network: String,
    pub state: ConnectionState,
    /// Whether whoever asked left the decision to somebody else.
    pub manual: bool,
    /// What the one who asked called the connection.
    pub connection_name: String,
    pub request_message: String,
    pub description: String,
    pub created_at: i64,
    pub created_by: String,
}

impl EndpointRecord {
    fn is_connected(&self) -> bool {
        self.state != ConnectionState::Disconnected
    }

    fn leads_to(&self, pool: &str) -> bool {
        self.is_connected() && self.pool == pool
    }
}

#[derive(Clone, Debug)]
pub struct CreateEndpoint {
    pub location: Option<String>,
    pub pool: String,
    pub network: String,
    pub manual: bool,
    pub connection_name: String,
    pub request_message: String,
}

impl FabricConfig {
    pub fn endpoint_scope(&self, name: &str) -> Scope {
        Scope::new(&format!("{}/providers/{ENDPOINT_TYPE}/{name}", self.group_scope()))
    }

    pub fn connection_scope(&self, pool: &str, name: &str) -> Scope {
        Scope::new(&format!("{}/privateEndpointConnections/{name}", self.pool_scope(pool)))
    }
}

/// From where `pool` is to be called: its rules, and the private addresses whose connections are approved.
pub(crate) fn reach(config: &FabricConfig, store: &Store, pool: &PoolRecord) -> Reach {
    let approved =
        |held: &&EndpointRecord| held.leads_to(&pool.name) && held.state == ConnectionState::Approved;
    // An endpoint outlives a start without its network: it leads nowhere until that is back.
    let address = |held: &EndpointRecord| config.private_networks.get(&held.network).copied();
    let mut private: Vec<IpAddr> = store.endpoints.values().filter(approved).filter_map(address).collect();
    private.sort_unstable();
    Reach { network: pool.network.clone(), private }
}

pub(crate) fn connections_to(store: &Store, pool: &str) -> Vec<EndpointRecord> {
    store.endpoints.values().filter(|held| held.leads_to(pool)).cloned().collect()
}

/// Changes that leave no connection to a pool that goes.
pub(crate) fn disconnected(store: &Store, pool: &str) -> Vec<Change> {
    let held = store.endpoints.values().filter(|held| held.leads_to(pool));
    held.map(|held| {
        Change::PutEndpoint(EndpointRecord { state: ConnectionState::Disconnected, ..held.clone() })
    })
    .collect()
}

impl Fabric {
    // --- the endpoint's side

    /// Those that `caller` may read.
    pub async fn endpoints(&self, caller: &str) -> Vec<EndpointRecord> {
        let mut readable = Vec::new();
        let all: Vec<EndpointRecord> = self.store.read().await.endpoints.values().cloned().collect();
        for held in all {
            if self.authorize(caller, READ, &self.config.endpoint_scope(&held.name)).await.is_ok() {
                readable.push(held);
            }
        }
        readable
    }

    pub async fn endpoint(&self, caller: &str, name: &str) -> Result<EndpointRecord, FabricError> {
        self.authorize(caller, READ, &self.config.endpoint_scope(name)).await?;
        self.held_endpoint(name).await
    }

    /// Asks for a connection. The same again changes nothing; once it is disconnected, it asks anew.
    pub async fn put_endpoint(
        &self,
        caller: &str,
        name: &str,
        asked: CreateEndpoint,
    ) -> Result<EndpointRecord, FabricError> {
        let scope = self.config.endpoint_scope(name);
        self.authorize(caller, WRITE, &scope).await?;
        let _changing = self.changes.lock().await;
        self.check_endpoint(name, &asked)?;
        let name = name.to_ascii_lowercase();
        if !asked.manual {
            self.authorize(caller, APPROVE, &self.config.pool_scope(&asked.pool)).await?;
        }
        let pool = self.present(&asked.pool).await?;
        let record = EndpointRecord {
            version: 1,
            name: name.clone(),
            pool: pool.name.clone(),
            network: asked.network,
            state: if asked.manual { ConnectionState::Pending } else { ConnectionState::Approved },
            manual: asked.manual,
            connection_name: asked.connection_name,
            request_message: asked.request_message,
            description: if asked.manual { String::new() } else { "Auto-Approved".to_owned() },
            created_at: (self.config.now)(),
            created_by: caller.to_owned(),
        };
        {
            let store = self.store.read().await;
            match store.endpoints.get(&name) {
                Some(held) if held.is_connected() => {
                    let is_same = held.pool == record.pool
                        && held.network == record.network
                        && held.manual == record.manual;
                    return if is_same {
                        Ok(held.clone())
                    } else {
                        Err(FabricError::Conflict(format!(
                            "The private endpoint '{name}' leads elsewhere, or waits for another decision. Delete it first."
                        )))
                    };
                }
                Some(_) => {}
                None if store.endpoints.len() >= MAX_ENDPOINTS => {
                    return Err(FabricError::Conflict(format!(
                        "There are {MAX_ENDPOINTS} private endpoints, disconnected ones included, which is the most there can be."
                    )));
                }
                None => {}
            }
            let others: Vec<&EndpointRecord> =
                store.endpoints.values().filter(|held| held.leads_to(&pool.name)).collect();
            // One decision for one way: with two, a rejection would leave the way open.
            if let Some(other) = others.iter().find(|held| held.network == record.network) {
                return Err(FabricError::Conflict(format!(
                    "The private endpoint '{}' leads from the network '{}' to the managed HSM '{}' already.",
                    other.name, other.network, other.pool
                )));
            }
            if others.len() >= MAX_CONNECTIONS {
                return Err(FabricError::Conflict(format!(
                    "The managed HSM '{}' has {MAX_CONNECTIONS} private endpoint connections, which is the most it can have.",
                    pool.name
                )));
            }
        }
        let change = vec![Change::PutEndpoint(record.clone())];
        self.commit(change, caller, WRITE, &scope, true).await?;
        self.tell(&pool.name).await?;
        Ok(record)
    }

    /// Gives what was there.
    pub async fn delete_endpoint(&self, caller: &str, name: &str) -> Result<EndpointRecord, FabricError> {
        let scope = self.config.endpoint_scope(name);
        self.authorize(caller, DELETE, &scope).await?;
        let _changing = self.changes.lock().await;
        let held = self.held_endpoint(name).await?;
        let change = vec![Change::DeleteEndpoint(held.name.clone())];
        self.commit(change, caller, DELETE, &scope, true).await?;
        self.tell(&held.pool).await?;
        Ok(held)
    }

    // --- the pool's side

    pub async fn connections(&self, caller: &str, pool: &str) -> Result<Vec<EndpointRecord>, FabricError> {
        let pool = self.pool(caller, pool).await?.record.name;
        self.authorize(caller, READ_CONNECTION, &self.config.pool_scope(&pool)).await?;
        Ok(connections_to(&*self.store.read().await, &pool))
    }

    pub async fn connection(
        &self,
        caller: &str,
        pool: &str,
        name: &str,
    ) -> Result<EndpointRecord, FabricError> {
        self.authorize(caller, READ_CONNECTION, &self.config.pool_scope(pool)).await?;
        self.held_connection(pool, name).await
    }

    pub async fn decide_connection(
        &self,
        caller: &str,
        pool: &str,
        name: &str,
        approved: bool,
        description: String,
    ) -> Result<EndpointRecord, FabricError> {
        self.authorize(caller, WRITE_CONNECTION, &self.config.pool_scope(pool)).await?;
        let _changing = self.changes.lock().await;
        check_message("privateLinkServiceConnectionState.description", &description)?;
        let mut record = self.held_connection(pool, name).await?;
        record.state = if approved { ConnectionState::Approved } else { ConnectionState::Rejected };
        record.description = description;
        let scope = self.config.connection_scope(&record.pool, &record.name);
        let change = vec![Change::PutEndpoint(record.clone())];
        self.commit(change, caller, WRITE_CONNECTION, &scope, true).await?;
        self.tell(&record.pool).await?;
        Ok(record)
    }

    /// Gives what was there.
    pub async fn delete_connection(
        &self,
        caller: &str,
        pool: &str,
        name: &str,
    ) -> Result<EndpointRecord, FabricError> {
        self.authorize(caller, DELETE_CONNECTION, &self.config.pool_scope(pool)).await?;
        let _changing = self.changes.lock().await;
        let held = self.held_connection(pool, name).await?;
        let scope = self.config.connection_scope(&held.pool, &held.name);
        let gone = EndpointRecord { state: ConnectionState::Disconnected, ..held.clone() };
        self.commit(vec![Change::PutEndpoint(gone)], caller, DELETE_CONNECTION, &scope, true).await?;
        self.tell(&held.pool).await?;
        Ok(held)
    }

    /// The pool, if it is there, takes what the records say now.
    async fn tell(&self, pool: &str) -> Result<(), FabricError> {
        let reach = {
            let store = self.store.read().await;
            let Some(record) = store.pools.get(pool) else { return Ok(()) };
            reach(&self.config, &store, record)
        };
        Ok(self.provisioner.set_reach(pool, &reach).await?)
    }

    async fn held_endpoint(&self, name: &str) -> Result<EndpointRecord, FabricError> {
        let store = self.store.read().await;
        let held = store.endpoints.get(&name.to_ascii_lowercase()).cloned();
        held.ok_or_else(|| FabricError::NoEndpoint(name.to_owned()))
    }

    async fn held_connection(&self, pool: &str, name: &str) -> Result<EndpointRecord, FabricError> {
        let pool = match self.present(pool).await {
            Ok(pool) => pool.name,
            // One that is made elsewhere has none.
            Err(FabricError::Conflict(_)) => return Err(FabricError::NoConnection(name.to_owned())),
            Err(error) => return Err(error),
        };
        let store = self.store.read().await;
        let held = store.endpoints.get(&name.to_ascii_lowercase()).filter(|held| held.leads_to(&pool));
        held.cloned().ok_or_else(|| FabricError::NoConnection(name.to_owned()))
    }

    fn check_endpoint(&self, name: &str, asked: &CreateEndpoint) -> Result<(), FabricError> {
        if !is_endpoint_name(name) {
            return Err(FabricError::Invalid(
                "The private endpoint's name must be 2 to 64 characters of 0-9, a-z, A-Z, '.', '_' and '-', begin with a letter or digit, and end with one or '_'.".to_owned(),
            ));
        }
        self.check_location(asked.location.as_deref())?;
        if !self.config.private_networks.contains_key(&asked.network) {
            let known: Vec<&str> = self.config.private_networks.keys().map(String::as_str).collect();
            return Err(FabricError::Invalid(if known.is_empty() {
                "There is no private network here: the operator names those at the start.".to_owned()
            } else {
                format!(
                    "There is no such subnet here. Subnets of the virtual network 'private' are: {}.",
                    known.join(", ")
                )
            }));
        }
        check_message("requestMessage", &asked.request_message)?;
        check_message("The connection's name", &asked.connection_name)?;
        if self.fixed_named(&asked.pool).is_some() { Err(fixed(&asked.pool)) } else { Ok(()) }
    }
}

fn check_message(what: &str, text: &str) -> Result<(), FabricError> {
    if text.len() <= MAX_MESSAGE {
        return Ok(());
    }
    Err(FabricError::Invalid(format!("{what} must be at most {MAX_MESSAGE} bytes.")))
}

fn is_endpoint_name(name: &str) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric();
    (2..=64).contains(&name.len())
        && name.bytes().all(|byte| is_plain(&byte) || b"._-".contains(&byte))
        && name.as_bytes().first().is_some_and(is_plain)
        && name.as_bytes().last().is_some_and(|byte| is_plain(byte) || *byte == b'_')
}
