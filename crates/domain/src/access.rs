//! Local RBAC: data actions, roles, assignments, and the proof that a caller may act.
//!
//! Rights are the union of assignments at or above the object; there are no deny assignments. The control plane has
//! no part in this.

use crate::guid::Guid;
use crate::name::KeyName;
use crate::principal::{Caller, ObjectId};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;

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

    /// The id that the service and its clients know the role by.
    pub fn id(self) -> Guid {
        let text = match self {
            BuiltInRole::Administrator => "a290e904-7015-4bba-90c8-60543313cdb4",
            BuiltInRole::CryptoOfficer => "515eb02d-2335-4d2d-92f2-b1cbdf9c3778",
            BuiltInRole::CryptoUser => "21dbd100-6940-42c2-9190-5d6cb909625b",
            BuiltInRole::PolicyAdministrator => "4bd23610-cdcf-4971-bdee-bdc562cc28e4",
            BuiltInRole::CryptoAuditor => "2c18b078-7c48-4d3a-af88-5a3a1b3f82b3",
            BuiltInRole::CryptoServiceEncryptionUser => "33413926-3206-4cdd-b39a-83574fe37a17",
            BuiltInRole::CryptoServiceReleaseUser => "21dbd100-6940-42c2-9190-5d6cb909625c",
            BuiltInRole::Backup => "7b127d3c-77bd-4e3e-bbe0-dbb8971fa7f8",
            BuiltInRole::Restore => "6efe6056-5259-49d2-8b3d-d3d73544b20b",
        };
        text.parse().expect("built-in role ids are GUIDs")
    }

    pub const fn allows(self, action: DataAction) -> bool {
        use BuiltInRole as R;
        match action {
            DataAction::SecurityDomainDownload
            | DataAction::SecurityDomainUpload
            | DataAction::SecurityDomainUploadRead
            | DataAction::SecurityDomainTransferKeyRead => matches!(self, R::Administrator),
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
            | DataAction::Verify => matches!(self, R::CryptoUser),
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
    pub fn smallest_for(action: DataAction) -> BuiltInRole {
        let rights =
            |role: &BuiltInRole| DataAction::ALL.iter().filter(|action| role.allows(**action)).count();
        Self::ALL
            .into_iter()
            .filter(|role| role.allows(action))
            .min_by_key(rights)
            .expect("each data action is allowed by some built-in role")
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

/// All assignments of a pool at one moment. Immutable: a write makes a new table and swaps it in.
#[derive(Clone, Debug, Default)]
pub struct RoleTable {
    by_name: HashMap<Guid, RoleAssignment>,
    by_principal: HashMap<ObjectId, Vec<Guid>>,
}

impl RoleTable {
    pub fn new(assignments: impl IntoIterator<Item = RoleAssignment>) -> Self {
        let mut table = Self::default();
        for assignment in assignments {
            table.by_principal.entry(assignment.principal).or_default().push(assignment.name);
            table.by_name.insert(assignment.name, assignment);
        }
        table
    }

    pub fn assignments(&self) -> impl Iterator<Item = &RoleAssignment> {
        self.by_name.values()
    }

    pub fn assignment(&self, name: Guid) -> Option<&RoleAssignment> {
        self.by_name.get(&name)
    }

    /// The table with `assignment` added, or put in the place of the one with its name.
    pub fn with(&self, assignment: RoleAssignment) -> Self {
        let mut all: Vec<_> = self.without(assignment.name).by_name.into_values().collect();
        all.push(assignment);
        Self::new(all)
    }

    /// The table without the assignment called `name`.
    pub fn without(&self, name: Guid) -> Self {
        Self::new(self.assignments().filter(|held| held.name != name).cloned())
    }

    /// Proof that `caller` may do `A` at `scope`, or what is missing. The only source of grants.
    pub fn authorize<'a, A: Action>(&self, caller: &'a Caller, scope: Scope) -> Result<Grant<'a, A>, Denied> {
        if self.allows(caller, A::DATA_ACTION, &scope) {
            Ok(Grant { caller, scope, action: PhantomData })
        } else {
            Err(Denied { principal: caller.object_id, action: A::DATA_ACTION, scope })
        }
    }

    fn allows(&self, caller: &Caller, action: DataAction, scope: &Scope) -> bool {
        let held = |principal: &ObjectId| {
            self.by_principal
                .get(principal)
                .into_iter()
                .flatten()
                .filter_map(|name| self.by_name.get(name))
                .any(|assignment| {
                    assignment.scope.covers(scope)
                        && BuiltInRole::by_id(assignment.role).is_some_and(|role| role.allows(action))
                })
        };
        held(&caller.object_id) || caller.groups.iter().any(held)
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
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "principal {principal} may not do {} at scope {scope}; the smallest assignment that would allow it is role \"{}\" at scope {scope}",
    action.as_str(),
    BuiltInRole::smallest_for(*action).name()
)]
pub struct Denied {
    pub principal: ObjectId,
    pub action: DataAction,
    pub scope: Scope,
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
        assert!(!may::<action::Sign>(&table.without(Guid([1; 16])), &caller(1, &[]), "/keys/k"));
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
            table += &format!("{}: {}\n", action.as_str(), roles.join(", "));
        }
        assert_eq!(table, include_str!("../tests/built_in_roles.txt"), "actual table:\n{table}");
    }
}
