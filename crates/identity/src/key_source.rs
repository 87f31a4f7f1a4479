//! Where an issuer's key set comes from when the one at hand does not have a key.
//!
//! This crate opens no socket: whoever has one implements the trait.

use async_trait::async_trait;

/// A pinned place that serves an issuer's key set.
#[async_trait]
pub trait KeySetSource: Send + Sync {
    /// The key set as it is served now: at most [`MAX_KEY_SET_BYTES`](crate::key_set::MAX_KEY_SET_BYTES), within a time
    /// limit of the source's own, without following a redirect, from a server whose certificate chains to a pinned root.
    async fn fetch(&self) -> Result<Vec<u8>, KeySetSourceError>;
}

/// Why a key set did not come: for the operator's log, never for a peer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct KeySetSourceError(pub String);
