//! Client assertions (RFC 7523 section 2.2): a signed JWT in place of a client secret.
//!
//! There are two kinds. A client with a certificate makes them itself, signed with the certificate's key. A federated
//! client presents the token that another issuer gave it; that is verified against the key set that was pinned for
//! it. Which kind it is, `iss` says: a client that vouches for itself, or another that does.
//!
//! A certificate is looked for among those of the client that asks, and nothing in a header is followed or fetched.

use super::client_certificate::ClientCertificate;
use super::federation::FederatedCredential;
use super::problem::Problem;
use super::replay::Unspent;
use super::token_endpoint::{Authenticated, Fields};
use super::{ClientRegistration, Issuer};
use crate::jws::{Jws, json, numeric_date, present};
use crate::key_set::{KeySet, TokenAlgorithm, VerificationKey};
use crate::text::{base64url_decode, rfc3339, sha256, shown};
use crate::token::{CLOCK_LEEWAY_SECONDS, MAX_TOKEN_BYTES, TokenError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use domain::guid::Guid;
use domain::time::Time;
use serde::Deserialize;
use serde_json::Value;

/// For how long an assertion that a client signed may still be good. Clients make them for five to ten minutes.
pub const MAX_ASSERTION_LIFETIME_SECONDS: i64 = 3600;
/// For how long a token of another issuer may still be good: that of a Kubernetes service account can live for a day.
pub const MAX_FEDERATED_LIFETIME_SECONDS: i64 = 86_400;
/// The one assertion type of RFC 7523.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Longest `jti`, in bytes.
const MAX_JTI_BYTES: usize = 256;

/// The client that the request's assertion belongs to.
pub(super) fn authenticate<'a>(
    issuer: &'a Issuer,
    fields: &Fields,
    now: Time,
) -> Result<Authenticated<'a>, Problem> {
    match fields.optional("client_assertion_type") {
        Some(ASSERTION_TYPE) => {}
        Some(_) => {
            let message = format!("Parameter 'client_assertion_type' must be '{ASSERTION_TYPE}'.");
            return Err(Problem::malformed(message));
        }
        None => return Err(Problem::missing_parameter("client_assertion_type")),
    }
    let assertion = Assertion::parse(fields.required("client_assertion")?)
        .map_err(|reason| Problem::malformed_assertion(&reason))?;
    // RFC 7521 section 4.2: the parameter may be left out, as the assertion says who its subject is.
    let asked = fields.optional("client_id").or(assertion.claims.sub.as_deref());
    let client = issuer.client(asked.ok_or_else(|| Problem::missing_parameter("client_id"))?)?;
    if names(&assertion.claims.iss, client.client_id) {
        let unspent = self_signed(issuer, client, &assertion, now)?;
        return Ok(Authenticated { client, unspent: Some(unspent) });
    }
    federated(client, &assertion, now)?;
    Ok(Authenticated { client, unspent: None })
}

/// Judges an assertion that the client signed with the key of one of its certificates.
fn self_signed(
    issuer: &Issuer,
    client: &ClientRegistration,
    assertion: &Assertion<'_>,
    now: Time,
) -> Result<Unspent, Problem> {
    let refused = |reason: &str| Problem::assertion_key(client.client_id, reason);
    let certificate = assertion.header.certificate(client).map_err(refused)?;
    assertion.verify(client, certificate.key())?;
    if !certificate.is_valid_at(now) {
        return Err(refused("its certificate is not valid yet or not any more"));
    }
    let claims = &assertion.claims;
    if !names(&claims.sub, client.client_id) {
        return Err(Problem::assertion_of_another("sub"));
    }
    let audience = claims.audience()?;
    if !is_own_endpoint(issuer, audience) {
        return Err(Problem::assertion_audience(audience));
    }
    let expires = claims.judge_time(MAX_ASSERTION_LIFETIME_SECONDS, now)?;
    let jti = claims.jti.clone().filter(|jti| !jti.is_empty() && jti.len() <= MAX_JTI_BYTES);
    let jti = jti.ok_or_else(|| Problem::malformed_assertion(&TokenError::MissingClaim { claim: "jti" }))?;
    Ok(Unspent { client: client.client_id, jti, assertion: assertion.hash, expires })
}

/// Judges a token of another issuer. It may be used more than once: a workload reads it from a file that is written
/// anew every hour or so.
fn federated(client: &ClientRegistration, assertion: &Assertion<'_>, now: Time) -> Result<(), Problem> {
    let claims = &assertion.claims;
    let credential = claims.credential(&client.federated)?;
    let key = assertion.header.key(credential.keys());
    let key = key.map_err(|reason| Problem::assertion_key(client.client_id, reason))?;
    assertion.verify(client, key)?;
    claims.judge_time(MAX_FEDERATED_LIFETIME_SECONDS, now).map(|_| ())
}

/// Whether a claim is the client's id.
fn names(claim: &Option<String>, client: Guid) -> bool {
    claim.as_deref().and_then(|id| id.parse::<Guid>().ok()) == Some(client)
}

/// Whether `audience` is a token endpoint here, in either form and for either tenant name, or the issuer itself.
/// Some clients leave the port away.
fn is_own_endpoint(issuer: &Issuer, audience: &str) -> bool {
    let audience = audience.strip_suffix('/').unwrap_or(audience);
    if audience == issuer.issuer() {
        return true;
    }
    let base = issuer.config.base_url.as_str();
    let without_port =
        base.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let bases = [Some(base), without_port.map(|(host, _)| host)];
    let tenants = [Some(&issuer.config.tenant), issuer.config.alias_tenant.as_ref()];
    bases.into_iter().flatten().any(|base| {
        tenants.into_iter().flatten().any(|tenant| {
            ["oauth2/v2.0/token", "oauth2/token", "v2.0"]
                .iter()
                .any(|path| audience.eq_ignore_ascii_case(&format!("{base}/{tenant}/{path}")))
        })
    })
}

/// An assertion, read and not yet verified.
struct Assertion<'a> {
    jws: Jws<'a>,
    /// SHA-256 of all of it.
    hash: [u8; 32],
    header: Header,
    algorithm: TokenAlgorithm,
    claims: Claims,
}

impl<'a> Assertion<'a> {
    fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong { length: text.len() });
        }
        let jws = Jws::split(text)?;
        let header: Header = json(jws.header, "header")?;
        if header.crit {
            return Err(TokenError::CriticalExtension);
        }
        if let Some(typ) = &header.typ
            && !["jwt", "client-authentication+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known))
        {
            return Err(TokenError::WrongType { found: shown(typ) });
        }
        let algorithm = TokenAlgorithm::from_name(&header.alg)
            .ok_or_else(|| TokenError::UnsupportedAlgorithm { found: shown(&header.alg) })?;
        let claims = json(jws.payload, "payload")?;
        Ok(Self { hash: sha256(text.as_bytes()), jws, header, algorithm, claims })
    }

    fn verify(&self, client: &ClientRegistration, key: &VerificationKey) -> Result<(), Problem> {
        self.jws
            .verify(key, self.algorithm)
            .map_err(|reason| Problem::assertion_key(client.client_id, reason))
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    x5t: Option<String>,
    #[serde(rename = "x5t#S256")]
    x5t_sha256: Option<String>,
    x5c: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

impl Header {
    /// The certificate of `client` that the header names; where it names one in several ways, by all of them.
    fn certificate<'a>(&self, client: &'a ClientRegistration) -> Result<&'a ClientCertificate, &'static str> {
        let undecodable = "a certificate in its header is not base64";
        let sha1 = self.x5t.as_deref().map(|x5t| thumbprint(x5t).ok_or(undecodable)).transpose()?;
        let sha256 = self.x5t_sha256.as_deref().map(|x5t| thumbprint(x5t).ok_or(undecodable)).transpose()?;
        let leaf = self.x5c.as_deref().map(|chain| leaf(chain).ok_or(undecodable)).transpose()?;
        if sha1.is_none() && sha256.is_none() && leaf.is_none() {
            return Err("its header names no certificate: expected x5t, x5t#S256 or x5c");
        }
        let named = |certificate: &&ClientCertificate| {
            sha1.as_ref().is_none_or(|sha1| certificate.has_sha1(sha1))
                && sha256.as_ref().is_none_or(|sha256| certificate.has_sha256(sha256))
                && leaf.as_ref().is_none_or(|leaf| certificate.is(leaf))
        };
        client.certificates.iter().find(named).ok_or("the certificate that it names is not registered")
    }

    /// The key of a pinned set that the header names.
    fn key<'a>(&self, keys: &'a KeySet) -> Result<&'a VerificationKey, &'static str> {
        let named = match (&self.kid, &self.x5t) {
            (Some(kid), _) => keys.by_kid(kid),
            (None, Some(x5t)) => keys.by_x5t(x5t),
            (None, None) => return Err("its header names no key: expected kid or x5t"),
        };
        named.ok_or("it is signed with a key that is not pinned for its issuer")
    }
}

/// A thumbprint in base64 of either alphabet, padded or not: MSAL pads, and for Go writes the standard alphabet.
fn thumbprint(text: &str) -> Option<Vec<u8>> {
    base64url_decode(&text.trim_end_matches('=').replace('+', "-").replace('/', "_"))
}

/// The first certificate of a chain. MSAL for Python keeps the line breaks of the PEM.
fn leaf(chain: &[String]) -> Option<Vec<u8>> {
    let text: String = chain.first()?.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    sub: Option<String>,
    aud: Option<Value>,
    jti: Option<String>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
}

impl Claims {
    /// The one audience: an assertion for several could be presented here by another of them.
    fn audience(&self) -> Result<&str, Problem> {
        let one = match &self.aud {
            Some(Value::String(one)) => Some(one.as_str()),
            Some(Value::Array(several)) => match several.as_slice() {
                [one] => one.as_str(),
                _ => None,
            },
            _ => None,
        };
        one.ok_or_else(|| {
            let expected = "exactly one audience";
            Problem::malformed_assertion(&TokenError::MalformedClaim { claim: "aud", expected })
        })
    }

    /// The credential that the claims are for. They are not verified yet; they only choose whose key set will do that.
    fn credential<'a>(
        &self,
        registered: &'a [FederatedCredential],
    ) -> Result<&'a FederatedCredential, Problem> {
        let issuer = self.iss.as_deref().unwrap_or_default();
        let subject = self.sub.as_deref().unwrap_or_default();
        let audience = self.audience()?;
        let of_issuer: Vec<_> = registered.iter().filter(|credential| credential.issuer == issuer).collect();
        if of_issuer.is_empty() {
            return Err(Problem::not_federated(700_211, "issuer", issuer));
        }
        let of_subject: Vec<_> =
            of_issuer.into_iter().filter(|credential| credential.subject == subject).collect();
        if of_subject.is_empty() {
            return Err(Problem::not_federated(700_213, "subject", subject));
        }
        let of_audience = of_subject.into_iter().find(|credential| credential.audience == audience);
        of_audience.ok_or_else(|| Problem::not_federated(700_212, "audience", audience))
    }

    /// When the assertion ends, if `now` is within its time and it does not live too long.
    fn judge_time(&self, longest_seconds: i64, now: Time) -> Result<Time, Problem> {
        let date = |claim: &'static str, value: &Option<Value>| {
            let expected = "seconds since 1970, up to year 9999";
            let malformed = || Problem::malformed_assertion(&TokenError::MalformedClaim { claim, expected });
            value.as_ref().map(|value| numeric_date(value).ok_or_else(malformed)).transpose()
        };
        let expires = date("exp", &self.exp)?
            .ok_or_else(|| Problem::malformed_assertion(&TokenError::MissingClaim { claim: "exp" }))?;
        let (not_before, issued) = (date("nbf", &self.nbf)?, date("iat", &self.iat)?);
        if now >= expires {
            return Err(Problem::assertion_time(format_args!("it expired at {}", rfc3339(expires))));
        }
        if expires > later(now, longest_seconds + CLOCK_LEEWAY_SECONDS) {
            let reason =
                format_args!("it ends at {}, more than {longest_seconds} seconds from now", rfc3339(expires));
            return Err(Problem::assertion_time(reason));
        }
        for begins in [not_before, issued].into_iter().flatten() {
            if begins > later(now, CLOCK_LEEWAY_SECONDS) {
                return Err(Problem::assertion_time(format_args!("it begins at {}", rfc3339(begins))));
            }
        }
        Ok(expires)
    }
}

fn later(time: Time, seconds: i64) -> Time {
    Time::from_unix_milliseconds(time.unix_milliseconds().saturating_add(seconds * 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thumbprints_come_in_four_spellings() {
        for text in ["-_8", "-_8=", "+/8", "+/8="] {
            assert_eq!(thumbprint(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        for text in ["-_9", "-_8!", "-", "é"] {
            assert_eq!(thumbprint(text), None, "{text}");
        }
    }

    #[test]
    fn the_leaf_of_a_chain_may_have_line_breaks() {
        let chain = |text: &str| leaf(&[text.to_owned(), "not looked at".to_owned()]);
        assert_eq!(chain("AQ\nID\r\n"), Some(vec![1, 2, 3]));
        assert_eq!(chain("AQ-D"), None);
        assert_eq!(leaf(&[]), None);
    }
}
