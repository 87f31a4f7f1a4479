//! The log's promises: what was acknowledged is there, in order, once; what was changed is found.

use async_trait::async_trait;
use audit::event::Event;
use audit::verify::{SegmentSource, verify};
use audit::{AuditConfig, AuditError, AuditLog, CheckpointMark, Leaf, OpenError, Recovered};
use crypto::certificate::{InstanceClaims, InstanceKey, Purpose};
use crypto::domain_secrets::DomainSecrets;
use crypto::{SecretBytes, audit_key::AuditSealer};
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::{IntDate, Time};
use host::{Log, LogError, SegmentId, SegmentInfo};
use std::io;
use std::sync::{Arc, Mutex};

const POOL: Guid = Guid([1; 16]);
const GENESIS_HASH: [u8; 32] = [2; 32];
const ZEROS_AHEAD: usize = 8192;

/// Segments in memory, zero-filled ahead as a host must.
#[derive(Clone, Default)]
struct MemoryLog(Arc<Mutex<Memory>>);

#[derive(Clone, Default)]
struct Memory {
    segments: Vec<(Vec<u8>, usize)>,
    fail: Option<fn() -> LogError>,
    appends: usize,
}

#[async_trait]
impl Log for MemoryLog {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        let memory = self.0.lock().unwrap();
        let info = |(id, (bytes, _)): (usize, &(Vec<u8>, usize))| SegmentInfo {
            id: SegmentId(id as u32),
            bytes: bytes.len() as u64,
        };
        Ok(memory.segments.iter().enumerate().map(info).collect())
    }

    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
        let memory = self.0.lock().unwrap();
        let (bytes, _) = memory.segments.get(segment.0 as usize).ok_or(LogError::NoSuchSegment(segment))?;
        Ok(bytes.iter().skip(offset as usize).take(max).copied().collect())
    }

    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError> {
        let mut memory = self.0.lock().unwrap();
        let (bytes, position) = &mut memory.segments[segment.0 as usize];
        *position = end as usize;
        bytes[end as usize..].fill(0);
        Ok(())
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        let mut memory = self.0.lock().unwrap();
        memory.segments.push((vec![0; ZEROS_AHEAD], 0));
        Ok(SegmentId(memory.segments.len() as u32 - 1))
    }

    async fn append(&self, appended: Vec<u8>) -> Result<(), LogError> {
        let mut memory = self.0.lock().unwrap();
        if let Some(fail) = memory.fail {
            return Err(fail());
        }
        memory.appends += 1;
        let (bytes, position) = memory.segments.last_mut().unwrap();
        let end = *position + appended.len();
        bytes.resize(bytes.len().max(end + ZEROS_AHEAD), 0);
        bytes[*position..end].copy_from_slice(&appended);
        *position = end;
        Ok(())
    }
}

impl SegmentSource for MemoryLog {
    fn count(&self) -> usize {
        self.0.lock().unwrap().segments.len()
    }

    fn read(&self, number: usize) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().unwrap().segments[number].0.clone())
    }
}

struct Pool {
    secrets: DomainSecrets,
    segment_bytes: u64,
}

impl Pool {
    fn new() -> Self {
        Self { secrets: DomainSecrets::generate(), segment_bytes: 16 << 20 }
    }

    async fn open(&self, log: &MemoryLog, expected: Option<CheckpointMark>) -> Result<Recovered, OpenError> {
        self.open_with(log, expected, Purpose::AuditCheckpoint, GENESIS_HASH).await
    }

    async fn open_with(
        &self,
        log: &MemoryLog,
        expected: Option<CheckpointMark>,
        purpose: Purpose,
        genesis_hash: [u8; 32],
    ) -> Result<Recovered, OpenError> {
        let mut incarnation = [0; 16];
        crypto::digest::random(&mut incarnation);
        let (node, incarnation, key) = (Guid([3; 16]), Guid(incarnation), InstanceKey::generate());
        let claims = InstanceClaims {
            pool: POOL,
            node,
            incarnation,
            purpose,
            class: PoolClass::Test,
            genesis_hash,
            not_before: IntDate::from_unix_seconds(0),
            not_after: IntDate::from_unix_seconds(10_000),
        };
        let owner = self.secrets.owner_key();
        let certificate = owner.certify(&claims, &key);
        let mut config = AuditConfig::new(POOL, genesis_hash, node, incarnation, owner.public_key());
        config.segment_bytes = self.segment_bytes;
        let clock = Arc::new(|| Time::from_unix_milliseconds(5_000_000));
        AuditLog::open(Arc::new(log.clone()), config, key, certificate, expected, clock).await
    }

    fn failures(&self, log: &MemoryLog) -> Vec<String> {
        let report = verify(log, &self.secrets.owner_key().public_key()).unwrap();
        report.failures.iter().map(ToString::to_string).collect()
    }
}

fn sealer() -> AuditSealer {
    AuditSealer::from_exported(&SecretBytes::new(vec![9; 32]), POOL, 1).unwrap()
}

fn leaf(number: u8) -> Leaf {
    Leaf::seal([number; 16], &Event { detail: format!("event {number}"), ..Event::default() }, &sealer())
}

async fn append(log: &AuditLog, numbers: std::ops::Range<u8>) {
    for number in numbers {
        log.append(leaf(number)).await.unwrap();
    }
}

async fn ids(log: &AuditLog) -> Vec<u8> {
    log.read(0, 10_000).await.unwrap().iter().map(|(_, leaf)| leaf.event_id()[0]).collect()
}

#[tokio::test]
async fn events_are_kept_in_order_over_restarts_and_segments() {
    let pool = Pool { segment_bytes: 3_000, ..Pool::new() };
    let log = MemoryLog::default();
    let mut mark = CheckpointMark::default();
    for start in [0, 10, 20] {
        let opened = pool.open(&log, Some(mark)).await.unwrap();
        assert_eq!(opened.size, u64::from(start));
        append(&opened.log, start..start + 10).await;
        mark = opened.log.latest();
        assert_eq!(ids(&opened.log).await, (0..start + 10).collect::<Vec<_>>());
        let page = opened.log.read(3, 2).await.unwrap();
        assert_eq!(page.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [3, 4]);
        opened.log.close().await;
        assert!(matches!(opened.log.append(leaf(99)).await, Err(AuditError::Unavailable(_))));
    }
    assert!(log.count() > 3);
    let report = verify(&log, &pool.secrets.owner_key().public_key()).unwrap();
    assert_eq!((report.events, report.incarnations.len(), report.root), (30, 3, mark.root));
    assert_eq!(report.failures, []);
    let event = audit::open_event(
        &pool.open(&log, None).await.unwrap().log.read(7, 1).await.unwrap()[0].1,
        &sealer(),
    );
    assert_eq!(event.unwrap().detail, "event 7");
}

#[tokio::test]
async fn what_waits_while_a_group_is_written_shares_the_next_checkpoint() {
    let log = MemoryLog::default();
    let opened = Pool::new().open(&log, None).await.unwrap();
    let pending: Vec<_> = (0..100).map(|number| opened.log.enqueue(leaf(number)).unwrap()).collect();
    let mut indexes = Vec::new();
    for pending in pending {
        indexes.push(pending.await.unwrap().index);
    }
    assert_eq!(indexes, (0..100).collect::<Vec<_>>());
    assert_eq!(log.0.lock().unwrap().appends, 1);
}

#[tokio::test]
async fn a_leaf_is_written_although_nobody_waits_for_it() {
    let log = MemoryLog::default();
    let opened = Pool::new().open(&log, None).await.unwrap();
    drop(opened.log.enqueue(leaf(1)).unwrap());
    opened.log.close().await;
    assert_eq!(ids(&opened.log).await, [1]);
}

/// Every write is cut at every byte, as if power had failed there: what was acknowledged before stays.
#[tokio::test]
async fn a_write_cut_short_loses_nothing_acknowledged() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..3).await;
    let before = log.0.lock().unwrap().segments[0].clone();
    let mark = opened.log.latest();
    append(&opened.log, 3..4).await;
    let after = log.0.lock().unwrap().segments[0].clone();
    for sector_end in (before.1.next_multiple_of(512)..after.1).step_by(512) {
        let cut = MemoryLog::default();
        let mut bytes = after.0.clone();
        bytes[sector_end..].fill(0);
        cut.0.lock().unwrap().segments.push((bytes, 0));
        let recovered = pool.open(&cut, Some(mark)).await.unwrap();
        assert_eq!((recovered.size, recovered.root), (3, mark.root), "cut at {sector_end}");
        assert!(recovered.torn_bytes_dropped > 0);
        append(&recovered.log, 50..52).await;
        assert_eq!(ids(&recovered.log).await, [0, 1, 2, 50, 51]);
        assert_eq!(pool.failures(&cut), Vec::<String>::new());
    }
}

#[tokio::test]
async fn each_flipped_bit_is_found_by_verify_and_at_start() {
    let pool = Pool { segment_bytes: 1_500, ..Pool::new() };
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..4).await;
    let segments = log.0.lock().unwrap().segments.clone();
    assert!(segments.len() > 1);
    let mark = opened.log.latest();
    for (number, (_, written)) in segments.iter().enumerate() {
        for bit in 0..written * 8 {
            let damaged = MemoryLog::default();
            damaged.0.lock().unwrap().segments = segments.clone();
            damaged.0.lock().unwrap().segments[number].0[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(pool.failures(&damaged), Vec::<String>::new(), "segment {number}, bit {bit}");
            // Opening reads the last two segments; in the sample there are no others.
            if bit % 61 == 0 && number + 2 >= segments.len() {
                assert!(pool.open(&damaged, Some(mark)).await.is_err(), "segment {number}, bit {bit}");
            }
        }
    }
}

#[tokio::test]
async fn a_log_that_was_cut_or_forked_does_not_open() {
    let pool = Pool { segment_bytes: 2_000, ..Pool::new() };
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..2).await;
    let prefix = log.0.lock().unwrap().clone();
    append(&opened.log, 2..8).await;
    let mark = opened.log.latest();

    let cut = MemoryLog(Arc::new(Mutex::new(prefix.clone())));
    let refused = pool.open(&cut, Some(mark)).await.err();
    assert!(matches!(refused, Some(OpenError::DoesNotExtend { found: 2, expected: 8 })), "{refused:?}");

    let fork = MemoryLog(Arc::new(Mutex::new(prefix)));
    let opened = pool.open(&fork, None).await.unwrap();
    append(&opened.log, 100..130).await;
    let refused = pool.open(&fork, Some(mark)).await.err();
    assert!(matches!(refused, Some(OpenError::DoesNotExtend { .. })), "{refused:?}");

    // The honest log opens at any earlier mark, in whichever segment that is.
    let opened = pool.open(&log, Some(mark)).await.unwrap();
    assert_eq!(opened.size, 8);
}

#[tokio::test]
async fn another_pools_log_does_not_open() {
    let (pool, other) = (Pool::new(), Pool::new());
    let log = MemoryLog::default();
    append(&pool.open(&log, None).await.unwrap().log, 0..2).await;
    assert!(matches!(other.open(&log, None).await.err(), Some(OpenError::Damaged { .. })));
    let genesis = pool.open_with(&log, None, Purpose::AuditCheckpoint, [7; 32]).await.err();
    assert!(matches!(genesis, Some(OpenError::Foreign { .. })), "{genesis:?}");
}

#[tokio::test]
async fn a_certificate_for_another_purpose_signs_no_checkpoint() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    let opened = pool.open_with(&log, None, Purpose::Release, GENESIS_HASH).await.unwrap();
    append(&opened.log, 0..1).await;
    assert!(pool.failures(&log)[0].contains("another pool or purpose"));
}

#[tokio::test]
async fn a_full_disk_refuses_and_later_works_again_and_a_broken_one_closes_the_log() {
    let pool = Pool::new();
    let log = MemoryLog::default();
    let opened = pool.open(&log, None).await.unwrap();
    append(&opened.log, 0..1).await;
    log.0.lock().unwrap().fail = Some(|| LogError::DiskFull);
    assert!(matches!(opened.log.append(leaf(1)).await, Err(AuditError::DiskFull)));
    log.0.lock().unwrap().fail = None;
    append(&opened.log, 2..3).await;
    assert_eq!(ids(&opened.log).await, [0, 2]);
    log.0.lock().unwrap().fail = Some(|| LogError::Unavailable("sync failed".into()));
    assert!(matches!(opened.log.append(leaf(3)).await, Err(AuditError::Unavailable(_))));
    log.0.lock().unwrap().fail = None;
    assert!(matches!(opened.log.append(leaf(4)).await, Err(AuditError::Unavailable(_))));
    assert_eq!(pool.failures(&log), Vec::<String>::new());
}

#[tokio::test]
async fn events_in_the_outbox_are_found_in_the_log() {
    let opened = Pool::new().open(&MemoryLog::default(), None).await.unwrap();
    append(&opened.log, 0..5).await;
    let wanted = [[1; 16], [4; 16], [9; 16]].into_iter().collect();
    let found = opened.log.contains(&wanted, 2).await.unwrap();
    assert_eq!(found, [[4; 16]].into_iter().collect());
}
