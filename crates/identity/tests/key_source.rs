//! Key sets that change while a pool runs.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a failed test

mod common;

use async_trait::async_trait;
use common::*;
use identity::key_set::MAX_KEY_SET_BYTES;
use identity::token::REFETCH_INTERVAL_SECONDS;
use identity::{KeySet, KeySetSource, KeySetSourceError, TokenError, TokenVerifier};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Serves what the test puts there, and counts.
struct Source {
    served: Mutex<Result<Vec<u8>, KeySetSourceError>>,
    asked: AtomicUsize,
}

#[async_trait]
impl KeySetSource for Source {
    async fn fetch(&self) -> Result<Vec<u8>, KeySetSourceError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        // Whoever comes meanwhile gets a turn.
        tokio::task::yield_now().await;
        self.served.lock().unwrap().clone()
    }
}

impl Source {
    fn serve(&self, keys: &[Value]) {
        *self.served.lock().unwrap() = Ok(json!({"keys": keys}).to_string().into_bytes());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A verifier that pinned the RSA key, and an issuer that serves the same.
fn pinned() -> (Arc<TokenVerifier>, Arc<Source>) {
    let keys = KeySet::parse(json!({"keys": [rsa_jwk("rsa")]}).to_string().as_bytes()).unwrap();
    let verifier = Arc::new(TokenVerifier::new(config(), keys));
    let source = Arc::new(Source { served: Mutex::new(Ok(Vec::new())), asked: AtomicUsize::new(0) });
    source.serve(&[rsa_jwk("rsa")]);
    verifier.set_source(source.clone());
    (verifier, source)
}

#[tokio::test]
async fn a_rotation_is_followed_and_the_old_key_ends_when_it_is_gone() {
    let (verifier, source) = pinned();
    let (old, new) = (Signer::Rs256.token(&claims()), Signer::Es256.token(&claims()));
    assert!(verifier.verify_asking(&old, at(NOW)).await.is_ok());
    assert_eq!(source.asked(), 0, "a known key is no reason to ask");

    source.serve(&[ec_jwk("ec"), rsa_jwk("rsa")]);
    assert!(verifier.verify_asking(&new, at(NOW)).await.is_ok());
    assert!(verifier.verify_asking(&old, at(NOW)).await.is_ok(), "the key before is listed still");
    assert_eq!(source.asked(), 1);

    // The old key is taken back. Its tokens are remembered, and die with it.
    source.serve(&[ec_jwk("ec")]);
    verifier.refresh_keys().await;
    assert!(matches!(verifier.verify_asking(&old, at(NOW)).await, Err(TokenError::UnknownKey { .. })));
    assert!(verifier.verify_asking(&new, at(NOW)).await.is_ok());
}

#[tokio::test]
async fn unknown_keys_ask_once_a_minute_whoever_presents_them() {
    let (verifier, source) = pinned();
    for forged in 0..50 {
        let header = json!({"alg": "RS256", "kid": format!("forged-{forged}")});
        let token = Signer::Rs256.token_with_header(&header, &claims());
        let refused = verifier.verify_asking(&token, at(NOW)).await;
        assert!(matches!(refused, Err(TokenError::UnknownKey { .. })));
    }
    assert_eq!(source.asked(), 1);
    let other_issuer = with("iss", json!("https://other.example"));
    let header = json!({"alg": "RS256", "kid": "other"});
    let token = Signer::Rs256.token_with_header(&header, &other_issuer);
    let later = at(NOW + REFETCH_INTERVAL_SECONDS);
    assert!(matches!(verifier.verify_asking(&token, later).await, Err(TokenError::WrongIssuer { .. })));
    for damaged in ["", "x", "a.b.c", &Signer::Rs256.token(&with("exp", json!(NOW - 1)))] {
        assert!(verifier.verify_asking(damaged, later).await.is_err());
    }
    assert_eq!(source.asked(), 1, "nothing but an unknown key of our issuer is a reason");
    source.serve(&[ec_jwk("ec")]);
    assert!(verifier.verify_asking(&Signer::Es256.token(&claims()), later).await.is_ok());
    assert_eq!(source.asked(), 2);
}

#[tokio::test]
async fn those_who_come_while_keys_are_fetched_wait_for_them() {
    let (verifier, source) = pinned();
    source.serve(&[ec_jwk("ec")]);
    let calls: Vec<_> = (0..20)
        .map(|uti| {
            let (verifier, token) = (verifier.clone(), Signer::Es256.token(&with("uti", json!(uti))));
            tokio::spawn(async move { verifier.verify_asking(&token, at(NOW)).await.is_ok() })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap());
    }
    assert_eq!(source.asked(), 1);
}

/// An issuer that is away, or that serves nonsense, takes nobody's key away.
#[tokio::test]
async fn what_cannot_be_used_changes_nothing() {
    let (verifier, source) = pinned();
    let old = Signer::Rs256.token(&claims());
    let caller = verifier.verify_asking(&old, at(NOW)).await.unwrap();
    for served in [
        Err(KeySetSourceError("not there".into())),
        Ok(Vec::new()),
        Ok(b"<html>sign in</html>".to_vec()),
        Ok(br#"{"keys":[]}"#.to_vec()),
        Ok(br#"{"keys":[{"kty":"oct","kid":"rsa","k":"AAAA"}]}"#.to_vec()),
        Ok(vec![b' '; MAX_KEY_SET_BYTES + 1]),
    ] {
        *source.served.lock().unwrap() = served;
        verifier.refresh_keys().await;
        let again = verifier.verify_asking(&old, at(NOW)).await.unwrap();
        assert!(Arc::ptr_eq(&caller, &again), "not even the cache is emptied");
    }
}

#[tokio::test]
async fn without_a_source_the_pinned_keys_are_all_there_is() {
    let verifier = verifier();
    let header = json!({"alg": "RS256", "kid": "new"});
    let token = Signer::Rs256.token_with_header(&header, &claims());
    assert!(matches!(verifier.verify_asking(&token, at(NOW)).await, Err(TokenError::UnknownKey { .. })));
    verifier.refresh_keys().await;
    assert!(verifier.verify_asking(&Signer::Rs256.token(&claims()), at(NOW)).await.is_ok());
}
