//! `--private-listen NAME=ADDRESS`: an address of this machine at which the gateway takes clients of a private network. Who can
//! reach that address is the operator's to see to; what it opens, the approval of a private endpoint connection decides.

use crate::CommandError;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Each is a listener.
const MAX_NETWORKS: usize = 16;
const MAX_NAME: usize = 64;

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PrivateNetwork {
    name: String,
    pub address: IpAddr,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MalformedNetwork {
    #[error("it must be NAME=ADDRESS, such as office=10.0.0.5")]
    NoName,
    #[error("the name must be 1 to {MAX_NAME} characters of 0-9, a-z and -")]
    Name,
    #[error("`{0}` is no address")]
    Address(String),
    #[error("{0} is every address: name one")]
    Unspecified(IpAddr),
}

impl FromStr for PrivateNetwork {
    type Err = MalformedNetwork;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, address) = text.split_once('=').ok_or(MalformedNetwork::NoName)?;
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) {
            return Err(MalformedNetwork::Name);
        }
        let parsed: Result<IpAddr, _> = address.parse();
        let address = parsed.map_err(|_| MalformedNetwork::Address(address.chars().take(60).collect()))?;
        let address = address.to_canonical();
        if address.is_unspecified() {
            return Err(MalformedNetwork::Unspecified(address));
        }
        Ok(Self { name: name.to_owned(), address })
    }
}

impl fmt::Display for PrivateNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.name, self.address)
    }
}

/// One address is one network's, and no way for everybody as well.
pub fn check(networks: &[PrivateNetwork], listen: &[IpAddr]) -> Result<(), CommandError> {
    if networks.len() > MAX_NETWORKS {
        return Err(format!("--private-listen can be given {MAX_NETWORKS} times at most").into());
    }
    for (index, network) in networks.iter().enumerate() {
        let before = networks.get(..index).unwrap_or_default();
        if before.iter().any(|other| other.name == network.name || other.address == network.address) {
            return Err(format!("--private-listen {network}: its name or address was given before").into());
        }
        let shared = |address: &IpAddr| address.to_canonical() == network.address || address.is_unspecified();
        if let Some(address) = listen.iter().find(|address| shared(address)) {
            return Err(format!(
                "--private-listen {network}: `--listen {address}` opens that address to everybody"
            )
            .into());
        }
        if [IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()].contains(&network.address) {
            return Err(format!("--private-listen {network}: the gateway listens there for everybody").into());
        }
    }
    Ok(())
}

pub fn by_name(networks: &[PrivateNetwork]) -> BTreeMap<String, IpAddr> {
    networks.iter().map(|network| (network.name.clone(), network.address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> PrivateNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_a_name_and_one_address() {
        for (text, shown) in [
            ("office=10.0.0.5", "office=10.0.0.5"),
            ("a-1=::ffff:10.0.0.5", "a-1=10.0.0.5"),
            ("b=fd00::1", "b=fd00::1"),
        ] {
            assert_eq!(network(text).to_string(), shown);
        }
        for (text, said) in [
            ("10.0.0.5", "NAME=ADDRESS"),
            ("=10.0.0.5", "the name must be"),
            ("Office=10.0.0.5", "the name must be"),
            ("a/b=10.0.0.5", "the name must be"),
            ("office=", "no address"),
            ("office=10.0.0.0/24", "no address"),
            ("office=0.0.0.0", "every address"),
            ("office=::", "every address"),
        ] {
            let error = text.parse::<PrivateNetwork>().unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn no_address_is_both_private_and_open_to_everybody() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let two = [network("a=10.0.0.5"), network("b=fd00::1")];
        assert!(check(&two, &[address("192.0.2.1")]).is_ok());
        for (networks, listen) in [
            (vec![network("a=10.0.0.5"), network("a=10.0.0.6")], vec![]),
            (vec![network("a=10.0.0.5"), network("b=10.0.0.5")], vec![]),
            (two.to_vec(), vec![address("::ffff:10.0.0.5")]),
            (two.to_vec(), vec![address("0.0.0.0")]),
            (vec![network("a=127.0.0.1")], vec![]),
            (vec![network("a=::1")], vec![]),
            ((0..17).map(|index| network(&format!("n{index}=10.0.0.{}", index + 1))).collect(), vec![]),
        ] {
            assert!(check(&networks, &listen).is_err(), "{networks:?} {listen:?}");
        }
    }
}
