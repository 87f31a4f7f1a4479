//! The parser of stored records, for fuzz targets alone.

use crate::access::Assignment;
use crate::activity::Head;
use crate::pools::PoolRecord;
use crate::private_link::EndpointRecord;
use crate::store;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads `value` as what is kept under `key`, and writes it again.
pub fn record(key: &str, value: &[u8]) -> Option<Vec<u8>> {
    match key.split('/').next()? {
        "pool" => rewritten::<PoolRecord>(key, value),
        "assignment" => rewritten::<Assignment>(key, value),
        "endpoint" => rewritten::<EndpointRecord>(key, value),
        "head" => rewritten::<Head>(key, value),
        "activity" => Head::empty().extended(value).map(|_| value.to_vec()),
        _ => None,
    }
}

fn rewritten<T: DeserializeOwned + Serialize>(key: &str, value: &[u8]) -> Option<Vec<u8>> {
    store::parse::<T>(key, value).ok().map(|record| store::to_json(&record))
}
