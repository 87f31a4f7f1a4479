//! The use cases of a pool: the only place where the steps of an operation are put in order.
//!
//! A request comes in as a [`Ticket`] and leaves as a [`Recorded`] outcome, which exists only once its audit event is
//! durable. In between: authorise (a `Grant` from the role table), decide (`domain`), use the key (the partition) or
//! commit (`storage`), record (`audit`). No HTTP here, and no strings that were not parsed before.

mod attestation;
pub mod backup;
mod clock;
mod deletion;
mod error;
mod failures;
mod index;
mod invocations;
mod key_backup;
mod keys;
mod network;
mod owed;
mod pool;
mod principals;
mod quota;
mod ready_keys;
mod release;
mod roles;
mod room;
mod rotation;
mod schedule;
mod security_domain;
mod settings;
mod shares;
mod tasks;
mod test_mode;
mod ticket;
mod views;
mod workers;

pub use attestation::AttestedKey;
pub use audit::Receipt;
pub use ceremony::{DownloadRequest, HolderSet, TransferKey};
pub use clock::{Clock, Random, SystemClock, SystemRandom};
pub use crypto::attestation::{KeyAttestation, VERSION as ATTESTATION_VERSION};
pub use crypto::full_backup::FullBackupRefused;
pub use crypto::import::{EcParts, PrivateParts, RsaParts, WrappedKind};
pub use crypto::key_backup::{BackupRefused, MAX_BACKUP_BYTES};
pub use crypto::release::KeyWrap;
pub use crypto::{Ciphertext, PartitionError, SecretBytes};
pub use error::Error;
pub use keys::{DecryptInput, EncryptInput};
pub use pool::{NotAuthenticated, OpenPoolError, Pool, PoolLimits, PoolParts};
pub use principals::NotBefore;
pub use release::{ReleaseRequest, ReleasedKey, is_malformed};
pub use roles::{AssignmentFilter, NewAssignment, RoleName};
pub use rotation::{NewRotationPolicy, RotationView};
pub use schedule::{Schedule, Tick};
pub use security_domain::{DomainStatus, DomainView, Installation, Installer};
pub use settings::SettingView;
pub use storage::{ActivationRecord, Job, JobEnd, JobKind, OutboxRecord};
pub use test_mode::TestModeView;
pub use ticket::{Recorded, RequestFacts, Shown, Ticket};
pub use views::{
    DeletedKeyView, ImportedKey, KeyReference, KeyView, NewKey, Page, PageRequest, UsedKey, WrappedKey,
};
