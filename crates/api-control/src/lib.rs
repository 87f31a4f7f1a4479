//! Azure Resource Manager on the wire: what its clients ask of a subscription with managed HSMs. It translates and decides
//! nothing: who may do what is `fabric`'s to say.
//!
//! Creating, recovering, deleting and purging are done when they are answered. Purging is answered as a long-running
//! operation all the same, as clients take nothing else; its state is read from the pool, so that it outlives a restart.

mod body;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod problem;
mod route;
mod wire;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use fabric::pools::{self, NameAvailability};
use fabric::{Fabric, Put, Role, Scope, private_link};
use problem::Problem;
use route::Route;
use serde_json::{Value, json};
use std::sync::Arc;

/// Bodies are a few hundred bytes; tags are what can make them long.
pub const MAX_BODY_BYTES: usize = 128 * 1024;

/// The caller's object id, if the token is good for the resource manager; else why it is not.
pub type Authenticate = Box<dyn Fn(&str) -> Result<String, String> + Send + Sync>;

pub struct ControlConfig {
    /// `https://host[:port]` of this API, of the issuer, and of Graph.
    pub base_url: String,
    pub authority: String,
    pub graph: String,
    /// What follows a pool's name in its host, with the port.
    pub pool_suffix: String,
    pub audiences: Vec<String>,
}

pub struct Control {
    pub fabric: Arc<Fabric>,
    pub config: ControlConfig,
    pub authenticate: Authenticate,
}

impl Control {
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().fallback(serve).with_state(self)
    }
}

async fn serve(State(control): State<Arc<Control>>, request: Request) -> Response {
    let client_id = request.headers().get("x-ms-client-request-id").cloned();
    // Whoever asked may hang up; what was begun is finished.
    let answer = tokio::spawn({
        let control = control.clone();
        async move { control.answer(request).await }
    });
    let mut response = match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(problem)) => problem.response(&control.config.authority, &control.fabric.config.tenant),
        Err(_) => Problem::internal().response(&control.config.authority, &control.fabric.config.tenant),
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(id) = client_id {
        headers.insert("x-ms-client-request-id", id);
    }
    response
}

impl Control {
    async fn answer(&self, request: Request) -> Result<Response, Problem> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or("");
        let route = Route::parse(&path);
        // The one thing that is asked before there is a token: it says where to get one.
        if matches!(route, Some(Route::Endpoints)) && parts.method == Method::GET {
            return Ok(ok(wire::endpoints(self, query)));
        }
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = match authorization.and_then(|value| value.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            Some(_) | None => return Err(Problem::no_token()),
        };
        let caller = (self.authenticate)(token).map_err(|error| Problem::bad_token(&error))?;
        let route = route.ok_or_else(|| Problem::no_such_route(&path))?;
        self.check_place(&route)?;
        route.check_version(query)?;
        let fabric = &self.fabric;
        let config = &fabric.config;
        let method = parts.method.as_str();
        match (method, route) {
            ("GET", Route::Tenants) => Ok(ok(wire::list(vec![wire::tenant(config)]))),
            ("GET", Route::Subscriptions) => {
                let shown = fabric.is_known(&caller).await.then(|| wire::subscription(config));
                Ok(ok(wire::list(shown.into_iter().collect())))
            }
            ("GET", Route::Subscription { .. }) => {
                // Whoever has a role at anything in it finds the subscription.
                if !fabric.is_known(&caller).await {
                    fabric
                        .authorize(
                            &caller,
                            "Microsoft.Resources/subscriptions/read",
                            &config.subscription_scope(),
                        )
                        .await?;
                }
                Ok(ok(wire::subscription(config)))
            }
            ("GET", Route::Groups { .. }) => {
                let action = "Microsoft.Resources/subscriptions/resourceGroups/read";
                fabric.authorize(&caller, action, &config.subscription_scope()).await?;
                Ok(ok(wire::list(vec![wire::group(config)])))
            }
            ("GET", Route::Group { .. }) => {
                let action = "Microsoft.Resources/subscriptions/resourceGroups/read";
                fabric.authorize(&caller, action, &config.group_scope()).await?;
                Ok(ok(wire::group(config)))
            }
            ("GET", Route::Resources { .. }) => {
                let wanted = wire::resource_filter(query)?;
                let pools = if wanted { fabric.pools(&caller).await } else { Vec::new() };
                Ok(ok(wire::list(pools.iter().map(|pool| wire::pool(config, pool)).collect())))
            }
            ("GET", Route::Operations) => Ok(ok(wire::operations())),
            ("GET", Route::Pools { .. }) => {
                let pools = fabric.pools(&caller).await;
                Ok(ok(wire::list(pools.iter().map(|pool| wire::pool(config, pool)).collect())))
            }
            ("GET", Route::Pool { name, .. }) => {
                Ok(ok(wire::pool(config, &fabric.pool(&caller, name).await?)))
            }
            ("PUT", Route::Pool { name, .. }) => {
                let scope = config.pool_scope(name);
                fabric.authorize(&caller, pools::WRITE, &scope).await?;
                let asked = wire::create(&read(body).await?)?;
                let pool = fabric.put_pool(&caller, name, asked).await?;
                Ok(ok(wire::pool(config, &pool)))
            }
            ("PATCH", Route::Pool { name, .. }) => {
                let scope = config.pool_scope(name);
                fabric.authorize(&caller, pools::WRITE, &scope).await?;
                let asked = wire::update(&read(body).await?)?;
                let pool = fabric.patch_pool(&caller, name, asked).await?;
                Ok(ok(wire::pool(config, &pool)))
            }
            ("DELETE", Route::Pool { name, .. }) => {
                fabric.delete_pool(&caller, name).await?;
                Ok(StatusCode::OK.into_response())
            }
            ("GET", Route::PoolPart { name, part, .. }) => {
                let pool = fabric.pool(&caller, name).await?;
                Ok(ok(wire::part(config, &self.config, &pool, part)))
            }
            ("GET", Route::Connections { name, .. }) => {
                let held = fabric.connections(&caller, name).await?;
                Ok(ok(wire::list(held.iter().map(|one| wire::connection(config, one)).collect())))
            }
            ("GET", Route::Connection { name, connection, .. }) => {
                let held = fabric.connection(&caller, name, connection).await?;
                Ok(ok(wire::connection(config, &held)))
            }
            ("PUT", Route::Connection { name, connection, .. }) => {
                fabric.authorize(&caller, private_link::WRITE_CONNECTION, &config.pool_scope(name)).await?;
                let (approved, description) = wire::asked_connection(&read(body).await?)?;
                let decided =
                    fabric.decide_connection(&caller, name, connection, approved, description).await?;
                Ok(ok(wire::connection(config, &decided)))
            }
            ("DELETE", Route::Connection { name, connection, .. }) => {
                let held = fabric.delete_connection(&caller, name, connection).await?;
                Ok(ok(wire::connection(config, &held)))
            }
            ("GET", Route::PrivateEndpoints { .. }) => {
                let held = fabric.endpoints(&caller).await;
                Ok(ok(wire::list(held.iter().map(|one| wire::private_endpoint(config, one)).collect())))
            }
            ("GET", Route::PrivateEndpoint { name, .. }) => {
                Ok(ok(wire::private_endpoint(config, &fabric.endpoint(&caller, name).await?)))
            }
            ("PUT", Route::PrivateEndpoint { name, .. }) => {
                fabric.authorize(&caller, private_link::WRITE, &config.endpoint_scope(name)).await?;
                let asked = wire::asked_endpoint(config, &read(body).await?)?;
                let held = fabric.put_endpoint(&caller, name, asked).await?;
                Ok(ok(wire::private_endpoint(config, &held)))
            }
            ("DELETE", Route::PrivateEndpoint { name, .. }) => {
                fabric.delete_endpoint(&caller, name).await?;
                Ok(StatusCode::OK.into_response())
            }
            ("GET", Route::DeletedPools { .. }) => {
                let deleted = fabric.deleted_pools(&caller).await?;
                Ok(ok(wire::list(deleted.iter().map(|pool| wire::deleted(config, pool)).collect())))
            }
            ("GET", Route::DeletedVaults { .. }) => Ok(ok(wire::list(Vec::new()))),
            ("GET", Route::DeletedPool { name, .. }) => {
                Ok(ok(wire::deleted(config, &fabric.deleted_pool(&caller, name).await?)))
            }
            ("POST", Route::Purge { name, .. }) => {
                fabric.purge_pool(&caller, name).await?;
                self.accepted(name)
            }
            ("GET", Route::Operation { name, is_result, .. }) => {
                let pending = self.is_purging(&caller, name).await?;
                Ok(operation(&path, name, pending, is_result))
            }
            ("POST", Route::CheckName { .. }) => {
                let body = read(body).await?;
                let name = body.get("name").and_then(Value::as_str).ok_or_else(|| {
                    Problem::invalid("The body must have a member 'name' that is a string.".to_owned())
                })?;
                Ok(ok(availability(name, fabric.name_availability(&caller, name).await?)))
            }
            ("GET", Route::Permissions { scope }) => {
                let roles = fabric.roles(&caller, &scope).await;
                Ok(ok(wire::list(roles.into_iter().map(wire::permissions).collect())))
            }
            ("GET", Route::RoleDefinitions { scope }) => {
                fabric.authorize(&caller, "Microsoft.Authorization/roleDefinitions/read", &scope).await?;
                Ok(ok(wire::role_definitions(config, query)))
            }
            ("GET", Route::RoleDefinition { scope, id }) => {
                fabric.authorize(&caller, "Microsoft.Authorization/roleDefinitions/read", &scope).await?;
                let role = Role::from_id(id).ok_or_else(|| Problem::no_role(id))?;
                Ok(ok(wire::role_definition(config, role)))
            }
            ("GET", Route::RoleAssignments { scope }) => {
                let held = fabric.assignments(&caller, &scope).await?;
                Ok(ok(wire::role_assignments(config, &held, &scope, &caller, query)?))
            }
            ("GET", Route::RoleAssignment { scope, id }) => {
                Ok(ok(wire::role_assignment(config, &fabric.assignment(&caller, &scope, id).await?)))
            }
            ("PUT", Route::RoleAssignment { scope, id }) => {
                fabric.authorize(&caller, pools::WRITE_ASSIGNMENTS, &scope).await?;
                let (principal, role) = wire::asked_assignment(id, &read(body).await?)?;
                let (held, put) = fabric.put_assignment(&caller, &scope, id, &principal, role).await?;
                let status = match put {
                    Put::Made => StatusCode::CREATED,
                    Put::Unchanged => StatusCode::OK,
                };
                Ok((status, axum::Json(wire::role_assignment(config, &held))).into_response())
            }
            ("DELETE", Route::RoleAssignment { scope, id }) => {
                Ok(ok(wire::role_assignment(config, &fabric.delete_assignment(&caller, &scope, id).await?)))
            }
            _ => Err(Problem::method_not_allowed(method)),
        }
    }

    /// There is one subscription with one group in one location.
    fn check_place(&self, route: &Route<'_>) -> Result<(), Problem> {
        let config = &self.fabric.config;
        let (subscription, group, location) = route.place();
        let differs =
            |asked: Option<&str>, own: &str| asked.is_some_and(|asked| !asked.eq_ignore_ascii_case(own));
        if differs(subscription.as_deref(), &config.subscription) {
            return Err(Problem::not_found("SubscriptionNotFound", "The subscription could not be found."));
        }
        if differs(group.as_deref(), &config.resource_group) {
            return Err(Problem::not_found(
                "ResourceGroupNotFound",
                "The resource group could not be found.",
            ));
        }
        if differs(location.as_deref(), &config.location) {
            return Err(Problem::not_found("ResourceNotFound", "There is no such location here."));
        }
        Ok(())
    }

    async fn is_purging(&self, caller: &str, name: &str) -> Result<bool, Problem> {
        let scope = self.fabric.config.subscription_scope();
        let action = "Microsoft.KeyVault/locations/managedHsmOperationResults/read";
        self.fabric.authorize(caller, action, &scope).await?;
        Ok(self.fabric.is_purging(name).await)
    }

    fn accepted(&self, name: &str) -> Result<Response, Problem> {
        let config = &self.fabric.config;
        let place = format!(
            "{}/subscriptions/{}/providers/Microsoft.KeyVault/locations/{}",
            self.config.base_url, config.subscription, config.location
        );
        let version = "api-version=2026-02-01";
        let mut response = StatusCode::ACCEPTED.into_response();
        let headers = response.headers_mut();
        for (header, what) in [
            ("azure-asyncoperation", "managedHsmOperationStatuses"),
            ("location", "managedHsmOperationResults"),
        ] {
            let value = HeaderValue::from_str(&format!("{place}/{what}/purge-{name}?{version}"));
            headers.insert(header, value.map_err(|_| Problem::internal())?);
        }
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        Ok(response)
    }
}

fn ok(body: Value) -> Response {
    axum::Json(body).into_response()
}

fn operation(path: &str, name: &str, pending: bool, is_result: bool) -> Response {
    let status = if pending { "InProgress" } else { "Succeeded" };
    let code = if pending && is_result { StatusCode::ACCEPTED } else { StatusCode::OK };
    let body = json!({"id": path, "name": format!("purge-{name}"), "status": status});
    let mut response = (code, axum::Json(body)).into_response();
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn availability(name: &str, found: NameAvailability) -> Value {
    match found {
        NameAvailability::Available => json!({"nameAvailable": true}),
        NameAvailability::Taken => json!({
            "nameAvailable": false, "reason": "AlreadyExists",
            "message": format!("The name '{name}' is already in use."),
        }),
        NameAvailability::Malformed => json!({
            "nameAvailable": false, "reason": "AccountNameInvalid",
            "message": "The name must be 3 to 24 characters of 0-9, a-z, A-Z and -, start with a letter, end with a letter or digit, and have no two hyphens in a row.",
        }),
    }
}

async fn read(body: Body) -> Result<Value, Problem> {
    let bytes = axum::body::to_bytes(body, MAX_BODY_BYTES).await.map_err(|_| Problem::too_large())?;
    body::parse(&bytes)
}

/// The scope that a path names before `/providers/Microsoft.Authorization`.
fn scope_of(segments: &[&str]) -> Scope {
    Scope::new(&segments.join("/"))
}
