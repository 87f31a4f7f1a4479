//! What was done, in a chain: each entry names the SHA-256 of the one before it, so that none can be changed, removed or
//! put between without all after it being written anew. What it does not show is an end that was cut off together with the
//! head; a reader who kept a hash sees that.

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// Stands before the bytes that are hashed, so that an entry is not anything else that is hashed.
const PREFIX: &[u8] = b"holdfast activity v1\0";

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub version: u32,
    pub index: u64,
    /// Of the entry before; zeros at first.
    pub previous: String,
    /// Seconds since 1970.
    pub time: i64,
    /// The object id of who asked.
    pub caller: String,
    pub action: String,
    pub scope: String,
    pub succeeded: bool,
}

pub fn hash(entry: &[u8]) -> String {
    hex::encode(digest(&SHA256, &[PREFIX, entry].concat()))
}

pub fn zeros() -> String {
    hex::encode([0; 32])
}

/// How far a chain goes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub version: u32,
    pub length: u64,
    pub hash: String,
}

impl Head {
    pub fn empty() -> Self {
        Self { version: 1, length: 0, hash: zeros() }
    }

    /// The head with one more entry, if that is the next one.
    pub fn extended(&self, bytes: &[u8]) -> Option<Self> {
        let entry: Entry = serde_json::from_slice(bytes).ok()?;
        let is_next = entry.version == 1 && entry.index == self.length && entry.previous == self.hash;
        is_next.then(|| Self { version: 1, length: self.length + 1, hash: hash(bytes) })
    }
}
