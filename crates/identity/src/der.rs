//! The few pieces of DER (X.690) that are read here: RSA public keys, and of a certificate its key and its validity.
//!
//! What is read was registered by an operator, or comes from an attestation authority's key set; the certificates that a
//! client sends are hashed and never parsed.

use domain::time::Time;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0] EXPLICIT` of a certificate's version.
const VERSION: u8 = 0xa0;
/// 1.2.840.113549.1.1.1 as a DER value: rsaEncryption.
const RSA_ENCRYPTION: &[u8] = &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

/// What is read of an X.509 certificate (RFC 5280 section 4.1).
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Certificate<'a> {
    pub(crate) not_before: Time,
    /// The last second of its validity.
    pub(crate) not_after: Time,
    /// The subject's key as a DER `RSAPublicKey`, or `None` if it is of another type.
    pub(crate) rsa_public_key: Option<&'a [u8]>,
    /// What the issuer signed.
    pub(crate) signed: &'a [u8],
    /// Its `AlgorithmIdentifier`, content.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Option<Self> {
        let (certificate, after) = value(der, SEQUENCE)?;
        let (to_be_signed, rest) = value(certificate, SEQUENCE)?;
        let signed = certificate.get(..certificate.len() - rest.len())?;
        let (algorithm, rest) = value(rest, SEQUENCE)?;
        // No unused bits.
        let (signature, _) = value(rest, BIT_STRING)?;
        let signature = signature.strip_prefix(&[0])?;
        let rest = value(to_be_signed, VERSION).map_or(to_be_signed, |(_, rest)| rest);
        let (_serial, rest) = value(rest, INTEGER)?;
        let (_signature_algorithm, rest) = value(rest, SEQUENCE)?;
        let (_issuer, rest) = value(rest, SEQUENCE)?;
        let (validity, rest) = value(rest, SEQUENCE)?;
        let (_subject, rest) = value(rest, SEQUENCE)?;
        let (key_info, _extensions) = value(rest, SEQUENCE)?;
        let (not_before, rest) = time(validity)?;
        let (not_after, end) = time(rest)?;
        if !after.is_empty() || !end.is_empty() {
            return None;
        }
        let rsa_public_key = rsa_public_key(key_info)?;
        Some(Self { not_before, not_after, rsa_public_key, signed, algorithm, signature })
    }
}

/// Modulus and exponent of a DER `RSAPublicKey` (RFC 8017 appendix A.1.1), without leading zeros.
pub(crate) fn rsa_components(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, after) = value(der, SEQUENCE)?;
    let (modulus, rest) = value(sequence, INTEGER)?;
    let (exponent, end) = value(rest, INTEGER)?;
    if !after.is_empty() || !end.is_empty() {
        return None;
    }
    let unsigned = |integer: &'_ [u8]| usize::from(integer.first() == Some(&0));
    Some((&modulus[unsigned(modulus)..], &exponent[unsigned(exponent)..]))
}

/// The outer `Option` is about the form of a `SubjectPublicKeyInfo`, the inner one about its algorithm.
fn rsa_public_key(key_info: &[u8]) -> Option<Option<&[u8]>> {
    let (algorithm, rest) = value(key_info, SEQUENCE)?;
    let (bits, end) = value(rest, BIT_STRING)?;
    if !end.is_empty() {
        return None;
    }
    if !algorithm.starts_with(RSA_ENCRYPTION) {
        return Some(None);
    }
    match bits.split_first()? {
        (0, key) => Some(Some(key)),
        _ => None,
    }
}

/// A `Time` (RFC 5280 section 4.1.2.5): both forms end in `Z` and have seconds and no fraction.
fn time(bytes: &[u8]) -> Option<(Time, &[u8])> {
    let (text, century, rest) = match value(bytes, UTC_TIME) {
        Some((text, rest)) => (text, None, rest),
        None => {
            let (text, rest) = value(bytes, GENERALIZED_TIME)?;
            (text.get(2..)?, Some(number(text.get(..2)?)?), rest)
        }
    };
    let [y1, y2, o1, o2, d1, d2, h1, h2, m1, m2, s1, s2, b'Z'] = *text else { return None };
    let two = |tens: u8, ones: u8| number(&[tens, ones]);
    let year = two(y1, y2)?;
    let century = century.unwrap_or(if year < 50 { 20 } else { 19 });
    let month = time::Month::try_from(two(o1, o2)?).ok()?;
    let date =
        time::Date::from_calendar_date(i32::from(century) * 100 + i32::from(year), month, two(d1, d2)?)
            .ok()?;
    let moment = date.with_hms(two(h1, h2)?, two(m1, m2)?, two(s1, s2)?).ok()?.assume_utc();
    Some((Time::from_unix_milliseconds(moment.unix_timestamp().checked_mul(1000)?), rest))
}

/// Two decimal digits.
fn number(digits: &[u8]) -> Option<u8> {
    let &[tens, ones] = digits else { return None };
    let digit = |byte: u8| byte.is_ascii_digit().then(|| byte - b'0');
    Some(digit(tens)? * 10 + digit(ones)?)
}

/// The content of the DER value with `tag` at the start of `bytes`, and what follows it.
fn value(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte)), rest)
        }
        _ => return None,
    };
    (found == tag).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Self-signed by OpenSSL: RSA-2048, 2026-01-02T03:04:05Z to 2060-01-02T03:04:05Z, so that both forms of time occur.
    const GOLDEN: &[u8] = include_bytes!("../tests/golden/client-certificate.der");
    const GOLDEN_EC: &[u8] = include_bytes!("../tests/golden/client-certificate-ec.der");

    #[test]
    fn a_certificate_gives_its_validity_and_its_key() {
        let certificate = Certificate::parse(GOLDEN).unwrap();
        assert_eq!(certificate.not_before.unix_milliseconds(), 1_767_323_045_000);
        assert_eq!(certificate.not_after.unix_milliseconds(), 2_840_238_245_000);
        let (modulus, exponent) = rsa_components(certificate.rsa_public_key.unwrap()).unwrap();
        assert_eq!((modulus.len(), exponent), (256, &[1, 0, 1][..]));
        assert_eq!(Certificate::parse(GOLDEN_EC).unwrap().rsa_public_key, None);
    }

    #[test]
    fn times_have_one_form_each() {
        let of = |tag: u8, text: &str| {
            let bytes = [&[tag, text.len() as u8], text.as_bytes()].concat();
            time(&bytes).map(|(time, _)| time.unix_milliseconds() / 1000)
        };
        assert_eq!(of(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(of(UTC_TIME, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(of(UTC_TIME, "500101000000Z"), Some(-631_152_000));
        assert_eq!(of(GENERALIZED_TIME, "20500101000000Z"), Some(2_524_608_000));
        assert_eq!(of(GENERALIZED_TIME, "99991231235959Z"), Some(253_402_300_799));
        for (tag, text) in [
            (UTC_TIME, "7001010000Z"),
            (UTC_TIME, "700101000000+0000"),
            (UTC_TIME, "701301000000Z"),
            (UTC_TIME, "700230000000Z"),
            (UTC_TIME, "700101240000Z"),
            (UTC_TIME, "70010100000xZ"),
            (GENERALIZED_TIME, "700101000000Z"),
            (GENERALIZED_TIME, "20500101000000.5Z"),
            (GENERALIZED_TIME, ""),
            (INTEGER, "700101000000Z"),
        ] {
            assert_eq!(of(tag, text), None, "{text}");
        }
    }

    #[test]
    fn lengths_never_reach_past_the_end() {
        for bytes in [
            &[][..],
            &[0x30],
            &[0x30, 0x05, 0x02],
            &[0x30, 0x82, 0x01],
            &[0x30, 0x84, 0, 0, 0, 0],
            &[0x30, 0x80],
        ] {
            assert_eq!(rsa_components(bytes), None, "{bytes:?}");
        }
        assert_eq!(rsa_components(&[0x30, 0x07, 2, 2, 0, 0x81, 2, 1, 3]), Some((&[0x81][..], &[3][..])));
        for length in 0..GOLDEN.len() {
            assert_eq!(Certificate::parse(&GOLDEN[..length]), None, "{length}");
        }
        assert_eq!(Certificate::parse(&[GOLDEN, &[0]].concat()), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Certificate::parse(&bytes);
            let _ = rsa_components(&bytes);
        }

        #[test]
        fn damaged_certificates_never_panic(position in 0..GOLDEN.len(), value: u8) {
            let mut damaged = GOLDEN.to_vec();
            damaged[position] = value;
            let _ = Certificate::parse(&damaged).and_then(|read| rsa_components(read.rsa_public_key?).map(|_| ()));
        }
    }
}
