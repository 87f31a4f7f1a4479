//! The pool's firewall: which rules are in force, and a bounded trace of those whom it refused.
//!
//! A refused client has shown no token, so that anybody could fill the log with refusals. One client address leaves one
//! event a minute, and there are only so many events a minute in all; what came in between is counted, and the next event
//! says how many. Nothing else of a refusal is kept.

use crate::error::Error;
use crate::pool::Pool;
use crate::ticket::RequestFacts;
use audit::event::{Event, EventResult};
use domain::network::{Blocked, Network, NetworkRules};
use parking_lot::{Mutex, RwLock};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(60);
/// Client addresses that leave an event in one period; the others are counted together.
const ADDRESSES: usize = 60;

#[derive(Default)]
pub(crate) struct Firewall {
    in_force: RwLock<InForce>,
    refused: Mutex<Refused>,
}

#[derive(Clone, Default, Eq, PartialEq)]
struct InForce {
    rules: NetworkRules,
    trusted: Vec<Network>,
}

/// Refusals of one period.
#[derive(Default)]
struct Refused {
    since: Duration,
    addresses: HashSet<IpAddr>,
    passed_over: u64,
}

impl Refused {
    /// How many refusals were passed over before this one, if this one is to be an event.
    fn count(&mut self, address: IpAddr, now: Duration) -> Option<u64> {
        if now.saturating_sub(self.since) >= PERIOD {
            self.since = now;
            self.addresses.clear();
        }
        let source = source(address);
        if self.addresses.contains(&source) || self.addresses.len() >= ADDRESSES {
            self.passed_over = self.passed_over.saturating_add(1);
            return None;
        }
        self.addresses.insert(source);
        Some(std::mem::take(&mut self.passed_over))
    }
}

/// Whoever has one address of an IPv6 /64 has them all.
fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

impl Pool {
    /// Puts `rules` into force, with an event. `trusted`: networks of services that pass where the rules say so. The same
    /// again changes nothing. Rules bind clients and not the machine's owner, who starts the pool with them.
    pub async fn apply_network_rules(
        self: &Arc<Self>,
        rules: NetworkRules,
        trusted: Vec<Network>,
    ) -> Result<(), Error> {
        let new = InForce { rules, trusted };
        if *self.firewall().in_force.read() == new {
            return Ok(());
        }
        let mut detail = new.rules.to_string();
        if !new.trusted.is_empty() {
            let trusted: Vec<String> = new.trusted.iter().map(Network::to_string).collect();
            detail = format!("{detail}, trusted services [{}]", trusted.join(", "));
        }
        let event = Event {
            operation: "NetworkRulesApplied".into(),
            result: EventResult::Success,
            detail,
            ..self.blank_event()
        };
        self.append_own(&event).await?;
        *self.firewall().in_force.write() = new;
        Ok(())
    }

    pub fn network_rules(&self) -> NetworkRules {
        self.firewall().in_force.read().rules.clone()
    }

    /// Whether a client at `address` may show its token.
    pub fn admit_address(&self, address: IpAddr) -> Result<(), Blocked> {
        let in_force = self.firewall().in_force.read();
        in_force.rules.admit(address, &in_force.trusted)
    }

    /// Likewise for a client that came in at `called`, an address for clients of a private network.
    pub fn admit_privately(&self, address: IpAddr, called: IpAddr) -> Result<(), Blocked> {
        self.firewall().in_force.read().rules.admit_privately(address, called)
    }

    /// Leaves an event of a refused client, or counts it. The refusal is the same, whatever becomes of that.
    pub async fn record_blocked(
        self: &Arc<Self>,
        blocked: Blocked,
        operation: &'static str,
        facts: RequestFacts,
    ) {
        let counted = self.firewall().refused.lock().count(blocked.address(), self.monotonic());
        let Some(passed_over) = counted else { return };
        let error = Error::Blocked(blocked);
        let shown = (facts.show)(&error);
        let event = Event {
            time: facts.received_at,
            operation: operation.to_owned(),
            api_version: facts.api_version,
            result: EventResult::Failure {
                code: shown.code.to_owned(),
                inner_code: shown.inner_code.map(str::to_owned),
            },
            http_status: shown.status,
            duration_microseconds: facts.received.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
            client_address: facts.client_address,
            user_agent: facts.user_agent,
            correlation_id: facts.correlation_id,
            request_id: Some(facts.request_id),
            request_uri: facts.uri,
            detail: match passed_over {
                0 => error.to_string(),
                more => format!("{error}; {more} more were refused since the last such event"),
            },
            ..self.blank_event()
        };
        if let Err(error) = self.append_own(&event).await {
            tracing::error!(%error, "the event of a refused client was not recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_one_event_a_minute() {
        let mut refused = Refused::default();
        assert_eq!(refused.count(address("192.0.2.1"), at(100)), Some(0));
        assert_eq!(refused.count(address("192.0.2.1"), at(101)), None);
        assert_eq!(refused.count(address("192.0.2.1"), at(159)), None);
        assert_eq!(refused.count(address("192.0.2.2"), at(159)), Some(2), "counted, and said once");
        assert_eq!(refused.count(address("192.0.2.1"), at(160)), Some(0));
        assert_eq!(refused.count(address("2001:db8::1"), at(160)), Some(0));
        assert_eq!(refused.count(address("2001:db8::ffff"), at(160)), None, "one network, one peer");
    }

    #[test]
    fn a_crowd_leaves_no_more_events_than_there_may_be() {
        let mut refused = Refused::default();
        let events = (0..1000_u32)
            .filter(|index| refused.count(IpAddr::from(index.to_be_bytes()), at(100)).is_some())
            .count();
        assert_eq!(events, ADDRESSES);
        assert_eq!(refused.addresses.len(), ADDRESSES);
        assert_eq!(refused.count(address("192.0.2.1"), at(160)), Some(940));
    }
}
