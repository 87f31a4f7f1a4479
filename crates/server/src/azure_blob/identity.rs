//! The pool's own identity at Azure Storage: a token from the machine's identity endpoint, kept while it is good.
//!
//! Such endpoints speak plain http, to whoever is on the machine; so only addresses that never leave it are taken.

use crate::https::{CallError, over};
use crate::output::chain;
use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use service::backup::TargetError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use zeroize::Zeroizing;

const RESOURCE: &str = "https%3A%2F%2Fstorage.azure.com%2F";
const API_VERSION: &str = "2018-02-01";
const TIME: Duration = Duration::from_secs(10);
const ANSWER_BYTES: usize = 64 * 1024;
/// A token is not used that ends within this.
const MARGIN: Duration = Duration::from_secs(300);
/// Whatever an endpoint says, it is asked again after this.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 3600);
const HTTP_PORT: u16 = 80;

/// Such as `http://169.254.169.254/metadata/identity/oauth2/token`.
#[derive(Clone, Debug, Eq, PartialEq, Deserialize, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct IdentityEndpoint {
    address: SocketAddr,
    path: String,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "an identity endpoint is http://ADDRESS[:PORT]/PATH, with an address that is link-local or of this machine itself"
)]
pub struct MalformedEndpoint;

impl IdentityEndpoint {
    pub fn new(address: SocketAddr, path: &str) -> Result<Self, MalformedEndpoint> {
        let stays_here = match address.ip() {
            IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
            IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
        };
        let is_path = path.starts_with('/')
            && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte));
        if stays_here && is_path {
            Ok(Self { address, path: path.to_owned() })
        } else {
            Err(MalformedEndpoint)
        }
    }
}

impl FromStr for IdentityEndpoint {
    type Err = MalformedEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (authority, path) =
            text.strip_prefix("http://").and_then(|rest| rest.split_once('/')).ok_or(MalformedEndpoint)?;
        let bare = || Some(SocketAddr::new(authority.trim_matches(['[', ']']).parse().ok()?, HTTP_PORT));
        let address = authority.parse().ok().or_else(bare).ok_or(MalformedEndpoint)?;
        Self::new(address, &format!("/{path}"))
    }
}

impl TryFrom<String> for IdentityEndpoint {
    type Error = MalformedEndpoint;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IdentityEndpoint> for String {
    fn from(endpoint: IdentityEndpoint) -> Self {
        endpoint.to_string()
    }
}

impl fmt::Display for IdentityEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.address, self.path)
    }
}

/// Tokens for Azure Storage. No `Debug`: it holds one.
pub struct IdentityTokens {
    endpoint: IdentityEndpoint,
    kept: Mutex<Option<Kept>>,
}

pub(super) struct Kept {
    /// `Bearer …`, marked as sensitive, so that no `Debug` shows it.
    pub bearer: HeaderValue,
    pub until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Zeroizing<String>,
    /// A number, or as most endpoints have it, one in quotation marks.
    expires_in: serde_json::Value,
}

impl IdentityTokens {
    pub fn new(endpoint: IdentityEndpoint) -> Self {
        Self { endpoint, kept: Mutex::new(None) }
    }

    /// The header that shows who asks.
    pub async fn bearer(&self) -> Result<HeaderValue, TargetError> {
        if let Some(kept) = self.kept.lock().as_ref().filter(|kept| Instant::now() < kept.until) {
            return Ok(kept.bearer.clone());
        }
        let refused = |reason: String| {
            TargetError::Unreachable(format!("no token for storage from {}: {reason}", self.endpoint))
        };
        let answer = match tokio::time::timeout(TIME, self.ask()).await {
            Ok(answer) => answer.map_err(|error| refused(chain(&error)))?,
            Err(_elapsed) => return Err(refused(format!("no answer within {} s", TIME.as_secs()))),
        };
        if answer.status() != StatusCode::OK {
            return Err(refused(format!("it answered {}", answer.status())));
        }
        let kept =
            Kept::read(answer.body()).ok_or_else(|| refused("it answered with something else".to_owned()))?;
        let bearer = kept.bearer.clone();
        *self.kept.lock() = Some(kept);
        Ok(bearer)
    }

    async fn ask(&self) -> Result<Response<Bytes>, CallError> {
        let IdentityEndpoint { address, path } = &self.endpoint;
        let host = address.to_string();
        let dial = |source| {
            CallError::Dial(host::DialError::Failed {
                host: address.ip().to_string(),
                port: address.port(),
                source,
            })
        };
        let stream = TcpStream::connect(address).await.map_err(dial)?;
        let mut request = Request::new(Full::default());
        let path = format!("{path}?api-version={API_VERSION}&resource={RESOURCE}");
        *request.uri_mut() = path.parse::<Uri>().unwrap_or_default();
        request.headers_mut().insert("metadata", HeaderValue::from_static("true"));
        if let Ok(value) = HeaderValue::from_str(&host) {
            request.headers_mut().insert(HOST, value);
        }
        over(stream, &host, request, ANSWER_BYTES).await
    }
}

impl Kept {
    pub fn read(body: &[u8]) -> Option<Self> {
        // Members have names: a list would be taken for them in their order.
        if !body.trim_ascii_start().starts_with(b"{") {
            return None;
        }
        let answer: Answer = serde_json::from_slice(body).ok()?;
        let seconds = match &answer.expires_in {
            serde_json::Value::String(text) => text.parse().ok()?,
            other => other.as_u64()?,
        };
        let text = Zeroizing::new(format!("Bearer {}", *answer.access_token));
        let mut bearer = HeaderValue::from_str(&text).ok()?;
        bearer.set_sensitive(true);
        let good_for = Duration::from_secs(seconds).min(LONGEST).saturating_sub(MARGIN);
        Some(Self { bearer, until: Instant::now() + good_for })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_endpoint_is_on_this_machine() {
        for (text, shown) in [
            (
                "http://169.254.169.254/metadata/identity/oauth2/token",
                "http://169.254.169.254:80/metadata/identity/oauth2/token",
            ),
            (
                "http://127.0.0.1:8448/metadata/identity/oauth2/token",
                "http://127.0.0.1:8448/metadata/identity/oauth2/token",
            ),
            ("http://[::1]/token", "http://[::1]:80/token"),
        ] {
            let endpoint: IdentityEndpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(shown.parse(), Ok(endpoint));
        }
        for text in [
            "",
            "https://169.254.169.254/token",
            "http://10.0.0.1/token",
            "http://0.0.0.0/token",
            "http://localhost/token",
            "http://127.0.0.1",
            "http://user@127.0.0.1/token",
            "http://127.0.0.1/to ken",
            "http://127.0.0.1/token?x=y",
            "http://[::ffff:127.0.0.1]/token",
            "http://127.0.0.1.evil.example/token",
        ] {
            assert!(text.parse::<IdentityEndpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_answer_is_a_token_and_how_long_it_is_good() {
        let kept =
            Kept::read(br#"{"access_token":"abc","expires_in":"3599","token_type":"Bearer"}"#).unwrap();
        assert_eq!(kept.bearer, "Bearer abc");
        assert!(!format!("{:?}", kept.bearer).contains("abc"));
        assert!(kept.until > Instant::now() + Duration::from_secs(3000));
        assert!(Kept::read(br#"{"access_token":"abc","expires_in":60}"#).unwrap().until <= Instant::now());
        assert!(Kept::read(br#"{"access_token":"abc","expires_in":18446744073709551615}"#).is_some());
        for body in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"access_token":"abc"}"#,
            br#"{"expires_in":1}"#,
            br#"{"access_token":"a\nb","expires_in":1}"#,
            br#"{"access_token":"abc","expires_in":"soon"}"#,
            br#"{"access_token":"abc","expires_in":-1}"#,
        ] {
            assert!(Kept::read(body).is_none());
        }
    }

    proptest! {
        /// Whatever the endpoint answers is one header's value, good for no longer than a token may be, or nothing.
        #[test]
        fn any_answer_is_a_token_or_none(
            anything in proptest::collection::vec(any::<u8>(), 0..100),
            token in prop_oneof!["\\PC{0,40}", "[ -~\r\n\t]{0,40}"],
            seconds in prop_oneof!["-?[0-9]{1,25}", "\"[0-9]{1,25}\"", "null|true|1e400|\\[\\]"],
        ) {
            let token = serde_json::Value::String(token).to_string();
            let shaped = format!(r#"{{"access_token":{token},"expires_in":{seconds}}}"#);
            for body in [&anything[..], shaped.as_bytes()] {
                if let Some(kept) = Kept::read(body) {
                    let value = kept.bearer.as_bytes();
                    prop_assert!(value.starts_with(b"Bearer ") && !value.contains(&b'\r') && !value.contains(&b'\n'));
                    prop_assert!(kept.until <= Instant::now() + LONGEST);
                }
            }
        }
    }
}
