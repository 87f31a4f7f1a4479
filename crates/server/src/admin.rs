//! The local administration socket: reading the audit log of a running pool, and how it is set up, for whoever runs it.
//!
//! Mode 0600 in a directory of mode 0700, and the peer's user id is checked besides. By itself it can show, and use no key
//! and give no right. The data plane can be called through it as well, past the firewall, for whoever has locked himself
//! out: with a token and a role, as anywhere.

use crate::CommandError;
use crate::doctor::facts::Facts;
use crate::own_user::User;
use api_data::{Api, Connection, Origin};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use service::Pool;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as BlockingListener, UnixStream as BlockingStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// Events in one answer, at most.
const PAGE: usize = 1000;
const TIME: Duration = Duration::from_secs(30);

pub fn bind(path: &Path) -> Result<UnixListener, CommandError> {
    Ok(UnixListener::from_std(bind_early(path)?)?)
}

/// For who has no runtime yet.
pub fn bind_early(path: &Path) -> Result<BlockingListener, CommandError> {
    // The system takes about 100 bytes, and its own message does not say which path was too long.
    bind_fresh(path).map_err(|error| format!("cannot open the socket {}: {error}", path.display()).into())
}

/// Where the gateway's user may call, if it has one of its own; who else calls is for who listens to find out.
pub fn bind_for_gateway(path: &Path, user: Option<User>) -> Result<BlockingListener, CommandError> {
    let listener = bind_early(path)?;
    if let Some(user) = user {
        std::os::unix::fs::chown(path, None, Some(user.into()))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    }
    Ok(listener)
}

fn bind_fresh(path: &Path) -> std::io::Result<BlockingListener> {
    // Only a process that holds the data directory's lock comes here, so what is there is left over.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = BlockingListener::bind(path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn serve(
    listener: UnixListener,
    pool: Arc<Pool>,
    api: Arc<Api>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        if !is_ours(&stream) {
            continue;
        }
        let (pool, api) = (pool.clone(), api.clone());
        let mut closing = closing.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (pool, api) = (pool.clone(), api.clone());
                async move {
                    Ok::<_, Infallible>(match answer(&pool, &request).await {
                        Some(answer) => answer,
                        None => {
                            let connection = Connection {
                                origin: Origin::Administration,
                                server_name: None,
                                local_port: 0,
                            };
                            api.handle(request, connection).await
                        }
                    })
                }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(TIME);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
        });
    }
}

/// One page of events from `from` on, as the running pool at `socket` gives it.
pub fn read_events(socket: &Path, from: u64) -> Result<Vec<serde_json::Value>, CommandError> {
    let mut stream = BlockingStream::connect(socket).map_err(|error| {
        format!(
            "no running pool answers at {} ({error}); events can only be read through it",
            socket.display()
        )
    })?;
    stream.set_read_timeout(Some(TIME))?;
    write!(stream, "GET /audit/events?from={from} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or("the pool's answer was cut short")?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    if !head.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("the pool refused: {}", String::from_utf8_lossy(body)).into());
    }
    Ok(serde_json::from_slice(body)?)
}

fn is_ours(stream: &UnixStream) -> bool {
    let ours = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == ours || peer.uid.is_root())
}

/// What is shown without a token; anything else is for the data plane.
async fn answer(pool: &Pool, request: &Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    let from =
        request.uri().query().and_then(|query| query.strip_prefix("from=")).map_or(Ok(0), str::parse::<u64>);
    let (status, body) = match (request.method().as_str(), request.uri().path(), from) {
        ("GET", "/audit/events", Ok(from)) => match pool.audit_page(from, PAGE).await {
            Ok(events) => (StatusCode::OK, serde_json::Value::Array(events).to_string()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        },
        ("GET", "/pool", _) => (StatusCode::OK, serde_json::json!(Facts::of(pool)).to_string()),
        _ => return None,
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    Some(response)
}
