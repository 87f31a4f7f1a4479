//! Local RBAC: data actions, roles, assignments, and the proof that a caller may act.
//!
//! Rights are the union of assignments at or above the object; there are no deny assignments. The control plane has
//! no part in this.

use crate::guid::Guid;
use crate::name::KeyName;
use crate::principal::{Caller, ObjectId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

macro_rules! data_actions {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// One right in the data plane (behaviour section 11.3).
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum DataAction { $($(#[$doc])* $variant,)* }

        impl DataAction {
            pub const ALL: &'static [DataAction] = &[$(DataAction::$variant,)*];

            /// The full name, as role definitions carry it.
            pub const fn as_str(self) -> &'static str {
                match self { $(DataAction::$variant => concat!("Microsoft.KeyVault/managedHsm", $name),)* }
            }
        }

        /// One marker type for each data action, to be spent as `Grant<'_, action::Sign>`.
        pub mod action {
            use super::{Action, DataAction};
            $(
                #[derive(Debug)]
                pub enum $variant {}
                impl Action for $variant { const DATA_ACTION: DataAction = DataAction::$variant; }
            )*
        }
    };
}

data_actions! {
    SecurityDomainDownload = "/securitydomain/download/action",
    SecurityDomainUpload = "/securitydomain/upload/action",
    SecurityDomainUploadRead = "/securitydomain/upload/read",
    SecurityDomainTransferKeyRead = "/securitydomain/transferkey/read",
    KeyRead = "/keys/read/action",
    KeyWrite = "/keys/write/action",
    KeyRotate = "/keys/rotate/action",
    KeyCreate = "/keys/create",
    KeyDelete = "/keys/delete",
    DeletedKeyRead = "/keys/deletedKeys/read/action",
    DeletedKeyRecover = "/keys/deletedKeys/recover/action",
    DeletedKeyPurge = "/keys/deletedKeys/delete",
    KeyBackup = "/keys/backup/action",
    KeyRestore = "/keys/restore/action",
    KeyRelease = "/keys/release/action",
    KeyImport = "/keys/import/action",
    /// Known to clients; no operation asks for it and no built-in role has it.
    KeyExport = "/keys/export/action",
    Encrypt = "/keys/encrypt/action",
    Decrypt = "/keys/decrypt/action",
    Wrap = "/keys/wrap/action",
    Unwrap = "/keys/unwrap/action",
    Sign = "/keys/sign/action",
    Verify = "/keys/verify/action",
    RoleAssignmentRead = "/roleAssignments/read/action",
    RoleAssignmentWrite = "/roleAssignments/write/action",
    RoleAssignmentDelete = "/roleAssignments/delete/action",
    RoleDefinitionRead = "/roleDefinitions/read/action",
    RoleDefinitionWrite = "/roleDefinitions/write/action",
    RoleDefinitionDelete = "/roleDefinitions/delete/action",
    BackupStart = "/backup/start/action",
    BackupStatus = "/backup/status/action",
    RestoreStart = "/restore/start/action",
    RestoreStatus = "/restore/status/action",
    SecurityDomainDownloadRead = "/securitydomain/download/read",
    RandomBytes = "/rng/action",
    /// Ours, as those below: the service does not publish a name.
    SettingRead = "/settings/read/action",
    SettingWrite = "/settings/write/action",
    PrincipalRead = "/principals/read/action",
    PrincipalWrite = "/principals/write/action",
    SecurityDomainConfirm = "/securitydomain/confirm/action",
}

impl DataAction {
    /// Without regard to case, as the documents write the prefix both ways.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.as_str().eq_ignore_ascii_case(text))
    }
}

/// A type that stands for one data action at compile time.
pub trait Action {
    const DATA_ACTION: DataAction;
}

/// Where a right holds.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Scope {
    /// `/`: the whole pool, keys or not.
    Root,
    /// `/keys`: every key.
    Keys,
    /// `/keys/<name>`: all versions of one key.
    Key(KeyName),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a scope is `/`, `/keys` or `/keys/<key name>`")]
pub struct MalformedScope;

impl Scope {
    pub fn parse(text: &str) -> Result<Self, MalformedScope> {
        let text = text.trim_matches('/');
        if text.is_empty() {
            return Ok(Scope::Root);
        }
        match text.split_once('/') {
            None if text.eq_ignore_ascii_case("keys") => Ok(Scope::Keys),
            Some((keys, name)) if keys.eq_ignore_ascii_case("keys") => {
                name.parse().map(Scope::Key).map_err(|_| MalformedScope)
            }
            _ => Err(MalformedScope),
        }
    }

    /// Whether a right held here covers `object`.
    pub fn covers(&self, object: &Scope) -> bool {
        match (self, object) {
            (Scope::Root, _) => true,
            (Scope::Keys, Scope::Keys | Scope::Key(_)) => true,
            (Scope::Key(held), Scope::Key(asked)) => held == asked,
            (Scope::Keys, Scope::Root) | (Scope::Key(_), Scope::Root | Scope::Keys) => false,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Root => f.write_str("/"),
            Scope::Keys => f.write_str("/keys"),
            Scope::Key(name) => write!(f, "/keys/{name}"),
        }
    }
}

/// A built-in role. Its rights are one row of the table in behaviour section 11.3.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BuiltInRole {
    Administrator,
    CryptoOfficer,
    CryptoUser,
    PolicyAdministrator,
    CryptoAuditor,
    CryptoServiceEncryptionUser,
    CryptoServiceReleaseUser,
    Backup,
    Restore,
}

impl BuiltInRole {
    pub const ALL: [BuiltInRole; 9] = [
        BuiltInRole::Administrator,
        BuiltInRole::CryptoOfficer,
        BuiltInRole::CryptoUser,
        BuiltInRole::PolicyAdministrator,
        BuiltInRole::CryptoAuditor,
        BuiltInRole::CryptoServiceEncryptionUser,
        BuiltInRole::CryptoServiceReleaseUser,
        BuiltInRole::Backup,
        BuiltInRole::Restore,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            BuiltInRole::Administrator => "Managed HSM Administrator",
            BuiltInRole::CryptoOfficer => "Managed HSM Crypto Officer",
            BuiltInRole::CryptoUser => "Managed HSM Crypto User",
            BuiltInRole::PolicyAdministrator => "Managed HSM Policy Administrator",
            BuiltInRole::CryptoAuditor => "Managed HSM Crypto Auditor",
            BuiltInRole::CryptoServiceEncryptionUser => "Managed HSM Crypto Service Encryption User",
            BuiltInRole::CryptoServiceReleaseUser => "Managed HSM Crypto Service Release User",
            BuiltInRole::Backup => "Managed HSM Backup",
            BuiltInRole::Restore => "Managed HSM Restore",
        }
    }

    /// For whom the role is, in a sentence.
    pub const fn description(self) -> &'static str {
        match self {
            BuiltInRole::Administrator => {
                "Manages the security domain, full backup and restore, roles and settings; uses no key."
            }
            BuiltInRole::CryptoOfficer => "Manages roles, and recovers or purges deleted keys; uses no key.",
            BuiltInRole::CryptoUser => {
                "Makes, changes, deletes, backs up and uses keys; neither purges nor recovers them."
            }
            BuiltInRole::PolicyAdministrator => "Manages role assignments and role definitions.",
            BuiltInRole::CryptoAuditor => {
                "Reads keys, deleted keys, roles and settings; changes and uses nothing."
            }
            BuiltInRole::CryptoServiceEncryptionUser => {
                "Reads a key, and wraps and unwraps with it: for services that encrypt data at rest."
            }
            BuiltInRole::CryptoServiceReleaseUser => "Releases keys to environments that a policy trusts.",
            BuiltInRole::Backup => "Makes full backups and backups of single keys.",
            BuiltInRole::Restore => "Restores full backups and backups of single keys.",
        }
    }

    /// The id that the service and its clients know the role by.
    pub const fn id(self) -> Guid {
        let id: u128 = match self {
            BuiltInRole::Administrator => 0xa290e904_7015_4bba_90c8_60543313cdb4,
            BuiltInRole::CryptoOfficer => 0x515eb02d_2335_4d2d_92f2_b1cbdf9c3778,
            BuiltInRole::CryptoUser => 0x21dbd100_6940_42c2_9190_5d6cb909625b,
            BuiltInRole::PolicyAdministrator => 0x4bd23610_cdcf_4971_bdee_bdc562cc28e4,
            BuiltInRole::CryptoAuditor => 0x2c18b078_7c48_4d3a_af88_5a3a1b3f82b3,
            BuiltInRole::CryptoServiceEncryptionUser => 0x33413926_3206_4cdd_b39a_83574fe37a17,
            BuiltInRole::CryptoServiceReleaseUser => 0x21dbd100_6940_42c2_9190_5d6cb909625c,
            BuiltInRole::Backup => 0x7b127d3c_77bd_4e3e_bbe0_dbb8971fa7f8,
            BuiltInRole::Restore => 0x6efe6056_5259_49d2_8b3d_d3d73544b20b,
        };
        Guid(id.to_be_bytes())
    }

    pub const fn allows(self, action: DataAction) -> bool {
        use BuiltInRole as R;
        match action {
            DataAction::SecurityDomainDownload
            | DataAction::SecurityDomainDownloadRead
            | DataAction::SecurityDomainUpload
            | DataAction::SecurityDomainUploadRead
            | DataAction::SecurityDomainTransferKeyRead
            | DataAction::SecurityDomainConfirm => matches!(self, R::Administrator),
            DataAction::KeyRead => {
                matches!(self, R::CryptoUser | R::CryptoServiceEncryptionUser | R::CryptoAuditor)
            }
            DataAction::KeyWrite
            | DataAction::KeyRotate
            | DataAction::KeyCreate
            | DataAction::KeyDelete
            | DataAction::KeyImport
            | DataAction::Encrypt
            | DataAction::Decrypt
            | DataAction::Sign
            | DataAction::Verify
            | DataAction::RandomBytes => matches!(self, R::CryptoUser),
            DataAction::KeyExport => false,
            DataAction::SettingRead | DataAction::PrincipalRead => {
                matches!(self, R::Administrator | R::CryptoAuditor)
            }
            DataAction::SettingWrite | DataAction::PrincipalWrite => matches!(self, R::Administrator),
            // The published table gives the auditor purge but not this; its description says read-only. The purge is
            // taken for a slip (behaviour section 11.3).
            DataAction::DeletedKeyRead => matches!(self, R::CryptoOfficer | R::CryptoAuditor),
            DataAction::DeletedKeyRecover | DataAction::DeletedKeyPurge => matches!(self, R::CryptoOfficer),
            DataAction::KeyBackup => matches!(self, R::CryptoUser | R::Backup),
            DataAction::KeyRestore => matches!(self, R::CryptoUser | R::Restore),
            DataAction::KeyRelease => matches!(self, R::CryptoUser | R::CryptoServiceReleaseUser),
            DataAction::Wrap | DataAction::Unwrap => {
                matches!(self, R::CryptoUser | R::CryptoServiceEncryptionUser)
            }
            DataAction::RoleAssignmentRead | DataAction::RoleDefinitionRead => matches!(
                self,
                R::Administrator
                    | R::CryptoOfficer
                    | R::CryptoUser
                    | R::PolicyAdministrator
                    | R::CryptoAuditor
            ),
            DataAction::RoleAssignmentWrite
            | DataAction::RoleAssignmentDelete
            | DataAction::RoleDefinitionWrite
            | DataAction::RoleDefinitionDelete => {
                matches!(self, R::Administrator | R::CryptoOfficer | R::PolicyAdministrator)
            }
            DataAction::BackupStart | DataAction::BackupStatus => {
                matches!(self, R::Administrator | R::Backup)
            }
            DataAction::RestoreStart | DataAction::RestoreStatus => {
                matches!(self, R::Administrator | R::Restore)
            }
        }
    }

    /// The role with the fewest rights that allows `action`: what a denial suggests.
    pub fn smallest_for(action: DataAction) -> Option<BuiltInRole> {
        let rights =
            |role: &BuiltInRole| DataAction::ALL.iter().filter(|action| role.allows(**action)).count();
        Self::ALL.into_iter().filter(|role| role.allows(action)).min_by_key(rights)
    }

    pub fn by_id(id: Guid) -> Option<BuiltInRole> {
        Self::ALL.into_iter().find(|role| role.id() == id)
    }
}

/// A principal holds a role at a scope.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RoleAssignment {
    /// Chosen by whoever made the assignment.
    pub name: Guid,
    pub scope: Scope,
    pub role: Guid,
    pub principal: ObjectId,
}

/// Characters in the name of a custom role, and in its description.
pub const MAX_ROLE_NAME_CHARACTERS: usize = 128;
pub const MAX_ROLE_DESCRIPTION_CHARACTERS: usize = 1024;
/// Permissions in one role definition.
pub const MAX_PERMISSIONS: usize = 10;

/// Data actions that a role allows, and those of them that it does not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Permission {
    pub data_actions: Vec<DataAction>,
    pub not_data_actions: Vec<DataAction>,
}

/// A role that the pool's administrators made. Defined for the whole pool; where it holds is up to assignments.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CustomRole {
    id: Guid,
    name: String,
    description: String,
    permissions: Vec<Permission>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CustomRoleRefused {
    #[error("a role's name has 1 to {MAX_ROLE_NAME_CHARACTERS} characters")]
    Name,
    #[error("a role's description has at most {MAX_ROLE_DESCRIPTION_CHARACTERS} characters")]
    Description,
    #[error("a role has at most {MAX_PERMISSIONS} permissions")]
    Permissions,
    #[error("a data action stands in one list more than once")]
    Repeated,
    #[error("role `{}` is built in and cannot be changed or deleted", .0.name())]
    BuiltIn(BuiltInRole),
}

/// Whether two names of roles look the same to whoever reads them in a list: case, kinds and number of spaces, and what is
/// not shown at all make no difference. Letters of other scripts that look alike are told apart.
pub fn names_look_alike(one: &str, other: &str) -> bool {
    let shown = |name: &str| {
        let is_hidden = |character: char| {
            (character.is_control() && !character.is_whitespace())
                || matches!(character, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}')
                || matches!(character, '\u{2060}'..='\u{206f}' | '\u{feff}')
        };
        let name: String = name.chars().filter(|character| !is_hidden(*character)).collect();
        name.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>()
    };
    shown(one) == shown(other)
}

impl CustomRole {
    pub fn new(
        id: Guid,
        name: String,
        description: String,
        permissions: Vec<Permission>,
    ) -> Result<Self, CustomRoleRefused> {
        if let Some(role) = BuiltInRole::by_id(id) {
            return Err(CustomRoleRefused::BuiltIn(role));
        }
        if !(1..=MAX_ROLE_NAME_CHARACTERS).contains(&name.chars().count()) {
            return Err(CustomRoleRefused::Name);
        }
        if description.chars().count() > MAX_ROLE_DESCRIPTION_CHARACTERS {
            return Err(CustomRoleRefused::Description);
        }
        if permissions.len() > MAX_PERMISSIONS {
            return Err(CustomRoleRefused::Permissions);
        }
        let repeats = |actions: &[DataAction]| {
            let distinct: HashSet<_> = actions.iter().collect();
            distinct.len() != actions.len()
        };
        if permissions.iter().any(|p| repeats(&p.data_actions) || repeats(&p.not_data_actions)) {
            return Err(CustomRoleRefused::Repeated);
        }
        Ok(Self { id, name, description, permissions })
    }

    pub fn id(&self) -> Guid {
        self.id
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn description(&self) -> &str {
        &self.description
    }

    pub fn permissions(&self) -> &[Permission] {
        &self.permissions
    }

    /// What one permission takes away another may still give: permissions are a union.
    pub fn allows(&self, action: DataAction) -> bool {
        self.permissions.iter().any(|permission| {
            permission.data_actions.contains(&action) && !permission.not_data_actions.contains(&action)
        })
    }
}

/// A role that can be assigned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Role {
    BuiltIn(BuiltInRole),
    Custom(Arc<CustomRole>),
}

impl Role {
    pub fn id(&self) -> Guid {
        match self {
            Role::BuiltIn(role) => role.id(),
            Role::Custom(role) => role.id(),
        }
    }

    pub fn name(&self) -> &str {
        match self {
            Role::BuiltIn(role) => role.name(),
            Role::Custom(role) => role.name(),
        }
    }

    pub fn allows(&self, action: DataAction) -> bool {
        match self {
            Role::BuiltIn(role) => role.allows(action),
            Role::Custom(role) => role.allows(action),
        }
    }
}

/// All roles and assignments of a pool at one moment. Immutable: a write makes a new table and swaps it in.
#[derive(Clone, Debug, Default)]
pub struct RoleTable {
    by_name: HashMap<Guid, RoleAssignment>,
    by_principal: HashMap<ObjectId, Vec<Guid>>,
    custom: BTreeMap<Guid, Arc<CustomRole>>,
}

impl RoleTable {
    pub fn new(assignments: impl IntoIterator<Item = RoleAssignment>) -> Self {
        let mut table = Self::default();
        table.insert_all(assignments);
        table
    }

    pub fn assignments(&self) -> impl Iterator<Item = &RoleAssignment> {
        self.by_name.values()
    }

    pub fn assignment(&self, name: Guid) -> Option<&RoleAssignment> {
        self.by_name.get(&name)
    }

    /// Built-in roles first, then custom ones by id.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        let built_in = BuiltInRole::ALL.into_iter().map(Role::BuiltIn);
        built_in.chain(self.custom.values().cloned().map(Role::Custom))
    }

    pub fn custom_roles(&self) -> usize {
        self.custom.len()
    }

    pub fn role(&self, id: Guid) -> Option<Role> {
        let custom = || self.custom.get(&id).cloned().map(Role::Custom);
        BuiltInRole::by_id(id).map(Role::BuiltIn).or_else(custom)
    }

    /// Adds `assignments`, or puts them in the place of those with their names.
    pub fn insert_all(&mut self, assignments: impl IntoIterator<Item = RoleAssignment>) {
        for assignment in assignments {
            self.remove(assignment.name);
            self.by_principal.entry(assignment.principal).or_default().push(assignment.name);
            self.by_name.insert(assignment.name, assignment);
        }
    }

    /// Takes out the assignment called `name`, if there is one.
    pub fn remove(&mut self, name: Guid) {
        let Some(assignment) = self.by_name.remove(&name) else { return };
        if let Some(names) = self.by_principal.get_mut(&assignment.principal) {
            names.retain(|held| *held != name);
            if names.is_empty() {
                self.by_principal.remove(&assignment.principal);
            }
        }
    }

    /// Adds a custom role, or puts it in the place of the one with its id.
    pub fn insert_role(&mut self, role: CustomRole) {
        self.custom.insert(role.id, Arc::new(role));
    }

    /// Takes out a custom role. Its assignments stay, and give nothing.
    pub fn remove_role(&mut self, id: Guid) {
        self.custom.remove(&id);
    }

    /// Proof that `caller` may do `A` at `scope`, or what is missing. The only source of grants but for one.
    pub fn authorize<'a, A: Action>(&self, caller: &'a Caller, scope: Scope) -> Result<Grant<'a, A>, Denied> {
        if self.allows(caller, A::DATA_ACTION, &scope) {
            Ok(Grant { caller, scope, action: PhantomData })
        } else {
            Err(Denied { principal: caller.object_id, action: A::DATA_ACTION, scope })
        }
    }

    /// Likewise without a role, for who is in the pool's break-glass group: to assign Administrator at `/`, and nothing else.
    pub fn authorize_break_glass<'a>(
        caller: &'a Caller,
        group: ObjectId,
        role: Guid,
        scope: &Scope,
    ) -> Option<Grant<'a, action::RoleAssignmentWrite>> {
        let is_recovery = role == BuiltInRole::Administrator.id() && *scope == Scope::Root;
        (is_recovery && caller.groups.contains(&group)).then_some(Grant {
            caller,
            scope: Scope::Root,
            action: PhantomData,
        })
    }

    /// To which keys `caller` may do `A`: what a list may show. Refused where there can be none.
    pub fn sight<A: Action>(&self, caller: &Caller) -> Result<Sight<A>, Denied> {
        let scopes = || self.scopes(caller, A::DATA_ACTION);
        let names = || {
            scopes()
                .filter_map(|scope| match scope {
                    Scope::Key(name) => Some(name.clone()),
                    Scope::Root | Scope::Keys => None,
                })
                .collect::<HashSet<_>>()
        };
        let only = if scopes().any(|scope| scope.covers(&Scope::Keys)) { None } else { Some(names()) };
        match only {
            Some(names) if names.is_empty() => {
                Err(Denied { principal: caller.object_id, action: A::DATA_ACTION, scope: Scope::Keys })
            }
            only => Ok(Sight { only, action: PhantomData }),
        }
    }

    /// The assignments that let `caller` do `action` at `scope`.
    pub fn allowing<'t, 'c>(
        &'t self,
        caller: &'c Caller,
        action: DataAction,
        scope: &'c Scope,
    ) -> impl Iterator<Item = &'t RoleAssignment> + use<'t, 'c> {
        self.giving(caller, action).filter(move |assignment| assignment.scope.covers(scope))
    }

    fn allows(&self, caller: &Caller, action: DataAction, scope: &Scope) -> bool {
        self.allowing(caller, action, scope).next().is_some()
    }

    fn scopes(&self, caller: &Caller, action: DataAction) -> impl Iterator<Item = &Scope> {
        self.giving(caller, action).map(|assignment| &assignment.scope)
    }

    /// The assignments to `caller` or one of its groups whose role has `action`, wherever.
    fn giving<'t, 'c>(
        &'t self,
        caller: &'c Caller,
        action: DataAction,
    ) -> impl Iterator<Item = &'t RoleAssignment> + use<'t, 'c> {
        std::iter::once(&caller.object_id)
            .chain(&caller.groups)
            .filter_map(|principal| self.by_principal.get(principal))
            .flatten()
            .filter_map(|name| self.by_name.get(name))
            .filter(move |assignment| self.role_allows(assignment.role, action))
    }

    fn role_allows(&self, id: Guid, action: DataAction) -> bool {
        match BuiltInRole::by_id(id) {
            Some(role) => role.allows(action),
            None => self.custom.get(&id).is_some_and(|role| role.allows(action)),
        }
    }
}

/// Which keys a caller may do `A` to: all of them, or those named. Only [`RoleTable::sight`] makes one.
#[derive(Debug)]
pub struct Sight<A> {
    /// `None`: every key.
    only: Option<HashSet<KeyName>>,
    action: PhantomData<fn() -> A>,
}

impl<A: Action> Sight<A> {
    pub fn covers(&self, name: &KeyName) -> bool {
        self.only.as_ref().is_none_or(|names| names.contains(name))
    }

    pub fn data_action(&self) -> DataAction {
        A::DATA_ACTION
    }
}

/// Proof that a caller may do `A` at a scope. Fields are private, so [`RoleTable::authorize`] is the only source, and
/// a grant to sign cannot be spent on a rotation.
#[derive(Debug)]
pub struct Grant<'a, A> {
    caller: &'a Caller,
    scope: Scope,
    action: PhantomData<fn() -> A>,
}

impl<A: Action> Grant<'_, A> {
    pub fn caller(&self) -> &Caller {
        self.caller
    }

    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The key that the grant is for; `None` where it is for the whole pool.
    pub fn key(&self) -> Option<&KeyName> {
        match &self.scope {
            Scope::Key(name) => Some(name),
            Scope::Root | Scope::Keys => None,
        }
    }

    pub fn data_action(&self) -> DataAction {
        A::DATA_ACTION
    }
}

/// A refusal that tells an administrator what to do about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denied {
    pub principal: ObjectId,
    pub action: DataAction,
    pub scope: Scope,
}

impl std::error::Error for Denied {}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Denied { principal, action, scope } = self;
        write!(f, "principal {principal} may not do {} at scope {scope}; ", action.as_str())?;
        match BuiltInRole::smallest_for(*action) {
            Some(role) => {
                let name = role.name();
                write!(f, "the smallest assignment that would allow it is role \"{name}\" at scope {scope}")
            }
            None => f.write_str("no built-in role allows it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::TenantId;
    use crate::time::IntDate;

    fn caller(id: u8, groups: &[u8]) -> Caller {
        Caller {
            tenant: TenantId::parse("t").unwrap(),
            object_id: Guid([id; 16]),
            groups: groups.iter().map(|id| Guid([*id; 16])).collect(),
            issued_at: IntDate::default(),
            application_id: None,
            user_principal_name: None,
        }
    }

    fn assignment(name: u8, scope: &str, role: BuiltInRole, principal: u8) -> RoleAssignment {
        RoleAssignment {
            name: Guid([name; 16]),
            scope: Scope::parse(scope).unwrap(),
            role: role.id(),
            principal: Guid([principal; 16]),
        }
    }

    fn may<A: Action>(table: &RoleTable, caller: &Caller, scope: &str) -> bool {
        table.authorize::<A>(caller, Scope::parse(scope).unwrap()).is_ok()
    }

    #[test]
    fn the_break_glass_group_gives_one_role_at_one_scope() {
        let granted = |caller: &Caller, role: BuiltInRole, scope: Scope| {
            RoleTable::authorize_break_glass(caller, Guid([9; 16]), role.id(), &scope).is_some()
        };
        let member = caller(1, &[8, 9]);
        assert!(granted(&member, BuiltInRole::Administrator, Scope::Root));
        for role in BuiltInRole::ALL {
            assert!(!granted(&member, role, Scope::Keys));
            assert!(!granted(&member, role, Scope::parse("/keys/k").unwrap()));
            assert_eq!(granted(&member, role, Scope::Root), role == BuiltInRole::Administrator);
        }
        // Its own id does not make a principal a member.
        for other in [caller(1, &[]), caller(1, &[8]), caller(9, &[])] {
            assert!(!granted(&other, BuiltInRole::Administrator, Scope::Root));
        }
    }

    #[test]
    fn names_that_look_alike_are_one_name() {
        let name = "Managed HSM Administrator";
        for other in [
            "managed hsm administrator",
            " Managed  HSM\tAdministrator\n",
            "Managed\u{a0}HSM Administrator",
            "Managed HSM\u{200b} Admini\u{ad}strator\u{202e}",
            "Managed HSM Administrator\0",
        ] {
            assert!(names_look_alike(name, other), "{other:?}");
        }
        for other in ["Managed HSM Administrators", "ManagedHSM Administrator", "", "Managed HSM"] {
            assert!(!names_look_alike(name, other), "{other:?}");
        }
    }

    #[test]
    fn nobody_may_do_anything_by_default() {
        let table = RoleTable::default();
        for scope in ["/", "/keys", "/keys/k"] {
            assert!(!may::<action::Sign>(&table, &caller(1, &[2]), scope));
            assert!(!may::<action::RoleAssignmentRead>(&table, &caller(1, &[2]), scope));
        }
    }

    #[test]
    fn a_right_holds_at_its_scope_and_below() {
        let table = RoleTable::new([
            assignment(1, "/", BuiltInRole::CryptoUser, 1),
            assignment(2, "/keys", BuiltInRole::CryptoUser, 2),
            assignment(3, "/keys/k", BuiltInRole::CryptoUser, 3),
        ]);
        let reach = |id| {
            ["/", "/keys", "/keys/K", "/keys/other"].map(|s| may::<action::Sign>(&table, &caller(id, &[]), s))
        };
        assert_eq!(reach(1), [true, true, true, true]);
        assert_eq!(reach(2), [false, true, true, true]);
        assert_eq!(reach(3), [false, false, true, false]);
    }

    #[test]
    fn a_group_gives_its_members_its_roles() {
        let table = RoleTable::new([assignment(1, "/keys", BuiltInRole::CryptoUser, 9)]);
        assert!(may::<action::Sign>(&table, &caller(1, &[9]), "/keys/k"));
        assert!(!may::<action::Sign>(&table, &caller(1, &[8]), "/keys/k"));
    }

    #[test]
    fn an_administrator_can_use_no_key() {
        let table = RoleTable::new([assignment(1, "/", BuiltInRole::Administrator, 1)]);
        let admin = caller(1, &[]);
        assert!(may::<action::RoleAssignmentWrite>(&table, &admin, "/"));
        for allowed in [
            may::<action::KeyRead>(&table, &admin, "/keys/k"),
            may::<action::KeyCreate>(&table, &admin, "/keys/k"),
            may::<action::Sign>(&table, &admin, "/keys/k"),
            may::<action::Decrypt>(&table, &admin, "/keys/k"),
            may::<action::Unwrap>(&table, &admin, "/keys/k"),
        ] {
            assert!(!allowed);
        }
    }

    #[test]
    fn a_removed_assignment_gives_nothing() {
        let table = RoleTable::new([assignment(1, "/keys", BuiltInRole::CryptoUser, 1)]);
        let mut table = table;
        assert!(may::<action::Sign>(&table, &caller(1, &[]), "/keys/k"));
        table.remove(Guid([1; 16]));
        assert!(!may::<action::Sign>(&table, &caller(1, &[]), "/keys/k"));
    }

    fn custom(id: u8, allowed: &[DataAction], excluded: &[DataAction]) -> CustomRole {
        let permission = Permission { data_actions: allowed.to_vec(), not_data_actions: excluded.to_vec() };
        CustomRole::new(Guid([id; 16]), "r".into(), String::new(), vec![permission]).unwrap()
    }

    #[test]
    fn a_custom_role_gives_what_it_names_and_nothing_once_it_is_gone() {
        let mut table = RoleTable::default();
        let role = custom(7, &[DataAction::Sign, DataAction::Verify], &[DataAction::Verify]);
        table.insert_all([RoleAssignment {
            name: Guid([1; 16]),
            scope: Scope::Keys,
            role: role.id(),
            principal: Guid([1; 16]),
        }]);
        let reach = |table: &RoleTable| {
            let caller = caller(1, &[]);
            (may::<action::Sign>(table, &caller, "/keys/k"), may::<action::Verify>(table, &caller, "/keys/k"))
        };
        assert_eq!(reach(&table), (false, false));
        table.insert_role(role);
        assert_eq!(reach(&table), (true, false));
        table.insert_role(custom(7, &[DataAction::Verify], &[]));
        assert_eq!(reach(&table), (false, true));
        table.remove_role(Guid([7; 16]));
        assert_eq!(reach(&table), (false, false));
    }

    #[test]
    fn a_built_in_role_cannot_be_redefined() {
        let id = BuiltInRole::CryptoUser.id();
        let refused = CustomRole::new(id, "r".into(), String::new(), vec![]);
        assert_eq!(refused, Err(CustomRoleRefused::BuiltIn(BuiltInRole::CryptoUser)));
        let twice = Permission { data_actions: vec![DataAction::Sign; 2], not_data_actions: vec![] };
        let refused = CustomRole::new(Guid([7; 16]), "r".into(), String::new(), vec![twice]);
        assert_eq!(refused, Err(CustomRoleRefused::Repeated));
    }

    #[test]
    fn a_list_shows_the_keys_that_its_reader_may_read() {
        let table = RoleTable::new([
            assignment(1, "/keys/a", BuiltInRole::CryptoUser, 1),
            assignment(2, "/keys/b", BuiltInRole::CryptoServiceReleaseUser, 1),
            assignment(3, "/keys", BuiltInRole::CryptoAuditor, 2),
        ]);
        let (a, b): (KeyName, KeyName) = ("A".parse().unwrap(), "b".parse().unwrap());
        let one = table.sight::<action::KeyRead>(&caller(1, &[])).unwrap();
        assert_eq!((one.covers(&a), one.covers(&b)), (true, false));
        let all = table.sight::<action::KeyRead>(&caller(1, &[2])).unwrap();
        assert_eq!((all.covers(&a), all.covers(&b)), (true, true));
        let denied = table.sight::<action::DeletedKeyRead>(&caller(1, &[])).unwrap_err();
        assert_eq!((denied.action, denied.scope), (DataAction::DeletedKeyRead, Scope::Keys));
    }

    #[test]
    fn a_denial_names_principal_action_scope_and_remedy() {
        let denied = RoleTable::default()
            .authorize::<action::Unwrap>(&caller(1, &[]), Scope::parse("/keys/payroll").unwrap())
            .unwrap_err();
        assert_eq!(
            denied.to_string(),
            "principal 01010101-0101-0101-0101-010101010101 may not do Microsoft.KeyVault/managedHsm/keys/unwrap/action \
             at scope /keys/payroll; the smallest assignment that would allow it is role \
             \"Managed HSM Crypto Service Encryption User\" at scope /keys/payroll"
        );
    }

    #[test]
    fn scopes_are_read_in_every_spelling_and_nothing_else() {
        for (text, expected) in
            [("/", "/"), ("", "/"), ("/keys", "/keys"), ("/Keys/", "/keys"), ("/keys/K-1", "/keys/K-1")]
        {
            assert_eq!(Scope::parse(text).unwrap().to_string(), expected);
        }
        for text in ["/secrets", "/keys/a/b", "/keys/a_b", "keys//a"] {
            assert_eq!(Scope::parse(text), Err(MalformedScope), "{text}");
        }
    }

    /// The role × action table as a file that a person can read; a change to the code must change it, too.
    #[test]
    fn built_in_roles_match_the_committed_table() {
        let mut table = String::new();
        for action in DataAction::ALL {
            let roles: Vec<_> = BuiltInRole::ALL
                .into_iter()
                .filter(|role| role.allows(*action))
                .map(BuiltInRole::name)
                .collect();
            let roles = if roles.is_empty() { "no built-in role".into() } else { roles.join(", ") };
            table += &format!("{}: {roles}\n", action.as_str());
        }
        assert_eq!(table, include_str!("../tests/built_in_roles.txt"), "actual table:\n{table}");
    }
}
