//! The public part of a key bundle as SubjectPublicKeyInfo (RFC 5280) in PEM, for every tool that is not ours.

use super::input;
use crate::CommandError;
use domain::algorithm::Curve;
use serde_json::Value;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const NULL: [u8; 2] = [0x05, 0x00];
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// 1.2.840.113549.1.1.1
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];

/// PEM of the member `key` of a bundle.
pub fn pem(key: &Value) -> Result<String, CommandError> {
    let number = |member: &str| -> Result<Vec<u8>, CommandError> {
        let text =
            key[member].as_str().ok_or_else(|| format!("the service left out `{member}` of the key"))?;
        Ok(input::decode(member, text)?.to_vec())
    };
    let info = match key["kty"].as_str() {
        Some("RSA-HSM" | "RSA") => rsa(&number("n")?, &number("e")?),
        Some("EC-HSM" | "EC") => {
            let curve = key["crv"].as_str().and_then(Curve::parse);
            let curve = curve.ok_or("the service gave a curve that is not known here")?;
            let (x, y) = (number("x")?, number("y")?);
            let length = curve.coordinate_bytes();
            if x.len() != length || y.len() != length {
                return Err(
                    format!("the service gave coordinates that are no point of {}", curve.as_str()).into()
                );
            }
            ec(curve, &x, &y)
        }
        Some("oct-HSM" | "oct") => {
            return Err("a symmetric key has no public part".into());
        }
        _ => return Err("the service gave a key of a type that is not known here".into()),
    };
    Ok(armoured(&info))
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let algorithm =
        element(SEQUENCE, &[element(OBJECT_IDENTIFIER, RSA_ENCRYPTION).as_slice(), &NULL].concat());
    let numbers = element(SEQUENCE, &[integer(modulus), integer(exponent)].concat());
    element(SEQUENCE, &[algorithm, bit_string(&numbers)].concat())
}

fn ec(curve: Curve, x: &[u8], y: &[u8]) -> Vec<u8> {
    let identifiers =
        [element(OBJECT_IDENTIFIER, EC_PUBLIC_KEY), element(OBJECT_IDENTIFIER, named_curve(curve))];
    let algorithm = element(SEQUENCE, &identifiers.concat());
    // Uncompressed (SEC 1 section 2.3.3).
    let point = [&[0x04][..], x, y].concat();
    element(SEQUENCE, &[algorithm, bit_string(&point)].concat())
}

fn named_curve(curve: Curve) -> &'static [u8] {
    match curve {
        // 1.2.840.10045.3.1.7
        Curve::P256 => &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
        // 1.3.132.0.10
        Curve::P256K => &[0x2b, 0x81, 0x04, 0x00, 0x0a],
        // 1.3.132.0.34
        Curve::P384 => &[0x2b, 0x81, 0x04, 0x00, 0x22],
        // 1.3.132.0.35
        Curve::P521 => &[0x2b, 0x81, 0x04, 0x00, 0x23],
    }
}

/// A number that is not negative, in the fewest bytes (X.690 section 8.3).
fn integer(number: &[u8]) -> Vec<u8> {
    let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
    let number = &number[start..];
    let sign: &[u8] = if number.first().is_none_or(|&first| first >= 0x80) { &[0] } else { &[] };
    element(INTEGER, &[sign, number].concat())
}

pub fn bit_string(content: &[u8]) -> Vec<u8> {
    element(BIT_STRING, &[&[0][..], content].concat())
}

pub fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut element = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => element.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let start = bytes.iter().position(|&byte| byte != 0).unwrap_or(bytes.len());
            let bytes = &bytes[start..];
            element.push(0x80 | bytes.len() as u8);
            element.extend_from_slice(bytes);
        }
    }
    element.extend_from_slice(content);
    element
}

fn armoured(info: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(info);
    let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
    for start in (0..text.len()).step_by(64) {
        pem += &text[start..text.len().min(start + 64)];
        pem.push('\n');
    }
    pem + "-----END PUBLIC KEY-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
    use x509_parser::public_key::PublicKey;

    fn bytes(length: usize, first: u8) -> Vec<u8> {
        [vec![first], vec![0x5a; length - 1]].concat()
    }

    #[test]
    fn an_independent_parser_reads_back_what_was_written() {
        for (length, first) in [(256, 0x80), (384, 0xff), (512, 0x7f)] {
            let modulus = bytes(length, first);
            let info = rsa(&modulus, &[1, 0, 1]);
            let (rest, read) = SubjectPublicKeyInfo::from_der(&info).unwrap();
            assert!(rest.is_empty());
            let PublicKey::RSA(key) = read.parsed().unwrap() else { panic!("not an RSA key") };
            assert_eq!(key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus), modulus);
            assert_eq!(key.exponent, [1, 0, 1]);
        }
        for (curve, id) in [
            (Curve::P256, "1.2.840.10045.3.1.7"),
            (Curve::P256K, "1.3.132.0.10"),
            (Curve::P384, "1.3.132.0.34"),
            (Curve::P521, "1.3.132.0.35"),
        ] {
            let length = curve.coordinate_bytes();
            let (x, y) = (bytes(length, 0), bytes(length, 1));
            let info = ec(curve, &x, &y);
            let (rest, read) = SubjectPublicKeyInfo::from_der(&info).unwrap();
            assert!(rest.is_empty());
            assert_eq!(read.algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1");
            assert_eq!(read.algorithm.parameters.unwrap().as_oid().unwrap().to_id_string(), id);
            assert_eq!(read.subject_public_key.data.as_ref(), [&[4][..], &x, &y].concat());
        }
    }

    #[test]
    fn numbers_have_a_sign_and_no_more_bytes_than_they_need() {
        assert_eq!(integer(&[0, 0, 0x80]), [INTEGER, 2, 0, 0x80]);
        assert_eq!(integer(&[0x7f]), [INTEGER, 1, 0x7f]);
        assert_eq!(integer(&[0, 0]), [INTEGER, 1, 0]);
        assert_eq!(element(SEQUENCE, &[0; 0x80])[..3], [SEQUENCE, 0x81, 0x80]);
        assert_eq!(element(SEQUENCE, &[0; 0x123])[..4], [SEQUENCE, 0x82, 0x01, 0x23]);
    }

    #[test]
    fn what_has_no_public_part_is_said() {
        let refusal = |key: Value| pem(&key).unwrap_err().to_string();
        assert!(refusal(json!({"kty": "oct-HSM"})).contains("symmetric"));
        assert!(refusal(json!({"kty": "RSA-HSM", "n": "AQAB"})).contains("left out `e`"));
        assert!(
            refusal(json!({"kty": "EC-HSM", "crv": "P-256", "x": "AA", "y": "AA"}))
                .contains("no point of P-256")
        );
        assert!(refusal(json!({})).contains("not known"));
    }
}
