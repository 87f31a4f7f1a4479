//! Use case of key attestation: what the pool's record says of a version, signed. It uses no key of a customer's, and
//! a disabled or expired one is attested like any other.

use crate::pool::Pool;
use crate::ticket::{Recorded, Ticket};
use crate::views::{KeyReference, KeyView};
use crypto::attestation::KeyAttestation;
use domain::access::{Scope, action};
use std::sync::Arc;

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
                attestation: self.attestor().attest(
                    &record.version,
                    &record.material,
                    // No key has a release policy yet.
                    None,
                    self.now().int_date(),
                ),
            }
        });
        ticket.record(attested).await
    }
}
