//! The issuer's state file: `docs/formats/issuer-state.md`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, too, fail by panicking")]

use domain::principal::TenantId;
use identity::issuer::{IssuerState, IssuerStateError, MAX_ISSUER_STATE_BYTES, secret_digest};
use serde_json::{Value, json};

const GOLDEN: &str = include_str!("golden/issuer-state-v1.json");

#[test]
fn version_1_is_read() {
    let state = IssuerState::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(state.tenant.as_str(), "11111111-1111-4111-8111-111111111111");
    assert_eq!(state.clients.len(), 2);
    let app = &state.clients[0];
    assert_eq!(app.client_id.to_string(), "22222222-2222-4222-8222-222222222222");
    assert_eq!(app.object_id.to_string(), "33333333-3333-4333-8333-333333333333");
    assert_eq!(app.display_name, "app");
    assert_eq!(app.secret_sha256, secret_digest("golden-secret"));
    assert_eq!(state.signing_key().unwrap().key_id(), KEY_ID);
}

#[test]
fn version_1_is_written_byte_for_byte() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let mut state = IssuerState {
        tenant: TenantId::parse("11111111-1111-4111-8111-111111111111").unwrap(),
        clients: Vec::new(),
        signing_key_pem: golden["signing_key_pem"].as_str().unwrap().to_owned().into(),
    };
    let guid = |digit: &str| {
        let times = |count| digit.repeat(count);
        format!("{}-{}-4{}-8{}-{}", times(8), times(4), times(3), times(3), times(12))
    };
    state.register(guid("2").parse().unwrap(), guid("3").parse().unwrap(), "app", "golden-secret");
    state.register(guid("4").parse().unwrap(), guid("5").parse().unwrap(), "Prüfung \"zwei\"", "another");
    assert_eq!(std::str::from_utf8(&state.to_json().unwrap()).unwrap(), GOLDEN);
}

#[test]
fn a_generated_state_survives_writing() {
    let mut state = IssuerState::generate(TenantId::parse("adfs").unwrap()).unwrap();
    let client = "22222222-2222-4222-8222-222222222222".parse().unwrap();
    let object = "33333333-3333-4333-8333-333333333333".parse().unwrap();
    state.register(client, object, "old", "old");
    state.register(client, object, "new", "new");
    let read = IssuerState::parse(&state.to_json().unwrap()).unwrap();
    assert_eq!(read.clients.len(), 1, "registering again replaces");
    assert_eq!(read.clients[0].secret_sha256, secret_digest("new"));
    assert_eq!(*read.signing_key_pem, *state.signing_key_pem);
}

#[test]
fn what_is_not_version_1_is_refused_without_repeating_it() {
    let changed = |pointer: &str, value: Value| {
        let mut state: Value = serde_json::from_str(GOLDEN).unwrap();
        *state.pointer_mut(pointer).unwrap() = value;
        state.to_string()
    };
    let with_extra = |pointer: &str| {
        let mut state: Value = serde_json::from_str(GOLDEN).unwrap();
        state.pointer_mut(pointer).unwrap()["canary-name"] = json!("canary");
        state.to_string()
    };
    let first_client = serde_json::from_str::<Value>(GOLDEN).unwrap()["clients"][0].clone();
    for state in [
        String::new(),
        "[]".to_owned(),
        "{}".to_owned(),
        GOLDEN[..GOLDEN.len() - 3].to_owned(),
        format!("{GOLDEN}x"),
        changed("/version", json!("canary")),
        changed("/tenant", json!("canary canary")),
        changed("/clients", json!({"canary": 1})),
        changed("/clients/0/client_id", json!("canary")),
        changed("/clients/0/secret_sha256", json!("canary")),
        changed("/clients/0/display_name", json!("canary".repeat(50))),
        changed("/signing_key_pem", json!(["canary"])),
        changed("/signing_key_pem", json!("canary")),
        with_extra(""),
        with_extra("/clients/1"),
    ] {
        let refused = IssuerState::parse(state.as_bytes()).err().unwrap();
        assert!(!refused.to_string().contains("canary"), "{refused}");
    }
    let refused = |state: &str| IssuerState::parse(state.as_bytes()).err().unwrap();
    assert_eq!(
        refused(&changed("/version", json!(2))).to_string(),
        "issuer state has version 2: this release reads version 1"
    );
    assert!(matches!(
        refused(&changed("/clients/1", first_client)),
        IssuerStateError::DuplicateClient { .. }
    ));
    assert!(matches!(refused(&" ".repeat(MAX_ISSUER_STATE_BYTES + 1)), IssuerStateError::TooLong { .. }));
}

/// RFC 7638 thumbprint of the golden key, computed with another implementation.
const KEY_ID: &str = "xcp6J2A8pZi7VAe3Uuzf9w8Sh2je3yZIa8RTvzu4KgE";
