//! Real sockets and real TLS, with limits that no machine is too slow for: once all is as it is to be, the clock is moved
//! past them.

use super::*;
use crate::certificates::CertificateAuthority;
use crate::files;
use crate::layout::Layout;
use crate::own_user::User;
use bytes::Bytes;
use http_body_util::Full;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::convert::Infallible;
use std::io;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Long enough that whatever is checked to end did not end by this.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Of what is tried. Nothing before it takes as long.
const LIMIT: Duration = Duration::from_secs(600);
/// For what is to come now.
const PATIENCE: Duration = Duration::from_secs(120);
/// By the machine's clock, between two moves of the other one.
const MOMENT: Duration = Duration::from_millis(5);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

struct Listening {
    address: SocketAddr,
    client: ClientConfig,
    close: watch::Sender<bool>,
    server: JoinHandle<()>,
    /// A request for `/wait` has come.
    waiting: Arc<Notify>,
    /// Lets it go on.
    go_on: Arc<Notify>,
}

fn patient() -> Limits {
    Limits {
        handshake: NEVER,
        headers: NEVER,
        idle: NEVER,
        request: NEVER,
        http2_ping: NEVER,
        ..Limits::default()
    }
}

async fn listen(limits: Limits, connections: usize) -> Listening {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(directory.path().join("data"));
    layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
    let tls = CertificateAuthority::open(&layout).unwrap().server_config().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(layout.ca_certificate()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (close, closing) = watch::channel(false);
    let (waiting, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let service = {
        let (waiting, go_on) = (waiting.clone(), go_on.clone());
        move |peer: Peer| {
            let (waiting, go_on) = (waiting.clone(), go_on.clone());
            service_fn(move |request: Request<Incoming>| {
                let (waiting, go_on, peer) = (waiting.clone(), go_on.clone(), peer.clone());
                async move {
                    if request.uri().path() == "/wait" {
                        waiting.notify_one();
                        go_on.notified().await;
                    }
                    let body = format!("name {:?} port {}", peer.server_name, peer.called.port());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
                }
            })
        }
    };
    let shared = Shared { tls, limits, places: Places::new(connections, connections), closing };
    let server = tokio::spawn(serve(listener, shared, service));
    Listening { address, client, close, server, waiting, go_on }
}

impl Listening {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(&self, protocol: Option<&str>) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut client = self.client.clone();
        client.alpn_protocols = protocol.map(|name| name.as_bytes().to_vec()).into_iter().collect();
        let name = ServerName::try_from("demo.managedhsm.localhost").unwrap();
        TlsConnector::from(Arc::new(client)).connect(name, self.tcp().await).await
    }
}

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.unwrap();
    // What TLS still holds back would never go while we read.
    stream.flush().await.unwrap();
}

/// Everything up to the end of the connection, however it ends.
async fn read_to_end(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    // A reset is an end as well.
    assert!(ended.is_ok(), "not closed; read {:?}", String::from_utf8_lossy(&read));
    read
}

async fn pass_the_limit() {
    tokio::time::pause();
    tokio::time::advance(LIMIT).await;
    tokio::time::resume();
}

/// Waits for what the limit brings about: it passes again and again, and in between everybody gets a turn.
async fn as_time_passes<T>(work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let until = Instant::now() + PATIENCE;
    loop {
        if let Ok(done) = tokio::time::timeout(MOMENT, work.as_mut()).await {
            return done;
        }
        assert!(Instant::now() < until, "nothing came of the limit");
        pass_the_limit().await;
    }
}

/// Everything up to the end that the limit puts to the connection.
async fn read_as_time_passes(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut read = Vec::new();
    let _ = as_time_passes(stream.read_to_end(&mut read)).await;
    read
}

/// Reads until `enough`, which comes now.
async fn read_until(stream: &mut (impl AsyncReadExt + Unpin), enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut read = Vec::new();
    while !enough(&read) {
        let more = tokio::time::timeout(PATIENCE, stream.read_buf(&mut read)).await;
        assert!(more.is_ok_and(|more| more.unwrap() > 0), "only {:?}", String::from_utf8_lossy(&read));
    }
    read
}

#[tokio::test]
async fn a_peer_that_never_shakes_hands_is_closed() {
    let listening = listen(Limits { handshake: LIMIT, ..patient() }, 10).await;
    assert!(read_as_time_passes(&mut listening.tcp().await).await.is_empty());
}

#[tokio::test]
async fn headers_that_never_end_are_cut_off() {
    let listening = listen(Limits { headers: LIMIT, ..patient() }, 10).await;
    for begun in ["", "GET / HTTP/1.1\r\nHost: localh"] {
        let mut stream = listening.tls(Some("http/1.1")).await.unwrap();
        send(&mut stream, begun.as_bytes()).await;
        let answer = read_as_time_passes(&mut stream).await;
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}

#[tokio::test]
async fn a_kept_connection_is_closed_when_idle() {
    let listening = listen(Limits { headers: LIMIT, ..patient() }, 10).await;
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let port = listening.address.port();
    let body = format!(r#"name Some("demo.managedhsm.localhost") port {port}"#).into_bytes();
    let answer = read_until(&mut stream, |read| read.ends_with(&body)).await;
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&answer));
    assert!(read_as_time_passes(&mut stream).await.is_empty());
}

/// With and without the preface: neither a ping that is answered nor silence holds a place for ever.
#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let listening = listen(Limits { idle: LIMIT, shutdown: LIMIT, ..patient() }, 10).await;
    for begun in [&b""[..], &[PREFACE, EMPTY_SETTINGS].concat()] {
        let mut stream = listening.tls(Some("h2")).await.unwrap();
        send(&mut stream, begun).await;
        read_as_time_passes(&mut stream).await;
    }
}

/// HTTP/2 with a window of nothing: the answer waits for a reader that never reads, and not for ever.
#[tokio::test]
async fn a_peer_that_takes_no_answer_is_cut_off() {
    const NO_WINDOW: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    // GET https / with the authority `localhost`, all of it on stream 1.
    const GET: &[u8] = &[0, 0, 14, 1, 5, 0, 0, 0, 1, 0x82, 0x87, 0x84, 0x01, 9];
    let kinds = |mut frames: &[u8]| {
        let mut kinds = Vec::new();
        while let Some((&[high, middle, low, kind, ..], rest)) = frames.split_first_chunk::<9>() {
            kinds.push(kind);
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            frames = rest.get(length..).unwrap_or_default();
        }
        kinds
    };
    let listening = listen(Limits { idle: LIMIT, shutdown: LIMIT, ..patient() }, 10).await;
    let mut stream = listening.tls(Some("h2")).await.unwrap();
    send(&mut stream, [PREFACE, NO_WINDOW, GET, b"localhost"].concat()).await;
    // HEADERS of the answer come, and of its DATA nothing.
    let mut read = read_until(&mut stream, |read| kinds(read).contains(&1)).await;
    read.extend(read_as_time_passes(&mut stream).await);
    assert!(!kinds(&read).contains(&0), "{:?}", kinds(&read));
}

#[tokio::test]
async fn a_request_under_way_is_not_idle() {
    let listening = listen(Limits { idle: LIMIT, ..patient() }, 10).await;
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, b"GET /wait HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    listening.waiting.notified().await;
    for times in 1..=10 {
        pass_the_limit().await;
        let read = tokio::time::timeout(MOMENT, stream.read_u8()).await;
        assert!(read.is_err(), "closed when the limit had passed {times} times");
    }
    listening.go_on.notify_one();
    assert!(read_to_end(&mut stream).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn an_answer_that_does_not_come_ends_the_connection() {
    let listening = listen(Limits { request: LIMIT, ..patient() }, 10).await;
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    listening.waiting.notified().await;
    assert!(!read_as_time_passes(&mut stream).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn headers_beyond_the_limits_are_refused() {
    let listening = listen(patient(), 10).await;
    // As much as may be, and no end of it yet. With more behind it the answer could be lost to a reset.
    let mut large = b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ".to_vec();
    large.resize(patient().header_bytes, b'x');
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "A: b\r\n".repeat(101));
    for head in [large, many.into_bytes()] {
        let mut stream = listening.tls(None).await.unwrap();
        send(&mut stream, head).await;
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&answer));
    }
    // The largest token there is, with room around it.
    let token = format!("Authorization: Bearer {}\r\nConnection: close\r\n", "x".repeat(16 * 1024));
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, format!("GET / HTTP/1.1\r\nHost: localhost\r\n{token}\r\n").as_bytes()).await;
    assert!(read_to_end(&mut stream).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_connection_too_many_is_closed_and_a_place_is_free_again() {
    let listening = listen(patient(), 2).await;
    let first = listening.tls(None).await.unwrap();
    let _second = listening.tls(None).await.unwrap();
    assert!(listening.tls(None).await.is_err(), "a third connection was taken");
    drop(first);
    // The server hears of it when it reads next: not at once.
    let again = async { while listening.tls(None).await.is_err() {} };
    tokio::time::timeout(PATIENCE, again).await.expect("the place was not free again");
}

#[tokio::test]
async fn what_is_under_way_is_finished_before_the_end() {
    let listening = listen(patient(), 10).await;
    let mut silent = listening.tcp().await;
    let mut idle = listening.tls(None).await.unwrap();
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    listening.waiting.notified().await;
    listening.close.send_replace(true);
    assert!(read_to_end(&mut silent).await.is_empty());
    assert!(read_to_end(&mut idle).await.is_empty());
    listening.go_on.notify_one();
    assert!(read_to_end(&mut stream).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
    tokio::time::timeout(PATIENCE, listening.server).await.expect("it did not end").unwrap();
}

#[tokio::test]
async fn what_does_not_finish_is_cut_off_at_the_end() {
    let listening = listen(Limits { shutdown: LIMIT, ..patient() }, 10).await;
    let mut stream = listening.tls(None).await.unwrap();
    send(&mut stream, b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    listening.waiting.notified().await;
    listening.close.send_replace(true);
    as_time_passes(listening.server).await.unwrap();
    assert!(!read_to_end(&mut stream).await.starts_with(b"HTTP/1.1 200"));
}

/// Comes to the gateway's socket while `gateway` is who that is. `true`: it is listened to.
async fn is_listened_to(gateway: Option<Gateway>) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let (_sender, watched) = watch::channel(gateway);
    let source = FromGateway { listener: UnixListener::bind(&path).unwrap(), gateway: watched };
    let mut client = UnixStream::connect(&path).await.unwrap();
    tokio::select! {
        accepted = source.accept() => {
            accepted.unwrap();
            true
        }
        read = read_to_end(&mut client) => {
            assert!(read.is_empty());
            false
        }
    }
}

#[tokio::test]
async fn nobody_but_the_gateway_is_listened_to_at_its_socket() {
    let own = i32::try_from(std::process::id()).unwrap();
    let gateway = Gateway { pid: own, user: None };
    assert!(is_listened_to(Some(gateway)).await);
    let another_user = User::try_from(1_900_000_000).unwrap();
    for stranger in [
        None,
        Some(Gateway { pid: own + 1, ..gateway }),
        // The number of a process that ended is given again.
        Some(Gateway { user: Some(another_user), ..gateway }),
    ] {
        assert!(!is_listened_to(stranger).await, "{stranger:?}");
    }
}
