//! What the control plane needs from whatever runs pools.

use async_trait::async_trait;

/// All that a new pool takes from the control plane. It is read when the pool is founded and never again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parameters {
    pub name: String,
    /// Object ids.
    pub administrators: Vec<String>,
    pub retention_days: u8,
    pub purge_protection: bool,
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
    fn state(&self, name: &str) -> InstanceState;
    /// Where clients reach the pool.
    fn uri(&self, name: &str) -> String;
}
