//! What a restore changes: for its event, for whoever asks before, and for purge protection.
//!
//! A backup is compared with the index as it streams by, in whatever order its records come. What was met is marked in the
//! index itself, and of what differs only the first names are kept: neither grows with the backup or the pool.

use crate::pool::Pool;
use domain::access::{BuiltInRole, CustomRole, Role, RoleAssignment, RoleTable, Scope, action};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::KeyVersion;
use domain::principal::Caller;
use domain::time::IntDate;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use storage::{Record, VersionRecord};

/// Of each list, named in an event.
const NAMED: usize = 20;
/// Of each list, kept. What is beyond is counted.
const KEPT: usize = 1000;

/// Names, of which the first in their order are kept.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names {
    count: usize,
    first: BTreeSet<String>,
}

impl Names {
    fn add(&mut self, name: String) {
        self.count += 1;
        self.first.insert(name);
        if self.first.len() > KEPT {
            self.first.pop_last();
        }
    }

    /// All of them, those included that are not kept.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.first.iter().map(String::as_str)
    }
}

/// Keys by name, roles by what they give.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    pub age: Age,
    pub new_keys: Names,
    /// Keys that the backup does not hold.
    pub lost_keys: Names,
    /// `name/version` of keys that both have.
    pub lost_versions: Names,
    /// What becomes of keys that both have: `name: deleted`, `name/version: enabled`.
    pub changed_keys: Names,
    /// Whether roles and assignments are those of the backup afterwards; the two lists below are empty if not.
    pub replaces_roles: bool,
    pub new_roles: Names,
    pub lost_roles: Names,
}

/// Of when a backup is. It says so itself, under the backup key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Age {
    pub made_at: IntDate,
    /// Of the pool that made it: it counts commits, so of two backups the higher one is the later.
    pub generation: u64,
    /// How many events the log of the pool that made it had: what it did later is behind them. Earlier releases did not say.
    pub log_size: Option<u64>,
    /// When this pool began a later one, the last that it completed. Whoever keeps backups may hand out an older one.
    pub older_than: Option<IntDate>,
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (generation {})", self.made_at.unix_seconds(), self.generation)?;
        match self.older_than {
            Some(last) => write!(
                f,
                ", which is older than the last backup that this pool made, begun at {}",
                last.unix_seconds()
            ),
            None => Ok(()),
        }
    }
}

/// A backup that is being compared with the pool.
pub(super) struct Comparison<'p> {
    pool: &'p Pool,
    number: u64,
    roles: Arc<RoleTable>,
    /// Assignments that genesis gives and that are there: no backup has a say in them.
    of_genesis: BTreeSet<Guid>,
    /// Custom roles of the pool that are the same in the backup.
    same_roles: BTreeSet<Guid>,
    difference: Difference,
}

impl<'p> Comparison<'p> {
    /// Roles and assignments are those of the backup in a pool without keys, or if the caller may write roles; else they
    /// stay, as a right to restore must not become a right to anything else.
    pub fn new(pool: &'p Pool, caller: &Caller) -> Self {
        let roles = pool.roles();
        let replaces_roles = pool.index().key_count() == 0
            || roles.authorize::<action::RoleAssignmentWrite>(caller, Scope::Root).is_ok();
        let of_genesis = pool.initial_assignments().into_iter();
        let of_genesis = of_genesis.filter(|given| roles.assignment(given.name) == Some(given));
        let of_genesis = of_genesis.map(|given| given.name).collect();
        let number = pool.index().new_comparison();
        let age = Age { made_at: IntDate::default(), generation: 0, log_size: None, older_than: None };
        let difference = Difference {
            age,
            new_keys: Names::default(),
            lost_keys: Names::default(),
            lost_versions: Names::default(),
            changed_keys: Names::default(),
            replaces_roles,
            new_roles: Names::default(),
            lost_roles: Names::default(),
        };
        Self { pool, number, roles, of_genesis, same_roles: BTreeSet::new(), difference }
    }

    pub fn replaces_roles(&self) -> bool {
        self.difference.replaces_roles
    }

    /// Whether an assignment of the backup is one after the restore. That genesis names some of those that are here is not
    /// undone: nobody is locked out of a pool that was rebuilt.
    pub fn takes(&self, assignment: &RoleAssignment) -> bool {
        self.replaces_roles() && !self.of_genesis.contains(&assignment.name)
    }

    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Key(record) => self.add_key(&record.key),
            Record::Version(record) => self.add_version(record),
            Record::Assignment(assignment) if self.takes(assignment) => {
                if self.roles.assignment(assignment.name) == Some(assignment) {
                    self.pool.index().meet_assignment(assignment.name, self.number);
                } else {
                    self.difference.new_roles.add(describe(assignment));
                }
            }
            Record::Role(role) if self.replaces_roles() => {
                if self.custom_role(role.id()).is_some_and(|held| *held == *role) {
                    self.same_roles.insert(role.id());
                } else {
                    self.difference.new_roles.add(definition(role));
                }
            }
            _ => {}
        }
    }

    fn add_key(&mut self, then: &Key) {
        let (name, difference) = (&then.name, &mut self.difference);
        let Some(now) = self.pool.index().key(name).map(|held| held.value) else {
            difference.new_keys.add(name.to_string());
            return;
        };
        match (now.is_deleted(), then.is_deleted()) {
            (false, true) => difference.changed_keys.add(format!("{name}: deleted")),
            (true, false) => difference.changed_keys.add(format!("{name}: recovered")),
            (true, true) | (false, false) => {}
        }
        let of_now: BTreeSet<&KeyVersion> = now.versions().iter().collect();
        let of_then: BTreeSet<&KeyVersion> = then.versions().iter().collect();
        for version in of_now.difference(&of_then) {
            difference.lost_versions.add(format!("{name}/{version}"));
        }
        for version in of_then.difference(&of_now) {
            difference.changed_keys.add(format!("{name}/{version}: new"));
        }
        let same = !of_now.is_disjoint(&of_then);
        self.pool.index().meet(name, self.number, same);
    }

    fn add_version(&mut self, then: &VersionRecord) {
        let then = &then.version;
        let Some(now) = self.pool.index().held(&then.name, Some(then.version)) else { return };
        let what = match (now.version.value.version.attributes.enabled, then.attributes.enabled) {
            (false, true) => "enabled",
            (true, false) => "disabled",
            (true, true) | (false, false) => return,
        };
        self.difference.changed_keys.add(format!("{}/{}: {what}", then.name, then.version));
    }

    /// All of the backup was added.
    pub fn finish(&mut self, age: Age) -> Difference {
        self.difference.age = age;
        let lost = &mut self.difference.lost_keys;
        self.pool.index().not_met(self.number, |name| lost.add(name.to_string()));
        let table = self.roles.clone();
        for assignment in table.assignments() {
            if !self.stays(assignment) {
                self.difference.lost_roles.add(describe(assignment));
            }
        }
        if self.replaces_roles() {
            for role in custom_roles(&table).filter(|role| !self.same_roles.contains(&role.id())) {
                self.difference.lost_roles.add(definition(&role));
            }
        }
        self.difference.clone()
    }

    /// Whether an assignment of now is there after the restore, unchanged. Known once all of the backup was added.
    fn stays(&self, held: &RoleAssignment) -> bool {
        if self.of_genesis.contains(&held.name) {
            return true;
        }
        if self.replaces_roles() {
            return self.pool.index().was_assignment_met(held.name, self.number);
        }
        match &held.scope {
            Scope::Root | Scope::Keys => true,
            // Given for a key that is there no more, or that only has its name, it must not be found by another.
            Scope::Key(name) => self.pool.index().was_met_as_same(name, self.number),
        }
    }

    /// Of roles and assignments of now, what is there afterwards and does not come with the backup.
    pub fn kept(&self) -> impl Iterator<Item = Record> {
        let stays = |held: &&RoleAssignment| self.of_genesis.contains(&held.name) || !self.replaces_roles();
        let assignments = self.roles.assignments().filter(stays).filter(|held| self.stays(held));
        let roles = custom_roles(&self.roles).filter(|_| !self.replaces_roles());
        let roles = roles.map(|role| Record::Role(CustomRole::clone(&role)));
        assignments.cloned().map(Record::Assignment).chain(roles)
    }

    fn custom_role(&self, id: Guid) -> Option<Arc<CustomRole>> {
        match self.roles.role(id) {
            Some(Role::Custom(role)) => Some(role),
            Some(Role::BuiltIn(_)) | None => None,
        }
    }
}

fn custom_roles(table: &RoleTable) -> impl Iterator<Item = Arc<CustomRole>> {
    table.roles().filter_map(|role| match role {
        Role::Custom(role) => Some(role),
        Role::BuiltIn(_) => None,
    })
}

impl Difference {
    /// Destroys what purge protection keeps.
    pub fn destroys(&self) -> Option<&str> {
        self.lost_keys.iter().next().or(self.lost_versions.iter().next())
    }

    /// How much, then what, of each list as much as is read at a glance: an event has room for little.
    pub(super) fn summary(&self) -> String {
        let roles = if self.replaces_roles { "those of the backup" } else { "kept" };
        let lists = [
            ("roles gained", &self.new_roles),
            ("roles lost", &self.lost_roles),
            ("keys lost", &self.lost_keys),
            ("versions lost", &self.lost_versions),
            ("new keys", &self.new_keys),
            ("keys changed", &self.changed_keys),
        ];
        let lists = || lists.into_iter().filter(|(_, list)| list.count() > 0);
        let counts = lists().map(|(what, list)| format!("{} {what}", list.count()));
        let named = lists().map(|(what, list)| {
            let named = list.iter().take(NAMED).collect::<Vec<_>>().join(", ");
            format!("{what}: {named}{}", if list.count() > NAMED { ", \u{2026}" } else { "" })
        });
        let roles = format!("roles are {roles}");
        let counts: Vec<_> = std::iter::once(roles).chain(counts).collect();
        std::iter::once(counts.join(", ")).chain(named).collect::<Vec<_>>().join("; ")
    }
}

fn definition(role: &CustomRole) -> String {
    format!("definition {} ({})", role.id(), role.name())
}

fn describe(assignment: &RoleAssignment) -> String {
    let RoleAssignment { name: _, scope, role, principal } = assignment;
    let known = BuiltInRole::by_id(*role).map(|role| role.name().to_owned());
    let role = known.unwrap_or_else(|| role.to_string());
    format!("{role} for {principal} at {scope}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many there are, what is kept are the first.
    #[test]
    fn of_many_names_the_first_are_kept_and_all_are_counted() {
        let mut names = Names::default();
        (0..5 * KEPT).rev().for_each(|number| names.add(format!("{number:05}")));
        assert_eq!(names.count(), 5 * KEPT);
        let kept: Vec<String> = names.iter().map(str::to_owned).collect();
        assert_eq!(kept, (0..KEPT).map(|number| format!("{number:05}")).collect::<Vec<_>>());
    }
}
