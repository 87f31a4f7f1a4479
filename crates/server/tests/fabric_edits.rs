//! Whoever can write the control plane's files can stop pools, and lose or lengthen what it says of them. A pool that has
//! been founded takes from there nothing but network rules: its administrators, issuer, roles and keys are its own.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::Quickstart;
use host::{Commit, CommitOutcome, Engine, Mutation, OperationId};
use host_embedded::{EngineOptions, RedbEngine};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const ROLES: &str = "/providers/Microsoft.Authorization/roleAssignments?api-version=7.4";

/// An access token of one of the quickstart's principals.
fn token(quickstart: &Quickstart, principal: &str, scope: &str) -> String {
    let variables = quickstart.variables();
    let of = |name: &str| variables[&format!("HOLDFAST_{principal}_{name}")].clone();
    let body = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}&scope={scope}/.default",
        of("CLIENT_ID"),
        of("CLIENT_SECRET")
    );
    let path = format!("/{}/oauth2/v2.0/token", variables["TENANT_ID"]);
    let port = quickstart.port + common::ISSUER_OFFSET;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/x-www-form-urlencoded"
    );
    let answer = quickstart.request(port, &head, &body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer: Value = serde_json::from_str(&answer.body).unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

/// What the pool says over its administration socket.
fn ask_pool(quickstart: &Quickstart, path: &str, token: &str) -> (u16, Value) {
    let port = std::fs::read_to_string(quickstart.data().join("pools/payroll/port")).unwrap();
    let socket = quickstart.data().join(format!("run/{}.adm", port.trim()));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    // A process that is ending may hang up.
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        std::thread::sleep(Duration::from_millis(50));
        return ask_pool(quickstart, path, token);
    };
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// All that must stay: what genesis fixed, the roles, and to whom they are shown. Of a process other than `ended`, which may
/// take a moment to end.
fn state(quickstart: &Quickstart, ended: &mut Value) -> (Value, Value, u16) {
    let admin = token(quickstart, "ADMIN", "https://managedhsm.localhost");
    let app = token(quickstart, "APP", "https://managedhsm.localhost");
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut facts = loop {
        let (status, facts) = ask_pool(quickstart, "/pool", &admin);
        assert_eq!(status, 200);
        if facts["pid"] != *ended {
            break facts;
        }
        assert!(Instant::now() < deadline, "the pool's process does not end");
        std::thread::sleep(Duration::from_millis(50));
    };
    *ended = facts["pid"].clone();
    facts.as_object_mut().unwrap().retain(|name, _| name != "pid" && name != "protection");
    let (status, roles) = ask_pool(quickstart, ROLES, &admin);
    assert_eq!(status, 200, "{roles}");
    (facts, roles, ask_pool(quickstart, ROLES, &app).0)
}

async fn edit(quickstart: &Quickstart, change: impl FnOnce(&mut Value)) {
    let engine = RedbEngine::open(quickstart.data().join("fabric/store"), EngineOptions::default()).unwrap();
    let held = engine.get(b"pool/payroll").await.unwrap().unwrap();
    let mut record: Value = serde_json::from_slice(&held.value).unwrap();
    change(&mut record);
    let value = record.to_string().into_bytes();
    let mutations = vec![Mutation::Put { key: b"pool/payroll".to_vec(), value }];
    let mut operation = [0xee; 16];
    operation[..8].copy_from_slice(&held.revision.0.to_be_bytes());
    let commit = Commit { operation: OperationId(operation), expectations: vec![], mutations };
    assert!(matches!(engine.commit(commit).await.unwrap(), CommitOutcome::Committed(_)));
}

#[test]
fn no_edit_of_the_control_planes_files_changes_a_pool() {
    let mut quickstart = Quickstart::started();
    let variables = quickstart.variables();
    let (admin, app) = (&variables["HOLDFAST_ADMIN_OBJECT_ID"], &variables["HOLDFAST_APP_OBJECT_ID"]);
    let arm = token(&quickstart, "ADMIN", "https://management.azure.com");
    let subscription = &variables["SUBSCRIPTION_ID"];
    let path = format!(
        "/subscriptions/{subscription}/resourceGroups/quickstart/providers/Microsoft.KeyVault/managedHSMs/payroll"
    );
    let body = json!({
        "location": "local",
        "properties": {"initialAdminObjectIds": [admin], "softDeleteRetentionInDays": 7},
    });
    let port = quickstart.port + 2;
    let head = format!(
        "PUT {path}?api-version=2026-02-01 HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\nAuthorization: Bearer {arm}"
    );
    let made = quickstart.request(port, &head, &body.to_string());
    assert_eq!(made.status, 200, "{}", made.body);
    let mut process = Value::Null;
    let before = state(&quickstart, &mut process);
    assert_eq!(before.2, 403, "`app` is no administrator of the pool");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let edits: [fn(&mut Value, &str); 4] = [
        |record, app| record["administrators"] = json!([app]),
        |record, _| record["retention_days"] = json!(90),
        |record, _| record["purge_protection"] = json!(true),
        |record, app| record["created_by"] = json!(app),
    ];
    quickstart.kill();
    for change in edits {
        runtime.block_on(edit(&quickstart, |record| change(record, app)));
    }
    quickstart.start(&[]);
    assert_eq!(state(&quickstart, &mut process), before);

    // A control plane that is new, or another: what it has to say of the pool is what anybody could write.
    quickstart.kill();
    let fabric = quickstart.data().join("fabric");
    std::fs::remove_dir_all(&fabric).unwrap();
    quickstart.start(&[]);
    let usurped = json!({
        "location": "local",
        "properties": {"initialAdminObjectIds": [app], "softDeleteRetentionInDays": 90},
    });
    let arm = token(&quickstart, "ADMIN", "https://management.azure.com");
    let head = head.rsplit_once(' ').unwrap().0.to_owned() + " " + &arm;
    let made = quickstart.request(port, &head, &usurped.to_string());
    assert_eq!(made.status, 200, "{}", made.body);
    assert_eq!(state(&quickstart, &mut process), before);
}
