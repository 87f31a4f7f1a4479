//! Who gets which answer: every route × every role at every scope × every state of the key, as one table that a person
//! can read, in `matrix.txt`. A changed answer fails here and prints the difference; `HOLDFAST_WRITE_MATRIX=1` accepts it.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use api_data::RouteKind;
use common::{ASSIGNMENTS, Answer, Bench, DEFINITIONS, NOW, three_holders};
use domain::access::{BuiltInRole, DataAction};
use domain::guid::Guid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

/// The role that is defined anew for each route, with the one data action that the route asks for.
const CUSTOM: Guid = Guid([0xc0; 16]);
/// What routes of role definitions, assignments and principals are about.
const SUBJECT_ROLE: Guid = Guid([0xc1; 16]);
const SUBJECT_ASSIGNMENT: Guid = Guid([0xc2; 16]);
const SUBJECT_PRINCIPAL: Guid = Guid([0xc3; 16]);

/// Where a role may be held. `other` is a key beside the one that requests are about.
const SCOPES: [&str; 4] = ["/", "/keys", "/keys/this", "/keys/other"];

/// What can be the matter with the key that a request is about.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum State {
    Live,
    Disabled,
    BeforeNbf,
    AfterExp,
    NotInKeyOps,
    OtherType,
    Deleted,
    Absent,
}

impl State {
    const ALL: [State; 8] = [
        State::Live,
        State::Disabled,
        State::BeforeNbf,
        State::AfterExp,
        State::NotInKeyOps,
        State::OtherType,
        State::Deleted,
        State::Absent,
    ];

    const fn name(self) -> &'static str {
        match self {
            State::Live => "live",
            State::Disabled => "disabled",
            State::BeforeNbf => "before nbf",
            State::AfterExp => "after exp",
            State::NotInKeyOps => "not in key_ops",
            State::OtherType => "other key type",
            State::Deleted => "deleted",
            State::Absent => "absent",
        }
    }
}

/// The right that a route asks for. No `_` arm: a new route does not compile until it is here, and so in the table.
fn data_action(kind: RouteKind) -> DataAction {
    match kind {
        RouteKind::CreateKey => DataAction::KeyCreate,
        RouteKind::ImportKey => DataAction::KeyImport,
        RouteKind::ReadKey | RouteKind::AttestKey | RouteKind::ListKeys | RouteKind::ListVersions => {
            DataAction::KeyRead
        }
        RouteKind::UpdateKey => DataAction::KeyWrite,
        RouteKind::DeleteKey => DataAction::KeyDelete,
        RouteKind::ReadDeletedKey | RouteKind::ListDeletedKeys => DataAction::DeletedKeyRead,
        RouteKind::RecoverKey => DataAction::DeletedKeyRecover,
        RouteKind::PurgeKey => DataAction::DeletedKeyPurge,
        RouteKind::Sign => DataAction::Sign,
        RouteKind::Verify => DataAction::Verify,
        RouteKind::Encrypt => DataAction::Encrypt,
        RouteKind::Decrypt => DataAction::Decrypt,
        RouteKind::WrapKey => DataAction::Wrap,
        RouteKind::UnwrapKey => DataAction::Unwrap,
        RouteKind::ReleaseKey => DataAction::KeyRelease,
        RouteKind::BackupKey => DataAction::KeyBackup,
        RouteKind::RestoreKey => DataAction::KeyRestore,
        RouteKind::RotateKey => DataAction::KeyRotate,
        RouteKind::ReadRotationPolicy => DataAction::KeyRead,
        RouteKind::SetRotationPolicy => DataAction::KeyWrite,
        RouteKind::RandomBytes => DataAction::RandomBytes,
        RouteKind::CreateAssignment => DataAction::RoleAssignmentWrite,
        RouteKind::ReadAssignment | RouteKind::ListAssignments => DataAction::RoleAssignmentRead,
        RouteKind::DeleteAssignment => DataAction::RoleAssignmentDelete,
        RouteKind::DefineRole => DataAction::RoleDefinitionWrite,
        RouteKind::ReadRole | RouteKind::ListRoles => DataAction::RoleDefinitionRead,
        RouteKind::DeleteRole => DataAction::RoleDefinitionDelete,
        RouteKind::ListSettings | RouteKind::ReadSetting | RouteKind::ReadTestMode => DataAction::SettingRead,
        RouteKind::UpdateSetting | RouteKind::UpdateTestMode => DataAction::SettingWrite,
        RouteKind::ListNotBefore => DataAction::PrincipalRead,
        RouteKind::SetNotBefore | RouteKind::ClearNotBefore => DataAction::PrincipalWrite,
        RouteKind::DownloadDomain => DataAction::SecurityDomainDownload,
        RouteKind::DomainDownloadStatus => DataAction::SecurityDomainDownloadRead,
        RouteKind::NewTransferKey => DataAction::SecurityDomainTransferKeyRead,
        RouteKind::UploadDomain => DataAction::SecurityDomainUpload,
        RouteKind::DomainUploadStatus => DataAction::SecurityDomainUploadRead,
        RouteKind::ConfirmDomain => DataAction::SecurityDomainConfirm,
        RouteKind::StartBackup | RouteKind::CheckBackup => DataAction::BackupStart,
        RouteKind::BackupStatus => DataAction::BackupStatus,
        RouteKind::StartRestore
        | RouteKind::CheckRestore
        | RouteKind::RestoreOneKey
        | RouteKind::PreviewRestore => DataAction::RestoreStart,
        RouteKind::RestoreStatus => DataAction::RestoreStatus,
    }
}

/// A route asked at one place: routes of roles are asked at two scopes.
struct Target {
    kind: RouteKind,
    path: String,
}

impl Target {
    fn of(kind: RouteKind) -> Vec<Target> {
        let scopes: &[&str] = if kind.path().starts_with("{scope}") { &["", "/keys/this"] } else { &[""] };
        let id = match kind {
            RouteKind::CreateAssignment | RouteKind::ReadAssignment | RouteKind::DeleteAssignment => {
                SUBJECT_ASSIGNMENT
            }
            RouteKind::SetNotBefore | RouteKind::ClearNotBefore => SUBJECT_PRINCIPAL,
            _ => SUBJECT_ROLE,
        };
        let path = |scope: &&str| {
            kind.path()
                .replace("{scope}", scope)
                .replace("{key}", "this")
                .replace("/{version}", "")
                .replace("{setting}", "AllowKeyManagementOperationsThroughARM")
                .replace("{id}", &id.to_string())
        };
        scopes.iter().map(|scope| Target { kind, path: path(scope) }).collect()
    }

    /// Whether the answer may depend on the key `this`.
    fn is_about_the_key(&self) -> bool {
        !self.kind.path().starts_with("{scope}")
            && (self.kind.path().contains("{key}")
                || matches!(
                    self.kind,
                    RouteKind::ListKeys | RouteKind::ListDeletedKeys | RouteKind::RestoreKey
                ))
    }
}

fn changes_the_key(kind: RouteKind) -> bool {
    matches!(
        kind,
        RouteKind::CreateKey
            | RouteKind::ImportKey
            | RouteKind::UpdateKey
            | RouteKind::DeleteKey
            | RouteKind::RecoverKey
            | RouteKind::PurgeKey
            | RouteKind::RestoreKey
            | RouteKind::RotateKey
    )
}

/// Requests that succeed with a symmetric key; all others are about an EC key.
fn is_symmetric(kind: RouteKind) -> bool {
    matches!(kind, RouteKind::Encrypt | RouteKind::Decrypt | RouteKind::WrapKey | RouteKind::UnwrapKey)
}

/// Someone who holds one role at one scope, or none at all.
struct Principal {
    /// The role's name, and the scope; nobody has neither.
    holds: Option<(String, &'static str)>,
    role: Guid,
    id: Guid,
    assignment: Guid,
    token: String,
}

fn principals(bench: &Bench) -> Vec<Principal> {
    let built_in = BuiltInRole::ALL.into_iter().map(|role| (role.name().to_owned(), role.id()));
    let roles: Vec<_> =
        built_in.chain([("a custom role with that action alone".to_owned(), CUSTOM)]).collect();
    let mut principals = vec![Principal {
        holds: None,
        role: Guid::NIL,
        id: Guid([0x10; 16]),
        assignment: Guid::NIL,
        token: bench.token(Guid([0x10; 16])),
    }];
    for (number, (name, role)) in roles.into_iter().enumerate() {
        for (place, scope) in SCOPES.into_iter().enumerate() {
            let id = Guid([0x11 + u8::try_from(number * SCOPES.len() + place).unwrap(); 16]);
            principals.push(Principal {
                holds: Some((name.clone(), scope)),
                role,
                id,
                assignment: id,
                token: bench.token(id),
            });
        }
    }
    principals
}

/// A pool in which one key's state and one role's rights are set as each part of the table wants them.
struct Stage {
    bench: Bench,
    principals: Vec<Principal>,
    /// What the key `this` made while it was live.
    signature: String,
    sealed: Value,
    wrapped: String,
    backup: Value,
}

const DIGEST: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

impl Stage {
    async fn new() -> Self {
        let bench = Bench::new().await;
        let principals = principals(&bench);
        let stage = Self {
            bench,
            principals,
            signature: String::new(),
            sealed: Value::Null,
            wrapped: String::new(),
            backup: Value::Null,
        };
        stage.give_custom_role(DataAction::KeyRead).await;
        stage.bench.arrange("POST", "/keys/other/create", json!({ "kty": "EC" })).await;
        stage.assign_all(|_| true).await;
        stage
    }

    async fn give_custom_role(&self, action: DataAction) {
        let path = format!("/{DEFINITIONS}/{CUSTOM}");
        let permission = json!({ "dataActions": [action.as_str()] });
        let body = json!({ "properties": { "roleName": "one action", "permissions": [permission] } });
        self.bench.arrange("PUT", &path, body).await;
    }

    async fn assign_all(&self, at: impl Fn(&str) -> bool) {
        for principal in &self.principals {
            if let Some((_, scope)) = principal.holds
                && at(scope)
            {
                self.bench.assign(principal.assignment, scope, principal.role, principal.id).await;
            }
        }
    }

    /// Makes the key `this` live, with a version of the type that `kind` needs and what that signed or sealed.
    async fn make_key(&mut self, kind: RouteKind) {
        if self.is_deleted().await {
            self.bench.arrange("POST", "/deletedkeys/this/recover", Value::Null).await;
        }
        self.bench.arrange("POST", "/keys/this/create", spec(kind)).await;
        if kind == RouteKind::RotateKey {
            self.bench.arrange("PUT", "/keys/this/rotationpolicy", common::rotation_policy()).await;
        }
        if kind == RouteKind::RestoreKey {
            self.backup = self.bench.arrange("POST", "/keys/this/backup", Value::Null).await;
        }
        if is_symmetric(kind) {
            let text = json!({ "alg": "A256GCM", "value": "dGV4dA" });
            self.sealed = self.bench.arrange("POST", "/keys/this/encrypt", text).await;
            let material = json!({ "alg": "A256KW", "value": DIGEST });
            let wrapped = self.bench.arrange("POST", "/keys/this/wrapkey", material).await;
            wrapped["value"].as_str().unwrap().clone_into(&mut self.wrapped);
        } else {
            let digest = json!({ "alg": "ES256", "value": DIGEST });
            let signed = self.bench.arrange("POST", "/keys/this/sign", digest).await;
            signed["value"].as_str().unwrap().clone_into(&mut self.signature);
        }
    }

    async fn is_deleted(&self) -> bool {
        self.bench.as_root("GET", "/deletedkeys/this", None).await.succeeded()
    }

    /// Deletes and purges it, as far as it exists. That takes the assignments made for it: they are made again.
    async fn remove_key(&self) {
        self.bench.as_root("DELETE", "/keys/this", None).await;
        self.bench.as_root("DELETE", "/deletedkeys/this", None).await;
        let gone = self.bench.as_root("GET", "/keys/this", None).await;
        assert_eq!(gone.status, 404, "{gone:?}");
        self.assign_all(|scope| scope == "/keys/this").await;
    }

    /// Brings the key `this`, live or deleted or whatever a request made of it, into `state`.
    async fn put_into(&self, state: State, kind: RouteKind) {
        let bench = &self.bench;
        if self.is_deleted().await {
            if state == State::Deleted {
                return;
            }
            bench.arrange("POST", "/deletedkeys/this/recover", Value::Null).await;
        }
        let attributes = match state {
            State::Disabled => json!({ "enabled": false }),
            State::BeforeNbf => json!({ "nbf": NOW + 1_000 }),
            State::AfterExp => json!({ "exp": NOW - 1_000 }),
            State::Live | State::NotInKeyOps | State::OtherType | State::Deleted | State::Absent => json!({}),
        };
        let mut change = json!({ "attributes": attributes });
        match state {
            State::NotInKeyOps => change["key_ops"] = all_but(kind),
            State::OtherType => {
                let body = if is_symmetric(kind) {
                    json!({ "kty": "oct", "key_size": 128 })
                } else {
                    json!({ "kty": "EC", "crv": "P-384" })
                };
                bench.arrange("POST", "/keys/this/create", body).await;
            }
            State::Deleted => {
                bench.arrange("DELETE", "/keys/this", Value::Null).await;
                return;
            }
            State::Absent => return self.remove_key().await,
            State::Live | State::Disabled | State::BeforeNbf | State::AfterExp => {}
        }
        bench.arrange("PATCH", "/keys/this", change).await;
    }

    /// Whatever else `target` needs there, or not there, in order to succeed.
    async fn put_subject(&self, target: &Target) {
        let bench = &self.bench;
        match target.kind {
            RouteKind::CreateAssignment => drop(bench.as_root("DELETE", &target.path, None).await),
            RouteKind::ReadAssignment | RouteKind::DeleteAssignment => {
                let scope = target.path.split_once("/providers").unwrap().0;
                let role = BuiltInRole::CryptoAuditor.id();
                bench.assign(SUBJECT_ASSIGNMENT, scope, role, SUBJECT_PRINCIPAL).await;
            }
            RouteKind::DefineRole => drop(bench.as_root("DELETE", &target.path, None).await),
            RouteKind::ReadRole | RouteKind::DeleteRole => {
                let path = format!("/{DEFINITIONS}/{SUBJECT_ROLE}");
                bench.arrange("PUT", &path, role_body()).await;
            }
            RouteKind::ClearNotBefore => {
                let path = format!("/holdfast/tokens/{SUBJECT_PRINCIPAL}");
                bench.arrange("PUT", &path, json!({})).await;
            }
            _ => {}
        }
    }

    async fn clear_subjects(&self) {
        for path in [
            format!("/{ASSIGNMENTS}/{SUBJECT_ASSIGNMENT}"),
            format!("/keys/this/{ASSIGNMENTS}/{SUBJECT_ASSIGNMENT}"),
            format!("/{DEFINITIONS}/{SUBJECT_ROLE}"),
        ] {
            self.bench.as_root("DELETE", &path, None).await;
        }
    }

    /// A body with which `kind` succeeds, if anything does.
    fn body(&self, kind: RouteKind) -> Option<Value> {
        let sealed = |part: &str| self.sealed[part].clone();
        let body = match kind {
            RouteKind::CreateKey => json!({ "kty": "EC" }),
            RouteKind::ImportKey => common::private_key(),
            RouteKind::SetRotationPolicy => common::rotation_policy(),
            RouteKind::UpdateKey => json!({ "tags": { "a": "b" } }),
            RouteKind::Sign => json!({ "alg": "ES256", "value": DIGEST }),
            RouteKind::Verify => json!({ "alg": "ES256", "digest": DIGEST, "value": self.signature }),
            RouteKind::Encrypt => json!({ "alg": "A256GCM", "value": "dGV4dA" }),
            RouteKind::Decrypt => {
                json!({ "alg": "A256GCM", "value": sealed("value"), "iv": sealed("iv"), "tag": sealed("tag") })
            }
            RouteKind::WrapKey => json!({ "alg": "A256KW", "value": DIGEST }),
            RouteKind::UnwrapKey => json!({ "alg": "A256KW", "value": self.wrapped }),
            RouteKind::ReleaseKey => json!({ "target": common::attestation::assertion() }),
            RouteKind::RestoreKey => self.backup.clone(),
            RouteKind::RandomBytes => json!({ "count": 16 }),
            RouteKind::DownloadDomain => three_holders(),
            RouteKind::UploadDomain => json!({ "value": "{}" }),
            RouteKind::ConfirmDomain => json!({ "fingerprint": self.bench.pool.domain_fingerprint() }),
            RouteKind::CreateAssignment => json!({ "properties": {
                "principalId": SUBJECT_PRINCIPAL.to_string(),
                "roleDefinitionId": BuiltInRole::CryptoAuditor.id().to_string(),
            }}),
            RouteKind::DefineRole => role_body(),
            RouteKind::UpdateSetting => json!({ "value": "false" }),
            RouteKind::SetNotBefore | RouteKind::UpdateTestMode => json!({}),
            // To a place that this pool does not have: which jobs there are must not depend on the order of requests.
            RouteKind::StartBackup | RouteKind::CheckBackup => common::storage_location(),
            RouteKind::StartRestore
            | RouteKind::CheckRestore
            | RouteKind::RestoreOneKey
            | RouteKind::PreviewRestore => common::restore_source(),
            _ => return None,
        };
        Some(body)
    }

    /// The answers of `target` with the key in `state`, one for each principal.
    async fn answers(&mut self, target: &Target, state: State) -> Vec<String> {
        let kind = target.kind;
        if target.is_about_the_key() {
            self.make_key(kind).await;
            self.put_into(state, kind).await;
        }
        self.put_subject(target).await;
        let mut answers = Vec::new();
        for principal in &self.principals {
            let body = self.body(kind);
            let token = Some(principal.token.as_str());
            let answer = self.bench.send(kind.method(), &target.path, body.as_ref(), token).await;
            answers.push(outcome(kind, &answer));
            if answer.succeeded() {
                if changes_the_key(kind) {
                    self.restore(state, kind).await;
                }
                self.put_subject(target).await;
            }
        }
        self.clear_subjects().await;
        answers
    }

    /// After a request that changed the key.
    async fn restore(&self, state: State, kind: RouteKind) {
        if kind == RouteKind::PurgeKey {
            self.bench.arrange("POST", "/keys/this/create", spec(kind)).await;
            self.assign_all(|scope| scope == "/keys/this").await;
        }
        self.put_into(state, kind).await;
    }
}

/// What the key is made as for `kind`.
fn spec(kind: RouteKind) -> Value {
    match kind {
        RouteKind::ReleaseKey => json!({
            "kty": "EC", "attributes": { "exportable": true }, "release_policy": common::attestation::policy(),
        }),
        _ if is_symmetric(kind) => json!({ "kty": "oct" }),
        _ => json!({ "kty": "EC" }),
    }
}

fn role_body() -> Value {
    let permission = json!({ "dataActions": [DataAction::KeyRead.as_str()] });
    json!({ "properties": { "roleName": "the subject", "permissions": [permission] } })
}

/// `key_ops` without the one that `kind` is.
fn all_but(kind: RouteKind) -> Value {
    let all: &[&str] = if is_symmetric(kind) {
        &["encrypt", "decrypt", "wrapKey", "unwrapKey"]
    } else {
        &["sign", "verify"]
    };
    let own = format!("{kind:?}");
    json!(all.iter().filter(|operation| !operation.eq_ignore_ascii_case(&own)).collect::<Vec<_>>())
}

/// The answer in a word or two, and of a list what it shows of the two keys.
fn outcome(kind: RouteKind, answer: &Answer) -> String {
    let mut text = answer.to_string();
    if matches!(kind, RouteKind::ListKeys | RouteKind::ListDeletedKeys) && answer.succeeded() {
        let items = answer.body["value"].as_array().unwrap();
        let name = |item: &Value| item["kid"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let names: Vec<_> = items.iter().map(name).collect();
        let names = if names.is_empty() { "nothing".to_owned() } else { names.join(" and ") };
        write!(text, ", shows {names}").unwrap();
    }
    if kind == RouteKind::Verify && answer.succeeded() {
        write!(text, ", says {}", answer.body["value"]).unwrap();
    }
    text
}

/// One block of the table. Principals with the same answers in all states are one group; so are states within it.
fn block(target: &Target, principals: &[Principal], by_state: &[(State, Vec<String>)]) -> String {
    let mut text = format!(
        "{}: {} {}\n  asks for {}\n",
        target.kind.operation(),
        target.kind.method(),
        target.path,
        data_action(target.kind).as_str()
    );
    let mut groups: Vec<(Vec<&str>, Vec<usize>)> = Vec::new();
    for number in 0..principals.len() {
        let answers: Vec<&str> = by_state.iter().map(|(_, answers)| answers[number].as_str()).collect();
        match groups.iter_mut().find(|(of_group, _)| *of_group == answers) {
            Some((_, members)) => members.push(number),
            None => groups.push((answers, vec![number])),
        }
    }
    // Nobody is in the first group, which is said last, as everybody else.
    groups.rotate_left(1);
    let count = groups.len();
    for (number, (answers, members)) in groups.into_iter().enumerate() {
        text +=
            &if number + 1 == count { "  everybody else\n".to_owned() } else { who(principals, &members) };
        text += &states(by_state, &answers);
    }
    text
}

fn who(principals: &[Principal], members: &[usize]) -> String {
    let mut scopes_of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for member in members {
        let (role, scope) = principals[*member].holds.as_ref().unwrap();
        scopes_of.entry(role).or_default().push(scope);
    }
    let line = |(role, scopes): (&&str, &Vec<&str>)| format!("  {role} at {}\n", scopes.join(", "));
    scopes_of.iter().map(line).collect()
}

fn states(by_state: &[(State, Vec<String>)], answers: &[&str]) -> String {
    let mut lines: Vec<(&str, Vec<&str>)> = Vec::new();
    for ((state, _), answer) in by_state.iter().zip(answers) {
        match lines.iter_mut().find(|(of_line, _)| of_line == answer) {
            Some((_, names)) => names.push(state.name()),
            None => lines.push((answer, vec![state.name()])),
        }
    }
    let all = lines.len() == 1;
    let line = |(answer, names): &(&str, Vec<&str>)| {
        if all { format!("    {answer}\n") } else { format!("    {answer}: {}\n", names.join(", ")) }
    };
    lines.iter().map(line).collect()
}

const HEAD: &str = "\
Who gets which answer, for every route of the data plane. Made by matrix.rs, which says how to accept a change.

`this` is the key that requests are about, `other` the only other one. Each caller holds one role at one scope, or none.
Under each group of callers: the status, the code and the inner code of the answer, and for which states of the key, where
they differ. A state of `other key type` is a key whose type does not go with the algorithm of the request.
";

async fn table() -> String {
    let mut stage = Stage::new().await;
    let mut text = HEAD.to_owned();
    for kind in RouteKind::ALL {
        stage.give_custom_role(data_action(*kind)).await;
        for target in Target::of(*kind) {
            if !target.is_about_the_key() {
                stage.make_key(*kind).await;
            }
            let states = if target.is_about_the_key() { &State::ALL[..] } else { &State::ALL[..1] };
            let mut by_state = Vec::new();
            for state in states {
                by_state.push((*state, stage.answers(&target, *state).await));
            }
            text += "\n";
            text += &block(&target, &stage.principals, &by_state);
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_the_committed_one() {
    let actual = table().await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/matrix.txt");
    if std::env::var_os("HOLDFAST_WRITE_MATRIX").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(actual == committed, "answers have changed:\n{}", common::difference(&committed, &actual));
}

#[test]
fn a_difference_names_block_and_lines() {
    let before = "head\ntext\n\nA: GET /a\n  x\n    200\n\nB: GET /b\n  y\n    200\n";
    let after = "head\ntext\n\nA: GET /a\n  x\n    200\n\nB: GET /b\n  y\n    403\n";
    assert_eq!(common::difference(before, before), "");
    assert_eq!(common::difference(before, after), "B: GET /b\n-     200\n+     403\n");
}
