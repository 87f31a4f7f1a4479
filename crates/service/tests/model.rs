//! The life of keys against a small model that says what must happen: random sequences of all operations on a virtual
//! clock, with losses of power and restarts inside. The seed is printed; `HOLDFAST_MODEL_SEED` runs one again.
//! `HOLDFAST_SOAK` makes it a million steps.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test
mod common;

use common::*;
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, SignatureAlgorithm};
use domain::key::{KeyOperation, KeyOperations, KeyRefused, Tags, UseRefused, VersionChange};
use domain::name::{KeyName, KeyVersion};
use domain::pool::{Genesis, RetentionDays};
use domain::time::IntDate;
use host::{Engine, Log};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::{
    EncryptInput, Error, KeyReference, KeyView, NewKey, Page, PageRequest, Pool, PoolLimits, Recorded,
    Schedule, SecretBytes, Tick,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::{Loss, Random, SimDisk};

const STEPS: u64 = 10_000;
/// Of a run; a soak has a hundred of them.
const SOAK_RUNS: u64 = 100;
const NAMES: [&str; 6] = ["a", "B", "c-1", "d", "e", "f"];
const LIMITS: (usize, usize) = (4, 5);
const RETENTION_SECONDS: i64 = 7 * 86_400;
const DIGEST: [u8; 32] = [7; 32];

/// What an operation came to, as far as the model foresees it.
#[derive(Debug, Eq, PartialEq)]
enum Outcome {
    Done,
    Verified(bool),
    KeyNotFound,
    VersionNotFound,
    DeletedKeyNotFound,
    NameIsDeleted,
    TooManyVersions,
    TooManyKeys,
    EmptyWindow,
    NotForType,
    Disabled,
    NotPermitted,
    NotYetValid,
    Expired,
    WrongAlgorithm,
}

#[derive(Clone, Debug)]
struct ModelVersion {
    version: KeyVersion,
    is_ec: bool,
    operations: Vec<KeyOperation>,
    enabled: bool,
    not_before: Option<i64>,
    expires: Option<i64>,
    tags: BTreeMap<String, String>,
    created: i64,
    updated: i64,
    signature: Option<Vec<u8>>,
}

#[derive(Clone, Debug)]
struct ModelKey {
    /// As its first creator wrote it.
    name: String,
    versions: Vec<ModelVersion>,
    deleted_at: Option<i64>,
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<String, ModelKey>,
}

impl Model {
    fn live(&mut self, name: &str) -> Option<&mut ModelKey> {
        self.keys.get_mut(&name.to_lowercase()).filter(|key| key.deleted_at.is_none())
    }

    fn deleted(&mut self, name: &str) -> Option<&mut ModelKey> {
        self.keys.get_mut(&name.to_lowercase()).filter(|key| key.deleted_at.is_some())
    }

    fn version(&mut self, name: &str, version: Option<KeyVersion>) -> Result<&mut ModelVersion, Outcome> {
        let key = self.live(name).ok_or(Outcome::KeyNotFound)?;
        match version {
            None => Ok(key.versions.last_mut().unwrap()),
            Some(wanted) => {
                key.versions.iter_mut().find(|held| held.version == wanted).ok_or(Outcome::VersionNotFound)
            }
        }
    }
}

impl ModelVersion {
    fn usable(&self, operation: KeyOperation, now: i64) -> Result<(), Outcome> {
        if !self.enabled {
            return Err(Outcome::Disabled);
        }
        if !self.operations.contains(&operation) {
            return Err(Outcome::NotPermitted);
        }
        if [KeyOperation::Verify, KeyOperation::Decrypt, KeyOperation::UnwrapKey].contains(&operation) {
            return Ok(());
        }
        if self.not_before.is_some_and(|not_before| now < not_before) {
            return Err(Outcome::NotYetValid);
        }
        if self.expires.is_some_and(|expires| now >= expires) {
            return Err(Outcome::Expired);
        }
        Ok(())
    }

    fn shows(&self, view: &KeyView) {
        let held = &view.version;
        assert_eq!(held.version, self.version);
        assert_eq!(matches!(held.spec, KeySpec::Ec(_)), self.is_ec);
        assert_eq!(held.operations.iter().collect::<Vec<_>>(), self.operations);
        let attributes = &held.attributes;
        assert_eq!(attributes.enabled, self.enabled);
        assert_eq!(attributes.not_before.map(IntDate::unix_seconds), self.not_before);
        assert_eq!(attributes.expires.map(IntDate::unix_seconds), self.expires);
        assert_eq!(attributes.created.unix_seconds(), self.created);
        assert_eq!(attributes.updated.unix_seconds(), self.updated);
        let tags: BTreeMap<_, _> =
            held.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        assert_eq!(tags, self.tags);
    }
}

/// A pool on a disk in memory, and the model beside it.
struct Run {
    bench: Bench,
    disk: SimDisk,
    pool: Arc<Pool>,
    schedule: Schedule,
    model: Model,
    random: Random,
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut bench = Bench::new();
        bench.genesis = Genesis { retention: RetentionDays::new(7).unwrap(), ..genesis() };
        let (keys, versions_per_key) = LIMITS;
        bench.limits = PoolLimits { keys, versions_per_key, ..PoolLimits::default() };
        let disk = SimDisk::new();
        let pool = open(&bench, &disk).await;
        let schedule = Schedule::default();
        Self { bench, disk, pool, schedule, model: Model::default(), random: Random::new(seed) }
    }

    fn now(&self) -> i64 {
        self.pool.now().int_date().unix_seconds()
    }

    async fn step(&mut self) {
        let name = NAMES[self.random.below(NAMES.len() as u64) as usize];
        // As callers do: in any case.
        let name = if self.random.chance(2) { name.to_uppercase() } else { name.to_owned() };
        match self.random.below(100) {
            0..20 => self.create(&name).await,
            20..30 => self.read(&name).await,
            30..45 => self.update(&name).await,
            45..58 => self.sign(&name).await,
            58..66 => self.verify(&name).await,
            66..72 => self.encrypt(&name).await,
            72..79 => self.delete(&name).await,
            79..85 => self.recover(&name).await,
            85..90 => self.purge(&name).await,
            90..94 => self.pass_time().await,
            94..98 => self.look(&name).await,
            _ => self.compare().await,
        }
        if self.random.chance(400) {
            self.restart().await;
        }
    }

    async fn create(&mut self, name: &str) {
        let is_ec = self.random.chance(2);
        let spec = if is_ec { KeySpec::Ec(Curve::P256) } else { KeySpec::Oct(OctSize::Oct128) };
        let operations = self.operations(is_ec);
        let (not_before, expires) = (self.moment(), self.moment());
        let enabled = !self.random.chance(5);
        let tags = self.tags();
        let new = NewKey {
            operations: operations.as_ref().map(|operations| operations.iter().copied().collect()),
            enabled,
            not_before: not_before.map(IntDate::from_unix_seconds),
            expires: expires.map(IntDate::from_unix_seconds),
            tags: Tags::new(tags.clone()).unwrap(),
            ..new_key(name, spec)
        };
        let (keys, versions) = (self.model.keys.len(), self.model.keys.get(&name.to_lowercase()));
        let expected = match versions {
            _ if operations.as_ref().is_some_and(|ops| is_ec && ops.contains(&KeyOperation::Encrypt)) => {
                Outcome::NotForType
            }
            _ if is_empty(not_before, expires) => Outcome::EmptyWindow,
            Some(key) if key.deleted_at.is_some() => Outcome::NameIsDeleted,
            Some(key) if key.versions.len() >= LIMITS.1 => Outcome::TooManyVersions,
            Some(_) => Outcome::Done,
            None if keys >= LIMITS.0 => Outcome::TooManyKeys,
            None => Outcome::Done,
        };
        let made = self.pool.create_key(ticket(&self.pool, APP), new).await;
        let Some(view) = self.check(made, &expected) else { return };
        let now = self.now();
        let default = KeyOperations::default_for(spec).iter().collect();
        let version = ModelVersion {
            version: view.version.version,
            is_ec,
            operations: operations.map(sorted).unwrap_or(default),
            enabled,
            not_before,
            expires,
            tags,
            created: now,
            updated: now,
            signature: None,
        };
        version.shows(&view);
        let fresh = || ModelKey { name: name.to_owned(), versions: vec![], deleted_at: None };
        self.model.keys.entry(name.to_lowercase()).or_insert_with(fresh).versions.push(version);
    }

    async fn read(&mut self, name: &str) {
        let key = self.reference(name);
        let expected = self.model.version(name, key.version).map(|version| version.clone());
        let read = self.pool.read_key(ticket(&self.pool, APP), key).await;
        match expected {
            Ok(version) => version.shows(&self.check(read, &Outcome::Done).unwrap()),
            Err(outcome) => assert!(self.check(read, &outcome).is_none()),
        }
    }

    async fn update(&mut self, name: &str) {
        let key = self.reference(name);
        let is_ec = self.model.version(name, key.version).map_or(true, |version| version.is_ec);
        let operations = self.operations(is_ec);
        let (not_before, expires) = (self.moment(), self.moment());
        let enabled = self.random.chance(2).then(|| !self.random.chance(3));
        let tags = self.random.chance(3).then(|| self.tags());
        let change = VersionChange {
            operations: operations.as_ref().map(|operations| operations.iter().copied().collect()),
            enabled,
            not_before: not_before.map(IntDate::from_unix_seconds),
            expires: expires.map(IntDate::from_unix_seconds),
            tags: tags.clone().map(|tags| Tags::new(tags).unwrap()),
            ..VersionChange::default()
        };
        let now = self.now();
        let changed = self.model.version(name, key.version).and_then(|held| {
            let mut version = held.clone();
            version.not_before = not_before.or(held.not_before);
            version.expires = expires.or(held.expires);
            if is_empty(version.not_before, version.expires) {
                return Err(Outcome::EmptyWindow);
            }
            if let Some(operations) = operations {
                if is_ec && operations.contains(&KeyOperation::Encrypt) {
                    return Err(Outcome::NotForType);
                }
                version.operations = sorted(operations);
            }
            version.enabled = enabled.unwrap_or(held.enabled);
            version.tags = tags.unwrap_or_else(|| held.tags.clone());
            version.updated = now;
            Ok(version)
        });
        let updated = self.pool.update_key(ticket(&self.pool, APP), key.clone(), change).await;
        match changed {
            Ok(version) => {
                version.shows(&self.check(updated, &Outcome::Done).unwrap());
                *self.model.version(name, key.version).unwrap() = version;
            }
            Err(outcome) => assert!(self.check(updated, &outcome).is_none()),
        }
    }

    async fn sign(&mut self, name: &str) {
        let key = self.reference(name);
        let now = self.now();
        let expected = self.model.version(name, key.version).and_then(|version| {
            version.usable(KeyOperation::Sign, now)?;
            if version.is_ec { Ok(()) } else { Err(Outcome::WrongAlgorithm) }
        });
        let es256 = SignatureAlgorithm::Es256;
        let signed = self.pool.sign(ticket(&self.pool, APP), key.clone(), es256, DIGEST.to_vec()).await;
        let expected = expected.err().unwrap_or(Outcome::Done);
        if let Some(signed) = self.check(signed, &expected) {
            self.model.version(name, key.version).unwrap().signature = Some(signed.result);
        }
    }

    /// What a version signed it verifies, however much happened since.
    async fn verify(&mut self, name: &str) {
        let key = self.reference(name);
        let now = self.now();
        let wrong = self.random.chance(3);
        let held = self.model.version(name, key.version).map(|version| version.clone());
        let (mut signature, expected) = match held {
            Err(outcome) => (None, outcome),
            Ok(version) => match version.usable(KeyOperation::Verify, now) {
                Err(outcome) => (None, outcome),
                Ok(()) if !version.is_ec => (None, Outcome::WrongAlgorithm),
                Ok(()) => {
                    let good = version.signature.is_some() && !wrong;
                    (version.signature, Outcome::Verified(good))
                }
            },
        };
        let signature = signature.get_or_insert_with(|| vec![1; 64]);
        if wrong {
            signature[40] ^= 1;
        }
        let es256 = SignatureAlgorithm::Es256;
        let digest = DIGEST.to_vec();
        let verified = self.pool.verify(ticket(&self.pool, APP), key, es256, digest, signature.clone()).await;
        let (result, _) = verified.into_parts();
        let outcome = result.map_or_else(outcome, |used| Outcome::Verified(used.result));
        assert_eq!(outcome, expected);
    }

    async fn encrypt(&mut self, name: &str) {
        let key = self.reference(name);
        let now = self.now();
        let expected = self.model.version(name, key.version).and_then(|version| {
            version.usable(KeyOperation::Encrypt, now)?;
            if version.is_ec { Err(Outcome::WrongAlgorithm) } else { Ok(()) }
        });
        let gcm = EncryptionAlgorithm::AesGcm(OctSize::Oct128);
        let plaintext = Arc::new(SecretBytes::new(vec![5; 20]));
        let input = EncryptInput { plaintext, iv: None, additional_data: None };
        let sealed = self.pool.encrypt(ticket(&self.pool, APP), key, gcm, input).await;
        self.check(sealed, &expected.err().unwrap_or(Outcome::Done));
    }

    async fn delete(&mut self, name: &str) {
        let now = self.now();
        let expected = match self.model.live(name) {
            Some(key) => {
                key.deleted_at = Some(now);
                Outcome::Done
            }
            None => Outcome::KeyNotFound,
        };
        let deleted = self.pool.delete_key(ticket(&self.pool, APP), name.parse().unwrap()).await;
        if let Some(view) = self.check(deleted, &expected) {
            assert_eq!(view.purge_at.unix_seconds(), now + RETENTION_SECONDS);
        }
    }

    async fn recover(&mut self, name: &str) {
        let expected = match self.model.deleted(name) {
            Some(key) => {
                key.deleted_at = None;
                Outcome::Done
            }
            None => Outcome::DeletedKeyNotFound,
        };
        let recovered = self.pool.recover_key(ticket(&self.pool, OFFICER), name.parse().unwrap()).await;
        self.check(recovered, &expected);
    }

    async fn purge(&mut self, name: &str) {
        let expected = match self.model.deleted(name) {
            Some(_) => {
                self.model.keys.remove(&name.to_lowercase());
                Outcome::Done
            }
            None => Outcome::DeletedKeyNotFound,
        };
        let purged = self.pool.purge_key(ticket(&self.pool, OFFICER), name.parse().unwrap()).await;
        self.check(purged, &expected);
    }

    async fn look(&mut self, name: &str) {
        let expected = self.model.deleted(name).map(|key| key.clone());
        let read = self.pool.read_deleted_key(ticket(&self.pool, OFFICER), name.parse().unwrap()).await;
        match expected {
            Some(key) => {
                let view = self.check(read, &Outcome::Done).unwrap();
                key.versions.last().unwrap().shows(&view.key);
                assert_eq!(Some(view.deleted_at.unix_seconds()), key.deleted_at);
            }
            None => assert!(self.check(read, &Outcome::DeletedKeyNotFound).is_none()),
        }
    }

    /// Seconds to days; then the pool does what is due.
    async fn pass_time(&mut self) {
        let seconds = match self.random.below(3) {
            0 => self.random.below(10),
            1 => self.random.below(3_600),
            _ => self.random.below(3 * 86_400),
        };
        self.bench.clock.pass(seconds as i64 * 1000);
        let now = self.now();
        let before = self.model.keys.len();
        let due = |key: &ModelKey| key.deleted_at.is_some_and(|at| at + RETENTION_SECONDS <= now);
        self.model.keys.retain(|_, key| !due(key));
        let purged = before - self.model.keys.len();
        assert_eq!(self.schedule.tick(&self.pool).await.unwrap(), Tick::Done { purged, rotated: 0 });
    }

    /// Power fails: what was not synced is gone, what was answered is not.
    async fn restart(&mut self) {
        let loss = match self.random.below(3) {
            0 => Loss::All,
            1 => Loss::Nothing,
            _ => Loss::Seed(self.random.number()),
        };
        let disk = self.disk.after_power_loss(loss);
        self.pool.clone().close().await;
        self.disk = disk;
        self.pool = open(&self.bench, &self.disk).await;
        self.schedule = Schedule::default();
        self.compare().await;
    }

    /// Everything that lists and readers show is what the model has.
    async fn compare(&mut self) {
        let limit = 1 + self.random.below(3) as usize;
        let live = self.pages(limit, |pool, page| {
            Box::pin(async move { ok(pool.list_keys(ticket(&pool, APP), page).await) })
        });
        let live: Vec<KeyView> = live.await;
        let deleted = self.pages(limit, |pool, page| {
            Box::pin(async move { ok(pool.list_deleted_keys(ticket(&pool, OFFICER), page).await) })
        });
        let deleted: Vec<service::DeletedKeyView> = deleted.await;
        let model = |is_deleted: bool| {
            self.model.keys.values().filter(move |key| key.deleted_at.is_some() == is_deleted)
        };
        assert_eq!(live.len(), model(false).count());
        assert_eq!(deleted.len(), model(true).count());
        for (view, key) in live.iter().zip(model(false)) {
            assert_eq!(view.version.name.as_str(), key.name);
            key.versions.last().unwrap().shows(view);
            let name: KeyName = key.name.parse().unwrap();
            let page = PageRequest { limit: 25, after: None };
            let versions = ok(self.pool.list_versions(ticket(&self.pool, APP), name, page).await);
            assert_eq!(versions.items.len(), key.versions.len());
            versions.items.iter().zip(&key.versions).for_each(|(view, version)| version.shows(view));
        }
        for (view, key) in deleted.iter().zip(model(true)) {
            assert_eq!(view.key.version.name.as_str(), key.name);
            key.versions.last().unwrap().shows(&view.key);
        }
    }

    async fn pages<T>(
        &self,
        limit: usize,
        list: impl Fn(
            Arc<Pool>,
            PageRequest<KeyName>,
        ) -> std::pin::Pin<Box<dyn Future<Output = Page<T, KeyName>> + Send>>,
    ) -> Vec<T> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = list(self.pool.clone(), PageRequest { limit, after }).await;
            assert!(page.items.len() <= limit);
            all.extend(page.items);
            match page.next {
                Some(place) => after = Some(place),
                None => return all,
            }
        }
    }

    /// The current version, one of the key's versions, or one that it does not have.
    fn reference(&mut self, name: &str) -> KeyReference {
        let held = self.model.keys.get(&name.to_lowercase());
        let versions: Vec<_> = held.iter().flat_map(|key| &key.versions).map(|held| held.version).collect();
        let version = match self.random.below(10) {
            0 => Some(KeyVersion([9; 16])),
            1..5 if !versions.is_empty() => Some(versions[self.random.below(versions.len() as u64) as usize]),
            _ => None,
        };
        KeyReference { name: name.parse().unwrap(), version }
    }

    fn moment(&mut self) -> Option<i64> {
        let now = self.now();
        self.random.chance(6).then(|| now - 1_000 + self.random.below(100_000) as i64)
    }

    fn operations(&mut self, is_ec: bool) -> Option<Vec<KeyOperation>> {
        match self.random.below(12) {
            0 => Some(vec![KeyOperation::Sign]),
            1 => Some(vec![KeyOperation::Verify]),
            2 => Some(vec![KeyOperation::Encrypt, KeyOperation::Sign]),
            3 if !is_ec => Some(vec![]),
            4 => Some(vec![KeyOperation::Sign, KeyOperation::Verify]),
            _ => None,
        }
    }

    fn tags(&mut self) -> BTreeMap<String, String> {
        let count = self.random.below(3);
        (0..count).map(|number| (format!("t{number}"), self.random.below(1_000).to_string())).collect()
    }

    /// The value where success was foreseen; else the refusal must be the one that was.
    fn check<T>(&self, recorded: Recorded<T>, expected: &Outcome) -> Option<T> {
        let (result, receipt) = recorded.into_parts();
        assert!(receipt.is_some(), "an answer without a receipt");
        match result {
            Ok(value) => {
                assert_eq!(*expected, Outcome::Done, "it was done");
                Some(value)
            }
            Err(error) => {
                assert_eq!(outcome(error), *expected);
                None
            }
        }
    }
}

fn outcome(error: Error) -> Outcome {
    match error {
        Error::KeyNotFound { .. } => Outcome::KeyNotFound,
        Error::VersionNotFound { .. } => Outcome::VersionNotFound,
        Error::DeletedKeyNotFound { .. } => Outcome::DeletedKeyNotFound,
        Error::Key(KeyRefused::Deleted) => Outcome::NameIsDeleted,
        Error::Key(KeyRefused::TooManyVersions { .. }) => Outcome::TooManyVersions,
        Error::LimitReached { .. } => Outcome::TooManyKeys,
        Error::Window(_) => Outcome::EmptyWindow,
        Error::KeyOperations(_) => Outcome::NotForType,
        Error::UseRefused(UseRefused::Disabled { .. }) => Outcome::Disabled,
        Error::UseRefused(UseRefused::NotPermitted { .. }) => Outcome::NotPermitted,
        Error::UseRefused(UseRefused::NotYetValid { .. }) => Outcome::NotYetValid,
        Error::UseRefused(UseRefused::Expired { .. }) => Outcome::Expired,
        Error::Partition(service::PartitionError::AlgorithmMismatch { .. }) => Outcome::WrongAlgorithm,
        other => panic!("nothing that the model foresees: {other}"),
    }
}

fn is_empty(not_before: Option<i64>, expires: Option<i64>) -> bool {
    matches!((not_before, expires), (Some(not_before), Some(expires)) if expires <= not_before)
}

fn sorted(mut operations: Vec<KeyOperation>) -> Vec<KeyOperation> {
    operations.sort();
    operations
}

async fn open(bench: &Bench, disk: &SimDisk) -> Arc<Pool> {
    let directory = Arc::new(disk.clone());
    let options = EngineOptions { reserve_bytes: 0, ..EngineOptions::default() };
    let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open_in(directory.clone(), options).unwrap());
    let options = LogOptions { reserve_bytes: 0, ..LogOptions::default() };
    let log: Arc<dyn Log> = Arc::new(FileLog::open_in(directory, options).unwrap());
    bench.open_on(engine, log).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_live_as_the_model_says() {
    let soak = std::env::var_os("HOLDFAST_SOAK").is_some();
    let chosen = std::env::var("HOLDFAST_MODEL_SEED").ok().map(|seed| seed.parse().unwrap());
    let mut fresh = [0; 8];
    crypto::digest::random(&mut fresh);
    let seed = chosen.unwrap_or(u64::from_be_bytes(fresh));
    let runs = if soak { SOAK_RUNS } else { 1 };
    for run in 0..runs {
        let seed = seed.wrapping_add(run);
        println!("HOLDFAST_MODEL_SEED={seed}");
        let mut run = Run::new(seed).await;
        for step in 0..STEPS {
            if step % 1_000 == 0 {
                println!("step {step}");
            }
            run.step().await;
        }
        run.restart().await;
    }
}
