//! Private parsers, for fuzz targets alone: each gives what was read, written again.

use crate::record::Record;
use crate::{codec, genesis};
use crypto::SecretBytes;

/// First bytes of engine keys whose records are read by [`record`].
pub const KINDS: [u8; 12] = *b"kvadsnorlctj";

pub fn record(kind: u8, bytes: &[u8]) -> Option<(Record, Vec<u8>)> {
    let record = codec::decode(kind, &SecretBytes::new(bytes.to_vec())).ok()?;
    let written = codec::encode(&record).danger_expose().to_vec();
    Some((record, written))
}

pub fn pool_state(bytes: &[u8]) -> Option<Vec<u8>> {
    let state = codec::decode_pool_state(&SecretBytes::new(bytes.to_vec())).ok()?;
    Some(codec::encode_pool_state(&state).danger_expose().to_vec())
}

/// The content of a genesis record, without the signature that stands before it.
pub fn genesis_content(bytes: &[u8]) -> Option<Vec<u8>> {
    genesis::read_content(bytes).map(|genesis| genesis::write_content(&genesis))
}
