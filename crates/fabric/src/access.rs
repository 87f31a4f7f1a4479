//! Azure RBAC, as far as the control plane needs it: five built-in roles, assigned at a subscription, a resource group or
//! a resource, and inherited downwards. Denied by default.

use crate::store::Change;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A built-in role, with the service's own id, so that clients find it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Role {
    Owner,
    Contributor,
    Reader,
    UserAccessAdministrator,
    ManagedHsmContributor,
}

impl Role {
    pub const ALL: [Self; 5] = [
        Self::Owner,
        Self::Contributor,
        Self::Reader,
        Self::UserAccessAdministrator,
        Self::ManagedHsmContributor,
    ];

    pub fn id(self) -> &'static str {
        match self {
            Self::Owner => "8e3af657-a8ff-443c-a75c-2fe8c4bcb635",
            Self::Contributor => "b24988ac-6180-42a0-ab88-20f7382dd24c",
            Self::Reader => "acdd72a7-3385-48ef-bd42-f606fba81ae7",
            Self::UserAccessAdministrator => "18d7d88d-d35e-4fb5-a5c3-7773c20a72d9",
            Self::ManagedHsmContributor => "18500a29-7fe2-46b2-a342-b16a415e101d",
        }
    }

    pub fn from_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.id().eq_ignore_ascii_case(id))
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "Owner",
            Self::Contributor => "Contributor",
            Self::Reader => "Reader",
            Self::UserAccessAdministrator => "User Access Administrator",
            Self::ManagedHsmContributor => "Managed HSM contributor",
        }
    }

    /// Patterns, `*` for anything.
    pub fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Owner | Self::Contributor => &["*"],
            Self::Reader => &["*/read"],
            Self::UserAccessAdministrator => &["*/read", "Microsoft.Authorization/*"],
            Self::ManagedHsmContributor => &[
                "Microsoft.KeyVault/managedHSMs/*",
                "Microsoft.KeyVault/deletedManagedHsms/read",
                "Microsoft.KeyVault/locations/deletedManagedHsms/read",
                "Microsoft.KeyVault/locations/deletedManagedHsms/purge/action",
                "Microsoft.KeyVault/locations/managedHsmOperationResults/read",
                "Microsoft.KeyVault/checkMhsmNameAvailability/action",
            ],
        }
    }

    pub fn not_actions(self) -> &'static [&'static str] {
        match self {
            Self::Contributor => &[
                "Microsoft.Authorization/*/Delete",
                "Microsoft.Authorization/*/Write",
                "Microsoft.Authorization/elevateAccess/Action",
            ],
            Self::Owner | Self::Reader | Self::UserAccessAdministrator | Self::ManagedHsmContributor => &[],
        }
    }

    pub fn allows(self, action: &str) -> bool {
        let any = |patterns: &[&str]| patterns.iter().any(|pattern| matches(pattern, action));
        any(self.actions()) && !any(self.not_actions())
    }
}

/// `*` stands for any text; letters' case does not count.
fn matches(pattern: &str, action: &str) -> bool {
    let (pattern, action) = (pattern.to_ascii_lowercase(), action.to_ascii_lowercase());
    let mut pieces = pattern.split('*');
    let Some(mut rest) = pieces.next().and_then(|first| action.strip_prefix(first)) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}

/// Where a role holds: a path of Resource Manager without a final slash, compared without regard to case.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Scope(String);

impl Scope {
    pub fn new(path: &str) -> Self {
        Self(format!("/{}", path.trim_matches('/')))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether what holds here holds at `other`: the same place, or one below. Names end at slashes.
    pub fn covers(&self, other: &Self) -> bool {
        let (own, other) = (self.0.to_ascii_lowercase(), other.0.to_ascii_lowercase());
        other.strip_prefix(&own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The end of those made at `scope` and below: they are not to hold over the next thing of its name.
pub(crate) fn given_within<'a>(held: impl Iterator<Item = &'a Assignment>, scope: &Scope) -> Vec<Change> {
    held.filter(|held| scope.covers(&held.scope))
        .map(|held| Change::DeleteAssignment(held.id.clone()))
        .collect()
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    pub version: u32,
    pub id: String,
    /// An object id.
    pub principal: String,
    pub role: Role,
    pub scope: Scope,
}

impl Assignment {
    /// Whether both give the same to the same one at the same place.
    pub fn gives_as(&self, other: &Self) -> bool {
        self.principal.eq_ignore_ascii_case(&other.principal)
            && self.role == other.role
            && self.scope.covers(&other.scope)
            && other.scope.covers(&self.scope)
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the client with object id '{principal}' does not have authorization to perform action '{action}' over scope '{scope}'"
)]
pub struct Denied {
    pub principal: String,
    pub action: String,
    pub scope: Scope,
}

/// Whether one of `assignments` lets `principal` do `action` at `scope`.
pub fn authorize<'a>(
    assignments: impl IntoIterator<Item = &'a Assignment>,
    principal: &str,
    action: &str,
    scope: &Scope,
) -> Result<(), Denied> {
    let allowed = assignments.into_iter().any(|held| {
        held.principal.eq_ignore_ascii_case(principal) && held.scope.covers(scope) && held.role.allows(action)
    });
    if allowed {
        return Ok(());
    }
    Err(Denied { principal: principal.to_owned(), action: action.to_owned(), scope: scope.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [&str; 12] = [
        "Microsoft.Resources/subscriptions/read",
        "Microsoft.KeyVault/managedHSMs/read",
        "Microsoft.KeyVault/managedHSMs/write",
        "Microsoft.KeyVault/managedHSMs/delete",
        "Microsoft.KeyVault/deletedManagedHsms/read",
        "Microsoft.KeyVault/locations/deletedManagedHsms/read",
        "Microsoft.KeyVault/locations/deletedManagedHsms/purge/action",
        "Microsoft.KeyVault/checkMhsmNameAvailability/action",
        "Microsoft.Authorization/roleAssignments/read",
        "Microsoft.Authorization/roleAssignments/write",
        "Microsoft.Authorization/roleAssignments/delete",
        "Microsoft.Insights/eventtypes/values/read",
    ];

    /// One letter a role in the order of [`Role::ALL`], a dot where it is denied.
    #[test]
    fn what_each_role_allows() {
        let row = |action: &str| -> String {
            let letter = |(role, letter): (Role, char)| if role.allows(action) { letter } else { '.' };
            Role::ALL.into_iter().zip("OCRUM".chars()).map(letter).collect()
        };
        let expected = [
            "OCRU.", "OCRUM", "OC..M", "OC..M", "OCRUM", "OCRUM", "OC..M", "OC..M", "OCRU.", "O..U.",
            "O..U.", "OCRU.",
        ];
        for (action, expected) in ACTIONS.into_iter().zip(expected) {
            assert_eq!(row(action), expected, "{action}");
        }
    }

    #[test]
    fn a_scope_covers_itself_and_what_is_below_and_no_neighbour() {
        let scope = Scope::new("/subscriptions/s/resourceGroups/g");
        for (other, covered) in [
            ("/subscriptions/S/resourcegroups/G", true),
            ("/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/managedHSMs/n", true),
            ("/subscriptions/s/resourceGroups/g2", false),
            ("/subscriptions/s", false),
            ("/", false),
        ] {
            assert_eq!(scope.covers(&Scope::new(other)), covered, "{other}");
        }
    }

    #[test]
    fn nobody_has_what_another_was_given() {
        let held = Assignment {
            version: 1,
            id: "i".into(),
            principal: "ada".into(),
            role: Role::Reader,
            scope: Scope::new("/subscriptions/s"),
        };
        let at = Scope::new("/subscriptions/s/resourceGroups/g");
        assert!(authorize([&held], "ada", "X/read", &at).is_ok());
        for (who, action, at) in [
            ("eve", "X/read", "/subscriptions/s"),
            ("ada", "X/write", "/subscriptions/s"),
            ("ada", "X/read", "/"),
        ] {
            assert!(authorize([&held], who, action, &Scope::new(at)).is_err(), "{who} {action} {at}");
        }
        assert!(authorize([], "ada", "X/read", &at).is_err());
    }
}
