//! Whoever can write the control plane's files changes nothing of a pool that is there: its administrators, issuer, roles and
//! keys are in the pool's own store. Each record is edited while nothing runs; then the edit is refused, or it does nothing.

#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::{Answer, Quickstart, exchange, free_ports};
use host::{Commit, CommitOutcome, Engine, Mutation, OperationId};
use host_embedded::{EngineOptions, RedbEngine};
use serde_json::{Value, json};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const CONTROL_OFFSET: u16 = 2;
const READY_TIME: Duration = Duration::from_secs(120);
const CRYPTO_USER: &str = "21dbd100-6940-42c2-9190-5d6cb909625b";
const HOLDERS: [&str; 3] = [
    include_str!("../../ceremony/tests/golden/holder-1.cer"),
    include_str!("../../ceremony/tests/golden/holder-2.cer"),
    include_str!("../../ceremony/tests/golden/holder-3.cer"),
];

/// A record's key, and what is written there; `None` takes it away.
type Edit = (String, Option<Vec<u8>>);

struct Bench {
    quickstart: Quickstart,
    /// Of whoever administers the pool, and of whoever owns the subscription.
    app: String,
    admin: String,
}

impl Bench {
    fn new() -> Self {
        let quickstart = Quickstart::started();
        let variables = quickstart.variables();
        let of = |name: &str| variables[&format!("HOLDFAST_{name}_OBJECT_ID")].clone();
        Self { app: of("APP"), admin: of("ADMIN"), quickstart }
    }

    fn arm(&self, method: &str, path: &str, body: &Value) -> Answer {
        let port = self.quickstart.port + CONTROL_OFFSET;
        let token = self.quickstart.token_of("ADMIN", "https%3A%2F%2Fmanagement.azure.com");
        let request = format!(
            "{method} {path}?api-version=2026-02-01 HTTP/1.1\r\nHost: localhost:{port}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        );
        self.quickstart.request(port, &request, &body.to_string())
    }

    fn pool_path(&self) -> String {
        let subscription = &self.quickstart.variables()["SUBSCRIPTION_ID"];
        format!(
            "/subscriptions/{subscription}/resourceGroups/quickstart/providers/Microsoft.KeyVault/managedHSMs/payroll"
        )
    }

    /// At the pool's own port, which ids do not show as the host is given without; `None` while nobody serves there.
    fn call(&self, who: &str, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let port = std::fs::read_to_string(self.quickstart.data().join("pools/payroll/port")).unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).ok()?;
        let token = self.quickstart.token_of(who, "https%3A%2F%2Fmanagedhsm.azure.net");
        let name = "payroll.managedhsm.localhost";
        let request = format!(
            "{method} {path}?api-version=7.4 HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json"
        );
        let body = if body.is_null() { String::new() } else { body.to_string() };
        Some(exchange(self.quickstart.tls_over(stream, name, None), &request, &body))
    }

    fn as_app(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.call("APP", method, path, body).unwrap();
        assert!((200..300).contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }

    fn wait_for_the_pool(&self) {
        let until = Instant::now() + READY_TIME;
        while self.call("APP", "GET", "/healthstatus", &Value::Null).is_none() {
            assert!(Instant::now() < until, "the pool does not serve");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// All that nobody but the pool's own administrators may change. The domain's file has the hash of genesis in it, and
    /// with genesis the issuer, the administrators and the retention.
    fn pool_as_it_is(&self) -> Vec<Value> {
        let stranger = self.call("ADMIN", "GET", ASSIGNMENTS, &Value::Null).unwrap();
        assert_eq!(stranger.status, 403, "who owns the subscription has no right in the pool");
        vec![
            self.as_app("GET", ASSIGNMENTS, &Value::Null),
            self.as_app("GET", "/providers/Microsoft.Authorization/roleDefinitions", &Value::Null),
            self.as_app("GET", "/keys/first", &Value::Null),
            self.as_app("GET", "/settings", &Value::Null),
            self.as_app("POST", "/securitydomain/download", &domain()),
            std::fs::read_to_string(self.quickstart.data().join("pools/payroll/pool/owner.pem"))
                .unwrap()
                .into(),
        ]
    }

    fn edit(&self, changes: &[Edit]) {
        with_store(self, async |engine| {
            let mutations = changes.iter().map(|(key, value)| match value {
                Some(value) => Mutation::Put { key: key.clone().into_bytes(), value: value.clone() },
                None => Mutation::Delete { key: key.clone().into_bytes() },
            });
            let commit = Commit {
                operation: OperationId(rand()),
                expectations: vec![],
                mutations: mutations.collect(),
            };
            assert!(matches!(engine.commit(commit).await.unwrap(), CommitOutcome::Committed(_)));
        });
    }

    fn records(&self) -> Vec<(String, Vec<u8>)> {
        let mut records = Vec::new();
        with_store(self, async |engine| {
            let mut scan = engine.scan(b"").await.unwrap();
            loop {
                let page = scan.next_page(100).await.unwrap();
                if page.is_empty() {
                    break;
                }
                records.extend(
                    page.into_iter().map(|entry| (String::from_utf8(entry.key).unwrap(), entry.value)),
                );
            }
        });
        records
    }
}

const ASSIGNMENTS: &str = "/providers/Microsoft.Authorization/roleAssignments";

fn with_store(bench: &Bench, work: impl AsyncFnOnce(&RedbEngine)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let path = bench.quickstart.data().join("fabric/store");
        let engine = RedbEngine::open(path, EngineOptions::default()).unwrap();
        work(&engine).await;
    });
}

/// As different as one moment from the next.
fn rand() -> [u8; 16] {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos().to_be_bytes()
}

fn domain() -> Value {
    let holders = HOLDERS.map(|pem| {
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        json!({"x5c": [base64]})
    });
    json!({"certificates": holders, "required": 2})
}

fn altered(record: &Value, members: Value) -> Option<Vec<u8>> {
    let mut record = record.clone();
    for (name, value) in members.as_object().unwrap() {
        record[name] = value.clone();
    }
    Some(record.to_string().into_bytes())
}

#[test]
fn no_edit_of_the_control_planes_files_changes_a_pool() {
    let mut bench = Bench::new();
    let wanted = json!({
        "location": "local", "sku": {"family": "B", "name": "Standard_B1"},
        "properties": {
            "tenantId": bench.quickstart.variables()["TENANT_ID"],
            "initialAdminObjectIds": [bench.app], "softDeleteRetentionInDays": 7,
        },
    });
    let made = bench.arm("PUT", &bench.pool_path(), &wanted);
    assert_eq!(made.status, 200, "{}", made.body);
    bench.as_app("POST", "/securitydomain/download", &domain());
    let definition =
        format!("Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{CRYPTO_USER}");
    let given = json!({"properties": {"principalId": bench.app, "roleDefinitionId": definition}});
    bench.as_app("PUT", &format!("{ASSIGNMENTS}/00000000-0000-0000-0000-0000000000aa"), &given);
    bench.as_app("POST", "/keys/first/create", &json!({"kty": "EC-HSM", "crv": "P-256"}));
    let before = bench.pool_as_it_is();
    bench.quickstart.kill();

    let records = bench.records();
    let held = |key: &str| {
        let value = records.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        serde_json::from_slice::<Value>(&value.unwrap()).unwrap()
    };
    let pool = held("pool/payroll");
    let last = records.iter().rev().find(|(name, _)| name.starts_with("activity/")).unwrap();
    let entry: Value = serde_json::from_slice(&last.1).unwrap();
    let own = |members: Value| vec![("pool/payroll".to_owned(), altered(&pool, members))];
    let owner = json!({
        "version": 1, "id": "ff", "principal": bench.app, "role": "Owner",
        "scope": format!("/subscriptions/{}", bench.quickstart.variables()["SUBSCRIPTION_ID"]),
    });
    let endpoint = json!({
        "version": 1, "name": "desk", "pool": "payroll", "network": "office", "state": "Approved", "manual": true,
        "connection_name": "", "request_message": "", "description": "", "created_at": 0, "created_by": bench.admin,
    });
    let effective: Vec<(&str, Vec<Edit>)> = vec![
        ("other administrators", own(json!({"administrators": [bench.admin]}))),
        ("no administrators", own(json!({"administrators": []}))),
        ("another retention", own(json!({"retention_days": 90, "purge_protection": true}))),
        ("to be made anew", own(json!({"life": "Creating", "administrators": [bench.admin]}))),
        ("another maker", own(json!({"created_by": bench.admin, "created_at": 0, "tags": {"a": "b"}}))),
        ("an owner more", vec![("assignment/ff".into(), Some(owner.to_string().into_bytes()))]),
        ("a private endpoint", vec![("endpoint/desk".into(), Some(endpoint.to_string().into_bytes()))]),
    ];
    for (what, changes) in effective {
        bench.edit(&changes);
        bench.quickstart.start(&[]);
        bench.wait_for_the_pool();
        assert_eq!(bench.pool_as_it_is(), before, "{what}");
        bench.quickstart.kill();
        undo(&bench, &records);
    }

    // The chain, or the record's own form, tells; nothing is served under what was written there.
    let refused = [
        (last.0.clone(), altered(&entry, json!({"caller": bench.app}))),
        (last.0.clone(), None),
        ("head".to_owned(), altered(&held("head"), json!({"length": 1}))),
        ("head".to_owned(), None),
        ("pool/payroll".to_owned(), altered(&pool, json!({"issuer": "https://evil.example"}))),
        ("pool/payroll".to_owned(), altered(&pool, json!({"version": 2}))),
        ("pool/payroll".to_owned(), Some(b"garbage".to_vec())),
    ];
    for change in refused {
        let changes = vec![change];
        bench.edit(&changes);
        let port = bench.quickstart.port.to_string();
        let output = bench.quickstart.run(&["quickstart", "--port", &port]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{changes:?}");
        let named = ["activity log does not verify", "record pool/payroll"];
        assert!(named.iter().any(|words| said.contains(words)), "{changes:?}: {said}");
        undo(&bench, &records);
    }

    // Deleted by an edit it does not serve, and under another name nobody has its keys; as it was, it is as it was.
    let renamed = json!({"name": "imposter", "administrators": [bench.admin]});
    let moved =
        vec![("pool/payroll".to_owned(), None), ("pool/imposter".to_owned(), altered(&pool, renamed))];
    for changes in [own(json!({"life": {"Deleted": {"at": 0, "purge_at": 4_000_000_000_u64}}})), moved] {
        bench.edit(&changes);
        bench.quickstart.start(&[]);
        std::thread::sleep(Duration::from_secs(1));
        assert!(bench.call("APP", "GET", "/healthstatus", &Value::Null).is_none(), "{changes:?}");
        bench.quickstart.kill();
        undo(&bench, &records);
    }
    // Its port is beside the store; at another one it is what it is.
    let (free, _reserved) = free_ports();
    std::fs::write(bench.quickstart.data().join("pools/payroll/port"), free.to_string()).unwrap();
    bench.quickstart.start(&[]);
    bench.wait_for_the_pool();
    assert_eq!(bench.pool_as_it_is(), before);
}

fn undo(bench: &Bench, records: &[(String, Vec<u8>)]) {
    // Whatever the server wrote since goes as well: all is as it was.
    let now = bench.records();
    let gone = now.iter().filter(|(key, _)| !records.iter().any(|(held, _)| held == key));
    let mut back: Vec<Edit> = gone.map(|(key, _)| (key.clone(), None)).collect();
    back.extend(records.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
    bench.edit(&back);
    assert_eq!(bench.records(), records);
}
