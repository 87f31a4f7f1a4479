//! Development only: what tests of several crates share.
//!
//! - [`SimDisk`]: an in-memory disk that loses power, tears writes and runs full on demand.
//! - [`engine_suite`]: what every [`host::Engine`] must do.
//! - [`Model`]: an engine's contents as a `BTreeMap`, to compare with after a crash.
//! - [`Random`]: seeded numbers, so that a failure can be repeated from the seed it prints.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod engine_suite;
mod model;
mod random;
mod sim_disk;

pub use engine_suite::{commit, engine_suite, join_all, operation, put};
pub use model::{Attempt, Model, random_commit};
pub use random::Random;
pub use sim_disk::{Fault, Loss, SECTOR_BYTES, SimDisk, SimFile, SyncHold};
