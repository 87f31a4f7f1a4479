//! Connections: for whom, to whom, and bytes in both directions, with a limit on each step.

use crate::client_hello::{Hello, MAX_HELLO_BYTES, server_name};
use crate::proxy_protocol::Ends;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// From accept to the end of the ClientHello.
const HELLO_TIME: Duration = Duration::from_secs(10);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// For whoever serves to answer a ClientHello.
const GREETING_TIME: Duration = Duration::from_secs(30);
/// For a peer to take what was read from the other. Silence alone is no fault: who serves ends what is idle.
const STALLED_TIME: Duration = Duration::from_secs(60);
/// Once one end has closed, for the other to finish.
const LAST_WORDS_TIME: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 16 * 1024;
const PAUSE_AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(50);

/// Who serves which name.
pub trait Directory: Send + Sync + 'static {
    /// The socket of whoever serves `server_name`, or clients that named nobody.
    fn find(&self, server_name: Option<&str>) -> Option<PathBuf>;
    /// The socket of whoever tells clients that nobody serves the name.
    fn nobody(&self) -> PathBuf;
}

/// Serves until `closing` says so. `admit` gives a connection its place, or none when there are too many.
pub async fn serve<P: Send + 'static>(
    listener: TcpListener,
    directory: Arc<impl Directory>,
    admit: impl Fn(IpAddr) -> Option<P>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = closing.wait_for(|closing| *closing) => return,
        };
        let (client, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE_AFTER_FAILED_ACCEPT).await;
                continue;
            }
        };
        let Some(place) = admit(address.ip()) else { continue };
        let directory = directory.clone();
        tokio::spawn(async move {
            let _place = place;
            // Whatever fails here, both ends see their connection close.
            let _ = pass(client, directory.as_ref()).await;
        });
    }
}

async fn pass(mut client: TcpStream, directory: &impl Directory) -> io::Result<()> {
    client.set_nodelay(true)?;
    let ends = Ends { client: client.peer_addr()?, called: client.local_addr()? };
    let timed_out = |_| io::Error::from(io::ErrorKind::TimedOut);
    let (name, hello) =
        tokio::time::timeout(HELLO_TIME, read_hello(&mut client)).await.map_err(timed_out)??;
    let opening = [ends.header().as_slice(), &hello].concat();
    let (mut server, first) = match directory.find(name.as_deref()) {
        Some(path) => match greet(path, &opening).await {
            Ok(greeted) => greeted,
            Err(error) => {
                tracing::warn!(name, %error, "nobody answers for a name that is known");
                greet(directory.nobody(), &opening).await?
            }
        },
        None => greet(directory.nobody(), &opening).await?,
    };
    client.write_all(&first).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let upwards = copy(&mut from_client, &mut to_server);
    let downwards = copy(&mut from_server, &mut to_client);
    tokio::pin!(upwards, downwards);
    // Whoever serves closes what is idle for long, and that is the end, whatever the client still holds open.
    tokio::select! {
        ended = downwards.as_mut() => ended,
        ended = upwards.as_mut() => {
            ended?;
            tokio::time::timeout(LAST_WORDS_TIME, downwards).await.map_err(timed_out)?
        }
    }
}

/// The name, and what was read to find it.
async fn read_hello(client: &mut TcpStream) -> io::Result<(Option<String>, Vec<u8>)> {
    let mut hello = Vec::with_capacity(2048);
    loop {
        // Never grows beyond its limit: what comes later stays in the socket.
        let room = u64::try_from(MAX_HELLO_BYTES - hello.len()).unwrap_or(0);
        if (&mut *client).take(room).read_buf(&mut hello).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match server_name(&hello) {
            Ok(Hello::Complete(name)) => return Ok((name, hello)),
            Ok(Hello::Incomplete) => {}
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}

/// The connection, and the first bytes of an answer. A process may end after it was connected to and before it took the
/// connection: nothing is lost, as a client sends no more before it is answered.
async fn greet(path: PathBuf, opening: &[u8]) -> io::Result<(UnixStream, Vec<u8>)> {
    let mut server = connect(path).await?;
    server.write_all(opening).await?;
    let mut first = vec![0; BUFFER_BYTES];
    let length = tokio::time::timeout(GREETING_TIME, server.read(&mut first)).await??;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended before it said anything"));
    }
    first.truncate(length);
    Ok((server, first))
}

/// A socket that another user put there gets nothing.
async fn connect(path: PathBuf) -> io::Result<UnixStream> {
    let stream = tokio::time::timeout(CONNECT_TIME, UnixStream::connect(path)).await??;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if peer.uid == rustix::process::geteuid() || peer.uid.is_root() {
        Ok(stream)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the socket is another user's"))
    }
}

/// To the end, and says so to whom it wrote.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let written = to.write_all(buffer.get(..length).unwrap_or_default());
        tokio::time::timeout(STALLED_TIME, written)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
}

#[cfg(test)]
mod tests;
