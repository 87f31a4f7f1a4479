//! Use case of key attestation: what the pool's record says of a version, signed. It uses no key of a customer's, and
//! a disabled or expired one is attested like any other.

use crate::pool::Pool;
use crate::release;
use crate::ticket::{Recorded, Ticket};
use crate::views::{KeyReference, KeyView};
use crypto::attestation::{Attestor, KeyAttestation, KeyStatement};
use domain::access::{Scope, action};
use domain::name::{KeyName, KeyVersion};
use quick_cache::sync::Cache;
use std::sync::Arc;
use storage::VersionRecord;

/// How long a statement is repeated while it still says what is so: clients compare two of one version, byte by byte.
const REPEATED_SECONDS: i64 = 3_600;
/// A few KiB each.
const MAX_KEPT: usize = 256;

/// Makes statements, and repeats those that it made a short while ago.
pub(crate) struct Attestations {
    attestor: Attestor,
    kept: Cache<(KeyName, KeyVersion), Arc<(KeyStatement, KeyAttestation)>>,
}

impl Attestations {
    pub fn new(attestor: Attestor) -> Self {
        Self { attestor, kept: Cache::new(MAX_KEPT) }
    }

    fn of(&self, record: &VersionRecord, now: domain::time::IntDate) -> KeyAttestation {
        let policy = record.version.release.as_ref();
        let policy = policy.map(release::digest);
        let statement = self.attestor.statement(&record.version, &record.material, policy, now);
        let place = (statement.name.clone(), statement.version);
        if let Some(kept) = self.kept.get(&place) {
            let (said, attestation) = kept.as_ref();
            let age = now.unix_seconds() - said.at.unix_seconds();
            let same = KeyStatement { at: said.at, ..statement.clone() } == *said;
            if same && (0..REPEATED_SECONDS).contains(&age) {
                return attestation.clone();
            }
        }
        let attestation = self.attestor.attest(&statement);
        self.kept.insert(place, Arc::new((statement, attestation.clone())));
        attestation
    }
}

/// A version of a key, and the pool's statement about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AttestedKey {
    pub key: KeyView,
    pub attestation: KeyAttestation,
}

impl Pool {
    /// Whoever may read a key may have it attested (behaviour section 11.3).
    pub async fn attest_key(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
    ) -> Recorded<AttestedKey> {
        let scope = Scope::Key(key.name.clone());
        ticket.about_key(&key.name, key.version);
        ticket.asks::<action::KeyRead>(&scope);
        let held =
            ticket.authorize::<action::KeyRead>(scope).and_then(|grant| self.stored(&grant, key.version));
        let attested = held.map(|held| {
            let record = &held.version.value;
            ticket.about_key(&key.name, Some(record.version.version));
            AttestedKey {
                key: self.view(&record.version),
                attestation: self.attestations().of(record, self.now().int_date()),
            }
        });
        ticket.record(attested).await
    }
}
