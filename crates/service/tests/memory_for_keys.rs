//! Keys that are in memory before they are asked for, and keys that have to leave it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::{APP, Bench, create, current, new_key, ok, ticket};
use crypto::import::WrappedKind;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::{
    Generated, LoadedKey, MaskedMaterial, MaterialBinding, Partition, PartitionError, PrivateParts,
    SelfTestFailed,
};
use crypto_software::SoftwarePartition;
use domain::algorithm::{Curve, KeySpec, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use service::{Pool, PoolLimits};
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

const RSA: KeySpec = KeySpec::Rsa(RsaSize::Rsa2048);

async fn signs(pool: &Arc<Pool>, name: &str, algorithm: SignatureAlgorithm) {
    let digest = vec![7; 32];
    let signed = ok(pool.sign(ticket(pool, APP), current(name), algorithm, digest.clone()).await);
    let verified = pool.verify(ticket(pool, APP), current(name), algorithm, digest, signed.result).await;
    assert!(ok(verified).result, "{name}");
}

/// Only returns once there are `count` of them.
async fn until_ready(pool: &Pool, count: usize) {
    while pool.ready_key_count() != count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_key_made_ahead_is_given_out_once_and_replaced() {
    let limits = PoolLimits { ready_keys: 1, ready_keys_after: Duration::ZERO, ..PoolLimits::default() };
    let bench = Bench { limits, ..Bench::new() };
    let pool = bench.open().await;
    let mut moduli = HashSet::new();
    for name in ["a", "b"] {
        // One of each size.
        until_ready(&pool, 3).await;
        let made = create(&pool, name, RSA).await;
        let PublicKey::Rsa { modulus, .. } = made.version.public else { panic!("not RSA") };
        assert!(moduli.insert(modulus), "two keys are one");
        signs(&pool, name, SignatureAlgorithm::Ps256).await;
    }
    // Those that nobody asked for are nowhere: another start makes its own.
    until_ready(&pool, 3).await;
    pool.close().await;
    let pool = Bench { limits: PoolLimits { ready_keys: 0, ..limits }, ..bench }.open().await;
    assert_eq!(pool.ready_key_count(), 0);
    for name in ["a", "b"] {
        signs(&pool, name, SignatureAlgorithm::Rs256).await;
    }
}

#[tokio::test]
async fn a_key_of_another_exponent_is_not_one_of_those_made_ahead() {
    let limits = PoolLimits { ready_keys: 1, ready_keys_after: Duration::ZERO, ..PoolLimits::default() };
    let pool = Bench { limits, ..Bench::new() }.open().await;
    until_ready(&pool, 3).await;
    let mut new = new_key("three", RSA);
    new.public_exponent = Some(3);
    let made = ok(pool.create_key(ticket(&pool, APP), new).await);
    assert!(matches!(made.version.public, PublicKey::Rsa { exponent, .. } if exponent == [3]));
    signs(&pool, "three", SignatureAlgorithm::Ps256).await;
}

/// The software partition on a machine with memory for so many keys.
struct Crowded {
    partition: SoftwarePartition,
    room: usize,
    loaded: Mutex<Vec<Weak<dyn LoadedKey>>>,
    refused: AtomicUsize,
}

impl Partition for Crowded {
    fn load(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
    ) -> Result<Arc<dyn LoadedKey>, PartitionError> {
        let mut loaded = self.loaded.lock().unwrap();
        loaded.retain(|key| key.strong_count() > 0);
        if loaded.len() >= self.room {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(PartitionError::NoRoom("find room for another key"));
        }
        let key = self.partition.load(spec, masked, binding)?;
        loaded.push(Arc::downgrade(&key));
        Ok(key)
    }

    fn generate(
        &self,
        spec: KeySpec,
        public_exponent: Option<u64>,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.partition.generate(spec, public_exponent, binding)
    }

    fn import(
        &self,
        spec: KeySpec,
        parts: &PrivateParts,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.partition.import(spec, parts, binding)
    }

    fn unwrap(
        &self,
        kek: &dyn LoadedKey,
        kind: WrappedKind,
        wrapped: &[u8],
    ) -> Result<PrivateParts, PartitionError> {
        self.partition.unwrap(kek, kind, wrapped)
    }

    fn release(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
        to: &ReleaseKey,
        wrap: KeyWrap,
    ) -> Result<Vec<u8>, PartitionError> {
        self.partition.release(spec, masked, binding, to, wrap)
    }

    fn rebind(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        from: &MaterialBinding,
        to: &MaterialBinding,
    ) -> Result<MaskedMaterial, PartitionError> {
        self.partition.rebind(spec, masked, from, to)
    }

    fn random(&self, out: &mut [u8]) -> Result<(), PartitionError> {
        self.partition.random(out)
    }

    fn self_test(&self) -> Result<(), SelfTestFailed> {
        self.partition.self_test()
    }
}

#[tokio::test]
async fn where_memory_for_keys_is_full_those_that_are_not_in_use_make_room() {
    let bench = Bench::new();
    let secrets = bench.secrets();
    let partition = Arc::new(Crowded {
        partition: SoftwarePartition::new(secrets.partition_wrapping_key()),
        room: 3,
        loaded: Mutex::default(),
        refused: AtomicUsize::new(0),
    });
    let pool = bench.open_with(partition.clone()).await;
    let names: Vec<String> = (0..7).map(|number| format!("k{number}")).collect();
    for name in &names {
        create(&pool, name, KeySpec::Ec(Curve::P256)).await;
    }
    for _ in 0..3 {
        for name in &names {
            signs(&pool, name, SignatureAlgorithm::Es256).await;
        }
    }
    assert!(partition.refused.load(Ordering::Relaxed) > 3, "it was never full");
    assert!(pool.loaded_keys() <= 3);
}

#[tokio::test]
async fn where_there_is_no_room_for_a_single_key_its_use_fails() {
    let bench = Bench::new();
    let partition = Arc::new(Crowded {
        partition: SoftwarePartition::new(bench.secrets().partition_wrapping_key()),
        room: 0,
        loaded: Mutex::default(),
        refused: AtomicUsize::new(0),
    });
    let pool = bench.open_with(partition).await;
    create(&pool, "k", KeySpec::Ec(Curve::P256)).await;
    let signed = pool.sign(ticket(&pool, APP), current("k"), SignatureAlgorithm::Es256, vec![7; 32]).await;
    let refusal = common::refused(signed);
    assert!(refusal.to_string().contains("find room for another key"), "{refusal}");
    assert_eq!(pool.loaded_keys(), 0);
}
