//! A pool's secrets, and a log in memory that loses power.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_trait::async_trait;
use audit::event::Event;
use audit::verify::{Report, Witness, verify};
use audit::{AuditConfig, AuditLog, CheckpointMark, Leaf, OpenError, Recovered};
use crypto::SecretBytes;
use crypto::audit_key::{AuditSealer, EventSeed};
use crypto::certificate::{InstanceClaims, InstanceKey, Purpose};
use crypto::domain_secrets::DomainSecrets;
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::{IntDate, Time};
use host::{Log, LogError, SegmentId, SegmentInfo};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

pub const POOL: Guid = Guid([1; 16]);
pub const GENESIS_HASH: [u8; 32] = [2; 32];
pub const NODE: Guid = Guid([3; 16]);
pub const SECTOR: usize = 512;
const ZEROS_AHEAD: usize = 8 * SECTOR;

/// Segments in memory, zero-filled ahead as a host must.
#[derive(Clone, Default)]
pub struct MemoryLog(Arc<Mutex<Memory>>);

#[derive(Clone, Default)]
pub struct Memory {
    /// Bytes, and where the next append goes.
    pub segments: Vec<(Vec<u8>, usize)>,
    pub fail: Option<fn() -> LogError>,
    /// Power fails in append number `.0`, of which the sectors whose bit is set in `.1` are written.
    pub power_loss: Option<(usize, u64)>,
    pub appends: usize,
}

impl MemoryLog {
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap()
    }

    pub fn of(segments: Vec<(Vec<u8>, usize)>) -> Self {
        Self(Arc::new(Mutex::new(Memory { segments, ..Memory::default() })))
    }

    /// What a restart finds.
    pub fn restarted(&self) -> Self {
        Self::of(self.memory().segments.clone())
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        let memory = self.memory();
        let info = |(id, (bytes, _)): (usize, &(Vec<u8>, usize))| SegmentInfo {
            id: SegmentId(id as u32),
            bytes: bytes.len() as u64,
        };
        Ok(memory.segments.iter().enumerate().map(info).collect())
    }

    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
        let memory = self.memory();
        let (bytes, _) = memory.segments.get(segment.0 as usize).ok_or(LogError::NoSuchSegment(segment))?;
        let start = (offset as usize).min(bytes.len());
        Ok(bytes[start..(start + max).min(bytes.len())].to_vec())
    }

    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError> {
        let mut memory = self.memory();
        assert_eq!(segment.0 as usize + 1, memory.segments.len());
        let (bytes, position) = &mut memory.segments[segment.0 as usize];
        *position = end as usize;
        bytes[end as usize..].fill(0);
        Ok(())
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        let mut memory = self.memory();
        if let Some(fail) = memory.fail {
            return Err(fail());
        }
        memory.segments.push((vec![0; ZEROS_AHEAD], 0));
        Ok(SegmentId(memory.segments.len() as u32 - 1))
    }

    async fn append(&self, appended: Vec<u8>) -> Result<(), LogError> {
        let mut memory = self.memory();
        if let Some(fail) = memory.fail {
            return Err(fail());
        }
        let lost = memory.power_loss.filter(|(at, _)| *at == memory.appends);
        memory.appends += 1;
        let (bytes, position) = memory.segments.last_mut().unwrap();
        assert_eq!((*position % SECTOR, appended.len() % SECTOR), (0, 0), "appends fill sectors");
        let end = *position + appended.len();
        bytes.resize(bytes.len().max(end + ZEROS_AHEAD), 0);
        for (number, sector) in appended.chunks(SECTOR).enumerate() {
            let written = lost.is_none_or(|(_, sectors)| sectors.rotate_right(number as u32) & 1 == 1);
            if written {
                bytes[*position + number * SECTOR..][..SECTOR].copy_from_slice(sector);
            }
        }
        *position = end;
        if lost.is_some() {
            memory.fail = Some(|| LogError::Unavailable("power was lost".into()));
            return Err(LogError::Unavailable("power was lost".into()));
        }
        Ok(())
    }
}

pub struct Pool {
    pub secrets: DomainSecrets,
    pub segment_bytes: u64,
    pub longest_wait: Duration,
    pub now: Arc<Mutex<Time>>,
}

impl Pool {
    pub fn new() -> Self {
        Self::with_segments_of(16 << 20)
    }

    pub fn with_segments_of(segment_bytes: u64) -> Self {
        let now = Arc::new(Mutex::new(Time::from_unix_milliseconds(5_000_000)));
        let longest_wait = Duration::from_secs(3600);
        Self { secrets: DomainSecrets::generate(), segment_bytes, longest_wait, now }
    }

    pub async fn open(
        &self,
        log: &MemoryLog,
        expected: Option<CheckpointMark>,
    ) -> Result<Recovered, OpenError> {
        self.open_log(Arc::new(log.clone()), expected, |_| {}).await
    }

    /// `change` is made to what the certificate says and to the configuration alike, as far as both have it.
    pub async fn open_log(
        &self,
        log: Arc<dyn Log>,
        expected: Option<CheckpointMark>,
        change: impl FnOnce(&mut InstanceClaims),
    ) -> Result<Recovered, OpenError> {
        let mut incarnation = [0; 16];
        crypto::digest::random(&mut incarnation);
        let key = InstanceKey::generate();
        let mut claims = InstanceClaims {
            pool: POOL,
            node: NODE,
            incarnation: Guid(incarnation),
            purpose: Purpose::AuditCheckpoint,
            class: PoolClass::Test,
            genesis_hash: GENESIS_HASH,
            not_before: IntDate::from_unix_seconds(0),
            not_after: IntDate::from_unix_seconds(10_000),
        };
        change(&mut claims);
        let owner = self.secrets.owner_key();
        let certificate = owner.certify(&claims, &key);
        let InstanceClaims { pool, node, incarnation, genesis_hash, .. } = claims;
        let mut config = AuditConfig::new(pool, genesis_hash, node, incarnation, owner.public_key());
        config.segment_bytes = self.segment_bytes;
        config.longest_wait = self.longest_wait;
        let now = self.now.clone();
        let clock = Arc::new(move || *now.lock().unwrap());
        AuditLog::open(log, config, key, |_, _| certificate, expected, clock).await
    }

    pub async fn report(&self, log: &dyn Log, witnesses: &[Witness]) -> Report {
        verify(log, &self.secrets.owner_key().public_key(), Some(GENESIS_HASH), witnesses).await.unwrap()
    }

    pub async fn failures(&self, log: &dyn Log) -> Vec<String> {
        self.report(log, &[]).await.failures.iter().map(ToString::to_string).collect()
    }
}

pub fn sealer() -> AuditSealer {
    AuditSealer::from_exported(&SecretBytes::new(vec![9; 32]), POOL, 1).unwrap()
}

pub fn leaf(number: u16) -> Leaf {
    let mut seed = EventSeed::fresh();
    seed.id = [7; 16];
    seed.id[..2].copy_from_slice(&number.to_le_bytes());
    let event = Event { operation: "KeySign".into(), detail: format!("event {number}"), ..Event::default() };
    Leaf::seal(seed, &event, &sealer())
}

pub fn number(leaf: &Leaf) -> u16 {
    let [low, high, ..] = leaf.event_id();
    u16::from_le_bytes([low, high])
}

pub async fn append(log: &AuditLog, numbers: std::ops::Range<u16>) {
    for number in numbers {
        log.append(leaf(number)).await.unwrap();
    }
}

/// All of the log, read in small pages.
pub async fn numbers(log: &AuditLog) -> Vec<u16> {
    let mut found = Vec::new();
    loop {
        let page = log.read(found.len() as u64, 7).await.unwrap();
        if page.is_empty() {
            return found;
        }
        for (index, leaf) in page {
            assert_eq!(index, found.len() as u64);
            found.push(number(&leaf));
        }
    }
}
