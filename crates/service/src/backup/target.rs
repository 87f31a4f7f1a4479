//! Where backups are kept: the seam between the pool and whoever can write bytes that outlive it.
//!
//! A target learns names and ciphertext. It is trusted with neither secrecy nor integrity: what comes back is checked
//! by the backup's own format.

use async_trait::async_trait;
use bytes::Bytes;
use crypto::SecretBytes;

/// Where a request says that a backup goes or comes from.
pub struct StorageLocation {
    /// The container's URI, as the request gave it.
    pub container: String,
    pub access: StorageAccess,
}

/// By what right the server reads or writes there.
pub enum StorageAccess {
    Sas(SasToken),
    /// The server's own identity.
    ManagedIdentity,
}

/// A shared access signature: whoever has it has the container. No `Debug`, and wiped on drop.
///
/// ```compile_fail
/// fn show(token: &service::backup::SasToken) -> String { format!("{token:?}") }
/// ```
pub struct SasToken(SecretBytes);

impl SasToken {
    /// As it stands in a request, with or without its question mark.
    pub fn new(text: &str) -> Self {
        let text = text.strip_prefix('?').unwrap_or(text);
        Self(SecretBytes::copy(text.as_bytes()))
    }

    /// The query, without its question mark: for the request to the storage and nothing else.
    pub fn danger_expose(&self) -> &str {
        // It was text when it came in.
        std::str::from_utf8(self.0.danger_expose()).unwrap_or_default()
    }
}

/// Why a target does not do what it was asked. Messages are shown to the caller, so they hold no token.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// The operator does not let this pool go there, or the location is none.
    #[error("{0}")]
    NotAllowed(String),
    #[error("the storage refuses: {message} (status {status})")]
    Refused { status: u16, message: String },
    #[error("the storage cannot be reached: {0}")]
    Unreachable(String),
    #[error("the storage has nothing at {0}")]
    Missing(String),
    #[error("the storage has something at {0} already, which is not written over")]
    Exists(String),
    #[error("the storage failed: {0}")]
    Io(String),
}

/// Opens locations.
#[async_trait]
pub trait BackupTargets: Send + Sync {
    async fn open(&self, location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError>;
}

/// One container. Names are `folder/blob`.
#[async_trait]
pub trait BackupTarget: Send + Sync {
    /// Whether it may be read, and with `write` written, at all. Writes nothing that stays.
    async fn check(&self, write: bool) -> Result<(), TargetError>;

    /// Refuses an existing name.
    async fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, TargetError>;

    /// `None` where there is nothing of that name.
    async fn size(&self, name: &str) -> Result<Option<u64>, TargetError>;

    /// Exactly `length` bytes from `offset` on.
    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, TargetError>;
}

/// A blob that is being written: visible, and durable, only once it is finished. Dropped before, it leaves nothing.
#[async_trait]
pub trait BlobWriter: Send {
    async fn write(&mut self, bytes: Bytes) -> Result<(), TargetError>;

    async fn finish(self: Box<Self>) -> Result<(), TargetError>;
}
