//! What clients of the control plane send, and what its store hands back, which nothing seals.

/// A path, and behind the first `?` its query.
pub fn control_route(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    api_control::fuzzing::route(path, query);
}

pub fn control_body(bytes: &[u8]) {
    api_control::fuzzing::body(bytes);
}

/// The record's key and, behind the first blank, the record.
pub fn control_record(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b' ').unwrap_or(bytes.len());
    let (key, rest) = bytes.split_at(at);
    let Ok(key) = std::str::from_utf8(key) else { return };
    api_control::fuzzing::record(key, rest.get(1..).unwrap_or_default());
}
