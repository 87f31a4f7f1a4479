//! The data plane without a listener: requests handed to `Api::handle`, a pool on real parts, a clock that stands still
//! until it is moved, and an issuer whose key is made here.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod attestation;

use api_data::{Api, ApiConfig, Connection, Origin};
use aws_lc_rs::rand::SystemRandom as SigningRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::guid::Guid;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::Time;
use host::Engine;
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use identity::Audiences;
use serde_json::{Value, json};
use service::{ActivationRecord, Clock, Pool, PoolLimits, PoolParts, SystemRandom};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// When the tests' clock starts, in seconds.
pub const NOW: i64 = 1_800_000_000;
/// Holds every right: what a test arranges, it arranges as this principal.
pub const ROOT: Guid = Guid([0xa1; 16]);
pub const HOST: &str = "demo.managedhsm.localhost";

const TENANT: &str = "11111111-1111-4111-8111-111111111111";
const ISSUER: &str = "https://issuer.example/v2.0";

struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now(&self) -> Time {
        Time::from_unix_milliseconds(self.0.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.load(Ordering::SeqCst)).unwrap())
    }
}

/// A pool behind its API.
pub struct Bench {
    pub pool: Arc<Pool>,
    api: Api,
    issuer: EcdsaKeyPair,
    clock: Arc<TestClock>,
    events_seen: AtomicU64,
    /// Where requests come from.
    pub origin: Mutex<Origin>,
    // Last: the pool's files go after the pool.
    _directory: tempfile::TempDir,
}

/// An answer, read to its end.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub challenge: Option<String>,
    pub body: Value,
}

impl Answer {
    pub fn succeeded(&self) -> bool {
        (200..300).contains(&self.status)
    }

    pub fn code(&self) -> Option<&str> {
        self.body["error"]["code"].as_str()
    }

    pub fn inner_code(&self) -> Option<&str> {
        self.body["error"]["innererror"]["code"].as_str()
    }
}

/// `403 Forbidden/KeyDisabled`.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(code) = self.code() {
            write!(f, " {code}")?;
        }
        if let Some(code) = self.inner_code() {
            write!(f, "/{code}")?;
        }
        Ok(())
    }
}

/// Of the future of a request.
const MAX_FUTURE_BYTES: usize = 10 * 1024;

impl Bench {
    pub async fn new() -> Self {
        let bench = Self::founded(Some(active())).await;
        let all_rights = [BuiltInRole::CryptoUser, BuiltInRole::CryptoOfficer];
        let assignments = all_rights.map(|role| (ROOT, role, Scope::Root)).to_vec();
        bench.pool.bootstrap_assignments(assignments).await.unwrap();
        bench
    }

    /// A pool that waits for its security domain; `ROOT` is its initial administrator.
    pub async fn provisioned() -> Self {
        Self::founded(None).await
    }

    /// A pool that took in a domain, which nobody has confirmed.
    pub async fn unconfirmed() -> Self {
        let activation = ActivationRecord {
            holders: vec![[7; 32]; 3],
            required: 2,
            awaits_confirmation: true,
            ..active()
        };
        Self::founded(Some(activation)).await
    }

    async fn founded(activation: Option<ActivationRecord>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let issuer = {
            let document = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap().to_pkcs8v1();
            let document = document.unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap()
        };
        let secrets = DomainSecrets::generate();
        let engine: Arc<dyn Engine> =
            Arc::new(RedbEngine::open(directory.path().join("store"), EngineOptions::default()).unwrap());
        let log = FileLog::open(directory.path().join("audit"), LogOptions::default()).unwrap();
        Pool::found(engine.as_ref(), &secrets, genesis(&issuer), activation).await.unwrap();
        let clock = Arc::new(TestClock(AtomicI64::new(NOW * 1000)));
        // A matrix has more of everything than a pool's administrators would make.
        let limits = PoolLimits {
            versions_per_key: 10_000,
            assignments_at_pool_scope: 1_000,
            assignments_at_key_scope: 1_000,
            ..PoolLimits::default()
        };
        let parts = PoolParts {
            engine,
            log: Arc::new(log),
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            opened_with: "none".into(),
            node: Guid([3; 16]),
            clock: clock.clone(),
            clock_is_right: false,
            random: Arc::new(SystemRandom),
            limits,
            resource_suffixes: vec!["managedhsm.localhost".into()],
            installer: None,
            backup_targets: None,
        };
        let pool = Pool::open(parts).await.unwrap();
        pool.connect_authorities(Arc::new(attestation::Authority));
        let config = ApiConfig {
            hosts: vec![HOST.into()],
            authority: "https://issuer.example/t".into(),
            audiences: Audiences::new(["managedhsm.localhost"], ["https://managedhsm.azure.net"]).unwrap(),
            default_resource: "https://managedhsm.localhost".into(),
        };
        Self {
            api: Api::new(pool.clone(), config),
            pool,
            issuer,
            clock,
            events_seen: AtomicU64::new(0),
            origin: Mutex::new(Origin::Network(([127, 0, 0, 1], 40_000).into())),
            _directory: directory,
        }
    }

    pub fn advance(&self, seconds: i64) {
        self.clock.0.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    /// A token for `principal`, good for a year: the clock may be moved.
    pub fn token(&self, principal: Guid) -> String {
        let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let head = part(json!({ "alg": "ES256", "kid": "test", "typ": "JWT" }));
        let claims = part(json!({
            "iss": ISSUER, "aud": "https://managedhsm.localhost", "tid": TENANT, "oid": principal.to_string(),
            "sub": principal.to_string(), "appid": "an-application", "ver": "2.0",
            "iat": NOW - 300, "nbf": NOW - 300, "exp": NOW + 31_536_000,
        }));
        let signed = format!("{head}.{claims}");
        let signature = self.issuer.sign(&SigningRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// One request, with `token` or without.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>, token: Option<&str>) -> Answer {
        self.send_bytes(method, path, body.map(Value::to_string).unwrap_or_default().into(), token).await
    }

    pub async fn send_bytes(&self, method: &str, path: &str, body: Bytes, token: Option<&str>) -> Answer {
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes()).unwrap())
            .uri(format!("{path}{separator}api-version=7.6"))
            .header("host", HOST);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).unwrap();
        let connection = Connection {
            origin: *self.origin.lock().unwrap(),
            server_name: Some(HOST.into()),
            local_port: 8443,
        };
        let answer = self.api.handle(request, connection);
        // It is moved about for each request; what is rare and large belongs on the heap.
        assert!(size_of_val(&answer) < MAX_FUTURE_BYTES, "{} bytes", size_of_val(&answer));
        let response = answer.await;
        let status = response.status().as_u16();
        let challenge = response.headers().get("www-authenticate");
        let challenge = challenge.map(|value| value.to_str().unwrap().to_owned());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        Answer { status, challenge, body }
    }

    /// A request of the principal that holds every right.
    pub async fn as_root(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.send(method, path, body, Some(&self.token(ROOT))).await
    }

    /// Likewise; it must go well.
    pub async fn arrange(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { None } else { Some(&body) };
        let answer = self.as_root(method, path, body).await;
        assert!(answer.succeeded(), "{method} {path}: {answer:?}");
        answer.body
    }

    /// Gives `principal` the role with the id `role` at `scope`, if it has not got it yet.
    pub async fn assign(&self, name: Guid, scope: &str, role: Guid, principal: Guid) {
        let path = format!("{}/{ASSIGNMENTS}/{name}", scope.trim_end_matches('/'));
        let definition =
            format!("Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{role}");
        let properties = json!({ "principalId": principal.to_string(), "roleDefinitionId": definition });
        self.arrange("PUT", &path, json!({ "properties": properties })).await;
    }

    /// Events of the requests since the last call, in order.
    pub async fn new_events(&self) -> Vec<Value> {
        let from = self.events_seen.load(Ordering::SeqCst);
        let events = self.pool.audit_page(from, 100_000).await.unwrap();
        self.events_seen.store(from + u64::try_from(events.len()).unwrap(), Ordering::SeqCst);
        events.into_iter().filter(|event| event["httpStatusCode"] != 0).collect()
    }
}

pub const ASSIGNMENTS: &str = "providers/Microsoft.Authorization/roleAssignments";
pub const DEFINITIONS: &str = "providers/Microsoft.Authorization/roleDefinitions";

fn genesis(issuer: &EcdsaKeyPair) -> Genesis {
    let point = issuer.public_key().as_ref();
    let [x, y] = [&point[1..33], &point[33..]].map(|number| URL_SAFE_NO_PAD.encode(number));
    let key = json!({ "kty": "EC", "crv": "P-256", "kid": "test", "use": "sig", "x": x, "y": y });
    Genesis {
        pool: Guid([1; 16]),
        name: "demo".parse().unwrap(),
        security_domain: Guid([2; 16]),
        class: PoolClass::Test,
        tenant: TenantId::parse(TENANT).unwrap(),
        issuer: IssuerPin {
            issuers: vec![ISSUER.into()],
            authority: "https://issuer.example/t".into(),
            key_set: json!({ "keys": [key] }).to_string().into_bytes(),
            audiences: vec![],
            key_source: None,
        },
        initial_administrators: vec![ROOT],
        break_glass_group: None,
        retention: RetentionDays::DEFAULT,
        purge_protection: false,
        // Thousands of requests, and nothing that power loss could teach about them.
        audit_durability: AuditDurability::Written,
        allow_domain_redownload: false,
    }
}

/// A pool that nobody asked for its domain yet, and that serves all the same.
pub fn active() -> ActivationRecord {
    ActivationRecord {
        at: domain::time::IntDate::from_unix_seconds(0),
        domain_file: None,
        holders: vec![],
        required: 0,
        awaits_confirmation: false,
    }
}

/// A rotation policy that nothing is wrong with.
pub fn rotation_policy() -> Value {
    json!({ "lifetimeActions": [{ "trigger": { "timeAfterCreate": "P90D" }, "action": { "type": "Rotate" } }], "attributes": { "expiryTime": "P1Y" } })
}

/// A request for the security domain by three holders, of whom two are a quorum.
pub fn three_holders() -> serde_json::Value {
    let certificates = [
        include_str!("../../../ceremony/tests/golden/holder-1.cer"),
        include_str!("../../../ceremony/tests/golden/holder-2.cer"),
        include_str!("../../../ceremony/tests/golden/holder-3.cer"),
    ]
    .map(|pem| {
        let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        serde_json::json!({ "x5c": [base64] })
    });
    serde_json::json!({ "certificates": certificates, "required": 2 })
}

/// Lines that went (`-`) and came (`+`), each with the block it stands in.
pub fn difference(before: &str, after: &str) -> String {
    let [before, after] = [before, after].map(in_blocks);
    let mut text = String::new();
    for title in before.keys().chain(after.keys().filter(|title| !before.contains_key(*title))) {
        let none = Vec::new();
        let [old, new] = [&before, &after].map(|blocks| blocks.get(title).unwrap_or(&none));
        if old != new {
            writeln!(text, "{title}").unwrap();
            old.iter().filter(|line| !new.contains(line)).for_each(|line| text += &format!("- {line}\n"));
            new.iter().filter(|line| !old.contains(line)).for_each(|line| text += &format!("+ {line}\n"));
        }
    }
    text
}

fn in_blocks(table: &str) -> BTreeMap<&str, Vec<&str>> {
    let blocks = table.split("\n\n").filter_map(|block| block.split_once('\n'));
    blocks.map(|(title, rest)| (title, rest.lines().collect())).collect()
}

/// A body that imports the key of RFC 7515 appendix A.3.
pub fn private_key() -> Value {
    json!({ "key": {
        "kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
        "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
    }})
}

pub fn storage_location() -> Value {
    json!({
        "storageResourceUri": "https://storage.example/container", "token": "sv=1&sig=c2ln",
        "useManagedIdentity": false,
    })
}

/// For a full restore and for that of one key.
pub fn restore_source() -> Value {
    let folder = "mhsm-demo-20270115080000";
    json!({ "sasTokenParameters": storage_location(), "folderToRestore": folder, "folder": folder })
}
