//! The whole HTTP surface: requests made from its description ([`RouteKind::ALL`]), by several principals, against one
//! pool in memory.
//!
//! What must hold for each: no panic and no answer of the 500s; JSON, with the error's shape where it is one, and never a
//! private member of a key; one audit event for each request whose caller was known and none for the others; and nothing
//! for whoever has no role.

use crate::memory::{MemoryEngine, MemoryLog};
use crate::tokens::{Issuer, TENANT};
use api_data::{Api, ApiConfig, Connection, Origin, RouteKind};
use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::guid::Guid;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::{IntDate, Time};
use host::Engine;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use identity::Audiences;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use service::{Clock, Pool, PoolLimits, PoolParts, Random, SystemRandom};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use storage::ActivationRecord;
use tokio::runtime::Runtime;

const ISSUER: &str = "https://issuer.example/v2.0";
const HOST: &str = "demo.managedhsm.localhost";
const NOW: i64 = 1_800_000_000;
/// A pool is made anew after so many requests, so that neither it nor its log grows without end.
const REQUESTS_PER_POOL: u64 = 5_000;
const REQUESTS_PER_INPUT: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Nobody,
    Forged,
    /// Has no role at any scope. Its id is random, so that no input can give it one.
    Stranger,
    User,
    Officer,
    Administrator,
}

const WHO: [Who; 6] = [Who::Nobody, Who::Forged, Who::Stranger, Who::User, Who::Officer, Who::Administrator];

struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Time {
        Time::from_unix_milliseconds(NOW * 1000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1)
    }
}

struct Surface {
    pool: Arc<Pool>,
    api: Api,
    tokens: [String; 4],
    requests: u64,
    events: u64,
    /// Versions that were answered, for later requests to name.
    versions: Vec<String>,
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap());
static SURFACE: Mutex<Option<Surface>> = Mutex::new(None);

/// Bytes as requests.
pub fn http_surface(bytes: &[u8]) {
    let mut held = SURFACE.lock();
    RUNTIME.block_on(async {
        let mut surface = match held.take() {
            Some(surface) if surface.requests < REQUESTS_PER_POOL => surface,
            Some(_) | None => Surface::open().await,
        };
        let mut choices = Unstructured::new(bytes);
        for _ in 0..REQUESTS_PER_INPUT {
            if choices.is_empty() {
                break;
            }
            let Ok((who, request)) = surface.request(&mut choices) else { break };
            surface.send(who, request).await;
        }
        *held = Some(surface);
    });
}

impl Surface {
    async fn open() -> Self {
        let issuer = Issuer::new();
        let ids = [0xa1, 0xa2, 0xa3].map(|byte| Guid([byte; 16]));
        let [administrator, user, officer] = ids;
        let stranger = SystemRandom.guid();
        let engine = Arc::new(MemoryEngine::default());
        let secrets = DomainSecrets::generate();
        // As if nobody had ever asked for the security domain's file.
        let activation = ActivationRecord {
            at: IntDate::default(),
            domain_file: None,
            holders: vec![],
            required: 0,
            awaits_confirmation: false,
        };
        let genesis = Genesis {
            pool: Guid([1; 16]),
            name: "demo".parse().unwrap(),
            security_domain: Guid([2; 16]),
            class: PoolClass::Test,
            tenant: TenantId::parse(TENANT).unwrap(),
            issuer: IssuerPin {
                issuers: vec![ISSUER.into()],
                authority: "https://issuer.example".into(),
                key_set: issuer.key_set(),
                audiences: vec![],
                key_source: None,
            },
            initial_administrators: vec![administrator],
            break_glass_group: None,
            retention: RetentionDays::DEFAULT,
            purge_protection: false,
            audit_durability: AuditDurability::Synced,
            allow_domain_redownload: false,
        };
        Pool::found(engine.as_ref() as &dyn Engine, &secrets, genesis, Some(activation)).await.unwrap();
        let suffix = "managedhsm.localhost";
        let parts = PoolParts {
            engine,
            log: Arc::new(MemoryLog::default()),
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            opened_with: "none".into(),
            node: Guid([3; 16]),
            clock: Arc::new(StoppedClock),
            clock_is_right: false,
            random: Arc::new(SystemRandom),
            limits: PoolLimits { keys: 20, versions_per_key: 5, custom_roles: 3, ..PoolLimits::default() },
            resource_suffixes: vec![suffix.into()],
            installer: None,
            backup_targets: None,
        };
        let pool = Pool::open(parts).await.unwrap();
        let roles = [(user, BuiltInRole::CryptoUser), (officer, BuiltInRole::CryptoOfficer)];
        let everywhere = roles.map(|(principal, role)| (principal, role, Scope::Root));
        pool.bootstrap_assignments(everywhere.to_vec()).await.unwrap();
        let config = ApiConfig {
            hosts: vec![HOST.into()],
            authority: "https://issuer.example".into(),
            audiences: Audiences::new([suffix], Vec::<String>::new()).unwrap(),
            default_resource: format!("https://{suffix}"),
        };
        let token = |object_id: Guid| {
            let claims = json!({
                "iss": ISSUER, "aud": format!("https://{suffix}"), "tid": TENANT,
                "oid": object_id.to_string(), "iat": NOW - 10, "exp": NOW + 3_600,
            });
            issuer.sign(br#"{"alg":"ES256","kid":"1"}"#, claims.to_string().as_bytes())
        };
        let tokens = [stranger, user, officer, administrator].map(token);
        let api = Api::new(pool.clone(), config);
        let mut surface = Self { pool, api, tokens, requests: 0, events: 0, versions: vec!["0".repeat(32)] };
        surface.events = surface.count_events().await;
        for (name, body) in [
            ("ec", json!({ "kty": "EC-HSM" })),
            ("rsa", json!({ "kty": "RSA-HSM", "key_size": 2048 })),
            ("oct", json!({ "kty": "oct-HSM" })),
        ] {
            let uri = format!("https://{HOST}/keys/{name}/create?api-version=7.6");
            let request = Request::post(uri).header("authorization", surface.bearer(Who::User).unwrap());
            surface.send(Who::User, request.body(body.to_string().into_bytes()).unwrap()).await;
        }
        surface
    }

    fn bearer(&self, who: Who) -> Option<String> {
        let token = match who {
            Who::Nobody => return None,
            Who::Forged => "eyJhbGciOiJub25lIn0.e30.",
            Who::Stranger => &self.tokens[0],
            Who::User => &self.tokens[1],
            Who::Officer => &self.tokens[2],
            Who::Administrator => &self.tokens[3],
        };
        Some(format!("Bearer {token}"))
    }

    async fn count_events(&self) -> u64 {
        let mut events = self.events;
        loop {
            let page = self.pool.audit_page(events, 100).await.unwrap();
            if page.is_empty() {
                return events;
            }
            events += page.len() as u64;
        }
    }

    /// Sends a request and holds its answer to the promises.
    async fn send(&mut self, who: Who, request: Request<Vec<u8>>) {
        self.requests += 1;
        let shown = format!("{who:?} {} {}", request.method(), request.uri());
        let is_health = request.method() == Method::GET
            && request.uri().path().eq_ignore_ascii_case("/healthstatus")
            && request.uri().host() == Some(HOST);
        let connection = Connection {
            origin: Origin::Network(([127, 0, 0, 1], 40_000).into()),
            server_name: Some(HOST.into()),
            local_port: 8443,
        };
        let answer = self.api.handle(request.map(|body| Full::new(Bytes::from(body))), connection).await;
        let (head, body) = answer.into_parts();
        let Ok(body) = body.collect().await;
        let body = body.to_bytes();
        let status = head.status;
        assert!(status.as_u16() < 500, "{shown}: {status}: {body:?}");
        if status == StatusCode::NO_CONTENT {
            assert!(body.is_empty(), "{shown}");
        } else {
            let value: Value = serde_json::from_slice(&body).unwrap();
            if status.is_success() {
                self.keep_version(&value);
                holds_nothing_private(&value);
            } else {
                let error = &value["error"];
                assert!(error["code"].is_string() && error["message"].is_string(), "{shown}: {value}");
            }
        }
        let events = self.count_events().await;
        // Whoever is not let in, or came for another host, has no event; nor has who asked for the health.
        let has_event =
            !is_health && ![StatusCode::UNAUTHORIZED, StatusCode::MISDIRECTED_REQUEST].contains(&status);
        assert_eq!(events - self.events, u64::from(has_event), "{shown}: {status}");
        self.events = events;
        if status.is_success() && !is_health {
            assert!(!matches!(who, Who::Nobody | Who::Forged | Who::Stranger), "{shown}: {status}");
        }
    }

    fn keep_version(&mut self, answer: &Value) {
        let kid = answer["key"]["kid"].as_str().and_then(|kid| kid.rsplit_once('/'));
        if let Some((_, version)) = kid
            && self.versions.len() < 100
        {
            self.versions.push(version.to_owned());
        }
    }

    fn request(&self, choices: &mut Unstructured<'_>) -> arbitrary::Result<(Who, Request<Vec<u8>>)> {
        let who = *choices.choose(&WHO)?;
        let kind = *choices.choose(RouteKind::ALL)?;
        let method = if choices.ratio(1, 16)? { *choices.choose(&METHODS)? } else { kind.method() };
        let path = if choices.ratio(1, 16)? { path_text(choices)? } else { self.path(kind, choices)? };
        let query = query(choices)?;
        let host = if choices.ratio(1, 64)? { "other.example" } else { HOST };
        let mut request = Request::builder().method(method).uri(format!("https://{host}{path}{query}"));
        if let Some(bearer) = self.bearer(who) {
            request = request.header("authorization", bearer);
        }
        let body = if choices.ratio(1, 8)? {
            <&[u8]>::arbitrary(choices)?.to_vec()
        } else {
            body(choices)?.to_string().into_bytes()
        };
        request.body(body).map(|request| (who, request)).map_err(|_| arbitrary::Error::IncorrectFormat)
    }

    fn path(&self, kind: RouteKind, choices: &mut Unstructured<'_>) -> arbitrary::Result<String> {
        let version = if choices.ratio(1, 2)? { "" } else { choices.choose(&self.versions)?.as_str() };
        let scope = choices.choose(&["", "/", "/keys", "/keys/ec", "/keys/none"])?;
        let setting = choices.choose(&["HoldfastAllowRsa15Decryption", "HoldfastAllowCbc", "x"])?;
        Ok(kind
            .path()
            .replace("{scope}", scope)
            .replace("{key}", choices.choose(&NAMES)?)
            .replace("{version}", version)
            .replace("{setting}", setting)
            .replace("{id}", &id(choices)?))
    }
}

const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
const NAMES: [&str; 8] = ["ec", "rsa", "oct", "a", "A", "b", "create", "no_name"];

/// Of a role, an assignment or a principal.
fn id(choices: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    Ok(match choices.int_in_range(0..=7)? {
        0 => BuiltInRole::CryptoUser.id().to_string(),
        1 => BuiltInRole::CryptoOfficer.id().to_string(),
        2 => "not-a-guid".to_owned(),
        3 => Guid([0xa1; 16]).to_string(),
        4 => Guid([0xa2; 16]).to_string(),
        other => Guid([other; 16]).to_string(),
    })
}

fn path_text(choices: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let encode = |text: &str| {
        text.bytes()
            .map(|byte| {
                if byte.is_ascii_graphic() && byte != b'#' {
                    char::from(byte).to_string()
                } else {
                    format!("%{byte:02x}")
                }
            })
            .collect::<String>()
    };
    Ok(format!("/{}", encode(<&str>::arbitrary(choices)?)))
}

fn query(choices: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let version = match choices.int_in_range(0..=15)? {
        0 => String::new(),
        1 => "api-version=1.0".to_owned(),
        2 => format!("API-VERSION={}", path_text(choices)?),
        _ => "api-version=7.6".to_owned(),
    };
    let more = match choices.int_in_range(0..=7)? {
        0 => format!("&maxresults={}", choices.arbitrary::<i8>()?),
        // The place of a key and of a version.
        1 => "&$skiptoken=MWs6ZWM&maxresults=1".to_owned(),
        2 => format!("&%24skiptoken={}", path_text(choices)?),
        _ => String::new(),
    };
    Ok(format!("?{version}{more}"))
}

/// A body with some of the members that any request has.
fn body(choices: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    let mut body = Map::new();
    for _ in 0..choices.int_in_range(0..=5)? {
        let (name, value) = member(choices)?;
        body.insert(name.to_owned(), value);
    }
    Ok(Value::Object(body))
}

/// One of `known`, or what is not meant to be there.
fn text(choices: &mut Unstructured<'_>, known: &[&'static str]) -> arbitrary::Result<Value> {
    Ok(if choices.ratio(1, 16)? { odd(choices)? } else { json!(choices.choose(known)?) })
}

fn member(choices: &mut Unstructured<'_>) -> arbitrary::Result<(&'static str, Value)> {
    Ok(match choices.int_in_range(0..=29)? {
        // RSA keys take a while to make: one is there.
        0 => ("kty", text(choices, &["EC-HSM", "EC", "oct-HSM", "oct", "RSA-HSM-no", "x"])?),
        1 => ("crv", text(choices, &["P-256", "P-256K", "P-384", "P-521", "x"])?),
        2 => (
            "key_size",
            text(choices, &["256"]).map(|value| if value == "256" { json!(256) } else { value })?,
        ),
        3 => ("key_ops", json!([text(choices, &["sign", "verify", "wrapKey", "decrypt", "export"])?])),
        4 => {
            let times: [Option<i64>; 2] = choices.arbitrary()?;
            let enabled: Option<bool> = choices.arbitrary()?;
            ("attributes", json!({ "enabled": enabled, "nbf": times[0], "exp": times[1] }))
        }
        5 => ("tags", json!({ "t": text(choices, &["u"])? })),
        6 => ("alg", text(choices, &ALGORITHMS)?),
        7 => ("value", bytes_text(choices)?),
        8 => ("digest", bytes_text(choices)?),
        9 => ("iv", bytes_text(choices)?),
        10 => ("aad", bytes_text(choices)?),
        11 => ("tag", bytes_text(choices)?),
        12 => ("count", choices.arbitrary::<i16>().map(Value::from)?),
        13 => ("notBefore", json!(*choices.choose(&[0, -1, NOW - 5_000, NOW + 1, i64::MAX])?)),
        14 => ("properties", json!({ "principalId": id(choices)?, "roleDefinitionId": id(choices)? })),
        15 => {
            let action = text(
                choices,
                &["Microsoft.KeyVault/managedHsm/keys/sign/action", "Microsoft.KeyVault/managedHsm/*", "*"],
            )?;
            let permissions = json!([{ "dataActions": [action] }]);
            let name = text(choices, &["signer", "Managed HSM Administrator"])?;
            ("properties", json!({ "roleName": name, "permissions": permissions }))
        }
        16 => {
            let certificates: Vec<_> =
                HOLDERS.iter().take(choices.int_in_range(1..=3)?).map(holder).collect();
            ("certificates", json!(certificates))
        }
        17 => ("required", json!(choices.int_in_range(0..=4)?)),
        18 => ("release_policy", odd(choices)?),
        19 => ("key", imported(choices)?),
        20 => ("target", text(choices, &["a.b.c", "eyJhbGciOiJSUzI1NiJ9.e30.AA", ""])?),
        21 => ("nonce", text(choices, &["n"])?),
        22 => {
            let trigger = choices.choose(&["timeAfterCreate", "timeBeforeExpiry"])?;
            let action = text(choices, &["Rotate", "Notify"])?;
            let actions = json!([{ "trigger": { *trigger: text(choices, &DURATIONS)? }, "action": { "type": action } }]);
            ("lifetimeActions", actions)
        }
        23 => ("attributes", json!({ "expiryTime": text(choices, &DURATIONS)? })),
        24 => ("fingerprint", text(choices, &[FINGERPRINT, "0"])?),
        25 => {
            let container = text(choices, &CONTAINERS)?;
            (
                "sasTokenParameters",
                json!({ "storageResourceUri": container, "token": text(choices, &["sv=1"])? }),
            )
        }
        26 => (*choices.choose(&["folder", "folderToRestore"])?, text(choices, &["a", "c/a", ".."])?),
        27 => ("storageResourceUri", text(choices, &CONTAINERS)?),
        28 => ("token", text(choices, &["sv=1", "?sv=1"])?),
        _ => ("useManagedIdentity", json!(choices.arbitrary::<bool>()?)),
    })
}

const ALGORITHMS: [&str; 16] = [
    "ES256",
    "ES384",
    "ES512",
    "ES256K",
    "RS256",
    "PS512",
    "HS256",
    "RSA1_5",
    "RSA-OAEP",
    "RSA-OAEP-256",
    "A256GCM",
    "A256CBC",
    "A256CBCPAD",
    "A256KW",
    "A128KW",
    "none",
];

const DURATIONS: [&str; 5] = ["P90D", "P1Y", "P28D", "PT1S", "x"];
const CONTAINERS: [&str; 3] = ["https://s.example/c", "https://s.example/c?sig=x", "c"];
const FINGERPRINT: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const HOLDERS: [&str; 3] = [
    include_str!("../../../crates/ceremony/tests/golden/holder-1.cer"),
    include_str!("../../../crates/ceremony/tests/golden/holder-2.cer"),
    include_str!("../../../crates/ceremony/tests/golden/holder-3.cer"),
];

/// A holder of the security domain, as the Azure CLI names one.
fn holder(pem: &&str) -> Value {
    let certificate: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    json!({ "kid": "1", "use": "enc", "x5c": [certificate] })
}

/// A key as a JSON Web Key: the one of RFC 7515 appendix A.3, or one of bytes that the input has.
fn imported(choices: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    Ok(match choices.int_in_range(0..=3)? {
        0 => json!({
            "kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            "d": "jpsQnnGQmL-YBIffH1136cspYG6-0iY7X1fCE9-E9LI",
        }),
        1 => json!({ "kty": "oct", "k": bytes_text(choices)? }),
        2 => {
            json!({ "kty": text(choices, &["EC-HSM", "oct-HSM", "RSA-HSM"])?, "key_hsm": bytes_text(choices)? })
        }
        _ => {
            let (kty, crv) = (text(choices, &["EC", "RSA"])?, text(choices, &["P-256", "P-521"])?);
            let [x, y, d] = [bytes_text(choices)?, bytes_text(choices)?, bytes_text(choices)?];
            json!({ "kty": kty, "crv": crv, "x": x, "y": y, "d": d, "n": x, "e": "AQAB", "p": y, "q": d })
        }
    })
}

/// base64url of bytes with a length that some algorithm takes, or of any.
fn bytes_text(choices: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    use base64::Engine as _;
    let length = *choices.choose(&[0, 1, 12, 16, 24, 32, 40, 48, 64, 128, 256, 4096])?;
    let bytes = match choices.int_in_range(0..=3)? {
        0 => return odd(choices),
        1 => <&[u8]>::arbitrary(choices)?.to_vec(),
        _ => vec![choices.arbitrary()?; length],
    };
    Ok(json!(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)))
}

/// What no member is meant to hold.
fn odd(choices: &mut Unstructured<'_>) -> arbitrary::Result<Value> {
    Ok(match choices.int_in_range(0..=7)? {
        0 => Value::Null,
        1 => json!(choices.arbitrary::<i64>()?),
        2 => json!(choices.arbitrary::<bool>()?),
        3 => json!([[[[]]]]),
        4 => json!({ "a": { "b": 1.5e300 } }),
        _ => json!(<&str>::arbitrary(choices)?),
    })
}

/// RFC 7518 section 6: the members of a JWK that are private.
fn holds_nothing_private(answer: &Value) {
    if let Some(key) = answer["key"].as_object() {
        for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k", "key_hsm"] {
            assert!(!key.contains_key(member), "{member} in {answer}");
        }
    }
}
