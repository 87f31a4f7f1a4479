//! Secure key release (behaviour section 8): a key leaves, wrapped for an environment that an authority vouches for, if the
//! key's policy says that this is enough.
//!
//! In order: the right, the key and its policy, who issued the assertion and whether that authority counts here, its keys,
//! signature and times, the policy's conditions, and that nobody else used the assertion. Only then is material touched. What
//! is not proven is refused.

use crate::error::Error;
use crate::keys::binding;
use crate::pool::Pool;
use crate::ticket::{Recorded, Ticket};
use crate::views::{KeyReference, KeyView};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use crypto::PartitionError;
use crypto::certificate::InstanceKey;
use crypto::digest::{hex, sha256};
use crypto::release::{KeyWrap, ReleaseKey};
use domain::access::{Scope, action};
use domain::json::shown;
use domain::pool::PoolClass;
use domain::principal::ObjectId;
use domain::release::{Authority, ReleasePolicy};
use domain::time::Time;
use identity::attestation::{Assertion, AssertionError, AuthorityKeyCache, AuthoritySource};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;

/// Assertions that were used and have not expired.
const MAX_USED_ASSERTIONS: usize = 16_384;

/// What a caller asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReleaseRequest {
    /// The assertion, a signed JWT.
    pub target: String,
    pub wrap: KeyWrap,
}

/// A key on its way out.
pub struct ReleasedKey {
    pub view: KeyView,
    /// The material, wrapped.
    pub wrapped: Vec<u8>,
    pub wrap: KeyWrap,
    /// The name of the environment's key that it is wrapped for.
    pub release_kid: String,
}

/// Of one incarnation.
pub(crate) struct Releases {
    pub key: InstanceKey,
    /// DER.
    pub certificate: Vec<u8>,
    pub authorities: AuthorityKeyCache,
    pub used: UsedAssertions,
}

/// Who used which assertion, until it expires. An environment asks for several keys with one, and asks again where an answer
/// was lost; whoever else presents it has overheard it.
#[derive(Default)]
pub(crate) struct UsedAssertions(Mutex<HashMap<[u8; 32], (ObjectId, Time)>>);

impl UsedAssertions {
    fn admit(&self, hash: [u8; 32], expires: Time, caller: ObjectId, now: Time) -> Result<(), Error> {
        let mut used = self.0.lock();
        match used.get(&hash) {
            Some((first, _)) if *first == caller => return Ok(()),
            Some(_) => return Err(Error::AssertionReplayed),
            None => {}
        }
        if used.len() >= MAX_USED_ASSERTIONS {
            used.retain(|_, (_, expires)| *expires > now);
        }
        // Forgotten early rather than nobody served: that it can be used again by whoever overheard it is a key wrapped once
        // more for the same environment.
        if used.len() >= MAX_USED_ASSERTIONS
            && let Some(first) = used.iter().min_by_key(|(_, (_, expires))| *expires).map(|(hash, _)| *hash)
        {
            used.remove(&first);
        }
        used.insert(hash, (caller, expires));
        Ok(())
    }
}

impl Pool {
    /// Where documents of attestation authorities come from. Without it nothing is released.
    pub fn connect_authorities(&self, source: Arc<dyn AuthoritySource>) {
        self.releases().authorities.set_source(source);
    }

    /// Gives a key version out. `render` makes the answer's payload, which is signed with this incarnation's key for releases:
    /// a JWS in compact form.
    pub async fn release_key(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        request: ReleaseRequest,
        render: impl FnOnce(&ReleasedKey) -> serde_json::Value,
    ) -> Recorded<String> {
        ticket.about_key(&key.name, key.version);
        ticket.with_algorithm(request.wrap.as_str());
        ticket.asks::<action::KeyRelease>(&Scope::Key(key.name.clone()));
        // The version that is current now is the one meant, whatever becomes current meanwhile.
        let version = key.version.or_else(|| self.index().key(&key.name).map(|key| key.value.current()));
        let key = KeyReference { version, ..key };
        let result = match self.release(&ticket, &key, &request).await {
            Ok((released, detail)) => {
                ticket.about_key(&key.name, Some(released.view.version.version));
                ticket.details(detail);
                self.sign_release(&render(&released))
            }
            Err(error) => {
                ticket.about_key(&key.name, version);
                Err(error)
            }
        };
        ticket.record(result).await
    }

    async fn release(
        &self,
        ticket: &Ticket,
        key: &KeyReference,
        request: &ReleaseRequest,
    ) -> Result<(ReleasedKey, String), Error> {
        let granted = || ticket.authorize::<action::KeyRelease>(Scope::Key(key.name.clone()));
        let asked = self.stored(&granted()?, key.version)?.version.value;
        let policy = asked.version.check_release()?.clone();
        let assertion = Assertion::parse(&request.target).map_err(Error::Assertion)?;
        let authority = policy.policy().authority(assertion.issuer());
        let authority = authority.ok_or_else(|| Error::AssertionIssuer(shown(assertion.issuer())))?.clone();
        self.check_authority(&authority)?;

        let keys = self.releases().authorities.keys(&authority, assertion.kid(), self.now()).await;
        let keys = keys.map_err(|_| Error::AuthorityUnavailable(authority.clone()))?;
        // Fetching keys may have taken seconds: what was withdrawn meanwhile counts.
        let grant = granted()?;
        self.check_authority(&authority)?;
        let now = self.now();
        let issuer = assertion.issuer().to_owned();
        let attested = assertion.verify(&keys, now).map_err(Error::Assertion)?;
        policy.policy().check(&issuer, &attested.claims).map_err(Error::PolicyNotMet)?;
        let to = &attested.release_key;
        let release_key = ReleaseKey::new(&to.modulus, &to.exponent)
            .map_err(|error| Error::ReleaseKey(shown(&to.kid), error.to_string()))?;
        self.releases().used.admit(attested.hash, attested.expires, grant.caller().object_id, now)?;

        let held = self.stored(&grant, key.version)?.version.value;
        if held.version.check_release()? != &policy {
            return Err(Error::TooManyConflicts);
        }
        let version = &held.version;
        let binding = binding(self.genesis().pool, &version.name, version.version);
        let wrapped =
            self.partition().release(version.spec, &held.material, &binding, &release_key, request.wrap);
        let wrapped = wrapped.map_err(|error| match error {
            PartitionError::InvalidMaterial(what) => Error::ReleaseKey(shown(&to.kid), what),
            other => other.into(),
        })?;
        let detail = described(&authority, &policy, &to.kid);
        let view = self.view(version);
        let release_kid = to.kid.clone();
        Ok((ReleasedKey { view, wrapped, wrap: request.wrap, release_kid }, detail))
    }

    /// Whether the word of `authority` counts in this pool.
    fn check_authority(&self, authority: &Authority) -> Result<(), Error> {
        match self.genesis().class {
            // Whoever has a certificate that the pool's roots vouch for, and no secrets worth more.
            PoolClass::Test => Ok(()),
            PoolClass::Production if self.release_authorities().contains(authority) => Ok(()),
            PoolClass::Production => Err(Error::AuthorityNotAllowed(authority.clone())),
        }
    }

    /// Whether a key may get this policy here.
    pub(crate) fn check_policy(&self, policy: Option<&ReleasePolicy>) -> Result<(), Error> {
        let authorities = policy.into_iter().flat_map(|policy| policy.policy().authorities());
        authorities.into_iter().try_for_each(|authority| self.check_authority(authority))
    }

    fn sign_release(&self, payload: &serde_json::Value) -> Result<String, Error> {
        let Releases { key, certificate, .. } = self.releases();
        let thumbprint = sha256(&[certificate]);
        let header = json!({
            "alg": "ES256",
            "kid": hex(&thumbprint),
            "typ": "JWT",
            "x5c": [STANDARD.encode(certificate)],
            "x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint),
        });
        let encoded = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encoded(&header), encoded(payload));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
        Ok(format!("{signed}.{signature}"))
    }
}

/// SHA-256 of the document as its owner wrote it.
pub(crate) fn digest(policy: &ReleasePolicy) -> [u8; 32] {
    sha256(&[policy.document().as_bytes()])
}

/// For the event: by whose word, by which policy, to which key.
fn described(authority: &Authority, policy: &ReleasePolicy, kid: &str) -> String {
    format!(
        "released by the word of {authority}, policy SHA-256 {}, wrapped for {}",
        hex(&digest(policy)),
        shown(kid)
    )
}

/// Whether an assertion was refused for its form, before anybody was asked about it.
pub fn is_malformed(error: &AssertionError) -> bool {
    matches!(
        error,
        AssertionError::TooLong(_)
            | AssertionError::NotJws
            | AssertionError::NotJson { .. }
            | AssertionError::NamesNoKey
            | AssertionError::CriticalExtension
            | AssertionError::WrongType(_)
            | AssertionError::UnsupportedAlgorithm(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_with_many_assertions_keeps_nobody_from_theirs() {
        let used = UsedAssertions::default();
        let (greedy, other) = (ObjectId::NIL, domain::guid::Guid([7; 16]));
        let at = Time::from_unix_milliseconds;
        let hash = |number: usize| crypto::digest::sha256(&[&number.to_be_bytes()]);
        for number in 0..=MAX_USED_ASSERTIONS {
            let expires = at(1_000 + number as i64);
            used.admit(hash(number), expires, greedy, at(0)).unwrap();
        }
        assert_eq!(used.0.lock().len(), MAX_USED_ASSERTIONS);
        used.admit([9; 32], at(5_000), other, at(0)).unwrap();
        // What expires first was forgotten; the rest is not.
        assert!(matches!(used.admit(hash(2), at(1_002), other, at(0)), Err(Error::AssertionReplayed)));
        assert!(matches!(used.admit([9; 32], at(5_000), greedy, at(0)), Err(Error::AssertionReplayed)));
    }
}
