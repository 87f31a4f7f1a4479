//! The one call that a pool makes: to the place that genesis names, for its issuer's key set.
//!
//! The peer is whoever has a certificate for the pinned host that chains to a pinned root; the machine's own roots count for
//! nothing. One request, no redirect, no proxy, a limit on bytes and on time.

use crate::CommandError;
use crate::layout::ISSUER_HOST;
use async_trait::async_trait;
use bytes::Bytes;
use domain::pool::KeySource;
use host::{Dial, DialError, Socket};
use http::header::{ACCEPT, HOST};
use http::uri::Scheme;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use identity::key_set::MAX_KEY_SET_BYTES;
use identity::{KeySetSource, KeySetSourceError};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use service::Pool;
use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;

/// From the first packet to the last byte of the answer.
const TIME: Duration = Duration::from_secs(5);
/// How often the set is asked for without a reason: a key that the issuer took back is good for no longer than this.
const REFRESH: Duration = Duration::from_secs(3600);
/// Status line and headers of the answer.
const HEADER_BYTES: usize = 16 * 1024;
const HTTPS_PORT: u16 = 443;

/// The source that `source` names, for a quickstart: its issuer is at `issuer_port` of this machine.
pub fn connect(source: &KeySource, issuer_port: u16) -> Result<Arc<dyn KeySetSource>, CommandError> {
    Ok(Arc::new(HttpsKeySource::new(source, Arc::new(IssuerDial { issuer_port }), TIME)?))
}

/// Asks at once and then again and again, until the pool closes.
pub async fn keep_fresh(pool: Arc<Pool>, mut closing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = async {
                pool.refresh_issuer_keys().await;
                tokio::time::sleep(REFRESH).await;
            } => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

struct HttpsKeySource {
    dial: Arc<dyn Dial>,
    tls: TlsConnector,
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    /// As in the URL, for `Host`.
    authority: String,
    path: String,
    time: Duration,
}

impl HttpsKeySource {
    fn new(source: &KeySource, dial: Arc<dyn Dial>, time: Duration) -> Result<Self, CommandError> {
        let url: Uri = source.url.parse()?;
        let authority = url.authority().ok_or("the key source's URL has no host")?;
        if url.scheme() != Some(&Scheme::HTTPS) || authority.as_str().contains('@') {
            return Err(format!("the key source {} is not https://host[:port]/path", source.url).into());
        }
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&source.roots) {
            roots.add(root.map_err(|_| "a root of the key source is not PEM")?)?;
        }
        if roots.is_empty() {
            return Err("the key source has no root certificate".into());
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            dial,
            tls: TlsConnector::from(Arc::new(config)),
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(HTTPS_PORT),
            server_name: ServerName::try_from(authority.host().to_owned())?,
            authority: authority.to_string(),
            path: url.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            time,
        })
    }

    async fn get(&self) -> Result<Vec<u8>, CommandError> {
        let socket = self.dial.dial(&self.host, self.port).await?;
        let stream = self.tls.connect(self.server_name.clone(), socket).await?;
        let (mut sender, connection) =
            http1::Builder::new().max_buf_size(HEADER_BYTES).handshake(TokioIo::new(stream)).await?;
        let exchange = async {
            let request = Request::get(&self.path)
                .header(HOST, &self.authority)
                .header(ACCEPT, "application/json")
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            // A redirect is an answer like any other that is not the key set.
            if response.status() != StatusCode::OK {
                return Err(format!("{} answered {}", self.authority, response.status()).into());
            }
            let body = Limited::new(response.into_body(), MAX_KEY_SET_BYTES).collect().await?;
            Ok(body.to_bytes().to_vec())
        };
        // The connection does its work beside the exchange, and ends with it.
        let driver = async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the key source ended");
            }
            // What has arrived is still to be read.
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            answer = exchange => answer,
            never = driver => match never {},
        }
    }
}

#[async_trait]
impl KeySetSource for HttpsKeySource {
    async fn fetch(&self) -> Result<Vec<u8>, KeySetSourceError> {
        let failed = |reason: String| KeySetSourceError(format!("{}{}: {reason}", self.authority, self.path));
        match tokio::time::timeout(self.time, self.get()).await {
            Ok(Ok(key_set)) => Ok(key_set),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_elapsed) => Err(failed(format!("no answer within {} ms", self.time.as_millis()))),
        }
    }
}

/// Knows one destination: the quickstart's own issuer, whatever port it has this time.
struct IssuerDial {
    issuer_port: u16,
}

#[async_trait]
impl Dial for IssuerDial {
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError> {
        if host != ISSUER_HOST || port != HTTPS_PORT {
            return Err(DialError::NotAllowed { host: host.to_owned(), port });
        }
        match TcpStream::connect((Ipv4Addr::LOCALHOST, self.issuer_port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(source) => Err(DialError::Failed { host: host.to_owned(), port, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::CertificateAuthority;
    use crate::files;
    use crate::layout::Layout;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A CA of its own and a server with a certificate of it.
    struct Server {
        _directory: tempfile::TempDir,
        roots: Vec<u8>,
        acceptor: TlsAcceptor,
    }

    impl Server {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let layout = Layout::new(directory.path().join("data"));
            layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
            let authority = CertificateAuthority::open(&layout).unwrap();
            let roots = std::fs::read(layout.ca_certificate()).unwrap();
            let acceptor = TlsAcceptor::from(authority.server_config().unwrap());
            Self { _directory: directory, roots, acceptor }
        }

        fn source(&self, url: &str) -> KeySource {
            KeySource { url: url.into(), roots: self.roots.clone() }
        }

        /// Asks once, while the server answers with `answer` and then neither speaks nor closes.
        async fn ask(&self, source: &KeySource, answer: Vec<u8>) -> Result<Vec<u8>, String> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let dial = Arc::new(AnyName { port: listener.local_addr().unwrap().port() });
            let source = HttpsKeySource::new(source, dial, LIMIT).map_err(|error| error.to_string())?;
            let acceptor = self.acceptor.clone();
            let server = tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8(request[..length].to_vec()).unwrap();
                assert!(request.starts_with("GET /t/keys HTTP/1.1\r\n"), "{request}");
                assert!(request.to_lowercase().contains("host: issuer.localhost\r\n"), "{request}");
                // Whoever has read enough is gone.
                let _ = stream.write_all(&answer).await;
                let _ = stream.flush().await;
                std::future::pending::<()>().await;
            });
            let fetched = source.fetch().await.map_err(|error| error.to_string());
            server.abort();
            fetched
        }
    }

    /// As `IssuerDial`, for every name.
    struct AnyName {
        port: u16,
    }

    #[async_trait]
    impl Dial for AnyName {
        async fn dial(&self, _: &str, _: u16) -> Result<Box<dyn Socket>, DialError> {
            Ok(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap()))
        }
    }

    fn answer(head: &str, body: &[u8]) -> Vec<u8> {
        [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
    }

    #[tokio::test]
    async fn the_pinned_server_is_asked_and_its_answer_bounded() {
        let server = Server::new();
        let source = server.source("https://issuer.localhost/t/keys");
        let body = br#"{"keys":[]}"#;
        let whole = answer("200 OK\r\nContent-Length: 11", body);
        assert_eq!(server.ask(&source, whole).await.as_deref(), Ok(&body[..]));
        let chunked =
            answer("200 OK\r\nTransfer-Encoding: chunked", b"6\r\n{\"keys\r\n5\r\n\":[]}\r\n0\r\n\r\n");
        assert_eq!(server.ask(&source, chunked).await.as_deref(), Ok(&body[..]));

        let too_long = MAX_KEY_SET_BYTES + 1;
        let chunk =
            [format!("{too_long:x}\r\n").into_bytes(), vec![b' '; too_long], b"\r\n0\r\n\r\n".to_vec()];
        for (served, words) in [
            (answer(&format!("200 OK\r\nContent-Length: {too_long}"), &vec![b' '; too_long]), "length limit"),
            (answer("200 OK\r\nTransfer-Encoding: chunked", &chunk.concat()), "length limit"),
            (
                answer("302 Found\r\nLocation: https://issuer.localhost/t/keys\r\nContent-Length: 0", b""),
                "302",
            ),
            (answer("404 Not Found\r\nContent-Length: 0", b""), "404"),
            (answer("200 OK\r\nContent-Length: 11", &body[..10]), "no answer within 300 ms"),
            (answer(&format!("200 OK\r\nX: {}", "x".repeat(2 * HEADER_BYTES)), b""), "too large"),
            (b"HTTP/1.1 200 OK\r\n".to_vec(), "no answer within 300 ms"),
            (b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), "invalid"),
            (Vec::new(), "no answer within 300 ms"),
        ] {
            let refused = server.ask(&source, served).await.unwrap_err();
            assert!(refused.contains(words), "{words}: {refused}");
            assert!(refused.starts_with("issuer.localhost/t/keys: "), "{refused}");
        }
    }

    #[tokio::test]
    async fn another_server_is_refused_before_it_is_asked() {
        let (server, other) = (Server::new(), Server::new());
        let good = answer("200 OK\r\nContent-Length: 11", br#"{"keys":[]}"#);
        let of_other = other.source("https://issuer.localhost/t/keys");
        let refused = server.ask(&of_other, good.clone()).await.unwrap_err();
        assert!(refused.contains("certificate"), "a root that was not pinned: {refused}");
        let other_name = server.source("https://issuer.example/t/keys");
        let refused = server.ask(&other_name, good).await.unwrap_err();
        assert!(refused.contains("certificate"), "a name that the certificate does not have: {refused}");
    }

    #[test]
    fn a_source_is_an_https_url_with_roots() {
        let server = Server::new();
        let refused = |source: &KeySource| connect(source, 1).err().map(|error| error.to_string());
        assert_eq!(refused(&server.source("https://issuer.localhost/t/keys")), None);
        for url in
            ["", "/t/keys", "http://issuer.localhost/t/keys", "https://user@issuer.localhost/", "https:///t"]
        {
            assert!(refused(&server.source(url)).is_some(), "{url}");
        }
        for roots in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let source = KeySource { url: "https://issuer.localhost/".into(), roots: roots.to_vec() };
            assert!(refused(&source).is_some());
        }
    }

    #[tokio::test]
    async fn a_quickstart_dials_its_issuer_and_nothing_else() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let dial = IssuerDial { issuer_port: listener.local_addr().unwrap().port() };
        assert!(dial.dial(ISSUER_HOST, 443).await.is_ok());
        for (host, port) in [("localhost", 443), ("issuer.localhost.example", 443), (ISSUER_HOST, 8446)] {
            assert!(
                matches!(dial.dial(host, port).await, Err(DialError::NotAllowed { .. })),
                "{host}:{port}"
            );
        }
    }
}
