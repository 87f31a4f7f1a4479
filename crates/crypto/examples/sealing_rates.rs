//! Rates of what every request pays for: sealing and opening events and records, masked material. One thread.
//!
//! `cargo run --release -p crypto --example sealing_rates`. Quiet the machine first; figures go with the CPU's name.

use crypto::audit_key::{AuditSealer, EventSeed};
use crypto::domain_secrets::{DomainSecrets, PartitionWrappingKey};
use crypto::record::RecordPlace;
use crypto::{MaterialBinding, SecretBytes, masking};
use domain::algorithm::{KeySpec, RsaSize};
use domain::guid::Guid;
use domain::pool::PoolClass;
use std::hint::black_box;
use std::time::{Duration, Instant};

const MEASURE_FOR: Duration = Duration::from_millis(400);

fn main() {
    let pool = Guid([1; 16]);
    let sealer = AuditSealer::from_exported(&SecretBytes::new(vec![6; 32]), pool, 1).expect("32 bytes");
    let event = [0x65; 600];
    let seal = |seed| {
        let mut sealed = Vec::new();
        sealer.seal_into(seed, &event, &mut sealed);
        sealed
    };
    let seed = EventSeed::fresh();
    let (id, sealed) = (seed.id, seal(seed));
    rate("seal an event of 600 B", || seal(EventSeed::fresh()).len());
    rate("open an event of 600 B", || sealer.open(&id, &sealed).map_or(0, |event| event.len()));

    let (data_key, _) = DomainSecrets::generate().new_data_key(pool, PoolClass::Test, 1);
    let name_mac = [7; 32];
    let place = RecordPlace {
        pool,
        security_domain: Guid([2; 16]),
        class: PoolClass::Test,
        kind: b'v',
        name_mac: &name_mac,
        record_version: 1,
    };
    let record = SecretBytes::new(vec![0x72; 1_500]);
    let sealed = data_key.seal(&place, &record);
    rate("seal a record of 1,500 B", || data_key.seal(&place, &record).len());
    rate("open a record of 1,500 B", || data_key.open(&place, &sealed).map_or(0, |record| record.len()));

    let wrapping = PartitionWrappingKey::from_bytes([8; 32]);
    let (spec, binding) = (KeySpec::Rsa(RsaSize::Rsa2048), MaterialBinding(b"a version".to_vec()));
    let masked = masking::seal(&wrapping, spec, &binding, &[0x6d; 1_216]);
    rate("unmask 1,216 B", || {
        masking::open(&wrapping, spec, &binding, &masked).map_or(0, |bytes| bytes.len())
    });
}

fn rate(name: &str, mut operation: impl FnMut() -> usize) {
    assert!(operation() > 0, "{name} works");
    let (start, mut done) = (Instant::now(), 0u32);
    while start.elapsed() < MEASURE_FOR {
        for _ in 0..100 {
            black_box(operation());
        }
        done += 100;
    }
    let each = start.elapsed().as_secs_f64() / f64::from(done);
    println!("{name:<28} {:>12.0} /s {:>8.2} us", 1.0 / each, each * 1e6);
}
