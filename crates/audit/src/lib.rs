//! The tamper-evident audit log.
//!
//! Leaves are events sealed under the audit key; the Merkle tree (RFC 6962 hashes) covers the ciphertext, so that
//! anyone with the owner's public key can verify the log and only a holder of the audit key can read it. One task
//! writes: it gathers what waits into a group, signs one checkpoint over it, appends both, and answers once they are
//! durable. Format: `docs/formats/audit-log.md`.

pub mod event;
mod frame;
mod leaf;
mod log;
mod segment;
mod tree;
pub mod verify;

pub use leaf::{EventUnreadable, Leaf, MalformedLeaf, open_event};
pub use log::{AuditConfig, AuditError, AuditLog, CheckpointMark, OpenError, Pending, Receipt, Recovered};
pub use tree::{Frontier, leaf_hash, node_hash};
