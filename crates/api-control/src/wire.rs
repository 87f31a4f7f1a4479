//! Bodies: what clients send, parsed once, and what they read.

use crate::problem::Problem;
use crate::route::PoolPart;
use crate::{Control, ControlConfig};
use fabric::pools::{FabricConfig, Life, POOL_TYPE, PoolRecord};
use fabric::private_link::{ConnectionState, ENDPOINT_TYPE, EndpointRecord};
use fabric::{
    Assignment, CreateEndpoint, CreateMode, CreatePool, InstanceState, Network, PoolResource, Role, Scope,
    UpdateNetwork, UpdatePool,
};
use identity::query_value;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// From this version on the endpoints are one object, before it a list of them.
const ONE_OBJECT_SINCE: &str = "2022-09-01";
const IP_RULES: &str = "a list of objects with a member 'value' such as '192.0.2.0/24'";
/// Of a managed HSM, the one part of it that a private endpoint can lead to.
const LINK_GROUP: &str = "managedhsm";
/// The virtual network whose subnets are the private networks that the operator named.
const VIRTUAL_NETWORK: &str = "private";
const VAULT_TYPE: &str = "Microsoft.KeyVault/vaults";

pub fn list(value: Vec<Value>) -> Value {
    json!({"value": value})
}

pub fn endpoints(control: &Control, query: &str) -> Value {
    let config = &control.config;
    let graph = format!("{}/", config.graph);
    let endpoints = json!({
        "name": control.fabric.config.name,
        "portal": config.base_url,
        "resourceManager": config.base_url,
        "authentication": {
            "loginEndpoint": config.authority,
            "audiences": config.audiences,
            "tenant": control.fabric.config.tenant,
            "identityProvider": "AAD",
        },
        "graph": graph,
        "graphAudience": graph,
        "microsoftGraphResourceId": graph,
        "suffixes": {
            "mhsmDns": config.pool_suffix,
            // There are no vaults, but `az` looks at their suffix whatever it is asked.
            "keyVaultDns": format!("vault.{}", config.pool_suffix),
        },
    });
    let is_one =
        query_value(query, "api-version").is_some_and(|version| version.as_str() >= ONE_OBJECT_SINCE);
    if is_one { endpoints } else { Value::Array(vec![endpoints]) }
}

pub fn tenant(config: &FabricConfig) -> Value {
    json!({
        "id": format!("/tenants/{}", config.tenant), "tenantId": config.tenant, "tenantCategory": "Home",
        "displayName": config.name, "domains": [],
    })
}

pub fn subscription(config: &FabricConfig) -> Value {
    json!({
        "id": config.subscription_scope().as_str(), "subscriptionId": config.subscription,
        "tenantId": config.tenant, "displayName": config.name, "state": "Enabled",
        "authorizationSource": "RoleBased", "managedByTenants": [],
        "subscriptionPolicies": {"spendingLimit": "Off"},
    })
}

pub fn group(config: &FabricConfig) -> Value {
    json!({
        "id": config.group_scope().as_str(), "name": config.resource_group,
        "type": "Microsoft.Resources/resourceGroups", "location": config.location,
        "properties": {"provisioningState": "Succeeded"},
    })
}

/// Whether pools are asked for. Whatever else a filter says narrows them further, which is the client's to do as well:
/// `az` looks at the names itself.
pub fn resource_filter(query: &str) -> Result<bool, Problem> {
    let Some(filter) = query_value(query, "$filter") else { return Ok(true) };
    let literal =
        filter.trim_start().strip_prefix("resourceType eq '").and_then(|rest| rest.split_once('\''));
    match literal {
        Some((kind, _)) if kind.eq_ignore_ascii_case(POOL_TYPE) => Ok(true),
        Some((kind, _)) if kind.eq_ignore_ascii_case(VAULT_TYPE) => Ok(false),
        Some(_) | None => Err(Problem::invalid("The only filter here is resourceType eq 'TYPE'.".to_owned())),
    }
}

pub fn operations() -> Value {
    let operation = |name: &str, what: &str| {
        json!({
            "name": name, "isDataAction": false,
            "display": {"provider": "Microsoft Key Vault", "resource": "Managed HSM", "operation": what, "description": what},
        })
    };
    list(vec![
        operation("Microsoft.KeyVault/managedHSMs/read", "View managed HSMs"),
        operation("Microsoft.KeyVault/managedHSMs/write", "Create or update a managed HSM"),
        operation("Microsoft.KeyVault/managedHSMs/delete", "Delete a managed HSM"),
        operation("Microsoft.KeyVault/locations/deletedManagedHsms/read", "View deleted managed HSMs"),
        operation(
            "Microsoft.KeyVault/locations/deletedManagedHsms/purge/action",
            "Purge a deleted managed HSM",
        ),
        operation("Microsoft.KeyVault/checkMhsmNameAvailability/action", "Check a name"),
        operation(
            "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/read",
            "View private endpoint connections",
        ),
        operation(
            "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/write",
            "Approve or reject a private endpoint connection",
        ),
        operation(
            "Microsoft.KeyVault/managedHSMs/privateEndpointConnections/delete",
            "Delete a private endpoint connection",
        ),
        operation(
            "Microsoft.KeyVault/managedHSMs/privateEndpointConnectionsApproval/action",
            "Have a private endpoint connect without waiting for approval",
        ),
    ])
}

pub fn pool(config: &FabricConfig, pool: &PoolResource) -> Value {
    let record = &pool.record;
    let provisioning = match record.life {
        Life::Creating => "Provisioning",
        Life::Present => "Succeeded",
        Life::Deleted { .. } | Life::Purging => "Deleting",
    };
    let (activation, message) = match pool.state {
        InstanceState::Active => ("Active", "Your HSM has been activated and can be used to manage keys."),
        InstanceState::NotActivated => (
            "NotActivated",
            "Your HSM has been provisioned, but not activated. Download its security domain.",
        ),
        InstanceState::Starting | InstanceState::Stopped => ("Unknown", "The HSM does not serve at present."),
    };
    let connections: Vec<Value> =
        pool.connections.iter().map(|held| short_connection(config, held)).collect();
    json!({
        "id": config.pool_scope(&record.name).as_str(),
        "name": record.name,
        "type": POOL_TYPE,
        "location": config.location,
        "sku": {"family": "B", "name": "Standard_B1"},
        "tags": record.tags,
        "systemData": {"createdBy": record.created_by, "createdAt": date(record.created_at)},
        "properties": {
            "tenantId": config.tenant,
            "hsmUri": pool.uri,
            "initialAdminObjectIds": record.administrators,
            "enableSoftDelete": true,
            "softDeleteRetentionInDays": record.retention_days,
            "enablePurgeProtection": record.purge_protection,
            "createMode": "default",
            "provisioningState": provisioning,
            "statusMessage": message,
            "networkAcls": network_acls(&record.network),
            "publicNetworkAccess": if record.network.public_access { "Enabled" } else { "Disabled" },
            "regions": [],
            "privateEndpointConnections": connections,
            "securityDomainProperties": {"activationStatus": activation, "activationStatusMessage": message},
        },
    })
}

fn network_acls(network: &Network) -> Value {
    let ip_rules: Vec<Value> = network.ip_rules.iter().map(|rule| json!({"value": rule})).collect();
    json!({
        "bypass": if network.bypass { "AzureServices" } else { "None" },
        "defaultAction": if network.deny_by_default { "Deny" } else { "Allow" },
        "ipRules": ip_rules,
        "virtualNetworkRules": [],
    })
}

pub fn part(config: &FabricConfig, control: &ControlConfig, pool: &PoolResource, part: PoolPart) -> Value {
    match part {
        PoolPart::Regions => list(vec![json!({
            "name": config.location, "isPrimary": true, "provisioningState": "Succeeded",
        })]),
        PoolPart::PrivateLinkResources => list(vec![json!({
            "id": format!("{}/privateLinkResources/{LINK_GROUP}", config.pool_scope(&pool.record.name)),
            "name": LINK_GROUP,
            "type": "Microsoft.KeyVault/managedHSMs/privateLinkResources",
            "location": config.location,
            "properties": {
                "groupId": LINK_GROUP,
                "requiredMembers": ["default"],
                // The pool's own name is what has to lead to the endpoint.
                "requiredZoneNames": [control.pool_suffix.split(':').next().unwrap_or_default()],
            },
        })]),
    }
}

pub fn connection(config: &FabricConfig, held: &EndpointRecord) -> Value {
    let mut shown = short_connection(config, held);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("name".into(), held.name.as_str().into());
        shown.insert("type".into(), "Microsoft.KeyVault/managedHSMs/privateEndpointConnections".into());
        shown.insert("location".into(), config.location.as_str().into());
    }
    shown
}

/// As a pool shows it.
fn short_connection(config: &FabricConfig, held: &EndpointRecord) -> Value {
    json!({
        "id": config.connection_scope(&held.pool, &held.name).as_str(),
        "properties": {
            "privateEndpoint": {"id": config.endpoint_scope(&held.name).as_str()},
            "privateLinkServiceConnectionState": connection_state(held),
            "provisioningState": match held.state {
                ConnectionState::Disconnected => "Disconnected",
                ConnectionState::Pending | ConnectionState::Approved | ConnectionState::Rejected => "Succeeded",
            },
        },
    })
}

fn connection_state(held: &EndpointRecord) -> Value {
    let status = match held.state {
        ConnectionState::Pending => "Pending",
        ConnectionState::Approved => "Approved",
        ConnectionState::Rejected => "Rejected",
        ConnectionState::Disconnected => "Disconnected",
    };
    json!({"status": status, "description": held.description, "actionsRequired": "None"})
}

pub fn private_endpoint(config: &FabricConfig, held: &EndpointRecord) -> Value {
    let id = config.endpoint_scope(&held.name);
    let which =
        if held.manual { "manualPrivateLinkServiceConnections" } else { "privateLinkServiceConnections" };
    let connection = json!({
        "id": format!("{id}/{which}/{}", held.connection_name),
        "name": held.connection_name,
        "type": format!("{ENDPOINT_TYPE}/{which}"),
        "properties": {
            "provisioningState": "Succeeded",
            "privateLinkServiceId": config.pool_scope(&held.pool).as_str(),
            "groupIds": [LINK_GROUP],
            "requestMessage": held.request_message,
            "privateLinkServiceConnectionState": connection_state(held),
        },
    });
    let (manual, automatic) =
        if held.manual { (vec![connection], vec![]) } else { (vec![], vec![connection]) };
    json!({
        "id": id.as_str(),
        "name": held.name,
        "type": ENDPOINT_TYPE,
        "location": config.location,
        "properties": {
            "provisioningState": "Succeeded",
            "subnet": {"id": format!(
                "{}/providers/Microsoft.Network/virtualNetworks/{VIRTUAL_NETWORK}/subnets/{}",
                config.group_scope(), held.network
            )},
            "ipConfigurations": [],
            "networkInterfaces": [],
            "customDnsConfigs": [],
            "privateLinkServiceConnections": automatic,
            "manualPrivateLinkServiceConnections": manual,
        },
    })
}

pub fn deleted(config: &FabricConfig, record: &PoolRecord) -> Value {
    let (at, purge_at) = record.deleted().unwrap_or_default();
    let (location, name) = (&config.location, &record.name);
    json!({
        "id": format!(
            "{}/providers/Microsoft.KeyVault/locations/{location}/deletedManagedHSMs/{name}",
            config.subscription_scope()
        ),
        "name": name,
        "type": "Microsoft.KeyVault/deletedManagedHSMs",
        "properties": {
            "mhsmId": config.pool_scope(name).as_str(),
            "location": location,
            "deletionDate": date(at),
            "scheduledPurgeDate": date(purge_at),
            "purgeProtectionEnabled": record.purge_protection,
            "tags": record.tags,
        },
    })
}

// --- bodies of requests

/// Members that are only read are passed over: clients send back what they were given.
pub fn create(body: &Value) -> Result<CreatePool, Problem> {
    let UpdatePool { administrators, retention_days, purge_protection, tags, network } = update(body)?;
    let properties = body.get("properties").unwrap_or(&Value::Null);
    let mode = match text(properties, "createMode")? {
        None => CreateMode::Default,
        Some(mode) if mode.eq_ignore_ascii_case("default") => CreateMode::Default,
        Some(mode) if mode.eq_ignore_ascii_case("recover") => CreateMode::Recover,
        Some(_) => return Err(wrong("properties.createMode", "'default' or 'recover'")),
    };
    if let Some(sku) = body.get("sku").filter(|sku| !sku.is_null()) {
        let (family, name) = (text(sku, "family")?, text(sku, "name")?);
        if family != Some("B") || !matches!(name, Some("Standard_B1" | "Custom_B32" | "Custom_B6")) {
            return Err(wrong("sku", "{\"family\": \"B\", \"name\": \"Standard_B1\"}"));
        }
    }
    Ok(CreatePool {
        mode,
        location: text(body, "location")?.map(|location| location.replace(' ', "")),
        tenant: text(properties, "tenantId")?.map(str::to_owned),
        administrators,
        retention_days,
        purge_protection,
        tags,
        network,
    })
}

pub fn update(body: &Value) -> Result<UpdatePool, Problem> {
    let none = Value::Null;
    let properties = body.get("properties").unwrap_or(&none);
    if !properties.is_null() && !properties.is_object() {
        return Err(wrong("properties", "an object"));
    }
    let network = network(properties)?;
    if properties.get("enableSoftDelete").is_some_and(|value| value == &Value::Bool(false)) {
        return Err(wrong("properties.enableSoftDelete", "true"));
    }
    let administrators = match member(properties, "initialAdminObjectIds") {
        None => None,
        Some(Value::Array(ids)) => Some(ids.iter().map(object_id).collect::<Result<Vec<_>, _>>()?),
        Some(_) => return Err(wrong("properties.initialAdminObjectIds", "a list of object ids")),
    };
    // `az` sends it as a string.
    let retention_days = match member(properties, "softDeleteRetentionInDays") {
        None => None,
        Some(value) => {
            let days = value.as_u64().or_else(|| value.as_str()?.parse().ok());
            let days = days.and_then(|days| u8::try_from(days).ok()).filter(|days| (7..=90).contains(days));
            Some(days.ok_or_else(|| wrong("properties.softDeleteRetentionInDays", "7 to 90"))?)
        }
    };
    let purge_protection = match member(properties, "enablePurgeProtection") {
        None => None,
        Some(Value::Bool(value)) => Some(*value),
        Some(_) => return Err(wrong("properties.enablePurgeProtection", "true or false")),
    };
    let tags = match member(body, "tags") {
        None => None,
        Some(Value::Object(tags)) => {
            let pair = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            let tags = tags.iter().map(pair).collect::<Option<BTreeMap<_, _>>>();
            Some(tags.ok_or_else(|| wrong("tags", "an object of strings"))?)
        }
        Some(_) => return Err(wrong("tags", "an object of strings")),
    };
    Ok(UpdatePool { administrators, retention_days, purge_protection, tags, network })
}

/// Rules of kinds that a managed HSM does not have are refused: one that nobody enforces would be worse than none.
fn network(properties: &Value) -> Result<UpdateNetwork, Problem> {
    let is_list_with_any = |value: Option<&Value>| value.is_some_and(|value| value != &json!([]));
    if is_list_with_any(member(properties, "regions")) {
        return Err(Problem::invalid("properties.regions is not supported: there is one region.".to_owned()));
    }
    let public_access =
        choice(properties, "properties.", "publicNetworkAccess", [("Enabled", true), ("Disabled", false)])?;
    let Some(rules) = member(properties, "networkAcls") else {
        return Ok(UpdateNetwork { public_access, ..UpdateNetwork::default() });
    };
    if !rules.is_object() {
        return Err(wrong("properties.networkAcls", "an object"));
    }
    for name in ["virtualNetworkRules", "serviceTags"] {
        if is_list_with_any(member(rules, name)) {
            return Err(Problem::invalid(format!(
                "properties.networkAcls.{name} must be empty: a managed HSM has IP rules only."
            )));
        }
    }
    let ip_rules = match member(rules, "ipRules") {
        None => None,
        Some(Value::Array(rules)) => {
            let value = |rule: &Value| rule.get("value")?.as_str().map(str::to_owned);
            let rules = rules.iter().map(value).collect::<Option<Vec<_>>>();
            Some(rules.ok_or_else(|| wrong("properties.networkAcls.ipRules", IP_RULES))?)
        }
        Some(_) => return Err(wrong("properties.networkAcls.ipRules", IP_RULES)),
    };
    let place = "properties.networkAcls.";
    Ok(UpdateNetwork {
        deny_by_default: choice(rules, place, "defaultAction", [("Deny", true), ("Allow", false)])?,
        bypass: choice(rules, place, "bypass", [("AzureServices", true), ("None", false)])?,
        ip_rules,
        public_access,
    })
}

fn choice(
    value: &Value,
    place: &str,
    name: &str,
    choices: [(&str, bool); 2],
) -> Result<Option<bool>, Problem> {
    let Some(value) = member(value, name) else { return Ok(None) };
    let chosen =
        choices.iter().find(|(word, _)| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(word)));
    let [first, second] = choices.map(|(word, _)| word);
    match chosen {
        Some((_, meaning)) => Ok(Some(*meaning)),
        None => Err(wrong(&format!("{place}{name}"), &format!("'{first}' or '{second}'"))),
    }
}

/// `null` is as good as absent.
fn member<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).filter(|value| !value.is_null())
}

fn text<'a>(value: &'a Value, name: &str) -> Result<Option<&'a str>, Problem> {
    match member(value, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong(name, "a string")),
    }
}

fn wrong(name: &str, expected: &str) -> Problem {
    Problem::invalid(format!("{name} must be {expected}."))
}

fn object_id(value: &Value) -> Result<String, Problem> {
    let id = value.as_str().filter(|id| is_guid(id)).map(str::to_ascii_lowercase);
    id.ok_or_else(|| wrong("properties.initialAdminObjectIds", "a list of object ids"))
}

pub fn is_guid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// What somebody who may decide on a connection says of it, and why.
pub fn asked_connection(body: &Value) -> Result<(bool, String), Problem> {
    let place = "properties.privateLinkServiceConnectionState";
    let state = member(body, "properties").and_then(|it| member(it, "privateLinkServiceConnectionState"));
    let state = state.ok_or_else(|| wrong(place, "an object"))?;
    let choices = [("Approved", true), ("Rejected", false)];
    let approved = choice(state, &format!("{place}."), "status", choices)?;
    let approved = approved.ok_or_else(|| wrong(&format!("{place}.status"), "'Approved' or 'Rejected'"))?;
    Ok((approved, text(state, "description")?.unwrap_or_default().to_owned()))
}

/// A connection to a pool of the group, from a subnet of its one virtual network.
pub fn asked_endpoint(config: &FabricConfig, body: &Value) -> Result<CreateEndpoint, Problem> {
    let none = Value::Null;
    let properties = member(body, "properties").unwrap_or(&none);
    let mut asked = Vec::new();
    for (name, is_manual) in
        [("privateLinkServiceConnections", false), ("manualPrivateLinkServiceConnections", true)]
    {
        match member(properties, name) {
            None => {}
            Some(Value::Array(connections)) => asked.extend(connections.iter().map(|one| (one, is_manual))),
            Some(_) => return Err(wrong(&format!("properties.{name}"), "a list of connections")),
        }
    }
    let [(connection, manual)] = asked[..] else {
        return Err(Problem::invalid(
            "A private endpoint must have one connection, in properties.privateLinkServiceConnections or properties.manualPrivateLinkServiceConnections.".to_owned(),
        ));
    };
    let connection_name = text(connection, "name")?.unwrap_or_default().to_owned();
    let connection = member(connection, "properties").unwrap_or(&none);
    if member(connection, "groupIds").is_some_and(|ids| ids != &json!([LINK_GROUP]) && ids != &json!([])) {
        return Err(wrong("groupIds", &format!("[\"{LINK_GROUP}\"]")));
    }
    let pools = config.pool_scope("");
    let id = text(connection, "privateLinkServiceId")?.unwrap_or_default();
    let pool = below(id, pools.as_str())
        .ok_or_else(|| wrong("privateLinkServiceId", &format!("the id of a managed HSM, {pools}/NAME")))?;
    let subnets = format!(
        "{}/providers/Microsoft.Network/virtualNetworks/{VIRTUAL_NETWORK}/subnets",
        config.group_scope()
    );
    let subnet = member(properties, "subnet").map(|subnet| text(subnet, "id")).transpose()?.flatten();
    let network = below(subnet.unwrap_or_default(), &subnets)
        .ok_or_else(|| wrong("properties.subnet.id", &format!("{subnets}/NAME")))?;
    Ok(CreateEndpoint {
        location: text(body, "location")?.map(|location| location.replace(' ', "")),
        pool: pool.to_owned(),
        network: network.to_ascii_lowercase(),
        manual,
        connection_name,
        request_message: text(connection, "requestMessage")?.unwrap_or_default().to_owned(),
    })
}

/// The one name in `id` after `parent`, without regard to case.
fn below<'a>(id: &'a str, parent: &str) -> Option<&'a str> {
    let id = id.trim_end_matches('/');
    let (before, name) = id.rsplit_once('/')?;
    (before.eq_ignore_ascii_case(parent) && !name.is_empty()).then_some(name)
}

// --- Microsoft.Authorization

pub fn permissions(role: Role) -> Value {
    json!({
        "actions": role.actions(), "notActions": role.not_actions(), "dataActions": [], "notDataActions": [],
    })
}

fn role_definition_id(config: &FabricConfig, role: Role) -> String {
    format!("{}/providers/Microsoft.Authorization/roleDefinitions/{}", config.subscription_scope(), role.id())
}

pub fn role_definition(config: &FabricConfig, role: Role) -> Value {
    json!({
        "id": role_definition_id(config, role),
        "name": role.id(),
        "type": "Microsoft.Authorization/roleDefinitions",
        "properties": {
            "roleName": role.name(), "type": "BuiltInRole", "description": role.name(),
            "assignableScopes": ["/"], "permissions": [permissions(role)],
        },
    })
}

pub fn role_definitions(config: &FabricConfig, query: &str) -> Value {
    let filter = query_value(query, "$filter").unwrap_or_default();
    let name = filter.trim().strip_prefix("roleName eq '").and_then(|rest| rest.strip_suffix('\''));
    let is_asked = |role: &Role| name.is_none_or(|name| role.name().eq_ignore_ascii_case(name));
    list(Role::ALL.into_iter().filter(is_asked).map(|role| role_definition(config, role)).collect())
}

pub fn role_assignment(config: &FabricConfig, held: &Assignment) -> Value {
    json!({
        "id": format!("{}/providers/Microsoft.Authorization/roleAssignments/{}", held.scope, held.id),
        "name": held.id,
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": {
            "roleDefinitionId": role_definition_id(config, held.role),
            "principalId": held.principal,
            "principalType": "ServicePrincipal",
            "scope": held.scope.as_str(),
        },
    })
}

/// The filters that clients use; another is refused, as an answer that passes over it would show too much.
pub fn role_assignments(
    config: &FabricConfig,
    held: &[Assignment],
    scope: &Scope,
    caller: &str,
    query: &str,
) -> Result<Value, Problem> {
    let filter = query_value(query, "$filter").unwrap_or_default();
    let filter = filter.trim();
    let quoted = |prefix: &str, suffix: &str| {
        let inner = filter.strip_prefix(prefix)?.strip_suffix(suffix)?;
        is_guid(inner).then(|| inner.to_owned())
    };
    let by_principal = quoted("principalId eq '", "'");
    let assigned = quoted("assignedTo('", "')");
    let is_asked = |one: &&Assignment| match filter {
        "" => true,
        "atScope()" => one.scope.covers(scope),
        "asTarget()" => one.principal.eq_ignore_ascii_case(caller),
        _ => {
            [&by_principal, &assigned].into_iter().flatten().any(|id| one.principal.eq_ignore_ascii_case(id))
        }
    };
    let is_known = matches!(filter, "" | "atScope()" | "asTarget()");
    if !is_known && by_principal.is_none() && assigned.is_none() {
        return Err(Problem::invalid(
            "The filters here are atScope(), asTarget(), principalId eq 'ID' and assignedTo('ID')."
                .to_owned(),
        ));
    }
    Ok(list(held.iter().filter(is_asked).map(|one| role_assignment(config, one)).collect()))
}

pub fn asked_assignment(id: &str, body: &Value) -> Result<(String, Role), Problem> {
    if !is_guid(id) {
        return Err(wrong("The role assignment's name", "a GUID"));
    }
    let properties = member(body, "properties").unwrap_or(body);
    let principal = text(properties, "principalId")?.filter(|id| is_guid(id));
    let principal = principal.ok_or_else(|| wrong("properties.principalId", "an object id"))?;
    if member(properties, "condition").is_some() {
        return Err(Problem::invalid(
            "properties.condition is not supported: nothing would enforce it.".to_owned(),
        ));
    }
    let definition = text(properties, "roleDefinitionId")?
        .ok_or_else(|| wrong("properties.roleDefinitionId", "the id of a role definition"))?;
    let id = definition.rsplit('/').next().unwrap_or_default();
    let role = Role::from_id(id).ok_or_else(|| Problem::no_role(id))?;
    Ok((principal.to_owned(), role))
}

/// RFC 3339, in UTC.
fn date(seconds: i64) -> String {
    let date = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    date.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

/// Of a control plane that bodies can be read for.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn example_config() -> FabricConfig {
    FabricConfig {
        name: String::new(),
        tenant: String::new(),
        subscription: "S".into(),
        resource_group: "G".into(),
        location: "here".into(),
        private_networks: Default::default(),
        now: || 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: &str = "/subscriptions/S/resourceGroups/G/providers";

    fn good() -> Value {
        let pool = format!("{}/microsoft.keyvault/MANAGEDHSMS/Payroll", GROUP.to_lowercase());
        let subnet = format!("{GROUP}/Microsoft.Network/virtualNetworks/private/subnets/Office");
        let connection =
            json!({"privateLinkServiceId": pool, "groupIds": ["managedhsm"], "requestMessage": "please"});
        json!({"location": "here", "properties": {
            "subnet": {"id": subnet},
            "privateLinkServiceConnections": [],
            "manualPrivateLinkServiceConnections": [{"name": "c", "properties": connection}],
        }})
    }

    #[test]
    fn an_endpoint_is_one_connection_from_a_subnet_to_a_pool_of_the_group() {
        let asked = asked_endpoint(&example_config(), &good()).unwrap();
        assert_eq!((asked.pool.as_str(), asked.network.as_str(), asked.manual), ("Payroll", "office", true));
        assert_eq!((asked.connection_name.as_str(), asked.request_message.as_str()), ("c", "please"));
        let connection = "/properties/manualPrivateLinkServiceConnections/0";
        let elsewhere = format!("{GROUP}/Microsoft.KeyVault/vaults/Payroll");
        let nested = format!("{GROUP}/Microsoft.KeyVault/managedHSMs/a/b");
        for (place, value, said) in [
            ("/properties", json!({}), "one connection"),
            ("/properties/manualPrivateLinkServiceConnections", json!({}), "a list of connections"),
            ("/properties/privateLinkServiceConnections", json!([{}]), "one connection"),
            (&format!("{connection}/name"), json!(1), "name must be"),
            (&format!("{connection}/properties/groupIds"), json!(["vault"]), "groupIds"),
            (
                &format!("{connection}/properties/privateLinkServiceId"),
                json!(elsewhere),
                "privateLinkServiceId",
            ),
            (&format!("{connection}/properties/privateLinkServiceId"), json!(nested), "privateLinkServiceId"),
            (&format!("{connection}/properties/privateLinkServiceId"), json!(null), "privateLinkServiceId"),
            ("/properties/subnet", json!("office"), "properties.subnet.id"),
            ("/properties/subnet/id", json!("office"), "properties.subnet.id"),
            ("/properties/subnet/id", json!({}), "id must be"),
        ] {
            let mut body = good();
            *body.pointer_mut(place).unwrap() = value;
            let problem = format!("{:?}", asked_endpoint(&example_config(), &body).unwrap_err());
            assert!(problem.contains(said), "{place}: {problem}");
        }
    }
}
