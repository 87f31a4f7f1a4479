//! From where a pool may be called: the firewall's rules, and whether they let an address through.
//!
//! Addresses are looked at as the client has them, before its token is. Rules bind clients; whoever runs the machine can
//! start the pool with others.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// As the service has it.
pub const MAX_IP_RULES: usize = 10;
/// Networks of trusted services that an operator may list.
pub const MAX_TRUSTED_NETWORKS: usize = 100;

/// Addresses that share their first bits. Written as RFC 4632 and RFC 4291 have it; one address without its prefix.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedNetwork {
    #[error("`{0}` is neither an address nor a network such as 192.0.2.0/24")]
    Unreadable(String),
    #[error("`{written}` has bits beyond its prefix: its network is {network}")]
    HostBits { written: String, network: Network },
    #[error("`{written}` is an IPv4 address in IPv6 form: write {network}")]
    Mapped { written: String, network: IpAddr },
}

impl Network {
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        };
        Self { address, ..self }
    }

    fn most(address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        }
    }
}

impl FromStr for Network {
    type Err = MalformedNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let written = || text.chars().take(60).collect::<String>();
        let unreadable = || MalformedNetwork::Unreadable(written());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| unreadable())?;
        if address.to_canonical() != address {
            return Err(MalformedNetwork::Mapped { written: written(), network: address.to_canonical() });
        }
        let prefix = match prefix {
            None => Self::most(address),
            // `u8` would read a sign.
            Some(digits) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                return Err(unreadable());
            }
            Some(digits) => digits.parse().map_err(|_| unreadable())?,
        };
        if prefix > Self::most(address) {
            return Err(unreadable());
        }
        let network = Self { address, prefix };
        if network.masked() != network {
            return Err(MalformedNetwork::HostBits { written: written(), network: network.masked() });
        }
        Ok(network)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.prefix == Self::most(self.address) {
            write!(formatter, "{}", self.address)
        } else {
            write!(formatter, "{}/{}", self.address, self.prefix)
        }
    }
}

/// What happens to an address that no rule names.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DefaultAction {
    #[default]
    Allow,
    Deny,
}

/// Whether trusted services pass the firewall.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Bypass {
    #[default]
    TrustedServices,
    None,
}

/// What somebody who may write the pool's resource can set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkRules {
    pub default_action: DefaultAction,
    pub bypass: Bypass,
    ip_rules: Vec<Network>,
    /// Off: nobody comes through the network but trusted services.
    pub public_access: bool,
    /// Addresses of ours for clients of private networks, of approved private endpoint connections. Whoever comes in at one
    /// is admitted, whatever the other rules are.
    pub private: Vec<IpAddr>,
}

impl Default for NetworkRules {
    /// Open to everybody.
    fn default() -> Self {
        Self {
            default_action: DefaultAction::default(),
            bypass: Bypass::default(),
            ip_rules: Vec::new(),
            public_access: true,
            private: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedRules {
    #[error("there are {0} IP rules; at most {MAX_IP_RULES} can be set")]
    TooMany(usize),
    #[error("the IP rule {0} is there twice")]
    Twice(Network),
    #[error(transparent)]
    Network(#[from] MalformedNetwork),
}

/// Why the firewall refuses a client, with its address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Blocked {
    #[error("client address {address} is not authorized and the caller is not a trusted service")]
    Publicly { address: IpAddr },
    #[error(
        "client address {address} is not authorized: no approved private endpoint connection leads here from {called}"
    )]
    Privately { address: IpAddr, called: IpAddr },
}

impl Blocked {
    pub fn address(&self) -> IpAddr {
        match self {
            Self::Publicly { address } | Self::Privately { address, .. } => *address,
        }
    }
}

impl NetworkRules {
    pub fn with_ip_rules<T: AsRef<str>>(
        self,
        ip_rules: impl IntoIterator<Item = T>,
    ) -> Result<Self, MalformedRules> {
        let parsed = ip_rules.into_iter().map(|rule| rule.as_ref().parse::<Network>());
        let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        if parsed.len() > MAX_IP_RULES {
            return Err(MalformedRules::TooMany(parsed.len()));
        }
        let again = parsed.iter().enumerate().find(|(index, rule)| parsed[..*index].contains(rule));
        if let Some((_, rule)) = again {
            return Err(MalformedRules::Twice(*rule));
        }
        Ok(Self { ip_rules: parsed, ..self })
    }

    /// Whether there is no address that they keep out.
    pub fn is_open_to_all(&self) -> bool {
        self.public_access && self.default_action == DefaultAction::Allow
    }

    pub fn ip_rules(&self) -> &[Network] {
        &self.ip_rules
    }

    /// Likewise for a client that came in at `called`, an address for clients of a private network.
    pub fn admit_privately(&self, address: IpAddr, called: IpAddr) -> Result<(), Blocked> {
        let called = called.to_canonical();
        if self.private.contains(&called) {
            return Ok(());
        }
        Err(Blocked::Privately { address: address.to_canonical(), called })
    }

    /// Whether `address` may go on to show its token. `trusted`: where services are that the operator trusts.
    pub fn admit(&self, address: IpAddr, trusted: &[Network]) -> Result<(), Blocked> {
        let address = address.to_canonical();
        let lists = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        if self.bypass == Bypass::TrustedServices && lists(trusted) {
            return Ok(());
        }
        let admitted = self.is_open_to_all() || self.public_access && lists(&self.ip_rules);
        if admitted { Ok(()) } else { Err(Blocked::Publicly { address }) }
    }
}

impl fmt::Display for NetworkRules {
    /// For the audit log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.public_access { "enabled" } else { "disabled" };
        write!(
            formatter,
            "public access {access}, default {:?}, bypass {:?}, IP rules [",
            self.default_action, self.bypass
        )?;
        for (index, rule) in self.ip_rules.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(formatter, "{separator}{rule}")?;
        }
        write!(formatter, "]")?;
        if !self.private.is_empty() {
            let private: Vec<String> = self.private.iter().map(ToString::to_string).collect();
            write!(formatter, ", private endpoints at [{}]", private.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn rules(default_action: DefaultAction, ip_rules: &[&str]) -> NetworkRules {
        NetworkRules { default_action, ..NetworkRules::default() }.with_ip_rules(ip_rules).unwrap()
    }

    #[test]
    fn networks_are_read_in_one_form_only() {
        for (text, shown) in [
            ("192.0.2.7", "192.0.2.7"),
            ("192.0.2.7/32", "192.0.2.7"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("2001:db8::1/128", "2001:db8::1"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown, "{text}");
        }
        for text in [
            "",
            "/",
            "192.0.2.0/",
            "/24",
            "192.0.2.0/33",
            "192.0.2.0/+24",
            "192.0.2.0/-1",
            "192.0.2.0/024a",
            "192.0.2.0/24/24",
            "192.0.2",
            "192.0.2.0 /24",
            " 192.0.2.0",
            "::/129",
            "example.com",
            "192.0.02.1",
        ] {
            assert!(matches!(text.parse::<Network>(), Err(MalformedNetwork::Unreadable(_))), "{text}");
        }
        let error = "192.0.2.7/24".parse::<Network>().unwrap_err();
        assert!(error.to_string().ends_with("its network is 192.0.2.0/24"), "{error}");
        let error = "::ffff:192.0.2.7".parse::<Network>().unwrap_err();
        assert!(error.to_string().ends_with("write 192.0.2.7"), "{error}");
    }

    #[test]
    fn what_no_rule_names_follows_the_default() {
        let trusted = ["198.51.100.0/24".parse().unwrap()];
        let deny = rules(DefaultAction::Deny, &["192.0.2.0/24", "2001:db8::/48"]);
        for (from, admitted) in [
            ("192.0.2.0", true),
            ("192.0.2.255", true),
            ("192.0.3.0", false),
            ("192.0.1.255", false),
            ("::ffff:192.0.2.9", true),
            ("::ffff:192.0.3.9", false),
            ("2001:db8:0:ffff::1", true),
            ("2001:db8:1::1", false),
            ("127.0.0.1", false),
            ("::1", false),
            ("198.51.100.1", true),
        ] {
            assert_eq!(deny.admit(address(from), &trusted).is_ok(), admitted, "{from}");
        }
        let without_bypass = NetworkRules { bypass: Bypass::None, ..deny.clone() };
        assert!(without_bypass.admit(address("198.51.100.1"), &trusted).is_err());
        let closed = NetworkRules { public_access: false, ..deny };
        assert!(closed.admit(address("192.0.2.1"), &trusted).is_err());
        assert!(closed.admit(address("198.51.100.1"), &trusted).is_ok(), "trusted services still pass");
        let open = NetworkRules { public_access: false, ..NetworkRules::default() };
        assert!(open.admit(address("192.0.2.1"), &[]).is_err());
        let error = open.admit(address("::ffff:192.0.2.1"), &[]).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1 is not authorized"), "{error}");
    }

    #[test]
    fn a_private_way_is_open_where_it_is_approved_and_nowhere_else() {
        let approved = NetworkRules { private: vec![address("10.0.0.5")], ..NetworkRules::default() };
        let closed = NetworkRules { public_access: false, bypass: Bypass::None, ..approved.clone() };
        let from = address("192.0.2.1");
        for rules in [&approved, &closed] {
            for called in ["10.0.0.5", "::ffff:10.0.0.5"] {
                assert!(rules.admit_privately(from, address(called)).is_ok(), "{called}");
            }
            for called in ["10.0.0.6", "127.0.0.1", "::1", "192.0.2.1"] {
                let error = rules.admit_privately(from, address(called)).unwrap_err();
                assert!(error.to_string().contains("192.0.2.1 is not authorized"), "{error}");
                assert!(error.to_string().ends_with(&format!("leads here from {called}")), "{error}");
            }
        }
        // Open to everybody is no approval, and an approval opens no other way.
        assert!(NetworkRules::default().admit_privately(from, address("10.0.0.5")).is_err());
        assert!(closed.admit(from, &[]).is_err() && closed.admit(address("10.0.0.5"), &[]).is_err());
        assert!(approved.to_string().ends_with("IP rules [], private endpoints at [10.0.0.5]"), "{approved}");
    }

    #[test]
    fn there_are_few_rules_and_each_is_there_once() {
        let many = (0..11).map(|index| format!("192.0.2.{index}"));
        assert_eq!(NetworkRules::default().with_ip_rules(many), Err(MalformedRules::TooMany(11)));
        let twice = NetworkRules::default().with_ip_rules(["192.0.2.1", "192.0.2.1/32"]);
        assert!(matches!(twice, Err(MalformedRules::Twice(_))));
    }

    /// As slow as it is plain.
    fn bits(address: IpAddr) -> Vec<bool> {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
            (0_u32..1024).prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
            any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical()),
            (0_u128..1024).prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)).to_canonical()),
        ]
    }

    proptest! {
        #[test]
        fn a_network_contains_what_begins_with_its_bits(
            own in addresses(), other in addresses(), length in 0_usize..=128,
        ) {
            let prefix = length.min(bits(own).len());
            let network = Network { address: own, prefix: u8::try_from(prefix).unwrap() }.masked();
            let same_family = own.is_ipv4() == other.is_ipv4();
            let expected = same_family && bits(own)[..prefix] == bits(other)[..prefix];
            prop_assert_eq!(network.contains(other), expected);
            prop_assert!(network.contains(own));
            if network.address.to_canonical() == network.address {
                prop_assert_eq!(network.to_string().parse::<Network>(), Ok(network));
            }
        }

        #[test]
        fn reading_never_panics(text in "\\PC*|[0-9a-f:./]{0,50}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert!(network.contains(network.address));
            }
        }

        /// A rule more never locks anybody out, and a restriction more lets nobody in.
        #[test]
        fn rules_are_monotonous(from in addresses(), rule in addresses(), deny: bool, bypass: bool) {
            let default_action = if deny { DefaultAction::Deny } else { DefaultAction::Allow };
            let bypass = if bypass { Bypass::TrustedServices } else { Bypass::None };
            let none = NetworkRules { default_action, bypass, ..NetworkRules::default() };
            let one = none.clone().with_ip_rules([rule.to_string()]).unwrap();
            let closed = NetworkRules { public_access: false, ..one.clone() };
            prop_assert!(one.admit(rule, &[]).is_ok());
            prop_assert!(one.admit(from, &[]).is_ok() || none.admit(from, &[]).is_err());
            prop_assert!(closed.admit(from, &[]).is_err());
        }
    }
}
