//! The tamper-evident audit log.
//!
//! Leaves are events sealed under the audit key; the Merkle tree (RFC 6962 hashes) covers the ciphertext, so that
//! anyone with the owner's public key can verify the log and only a holder of the audit key can read it. One task
//! writes: it gathers what waits into a group, signs one checkpoint over it, appends both, and answers once they are
//! durable. Format: `docs/formats/audit-log.md`.
//!
//! Refuses to open a log that is damaged, that belongs to another pool or node, or that does not extend what the pool
//! has on record. Never retries a write whose outcome is unknown, and never drops anything that was acknowledged.

pub mod event;
mod flaw;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod leaf;
mod log;
mod reader;
mod receipt;
mod recovery;
mod segment;
pub mod tree;
pub mod verify;
mod writer;

pub use flaw::Flaw;
pub use leaf::{EventUnreadable, Leaf, MalformedLeaf, open_event};
pub use log::{Announced, AuditConfig, AuditError, AuditLog, CheckpointMark, OpenError, Pending, Recovered};
pub use receipt::{MalformedReceipt, Receipt, ReceiptText};
pub use segment::Checkpoint;
