//! The only seam between a core (trusted) and its host (untrusted): [`Engine`], [`Log`] and [`Dial`].
//!
//! Everything that crosses it is opaque bytes, already sealed. The core believes nothing that comes back
//! until it has checked it. This crate depends on nothing of ours, so a host can never reach key material.

mod destination;
mod dial;
mod engine;
mod log;

pub use destination::{Destination, MalformedDestination, is_reachable_by_name};
pub use dial::{Dial, DialError, Socket};
pub use engine::{
    Change, Commit, CommitOutcome, Engine, EngineError, Entry, Expectation, Mutation, OperationId, Revision,
    Scan, Watch, WatchBatch,
};
pub use log::{Log, LogError, SegmentId, SegmentInfo};
