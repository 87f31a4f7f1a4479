//! The public key of an attested environment, to which a key of the pool is wrapped when it is released.

use crate::partition::PartitionError;
use domain::algorithm::RsaSize;

/// Exponents are short: a long one only costs time.
const MAX_EXPONENT_BYTES: usize = 5;

/// RSA, public: whoever holds the private half gets the released key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReleaseKey {
    size: RsaSize,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// How a released key is wrapped. All three are RSA-OAEP over a new AES-256 key, and that key's wrap with padding (RFC 5649)
/// of the released one; they differ in the hash of OAEP and of its mask.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyWrap {
    /// SHA-1, as PKCS#11 has it (CKM_RSA_AES_KEY_WRAP).
    Sha1,
    Sha256,
    Sha384,
}

impl KeyWrap {
    pub const ALL: [KeyWrap; 3] = [KeyWrap::Sha1, KeyWrap::Sha256, KeyWrap::Sha384];

    /// As the wire has it: member `enc`.
    pub const fn as_str(self) -> &'static str {
        match self {
            KeyWrap::Sha1 => "CKM_RSA_AES_KEY_WRAP",
            KeyWrap::Sha256 => "RSA_AES_KEY_WRAP_256",
            KeyWrap::Sha384 => "RSA_AES_KEY_WRAP_384",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wrap| wrap.as_str() == text)
    }
}

impl ReleaseKey {
    /// From modulus and exponent, big-endian.
    ///
    /// # Errors
    /// `InvalidMaterial` for a modulus of a size that keys of the pool do not have, and for an exponent that is even, 1 or long:
    /// what is encrypted to such a key may be everybody's to read.
    pub fn new(modulus: &[u8], exponent: &[u8]) -> Result<Self, PartitionError> {
        let (modulus, exponent) = [modulus, exponent].map(crate::import::without_leading_zeros).into();
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        let size = u32::try_from(bits).ok().and_then(RsaSize::from_bits).ok_or_else(|| {
            PartitionError::InvalidMaterial(format!(
                "it is an RSA key of {bits} bits and not of 2048, 3072 or 4096"
            ))
        })?;
        let odd = |number: &[u8]| number.last().is_some_and(|byte| byte & 1 == 1);
        if !odd(modulus) || !odd(exponent) || exponent == [1] || exponent.len() > MAX_EXPONENT_BYTES {
            return Err(PartitionError::InvalidMaterial(
                "its modulus is even, or its exponent is even, 1 or of more than 40 bits".into(),
            ));
        }
        Ok(Self { size, modulus: modulus.to_vec(), exponent: exponent.to_vec() })
    }

    pub fn size(&self) -> RsaSize {
        self.size
    }

    /// Without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// Without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_none_is_refused() {
        let good = vec![0x81; 256];
        assert_eq!(ReleaseKey::new(&good, &[1, 0, 1]).unwrap().size(), RsaSize::Rsa2048);
        assert_eq!(ReleaseKey::new(&[&[0], good.as_slice()].concat(), &[0, 3]).unwrap().exponent(), [3]);
        let mut even = good.clone();
        even[255] = 0x80;
        for (modulus, exponent) in [
            (vec![0x81; 128], vec![1, 0, 1]),
            (vec![0x7f; 256], vec![1, 0, 1]),
            (vec![0x81; 100_000], vec![1, 0, 1]),
            (vec![], vec![3]),
            (even, vec![3]),
            (good.clone(), vec![]),
            (good.clone(), vec![1]),
            (good.clone(), vec![2]),
            (good.clone(), vec![1, 0, 0, 0, 0, 1]),
        ] {
            assert!(matches!(ReleaseKey::new(&modulus, &exponent), Err(PartitionError::InvalidMaterial(_))));
        }
    }
}
