//! A pool's records over an [`Engine`](host::Engine).
//!
//! The engine sees MACs for names and ciphertext for values. Each group of transactions is one compare-and-commit that
//! also writes the pool state: a generation, and a keyed digest over every (name MAC, record version) pair, so that a
//! record that was removed, added or put back to an older version is found at start. Formats: `docs/formats/store.md`.
//!
//! Nothing here decides who may do what, and nothing here can read key material: it stays masked.

mod codec;
mod committer;
mod full_backup;
pub mod fuzz;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod genesis;
mod key_backup;
mod pool_state;
mod record;
mod store;

pub use full_backup::{ChunkBuilder, Counts, Manifest, Pairing, is_backed_up, read_chunk};
pub use genesis::{SignedGenesis, UnreadableGenesis};
pub use key_backup::KeyBackup;
pub use pool_state::CheckpointMark;
pub use record::{
    ActivationRecord, InvocationsRecord, Job, JobEnd, JobKind, JobsRecord, KeyRecord, NotBeforeRecord,
    OutboxRecord, Record, RecordId, RoleNamesRecord, SettingRecord, Stamp, UnreadableRecord, VersionRecord,
};
pub use store::{
    CommitError, Committed, Contents, Observer, OpenError, Snapshot, Staging, Stamped, Store, Transaction,
    found, read_genesis,
};
