//! The issuer's public documents: discovery, key set, instance metadata.

use super::Issuer;
use super::signing_key::{PublicSigningKey, SigningKeys};
use axum::Json;
use axum::response::{IntoResponse, Response};
use domain::principal::TenantId;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

/// OpenID Provider Metadata (OpenID Connect Discovery 1.0 section 3) with the members that MSAL reads.
///
/// `issuer` is of this document's own origin, as MSAL for JavaScript checks, even where `iss` of the tokens is another name:
/// Azure clients do not read the tokens, and pools pin what they accept.
///
/// `authorization_endpoint` and `device_authorization_endpoint` are named because clients want them to exist; they
/// answer that this issuer has no users.
pub(super) fn discovery(issuer: &Issuer, tenant: &TenantId) -> Response {
    let base = format!("{}/{tenant}", issuer.config.base_url);
    Json(json!({
        "issuer": issuer.served_as(),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "device_authorization_endpoint": format!("{base}/oauth2/v2.0/devicecode"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["client_credentials"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": ["RS256", "PS256", "ES256"],
        "scopes_supported": [".default"],
        "claims_supported": ["aud", "iss", "iat", "nbf", "exp", "tid", "oid", "sub", "appid", "azp", "idtyp", "ver"],
    }))
    .into_response()
}

/// JSON Web Key Set with every key that is listed. No `x5c`: there is no certificate behind a key.
pub(super) fn key_set(keys: &SigningKeys) -> Value {
    let jwk = |key: &PublicSigningKey| {
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": key.key_id(), "n": key.modulus(), "e": key.exponent(),
        })
    };
    json!({"keys": keys.listed().map(jwk).collect::<Vec<_>>()})
}

/// Instance metadata: "this host is a known authority, and these are its names". Whatever host the client asked
/// about, only this one is vouched for.
pub(super) fn instance(issuer: &Issuer, query: &str) -> Response {
    let authority = issuer.config.base_url.trim_start_matches("https://");
    let mut aliases = vec![authority];
    // MSAL asks by host name, without the port.
    if let Some((host, port)) = authority.rsplit_once(':')
        && !port.ends_with(']')
    {
        aliases.push(host);
    }
    let tenant = asked_tenant(query)
        .and_then(|asked| issuer.tenant(&asked).ok().cloned())
        .unwrap_or_else(|| issuer.config.tenant.clone());
    Json(json!({
        "tenant_discovery_endpoint":
            format!("{}/{tenant}/v2.0/.well-known/openid-configuration", issuer.config.base_url),
        "api-version": "1.1",
        "metadata": [{"preferred_network": authority, "preferred_cache": authority, "aliases": aliases}],
    }))
    .into_response()
}

/// The tenant in `authorization_endpoint=https://host/TENANT/oauth2/v2.0/authorize`.
fn asked_tenant(query: &str) -> Option<String> {
    let value = query.split('&').find_map(|pair| pair.strip_prefix("authorization_endpoint="))?;
    let url = percent_decode_str(value).decode_utf8().ok()?;
    let (_, path) = url.strip_prefix("https://")?.split_once('/')?;
    path.split('/').next().map(str::to_owned)
}
