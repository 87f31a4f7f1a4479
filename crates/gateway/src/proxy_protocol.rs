//! The PROXY protocol's header, version 2: who the client is, in front of what it sent. As much of it as the gateway writes:
//! TCP over IPv4 or IPv6 and no further members. Whatever else could be in one is refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

pub const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_BYTES: usize = 16;
const VERSION_2_PROXY: u8 = 0x21;
const TCP_IPV4: u8 = 0x11;
const TCP_IPV6: u8 = 0x21;

/// A client and the address of ours that it called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ends {
    pub client: SocketAddr,
    pub called: SocketAddr,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no PROXY protocol header of version 2 for TCP")]
pub struct MalformedHeader;

impl From<MalformedHeader> for io::Error {
    fn from(error: MalformedHeader) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl Ends {
    pub fn header(&self) -> Vec<u8> {
        let addresses = (self.client.ip().to_canonical(), self.called.ip().to_canonical());
        let (family, addresses) = match addresses {
            (IpAddr::V4(client), IpAddr::V4(called)) => {
                (TCP_IPV4, [client.octets(), called.octets()].concat())
            }
            (client, called) => {
                let wide = |address| match address {
                    IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).octets(),
                    IpAddr::V6(address) => Ipv6Addr::octets(&address),
                };
                (TCP_IPV6, [wide(client), wide(called)].concat())
            }
        };
        let ports = [self.client.port().to_be_bytes(), self.called.port().to_be_bytes()].concat();
        // 12 or 36.
        let length = u16::try_from(addresses.len() + ports.len()).unwrap_or(u16::MAX).to_be_bytes();
        [&SIGNATURE[..], &[VERSION_2_PROXY, family], &length, &addresses, &ports].concat()
    }

    /// A whole header and nothing else.
    pub fn parse(header: &[u8]) -> Result<Self, MalformedHeader> {
        let (head, addresses) = header.split_at_checked(HEAD_BYTES).ok_or(MalformedHeader)?;
        if addresses.len() != addresses_length(head)? {
            return Err(MalformedHeader);
        }
        let (addresses, ports) = addresses.split_at_checked(addresses.len() - 4).ok_or(MalformedHeader)?;
        let (client, called) = addresses.split_at(addresses.len() / 2);
        let (client_port, called_port) = ports.split_at(2);
        let end = |address: &[u8], port: &[u8]| {
            let address: IpAddr = match address.len() {
                4 => <[u8; 4]>::try_from(address).map_err(|_| MalformedHeader)?.into(),
                _ => <[u8; 16]>::try_from(address).map_err(|_| MalformedHeader)?.into(),
            };
            let port = u16::from_be_bytes(port.try_into().map_err(|_| MalformedHeader)?);
            Ok(SocketAddr::new(address.to_canonical(), port))
        };
        Ok(Self { client: end(client, client_port)?, called: end(called, called_port)? })
    }

    /// Reads a header and not a byte more.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut header = vec![0; HEAD_BYTES];
        stream.read_exact(&mut header).await?;
        let length = addresses_length(&header)?;
        header.resize(HEAD_BYTES + length, 0);
        stream.read_exact(header.get_mut(HEAD_BYTES..).unwrap_or_default()).await?;
        Ok(Self::parse(&header)?)
    }
}

fn addresses_length(head: &[u8]) -> Result<usize, MalformedHeader> {
    match head.strip_prefix(&SIGNATURE) {
        Some([VERSION_2_PROXY, TCP_IPV4, 0, 12]) => Ok(12),
        Some([VERSION_2_PROXY, TCP_IPV6, 0, 36]) => Ok(36),
        Some(_) | None => Err(MalformedHeader),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ends(client: &str, called: &str) -> Ends {
        Ends { client: client.parse().unwrap(), called: called.parse().unwrap() }
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let header = ends("192.0.2.7:258", "198.51.100.1:8444").header();
        let expected =
            [&SIGNATURE[..], &[0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 0x20, 0xfc]];
        assert_eq!(header, expected.concat());
    }

    #[test]
    fn a_header_is_read_back_and_an_ipv4_client_stays_one() {
        for (client, called, read) in [
            ("192.0.2.7:1", "198.51.100.1:2", "192.0.2.7:1"),
            ("[2001:db8::7]:1", "[2001:db8::1]:2", "[2001:db8::7]:1"),
            ("[::ffff:192.0.2.7]:1", "198.51.100.1:2", "192.0.2.7:1"),
            ("192.0.2.7:1", "[2001:db8::1]:2", "192.0.2.7:1"),
        ] {
            let header = ends(client, called).header();
            assert_eq!(Ends::parse(&header).unwrap().client, read.parse().unwrap());
        }
    }

    #[tokio::test]
    async fn not_a_byte_more_is_read() {
        let header = ends("192.0.2.7:1", "198.51.100.1:2").header();
        let bytes = [&header[..], b"hello"].concat();
        let mut rest = &bytes[..];
        Ends::read(&mut rest).await.unwrap();
        assert_eq!(rest, b"hello");
        assert!(Ends::read(&mut &header[..27]).await.is_err());
    }

    #[test]
    fn other_headers_are_refused() {
        let good = ends("192.0.2.7:1", "198.51.100.1:2").header();
        // LOCAL, version 1, UDP, Unix, a length that is not the addresses', further members.
        for (place, byte) in
            [(12, 0x20), (12, 0x11), (13, 0x12), (13, 0x31), (13, 0x00), (15, 13), (14, 1), (0, 0)]
        {
            let mut bad = good.clone();
            bad[place] = byte;
            assert_eq!(Ends::parse(&bad), Err(MalformedHeader), "{place} {byte}");
        }
        assert!(Ends::parse(&[&good[..], &[0]].concat()).is_err());
        assert!(Ends::parse(b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..60), place in 0_usize..28) {
            let mut bent = ends("192.0.2.7:1", "198.51.100.1:2").header();
            for (place, byte) in bent.iter_mut().skip(place).zip(&bytes) {
                *place = *byte;
            }
            for bytes in [&bytes, &bent] {
                if let Ok(ends) = Ends::parse(bytes) {
                    prop_assert_eq!(Ends::parse(&ends.header()), Ok(ends));
                }
            }
        }
    }
}
