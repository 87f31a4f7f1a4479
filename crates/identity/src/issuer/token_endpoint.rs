//! `POST /{tenant}/oauth2/v2.0/token`: a client secret or assertion for an access token (RFC 6749 section 4.4).

use super::problem::Problem;
use super::replay::Unspent;
use super::{
    ClientRegistration, Issuer, MAX_BODY_BYTES, STORAGE_AUDIENCE, TokenForm, assertion, random, secret_digest,
};
use crate::text::base64url;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::time::Time;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Most form fields that are read. Azure clients send up to seven.
const MAX_FIELDS: usize = 32;
/// Compared with when there is no such client. No secret hashes to it, as far as anyone will find.
const NOBODY: [u8; 32] = [0; 32];

/// Answers a token request. `claims` and `client_info`, which Azure clients send, are ignored.
pub(super) async fn answer(
    issuer: &Issuer,
    form: TokenForm,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let fields = Fields::read(headers, body).await?;
    match fields.required("grant_type")? {
        "client_credentials" => {}
        other => return Err(Problem::unsupported_grant(other)),
    }
    let now = issuer.now();
    let Authenticated { client, unspent } = authenticate(issuer, headers, &fields, now)?;
    let audience = audience(issuer, &fields)?;
    if let Some(unspent) = unspent {
        issuer.replay.spend(&unspent, &audience, now).map_err(|replay| Problem::replayed(&replay))?;
    }
    let token = issue(issuer, client, &audience)?;
    let answer = match form {
        TokenForm::V1 => token.answer_v1(&audience),
        TokenForm::V2 => token.answer_v2(),
    };
    let no_store = [(header::CACHE_CONTROL, "no-store"), (header::PRAGMA, "no-cache")];
    Ok((no_store, Json(answer)).into_response())
}

/// A client that proved who it is.
pub(super) struct Authenticated<'a> {
    pub(super) client: &'a ClientRegistration,
    /// By what it did, where that may be used once only.
    pub(super) unspent: Option<Unspent>,
}

/// The client that the request's secret or assertion belongs to.
fn authenticate<'a>(
    issuer: &'a Issuer,
    headers: &HeaderMap,
    fields: &Fields,
    now: Time,
) -> Result<Authenticated<'a>, Problem> {
    let basic = basic_credentials(headers)?;
    let in_header = basic.is_some();
    let (client_id, secret) = match basic {
        // RFC 6749 section 2.3: one method only. A client id beside the header is harmless if it is the same.
        Some((client_id, _))
            if fields.optional("client_id").is_some_and(|other| other != client_id.as_str()) =>
        {
            return Err(Problem::malformed("Authorization header and body name different clients."));
        }
        Some(_) if fields.optional("client_secret").is_some() => {
            return Err(Problem::malformed(
                "The client secret is in both the Authorization header and the body.",
            ));
        }
        Some(_) if fields.optional("client_assertion").is_some() => {
            return Err(Problem::malformed(
                "An Authorization header and the parameter 'client_assertion' exclude each other.",
            ));
        }
        Some(credentials) => credentials,
        None if fields.optional("client_assertion").is_some() => {
            if fields.optional("client_secret").is_some() {
                return Err(Problem::malformed(
                    "Parameters 'client_secret' and 'client_assertion' exclude each other.",
                ));
            }
            return assertion::authenticate(issuer, fields, now);
        }
        None => {
            let secret = fields.required("client_secret");
            (fields.required("client_id")?.to_owned(), Zeroizing::new(secret?.to_owned()))
        }
    };
    let client = issuer.client(&client_id);
    // The same work whether or not the client exists.
    let expected = client.as_ref().map_or(NOBODY, |client| client.secret_sha256.unwrap_or(NOBODY));
    let matches: bool = secret_digest(&secret).ct_eq(&expected).into();
    let client = client?;
    match client.secret_sha256 {
        None => Err(Problem::no_secret(client.client_id, in_header)),
        Some(_) if !matches => Err(Problem::wrong_secret(client.client_id, in_header)),
        Some(_) => Ok(Authenticated { client, unspent: None }),
    }
}

/// The audience that `scope` or `resource` asks for, in its canonical spelling.
fn audience(issuer: &Issuer, fields: &Fields) -> Result<String, Problem> {
    let audiences = &issuer.config.audiences;
    match (fields.optional("scope"), fields.optional("resource")) {
        (Some(_), Some(_)) => {
            Err(Problem::malformed("Parameters 'scope' and 'resource' exclude each other."))
        }
        (None, None) => Err(Problem::missing_parameter("scope")),
        (Some(scope), None) => resource_of_scope(scope)
            .and_then(|resource| audiences.canonical(resource))
            .ok_or_else(|| Problem::invalid_scope(scope, audiences)),
        (None, Some(resource)) => {
            audiences.canonical(resource).ok_or_else(|| Problem::invalid_resource(resource, audiences))
        }
    }
}

/// The one resource that a scope names. MSAL for Go adds the scopes of OpenID Connect to every request, also where there
/// is no user to be known by them.
fn resource_of_scope(scope: &str) -> Option<&str> {
    let openid = ["openid", "profile", "offline_access"];
    let mut others = scope.split(' ').filter(|word| !word.is_empty() && !openid.contains(word));
    let resource = others.next()?;
    // One `/.default` only: an audience that ends in a slash gives `https://host//.default`.
    others.next().is_none().then(|| resource.strip_suffix("/.default"))?
}

/// Signs on the thread of the request: one RSA-2048 signature, 0.7 ms where it was measured.
pub(super) fn issue(
    issuer: &Issuer,
    client: &ClientRegistration,
    audience: &str,
) -> Result<IssuedToken, Problem> {
    let now = issuer.now().int_date().unix_seconds();
    let lifetime = issuer.config.token_lifetime.as_secs() as i64;
    let object_id = client.object_id.to_string();
    let client_id = client.client_id.to_string();
    // Entra ID gives storage tokens of its first version, and emulators of storage take no other issuer's.
    let (iss, ver) = match audience {
        STORAGE_AUDIENCE => (format!("https://sts.windows.net/{}/", issuer.config.tenant.as_str()), "1.0"),
        _ => (issuer.issuer(), "2.0"),
    };
    let claims = AccessToken {
        aud: audience,
        iss,
        iat: now,
        nbf: now,
        exp: now.saturating_add(lifetime),
        tid: issuer.config.tenant.as_str(),
        oid: &object_id,
        sub: &object_id,
        appid: &client_id,
        azp: &client_id,
        idtyp: "app",
        ver,
        uti: base64url(random::<16>()?),
    };
    let token = issuer.keys.load().current.sign(&claims)?;
    Ok(IssuedToken { token, not_before: now, expires: claims.exp, lifetime })
}

#[derive(Serialize)]
struct AccessToken<'a> {
    aud: &'a str,
    iss: String,
    iat: i64,
    nbf: i64,
    exp: i64,
    tid: &'a str,
    oid: &'a str,
    sub: &'a str,
    appid: &'a str,
    azp: &'a str,
    idtyp: &'a str,
    ver: &'a str,
    /// Makes every token different.
    uti: String,
}

pub(super) struct IssuedToken {
    token: String,
    not_before: i64,
    expires: i64,
    lifetime: i64,
}

impl IssuedToken {
    fn answer_v2(self) -> Value {
        // One second less than it lives, so that a client renews before it ends.
        let expires_in = self.lifetime - 1;
        json!({
            "token_type": "Bearer",
            "expires_in": expires_in,
            "ext_expires_in": expires_in,
            "access_token": self.token,
        })
    }

    /// The older form writes its numbers as strings.
    pub(super) fn answer_v1(self, resource: &str) -> Value {
        let expires_in = (self.lifetime - 1).to_string();
        json!({
            "token_type": "Bearer",
            "expires_in": expires_in,
            "ext_expires_in": expires_in,
            "expires_on": self.expires.to_string(),
            "not_before": self.not_before.to_string(),
            "resource": resource,
            "access_token": self.token,
        })
    }
}

/// The fields of a form, each at most once. Wiped on drop: one of them is the secret.
pub(super) struct Fields(Vec<(String, Zeroizing<String>)>);

impl Fields {
    async fn read(headers: &HeaderMap, body: Body) -> Result<Self, Problem> {
        let content_type =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
        let media_type = content_type.split(';').next().unwrap_or("").trim();
        if !media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            return Err(Problem::malformed(
                "The request body must be of type application/x-www-form-urlencoded.",
            ));
        }
        let declared =
            headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > MAX_BODY_BYTES as u64) {
            return Err(Problem::body_too_large(MAX_BODY_BYTES));
        }
        // A body that breaks off ends here, too: nobody is left to tell the two apart.
        let body = axum::body::to_bytes(body, MAX_BODY_BYTES).await;
        Self::parse(&body.map_err(|_| Problem::body_too_large(MAX_BODY_BYTES))?)
    }

    pub(super) fn parse(body: &[u8]) -> Result<Self, Problem> {
        let body =
            std::str::from_utf8(body).map_err(|_| Problem::malformed("The request body is not UTF-8."))?;
        let mut fields = Self(Vec::new());
        for pair in body.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let undecodable = || Problem::malformed("The request body is not form-urlencoded UTF-8.");
            let name = form_decode(name).ok_or_else(undecodable)?;
            let value = form_decode(value).ok_or_else(undecodable)?;
            if fields.0.iter().any(|(other, _)| *other == *name) {
                return Err(Problem::malformed("A parameter occurs more than once in the request body."));
            }
            if fields.0.len() == MAX_FIELDS {
                return Err(Problem::malformed(format!(
                    "The request body has more than {MAX_FIELDS} parameters."
                )));
            }
            fields.0.push((name.to_string(), value));
        }
        Ok(fields)
    }

    /// RFC 6749 section 3.2: a parameter without a value counts as left out.
    pub(super) fn optional(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(other, value)| other == name && !value.is_empty())?;
        Some(value)
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, Problem> {
        self.optional(name).ok_or_else(|| Problem::missing_parameter(name))
    }
}

/// Client id and secret of an `Authorization: Basic` header; each is form-encoded inside (RFC 6749 section 2.3.1).
fn basic_credentials(headers: &HeaderMap) -> Result<Option<(String, Zeroizing<String>)>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let credentials = || {
        let (scheme, encoded) = value.to_str().ok()?.split_once(' ')?;
        let decoded = Zeroizing::new(STANDARD.decode(encoded.trim()).ok()?);
        let (client_id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let basic = scheme.eq_ignore_ascii_case("basic");
        Some((form_decode(client_id)?.to_string(), form_decode(secret)?)).filter(|_| basic)
    };
    match credentials() {
        Some(credentials) => Ok(Some(credentials)),
        None => {
            Err(Problem::malformed("The Authorization header is not HTTP Basic with client id and secret."))
        }
    }
}

fn form_decode(text: &str) -> Option<Zeroizing<String>> {
    let spaced = Zeroizing::new(text.replace('+', " "));
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?.into_owned();
    Some(Zeroizing::new(decoded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded_once_and_bounded() {
        let fields =
            Fields::parse(b"a=1+2&b=%2B%26%3D&c=&d&&scope=https%3A%2F%2Fx%2F%2F.default").ok().unwrap();
        assert_eq!(fields.optional("a"), Some("1 2"));
        assert_eq!(fields.optional("b"), Some("+&="));
        assert_eq!(fields.optional("c"), None);
        assert_eq!(fields.optional("d"), None);
        assert_eq!(fields.optional("scope"), Some("https://x//.default"));

        let many: String = (0..=MAX_FIELDS).map(|index| format!("p{index}=1&")).collect();
        for body in [&b"a=1&a=2"[..], b"a=1&%61=1", b"a=%ff", b"\xff=1", many.as_bytes()] {
            assert!(Fields::parse(body).is_err());
        }
    }
}
