//! Calls that the server itself makes: HTTP/1.1 over TLS to destinations that were listed beforehand.
//!
//! What is called is often named by a caller (a storage URI, an attestation authority), so the list comes first: no other
//! host, no other port, no redirect, no proxy, no plain http. The peer is whoever has a certificate for that host which
//! chains to a root that was given; the machine's own roots count for nothing. Answers are bounded in bytes and in time.
//! Paths and queries may hold secrets (a SAS does), so that no error repeats them.

mod url;

pub use url::{MalformedUrl, Url, port_of};

use crate::CommandError;
use bytes::Bytes;
use host::{Destination, Dial, DialError};
use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// Status line and headers of an answer.
const HEADER_BYTES: usize = 16 * 1024;

/// Of one call.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the first packet to the last byte of the answer.
    pub time: Duration,
    /// Of the answer's body.
    pub body_bytes: usize,
}

/// What is asked of a URL. Not `Debug`, as headers and body may hold secrets.
pub struct Call {
    pub method: Method,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Call {
    pub fn get() -> Self {
        Self { method: Method::GET, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// Why there is no answer. An answer with any status is one.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{host}:{port} is not a destination that this pool may call")]
    NotAllowed { host: String, port: u16 },
    #[error(transparent)]
    Dial(DialError),
    #[error("no TLS session with {host}")]
    Tls { host: String, source: std::io::Error },
    #[error("no answer in HTTP from {host}")]
    Http { host: String, source: hyper::Error },
    #[error("the answer of {host} is longer than {limit} bytes")]
    TooLong { host: String, limit: usize },
    #[error("no answer within {limit_ms} ms")]
    TimedOut { limit_ms: u128 },
}

impl CallError {
    /// Whether the same call may do better a moment later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::NotAllowed { .. } | Self::TooLong { .. } | Self::Tls { .. } => false,
            Self::Dial(error) => matches!(error, DialError::Failed { .. } | DialError::TimedOut { .. }),
            Self::Http { .. } | Self::TimedOut { .. } => true,
        }
    }
}

/// A pool's way out. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    dial: Arc<dyn Dial>,
    tls: TlsConnector,
    destinations: Arc<[Destination]>,
}

impl Client {
    /// `roots` in PEM. `dial` is given nothing but what is listed in `destinations`.
    pub fn new(
        roots: &[u8],
        destinations: impl IntoIterator<Item = Destination>,
        dial: Arc<dyn Dial>,
    ) -> Result<Self, CommandError> {
        let mut store = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            store.add(root.map_err(|_| "a root certificate is not PEM")?)?;
        }
        if store.is_empty() {
            return Err("there is no root certificate".into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        Ok(Self { dial, tls, destinations: destinations.into_iter().collect() })
    }

    pub fn may_call(&self, url: &Url) -> Result<(), CallError> {
        let (host, port) = (url.host(), url.port());
        match self.destinations.iter().any(|destination| destination.admits(host, port)) {
            true => Ok(()),
            false => Err(CallError::NotAllowed { host: host.to_owned(), port }),
        }
    }

    /// One call on a connection of its own.
    pub async fn call(&self, url: &Url, call: Call, limits: Limits) -> Result<Response<Bytes>, CallError> {
        self.may_call(url)?;
        match tokio::time::timeout(limits.time, self.exchange(url, call, limits.body_bytes)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(CallError::TimedOut { limit_ms: limits.time.as_millis() }),
        }
    }

    async fn exchange(&self, url: &Url, call: Call, limit: usize) -> Result<Response<Bytes>, CallError> {
        let socket = self.dial.dial(url.host(), url.port()).await.map_err(CallError::Dial)?;
        let name = ServerName::try_from(url.server_name().to_owned())
            .map_err(|_| CallError::NotAllowed { host: url.host().to_owned(), port: url.port() })?;
        let tls = |source| CallError::Tls { host: url.authority().to_owned(), source };
        let stream = self.tls.connect(name, socket).await.map_err(tls)?;
        over(stream, url.authority(), request(url, call), limit).await
    }
}

/// One exchange over a connection that stands and ends with it. `host` is for messages.
pub async fn over(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin,
    host: &str,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, CallError> {
    let http = |source| CallError::Http { host: host.to_owned(), source };
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEADER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await.map_err(http)?.into_parts();
        let too_long = || CallError::TooLong { host: host.to_owned(), limit };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_long());
        }
        let body = Limited::new(body, limit).collect().await.map_err(|error| match error.downcast() {
            Ok(error) => http(*error),
            // The other error that `Limited` has.
            Err(_) => too_long(),
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    // The connection does its work beside the exchange, and ends with it.
    let driver = async {
        if let Err(error) = connection.await {
            tracing::debug!(%error, host, "an outgoing connection ended");
        }
        // What has arrived is still to be read.
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = exchange => answer,
        never = driver => match never {},
    }
}

fn request(url: &Url, call: Call) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(call.body));
    *request.method_mut() = call.method;
    *request.uri_mut() = url.path_and_query().clone().into();
    *request.headers_mut() = call.headers;
    let host =
        HeaderValue::from_str(url.authority()).expect("an authority has nothing that a header may not have");
    request.headers_mut().insert(HOST, host);
    request
}

#[cfg(test)]
pub mod tests;
