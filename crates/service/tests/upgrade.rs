//! A pool's directory and its backups, as the first release of these formats wrote them: each later one opens and uses them.
//!
//! `tests/golden/pool-v1` is never written again. `HOLDFAST_WRITE_GOLDEN=1` makes it where there is none.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::targets::CONTAINER;
use common::*;
use domain::access::{BuiltInRole, CustomRole, DataAction, Permission, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{Tags, VersionChange};
use domain::release::ReleasePolicy;
use domain::rotation::{LifetimeAction, Period, Trigger};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::backup::{RestoreSource, SasToken, StorageAccess, StorageLocation};
use service::{
    AssignmentFilter, DecryptInput, EncryptInput, KeyReference, KeyView, NewAssignment, NewKey,
    NewRotationPolicy, PageRequest, Pool, SecretBytes,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const RSA: KeySpec = KeySpec::Rsa(RsaSize::Rsa2048);
const OCT: KeySpec = KeySpec::Oct(OctSize::Oct256);
const ES256: SignatureAlgorithm = SignatureAlgorithm::Es256;
const RS256: SignatureAlgorithm = SignatureAlgorithm::Rs256;
const GCM: EncryptionAlgorithm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
const DIGEST: [u8; 32] = [7; 32];
const PLAINTEXT: &[u8] = b"sealed before";
const POLICY: &str = r#"{"anyOf":[{"authority":"https://a","allOf":[{"claim":"b","equals":1}]}]}"#;
const FOLDER: &str = "golden";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pool-v1")
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden().join(name)).unwrap()
}

fn location() -> StorageLocation {
    StorageLocation { container: CONTAINER.into(), access: StorageAccess::Sas(SasToken::new("sig=s")) }
}

fn describe(view: &KeyView) -> String {
    let version = &view.version;
    let at = |date: Option<domain::time::IntDate>| date.map(domain::time::IntDate::unix_seconds);
    let attributes = &version.attributes;
    let operations: Vec<&str> = version.operations.iter().map(|operation| operation.as_str()).collect();
    let tags: Vec<String> = version.tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let policy = version.release.as_ref().map(|policy| (policy.document(), policy.is_immutable()));
    format!(
        "{}/{} {} {} enabled {} nbf {:?} exp {:?} created {} tags {} {} {policy:?}",
        version.name,
        version.version,
        version.spec,
        operations.join(","),
        attributes.enabled,
        at(attributes.not_before),
        at(attributes.expires),
        attributes.created.unix_seconds(),
        tags.join(","),
        version.origin.as_str(),
    )
}

/// What there is, a line each.
async fn state(pool: &Arc<Pool>) -> String {
    let page = || PageRequest { after: None, limit: 10_000 };
    let mut lines = Vec::new();
    for key in ok(pool.list_keys(ticket(pool, APP), page()).await).items {
        let name = key.version.name.clone();
        let all = PageRequest { after: None, limit: 10_000 };
        let versions = ok(pool.list_versions(ticket(pool, APP), name, all).await).items;
        lines.extend(versions.iter().map(describe));
    }
    for deleted in ok(pool.list_deleted_keys(ticket(pool, OFFICER), page()).await).items {
        lines.push(format!("deleted {}", describe(&deleted.key)));
    }
    let rotation = ok(pool.read_rotation_policy(ticket(pool, APP), "ec".parse().unwrap()).await);
    let expiry = rotation.policy.and_then(|policy| policy.expiry());
    lines.push(format!("rotation, expiry {:?}", expiry.map(|period| period.to_string())));
    for scope in ["/", "/keys/ec"] {
        let held = ok(pool
            .list_assignments(ticket(pool, ADMIN), Scope::parse(scope).unwrap(), AssignmentFilter::Here)
            .await);
        lines.extend(
            held.iter().map(|held| format!("{} has {} at {}", held.principal, held.role, held.scope)),
        );
    }
    let roles = ok(pool.list_roles(ticket(pool, ADMIN), Scope::Root).await);
    lines.extend(
        roles
            .iter()
            .filter(|role| BuiltInRole::by_id(role.id()).is_none())
            .map(|role| role.name().to_owned()),
    );
    lines.join("\n") + "\n"
}

async fn sign(pool: &Arc<Pool>, key: &str, algorithm: SignatureAlgorithm) -> Vec<u8> {
    ok(pool.sign(ticket(pool, APP), current(key), algorithm, DIGEST.to_vec()).await).result
}

async fn write() {
    let bench = Bench::new();
    let engine = RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap();
    let small = LogOptions { ahead_bytes: 4096, step_bytes: 4096, ..LogOptions::default() };
    let log = FileLog::open(bench.path().join("audit"), small).unwrap();
    let pool = bench.open_on(Arc::new(engine), Arc::new(log)).await;
    let tags = Tags::new(BTreeMap::from([("team".into(), "pay".into())])).unwrap();
    for _ in 0..2 {
        ok(pool.create_key(ticket(&pool, APP), NewKey { tags: tags.clone(), ..new_key("ec", EC) }).await);
    }
    create(&pool, "rsa", RSA).await;
    create(&pool, "box", OCT).await;
    create(&pool, "gone", EC).await;
    ok(pool.delete_key(ticket(&pool, APP), "gone".parse().unwrap()).await);
    create(&pool, "off", EC).await;
    let off = VersionChange { enabled: Some(false), ..VersionChange::default() };
    ok(pool.update_key(ticket(&pool, APP), current("off"), off).await);
    let release = Some(ReleasePolicy::new(POLICY.into(), None, true).unwrap());
    ok(pool
        .create_key(ticket(&pool, APP), NewKey { exportable: true, release, ..new_key("leaves", EC) })
        .await);
    let rotation = NewRotationPolicy {
        actions: vec![(LifetimeAction::Rotate, Trigger::AfterCreate(Period::parse("P90D").unwrap()))],
        expiry: Some(Period::parse("P2Y").unwrap()),
    };
    ok(pool.set_rotation_policy(ticket(&pool, APP), "ec".parse().unwrap(), rotation).await);
    let permission = Permission { data_actions: vec![DataAction::Sign], not_data_actions: vec![] };
    let role = CustomRole::new(Guid([0xc0; 16]), "signers".into(), String::new(), vec![permission]).unwrap();
    ok(pool.define_role(ticket(&pool, ADMIN), Scope::Root, role.clone()).await);
    let new = NewAssignment {
        name: Guid([1; 16]),
        scope: Scope::parse("/keys/ec").unwrap(),
        role: role.id(),
        principal: Guid([0xd1; 16]),
    };
    ok(pool.create_assignment(ticket(&pool, ADMIN), new).await);

    let input =
        EncryptInput { plaintext: Arc::new(SecretBytes::copy(PLAINTEXT)), iv: None, additional_data: None };
    let sealed = ok(pool.encrypt(ticket(&pool, APP), current("box"), GCM, input).await).result;
    let sealed = [sealed.iv.unwrap(), sealed.tag.unwrap(), sealed.bytes].concat();
    let (ec, rsa) = (sign(&pool, "ec", ES256).await, sign(&pool, "rsa", RS256).await);
    let key_backup = ok(pool.backup_key(ticket(&pool, APP), "ec".parse().unwrap()).await);
    let begun = ok(pool.start_backup(ticket(&pool, ADMIN), location()).await);
    ended(&pool, begun.0.id, true).await;
    let full_backup = bench.targets.blobs().into_values().next().unwrap();
    let state = state(&pool).await;
    pool.close().await;

    std::fs::create_dir_all(golden()).unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(golden().join(name), bytes).unwrap();
    put("domain-secrets.bin", &bench.secrets);
    put("store.redb", &std::fs::read(bench.path().join("store/store.redb")).unwrap());
    put("segment-00000000.log", &std::fs::read(bench.path().join("audit/segment-00000000.log")).unwrap());
    put("full-backup.hfb", &full_backup);
    put("key-backup.bin", &key_backup);
    put("box.sealed", &sealed);
    put("ec.signature", &ec);
    put("rsa.signature", &rsa);
    put("state.txt", state.as_bytes());
}

async fn ended(pool: &Arc<Pool>, id: Guid, backup: bool) {
    loop {
        let asked = match backup {
            true => ok(pool.backup_job(ticket(pool, ADMIN), id).await),
            false => ok(pool.restore_job(ticket(pool, ADMIN), id).await),
        };
        if let Some(end) = asked.0.end {
            assert_eq!(end.failure, None);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Whether everything that was made then is there and works.
async fn check(pool: &Arc<Pool>) {
    assert_eq!(state(pool).await, String::from_utf8(read("state.txt")).unwrap());
    for (key, algorithm, signature) in
        [("ec", ES256, read("ec.signature")), ("rsa", RS256, read("rsa.signature"))]
    {
        let verified =
            pool.verify(ticket(pool, APP), current(key), algorithm, DIGEST.to_vec(), signature).await;
        assert!(ok(verified).result, "{key}");
        let anew = sign(pool, key, algorithm).await;
        let verified = pool.verify(ticket(pool, APP), current(key), algorithm, DIGEST.to_vec(), anew).await;
        assert!(ok(verified).result, "{key}");
    }
    let sealed = read("box.sealed");
    let (iv, rest) = sealed.split_at(12);
    let (tag, ciphertext) = rest.split_at(16);
    let input = DecryptInput {
        ciphertext: ciphertext.to_vec(),
        iv: Some(iv.to_vec()),
        additional_data: None,
        tag: Some(tag.to_vec()),
    };
    let key = KeyReference { version: None, ..current("box") };
    let opened = ok(pool.decrypt(ticket(pool, APP), key, GCM, input).await).result;
    assert_eq!(opened.danger_expose(), PLAINTEXT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_and_backups_of_the_first_release_open_and_work() {
    if !golden().exists() && std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        write().await;
    }
    let bench = Bench { secrets: read("domain-secrets.bin"), ..Bench::new() };
    for (folder, file) in [("store", "store.redb"), ("audit", "segment-00000000.log")] {
        std::fs::create_dir_all(bench.path().join(folder)).unwrap();
        std::fs::write(bench.path().join(folder).join(file), read(file)).unwrap();
    }
    bench.clock.pass(10_000);
    let pool = bench.open().await;
    check(&pool).await;
    // The log goes on where it was.
    let logged = pool.audit_page(0, 10_000).await.unwrap();
    let count = |operation: &str| logged.iter().filter(|event| event["operationName"] == operation).count();
    assert_eq!((count("PoolStart"), count("BackupComplete")), (2, 1), "{logged:?}");

    // A key's backup of then, and the full one, bring back what was lost since.
    let ec = || "ec".parse().unwrap();
    ok(pool.delete_key(ticket(&pool, APP), ec()).await);
    ok(pool.purge_key(ticket(&pool, OFFICER), ec()).await);
    ok(pool.restore_key(ticket(&pool, APP), read("key-backup.bin")).await);
    ok(pool.read_key(ticket(&pool, APP), current("ec")).await);
    create(&pool, "later", EC).await;
    bench.targets.put(&format!("{FOLDER}/backup.hfb"), read("full-backup.hfb"));
    let source = RestoreSource { location: location(), folder: FOLDER.into() };
    let begun = ok(pool.start_restore(ticket(&pool, ADMIN), source).await);
    ended(&pool, begun.0.id, false).await;
    check(&pool).await;
    pool.close().await;
    let pool = bench.open().await;
    check(&pool).await;
}
