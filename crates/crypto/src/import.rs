//! A private key as its owner hands it in: numbers that belong together or do not. They are looked at here and in the
//! partition, nowhere else.

use crate::SecretBytes;
use crate::partition::PartitionError;
use domain::algorithm::{Curve, KeySpec, OctSize, RsaSize};

/// The parts of a private key (RFC 7518 section 6), big-endian, as they arrived: leading zeros may be missing, or be too
/// many.
pub enum PrivateParts {
    Rsa(RsaParts),
    Ec(EcParts),
    /// Member `k` of RFC 7518 section 6.4, at its full length.
    Oct(SecretBytes),
}

/// What a wrapped key is said to be, before it is opened. A size is what it turns out to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrappedKind {
    Rsa,
    Ec(Curve),
    Oct,
}

/// Members as RFC 7518 section 6.3 names them. The last three follow from the others.
pub struct RsaParts {
    pub n: Vec<u8>,
    pub e: Vec<u8>,
    pub d: SecretBytes,
    pub p: SecretBytes,
    pub q: SecretBytes,
    pub dp: Option<SecretBytes>,
    pub dq: Option<SecretBytes>,
    pub qi: Option<SecretBytes>,
}

/// Members as RFC 7518 section 6.2 names them.
pub struct EcParts {
    pub curve: Curve,
    pub x: Vec<u8>,
    pub y: Vec<u8>,
    pub d: SecretBytes,
}

impl PrivateParts {
    /// What key they claim to be.
    ///
    /// # Errors
    /// `InvalidMaterial` for a modulus, or a symmetric key, of a size that no partition takes.
    pub fn spec(&self) -> Result<KeySpec, PartitionError> {
        match self {
            PrivateParts::Ec(parts) => Ok(KeySpec::Ec(parts.curve)),
            PrivateParts::Oct(key) => {
                let size = u32::try_from(key.len() * 8).ok().and_then(OctSize::from_bits);
                size.map(KeySpec::Oct).ok_or_else(|| {
                    PartitionError::InvalidMaterial("a symmetric key must be of 16, 24 or 32 bytes".into())
                })
            }
            PrivateParts::Rsa(parts) => {
                let bits = bits(&parts.n);
                let size = u32::try_from(bits).ok().and_then(RsaSize::from_bits);
                size.map(KeySpec::Rsa).ok_or_else(|| {
                    PartitionError::InvalidMaterial(format!(
                        "the modulus n must be of 2048, 3072 or 4096 bits, not {bits}"
                    ))
                })
            }
        }
    }
}

fn bits(number: &[u8]) -> usize {
    let number = without_leading_zeros(number);
    number.len() * 8 - number.first().map_or(0, |first| first.leading_zeros() as usize)
}

/// Where a number of no fixed length begins. Its length shows in the time taken, as it does in the request.
pub fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rsa(n: Vec<u8>) -> Result<KeySpec, PartitionError> {
        let number = || SecretBytes::new(vec![1]);
        let (d, p, q) = (number(), number(), number());
        PrivateParts::Rsa(RsaParts { n, e: vec![3], d, p, q, dp: None, dq: None, qi: None }).spec()
    }

    #[test]
    fn a_symmetric_key_is_as_long_as_it_is() {
        let spec = |bytes| PrivateParts::Oct(SecretBytes::new(vec![0; bytes])).spec();
        for (bytes, size) in [(16, OctSize::Oct128), (24, OctSize::Oct192), (32, OctSize::Oct256)] {
            assert_eq!(spec(bytes), Ok(KeySpec::Oct(size)));
        }
        for bytes in [0, 15, 17, 33, 64] {
            assert!(matches!(spec(bytes), Err(PartitionError::InvalidMaterial(_))), "{bytes}");
        }
    }

    #[test]
    fn the_modulus_says_the_size_exactly() {
        for (size, bytes) in [(RsaSize::Rsa2048, 256), (RsaSize::Rsa3072, 384), (RsaSize::Rsa4096, 512)] {
            assert_eq!(rsa(vec![0x80; bytes]), Ok(KeySpec::Rsa(size)));
            assert_eq!(rsa([vec![0; 3], vec![0x80; bytes]].concat()), Ok(KeySpec::Rsa(size)));
            for wrong in [vec![0x7f; bytes], vec![0x80; bytes + 1], vec![0x80; bytes - 1]] {
                assert!(matches!(rsa(wrong), Err(PartitionError::InvalidMaterial(_))));
            }
        }
        for wrong in [vec![], vec![0; 256], vec![0x80; 100_000]] {
            assert!(rsa(wrong).is_err());
        }
    }
}
