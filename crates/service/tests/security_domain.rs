//! The security domain of a pool on real parts: handed out once or taken in once, never both, whoever asks at once and
//! whoever leaves before the answer.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

mod common;

use ceremony::{
    DomainFile, HolderSet, KeyHolder, LibraryHolder, LibraryTransport, OpenedDomain, TransferKey,
    restore_blob,
};
use common::*;
use crypto::digest::random;
use crypto::domain_secrets::DomainSecrets;
use crypto::key_file::KeyFile;
use crypto::transport::{TransportCertificate, TransportKey};
use crypto_software::SoftwarePartition;
use domain::algorithm::{Curve, KeySpec};
use domain::guid::Guid;
use domain::pool::{Genesis, PoolClass};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::{
    ActivationRecord, DomainStatus, DownloadRequest, Error, Installation, Installer, Pool, PoolParts,
    SecretBytes, SystemRandom,
};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Notes what it is given; waits and fails as told.
struct NotedInstaller {
    prepared: Mutex<Vec<Installation>>,
    switched: AtomicBool,
    fails: AtomicBool,
    begun: Semaphore,
    /// A permit for each preparation that may end.
    may_end: Semaphore,
}

impl NotedInstaller {
    fn new(may_end: usize) -> Arc<Self> {
        Arc::new(Self {
            prepared: Mutex::default(),
            switched: AtomicBool::new(false),
            fails: AtomicBool::new(false),
            begun: Semaphore::new(0),
            may_end: Semaphore::new(may_end),
        })
    }
}

impl Installer for NotedInstaller {
    fn prepare<'a>(
        &'a self,
        installation: Installation,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move {
            self.begun.add_permits(1);
            self.may_end.acquire().await.unwrap().forget();
            if self.fails.load(Ordering::SeqCst) {
                return Err("the disk is full".into());
            }
            self.prepared.lock().unwrap().push(installation);
            Ok(())
        })
    }

    fn switch(&self) {
        assert!(!self.prepared.lock().unwrap().is_empty(), "nothing to switch to");
        self.switched.store(true, Ordering::SeqCst);
    }
}

/// A pool that waits for its domain, in `bench`'s directory.
async fn provisioned(bench: &Bench, installer: Arc<NotedInstaller>) -> Arc<Pool> {
    with_activation(bench, installer, None).await
}

async fn with_activation(
    bench: &Bench,
    installer: Arc<NotedInstaller>,
    activation: Option<ActivationRecord>,
) -> Arc<Pool> {
    let engine = Arc::new(RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap());
    let log = FileLog::open(bench.path().join("audit"), LogOptions::default()).unwrap();
    let secrets = DomainSecrets::import(&SecretBytes::new(bench.secrets.clone())).unwrap();
    Pool::found(engine.as_ref(), &secrets, bench.genesis.clone(), activation).await.unwrap();
    let parts = PoolParts {
        engine,
        log: Arc::new(log),
        partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
        secrets,
        opened_with: "none".into(),
        node: Guid([3; 16]),
        clock: bench.clock.clone(),
        clock_is_right: false,
        random: Arc::new(SystemRandom),
        limits: bench.limits,
        resource_suffixes: vec!["managedhsm.localhost".into()],
        installer: Some(installer),
        backup_targets: None,
    };
    Pool::open(parts).await.unwrap()
}

fn of_class(class: PoolClass) -> Bench {
    Bench { genesis: Genesis { class, ..genesis() }, ..Bench::new() }
}

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../ceremony/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn certificate(number: usize) -> TransportCertificate {
    TransportCertificate::from_file(&golden(&format!("holder-{number}.cer"))).unwrap()
}

fn holders(numbers: &[usize]) -> DownloadRequest {
    let certificates = numbers.iter().map(|number| certificate(*number)).collect();
    DownloadRequest { holders: HolderSet::new(certificates, 2_u64).unwrap() }
}

/// The domain in `file`, by holders 1 and 2.
fn opened(file: &str) -> OpenedDomain {
    let holders = [1, 2].map(|number| {
        let pem = SecretBytes::new(golden(&format!("holder-{number}.key")));
        let KeyFile::Plain(pkcs8) = KeyFile::read(&pem).unwrap() else { unreachable!("not encrypted") };
        LibraryHolder::new(TransportKey::from_pkcs8(pkcs8).unwrap(), &certificate(number)).unwrap()
    });
    let holders: Vec<&dyn KeyHolder> = holders.iter().map(|holder| holder as &dyn KeyHolder).collect();
    DomainFile::parse(file).unwrap().open(&holders, &random).unwrap()
}

/// Of class production.
fn golden_domain() -> OpenedDomain {
    opened(std::str::from_utf8(&golden("security-domain-v1.json")).unwrap())
}

fn blob(domain: &OpenedDomain, key: &TransferKey) -> String {
    restore_blob::build(domain, key.certificate(), &LibraryTransport, &random).unwrap()
}

async fn exchange_key(pool: &Arc<Pool>) -> Arc<TransferKey> {
    ok(pool.new_transfer_key(ticket(pool, ADMIN)).await)
}

/// A domain of class test, with the holders 1, 2 and 3.
async fn domain_of_class_test() -> OpenedDomain {
    let bench = Bench::new();
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    opened(&ok(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_downloads_for_different_holders_at_once_one_wins() {
    for _ in 0..4 {
        let bench = Bench::new();
        let pool = provisioned(&bench, NotedInstaller::new(0)).await;
        let tasks = [[1, 2, 3], [1, 2, 4], [2, 3, 4]].map(|numbers| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let recorded = pool.download_domain(ticket(&pool, ADMIN), holders(&numbers)).await;
                (numbers, recorded.into_parts().0)
            })
        });
        let mut won = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (numbers, Ok(file)) => won.push((numbers, file)),
                (_, Err(error)) => assert!(matches!(error, Error::DomainHandedOut), "{error}"),
            }
        }
        assert_eq!(won.len(), 1);
        let (numbers, file) = &won[0];
        let again = ok(pool.download_domain(ticket(&pool, ADMIN), holders(numbers)).await);
        assert_eq!(again, *file);
        pool.close().await;
    }
}

/// A client that sends its request again, as clients do, is not told that others were faster.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_holders_at_once_are_given_one_file() {
    let bench = Bench::new();
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    let tasks = [(); 4].map(|()| {
        let pool = pool.clone();
        tokio::spawn(async move { ok(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await) })
    });
    let mut files = Vec::new();
    for task in tasks {
        files.push(task.await.unwrap());
    }
    files.dedup();
    assert_eq!(files.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_stays_the_same_after_a_restart_and_its_domain_is_the_pools() {
    let bench = Bench::new();
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    let file = ok(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await);
    pool.close().await;
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    assert_eq!(ok(pool.download_domain(ticket(&pool, ADMIN), holders(&[3, 1, 2])).await), file);
    let other = pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 4])).await;
    assert!(matches!(refused(other), Error::DomainHandedOut));
    let domain = opened(&file);
    assert_eq!(domain.secrets.danger_export().danger_expose(), bench.secrets);
    assert_eq!(domain.description.pool, bench.genesis.pool);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_of_the_other_class_is_refused_and_one_of_its_own_is_taken_in() {
    let of_test = domain_of_class_test().await;
    let of_production = golden_domain();
    for (class, own, foreign) in
        [(PoolClass::Test, &of_test, &of_production), (PoolClass::Production, &of_production, &of_test)]
    {
        let bench = of_class(class);
        let installer = NotedInstaller::new(1);
        let pool = provisioned(&bench, installer.clone()).await;
        let key = exchange_key(&pool).await;
        let error = refused(pool.upload_domain(ticket(&pool, ADMIN), blob(foreign, &key)).await);
        assert!(matches!(error, Error::BlobNotOpened), "{error}");
        assert!(installer.prepared.lock().unwrap().is_empty() && !pool.is_active());
        let status = ok(pool.upload_domain(ticket(&pool, ADMIN), blob(own, &key)).await);
        assert_eq!(status, DomainStatus::InProgress);
        assert!(installer.switched.load(Ordering::SeqCst));
        let prepared = installer.prepared.lock().unwrap();
        let [made] = prepared.as_slice() else { unreachable!("{} were prepared", prepared.len()) };
        let theirs = own.secrets.danger_export();
        assert_eq!(made.secrets.danger_export().danger_expose(), theirs.danger_expose());
        let expected = Genesis { security_domain: own.description.security_domain, ..bench.genesis.clone() };
        assert_eq!(made.genesis, expected);
        let mut thumbprints: Vec<[u8; 32]> = own.holders.iter().map(|print| print.0).collect();
        thumbprints.sort_unstable();
        assert_eq!((&made.activation.holders, made.activation.required), (&thumbprints, own.required));
        assert_eq!(made.activation.domain_file, None);
        assert_eq!(made.activation.awaits_confirmation, class == PoolClass::Production);
    }
}

/// The log in which the request has its event stays with what the pool was before.
#[tokio::test(flavor = "multi_thread")]
async fn a_pool_made_anew_begins_its_log_with_who_brought_its_domain() {
    let bench = of_class(PoolClass::Test);
    let installer = NotedInstaller::new(1);
    let pool = provisioned(&bench, installer.clone()).await;
    let key = exchange_key(&pool).await;
    let domain = domain_of_class_test().await;
    let mut upload = ticket(&pool, ADMIN);
    upload.operation("SecurityDomainRestore");
    ok(pool.upload_domain(upload, blob(&domain, &key)).await);
    let made = installer.prepared.lock().unwrap().pop().unwrap();
    let anew = Bench {
        secrets: made.secrets.danger_export().danger_expose().to_vec(),
        genesis: made.genesis.clone(),
        ..Bench::new()
    };
    let engine = RedbEngine::open(anew.path().join("store"), EngineOptions::default()).unwrap();
    Pool::found_anew(&engine, made).await.unwrap();
    drop(engine);
    for _ in 0..2 {
        let pool = anew.open().await;
        let events = pool.audit_page(0, 100).await.unwrap();
        let brought = |event: &&serde_json::Value| event["operationName"] == "SecurityDomainRestore";
        assert_eq!(events.iter().filter(brought).count(), 1);
        let first = events[0].to_string();
        assert!(brought(&&events[0]), "{first}");
        assert!(
            first.contains(&ADMIN.to_string())
                && first.contains(&domain.description.security_domain.to_string()),
            "{first}"
        );
        pool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_domain_stays_closed_over_restarts_until_its_own_fingerprint_is_confirmed() {
    let bench = of_class(PoolClass::Production);
    let uploaded =
        ActivationRecord { holders: vec![[7; 32]; 3], required: 2, awaits_confirmation: true, ..active() };
    let open = || with_activation(&bench, NotedInstaller::new(1), Some(uploaded.clone()));
    for _ in 0..2 {
        let pool = open().await;
        let closed = refused(pool.list_settings(ticket(&pool, ADMIN)).await);
        let fingerprint = pool.domain_fingerprint().to_owned();
        assert!(
            matches!(&closed, Error::DomainNotConfirmed { fingerprint: shown } if *shown == fingerprint),
            "{closed}"
        );
        for wrong in ["", &fingerprint[..63], &"0".repeat(64)] {
            let wrong = refused(pool.confirm_domain(ticket(&pool, ADMIN), wrong.to_owned()).await);
            assert!(wrong.to_string().contains(&fingerprint), "{wrong}");
        }
        let stranger = refused(pool.confirm_domain(ticket(&pool, APP), fingerprint).await);
        assert!(matches!(stranger, Error::Denied(_)), "{stranger}");
        assert!(pool.is_active() && pool.awaits_confirmation());
        pool.close().await;
    }
    let pool = open().await;
    let fingerprint = pool.domain_fingerprint().to_owned();
    assert!(ok(pool.confirm_domain(ticket(&pool, ADMIN), fingerprint.clone()).await).confirmed);
    pool.close().await;
    let pool = open().await;
    ok(pool.list_settings(ticket(&pool, ADMIN)).await);
    // Said again it is no second change.
    ok(pool.confirm_domain(ticket(&pool, ADMIN), fingerprint).await);
}

/// Whoever handed it out would vouch for a domain that may be anybody's.
#[tokio::test(flavor = "multi_thread")]
async fn an_uploaded_domain_is_handed_out_to_nobody_before_it_is_confirmed() {
    for (held, allow_domain_redownload) in [(vec![], false), (vec![[7; 32]; 3], true)] {
        let mut bench = of_class(PoolClass::Production);
        bench.genesis.allow_domain_redownload = allow_domain_redownload;
        let uploaded = ActivationRecord { holders: held, required: 2, awaits_confirmation: true, ..active() };
        let open = || with_activation(&bench, NotedInstaller::new(1), Some(uploaded.clone()));
        let pool = open().await;
        let early = refused(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await);
        assert!(matches!(early, Error::DomainNotConfirmed { .. }), "{early}");
        assert!(pool.awaits_confirmation());
        pool.close().await;
        assert!(open().await.awaits_confirmation());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_domain_can_be_replaced_until_it_is_confirmed_and_never_both() {
    let bench = of_class(PoolClass::Production);
    let uploaded = ActivationRecord { awaits_confirmation: true, ..active() };
    let installer = NotedInstaller::new(1);
    let pool = with_activation(&bench, installer.clone(), Some(uploaded)).await;
    let fingerprint = pool.domain_fingerprint().to_owned();
    let key = exchange_key(&pool).await;
    let right = blob(&golden_domain(), &key);
    ok(pool.upload_domain(ticket(&pool, ADMIN), right).await);
    // The pool is about to be another one: what is confirmed now would be forgotten.
    let late = refused(pool.confirm_domain(ticket(&pool, ADMIN), fingerprint.clone()).await);
    assert!(matches!(late, Error::TooManyConflicts), "{late}");
    assert!(installer.prepared.lock().unwrap()[0].activation.awaits_confirmation);

    let bench = of_class(PoolClass::Production);
    let uploaded = ActivationRecord { awaits_confirmation: true, ..active() };
    let pool = with_activation(&bench, NotedInstaller::new(1), Some(uploaded)).await;
    let key = exchange_key(&pool).await;
    ok(pool.confirm_domain(ticket(&pool, ADMIN), pool.domain_fingerprint().to_owned()).await);
    let late = refused(pool.upload_domain(ticket(&pool, ADMIN), blob(&golden_domain(), &key)).await);
    assert!(matches!(late, Error::AlreadyActive), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_domain_is_taken_in_none_is_handed_out() {
    let domain = domain_of_class_test().await;
    let bench = Bench::new();
    let installer = NotedInstaller::new(0);
    let pool = provisioned(&bench, installer.clone()).await;
    let key = exchange_key(&pool).await;
    let upload = tokio::spawn({
        let (pool, blob) = (pool.clone(), blob(&domain, &key));
        async move { ok(pool.upload_domain(ticket(&pool, ADMIN), blob).await) }
    });
    installer.begun.acquire().await.unwrap().forget();
    let download = tokio::spawn({
        let pool = pool.clone();
        async move { refused(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await) }
    });
    let second = tokio::spawn({
        let (pool, blob) = (pool.clone(), blob(&domain, &key));
        async move { refused(pool.upload_domain(ticket(&pool, ADMIN), blob).await) }
    });
    installer.may_end.add_permits(2);
    upload.await.unwrap();
    assert!(matches!(download.await.unwrap(), Error::AlreadyActive));
    assert!(matches!(second.await.unwrap(), Error::AlreadyActive));
    let key = refused(pool.new_transfer_key(ticket(&pool, ADMIN)).await);
    assert!(matches!(key, Error::AlreadyActive));
    assert!(!pool.is_active());
    assert_eq!(installer.prepared.lock().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_caller_leaves_goes_on_to_its_end() {
    let domain = domain_of_class_test().await;
    let bench = Bench::new();
    let installer = NotedInstaller::new(0);
    let pool = provisioned(&bench, installer.clone()).await;
    let key = exchange_key(&pool).await;
    let upload = tokio::spawn({
        let (pool, blob) = (pool.clone(), blob(&domain, &key));
        async move {
            let _ = pool.upload_domain(ticket(&pool, ADMIN), blob).await;
        }
    });
    installer.begun.acquire().await.unwrap().forget();
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    installer.may_end.add_permits(1);
    // It waits for its turn behind the upload.
    let second = refused(pool.upload_domain(ticket(&pool, ADMIN), blob(&domain, &key)).await);
    assert!(matches!(second, Error::AlreadyActive), "{second}");
    assert!(installer.switched.load(Ordering::SeqCst));
    let recorded = events(&pool).await;
    assert_eq!(recorded.iter().filter(|event| event.ends_with(" Success")).count(), 2, "{recorded:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_cannot_be_prepared_leaves_the_pool_as_it_was() {
    let domain = domain_of_class_test().await;
    let bench = Bench::new();
    let installer = NotedInstaller::new(2);
    installer.fails.store(true, Ordering::SeqCst);
    let pool = provisioned(&bench, installer.clone()).await;
    let key = exchange_key(&pool).await;
    let blob = blob(&domain, &key);
    let error = refused(pool.upload_domain(ticket(&pool, ADMIN), blob.clone()).await);
    assert!(matches!(error, Error::StoreUnavailable(_)), "{error}");
    assert!(!installer.switched.load(Ordering::SeqCst) && !pool.is_active());
    installer.fails.store(false, Ordering::SeqCst);
    ok(pool.upload_domain(ticket(&pool, ADMIN), blob).await);
    assert!(installer.switched.load(Ordering::SeqCst));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_key_ends_with_the_next_one_with_its_day_and_with_activation() {
    let domain = domain_of_class_test().await;
    let bench = Bench::new();
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    let upload = |blob: String| pool.upload_domain(ticket(&pool, ADMIN), blob);
    let superseded = exchange_key(&pool).await;
    assert!(matches!(refused(upload("{}".into()).await), Error::BadParameter(_)));
    let key = exchange_key(&pool).await;
    assert!(matches!(refused(upload(blob(&domain, &superseded)).await), Error::BlobNotOpened));
    let good = blob(&domain, &key);
    bench.clock.pass(24 * 60 * 60 * 1000);
    assert!(matches!(refused(upload(good.clone()).await), Error::NoTransferKey));
    ok(pool.download_domain(ticket(&pool, ADMIN), holders(&[1, 2, 3])).await);
    assert!(matches!(refused(upload(good).await), Error::AlreadyActive));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_a_domain_serves_its_initial_administrators_and_makes_no_key() {
    let bench = Bench::new();
    let pool = provisioned(&bench, NotedInstaller::new(0)).await;
    let key = || new_key("k", KeySpec::Ec(Curve::P256));
    for principal in [ADMIN, APP] {
        let error = refused(pool.create_key(ticket(&pool, principal), key()).await);
        assert!(matches!(error, Error::NotActivated), "{error}");
    }
    let stranger = ticket(&pool, APP);
    assert!(matches!(refused(pool.download_domain(stranger, holders(&[1, 2, 3])).await), Error::Denied(_)));
    let stranger = ticket(&pool, APP);
    assert!(matches!(refused(pool.new_transfer_key(stranger).await), Error::Denied(_)));
    let stranger = ticket(&pool, APP);
    assert!(matches!(refused(pool.upload_domain(stranger, "{}".into()).await), Error::Denied(_)));
    assert_eq!(ok(pool.download_status(ticket(&pool, ADMIN)).await), DomainStatus::InProgress);
    assert_eq!(events(&pool).await.len(), 6);
}
