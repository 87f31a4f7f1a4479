//! TLS listeners: accept, handshake, HTTP/1.1 and HTTP/2, with a limit on everything that a peer can make us hold.
//!
//! The protocol is the one that ALPN chose, HTTP/1.1 without it: nothing is guessed from the first bytes, so there is no
//! state in which a silent peer is waited for without end.

use crate::gateway_process::Gateway;
use crate::places::Places;
use gateway::proxy_protocol::Ends;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// After `accept` failed: out of descriptors, or the peer was gone. Neither is a reason to spin, or to end.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// What one listener allows each connection. How many there may be is [`Places`]; what a body may be is the handler's.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// HTTP/1.1: from the connection's last answer, or its handshake, to the end of the next request's headers. A shorter
    /// limit for those who have begun to send headers would gain nothing, as a silent connection costs as much.
    pub headers: Duration,
    /// HTTP/2, where pings keep a connection alive for ever: without any request for this long, and at most twice this
    /// long, it is closed.
    pub idle: Duration,
    /// From a request's headers to its answer. A safety net: handlers have their own, shorter limits.
    pub request: Duration,
    /// All headers of one request; tokens alone are up to 16 KiB. HTTP/1.1 looks after each read, so that as much as one
    /// TLS record (16 KiB) may come on top.
    pub header_bytes: usize,
    pub header_count: usize,
    /// Requests under way on one HTTP/2 connection.
    pub http2_streams: u32,
    /// HTTP/2 streams that a peer opened and reset before they were looked at.
    pub http2_pending_resets: usize,
    /// What one HTTP/2 stream may send before it is read; a connection may send four times that.
    pub http2_window_bytes: u32,
    /// HTTP/2: how often a connection is asked whether it is there, and how long it has to say so.
    pub http2_ping: Duration,
    /// For requests under way when the listener closes.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            request: Duration::from_secs(120),
            header_bytes: 32 * 1024,
            header_count: 100,
            http2_streams: 128,
            http2_pending_resets: 32,
            http2_window_bytes: 256 * 1024,
            http2_ping: Duration::from_secs(20),
            shutdown: Duration::from_secs(10),
        }
    }
}

/// What is known of a connection before its first request.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub server_name: Option<Arc<str>>,
    /// Of ours.
    pub called: SocketAddr,
}

/// A socket that clients come to.
pub trait Source: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and its peer's address where that is known by now.
    fn accept(&self) -> impl Future<Output = std::io::Result<(Self::Stream, Option<SocketAddr>)>> + Send;

    /// The client of `stream` and the port of ours that it called, where that is not known from the socket.
    fn ends(stream: &mut Self::Stream) -> impl Future<Output = std::io::Result<Ends>> + Send;
}

impl Source for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> std::io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, address) = TcpListener::accept(self).await?;
        Ok((stream, Some(address)))
    }

    async fn ends(stream: &mut TcpStream) -> std::io::Result<Ends> {
        stream.set_nodelay(true)?;
        Ok(Ends { client: stream.peer_addr()?, called: stream.local_addr()? })
    }
}

/// The gateway's way in. Each connection begins with a header that says who the client is, so nobody but the gateway's own
/// process is listened to.
pub struct FromGateway {
    pub listener: UnixListener,
    /// Who it is at present.
    pub gateway: watch::Receiver<Option<Gateway>>,
}

impl Source for FromGateway {
    type Stream = UnixStream;

    async fn accept(&self) -> std::io::Result<(UnixStream, Option<SocketAddr>)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = rustix::net::sockopt::socket_peercred(&stream)?;
            if self.gateway.borrow().is_some_and(|gateway| gateway.is(peer.pid, peer.uid)) {
                return Ok((stream, None));
            }
            tracing::warn!(
                pid = peer.pid.as_raw_nonzero(),
                "a stranger came to the gateway's socket; it is closed"
            );
        }
    }

    async fn ends(stream: &mut UnixStream) -> std::io::Result<Ends> {
        Ends::read(stream).await
    }
}

/// What the sockets of one listener have in common.
#[derive(Clone)]
pub struct Shared {
    pub tls: Arc<rustls::ServerConfig>,
    pub limits: Limits,
    pub places: Arc<Places>,
    /// Turns true when it is time to end.
    pub closing: watch::Receiver<bool>,
}

impl Shared {
    /// For `connections` in all and a quarter of them for one peer, with the limits that every listener of ours has.
    pub fn new(tls: Arc<rustls::ServerConfig>, connections: usize, closing: watch::Receiver<bool>) -> Self {
        Self { tls, limits: Limits::default(), places: Places::new(connections, connections / 4), closing }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves until `closing` says so, then finishes what is under way. `service` makes the handler of one connection.
pub async fn serve<L, F, S, B>(listener: L, shared: Shared, service: F)
where
    L: Source,
    F: Fn(Peer) -> S + Clone + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let acceptor = TlsAcceptor::from(shared.tls.clone());
    let builders = Builders::new(&shared.limits);
    let mut closing = shared.closing.clone();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = closed(&mut closing) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        let place = match address {
            Some(address) => match shared.places.take(address.ip()) {
                place @ Some(_) => place,
                None => continue,
            },
            None => None,
        };
        let places = shared.places.clone();
        let (acceptor, builders, service) = (acceptor.clone(), builders.clone(), service.clone());
        let (limits, mut closing) = (shared.limits, closing.clone());
        connections.spawn(async move {
            let greeted = async {
                let mut stream = stream;
                let ends = L::ends(&mut stream).await.ok()?;
                // A client is counted by its own address, whatever passed its connection on.
                let place = place.or_else(|| places.take(ends.client.ip()))?;
                Some((acceptor.accept(stream).await.ok()?, ends, place))
            };
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(limits.handshake, greeted) => greeted.ok().flatten(),
                () = closed(&mut closing) => None,
            };
            let Some((stream, ends, _place)) = greeted else { return };
            let server_name = stream.get_ref().1.server_name().map(Arc::from);
            let service = service(Peer { address: ends.client, server_name, called: ends.called });
            converse(stream, &builders, service, &limits, &mut closing).await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// All requests of one connection.
async fn converse<T, S, B>(
    stream: TlsStream<T>,
    builders: &Builders,
    service: S,
    limits: &Limits,
    closing: &mut watch::Receiver<bool>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let activity = Arc::new(Activity::default());
    let request_limit = limits.request;
    let counted = {
        let activity = activity.clone();
        service_fn(move |request| {
            let under_way = activity.begin();
            // It is moved three times from here to where it stays, and is some kilobytes.
            let answer = Box::pin(service.call(request));
            async move {
                let answer = tokio::time::timeout(request_limit, answer).await;
                drop(under_way);
                // An error closes the connection (HTTP/1.1) or the stream (HTTP/2).
                answer.map(|Ok(answer)| answer)
            }
        })
    };
    let builder = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => &builders.http2,
        Some(_) | None => &builders.http1,
    };
    let connection = builder.serve_connection(TokioIo::new(stream), counted);
    tokio::pin!(connection);
    tokio::select! {
        // A connection that failed is over; the peer knows.
        _ = connection.as_mut() => return,
        () = activity.idle(limits.idle) => {}
        () = closed(closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(limits.shutdown, connection).await;
}

/// Ends when it is time to close, or nobody is left to say so.
pub async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

/// Whether a connection does anything. Costs two atomic additions per request and no clock.
#[derive(Default)]
struct Activity {
    under_way: AtomicUsize,
    begun: AtomicUsize,
}

struct UnderWay(Arc<Activity>);

impl Activity {
    fn begin(self: &Arc<Self>) -> UnderWay {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Ends once nothing was under way at one look and nothing has begun by the next.
    fn idle(&self, limit: Duration) -> impl Future<Output = ()> {
        let look = || (self.under_way.load(Ordering::Relaxed), self.begun.load(Ordering::Relaxed));
        async move {
            let mut before = look();
            loop {
                tokio::time::sleep(limit).await;
                let now = look();
                if now.0 == 0 && now == before {
                    return;
                }
                before = now;
            }
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
struct Builders {
    http1: Arc<Builder<TokioExecutor>>,
    http2: Arc<Builder<TokioExecutor>>,
}

impl Builders {
    fn new(limits: &Limits) -> Self {
        let mut http1 = Builder::new(TokioExecutor::new()).http1_only();
        http1
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.headers)
            .max_buf_size(limits.header_bytes)
            .max_headers(limits.header_count);
        let mut http2 = Builder::new(TokioExecutor::new()).http2_only();
        http2
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.http2_streams)
            .max_pending_accept_reset_streams(limits.http2_pending_resets)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .initial_stream_window_size(limits.http2_window_bytes)
            .initial_connection_window_size(limits.http2_window_bytes.saturating_mul(4))
            .keep_alive_interval(limits.http2_ping)
            .keep_alive_timeout(limits.http2_ping);
        Self { http1: Arc::new(http1), http2: Arc::new(http2) }
    }
}

#[cfg(test)]
mod tests;
