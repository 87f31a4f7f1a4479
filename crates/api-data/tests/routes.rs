//! Every route there is, from the router's own list: found at its path, closed to callers without a token and without a
//! right, and named in the audit log. A route that is added is here at once; what it takes is for `matrix.rs` to say.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use api_data::{Route, RouteKind};
use common::{Bench, ROOT, private_key, restore_source, rotation_policy, storage_location, three_holders};
use domain::guid::Guid;
use http::Method;
use serde_json::json;
use std::collections::HashSet;

const STRANGER: Guid = Guid([9; 16]);

/// The route's path for a key, an id and a setting, at the pool's scope and at a key's.
fn paths(kind: RouteKind) -> Vec<String> {
    let fill = |scope: &str, version: &str| {
        kind.path()
            .replace("{scope}", scope)
            .replace("{key}", "there")
            .replace("{version}", version)
            .replace("{id}", "c1c1c1c1-c1c1-c1c1-c1c1-c1c1c1c1c1c1")
            .replace("{setting}", "AllowKeyManagementOperationsThroughARM")
    };
    let all: HashSet<String> = ["", "/keys", "/keys/there"]
        .into_iter()
        .flat_map(|scope| ["", "0123456789abcdef0123456789abcdef"].map(|version| fill(scope, version)))
        .collect();
    all.into_iter().collect()
}

#[test]
fn every_route_is_found_at_its_path_and_no_two_share_one() {
    let mut places = HashSet::new();
    for kind in RouteKind::ALL {
        assert!(places.insert((kind.method(), kind.path())), "{kind:?}");
        for path in paths(*kind) {
            let method = Method::from_bytes(kind.method().as_bytes()).unwrap();
            let route = Route::parse(&method, &path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
            assert_eq!(route.kind(), *kind, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_is_open_without_a_token() {
    let bench = Bench::new().await;
    bench.arrange("POST", "/keys/there/create", json!({ "kty": "EC" })).await;
    bench.new_events().await;
    for kind in RouteKind::ALL {
        for path in paths(*kind) {
            for token in [None, Some("nonsense")] {
                let answer = bench.send(kind.method(), &path, Some(&json!({})), token).await;
                assert_eq!(answer.status, 401, "{path}");
                assert!(answer.challenge.unwrap().starts_with("Bearer authorization="), "{path}");
                assert_eq!(answer.body["error"]["code"], "Unauthorized");
            }
        }
    }
    assert!(bench.new_events().await.is_empty(), "an event without a caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_is_closed_to_who_holds_no_right_and_says_so_in_the_log() {
    let bench = Bench::new().await;
    bench.arrange("POST", "/keys/there/create", json!({ "kty": "EC" })).await;
    let token = bench.token(STRANGER);
    for kind in RouteKind::ALL {
        for path in paths(*kind) {
            bench.new_events().await;
            let body = body(*kind);
            let answer = bench.send(kind.method(), &path, Some(&body), Some(&token)).await;
            assert_eq!(answer.to_string(), "403 Forbidden/ForbiddenByRbac", "{kind:?} {path}: {answer:?}");
            assert_eq!(answer.challenge, None, "{path}");
            let message = answer.body["error"]["message"].as_str().unwrap();
            for part in [&STRANGER.to_string(), "Microsoft.KeyVault/managedHsm/", "at scope /"] {
                assert!(message.contains(part), "{path}: {message}");
            }
            let events = bench.new_events().await;
            let [event] = &events[..] else { panic!("{path}: {} events", events.len()) };
            assert_eq!(event["operationName"], kind.operation(), "{path}");
            assert_eq!(event["httpStatusCode"], 403, "{path}");
            assert_eq!(event["resultType"], "Forbidden", "{path}");
            assert!(event["identity"].to_string().contains(&STRANGER.to_string()), "{path}");
        }
    }
    // Nothing of it happened.
    assert_eq!(bench.as_root("GET", "/keys/there", None).await.status, 200);
    let keys = bench.as_root("GET", "/keys/there/versions", None).await;
    assert_eq!(keys.body["value"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn before_activation_only_the_domain_and_a_look_at_roles_are_open_and_only_to_initial_administrators() {
    let bench = Bench::provisioned().await;
    let (administrator, stranger) = (bench.token(ROOT), bench.token(STRANGER));
    // The download comes last: it ends that state.
    let (last, kinds): (Vec<_>, Vec<_>) =
        RouteKind::ALL.iter().copied().partition(|kind| *kind == RouteKind::DownloadDomain);
    for kind in kinds.into_iter().chain(last) {
        let (for_stranger, for_administrator) = match kind {
            RouteKind::DownloadDomain => ("403 Forbidden/ForbiddenByRbac", "202"),
            RouteKind::DomainDownloadStatus | RouteKind::NewTransferKey | RouteKind::DomainUploadStatus => {
                ("403 Forbidden/ForbiddenByRbac", "200")
            }
            RouteKind::UploadDomain => ("403 Forbidden/ForbiddenByRbac", "400 BadParameter"),
            RouteKind::ListAssignments | RouteKind::ListRoles => ("403 Forbidden/ForbiddenByRbac", "200"),
            RouteKind::ReadAssignment => ("403 Forbidden/ForbiddenByRbac", "404 RoleAssignmentNotFound"),
            RouteKind::ReadRole => ("403 Forbidden/ForbiddenByRbac", "404 RoleDefinitionNotFound"),
            _ => ("403 Forbidden/HsmNotActivated", "403 Forbidden/HsmNotActivated"),
        };
        for path in paths(kind) {
            for (token, expected) in [(&stranger, for_stranger), (&administrator, for_administrator)] {
                bench.new_events().await;
                let answer = bench.send(kind.method(), &path, Some(&body(kind)), Some(token)).await;
                assert_eq!(answer.to_string(), expected, "{kind:?} {path}: {answer:?}");
                let events = bench.new_events().await;
                let [event] = &events[..] else { panic!("{path}: {} events", events.len()) };
                assert_eq!(event["operationName"], kind.operation(), "{path}");
                assert_eq!(event["httpStatusCode"], answer.status, "{path}");
            }
        }
    }
    // Active, and who was the initial administrator still holds no more than that role.
    let made = bench.as_root("POST", "/keys/there/create", Some(&json!({ "kty": "EC" }))).await;
    assert_eq!(made.to_string(), "403 Forbidden/ForbiddenByRbac");
    // Clients that ask at once expect the download to be under way.
    for (path, status) in [
        ("/securitydomain/download/pending", "InProgress"),
        ("/securitydomain/download/pending", "Success"),
        ("/securitydomain/upload/pending", "Success"),
    ] {
        assert_eq!(bench.as_root("GET", path, None).await.body["status"], status, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_an_uploaded_domain_waits_to_be_confirmed_only_another_upload_and_a_look_at_roles_are_open() {
    let bench = Bench::unconfirmed().await;
    let (administrator, stranger) = (bench.token(ROOT), bench.token(STRANGER));
    let unconfirmed = "403 Forbidden/SecurityDomainNotConfirmed";
    let fingerprint = bench.pool.domain_fingerprint().to_owned();
    for kind in RouteKind::ALL.iter().copied() {
        let (for_stranger, for_administrator) = match kind {
            RouteKind::DomainDownloadStatus | RouteKind::NewTransferKey | RouteKind::DomainUploadStatus => {
                ("403 Forbidden/ForbiddenByRbac", "200")
            }
            RouteKind::UploadDomain => ("403 Forbidden/ForbiddenByRbac", "400 BadParameter"),
            // With another fingerprint than the pool's.
            RouteKind::ConfirmDomain => ("403 Forbidden/ForbiddenByRbac", "400 BadParameter"),
            RouteKind::ListAssignments | RouteKind::ListRoles => ("403 Forbidden/ForbiddenByRbac", "200"),
            RouteKind::ReadAssignment => ("403 Forbidden/ForbiddenByRbac", "404 RoleAssignmentNotFound"),
            RouteKind::ReadRole => ("403 Forbidden/ForbiddenByRbac", "404 RoleDefinitionNotFound"),
            _ => (unconfirmed, unconfirmed),
        };
        for path in paths(kind) {
            for (token, expected) in [(&stranger, for_stranger), (&administrator, for_administrator)] {
                let answer = bench.send(kind.method(), &path, Some(&body(kind)), Some(token)).await;
                assert_eq!(answer.to_string(), expected, "{kind:?} {path}: {answer:?}");
                if expected == unconfirmed || kind == RouteKind::ConfirmDomain && token == &administrator {
                    let message = answer.body["error"]["message"].as_str().unwrap();
                    assert!(message.contains(&fingerprint), "{path}: {message}");
                }
            }
        }
    }
    assert!(bench.pool.awaits_confirmation());
    let path = "/holdfast/securitydomain/confirm";
    let right = json!({ "fingerprint": fingerprint.to_uppercase() });
    bench.new_events().await;
    for _ in 0..2 {
        let answer = bench.as_root("POST", path, Some(&right)).await;
        assert_eq!((answer.status, &answer.body["confirmed"]), (200, &json!(true)), "{answer:?}");
        assert_eq!(answer.body["fingerprint"], fingerprint.as_str());
    }
    let events = bench.new_events().await;
    assert_eq!(events[0]["operationName"], "SecurityDomainConfirm");
    assert!(events[0].to_string().contains(&fingerprint), "{}", events[0]);
    assert!(!bench.pool.awaits_confirmation());
    assert_eq!(bench.as_root("GET", "/settings", None).await.status, 200);
    let upload = bench.as_root("GET", "/securitydomain/upload", None).await;
    assert_eq!(upload.to_string(), "409 Conflict/HsmAlreadyActivated");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_route_is_refused_and_recorded() {
    let bench = Bench::new().await;
    let known: HashSet<_> = RouteKind::ALL.iter().map(|kind| (kind.method(), kind.path())).collect();
    let token = bench.token(STRANGER);
    for path in RouteKind::ALL.iter().map(|kind| kind.path()).collect::<HashSet<_>>() {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "PROPFIND"] {
            if known.contains(&(method, path)) {
                continue;
            }
            let kind = RouteKind::ALL.iter().find(|kind| kind.path() == path).unwrap();
            for path in paths(*kind) {
                let method_known = Method::from_bytes(method.as_bytes()).unwrap();
                if Route::parse(&method_known, &path).is_ok() {
                    // `/keys/{key}` is `/keys/{key}/{version}` without a version.
                    continue;
                }
                bench.new_events().await;
                let answer = bench.send(method, &path, Some(&json!({})), Some(&token)).await;
                // In `GET /keys/{key}/sign`, `sign` stands where a version belongs: malformed, not unknown.
                assert!([400, 404].contains(&answer.status), "{method} {path}: {answer:?}");
                assert_eq!(bench.new_events().await.len(), 1, "{method} {path}");
            }
        }
    }
}

/// A body that parses, so that a refusal is for the right that is missing and for nothing else.
fn body(kind: RouteKind) -> serde_json::Value {
    let digest = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
    match kind {
        RouteKind::CreateKey => json!({ "kty": "EC" }),
        RouteKind::ImportKey => private_key(),
        RouteKind::Sign => json!({ "alg": "ES256", "value": digest }),
        RouteKind::Verify => json!({ "alg": "ES256", "digest": digest, "value": digest }),
        RouteKind::Encrypt | RouteKind::Decrypt => json!({ "alg": "A256GCM", "value": digest }),
        RouteKind::WrapKey | RouteKind::UnwrapKey => json!({ "alg": "A256KW", "value": digest }),
        RouteKind::RandomBytes => json!({ "count": 16 }),
        RouteKind::CreateAssignment => json!({ "properties": {
            "principalId": STRANGER.to_string(), "roleDefinitionId": STRANGER.to_string(),
        }}),
        RouteKind::DefineRole => json!({ "properties": { "roleName": "r" } }),
        RouteKind::ReleaseKey => json!({ "target": "a.b.c" }),
        RouteKind::UpdateSetting | RouteKind::UploadDomain | RouteKind::RestoreKey => {
            json!({ "value": "true" })
        }
        RouteKind::DownloadDomain => three_holders(),
        RouteKind::ConfirmDomain => json!({ "fingerprint": "0".repeat(64) }),
        RouteKind::SetRotationPolicy => rotation_policy(),
        RouteKind::StartBackup | RouteKind::CheckBackup => storage_location(),
        RouteKind::StartRestore
        | RouteKind::CheckRestore
        | RouteKind::RestoreOneKey
        | RouteKind::PreviewRestore => restore_source(),
        _ => json!({}),
    }
}

/// As the service: a definition is looked for under whatever name, and told of to those alone who may look.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_of_a_name_that_is_no_guid_is_not_found() {
    let bench = Bench::new().await;
    let stranger = bench.token(STRANGER);
    let path = "/providers/Microsoft.Authorization/roleDefinitions/Managed%20HSM%20Auditor";
    for method in ["GET", "DELETE"] {
        let answer = bench.as_root(method, path, None).await;
        assert_eq!(answer.to_string(), "404 RoleDefinitionNotFound", "{method}");
        let message = answer.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("Managed HSM Auditor"), "{message}");
        let answer = bench.send(method, path, None, Some(&stranger)).await;
        assert_eq!(answer.to_string(), "403 Forbidden/ForbiddenByRbac", "{method}");
    }
    let answer = bench.as_root("PUT", path, Some(&body(RouteKind::DefineRole))).await;
    assert_eq!(answer.to_string(), "400 BadParameter");
}
