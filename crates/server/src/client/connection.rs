//! HTTPS to one origin: HTTP/1.1 over TLS, trusted roots from one file alone, no proxy and no redirect.
//!
//! Whatever comes back is foreign: its size and its time are bounded, and what is kept of it is wiped when dropped, as it
//! may be a plaintext or a token. The buffers of TLS and HTTP below are not.

use crate::CommandError;
use crate::https::port_of;
use bytes::{Buf, Bytes};
use http::header::{CONTENT_LENGTH, HOST, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

/// For each address, and for the handshake.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// From a request to the end of its answer. Making an RSA key of 4096 bits may take seconds, and may have to wait.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// The largest backup of a key is 1.7 MiB in base64url. A page of a list, or 64 KiB of plaintext in base64url, is well below.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// `https://host[:port]`, and nothing behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    host: String,
    port: u16,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not of the form https://host[:port]")]
pub struct MalformedOrigin(String);

impl Origin {
    const DEFAULT_PORT: u16 = 443;

    fn of(uri: &Uri) -> Option<Self> {
        let authority = uri.authority()?;
        let https = uri.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let host = authority.host().to_ascii_lowercase();
        let port = port_of(authority, Self::DEFAULT_PORT)?;
        // `http` hides who is named before an `@`.
        let plain = !authority.as_str().contains('@');
        let valid = ServerName::try_from(host.trim_matches(['[', ']'])).is_ok();
        (https && plain && valid).then_some(Self { host, port })
    }

    /// The path and query of `uri` if it leads to this very origin.
    pub fn own_path(&self, uri: &str) -> Option<String> {
        let uri: Uri = uri.parse().ok()?;
        // With its slash, also where the text went on with a query at once.
        let path = uri.path_and_query()?.to_string();
        (Self::of(&uri)? == *self).then_some(path)
    }

    /// The host name, without the port; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn address(&self) -> Option<IpAddr> {
        self.host.trim_matches(['[', ']']).parse().ok()
    }

    /// Whether the name says that this is the machine itself, or an address, so that nothing can be told from it.
    pub fn is_address_or_localhost(&self) -> bool {
        self.address().is_some() || self.host == "localhost"
    }

    /// As a `Host` header has it.
    fn authority(&self) -> String {
        match self.port {
            Self::DEFAULT_PORT => self.host.clone(),
            port => format!("{}:{port}", self.host),
        }
    }

    /// Names under `localhost` are this machine (RFC 6761 section 6.3), whatever a resolver says or does not say.
    async fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        if let Some(address) = self.address() {
            return Ok(vec![(address, self.port).into()]);
        }
        if self.host == "localhost" || self.host.ends_with(".localhost") {
            return Ok(vec![(Ipv4Addr::LOCALHOST, self.port).into()]);
        }
        Ok(tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect())
    }
}

impl FromStr for Origin {
    type Err = MalformedOrigin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MalformedOrigin(text.chars().take(200).collect());
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        let bare = matches!(uri.path(), "" | "/") && uri.query().is_none() && !text.contains('#');
        Self::of(&uri).filter(|_| bare).ok_or_else(malformed)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// The certificate authorities that a server's certificate must come from.
#[derive(Clone)]
pub struct Roots {
    config: Arc<ClientConfig>,
    from: String,
}

impl Roots {
    pub fn read(path: &Path) -> Result<Self, CommandError> {
        let from = path.display().to_string();
        let pem = std::fs::read(path)
            .map_err(|error| format!("cannot read the certificate authorities in {from}: {error}"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|_| format!("{from} is damaged: it is not PEM"))?;
            roots
                .add(certificate)
                .map_err(|error| format!("a certificate in {from} is of no use: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{from} holds no certificate in PEM").into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), from })
    }
}

/// A request, but for where it goes.
pub struct Message {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Bytes,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Zeroizing<Vec<u8>>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One origin and, from the first request on, a connection to it.
pub struct Channel {
    origin: Origin,
    roots: Roots,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    certificate: Option<CertificateDer<'static>>,
}

impl Channel {
    pub fn new(origin: Origin, roots: Roots) -> Self {
        Self { origin, roots, open: None }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The certificate that the server showed for itself, once there was an answer.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.open.as_ref()?.certificate.as_ref()
    }

    /// Sends `message` once. A request whose answer was lost is not repeated: it may have been done.
    pub async fn send(&mut self, message: Message) -> Result<Answer, CommandError> {
        let answer = tokio::time::timeout(ANSWER_TIME, self.exchange(message)).await;
        answer.map_err(|_| format!("{} did not answer within {} s", self.origin, ANSWER_TIME.as_secs()))?
    }

    async fn exchange(&mut self, message: Message) -> Result<Answer, CommandError> {
        let Message { method, path, headers, body } = message;
        let is_post = method == Method::POST;
        let length = body.len();
        let mut request = Request::builder().method(method).uri(path).body(Full::new(body))?;
        if is_post {
            // Some servers refuse a POST that does not say its length, be it none.
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        request.headers_mut().insert(HOST, HeaderValue::try_from(self.origin.authority())?);
        request.headers_mut().extend(headers);
        let lost = |origin: &Origin, error: hyper::Error| -> CommandError {
            format!("the connection to {origin} broke off before the answer was complete: {error}").into()
        };
        let sender = self.sender().await?;
        let sent = sender.send_request(request).await;
        let response = sent.map_err(|error| lost(&self.origin, error))?;
        let (head, mut body) = response.into_parts();
        let body = read(&self.origin, &mut body, lost).await?;
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// The open connection, or a new one where there is none or the server closed it.
    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, CommandError> {
        let usable = match &mut self.open {
            Some(open) => open.sender.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            self.open = Some(open(&self.origin, &self.roots).await?);
        }
        Ok(&mut self.open.as_mut().ok_or("there is no connection")?.sender)
    }
}

async fn read(
    origin: &Origin,
    body: &mut Incoming,
    lost: impl Fn(&Origin, hyper::Error) -> CommandError,
) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let too_long =
        || -> CommandError { format!("{origin} answered more than {MAX_ANSWER_BYTES} bytes").into() };
    // Room for all of it at once where the length is known: a vector that grows leaves copies behind.
    let expected = usize::try_from(body.size_hint().exact().unwrap_or(0)).unwrap_or(usize::MAX);
    if expected > MAX_ANSWER_BYTES {
        return Err(too_long());
    }
    let mut content = Zeroizing::new(Vec::with_capacity(expected));
    while let Some(frame) = body.frame().await {
        let Ok(mut data) = frame.map_err(|error| lost(origin, error))?.into_data() else { continue };
        if content.len() + data.remaining() > MAX_ANSWER_BYTES {
            return Err(too_long());
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            content.extend_from_slice(chunk);
            let read = chunk.len();
            data.advance(read);
        }
    }
    Ok(content)
}

async fn open(origin: &Origin, roots: &Roots) -> Result<Open, CommandError> {
    let stream = connect(origin).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(origin.host.trim_matches(['[', ']']).to_owned())?;
    let secured = TlsConnector::from(roots.config.clone()).connect(name, stream);
    let secured = tokio::time::timeout(CONNECT_TIME, secured).await;
    let secured = secured.map_err(|_| format!("{origin} did not finish the TLS handshake"))?;
    let secured = secured.map_err(|error| untrusted(origin, roots, &error))?;
    let certificate = secured.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
    let (sender, connection) = handshake(TokioIo::new(secured)).await?;
    // Ends with the last sender, or with the server; whoever waits for an answer is told.
    tokio::spawn(connection);
    Ok(Open { sender, certificate: certificate.map(CertificateDer::into_owned) })
}

async fn connect(origin: &Origin) -> Result<TcpStream, CommandError> {
    let addresses =
        origin.addresses().await.map_err(|error| format!("cannot find {}: {error}", origin.host))?;
    let mut last = None;
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error.to_string()),
            Err(_) => last = Some(format!("no answer within {} s", CONNECT_TIME.as_secs())),
        }
    }
    let reason = last.unwrap_or_else(|| "the name has no address".to_owned());
    Err(Unreachable { origin: origin.clone(), reason }.into())
}

/// Nothing listens there, or nobody let us through.
#[derive(Debug, thiserror::Error)]
#[error("cannot reach {origin}: {reason}")]
pub struct Unreachable {
    origin: Origin,
    reason: String,
}

fn untrusted(origin: &Origin, roots: &Roots, error: &std::io::Error) -> CommandError {
    format!("{origin} is not trusted with the certificate authorities in {}: {error}", roots.from).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_https_with_a_host_and_nothing_else() {
        for (text, shown) in [
            ("https://demo.managedhsm.localhost:8443", "https://demo.managedhsm.localhost:8443"),
            ("https://Pool.Example/", "https://pool.example"),
            ("https://pool.example:443", "https://pool.example"),
            ("HTTPS://127.0.0.1:8443", "https://127.0.0.1:8443"),
            ("https://[::1]:8443", "https://[::1]:8443"),
        ] {
            assert_eq!(text.parse::<Origin>().unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "https://",
            "http://pool.example",
            "pool.example",
            "https://pool.example/keys",
            "https://pool.example?x=1",
            "https://pool.example#x",
            "https://user@pool.example",
            "https://pool.example:",
            "https://pool.example:0",
            "https://pool.example:70000",
            "https://po ol.example",
            "https://[::1",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_links_to_the_same_origin_are_followed() {
        let origin: Origin = "https://pool.example:8443".parse().unwrap();
        let path = |link: &str| origin.own_path(link);
        assert_eq!(path("https://POOL.example:8443/keys?a=b").as_deref(), Some("/keys?a=b"));
        assert_eq!(path("https://pool.example:8443?a=b").as_deref(), Some("/?a=b"));
        for link in [
            "https://pool.example/keys",
            "https://pool.example:8444/keys",
            "https://pool.example:+8443/keys",
            "http://pool.example:8443/keys",
            "https://pool.example:8443@evil.example/keys",
            "https://evil.example/keys",
            "//evil.example/keys",
            "/keys",
            "",
        ] {
            assert_eq!(path(link), None, "{link}");
        }
    }

    #[tokio::test]
    async fn names_under_localhost_are_this_machine() {
        for name in ["localhost", "demo.managedhsm.localhost"] {
            let origin: Origin = format!("https://{name}:8443").parse().unwrap();
            assert_eq!(origin.addresses().await.unwrap(), [([127, 0, 0, 1], 8443).into()], "{name}");
        }
    }
}
