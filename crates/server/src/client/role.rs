//! `holdfast role`: who may do what, over the wire API alone.

use super::explain::{self, Question, Role, Verdict};
use super::login::{self, Client, Target};
use super::output::{self, Format, Table};
use super::{Refused, list, run as run_client, usage};
use crate::CommandError;
use crate::environment::word;
use crate::output::line;
use clap::Subcommand;
use domain::access::{BuiltInRole, DataAction, RoleAssignment, Scope};
use domain::guid::Guid;
use domain::principal::ObjectId;
use http::Method;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use service::{Random, SystemRandom};
use std::process::ExitCode;

const AUTHORIZATION: &str = "providers/Microsoft.Authorization";

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    login: login::Arguments,
    #[command(flatten)]
    output: output::Arguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the assignments made at a scope itself, not those above or below it.
    List {
        /// `/`, `/keys` or `/keys/NAME`.
        #[arg(long, default_value = "/", value_parser = parse_scope)]
        scope: Scope,
    },
    /// List the roles and what each allows.
    Definitions,
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

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        let client = &mut client;
        match arguments.command {
            Command::List { scope } => print_assignments(client, &scope, format).await,
            Command::Definitions => print_definitions(client, format).await,
            Command::Assign { principal, role, scope } => {
                assign(client, &principal, &role, &scope, format).await
            }
            Command::Remove { id, scope } => {
                let path = format!("{}/{id}", path(&scope, "roleAssignments"));
                let answer = client.call(Method::DELETE, &path, None).await?;
                match format {
                    Format::Json => output::print_body(&answer.body)?,
                    Format::Table => line(format_args!("removed {id}"))?,
                }
                Ok(ExitCode::SUCCESS)
            }
            Command::Explain { principal, action, scope, groups } => {
                let principal = named(client, &principal)?;
                let question = Question { principal, groups: &groups, action, scope: &scope };
                answer(client, &question, format).await
            }
        }
    })
}

fn path(scope: &Scope, kind: &str) -> String {
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
    #[serde(rename = "type", default)]
    kind: String,
    permissions: Vec<Permission>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Permission {
    #[serde(default)]
    data_actions: Vec<String>,
    #[serde(default)]
    not_data_actions: Vec<String>,
}

impl Definition {
    fn parse(item: &Value) -> Result<Self, CommandError> {
        Self::deserialize(item).map_err(|_| "the service's answer holds what is no role definition".into())
    }

    fn role(&self) -> Role {
        let names = |names: &[String], action: DataAction| {
            names.iter().any(|name| name.eq_ignore_ascii_case(action.as_str()))
        };
        let granted = |action: DataAction| {
            self.properties.permissions.iter().any(|permission| {
                names(&permission.data_actions, action) && !names(&permission.not_data_actions, action)
            })
        };
        Role {
            id: self.name,
            name: self.properties.role_name.clone(),
            actions: DataAction::ALL.iter().copied().filter(|action| granted(*action)).collect(),
        }
    }
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

async fn assignments(client: &mut Client, scope: &Scope) -> Result<Vec<RoleAssignment>, CommandError> {
    let items = list::all(client, &path(scope, "roleAssignments")).await?;
    items.iter().map(parse_assignment).collect()
}

async fn definitions(client: &mut Client) -> Result<Vec<Definition>, CommandError> {
    let items = list::all(client, &path(&Scope::Root, "roleDefinitions")).await?;
    items.iter().map(Definition::parse).collect()
}

/// The pool's roles; those that are built in where they may not be read.
async fn roles(client: &mut Client) -> Result<Vec<Role>, CommandError> {
    match definitions(client).await {
        Ok(definitions) => Ok(definitions.iter().map(Definition::role).collect()),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(Refused::is_forbidden) => {
            Ok(BuiltInRole::ALL.map(explain::built_in).into())
        }
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
                let role = roles.iter().find(|role| role.id == held.role);
                table.row([
                    held.name.to_string(),
                    show_principal(client, held.principal),
                    role.map_or_else(|| format!("{} (no such role)", held.role), |role| role.name.clone()),
                    held.scope.to_string(),
                ]);
            }
            table.print()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn print_definitions(client: &mut Client, format: Format) -> Result<ExitCode, CommandError> {
    let items = list::all(client, &path(&Scope::Root, "roleDefinitions")).await?;
    match format {
        Format::Json => list::print(&items)?,
        Format::Table => {
            let mut table = Table::new(&["ROLE", "ID", "TYPE", "ALLOWS"]);
            for item in &items {
                let definition = Definition::parse(item)?;
                let role = definition.role();
                let actions: Vec<_> =
                    role.actions.iter().map(|action| explain::show_action(*action)).collect();
                let kind = match definition.properties.kind.as_str() {
                    "CustomRole" => "custom",
                    _ => "built in",
                };
                table.row([role.name, role.id.to_string(), kind.to_owned(), actions.join(" ")]);
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
    let body = json!({ "properties": { "principalId": principal.to_string(), "roleDefinitionId": role_definition_id } });
    let path = format!("{}/{id}", path(scope, "roleAssignments"));
    let answer = client.call(Method::PUT, &path, Some(body.to_string().into())).await?;
    match format {
        Format::Json => output::print_body(&answer.body)?,
        Format::Table => line(format_args!("assigned, as {id}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A role by its name, whole or without what the built-in ones all begin with.
fn role_called(roles: &[Role], name: &str) -> Result<Guid, CommandError> {
    let is = |role: &&Role| {
        let bare = role.name.strip_prefix("Managed HSM ").unwrap_or(&role.name);
        role.name.eq_ignore_ascii_case(name) || bare.eq_ignore_ascii_case(name)
    };
    let mut found = roles.iter().filter(is);
    match (found.next(), found.next()) {
        (Some(role), None) => Ok(role.id),
        (Some(_), Some(_)) => Err(usage(format!("more than one role is called `{name}`: give its id"))),
        (None, _) => {
            let names: Vec<_> = roles.iter().map(|role| output::clean(&role.name)).collect();
            Err(usage(format!("no role is called `{name}`; there are {}", names.join(", "))))
        }
    }
}

/// A principal by its object id, or by the name that it has here.
fn named(client: &Client, text: &str) -> Result<ObjectId, CommandError> {
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

fn show_principal(client: &Client, id: ObjectId) -> String {
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
    let mut held = Vec::new();
    for scope in explain::scopes_above(question.scope) {
        held.extend(assignments(client, &scope).await?);
    }
    let roles = roles(client).await?;
    let verdict = explain::answer(question, &held, &roles);
    match format {
        Format::Json => line(format_args!("{}", verdict_json(question, &verdict)))?,
        Format::Table => print_verdict(client, question, &verdict)?,
    }
    Ok(if verdict.allowing.is_empty() { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn verdict_json(question: &Question<'_>, verdict: &Verdict<'_>) -> Value {
    let assignment = |held: &RoleAssignment, role: Option<&Role>| {
        json!({
            "id": held.name.to_string(),
            "principalId": held.principal.to_string(),
            "roleId": held.role.to_string(),
            "roleName": role.map(|role| role.name.as_str()),
            "scope": held.scope.to_string(),
        })
    };
    let would_help = verdict.smallest.filter(|_| verdict.allowing.is_empty()).map(|role| {
        json!({ "roleId": role.id.to_string(), "roleName": role.name, "scope": question.scope.to_string() })
    });
    json!({
        "allowed": !verdict.allowing.is_empty(),
        "principalId": question.principal.to_string(),
        "dataAction": question.action.as_str(),
        "scope": question.scope.to_string(),
        "allowedBy": verdict.allowing.iter().map(|(held, role)| assignment(held, Some(role))).collect::<Vec<_>>(),
        "otherAssignments": verdict.others.iter().map(|(held, role)| assignment(held, *role)).collect::<Vec<_>>(),
        "wouldHelp": would_help,
    })
}

fn print_verdict(
    client: &Client,
    question: &Question<'_>,
    verdict: &Verdict<'_>,
) -> Result<(), CommandError> {
    let Question { principal, groups, action, scope } = question;
    let may = if verdict.allowing.is_empty() { "not allowed" } else { "allowed" };
    line(format_args!("{may}: {} at {scope} for {}", action.as_str(), show_principal(client, *principal)))?;
    let through = |held: &RoleAssignment| {
        if held.principal == *principal {
            String::new()
        } else {
            format!(", through group {}", held.principal)
        }
    };
    for (held, role) in &verdict.allowing {
        line(format_args!(
            "  by {} at {} (assignment {}{})",
            output::clean(&role.name),
            held.scope,
            held.name,
            through(held)
        ))?;
    }
    if !verdict.allowing.is_empty() {
        return Ok(());
    }
    for (held, role) in &verdict.others {
        let name =
            role.map_or_else(|| format!("{}, which is no role", held.role), |role| output::clean(&role.name));
        line(format_args!(
            "  holds {name} at {} (assignment {}{}), which does not allow it",
            held.scope,
            held.name,
            through(held)
        ))?;
    }
    if verdict.others.is_empty() {
        line(format_args!("  holds nothing at {scope} or above"))?;
    }
    if let Some(role) = verdict.smallest {
        line(format_args!("  the smallest that would help: {} at {scope}", output::clean(&role.name)))?;
        line(format_args!(
            "    holdfast role assign --principal {principal} --role {} --scope {scope}",
            word(&role.name)
        ))?;
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
        let roles: Vec<_> = BuiltInRole::ALL.map(explain::built_in).into();
        for name in ["Managed HSM Crypto User", "crypto user", "CRYPTO USER"] {
            assert_eq!(role_called(&roles, name).unwrap(), BuiltInRole::CryptoUser.id(), "{name}");
        }
        assert!(role_called(&roles, "User").unwrap_err().to_string().contains("Managed HSM Backup"));
        let twice = [roles.clone(), roles].concat();
        assert!(role_called(&twice, "Backup").unwrap_err().to_string().contains("more than one"));
    }

    #[test]
    fn a_definition_allows_what_it_names_less_what_it_takes_away() {
        let definition = Definition::parse(&json!({
            "id": "x", "name": BuiltInRole::CryptoUser.id().to_string(), "type": "x",
            "properties": {"roleName": "Signer", "type": "CustomRole", "permissions": [
                {"dataActions": [
                    "microsoft.keyvault/managedHSM/keys/sign/action",
                    "Microsoft.KeyVault/managedHsm/keys/verify/action",
                    "Microsoft.KeyVault/managedHsm/keys/dance/action",
                 ],
                 "notDataActions": ["Microsoft.KeyVault/managedHsm/keys/verify/action"]},
            ]},
        }));
        assert_eq!(definition.unwrap().role().actions, [DataAction::Sign]);
        assert!(Definition::parse(&json!({"name": "nonsense"})).is_err());
    }

    #[test]
    fn the_verdict_names_what_would_help_only_where_help_is_needed() {
        let roles: Vec<_> = BuiltInRole::ALL.map(explain::built_in).into();
        let scope = Scope::parse("/keys/k").unwrap();
        let principal = Guid([1; 16]);
        let question = Question { principal, groups: &[], action: DataAction::Sign, scope: &scope };
        let refused = verdict_json(&question, &explain::answer(&question, &[], &roles));
        assert_eq!(refused["allowed"], false);
        assert_eq!(refused["wouldHelp"]["roleName"], "Managed HSM Crypto User");
        let role = BuiltInRole::CryptoUser.id();
        let held = [RoleAssignment { name: Guid([2; 16]), scope: Scope::Root, role, principal }];
        let allowed = verdict_json(&question, &explain::answer(&question, &held, &roles));
        assert_eq!(allowed["allowed"], true);
        assert_eq!(allowed["wouldHelp"], Value::Null);
        assert_eq!(allowed["allowedBy"][0]["scope"], "/");
    }
}
