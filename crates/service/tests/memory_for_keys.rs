//! Keys that are in memory before they are asked for, and keys that have to leave it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use common::gated::{Gate, Gated};
use common::{APP, Bench, create, current, new_key, ok, refused, ticket};
use crypto::import::WrappedKind;
use crypto::{Ciphertext, Decrypt, Encrypt, LoadedKey, PartitionError, PrivateParts, SecretBytes};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::key::{KeyOperation, PublicKey, Tags};
use service::{ImportedKey, NewKey, Pool, PoolLimits, WrappedKey};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

/// A machine with memory for so many loaded keys, in which one more is refused, whatever is to become of it.
struct Crowded {
    room: AtomicUsize,
    memory: Arc<Memory>,
}

struct Memory {
    loaded: AtomicUsize,
    /// So many loaded keys are too many for one of them to be used.
    too_many_to_use: usize,
    refused: AtomicUsize,
}

impl Crowded {
    fn partition(bench: &Bench, room: usize, too_many_to_use: usize) -> Arc<Gated<Self>> {
        let memory = Memory { loaded: AtomicUsize::new(0), too_many_to_use, refused: AtomicUsize::new(0) };
        Gated::new(bench, Self { room: AtomicUsize::new(room), memory: Arc::new(memory) })
    }

    fn refused(&self) -> usize {
        self.memory.refused.load(Ordering::SeqCst)
    }
}

impl Memory {
    fn admit(&self, room: usize) -> Result<(), PartitionError> {
        if self.loaded.load(Ordering::SeqCst) < room {
            return Ok(());
        }
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(PartitionError::NoRoom("find room for another key"))
    }
}

struct CrowdedKey {
    key: Arc<dyn LoadedKey>,
    memory: Arc<Memory>,
}

impl CrowdedKey {
    fn admit(&self) -> Result<&dyn LoadedKey, PartitionError> {
        self.memory.admit(self.memory.too_many_to_use).map(|()| self.key.as_ref())
    }
}

impl Drop for CrowdedKey {
    fn drop(&mut self) {
        self.memory.loaded.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LoadedKey for CrowdedKey {
    fn spec(&self) -> KeySpec {
        self.key.spec()
    }

    fn sign(&self, algorithm: SignatureAlgorithm, digest: &[u8]) -> Result<Vec<u8>, PartitionError> {
        self.admit()?.sign(algorithm, digest)
    }

    fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<bool, PartitionError> {
        self.admit()?.verify(algorithm, digest, signature)
    }

    fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Encrypt<'_>,
    ) -> Result<Ciphertext, PartitionError> {
        self.admit()?.encrypt(algorithm, input)
    }

    fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Decrypt<'_>,
    ) -> Result<SecretBytes, PartitionError> {
        self.admit()?.decrypt(algorithm, input)
    }
}

impl Gate for Crowded {
    fn admit(&self) -> Result<(), PartitionError> {
        self.memory.admit(self.room.load(Ordering::SeqCst))
    }

    fn loaded(&self, key: Arc<dyn LoadedKey>) -> Arc<dyn LoadedKey> {
        self.memory.loaded.fetch_add(1, Ordering::SeqCst);
        Arc::new(CrowdedKey { key, memory: self.memory.clone() })
    }
}

const EC: KeySpec = KeySpec::Ec(Curve::P256);

#[tokio::test]
async fn where_memory_for_keys_is_full_those_that_are_not_in_use_make_room() {
    let bench = Bench::new();
    let partition = Crowded::partition(&bench, 3, 100);
    let pool = bench.open_with(partition.clone()).await;
    let names: Vec<String> = (0..7).map(|number| format!("k{number}")).collect();
    for name in &names {
        create(&pool, name, EC).await;
    }
    for _ in 0..3 {
        for name in &names {
            signs(&pool, name, SignatureAlgorithm::Es256).await;
        }
    }
    assert!(partition.gate.refused() > 3, "it was never full");
    assert!(pool.loaded_keys() <= 3);
}

/// What a pool of keys that were used, and nobody's use of them since, must not keep anybody from.
#[tokio::test]
async fn where_memory_for_keys_is_full_a_new_key_finds_room() {
    let bench = Bench::new();
    let partition = Crowded::partition(&bench, 3, 100);
    let pool = bench.open_with(partition.clone()).await;
    for name in ["k0", "k1", "k2"] {
        create(&pool, name, EC).await;
    }
    let kek =
        NewKey { operations: Some([KeyOperation::Import].into_iter().collect()), ..new_key("kek", RSA) };
    ok(pool.create_key(ticket(&pool, APP), kek).await);
    let full = async || {
        for name in ["k0", "k1", "k2"] {
            signs(&pool, name, SignatureAlgorithm::Es256).await;
        }
        assert_eq!(pool.loaded_keys(), 3);
        partition.gate.refused()
    };
    let made_room =
        |before: usize, what: &str| assert!(partition.gate.refused() > before, "{what}: it was not full");

    let before = full().await;
    create(&pool, "created", EC).await;
    made_room(before, "create");
    let before = full().await;
    create(&pool, "created", RSA).await;
    made_room(before, "create on the thread for it");
    let before = full().await;
    let new = new_key("imported", KeySpec::Oct(OctSize::Oct256));
    let parts = PrivateParts::Oct(SecretBytes::new(vec![5; 32]));
    ok(pool.import_key(ticket(&pool, APP), ImportedKey { new, parts }).await);
    made_room(before, "import");

    full().await;
    let wrapped = WrappedKey {
        name: "wrapped".parse().unwrap(),
        kind: WrappedKind::Oct,
        kek: current("kek"),
        ciphertext: vec![5; 300],
        operations: None,
        enabled: true,
        not_before: None,
        expires: None,
        exportable: false,
        release: None,
        tags: Tags::default(),
    };
    // The key for it takes a place as well. What is wrong with this one is all that is wrong.
    let refusal = refused(pool.import_wrapped_key(ticket(&pool, APP), wrapped).await);
    assert!(!refusal.to_string().contains("find room"), "{refusal}");
}

#[tokio::test]
async fn where_a_loaded_key_finds_no_room_to_be_used_others_make_it() {
    let bench = Bench::new();
    let partition = Crowded::partition(&bench, 100, 3);
    let pool = bench.open_with(partition.clone()).await;
    for name in ["k0", "k1", "k2"] {
        create(&pool, name, EC).await;
    }
    create(&pool, "r", RSA).await;
    for (name, algorithm) in [("k0", SignatureAlgorithm::Es256), ("r", SignatureAlgorithm::Ps256)] {
        let before = partition.gate.refused();
        for name in ["k1", "k2", name] {
            signs(&pool, name, algorithm_of(name)).await;
        }
        assert!(partition.gate.refused() > before, "it was never full");
        signs(&pool, name, algorithm).await;
    }
}

fn algorithm_of(name: &str) -> SignatureAlgorithm {
    if name == "r" { SignatureAlgorithm::Ps256 } else { SignatureAlgorithm::Es256 }
}

#[tokio::test]
async fn a_key_that_nobody_asked_for_takes_no_room_from_those_in_use() {
    let limits = PoolLimits { ready_keys: 1, ready_keys_after: Duration::ZERO, ..PoolLimits::default() };
    let bench = Bench { limits, ..Bench::new() };
    let partition = Crowded::partition(&bench, 100, 100);
    let pool = bench.open_with(partition.clone()).await;
    create(&pool, "k", EC).await;
    signs(&pool, "k", SignatureAlgorithm::Es256).await;
    until_ready(&pool, 3).await;
    partition.gate.room.store(1, Ordering::SeqCst);
    let before = partition.gate.refused();
    // One fewer is ready then, and another is made, if it can be.
    create(&pool, "r", RSA).await;
    while partition.gate.refused() == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!((pool.ready_key_count(), pool.loaded_keys()), (2, 1));
}

#[tokio::test]
async fn where_there_is_no_room_for_a_single_key_its_use_and_another_one_fail() {
    let bench = Bench::new();
    let pool = bench.open().await;
    create(&pool, "k", EC).await;
    pool.close().await;
    let pool = bench.open_with(Crowded::partition(&bench, 0, 0)).await;
    let signed = pool.sign(ticket(&pool, APP), current("k"), SignatureAlgorithm::Es256, vec![7; 32]).await;
    let created = pool.create_key(ticket(&pool, APP), new_key("l", EC)).await;
    for refusal in [refused(signed), refused(created)] {
        assert!(refusal.to_string().contains("find room for another key"), "{refusal}");
    }
    assert_eq!(pool.loaded_keys(), 0);
}
