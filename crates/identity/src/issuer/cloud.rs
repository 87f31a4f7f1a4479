//! What `az` asks of a cloud beside tokens: its endpoints, Azure Resource Manager, Microsoft Graph. A read-only view of
//! one subscription with the pools beside the issuer, and of the issuer's principals.
//!
//! It stands in for a control plane until there is one, and answers no more than `az login`, `az keyvault` with
//! `--hsm-name` and its role commands need. It shows names and ids, never a secret; it changes nothing and gives no
//! right: a token for the resource manager or for Graph is of no use at a pool.

use super::{ClientRegistration, GRAPH_AUDIENCE, Issuer, MAX_BODY_BYTES, RESOURCE_MANAGER_AUDIENCES};
use crate::audience::{Audiences, MalformedSuffix};
use crate::text::query_value;
use crate::text::shown;
use crate::token::{TokenVerifier, VerifierConfig};
use aws_lc_rs::digest::{SHA256, digest};
use axum::Json;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::guid::Guid;
use domain::principal::{ObjectId, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;

/// Most ids in one question to Graph, as there.
pub const MAX_IDS: usize = 1000;

/// From this version on the endpoints are one object, before it a list of them.
const ONE_OBJECT_SINCE: &str = "2022-09-01";
const VAULT_TYPE: &str = "Microsoft.KeyVault/vaults";
const POOL_TYPE: &str = "Microsoft.KeyVault/managedHSMs";
const CACHED_TOKENS: usize = 100;

/// The cloud as clients see it.
#[derive(Clone, Debug)]
pub struct CloudConfig {
    /// Of the cloud, the subscription and the tenant.
    pub name: String,
    /// What follows the pool's name in its host, with the port: `managedhsm.localhost:8443`.
    pub pool_suffix: String,
    pub resource_group: String,
    pub location: String,
    pub pools: Vec<PoolView>,
}

/// A pool as a resource.
#[derive(Clone, Debug)]
pub struct PoolView {
    pub name: String,
    pub initial_administrators: Vec<ObjectId>,
    pub retention_days: u8,
    pub purge_protection: bool,
}

/// The id of the one subscription. The same at every start, as `az` remembers it, and another for each tenant, as
/// `az` tells subscriptions of one cloud apart by it.
pub fn subscription_id(tenant: &TenantId) -> Guid {
    let hash = digest(&SHA256, format!("holdfast subscription of {tenant}").as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    Guid::from_random(bytes)
}

/// Part of the issuer: see [`Issuer::with_cloud`].
pub(super) struct Cloud {
    config: CloudConfig,
    subscription: String,
    resource_manager: TokenVerifier,
    graph: TokenVerifier,
}

impl Issuer {
    /// Serves `cloud` as well. Graph is at the issuer's own address, which is then its audience: for it to be usable,
    /// the issuer's configuration must name [`IssuerConfig::base_url`](super::IssuerConfig::base_url) as one.
    pub fn with_cloud(mut self, cloud: CloudConfig) -> Result<Self, MalformedSuffix> {
        let verifier = |audiences: Audiences| {
            let config = VerifierConfig {
                issuers: vec![self.issuer()],
                tenant: self.config.tenant.clone(),
                audiences,
                cached_tokens: CACHED_TOKENS,
            };
            TokenVerifier::new(config, self.key_set())
        };
        let exact = |audiences: &[&str]| Audiences::new([""; 0], audiences);
        self.cloud = Some(Cloud {
            subscription: subscription_id(&self.config.tenant).to_string(),
            resource_manager: verifier(exact(&RESOURCE_MANAGER_AUDIENCES)?),
            graph: verifier(exact(&[GRAPH_AUDIENCE, &self.config.base_url])?),
            config: cloud,
        });
        Ok(self)
    }
}

/// Whether a request for `path` is for [`serve`].
pub(super) fn is_asked(issuer: &Issuer, path: &str) -> bool {
    issuer.cloud.is_some() && Route::parse(path).is_some()
}

pub(super) async fn serve(issuer: &Issuer, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let (Some(cloud), Some(route)) = (&issuer.cloud, Route::parse(&path)) else {
        return Refusal::no_such_route(&path).response(issuer, Api::ResourceManager);
    };
    let answer = View { issuer, cloud }.answer(&route, request).await;
    answer.unwrap_or_else(|refusal| refusal.response(issuer, route.api()))
}

/// Whose shape an answer has, and whose tokens open it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Api {
    ResourceManager,
    Graph,
}

/// Names are borrowed from the path, as the client spelt them.
#[derive(Debug, Eq, PartialEq)]
enum Route<'a> {
    Endpoints,
    Tenants,
    Subscriptions,
    Subscription { subscription: &'a str },
    Resources { subscription: &'a str },
    Pools { subscription: &'a str, group: Option<&'a str> },
    Pool { subscription: &'a str, group: &'a str, name: &'a str },
    ObjectsByIds,
    ServicePrincipals,
    ServicePrincipal { id: &'a str },
    Users,
    User { user: &'a str },
    Unknown { api: Api, path: &'a str },
}

impl<'a> Route<'a> {
    /// `None`: not the cloud's.
    fn parse(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).take(9).collect();
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let named = |index: usize| segments.get(index).copied().unwrap_or_default();
        let subscription = named(1);
        Some(match lower.as_slice() {
            ["metadata", "endpoints"] => Self::Endpoints,
            ["tenants"] => Self::Tenants,
            ["subscriptions"] => Self::Subscriptions,
            ["subscriptions", _] => Self::Subscription { subscription },
            ["subscriptions", _, "resources"] => Self::Resources { subscription },
            ["subscriptions", _, "providers", "microsoft.keyvault", "managedhsms"] => {
                Self::Pools { subscription, group: None }
            }
            ["subscriptions", _, "resourcegroups", _, "providers", "microsoft.keyvault", "managedhsms"] => {
                Self::Pools { subscription, group: Some(named(3)) }
            }
            [
                "subscriptions",
                _,
                "resourcegroups",
                _,
                "providers",
                "microsoft.keyvault",
                "managedhsms",
                _,
            ] => Self::Pool { subscription, group: named(3), name: named(7) },
            ["v1.0", "directoryobjects", "getbyids"] => Self::ObjectsByIds,
            ["v1.0", "serviceprincipals"] => Self::ServicePrincipals,
            ["v1.0", "serviceprincipals", _] => Self::ServicePrincipal { id: named(2) },
            ["v1.0", "users"] => Self::Users,
            ["v1.0", "users", _] => Self::User { user: named(2) },
            ["tenants" | "subscriptions", ..] => Self::Unknown { api: Api::ResourceManager, path },
            ["v1.0", ..] => Self::Unknown { api: Api::Graph, path },
            _ => return None,
        })
    }

    fn api(&self) -> Api {
        match self {
            Self::Endpoints
            | Self::Tenants
            | Self::Subscriptions
            | Self::Subscription { .. }
            | Self::Resources { .. }
            | Self::Pools { .. }
            | Self::Pool { .. } => Api::ResourceManager,
            Self::ObjectsByIds
            | Self::ServicePrincipals
            | Self::ServicePrincipal { .. }
            | Self::Users
            | Self::User { .. } => Api::Graph,
            Self::Unknown { api, .. } => *api,
        }
    }

    /// A question to Graph may be too long for an address: hence the one POST.
    fn allowed(&self) -> &'static str {
        if matches!(self, Self::ObjectsByIds) { "POST" } else { "GET, HEAD" }
    }

    fn allows(&self, method: &Method) -> bool {
        self.allowed().split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// One request's view of the cloud.
struct View<'a> {
    issuer: &'a Issuer,
    cloud: &'a Cloud,
}

impl View<'_> {
    async fn answer(&self, route: &Route<'_>, request: Request) -> Result<Response, Refusal> {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or("");
        // The one thing that is asked before there is a token: it says where to get one.
        if *route != Route::Endpoints {
            self.authenticate(route.api(), &parts.headers)?;
        }
        if let Route::Unknown { path, .. } = route {
            return Err(Refusal::no_such_route(path));
        }
        if !route.allows(&parts.method) {
            return Err(Refusal::method_not_allowed(route.allowed()));
        }
        let answer = match *route {
            Route::Endpoints => self.endpoints(query),
            Route::Tenants => list(vec![self.tenant()]),
            Route::Subscriptions => list(vec![self.subscription()]),
            Route::Subscription { subscription } => {
                self.check_subscription(subscription)?;
                self.subscription()
            }
            Route::Resources { subscription } => {
                self.check_subscription(subscription)?;
                self.resources(query)?
            }
            Route::Pools { subscription, group } => {
                self.check_subscription(subscription)?;
                group.map_or(Ok(()), |group| self.check_group(group))?;
                list(self.pools())
            }
            Route::Pool { subscription, group, name } => {
                self.check_subscription(subscription)?;
                self.check_group(group)?;
                self.pool_named(name)?
            }
            Route::ObjectsByIds => self.objects(&read_ids(&parts.headers, body).await?),
            Route::ServicePrincipals => self.service_principals(query)?,
            Route::ServicePrincipal { id } => self.service_principal(id)?,
            Route::Users => list(Vec::new()),
            Route::User { user } => return Err(Refusal::no_user(user)),
            Route::Unknown { path, .. } => return Err(Refusal::no_such_route(path)),
        };
        Ok(([(header::CACHE_CONTROL, "no-cache")], Json(answer)).into_response())
    }

    fn authenticate(&self, api: Api, headers: &HeaderMap) -> Result<(), Refusal> {
        let verifier = match api {
            Api::ResourceManager => &self.cloud.resource_manager,
            Api::Graph => &self.cloud.graph,
        };
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = match authorization.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            Some(_) | None => return Err(Refusal::no_token()),
        };
        // The issuer's keys may have changed. The same ones change nothing.
        verifier.replace_keys(self.issuer.key_set());
        verifier
            .verify(token, self.issuer.now())
            .map(drop)
            .map_err(|error| Refusal::bad_token(&error.to_string()))
    }

    // --- Azure Resource Manager

    fn endpoints(&self, query: &str) -> Value {
        let base = &self.issuer.config.base_url;
        let with_slash = format!("{base}/");
        let endpoints = json!({
            "name": self.cloud.config.name,
            "portal": base,
            "resourceManager": base,
            "authentication": {
                "loginEndpoint": base,
                "audiences": RESOURCE_MANAGER_AUDIENCES,
                "tenant": self.issuer.config.tenant.as_str(),
                "identityProvider": "AAD",
            },
            "graph": with_slash,
            "graphAudience": with_slash,
            "microsoftGraphResourceId": with_slash,
            "suffixes": {
                "mhsmDns": self.cloud.config.pool_suffix,
                // There are no vaults, but `az` looks at their suffix whatever it is asked.
                "keyVaultDns": format!("vault.{}", self.cloud.config.pool_suffix),
            },
        });
        let version = query_value(query, "api-version");
        let is_one = version.is_some_and(|version| version.as_str() >= ONE_OBJECT_SINCE);
        if is_one { endpoints } else { Value::Array(vec![endpoints]) }
    }

    fn tenant(&self) -> Value {
        let tenant = self.issuer.config.tenant.as_str();
        json!({
            "id": format!("/tenants/{tenant}"), "tenantId": tenant, "tenantCategory": "Home",
            "displayName": self.cloud.config.name, "domains": [],
        })
    }

    fn subscription(&self) -> Value {
        let subscription = &self.cloud.subscription;
        json!({
            "id": format!("/subscriptions/{subscription}"), "subscriptionId": subscription,
            "tenantId": self.issuer.config.tenant.as_str(), "displayName": self.cloud.config.name,
            "state": "Enabled", "authorizationSource": "RoleBased", "managedByTenants": [],
            "subscriptionPolicies": {"spendingLimit": "Off"},
        })
    }

    fn check_subscription(&self, asked: &str) -> Result<(), Refusal> {
        let own = &self.cloud.subscription;
        if own.eq_ignore_ascii_case(asked) { Ok(()) } else { Err(Refusal::no_subscription(asked)) }
    }

    fn check_group(&self, asked: &str) -> Result<(), Refusal> {
        let own = &self.cloud.config.resource_group;
        if own.eq_ignore_ascii_case(asked) { Ok(()) } else { Err(Refusal::no_group(asked)) }
    }

    /// All resources, or those of one type. Whatever else a filter says narrows them further, which is the client's
    /// to do as well: `az` looks at the names itself.
    fn resources(&self, query: &str) -> Result<Value, Refusal> {
        let Some(filter) = query_value(query, "$filter") else { return Ok(list(self.pools())) };
        let asked = filter.trim_start().strip_prefix("resourceType eq ").and_then(first_literal);
        match asked {
            Some(kind) if kind.eq_ignore_ascii_case(POOL_TYPE) => Ok(list(self.pools())),
            Some(kind) if kind.eq_ignore_ascii_case(VAULT_TYPE) => Ok(list(Vec::new())),
            Some(_) | None => Err(Refusal::filter(&filter, "resourceType eq 'TYPE'")),
        }
    }

    fn pools(&self) -> Vec<Value> {
        self.cloud.config.pools.iter().map(|pool| self.pool(pool)).collect()
    }

    fn pool_named(&self, name: &str) -> Result<Value, Refusal> {
        let pool = self.cloud.config.pools.iter().find(|pool| pool.name.eq_ignore_ascii_case(name));
        pool.map(|pool| self.pool(pool)).ok_or_else(|| Refusal::no_pool(name))
    }

    fn pool(&self, pool: &PoolView) -> Value {
        let Cloud { config, subscription, .. } = self.cloud;
        let PoolView { name, retention_days, purge_protection, .. } = pool;
        let group = &config.resource_group;
        let administrators: Vec<String> =
            pool.initial_administrators.iter().map(ObjectId::to_string).collect();
        json!({
            "id": format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/{POOL_TYPE}/{name}"),
            "name": name,
            "type": POOL_TYPE,
            "location": config.location,
            "sku": {"family": "B", "name": "Standard_B1"},
            "tags": {},
            "properties": {
                "tenantId": self.issuer.config.tenant.as_str(),
                "hsmUri": format!("https://{name}.{}/", config.pool_suffix),
                "initialAdminObjectIds": administrators,
                "enableSoftDelete": true,
                "softDeleteRetentionInDays": retention_days,
                "enablePurgeProtection": purge_protection,
                "createMode": "default",
                "provisioningState": "Succeeded",
                "statusMessage": "The pool is served by this process.",
                "publicNetworkAccess": "Enabled",
                "networkAcls": {
                    "bypass": "None", "defaultAction": "Allow", "ipRules": [], "virtualNetworkRules": [],
                },
                "regions": [],
                "privateEndpointConnections": [],
                "securityDomainProperties": {
                    "activationStatus": "Active", "activationStatusMessage": "The pool is active.",
                },
            },
        })
    }

    // --- Microsoft Graph

    /// The principals among `asked`; ids of nobody are left out.
    fn objects(&self, asked: &IdsAsked) -> Value {
        let ids: HashSet<Guid> = asked.ids.iter().filter_map(|id| id.parse().ok()).collect();
        let is_asked = |client: &&ClientRegistration| {
            asked.wants_service_principals() && ids.contains(&client.object_id)
        };
        list(self.issuer.config.clients.iter().filter(is_asked).map(service_principal).collect())
    }

    fn service_principal(&self, id: &str) -> Result<Value, Refusal> {
        let clients = &self.issuer.config.clients;
        let client = id.parse().ok().and_then(|id| clients.iter().find(|client| client.object_id == id));
        client.map(service_principal).ok_or_else(|| Refusal::no_object(id))
    }

    fn service_principals(&self, query: &str) -> Result<Value, Refusal> {
        let clients = &self.issuer.config.clients;
        let Some(filter) = query_value(query, "$filter") else {
            return Ok(list(clients.iter().map(service_principal).collect()));
        };
        let name = service_principal_name(&filter)
            .ok_or_else(|| Refusal::filter(&filter, "servicePrincipalNames/any(c:c eq 'NAME')"))?;
        let has_name =
            |client: &&ClientRegistration| names(client).iter().any(|own| own.eq_ignore_ascii_case(&name));
        Ok(list(clients.iter().filter(has_name).map(service_principal).collect()))
    }
}

fn list(value: Vec<Value>) -> Value {
    json!({"value": value})
}

/// Of a registration only what names it.
fn service_principal(client: &ClientRegistration) -> Value {
    json!({
        "@odata.type": "#microsoft.graph.servicePrincipal",
        "id": client.object_id.to_string(),
        "appId": client.client_id.to_string(),
        "displayName": client.display_name,
        "servicePrincipalNames": names(client),
        "servicePrincipalType": "Application",
        "accountEnabled": true,
    })
}

/// The display name first: it is what `az` shows, and it lets `--assignee app` find the principal.
fn names(client: &ClientRegistration) -> [String; 2] {
    [client.display_name.clone(), client.client_id.to_string()]
}

#[derive(Debug, Deserialize)]
struct IdsAsked {
    ids: Vec<String>,
    #[serde(default)]
    types: Vec<String>,
}

impl IdsAsked {
    fn wants_service_principals(&self) -> bool {
        let wanted = ["servicePrincipal", "directoryObject"];
        let is_wanted = |kind: &String| wanted.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind));
        self.types.is_empty() || self.types.iter().any(is_wanted)
    }
}

async fn read_ids(headers: &HeaderMap, body: Body) -> Result<IdsAsked, Refusal> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length: u64| length > MAX_BODY_BYTES as u64) {
        return Err(Refusal::body_too_large());
    }
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| Refusal::body_too_large())?;
    let asked: IdsAsked = serde_json::from_slice(&body).map_err(|error| Refusal::malformed_body(&error))?;
    if asked.ids.len() > MAX_IDS {
        return Err(Refusal::too_many_ids());
    }
    Ok(asked)
}

/// `X` of `servicePrincipalNames/any(c:c eq 'X')`, whatever the variable is called.
fn service_principal_name(filter: &str) -> Option<String> {
    let lambda = filter.trim().strip_prefix("servicePrincipalNames/any(")?.strip_suffix(')')?;
    let (variable, condition) = lambda.split_once(':')?;
    let literal = condition.trim().strip_prefix(variable.trim())?.trim_start().strip_prefix("eq ")?;
    let inner = literal.trim().strip_prefix('\'')?.strip_suffix('\'')?;
    // OData doubles a quote inside.
    let is_one = inner.split("''").all(|piece| !piece.contains('\''));
    is_one.then(|| inner.replace("''", "'"))
}

/// `X` of `'X'` and whatever follows it. No type of resource has a quote in it.
fn first_literal(text: &str) -> Option<&str> {
    text.trim_start().strip_prefix('\'')?.split_once('\'').map(|(literal, _)| literal)
}

/// A refusal, to be given the shape of its API.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    /// Resource Manager's code and Graph's.
    codes: [&'static str; 2],
    message: String,
    allow: Option<&'static str>,
}

impl Refusal {
    fn no_token() -> Self {
        let message = "Authentication failed. The 'Authorization' header is missing or not a Bearer token.";
        let codes = ["AuthenticationFailed", "InvalidAuthenticationToken"];
        Self::new(StatusCode::UNAUTHORIZED, codes, message.to_owned())
    }

    fn bad_token(error: &str) -> Self {
        let message = format!("The access token is invalid: {error}.");
        Self::new(StatusCode::UNAUTHORIZED, ["InvalidAuthenticationToken"; 2], message)
    }

    fn no_such_route(path: &str) -> Self {
        let message =
            format!("There is nothing at {}: this is a read-only view of pools and principals.", shown(path));
        Self::new(StatusCode::NOT_FOUND, ["ResourceNotFound", "Request_ResourceNotFound"], message)
    }

    fn method_not_allowed(allowed: &'static str) -> Self {
        let message = format!("This is a read-only view, which answers to {allowed} only.");
        let codes = ["MethodNotAllowed", "Request_BadRequest"];
        Self { allow: Some(allowed), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, codes, message) }
    }

    fn no_subscription(asked: &str) -> Self {
        let message = format!("The subscription {} could not be found.", shown(asked));
        Self::new(StatusCode::NOT_FOUND, ["SubscriptionNotFound"; 2], message)
    }

    fn no_group(asked: &str) -> Self {
        let message = format!("Resource group {} could not be found.", shown(asked));
        Self::new(StatusCode::NOT_FOUND, ["ResourceGroupNotFound"; 2], message)
    }

    fn no_pool(asked: &str) -> Self {
        let message = format!("There is no {POOL_TYPE} resource {}.", shown(asked));
        Self::new(StatusCode::NOT_FOUND, ["ResourceNotFound"; 2], message)
    }

    fn no_user(asked: &str) -> Self {
        let message = format!("User {} does not exist: this issuer has no users.", shown(asked));
        Self::new(StatusCode::NOT_FOUND, ["Request_ResourceNotFound"; 2], message)
    }

    fn no_object(asked: &str) -> Self {
        let message = format!("Resource {} does not exist.", shown(asked));
        Self::new(StatusCode::NOT_FOUND, ["Request_ResourceNotFound"; 2], message)
    }

    fn filter(asked: &str, expected: &str) -> Self {
        let message = format!("Filter {} is not supported: expected {expected}.", shown(asked));
        Self::new(
            StatusCode::BAD_REQUEST,
            ["InvalidFilterInQueryString", "Request_UnsupportedQuery"],
            message,
        )
    }

    fn body_too_large() -> Self {
        let message = format!("The request body is larger than {MAX_BODY_BYTES} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, ["Request_BadRequest"; 2], message)
    }

    /// Says where, and repeats nothing.
    fn malformed_body(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let message = format!(
            "The request body is not {{\"ids\": [...], \"types\": [...]}} (line {line}, column {column})."
        );
        Self::new(StatusCode::BAD_REQUEST, ["Request_BadRequest"; 2], message)
    }

    fn too_many_ids() -> Self {
        let message = format!("More than {MAX_IDS} ids were asked for.");
        Self::new(StatusCode::BAD_REQUEST, ["Request_BadRequest"; 2], message)
    }

    fn response(self, issuer: &Issuer, api: Api) -> Response {
        let [resource_manager, graph] = self.codes;
        let body = match api {
            Api::ResourceManager => json!({"error": {"code": resource_manager, "message": self.message}}),
            Api::Graph => json!({"error": {"code": graph, "message": self.message, "innerError": {}}}),
        };
        let mut response = (self.status, [(header::CACHE_CONTROL, "no-cache")], Json(body)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            // Clients of the resource manager find their tenant by it.
            let tenant = format!("{}/{}", issuer.config.base_url, issuer.config.tenant);
            let challenge = format!("Bearer authorization_uri=\"{tenant}\", error=\"invalid_token\"");
            if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        if let Some(allowed) = self.allow {
            headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }

    fn new(status: StatusCode, codes: [&'static str; 2], message: String) -> Self {
        Self { status, codes, message, allow: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_the_clouds_and_no_more() {
        let (subscription, group) = ("S", Some("G"));
        for (path, route) in [
            ("/metadata/endpoints", Some(Route::Endpoints)),
            ("//Metadata/Endpoints/", Some(Route::Endpoints)),
            ("/metadata/identity/oauth2/token", None),
            ("/metadata", None),
            ("/subscriptions/S", Some(Route::Subscription { subscription })),
            (
                "/subscriptions/S/providers/Microsoft.KeyVault/managedHSMs",
                Some(Route::Pools { subscription, group: None }),
            ),
            (
                "/Subscriptions/S/resourcegroups/G/providers/microsoft.keyvault/managedhsms",
                Some(Route::Pools { subscription, group }),
            ),
            (
                "/subscriptions/S/resourceGroups/G/providers/Microsoft.KeyVault/managedHSMs/N",
                Some(Route::Pool { subscription, group: "G", name: "N" }),
            ),
            ("/v1.0/users/a%40b", Some(Route::User { user: "a%40b" })),
            ("/v1.0/me", Some(Route::Unknown { api: Api::Graph, path: "/v1.0/me" })),
            ("/tenants/x", Some(Route::Unknown { api: Api::ResourceManager, path: "/tenants/x" })),
            ("/T/oauth2/v2.0/token", None),
            ("/keys", None),
            ("/", None),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
        let longer = "/subscriptions/S/resourceGroups/G/providers/Microsoft.KeyVault/managedHSMs/N/regions";
        assert!(matches!(Route::parse(longer), Some(Route::Unknown { .. })));
    }

    #[test]
    fn a_filter_gives_one_name_or_none() {
        for (filter, name) in [
            ("servicePrincipalNames/any(c:c eq 'app')", Some("app")),
            (" servicePrincipalNames/any( x : x eq 'it''s' ) ", Some("it's")),
            ("servicePrincipalNames/any(c:c eq '')", Some("")),
            ("servicePrincipalNames/any(c:c eq 'a' or c eq 'b')", None),
            ("servicePrincipalNames/any(c:c eq ')", None),
            ("servicePrincipalNames/any(c:d eq 'app')", None),
            ("servicePrincipalNames/any(c:c ne 'app')", None),
            ("displayName eq 'app'", None),
            ("", None),
        ] {
            assert_eq!(service_principal_name(filter).as_deref(), name, "{filter}");
        }
    }

    #[test]
    fn a_parameter_is_decoded_once() {
        let query = "api-version=2015-11-01&%24Filter=resourceType%20eq+%27Microsoft.KeyVault%2Fvaults%27&x";
        let filter = query_value(query, "$filter").unwrap();
        assert_eq!(filter, "resourceType eq 'Microsoft.KeyVault/vaults'");
        assert_eq!(query_value("a=%2525", "a").as_deref(), Some("%25"));
        for query in ["", "a", "a=%ff", "%ff=1&a"] {
            assert_eq!(query_value(query, "a"), None, "{query}");
        }
    }
}
