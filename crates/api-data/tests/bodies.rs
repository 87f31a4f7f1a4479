//! Bodies bent in every way that a table can name: each member left out, and each of another type, empty, out of range
//! or far too long. What is accepted all the same, and what is refused otherwise than as a bad parameter, is in
//! `bodies.txt`, to be read and judged. `HOLDFAST_WRITE_MATRIX=1` accepts a change.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use api_data::RouteKind;
use bytes::Bytes;
use common::{ASSIGNMENTS, Answer, Bench, DEFINITIONS, ROOT, private_key, rotation_policy, three_holders};
use domain::access::BuiltInRole;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

const SUBJECT: &str = "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1";
const DIGEST: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
/// Longer than any message may be, so that one that repeats it shows.
const LONGEST_MESSAGE: usize = 400;

/// A route with a body, and a body that names every member there is. `None`: the route takes no body.
fn request(kind: RouteKind, made: &Made) -> Option<(String, Value)> {
    let path = |path: &str| path.replace("{id}", SUBJECT);
    let assignments = format!("/{ASSIGNMENTS}/{{id}}");
    let request = match kind {
        RouteKind::CreateKey => (
            "/keys/new/create".to_owned(),
            json!({
                "kty": "EC-HSM", "crv": "P-256", "key_size": 256, "key_ops": ["sign", "verify"],
                "attributes": { "enabled": true, "nbf": 1, "exp": 4_000_000_000_i64, "exportable": true },
                "tags": { "a": "b" }, "release_policy": common::attestation::policy(), "public_exponent": null,
            }),
        ),
        RouteKind::ImportKey => {
            let mut body = private_key();
            let more = json!({
                "Hsm": false, "tags": { "a": "b" }, "release_policy": common::attestation::policy(),
                "attributes": { "enabled": true, "nbf": 1, "exp": 4_000_000_000_i64, "exportable": true },
            });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body["key"]["key_ops"] = json!(["sign", "verify"]);
            ("/keys/new".to_owned(), body)
        }
        RouteKind::UpdateKey => (
            "/keys/exportable".to_owned(),
            json!({
                "key_ops": ["sign", "verify"],
                "attributes": { "enabled": true, "nbf": 1, "exp": 4_000_000_000_i64, "exportable": true },
                "tags": { "a": "b" }, "release_policy": common::attestation::policy(),
            }),
        ),
        RouteKind::SetRotationPolicy => {
            let mut body = rotation_policy();
            body["lifetimeActions"][0]["trigger"]["timeBeforeExpiry"] = Value::Null;
            ("/keys/ec/rotationpolicy".to_owned(), body)
        }
        RouteKind::Sign => ("/keys/ec/sign".to_owned(), json!({ "alg": "ES256", "value": DIGEST })),
        RouteKind::Verify => (
            "/keys/ec/verify".to_owned(),
            json!({ "alg": "ES256", "digest": DIGEST, "value": made.signature }),
        ),
        RouteKind::Encrypt => (
            "/keys/oct/encrypt".to_owned(),
            json!({ "alg": "A256GCM", "value": DIGEST, "iv": null, "aad": "YWFk", "tag": null }),
        ),
        RouteKind::Decrypt => (
            "/keys/oct/decrypt".to_owned(),
            json!({
                "alg": "A256GCM", "value": made.sealed["value"], "iv": made.sealed["iv"],
                "aad": made.sealed["aad"], "tag": made.sealed["tag"],
            }),
        ),
        RouteKind::WrapKey => ("/keys/oct/wrapkey".to_owned(), json!({ "alg": "A256KW", "value": DIGEST })),
        RouteKind::UnwrapKey => {
            ("/keys/oct/unwrapkey".to_owned(), json!({ "alg": "A256KW", "value": made.wrapped }))
        }
        RouteKind::ReleaseKey => (
            "/keys/exportable/release".to_owned(),
            json!({ "target": made.assertion, "nonce": "n", "enc": "RSA_AES_KEY_WRAP_256" }),
        ),
        RouteKind::RestoreKey => ("/keys/restore".to_owned(), json!({ "value": made.backup })),
        RouteKind::RandomBytes => ("/rng".to_owned(), json!({ "count": 16 })),
        RouteKind::CreateAssignment => (
            path(&assignments),
            json!({ "properties": {
                "principalId": SUBJECT, "roleDefinitionId": BuiltInRole::CryptoAuditor.id().to_string(),
            }}),
        ),
        RouteKind::DefineRole => (
            path(&format!("/{DEFINITIONS}/{{id}}")),
            json!({ "properties": {
                "roleName": "a role", "description": "text", "type": "CustomRole", "assignableScopes": ["/"],
                "permissions": [{
                    "actions": [], "notActions": [],
                    "dataActions": ["Microsoft.KeyVault/managedHsm/keys/sign/action"],
                    "notDataActions": ["Microsoft.KeyVault/managedHsm/keys/read/action"],
                }],
            }}),
        ),
        RouteKind::UpdateSetting => {
            ("/settings/AllowKeyManagementOperationsThroughARM".to_owned(), json!({ "value": "false" }))
        }
        RouteKind::SetNotBefore => (path("/holdfast/tokens/{id}"), json!({ "notBefore": 1_000 })),
        // No time passes: other bodies are bent by the clock.
        RouteKind::UpdateTestMode => (
            "/holdfast/test".to_owned(),
            json!({
                "clockAdvanceSeconds": 0, "roleDelaySeconds": 0,
                "throttle": { "every": 4_000_000_000_u32, "retryAfterSeconds": 1 },
            }),
        ),
        RouteKind::DownloadDomain => ("/securitydomain/download".to_owned(), three_holders()),
        RouteKind::ConfirmDomain => {
            ("/holdfast/securitydomain/confirm".to_owned(), json!({ "fingerprint": made.fingerprint }))
        }
        RouteKind::UploadDomain => ("/securitydomain/upload".to_owned(), json!({ "value": "a.b.c.d.e" })),
        RouteKind::StartBackup => ("/backup".to_owned(), common::storage_location()),
        RouteKind::CheckBackup => ("/prebackup".to_owned(), common::storage_location()),
        RouteKind::StartRestore => ("/restore".to_owned(), common::restore_source()),
        RouteKind::CheckRestore => ("/prerestore".to_owned(), common::restore_source()),
        RouteKind::RestoreOneKey => ("/keys/ec/restore".to_owned(), common::restore_source()),
        RouteKind::PreviewRestore => ("/holdfast/restorepreview".to_owned(), common::restore_source()),
        RouteKind::BackupStatus
        | RouteKind::RestoreStatus
        | RouteKind::DomainDownloadStatus
        | RouteKind::NewTransferKey
        | RouteKind::DomainUploadStatus
        | RouteKind::ReadKey
        | RouteKind::AttestKey
        | RouteKind::ListKeys
        | RouteKind::ListVersions
        | RouteKind::DeleteKey
        | RouteKind::ReadDeletedKey
        | RouteKind::ListDeletedKeys
        | RouteKind::RecoverKey
        | RouteKind::PurgeKey
        | RouteKind::BackupKey
        | RouteKind::RotateKey
        | RouteKind::ReadRotationPolicy
        | RouteKind::ReadAssignment
        | RouteKind::DeleteAssignment
        | RouteKind::ListAssignments
        | RouteKind::ReadRole
        | RouteKind::DeleteRole
        | RouteKind::ListRoles
        | RouteKind::ListSettings
        | RouteKind::ReadSetting
        | RouteKind::ReadTestMode
        | RouteKind::ListNotBefore
        | RouteKind::ClearNotBefore => return None,
    };
    Some(request)
}

/// The answer to a body that nothing is wrong with, of a pool that is active, has a place for no backup and made none.
fn answer_to_good(kind: RouteKind) -> &'static str {
    match kind {
        RouteKind::UploadDomain => "409 Conflict/HsmAlreadyActivated",
        RouteKind::StartRestore | RouteKind::CheckRestore => "409 Conflict/BackupRequired",
        RouteKind::StartBackup
        | RouteKind::CheckBackup
        | RouteKind::RestoreOneKey
        | RouteKind::PreviewRestore => "400 BadParameter/StorageNotAllowed",
        RouteKind::CreateAssignment | RouteKind::DefineRole => "201",
        RouteKind::DownloadDomain => "202",
        _ => "200",
    }
}

/// What the keys made before anything was bent.
struct Made {
    fingerprint: String,
    signature: Value,
    sealed: Value,
    wrapped: Value,
    assertion: String,
    /// Of a key that is gone.
    backup: Value,
}

async fn make_keys(bench: &Bench) -> Made {
    bench.arrange("POST", "/keys/ec/create", json!({ "kty": "EC" })).await;
    bench.arrange("POST", "/keys/oct/create", json!({ "kty": "oct" })).await;
    bench.arrange("POST", "/keys/exportable/create", exportable()).await;
    bench.arrange("POST", "/keys/gone/create", json!({ "kty": "EC" })).await;
    let backup = bench.arrange("POST", "/keys/gone/backup", Value::Null).await["value"].clone();
    remove(bench, "gone").await;
    let sign = json!({ "alg": "ES256", "value": DIGEST });
    let encrypt = json!({ "alg": "A256GCM", "value": DIGEST, "aad": "YWFk" });
    let wrap = json!({ "alg": "A256KW", "value": DIGEST });
    Made {
        fingerprint: bench.pool.domain_fingerprint().to_owned(),
        signature: bench.arrange("POST", "/keys/ec/sign", sign).await["value"].clone(),
        sealed: bench.arrange("POST", "/keys/oct/encrypt", encrypt).await,
        wrapped: bench.arrange("POST", "/keys/oct/wrapkey", wrap).await["value"].clone(),
        assertion: common::attestation::assertion(),
        backup,
    }
}

fn exportable() -> Value {
    json!({
        "kty": "EC", "attributes": { "exportable": true }, "release_policy": common::attestation::policy(),
    })
}

async fn remove(bench: &Bench, name: &str) {
    bench.arrange("DELETE", &format!("/keys/{name}"), Value::Null).await;
    bench.arrange("DELETE", &format!("/deletedkeys/{name}"), Value::Null).await;
}

/// What stands in the place of a member, by name. The member's own type is among them; then it is another value.
fn replacements() -> Vec<(&'static str, Value)> {
    vec![
        ("null", Value::Null),
        ("0", json!(0)),
        ("-1", json!(-1)),
        ("1.5", json!(1.5)),
        ("2^63", json!(1_u64 << 63)),
        ("true", json!(true)),
        ("\"\"", json!("")),
        ("\"text\"", json!("text")),
        ("a long text", json!("x".repeat(10_000))),
        ("a NUL", json!("\0")),
        ("[]", json!([])),
        ("[null]", json!([null])),
        ("{}", json!({})),
        ("{\"a\":1}", json!({ "a": 1 })),
    ]
}

/// Every bent body, by what was done to it.
fn bent(good: &Value) -> Vec<(String, Bytes)> {
    let text = good.to_string();
    let raw = |name: &str, bytes: &[u8]| (name.to_owned(), Bytes::copy_from_slice(bytes));
    let mut all = vec![
        raw("no body", b""),
        raw("null", b"null"),
        raw("[]", b"[]"),
        raw("\"text\"", b"\"text\""),
        raw("{}", b"{}"),
        raw("cut in half", &text.as_bytes()[..text.len() / 2]),
        raw("cut by one", &text.as_bytes()[..text.len() - 1]),
        raw("twice", text.repeat(2).as_bytes()),
        raw("with a byte order mark", format!("\u{feff}{text}").as_bytes()),
        raw("in UTF-16", &text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()),
        raw("deep", "[".repeat(100_000).as_bytes()),
        raw("an unknown member", text.replacen('{', "{\"unheardOf\":{\"a\":[1]},", 1).as_bytes()),
    ];
    for place in places(good) {
        let name = place.join(".");
        all.push((format!("{name} missing"), without(good, &place).to_string().into()));
        for (what, replacement) in replacements() {
            let mut body = good.clone();
            let member = member_mut(&mut body, &place);
            if *member != replacement {
                *member = replacement;
                all.push((format!("{name} = {what}"), body.to_string().into()));
            }
        }
        // The last one wins in some parsers and the first in others: a body with both is a trap.
        if place.len() == 1 {
            let member = format!("{{\"{name}\":{},", good[&name]);
            all.push((format!("{name} twice"), text.replacen('{', &member, 1).into()));
        }
    }
    all
}

/// Where there is a member or an element.
fn places(value: &Value) -> Vec<Vec<String>> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), member)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, item)| (at.to_string(), item)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![],
    };
    let below = |(name, child): (String, &Value)| {
        let deeper = places(child).into_iter().map(|rest| [vec![name.clone()], rest].concat()).collect();
        [vec![vec![name.clone()]], deeper].concat()
    };
    children.into_iter().flat_map(below).collect()
}

fn member_mut<'v>(value: &'v mut Value, place: &[String]) -> &'v mut Value {
    place.iter().fold(value, |value, name| match value {
        Value::Array(items) => &mut items[name.parse::<usize>().unwrap()],
        other => &mut other[name],
    })
}

fn without(good: &Value, place: &[String]) -> Value {
    let mut body = good.clone();
    let (last, above) = place.split_last().unwrap();
    match member_mut(&mut body, above) {
        Value::Object(members) => drop(members.remove(last)),
        Value::Array(items) => drop(items.remove(last.parse().unwrap())),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => unreachable!("holds {last}"),
    }
    body
}

/// Everything that a request could have changed.
async fn pool_state(bench: &Bench, token: &str) -> Vec<Answer> {
    let assignments = format!("/{ASSIGNMENTS}");
    let definitions = format!("/{DEFINITIONS}");
    let mut state = Vec::new();
    for path in [
        "/keys",
        "/keys/ec",
        "/keys/ec/versions",
        "/keys/ec/rotationpolicy",
        "/keys/oct",
        "/keys/exportable",
        "/settings",
        "/holdfast/tokens",
        &assignments,
        &definitions,
    ] {
        state.push(bench.send("GET", path, None, Some(token)).await);
    }
    state
}

fn changes_something(kind: RouteKind) -> bool {
    matches!(
        kind,
        RouteKind::CreateKey
            | RouteKind::ImportKey
            | RouteKind::UpdateKey
            | RouteKind::RestoreKey
            | RouteKind::SetRotationPolicy
            | RouteKind::CreateAssignment
            | RouteKind::DefineRole
            | RouteKind::UpdateSetting
            | RouteKind::SetNotBefore
            | RouteKind::StartRestore
            | RouteKind::RestoreOneKey
    )
}

/// Undoes what an accepted body did.
async fn undo(bench: &Bench, kind: RouteKind, path: &str) {
    match kind {
        RouteKind::CreateKey | RouteKind::ImportKey => remove(bench, "new").await,
        RouteKind::RestoreKey => remove(bench, "gone").await,
        // A new version has new attributes.
        RouteKind::UpdateKey => drop(bench.arrange("POST", "/keys/exportable/create", exportable()).await),
        RouteKind::CreateAssignment | RouteKind::DefineRole | RouteKind::SetNotBefore => {
            bench.arrange("DELETE", path, Value::Null).await;
        }
        _ => {}
    }
}

async fn block(bench: &Bench, kind: RouteKind, path: &str, good: &Value) -> String {
    let token = bench.token(ROOT);
    let answer = bench.send(kind.method(), path, Some(good), Some(&token)).await;
    assert_eq!(answer.to_string(), answer_to_good(kind), "{kind:?}: {answer:?}");
    if answer.succeeded() {
        undo(bench, kind, path).await;
    }

    let mut refused = 0;
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut before = pool_state(bench, &token).await;
    for (what, body) in bent(good) {
        let context = format!("{} {path}, {what}", kind.method());
        bench.new_events().await;
        let answer = bench.send_bytes(kind.method(), path, body, Some(&token)).await;
        assert_eq!(bench.new_events().await.len(), 1, "{context}: not one event");
        assert!(answer.status < 500, "{context}: {answer:?}");
        if answer.succeeded() {
            undo(bench, kind, path).await;
            before = pool_state(bench, &token).await;
        } else {
            if changes_something(kind) {
                assert_eq!(pool_state(bench, &token).await, before, "{context} changed something");
            }
            let message = answer.body["error"]["message"].as_str().unwrap();
            assert!(message.len() < LONGEST_MESSAGE, "{context}: {message}");
        }
        if answer.to_string() == "400 BadParameter" {
            refused += 1;
        } else {
            others.entry(answer.to_string()).or_default().push(what);
        }
    }
    assert!(refused > 5, "{kind:?}: {refused} refused");
    let mut text =
        format!("{}: {} {path}\n  400 BadParameter: {refused} bodies\n", kind.operation(), kind.method());
    for (answer, bodies) in others {
        writeln!(text, "  {answer}:").unwrap();
        bodies.iter().for_each(|what| writeln!(text, "    {what}").unwrap());
    }
    text
}

const HEAD: &str = "\
Bodies bent in every way that a table can name, made by bodies.rs, which says how to accept a change.

For each route: how many were refused as a bad parameter, and each that was answered otherwise. What was accepted changed
what a good body changes; what was refused changed nothing; each left one event.

The pool is active, has a place for no backup and made none. Where a good body is refused for that, so is each that is listed:
it was read.
";

#[tokio::test(flavor = "multi_thread")]
async fn every_bent_body_is_answered_as_committed() {
    let bench = Bench::new().await;
    let made = make_keys(&bench).await;
    let mut actual = HEAD.to_owned();
    for kind in RouteKind::ALL {
        if let Some((path, good)) = request(*kind, &made) {
            actual += "\n";
            actual += &block(&bench, *kind, &path, &good).await;
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bodies.txt");
    if std::env::var_os("HOLDFAST_WRITE_MATRIX").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == committed, "answers have changed:\n{}", common::difference(&committed, &actual));
}
