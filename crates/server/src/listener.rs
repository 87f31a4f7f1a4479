//! TLS listeners: accept, handshake, HTTP/1.1 and HTTP/2, with a limit on everything that a peer can make us hold.

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What one listener allows its peers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections, handshakes included; more wait in the kernel's backlog.
    pub connections: usize,
    pub handshake: Duration,
    /// From the connection's last answer, or its start, to the end of the next request's headers. Bounds idle
    /// connections, too.
    pub headers: Duration,
    pub header_bytes: usize,
    pub header_count: usize,
    pub http2_streams: u32,
    /// Streams that a peer opened and reset before they were looked at.
    pub http2_pending_resets: usize,
    pub http2_window_bytes: u32,
    pub http2_ping: Duration,
    /// For requests under way when the listener closes.
    pub shutdown: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            // Tokens are up to 16 KiB.
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
    pub local_port: u16,
}

/// Serves until `closing` says so, then finishes what is under way. `service` makes the handler of one connection.
pub async fn serve<F, S, B>(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    limits: Limits,
    mut closing: watch::Receiver<bool>,
    service: F,
) where
    F: Fn(Peer) -> S + Clone + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let acceptor = TlsAcceptor::from(tls);
    let builder = Arc::new(builder(&limits));
    let places = Arc::new(Semaphore::new(limits.connections));
    let local_port = listener.local_addr().map_or(0, |address| address.port());
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            _ = closing.wait_for(|closing| *closing) => break,
        };
        let (stream, address, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, or the peer was gone: neither is a reason to spin, or to end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptor, builder, service) = (acceptor.clone(), builder.clone(), service.clone());
        let mut closing = closing.clone();
        connections.spawn(async move {
            let _place = place;
            let Some((stream, server_name)) = handshake(&acceptor, stream, limits.handshake).await else {
                return;
            };
            let service = service(Peer { address, server_name, local_port });
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                // A connection that failed is over; the peer knows.
                _ = connection.as_mut() => return,
                _ = closing.wait_for(|closing| *closing) => connection.as_mut().graceful_shutdown(),
            }
            let _ = tokio::time::timeout(limits.shutdown, connection).await;
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, place))
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    limit: Duration,
) -> Option<(TlsStream<TcpStream>, Option<Arc<str>>)> {
    stream.set_nodelay(true).ok()?;
    let stream = tokio::time::timeout(limit, acceptor.accept(stream)).await.ok()?.ok()?;
    let server_name = stream.get_ref().1.server_name().map(Arc::from);
    Some((stream, server_name))
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.headers)
        .max_buf_size(limits.header_bytes)
        .max_headers(limits.header_count);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_pending_accept_reset_streams(limits.http2_pending_resets)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits.http2_window_bytes)
        .initial_connection_window_size(limits.http2_window_bytes * 4)
        .keep_alive_interval(limits.http2_ping)
        .keep_alive_timeout(limits.http2_ping);
    builder
}
