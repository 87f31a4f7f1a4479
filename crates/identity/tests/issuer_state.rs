//! The issuer's state file: `docs/formats/issuer-state.md`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests, too, fail by panicking")]

use domain::principal::TenantId;
use identity::issuer::{
    ClientCertificate, FEDERATION_AUDIENCE, FederatedCredential, IssuerState, IssuerStateError,
    MAX_ISSUER_STATE_BYTES, PublicSigningKey, secret_digest,
};
use serde_json::{Value, json};

const GOLDEN: &str = include_str!("golden/issuer-state-v1.json");
const GOLDEN_V2_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/issuer-state-v2.json");
const CLIENT_CERTIFICATE: &[u8] = include_bytes!("golden/client-certificate.der");
/// The certificate's key.
const CLIENT_KEY: &str = include_str!("golden/client-key.pem");

#[test]
fn version_1_is_read() {
    let state = IssuerState::parse(GOLDEN.as_bytes()).unwrap();
    assert_eq!(state.tenant.as_str(), "11111111-1111-4111-8111-111111111111");
    assert_eq!(state.clients.len(), 2);
    let app = &state.clients[0];
    assert_eq!(app.client_id.to_string(), "22222222-2222-4222-8222-222222222222");
    assert_eq!(app.object_id.to_string(), "33333333-3333-4333-8333-333333333333");
    assert_eq!(app.display_name, "app");
    assert_eq!(app.secret_sha256, Some(secret_digest("golden-secret")));
    assert!(app.certificates.is_empty() && app.federated.is_empty());
    assert_eq!(state.signing_key().unwrap().key_id(), KEY_ID);
}

#[test]
fn version_2_is_read_and_written_byte_for_byte() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let pem = |name: &str| golden[name].as_str().unwrap().to_owned().into();
    let mut state = IssuerState {
        tenant: TenantId::parse("11111111-1111-4111-8111-111111111111").unwrap(),
        clients: Vec::new(),
        signing_key_pem: pem("signing_key_pem"),
        next_signing_key_pem: None,
        previous_key: None,
    };
    let guid = |digit: &str| {
        let times = |count| digit.repeat(count);
        format!("{}-{}-4{}-8{}-{}", times(8), times(4), times(3), times(3), times(12))
    };
    state.rotate().unwrap();
    assert_eq!(state.previous_key.as_ref().unwrap().key_id(), KEY_ID);
    state.signing_key_pem = CLIENT_KEY.to_owned().into();
    state.next_signing_key_pem = Some(pem("signing_key_pem"));
    let app = state.register(guid("2").parse().unwrap(), guid("3").parse().unwrap(), "app", "golden-secret");
    app.certificates.push(ClientCertificate::from_der(CLIENT_CERTIFICATE).unwrap());
    let (issuer, subject) = ("https://other.example", "system:serviceaccount:default:app");
    let keys = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"e","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
    let credential =
        FederatedCredential::new(issuer.into(), subject.into(), FEDERATION_AUDIENCE.into(), keys.into());
    app.federated.push(credential.unwrap());
    let other =
        state.register(guid("4").parse().unwrap(), guid("5").parse().unwrap(), "Prüfung \"zwei\"", "x");
    other.secret_sha256 = None;

    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(GOLDEN_V2_PATH).exists() {
        std::fs::write(GOLDEN_V2_PATH, &*state.to_json().unwrap()).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN_V2_PATH).unwrap();
    assert_eq!(std::str::from_utf8(&state.to_json().unwrap()).unwrap(), golden);
    let read = IssuerState::parse(golden.as_bytes()).unwrap();
    assert_eq!(read.clients[0].certificates, state.clients[0].certificates);
    assert_eq!(read.clients[0].federated, state.clients[0].federated);
    assert_eq!(read.clients[1].secret_sha256, None);
    assert_eq!(read.to_json().unwrap(), state.to_json().unwrap());
}

#[test]
fn version_1_becomes_version_2_with_nothing_lost() {
    let state = IssuerState::parse(GOLDEN.as_bytes()).unwrap();
    let read = IssuerState::parse(&state.to_json().unwrap()).unwrap();
    assert_eq!(read.clients.len(), 2);
    assert_eq!(read.clients[0].secret_sha256, Some(secret_digest("golden-secret")));
    assert_eq!(*read.signing_key_pem, *state.signing_key_pem);
}

#[test]
fn a_rotation_lists_the_key_before_and_the_key_after() {
    let mut state = IssuerState::parse(GOLDEN.as_bytes()).unwrap();
    let listed = |state: &IssuerState| {
        let keys = state.signing_keys().unwrap();
        let name = |key: Option<PublicSigningKey>| key.map(|key| key.key_id().to_owned());
        (keys.current.key_id().to_owned(), name(keys.next), name(keys.previous))
    };
    assert_eq!(listed(&state), (KEY_ID.to_owned(), None, None));
    state.prepare_rotation().unwrap();
    let (_, prepared, _) = listed(&state);
    state.prepare_rotation().unwrap();
    assert_eq!(listed(&state), (KEY_ID.to_owned(), prepared.clone(), None), "prepared once");
    state.rotate().unwrap();
    assert_eq!(listed(&state), (prepared.clone().unwrap(), None, Some(KEY_ID.to_owned())));
    state.rotate().unwrap();
    let (current, next, previous) = listed(&state);
    assert!(current != KEY_ID && Some(current) != prepared && next.is_none() && previous == prepared);
    assert_eq!(listed(&IssuerState::parse(&state.to_json().unwrap()).unwrap()), listed(&state));
}

#[test]
fn a_generated_state_survives_writing() {
    let mut state = IssuerState::generate(TenantId::parse("adfs").unwrap()).unwrap();
    let client = "22222222-2222-4222-8222-222222222222".parse().unwrap();
    let object = "33333333-3333-4333-8333-333333333333".parse().unwrap();
    let certificate = ClientCertificate::from_der(CLIENT_CERTIFICATE).unwrap();
    state.register(client, object, "old", "old").certificates.push(certificate);
    state.register(client, object, "new", "new");
    let read = IssuerState::parse(&state.to_json().unwrap()).unwrap();
    assert_eq!(read.clients.len(), 1, "registering again replaces");
    assert_eq!(read.clients[0].secret_sha256, Some(secret_digest("new")));
    assert_eq!(read.clients[0].certificates.len(), 1, "registering again keeps certificates");
    assert_eq!(*read.signing_key_pem, *state.signing_key_pem);
}

#[test]
fn what_is_not_of_a_known_version_is_refused_without_repeating_it() {
    let golden = std::fs::read_to_string(GOLDEN_V2_PATH).unwrap();
    let changed_in = |golden: &str, pointer: &str, value: Value| {
        let mut state: Value = serde_json::from_str(golden).unwrap();
        *state.pointer_mut(pointer).unwrap() = value;
        state.to_string()
    };
    let changed = |pointer: &str, value: Value| changed_in(GOLDEN, pointer, value);
    let changed_v2 = |pointer: &str, value: Value| changed_in(&golden, pointer, value);
    let with_extra = |golden: &str, pointer: &str| {
        let mut state: Value = serde_json::from_str(golden).unwrap();
        state.pointer_mut(pointer).unwrap()["canary-name"] = json!("canary");
        state.to_string()
    };
    let first_client = serde_json::from_str::<Value>(GOLDEN).unwrap()["clients"][0].clone();
    let client_certificate =
        serde_json::from_str::<Value>(&golden).unwrap()["clients"][0]["certificates"][0].clone();
    let missing = |name: &str| {
        let mut state: Value = serde_json::from_str(&golden).unwrap();
        state.as_object_mut().unwrap().remove(name).unwrap();
        state.to_string()
    };
    for state in [
        missing("next_signing_key_pem"),
        missing("previous_key"),
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
        with_extra(GOLDEN, ""),
        with_extra(GOLDEN, "/clients/1"),
        with_extra(&golden, ""),
        with_extra(&golden, "/clients/1"),
        with_extra(&golden, "/clients/0/federated/0"),
        with_extra(&golden, "/previous_key"),
        changed("/version", json!(2)),
        changed_v2("/version", json!(1)),
        changed_v2("/clients/0/certificates/0", json!("canary")),
        changed_v2("/clients/0/certificates", json!(vec![client_certificate; 21])),
        changed_v2("/clients/0/federated/0/key_set", json!("canary")),
        changed_v2("/clients/0/federated/0/issuer", json!("")),
        changed_v2("/clients/0/federated/0/subject", json!("canary".repeat(101))),
        changed_v2("/clients/0/secret_sha256", json!("canary")),
        changed_v2("/next_signing_key_pem", json!("canary")),
        changed_v2("/previous_key/n", json!("canary")),
        changed_v2("/previous_key/e", json!("AQ")),
    ] {
        let refused = IssuerState::parse(state.as_bytes()).err().unwrap();
        assert!(!refused.to_string().contains("canary"), "{refused}");
    }
    let refused = |state: &str| IssuerState::parse(state.as_bytes()).err().unwrap();
    assert_eq!(
        refused(&changed("/version", json!(3))).to_string(),
        "issuer state has version 3: this release reads versions 1 and 2"
    );
    assert!(matches!(
        refused(&changed("/clients/1", first_client)),
        IssuerStateError::DuplicateClient { .. }
    ));
    assert!(matches!(refused(&" ".repeat(MAX_ISSUER_STATE_BYTES + 1)), IssuerStateError::TooLong { .. }));
}

/// RFC 7638 thumbprint of the golden key, computed with another implementation.
const KEY_ID: &str = "xcp6J2A8pZi7VAe3Uuzf9w8Sh2je3yZIa8RTvzu4KgE";
