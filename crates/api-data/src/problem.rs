//! Errors as the service writes them. The one place that knows HTTP statuses and error codes.

use domain::access::CustomRoleRefused;
use domain::key::{KeyRefused, ReleaseRefused, UseRefused};
use domain::rotation::RotationRefused;
use service::backup::TargetError;
use service::{BackupRefused, Error, FullBackupRefused, Shown};

/// An error answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    pub shown: Shown,
    pub message: String,
    pub retry_after_seconds: Option<u32>,
}

impl Problem {
    /// `{"error":{"code","message","innererror"?:{"code"}}}`
    pub fn body(&self) -> serde_json::Value {
        let mut error = serde_json::json!({ "code": self.shown.code, "message": self.message });
        if let Some(inner_code) = self.shown.inner_code {
            error["innererror"] = serde_json::json!({ "code": inner_code });
        }
        serde_json::json!({ "error": error })
    }
}

pub fn problem(error: &Error) -> Problem {
    let retry_after_seconds = match error {
        Error::Busy(_) | Error::Restoring => Some(1),
        Error::TooManyFailures { retry_after_seconds, .. } | Error::Throttled { retry_after_seconds, .. } => {
            Some(*retry_after_seconds)
        }
        Error::AuditUnavailable(_) | Error::StoreUnavailable(_) => Some(10),
        _ => None,
    };
    Problem { shown: show(error), message: sentence(&error.to_string()), retry_after_seconds }
}

pub(crate) fn unauthorized(message: &str) -> Problem {
    Problem {
        shown: Shown { status: 401, code: "Unauthorized", inner_code: None },
        message: sentence(message),
        retry_after_seconds: None,
    }
}

pub(crate) fn misdirected(message: String) -> Problem {
    Problem {
        shown: Shown { status: 421, code: "MisdirectedRequest", inner_code: None },
        message: sentence(&message),
        retry_after_seconds: None,
    }
}

pub(crate) fn show(error: &Error) -> Shown {
    let plain = |status, code| Shown { status, code, inner_code: None };
    let inner = |status, code, inner_code| Shown { status, code, inner_code: Some(inner_code) };
    match error {
        Error::Denied(_) => inner(403, "Forbidden", "ForbiddenByRbac"),
        Error::TokenWithdrawn { .. } => inner(403, "Forbidden", "TokenWithdrawn"),
        Error::Blocked(_) => inner(403, "Forbidden", "ForbiddenByFirewall"),
        Error::BadParameter(_)
        | Error::KeyOperations(_)
        | Error::UseRefused(UseRefused::Operations(_))
        | Error::Tags(_)
        | Error::Scope(_)
        | Error::Window(_)
        | Error::RoleScope
        | Error::TestMode(_)
        | Error::TestClassOnly(_)
        | Error::BodyIncomplete => plain(400, "BadParameter"),
        Error::UnsupportedApiVersion(_) => inner(400, "BadParameter", "UnsupportedApiVersion"),
        Error::UnknownPath { .. } => plain(404, "NotFound"),
        Error::BodyTooLarge { .. } => plain(413, "RequestEntityTooLarge"),
        Error::BodyTooSlow { .. } => plain(408, "RequestTimeout"),
        Error::KeyNotFound { .. } | Error::VersionNotFound { .. } => plain(404, "KeyNotFound"),
        Error::UseRefused(UseRefused::Disabled { .. }) => inner(403, "Forbidden", "KeyDisabled"),
        Error::UseRefused(UseRefused::NotYetValid { .. }) => inner(403, "Forbidden", "KeyNotYetValid"),
        Error::UseRefused(UseRefused::Expired { .. }) => inner(403, "Forbidden", "KeyExpired"),
        Error::UseRefused(UseRefused::NotPermitted { .. }) => {
            inner(403, "Forbidden", "KeyOperationForbidden")
        }
        Error::DeletedKeyNotFound { .. } => plain(404, "KeyNotFound"),
        Error::Key(KeyRefused::TooManyVersions { .. }) => inner(409, "Conflict", "TooManyKeyVersions"),
        Error::Key(KeyRefused::Deleted) => inner(409, "Conflict", "ObjectIsDeletedButRecoverable"),
        Error::Key(KeyRefused::NotDeleted) => inner(409, "Conflict", "ObjectIsNotDeleted"),
        Error::Key(KeyRefused::PurgeProtected { .. }) => inner(403, "Forbidden", "PurgeProtectionEnabled"),
        Error::Key(KeyRefused::InconsistentVersions) => plain(500, "InternalServerError"),
        Error::Rotation(RotationRefused::NoPolicy) => inner(400, "BadParameter", "RotationPolicyNotSet"),
        Error::Rotation(_) => plain(400, "BadParameter"),
        Error::Policy(_) | Error::Setting(_) => plain(400, "BadParameter"),
        Error::Release(refused) => match refused {
            ReleaseRefused::NoPolicy
            | ReleaseRefused::NotExportable
            | ReleaseRefused::KeyExchangeKey
            | ReleaseRefused::ExportableFixed => plain(400, "BadParameter"),
            ReleaseRefused::Immutable => inner(403, "Forbidden", "ReleasePolicyImmutable"),
            ReleaseRefused::NotReleasable => inner(403, "Forbidden", "KeyNotExportable"),
            ReleaseRefused::Use(refused) => show(&Error::UseRefused(*refused)),
        },
        Error::AuthorityNotAllowed(_) => inner(403, "Forbidden", "ReleaseAuthorityNotAllowed"),
        Error::Assertion(error) if service::is_malformed(error) => plain(400, "BadParameter"),
        Error::Assertion(_) | Error::AssertionIssuer(_) | Error::AuthorityUnavailable(_) => {
            inner(403, "Forbidden", "AttestationNotVerified")
        }
        Error::AssertionReplayed => inner(403, "Forbidden", "AttestationReplayed"),
        Error::PolicyNotMet(_) => inner(403, "Forbidden", "ReleasePolicyNotMet"),
        Error::ReleaseKey(..) => inner(403, "Forbidden", "ReleaseKeyUnusable"),
        Error::KeyExists { .. } => inner(409, "Conflict", "KeyAlreadyExists"),
        Error::Backup(BackupRefused::OtherDomain { .. } | BackupRefused::OtherClass { .. }) => {
            inner(400, "BadParameter", "BackupOfOtherSecurityDomain")
        }
        Error::Backup(_) => plain(400, "BadParameter"),
        Error::Rsa15Off | Error::CbcOff => inner(403, "Forbidden", "AlgorithmTurnedOff"),
        Error::TooManyFailures { .. } => inner(429, "Throttled", "TooManyDecryptionFailures"),
        Error::Partition(error) => match error {
            service::PartitionError::AlgorithmMismatch { .. } => {
                inner(400, "BadParameter", "KeySizeIncorrect")
            }
            service::PartitionError::DigestLength { .. }
            | service::PartitionError::InputLength(_)
            | service::PartitionError::InvalidMaterial(_)
            | service::PartitionError::DecryptionFailed => plain(400, "BadParameter"),
            service::PartitionError::ForeignMaterial
            | service::PartitionError::NoRoom(_)
            | service::PartitionError::Internal(_) => plain(500, "InternalServerError"),
        },
        Error::AssignmentNotFound { .. } => plain(404, "RoleAssignmentNotFound"),
        Error::AssignmentExists { .. } => plain(409, "RoleAssignmentExists"),
        Error::RoleNotFound(_) => plain(404, "RoleDefinitionNotFound"),
        Error::RoleNameTaken(_) => inner(409, "Conflict", "RoleDefinitionWithSameNameExists"),
        Error::CustomRole(CustomRoleRefused::BuiltIn(_)) => inner(403, "Forbidden", "RoleIsBuiltIn"),
        Error::CustomRole(_) => plain(400, "BadParameter"),
        Error::InvocationsExhausted { .. } => inner(403, "Forbidden", "TooManyEncryptions"),
        Error::NotActivated => inner(403, "Forbidden", "HsmNotActivated"),
        Error::DomainNotConfirmed { .. } => inner(403, "Forbidden", "SecurityDomainNotConfirmed"),
        Error::DomainHandedOut => inner(409, "Conflict", "SecurityDomainAlreadyDownloaded"),
        Error::AlreadyActive => inner(409, "Conflict", "HsmAlreadyActivated"),
        Error::NoTransferKey => inner(400, "BadParameter", "NoTransferKey"),
        Error::BlobNotOpened => inner(400, "BadParameter", "RestoreBlobNotOpened"),
        Error::FullBackup(FullBackupRefused::Foreign(_)) => {
            inner(400, "BadParameter", "BackupOfOtherSecurityDomain")
        }
        Error::FullBackup(_) => inner(400, "BadParameter", "BackupRefused"),
        Error::BackupTarget(error) => match error {
            TargetError::NotAllowed(_) => inner(400, "BadParameter", "StorageNotAllowed"),
            TargetError::Refused { .. } => inner(400, "BadParameter", "StorageRefused"),
            TargetError::Missing(_) => inner(404, "NotFound", "BackupNotFound"),
            TargetError::Exists(_) => inner(409, "Conflict", "BackupExists"),
            TargetError::Unreachable(_) | TargetError::Io(_) => {
                inner(502, "BadGateway", "StorageUnavailable")
            }
        },
        Error::NoBackupTargets => inner(400, "BadParameter", "StorageNotAllowed"),
        Error::JobRunning { .. } => inner(409, "Conflict", "JobRunning"),
        Error::JobNotFound(_) => plain(404, "JobNotFound"),
        Error::JobInterrupted => plain(500, "Interrupted"),
        Error::NotBackedUp => inner(409, "Conflict", "BackupRequired"),
        Error::Restoring => inner(503, "ServiceUnavailable", "HsmRestoring"),
        Error::RestoreDestroys { .. } => inner(403, "Forbidden", "PurgeProtectionEnabled"),
        Error::NotInBackup { .. } | Error::DeletedInBackup { .. } => plain(404, "KeyNotFound"),
        Error::SettingNotFound(_) => plain(404, "SettingNotFound"),
        Error::NotBeforeNotFound(_) => plain(404, "PrincipalNotFound"),
        Error::LimitReached { .. } => inner(403, "Forbidden", "LimitReached"),
        Error::TooManyConflicts => plain(409, "Conflict"),
        Error::Busy(_) => plain(429, "Throttled"),
        Error::Throttled { .. } => inner(429, "Throttled", "TestMode"),
        Error::AuditUnavailable(_) | Error::StoreUnavailable(_) => plain(503, "ServiceUnavailable"),
        Error::CallerLeft => plain(499, "ClientClosedRequest"),
    }
}

/// Errors are written lower case without a full stop; on the wire they are sentences.
fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let Some(first) = characters.next() else { return String::new() };
    // Names on the wire, such as api-version and key_ops, stay as they are.
    let word = text.split([' ', ':', ',']).next().unwrap_or_default();
    let first =
        if word.contains(['-', '_', '.']) { first.to_string() } else { first.to_uppercase().to_string() };
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_services_shape() {
        let error = Error::KeyNotFound { name: "payroll".parse().unwrap() };
        assert_eq!(
            problem(&error).body(),
            serde_json::json!({"error": {
                "code": "KeyNotFound",
                "message": "A key named payroll was not found in this pool.",
            }})
        );
        let busy = problem(&Error::Busy("key generation"));
        assert_eq!((busy.shown.status, busy.retry_after_seconds), (429, Some(1)));
    }
}
