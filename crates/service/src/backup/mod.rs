//! Full backup and restore of a pool: everything that it holds in one blob outside, and back, within one security domain.

mod difference;
mod jobs;
mod restore;
mod stream;
mod survey;
mod target;

pub use difference::{Age, Difference, Names};
pub(crate) use jobs::Backups;
pub use jobs::JobView;
pub use target::{
    BackupTarget, BackupTargets, BlobWriter, SasToken, StorageAccess, StorageLocation, TargetError,
};

/// Which backup is to be restored.
pub struct RestoreSource {
    pub location: StorageLocation,
    /// Of the container.
    pub folder: String,
}
