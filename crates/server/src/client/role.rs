//! `holdfast role`: who may do what, over the wire API alone.

use super::connection::Answer;
use super::explain::{self, Question, Verdict};
use super::login::{Client, Target};
use super::output::{self, Format, Table};
use super::{Arguments, Refused, list, run as run_client, usage};
use crate::CommandError;
use crate::environment::word;
use crate::output::{line, verdict};
use clap::Subcommand;
use domain::access::{
    BuiltInRole, CustomRole, DataAction, Permission, Role, RoleAssignment, RoleTable, Scope,
};
use domain::guid::Guid;
use domain::principal::ObjectId;
use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use service::{Random, SystemRandom};
use std::process::ExitCode;
use std::sync::Arc;

pub const AUTHORIZATION: &str = "providers/Microsoft.Authorization";

#[derive(Subcommand)]
pub enum Command {
    /// List the assignments made at a scope itself, not those above or below it.
    List {
        /// `/`, `/keys` or `/keys/NAME`.
        #[arg(long, default_value = "/", value_parser = parse_scope)]
        scope: Scope,
    },
    /// List the roles and what each allows.
    Definitions,
    /// Make a role of your own, or change one.
    Define {
        name: String,
        /// What it allows, comma-separated: data actions in full or by their end, as `sign,verify`.
        #[arg(long, value_name = "ACTIONS", value_delimiter = ',', required = true)]
        #[arg(value_parser = explain::parse_action)]
        allow: Vec<DataAction>,
        #[arg(long, default_value = "")]
        description: String,
        /// The role to change; a new one otherwise.
        #[arg(long)]
        id: Option<Guid>,
    },
    /// Take a role of your own away. Its assignments stay, and give nothing.
    Undefine {
        #[arg(long)]
        id: Guid,
    },
    /// Give a principal a role at a scope.
    Assign {
        /// An object id; or app, admin where they are known.
        #[arg(long)]
        principal: String,
        /// Its name, with or without "Managed HSM", or its id.
        #[arg(long)]
        role: String,
        /// `/`, `/keys` or `/keys/NAME`.
        #[arg(long, value_parser = parse_scope)]
        scope: Scope,
    },
    /// Take an assignment away.
    Remove {
        /// The assignment's own id, as `list` shows it.
        #[arg(long)]
        id: Guid,
        /// Where it was made.
        #[arg(long, value_parser = parse_scope)]
        scope: Scope,
    },
    /// Say whether a principal may do something, by which assignment, or which one would help. Exit code 0: it may; 3: it
    /// may not.
    Explain {
        /// An object id; or app, admin where they are known.
        #[arg(long)]
        principal: String,
        /// A data action, in full or by its end: sign, keys/sign/action, roleAssignments/write.
        #[arg(long, value_parser = explain::parse_action)]
        action: DataAction,
        /// `/`, `/keys` or `/keys/NAME`.
        #[arg(long, value_parser = parse_scope)]
        scope: Scope,
        /// The object id of a group that the principal is in. A pool learns groups from tokens; this command does not.
        #[arg(long = "group", value_name = "ID")]
        groups: Vec<Guid>,
    },
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        let client = &mut client;
        match arguments.command {
            Command::List { scope } => print_assignments(client, &scope, format).await,
            Command::Definitions => print_definitions(client, format).await,
            Command::Define { name, allow, description, id } => {
                let id = id.unwrap_or_else(|| SystemRandom.guid());
                let actions: Vec<_> = allow.iter().map(|action| action.as_str()).collect();
                let permission =
                    json!({ "actions": [], "notActions": [], "dataActions": actions, "notDataActions": [] });
                let body = json!({ "properties": {
                    "roleName": name, "description": description, "type": "CustomRole",
                    "assignableScopes": ["/"], "permissions": [permission],
                } });
                let path = format!("{}/{id}", path(&Scope::Root, "roleDefinitions"));
                let answer = client.call(Method::PUT, &path, Some(body.to_string().into())).await?;
                print_done(&answer, format, &format!("defined, as {id}"))
            }
            Command::Undefine { id } => {
                let path = format!("{}/{id}", path(&Scope::Root, "roleDefinitions"));
                let answer = client.call(Method::DELETE, &path, None).await?;
                print_done(&answer, format, &format!("took {id} away"))
            }
            Command::Assign { principal, role, scope } => {
                assign(client, &principal, &role, &scope, format).await
            }
            Command::Remove { id, scope } => {
                let path = format!("{}/{id}", path(&scope, "roleAssignments"));
                let answer = client.call(Method::DELETE, &path, None).await?;
                print_done(&answer, format, &format!("removed {id}"))
            }
            Command::Explain { principal, action, scope, groups } => {
                let principal = named(client, &principal)?;
                let question = Question { principal, groups: &groups, action, scope: &scope };
                answer(client, &question, format).await
            }
        }
    })
}

pub fn path(scope: &Scope, kind: &str) -> String {
    match scope {
        Scope::Root => format!("/{AUTHORIZATION}/{kind}"),
        Scope::Keys | Scope::Key(_) => format!("{scope}/{AUTHORIZATION}/{kind}"),
    }
}

/// What a definition looks like on the wire, as far as it matters here.
#[derive(Deserialize)]
struct Definition {
    #[serde(deserialize_with = "guid")]
    name: Guid,
    properties: DefinitionProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DefinitionProperties {
    role_name: String,
    #[serde(default)]
    description: String,
    permissions: Vec<PermissionNames>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PermissionNames {
    #[serde(default)]
    data_actions: Vec<String>,
    #[serde(default)]
    not_data_actions: Vec<String>,
}

fn parse_role(item: &Value) -> Result<Role, CommandError> {
    let foreign = "the service's answer holds what is no role definition";
    let Definition { name, properties } = Definition::deserialize(item).map_err(|_| foreign)?;
    if let Some(role) = BuiltInRole::by_id(name) {
        return Ok(Role::BuiltIn(role));
    }
    // Actions that this program does not know are none that it can be asked about.
    let known = |names: &[String]| names.iter().filter_map(|name| DataAction::parse(name)).collect();
    let permission = |names: &PermissionNames| Permission {
        data_actions: known(&names.data_actions),
        not_data_actions: known(&names.not_data_actions),
    };
    let permissions = properties.permissions.iter().map(permission).collect();
    let role = CustomRole::new(name, properties.role_name, properties.description, permissions);
    Ok(Role::Custom(Arc::new(role.map_err(|_| foreign)?)))
}

#[derive(Deserialize)]
struct Assignment {
    #[serde(deserialize_with = "guid")]
    name: Guid,
    properties: AssignmentProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentProperties {
    #[serde(deserialize_with = "guid")]
    principal_id: Guid,
    role_definition_id: String,
    scope: String,
}

fn guid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Guid, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

fn parse_assignment(item: &Value) -> Result<RoleAssignment, CommandError> {
    let foreign = "the service's answer holds what is no role assignment";
    let Assignment { name, properties } = Assignment::deserialize(item).map_err(|_| foreign)?;
    let role = properties.role_definition_id.rsplit('/').next().unwrap_or_default();
    Ok(RoleAssignment {
        name,
        scope: Scope::parse(&properties.scope).map_err(|_| foreign)?,
        role: role.parse().map_err(|_| foreign)?,
        principal: properties.principal_id,
    })
}

pub async fn assignments(client: &mut Client, scope: &Scope) -> Result<Vec<RoleAssignment>, CommandError> {
    let items = list::all(client, &path(scope, "roleAssignments")).await?;
    items.iter().map(parse_assignment).collect()
}

/// The pool's roles. Where they may not be read: those that are built in.
pub async fn roles(client: &mut Client) -> Result<RoleTable, CommandError> {
    let mut table = RoleTable::default();
    match list::all(client, &path(&Scope::Root, "roleDefinitions")).await {
        Ok(items) => {
            for item in &items {
                if let Role::Custom(role) = parse_role(item)? {
                    table.insert_role(Arc::unwrap_or_clone(role));
                }
            }
            Ok(table)
        }
        Err(error) if error.downcast_ref::<Refused>().is_some_and(Refused::is_forbidden) => Ok(table),
        Err(error) => Err(error),
    }
}

async fn print_assignments(
    client: &mut Client,
    scope: &Scope,
    format: Format,
) -> Result<ExitCode, CommandError> {
    let items = list::all(client, &path(scope, "roleAssignments")).await?;
    match format {
        Format::Json => list::print(&items)?,
        Format::Table => {
            let held: Vec<_> = items.iter().map(parse_assignment).collect::<Result<_, _>>()?;
            let roles = roles(client).await?;
            let mut table = Table::new(&["ID", "PRINCIPAL", "ROLE", "SCOPE"]);
            for held in &held {
                table.row([
                    held.name.to_string(),
                    show_principal(client, held.principal),
                    show_role(held, roles.role(held.role).as_ref()),
                    held.scope.to_string(),
                ]);
            }
            table.print()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_role(held: &RoleAssignment, role: Option<&Role>) -> String {
    role.map_or_else(|| format!("{} (no such role)", held.role), |role| output::clean(role.name()))
}

async fn print_definitions(client: &mut Client, format: Format) -> Result<ExitCode, CommandError> {
    let items = list::all(client, &path(&Scope::Root, "roleDefinitions")).await?;
    match format {
        Format::Json => list::print(&items)?,
        Format::Table => {
            let mut table = Table::new(&["ROLE", "ID", "TYPE", "ALLOWS"]);
            for item in &items {
                let role = parse_role(item)?;
                let kind = match role {
                    Role::BuiltIn(_) => "built in",
                    Role::Custom(_) => "custom",
                };
                let actions: Vec<_> = explain::actions(&role).into_iter().map(explain::show_action).collect();
                table.row([
                    role.name().to_owned(),
                    role.id().to_string(),
                    kind.to_owned(),
                    actions.join(" "),
                ]);
            }
            table.print()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn assign(
    client: &mut Client,
    principal: &str,
    role: &str,
    scope: &Scope,
    format: Format,
) -> Result<ExitCode, CommandError> {
    let principal = named(client, principal)?;
    let role = match role.parse::<Guid>() {
        Ok(id) => id,
        Err(_) => role_called(&roles(client).await?, role)?,
    };
    let id = SystemRandom.guid();
    let role_definition_id = format!("Microsoft.KeyVault/{AUTHORIZATION}/roleDefinitions/{role}");
    let properties = json!({ "principalId": principal.to_string(), "roleDefinitionId": role_definition_id });
    let body = json!({ "properties": properties });
    let path = format!("{}/{id}", path(scope, "roleAssignments"));
    let answer = client.call(Method::PUT, &path, Some(body.to_string().into())).await?;
    print_done(&answer, format, &format!("assigned, as {id}"))
}

fn print_done(answer: &Answer, format: Format, done: &str) -> Result<ExitCode, CommandError> {
    match format {
        Format::Json => output::print_body(&answer.body)?,
        Format::Table => line(format_args!("{done}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A role by its name, whole or without what the built-in ones all begin with.
pub fn role_called(roles: &RoleTable, name: &str) -> Result<Guid, CommandError> {
    let is = |role: &Role| {
        let bare = role.name().strip_prefix("Managed HSM ").unwrap_or(role.name());
        role.name().eq_ignore_ascii_case(name) || bare.eq_ignore_ascii_case(name)
    };
    let mut found = roles.roles().filter(is);
    match (found.next(), found.next()) {
        (Some(role), None) => Ok(role.id()),
        (Some(_), Some(_)) => Err(usage(format!("more than one role is called `{name}`: give its id"))),
        (None, _) => {
            let names: Vec<_> = roles.roles().map(|role| output::clean(role.name())).collect();
            Err(usage(format!("no role is called `{name}`; there are {}", names.join(", "))))
        }
    }
}

/// A principal by its object id, or by the name that it has here.
pub fn named(client: &Client, text: &str) -> Result<ObjectId, CommandError> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let known = &client.target().known;
    known.iter().find(|(name, _)| name == text).map(|(_, id)| *id).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        let known = if names.is_empty() { String::new() } else { format!(" or one of {}", names.join(", ")) };
        usage(format!("`{text}` is not an object id (8-4-4-4-12 hexadecimal digits){known}"))
    })
}

pub fn show_principal(client: &Client, id: ObjectId) -> String {
    match client.target().known.iter().find(|(_, known)| *known == id) {
        Some((name, _)) => format!("{id} ({name})"),
        None => id.to_string(),
    }
}

async fn answer(
    client: &mut Client,
    question: &Question<'_>,
    format: Format,
) -> Result<ExitCode, CommandError> {
    let mut table = roles(client).await?;
    for scope in explain::scopes_above(question.scope) {
        table.insert_all(assignments(client, &scope).await?);
    }
    let found = question.answer(&table);
    let printed = match format {
        Format::Json => line(format_args!("{}", verdict_json(question, &found))).map_err(Into::into),
        Format::Table => print_verdict(client, question, &found),
    };
    verdict(printed, if found.allowing.is_empty() { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn verdict_json(question: &Question<'_>, verdict: &Verdict<'_>) -> Value {
    let assignments = |held: &[(&RoleAssignment, Option<Role>)]| -> Vec<Value> {
        let json = |(held, role): &(&RoleAssignment, Option<Role>)| {
            json!({
                "id": held.name.to_string(),
                "principalId": held.principal.to_string(),
                "roleId": held.role.to_string(),
                "roleName": role.as_ref().map(Role::name),
                "scope": held.scope.to_string(),
            })
        };
        held.iter().map(json).collect()
    };
    let would_help = verdict.smallest.as_ref().filter(|_| verdict.allowing.is_empty()).map(|role| {
        json!({ "roleId": role.id().to_string(), "roleName": role.name(), "scope": question.scope.to_string() })
    });
    json!({
        "allowed": !verdict.allowing.is_empty(),
        "principalId": question.principal.to_string(),
        "dataAction": question.action.as_str(),
        "scope": question.scope.to_string(),
        "allowedBy": assignments(&verdict.allowing),
        "otherAssignments": assignments(&verdict.others),
        "wouldHelp": would_help,
    })
}

fn print_verdict(
    client: &Client,
    question: &Question<'_>,
    verdict: &Verdict<'_>,
) -> Result<(), CommandError> {
    let Question { principal, action, scope, .. } = question;
    let may = if verdict.allowing.is_empty() { "not allowed" } else { "allowed" };
    line(format_args!("{may}: {} at {scope} for {}", action.as_str(), show_principal(client, *principal)))?;
    let shown = |held: &RoleAssignment, role: &Option<Role>| {
        let through = match held.principal == *principal {
            true => String::new(),
            false => format!(", through group {}", held.principal),
        };
        format!("{} at {} (assignment {}{through})", show_role(held, role.as_ref()), held.scope, held.name)
    };
    for (held, role) in &verdict.allowing {
        line(format_args!("  by {}", shown(held, role)))?;
    }
    if !verdict.allowing.is_empty() {
        return Ok(());
    }
    for (held, role) in &verdict.others {
        line(format_args!("  holds {}, which does not allow it", shown(held, role)))?;
    }
    if verdict.others.is_empty() {
        line(format_args!("  holds nothing at {scope} or above"))?;
    }
    print_remedy(question, verdict.smallest.as_ref())
}

fn print_remedy(question: &Question<'_>, smallest: Option<&Role>) -> Result<(), CommandError> {
    let Question { principal, groups, action, scope } = question;
    match smallest {
        Some(role) => {
            line(format_args!("  the smallest that would help: {} at {scope}", output::clean(role.name())))?;
            line(format_args!(
                "    holdfast role assign --principal {principal} --role {} --scope {scope}",
                word(&output::clean(role.name()))
            ))?;
        }
        None => line(format_args!("  no role of this pool allows it"))?,
    }
    if groups.is_empty() {
        line(format_args!("  groups were not looked at: name them with --group"))?;
    }
    if matches!(action, DataAction::RoleAssignmentWrite) {
        line(format_args!(
            "  a break-glass group, where the pool has one, may assign Administrator without holding a role"
        ))?;
    }
    Ok(())
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_the_scope_first() {
        let at = |scope: &str| path(&Scope::parse(scope).unwrap(), "roleAssignments");
        assert_eq!(at("/"), "/providers/Microsoft.Authorization/roleAssignments");
        assert_eq!(at("/keys"), "/keys/providers/Microsoft.Authorization/roleAssignments");
        assert_eq!(at("/keys/k"), "/keys/k/providers/Microsoft.Authorization/roleAssignments");
    }

    #[test]
    fn roles_are_found_by_name_in_any_case_with_or_without_their_beginning() {
        let mut roles = RoleTable::default();
        for name in ["Managed HSM Crypto User", "crypto user", "CRYPTO USER"] {
            assert_eq!(role_called(&roles, name).unwrap(), BuiltInRole::CryptoUser.id(), "{name}");
        }
        assert!(role_called(&roles, "User").unwrap_err().to_string().contains("Managed HSM Backup"));
        roles.insert_role(CustomRole::new(Guid([1; 16]), "Backup".into(), String::new(), vec![]).unwrap());
        assert!(role_called(&roles, "Backup").unwrap_err().to_string().contains("more than one"));
    }

    #[test]
    fn a_definition_is_read_without_what_is_not_known() {
        let definition = |name: &str| {
            parse_role(&json!({
                "id": "x", "name": name, "type": "x",
                "properties": {"roleName": "Signer", "type": "CustomRole", "permissions": [
                    {"dataActions": [
                        "microsoft.keyvault/managedHSM/keys/sign/action",
                        "Microsoft.KeyVault/managedHsm/keys/verify/action",
                        "Microsoft.KeyVault/managedHsm/keys/dance/action",
                     ],
                     "notDataActions": ["Microsoft.KeyVault/managedHsm/keys/verify/action"]},
                ]},
            }))
        };
        let custom = definition("01010101-0101-0101-0101-010101010101").unwrap();
        assert_eq!((custom.name(), explain::actions(&custom)), ("Signer", vec![DataAction::Sign]));
        let built_in = definition(&BuiltInRole::Backup.id().to_string()).unwrap();
        assert_eq!(built_in, Role::BuiltIn(BuiltInRole::Backup));
        assert!(definition("nonsense").is_err());
    }

    #[test]
    fn the_verdict_names_what_would_help_only_where_help_is_needed() {
        let scope = Scope::parse("/keys/k").unwrap();
        let principal = Guid([1; 16]);
        let question = Question { principal, groups: &[], action: DataAction::Sign, scope: &scope };
        let refused = verdict_json(&question, &question.answer(&RoleTable::default()));
        assert_eq!(refused["allowed"], false);
        assert_eq!(refused["wouldHelp"]["roleName"], "Managed HSM Crypto User");
        let role = BuiltInRole::CryptoUser.id();
        let held = RoleAssignment { name: Guid([2; 16]), scope: Scope::Root, role, principal };
        let allowed = verdict_json(&question, &question.answer(&RoleTable::new([held])));
        assert_eq!(allowed["allowed"], true);
        assert_eq!(allowed["wouldHelp"], Value::Null);
        assert_eq!(allowed["allowedBy"][0]["scope"], "/");
    }
}
