//! What the control plane needs from whatever runs pools.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// From where a pool may be called, as it is asked for and shown. What it means is the pool's to say.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    pub deny_by_default: bool,
    /// Whether trusted services pass.
    pub bypass: bool,
    /// Addresses and networks.
    pub ip_rules: Vec<String>,
    pub public_access: bool,
}

impl Default for Network {
    /// As the service has it: open.
    fn default() -> Self {
        Self { deny_by_default: false, bypass: true, ip_rules: Vec::new(), public_access: true }
    }
}

impl Network {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// All that decides from where a pool may be called.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    pub network: Network,
    /// Addresses of private networks whose connections are approved: who calls one of them is admitted.
    pub private: Vec<IpAddr>,
}

/// All that a new pool takes from the control plane. But for `reach`, it is read when the pool is
/// founded and never again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parameters {
    pub name: String,
    /// Object ids.
    pub administrators: Vec<String>,
    pub retention_days: u8,
    pub purge_protection: bool,
    pub reach: Reach,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InstanceState {
    Stopped,
    /// Started, or about to be started again after it ended.
    Starting,
    /// Serves and waits for its security domain to be downloaded or uploaded.
    NotActivated,
    Active,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProvisionError(pub String);

/// Runs pools by their names. Every call may come again after it was cut short.
#[async_trait]
pub trait Provisioner: Send + Sync {
    /// Makes the pool where there is none, starts it, and waits until it serves.
    async fn start(&self, parameters: &Parameters) -> Result<(), ProvisionError>;
    /// Ends the pool; its sealed data stay.
    async fn stop(&self, name: &str) -> Result<(), ProvisionError>;
    /// Ends the pool and destroys what it was kept in, the key that sealed it first.
    async fn remove(&self, name: &str) -> Result<(), ProvisionError>;
    /// The rules as a pool would take them, in their one form; else why it takes none of them.
    fn check_network(&self, network: Network) -> Result<Network, String>;
    /// Has the pool, if it runs, put `reach` into force before this returns; one that starts later does so first.
    async fn set_reach(&self, name: &str, reach: &Reach) -> Result<(), ProvisionError>;
    fn state(&self, name: &str) -> InstanceState;
    /// Where clients reach the pool.
    fn uri(&self, name: &str) -> String;
}
