//! Refusals, in the form that MSAL and `az` read: OAuth error codes (RFC 6749 section 5.2) with `AADSTS` numbers.
//!
//! A client's mistake is never a 5xx: clients would take it for an outage and try again.

use super::replay::Replay;
use super::{RandomSourceFailed, SigningKeyError, random};
use crate::audience::Audiences;
use crate::text::{error_timestamp, shown};
use crate::token::TokenError;
use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::guid::Guid;
use domain::principal::TenantId;
use domain::time::Time;
use serde_json::json;
use std::fmt::Display;

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    error: &'static str,
    /// The number after `AADSTS`, where the service that clients know has one for this.
    number: Option<u32>,
    message: String,
    extra_header: Option<(header::HeaderName, &'static str)>,
}

impl Problem {
    pub(super) fn no_such_route(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request",
            Some(90_015),
            format!("There is nothing at {}.", shown(path)),
        )
    }

    pub(super) fn method_not_allowed(allowed: &'static str) -> Self {
        let message = format!("This address answers to {allowed} only.");
        Self {
            extra_header: Some((header::ALLOW, allowed)),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", Some(900_561), message)
        }
    }

    pub(super) fn unknown_tenant(asked: &str, own: &TenantId) -> Self {
        let message = format!("Tenant {} not found. This issuer serves tenant '{own}'.", shown(asked));
        Self::bad_request("invalid_tenant", 90_002, message)
    }

    pub(super) fn interactive() -> Self {
        let message =
            "This issuer has no users: only the grant 'client_credentials' is supported.".to_owned();
        Self::bad_request("unauthorized_client", 70_003, message)
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let message = format!("The request body is larger than {limit} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request", None, message)
    }

    pub(super) fn malformed(message: impl Into<String>) -> Self {
        Self::bad_request("invalid_request", 90_023, message.into())
    }

    pub(super) fn missing_parameter(name: &str) -> Self {
        let message = format!("The request body must contain the following parameter: '{name}'.");
        Self::bad_request("invalid_request", 900_144, message)
    }

    pub(super) fn unsupported_grant(asked: &str) -> Self {
        let message = format!("Grant type {} is not supported: expected 'client_credentials'.", shown(asked));
        Self::bad_request("unsupported_grant_type", 70_003, message)
    }

    pub(super) fn unknown_client(asked: &str, tenant: &TenantId) -> Self {
        let message = format!(
            "Application with identifier {} was not found in the directory '{tenant}'.",
            shown(asked)
        );
        Self::bad_request("unauthorized_client", 700_016, message)
    }

    pub(super) fn wrong_secret(client: Guid, challenge: bool) -> Self {
        let message = format!("Invalid client secret provided for application '{client}'.");
        Self {
            // RFC 6749 section 5.2 asks for it when the client used the Authorization header.
            extra_header: challenge.then_some((header::WWW_AUTHENTICATE, "Basic realm=\"issuer\"")),
            ..Self::new(StatusCode::UNAUTHORIZED, "invalid_client", Some(7_000_215), message)
        }
    }

    /// The secret is right for nobody, as this client has none.
    pub(super) fn no_secret(client: Guid, challenge: bool) -> Self {
        Self {
            message: format!("Application '{client}' has no client secret."),
            ..Self::wrong_secret(client, challenge)
        }
    }

    /// Not a signed JWT, or one of a kind that is not taken.
    pub(super) fn malformed_assertion(reason: &TokenError) -> Self {
        Self::invalid_client(50_027, format!("The client assertion is not accepted: {reason}."))
    }

    /// Who the assertion is about is not the client that asks.
    pub(super) fn assertion_of_another(claim: &'static str) -> Self {
        let message = format!("Client assertion claim '{claim}' does not match the parameter 'client_id'.");
        Self::invalid_client(700_021, message)
    }

    pub(super) fn assertion_audience(found: &str) -> Self {
        let message = format!("Client assertion audience {} is not this token endpoint.", shown(found));
        Self::invalid_client(700_023, message)
    }

    pub(super) fn assertion_time(reason: impl Display) -> Self {
        let message = format!("Client assertion is not within its valid time range: {reason}.");
        Self::invalid_client(700_024, message)
    }

    /// About the signature and the key it was made with.
    pub(super) fn assertion_key(client: Guid, reason: impl Display) -> Self {
        let message = format!("The client assertion of application '{client}' is refused: {reason}.");
        Self::invalid_client(700_027, message)
    }

    pub(super) fn replayed(replay: &Replay) -> Self {
        let message = format!("Client assertion is refused: {replay}.");
        match replay {
            Replay::Used { .. } => Self::invalid_client(700_024, message),
            Replay::TooMany => Self {
                extra_header: Some((header::RETRY_AFTER, "60")),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable", Some(50_196), message)
            },
        }
    }

    /// Nobody of this issuer, subject and audience is registered for the client.
    pub(super) fn not_federated(number: u32, claim: &'static str, found: &str) -> Self {
        let message = format!(
            "No matching federated identity record found for presented assertion {claim} {}.",
            shown(found)
        );
        Self::invalid_client(number, message)
    }

    pub(super) fn invalid_scope(asked: &str, audiences: &Audiences) -> Self {
        let message = format!(
            "Scope {} is not valid: expected '<resource>/.default', with a resource of: {}.",
            shown(asked),
            audiences.described()
        );
        Self::bad_request("invalid_scope", 70_011, message)
    }

    pub(super) fn invalid_resource(asked: &str, audiences: &Audiences) -> Self {
        let message = format!("Resource {} is not one of: {}.", shown(asked), audiences.described());
        Self::bad_request("invalid_resource", 500_011, message)
    }

    pub(super) fn response(self, now: Time, correlation: Option<Guid>) -> Response {
        // Without randomness the ids are nil: a refusal needs no better.
        let trace = random().map_or(Guid::NIL, Guid::from_random);
        let correlation = correlation.unwrap_or_else(|| random().map_or(Guid::NIL, Guid::from_random));
        let timestamp = error_timestamp(now);
        let numbered = self.number.map_or(String::new(), |number| format!("AADSTS{number}: "));
        let description = format!(
            "{numbered}{} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {timestamp}",
            self.message
        );
        let body = json!({
            "error": self.error,
            "error_description": description,
            "error_codes": self.number.as_slice(),
            "timestamp": timestamp,
            "trace_id": trace.to_string(),
            "correlation_id": correlation.to_string(),
        });
        let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
        let mut response = (self.status, no_store, Json(body)).into_response();
        if let Some((name, value)) = self.extra_header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn invalid_client(number: u32, message: String) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_client", Some(number), message)
    }

    fn bad_request(error: &'static str, number: u32, message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, Some(number), message)
    }

    fn new(status: StatusCode, error: &'static str, number: Option<u32>, message: String) -> Self {
        Self { status, error, number, message, extra_header: None }
    }
}

/// Not the client's mistake, so these two are the only 5xx.
impl From<RandomSourceFailed> for Problem {
    fn from(failure: RandomSourceFailed) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, format!("{failure}."))
    }
}

impl From<SigningKeyError> for Problem {
    fn from(failure: SigningKeyError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, format!("{failure}."))
    }
}

/// The GUID by which the client will look for its request in a log, if it sent one.
pub(super) fn correlation_id(headers: &HeaderMap) -> Option<Guid> {
    headers.get("client-request-id")?.to_str().ok()?.parse().ok()
}
