//! Verifies access tokens: signed JWTs (RFC 7519) in JWS compact form (RFC 7515), from one pinned issuer, for one
//! tenant.
//!
//! The rules are those of RFC 8725. A token's header chooses a key of the set and, within that key's type, an
//! algorithm; nothing in it is followed or fetched (`jku`, `jwk`, `x5u`, `x5c` are ignored, `crit` is refused).
//! Claims are read only after the signature has verified, but for one peek that words a refusal.
//!
//! Verified tokens are remembered by the SHA-256 of the whole token, so that a repeated one costs a hash and a
//! look-up. What is remembered is who the caller is, never what the caller may do.

use crate::audience::Audiences;
use crate::jws::{Jws, json, numeric_date, present};
use crate::key_set::{KeySet, TokenAlgorithm, VerificationKey};
use crate::key_source::KeySetSource;
use crate::text::{rfc3339, sha256, shown};
use arc_swap::ArcSwap;
use domain::principal::{Caller, ObjectId, TenantId};
use domain::time::Time;
use quick_cache::sync::Cache;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Most groups of a token that count. Azure lists at most as many; a token with more counts as having none.
pub const MAX_GROUPS: usize = 200;
/// How far the issuer's clock may run ahead of ours (`nbf`, `iat`), in seconds. `exp` has no leeway: a token ends
/// when it says.
pub const CLOCK_LEEWAY_SECONDS: i64 = 300;
/// A remembered token is verified again after this many seconds.
pub const CACHED_AT_MOST_SECONDS: i64 = 3600;
/// An unknown `kid` is a reason to fetch the key set at most this often, in seconds.
pub const REFETCH_INTERVAL_SECONDS: i64 = 60;
/// How many verified tokens are remembered by default.
pub const DEFAULT_CACHED_TOKENS: usize = 10_000;

/// Longest `appid`, `azp`, `upn` and `preferred_username`, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// What a pool accepts.
#[derive(Clone, Debug)]
pub struct VerifierConfig {
    /// Accepted `iss` values, compared exactly.
    pub issuers: Vec<String>,
    /// The only accepted `tid`.
    pub tenant: TenantId,
    /// Accepted `aud` values.
    pub audiences: Audiences,
    /// How many verified tokens are remembered, about; see [`DEFAULT_CACHED_TOKENS`].
    pub cached_tokens: usize,
}

/// Verifies tokens for one pool. Shared between threads.
pub struct TokenVerifier {
    config: VerifierConfig,
    state: ArcSwap<State>,
    cache: Cache<[u8; 32], Verified>,
    /// Unix milliseconds of the last time that [`TokenVerifier::wants_refetch`] said yes.
    refetch_granted: AtomicI64,
    source: OnceLock<Arc<dyn KeySetSource>>,
    /// Held while the source is asked: whoever needs its answer waits for it.
    asking: tokio::sync::Mutex<()>,
}

/// Why a token was refused. Every one of them is a 401 on the wire.
///
/// The messages repeat what the token claims, bounded and printable, and never the token or its signature.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    #[error("token is {length} bytes long, over the limit of {MAX_TOKEN_BYTES}")]
    TooLong { length: usize },
    #[error("token is not a signed JWT: expected 3 parts separated by dots, found {found}")]
    NotThreeParts { found: usize },
    #[error("{part} of the token is not base64url without padding")]
    NotBase64Url { part: &'static str },
    #[error(
        "{part} of the token is not a JSON object whose members have the right type and occur once (column {column})"
    )]
    NotJson { part: &'static str, column: usize },
    #[error("token type {found} is not accepted: expected JWT or at+jwt")]
    WrongType { found: String },
    #[error("token uses critical header extensions, which are not supported")]
    CriticalExtension,
    #[error("token algorithm {found} is not accepted: expected RS256, PS256 or ES256")]
    UnsupportedAlgorithm { found: String },
    #[error("token names no key: expected kid or x5t in its header")]
    NamesNoKey,
    #[error("token is signed with key {key}, which is not among the issuer's keys")]
    UnknownKey { key: String },
    #[error("token algorithm {algorithm} does not fit its key, which is for {key_is_for}")]
    AlgorithmMismatch { algorithm: TokenAlgorithm, key_is_for: &'static str },
    #[error("token signature does not verify")]
    BadSignature,
    #[error("token has no claim {claim}")]
    MissingClaim { claim: &'static str },
    #[error("token claim {claim} is malformed: expected {expected}")]
    MalformedClaim { claim: &'static str, expected: &'static str },
    #[error("token issuer {found} is not accepted: expected {}", .accepted.join(" or "))]
    WrongIssuer { found: String, accepted: Vec<String> },
    #[error("token audience {found} is not accepted: expected one of {accepted}")]
    WrongAudience { found: String, accepted: String },
    #[error("token tenant {found} is not accepted: expected {accepted}")]
    WrongTenant { found: String, accepted: TenantId },
    #[error("token expired at {}, {} seconds ago", rfc3339(*.expired), seconds_between(*.expired, *.now))]
    Expired { expired: Time, now: Time },
    #[error("token is not valid before {}, {} seconds from now", rfc3339(*.not_before), seconds_between(*.now, *.not_before))]
    NotYetValid { not_before: Time, now: Time },
    #[error("token was issued in the future, at {}, {} seconds from now", rfc3339(*.issued), seconds_between(*.now, *.issued))]
    IssuedInFuture { issued: Time, now: Time },
    #[error("tokens of principal {principal} issued before {} were revoked: sign in again", rfc3339(*.not_before))]
    Revoked { principal: ObjectId, not_before: Time },
}

impl TokenVerifier {
    pub fn new(config: VerifierConfig, keys: KeySet) -> Self {
        let state = State { keys, generation: 0, not_before: HashMap::new() };
        Self {
            cache: Cache::new(config.cached_tokens),
            config,
            state: ArcSwap::from_pointee(state),
            refetch_granted: AtomicI64::new(i64::MIN),
            source: OnceLock::new(),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    /// Where the issuer's key set comes from when it is not the one at hand. Set once; later ones are passed over.
    pub fn set_source(&self, source: Arc<dyn KeySetSource>) {
        let _ = self.source.set(source);
    }

    /// As [`Self::verify`]. A key that is not known is asked for first, at most once in [`REFETCH_INTERVAL_SECONDS`]
    /// whoever presents what; those who come meanwhile wait for that answer.
    pub async fn verify_asking(&self, token: &str, now: Time) -> Result<Arc<Caller>, TokenError> {
        match (self.verify(token, now), self.source.get()) {
            // Apart, as it is rare and large.
            (Err(TokenError::UnknownKey { .. }), Some(source)) => {
                Box::pin(self.ask_and_verify(token, now, source.as_ref())).await
            }
            (verified, _) => verified,
        }
    }

    async fn ask_and_verify(
        &self,
        token: &str,
        now: Time,
        source: &dyn KeySetSource,
    ) -> Result<Arc<Caller>, TokenError> {
        let _asking = self.asking.lock().await;
        // Another may have asked while this one waited.
        let verified = self.verify(token, now);
        match &verified {
            Err(refused) if self.wants_refetch(refused, now) => {
                self.take_keys(source).await;
                self.verify(token, now)
            }
            Ok(_) | Err(_) => verified,
        }
    }

    /// Asks the source, whatever tokens come: a key that the issuer took out of its set is to be good for nobody.
    pub async fn refresh_keys(&self) {
        let Some(source) = self.source.get() else { return };
        let _asking = self.asking.lock().await;
        self.take_keys(source.as_ref()).await;
    }

    /// What does not come, or cannot be used, changes nothing.
    async fn take_keys(&self, source: &dyn KeySetSource) {
        let fetched = source.fetch().await.map_err(|error| error.to_string());
        match fetched.and_then(|json| KeySet::parse(&json).map_err(|error| error.to_string())) {
            Ok(keys) => self.replace_keys(keys),
            Err(error) => tracing::warn!(error, "the issuer's key set cannot be fetched and stays as it was"),
        }
    }

    /// Who presents `token` (the text after `Bearer `), at `now`.
    ///
    /// A remembered token is judged again by its expiry, by revocations, by the generation of the key set, and by
    /// [`CACHED_AT_MOST_SECONDS`].
    pub fn verify(&self, token: &str, now: Time) -> Result<Arc<Caller>, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong { length: token.len() });
        }
        let hash = sha256(token.as_bytes());
        let state = self.state.load();
        if let Some(verified) = self.cache.get(&hash)
            && verified.is_recent(state.generation, now)
        {
            let judged = verified.judge_now(&state, now);
            if judged.is_err() {
                self.cache.remove(&hash);
            }
            return judged.map(|()| verified.caller);
        }
        let verified = self.verify_afresh(&state, token, now)?;
        verified.judge_now(&state, now)?;
        self.cache.insert(hash, verified.clone());
        Ok(verified.caller)
    }

    /// How often the key set was replaced.
    pub fn generation(&self) -> u64 {
        self.state.load().generation
    }

    /// The names of the keys that are good now.
    pub fn key_names(&self) -> Vec<String> {
        self.state.load().keys.names()
    }

    /// Replaces the key set. Everything remembered was verified with the old one and is verified again. An equal
    /// set changes nothing, so that a forged `kid` cannot empty the cache by causing a fetch.
    pub fn replace_keys(&self, keys: KeySet) {
        self.state.rcu(|state| {
            if state.keys == keys {
                return Arc::clone(state);
            }
            Arc::new(State {
                keys: keys.clone(),
                generation: state.generation + 1,
                not_before: state.not_before.clone(),
            })
        });
    }

    /// Refuses tokens of `principal` issued before `not_before`, remembered ones included. A later value replaces an
    /// earlier one, never the reverse.
    ///
    /// `iat` has whole seconds: a token issued in the very second of `not_before` is refused, even if it came after.
    pub fn revoke_before(&self, principal: ObjectId, not_before: Time) {
        self.state.rcu(|state| {
            let mut changed = State::clone(state);
            let entry = changed.not_before.entry(principal).or_insert(not_before);
            *entry = not_before.max(*entry);
            changed
        });
    }

    /// Whether `error` is a reason to fetch the issuer's key set now: its key may be newer than our set. True at most
    /// once in [`REFETCH_INTERVAL_SECONDS`], whoever asks; the caller fetches and calls [`Self::replace_keys`].
    pub fn wants_refetch(&self, error: &TokenError, now: Time) -> bool {
        if !matches!(error, TokenError::UnknownKey { .. }) {
            return false;
        }
        let now = now.unix_milliseconds();
        let last = self.refetch_granted.load(Ordering::Relaxed);
        // A clock that was set back must not stop fetching until it has caught up.
        let due = now < last || now.saturating_sub(last) >= REFETCH_INTERVAL_SECONDS * 1000;
        due && self.refetch_granted.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn verify_afresh(&self, state: &State, token: &str, now: Time) -> Result<Verified, TokenError> {
        let jws = Jws::split(token)?;
        let header = Header::parse(jws.header)?;
        let algorithm = header.check()?;
        let key = self.key(state, &header, &jws)?;
        jws.verify(key, algorithm)?;

        let claims = Claims::parse(jws.payload)?;
        self.accept(&claims, state.generation, now)
    }

    fn key<'a>(
        &self,
        state: &'a State,
        header: &Header,
        jws: &Jws<'_>,
    ) -> Result<&'a VerificationKey, TokenError> {
        let (found, name) = match (&header.kid, &header.x5t) {
            (Some(kid), _) => (state.keys.by_kid(kid), kid),
            (None, Some(x5t)) => (state.keys.by_x5t(x5t), x5t),
            (None, None) => return Err(TokenError::NamesNoKey),
        };
        found.ok_or_else(|| {
            // A token of another issuer is told so, and is no reason to fetch ours. The claim is not yet
            // authenticated; it only chooses between two refusals.
            let issuer = Claims::parse(jws.payload).and_then(|claims| self.check_issuer(&claims));
            match issuer {
                Err(wrong @ TokenError::WrongIssuer { .. }) => wrong,
                _ => TokenError::UnknownKey { key: shown(name) },
            }
        })
    }

    fn accept(&self, claims: &Claims, generation: u64, now: Time) -> Result<Verified, TokenError> {
        self.check_issuer(claims)?;
        self.check_audience(claims)?;
        self.check_tenant(claims)?;
        let expires = claims.time(Claim::EXP)?.ok_or(TokenError::MissingClaim { claim: "exp" })?;
        let issued = claims.time(Claim::IAT)?;
        let not_before = claims.time(Claim::NBF)?;
        let leeway_ends = now.unix_milliseconds().saturating_add(CLOCK_LEEWAY_SECONDS * 1000);
        let leeway_ends = Time::from_unix_milliseconds(leeway_ends);
        if let Some(not_before) = not_before.filter(|not_before| *not_before > leeway_ends) {
            return Err(TokenError::NotYetValid { not_before, now });
        }
        if let Some(issued) = issued.filter(|issued| *issued > leeway_ends) {
            return Err(TokenError::IssuedInFuture { issued, now });
        }
        let caller = Caller {
            tenant: self.config.tenant.clone(),
            object_id: claims.object_id()?,
            groups: claims.groups()?,
            issued_at: issued.or(not_before).unwrap_or_default().int_date(),
            application_id: claims.name(Claim::APPID)?.or(claims.name(Claim::AZP)?),
            user_principal_name: claims.name(Claim::UPN)?.or(claims.name(Claim::PREFERRED_USERNAME)?),
        };
        Ok(Verified { caller: Arc::new(caller), expires, issued, verified: now, generation })
    }

    fn check_issuer(&self, claims: &Claims) -> Result<(), TokenError> {
        let issuer = claims.required_text(Claim::ISS)?;
        if self.config.issuers.iter().any(|accepted| accepted == issuer) {
            return Ok(());
        }
        Err(TokenError::WrongIssuer { found: shown(issuer), accepted: self.config.issuers.clone() })
    }

    fn check_audience(&self, claims: &Claims) -> Result<(), TokenError> {
        let malformed =
            TokenError::MalformedClaim { claim: "aud", expected: "a string or an array of strings" };
        let audiences: Vec<&str> = match &claims.aud {
            None => return Err(TokenError::MissingClaim { claim: "aud" }),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => {
                several.iter().map(Value::as_str).collect::<Option<_>>().ok_or(malformed)?
            }
            Some(_) => return Err(malformed),
        };
        if audiences.iter().any(|audience| self.config.audiences.canonical(audience).is_some()) {
            return Ok(());
        }
        let found = shown(&audiences.join(", "));
        Err(TokenError::WrongAudience { found, accepted: self.config.audiences.described() })
    }

    fn check_tenant(&self, claims: &Claims) -> Result<(), TokenError> {
        let tenant = claims.required_text(Claim::TID)?;
        if TenantId::parse(tenant).is_ok_and(|tenant| tenant == self.config.tenant) {
            return Ok(());
        }
        Err(TokenError::WrongTenant { found: shown(tenant), accepted: self.config.tenant.clone() })
    }
}

/// What changes while a verifier is in use; swapped whole.
#[derive(Clone)]
struct State {
    keys: KeySet,
    /// Counts the key sets; what was verified under another generation is not remembered.
    generation: u64,
    not_before: HashMap<ObjectId, Time>,
}

/// A token that verified.
#[derive(Clone)]
struct Verified {
    caller: Arc<Caller>,
    expires: Time,
    issued: Option<Time>,
    verified: Time,
    generation: u64,
}

impl Verified {
    /// Whether the signature and the fixed claims need not be looked at again.
    fn is_recent(&self, generation: u64, now: Time) -> bool {
        let age = now.unix_milliseconds().saturating_sub(self.verified.unix_milliseconds());
        self.generation == generation && (0..CACHED_AT_MOST_SECONDS * 1000).contains(&age)
    }

    /// What has to be judged on every use.
    fn judge_now(&self, state: &State, now: Time) -> Result<(), TokenError> {
        // RFC 7519 section 4.1.4: not on or after.
        if now >= self.expires {
            return Err(TokenError::Expired { expired: self.expires, now });
        }
        let principal = self.caller.object_id;
        match state.not_before.get(&principal) {
            // Without `iat` nothing shows that the token is newer than the revocation.
            Some(&not_before) if self.issued.is_none_or(|issued| issued < not_before) => {
                Err(TokenError::Revoked { principal, not_before })
            }
            _ => Ok(()),
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    x5t: Option<String>,
    typ: Option<String>,
    /// Present in any form, `null` included.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

impl Header {
    fn parse(encoded: &str) -> Result<Self, TokenError> {
        json(encoded, "header")
    }

    fn check(&self) -> Result<TokenAlgorithm, TokenError> {
        if self.crit {
            return Err(TokenError::CriticalExtension);
        }
        // Typed tokens of other kinds (logout, DPoP proofs, security events) are signed with the same keys.
        let accepted = ["jwt", "at+jwt", "application/at+jwt"];
        if let Some(typ) = &self.typ
            && !accepted.iter().any(|accepted| typ.eq_ignore_ascii_case(accepted))
        {
            return Err(TokenError::WrongType { found: shown(typ) });
        }
        TokenAlgorithm::from_name(&self.alg)
            .ok_or_else(|| TokenError::UnsupportedAlgorithm { found: shown(&self.alg) })
    }
}

/// The claims that are read. Each keeps its JSON form until it is asked for, so that a refusal can name it.
#[derive(Deserialize)]
struct Claims {
    iss: Option<Value>,
    aud: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
    tid: Option<Value>,
    oid: Option<Value>,
    appid: Option<Value>,
    azp: Option<Value>,
    upn: Option<Value>,
    preferred_username: Option<Value>,
    groups: Option<Value>,
    /// Present when the groups were too many to list.
    hasgroups: Option<IgnoredAny>,
    /// Names the claims that the issuer left out and that a client could fetch elsewhere.
    #[serde(rename = "_claim_names")]
    claim_names: Option<Value>,
}

/// A claim's name and the way to it.
struct Claim(&'static str, fn(&Claims) -> &Option<Value>);

impl Claim {
    const ISS: Self = Self("iss", |claims| &claims.iss);
    const TID: Self = Self("tid", |claims| &claims.tid);
    const OID: Self = Self("oid", |claims| &claims.oid);
    const EXP: Self = Self("exp", |claims| &claims.exp);
    const NBF: Self = Self("nbf", |claims| &claims.nbf);
    const IAT: Self = Self("iat", |claims| &claims.iat);
    const APPID: Self = Self("appid", |claims| &claims.appid);
    const AZP: Self = Self("azp", |claims| &claims.azp);
    const UPN: Self = Self("upn", |claims| &claims.upn);
    const PREFERRED_USERNAME: Self = Self("preferred_username", |claims| &claims.preferred_username);
}

impl Claims {
    fn parse(encoded: &str) -> Result<Self, TokenError> {
        json(encoded, "payload")
    }

    fn text(&self, Claim(claim, value): Claim) -> Result<Option<&str>, TokenError> {
        match value(self) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(TokenError::MalformedClaim { claim, expected: "a string" }),
        }
    }

    fn required_text(&self, claim: Claim) -> Result<&str, TokenError> {
        let name = claim.0;
        self.text(claim)?.ok_or(TokenError::MissingClaim { claim: name })
    }

    /// A name for the audit log; an empty one counts as absent.
    fn name(&self, claim: Claim) -> Result<Option<String>, TokenError> {
        let name = claim.0;
        match self.text(claim)? {
            Some(text) if text.len() > MAX_NAME_BYTES => {
                Err(TokenError::MalformedClaim { claim: name, expected: "at most 256 bytes" })
            }
            text => Ok(text.filter(|text| !text.is_empty()).map(str::to_owned)),
        }
    }

    fn time(&self, Claim(claim, value): Claim) -> Result<Option<Time>, TokenError> {
        let Some(value) = value(self) else { return Ok(None) };
        let malformed = TokenError::MalformedClaim { claim, expected: "seconds since 1970, up to year 9999" };
        numeric_date(value).map(Some).ok_or(malformed)
    }

    fn object_id(&self) -> Result<ObjectId, TokenError> {
        let malformed = TokenError::MalformedClaim { claim: "oid", expected: "a GUID" };
        self.required_text(Claim::OID)?.parse().map_err(|_| malformed)
    }

    /// The groups, or none if the issuer says, or the number shows, that not all of them could be listed: a
    /// caller's rights must not depend on which ones an issuer happened to pick. Names that are not GUIDs (Keycloak
    /// sends paths) cannot be assigned a role and are left out.
    fn groups(&self) -> Result<Vec<ObjectId>, TokenError> {
        let overage = match &self.claim_names {
            None => false,
            Some(Value::Object(names)) => names.contains_key("groups"),
            Some(_) => {
                return Err(TokenError::MalformedClaim { claim: "_claim_names", expected: "an object" });
            }
        };
        let malformed = TokenError::MalformedClaim { claim: "groups", expected: "an array of strings" };
        let groups = match &self.groups {
            None => return Ok(Vec::new()),
            Some(Value::Array(groups)) => groups,
            Some(_) => return Err(malformed),
        };
        if overage || self.hasgroups.is_some() || groups.len() > MAX_GROUPS {
            return Ok(Vec::new());
        }
        let names: Option<Vec<&str>> = groups.iter().map(Value::as_str).collect();
        Ok(names.ok_or(malformed)?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

fn seconds_between(earlier: Time, later: Time) -> i64 {
    later.unix_milliseconds().saturating_sub(earlier.unix_milliseconds()) / 1000
}
