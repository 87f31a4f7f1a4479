//! The embedded OIDC issuer: for machines without Entra ID or Keycloak.
//!
//! It serves what Azure clients call to get a token with a client secret, with a client certificate or with a token of
//! another issuer that vouches for them: discovery, key set, instance metadata and the token endpoint. It issues only to registered clients and only for configured resources, and it has no
//! users, no refresh tokens and no sign-in pages. It knows nothing of pools, keys or roles, but what
//! [`CloudConfig`] gives it to show: a token says who the caller is. Whoever controls it controls identity for every pool that trusts it.
//!
//! Here is a router without a listener. TLS, time limits and files are its owner's business.

mod assertion;
pub mod attestation;
mod client_certificate;
mod cloud;
mod documents;
mod federation;
mod managed_identity;
mod problem;
mod replay;
mod signing_key;
mod state;
mod token_endpoint;

pub use assertion::{MAX_ASSERTION_LIFETIME_SECONDS, MAX_FEDERATED_LIFETIME_SECONDS};
pub use client_certificate::{ClientCertificate, ClientCertificateError, MAX_CERTIFICATE_BYTES};
pub use cloud::{CloudConfig, MAX_IDS, PoolView, subscription_id};
pub use federation::{
    FEDERATION_AUDIENCE, FederatedCredential, FederatedCredentialError, MAX_FEDERATED_CREDENTIALS,
    MAX_FEDERATED_NAME_BYTES,
};
pub use managed_identity::{
    APP_SERVICE_PATH, INSTANCE_METADATA_PATH, ManagedClient, ManagedIdentity, ManagedIdentityError,
};
pub use signing_key::{PublicSigningKey, SigningKey, SigningKeyError, SigningKeys};
pub use state::{ISSUER_STATE_VERSION, IssuerState, IssuerStateError, MAX_ISSUER_STATE_BYTES};

use crate::audience::Audiences;
use crate::key_set::KeySet;
use crate::text::{base64url, sha256};
use arc_swap::ArcSwap;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, header};
use axum::response::{IntoResponse, Response};
use domain::guid::Guid;
use domain::principal::{ObjectId, TenantId};
use domain::time::Time;
use problem::Problem;
use replay::ReplayGuard;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// The audiences of Azure Resource Manager, for which `az` asks at every login.
pub const RESOURCE_MANAGER_AUDIENCES: [&str; 2] =
    ["https://management.core.windows.net/", "https://management.azure.com/"];
/// The audience of Microsoft Graph, which `az` calls when it assigns roles.
pub const GRAPH_AUDIENCE: &str = "https://graph.microsoft.com/";
/// The audience of Azure Storage, at which pools keep backups by their managed identity.
pub const STORAGE_AUDIENCE: &str = "https://storage.azure.com";
/// How long a token lives unless configured otherwise.
pub const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
/// Shortest and longest configurable token lifetime, in seconds.
pub const TOKEN_LIFETIME_SECONDS: std::ops::RangeInclusive<u64> = 60..=86_400;
/// Largest request body, in bytes.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// Tells the time. The issuer reads no clock of its own.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// What the issuer serves. No `Debug`: it holds digests of secrets.
#[derive(Clone)]
pub struct IssuerConfig {
    /// `https://host[:port]`, lower case, without path or final `/` (`az` lower-cases it).
    pub base_url: String,
    /// `iss` of tokens. `None`: `{base_url}/{tenant}/v2.0`. Pools pin it, so it must outlive a change of port.
    pub issuer: Option<String>,
    pub tenant: TenantId,
    /// A second name for the same tenant, normally `adfs`: under it Go clients skip instance discovery. Tokens and
    /// `issuer` are those of `tenant`.
    pub alias_tenant: Option<TenantId>,
    /// The resources for which tokens are issued.
    pub audiences: Audiences,
    pub clients: Vec<ClientRegistration>,
    /// Within [`TOKEN_LIFETIME_SECONDS`]; see [`DEFAULT_TOKEN_LIFETIME`].
    pub token_lifetime: Duration,
}

/// An application that may get tokens. No `Debug`: it holds the digest of a secret.
#[derive(Clone)]
pub struct ClientRegistration {
    pub client_id: Guid,
    pub object_id: ObjectId,
    pub display_name: String,
    /// See [`secret_digest`]. `None`: this client has no secret.
    pub secret_sha256: Option<[u8; 32]>,
    /// By which the client may sign assertions.
    pub certificates: Vec<ClientCertificate>,
    /// Whose tokens stand for this client.
    pub federated: Vec<FederatedCredential>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssuerConfigError {
    #[error("issuer base URL {found} is not https://host[:port] in lower case without path or final slash")]
    BaseUrl { found: String },
    #[error("token lifetime of {seconds} seconds is outside {} to {}", TOKEN_LIFETIME_SECONDS.start(), TOKEN_LIFETIME_SECONDS.end())]
    TokenLifetime { seconds: u64 },
    #[error("client id {client_id} is registered twice")]
    DuplicateClient { client_id: Guid },
}

/// What is stored of a client secret: its SHA-256. A plain hash is enough for secrets of [`generate_client_secret`],
/// whose 256 random bits cannot be searched; secrets that people choose are for tests.
pub fn secret_digest(secret: &str) -> [u8; 32] {
    sha256(secret.as_bytes())
}

/// A new client secret: 32 random bytes in base64url, 43 characters.
pub fn generate_client_secret() -> Result<Zeroizing<String>, RandomSourceFailed> {
    let bytes = Zeroizing::new(random::<32>()?);
    Ok(Zeroizing::new(base64url(bytes.as_slice())))
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("random source failed")]
pub struct RandomSourceFailed;

/// The issuer. Shared between requests.
pub struct Issuer {
    config: IssuerConfig,
    clients: HashMap<Guid, ClientRegistration>,
    keys: ArcSwap<SigningKeys>,
    replay: ReplayGuard,
    clock: Clock,
    cloud: Option<cloud::Cloud>,
}

impl Issuer {
    pub fn new(
        config: IssuerConfig,
        keys: impl Into<SigningKeys>,
        clock: Clock,
    ) -> Result<Self, IssuerConfigError> {
        if !is_base_url(&config.base_url) {
            return Err(IssuerConfigError::BaseUrl { found: config.base_url });
        }
        let seconds = config.token_lifetime.as_secs();
        if !TOKEN_LIFETIME_SECONDS.contains(&seconds) {
            return Err(IssuerConfigError::TokenLifetime { seconds });
        }
        let mut clients = HashMap::new();
        for client in &config.clients {
            if clients.insert(client.client_id, client.clone()).is_some() {
                return Err(IssuerConfigError::DuplicateClient { client_id: client.client_id });
            }
        }
        let keys = ArcSwap::from_pointee(keys.into());
        Ok(Self { config, clients, keys, replay: ReplayGuard::default(), clock, cloud: None })
    }

    /// `iss` of the tokens: what is configured, else where this issuer is served.
    pub fn issuer(&self) -> String {
        self.config.issuer.clone().unwrap_or_else(|| self.served_as())
    }

    /// `{base}/{tenant}/v2.0`: the issuer by the address that clients know.
    fn served_as(&self) -> String {
        format!("{}/{}/v2.0", self.config.base_url, self.config.tenant)
    }

    /// What pools name in challenges: `{base}/{tenant}`, with the alias tenant if there is one.
    pub fn authority(&self) -> String {
        let tenant = self.config.alias_tenant.as_ref().unwrap_or(&self.config.tenant);
        format!("{}/{tenant}", self.config.base_url)
    }

    /// The key set as it is served, for pinning in a pool without a call.
    pub fn key_set_json(&self) -> Vec<u8> {
        documents::key_set(&self.keys.load()).to_string().into_bytes()
    }

    /// The key set, for a verifier in the same process.
    pub fn key_set(&self) -> KeySet {
        KeySet::parse(&self.key_set_json()).expect("the issuer's own key set is RSA keys of accepted size")
    }

    /// Signs with other keys from now on, as after [`IssuerState::rotate`]. The state is to be kept first: a token signed
    /// with a key that is forgotten would be good for nobody.
    pub fn replace_keys(&self, keys: SigningKeys) {
        self.keys.store(Arc::new(keys));
    }

    /// The routes. Path keywords are matched without regard to case, empty path segments are ignored.
    pub fn router(self: Arc<Self>) -> Router {
        // A fallback alone: axum's own matching regards case.
        Router::new().fallback(serve).with_state(self)
    }

    fn now(&self) -> Time {
        (self.clock)()
    }

    /// The client that `asked` names. Its name is no secret.
    fn client(&self, asked: &str) -> Result<&ClientRegistration, Problem> {
        let client = asked.parse().ok().and_then(|id: Guid| self.clients.get(&id));
        client.ok_or_else(|| Problem::unknown_client(asked, &self.config.tenant))
    }

    /// The tenant whose endpoints a client is told. `az logout` asks for any tenant at all, and is told ours.
    fn discovered_tenant(&self, asked: &str) -> Result<&TenantId, Problem> {
        if ["common", "organizations"].iter().any(|any| any.eq_ignore_ascii_case(asked)) {
            return Ok(&self.config.tenant);
        }
        self.tenant(asked)
    }

    /// The tenant as `asked` in a path, in its canonical spelling, if it is served here.
    fn tenant(&self, asked: &str) -> Result<&TenantId, Problem> {
        let known = [Some(&self.config.tenant), self.config.alias_tenant.as_ref()];
        known
            .into_iter()
            .flatten()
            .find(|tenant| tenant.as_str().eq_ignore_ascii_case(asked))
            .ok_or_else(|| Problem::unknown_tenant(asked, &self.config.tenant))
    }
}

/// Where a request goes. `tenant` borrows the path segment as the client spelt it.
#[derive(Debug, Eq, PartialEq)]
enum Route<'a> {
    Health,
    InstanceDiscovery,
    Discovery { tenant: &'a str },
    KeySet { tenant: &'a str },
    Token { tenant: &'a str, form: TokenForm },
    Interactive { tenant: &'a str },
}

/// The two generations of the token endpoint: their answers differ in form.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TokenForm {
    /// `/{tenant}/oauth2/token`, with `resource`.
    V1,
    /// `/{tenant}/oauth2/v2.0/token`, with `scope`.
    V2,
}

impl<'a> Route<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).take(6).collect();
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let tenant = *segments.first()?;
        Some(match lower.as_slice() {
            ["healthstatus"] => Self::Health,
            ["common", "discovery", "instance"] => Self::InstanceDiscovery,
            [_, "v2.0", ".well-known", "openid-configuration"]
            | [_, ".well-known", "openid-configuration"] => Self::Discovery { tenant },
            [_, "discovery", "v2.0", "keys"] | [_, "discovery", "keys"] => Self::KeySet { tenant },
            [_, "oauth2", "v2.0", "token"] => Self::Token { tenant, form: TokenForm::V2 },
            [_, "oauth2", "token"] => Self::Token { tenant, form: TokenForm::V1 },
            [_, "oauth2", "v2.0", "authorize" | "devicecode"] | [_, "oauth2", "authorize" | "devicecode"] => {
                Self::Interactive { tenant }
            }
            _ => return None,
        })
    }

    fn allows(&self, method: &Method) -> bool {
        match self {
            Self::Token { .. } => method == Method::POST,
            Self::Interactive { .. } => method == Method::GET || method == Method::POST,
            Self::Health | Self::InstanceDiscovery | Self::Discovery { .. } | Self::KeySet { .. } => {
                method == Method::GET || method == Method::HEAD
            }
        }
    }

    fn allowed(&self) -> &'static str {
        match self {
            Self::Token { .. } => "POST",
            Self::Interactive { .. } => "GET, POST",
            Self::Health | Self::InstanceDiscovery | Self::Discovery { .. } | Self::KeySet { .. } => {
                "GET, HEAD"
            }
        }
    }
}

async fn serve(State(issuer): State<Arc<Issuer>>, request: Request) -> Response {
    if cloud::is_asked(&issuer, request.uri().path()) {
        return cloud::serve(&issuer, request).await;
    }
    let correlation = problem::correlation_id(request.headers());
    let answer = answer(&issuer, request).await;
    answer.unwrap_or_else(|problem| problem.response(issuer.now(), correlation))
}

async fn answer(issuer: &Issuer, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let route = Route::parse(parts.uri.path()).ok_or_else(|| Problem::no_such_route(parts.uri.path()))?;
    if !route.allows(&parts.method) {
        return Err(Problem::method_not_allowed(route.allowed()));
    }
    match route {
        Route::Health => Ok(([(header::CACHE_CONTROL, "no-store")], "ok\n").into_response()),
        Route::InstanceDiscovery => Ok(documents::instance(issuer, parts.uri.query().unwrap_or(""))),
        Route::Discovery { tenant } => Ok(documents::discovery(issuer, issuer.discovered_tenant(tenant)?)),
        Route::KeySet { tenant } => {
            issuer.tenant(tenant)?;
            Ok(axum::Json(documents::key_set(&issuer.keys.load())).into_response())
        }
        Route::Token { tenant, form } => {
            issuer.tenant(tenant)?;
            token_endpoint::answer(issuer, form, &parts.headers, body).await
        }
        Route::Interactive { tenant } => {
            issuer.tenant(tenant)?;
            Err(Problem::interactive())
        }
    }
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], RandomSourceFailed> {
    let mut bytes = [0; LENGTH];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| RandomSourceFailed)?;
    Ok(bytes)
}

fn is_base_url(text: &str) -> bool {
    let Ok(uri) = text.parse::<axum::http::Uri>() else { return false };
    let plain = !text.contains(|c: char| c.is_ascii_uppercase() || matches!(c, '@' | '?' | '"' | ',' | '='));
    let whole = uri.authority().is_some_and(|authority| text == format!("https://{authority}"));
    plain && whole && uri.host().is_some_and(|host| !host.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_ignore_case_and_empty_segments() {
        for (path, route) in [
            ("/healthstatus", Some(Route::Health)),
            ("/common/Discovery/instance", Some(Route::InstanceDiscovery)),
            ("/T/v2.0/.well-known/openid-configuration", Some(Route::Discovery { tenant: "T" })),
            ("//adfs/.well-known/OpenID-configuration", Some(Route::Discovery { tenant: "adfs" })),
            ("/T/discovery/v2.0/keys/", Some(Route::KeySet { tenant: "T" })),
            ("/T/OAuth2/V2.0/token", Some(Route::Token { tenant: "T", form: TokenForm::V2 })),
            ("/T/oauth2/token", Some(Route::Token { tenant: "T", form: TokenForm::V1 })),
            ("/T/oauth2/v2.0/devicecode", Some(Route::Interactive { tenant: "T" })),
            ("/", None),
            ("/T", None),
            ("/T/oauth2/v2.0/token/more", None),
            ("/T/oauth2/v2.0", None),
        ] {
            assert_eq!(Route::parse(path), route, "{path}");
        }
    }

    #[test]
    fn a_base_url_is_an_origin() {
        for good in
            ["https://localhost:8446", "https://127.0.0.1:8446", "https://issuer.example", "https://[::1]:1"]
        {
            assert!(is_base_url(good), "{good}");
        }
        for bad in [
            "",
            "localhost:8446",
            "http://localhost:8446",
            "https://localhost:8446/",
            "https://localhost:8446/x",
            "https://localhost?x",
            "https://Localhost",
            "https://user@localhost",
            "https://",
            "https://:8446",
        ] {
            assert!(!is_base_url(bad), "{bad}");
        }
    }

    #[test]
    fn client_secrets_are_long_and_never_the_same() {
        let (one, other) = (generate_client_secret().unwrap(), generate_client_secret().unwrap());
        assert_eq!(one.len(), 43);
        assert_ne!(*one, *other);
    }
}
