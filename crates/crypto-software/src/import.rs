//! Private keys that their owners hand in, turned into this partition's encoding of material.
//!
//! Whoever made them may have made them badly, or so that they fail in a way that tells something. So every relation
//! between the parts is checked, also those that the library would believe: that two primes are primes, and far from each
//! other. Refusals name members and never say anything of their values.

use crate::aws_lc::SecretNumber;
use crate::errors::invalid_material;
use crate::rsa::{MAX_EXPONENT, from_private_key_der};
use crypto::import::{EcParts, PrivateParts, RsaParts, without_leading_zeros};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::{KeySpec, RsaSize};

/// How near to each other two primes of half the modulus may be, in bits below that half (FIPS 186-5 appendix A.1.1):
/// nearer ones are found from their product.
const DISTANCE_BITS: u32 = 100;

/// Material of a key of `spec` (`docs/formats/masked-material.md`). What the library checks as it parses, and that the key
/// signs what it verifies, is left to the caller.
pub(crate) fn material(spec: KeySpec, parts: &PrivateParts) -> Result<SecretBytes, PartitionError> {
    if parts.spec()? != spec {
        return Err(invalid_material(format!("not the parts of a key of type {spec}")));
    }
    match (spec, parts) {
        (KeySpec::Rsa(size), PrivateParts::Rsa(parts)) => rsa(size, parts),
        (KeySpec::Ec(_), PrivateParts::Ec(parts)) => ec(parts),
        (KeySpec::Oct(_), PrivateParts::Oct(key)) => Ok(SecretBytes::new(key.danger_expose().to_vec())),
        _ => Err(invalid_material(format!("not the parts of a key of type {spec}"))),
    }
}

/// Scalar ‖ uncompressed point, each number at its full length: some clients drop leading zeros.
fn ec(parts: &EcParts) -> Result<SecretBytes, PartitionError> {
    let bytes = parts.curve.coordinate_bytes();
    let mut material = SecretBytes::zeroed(3 * bytes + 1);
    let (d, point) = material.danger_expose_mut().split_at_mut(bytes);
    let (form, point) = point.split_at_mut(1);
    let (x, y) = point.split_at_mut(bytes);
    form[0] = 4;
    for (name, number, place) in [("d", parts.d.danger_expose(), d), ("x", &parts.x, x), ("y", &parts.y, y)] {
        let number = without_leading_zeros(number);
        let start = place.len().checked_sub(number.len()).ok_or_else(|| {
            invalid_material(format!("member {name} is longer than {} has it", parts.curve.as_str()))
        })?;
        place[start..].copy_from_slice(number);
    }
    Ok(material)
}

/// PKCS#8 DER.
fn rsa(size: RsaSize, parts: &RsaParts) -> Result<SecretBytes, PartitionError> {
    let [n, e, d, p, q] =
        [&parts.n, &parts.e, parts.d.danger_expose(), parts.p.danger_expose(), parts.q.danger_expose()]
            .map(|bytes| number(size, bytes));
    let (n, e, d, p, q) = (n?, e?, d?, p?, q?);
    check_exponent(&parts.e)?;
    check_factors(size, &n, &p, &q)?;

    let one = number(size, &[1])?;
    let [p_less_one, q_less_one] = [p.less(&one), q.less(&one)].map(computed);
    let (p_less_one, q_less_one) = (p_less_one?, q_less_one?);
    check_private_exponent(size, &n, &d)?;
    let product = computed(d.times(&e))?;
    for modulus in [&p_less_one, &q_less_one] {
        if !computed(product.modulo(modulus))?.equals(&one) {
            return Err(refused("d is not the inverse of e"));
        }
    }

    // By far the costliest check, so only for parts that are right in all else but what needs primes.
    if !(computed(p.is_prime())? && computed(q.is_prime())?) {
        return Err(refused("one of p and q is not a prime"));
    }
    let dp = computed(d.modulo(&p_less_one))?;
    let dq = computed(d.modulo(&q_less_one))?;
    // By Fermat: the power is the inverse, as p is a prime.
    let inverse = |of: &SecretNumber, modulus: &SecretNumber, less_one: &SecretNumber| {
        let exponent = computed(less_one.less(&one))?;
        let reduced = computed(of.modulo(modulus))?;
        computed(reduced.power(&exponent, modulus))
    };
    let qi = inverse(&q, &p, &p_less_one)?;
    for (name, given, expected) in [("dp", &parts.dp, &dp), ("dq", &parts.dq, &dq), ("qi", &parts.qi, &qi)] {
        if let Some(given) = given
            && !number(size, given.danger_expose())?.equals(expected)
        {
            return Err(invalid_material(format!("member {name} does not fit the primes and d")));
        }
    }
    // The larger prime first, as the library has it.
    let der = if p.is_less_than(&q) {
        let qi = inverse(&p, &q, &q_less_one)?;
        private_key_der(&[&n, &e, &d, &q, &p, &dq, &dp, &qi])
    } else {
        private_key_der(&[&n, &e, &d, &p, &q, &dp, &dq, &qi])
    };
    from_private_key_der(computed(der)?.danger_expose())
}

/// No part of a key is longer than its modulus; arithmetic on longer ones would only cost time.
fn number(size: RsaSize, bytes: &[u8]) -> Result<SecretNumber, PartitionError> {
    let bytes = without_leading_zeros(bytes);
    if bytes.len() > size.bytes() {
        return Err(refused("a member is longer than the modulus n"));
    }
    computed(SecretNumber::from_bytes(bytes))
}

fn check_exponent(e: &[u8]) -> Result<(), PartitionError> {
    let e = without_leading_zeros(e);
    let value = (e.len() <= 8).then(|| e.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)));
    if value.is_some_and(|value| (3..=MAX_EXPONENT).contains(&value) && value % 2 == 1) {
        return Ok(());
    }
    Err(invalid_material(format!("the public exponent e must be an odd number from 3 to {MAX_EXPONENT}")))
}

fn check_factors(
    size: RsaSize,
    n: &SecretNumber,
    p: &SecretNumber,
    q: &SecretNumber,
) -> Result<(), PartitionError> {
    let half = size.bits() / 2;
    if p.bits() != half || q.bits() != half {
        return Err(invalid_material(format!("the primes p and q must be of {half} bits each")));
    }
    if !computed(p.times(q))?.equals(n) {
        return Err(refused("the product of p and q is not n"));
    }
    let distance = if p.is_less_than(q) { q.less(p) } else { p.less(q) };
    if computed(distance)?.bits() <= half - DISTANCE_BITS {
        return Err(refused("the primes p and q are too near to each other"));
    }
    if !(p.is_odd() && q.is_odd()) {
        return Err(refused("one of p and q is not a prime"));
    }
    Ok(())
}

/// FIPS 186-5 appendix A.1.1: a smaller one is found from the public key.
fn check_private_exponent(size: RsaSize, n: &SecretNumber, d: &SecretNumber) -> Result<(), PartitionError> {
    if d.bits() <= size.bits() / 2 {
        return Err(refused("the private exponent d is too small"));
    }
    if !d.is_less_than(n) {
        return Err(refused("the private exponent d is not below n"));
    }
    Ok(())
}

/// `RSAPrivateKey` (RFC 8017 appendix A.1.2) of two primes.
fn private_key_der(numbers: &[&SecretNumber; 8]) -> Option<SecretBytes> {
    let numbers = numbers.iter().map(|number| number.to_bytes()).collect::<Option<Vec<_>>>()?;
    let version = [INTEGER, 1, 0];
    let length = version.len() + numbers.iter().map(integer_bytes).sum::<usize>();
    let mut der = SecretBytes::zeroed(header_bytes(length) + length);
    let mut rest = der.danger_expose_mut();
    write_header(&mut rest, SEQUENCE, length);
    write(&mut rest, &version);
    for number in &numbers {
        write_header(&mut rest, INTEGER, number.len() + sign_bytes(number));
        write(&mut rest, &[0][..sign_bytes(number)]);
        write(&mut rest, number.danger_expose());
    }
    Some(der)
}

const INTEGER: u8 = 0x02;
const SEQUENCE: u8 = 0x30;

/// A number whose top bit is set needs a zero before it, or it would be negative.
fn sign_bytes(number: &SecretBytes) -> usize {
    usize::from(number.danger_expose().first().is_none_or(|first| first & 0x80 != 0))
}

fn integer_bytes(number: &SecretBytes) -> usize {
    let content = number.len() + sign_bytes(number);
    header_bytes(content) + content
}

pub(crate) fn header_bytes(length: usize) -> usize {
    match length {
        0..=0x7f => 2,
        0x80..=0xff => 3,
        _ => 4,
    }
}

/// Tag and length; a key's lengths fit in two bytes.
pub(crate) fn write_header(rest: &mut &mut [u8], tag: u8, length: usize) {
    let [.., high, low] = length.to_be_bytes();
    match header_bytes(length) {
        2 => write(rest, &[tag, low]),
        3 => write(rest, &[tag, 0x81, low]),
        _ => write(rest, &[tag, 0x82, high, low]),
    }
}

pub(crate) fn write(rest: &mut &mut [u8], bytes: &[u8]) {
    let (place, behind) = std::mem::take(rest).split_at_mut(bytes.len());
    place.copy_from_slice(bytes);
    *rest = behind;
}

fn refused(message: &str) -> PartitionError {
    invalid_material(message.into())
}

fn computed<T>(result: Option<T>) -> Result<T, PartitionError> {
    result.ok_or(PartitionError::Internal("check the parts of a private key"))
}
