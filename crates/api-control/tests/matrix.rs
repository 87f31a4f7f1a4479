//! Who gets which answer from the resource manager: every request there is, as the holder of each role at each scope, as
//! somebody who holds none, and without a token. The answers are one table, `matrix.txt`; a changed one fails and is
//! printed. `HOLDFAST_WRITE_MATRIX=1` accepts it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::{Bench, OWNER, POOLS};
use fabric::{FabricError, Role, Scope};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

const CALLER: &str = "00000000-0000-0000-0000-0000000000aa";
const ASSIGNMENT: &str = "00000000-0000-0000-0000-0000000000bb";
const SUBSCRIPTION: &str = "/subscriptions/s";
const GROUP: &str = "/subscriptions/s/resourceGroups/g";
const ENDPOINTS: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/privateEndpoints";
const READER: &str = "acdd72a7-3385-48ef-bd42-f606fba81ae7";

impl Bench {
    /// As the owner; it must go well.
    async fn arrange(&self, method: &str, path: &str, body: Option<Value>) {
        let (status, answer) = self.send(Some(OWNER), method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
    }

    /// One pool that is there, one that is deleted, and an assignment at the first: before each request the same.
    async fn set_the_stage(&self) {
        let there = self.send(Some(OWNER), "GET", &format!("{POOLS}/there"), None).await.0;
        if there != 200 {
            let (status, _) =
                self.send(Some(OWNER), "PUT", &format!("{POOLS}/there"), Some(recovery())).await;
            if status != 200 {
                self.arrange("PUT", &format!("{POOLS}/there"), Some(pool())).await;
            }
        }
        let deleted =
            format!("{SUBSCRIPTION}/providers/Microsoft.KeyVault/locations/here/deletedManagedHSMs/gone");
        if self.send(Some(OWNER), "GET", &deleted, None).await.0 != 200 {
            let path = format!("{POOLS}/gone");
            if self.send(Some(OWNER), "GET", &path, None).await.0 != 200 {
                self.arrange("PUT", &path, Some(pool())).await;
            }
            self.arrange("DELETE", &path, None).await;
        }
        let fresh = format!("{POOLS}/fresh");
        if self.send(Some(OWNER), "GET", &fresh, None).await.0 == 200 {
            self.arrange("DELETE", &fresh, None).await;
            let deleted = format!(
                "{SUBSCRIPTION}/providers/Microsoft.KeyVault/locations/here/deletedManagedHSMs/fresh"
            );
            self.arrange("POST", &format!("{deleted}/purge"), None).await;
        }
        let assignment = assignment_at(&format!("{POOLS}/there"), ASSIGNMENT);
        if self.send(Some(OWNER), "GET", &assignment, None).await.0 != 200 {
            self.arrange("PUT", &assignment, Some(assigned())).await;
        }
        // A connection that waits for a decision, and an endpoint whose own was deleted.
        for name in ["waits", "fresh", "lost"] {
            let _ = self.send(Some(OWNER), "DELETE", &format!("{ENDPOINTS}/{name}"), None).await;
        }
        self.arrange("PUT", &format!("{ENDPOINTS}/lost"), Some(endpoint("there", true))).await;
        self.arrange("DELETE", &format!("{POOLS}/there/privateEndpointConnections/lost"), None).await;
        self.arrange("PUT", &format!("{ENDPOINTS}/waits"), Some(endpoint("there", true))).await;
        let other = assignment_at(&format!("{POOLS}/there"), &ASSIGNMENT.replace("bb", "cc"));
        let _ = self.send(Some(OWNER), "DELETE", &other, None).await;
    }
}

fn assignment_at(scope: &str, id: &str) -> String {
    format!("{scope}/providers/Microsoft.Authorization/roleAssignments/{id}")
}

fn endpoint(pool: &str, manual: bool) -> Value {
    let list = if manual { "manualPrivateLinkServiceConnections" } else { "privateLinkServiceConnections" };
    let connection = json!({
        "name": "c",
        "properties": {"privateLinkServiceId": format!("{POOLS}/{pool}"), "groupIds": ["managedhsm"]},
    });
    let subnet = format!("{GROUP}/providers/Microsoft.Network/virtualNetworks/private/subnets/office");
    json!({"location": "here", "properties": {"subnet": {"id": subnet}, list: [connection]}})
}

fn decided(status: &str) -> Option<Value> {
    Some(json!({"properties": {"privateLinkServiceConnectionState": {"status": status}}}))
}

fn assigned() -> Value {
    assigned_to("00000000-0000-0000-0000-0000000000dd")
}

fn assigned_to(principal: &str) -> Value {
    let role = format!("{SUBSCRIPTION}/providers/Microsoft.Authorization/roleDefinitions/{READER}");
    json!({"properties": {"principalId": principal, "roleDefinitionId": role}})
}

fn pool() -> Value {
    json!({
        "location": "here",
        "properties": {"initialAdminObjectIds": [OWNER], "softDeleteRetentionInDays": 7},
    })
}

fn recovery() -> Value {
    json!({"location": "here", "properties": {"createMode": "recover"}})
}

/// A label, a method, a path, a body.
type Asked = (&'static str, &'static str, String, Option<Value>);

/// Every route, with each method that it takes.
fn requests() -> Vec<Asked> {
    let there = format!("{POOLS}/there");
    let provider = format!("{SUBSCRIPTION}/providers/Microsoft.KeyVault");
    let place = format!("{provider}/locations/here");
    let deleted = format!("{place}/deletedManagedHSMs/gone");
    let connection = format!("{there}/privateEndpointConnections/waits");
    let deny = json!({"properties": {"networkAcls": {"defaultAction": "Deny"}}});
    let definition = format!("{there}/providers/Microsoft.Authorization/roleDefinitions");
    vec![
        ("tenants", "GET", "/tenants".into(), None),
        ("subscriptions", "GET", "/subscriptions".into(), None),
        ("subscription", "GET", SUBSCRIPTION.into(), None),
        ("another subscription", "GET", "/subscriptions/other".into(), None),
        ("resources", "GET", format!("{SUBSCRIPTION}/resources"), None),
        ("groups", "GET", format!("{SUBSCRIPTION}/resourceGroups"), None),
        ("group", "GET", GROUP.into(), None),
        ("operations", "GET", "/providers/Microsoft.KeyVault/operations".into(), None),
        ("pools", "GET", format!("{provider}/managedHSMs"), None),
        ("pools of the group", "GET", POOLS.into(), None),
        ("pool", "GET", there.clone(), None),
        ("pool that is absent", "GET", format!("{POOLS}/absent"), None),
        ("create", "PUT", format!("{POOLS}/fresh"), Some(pool())),
        ("create, malformed", "PUT", format!("{POOLS}/fresh"), Some(json!({"properties": 1}))),
        ("update", "PUT", there.clone(), Some(pool())),
        ("patch tags", "PATCH", there.clone(), Some(json!({"tags": {"a": "b"}}))),
        ("patch network rules", "PATCH", there.clone(), Some(deny)),
        (
            "patch administrators",
            "PATCH",
            there.clone(),
            Some(json!({"properties": {"initialAdminObjectIds": [CALLER]}})),
        ),
        ("delete", "DELETE", there.clone(), None),
        ("regions", "GET", format!("{there}/regions"), None),
        ("private link resources", "GET", format!("{there}/privateLinkResources"), None),
        ("private endpoint connections", "GET", format!("{there}/privateEndpointConnections"), None),
        ("private endpoint connection", "GET", connection.clone(), None),
        ("connection that was deleted", "GET", format!("{there}/privateEndpointConnections/lost"), None),
        ("approve a connection", "PUT", connection.clone(), decided("Approved")),
        ("reject a connection", "PUT", connection.clone(), decided("Rejected")),
        ("decide neither", "PUT", connection.clone(), decided("Pending")),
        ("delete a connection", "DELETE", connection, None),
        ("private endpoints", "GET", ENDPOINTS.into(), None),
        ("private endpoint", "GET", format!("{ENDPOINTS}/waits"), None),
        ("private endpoint that was disconnected", "GET", format!("{ENDPOINTS}/lost"), None),
        ("ask for a private endpoint", "PUT", format!("{ENDPOINTS}/waits"), Some(endpoint("there", true))),
        ("ask for one more from there", "PUT", format!("{ENDPOINTS}/fresh"), Some(endpoint("there", true))),
        (
            "private endpoint to another pool",
            "PUT",
            format!("{ENDPOINTS}/fresh"),
            Some(endpoint("besides", false)),
        ),
        ("private endpoint to nowhere", "PUT", format!("{ENDPOINTS}/fresh"), Some(endpoint("absent", true))),
        ("private endpoint, malformed", "PUT", format!("{ENDPOINTS}/fresh"), Some(json!({}))),
        ("delete a private endpoint", "DELETE", format!("{ENDPOINTS}/waits"), None),
        ("deleted pools", "GET", format!("{provider}/deletedManagedHSMs"), None),
        ("deleted vaults", "GET", format!("{provider}/deletedVaults"), None),
        ("deleted pool", "GET", deleted.clone(), None),
        ("recover", "PUT", format!("{POOLS}/gone"), Some(recovery())),
        ("purge", "POST", format!("{deleted}/purge"), None),
        ("state of a purge", "GET", format!("{place}/managedHsmOperationStatuses/purge-gone"), None),
        ("result of a purge", "GET", format!("{place}/managedHsmOperationResults/purge-gone"), None),
        (
            "check a name",
            "POST",
            format!("{provider}/checkMhsmNameAvailability"),
            Some(json!({"name": "fresh"})),
        ),
        ("permissions", "GET", format!("{there}/providers/Microsoft.Authorization/permissions"), None),
        ("role definitions", "GET", definition.clone(), None),
        ("role definition", "GET", format!("{definition}/{READER}"), None),
        ("assignments", "GET", format!("{there}/providers/Microsoft.Authorization/roleAssignments"), None),
        ("assignment", "GET", assignment_at(&there, ASSIGNMENT), None),
        ("assign", "PUT", assignment_at(&there, &ASSIGNMENT.replace("bb", "cc")), Some(assigned())),
        ("assign the same again", "PUT", assignment_at(&there, ASSIGNMENT), Some(assigned())),
        (
            "assign something else under its name",
            "PUT",
            assignment_at(&there, ASSIGNMENT),
            Some(assigned_to(CALLER)),
        ),
        (
            "assign to another",
            "PUT",
            assignment_at(&there, &ASSIGNMENT.replace("bb", "cc")),
            Some(assigned_to(CALLER)),
        ),
        ("take an assignment away", "DELETE", assignment_at(&there, ASSIGNMENT), None),
    ]
}

/// The status, and how many a list shows.
fn shown(answer: &(u16, Value)) -> String {
    let code = answer.1["error"]["code"].as_str().map(|code| format!(" {code}")).unwrap_or_default();
    let listed = answer.1["value"].as_array().map(|list| format!(" [{}]", list.len())).unwrap_or_default();
    format!("{}{code}{listed}", answer.0)
}

#[tokio::test]
async fn everybody_gets_the_answer_that_is_committed() {
    let bench = Bench::new().await;
    let there = format!("{POOLS}/there");
    bench.set_the_stage().await;
    bench.arrange("PUT", &format!("{POOLS}/besides"), Some(pool())).await;
    let scopes = [
        ("subscription", SUBSCRIPTION.to_owned()),
        ("group", GROUP.to_owned()),
        ("pool", there),
        ("another pool", format!("{POOLS}/besides")),
    ];
    let mut table = String::new();
    for (label, method, path, body) in requests() {
        let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut note = |answer: &(u16, Value), who: String| {
            answers.entry(shown(answer)).or_default().push(who);
        };
        bench.set_the_stage().await;
        note(&bench.send(None, method, &path, body.clone()).await, "no token".into());
        note(&bench.send(Some(CALLER), method, &path, body.clone()).await, "no role".into());
        for role in Role::ALL {
            for (name, scope) in &scopes {
                bench.set_the_stage().await;
                let id = "00000000-0000-0000-0000-0000000000ee";
                let fabric = &bench.control.fabric;
                let scope = Scope::new(scope);
                fabric.put_assignment(OWNER, &scope, id, CALLER, role).await.unwrap();
                let answer = bench.send(Some(CALLER), method, &path, body.clone()).await;
                note(&answer, format!("{} at {name}", role.name()));
                // It may have gone with the pool.
                let gone = fabric.delete_assignment(OWNER, &scope, id).await;
                assert!(matches!(gone, Ok(_) | Err(FabricError::NoAssignment(_))), "{gone:?}");
            }
        }
        writeln!(table, "{label}: {method}").unwrap();
        for (answer, who) in answers {
            writeln!(table, "  {answer}: {}", who.join(", ")).unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("matrix.txt");
    if std::env::var_os("HOLDFAST_WRITE_MATRIX").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    for line in table.lines().filter(|line| !committed.lines().any(|held| held == *line)) {
        println!("+{line}");
    }
    assert!(table == committed, "answers changed (+ above): HOLDFAST_WRITE_MATRIX=1 accepts them");
}
