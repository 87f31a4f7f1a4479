//! A server that answers what it is told to, and what is made of that.

use super::*;
use crate::certificates::CertificateAuthority;
use crate::files;
use crate::layout::Layout;
use crate::output::chain;
use async_trait::async_trait;
use host::Socket;
use http::StatusCode;
use parking_lot::Mutex;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

const LIMITS: Limits = Limits { time: Duration::from_secs(120), body_bytes: 64 };
/// For an answer that does not come.
const IMPATIENT: Limits = Limits { time: Duration::from_millis(300), ..LIMITS };

/// A CA of its own and a server with a certificate of it, for `issuer.localhost` among others.
pub struct Server {
    _directory: tempfile::TempDir,
    pub roots: Vec<u8>,
    acceptor: TlsAcceptor,
}

/// A port at which requests are answered.
pub struct Served {
    pub port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Served {
    /// What was asked last, if anything was read.
    pub fn request(&self) -> Option<String> {
        self.requests.lock().last().cloned()
    }

    /// All that was asked, in order.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
        let authority = CertificateAuthority::open(&layout).unwrap();
        let roots = std::fs::read(layout.ca_certificate()).unwrap();
        let acceptor = TlsAcceptor::from(authority.server_config().unwrap());
        Self { _directory: directory, roots, acceptor }
    }

    /// Answers once with `answer`, and then neither speaks nor closes.
    pub async fn serve(&self, answer: Vec<u8>) -> Served {
        self.serve_each(vec![answer]).await
    }

    /// Answers the first connection with the first of `answers` and so on. After the last it neither speaks nor closes;
    /// after the others it closes.
    pub async fn serve_each(&self, answers: Vec<Vec<u8>>) -> Served {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = self.acceptor.clone();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let task = tokio::spawn(async move {
            let mut last = None;
            for answer in answers {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let request = read_request(&mut stream).await;
                seen.lock().push(request);
                // Whoever has read enough is gone.
                let _ = stream.write_all(&answer).await;
                let _ = stream.flush().await;
                last = Some(stream);
            }
            std::future::pending::<()>().await;
            drop(last);
        });
        Served { port, requests, task }
    }
}

/// Head and body.
async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lines = head.lines().map(str::to_ascii_lowercase);
            let length = lines.filter_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).next();
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        let mut bytes = [0; 4096];
        match stream.read(&mut bytes).await {
            Ok(length @ 1..) => request.extend_from_slice(&bytes[..length]),
            _ => return text,
        }
    }
}

/// Whatever name it is asked for, it is at this port.
pub struct AnyName {
    pub port: u16,
}

#[async_trait]
impl Dial for AnyName {
    async fn dial(&self, _: &str, _: u16) -> Result<Box<dyn Socket>, DialError> {
        Ok(Box::new(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.unwrap()))
    }
}

/// Nobody may get as far as this.
struct NoDial;

#[async_trait]
impl Dial for NoDial {
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError> {
        unreachable!("dialled {host}:{port}")
    }
}

pub fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
}

fn client(roots: &[u8], destinations: &[&str], dial: impl Dial + 'static) -> Client {
    let destinations = destinations.iter().map(|text| text.parse().unwrap());
    Client::new(roots, destinations, Arc::new(dial)).unwrap()
}

async fn call(server: &Server, url: &str, served: &[u8]) -> Result<Response<Bytes>, CallError> {
    call_within(LIMITS, server, url, served).await
}

async fn call_within(
    limits: Limits,
    server: &Server,
    url: &str,
    served: &[u8],
) -> Result<Response<Bytes>, CallError> {
    let served = server.serve(served.to_vec()).await;
    let client =
        client(&server.roots, &["issuer.localhost", "elsewhere.example"], AnyName { port: served.port });
    client.call(&url.parse().unwrap(), Call::get(), limits).await
}

#[tokio::test]
async fn method_headers_and_body_go_out_and_any_answer_comes_back() {
    let server = Server::new();
    let served = server.serve(answer("201 Created\r\nX-Of: it\r\nContent-Length: 4", b"done")).await;
    let client = client(&server.roots, &["issuer.localhost:8443"], AnyName { port: served.port });
    let mut call =
        Call { method: Method::PUT, headers: HeaderMap::new(), body: Bytes::from_static(b"content") };
    call.headers.insert("x-ms-version", HeaderValue::from_static("2021-12-02"));
    // A caller's `Host` does not count.
    call.headers.insert(HOST, HeaderValue::from_static("elsewhere.example"));
    let url = "https://issuer.localhost:8443/c/a%20b?comp=block&sig=s%2Bs".parse().unwrap();
    let got = client.call(&url, call, LIMITS).await.unwrap();
    assert_eq!(
        (got.status(), &got.headers()["x-of"], &got.body()[..]),
        (StatusCode::CREATED, &HeaderValue::from_static("it"), &b"done"[..])
    );
    let request = served.request().unwrap().to_lowercase();
    assert!(request.starts_with("put /c/a%20b?comp=block&sig=s%2bs http/1.1\r\n"), "{request}");
    for line in ["host: issuer.localhost:8443\r\n", "content-length: 7\r\n", "x-ms-version: 2021-12-02\r\n"] {
        assert!(request.contains(line), "{request}");
    }
    assert!(!request.contains("elsewhere"), "{request}");
}

#[tokio::test]
async fn an_answer_is_bounded() {
    let server = Server::new();
    let url = "https://issuer.localhost/?sig=secret";
    let chunked = answer("200 OK\r\nTransfer-Encoding: chunked", b"4\r\nabcd\r\n1\r\ne\r\n0\r\n\r\n");
    assert_eq!(&call(&server, url, &chunked).await.unwrap().body()[..], b"abcde");
    let exact = answer("200 OK\r\nContent-Length: 64", &[b'x'; 64]);
    assert_eq!(call(&server, url, &exact).await.unwrap().body().len(), 64);
    // A redirect is an answer; nobody follows it.
    let moved = answer("302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0", b"");
    assert_eq!(call(&server, url, &moved).await.unwrap().status(), StatusCode::FOUND);

    let chunk = [&b"41\r\n"[..], &[b'x'; 65], b"\r\n0\r\n\r\n"].concat();
    for (served, words) in [
        (answer("200 OK\r\nContent-Length: 65", &[b'x'; 65]), "longer than 64 bytes"),
        (answer("200 OK\r\nTransfer-Encoding: chunked", &chunk), "longer than 64 bytes"),
        (answer("200 OK\r\nContent-Length: 11", b"short"), "no answer within 300 ms"),
        (answer(&format!("200 OK\r\nX: {}", "x".repeat(2 * HEADER_BYTES)), b""), "too large"),
        (b"HTTP/1.1 200 OK\r\n".to_vec(), "no answer within 300 ms"),
        (b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), "invalid"),
        (answer("200 OK\r\nContent-Length: 1\r\nContent-Length: 2", b"x"), "invalid"),
        (Vec::new(), "no answer within 300 ms"),
    ] {
        let limits = if words.starts_with("no answer") { IMPATIENT } else { LIMITS };
        let error = call_within(limits, &server, url, &served).await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains(words), "{words}: {text}");
        assert!(!text.contains("secret") && !format!("{error:?}").contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_server_proves_that_it_is_who_was_called() {
    let (server, other) = (Server::new(), Server::new());
    let good = answer("200 OK\r\nContent-Length: 0", b"");
    let served = server.serve(good.clone()).await;
    let of_other = client(&other.roots, &["issuer.localhost"], AnyName { port: served.port });
    let url = "https://issuer.localhost/".parse().unwrap();
    let error = of_other.call(&url, Call::get(), LIMITS).await.unwrap_err();
    assert!(matches!(error, CallError::Tls { .. }), "a root that was not given: {error}");
    assert_eq!(served.request(), None);
    let error = call(&server, "https://elsewhere.example/", &good).await.unwrap_err();
    assert!(matches!(error, CallError::Tls { .. }), "a name that the certificate does not have: {error}");
}

#[tokio::test]
async fn what_is_not_listed_is_not_even_dialled() {
    let server = Server::new();
    let listed = ["*.blob.core.windows.net", "127.0.0.1:10000"];
    let client = client(&server.roots, &listed, NoDial);
    for url in [
        "https://blob.core.windows.net/c",
        "https://a.b.blob.core.windows.net/c",
        "https://a.blob.core.windows.net:8443/c",
        "https://a.blob.core.windows.net.evil.example/c",
        "https://evil.example/a.blob.core.windows.net",
        "https://evil.example?.blob.core.windows.net",
        "https://127.0.0.1/c",
        "https://127.0.0.1:10001/c",
        "https://127.1:10000/c",
        "https://2130706433:10000/c",
        "https://0x7f000001:10000/c",
        "https://localhost:10000/c",
        "https://[::1]:10000/c",
        "https://[::ffff:127.0.0.1]:10000/c",
        "https://169.254.169.254/metadata/identity/oauth2/token",
        "https://a%2eblob.core.windows.net/c",
    ] {
        let Ok(url) = url.parse::<Url>() else { continue };
        let error = client.call(&url, Call::get(), LIMITS).await.unwrap_err();
        assert!(matches!(error, CallError::NotAllowed { .. }), "{}: {error}", url.authority());
        assert!(!error.is_passing());
    }
}

#[test]
fn without_a_root_there_is_no_client() {
    for roots in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(Client::new(roots, [], Arc::new(NoDial)).is_err());
    }
}
