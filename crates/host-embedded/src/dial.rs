//! Outgoing TCP connections to destinations fixed at start. No proxies, no redirects, no TLS: the core
//! speaks TLS over the socket and checks the peer itself.

use async_trait::async_trait;
use host::{Destination, Dial, DialError, Socket, is_reachable_by_name};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;

/// Connects to what is on its list, and to nothing else.
#[derive(Debug)]
pub struct TcpDial {
    allowed: Vec<Destination>,
    connect_timeout: Duration,
}

impl TcpDial {
    /// `connect_timeout` covers name resolution and every address that the name has.
    pub fn new(allowed: impl IntoIterator<Item = Destination>, connect_timeout: Duration) -> Self {
        Self { allowed: allowed.into_iter().collect(), connect_timeout }
    }

    async fn connect(
        &self,
        destination: &Destination,
        host: &str,
        port: u16,
    ) -> Result<TcpStream, DialError> {
        let failed = |source| DialError::Failed { host: host.to_owned(), port, source };
        let addresses: Vec<SocketAddr> = match destination.address() {
            Some(address) => vec![(address, port).into()],
            None => {
                let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(failed)?.collect();
                allowed(found).ok_or_else(|| DialError::Forbidden { host: host.to_owned() })?
            }
        };
        let stream = TcpStream::connect(addresses.as_slice()).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        Ok(stream)
    }
}

/// What may be connected to of what a name leads to; `None` if that is nothing, though it leads somewhere.
fn allowed(mut found: Vec<SocketAddr>) -> Option<Vec<SocketAddr>> {
    let some = !found.is_empty();
    found.retain(|address| is_reachable_by_name(address.ip()));
    (!(some && found.is_empty())).then_some(found)
}

#[async_trait]
impl Dial for TcpDial {
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError> {
        let Some(destination) = self.allowed.iter().find(|destination| destination.admits(host, port)) else {
            return Err(DialError::NotAllowed { host: host.to_owned(), port });
        };
        match tokio::time::timeout(self.connect_timeout, self.connect(destination, host, port)).await {
            Ok(connected) => Ok(Box::new(connected?)),
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

    fn dial<const N: usize>(allowed: [&str; N], port: u16, limit: Duration) -> TcpDial {
        TcpDial::new(allowed.map(|host| Destination::exactly(host, port).unwrap()), limit)
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn connects_to_a_pinned_destination_only() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let dial = dial(["LocalHost", "127.0.0.1"], port, Duration::from_secs(120));

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
            // Bound, or another process could be given the port and listen.
            let silent = tokio::net::TcpSocket::new_v4().unwrap();
            silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let port = silent.local_addr().unwrap().port();
            let dial = dial(["127.0.0.1"], port, Duration::from_secs(120));
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
            let dial = dial(["127.0.0.1"], port, Duration::from_millis(100));
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

    #[test]
    fn of_what_a_name_leads_to_only_what_is_elsewhere_is_tried() {
        let parse =
            |addresses: &[&str]| addresses.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(allowed(parse(&["127.0.0.1:443", "20.0.0.1:443"])), Some(parse(&["20.0.0.1:443"])));
        assert_eq!(allowed(parse(&["127.0.0.1:443", "[::1]:443", "169.254.169.254:443"])), None);
        assert_eq!(allowed(vec![]), Some(vec![]));
    }
}
