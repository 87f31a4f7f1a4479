//! The key sets of attestation authorities, fetched when an assertion asks for one.

use super::{AuthorityKeySet, MAX_ASSERTION_BYTES};
use crate::text::shown;
use async_trait::async_trait;
use domain::json::Json;
use domain::release::Authority;
use domain::time::Time;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// An unknown key is a reason to fetch an authority's keys at most this often.
pub const REFETCH_SECONDS: i64 = 60;
/// What failed is tried again after so long.
const RETRY_SECONDS: i64 = 5;
/// Keys are good for so long: one that its authority took back is good for no longer.
const FRESH_SECONDS: i64 = 3600;
/// Authorities whose keys are kept.
const MAX_AUTHORITIES: usize = 64;

/// Gets documents of attestation authorities.
#[async_trait]
pub trait AuthoritySource: Send + Sync {
    /// The document at `path` of `origin` (`https://host[:port]`): at most
    /// [`MAX_KEY_SET_BYTES`](crate::key_set::MAX_KEY_SET_BYTES), within a time limit of the source's own, without following a
    /// redirect, from a server whose certificate chains to a trusted root.
    async fn get(&self, origin: &str, path: &str) -> Result<Vec<u8>, AuthoritySourceError>;
}

/// Why a document did not come: for the operator's log, never for a caller, who chose where it was asked for.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct AuthoritySourceError(pub String);

/// Nothing can be asked, or what was asked did not answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the keys of its authority cannot be had: the operator's log says why")]
pub struct Unavailable;

#[derive(Default)]
pub struct AuthorityKeyCache {
    source: OnceLock<Arc<dyn AuthoritySource>>,
    entries: Mutex<HashMap<Authority, Arc<tokio::sync::Mutex<Entry>>>>,
}

#[derive(Default)]
struct Entry {
    keys: Option<(Arc<AuthorityKeySet>, Time)>,
    asked: Option<Time>,
}

impl AuthorityKeyCache {
    /// Set once; later ones are passed over.
    pub fn set_source(&self, source: Arc<dyn AuthoritySource>) {
        let _ = self.source.set(source);
    }

    /// The keys of `authority`, in which `kid` is looked for next. Those who come while they are fetched wait for them.
    pub async fn keys(
        &self,
        authority: &Authority,
        kid: &str,
        now: Time,
    ) -> Result<Arc<AuthorityKeySet>, Unavailable> {
        let source = self.source.get().ok_or(Unavailable)?;
        let entry = self.entry(authority);
        let mut entry = entry.lock().await;
        let fresh = entry.keys.as_ref().filter(|(_, at)| within(*at, now, FRESH_SECONDS));
        let fresh = fresh.map(|(keys, _)| keys.clone());
        let wait = if fresh.is_some() { REFETCH_SECONDS } else { RETRY_SECONDS };
        match fresh {
            Some(keys) if keys.holds(kid) => return Ok(keys),
            fresh if entry.asked.is_some_and(|asked| within(asked, now, wait)) => {
                return fresh.ok_or(Unavailable);
            }
            _ => {}
        }
        entry.asked = Some(now);
        match fetch(source.as_ref(), authority).await {
            Ok(keys) => {
                let keys = Arc::new(keys);
                entry.keys = Some((keys.clone(), now));
                Ok(keys)
            }
            Err(error) => {
                tracing::warn!(%authority, error, "the keys of an attestation authority cannot be fetched");
                fresh_or_none(&entry, now).ok_or(Unavailable)
            }
        }
    }

    fn entry(&self, authority: &Authority) -> Arc<tokio::sync::Mutex<Entry>> {
        let mut entries = self.entries.lock();
        if entries.len() >= MAX_AUTHORITIES && !entries.contains_key(authority) {
            // Whoever still waits for one of them keeps it; the next to come fetches anew.
            entries.clear();
        }
        entries.entry(authority.clone()).or_default().clone()
    }
}

fn fresh_or_none(entry: &Entry, now: Time) -> Option<Arc<AuthorityKeySet>> {
    entry.keys.as_ref().filter(|(_, at)| within(*at, now, FRESH_SECONDS)).map(|(keys, _)| keys.clone())
}

/// Whether `now` is less than so many seconds after `then`. A clock that was set back makes it long ago.
fn within(then: Time, now: Time, seconds: i64) -> bool {
    let passed = now.unix_milliseconds().saturating_sub(then.unix_milliseconds());
    (0..seconds * 1000).contains(&passed)
}

/// By OpenID Connect discovery: metadata at the authority, and in them where its keys are, which is at the same origin.
async fn fetch(source: &dyn AuthoritySource, authority: &Authority) -> Result<AuthorityKeySet, String> {
    let origin = authority.origin();
    let base = authority.as_str().strip_prefix(origin).unwrap_or_default();
    let metadata = format!("{base}/.well-known/openid-configuration");
    let metadata = source.get(origin, &metadata).await.map_err(|error| error.to_string())?;
    let path = keys_path(origin, &metadata)?;
    let keys = source.get(origin, &path).await.map_err(|error| error.to_string())?;
    AuthorityKeySet::parse(&keys).map_err(|error| error.to_string())
}

/// The path of `jwks_uri`. Metadata must not lead a pool anywhere else than where they came from.
pub(super) fn keys_path(origin: &str, metadata: &[u8]) -> Result<String, String> {
    let json = Json::parse(metadata).map_err(|error| format!("the metadata are no JSON: {error}"))?;
    let address = json.member("jwks_uri").and_then(Json::as_text).ok_or("the metadata have no jwks_uri")?;
    let path =
        address.strip_prefix(origin).filter(|path| path.starts_with('/') && path.len() < MAX_ASSERTION_BYTES);
    path.map(str::to_owned).ok_or_else(|| format!("jwks_uri {} is not at {origin}", shown(address)))
}
