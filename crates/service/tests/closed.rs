//! What keeps a pool closed, where to go on without it would let everybody in.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use common::*;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::guid::Guid;
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use service::{OpenPoolError, Pool, PoolParts, SecretBytes, SystemRandom};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_whose_issuer_has_no_usable_key_stays_closed() {
    for key_set in ["", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","kid":"1","k":"AAAA"}]}"#] {
        let mut bench = Bench::new();
        bench.genesis.issuer.key_set = key_set.as_bytes().to_vec();
        let engine = RedbEngine::open(bench.path().join("store"), EngineOptions::default()).unwrap();
        let log = FileLog::open(bench.path().join("audit"), LogOptions::default()).unwrap();
        let secrets = DomainSecrets::import(&SecretBytes::new(bench.secrets.clone())).unwrap();
        Pool::found(&engine, &secrets, bench.genesis.clone(), Some(active())).await.unwrap();
        let parts = PoolParts {
            engine: Arc::new(engine),
            log: Arc::new(log),
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            opened_with: "none".into(),
            node: Guid([3; 16]),
            clock: bench.clock.clone(),
            random: Arc::new(SystemRandom),
            limits: bench.limits,
            resource_suffixes: vec![],
            installer: None,
            backup_targets: None,
        };
        let opened = Pool::open(parts).await.map(drop);
        assert!(matches!(opened, Err(OpenPoolError::KeySet(_))), "{key_set}: {opened:?}");
    }
}
