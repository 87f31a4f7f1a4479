//! Paths of Azure Resource Manager. Keywords are matched without regard to case; names are borrowed as the client spelt
//! them.

use crate::problem::Problem;
use crate::scope_of;
use fabric::Scope;

/// Of `Microsoft.KeyVault`, with managed HSMs as they are here.
const VERSIONS: [&str; 14] = [
    "2021-10-01",
    "2021-11-01-preview",
    "2021-12-01-preview",
    "2022-02-01-preview",
    "2022-07-01",
    "2022-11-01",
    "2023-02-01",
    "2023-07-01",
    "2024-04-01-preview",
    "2024-11-01",
    "2024-12-01-preview",
    "2025-05-01",
    "2026-02-01",
    "2026-05-15",
];
/// As long as any path with a role assignment at a pool.
const MAX_SEGMENTS: usize = 12;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PoolPart {
    Regions,
    PrivateLinkResources,
}

#[derive(Debug)]
pub enum Route<'a> {
    Endpoints,
    Tenants,
    Operations,
    Subscriptions,
    Subscription { subscription: &'a str },
    Resources { subscription: &'a str },
    Groups { subscription: &'a str },
    Group { subscription: &'a str, group: &'a str },
    Pools { subscription: &'a str, group: Option<&'a str> },
    Pool { subscription: &'a str, group: &'a str, name: &'a str },
    PoolPart { subscription: &'a str, group: &'a str, name: &'a str, part: PoolPart },
    Connections { subscription: &'a str, group: &'a str, name: &'a str },
    Connection { subscription: &'a str, group: &'a str, name: &'a str, connection: &'a str },
    PrivateEndpoints { subscription: &'a str, group: Option<&'a str> },
    PrivateEndpoint { subscription: &'a str, group: &'a str, name: &'a str },
    DeletedPools { subscription: &'a str },
    DeletedVaults { subscription: &'a str },
    DeletedPool { subscription: &'a str, location: &'a str, name: &'a str },
    Purge { subscription: &'a str, location: &'a str, name: &'a str },
    Operation { subscription: &'a str, location: &'a str, name: &'a str, is_result: bool },
    CheckName { subscription: &'a str },
    Permissions { scope: Scope },
    RoleDefinitions { scope: Scope },
    RoleDefinition { scope: Scope, id: &'a str },
    RoleAssignments { scope: Scope },
    RoleAssignment { scope: Scope, id: &'a str },
}

impl<'a> Route<'a> {
    pub fn parse(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> =
            path.split('/').filter(|segment| !segment.is_empty()).take(MAX_SEGMENTS + 1).collect();
        if segments.len() > MAX_SEGMENTS {
            return None;
        }
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        if let Some(at) = lower.windows(2).position(|pair| pair == ["providers", "microsoft.authorization"]) {
            return Self::of_authorization(&segments, &lower, at);
        }
        let named = |index: usize| segments.get(index).copied().unwrap_or_default();
        let subscription = named(1);
        Some(match lower.as_slice() {
            ["metadata", "endpoints"] => Self::Endpoints,
            ["tenants"] => Self::Tenants,
            ["providers", "microsoft.keyvault", "operations"] => Self::Operations,
            ["subscriptions"] => Self::Subscriptions,
            ["subscriptions", _] => Self::Subscription { subscription },
            ["subscriptions", _, "resources"] => Self::Resources { subscription },
            ["subscriptions", _, "resourcegroups"] => Self::Groups { subscription },
            ["subscriptions", _, "resourcegroups", _] => Self::Group { subscription, group: named(3) },
            ["subscriptions", _, "providers", "microsoft.keyvault", rest @ ..] => match rest {
                ["managedhsms"] => Self::Pools { subscription, group: None },
                ["deletedmanagedhsms"] => Self::DeletedPools { subscription },
                ["deletedvaults"] => Self::DeletedVaults { subscription },
                ["checkmhsmnameavailability"] => Self::CheckName { subscription },
                ["locations", _, "deletedmanagedhsms", _] => {
                    Self::DeletedPool { subscription, location: named(5), name: named(7) }
                }
                ["locations", _, "deletedmanagedhsms", _, "purge"] => {
                    Self::Purge { subscription, location: named(5), name: named(7) }
                }
                [
                    "locations",
                    _,
                    kind @ ("managedhsmoperationresults" | "managedhsmoperationstatuses"),
                    _,
                ] => {
                    let name = named(7).strip_prefix("purge-")?;
                    let is_result = *kind == "managedhsmoperationresults";
                    Self::Operation { subscription, location: named(5), name, is_result }
                }
                _ => return None,
            },
            ["subscriptions", _, "providers", "microsoft.network", "privateendpoints"] => {
                Self::PrivateEndpoints { subscription, group: None }
            }
            [
                "subscriptions",
                _,
                "resourcegroups",
                _,
                "providers",
                "microsoft.network",
                "privateendpoints",
                rest @ ..,
            ] => match rest {
                [] => Self::PrivateEndpoints { subscription, group: Some(named(3)) },
                [_] => Self::PrivateEndpoint { subscription, group: named(3), name: named(7) },
                _ => return None,
            },
            [
                "subscriptions",
                _,
                "resourcegroups",
                _,
                "providers",
                "microsoft.keyvault",
                "managedhsms",
                rest @ ..,
            ] => {
                let (group, name) = (named(3), named(7));
                let part = match rest {
                    [] => return Some(Self::Pools { subscription, group: Some(group) }),
                    [_] => return Some(Self::Pool { subscription, group, name }),
                    [_, "regions"] => PoolPart::Regions,
                    [_, "privatelinkresources"] => PoolPart::PrivateLinkResources,
                    [_, "privateendpointconnections"] => {
                        return Some(Self::Connections { subscription, group, name });
                    }
                    [_, "privateendpointconnections", _] => {
                        return Some(Self::Connection { subscription, group, name, connection: named(9) });
                    }
                    _ => return None,
                };
                Self::PoolPart { subscription, group, name, part }
            }
            _ => return None,
        })
    }

    /// Scopes are the subscription, the group, or a pool.
    fn of_authorization(segments: &[&'a str], lower: &[&str], at: usize) -> Option<Self> {
        match &lower[..at] {
            ["subscriptions", _]
            | ["subscriptions", _, "resourcegroups", _]
            | [
                "subscriptions",
                _,
                "resourcegroups",
                _,
                "providers",
                "microsoft.keyvault",
                "managedhsms",
                _,
            ] => {}
            _ => return None,
        }
        let scope = scope_of(&segments[..at]);
        Some(match (&lower[at + 2..], segments.last().copied().unwrap_or_default()) {
            (["permissions"], _) => Self::Permissions { scope },
            (["roledefinitions"], _) => Self::RoleDefinitions { scope },
            (["roledefinitions", _], id) => Self::RoleDefinition { scope, id },
            (["roleassignments"], _) => Self::RoleAssignments { scope },
            (["roleassignments", _], id) => Self::RoleAssignment { scope, id },
            _ => return None,
        })
    }

    /// Subscription, group and location, where the path names them.
    pub fn place(&self) -> (Option<String>, Option<String>, Option<String>) {
        let owned = |text: &str| Some(text.to_owned());
        match self {
            Self::Endpoints | Self::Tenants | Self::Operations | Self::Subscriptions => (None, None, None),
            Self::Subscription { subscription }
            | Self::Resources { subscription }
            | Self::Groups { subscription }
            | Self::DeletedPools { subscription }
            | Self::DeletedVaults { subscription }
            | Self::CheckName { subscription } => (owned(subscription), None, None),
            Self::Pools { subscription, group } | Self::PrivateEndpoints { subscription, group } => {
                (owned(subscription), group.and_then(owned), None)
            }
            Self::Group { subscription, group }
            | Self::Pool { subscription, group, .. }
            | Self::PoolPart { subscription, group, .. }
            | Self::Connections { subscription, group, .. }
            | Self::Connection { subscription, group, .. }
            | Self::PrivateEndpoint { subscription, group, .. } => (owned(subscription), owned(group), None),
            Self::DeletedPool { subscription, location, .. }
            | Self::Purge { subscription, location, .. }
            | Self::Operation { subscription, location, .. } => (owned(subscription), None, owned(location)),
            Self::Permissions { scope }
            | Self::RoleDefinitions { scope }
            | Self::RoleDefinition { scope, .. }
            | Self::RoleAssignments { scope }
            | Self::RoleAssignment { scope, .. } => {
                let segments: Vec<&str> = scope.as_str().split('/').collect();
                (segments.get(2).copied().and_then(owned), segments.get(4).copied().and_then(owned), None)
            }
        }
    }

    /// Versions of managed HSMs are known one by one; of the rest any will do, as their bodies never changed.
    pub fn check_version(&self, query: &str) -> Result<(), Problem> {
        let Some(version) = identity::query_value(query, "api-version") else {
            return Err(Problem::version(
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.".to_owned(),
            ));
        };
        let is_versioned = matches!(
            self,
            Self::Pools { .. }
                | Self::Pool { .. }
                | Self::PoolPart { .. }
                | Self::Connections { .. }
                | Self::Connection { .. }
                | Self::DeletedPools { .. }
                | Self::DeletedPool { .. }
                | Self::Purge { .. }
                | Self::CheckName { .. }
        );
        if is_versioned && !VERSIONS.contains(&version.as_str()) {
            let message = format!(
                "The api-version {version:?} is not supported. Supported are: {}.",
                VERSIONS.join(", ")
            );
            return Err(Problem::version("InvalidApiVersionParameter", message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_deeper_or_elsewhere_is_no_route() {
        let pool = "/subscriptions/S/resourceGroups/G/providers/Microsoft.KeyVault/managedHSMs/N";
        assert!(matches!(Route::parse(pool), Some(Route::Pool { name: "N", group: "G", .. })));
        assert!(matches!(
            Route::parse(&format!("{pool}/providers/Microsoft.Authorization/roleAssignments/x")),
            Some(Route::RoleAssignment { id: "x", .. })
        ));
        for path in [
            format!("{pool}/keys"),
            format!("{pool}/regions/x"),
            format!("{pool}/privateEndpointConnections/x/y"),
            "/subscriptions/S/resourceGroups/G/providers/Microsoft.Network/virtualNetworks/private"
                .to_owned(),
            format!("{pool}/keys/k/providers/Microsoft.Authorization/roleAssignments"),
            "/providers/Microsoft.Authorization/roleAssignments".to_owned(),
            "/keys".to_owned(),
            "/".to_owned(),
            "/a".repeat(MAX_SEGMENTS + 1),
        ] {
            assert!(Route::parse(&path).is_none(), "{path}");
        }
    }
}
