//! Private parsers, for fuzz targets alone.
#![allow(clippy::unwrap_used)] // a failed check is a finding

use crate::route::Route;
use crate::{body, wire};
use fabric::pools::PoolRecord;
use fabric::{EndpointRecord, InstanceState, PoolResource};
use serde_json::Value;

/// Reads `path` with its query; a path that is read names no more than it has.
pub fn route(path: &str, query: &str) {
    let Some(route) = Route::parse(path) else { return };
    let (subscription, group, location) = route.place();
    for named in [subscription, group, location].into_iter().flatten() {
        let named: &str = &named;
        assert!(path.contains(named), "`{named}` is not in `{path}`");
    }
    let _ = route.check_version(query);
    let _ = wire::resource_filter(query);
    let config = wire::example_config();
    let _ = wire::role_definitions(&config, query);
    let _ = wire::role_assignments(&config, &[], &config.group_scope(), "caller", query);
}

/// Reads `body` as each kind of request that has one.
pub fn body(bytes: &[u8]) {
    let Ok(value) = body::parse(bytes) else { return };
    assert!(body::values(&value) <= body::MAX_VALUES);
    // It refuses what another reader refuses, and reads the same.
    assert_eq!(serde_json::from_slice::<Value>(bytes).unwrap(), value);
    let _ = wire::create(&value);
    let _ = wire::update(&value);
    let _ = wire::asked_connection(&value);
    let _ = wire::asked_endpoint(&wire::example_config(), &value);
    let _ = wire::asked_assignment("5a0ba4ed-8b2d-4d4c-9a4f-3f8a5a3e9f2d", &value);
}

/// Reads `value` as what the control plane's store has under `key`, and shows it.
pub fn record(key: &str, value: &[u8]) {
    let Some(written) = fabric::fuzzing::record(key, value) else { return };
    assert_eq!(fabric::fuzzing::record(key, &written).as_ref(), Some(&written), "what was written is read");
    let config = wire::example_config();
    if let Ok(record) = serde_json::from_slice::<PoolRecord>(&written) {
        let _ = wire::deleted(&config, &record);
        let uri = String::new();
        let shown =
            PoolResource { record, state: InstanceState::Stopped, uri, connections: vec![], is_fixed: false };
        let _ = wire::pool(&config, &shown);
    }
    if let Ok(held) = serde_json::from_slice::<EndpointRecord>(&written) {
        let _ = (wire::connection(&config, &held), wire::private_endpoint(&config, &held));
    }
}
