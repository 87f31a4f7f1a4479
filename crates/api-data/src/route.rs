//! Paths of the data plane: one pure function from method and path to a typed route.
//!
//! What clients really send (each seen in use): keywords in any case, `/keys/N/` and `/keys/N//sign` for the current
//! version, a doubled leading slash. None of it may be answered with a redirect.

use domain::access::Scope;
use domain::guid::Guid;
use domain::name::{KeyName, KeyVersion};
use http::Method;
use percent_encoding::percent_decode_str;
use service::{KeyReference, RoleName};

/// The six operations that use a key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyUse {
    Sign,
    Verify,
    Encrypt,
    Decrypt,
    WrapKey,
    UnwrapKey,
}

impl KeyUse {
    pub const ALL: [KeyUse; 6] =
        [KeyUse::Sign, KeyUse::Verify, KeyUse::Encrypt, KeyUse::Decrypt, KeyUse::WrapKey, KeyUse::UnwrapKey];

    const fn keyword(self) -> &'static str {
        match self {
            KeyUse::Sign => "sign",
            KeyUse::Verify => "verify",
            KeyUse::Encrypt => "encrypt",
            KeyUse::Decrypt => "decrypt",
            KeyUse::WrapKey => "wrapkey",
            KeyUse::UnwrapKey => "unwrapkey",
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Route {
    CreateKey(KeyName),
    ImportKey(KeyName),
    ReadKey(KeyReference),
    AttestKey(KeyReference),
    UpdateKey(KeyReference),
    ListKeys,
    ListVersions(KeyName),
    DeleteKey(KeyName),
    ReadDeletedKey(KeyName),
    ListDeletedKeys,
    RecoverKey(KeyName),
    PurgeKey(KeyName),
    UseKey(KeyUse, KeyReference),
    ReleaseKey(KeyReference),
    BackupKey(KeyName),
    RestoreKey,
    RotateKey(KeyName),
    ReadRotationPolicy(KeyName),
    SetRotationPolicy(KeyName),
    RandomBytes,
    CreateAssignment(Scope, Guid),
    ReadAssignment(Scope, Guid),
    DeleteAssignment(Scope, Guid),
    ListAssignments(Scope),
    DefineRole(Scope, Guid),
    ReadRole(Scope, RoleName),
    DeleteRole(Scope, RoleName),
    ListRoles(Scope),
    ListSettings,
    ReadSetting(String),
    UpdateSetting(String),
    ReadTestMode,
    UpdateTestMode,
    ListNotBefore,
    SetNotBefore(Guid),
    ClearNotBefore(Guid),
    DownloadDomain,
    DomainDownloadStatus,
    NewTransferKey,
    UploadDomain,
    DomainUploadStatus,
    ConfirmDomain,
    StartBackup,
    CheckBackup,
    BackupStatus(Guid),
    StartRestore,
    CheckRestore,
    RestoreStatus(Guid),
    RestoreOneKey(KeyName),
    PreviewRestore,
}

macro_rules! route_kinds {
    ($($kind:ident = $method:literal $path:literal $operation:literal,)*) => {
        /// A route without what its path names.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum RouteKind { $($kind,)* }

        impl RouteKind {
            pub const ALL: &'static [RouteKind] = &[$(RouteKind::$kind,)*];

            pub const fn method(self) -> &'static str {
                match self { $(RouteKind::$kind => $method,)* }
            }

            /// The path, with the parts that vary in braces. `{scope}` is empty for the pool, else `/keys` or
            /// `/keys/{key}`.
            pub const fn path(self) -> &'static str {
                match self { $(RouteKind::$kind => $path,)* }
            }

            /// The operation's name in the audit log (behaviour section 18.3).
            pub const fn operation(self) -> &'static str {
                match self { $(RouteKind::$kind => $operation,)* }
            }
        }
    };
}

route_kinds! {
    CreateKey = "POST" "/keys/{key}/create" "KeyCreate",
    ImportKey = "PUT" "/keys/{key}" "KeyImport",
    ReadKey = "GET" "/keys/{key}/{version}" "KeyGet",
    AttestKey = "GET" "/keys/{key}/{version}/attestation" "KeyAttestationGet",
    UpdateKey = "PATCH" "/keys/{key}/{version}" "KeyUpdate",
    ListKeys = "GET" "/keys" "KeyList",
    ListVersions = "GET" "/keys/{key}/versions" "KeyListVersions",
    DeleteKey = "DELETE" "/keys/{key}" "KeyDelete",
    ReadDeletedKey = "GET" "/deletedkeys/{key}" "KeyGetDeleted",
    ListDeletedKeys = "GET" "/deletedkeys" "KeyListDeleted",
    RecoverKey = "POST" "/deletedkeys/{key}/recover" "KeyRecover",
    PurgeKey = "DELETE" "/deletedkeys/{key}" "KeyPurge",
    Sign = "POST" "/keys/{key}/{version}/sign" "KeySign",
    Verify = "POST" "/keys/{key}/{version}/verify" "KeyVerify",
    Encrypt = "POST" "/keys/{key}/{version}/encrypt" "KeyEncrypt",
    Decrypt = "POST" "/keys/{key}/{version}/decrypt" "KeyDecrypt",
    WrapKey = "POST" "/keys/{key}/{version}/wrapkey" "KeyWrap",
    UnwrapKey = "POST" "/keys/{key}/{version}/unwrapkey" "KeyUnwrap",
    ReleaseKey = "POST" "/keys/{key}/{version}/release" "KeyRelease",
    BackupKey = "POST" "/keys/{key}/backup" "KeyBackup",
    RestoreKey = "POST" "/keys/restore" "KeyRestore",
    RotateKey = "POST" "/keys/{key}/rotate" "KeyRotate",
    ReadRotationPolicy = "GET" "/keys/{key}/rotationpolicy" "KeyRotationPolicyGet",
    SetRotationPolicy = "PUT" "/keys/{key}/rotationpolicy" "KeyRotationPolicySet",
    RandomBytes = "POST" "/rng" "RandomBytesGet",
    CreateAssignment = "PUT" "{scope}/providers/Microsoft.Authorization/roleAssignments/{id}" "RoleAssignmentCreate",
    ReadAssignment = "GET" "{scope}/providers/Microsoft.Authorization/roleAssignments/{id}" "RoleAssignmentGet",
    DeleteAssignment = "DELETE" "{scope}/providers/Microsoft.Authorization/roleAssignments/{id}" "RoleAssignmentDelete",
    ListAssignments = "GET" "{scope}/providers/Microsoft.Authorization/roleAssignments" "RoleAssignmentList",
    DefineRole = "PUT" "{scope}/providers/Microsoft.Authorization/roleDefinitions/{id}" "RoleDefinitionCreate",
    ReadRole = "GET" "{scope}/providers/Microsoft.Authorization/roleDefinitions/{id}" "RoleDefinitionGet",
    DeleteRole = "DELETE" "{scope}/providers/Microsoft.Authorization/roleDefinitions/{id}" "RoleDefinitionDelete",
    ListRoles = "GET" "{scope}/providers/Microsoft.Authorization/roleDefinitions" "RoleDefinitionList",
    ListSettings = "GET" "/settings" "SettingList",
    ReadSetting = "GET" "/settings/{setting}" "SettingGet",
    UpdateSetting = "PATCH" "/settings/{setting}" "SettingUpdate",
    ReadTestMode = "GET" "/holdfast/test" "TestModeGet",
    UpdateTestMode = "PATCH" "/holdfast/test" "TestModeUpdate",
    ListNotBefore = "GET" "/holdfast/tokens" "TokenNotBeforeList",
    SetNotBefore = "PUT" "/holdfast/tokens/{id}" "TokenNotBeforeSet",
    ClearNotBefore = "DELETE" "/holdfast/tokens/{id}" "TokenNotBeforeClear",
    DownloadDomain = "POST" "/securitydomain/download" "SecurityDomainBackup",
    DomainDownloadStatus = "GET" "/securitydomain/download/pending" "SecurityDomainBackupStatusGet",
    NewTransferKey = "GET" "/securitydomain/upload" "SecurityDomainTransferKeyGet",
    UploadDomain = "POST" "/securitydomain/upload" "SecurityDomainRestore",
    DomainUploadStatus = "GET" "/securitydomain/upload/pending" "SecurityDomainRestoreStatusGet",
    ConfirmDomain = "POST" "/holdfast/securitydomain/confirm" "SecurityDomainConfirm",
    StartBackup = "POST" "/backup" "BackupCreate",
    CheckBackup = "POST" "/prebackup" "BackupCheck",
    BackupStatus = "GET" "/backup/{id}/pending" "BackupStatusGet",
    StartRestore = "PUT" "/restore" "RestoreCreate",
    CheckRestore = "PUT" "/prerestore" "RestoreCheck",
    RestoreStatus = "GET" "/restore/{id}/pending" "RestoreStatusGet",
    RestoreOneKey = "PUT" "/keys/{key}/restore" "SelectiveRestoreCreate",
    PreviewRestore = "PUT" "/holdfast/restorepreview" "RestorePreview",
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RouteRefused {
    /// No such path, or not with this method.
    Unknown,
    /// The path is one of ours, but a name in it is malformed: says how.
    Malformed(String),
}

impl Route {
    pub fn parse(method: &Method, path: &str) -> Result<Self, RouteRefused> {
        let segments = decode(path)?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        // Before keys: in `/keys/providers/Microsoft.Authorization/…`, `providers` is no key's name.
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        let is_provider = |pair: &[&str]| is(pair[0], "providers") && is(pair[1], "Microsoft.Authorization");
        if let Some(position) = segments.windows(2).position(is_provider) {
            return Self::parse_authorization(method, &segments[..position], &segments[position + 2..]);
        }
        match segments.split_first() {
            Some((first, rest)) if is(first, "keys") => Self::parse_key(method, rest),
            Some((first, rest)) if is(first, "deletedkeys") => Self::parse_deleted(method, rest),
            Some((first, rest)) if is(first, "settings") => Self::parse_setting(method, rest),
            Some((first, rest)) if is(first, "securitydomain") => Self::parse_domain(method, rest),
            Some((first, rest)) if is(first, "backup") => Self::parse_backup(method, rest),
            Some((first, rest)) if is(first, "restore") => Self::parse_restore(method, rest),
            Some((first, [])) if is(first, "prebackup") && method == Method::POST => Ok(Route::CheckBackup),
            Some((first, [])) if is(first, "prerestore") && method == Method::PUT => Ok(Route::CheckRestore),
            Some((first, rest)) if is(first, "holdfast") => Self::parse_ours(method, rest),
            Some((first, [])) if is(first, "rng") && method == Method::POST => Ok(Route::RandomBytes),
            Some(_) | None => Err(RouteRefused::Unknown),
        }
    }

    pub const fn kind(&self) -> RouteKind {
        match self {
            Route::CreateKey(_) => RouteKind::CreateKey,
            Route::ImportKey(_) => RouteKind::ImportKey,
            Route::ReadKey(_) => RouteKind::ReadKey,
            Route::AttestKey(_) => RouteKind::AttestKey,
            Route::UpdateKey(_) => RouteKind::UpdateKey,
            Route::ListKeys => RouteKind::ListKeys,
            Route::ListVersions(_) => RouteKind::ListVersions,
            Route::DeleteKey(_) => RouteKind::DeleteKey,
            Route::ReadDeletedKey(_) => RouteKind::ReadDeletedKey,
            Route::ListDeletedKeys => RouteKind::ListDeletedKeys,
            Route::RecoverKey(_) => RouteKind::RecoverKey,
            Route::PurgeKey(_) => RouteKind::PurgeKey,
            Route::UseKey(KeyUse::Sign, _) => RouteKind::Sign,
            Route::UseKey(KeyUse::Verify, _) => RouteKind::Verify,
            Route::UseKey(KeyUse::Encrypt, _) => RouteKind::Encrypt,
            Route::UseKey(KeyUse::Decrypt, _) => RouteKind::Decrypt,
            Route::UseKey(KeyUse::WrapKey, _) => RouteKind::WrapKey,
            Route::UseKey(KeyUse::UnwrapKey, _) => RouteKind::UnwrapKey,
            Route::ReleaseKey(_) => RouteKind::ReleaseKey,
            Route::BackupKey(_) => RouteKind::BackupKey,
            Route::RestoreKey => RouteKind::RestoreKey,
            Route::RotateKey(_) => RouteKind::RotateKey,
            Route::ReadRotationPolicy(_) => RouteKind::ReadRotationPolicy,
            Route::SetRotationPolicy(_) => RouteKind::SetRotationPolicy,
            Route::RandomBytes => RouteKind::RandomBytes,
            Route::CreateAssignment(..) => RouteKind::CreateAssignment,
            Route::ReadAssignment(..) => RouteKind::ReadAssignment,
            Route::DeleteAssignment(..) => RouteKind::DeleteAssignment,
            Route::ListAssignments(_) => RouteKind::ListAssignments,
            Route::DefineRole(..) => RouteKind::DefineRole,
            Route::ReadRole(..) => RouteKind::ReadRole,
            Route::DeleteRole(..) => RouteKind::DeleteRole,
            Route::ListRoles(_) => RouteKind::ListRoles,
            Route::ListSettings => RouteKind::ListSettings,
            Route::ReadSetting(_) => RouteKind::ReadSetting,
            Route::UpdateSetting(_) => RouteKind::UpdateSetting,
            Route::ReadTestMode => RouteKind::ReadTestMode,
            Route::UpdateTestMode => RouteKind::UpdateTestMode,
            Route::ListNotBefore => RouteKind::ListNotBefore,
            Route::SetNotBefore(_) => RouteKind::SetNotBefore,
            Route::ClearNotBefore(_) => RouteKind::ClearNotBefore,
            Route::DownloadDomain => RouteKind::DownloadDomain,
            Route::DomainDownloadStatus => RouteKind::DomainDownloadStatus,
            Route::NewTransferKey => RouteKind::NewTransferKey,
            Route::UploadDomain => RouteKind::UploadDomain,
            Route::DomainUploadStatus => RouteKind::DomainUploadStatus,
            Route::ConfirmDomain => RouteKind::ConfirmDomain,
            Route::StartBackup => RouteKind::StartBackup,
            Route::CheckBackup => RouteKind::CheckBackup,
            Route::BackupStatus(_) => RouteKind::BackupStatus,
            Route::StartRestore => RouteKind::StartRestore,
            Route::CheckRestore => RouteKind::CheckRestore,
            Route::RestoreStatus(_) => RouteKind::RestoreStatus,
            Route::RestoreOneKey(_) => RouteKind::RestoreOneKey,
            Route::PreviewRestore => RouteKind::PreviewRestore,
        }
    }

    fn parse_authorization(method: &Method, scope: &[&str], rest: &[&str]) -> Result<Self, RouteRefused> {
        let scope = Scope::parse(&scope.join("/")).map_err(malformed)?;
        let Some((kind, name)) = rest.split_first() else { return Err(RouteRefused::Unknown) };
        let name = match name {
            [] => None,
            [name] => Some(*name),
            _ => return Err(RouteRefused::Unknown),
        };
        let guid = |name: &str| name.parse::<Guid>().map_err(malformed);
        match (kind.to_ascii_lowercase().as_str(), method.as_str(), name) {
            ("roleassignments", "GET", None) => Ok(Route::ListAssignments(scope)),
            ("roleassignments", "GET", Some(name)) => Ok(Route::ReadAssignment(scope, guid(name)?)),
            ("roleassignments", "PUT", Some(name)) => Ok(Route::CreateAssignment(scope, guid(name)?)),
            ("roleassignments", "DELETE", Some(name)) => Ok(Route::DeleteAssignment(scope, guid(name)?)),
            ("roledefinitions", "GET", None) => Ok(Route::ListRoles(scope)),
            ("roledefinitions", "GET", Some(name)) => Ok(Route::ReadRole(scope, name.into())),
            ("roledefinitions", "PUT", Some(name)) => Ok(Route::DefineRole(scope, guid(name)?)),
            ("roledefinitions", "DELETE", Some(name)) => Ok(Route::DeleteRole(scope, name.into())),
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn parse_key(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        let Some((name, rest)) = segments.split_first() else {
            return if method == Method::GET { Ok(Route::ListKeys) } else { Err(RouteRefused::Unknown) };
        };
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        if method == Method::POST && rest.is_empty() && is(name, "restore") {
            return Ok(Route::RestoreKey);
        }
        let name: KeyName = name.parse().map_err(malformed)?;
        match (method.as_str(), rest) {
            ("DELETE", []) => Ok(Route::DeleteKey(name)),
            ("PUT", []) => Ok(Route::ImportKey(name)),
            ("GET", [versions]) if is(versions, "versions") => Ok(Route::ListVersions(name)),
            ("GET", [attestation]) if is(attestation, "attestation") => {
                Ok(Route::AttestKey(KeyReference { name, version: None }))
            }
            ("GET", [version, attestation]) if is(attestation, "attestation") => {
                let version = version.parse().map_err(malformed)?;
                Ok(Route::AttestKey(KeyReference { name, version: Some(version) }))
            }
            ("POST", [create]) if is(create, "create") => Ok(Route::CreateKey(name)),
            ("POST", [backup]) if is(backup, "backup") => Ok(Route::BackupKey(name)),
            ("PUT", [restore]) if is(restore, "restore") => Ok(Route::RestoreOneKey(name)),
            ("POST", [rotate]) if is(rotate, "rotate") => Ok(Route::RotateKey(name)),
            ("GET", [policy]) if is(policy, "rotationpolicy") => Ok(Route::ReadRotationPolicy(name)),
            ("PUT", [policy]) if is(policy, "rotationpolicy") => Ok(Route::SetRotationPolicy(name)),
            ("POST", [release]) if is(release, "release") => {
                Ok(Route::ReleaseKey(KeyReference { name, version: None }))
            }
            ("POST", [version, release]) if is(release, "release") => {
                let version = version.parse().map_err(malformed)?;
                Ok(Route::ReleaseKey(KeyReference { name, version: Some(version) }))
            }
            ("POST", [operation]) => Self::key_use(operation, KeyReference { name, version: None }),
            ("POST", [version, operation]) => {
                let version = version.parse().map_err(malformed)?;
                Self::key_use(operation, KeyReference { name, version: Some(version) })
            }
            ("GET" | "PATCH", []) => Ok(Self::key_itself(method, KeyReference { name, version: None })),
            // Words of routes to come are other routes, not malformed versions.
            (_, [word]) if known_word(word) => Err(RouteRefused::Unknown),
            ("GET" | "PATCH", [version]) => {
                let version: KeyVersion = version.parse().map_err(malformed)?;
                Ok(Self::key_itself(method, KeyReference { name, version: Some(version) }))
            }
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn key_itself(method: &Method, key: KeyReference) -> Self {
        if method == Method::PATCH { Route::UpdateKey(key) } else { Route::ReadKey(key) }
    }

    fn parse_deleted(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        let Some((name, rest)) = segments.split_first() else {
            return if method == Method::GET {
                Ok(Route::ListDeletedKeys)
            } else {
                Err(RouteRefused::Unknown)
            };
        };
        let name: KeyName = name.parse().map_err(malformed)?;
        match (method.as_str(), rest) {
            ("GET", []) => Ok(Route::ReadDeletedKey(name)),
            ("DELETE", []) => Ok(Route::PurgeKey(name)),
            ("POST", [recover]) if recover.eq_ignore_ascii_case("recover") => Ok(Route::RecoverKey(name)),
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn parse_setting(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        match (method.as_str(), segments) {
            ("GET", []) => Ok(Route::ListSettings),
            ("GET", [name]) => Ok(Route::ReadSetting((*name).to_owned())),
            ("PATCH", [name]) => Ok(Route::UpdateSetting((*name).to_owned())),
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn parse_domain(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        let words: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match (method.as_str(), words.as_slice()) {
            ("POST", ["download"]) => Ok(Route::DownloadDomain),
            ("GET", ["download", "pending"]) => Ok(Route::DomainDownloadStatus),
            ("GET", ["upload"]) => Ok(Route::NewTransferKey),
            ("POST", ["upload"]) => Ok(Route::UploadDomain),
            ("GET", ["upload", "pending"]) => Ok(Route::DomainUploadStatus),
            _ => Err(RouteRefused::Unknown),
        }
    }

    /// Whether the service's clients call it without an api-version: they follow the address of a status as it stands.
    pub const fn is_status(&self) -> bool {
        matches!(
            self,
            Route::DomainDownloadStatus
                | Route::DomainUploadStatus
                | Route::BackupStatus(_)
                | Route::RestoreStatus(_)
        )
    }

    fn parse_backup(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        match (method.as_str(), segments) {
            ("POST", []) => Ok(Route::StartBackup),
            ("GET", [job, pending]) if pending.eq_ignore_ascii_case("pending") => {
                Ok(Route::BackupStatus(job.parse().map_err(malformed)?))
            }
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn parse_restore(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        match (method.as_str(), segments) {
            ("PUT", []) => Ok(Route::StartRestore),
            ("GET", [job, pending]) if pending.eq_ignore_ascii_case("pending") => {
                Ok(Route::RestoreStatus(job.parse().map_err(malformed)?))
            }
            _ => Err(RouteRefused::Unknown),
        }
    }

    /// Whether it turns the simulation on and off, and so is not simulated itself.
    pub const fn is_test_mode(&self) -> bool {
        matches!(self, Route::ReadTestMode | Route::UpdateTestMode)
    }

    /// What the service does not have.
    fn parse_ours(method: &Method, segments: &[&str]) -> Result<Self, RouteRefused> {
        let rest = match segments.split_first() {
            Some((test, [])) if test.eq_ignore_ascii_case("test") => {
                return match method.as_str() {
                    "GET" => Ok(Route::ReadTestMode),
                    "PATCH" => Ok(Route::UpdateTestMode),
                    _ => Err(RouteRefused::Unknown),
                };
            }
            Some((domain, [confirm]))
                if domain.eq_ignore_ascii_case("securitydomain")
                    && confirm.eq_ignore_ascii_case("confirm")
                    && method == Method::POST =>
            {
                return Ok(Route::ConfirmDomain);
            }
            Some((tokens, rest)) if tokens.eq_ignore_ascii_case("tokens") => rest,
            Some((preview, []))
                if preview.eq_ignore_ascii_case("restorepreview") && method == Method::PUT =>
            {
                return Ok(Route::PreviewRestore);
            }
            Some(_) | None => return Err(RouteRefused::Unknown),
        };
        match (method.as_str(), rest) {
            ("GET", []) => Ok(Route::ListNotBefore),
            ("PUT", [principal]) => Ok(Route::SetNotBefore(principal.parse().map_err(malformed)?)),
            ("DELETE", [principal]) => Ok(Route::ClearNotBefore(principal.parse().map_err(malformed)?)),
            _ => Err(RouteRefused::Unknown),
        }
    }

    fn key_use(operation: &str, key: KeyReference) -> Result<Self, RouteRefused> {
        KeyUse::ALL
            .into_iter()
            .find(|known| known.keyword().eq_ignore_ascii_case(operation))
            .map(|operation| Route::UseKey(operation, key))
            .ok_or(RouteRefused::Unknown)
    }
}

fn known_word(segment: &str) -> bool {
    ["rotationpolicy", "attestation"].iter().any(|word| word.eq_ignore_ascii_case(segment))
}

fn malformed(error: impl std::error::Error) -> RouteRefused {
    RouteRefused::Malformed(error.to_string())
}

/// Segments, percent-decoded, without the empty ones. An encoded slash stays inside its segment, where no name or
/// keyword can hold it.
fn decode(path: &str) -> Result<Vec<String>, RouteRefused> {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| {
            let decoded = percent_decode_str(segment).decode_utf8();
            decoded.map(String::from).map_err(|_| RouteRefused::Malformed("the path is not UTF-8".into()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VERSION: &str = "0123456789abcdef0123456789abcdef";

    fn post(path: &str) -> Result<Route, RouteRefused> {
        Route::parse(&Method::POST, path)
    }

    fn key(version: Option<&str>) -> KeyReference {
        KeyReference { name: "n".parse().unwrap(), version: version.map(|version| version.parse().unwrap()) }
    }

    #[test]
    fn every_spelling_that_clients_use_is_understood() {
        for path in ["/keys/n", "/keys/n/", "//keys/n", "/KEYS/n//", "/keys/%6e"] {
            assert_eq!(Route::parse(&Method::GET, path), Ok(Route::ReadKey(key(None))), "{path}");
        }
        for path in ["/keys/n/wrapkey", "/keys/n//wrapKey", "/Keys/n/WRAPKEY/"] {
            assert_eq!(post(path), Ok(Route::UseKey(KeyUse::WrapKey, key(None))), "{path}");
        }
        assert_eq!(
            post(&format!("/keys/n/{VERSION}/sign")),
            Ok(Route::UseKey(KeyUse::Sign, key(Some(VERSION))))
        );
        for path in ["/keys/n//attestation", "/keys/n/attestation", "/Keys/n/Attestation/"] {
            assert_eq!(Route::parse(&Method::GET, path), Ok(Route::AttestKey(key(None))), "{path}");
        }
        let path = format!("/keys/n/{VERSION}/attestation");
        assert_eq!(Route::parse(&Method::GET, &path), Ok(Route::AttestKey(key(Some(VERSION)))));
        assert_eq!(post("/keys/create/create"), Ok(Route::CreateKey("create".parse().unwrap())));
    }

    #[test]
    fn scopes_come_before_key_names() {
        let id = "a290e904-7015-4bba-90c8-60543313cdb4";
        for (prefix, scope) in [
            ("/", "/"),
            ("", "/"),
            ("/keys", "/keys"),
            ("/Keys/n", "/keys/n"),
            ("/keys/providers", "/keys/providers"),
        ] {
            let path = format!("{prefix}/providers/microsoft.authorization/RoleAssignments/{id}");
            let expected = Route::CreateAssignment(Scope::parse(scope).unwrap(), id.parse().unwrap());
            assert_eq!(Route::parse(&Method::PUT, &path), Ok(expected), "{path}");
        }
        assert_eq!(
            Route::parse(&Method::GET, "/keys/providers/Microsoft.Authorization/roleDefinitions"),
            Ok(Route::ListRoles(Scope::Keys))
        );
    }

    /// Only where one is made does its name have to be a GUID: there is none of another.
    #[test]
    fn a_role_of_any_name_can_be_asked_for() {
        for (method, last, is_malformed) in [
            (Method::PUT, "roleAssignments/nonsense", true),
            (Method::GET, "roleAssignments/nonsense", true),
            (Method::PUT, "roleDefinitions/nonsense", true),
            (Method::GET, "roleDefinitions/nonsense", false),
            (Method::DELETE, "roleDefinitions/nonsense", false),
        ] {
            let parsed = Route::parse(&method, &format!("/providers/Microsoft.Authorization/{last}"));
            assert_eq!(matches!(parsed, Err(RouteRefused::Malformed(_))), is_malformed, "{method} {last}");
            assert_eq!(parsed.is_err(), is_malformed, "{method} {last}");
        }
    }

    #[test]
    fn each_kind_of_route_is_reached_by_its_method_and_path_at_each_scope() {
        for kind in RouteKind::ALL {
            for scope in ["", "/keys", "/keys/n"] {
                let path = kind
                    .path()
                    .replace("{scope}", scope)
                    .replace("{key}", "n")
                    .replace("{version}", VERSION)
                    .replace("{id}", "a290e904-7015-4bba-90c8-60543313cdb4")
                    .replace("{setting}", "s");
                let method = Method::from_bytes(kind.method().as_bytes()).unwrap();
                let parsed = Route::parse(&method, &path);
                assert_eq!(parsed.map(|route| route.kind()), Ok(*kind), "{method} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_route_is_refused() {
        for path in [
            "/",
            "",
            "/keys",
            "/deletedkeys/n",
            "/settings",
            "/holdfast/tokens",
            "/secrets/n",
            "/keys/n/o/p/q",
            "/keys/n/nothing",
            "/keys/providers/x",
        ] {
            assert_eq!(post(path), Err(RouteRefused::Unknown), "{path}");
        }
        for (method, path) in [
            (Method::DELETE, format!("/keys/n/{VERSION}")),
            (Method::POST, "/keys/n/rotationpolicy".to_owned()),
            (Method::PUT, "/keys/n/attestation".to_owned()),
            (Method::GET, "/rng".to_owned()),
            (Method::GET, "/holdfast".to_owned()),
        ] {
            assert_eq!(Route::parse(&method, &path), Err(RouteRefused::Unknown), "{method} {path}");
        }
        for path in ["/keys/a_b/sign", "/keys/n/xyz/sign", "/keys/a%2Fb/sign", "/keys/%ff/sign"] {
            assert!(matches!(post(path), Err(RouteRefused::Malformed(_))), "{path}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_paths_never_panic(path in "(/|[ -~]|\\PC|%[0-9a-f]{2}|keys/|deletedkeys/|settings/|sign){0,40}") {
            for method in [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
                let _ = Route::parse(&method, &path);
            }
        }
    }
}
