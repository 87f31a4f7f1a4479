//! Outgoing connections. The host connects; the core speaks TLS over the socket and checks the peer itself.

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected stream socket.
pub trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("{host}:{port} is not a destination of this pool")]
    NotAllowed { host: String, port: u16 },
    /// All that the name leads to; a name can lead to anything that whoever speaks for it likes.
    #[error("{host} leads to an address where no destination may be (this machine, or a link-local one)")]
    Forbidden { host: String },
    #[error("cannot connect to {host}:{port}")]
    Failed { host: String, port: u16, source: std::io::Error },
    #[error("connecting to {host}:{port} took longer than {limit_ms} ms")]
    TimedOut { host: String, port: u16, limit_ms: u64 },
}

#[async_trait]
pub trait Dial: Send + Sync {
    /// Connects to one of the destinations that the core pinned at start. `host` is a name or an address; an IPv6 address
    /// has its brackets.
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError>;
}
