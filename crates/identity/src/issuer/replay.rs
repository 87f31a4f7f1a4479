//! Remembers the assertions that clients signed, so that whoever overhears one gains nothing by it.
//!
//! MSAL in Python and JavaScript makes one assertion for ten minutes and sends it for each resource that the program
//! asks for, from several threads at once where the first tokens are asked for at once. So an assertion is good for
//! one token per resource, and within [`SAME_MOMENT_SECONDS`] for as many as were asked for at the same time. Another
//! assertion with the same `jti` is refused in any case.

use crate::text::{sha256, shown};
use domain::guid::Guid;
use domain::time::Time;
use parking_lot::Mutex;
use std::collections::HashMap;

/// For as long after its first use for a resource an assertion may be used for it again.
pub(super) const SAME_MOMENT_SECONDS: i64 = 10;
/// Assertions of one client that are remembered; beyond that it has to wait until some have expired. With those of MSAL,
/// good for ten minutes, that is 54 new processes a second.
pub(super) const MAX_ASSERTIONS_PER_CLIENT: usize = 32_768;
/// Expired ones are looked for when a client has this many, or twice as many as were left the last time.
const FIRST_PURGE: usize = 64;
/// Resources that one assertion may be used for.
pub(super) const MAX_RESOURCES: usize = 16;

/// An assertion that verified and was not yet used for a token.
pub(super) struct Unspent {
    pub(super) client: Guid,
    pub(super) jti: String,
    /// SHA-256 of the assertion.
    pub(super) assertion: [u8; 32],
    pub(super) expires: Time,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Replay {
    #[error("an assertion with jti {jti} was used before")]
    Used { jti: String },
    #[error("this client has used {MAX_ASSERTIONS_PER_CLIENT} assertions that have not expired yet")]
    TooMany,
}

/// The assertions of all clients. Clients are registered, so their number is bounded; each has its own share.
#[derive(Default)]
pub(super) struct ReplayGuard(Mutex<HashMap<Guid, OfClient>>);

struct OfClient {
    /// By the SHA-256 of their `jti`.
    spent: HashMap<[u8; 32], Spent>,
    purge_at: usize,
}

struct Spent {
    assertion: [u8; 32],
    expires: Time,
    /// Each with the moment of its first token.
    resources: Vec<(String, Time)>,
}

impl ReplayGuard {
    /// Uses an assertion for a token for `resource`.
    pub(super) fn spend(&self, unspent: &Unspent, resource: &str, now: Time) -> Result<(), Replay> {
        let assertion = unspent.assertion;
        let used = || Replay::Used { jti: shown(&unspent.jti) };
        let mut guard = self.0.lock();
        let own = guard
            .entry(unspent.client)
            .or_insert_with(|| OfClient { spent: HashMap::new(), purge_at: FIRST_PURGE });
        let jti = sha256(unspent.jti.as_bytes());
        if !own.spent.contains_key(&jti) {
            own.make_room(now)?;
        }
        let spent = own.spent.entry(jti).or_insert_with(|| Spent {
            assertion,
            expires: unspent.expires,
            resources: Vec::new(),
        });
        if spent.assertion != assertion {
            return Err(used());
        }
        match spent.resources.iter().find(|(other, _)| other == resource) {
            Some((_, first)) => {
                let age = now.unix_milliseconds().saturating_sub(first.unix_milliseconds());
                (0..=SAME_MOMENT_SECONDS * 1000).contains(&age).then_some(()).ok_or_else(used)
            }
            None if spent.resources.len() >= MAX_RESOURCES => Err(used()),
            None => {
                spent.resources.push((resource.to_owned(), now));
                Ok(())
            }
        }
    }
}

impl OfClient {
    /// Forgets what has expired, now and then: no look-up pays for all of it, and no client keeps what it does not need.
    fn make_room(&mut self, now: Time) -> Result<(), Replay> {
        if self.spent.len() < self.purge_at {
            return Ok(());
        }
        self.spent.retain(|_, spent| spent.expires > now);
        self.spent.shrink_to(FIRST_PURGE);
        self.purge_at = (2 * self.spent.len()).clamp(FIRST_PURGE, MAX_ASSERTIONS_PER_CLIENT);
        if self.spent.len() < MAX_ASSERTIONS_PER_CLIENT { Ok(()) } else { Err(Replay::TooMany) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPIRES: i64 = 600;

    fn at(seconds: i64) -> Time {
        Time::from_unix_milliseconds(seconds * 1000)
    }

    fn unspent(client: u8, jti: &str, assertion: &str) -> Unspent {
        let assertion = sha256(assertion.as_bytes());
        Unspent { client: Guid([client; 16]), jti: jti.to_owned(), assertion, expires: at(EXPIRES) }
    }

    #[test]
    fn an_assertion_is_good_once_for_each_resource() {
        let guard = ReplayGuard::default();
        let first = unspent(1, "j", "a");
        assert_eq!(guard.spend(&first, "hsm", at(0)), Ok(()));
        assert_eq!(guard.spend(&first, "hsm", at(SAME_MOMENT_SECONDS)), Ok(()));
        let used = Err(Replay::Used { jti: "\"j\"".into() });
        assert_eq!(guard.spend(&first, "hsm", at(SAME_MOMENT_SECONDS + 1)), used);
        assert_eq!(guard.spend(&first, "hsm", at(-1)), used, "a clock that was set back");
        assert_eq!(guard.spend(&first, "arm", at(300)), Ok(()));
        assert_eq!(guard.spend(&unspent(1, "j", "b"), "graph", at(0)), used, "another assertion, same jti");
        assert_eq!(guard.spend(&unspent(2, "j", "b"), "hsm", at(0)), Ok(()), "another client");
        assert_eq!(guard.spend(&unspent(1, "k", "c"), "hsm", at(0)), Ok(()));
        for resource in 2..MAX_RESOURCES {
            assert_eq!(guard.spend(&first, &resource.to_string(), at(1)), Ok(()));
        }
        assert_eq!(guard.spend(&first, "one more", at(1)), used);
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let guard = ReplayGuard::default();
        for jti in 0..MAX_ASSERTIONS_PER_CLIENT {
            let jti = jti.to_string();
            guard.spend(&unspent(1, &jti, &jti), "hsm", at(0)).unwrap();
        }
        assert_eq!(guard.spend(&unspent(1, "more", "more"), "hsm", at(EXPIRES - 1)), Err(Replay::TooMany));
        assert_eq!(
            guard.spend(&unspent(2, "more", "more"), "hsm", at(EXPIRES - 1)),
            Ok(()),
            "another's share"
        );
        assert_eq!(guard.spend(&unspent(1, "0", "0"), "arm", at(EXPIRES - 1)), Ok(()), "known already");
        let later = Unspent { expires: at(2 * EXPIRES), ..unspent(1, "more", "more") };
        assert_eq!(guard.spend(&later, "hsm", at(EXPIRES)), Ok(()));
        assert_eq!(guard.0.lock()[&Guid([1; 16])].spent.len(), 1);
    }

    /// A client that comes again and again is remembered for as long as its assertions are good, and no longer.
    #[test]
    fn expired_assertions_are_forgotten_before_memory_is_full() {
        let guard = ReplayGuard::default();
        for second in 0..20 * EXPIRES {
            let jti = second.to_string();
            let one = Unspent { expires: at(second + EXPIRES), ..unspent(1, &jti, &jti) };
            assert_eq!(guard.spend(&one, "hsm", at(second)), Ok(()));
            let held = guard.0.lock()[&Guid([1; 16])].spent.len();
            assert!(held <= 2 * EXPIRES as usize + FIRST_PURGE, "{held} at second {second}");
        }
    }
}
