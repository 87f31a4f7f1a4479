//! As much of a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3) as says for whom it is.
//!
//! All of it is checked for its lengths and none of it is believed: whoever ends TLS reads the name again.

use std::net::IpAddr;

/// What a client may send before it is known for whom; the largest ones of today have about 2 KiB.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;
const RECORD_HEADER_BYTES: usize = 5;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME_EXTENSION: u16 = 0;
const HOST_NAME: u8 = 0;
const MAX_NAME_BYTES: usize = 253;

/// What the first bytes of a connection say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hello {
    /// It goes on.
    Incomplete,
    /// The name in lower case. `None`: none was sent, or an address, which is no name.
    Complete(Option<String>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the connection does not begin with a TLS ClientHello: {0}")]
pub struct MalformedHello(&'static str);

pub fn server_name(bytes: &[u8]) -> Result<Hello, MalformedHello> {
    let mut message = Vec::new();
    let mut rest = Reader(bytes);
    loop {
        let Some(fragment) = record(&mut rest)? else { return Ok(Hello::Incomplete) };
        message.extend_from_slice(fragment);
        if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(MalformedHello("its first message is another"));
        }
        if let Some(length) = message.get(1..4) {
            let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            if length > MAX_HELLO_BYTES {
                return Err(MalformedHello("it is too long"));
            }
            if let Some(body) = message.get(4..4 + length) {
                return Ok(Hello::Complete(name(body)?));
            }
        }
    }
}

/// The content of the next record, once all of it is there.
fn record<'a>(rest: &mut Reader<'a>) -> Result<Option<&'a [u8]>, MalformedHello> {
    if rest.0.first().is_some_and(|kind| *kind != HANDSHAKE_RECORD)
        || rest.0.get(1).is_some_and(|major| *major != 3)
    {
        return Err(MalformedHello("no handshake record"));
    }
    let Some(header) = rest.0.get(..RECORD_HEADER_BYTES) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    // Longer ones are forbidden; empty ones would never end.
    if !(1..=1 << 14).contains(&length) {
        return Err(MalformedHello("a record of a length that there cannot be"));
    }
    let Some(fragment) = rest.0.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + length) else {
        return Ok(None);
    };
    rest.0 = &rest.0[RECORD_HEADER_BYTES + length..];
    Ok(Some(fragment))
}

fn name(body: &[u8]) -> Result<Option<String>, MalformedHello> {
    let mut body = Reader(body);
    // Version and random.
    body.take(2 + 32)?;
    body.short_vector()?;
    body.vector()?;
    body.short_vector()?;
    if body.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = Reader(body.vector()?);
    body.end()?;
    let mut found = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number()?;
        let content = extensions.vector()?;
        if kind == SERVER_NAME_EXTENSION && found.replace(content).is_some() {
            return Err(MalformedHello("two lists of server names"));
        }
    }
    let Some(content) = found else { return Ok(None) };
    let mut content = Reader(content);
    let mut list = Reader(content.vector()?);
    content.end()?;
    let kind = list.byte()?;
    let text = list.vector()?;
    list.end()?;
    let is_of_names = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if kind != HOST_NAME || !(1..=MAX_NAME_BYTES).contains(&text.len()) || !text.iter().all(is_of_names) {
        return Err(MalformedHello("its server name is no host name"));
    }
    let text = text.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect::<String>();
    Ok(if text.parse::<IpAddr>().is_ok() { None } else { Some(text) })
}

struct Reader<'a>(&'a [u8]);

const SHORT: MalformedHello = MalformedHello("a length in it leads beyond its end");

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], MalformedHello> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, MalformedHello> {
        self.take(1)?.first().copied().ok_or(SHORT)
    }

    fn number(&mut self) -> Result<u16, MalformedHello> {
        Ok(u16::from(self.byte()?) << 8 | u16::from(self.byte()?))
    }

    fn short_vector(&mut self) -> Result<&'a [u8], MalformedHello> {
        let length = usize::from(self.byte()?);
        self.take(length)
    }

    fn vector(&mut self) -> Result<&'a [u8], MalformedHello> {
        let length = usize::from(self.number()?);
        self.take(length)
    }

    fn end(&self) -> Result<(), MalformedHello> {
        if self.0.is_empty() { Ok(()) } else { Err(MalformedHello("bytes behind its end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vector(content: &[u8]) -> Vec<u8> {
        [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(content)].concat()
    }

    fn named(name: &[u8]) -> Vec<u8> {
        extension(0, &vector(&[&[HOST_NAME], &vector(name)[..]].concat()))
    }

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let head =
            [&[3, 3][..], &[7; 32], &[0], &vector(&[0x13, 0x01]), &[1, 0], &vector(extensions)].concat();
        let length = u32::try_from(head.len()).unwrap().to_be_bytes();
        [&[CLIENT_HELLO], &length[1..], &head].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &vector(part)].concat()).collect()
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let extensions = [extension(43, &[2, 3, 4]), named(b"Payroll.managedhsm.localhost")].concat();
        let message = hello(&extensions);
        for size in [1, 2, 3, 7, 16_000] {
            let bytes = records(&message, size);
            for end in 0..bytes.len() {
                assert_eq!(server_name(&bytes[..end]), Ok(Hello::Incomplete), "{size} {end}");
            }
            let expected = Hello::Complete(Some("payroll.managedhsm.localhost".to_owned()));
            assert_eq!(server_name(&bytes), Ok(expected.clone()));
            // What follows is not for us.
            assert_eq!(server_name(&[&bytes[..], b"\x17\x03\x03"].concat()), Ok(expected));
        }
    }

    #[test]
    fn an_address_or_nothing_is_no_name() {
        for extensions in [vec![], extension(43, &[2, 3, 4]), named(b"127.0.0.1"), named(b"::1")] {
            assert_eq!(server_name(&records(&hello(&extensions), 500)), Ok(Hello::Complete(None)));
        }
    }

    #[test]
    fn what_is_no_hello_is_refused() {
        let twice = [named(b"a"), named(b"b")].concat();
        let two_names = extension(
            0,
            &vector(&[[&[0], &vector(b"a")[..]].concat(), [&[0], &vector(b"b")[..]].concat()].concat()),
        );
        for bytes in [
            b"GET / HTTP/1.1\r\n".to_vec(),
            crate::proxy_protocol::SIGNATURE.to_vec(),
            vec![22, 2],
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0x40, 1],
            records(&[2, 0, 0, 0], 4),
            records(&[1, 1, 0, 0], 4),
            records(&hello(&twice), 500),
            records(&hello(&two_names), 500),
            records(&hello(&named(b"")), 500),
            records(&hello(&named("p\u{e4}yroll".as_bytes())), 500),
            records(&hello(&named(b"a/b")), 500),
            records(&hello(&named(&[b'a'; 254])), 500),
            records(&[1, 0, 0, 4, 3, 3, 7, 7], 8),
        ] {
            assert!(server_name(&bytes).is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_have_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let mut good = records(&hello(&named(b"payroll.managedhsm.localhost")), 50);
            let _ = server_name(&bytes);
            for (place, byte) in good.iter_mut().skip(cut).zip(&bytes) {
                *place = *byte;
            }
            let _ = server_name(&good);
        }
    }
}
