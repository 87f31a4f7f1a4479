//! Managed identity: tokens for programs on the issuer's own machine, without a secret of their own.
//!
//! Two forms that clients know: the instance metadata service of a virtual machine, and the endpoint of App Service.
//! What protects them is that only programs on this machine can ask, so the router here is for a plain-http listener on
//! loopback and nothing else; who has no business there is refused by what the request itself shows. A web page that
//! has its own name point to loopback has the wrong `Host`; whatever was passed on by a proxy says so; and a page's
//! script can set neither `Metadata` nor `X-IDENTITY-HEADER` without asking first, which is not answered.

use super::token_endpoint::{Fields, issue};
use super::{ClientRegistration, Issuer, secret_digest};
use crate::text::shown;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use domain::guid::Guid;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Where the instance metadata service is; clients know it.
pub const INSTANCE_METADATA_PATH: &str = "/metadata/identity/oauth2/token";
/// Where the form of App Service is: the path of `IDENTITY_ENDPOINT`, which is ours to choose.
pub const APP_SERVICE_PATH: &str = "/msi/token";
/// The first version of the instance metadata service that issued tokens; later ones are the same here.
const FIRST_METADATA_VERSION: &str = "2018-02-01";
const APP_SERVICE_VERSION: &str = "2019-08-01";
/// Headers that a proxy adds. Whoever asks through one is not on this machine, or does not know that it is not.
const PASSED_ON: [&str; 3] = ["x-forwarded-for", "x-forwarded-host", "forwarded"];

/// A client that programs on this machine may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManagedClient {
    pub client_id: Guid,
    /// `/subscriptions/…/userAssignedIdentities/NAME`, by which a request may select it; compared without regard to case.
    pub resource_id: Option<String>,
}

/// Issues tokens to whoever can reach it. No `Debug`: it holds the digest of a secret.
pub struct ManagedIdentity {
    issuer: Arc<Issuer>,
    clients: Vec<ManagedClient>,
    identity_header_sha256: [u8; 32],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManagedIdentityError {
    #[error("a machine with managed identity has at least one identity")]
    NoClient,
    #[error("the identity header has no value, so that everybody would know it")]
    NoHeader,
    #[error("client {client_id} is not registered")]
    UnknownClient { client_id: Guid },
}

impl ManagedIdentity {
    /// `clients`: the first one is the system-assigned identity, for requests that select none. `identity_header`: the
    /// secret in `IDENTITY_HEADER`.
    pub fn new(
        issuer: Arc<Issuer>,
        clients: Vec<ManagedClient>,
        identity_header: &str,
    ) -> Result<Self, ManagedIdentityError> {
        if clients.is_empty() {
            return Err(ManagedIdentityError::NoClient);
        }
        if identity_header.is_empty() {
            return Err(ManagedIdentityError::NoHeader);
        }
        let unknown = clients.iter().find(|client| !issuer.clients.contains_key(&client.client_id));
        if let Some(ManagedClient { client_id, .. }) = unknown {
            return Err(ManagedIdentityError::UnknownClient { client_id: *client_id });
        }
        Ok(Self { issuer, clients, identity_header_sha256: secret_digest(identity_header) })
    }

    /// The routes. Only for a listener on loopback.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new().fallback(serve).with_state(self)
    }

    /// The identity that a request selects: the system-assigned one unless it names another, in one way.
    fn selected(&self, fields: &Fields) -> Result<&ClientRegistration, Refusal> {
        let selectors = ["client_id", "object_id", "principal_id", "mi_res_id", "msi_res_id"];
        let mut named = selectors.into_iter().filter_map(|name| Some((name, fields.optional(name)?)));
        let selector = named.next();
        if named.next().is_some() {
            return Err(Refusal::bad_request("Only one of client_id, object_id and mi_res_id may be given"));
        }
        let registered = self.clients.iter().filter_map(|client| {
            self.issuer.clients.get(&client.client_id).map(|registration| (client, registration))
        });
        let found = registered.into_iter().find(|(client, registration)| match selector {
            None => true,
            Some(("client_id", value)) => value.parse() == Ok(client.client_id),
            Some(("object_id" | "principal_id", value)) => value.parse() == Ok(registration.object_id),
            Some((_, value)) => {
                client.resource_id.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(value))
            }
        });
        found.map(|(_, registration)| registration).ok_or_else(|| Refusal::bad_request("Identity not found"))
    }

    fn answer(&self, form: Form, request: &Request) -> Result<Value, Refusal> {
        is_from_here(request)?;
        if request.method() != Method::GET {
            return Err(Refusal {
                status: StatusCode::METHOD_NOT_ALLOWED,
                message: "Only GET is answered".into(),
            });
        }
        match form {
            Form::InstanceMetadata => {
                let metadata = text(request.headers(), "metadata");
                if !metadata.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
                    return Err(Refusal::bad_request("Required metadata header not specified"));
                }
            }
            Form::AppService => {
                let presented =
                    secret_digest(text(request.headers(), "x-identity-header").unwrap_or_default());
                if !bool::from(presented.ct_eq(&self.identity_header_sha256)) {
                    let message = "X-IDENTITY-HEADER is missing or not the value of IDENTITY_HEADER".into();
                    return Err(Refusal { status: StatusCode::UNAUTHORIZED, message });
                }
            }
        }
        let query = request.uri().query().unwrap_or_default();
        let fields =
            Fields::parse(query.as_bytes()).map_err(|_| Refusal::bad_request("The query is malformed"))?;
        form.check_version(fields.optional("api-version"))?;
        let asked = fields.optional("resource").ok_or_else(|| Refusal::bad_request("resource is missing"))?;
        let client = self.selected(&fields)?;
        let audiences = &self.issuer.config.audiences;
        let resource = audiences.canonical(asked).ok_or_else(|| {
            let expected = audiences.described();
            Refusal::bad_request(format!("Resource {} is not one of: {expected}", shown(asked)))
        })?;
        let token = issue(&self.issuer, client, &resource).map_err(|_| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message: "The token could not be signed".into(),
        })?;
        let mut answer = token.answer_v1(&resource);
        answer["client_id"] = json!(client.client_id.to_string());
        Ok(answer)
    }
}

#[derive(Clone, Copy)]
enum Form {
    InstanceMetadata,
    AppService,
}

impl Form {
    fn check_version(self, version: Option<&str>) -> Result<(), Refusal> {
        let is_date = |version: &str| {
            version.len() == FIRST_METADATA_VERSION.len()
                && version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
        };
        let known = match (self, version) {
            (_, None) => return Err(Refusal::bad_request("api-version is missing")),
            (Self::InstanceMetadata, Some(version)) => is_date(version) && version >= FIRST_METADATA_VERSION,
            (Self::AppService, Some(version)) => version == APP_SERVICE_VERSION,
        };
        known.then_some(()).ok_or_else(|| Refusal::bad_request("This api-version is not supported"))
    }
}

/// Why no token was issued. Each form has its own body for it.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }

    fn body(&self, form: Option<Form>) -> Value {
        match form {
            Some(Form::AppService) => json!({"statusCode": self.status.as_u16(), "message": self.message}),
            Some(Form::InstanceMetadata) | None => {
                json!({"error": "invalid_request", "error_description": self.message})
            }
        }
    }
}

async fn serve(State(identity): State<Arc<ManagedIdentity>>, request: Request) -> Response {
    let path = request.uri().path().trim_end_matches('/');
    let form = if path.eq_ignore_ascii_case(INSTANCE_METADATA_PATH) {
        Some(Form::InstanceMetadata)
    } else if path.eq_ignore_ascii_case(APP_SERVICE_PATH) {
        Some(Form::AppService)
    } else {
        None
    };
    let nothing = Refusal { status: StatusCode::NOT_FOUND, message: "There is nothing here".into() };
    let answer = form.ok_or(nothing).and_then(|form| identity.answer(form, &request));
    let (status, body) = match answer {
        Ok(body) => (StatusCode::OK, body),
        Err(refusal) => (refusal.status, refusal.body(form)),
    };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// Whether the request was written on this machine, for this machine.
fn is_from_here(request: &Request) -> Result<(), Refusal> {
    if PASSED_ON.iter().any(|name| request.headers().contains_key(*name)) {
        return Err(Refusal::bad_request("Requests that were passed on by a proxy are not answered"));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let others_are_loopback = request.uri().authority().is_none_or(is_loopback) && hosts.next().is_none();
    if host.as_ref().is_some_and(is_loopback) && others_are_loopback {
        return Ok(());
    }
    Err(Refusal::bad_request("Host must be a loopback address or localhost"))
}

fn is_loopback(authority: &Authority) -> bool {
    let host = authority.host();
    let address = || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback());
    let address_6 = || {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        inner.is_some_and(|host| host.parse() == Ok(Ipv6Addr::LOCALHOST))
    };
    !authority.as_str().contains('@') && (host.eq_ignore_ascii_case("localhost") || address() || address_6())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_few_names() {
        let is = |text: &str| text.parse::<Authority>().is_ok_and(|authority| is_loopback(&authority));
        for host in ["localhost", "LOCALHOST:8448", "127.0.0.1", "127.0.0.1:8448", "127.1.2.3", "[::1]:8448"]
        {
            assert!(is(host), "{host}");
        }
        for host in [
            "",
            "localhost.",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.nip.io",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "0.0.0.0",
            "169.254.169.254",
            "[::]",
            "[::ffff:127.0.0.1]",
            "user@localhost",
            "evil.example:8448",
        ] {
            assert!(!is(host), "{host}");
        }
    }
}
