//! One bit of one file of a pool is flipped, and the pool is opened: it refuses and says where, or the bit carried
//! nothing and all contents are as they were. A third does not exist: other contents.
//!
//! A sample of the bits here; with `HOLDFAST_SOAK` every bit of the small files and of the store's header page, and one
//! bit of each other byte. The seed is fixed.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test
mod common;

use audit::verify::verify;
use common::*;
use crypto::certificate::OwnerPublicKey;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::algorithm::{Curve, KeySpec, OctSize};
use domain::guid::Guid;
use host::{Engine, Entry, Log};
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use seal::{FILE_ROOT_BYTES, FileRoot, Root};
use service::{NewAssignment, Pool, PoolParts, SecretBytes, SystemRandom};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testkit::Random;

const NODE: Guid = Guid([3; 16]);
const STORE: &str = "store/store.redb";
const LOCK: &str = "store/lock";
/// redb's header: its two commit slots.
const STORE_HEADER_BYTES: usize = 4096;

#[derive(Debug)]
enum Outcome {
    Refused(String),
    Unaffected,
    /// Gone is the commit that took an event out of the outbox, which comes later than that event and changes nothing else.
    OutboxAgain,
}

/// How often each happened, by file.
#[derive(Default)]
struct Table(BTreeMap<String, [usize; 2]>);

impl Table {
    fn add(&mut self, file: &str, outcome: &Outcome) {
        let row = self.0.entry(file.to_owned()).or_default();
        row[usize::from(matches!(outcome, Outcome::Unaffected))] += 1;
    }

    fn print(&self) {
        for (file, [refused, unaffected]) in &self.0 {
            println!("{refused:7} refused  {unaffected:7} unaffected  {file}");
        }
    }
}

/// How a pool ended.
#[derive(Clone, Copy, Eq, PartialEq)]
enum End {
    Closed,
    Killed,
}

/// All but the outbox, and what counts commits.
fn meant(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(|entry| !matches!(entry.key.first(), Some(b'o' | b'p')))
}

/// A pool that was used and has ended, as files, and what it held.
struct Sample {
    end: End,
    bench: Bench,
    files: BTreeMap<String, Vec<u8>>,
    entries: Vec<Entry>,
    events: u64,
}

fn is_soak() -> bool {
    std::env::var_os("HOLDFAST_SOAK").is_some()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn engine_options() -> EngineOptions {
    EngineOptions { reserve_bytes: 0, ..EngineOptions::default() }
}

/// Little is filled ahead, so that most bytes of the log mean something.
fn log_options() -> LogOptions {
    LogOptions { ahead_bytes: 4096, step_bytes: 4096, reserve_bytes: 0, ..LogOptions::default() }
}

fn root() -> FileRoot {
    FileRoot::new(SecretBytes::new(vec![8; FILE_ROOT_BYTES])).unwrap()
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

async fn entries(engine: &dyn Engine) -> Result<Vec<Entry>, String> {
    let mut scan = engine.scan(b"").await.map_err(|error| chain(&error))?;
    let mut entries = Vec::new();
    loop {
        let page = scan.next_page(100).await.map_err(|error| chain(&error))?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

fn read_files(directory: &Path, prefix: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_files(&path, prefix, files);
        } else {
            let name = path.strip_prefix(prefix).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

impl Sample {
    async fn make(end: End) -> Self {
        let bench = Bench::new();
        let path = |name: &str| bench.path().join(name);
        let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open(path("store"), engine_options()).unwrap());
        let log: Arc<dyn Log> = Arc::new(FileLog::open(path("audit"), log_options()).unwrap());
        let pool = bench.open_on(engine, log).await;
        create(&pool, "ec", KeySpec::Ec(Curve::P256)).await;
        create(&pool, "oct", KeySpec::Oct(OctSize::Oct256)).await;
        ok(pool.delete_key(ticket(&pool, APP), "oct".parse().unwrap()).await);
        let new = NewAssignment {
            name: Guid([7; 16]),
            scope: Scope::Keys,
            role: BuiltInRole::CryptoUser.id(),
            principal: Guid([9; 16]),
        };
        ok(pool.create_assignment(ticket(&pool, ADMIN), new).await);
        // The last commit takes a right away: to lose it unnoticed would give that back.
        ok(pool.delete_assignment(ticket(&pool, ADMIN), Scope::Keys, Guid([7; 16])).await);
        let events = pool.audit_page(0, 1_000).await.unwrap().len() as u64;
        let mut killed = BTreeMap::new();
        read_files(bench.path(), bench.path(), &mut killed);
        pool.close().await;
        if end == End::Killed {
            let sample = Self { end, bench, files: killed, entries: vec![], events };
            sample.restore();
            let engine = RedbEngine::open(sample.path("store"), engine_options()).unwrap();
            let entries = entries(&engine).await.unwrap();
            drop(engine);
            sample.restore();
            return Self { entries, ..sample };
        }

        let secrets = SecretBytes::new(bench.secrets.clone());
        std::fs::write(path("domain.sealed"), root().seal(NODE, &secrets)).unwrap();
        std::fs::write(path("node"), NODE.to_string()).unwrap();
        let owner = DomainSecrets::import(&secrets).unwrap().owner_key().public_key();
        std::fs::write(path("owner.pem"), owner.to_pem()).unwrap();
        std::fs::write(path("root.key"), [8; FILE_ROOT_BYTES]).unwrap();
        let engine = RedbEngine::open(path("store"), engine_options()).unwrap();
        let entries = entries(&engine).await.unwrap();
        drop(engine);
        let mut files = BTreeMap::new();
        read_files(bench.path(), bench.path(), &mut files);
        Self { end, bench, files, entries, events }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.bench.path().join(file)
    }

    /// Every file as it was.
    fn restore(&self) {
        for directory in ["store", "audit"] {
            for entry in std::fs::read_dir(self.path(directory)).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.bench.path()).unwrap().to_str().unwrap();
                if !self.files.contains_key(name) {
                    std::fs::remove_file(path).unwrap();
                }
            }
        }
        for (file, content) in &self.files {
            if std::fs::read(self.path(file)).ok().as_ref() != Some(content) {
                std::fs::write(self.path(file), content).unwrap();
            }
        }
    }

    /// As a start would open it; its secrets are given.
    async fn open(&self) -> Result<Arc<Pool>, String> {
        let engine = RedbEngine::open(self.path("store"), engine_options())
            .map_err(|error| format!("{STORE}: {}", chain(&error)))?;
        let log = FileLog::open(self.path("audit"), log_options()).map_err(|error| chain(&error))?;
        let secrets = DomainSecrets::import(&SecretBytes::new(self.bench.secrets.clone())).unwrap();
        let parts = PoolParts {
            engine: Arc::new(engine),
            log: Arc::new(log),
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            opened_with: "none".into(),
            node: NODE,
            clock: self.bench.clock.clone(),
            clock_is_right: false,
            random: Arc::new(SystemRandom),
            limits: self.bench.limits,
            resource_suffixes: vec![],
            installer: None,
            backup_targets: None,
        };
        Pool::open(parts).await.map_err(|error| chain(&error))
    }

    /// What comes of one flipped bit.
    async fn flip(&self, file: &str, bit: usize) -> Outcome {
        let mut damaged = self.files[file].clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(self.path(file), &damaged).unwrap();
        let outcome = match file {
            STORE | LOCK => self.store().await,
            "domain.sealed" | "node" | "root.key" => self.seal(),
            "owner.pem" => self.owner().await,
            segment if segment.starts_with("audit/") => self.log().await,
            unknown => panic!("{unknown} is a file of a pool, and nobody said what a flipped bit of it does"),
        };
        // Only to open the store writes to other files.
        if file.starts_with("store/") {
            self.restore();
        } else {
            std::fs::write(self.path(file), &self.files[file]).unwrap();
        }
        outcome
    }

    async fn store(&self) -> Outcome {
        let engine = match RedbEngine::open(self.path("store"), engine_options()) {
            Ok(engine) => engine,
            Err(error) => return Outcome::Refused(format!("{STORE}: {}", chain(&error))),
        };
        let read = entries(&engine).await;
        drop(engine);
        if read.as_ref() == Ok(&self.entries) {
            return Outcome::Unaffected;
        }
        // What the engine does not notice, the store above it must: as if a host had changed it.
        match self.open().await {
            Err(reason) => Outcome::Refused(reason),
            Ok(_)
                if self.end == End::Killed
                    && read.as_ref().is_ok_and(|read| meant(read).eq(meant(&self.entries))) =>
            {
                Outcome::OutboxAgain
            }
            Ok(_) => panic!("the pool opens with other contents"),
        }
    }

    fn seal(&self) -> Outcome {
        let opened = || {
            let key = std::fs::read(self.path("root.key")).unwrap();
            let root = FileRoot::new(SecretBytes::new(key)).map_err(|error| chain(&error))?;
            let text = String::from_utf8(std::fs::read(self.path("node")).unwrap());
            let node: Guid = text.map_err(|error| chain(&error))?.parse().map_err(|error| chain(&error))?;
            let sealed = std::fs::read(self.path("domain.sealed")).unwrap();
            root.open(node, &sealed).map_err(|error| chain(&error))
        };
        match opened() {
            Err(reason) => Outcome::Refused(reason),
            Ok(secrets) if secrets.danger_expose() == self.bench.secrets => Outcome::Unaffected,
            Ok(_) => panic!("other secrets"),
        }
    }

    async fn owner(&self) -> Outcome {
        let bytes = std::fs::read(self.path("owner.pem")).unwrap();
        let Ok(Ok(owner)) = String::from_utf8(bytes).map(|text| OwnerPublicKey::from_pem(&text)) else {
            return Outcome::Refused("not an owner's public key".into());
        };
        let secrets = DomainSecrets::import(&SecretBytes::new(self.bench.secrets.clone())).unwrap();
        if owner == secrets.owner_key().public_key() {
            return Outcome::Unaffected;
        }
        let log = FileLog::open_read_only(self.path("audit")).unwrap();
        let report = verify(&log, &owner, None, &[]).await.unwrap();
        let failure = report.failures.first().unwrap_or_else(|| panic!("verified under another owner's key"));
        Outcome::Refused(failure.to_string())
    }

    /// Found by whoever verifies; at a start as well, unless it is in a segment before the one that goes on.
    async fn log(&self) -> Outcome {
        let log = FileLog::open_read_only(self.path("audit")).unwrap();
        let owner = DomainSecrets::import(&SecretBytes::new(self.bench.secrets.clone())).unwrap();
        let owner = owner.owner_key().public_key();
        let report = verify(&log, &owner, None, &[]).await.unwrap();
        if let Some(failure) = report.failures.first() {
            return Outcome::Refused(failure.to_string());
        }
        assert_eq!(report.events, self.events, "events were lost");
        // Behind the last group: told as bytes of a write that was cut short.
        assert!(report.torn_bytes > 0, "a bit is flipped and nothing is said");
        Outcome::Unaffected
    }
}

/// Which bits of a file are flipped.
fn bits(file: &str, content: &[u8], random: &mut Random) -> Vec<usize> {
    let all = content.len() * 8;
    if content.is_empty() {
        return vec![];
    }
    let is_small = content.len() <= 2048;
    if is_small {
        // A key's PEM costs a verification of the log for each bit.
        let step = if is_soak() || file != "owner.pem" { 1 } else { 7 };
        return (0..all).step_by(step).collect();
    }
    let header = if file == STORE { STORE_HEADER_BYTES } else { 0 };
    if is_soak() {
        let rest = (header..content.len()).map(|byte| byte * 8 + random.below(8) as usize);
        return (0..header * 8).chain(rest.collect::<Vec<_>>()).collect();
    }
    // What redb says of itself is in the first bytes of its header.
    let mut bits: Vec<_> = (0..header.min(320) * 8).step_by(7).collect();
    // Half of the others where something is written.
    let written: Vec<_> = (0..content.len()).filter(|byte| content[*byte] != 0).collect();
    for _ in 0..150 {
        bits.push(random.below(all as u64) as usize);
        if !written.is_empty() {
            bits.push(written[random.below(written.len() as u64) as usize] * 8 + random.below(8) as usize);
        }
    }
    bits
}

#[test]
fn each_flipped_bit_is_refused_by_name_or_changes_nothing() {
    let runtime = runtime();
    let sample = runtime.block_on(Sample::make(End::Closed));
    let mut random = Random::new(0xb17);
    let mut table = Table::default();
    for (file, content) in &sample.files {
        for bit in bits(file, content, &mut random) {
            let outcome = runtime.block_on(sample.flip(file, bit));
            if let Outcome::Refused(reason) = &outcome {
                let names_its_place = match file.as_str() {
                    STORE => {
                        reason.starts_with(STORE) || reason.contains("record") || reason.contains("pool")
                    }
                    _ => !reason.is_empty(),
                };
                assert!(names_its_place, "{file}, bit {bit}: {reason}");
                if file.starts_with("audit/") {
                    assert!(reason.starts_with("segment "), "{file}, bit {bit}: {reason}");
                }
            }
            table.add(file, &outcome);
        }
    }
    for (file, content) in &sample.files {
        println!("{file}: {} bytes", content.len());
    }
    table.print();
    for file in ["domain.sealed", "root.key"] {
        assert_eq!(table.0[file][1], 0, "every bit of {file} counts");
    }
    // And at the end everything still opens: nothing above was refused for another reason.
    runtime.block_on(async { sample.open().await.map(drop) }).unwrap();
}

/// Its last commit counts only as long as all of it is whole: else the engine goes back to the one before, and knows nothing of
/// what was answered since.
#[test]
fn a_pool_that_was_killed_loses_no_commit_to_a_flipped_bit() {
    let runtime = runtime();
    let sample = runtime.block_on(Sample::make(End::Killed));
    let mut random = Random::new(0xdead);
    let content = &sample.files[STORE];
    // Which of the first two it is, the moment of the kill decides.
    let (mut refused, mut outbox, mut unaffected) = (0, 0, 0);
    for bit in bits(STORE, content, &mut random) {
        match runtime.block_on(sample.flip(STORE, bit)) {
            Outcome::Refused(reason) => refused += usize::from(reason.contains("older than the log")),
            Outcome::OutboxAgain => outbox += 1,
            Outcome::Unaffected => unaffected += 1,
        }
    }
    println!(
        "{refused} went back and were refused, {outbox} went back by the outbox alone, {unaffected} unaffected"
    );
    assert!(refused + outbox > 0 && unaffected > 0, "{refused} refused, {outbox}, {unaffected}");
}
