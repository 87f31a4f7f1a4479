use super::cache::keys_path;
use super::*;
use async_trait::async_trait;
use domain::release::Authority;
use proptest::prelude::*;
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

/// Made by `tests/golden/attestation/make.py`, with another implementation.
static CASES: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../tests/golden/attestation/assertions.json")).unwrap()
});

const NOW: Time = Time::from_unix_milliseconds(1_800_000_000_000);

fn token(name: &str) -> &'static str {
    CASES["tokens"][name].as_str().unwrap()
}

fn key_set() -> AuthorityKeySet {
    AuthorityKeySet::parse(CASES["keys"].to_string().as_bytes()).unwrap()
}

fn verify(token: &str) -> Result<Attested, AssertionError> {
    Assertion::parse(token)?.verify(&key_set(), NOW)
}

#[test]
fn each_assertion_proves_what_it_says_or_is_refused_for_its_own_reason() {
    for (name, expected) in [
        ("good", "ok"),
        ("good PS256", "ok"),
        ("good chained", "ok"),
        ("good use enc", "ok"),
        ("good x5c", "ok"),
        // Signed as they stand; what they say is for the policy.
        ("other issuer", "ok"),
        ("debuggable", "ok"),
        ("debuggable as text", "ok"),
        ("forged", "its signature does not verify"),
        ("changed", "its signature does not verify"),
        ("no signature", "its signature does not verify"),
        ("expired", "it expired at 2027-01-15T08:00:00Z"),
        ("no exp", "it has no claim exp"),
        ("exp is text", "its claim exp is not a number of seconds since 1970"),
        ("not yet valid", "it is not valid before 2027-01-15T08:05:01Z"),
        ("issued in the future", "it was issued in the future, at 2027-01-15T08:05:01Z"),
        ("no issuer", "it has no claim iss"),
        ("issuer is a list", "its claim iss is not a string"),
        ("none", "its algorithm \"none\" is not RS256 or PS256"),
        ("HS256", "its algorithm \"HS256\" is not RS256 or PS256"),
        ("RS512", "its algorithm \"RS512\" is not RS256 or PS256"),
        ("no alg", "its algorithm \"\" is not RS256 or PS256"),
        ("other algorithm", "it is for algorithm \"RS256\" alone"),
        ("no kid", "its header has no kid that names the key it is signed with"),
        ("critical", "its header has critical extensions, which are not supported"),
        ("other type", "its type \"JOSE\" is not JWT"),
        ("unknown key", "it is signed with key \"gone\", which is not among its authority's keys"),
        ("not chained", "one of its certificates is not signed by the one that follows"),
        ("confused", "its n is not that of its certificate"),
        ("no certificate", "it has no certificates in x5c"),
        ("old certificate", "is valid from 2020-01-01T00:00:00Z to 2021-01-01T00:00:00Z"),
        ("symmetric", "it is not of type RSA"),
        ("for encryption", "it is not for signatures"),
        ("twice", "it stands in the key set twice"),
        ("broken", "one of its certificates is malformed"),
        ("duplicate claim", "member `x-ms-sevsnpvm-is-debuggable` occurs twice"),
        ("duplicate issuer", "member `iss` occurs twice"),
        ("deep", "its payload is not a JSON object: line 1"),
        ("payload is a list", "its payload is not a JSON object: it is an array"),
        ("no runtime", "it has no claim x-ms-runtime"),
        ("runtime is text", "its claim x-ms-runtime is not an object with a list of keys"),
        ("keys at the top", "x-ms-runtime.keys holds no key to wrap the released one to"),
        ("keys in isolation-tee", "x-ms-runtime.keys holds no key to wrap the released one to"),
        ("no key for encryption", "x-ms-runtime.keys holds no key to wrap the released one to"),
        ("key without kid", "has no kid of 1 to 256 bytes"),
        ("key without numbers", "has neither n and e nor a certificate with an RSA key"),
        // Whether anybody can encrypt to it is for who does.
        ("key of 1024 bits", "ok"),
        ("key with exponent 1", "ok"),
    ] {
        let outcome = verify(token(name)).map_or_else(|error| error.to_string(), |_| "ok".into());
        assert!(outcome.contains(expected), "{name}: {outcome}");
    }
}

#[test]
fn a_good_assertion_names_the_environments_key_and_none_but_that() {
    let expected = verify(token("good")).unwrap().release_key;
    assert_eq!(expected.kid, "TpmEphemeralEncryptionKey");
    assert_eq!((expected.modulus.len(), expected.exponent.as_slice()), (256, [1, 0, 1].as_slice()));
    for name in ["good use enc", "good x5c"] {
        assert_eq!(verify(token(name)).unwrap().release_key, expected, "{name}");
    }
}

#[test]
fn what_is_no_assertion_is_refused() {
    let huge = format!("{}.{}", token("good"), "A".repeat(MAX_ASSERTION_BYTES));
    assert!(matches!(verify(&huge), Err(AssertionError::TooLong(_))));
    for text in ["", "a", "a.b", "a.b.c", "a.b.c.d", "..", "e30.e30.", "e30.e30.e30.e30.e30"] {
        assert!(verify(text).is_err(), "{text}");
    }
}

#[test]
fn a_key_set_is_bounded() {
    for (document, words) in [
        ("{}", "no object with a list"),
        (r#"{"keys":[]}"#, "no object with a list"),
        (r#"{"keys":[],"keys":[]}"#, "occurs twice"),
        ("", "no JSON"),
    ] {
        assert!(AuthorityKeySet::parse(document.as_bytes()).err().unwrap().to_string().contains(words));
    }
    let many = format!(r#"{{"keys":[{}]}}"#, vec!["{}"; 65].join(","));
    assert!(AuthorityKeySet::parse(many.as_bytes()).is_err());
}

#[test]
fn metadata_lead_to_their_own_origin_alone() {
    let path = |address: &str| keys_path("https://a:1", format!(r#"{{"jwks_uri":"{address}"}}"#).as_bytes());
    assert_eq!(path("https://a:1/certs?x=1"), Ok("/certs?x=1".into()));
    for address in [
        "https://a:1",
        "https://a:12/certs",
        "https://a:1.evil/",
        "https://a:1@evil/",
        "http://a:1/",
        "/certs",
        "",
    ] {
        assert!(path(address).unwrap_err().contains("is not at https://a:1"), "{address}");
    }
    assert!(keys_path("https://a", b"{}").is_err());
    assert!(keys_path("https://a", b"<html>").is_err());
}

/// Serves the keys of the cases, and counts.
#[derive(Default)]
struct Served {
    asked: AtomicUsize,
    fails: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl AuthoritySource for Served {
    async fn get(&self, origin: &str, path: &str) -> Result<Vec<u8>, AuthoritySourceError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(AuthoritySourceError("down".into()));
        }
        assert_eq!(origin, "https://attest.example");
        match path {
            "/.well-known/openid-configuration" => {
                self.asked.fetch_add(1, Ordering::SeqCst);
                Ok(br#"{"jwks_uri":"https://attest.example/certs"}"#.to_vec())
            }
            "/certs" => Ok(CASES["keys"].to_string().into_bytes()),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn keys_are_fetched_once_and_again_when_there_is_reason() {
    let served = Arc::new(Served::default());
    let cache = AuthorityKeyCache::default();
    let authority = Authority::parse("https://attest.example/").unwrap();
    let later = |seconds: i64| Time::from_unix_milliseconds(NOW.unix_milliseconds() + seconds * 1000);
    assert!(cache.keys(&authority, "good", NOW).await.is_err(), "nothing to ask");
    cache.set_source(served.clone());
    let asked = |expected: usize| assert_eq!(served.asked.load(Ordering::SeqCst), expected);
    for (kid, seconds, expected) in [
        ("good", 0, 1),
        ("good", 3599, 1),
        ("unknown", 3599, 2),
        ("unknown", 3600, 2),
        ("other", 3658, 2),
        ("other", 3659, 3),
        ("good", 3659 + 3599, 3),
        ("good", 3659 + 3600, 4),
    ] {
        assert!(cache.keys(&authority, kid, later(seconds)).await.is_ok());
        asked(expected);
    }
    served.fails.store(true, Ordering::SeqCst);
    let stale = 3659 + 3600 + 3600;
    assert!(cache.keys(&authority, "unknown", later(stale - 1)).await.is_ok(), "what is fresh stays good");
    assert!(cache.keys(&authority, "good", later(stale)).await.is_err());
    served.fails.store(false, Ordering::SeqCst);
    assert!(cache.keys(&authority, "good", later(stale + 3)).await.is_err(), "not again at once");
    assert!(cache.keys(&authority, "good", later(stale + 5)).await.is_ok());
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in "\\PC{0,100}", header in "[A-Za-z0-9_-]{0,40}", payload in "[A-Za-z0-9_-]{0,40}") {
        let _ = verify(&text);
        let _ = verify(&format!("{header}.{payload}.{header}"));
        let _ = AuthorityKeySet::parse(text.as_bytes());
    }

    /// One changed character, anywhere, is no assertion any more.
    #[test]
    fn a_changed_assertion_never_verifies(position in any::<prop::sample::Index>(), letter in "[A-Za-z0-9_.-]") {
        let good = token("good");
        let position = position.index(good.len());
        let changed = format!("{}{letter}{}", &good[..position], &good[position + 1..]);
        prop_assert!(changed == good || verify(&changed).is_err());
    }
}
