//! What clients of the control plane send.

/// A path, and behind the first `?` its query.
pub fn control_route(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    api_control::fuzzing::route(path, query);
}

pub fn control_body(bytes: &[u8]) {
    api_control::fuzzing::body(bytes);
}
