//! Outgoing TCP connections to destinations fixed at start. No proxies, no redirects, no TLS: the core
//! speaks TLS over the socket and checks the peer itself.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use host::{Dial, DialError, Socket};
use tokio::net::TcpStream;

/// Connects to an allow-list of (host, port) pairs, and to nothing else.
#[derive(Debug)]
pub struct TcpDial {
    allowed: BTreeSet<(String, u16)>,
    connect_timeout: Duration,
}

impl TcpDial {
    /// Host names compare without regard to case. `connect_timeout` covers name resolution and every address
    /// that the name has.
    pub fn new(allowed: impl IntoIterator<Item = (String, u16)>, connect_timeout: Duration) -> Self {
        let allowed = allowed.into_iter().map(|(host, port)| (host.to_ascii_lowercase(), port)).collect();
        Self { allowed, connect_timeout }
    }
}

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError> {
        let destination = (host.to_ascii_lowercase(), port);
        if !self.allowed.contains(&destination) {
            return Err(DialError::NotAllowed { host: host.to_owned(), port });
        }
        let connect = async {
            let stream = TcpStream::connect((destination.0.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        match tokio::time::timeout(self.connect_timeout, connect).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(source)) => Err(DialError::Failed { host: host.to_owned(), port, source }),
            Err(_elapsed) => Err(DialError::TimedOut {
                host: host.to_owned(),
                port,
                limit_ms: u64::try_from(self.connect_timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn connects_to_a_pinned_destination_only() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let dial = TcpDial::new(
                [("LocalHost".into(), port), ("127.0.0.1".into(), port)],
                Duration::from_secs(5),
            );

            let mut socket = dial.dial("127.0.0.1", port).await.unwrap();
            let (mut peer, _) = listener.accept().await.unwrap();
            socket.write_all(b"hello").await.unwrap();
            let mut seen = [0; 5];
            peer.read_exact(&mut seen).await.unwrap();
            assert_eq!(&seen, b"hello");

            dial.dial("localhost", port).await.unwrap();
            for (host, port) in [("127.0.0.1", port.wrapping_add(1)), ("127.0.0.2", port), ("", port)] {
                assert!(
                    matches!(dial.dial(host, port).await, Err(DialError::NotAllowed { .. })),
                    "{host}:{port}"
                );
            }
        });
    }

    #[test]
    fn says_that_nothing_listens() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            drop(listener);
            let dial = TcpDial::new([("127.0.0.1".into(), port)], Duration::from_secs(5));
            assert!(matches!(dial.dial("127.0.0.1", port).await, Err(DialError::Failed { .. })));
        });
    }

    #[test]
    fn gives_up_at_the_limit() {
        runtime().block_on(async {
            // A listener that accepts nobody: once its queue is full, the kernel leaves connections unanswered.
            let listener = tokio::net::TcpSocket::new_v4().unwrap();
            listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let listener = listener.listen(1).unwrap();
            let port = listener.local_addr().unwrap().port();
            let dial = TcpDial::new([("127.0.0.1".into(), port)], Duration::from_millis(100));
            let mut queued = Vec::new();
            let error = loop {
                match dial.dial("127.0.0.1", port).await {
                    Ok(socket) => queued.push(socket),
                    Err(error) => break error,
                }
                assert!(queued.len() < 10, "the queue never fills");
            };
            assert!(matches!(error, DialError::TimedOut { limit_ms: 100, .. }), "{error}");
        });
    }
}
