//! One request from its head to its answer.

use crate::answers::Json;
use crate::api_version::ApiVersion;
use crate::exchange::{self, Exchange};
use crate::problem::{self, Problem};
use crate::route::{Route, RouteRefused};
use bytes::Bytes;
use domain::guid::Guid;
use domain::network::Blocked;
use domain::pool::PoolClass;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    STRICT_TRANSPORT_SECURITY, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Body;
use identity::Audiences;
use serde_json::Value;
use service::{Error, Pool, Receipt, Recorded, RequestFacts, Ticket};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

const MAX_USER_AGENT: usize = 256;
const MAX_CORRELATION_ID: usize = 128;
const MAX_URI: usize = 2048;

const RECEIPT: HeaderName = HeaderName::from_static("x-holdfast-receipt");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-request-id");
const SERVICE_VERSION: HeaderName = HeaderName::from_static("x-ms-keyvault-service-version");
const REGION: HeaderName = HeaderName::from_static("x-ms-keyvault-region");
const NETWORK_INFO: HeaderName = HeaderName::from_static("x-ms-keyvault-network-info");
const CLASS: HeaderName = HeaderName::from_static("x-holdfast-class");
const TEST_MODE: HeaderName = HeaderName::from_static("x-holdfast-test-mode");
const AZURE_ASYNC_OPERATION: HeaderName = HeaderName::from_static("azure-asyncoperation");
/// Of an answer, those of HTTP itself included.
const HEADERS: usize = 14;
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");

/// What the listener knows of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    pub origin: Origin,
    /// The server name that the client asked for (SNI), if any.
    pub server_name: Option<Arc<str>>,
    pub local_port: u16,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The client's true address, whatever passed the connection on.
    Network(SocketAddr),
    /// Likewise, and the address of ours that it called, which is for clients of a private network.
    Private { client: SocketAddr, called: IpAddr },
    /// The local administration socket, where the firewall is not asked. Token and role are.
    Administration,
}

#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Host names and addresses, without port, under which the pool may be called; lower case. Anything else is
    /// answered with 421.
    pub hosts: Vec<String>,
    /// The authority named in challenges.
    pub authority: String,
    /// Which resource a challenge names for which host.
    pub audiences: Audiences,
    /// The resource for hosts that `audiences` does not know.
    pub default_resource: String,
}

pub struct Api {
    pool: Arc<Pool>,
    config: ApiConfig,
}

/// An answer before it has headers.
pub(crate) struct Answer {
    status: StatusCode,
    body: Json,
    challenge: Option<String>,
    retry_after_seconds: Option<u32>,
    receipt: Option<String>,
    /// Where the state of what was begun can be asked for.
    status_address: Option<String>,
}

impl Api {
    pub fn new(pool: Arc<Pool>, config: ApiConfig) -> Self {
        Self { pool, config }
    }

    /// Answers one request. Infallible: whatever goes wrong is an answer.
    pub async fn handle<B>(&self, request: Request<B>, connection: Connection) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let request_id = self.pool.random().guid();
        let client_request_id = request.headers().get(CLIENT_REQUEST_ID).cloned();
        let answer = self.answer(request, &connection, request_id).await;
        self.respond(answer, request_id, client_request_id, &connection)
    }

    async fn answer<B>(&self, request: Request<B>, connection: &Connection, request_id: Guid) -> Answer
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let host = match self.host(&head.uri, &head.headers, connection) {
            Ok(host) => host,
            Err(problem) => return Answer::problem(problem),
        };
        if let Err(blocked) = self.admit(connection) {
            let operation = Route::parse(&head.method, head.uri.path());
            let operation = operation.map_or("Unknown", |route| route.kind().operation());
            let api_version = query(&head.uri, "api-version");
            let facts = self.facts(&head, &host, api_version.as_deref(), connection, request_id);
            Box::pin(self.pool.record_blocked(blocked, operation, facts)).await;
            return Answer::problem(problem::problem(&Error::Blocked(blocked)));
        }
        if head.method == http::Method::GET && head.uri.path().eq_ignore_ascii_case("/healthstatus") {
            return Answer::ok(serde_json::json!({}).into(), None);
        }
        let caller = match bearer(&head.headers) {
            None => return self.challenge(&host, "request is missing a Bearer or PoP token"),
            Some(token) => match self.pool.authenticate(token).await {
                Ok(caller) => caller,
                Err(error) => return self.challenge(&host, &error.to_string()),
            },
        };
        let api_version = query(&head.uri, "api-version");
        let facts = self.facts(&head, &host, api_version.as_deref(), connection, request_id);
        let full_receipt = head.headers.contains_key(RECEIPT);
        let mut ticket = self.pool.admit(caller, facts);
        let route = Route::parse(&head.method, head.uri.path());
        if let Ok(route) = &route {
            ticket.operation(route.kind().operation());
        }
        let parsed = parse_head(route, &head, api_version.as_deref()).and_then(|route| {
            if !route.is_test_mode() {
                self.pool.simulate_load()?;
            }
            Ok(route)
        });
        let route = match parsed {
            Ok(route) => route,
            Err(error) => {
                return Box::pin(Answer::refused(ticket, error, full_receipt)).await;
            }
        };
        let exchange = Exchange {
            pool: &self.pool,
            ticket,
            origin: format!("https://{host}"),
            uri: &head.uri,
            full_receipt,
            max_body_bytes: exchange::max_body_bytes(&route),
        };
        exchange.answer(route, body).await
    }

    /// Before the token is looked at, and before anything else of the request is acted on.
    fn admit(&self, connection: &Connection) -> Result<(), Blocked> {
        match connection.origin {
            Origin::Network(address) => self.pool.admit_address(address.ip()),
            Origin::Private { client, called } => self.pool.admit_privately(client.ip(), called),
            Origin::Administration => Ok(()),
        }
    }

    fn facts(
        &self,
        head: &http::request::Parts,
        host: &str,
        api_version: Option<&str>,
        connection: &Connection,
        request_id: Guid,
    ) -> RequestFacts {
        RequestFacts {
            request_id,
            correlation_id: text_header(&head.headers, &CLIENT_REQUEST_ID, MAX_CORRELATION_ID)
                .unwrap_or_else(|| request_id.to_string()),
            client_address: match connection.origin {
                Origin::Network(address) | Origin::Private { client: address, .. } => {
                    address.ip().to_canonical().to_string()
                }
                Origin::Administration => "administration socket".to_owned(),
            },
            user_agent: text_header(&head.headers, &http::header::USER_AGENT, MAX_USER_AGENT)
                .unwrap_or_default(),
            uri: logged_uri(host, &head.uri, api_version),
            api_version: api_version.unwrap_or_default().chars().take(32).collect(),
            received: Instant::now(),
            received_at: self.pool.now(),
            show: problem::show,
        }
    }

    /// The host as the client wrote it, port included, if it is one of ours; the server name must be, too.
    fn host(&self, uri: &http::Uri, headers: &HeaderMap, connection: &Connection) -> Result<String, Problem> {
        let written = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
        };
        let ours = |name: &str| self.config.hosts.iter().any(|host| host.eq_ignore_ascii_case(name));
        let shown = || written.chars().take(100).collect::<String>();
        // Names only: some clients drop the port from a host that they reached at one.
        if !ours(without_port(written)) {
            return Err(problem::misdirected(format!("host `{}` is not served here", shown())));
        }
        match connection.server_name.as_deref() {
            Some(name) if !ours(name) => Err(problem::misdirected(format!(
                "this connection was opened for another host than `{}`",
                shown()
            ))),
            Some(_) | None => Ok(written.to_ascii_lowercase()),
        }
    }

    fn challenge(&self, host: &str, message: &str) -> Answer {
        let resource = self.config.audiences.resource_for_host(host);
        let resource = resource.unwrap_or_else(|| self.config.default_resource.clone());
        let mut answer = Answer::problem(problem::unauthorized(message));
        answer.challenge = Some(identity::challenge(&self.config.authority, &resource));
        answer
    }

    fn respond(
        &self,
        answer: Answer,
        request_id: Guid,
        client_request_id: Option<HeaderValue>,
        connection: &Connection,
    ) -> Response<Full<Bytes>> {
        let body =
            if answer.status == StatusCode::NO_CONTENT { Bytes::new() } else { Bytes::from(answer.body) };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = answer.status;
        let headers = response.headers_mut();
        headers.reserve(HEADERS);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(
            STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000; includeSubDomains"),
        );
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(SERVICE_VERSION, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
        headers.insert(REGION, HeaderValue::from_static("local"));
        put(headers, REQUEST_ID, request_id.to_string());
        match connection.origin {
            Origin::Network(address) | Origin::Private { client: address, .. } => {
                put(headers, NETWORK_INFO, network_info(address.ip()));
            }
            Origin::Administration => {}
        }
        if let Some(id) = client_request_id {
            headers.insert(CLIENT_REQUEST_ID, id);
        }
        if let Some(challenge) = answer.challenge {
            put(headers, WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = answer.retry_after_seconds {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if let Some(address) = answer.status_address {
            put(headers, AZURE_ASYNC_OPERATION, address);
        }
        if let Some(receipt) = answer.receipt {
            put(headers, RECEIPT, receipt);
        }
        match self.pool.genesis().class {
            PoolClass::Test => {
                headers.insert(CLASS, HeaderValue::from_static(PoolClass::Test.as_str()));
            }
            PoolClass::Production => {}
        }
        let test_mode = self.pool.test_mode();
        if test_mode.alters() {
            put(headers, TEST_MODE, test_mode.to_string());
        }
        response
    }
}

impl Answer {
    fn ok(body: Json, receipt: Option<String>) -> Self {
        Self {
            status: StatusCode::OK,
            body,
            challenge: None,
            retry_after_seconds: None,
            receipt,
            status_address: None,
        }
    }

    fn problem(problem: Problem) -> Self {
        let status = StatusCode::from_u16(problem.shown.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self {
            status,
            body: problem.body().into(),
            challenge: None,
            retry_after_seconds: problem.retry_after_seconds,
            receipt: None,
            status_address: None,
        }
    }

    pub(crate) async fn refused(ticket: Ticket, error: Error, full_receipt: bool) -> Self {
        Self::recorded(ticket.refuse(error).await, full_receipt, |value: Value| value)
    }

    /// Accepted, and going on: 202, where to ask for more, and when. Clients wait half a minute if they are not told.
    pub(crate) fn begun(self, status_address: String) -> Self {
        if self.status == StatusCode::OK {
            let status_address = Some(status_address);
            Self { status: StatusCode::ACCEPTED, retry_after_seconds: Some(1), status_address, ..self }
        } else {
            self
        }
    }

    /// A state that may change soon.
    pub(crate) fn ask_again_soon(self) -> Self {
        if self.status == StatusCode::OK { Self { retry_after_seconds: Some(1), ..self } } else { self }
    }

    pub(crate) fn succeeding_with(self, status: StatusCode) -> Self {
        if self.status == StatusCode::OK { Self { status, ..self } } else { self }
    }

    pub(crate) fn recorded<T, J: Into<Json>>(
        recorded: Recorded<T>,
        full_receipt: bool,
        body: impl FnOnce(T) -> J,
    ) -> Self {
        let (result, receipt) = recorded.into_parts();
        let receipt = receipt.map(|receipt: Receipt| receipt.header_value(full_receipt));
        match result {
            Ok(value) => Self::ok(body(value).into(), receipt),
            Err(error) => Self { receipt, ..Self::problem(problem::problem(&error)) },
        }
    }
}

fn parse_head(
    route: Result<Route, RouteRefused>,
    head: &http::request::Parts,
    api_version: Option<&str>,
) -> Result<Route, Error> {
    let route = route.map_err(|refused| match refused {
        RouteRefused::Unknown => Error::UnknownPath {
            method: head.method.to_string(),
            path: head.uri.path().chars().take(200).collect(),
        },
        RouteRefused::Malformed(reason) => Error::BadParameter(reason),
    })?;
    match api_version {
        None if route.is_status() => Ok(route),
        None => Err(Error::UnsupportedApiVersion("query parameter api-version is missing".into())),
        Some(text) if ApiVersion::parse(text).is_none() => {
            let text: String = text.chars().take(40).collect();
            Err(Error::UnsupportedApiVersion(format!(
                "api-version `{text}` is not supported; supported are {} and their previews",
                ApiVersion::known()
            )))
        }
        Some(_) => Ok(route),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The first value of `name` in the query. Both are percent-decoded, as some clients encode the `$` of `$skiptoken`.
pub(crate) fn query(uri: &http::Uri, name: &str) -> Option<String> {
    let decode = |text| percent_encoding::percent_decode_str(text).decode_utf8().ok();
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    let named = |key| decode(key).is_some_and(|key| key.eq_ignore_ascii_case(name));
    pairs.find(|(key, _)| named(key)).and_then(|(_, value)| decode(value)).map(String::from)
}

/// Of the query only the api-version is written down: other parameters may hold what must not be logged.
fn logged_uri(host: &str, uri: &http::Uri, api_version: Option<&str>) -> String {
    let mut logged = format!("https://{host}{}", uri.path());
    if let Some(version) = api_version {
        logged.push_str("?api-version=");
        logged.push_str(version);
    }
    logged.truncate(logged.floor_char_boundary(MAX_URI));
    logged
}

fn text_header(headers: &HeaderMap, name: &HeaderName, limit: usize) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    Some(text[..text.floor_char_boundary(limit)].to_owned())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An IPv6 literal without a port ends in a bracket.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

fn network_info(address: IpAddr) -> String {
    let family = match address.to_canonical() {
        IpAddr::V4(_) => "InterNetwork",
        IpAddr::V6(_) => "InterNetworkV6",
    };
    format!("addr={};act_addr_fam={family};", address.to_canonical())
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}
