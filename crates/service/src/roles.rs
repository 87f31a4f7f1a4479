//! Use cases of local RBAC: assignments are written, read and removed here, each authorised at its own scope.
//!
//! Whoever may write assignments can give themselves any role; that is the service's model, and why the roles that may
//! are few.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::quota::Limited;
use crate::ticket::{Recorded, Ticket};
use domain::access::{
    CustomRole, CustomRoleRefused, Role, RoleAssignment, RoleTable, Scope, action, names_look_alike,
};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::KeyName;
use domain::principal::ObjectId;
use std::fmt;
use std::sync::Arc;
use storage::{KeyRecord, Record, RecordId, RoleNamesRecord, Stamp};

/// As many may the break-glass group make where the limit is reached: whoever locks the owner out could have filled it.
const BREAK_GLASS_PLACES: usize = 5;

/// A wish for an assignment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewAssignment {
    pub name: Guid,
    pub scope: Scope,
    pub role: Guid,
    pub principal: ObjectId,
}

/// What a request calls a role. Roles are named by GUIDs, so one of another name is looked for in vain, and is no mistake of
/// form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RoleName {
    Guid(Guid),
    Other(String),
}

impl From<&str> for RoleName {
    fn from(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Other(text.to_owned()), Self::Guid)
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guid(id) => id.fmt(formatter),
            Self::Other(text) => formatter.write_str(text),
        }
    }
}

/// Which assignments a list is to have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AssignmentFilter {
    /// Those made at the scope itself.
    Here,
    /// `atScope()`: those that count at the scope, made there or above.
    Counting,
    /// `principalId eq ID`: a principal's, at the scope, above and below.
    Of(ObjectId),
}

impl AssignmentFilter {
    fn admits(self, held: &RoleAssignment, scope: &Scope) -> bool {
        match self {
            Self::Here => held.scope == *scope,
            Self::Counting => held.scope.covers(scope),
            Self::Of(principal) => {
                held.principal == principal && (held.scope.covers(scope) || scope.covers(&held.scope))
            }
        }
    }
}

impl Pool {
    /// Gives a principal a role at a scope. The same assignment again changes nothing. A member of the break-glass group may
    /// make an Administrator, as a tenant's Global Administrators may in the service (behaviour section 11.1).
    pub async fn create_assignment(
        self: &Arc<Self>,
        mut ticket: Ticket,
        new: NewAssignment,
    ) -> Recorded<RoleAssignment> {
        ticket.asks::<action::RoleAssignmentWrite>(&new.scope);
        let granted = ticket.authorize::<action::RoleAssignmentWrite>(new.scope.clone()).map(|_| ());
        let (by, beyond) = match (granted, self.break_glass(&ticket, &new)) {
            (Ok(()), _) => (String::new(), 0),
            (Err(Error::Denied(_)), Some(group)) => {
                (format!(", by the break-glass group {group}"), BREAK_GLASS_PLACES)
            }
            (Err(refused), _) => return ticket.record(Err(refused)).await,
        };
        let NewAssignment { name, scope, role, principal } = new;
        ticket.details(format!("assignment {name}: role {role} for principal {principal}{by}"));
        let assignment = RoleAssignment { name, scope, role, principal };
        self.record_change_beyond(ticket, beyond, || self.decide_assignment(&assignment, beyond)).await
    }

    pub async fn read_assignment(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        name: Guid,
    ) -> Recorded<RoleAssignment> {
        ticket.asks::<action::RoleAssignmentRead>(&scope);
        let found = ticket
            .authorize::<action::RoleAssignmentRead>(scope)
            .and_then(|grant| Ok(self.assignment_at(grant.scope(), name)?.0));
        ticket.record(found).await
    }

    pub async fn list_assignments(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        filter: AssignmentFilter,
    ) -> Recorded<Vec<RoleAssignment>> {
        ticket.asks::<action::RoleAssignmentRead>(&scope);
        let result = ticket.authorize::<action::RoleAssignmentRead>(scope).map(|grant| {
            let roles = self.roles();
            let mut held: Vec<_> =
                roles.assignments().filter(|held| filter.admits(held, grant.scope())).cloned().collect();
            held.sort_by_key(|held| held.name);
            held
        });
        ticket.record(result).await
    }

    pub async fn delete_assignment(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        name: Guid,
    ) -> Recorded<RoleAssignment> {
        ticket.asks::<action::RoleAssignmentDelete>(&scope);
        if let Err(denied) = ticket.authorize::<action::RoleAssignmentDelete>(scope.clone()) {
            return ticket.record(Err(denied)).await;
        }
        ticket.details(format!("assignment {name}"));
        let decide = || {
            let (assignment, stamp) = self.assignment_at(&scope, name)?;
            Ok(Change {
                expectations: vec![(RecordId::Assignment(name), Some(stamp))],
                puts: vec![],
                deletes: vec![RecordId::Assignment(name)],
                value: assignment,
            })
        };
        self.record_change(ticket, decide).await
    }

    /// The roles that can be assigned.
    pub async fn list_roles(self: &Arc<Self>, mut ticket: Ticket, scope: Scope) -> Recorded<Vec<Role>> {
        ticket.asks::<action::RoleDefinitionRead>(&scope);
        let allowed = ticket
            .authorize::<action::RoleDefinitionRead>(scope)
            .map(|_| self.roles().roles().collect::<Vec<_>>());
        ticket.record(allowed).await
    }

    pub async fn read_role(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        name: RoleName,
    ) -> Recorded<Role> {
        ticket.asks::<action::RoleDefinitionRead>(&scope);
        let found =
            ticket.authorize::<action::RoleDefinitionRead>(scope).and_then(|_| self.role_named(&name));
        ticket.record(found).await
    }

    /// Defines a custom role, or defines it anew: then its assignments give what it says now.
    pub async fn define_role(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        role: CustomRole,
    ) -> Recorded<Role> {
        ticket.asks::<action::RoleDefinitionWrite>(&scope);
        if let Err(denied) = ticket.authorize::<action::RoleDefinitionWrite>(scope.clone()) {
            return ticket.record(Err(denied)).await;
        }
        if scope != Scope::Root {
            return ticket.record(Err(Error::RoleScope)).await;
        }
        let id = role.id();
        ticket.details(format!("role {id}: {}", role.name()));
        let decide = || {
            let held = self.index().role_stamp(id);
            let names = self.index().role_names();
            let definitions = names.as_ref().map_or(0, |names| names.value).saturating_add(1);
            // Clients find roles by name, and an administrator must not mistake one for another.
            let same_name = |other: &Role| other.id() != id && names_look_alike(other.name(), role.name());
            if self.roles().roles().any(|other| same_name(&other)) {
                return Err(Error::RoleNameTaken(role.name().to_owned()));
            }
            let limit = self.limits().custom_roles;
            if held.is_none() && self.roles().custom_roles() >= limit {
                return Err(Error::LimitReached { what: "custom role definitions", limit });
            }
            Ok(Change {
                expectations: vec![
                    (RecordId::Role(id), held),
                    (RecordId::RoleNames, names.map(|names| names.stamp)),
                ],
                puts: vec![Record::Role(role.clone()), Record::RoleNames(RoleNamesRecord { definitions })],
                deletes: vec![],
                value: Role::Custom(Arc::new(role.clone())),
            })
        };
        self.record_change(ticket, decide).await
    }

    /// Removes a custom role. Its assignments stay, and give nothing (behaviour section 11.4).
    pub async fn delete_role(
        self: &Arc<Self>,
        mut ticket: Ticket,
        scope: Scope,
        name: RoleName,
    ) -> Recorded<Role> {
        ticket.asks::<action::RoleDefinitionDelete>(&scope);
        if let Err(denied) = ticket.authorize::<action::RoleDefinitionDelete>(scope.clone()) {
            return ticket.record(Err(denied)).await;
        }
        ticket.details(format!("role {name}"));
        let decide = || {
            if scope != Scope::Root {
                return Err(Error::RoleScope);
            }
            let role = match self.role_named(&name)? {
                Role::BuiltIn(role) => return Err(CustomRoleRefused::BuiltIn(role).into()),
                role @ Role::Custom(_) => role,
            };
            let id = role.id();
            let stamp = self.index().role_stamp(id).ok_or_else(|| Error::RoleNotFound(id.to_string()))?;
            Ok(Change {
                expectations: vec![(RecordId::Role(id), Some(stamp))],
                puts: vec![],
                deletes: vec![RecordId::Role(id)],
                value: role,
            })
        };
        self.record_change(ticket, decide).await
    }

    fn role_named(&self, name: &RoleName) -> Result<Role, Error> {
        let found = match name {
            RoleName::Guid(id) => self.roles().role(*id),
            RoleName::Other(_) => None,
        };
        found.ok_or_else(|| Error::RoleNotFound(name.to_string()))
    }

    /// The group for whose sake the caller needs no role for this.
    fn break_glass(&self, ticket: &Ticket, new: &NewAssignment) -> Option<ObjectId> {
        let group = self.genesis().break_glass_group?;
        RoleTable::authorize_break_glass(ticket.caller(), group, new.role, &new.scope).map(|_| group)
    }

    fn assignment_at(&self, scope: &Scope, name: Guid) -> Result<(RoleAssignment, Stamp), Error> {
        let not_found = || Error::AssignmentNotFound { name, scope: scope.clone() };
        let (assignment, stamp) = self.index().assignment(name).ok_or_else(not_found)?;
        if assignment.scope == *scope { Ok((assignment, stamp)) } else { Err(not_found()) }
    }

    fn decide_assignment(
        &self,
        wanted: &RoleAssignment,
        beyond: usize,
    ) -> Result<Change<RoleAssignment>, Error> {
        let name = wanted.name;
        let role_exists = self.roles().role(wanted.role).is_some();
        let (expected, puts) = match self.index().assignment(name) {
            Some((held, stamp)) if held == *wanted => (Some(stamp), vec![]),
            Some(_) => return Err(Error::AssignmentExists { name }),
            None if !role_exists => return Err(Error::RoleNotFound(wanted.role.to_string())),
            None => {
                self.check_left(&Limited::assignments_at(&wanted.scope), beyond)?;
                (None, vec![Record::Assignment(wanted.clone())])
            }
        };
        let mut change = Change {
            expectations: vec![(RecordId::Assignment(name), expected)],
            puts,
            deletes: vec![],
            value: wanted.clone(),
        };
        if let Scope::Key(key) = &wanted.scope {
            self.touch_key(key, &mut change);
        }
        Ok(change)
    }

    /// Writes the key of an assignment's scope again, unchanged, so that a purge which decided without this assignment
    /// decides once more: it must not outlive the key.
    fn touch_key<T>(&self, name: &KeyName, change: &mut Change<T>) {
        let held = self.index().key(name);
        change.expectations.push((RecordId::Key(name.clone()), held.as_ref().map(|held| held.stamp)));
        if let Some(held) = held {
            change.puts.push(Record::Key(KeyRecord { key: Key::clone(&held.value) }));
        }
    }
}
