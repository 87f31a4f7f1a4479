//! Release policies, and the assertions that are held against them.

use domain::json::Json;
use domain::release::{Authority, Policy};
use domain::time::Time;
use identity::attestation::{Assertion, AuthorityKeySet};
use serde_json::Value;
use std::sync::LazyLock;

const CASES: &str = include_str!("../../../crates/identity/tests/golden/attestation/assertions.json");

static AUTHORITY: LazyLock<(AuthorityKeySet, Time, Vec<String>)> = LazyLock::new(|| {
    let cases: Value = serde_json::from_str(CASES).unwrap();
    let keys = AuthorityKeySet::parse(cases["keys"].to_string().as_bytes()).unwrap();
    let now = Time::from_unix_milliseconds(cases["now"].as_i64().unwrap() * 1000);
    let tokens = cases["tokens"].as_object().unwrap().values();
    (keys, now, tokens.map(|token| token.as_str().unwrap().to_owned()).collect())
});

/// A policy, and behind a NUL the claims that it is held against. Nothing meets a policy by way of an authority that it does
/// not name.
pub fn release_policy(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let policy = parts.next().and_then(|part| std::str::from_utf8(part).ok());
    let Some(Ok(policy)) = policy.map(Policy::parse) else { return };
    let claims = parts.next().map_or(Ok(Json::Null), Json::parse).unwrap_or(Json::Null);
    for authority in policy.authorities() {
        assert_eq!(Authority::parse(authority.as_str()).as_ref(), Ok(authority));
        let issuer = format!("{authority}/");
        assert!(policy.authority(&issuer).is_some());
        assert_eq!(policy.check(&issuer, &claims).is_ok(), policy.check(authority.as_str(), &claims).is_ok());
    }
    let stranger = "https://not.named.example";
    assert!(policy.authority(stranger).is_some() || policy.check(stranger, &claims).is_err());
}

/// An assertion under a fixed key set: only what the authority signed is good.
pub fn release_assertion(bytes: &[u8]) {
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let (keys, now, signed) = &*AUTHORITY;
    let verified = Assertion::parse(token).and_then(|assertion| assertion.verify(keys, *now));
    assert!(verified.is_err() || signed.iter().any(|known| known == token));
}

/// A key set that an authority serves. What it holds is asked for by a token that names a key of every set.
pub fn authority_keys(bytes: &[u8]) {
    let Ok(keys) = AuthorityKeySet::parse(bytes) else { return };
    let (_, now, signed) = &*AUTHORITY;
    let assertion = signed.first().and_then(|token| Assertion::parse(token).ok());
    let _ = assertion.map(|assertion| assertion.verify(&keys, *now));
}
