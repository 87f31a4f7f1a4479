//! Private parsers, for fuzz targets alone.

use crate::route::Route;
use crate::wire;

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
}

/// Reads `body` as each kind of request that has one.
pub fn body(body: &[u8]) {
    let Ok(value) = serde_json::from_slice(body) else { return };
    let _ = wire::create(&value);
    let _ = wire::update(&value);
    let _ = wire::asked_connection(&value);
    let _ = wire::asked_endpoint(&wire::example_config(), &value);
    let _ = wire::asked_assignment("5a0ba4ed-8b2d-4d4c-9a4f-3f8a5a3e9f2d", &value);
}
