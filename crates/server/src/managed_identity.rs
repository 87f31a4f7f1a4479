//! The listener of managed identity: plain http, as clients of a metadata service speak nothing else, and so on loopback
//! alone. Who may ask what is decided in `identity`; here is what a peer can make us hold.

use hyper::Request;
use hyper::Response;
use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Open at once, at most; whoever comes then is closed.
const CONNECTIONS: usize = 32;
/// From the connection's begin, or its last answer, to the end of the next request's headers.
const HEADERS: Duration = Duration::from_secs(10);
const HEADER_BYTES: usize = 16 * 1024;
const HEADER_COUNT: usize = 50;
/// After `accept` failed: out of descriptors, or the peer was gone.
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Serves until `closing` says so. The handler reads no bodies, so no answer takes long.
pub async fn serve<S, B>(listener: TcpListener, service: S, mut closing: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Connections end with the set that they are in: an answer that is under way is a millisecond's loss.
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
            continue;
        };
        // Nobody else reaches a loopback address; this holds if the listener is ever given another.
        if !address.ip().is_loopback() {
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let service = service.clone();
        connections.spawn(async move {
            let _place = place;
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS)
                .max_buf_size(HEADER_BYTES)
                .max_headers(HEADER_COUNT);
            // A connection that failed is over; the peer knows.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
