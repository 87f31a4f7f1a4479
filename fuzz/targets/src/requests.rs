//! What a caller sends, piece by piece.

use api_data::{Route, RouteKind, fuzzing};
use http::{Method, Uri};

const METHODS: [Method; 6] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD];

/// The first byte chooses the method, the rest is the path. A route is found again at its own path.
pub fn route(bytes: &[u8]) {
    let Some((first, path)) = bytes.split_first() else { return };
    let Ok(path) = std::str::from_utf8(path) else { return };
    let method = &METHODS[usize::from(*first) % METHODS.len()];
    let Ok(route) = Route::parse(method, path) else { return };
    assert_eq!(route.kind().method(), method.as_str(), "{route:?}");
    // Clients add slashes; that must not lead elsewhere.
    assert_eq!(Route::parse(method, &format!("/{path}/")).as_ref(), Ok(&route));
}

/// A request target with its query: `api-version`, `maxresults`, `$skiptoken`.
pub fn query(bytes: &[u8]) {
    let Ok(uri) = Uri::try_from(bytes) else { return };
    let value = |name| fuzzing::query(&uri, name);
    let _ = value("api-version").and_then(|text| api_data::ApiVersion::parse(&text).map(|_| ()));
    fuzzing::page(value("maxresults").as_deref(), value("$skiptoken").as_deref());
}

/// The first byte chooses the route, the rest is the body.
pub fn body(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let kind = RouteKind::ALL[usize::from(*first) % RouteKind::ALL.len()];
    let Some(Err(error)) = fuzzing::body(kind, body) else { return };
    let problem = api_data::problem(&error);
    assert!((400..500).contains(&problem.shown.status), "{kind:?}: {error}");
    assert!(problem.message.len() < 4096, "{kind:?}: a message of {} bytes", problem.message.len());
}
