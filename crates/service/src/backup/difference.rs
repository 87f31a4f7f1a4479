//! What a restore changes: for its event, for whoever asks before, and for purge protection.

use super::outline::Outline;
use crate::index::Index;
use domain::access::{BuiltInRole, CustomRole, Role, RoleAssignment};
use domain::guid::Guid;
use domain::key::Key;
use domain::name::KeyVersion;
use domain::time::IntDate;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// Of each list, named in an event.
const NAMED: usize = 20;

/// Keys by name, roles by what they give. Each list is in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Difference {
    pub age: Age,
    pub new_keys: Vec<String>,
    /// Keys that the backup does not hold.
    pub lost_keys: Vec<String>,
    /// `name/version` of keys that both have.
    pub lost_versions: Vec<String>,
    /// What becomes of keys that both have: `name: deleted`, `name/version: enabled`.
    pub changed_keys: Vec<String>,
    /// Whether roles and assignments are those of the backup afterwards; the two lists below are empty if not.
    pub replaces_roles: bool,
    pub new_roles: Vec<String>,
    pub lost_roles: Vec<String>,
}

/// Of when a backup is. It says so itself, under the backup key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Age {
    pub made_at: IntDate,
    /// Of the pool that made it: it counts commits, so of two backups the higher one is the later.
    pub generation: u64,
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

/// Roles and assignments after a restore.
pub(super) struct Roles {
    pub assignments: BTreeMap<Guid, RoleAssignment>,
    pub custom: BTreeMap<Guid, CustomRole>,
    /// Those of the backup.
    pub replaced: bool,
}

impl Difference {
    pub(super) fn new(index: &Index, outline: &Outline, roles: &Roles, age: Age) -> Self {
        let mut difference = Self {
            age,
            new_keys: vec![],
            lost_keys: vec![],
            lost_versions: vec![],
            changed_keys: vec![],
            replaces_roles: roles.replaced,
            new_roles: vec![],
            lost_roles: vec![],
        };
        let mut unseen: std::collections::BTreeSet<_> = outline.keys.keys().cloned().collect();
        for (key, versions) in index.outline() {
            let enabled: HashMap<KeyVersion, bool> =
                versions.iter().map(|held| (held.version.version, held.version.attributes.enabled)).collect();
            unseen.remove(&key.name);
            difference.compare(&key, &enabled, outline);
        }
        difference.new_keys = unseen.iter().map(ToString::to_string).collect();
        difference.compare_roles(index, roles);
        difference
    }

    fn compare(&mut self, key: &Key, enabled: &HashMap<KeyVersion, bool>, outline: &Outline) {
        let name = &key.name;
        let Some(held) = outline.keys.get(name) else {
            self.lost_keys.push(name.to_string());
            return;
        };
        match (key.is_deleted(), held.key.is_deleted()) {
            (false, true) => self.changed_keys.push(format!("{name}: deleted")),
            (true, false) => self.changed_keys.push(format!("{name}: recovered")),
            (true, true) | (false, false) => {}
        }
        for version in key.versions() {
            match (enabled.get(version), held.enabled.get(version)) {
                (_, None) => self.lost_versions.push(format!("{name}/{version}")),
                (Some(false), Some(true)) => self.changed_keys.push(format!("{name}/{version}: enabled")),
                (Some(true), Some(false)) => self.changed_keys.push(format!("{name}/{version}: disabled")),
                (_, Some(_)) => {}
            }
        }
        let more = held.key.versions().iter().filter(|version| !enabled.contains_key(version));
        self.changed_keys.extend(more.map(|version| format!("{name}/{version}: new")));
    }

    fn compare_roles(&mut self, index: &Index, roles: &Roles) {
        let table = index.roles();
        let now: BTreeMap<Guid, &RoleAssignment> =
            table.assignments().map(|assignment| (assignment.name, assignment)).collect();
        let only_in = |one: &BTreeMap<Guid, &RoleAssignment>, other: &BTreeMap<Guid, &RoleAssignment>| {
            let differs = |(name, held): &(&Guid, &&RoleAssignment)| other.get(*name) != Some(*held);
            one.iter().filter(differs).map(|(_, held)| describe(held)).collect::<Vec<_>>()
        };
        let then: BTreeMap<Guid, &RoleAssignment> =
            roles.assignments.iter().map(|(name, held)| (*name, held)).collect();
        self.new_roles = only_in(&then, &now);
        self.lost_roles = only_in(&now, &then);
        let custom: BTreeMap<Guid, CustomRole> = table
            .roles()
            .filter_map(|role| match role {
                Role::Custom(role) => Some((role.id(), CustomRole::clone(&role))),
                Role::BuiltIn(_) => None,
            })
            .collect();
        let definition = |role: &CustomRole| format!("definition {} ({})", role.id(), role.name());
        let new = roles.custom.values().filter(|role| custom.get(&role.id()) != Some(role));
        self.new_roles.extend(new.map(definition));
        let lost = custom.values().filter(|role| roles.custom.get(&role.id()) != Some(role));
        self.lost_roles.extend(lost.map(definition));
    }

    /// Destroys what purge protection keeps.
    pub fn destroys(&self) -> Option<&str> {
        self.lost_keys.first().or(self.lost_versions.first()).map(String::as_str)
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
        let lists = || lists.into_iter().filter(|(_, list)| !list.is_empty());
        let counts = lists().map(|(what, list)| format!("{} {what}", list.len()));
        let named = lists().map(|(what, list)| {
            let named = list.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            format!("{what}: {named}{}", if list.len() > NAMED { ", \u{2026}" } else { "" })
        });
        let roles = format!("roles are {roles}");
        let counts: Vec<_> = std::iter::once(roles).chain(counts).collect();
        std::iter::once(counts.join(", ")).chain(named).collect::<Vec<_>>().join("; ")
    }
}

fn describe(assignment: &RoleAssignment) -> String {
    let RoleAssignment { name: _, scope, role, principal } = assignment;
    let known = BuiltInRole::by_id(*role).map(|role| role.name().to_owned());
    let role = known.unwrap_or_else(|| role.to_string());
    format!("{role} for {principal} at {scope}")
}
