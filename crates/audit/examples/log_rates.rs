//! What recording costs: time per event on one core, by the number of events in a group, with a disk that takes no time.
//!
//! `cargo run --release -p audit --example log_rates`

use async_trait::async_trait;
use audit::event::Event;
use audit::{AuditConfig, AuditLog, Leaf};
use crypto::SecretBytes;
use crypto::audit_key::{AuditSealer, EventSeed};
use crypto::certificate::{InstanceClaims, InstanceKey, Purpose};
use crypto::domain_secrets::DomainSecrets;
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::{IntDate, Time};
use host::{Log, LogError, SegmentId, SegmentInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const EVENTS: usize = 200_000;

/// Takes everything and keeps nothing.
#[derive(Default)]
struct NoDisk(AtomicU32);

#[async_trait]
impl Log for NoDisk {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        Ok(Vec::new())
    }

    async fn read(&self, segment: SegmentId, _: u64, _: usize) -> Result<Vec<u8>, LogError> {
        Err(LogError::NoSuchSegment(segment))
    }

    async fn resume(&self, _: SegmentId, _: u64) -> Result<(), LogError> {
        Ok(())
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        Ok(SegmentId(self.0.fetch_add(1, Ordering::Relaxed)))
    }

    async fn append(&self, _: Vec<u8>) -> Result<(), LogError> {
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sealer = AuditSealer::from_exported(&SecretBytes::new(vec![9; 32]), Guid([1; 16]), 1)
        .expect("an audit key is 32 bytes");
    let event = Event {
        operation: "KeySign".into(),
        api_version: "7.5".into(),
        client_address: "192.0.2.7".into(),
        user_agent: "azsdk-python-keyvault-keys/4.9.0 Python/3.12".into(),
        correlation_id: "cccccccc-0000-4000-8000-000000000003".into(),
        request_uri: "https://payroll.managedhsm.example:8443/keys/k1/0123456789abcdef0123456789abcdef/sign?api-version=7.5".into(),
        key_name: Some("k1".into()),
        key_version: Some("0123456789abcdef0123456789abcdef".into()),
        algorithm: Some("ES256".into()),
        data_action: Some("Microsoft.KeyVault/managedHsm/keys/sign/action".into()),
        scope: Some("/keys/k1".into()),
        pool: "payroll".into(),
        ..Event::default()
    };
    let (elapsed, leaf) = sealing(&event, &sealer);
    println!("seal an event: {:.2} us, {} bytes", micros(elapsed, EVENTS), leaf.as_bytes().len());
    for group in [1, 8, 32, 256, 1024] {
        let log = open().await;
        let events = EVENTS / if group == 1 { 10 } else { 1 } / group * group;
        let leaves = vec![leaf.clone(); events];
        let mut pending = Vec::with_capacity(group);
        let start = Instant::now();
        let mut leaves = leaves.into_iter();
        while leaves.len() > 0 {
            pending.extend(
                leaves.by_ref().take(group).map(|leaf| log.enqueue(leaf).expect("the queue has room")),
            );
            for waiting in pending.drain(..) {
                waiting.await.expect("the disk takes everything");
            }
        }
        println!("append in groups of {group:4}: {:6.2} us an event", micros(start.elapsed(), events));
    }
}

fn sealing(event: &Event, sealer: &AuditSealer) -> (Duration, Leaf) {
    let start = Instant::now();
    let mut leaf = Leaf::seal(EventSeed::fresh(), event, sealer);
    for _ in 1..EVENTS {
        leaf = Leaf::seal(EventSeed::fresh(), std::hint::black_box(event), sealer);
    }
    (start.elapsed(), leaf)
}

async fn open() -> AuditLog {
    let secrets = DomainSecrets::generate();
    let (owner, key) = (secrets.owner_key(), InstanceKey::generate());
    let claims = InstanceClaims {
        pool: Guid([1; 16]),
        node: Guid([3; 16]),
        incarnation: Guid([4; 16]),
        purpose: Purpose::AuditCheckpoint,
        class: PoolClass::Test,
        genesis_hash: [2; 32],
        not_before: IntDate::from_unix_seconds(0),
        not_after: IntDate::from_unix_seconds(10_000),
    };
    let certificate = owner.certify(&claims, &key);
    let config = AuditConfig::new(
        claims.pool,
        claims.genesis_hash,
        claims.node,
        claims.incarnation,
        owner.public_key(),
    );
    let clock = Arc::new(|| Time::from_unix_milliseconds(5_000_000));
    let opened =
        AuditLog::open(Arc::new(NoDisk::default()), config, key, |_, _| certificate, None, clock).await;
    opened.expect("a new log opens").log
}

fn micros(elapsed: Duration, events: usize) -> f64 {
    elapsed.as_secs_f64() * 1e6 / events as f64
}
