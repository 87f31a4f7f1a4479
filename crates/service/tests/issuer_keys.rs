//! An issuer that changes its key while a pool runs.
#![allow(clippy::unwrap_used)] // a failed check is a failed test
mod common;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::*;
use domain::pool::KeySource;
use identity::{KeySetSource, KeySetSourceError};
use serde_json::json;
use service::Pool;
use std::convert::Infallible;
use std::sync::Arc;

struct Key {
    name: &'static str,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new(name: &'static str) -> Self {
        Self { name, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn set(keys: &[&Key]) -> Vec<u8> {
        let jwk = |key: &&Key| {
            let (x, y) = key.pair.public_key().as_ref()[1..].split_at(32);
            let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
            json!({ "kty": "EC", "crv": "P-256", "kid": key.name, "x": x, "y": y })
        };
        json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() }).to_string().into_bytes()
    }

    fn token(&self, pool: &Pool) -> String {
        let now = pool.now().int_date().unix_seconds();
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({ "alg": "ES256", "kid": self.name }));
        let claims = part(json!({
            "iss": "https://issuer.example/t/v2.0", "aud": "https://managedhsm.localhost", "tid": "t",
            "oid": APP.to_string(), "iat": now, "exp": now + 3_600,
        }));
        let signed = format!("{header}.{claims}");
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

struct Served(Vec<u8>);

#[async_trait]
impl KeySetSource for Served {
    async fn fetch(&self) -> Result<Vec<u8>, KeySetSourceError> {
        Ok(self.0.clone())
    }
}

fn connect(pool: &Pool, key_set: Vec<u8>) {
    pool.connect_key_source(|_| Ok::<Arc<dyn KeySetSource>, Infallible>(Arc::new(Served(key_set)))).unwrap();
}

/// What the log says of the issuer's keys.
async fn changes(pool: &Arc<Pool>) -> Vec<String> {
    let page = pool.audit_page(0, 100).await.unwrap();
    let of_keys = page.into_iter().filter(|event| event["operationName"] == "IssuerKeysReplaced");
    of_keys.map(|event| event["holdfast"]["detail"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_follows_to_the_new_key_and_records_it_once() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let mut bench = Bench::new();
    bench.genesis.issuer.key_set = Key::set(&[&old]);
    bench.genesis.issuer.key_source =
        Some(KeySource { url: "https://issuer.example/t/keys".into(), roots: b"root".to_vec() });
    let pool = bench.open().await;
    connect(&pool, Key::set(&[&new]));
    assert!(pool.authenticate(&old.token(&pool)).await.is_ok());
    assert!(changes(&pool).await.is_empty());

    assert!(pool.authenticate(&new.token(&pool)).await.is_ok());
    assert!(pool.authenticate(&new.token(&pool)).await.is_ok());
    assert!(pool.authenticate(&old.token(&pool)).await.is_err(), "it is not served any more");
    pool.refresh_issuer_keys().await;
    assert_eq!(changes(&pool).await, ["the issuer's keys are \"new\""]);
}

/// Nobody can give a pool a source that its genesis does not name.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_pinned_source_there_is_none() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let mut bench = Bench::new();
    bench.genesis.issuer.key_set = Key::set(&[&old]);
    let pool = bench.open().await;
    connect(&pool, Key::set(&[&new]));
    assert!(pool.authenticate(&new.token(&pool)).await.is_err());
    pool.refresh_issuer_keys().await;
    assert!(pool.authenticate(&old.token(&pool)).await.is_ok());
    assert!(changes(&pool).await.is_empty());
}
