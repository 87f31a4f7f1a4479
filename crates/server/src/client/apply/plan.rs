//! What has to be changed so that a pool is what a file says: each change is one request, in the order in which they are
//! made. Asks the pool, changes nothing.

use super::super::release::{described, held_policy, policy_body as release_body};
use super::super::role::{self, AUTHORIZATION};
use super::super::{Refused, list, setting};
use super::Clients;
use super::file::{Wanted, WantedAssignment, WantedKey, WantedRelease, WantedRole};
use crate::CommandError;
use api_data::lifetime_actions;
use domain::access::{BuiltInRole, DataAction, Role, RoleAssignment, RoleTable, Scope};
use domain::algorithm::KeySpec;
use domain::guid::Guid;
use domain::key::KeyOperation;
use domain::name::KeyName;
use domain::release::ReleasePolicy;
use domain::rotation::RotationPolicy;
use domain::setting::SettingValue;
use http::Method;
use serde_json::{Map, Value, json};
use service::{Random, SystemRandom};
use std::collections::BTreeSet;
use std::fmt;

/// By whose right a change is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Who {
    App,
    Admin,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    Create,
    Update,
    Delete,
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
        }
    }
}

/// One request, and what it is for.
#[derive(Debug)]
pub struct Change {
    pub action: Action,
    pub kind: &'static str,
    pub name: String,
    pub detail: String,
    pub who: Who,
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.action {
            Action::Create => '+',
            Action::Update => '~',
            Action::Delete => '-',
        };
        write!(f, "{sign} {} {}", self.kind, self.name)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// What has been found so far.
#[derive(Default)]
struct Planner {
    changes: Vec<Change>,
    mistakes: Vec<String>,
}

/// The changes; or each thing in the file that cannot be, given what the pool holds.
pub async fn plan(
    clients: &mut Clients,
    wanted: &Wanted,
    prune: bool,
) -> Result<Result<Vec<Change>, Vec<String>>, CommandError> {
    let mut planner = Planner::default();
    planner.settings(clients, wanted).await?;
    let mut roles = RoleTable::default();
    if wanted.roles.is_some() || wanted.assignments.is_some() {
        roles = role::roles(&mut clients.admin).await?;
    }
    // Deletions come last, those of assignments before those of what they are about.
    let mut deletions = Vec::new();
    if let Some(all) = &wanted.roles {
        planner.roles(&mut roles, all);
        if prune {
            deletions.extend(superfluous_roles(&roles, all));
        }
    }
    let existing: Option<BTreeSet<KeyName>> = match prune {
        true => Some(key_names(clients).await?),
        false => None,
    };
    if let Some(keys) = &wanted.keys {
        for key in keys {
            planner.key(clients, key).await?;
        }
        let named: BTreeSet<&KeyName> = keys.iter().map(|key| &key.name).collect();
        let others = existing.iter().flatten().filter(|name| !named.contains(name));
        deletions.extend(others.map(|name| Change {
            action: Action::Delete,
            kind: "key",
            name: name.to_string(),
            detail: String::new(),
            who: Who::App,
            method: Method::DELETE,
            path: format!("/keys/{name}"),
            body: None,
        }));
    }
    if let Some(assignments) = &wanted.assignments {
        let removed = planner.assignments(clients, assignments, &roles, existing.as_ref()).await?;
        deletions.splice(0..0, removed);
    }
    if planner.mistakes.is_empty() {
        planner.changes.extend(deletions);
        Ok(Ok(planner.changes))
    } else {
        Ok(Err(planner.mistakes))
    }
}

/// An empty text would leave a hole in a sentence.
fn quoted(value: &str) -> String {
    if value.is_empty() { "nothing".to_owned() } else { value.to_owned() }
}

async fn key_names(clients: &mut Clients) -> Result<BTreeSet<KeyName>, CommandError> {
    let items = list::all(&mut clients.app, "/keys").await?;
    let name = |item: &Value| item["kid"].as_str()?.rsplit('/').next()?.parse().ok();
    let names = items.iter().map(name).collect::<Option<_>>();
    names.ok_or_else(|| "the service's answer to /keys holds what is no key".into())
}

impl Planner {
    async fn settings(&mut self, clients: &mut Clients, wanted: &Wanted) -> Result<(), CommandError> {
        if wanted.settings.is_empty() {
            return Ok(());
        }
        let held = setting::all(&mut clients.admin).await?;
        for (setting, value) in &wanted.settings {
            let name = setting.name();
            let now = held.iter().find(|held| held.name.eq_ignore_ascii_case(name));
            let now = now.map(|held| held.value.as_str());
            let (value, same) = match value {
                SettingValue::Boolean(value) => {
                    let value = value.to_string();
                    let same = now.is_some_and(|now| now.eq_ignore_ascii_case(&value));
                    (value, same)
                }
                SettingValue::Text(text) => (text.clone(), now == Some(text.as_str())),
            };
            if same {
                continue;
            }
            self.changes.push(Change {
                action: Action::Update,
                kind: "setting",
                name: name.to_owned(),
                detail: format!("{} becomes {}", quoted(now.unwrap_or("unknown")), quoted(&value)),
                who: Who::Admin,
                method: Method::PATCH,
                path: format!("/settings/{name}"),
                body: Some(json!({ "value": value })),
            });
        }
        Ok(())
    }

    /// New roles are put into `roles`, so that assignments find them.
    fn roles(&mut self, roles: &mut RoleTable, wanted: &[WantedRole]) {
        for wanted in wanted {
            let same_name = |role: &Role| role.name().eq_ignore_ascii_case(&wanted.name);
            let held = roles.roles().find(same_name);
            let (action, id, detail) = match &held {
                Some(Role::BuiltIn(_)) => {
                    self.mistakes.push(format!("roles.{}: a built-in role has this name", wanted.name));
                    continue;
                }
                Some(Role::Custom(role)) if is_same_role(role, wanted) => continue,
                Some(Role::Custom(role)) => (Action::Update, role.id(), "what it allows"),
                None => (Action::Create, SystemRandom.guid(), ""),
            };
            let names = |actions: &[DataAction]| -> Vec<&str> {
                actions.iter().map(|action| action.as_str()).collect()
            };
            let permission = domain::access::Permission {
                data_actions: wanted.allow.clone(),
                not_data_actions: wanted.except.clone(),
            };
            let made = domain::access::CustomRole::new(
                id,
                wanted.name.clone(),
                wanted.description.clone(),
                vec![permission],
            );
            match made {
                Ok(role) => roles.insert_role(role),
                Err(error) => {
                    self.mistakes.push(format!("roles.{}: {error}", wanted.name));
                    continue;
                }
            }
            let body = json!({ "properties": {
                "roleName": wanted.name, "description": wanted.description, "type": "CustomRole",
                "assignableScopes": ["/"],
                "permissions": [{
                    "actions": [], "notActions": [],
                    "dataActions": names(&wanted.allow), "notDataActions": names(&wanted.except),
                }],
            } });
            self.changes.push(Change {
                action,
                kind: "role",
                name: wanted.name.clone(),
                detail: detail.to_owned(),
                who: Who::Admin,
                method: Method::PUT,
                path: format!("{}/{id}", role::path(&Scope::Root, "roleDefinitions")),
                body: Some(body),
            });
        }
    }

    async fn key(&mut self, clients: &mut Clients, wanted: &WantedKey) -> Result<(), CommandError> {
        let name = &wanted.name;
        let place = format!("line {}: keys.{name}", wanted.line);
        let held = match clients.app.call(Method::GET, &format!("/keys/{name}"), None).await {
            Ok(answer) => Some(
                serde_json::from_slice::<Value>(&answer.body)
                    .map_err(|_| format!("the service's answer about {name} is no key"))?,
            ),
            Err(error) if refused(&error).is_some_and(Refused::is_not_found) => None,
            Err(error) => return Err(error),
        };
        let Some(held) = held else {
            if is_deleted(clients, name).await? {
                self.mistakes.push(format!("{place}: a deleted key has this name: recover it, or purge it"));
                return Ok(());
            }
            self.changes.push(Change {
                action: Action::Create,
                kind: "key",
                name: name.to_string(),
                detail: match &wanted.release {
                    Some(release) => format!("{}, exportable {}", wanted.spec, described(&release.policy)),
                    None => wanted.spec.to_string(),
                },
                who: Who::App,
                method: Method::POST,
                path: format!("/keys/{name}/create"),
                body: Some(new_key(wanted)),
            });
            if let Some(policy) = wanted.rotation.as_ref().filter(|policy| !policy.is_empty()) {
                self.changes.push(rotation(Action::Create, name, policy));
            }
            return Ok(());
        };
        if let Some(other) = other_kind(&held["key"], wanted.spec) {
            self.mistakes.push(format!(
                "{place}.type: the pool has a key of this name that is {other}, and {} was asked for: a key's kind never changes",
                wanted.spec
            ));
            return Ok(());
        }
        if let Some(mistake) = unexportable(&held, wanted) {
            self.mistakes.push(format!("{place}.{mistake}"));
            return Ok(());
        }
        let (mut body, differing) = differences(&held, wanted);
        let mut differing: Vec<String> = differing.into_iter().map(str::to_owned).collect();
        if let Some(release) = &wanted.release {
            match release_change(held_policy(&held)?.as_ref(), release) {
                Ok(None) => {}
                Ok(Some(policy)) => {
                    body["release_policy"] = release_body(&policy);
                    differing.push(format!("release_policy ({})", described(&policy)));
                }
                Err(mistake) => {
                    self.mistakes.push(format!("{place}.release_policy: {mistake}"));
                    return Ok(());
                }
            }
        }
        if !differing.is_empty() {
            self.changes.push(Change {
                action: Action::Update,
                kind: "key",
                name: name.to_string(),
                detail: differing.join(", "),
                who: Who::App,
                method: Method::PATCH,
                path: format!("/keys/{name}"),
                body: Some(body),
            });
        }
        if let Some(policy) = &wanted.rotation {
            let answer = clients.app.call(Method::GET, &format!("/keys/{name}/rotationpolicy"), None).await?;
            let held: Value = serde_json::from_slice(&answer.body)
                .map_err(|_| format!("the service's answer about {name} is no rotation policy"))?;
            if !is_same_policy(&held, &policy_body(policy)) {
                self.changes.push(rotation(Action::Update, name, policy));
            }
        }
        Ok(())
    }

    /// The assignments to take away where `existing` says which keys there are.
    async fn assignments(
        &mut self,
        clients: &mut Clients,
        wanted: &[WantedAssignment],
        roles: &RoleTable,
        existing: Option<&BTreeSet<KeyName>>,
    ) -> Result<Vec<Change>, CommandError> {
        let mut resolved: Vec<(&WantedAssignment, Guid, Guid)> = Vec::new();
        for wanted in wanted {
            let principal = role::named(&clients.admin, &wanted.principal);
            let role = wanted.role.parse::<Guid>().or_else(|_| role::role_called(roles, &wanted.role));
            for (member, error) in [("principal", principal.as_ref().err()), ("role", role.as_ref().err())] {
                if let Some(error) = error {
                    self.mistakes.push(format!("line {}: assignments.{member}: {error}", wanted.line));
                }
            }
            if let (Ok(principal), Ok(role)) = (principal, role) {
                resolved.push((wanted, principal, role));
            }
        }
        let mut scopes: Vec<Scope> = Vec::new();
        let everywhere = existing.into_iter().flatten().cloned().map(Scope::Key);
        let everywhere = existing.map(|_| [Scope::Root, Scope::Keys]).into_iter().flatten().chain(everywhere);
        for scope in resolved.iter().map(|(wanted, ..)| wanted.scope.clone()).chain(everywhere) {
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        let mut held = Vec::new();
        for scope in &scopes {
            held.extend(role::assignments(&mut clients.admin, scope).await?);
        }
        let is = |held: &RoleAssignment, (wanted, principal, role): &(&WantedAssignment, Guid, Guid)| {
            held.principal == *principal && held.role == *role && held.scope == wanted.scope
        };
        let mut planned: Vec<(Guid, Guid, &Scope)> = Vec::new();
        for one in &resolved {
            let (wanted, principal, role) = one;
            let key = (*principal, *role, &wanted.scope);
            if held.iter().any(|held| is(held, one)) || planned.contains(&key) {
                continue;
            }
            planned.push(key);
            let id = SystemRandom.guid();
            let role_id = format!("Microsoft.KeyVault/{AUTHORIZATION}/roleDefinitions/{role}");
            self.changes.push(Change {
                action: Action::Create,
                kind: "assignment",
                name: format!("{} at {}", wanted.role, wanted.scope),
                detail: format!("for {}", wanted.principal),
                who: Who::Admin,
                method: Method::PUT,
                path: format!("{}/{id}", role::path(&wanted.scope, "roleAssignments")),
                body: Some(json!({ "properties": {
                    "principalId": principal.to_string(), "roleDefinitionId": role_id,
                } })),
            });
        }
        if existing.is_none() {
            return Ok(Vec::new());
        }
        // Without its administrators nobody could mend what a file got wrong.
        let administrates =
            |held: &RoleAssignment| held.scope == Scope::Root && held.role == BuiltInRole::Administrator.id();
        let superfluous =
            held.iter().filter(|held| !administrates(held) && !resolved.iter().any(|one| is(held, one)));
        let remove = |held: &RoleAssignment| Change {
            action: Action::Delete,
            kind: "assignment",
            name: format!(
                "{} at {}",
                roles.role(held.role).map_or_else(|| held.role.to_string(), |role| role.name().to_owned()),
                held.scope
            ),
            detail: format!("for {}", held.principal),
            who: Who::Admin,
            method: Method::DELETE,
            path: format!("{}/{}", role::path(&held.scope, "roleAssignments"), held.name),
            body: None,
        };
        Ok(superfluous.map(remove).collect())
    }
}

fn superfluous_roles(roles: &RoleTable, wanted: &[WantedRole]) -> Vec<Change> {
    let named = |role: &Role| wanted.iter().any(|wanted| wanted.name.eq_ignore_ascii_case(role.name()));
    let custom = roles.roles().filter(|role| matches!(role, Role::Custom(_)) && !named(role));
    let remove = |role: Role| Change {
        action: Action::Delete,
        kind: "role",
        name: role.name().to_owned(),
        detail: String::new(),
        who: Who::Admin,
        method: Method::DELETE,
        path: format!("{}/{}", role::path(&Scope::Root, "roleDefinitions"), role.id()),
        body: None,
    };
    custom.map(remove).collect()
}

fn is_same_role(held: &domain::access::CustomRole, wanted: &WantedRole) -> bool {
    let sorted = |actions: &[DataAction]| -> BTreeSet<&'static str> {
        actions.iter().map(|action| action.as_str()).collect()
    };
    let [permission] = held.permissions() else { return false };
    held.name() == wanted.name
        && held.description() == wanted.description
        && sorted(&permission.data_actions) == sorted(&wanted.allow)
        && sorted(&permission.not_data_actions) == sorted(&wanted.except)
}

fn refused(error: &CommandError) -> Option<&Refused> {
    error.downcast_ref::<Refused>()
}

/// Who may not see deleted keys learns of one when the key is made.
async fn is_deleted(clients: &mut Clients, name: &KeyName) -> Result<bool, CommandError> {
    for who in [Who::Admin, Who::App] {
        match clients.of(who).call(Method::GET, &format!("/deletedkeys/{name}"), None).await {
            Ok(_) => return Ok(true),
            Err(error) if refused(&error).is_some_and(Refused::is_not_found) => return Ok(false),
            Err(error) if refused(&error).is_some_and(Refused::is_forbidden) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn new_key(wanted: &WantedKey) -> Value {
    let mut body = json!({ "kty": wanted.spec.key_type() });
    match wanted.spec {
        KeySpec::Rsa(size) => body["key_size"] = size.bits().into(),
        KeySpec::Oct(size) => body["key_size"] = size.bits().into(),
        KeySpec::Ec(curve) => body["crv"] = curve.as_str().into(),
    }
    put_members(&mut body, wanted);
    if let Some(release) = &wanted.release {
        body["attributes"]["exportable"] = true.into();
        body["release_policy"] = release_body(&release.policy);
    }
    body
}

/// What stands in the way of `wanted` for ever, and where: whether a key is exportable never changes.
fn unexportable(held: &Value, wanted: &WantedKey) -> Option<&'static str> {
    let exportable = held["attributes"]["exportable"] == true;
    match (exportable, &wanted.release, wanted.exportable) {
        (false, Some(_), _) => Some(
            "release_policy: the pool has a key of this name that is not exportable, which never changes",
        ),
        (true, _, Some(false)) => {
            Some("exportable: the pool has a key of this name that is exportable, which never changes")
        }
        _ => None,
    }
}

/// The policy to set where the held one says something else, or may still be changed and should not.
fn release_change(
    held: Option<&ReleasePolicy>,
    wanted: &WantedRelease,
) -> Result<Option<ReleasePolicy>, &'static str> {
    let Some(held) = held else { return Ok(Some(wanted.policy.clone())) };
    // How it is written is its owner's affair.
    let same = held.policy() == wanted.policy.policy();
    match (held.is_immutable(), same, wanted.immutable) {
        (true, false, _) => Err("the key's policy says something else, and is immutable"),
        (true, true, Some(false)) => Err("the key's policy is immutable, and false was asked for"),
        (true, true, None | Some(true)) | (false, true, None | Some(false)) => Ok(None),
        (false, true, Some(true)) | (false, false, _) => Ok(Some(wanted.policy.clone())),
    }
}

/// What the file names of a key, as the service takes it.
fn put_members(body: &mut Value, wanted: &WantedKey) {
    if let Some(operations) = wanted.operations {
        body["key_ops"] = operations.iter().map(KeyOperation::as_str).collect();
    }
    let dates = [("nbf", wanted.not_before), ("exp", wanted.expires)];
    for (member, date) in dates {
        if let Some(date) = date {
            body["attributes"][member] = date.unix_seconds().into();
        }
    }
    if let Some(enabled) = wanted.enabled {
        body["attributes"]["enabled"] = enabled.into();
    }
    if let Some(tags) = &wanted.tags {
        body["tags"] = tags
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
            .collect::<Map<_, _>>()
            .into();
    }
}

/// A change of what differs from what the service shows, and its names in the file.
fn differences(held: &Value, wanted: &WantedKey) -> (Value, Vec<&'static str>) {
    let mut whole = json!({});
    put_members(&mut whole, wanted);
    let (mut body, mut differing) = (json!({}), Vec::new());
    for (name, pointer) in [
        ("ops", "/key/key_ops"),
        ("enabled", "/attributes/enabled"),
        ("not_before", "/attributes/nbf"),
        ("expires", "/attributes/exp"),
        ("tags", "/tags"),
    ] {
        // In the request `key_ops` stands beside `attributes`.
        let asked =
            whole.pointer(pointer.strip_prefix("/key").filter(|rest| *rest == "/key_ops").unwrap_or(pointer));
        let Some(asked) = asked else { continue };
        let shown = held.pointer(pointer).cloned().unwrap_or(match name {
            "tags" => json!({}),
            _ => Value::Null,
        });
        let same = match name {
            "ops" => words(asked) == words(&shown),
            _ => *asked == shown,
        };
        if same {
            continue;
        }
        differing.push(name);
        let member = pointer.rsplit('/').next().unwrap_or_default();
        match pointer.starts_with("/attributes/") {
            true => body["attributes"][member] = asked.clone(),
            false => body[member] = asked.clone(),
        }
    }
    (body, differing)
}

fn words(list: &Value) -> BTreeSet<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// What the key is instead of `wanted`, as far as the service shows it: of symmetric keys it does not show the size.
fn other_kind(key: &Value, wanted: KeySpec) -> Option<String> {
    let kind = key["kty"].as_str().unwrap_or("of no type");
    let bits = || {
        let modulus = key["n"].as_str().and_then(|text| super::super::input::decode("n", text).ok());
        modulus.map_or(0, |modulus| modulus.len() * 8)
    };
    let shown = match wanted {
        KeySpec::Rsa(_) if kind == wanted.key_type() => format!("{kind} {}", bits()),
        KeySpec::Ec(_) if kind == wanted.key_type() => {
            format!("{kind} {}", key["crv"].as_str().unwrap_or_default())
        }
        KeySpec::Oct(_) if kind == wanted.key_type() => return None,
        KeySpec::Rsa(_) | KeySpec::Ec(_) | KeySpec::Oct(_) => kind.to_owned(),
    };
    (shown != wanted.to_string()).then_some(shown)
}

fn rotation(action: Action, name: &KeyName, policy: &RotationPolicy) -> Change {
    Change {
        action,
        kind: "rotation policy",
        name: name.to_string(),
        detail: String::new(),
        who: Who::App,
        method: Method::PUT,
        path: format!("/keys/{name}/rotationpolicy"),
        body: Some(policy_body(policy)),
    }
}

/// As the service takes and shows it (behaviour section 7.1).
fn policy_body(policy: &RotationPolicy) -> Value {
    let mut body = json!({ "lifetimeActions": lifetime_actions(policy) });
    body["attributes"] = json!({});
    if let Some(period) = policy.expiry() {
        body["attributes"]["expiryTime"] = period.to_string().into();
    }
    body
}

/// In whatever order the actions stand.
fn is_same_policy(held: &Value, wanted: &Value) -> bool {
    let actions = |policy: &Value| -> BTreeSet<String> {
        policy["lifetimeActions"].as_array().into_iter().flatten().map(Value::to_string).collect()
    };
    actions(held) == actions(wanted) && held["attributes"]["expiryTime"] == wanted["attributes"]["expiryTime"]
}
