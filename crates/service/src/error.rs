//! Why a request was refused. Only an API crate knows which HTTP status that is.

use crate::backup::TargetError;
use crypto::PartitionError;
use crypto::full_backup::FullBackupRefused;
use crypto::key_backup::BackupRefused;
use domain::access::{CustomRoleRefused, DataAction, Denied, MalformedScope, Scope};
use domain::guid::Guid;
use domain::key::{
    ChangeRefused, EmptyWindow, KeyOperationsRefused, KeyRefused, ReleaseRefused, TagsRefused, UseRefused,
};
use domain::name::{KeyName, KeyVersion};
use domain::network::Blocked;
use domain::pool::PoolClass;
use domain::principal::ObjectId;
use domain::release::{Authority, PolicyRefused, Unmet};
use domain::rotation::RotationRefused;
use domain::setting::SettingRefused;
use domain::test_mode::TestModeRefused;
use identity::attestation::AssertionError;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The caller lacks a right.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// The client is not where it would have to be.
    #[error("{0}")]
    Blocked(#[from] Blocked),
    /// The request itself is wrong: says what and where.
    #[error("{0}")]
    BadParameter(String),
    #[error("{0}")]
    UnsupportedApiVersion(String),
    #[error("no such path: {method} {path}")]
    UnknownPath { method: String, path: String },
    #[error("the request body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the request body did not arrive within {limit_seconds} seconds")]
    BodyTooSlow { limit_seconds: u64 },
    #[error("the connection ended before the request did")]
    BodyIncomplete,
    #[error("a key named {name} was not found in this pool")]
    KeyNotFound { name: KeyName },
    #[error("version {version} of key {name} was not found in this pool")]
    VersionNotFound { name: KeyName, version: KeyVersion },
    #[error("a deleted key named {name} was not found in this pool")]
    DeletedKeyNotFound { name: KeyName },
    #[error("{0}")]
    UseRefused(#[from] UseRefused),
    #[error("{0}")]
    KeyOperations(#[from] KeyOperationsRefused),
    #[error("{0}")]
    Tags(#[from] TagsRefused),
    #[error("{0}")]
    Window(#[from] EmptyWindow),
    #[error("{0}")]
    Key(#[from] KeyRefused),
    #[error("{0}")]
    Rotation(#[from] RotationRefused),
    #[error("{0}")]
    Policy(#[from] PolicyRefused),
    #[error("{0}")]
    Release(#[from] ReleaseRefused),
    #[error(
        "this pool does not take the word of {0} for a key release: an administrator lists it in setting HoldfastReleaseAuthorities"
    )]
    AuthorityNotAllowed(Authority),
    #[error("target environment attestation statement cannot be verified: {0}")]
    Assertion(AssertionError),
    #[error(
        "target environment attestation statement cannot be verified: its issuer {0} is not an authority that the key's release policy names"
    )]
    AssertionIssuer(String),
    #[error(
        "target environment attestation statement cannot be verified: the keys of {0} cannot be had; the pool's log says why"
    )]
    AuthorityUnavailable(Authority),
    #[error(
        "target environment attestation statement cannot be verified: another principal has used it before"
    )]
    AssertionReplayed,
    #[error("target environment attestation statement does not meet the key's release policy: {0}")]
    PolicyNotMet(Unmet),
    #[error("nothing can be wrapped for key {0} in x-ms-runtime.keys of the attestation statement: {1}")]
    ReleaseKey(String, String),
    #[error(
        "a key named {name} exists in this pool; delete and purge it before another is restored under its name"
    )]
    KeyExists { name: KeyName },
    #[error("{0}")]
    Backup(#[from] BackupRefused),
    #[error("this pool does not decrypt with RSA1_5: an administrator has turned it off")]
    Rsa15Off,
    #[error("this pool does not use AES in CBC mode: an administrator has turned it off")]
    CbcOff,
    #[error(
        "decryption with RSA1_5 has failed {limit} times with this key version within an hour; the next attempt is allowed in {retry_after_seconds} seconds"
    )]
    TooManyFailures { limit: u32, retry_after_seconds: u32 },
    #[error("{0}")]
    Scope(#[from] MalformedScope),
    #[error("{0}")]
    Partition(#[from] PartitionError),
    #[error("role assignment {name} was not found at scope {scope}")]
    AssignmentNotFound { name: domain::guid::Guid, scope: domain::access::Scope },
    #[error("a role assignment named {name} exists already, for another principal, role or scope")]
    AssignmentExists { name: domain::guid::Guid },
    #[error("role definition {0} was not found in this pool")]
    RoleNotFound(String),
    #[error("{0}")]
    CustomRole(#[from] CustomRoleRefused),
    #[error("another role definition is named {0}")]
    RoleNameTaken(String),
    #[error("role definitions are made for the whole pool: their scope is `/`")]
    RoleScope,
    #[error("a setting named {0} was not found in this pool")]
    SettingNotFound(String),
    #[error("{0}")]
    Setting(#[from] SettingRefused),
    #[error("the tokens of principal {0} were not withdrawn")]
    NotBeforeNotFound(ObjectId),
    #[error("this pool holds at most {limit} {what}")]
    LimitReached { what: &'static str, limit: usize },
    /// Others were faster, however often it was tried.
    #[error("the object was changed by other requests meanwhile; repeat the request")]
    TooManyConflicts,
    /// A bounded queue is full.
    #[error("the pool is busy with {0}; repeat the request later")]
    Busy(&'static str),
    /// Of a pool of class test that was told to.
    #[error(
        "refused on purpose: this pool is in test mode and refuses 1 of {every} requests; repeat it in {retry_after_seconds} seconds"
    )]
    Throttled { every: u32, retry_after_seconds: u32 },
    #[error("{0}")]
    TestMode(#[from] TestModeRefused),
    /// No audit, no service.
    #[error("the audit log cannot take the event of this request: {0}")]
    AuditUnavailable(String),
    #[error("the store cannot take the change: {0}")]
    StoreUnavailable(String),
    /// The caller went away before the answer was ready; nobody sees this but the audit log.
    #[error("the caller closed the connection before the request was complete")]
    CallerLeft,
    #[error(
        "this key version has encrypted with AES-GCM {limit} times, which is as often as random IVs are good for: make a new version"
    )]
    InvocationsExhausted { limit: u64 },
    /// Provisioned: no key exists yet.
    #[error(
        "this pool is not activated: an initial administrator first downloads its security domain, or uploads that of another pool"
    )]
    NotActivated,
    /// An uploaded domain may be anybody's.
    #[error(
        "this pool's security domain was uploaded and is not confirmed: once an initial administrator has compared its fingerprint {fingerprint} with that of the domain's file and said `holdfast pool confirm --fingerprint {fingerprint}`, keys work"
    )]
    DomainNotConfirmed { fingerprint: String },
    #[error(
        "the security domain was handed out to other holders, and is handed out once; for new holders or another quorum they use `holdfast ceremony rekey`"
    )]
    DomainHandedOut,
    #[error("this pool is active and has a security domain of its own")]
    AlreadyActive,
    #[error(
        "no exchange key waits for this blob, or it has expired, or the pool was restarted: ask for a new one"
    )]
    NoTransferKey,
    #[error("the restore blob does not open with this pool's exchange key")]
    BlobNotOpened,
    #[error("{0}")]
    FullBackup(#[from] FullBackupRefused),
    #[error("{0}")]
    BackupTarget(#[from] TargetError),
    #[error("this pool has no place for full backups: its operator has named none")]
    NoBackupTargets,
    #[error("a {what} is under way as job {id}, and only one is at a time")]
    JobRunning { what: &'static str, id: Guid },
    #[error("no such job is known: {0}")]
    JobNotFound(Guid),
    /// A job's caller may not do any more what the job is for.
    #[error(
        "the token that asked for this job was withdrawn while it was under way: {} at scope {scope} is not done for it",
        action.as_str()
    )]
    TokenWithdrawn { action: DataAction, scope: Scope },
    #[error("the pool was stopped while the job was under way; nothing of it was kept")]
    JobInterrupted,
    #[error(
        "this pool holds keys and was never backed up: a restore replaces them, so make a full backup of it first"
    )]
    NotBackedUp,
    #[error("a restore is under way: until it has ended, nothing works but asking how it goes")]
    Restoring,
    #[error(
        "the restore would destroy {what}, which the backup does not hold, and this pool has purge protection; restore into a pool without keys instead"
    )]
    RestoreDestroys { what: String },
    #[error("the backup holds no key named {name}")]
    NotInBackup { name: KeyName },
    #[error("key {name} was deleted when the backup was made")]
    DeletedInBackup { name: KeyName },
    #[error("this is for pools of class test; this one is of class {}", .0.as_str())]
    TestClassOnly(PoolClass),
}

impl From<ChangeRefused> for Error {
    fn from(error: ChangeRefused) -> Self {
        match error {
            ChangeRefused::Operations(error) => error.into(),
            ChangeRefused::Window(error) => error.into(),
            ChangeRefused::Release(error) => error.into(),
        }
    }
}

impl From<audit::AuditError> for Error {
    fn from(error: audit::AuditError) -> Self {
        Error::AuditUnavailable(error.to_string())
    }
}

impl From<storage::CommitError> for Error {
    fn from(error: storage::CommitError) -> Self {
        match error {
            storage::CommitError::Conflict => Error::TooManyConflicts,
            storage::CommitError::DiskFull => Error::StoreUnavailable("the disk is full".into()),
            storage::CommitError::Unavailable(reason) => Error::StoreUnavailable(reason),
        }
    }
}
