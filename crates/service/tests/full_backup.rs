//! A pool backed up as a whole, and restored: into itself, into another of its security domain, and nowhere else.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::targets::CONTAINER;
use common::*;
use crypto::certificate::{InstanceClaims, InstanceKey, Purpose};
use crypto::full_backup::{FRAME_BYTES, FullBackupReader, FullBackupWriter, HEADER_BYTES, Opened};
use crypto::key_backup::BackupDomain;
use domain::access::{BuiltInRole, CustomRole, DataAction, Permission, RoleAssignment, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{Tags, VersionChange};
use domain::name::KeyName;
use domain::pool::{Genesis, PoolClass, RetentionDays};
use domain::principal::ObjectId;
use domain::time::IntDate;
use host::{Commit, CommitOutcome, Engine, EngineError, Entry, Log, OperationId, Revision, Scan, Watch};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::backup::{JobView, RestoreSource, SasToken, StorageAccess, StorageLocation};
use service::{
    AssignmentFilter, DeletedKeyView, EncryptInput, Error, FullBackupRefused, JobKind, KeyReference, KeyView,
    NewAssignment, NewKey, PageRequest, Pool, PoolLimits, Schedule, SecretBytes, Tick,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use storage::{ChunkBuilder, Counts, Manifest, Record};
use testkit::{Fault, Loss, SimDisk};

const EC: KeySpec = KeySpec::Ec(Curve::P256);
const OCT: KeySpec = KeySpec::Oct(OctSize::Oct256);
const RESTORER: Guid = Guid([0xb1; 16]);
const BACKER: Guid = Guid([0xb2; 16]);

/// Of the container's access, that nobody but it may see.
const SIGNATURE: &str = "c2lnbmF0dXJl";

fn location() -> StorageLocation {
    StorageLocation {
        container: CONTAINER.into(),
        access: StorageAccess::Sas(SasToken::new(&format!("?sig={SIGNATURE}"))),
    }
}

fn source(folder: &str) -> RestoreSource {
    RestoreSource { location: location(), folder: folder.to_owned() }
}

/// A job as it ended.
async fn ended(pool: &Arc<Pool>, begun: JobView) -> JobView {
    ended_as(pool, ADMIN, begun).await
}

async fn ended_as(pool: &Arc<Pool>, principal: Guid, begun: JobView) -> JobView {
    let backup = matches!(begun.0.kind, JobKind::Backup | JobKind::PreBackup);
    loop {
        let id = begun.0.id;
        let asked = if backup {
            pool.backup_job(ticket(pool, principal), id).await
        } else {
            pool.restore_job(ticket(pool, principal), id).await
        };
        let job = ok(asked);
        if job.0.end.is_some() {
            return job;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

fn failure(job: JobView) -> Option<String> {
    job.0.end.unwrap().failure.map(|(_, message)| message)
}

/// The folder of a full backup.
async fn backup(pool: &Arc<Pool>) -> String {
    let begun = ok(pool.start_backup(ticket(pool, ADMIN), location()).await);
    let job = ended(pool, begun).await;
    let folder = job.0.folder.clone().unwrap();
    assert_eq!(failure(job), None);
    folder
}

async fn restore_as(pool: &Arc<Pool>, principal: Guid, folder: &str) -> Option<String> {
    let begun = ok(pool.start_restore(ticket(pool, principal), source(folder)).await);
    failure(ended(pool, begun).await)
}

async fn restore(pool: &Arc<Pool>, folder: &str) {
    assert_eq!(restore_as(pool, ADMIN, folder).await, None);
}

fn blob(folder: &str) -> String {
    format!("{folder}/backup.hfb")
}

/// All that a backup holds, as readers see it.
#[derive(Debug, Eq, PartialEq)]
struct State {
    keys: Vec<Vec<KeyView>>,
    deleted: Vec<DeletedKeyView>,
    assignments: Vec<RoleAssignment>,
    roles: Vec<String>,
}

async fn state(pool: &Arc<Pool>) -> State {
    let page = || PageRequest { after: None, limit: 10_000 };
    let mut keys = Vec::new();
    for key in ok(pool.list_keys(ticket(pool, APP), page()).await).items {
        let name = key.version.name.clone();
        let versions = PageRequest { after: None, limit: 10_000 };
        keys.push(ok(pool.list_versions(ticket(pool, APP), name, versions).await).items);
    }
    let deleted = ok(pool.list_deleted_keys(ticket(pool, OFFICER), page()).await).items;
    let mut assignments = Vec::new();
    for scope in ["/", "/keys", "/keys/a", "/keys/b", "/keys/c", "/keys/d"] {
        let scope = Scope::parse(scope).unwrap();
        assignments
            .extend(ok(pool.list_assignments(ticket(pool, ADMIN), scope, AssignmentFilter::Here).await));
    }
    let roles = ok(pool.list_roles(ticket(pool, ADMIN), Scope::Root).await);
    let roles = roles.iter().map(|role| format!("{role:?}")).collect();
    State { keys, deleted, assignments, roles }
}

fn name(text: &str) -> KeyName {
    text.parse().unwrap()
}

async fn assign(pool: &Arc<Pool>, number: u8, scope: &str, role: Guid, principal: ObjectId) {
    let scope = Scope::parse(scope).unwrap();
    let new = NewAssignment { name: Guid([number; 16]), scope, role, principal };
    ok(pool.create_assignment(ticket(pool, ADMIN), new).await);
}

/// Keys in each state, tags, counts of encryptions, a custom role, assignments at each scope.
async fn furnish(pool: &Arc<Pool>) {
    let tags = Tags::new(BTreeMap::from([("team".into(), "pay".into())])).unwrap();
    for _ in 0..3 {
        ok(pool.create_key(ticket(pool, APP), NewKey { tags: tags.clone(), ..new_key("a", EC) }).await);
    }
    create(pool, "b", OCT).await;
    encrypt(pool, "b").await.unwrap();
    create(pool, "c", KeySpec::Ec(Curve::P521)).await;
    let disabled = VersionChange { enabled: Some(false), ..VersionChange::default() };
    ok(pool.update_key(ticket(pool, APP), current("c"), disabled).await);
    create(pool, "d", EC).await;
    ok(pool.delete_key(ticket(pool, APP), name("d")).await);
    let permission = Permission { data_actions: vec![DataAction::Sign], not_data_actions: vec![] };
    let custom =
        CustomRole::new(Guid([0xc0; 16]), "signers".into(), String::new(), vec![permission]).unwrap();
    ok(pool.define_role(ticket(pool, ADMIN), Scope::Root, custom.clone()).await);
    assign(pool, 1, "/keys/a", custom.id(), Guid([0xd1; 16])).await;
    assign(pool, 2, "/keys", BuiltInRole::CryptoAuditor.id(), Guid([0xd2; 16])).await;
    assign(pool, 3, "/", BuiltInRole::Restore.id(), RESTORER).await;
    assign(pool, 4, "/", BuiltInRole::Backup.id(), BACKER).await;
}

async fn encrypt(pool: &Arc<Pool>, key: &str) -> Result<(), Error> {
    let plaintext = Arc::new(SecretBytes::new(vec![5; 32]));
    let input = EncryptInput { plaintext, iv: None, additional_data: None };
    let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct256);
    pool.encrypt(ticket(pool, APP), current(key), gcm, input).await.into_parts().0.map(drop)
}

/// What happens to a pool after its backup.
async fn change(pool: &Arc<Pool>) {
    create(pool, "a", EC).await;
    create(pool, "e", EC).await;
    ok(pool.recover_key(ticket(pool, OFFICER), name("d")).await);
    ok(pool.delete_key(ticket(pool, APP), name("b")).await);
    ok(pool.purge_key(ticket(pool, OFFICER), name("b")).await);
    ok(pool.delete_assignment(ticket(pool, ADMIN), Scope::Keys, Guid([2; 16])).await);
    assign(pool, 5, "/keys/e", BuiltInRole::CryptoUser.id(), Guid([0xd5; 16])).await;
}

/// Another pool of `bench`'s security domain, with its storage.
fn sibling(bench: &Bench) -> Bench {
    let genesis = Genesis { pool: Guid([9; 16]), name: "sibling".parse().unwrap(), ..genesis() };
    Bench { secrets: bench.secrets.clone(), genesis, targets: bench.targets.clone(), ..Bench::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_pool_is_what_it_was_and_stays_so() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let digest = vec![7; 32];
    let es256 = SignatureAlgorithm::Es256;
    let signed = ok(pool.sign(ticket(&pool, APP), current("a"), es256, digest.clone()).await);
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    assert_eq!(folder, "mhsm-demo-20270115080000");
    change(&pool).await;
    assert_ne!(state(&pool).await, was);
    restore(&pool, &folder).await;
    assert_eq!(state(&pool).await, was);
    // And each of its keys is used as before, the purged one among them.
    let key = KeyReference { version: Some(signed.version), ..current("a") };
    let verify = pool.verify(ticket(&pool, APP), key, es256, digest.clone(), signed.result.clone());
    assert!(ok(verify.await).result);
    encrypt(&pool, "b").await.unwrap();
    let gone = refused(pool.sign(ticket(&pool, APP), current("e"), es256, digest.clone()).await);
    assert!(matches!(gone, Error::KeyNotFound { .. }), "{gone}");
    create(&pool, "a", EC).await;
    let grown = state(&pool).await;
    pool.close().await;
    let pool = bench.open().await;
    assert_eq!(state(&pool).await, grown);
    // What was restored is as good a source as what was made here.
    bench.clock.pass(1000);
    let again = backup(&pool).await;
    change_less(&pool).await;
    restore(&pool, &again).await;
    assert_eq!(state(&pool).await, grown);
    let said = event_of(&pool, "RestoreComplete").await;
    for part in [
        "roles are those of the backup, 1 roles gained, 1 roles lost, 1 keys lost, 1 versions lost, 1 new keys, 1 keys changed",
        "keys lost: e;",
        "new keys: b;",
    ] {
        let first = said.first().unwrap();
        assert!(first.contains(part), "{part}: {first}");
    }
}

/// Who keeps backups may hand out an older one under the name of the last. It cannot be refused, as it may be meant; it is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_of_when_it_is_and_an_older_one_that_it_is_older() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "a", EC).await;
    let first = backup(&pool).await;
    let preview =
        async |folder: &str| ok(pool.preview_restore(ticket(&pool, ADMIN), source(folder)).await).age;
    let of_first = preview(&first).await;
    assert_eq!(of_first.older_than, None, "the last one itself");
    bench.clock.pass(1000);
    create(&pool, "a", EC).await;
    let begun_at = pool.now().int_date();
    let second = backup(&pool).await;
    let of_second = preview(&second).await;
    assert_eq!((of_second.made_at, of_second.older_than), (begun_at, None));
    assert!(of_second.made_at > of_first.made_at && of_second.generation > of_first.generation);
    assert!(of_second.log_size > of_first.log_size && of_first.log_size > Some(0));

    // In the other's place.
    let older = bench.targets.blobs()[&blob(&first)].clone();
    bench.targets.put(&blob(&second), older);
    let expected = service::backup::Age { older_than: Some(begun_at), ..of_first };
    assert_eq!(preview(&second).await, expected);
    let checked = ok(pool.check_restore_from(ticket(&pool, ADMIN), source(&second)).await);
    let checked = ended(&pool, checked).await.0.end.unwrap().detail;
    // As many jobs as are forgotten do not make the pool forget its last backup.
    for _ in 0..40 {
        let begun = ok(pool.check_backup(ticket(&pool, ADMIN), location()).await);
        ended(&pool, begun).await;
    }
    let restored = ok(pool.start_restore(ticket(&pool, ADMIN), source(&second)).await);
    let restored = ended(&pool, restored).await.0.end.unwrap();
    assert_eq!(restored.failure, None);
    let event = event_of(&pool, "RestoreComplete").await;
    let told = format!(
        "{} (generation {}), which is older than the last backup that this pool made, begun at {}",
        of_first.made_at.unix_seconds(),
        of_first.generation,
        begun_at.unix_seconds()
    );
    for said in [&checked, &restored.detail, &event[0]] {
        assert!(said.contains(&told), "{said}");
    }
    // Another pool made none, and compares it with none.
    let there = sibling(&bench).open().await;
    create(&there, "b", EC).await;
    bench.clock.pass(1000);
    backup(&there).await;
    let there = ok(there.preview_restore(ticket(&there, ADMIN), source(&second)).await);
    assert_eq!(there.age, of_first);
}

async fn change_less(pool: &Arc<Pool>) {
    ok(pool.delete_key(ticket(pool, APP), name("a")).await);
    ok(pool.purge_key(ticket(pool, OFFICER), name("a")).await);
}

/// What events of an operation say.
async fn event_of(pool: &Arc<Pool>, operation: &str) -> Vec<String> {
    let page = pool.audit_page(0, 10_000).await.unwrap();
    let named = page.iter().filter(|event| event["operationName"] == operation);
    named.map(ToString::to_string).collect()
}

/// Disaster recovery: another pool that has the domain and nothing else, not even a backup.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_keys_takes_everything_and_its_administrators_keep_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    pool.close().await;
    let new_administrator = Guid([0xa9; 16]);
    let mut other = sibling(&bench);
    other.genesis.initial_administrators = vec![new_administrator];
    let there = other.open().await;
    let begun = ok(there.start_restore(ticket(&there, new_administrator), source(&folder)).await);
    assert_eq!(failure(ended_as(&there, new_administrator, begun).await), None);
    let mut is = state(&there).await;
    let kept = is.assignments.iter().position(|held| held.principal == new_administrator).unwrap();
    is.assignments.remove(kept);
    assert_eq!(is.keys, was.keys);
    assert_eq!(is.deleted, was.deleted);
    assert_eq!((is.assignments, is.roles), (was.assignments, was.roles));
    assert_eq!(there.genesis().name.as_str(), "sibling");
    let es256 = SignatureAlgorithm::Es256;
    ok(there.sign(ticket(&there, APP), current("a"), es256, vec![1; 32]).await);
    encrypt(&there, "b").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_restore_and_write_no_roles_brings_none_back() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    change(&pool).await;
    // One that is given for a key of the same name, which is another key.
    create(&pool, "b", OCT).await;
    assign(&pool, 6, "/keys/b", BuiltInRole::CryptoUser.id(), Guid([0xd6; 16])).await;
    let now = state(&pool).await;
    let preview = ok(pool.preview_restore(ticket(&pool, RESTORER), source(&folder)).await);
    assert!(!preview.replaces_roles && preview.new_roles.count() == 0);
    assert_eq!(preview.lost_roles.count(), 2);
    assert_eq!(state(&pool).await, now, "looking changed something");
    assert_eq!(restore_as(&pool, RESTORER, &folder).await, None);
    let is = state(&pool).await;
    assert_eq!((is.keys, is.deleted), (was.keys, was.deleted));
    let names = |held: &[RoleAssignment]| held.iter().map(|held| held.name).collect::<Vec<_>>();
    let gone = [Guid([5; 16]), Guid([6; 16])];
    let expected: Vec<_> = names(&now.assignments).into_iter().filter(|held| !gone.contains(held)).collect();
    assert_eq!(names(&is.assignments), expected);
    // `a` is the same key, so who signs with it still does.
    assert!(expected.contains(&Guid([1; 16])) && !expected.contains(&Guid([2; 16])));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_needs_its_right_and_the_denial_names_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    for (principal, may_back_up, may_restore) in
        [(APP, false, false), (OFFICER, false, false), (BACKER, true, false), (RESTORER, false, true)]
    {
        let at = || ticket(&pool, principal);
        let check = |denied: Error, action: &str| {
            assert!(matches!(denied, Error::Denied(_)) && denied.to_string().contains(action), "{denied}");
        };
        if !may_back_up {
            check(refused(pool.start_backup(at(), location()).await), "backup/start/action");
            check(refused(pool.check_backup(at(), location()).await), "backup/start/action");
            check(refused(pool.backup_job(at(), Guid::NIL).await), "backup/status/action");
        }
        if !may_restore {
            check(refused(pool.start_restore(at(), source("f")).await), "restore/start/action");
            check(refused(pool.check_restore_from(at(), source("f")).await), "restore/start/action");
            check(refused(pool.preview_restore(at(), source("f")).await), "restore/start/action");
            let one = pool.start_selective_restore(at(), name("a"), source("f")).await;
            check(refused(one), "restore/start/action");
            check(refused(pool.restore_job(at(), Guid::NIL).await), "restore/status/action");
        }
    }
    assert!(bench.targets.blobs().is_empty());
    let begun = ok(pool.start_backup(ticket(&pool, BACKER), location()).await);
    assert_eq!(failure(ended(&pool, begun.clone()).await), None);
    // A backup's job is none of a restore's.
    let refused = refused(pool.restore_job(ticket(&pool, RESTORER), begun.0.id).await);
    assert!(matches!(refused, Error::JobNotFound(_)));
}

/// Takes the assignment with that number at the pool's scope away.
async fn take_away(pool: &Arc<Pool>, number: u8) -> Result<(), Error> {
    let taken = pool.delete_assignment(ticket(pool, ADMIN), Scope::Root, Guid([number; 16])).await;
    taken.into_parts().0.map(drop)
}

/// The right to restore is taken away at each read of the backup in turn. Where that is answered nothing is restored; where the
/// pool is closed by then, it is refused, and the restore ends well.
#[tokio::test(flavor = "multi_thread")]
async fn a_right_to_restore_that_is_taken_away_while_the_backup_is_read_restores_nothing() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    let before = bench.targets.reads();
    assert_eq!(restore_as(&pool, RESTORER, &folder).await, None);
    let reads = bench.targets.reads() - before;
    let (mut failed, mut restored) = (0, 0);
    for read in 1..=reads {
        create(&pool, &format!("later-{read}"), EC).await;
        let from = bench.targets.reads() + read;
        let hold = bench.targets.hold_reads(from).await;
        let begun = ok(pool.start_restore(ticket(&pool, RESTORER), source(&folder)).await);
        while bench.targets.reads() < from {
            tokio::task::yield_now().await;
        }
        let taken = take_away(&pool, 3).await;
        let open = if taken.is_ok() { Some(state(&pool).await) } else { None };
        drop(hold);
        let said = failure(ended(&pool, begun).await);
        match (taken, open) {
            (Ok(()), Some(now)) => {
                let said = said.unwrap();
                assert!(said.contains("restore/start/action at scope /"), "read {read}: {said}");
                assert_eq!(state(&pool).await, now, "read {read}");
                let told = event_of(&pool, "RestoreComplete").await.pop().unwrap();
                let words = ["\"resultType\":\"Forbidden\"", "restore/start/action", "\"scope\":\"/\""];
                assert!(words.iter().all(|words| told.contains(words)), "read {read}: {told}");
                assign(&pool, 3, "/", BuiltInRole::Restore.id(), RESTORER).await;
                failed += 1;
            }
            (Err(Error::Restoring), None) => {
                assert_eq!(said, None, "read {read}");
                restored += 1;
            }
            (taken, _) => panic!("read {read}: {taken:?}"),
        }
    }
    assert!(failed > 0 && restored > 0, "{failed} failed, {restored} restored");
}

/// Each kind of job, by what was taken from whoever asked for it before it ended: the right, or the token.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_well_only_for_who_might_still_ask_for_it() {
    for kind in [
        JobKind::Backup,
        JobKind::PreBackup,
        JobKind::Restore,
        JobKind::PreRestore,
        JobKind::SelectiveRestore,
    ] {
        for (held_already, by_token) in [(false, false), (true, false), (false, true)] {
            let bench = Bench::new();
            let pool = bench.open().await;
            furnish(&pool).await;
            let folder = backup(&pool).await;
            if !held_already {
                change_less(&pool).await;
            }
            let is_backup = matches!(kind, JobKind::Backup | JobKind::PreBackup);
            let (principal, assigned) = if is_backup { (BACKER, 4) } else { (RESTORER, 3) };
            let blobs: Vec<_> = bench.targets.blobs().into_keys().collect();
            let last_backup = pool.last_backup_at();
            bench.clock.pass(5_000);
            let hold = bench.targets.hold().await;
            let at = || ticket(&pool, principal);
            let begun = ok(match kind {
                JobKind::Backup => pool.start_backup(at(), location()).await,
                JobKind::PreBackup => pool.check_backup(at(), location()).await,
                JobKind::Restore => pool.start_restore(at(), source(&folder)).await,
                JobKind::PreRestore => pool.check_restore_from(at(), source(&folder)).await,
                JobKind::SelectiveRestore => {
                    pool.start_selective_restore(at(), name("a"), source(&folder)).await
                }
            });
            if by_token {
                ok(pool.set_not_before(ticket(&pool, ADMIN), principal, None).await);
            } else {
                take_away(&pool, assigned).await.unwrap();
            }
            let now = state(&pool).await;
            drop(hold);
            let said = failure(ended(&pool, begun).await).unwrap_or_default();
            let action = if is_backup { "backup/start/action" } else { "restore/start/action" };
            let expected = format!("{action} at scope /");
            assert!(said.contains(&expected), "{kind:?}, by token {by_token}: {said:?}");
            assert_eq!(said.contains("withdrawn"), by_token, "{said}");
            assert_eq!(state(&pool).await, now, "{kind:?}");
            assert_eq!(bench.targets.blobs().into_keys().collect::<Vec<_>>(), blobs, "{kind:?}");
            assert_eq!(pool.last_backup_at(), last_backup);
            // Whoever may goes on.
            create(&pool, "next", EC).await;
            backup(&pool).await;
        }
    }
}

/// Also where nothing is kept of it, as where a backup is only looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_location_has_an_end() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let at = || ticket(&pool, ADMIN);
    let longest = format!("https://{}", "s".repeat(1024 - "https://".len()));
    let location = |container: &str| StorageLocation { container: container.to_owned(), ..location() };
    let source = |container: &str| RestoreSource { location: location(container), folder: "f".to_owned() };
    for (container, is_too_long) in [(longest.clone(), false), (longest + "s", true)] {
        let (location, source) = (|| location(&container), || source(&container));
        let key = pool.start_selective_restore(at(), name("a"), source()).await;
        for error in [
            refused(pool.start_backup(at(), location()).await),
            refused(pool.check_backup(at(), location()).await),
            refused(pool.start_restore(at(), source()).await),
            refused(pool.check_restore_from(at(), source()).await),
            refused(pool.preview_restore(at(), source()).await),
            refused(key),
        ] {
            let said = "storageResourceUri must have at most 1024 characters";
            let is_refused = matches!(&error, Error::BadParameter(reason) if reason == said);
            assert_eq!(is_refused, is_too_long, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_job_at_a_time_and_a_restore_lets_nothing_else_in() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    let hold = bench.targets.hold().await;
    let begun = ok(pool.start_backup(ticket(&pool, ADMIN), location()).await);
    let id = begun.0.id;
    let is_running = |error: Error| matches!(error, Error::JobRunning { id: running, .. } if running == id);
    assert!(is_running(refused(pool.start_backup(ticket(&pool, ADMIN), location()).await)));
    assert!(is_running(refused(pool.start_restore(ticket(&pool, ADMIN), source(&folder)).await)));
    let one = pool.start_selective_restore(ticket(&pool, ADMIN), name("b"), source(&folder)).await;
    assert!(is_running(refused(one)));
    // Keys are used and made meanwhile.
    create(&pool, "meanwhile", EC).await;
    drop(hold);
    assert_eq!(failure(ended(&pool, begun).await), None);
    let reads_before = bench.targets.reads();
    restore(&pool, &folder).await;
    let reads = bench.targets.reads() - reads_before;
    // A restore looks at the backup, closes the pool, and reads it again: its last read is in the midst of writing.
    let hold = bench.targets.hold_reads(bench.targets.reads() + reads).await;
    let begun = ok(pool.start_restore(ticket(&pool, ADMIN), source(&folder)).await);
    loop {
        match pool.read_key(ticket(&pool, APP), current("a")).await.into_parts().0 {
            Ok(_) => {}
            // While a restore writes nothing else is answered, and afterwards everything is.
            Err(Error::Restoring) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(ok(pool.restore_job(ticket(&pool, ADMIN), begun.0.id).await).0.end.is_none());
    drop(hold);
    assert_eq!(failure(ended(&pool, begun).await), None);
    // From the moment it is said to have ended everything works.
    ok(pool.read_key(ticket(&pool, APP), current("a")).await);
    create(&pool, "a", EC).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_keys_is_backed_up_before_it_is_replaced() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    let there = sibling(&bench).open().await;
    create(&there, "own", EC).await;
    let error = refused(there.start_restore(ticket(&there, ADMIN), source(&folder)).await);
    assert!(matches!(error, Error::NotBackedUp), "{error}");
    backup(&there).await;
    restore(&there, &folder).await;
    assert_eq!(state(&there).await.keys, state(&pool).await.keys);
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_protection_outlasts_a_restore() {
    let bench = Bench { genesis: Genesis { purge_protection: true, ..genesis() }, ..Bench::new() };
    let pool = bench.open().await;
    create(&pool, "a", EC).await;
    let folder = backup(&pool).await;
    ok(pool.delete_key(ticket(&pool, APP), name("a")).await);
    restore(&pool, &folder).await;
    create(&pool, "a", EC).await;
    let now = state(&pool).await;
    let message = restore_as(&pool, ADMIN, &folder).await.unwrap();
    assert!(message.contains("would destroy a/") && message.contains("purge protection"), "{message}");
    assert_eq!(state(&pool).await, now);
    create(&pool, "e", EC).await;
    let message = restore_as(&pool, ADMIN, &folder).await.unwrap();
    assert!(message.contains("would destroy e,"), "{message}");
}

/// A backup's date of deletion would otherwise be one by which the key is long due.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_restore_brings_back_deleted_is_kept_from_then_on() {
    let retention = RetentionDays::new(7).unwrap();
    let bench = Bench { genesis: Genesis { retention, purge_protection: true, ..genesis() }, ..Bench::new() };
    let pool = bench.open().await;
    create(&pool, "a", EC).await;
    ok(pool.delete_key(ticket(&pool, APP), name("a")).await);
    let folder = backup(&pool).await;
    ok(pool.recover_key(ticket(&pool, OFFICER), name("a")).await);
    bench.clock.pass(8 * 86_400_000);
    restore(&pool, &folder).await;
    let mut schedule = Schedule::default();
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    bench.clock.pass(7 * 86_400_000 - 1_000);
    assert_eq!(schedule.tick(&pool).await.unwrap(), Tick::Done { purged: 0, rotated: 0 });
    ok(pool.recover_key(ticket(&pool, OFFICER), name("a")).await);
}

/// A job that nobody does would refuse all others until a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_hangs_up_leaves_no_job_behind_that_nobody_does() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "a", EC).await;
    for wait in 0..40 {
        // Folders are named by the second.
        bench.clock.pass(1000);
        let beginning = tokio::spawn({
            let pool = pool.clone();
            async move { pool.start_backup(ticket(&pool, ADMIN), location()).await }
        });
        tokio::time::sleep(std::time::Duration::from_micros(wait * 100)).await;
        beginning.abort();
        bench.clock.pass(1000);
        let _ = beginning.await;
        let give_up = std::time::Instant::now() + std::time::Duration::from_secs(120);
        let begun = loop {
            let begun = pool.start_backup(ticket(&pool, ADMIN), location()).await;
            match begun.into_parts().0 {
                Ok(begun) => break begun,
                Err(refusal) => assert!(std::time::Instant::now() < give_up, "{wait}: {refusal}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        };
        assert_eq!(failure(ended(&pool, begun).await), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_comes_back_out_of_a_full_backup() {
    let bench = Bench { limits: PoolLimits { gcm_encryptions: 2, ..PoolLimits::default() }, ..Bench::new() };
    let pool = bench.open().await;
    furnish(&pool).await;
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    let one = async |key: &str| {
        let begun =
            ok(pool.start_selective_restore(ticket(&pool, RESTORER), name(key), source(&folder)).await);
        failure(ended(&pool, begun).await)
    };
    // Unchanged since, so nothing is to be done.
    assert_eq!(one("b").await, None);
    create(&pool, "b", OCT).await;
    assert!(one("b").await.unwrap().contains("exists in this pool"));
    ok(pool.delete_key(ticket(&pool, APP), name("b")).await);
    assert!(one("b").await.unwrap().contains("deleted"));
    ok(pool.purge_key(ticket(&pool, OFFICER), name("b")).await);
    assert_eq!(one("b").await, None);
    assert_eq!(state(&pool).await, was);
    let exhausted = encrypt(&pool, "b").await.err();
    assert!(matches!(exhausted, Some(Error::InvocationsExhausted { .. })), "counted from nothing again");
    assert!(one("absent").await.unwrap().contains("no key named absent"));
    ok(pool.purge_key(ticket(&pool, OFFICER), name("d")).await);
    assert!(one("d").await.unwrap().contains("was deleted when"));
    assert_eq!(
        pool.audit_page(0, 10_000)
            .await
            .unwrap()
            .iter()
            .filter(|event| event["operationName"] == "KeySelectiveRestoreComplete")
            .count(),
        6
    );
}

/// An encryption that was made is not unmade: the counts of now stay where they are higher.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_sets_no_count_of_encryptions_back() {
    let bench = Bench { limits: PoolLimits { gcm_encryptions: 2, ..PoolLimits::default() }, ..Bench::new() };
    let pool = bench.open().await;
    create(&pool, "b", OCT).await;
    let folder = backup(&pool).await;
    encrypt(&pool, "b").await.unwrap();
    restore(&pool, &folder).await;
    let exhausted = encrypt(&pool, "b").await.err();
    assert!(matches!(exhausted, Some(Error::InvocationsExhausted { .. })), "{exhausted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_backup_is_named_and_changes_nothing() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    change(&pool).await;
    let now = state(&pool).await;
    let good = bench.targets.blobs()[&blob(&folder)].clone();
    bench.clock.pass(1000);
    let second = backup(&pool).await;
    let other = bench.targets.blobs()[&blob(&second)].clone();
    let bent = |position: usize| {
        let mut blob = good.clone();
        blob[position] ^= 1;
        blob
    };
    for (what, bytes, expected) in [
        ("empty", vec![], "this is not a full backup"),
        ("garbage", b"garbage".to_vec(), "this is not a full backup"),
        ("header only", good[..104].to_vec(), "cut off"),
        ("short", good[..good.len() - 1].to_vec(), "cut off"),
        ("long", [good.as_slice(), &[0]].concat(), "followed by bytes"),
        ("chunk", bent(200), "chunk 0 of the backup does not open"),
        ("salt", bent(90), "chunk 0 of the backup does not open"),
        ("pool", bent(60), "chunk 0 of the backup does not open"),
        ("manifest", bent(good.len() - 1), "chunk 1 of the backup does not open"),
        (
            "class",
            {
                let mut blob = good.clone();
                blob[55] = 1;
                blob
            },
            "made in a pool of class production",
        ),
        ("domain", bent(30), "whose owner key has fingerprint"),
        ("of two", [&good[..104], &other[104..]].concat(), "chunk 0 of the backup does not open"),
    ] {
        bench.targets.put("bent/backup.hfb", bytes);
        for check in [true, false] {
            let begun = if check {
                ok(pool.check_restore_from(ticket(&pool, ADMIN), source("bent")).await)
            } else {
                ok(pool.start_restore(ticket(&pool, ADMIN), source("bent")).await)
            };
            let message = failure(ended(&pool, begun).await).unwrap_or_default();
            assert!(message.contains(expected), "{what}: {message}");
        }
        let error = refused(pool.preview_restore(ticket(&pool, ADMIN), source("bent")).await);
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
    let message = restore_as(&pool, ADMIN, "absent").await.unwrap();
    assert!(message.contains("nothing at absent/backup.hfb"), "{message}");
    for folder in ["", "../x", "a/b/c"] {
        let error = refused(pool.start_restore(ticket(&pool, ADMIN), source(folder)).await);
        assert!(matches!(error, Error::BadParameter(_)), "{error}");
    }
    let elsewhere = StorageLocation { container: "memory://elsewhere".into(), ..location() };
    let error = refused(pool.start_backup(ticket(&pool, ADMIN), elsewhere).await);
    assert!(error.to_string().contains("may not go to"), "{error}");
    assert_eq!(state(&pool).await, now);
    let events = pool.audit_page(0, 10_000).await.unwrap();
    assert!(!events.iter().any(|event| event.to_string().contains(SIGNATURE)), "a signature in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_domain_or_class_takes_none_of_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    let stranger = Bench { targets: bench.targets.clone(), ..Bench::new() }.open().await;
    let error = refused(stranger.preview_restore(ticket(&stranger, ADMIN), source(&folder)).await);
    let Error::FullBackup(FullBackupRefused::Foreign(reason)) = &error else { panic!("{error}") };
    assert!(reason.to_string().matches("fingerprint").count() >= 2);
    let message = restore_as(&stranger, ADMIN, &folder).await.unwrap();
    assert_eq!(message, error.to_string());
    let production = Genesis { class: PoolClass::Production, ..genesis() };
    let other = Bench { genesis: production, ..sibling(&bench) };
    let there = other.open().await;
    let message = restore_as(&there, ADMIN, &folder).await.unwrap();
    assert!(message.contains("class test"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_a_restore() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let folder = backup(&pool).await;
    for (limits, limit) in [
        (PoolLimits { keys: 3, ..PoolLimits::default() }, "at most 3 keys"),
        (PoolLimits { versions_per_key: 2, ..PoolLimits::default() }, "at most 2 versions"),
    ] {
        let there = Bench { limits, ..sibling(&bench) }.open().await;
        let message = restore_as(&there, ADMIN, &folder).await.unwrap();
        assert!(message.contains(limit), "{message}");
    }
}

/// A job outlives its pool's process only as what it was: cut short.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_a_stop_cuts_short_has_failed_and_a_finished_one_stays_readable() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    let finished = ok(pool.start_backup(ticket(&pool, ADMIN), location()).await);
    let was = ended(&pool, finished.clone()).await;
    bench.clock.pass(1000);
    let hold = bench.targets.hold().await;
    let cut = ok(pool.start_backup(ticket(&pool, ADMIN), location()).await);
    pool.close().await;
    drop(hold);
    let pool = bench.open().await;
    let message = failure(ended(&pool, cut.clone()).await).unwrap();
    assert!(message.contains("was stopped while the job was under way"), "{message}");
    assert_eq!(ended(&pool, finished).await, was);
    assert_eq!(bench.targets.blobs().len(), 1, "a blob of a backup that failed");
    backup(&pool).await;
}

/// A good backup with other records, made as only an instance of its domain could.
fn forged(bench: &Bench, pool: &Pool, good: &[u8], bend: impl FnOnce(&mut Vec<Record>)) -> Vec<u8> {
    let secrets = bench.secrets();
    let owner = secrets.owner_key().public_key();
    let domain = BackupDomain::new(pool.genesis().security_domain, &owner, pool.genesis().class);
    let (header, mut rest) = good.split_at(HEADER_BYTES);
    let mut reader = FullBackupReader::new(&secrets.backup_key(), &domain, &owner, header).unwrap();
    let mut records = Vec::new();
    let mut manifest = loop {
        let frame = reader.frame(&rest[..FRAME_BYTES]).unwrap();
        let (sealed, behind) = rest[FRAME_BYTES..].split_at(frame.length);
        rest = behind;
        match reader.open(frame, sealed).unwrap() {
            Opened::Chunk(content) => records.extend(storage::read_chunk(&content).unwrap()),
            Opened::Manifest(content) => break Manifest::decode(&content).unwrap(),
        }
    };
    bend(&mut records);
    let (mut writer, header) = FullBackupWriter::new(&secrets.backup_key(), reader.header());
    let mut blob = header.to_vec();
    let mut chunks = ChunkBuilder::default();
    manifest.counts = Counts::default();
    for record in &records {
        manifest.counts.add(record);
        blob.extend(chunks.add(record).into_iter().flat_map(|chunk| writer.seal(&chunk)));
    }
    blob.extend(chunks.take().into_iter().flat_map(|chunk| writer.seal(&chunk)));
    let signer = InstanceKey::generate();
    let day = 86_400;
    let now = pool.now().int_date().unix_seconds();
    let claims = InstanceClaims {
        pool: pool.genesis().pool,
        node: Guid([3; 16]),
        incarnation: Guid([4; 16]),
        purpose: Purpose::Backup,
        class: pool.genesis().class,
        genesis_hash: pool.genesis_hash(),
        not_before: IntDate::from_unix_seconds(now - day),
        not_after: IntDate::from_unix_seconds(now + day),
    };
    let certificate = secrets.owner_key().certify(&claims, &signer);
    blob.extend(writer.finish(&manifest.encode(), &signer, &certificate));
    blob
}

/// What only a fault of the pool that made it can bring about. Records come in any order.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_records_do_not_fit_together_is_refused_before_anything_changes() {
    let bench = Bench::new();
    let pool = bench.open().await;
    furnish(&pool).await;
    encrypt(&pool, "b").await.unwrap();
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    let good = bench.targets.blobs()[&blob(&folder)].clone();
    change(&pool).await;
    let now = state(&pool).await;
    let of = |name: &'static str| {
        move |record: &Record| match record {
            Record::Key(record) => record.key.name.as_str() == name,
            Record::Version(record) => record.version.name.as_str() == name,
            _ => false,
        }
    };
    let is_version = |record: &Record| matches!(record, Record::Version(_));
    type Bend<'b> = Box<dyn FnOnce(&mut Vec<Record>) + 'b>;
    let cases: [(&str, Bend<'_>); 5] = [
        (
            "a key without one version",
            Box::new(|records| {
                let at = records.iter().position(is_version).unwrap();
                records.remove(at);
            }),
        ),
        (
            "versions without their key",
            Box::new(|records| {
                records.retain(|record| is_version(record) || !of("a")(record));
            }),
        ),
        (
            "a version twice",
            Box::new(|records| {
                let again = records.iter().find(|record| is_version(record)).unwrap().clone();
                records.push(again);
            }),
        ),
        (
            "a key twice, with its versions",
            Box::new(|records| {
                let again: Vec<_> = records.iter().filter(|record| of("a")(record)).cloned().collect();
                records.extend(again);
            }),
        ),
        (
            "an assignment twice",
            Box::new(|records| {
                // Not one that genesis gives: in those a backup has no say at all.
                let given =
                    |record: &&Record| matches!(record, Record::Assignment(held) if held.principal == BACKER);
                let again = records.iter().find(given).unwrap().clone();
                records.push(again);
            }),
        ),
    ];
    for (what, bend) in cases {
        bench.targets.put("forged/backup.hfb", forged(&bench, &pool, &good, bend));
        let message = restore_as(&pool, ADMIN, "forged").await.unwrap_or_default();
        let expected = if what.contains("twice, with") || what.contains("assignment") {
            "it holds one record twice"
        } else {
            "its versions are not those that its keys name"
        };
        assert!(message.contains(expected), "{what}: {message}");
        assert_eq!(state(&pool).await, now, "{what}");
    }
    // It serves, and what was staged is in nobody's way.
    create(&pool, "f", EC).await;
    let backwards = forged(&bench, &pool, &good, |records| records.reverse());
    bench.targets.put("forged/backup.hfb", backwards);
    restore(&pool, "forged").await;
    assert_eq!(state(&pool).await, was);
    pool.close().await;
    assert_eq!(state(&bench.open().await).await, was);
}

/// Of versions that the backup does not have nothing is counted, and of those that it has, whatever either knows.
#[tokio::test(flavor = "multi_thread")]
async fn counts_of_what_is_not_in_the_backup_go() {
    let bench = Bench { limits: PoolLimits { gcm_encryptions: 1, ..PoolLimits::default() }, ..Bench::new() };
    let pool = bench.open().await;
    create(&pool, "a", OCT).await;
    create(&pool, "b", OCT).await;
    encrypt(&pool, "b").await.unwrap();
    let folder = backup(&pool).await;
    encrypt(&pool, "a").await.unwrap();
    create(&pool, "b", OCT).await;
    encrypt(&pool, "b").await.unwrap();
    create(&pool, "c", OCT).await;
    encrypt(&pool, "c").await.unwrap();
    restore(&pool, &folder).await;
    for key in ["a", "b"] {
        let exhausted = encrypt(&pool, key).await.err();
        assert!(matches!(exhausted, Some(Error::InvocationsExhausted { .. })), "{key}: {exhausted:?}");
    }
    bench.clock.pass(1000);
    let again = backup(&pool).await;
    let again = bench.targets.blobs()[&blob(&again)].clone();
    let mut counted = Vec::new();
    forged(&bench, &pool, &again, |records| {
        for record in records {
            if let Record::Invocations(record) = record {
                counted.push((record.name.to_string(), record.leased.len()));
            }
        }
    });
    counted.sort();
    assert_eq!(counted, [("a".to_owned(), 1), ("b".to_owned(), 1)]);
}

/// An engine that fails, or waits, at each look at many records.
struct Scanless {
    inner: Arc<dyn Engine>,
    fails: AtomicBool,
    waits: tokio::sync::RwLock<()>,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Engine for Scanless {
    async fn get(&self, key: &[u8]) -> Result<Option<Entry>, EngineError> {
        self.inner.get(key).await
    }

    async fn scan(&self, prefix: &[u8]) -> Result<Box<dyn Scan>, EngineError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let _turn = self.waits.read().await;
        if self.fails.load(Ordering::SeqCst) {
            return Err(EngineError::Unavailable("the disk is gone".into()));
        }
        self.inner.scan(prefix).await
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, EngineError> {
        self.inner.commit(commit).await
    }

    async fn settle(&self, operation: OperationId) -> Result<Option<Revision>, EngineError> {
        self.inner.settle(operation).await
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, EngineError> {
        self.inner.watch(from).await
    }

    async fn health(&self) -> Result<Revision, EngineError> {
        self.inner.health().await
    }
}

async fn open_scanless(bench: &Bench) -> (Arc<Pool>, Arc<Scanless>) {
    let inner: Arc<dyn Engine> =
        Arc::new(RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap());
    let log = Arc::new(FileLog::open(bench.path().join("audit"), LogOptions::default()).unwrap());
    let engine = Arc::new(Scanless {
        inner,
        fails: AtomicBool::new(false),
        waits: Default::default(),
        asked: Default::default(),
    });
    (bench.open_on(engine.clone(), log).await, engine)
}

/// After the switch there is no way back: the pool serves nobody, and a start opens it as restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_cannot_read_what_was_restored_is_closed_until_its_next_start() {
    let bench = Bench::new();
    let (pool, engine) = open_scanless(&bench).await;
    furnish(&pool).await;
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    change(&pool).await;
    engine.fails.store(true, Ordering::SeqCst);
    let begun = ok(pool.start_restore(ticket(&pool, ADMIN), source(&folder)).await);
    let reason = loop {
        match pool.restore_job(ticket(&pool, ADMIN), begun.0.id).await.into_parts().0 {
            Ok(job) => assert_eq!(job.0.end, None, "ended without an index"),
            Err(Error::StoreUnavailable(reason)) => break reason,
            Err(error) => panic!("{error}"),
        }
        tokio::task::yield_now().await;
    };
    assert!(reason.contains("what was restored cannot be read") && reason.contains("the disk is gone"));
    engine.fails.store(false, Ordering::SeqCst);
    let closed = |error: Error| assert!(matches!(error, Error::StoreUnavailable(_)), "{error}");
    closed(refused(pool.read_key(ticket(&pool, APP), current("a")).await));
    closed(refused(pool.create_key(ticket(&pool, APP), new_key("new", EC)).await));
    closed(refused(pool.start_backup(ticket(&pool, ADMIN), location()).await));
    pool.close().await;
    drop(engine);
    let pool = bench.open().await;
    assert_eq!(state(&pool).await, was);
    assert_eq!(failure(ended(&pool, begun).await), None);
    create(&pool, "a", EC).await;
}

/// The index is empty for a while: nobody is told that a key is not there, nor that the restore has ended, and whoever may ask
/// for the restore still may.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_a_pool_between_its_two_indexes() {
    for stopped in [false, true] {
        let bench = Bench::new();
        let (pool, engine) = open_scanless(&bench).await;
        furnish(&pool).await;
        let folder = backup(&pool).await;
        change_less(&pool).await;
        let hold = engine.waits.write().await;
        // Nothing else looks at many records: the store for its table after the switch, and the pool for its index.
        let asked = engine.asked.load(Ordering::SeqCst);
        let begun = ok(pool.start_restore(ticket(&pool, RESTORER), source(&folder)).await);
        let mut looks = 0;
        while looks < 20 {
            let switched = engine.asked.load(Ordering::SeqCst) >= asked + 2;
            let job = ok(pool.restore_job(ticket(&pool, RESTORER), begun.0.id).await);
            assert_eq!(job.0.end, None, "ended without an index");
            match pool.read_key(ticket(&pool, APP), current("b")).await.into_parts().0 {
                Ok(_) => assert!(!switched),
                Err(Error::Restoring) => looks += usize::from(switched),
                Err(error) => panic!("{error}"),
            }
        }
        if stopped {
            // It ends in between, and the start finds what was restored.
            let closing = tokio::spawn(pool.close());
            tokio::task::yield_now().await;
            drop(hold);
            closing.await.unwrap();
            drop(engine);
            let pool = bench.open().await;
            assert_eq!(failure(ended_as(&pool, RESTORER, begun).await), None);
            ok(pool.read_key(ticket(&pool, APP), current("a")).await);
        } else {
            drop(hold);
            assert_eq!(failure(ended_as(&pool, RESTORER, begun).await), None);
            ok(pool.read_key(ticket(&pool, APP), current("a")).await);
        }
    }
}

/// However large the pool, no more than a chunk goes to the storage or comes from it at a time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_of_a_backup_does_not_grow_with_it() {
    let bench = Bench::new();
    let pool = bench.open().await;
    let long = |number: usize| format!("{}{number:02}", "t".repeat(254));
    let tags = Tags::new((0..15).map(|number| (long(number), long(number))).collect()).unwrap();
    for number in 0..400 {
        let key = NewKey { tags: tags.clone(), ..new_key(&format!("k{number}"), OCT) };
        ok(pool.create_key(ticket(&pool, APP), key).await);
    }
    let was = state(&pool).await;
    let folder = backup(&pool).await;
    let bytes = bench.targets.blobs()[&blob(&folder)].len();
    restore(&pool, &folder).await;
    assert_eq!(state(&pool).await, was);
    let largest = bench.targets.largest();
    assert!(bytes > 3_000_000 && largest <= 1 << 20, "{largest} of {bytes} bytes at a time");
}

/// Power fails in the middle of a restore, of store and log at once: all of the old, or all of the new, and a job that
/// says which. Each write of the switch itself is `storage`'s test.
#[tokio::test(flavor = "multi_thread")]
async fn power_loss_at_any_write_of_a_restore_leaves_the_old_or_the_new() {
    let bench = Bench::new();
    let source_pool = bench.open().await;
    furnish(&source_pool).await;
    let folder = backup(&source_pool).await;
    let other = sibling(&bench);
    let open = async |disk: &SimDisk| {
        let directory = Arc::new(disk.clone());
        let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::default() };
        let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open_in(directory.clone(), options).unwrap());
        let options = LogOptions { reserve_bytes: 0, ..LogOptions::default() };
        let log: Arc<dyn Log> = Arc::new(FileLog::open_in(directory, options).unwrap());
        other.open_on(engine, log).await
    };
    // With a key of its own, and backed up.
    let before = SimDisk::new();
    let pool = open(&before).await;
    create(&pool, "own", EC).await;
    backup(&pool).await;
    let old = state(&pool).await;
    pool.close().await;

    let whole = before.after_power_loss(Loss::Nothing);
    let pool = open(&whole).await;
    let first = whole.writes();
    restore(&pool, &folder).await;
    let writes = whole.writes() - first;
    let new = state(&pool).await;
    pool.close().await;
    assert!(old != new && writes > 20, "{writes} writes");

    let (mut olds, mut news) = (0, 0);
    for write in 0..writes {
        let disk = before.after_power_loss(Loss::Nothing);
        let pool = open(&disk).await;
        disk.fail_at(disk.writes() + write, Fault::PowerLoss);
        let begun = pool.start_restore(ticket(&pool, ADMIN), source(&folder)).await.into_parts().0;
        let acknowledged = match begun {
            Ok(begun) => loop {
                let asked = pool.restore_job(ticket(&pool, ADMIN), begun.0.id).await.into_parts().0;
                match asked {
                    Ok(JobView(job)) if job.end.is_some() => break job.end.unwrap().failure.is_none(),
                    Err(_) if disk.power_lost() => break false,
                    Ok(_) | Err(_) => tokio::task::yield_now().await,
                }
            },
            Err(_) => false,
        };
        for loss in [Loss::All, Loss::Nothing, Loss::Seed(write)] {
            let survived = disk.after_power_loss(loss);
            let pool = open(&survived).await;
            let is = state(&pool).await;
            assert!(is == old || is == new, "write {write}, {loss:?}: a mix");
            assert!(is == new || !acknowledged, "write {write}, {loss:?}: acknowledged and lost");
            let said = event_of(&pool, "RestoreComplete").await;
            let succeeded = said.iter().any(|event| event.contains("keys with"));
            assert_eq!(succeeded, is == new, "write {write}, {loss:?}: {said:?}");
            if is == new {
                news += 1
            } else {
                olds += 1
            }
            pool.close().await;
        }
    }
    assert!(olds > 5 && news > 0, "{olds} old, {news} new");
}
