//! The host of a single machine: [`RedbEngine`] (one file), [`FileLog`] (one directory of segments) and
//! [`TcpDial`] (pinned destinations).
//!
//! It stores and carries opaque bytes. It does not open what it stores, cannot reach a key, and retries
//! nothing that it cannot prove harmless: after a failed write or sync it answers nothing more until it is
//! opened again, because the kernel may have dropped the pages that it could not write.
//!
//! Both stores sit on [`Directory`] and [`DiskFile`], so that the tests can put a disk below them that loses
//! power at any write.

mod dial;
mod disk;
mod engine;
mod lock;
mod log;

pub use dial::TcpDial;
pub use disk::{Directory, DiskFile, FileDirectory};
pub use engine::{EngineOptions, RedbEngine};
pub use log::{FileLog, LogDurability, LogOptions};
