//! Where a pool may connect to. What a caller names is compared with these and with nothing else.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

const DEFAULT_PORT: u16 = 443;
const MAX_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;

/// `host[:port]`, or `*.suffix[:port]` for every name with exactly one label before the suffix. Without a port: 443.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Deserialize, Serialize)]
#[serde(into = "String", try_from = "String")]
pub struct Destination {
    host: Pattern,
    port: u16,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Pattern {
    Address(IpAddr),
    /// In lower case, likewise the suffix, which has no dot in front.
    Name(String),
    Under(String),
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a host name, an address or `*.suffix`, with or without `:port`")]
pub struct MalformedDestination(String);

impl Destination {
    /// One host at one port. `host` is a name or an address, an IPv6 address with or without its brackets.
    pub fn exactly(host: &str, port: u16) -> Result<Self, MalformedDestination> {
        let malformed = || MalformedDestination(format!("{host}:{port}"));
        let host = Pattern::host(host).ok_or_else(malformed)?;
        if port == 0 { Err(malformed()) } else { Ok(Self { host, port }) }
    }

    /// Whether it is `host`, as it is written in a URL, at `port`.
    pub fn admits(&self, host: &str, port: u16) -> bool {
        self.port == port
            && match (&self.host, Pattern::host(host)) {
                (Pattern::Under(suffix), Some(Pattern::Name(name))) => {
                    name.split_once('.').is_some_and(|(_, rest)| rest == suffix)
                }
                (listed, Some(asked)) => *listed == asked,
                (_, None) => false,
            }
    }

    /// Whether whoever listed it meant this very machine, or an address: then no resolver is asked.
    pub fn address(&self) -> Option<IpAddr> {
        match &self.host {
            Pattern::Address(address) => Some(*address),
            Pattern::Name(name) | Pattern::Under(name) if is_localhost(name) => {
                Some(Ipv4Addr::LOCALHOST.into())
            }
            Pattern::Name(_) | Pattern::Under(_) => None,
        }
    }
}

/// Names under `localhost` are this machine (RFC 6761 section 6.3), whatever a resolver says.
fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether a name may lead there. A resolver that somebody else speaks for could otherwise lead a pool to services of
/// its own machine and to the metadata services of clouds, which trust whoever reaches them. Private networks stay
/// open: that is where private endpoints of a storage account are.
pub fn is_reachable_by_name(address: IpAddr) -> bool {
    /// Azure's metadata and health service of virtual machines; the others are link-local or unique local.
    const AZURE_WIRE_SERVER: [u8; 4] = [168, 63, 129, 16];
    const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    match address.to_canonical() {
        IpAddr::V4(address) => {
            !(address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.octets()[0] == 0
                || address.octets() == AZURE_WIRE_SERVER)
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address == AWS_METADATA
                // Translated (RFC 6052) and embedded (RFC 4291, RFC 3056) IPv4 addresses have their own way in.
                || address.octets().starts_with(&[0x00, 0x64, 0xff, 0x9b])
                || address.octets()[..12] == [0; 12]
                || address.octets().starts_with(&[0x20, 0x02]))
        }
    }
}

impl Pattern {
    fn host(text: &str) -> Option<Self> {
        if let Some(address) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().ok().map(|address| Self::Address(address.into()));
        }
        match text.parse() {
            Ok(address) => Some(Self::Address(address)),
            Err(_) => is_name(text).then(|| Self::Name(text.to_ascii_lowercase())),
        }
    }
}

/// No trailing dot, and no last label that a resolver reads as a number: `127.1` and `0x7f000001` are addresses to it.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= MAX_NAME_BYTES
        && text.split('.').all(label)
        && !last.starts_with(|first: char| first.is_ascii_digit())
}

impl FromStr for Destination {
    type Err = MalformedDestination;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || MalformedDestination(text.chars().take(MAX_NAME_BYTES).collect());
        // The colons of an address are in brackets.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let digits = port.bytes().all(|byte| byte.is_ascii_digit());
                (host, port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(malformed)?)
            }
            _ => (text, DEFAULT_PORT),
        };
        let host = match host.strip_prefix("*.") {
            // At least two labels: nobody means all of `com`.
            Some(suffix) if is_name(suffix) && (suffix.contains('.') || suffix == "localhost") => {
                Pattern::Under(suffix.to_ascii_lowercase())
            }
            Some(_) => return Err(malformed()),
            None if host.contains(':') && !host.starts_with('[') => return Err(malformed()),
            None => Pattern::host(host).ok_or_else(malformed)?,
        };
        Ok(Self { host, port })
    }
}

impl TryFrom<String> for Destination {
    type Error = MalformedDestination;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Pattern::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Pattern::Address(address) => write!(f, "{address}")?,
            Pattern::Name(name) => f.write_str(name)?,
            Pattern::Under(suffix) => write!(f, "*.{suffix}")?,
        }
        match self.port {
            DEFAULT_PORT => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> Destination {
        text.parse().unwrap()
    }

    #[test]
    fn a_destination_is_a_host_and_a_port() {
        for (text, shown) in [
            ("Blob.Example", "blob.example"),
            ("blob.example:443", "blob.example"),
            ("blob.example:10000", "blob.example:10000"),
            ("*.blob.core.windows.net", "*.blob.core.windows.net"),
            ("*.localhost:1", "*.localhost:1"),
            ("127.0.0.1:10000", "127.0.0.1:10000"),
            ("[::1]:10000", "[::1]:10000"),
            ("[::1]", "[::1]"),
        ] {
            let destination = listed(text);
            assert_eq!(destination.to_string(), shown);
            assert_eq!(listed(shown), destination);
        }
        for text in [
            "",
            ":443",
            "*",
            "*.",
            "*.com",
            "*.*.example.com",
            "a.*.example.com",
            "**.example.com",
            "*.1.1",
            "*.[::1]",
            "https://blob.example",
            "blob.example/",
            "user@blob.example",
            "blob.example:",
            "blob.example:0",
            "blob.example:65536",
            "blob.example:+443",
            "blob.example.",
            ".example",
            "a..example",
            "a b",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "::1",
            "::1:443",
            "[::1",
            "[127.0.0.1]",
            "-a.example",
            "a_b.example",
            "bl\u{f6}b.example",
            "[fe80::1%eth0]",
        ] {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_is_listed_is_admitted() {
        let under = listed("*.blob.core.windows.net");
        assert!(under.admits("account.blob.core.windows.net", 443));
        assert!(under.admits("ACCOUNT.Blob.Core.Windows.Net", 443));
        for host in [
            "blob.core.windows.net",
            "a.b.blob.core.windows.net",
            ".blob.core.windows.net",
            "accountblob.core.windows.net",
            "account.blob.core.windows.net.evil.example",
            "account.blob.core.windows.net.",
            "evil.example",
            "",
            "127.0.0.1",
            "[::1]",
            "evil.example/.blob.core.windows.net",
            "evil.example#.blob.core.windows.net",
            "evil.example@x.blob.core.windows.net",
            "a%2eblob.core.windows.net",
        ] {
            assert!(!under.admits(host, 443), "{host}");
        }
        assert!(!under.admits("account.blob.core.windows.net", 80));

        let local = listed("127.0.0.1:10000");
        assert!(local.admits("127.0.0.1", 10000));
        for host in ["localhost", "127.0.0.2", "127.1", "[::ffff:127.0.0.1]", "2130706433", "127.0.0.1."] {
            assert!(!local.admits(host, 10000), "{host}");
        }
        assert!(!local.admits("127.0.0.1", 10001));
        assert!(listed("[::1]").admits("[0:0::1]", 443));
    }

    #[test]
    fn names_lead_neither_to_this_machine_nor_to_metadata() {
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fd00:ec2::254",
        ] {
            assert!(!is_reachable_by_name(address.parse().unwrap()), "{address}");
        }
        for address in ["20.60.1.2", "10.0.0.5", "192.168.1.1", "172.16.0.1", "fd12::1", "2603:1030::1"] {
            assert!(is_reachable_by_name(address.parse().unwrap()), "{address}");
        }
    }
}
