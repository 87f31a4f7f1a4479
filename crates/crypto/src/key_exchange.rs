//! Wrapping a key for a pool, on its owner's side: `CKM_RSA_AES_KEY_WRAP` to the public half of a key-exchange key
//! (`docs/formats/byok.md`). The other side is the partition's.

use crate::SecretBytes;
use crate::digest::random;
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrapPadded};
use aws_lc_rs::rsa::{OAEP_SHA1_MGF1SHA1, OaepPublicEncryptingKey, PublicEncryptingKey};
use domain::algorithm::RsaSize;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;

/// An RSA-4096 key takes about 550.
pub const MAX_PUBLIC_KEY_BYTES: usize = 4096;
const LABEL: &str = "PUBLIC KEY";
const AES_KEY_BYTES: usize = 32;
const BLOCK_BYTES: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyExchangeError {
    #[error("not a public key (SubjectPublicKeyInfo)")]
    NotAPublicKey,
    #[error("not an RSA key, and no other wraps keys")]
    NotRsa,
    #[error("the RSA key is of {bits} bits; a key-exchange key has 2048, 3072 or 4096")]
    Size { bits: usize },
    #[error("the key cannot be wrapped")]
    Failed,
}

/// The public half of a key-exchange key.
#[derive(Clone, Debug)]
pub struct KeyExchangeKey {
    size: RsaSize,
    modulus: Vec<u8>,
    key: PublicEncryptingKey,
}

impl KeyExchangeKey {
    /// SubjectPublicKeyInfo (RFC 5280), in PEM or DER.
    pub fn from_file(content: &[u8]) -> Result<Self, KeyExchangeError> {
        match std::str::from_utf8(content) {
            Ok(text) if text.contains("-----BEGIN") => {
                let pem = pem::parse(text).map_err(|_| KeyExchangeError::NotAPublicKey)?;
                if pem.tag() != LABEL {
                    return Err(KeyExchangeError::NotAPublicKey);
                }
                Self::from_der(pem.contents())
            }
            Ok(_) | Err(_) => Self::from_der(content),
        }
    }

    fn from_der(der: &[u8]) -> Result<Self, KeyExchangeError> {
        if der.len() > MAX_PUBLIC_KEY_BYTES {
            return Err(KeyExchangeError::NotAPublicKey);
        }
        let (rest, info) =
            SubjectPublicKeyInfo::from_der(der).map_err(|_| KeyExchangeError::NotAPublicKey)?;
        if !rest.is_empty() {
            return Err(KeyExchangeError::NotAPublicKey);
        }
        let parsed = info.parsed().map_err(|_| KeyExchangeError::NotAPublicKey)?;
        let PublicKey::RSA(rsa) = parsed else { return Err(KeyExchangeError::NotRsa) };
        let zeros = rsa.modulus.iter().take_while(|byte| **byte == 0).count();
        let modulus = &rsa.modulus[zeros..];
        let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
        let size = u32::try_from(bits).ok().and_then(RsaSize::from_bits);
        let size = size.ok_or(KeyExchangeError::Size { bits })?;
        let key = PublicEncryptingKey::from_der(der).map_err(|_| KeyExchangeError::NotAPublicKey)?;
        Ok(Self { size, modulus: modulus.to_vec(), key })
    }

    pub fn size(&self) -> RsaSize {
        self.size
    }

    /// RSA-OAEP (SHA-1, as the format has it) of a fresh AES-256 key, then `key` under that, by AES key wrap with padding.
    pub fn wrap(&self, key: &SecretBytes) -> Result<Vec<u8>, KeyExchangeError> {
        let mut fresh = SecretBytes::zeroed(AES_KEY_BYTES);
        random(fresh.danger_expose_mut());
        let failed = |_| KeyExchangeError::Failed;
        let public = OaepPublicEncryptingKey::new(self.key.clone()).map_err(failed)?;
        let outer = self.size.bytes();
        let padded = key.len().next_multiple_of(BLOCK_BYTES) + BLOCK_BYTES;
        let mut wrapped = vec![0; outer + padded];
        let (first, second) = wrapped.split_at_mut(outer);
        public.encrypt(&OAEP_SHA1_MGF1SHA1, fresh.danger_expose(), first, None).map_err(failed)?;
        let wrapping = AesKek::new(&AES_256, fresh.danger_expose()).map_err(failed)?;
        let written = wrapping.wrap_with_padding(key.danger_expose(), second).map_err(failed)?.len();
        (written == padded).then_some(wrapped).ok_or(KeyExchangeError::Failed)
    }

    /// Whether `layer`, as long as the modulus, can be a ciphertext of this key: as a number it is below the modulus. For
    /// one of another key of this size, that is a matter of chance.
    pub fn admits(&self, layer: &[u8]) -> bool {
        layer.len() == self.modulus.len() && layer < self.modulus.as_slice()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use proptest::prelude::*;

    #[test]
    fn what_is_wrapped_opens_layer_by_layer() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der = private.public_key().as_der().unwrap();
        let pem = pem::encode(&pem::Pem::new(LABEL, der.as_ref()));
        for content in [der.as_ref(), pem.as_bytes()] {
            let public = KeyExchangeKey::from_file(content).unwrap();
            assert_eq!(public.size(), RsaSize::Rsa2048);
            let opening = OaepPrivateDecryptingKey::new(private.clone()).unwrap();
            for length in [1, 7, 8, 9, 16, 24, 32, 138, 1217] {
                let wrapped = public.wrap(&SecretBytes::new(vec![7; length])).unwrap();
                let (first, second) = wrapped.split_at(256);
                assert!(public.admits(first));
                let mut key = [0; 256];
                let key = opening.decrypt(&OAEP_SHA1_MGF1SHA1, first, &mut key, None).unwrap();
                let mut content = vec![0; second.len()];
                let unwrapping = AesKek::new(&AES_256, key).unwrap();
                assert_eq!(unwrapping.unwrap_with_padding(second, &mut content).unwrap(), vec![7; length]);
            }
            assert!(!public.admits(&[0xff; 256]) && !public.admits(&[0; 255]));
            assert_ne!(
                public.wrap(&SecretBytes::new(vec![7; 16])).unwrap(),
                public.wrap(&SecretBytes::new(vec![7; 16])).unwrap()
            );
        }
        let wrong_label = pem.replace(LABEL, "RSA PUBLIC KEY");
        assert_eq!(
            KeyExchangeKey::from_file(wrong_label.as_bytes()).err(),
            Some(KeyExchangeError::NotAPublicKey)
        );
        let longer = [der.as_ref(), &[0]].concat();
        assert_eq!(KeyExchangeKey::from_file(&longer).err(), Some(KeyExchangeError::NotAPublicKey));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(KeyExchangeKey::from_file(&bytes).is_err());
        }
    }
}
