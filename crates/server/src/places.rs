//! How many connections a listener holds open, in all and for one peer. Whoever finds no place is closed at once: a
//! client that is refused tries again or says so, one that waits unanswered does neither.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// How many connections each listener gets: its full number, or a share where few descriptors may be open. A quarter of
/// them is left for the store and the log, so that no crowd of peers keeps an event from being written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    pub pool: usize,
    pub issuer: usize,
    /// Each takes two descriptors.
    pub tunnels: usize,
    /// Each takes two descriptors of the gateway's process, and a third where the pool is in the quickstart's.
    pub gateway: usize,
}

impl Capacity {
    pub fn within(descriptors: u64) -> Self {
        let share = |parts: u64| usize::try_from(descriptors / parts).unwrap_or(usize::MAX);
        Self {
            pool: share(4).min(4096),
            issuer: share(16).min(1024),
            tunnels: share(32).min(1024),
            gateway: share(8).min(4096),
        }
    }
}

/// Places for connections, shared by all sockets of one listener.
pub struct Places {
    in_all: usize,
    for_one_peer: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    by_peer: HashMap<IpAddr, usize>,
    /// Whether the last connection found no place, so that the log says it once and not for each.
    refusing: bool,
}

/// One open connection; its place is free again when this is dropped.
pub struct Place {
    places: Arc<Places>,
    peer: Option<IpAddr>,
}

impl Places {
    pub fn new(in_all: usize, for_one_peer: usize) -> Arc<Self> {
        Arc::new(Self { in_all, for_one_peer, taken: Mutex::default() })
    }

    /// A place for a connection from `address`, or `None` when this listener or this peer has all that it may have.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let peer = peer(address);
        let mut taken = self.taken.lock();
        let of_peer = peer.map_or(0, |peer| taken.by_peer.get(&peer).copied().unwrap_or(0));
        if taken.in_all >= self.in_all || of_peer >= self.for_one_peer {
            if !std::mem::replace(&mut taken.refusing, true) {
                tracing::warn!(
                    connections = taken.in_all,
                    of_peer,
                    "connections are refused: the limit is reached"
                );
            }
            return None;
        }
        taken.refusing = false;
        taken.in_all += 1;
        if let Some(peer) = peer {
            taken.by_peer.insert(peer, of_peer + 1);
        }
        Some(Place { places: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.in_all -= 1;
        if let Some(peer) = self.peer
            && let Some(held) = taken.by_peer.get_mut(&peer)
        {
            *held -= 1;
            if *held == 0 {
                taken.by_peer.remove(&peer);
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, an IPv6 /64, as whoever has one address of that has them all. Programs on
/// this machine share an address and are not counted against each other.
fn peer(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V4(address) => Some(address.into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_peer_cannot_take_every_place() {
        let places = Places::new(4, 2);
        let held: Vec<_> =
            ["192.0.2.1", "::ffff:192.0.2.1"].map(|peer| places.take(address(peer)).unwrap()).into();
        assert!(places.take(address("192.0.2.1")).is_none());
        let other = places.take(address("192.0.2.2")).unwrap();
        drop(held);
        assert!(places.take(address("192.0.2.1")).is_some());
        drop(other);
        assert!(places.taken.lock().by_peer.is_empty(), "peers that left are forgotten");
        assert_eq!(places.taken.lock().in_all, 0);
    }

    #[test]
    fn a_quarter_of_the_descriptors_is_left() {
        for descriptors in [0, 64, 1024, 8192, 1 << 20, u64::MAX] {
            let Capacity { pool, issuer, tunnels, gateway } = Capacity::within(descriptors);
            // The issuer, the control plane, and whoever says that a name is nobody's.
            let taken = (pool + 3 * issuer + 2 * tunnels + 2 * gateway) as u64;
            assert!(taken <= descriptors - descriptors / 4, "{descriptors}");
        }
        let few = Capacity { pool: 256, issuer: 64, tunnels: 32, gateway: 128 };
        assert_eq!(Capacity::within(1024), few);
        let many = Capacity { pool: 4096, issuer: 1024, tunnels: 1024, gateway: 4096 };
        assert_eq!(Capacity::within(1 << 20), many);
    }

    #[test]
    fn a_network_is_one_peer_and_this_machine_is_none() {
        let places = Places::new(5, 1);
        let _held = places.take(address("2001:db8::1")).unwrap();
        assert!(places.take(address("2001:db8::ffff:2")).is_none());
        let _next = places.take(address("2001:db8:0:1::1")).unwrap();
        let _local = [(); 3].map(|()| places.take(address("127.0.0.1")).unwrap());
        assert!(places.take(address("::1")).is_none(), "five in all");
    }
}
