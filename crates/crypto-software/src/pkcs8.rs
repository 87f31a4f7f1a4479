//! Private keys in PKCS#8 (RFC 5958), or in what that wraps, taken apart into the members that an import checks. Strict DER.

use crate::errors::invalid_material;
use crate::import::{header_bytes, write, write_header};
use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521};
use crypto::import::{EcParts, PrivateParts, RsaParts, without_leading_zeros};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::Curve;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const PARAMETERS: u8 = 0xa0;
const PUBLIC_KEY: u8 = 0xa1;
/// 1.2.840.113549.1.1.1
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];

// 1.2.840.10045.3.1.7, 1.3.132.0.34, 1.3.132.0.35, 1.3.132.0.10
const P256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: [u8; 5] = [0x2b, 0x81, 4, 0, 0x22];
const P521: [u8; 5] = [0x2b, 0x81, 4, 0, 0x23];
const P256K: [u8; 5] = [0x2b, 0x81, 4, 0, 0x0a];

fn curve(object: &[u8]) -> Option<Curve> {
    match object {
        _ if object == P256 => Some(Curve::P256),
        _ if object == P384 => Some(Curve::P384),
        _ if object == P521 => Some(Curve::P521),
        _ if object == P256K => Some(Curve::P256K),
        _ => None,
    }
}

/// What a key in PKCS#8 is made of. Attributes are passed over; whether the parts belong together is for the import.
pub(crate) fn private_parts(der: &[u8]) -> Result<PrivateParts, PartitionError> {
    let malformed = || invalid_material("the key is not a private key in PKCS#8 (DER)".into());
    let (mut info, rest) = Reader(der).take(SEQUENCE).ok_or_else(malformed)?;
    if !rest.0.is_empty() {
        return Err(malformed());
    }
    let mut next = |tag| info.next(tag).ok_or_else(malformed);
    // Version 1, or 2 where a public key follows.
    if !matches!(next(INTEGER)?.0, [0 | 1]) {
        return Err(malformed());
    }
    let mut algorithm = next(SEQUENCE)?;
    let mut key = Reader(next(OCTET_STRING)?.0);
    match algorithm.next(OBJECT).ok_or_else(malformed)?.0 {
        RSA_ENCRYPTION => rsa(&mut key).ok_or_else(malformed),
        EC_PUBLIC_KEY => {
            let curve =
                algorithm.next(OBJECT).and_then(|object| curve(object.0)).ok_or_else(unknown_curve)?;
            ec(curve, &mut key).ok_or_else(malformed)?
        }
        _ => Err(invalid_material("the key is of no type that is known: RSA or EC".into())),
    }
}

/// What an `RSAPrivateKey` (RFC 8017 appendix A.1.2) is made of.
pub(crate) fn pkcs1_parts(der: &[u8]) -> Result<PrivateParts, PartitionError> {
    rsa(&mut Reader(der))
        .ok_or_else(|| invalid_material("the key is not an RSA private key in PKCS#1 (DER)".into()))
}

/// What an `ECPrivateKey` (RFC 5915) that names its curve is made of.
pub(crate) fn sec1_parts(der: &[u8]) -> Result<PrivateParts, PartitionError> {
    let malformed = || invalid_material("the key is not an EC private key that names its curve (DER)".into());
    let mut key = Reader(der).only(SEQUENCE).ok_or_else(malformed)?;
    let named = key.next(INTEGER).and_then(|_| key.next(OCTET_STRING)).and_then(|_| key.next(PARAMETERS));
    let object = named.and_then(|mut named| named.next(OBJECT)).ok_or_else(malformed)?;
    let curve = curve(object.0).ok_or_else(unknown_curve)?;
    ec(curve, &mut Reader(der)).ok_or_else(malformed)?
}

fn unknown_curve() -> PartitionError {
    invalid_material("the key is on none of P-256, P-256K, P-384 and P-521".into())
}

/// PKCS#8 with the public key in it, as `private_parts` takes it.
pub(crate) fn of_ec(parts: &EcParts) -> SecretBytes {
    let curve: &[u8] = match parts.curve {
        Curve::P256 => &P256,
        Curve::P384 => &P384,
        Curve::P521 => &P521,
        Curve::P256K => &P256K,
    };
    let bytes = parts.curve.coordinate_bytes();
    let padded = |number: &[u8], place: &mut [u8]| {
        let number = without_leading_zeros(number);
        place[bytes - number.len()..].copy_from_slice(number);
    };
    let mut d = SecretBytes::zeroed(bytes);
    padded(parts.d.danger_expose(), d.danger_expose_mut());
    // No unused bits, uncompressed.
    let mut point = vec![0; 2 + 2 * bytes];
    point[1] = 4;
    padded(&parts.x, &mut point[2..2 + bytes]);
    padded(&parts.y, &mut point[2 + bytes..]);
    let bit_string = element_bytes(point.len());
    let key = 3 + element_bytes(bytes) + element_bytes(bit_string);
    let algorithm = element_bytes(EC_PUBLIC_KEY.len()) + element_bytes(curve.len());
    let info = 3 + element_bytes(algorithm) + element_bytes(element_bytes(key));
    let mut der = SecretBytes::zeroed(element_bytes(info));
    let mut rest = der.danger_expose_mut();
    write_header(&mut rest, SEQUENCE, info);
    write(&mut rest, &[INTEGER, 1, 0]);
    write_header(&mut rest, SEQUENCE, algorithm);
    for object in [EC_PUBLIC_KEY, curve] {
        write_header(&mut rest, OBJECT, object.len());
        write(&mut rest, object);
    }
    write_header(&mut rest, OCTET_STRING, element_bytes(key));
    write_header(&mut rest, SEQUENCE, key);
    write(&mut rest, &[INTEGER, 1, 1]);
    write_header(&mut rest, OCTET_STRING, bytes);
    write(&mut rest, d.danger_expose());
    write_header(&mut rest, PUBLIC_KEY, bit_string);
    write_header(&mut rest, BIT_STRING, point.len());
    write(&mut rest, &point);
    der
}

fn element_bytes(content: usize) -> usize {
    header_bytes(content) + content
}

/// `RSAPrivateKey` (RFC 8017 appendix A.1.2) of two primes.
fn rsa(key: &mut Reader<'_>) -> Option<PrivateParts> {
    let mut key = key.only(SEQUENCE)?;
    if key.next(INTEGER)?.0 != [0] {
        return None;
    }
    let mut next = || key.next(INTEGER).map(|number| number.0);
    let (n, e) = (next()?.to_vec(), next()?.to_vec());
    let mut secret = || next().map(SecretBytes::copy);
    let (d, p, q) = (secret()?, secret()?, secret()?);
    let (dp, dq, qi) = (Some(secret()?), Some(secret()?), Some(secret()?));
    key.0.is_empty().then_some(PrivateParts::Rsa(RsaParts { n, e, d, p, q, dp, dq, qi }))
}

/// `ECPrivateKey` (RFC 5915). Where it has no public key, that is computed.
fn ec(curve: Curve, key: &mut Reader<'_>) -> Option<Result<PrivateParts, PartitionError>> {
    let mut key = key.only(SEQUENCE)?;
    if key.next(INTEGER)?.0 != [1] {
        return None;
    }
    let d = SecretBytes::copy(key.next(OCTET_STRING)?.0);
    if key.0.first() == Some(&PARAMETERS) {
        key.next(PARAMETERS)?;
    }
    let point = if key.0.is_empty() {
        match public_point(curve, &d) {
            Ok(point) => point,
            Err(error) => return Some(Err(error)),
        }
    } else {
        let bits = key.next(PUBLIC_KEY)?.only(BIT_STRING)?;
        // No unused bits.
        bits.0.strip_prefix(&[0])?.to_vec()
    };
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(curve.coordinate_bytes())?;
    let parts = EcParts { curve, x: x.to_vec(), y: y.to_vec(), d };
    key.0.is_empty().then_some(Ok(PrivateParts::Ec(parts)))
}

fn public_point(curve: Curve, d: &SecretBytes) -> Result<Vec<u8>, PartitionError> {
    let algorithm = match curve {
        Curve::P256 => &ECDH_P256,
        Curve::P384 => &ECDH_P384,
        Curve::P521 => &ECDH_P521,
        // The library computes none.
        Curve::P256K => {
            return Err(invalid_material("the key on P-256K has no public key beside it".into()));
        }
    };
    let private = agreement::PrivateKey::from_private_key(algorithm, d.danger_expose()).ok();
    let point = private.and_then(|private| private.compute_public_key().ok());
    point.map(|point| point.as_ref().to_vec()).ok_or_else(|| {
        invalid_material("the private number of the key is not in the range of its curve".into())
    })
}

/// What is left of the content of one value.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The content of the next value, if its tag is `tag`.
    fn next(&mut self, tag: u8) -> Option<Reader<'a>> {
        let (content, rest) = Reader(self.0).take(tag)?;
        self.0 = rest.0;
        Some(content)
    }

    /// Likewise, if nothing follows.
    fn only(&mut self, tag: u8) -> Option<Reader<'a>> {
        self.next(tag).filter(|_| self.0.is_empty())
    }

    fn take(self, tag: u8) -> Option<(Reader<'a>, Reader<'a>)> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => {
                let (&length, rest) = rest.split_first()?;
                (usize::from(length), rest)
            }
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            _ => return None,
        };
        // DER has one way to write a length.
        let shortest = match length {
            0..=0x7f => first <= 0x7f,
            0x80..=0xff => first == 0x81,
            _ => first == 0x82,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        (found == tag && shortest).then_some((Reader(content), Reader(rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = private_parts(&bytes);
        }

        /// Shaped like a key, so that reading goes deep.
        #[test]
        fn a_damaged_key_never_panics(position in 0..1000_usize, value in any::<u8>(), cut in 0..1300_usize) {
            let key = crate::rsa::generate_for_tests();
            let mut der = key.danger_expose().to_vec();
            prop_assert!(matches!(private_parts(&der), Ok(PrivateParts::Rsa(_))));
            let place = position % der.len();
            der[place] = value;
            let _ = private_parts(&der);
            let _ = private_parts(&der[..cut.min(der.len())]);
        }
    }
}
