//! The control plane: which pools there are, who may manage them, and what was done.
//!
//! It hands parameters to a [`Provisioner`] once, when a pool is made, and afterwards starts and stops it. It reaches no key,
//! no role assignment and no record of a pool: what a pool is founded with is written by the pool, and nothing here
//! overrides it. Rights here are Azure RBAC's, apart from a pool's own.

pub mod access;
pub mod activity;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod pools;
pub mod private_link;
pub mod provision;

mod store;

pub use access::{Assignment, Denied, Role, Scope};
pub use pools::{
    CreateMode, CreatePool, Fabric, FabricConfig, FabricError, NameAvailability, PoolResource, Put,
    UpdateNetwork, UpdatePool,
};
pub use private_link::{ConnectionState, CreateEndpoint, EndpointRecord};
pub use provision::{InstanceState, Network, Parameters, ProvisionError, Provisioner, Reach};
pub use store::StoreError;
