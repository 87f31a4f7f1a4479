//! A256CBC-HS512 (RFC 7518 section 5.2.5) and the derivation of its keys (SP 800-108): what a security domain's files
//! are encrypted with. Not for anything of our own, which has better (`record`): clients fix this one.

use crate::SecretBytes;
use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::iv::FixedLength;
use zeroize::Zeroizing;

pub const CONTENT_KEY_BYTES: usize = 64;
pub const INITIALISATION_VECTOR_BYTES: usize = 16;
pub const TAG_BYTES: usize = 32;
const MAC_KEY_BYTES: usize = 32;
const BLOCK_BYTES: usize = 16;
const PRF_BYTES: usize = 64;

/// 64 bytes: the first half authenticates, the second encrypts.
pub struct ContentKey(SecretBytes);

impl ContentKey {
    /// `None` unless these are 64 bytes.
    pub fn new(bytes: SecretBytes) -> Option<Self> {
        (bytes.len() == CONTENT_KEY_BYTES).then_some(Self(bytes))
    }

    /// The key of the datum with this label, under a master key.
    pub fn derive(master: &SecretBytes, label: &str) -> Self {
        Self(derive(master, label.as_bytes(), &[], CONTENT_KEY_BYTES))
    }

    /// The key itself, to be wrapped.
    pub fn danger_expose(&self) -> &SecretBytes {
        &self.0
    }

    /// Ciphertext and tag. The initialisation vector must be unpredictable.
    pub fn encrypt(
        &self,
        iv: &[u8; INITIALISATION_VECTOR_BYTES],
        associated: &[u8],
        plaintext: &SecretBytes,
    ) -> (Vec<u8>, [u8; TAG_BYTES]) {
        let key = PaddedBlockEncryptingKey::cbc_pkcs7(self.cipher_key()).expect("AES has a CBC mode");
        // Room for the padding as well, so that the plaintext is not left behind in a buffer that grew.
        let mut text = Vec::with_capacity(plaintext.len() + BLOCK_BYTES);
        text.extend_from_slice(plaintext.danger_expose());
        key.less_safe_encrypt(&mut text, EncryptionContext::Iv128(FixedLength::from(iv)))
            .expect("a padded text can be encrypted");
        let tag = self.tag(iv, associated, &text);
        (text, tag)
    }

    /// `None` for whatever was not encrypted under this key with this associated text, without saying why. Nothing is
    /// decrypted before its tag is good.
    pub fn decrypt(
        &self,
        iv: &[u8; INITIALISATION_VECTOR_BYTES],
        associated: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_BYTES],
    ) -> Option<SecretBytes> {
        verify_slices_are_equal(&self.tag(iv, associated, ciphertext), tag).ok()?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(self.cipher_key()).ok()?;
        let mut text = Zeroizing::new(ciphertext.to_vec());
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        key.decrypt(&mut text, context).ok().map(|plaintext| SecretBytes::new(plaintext.to_vec()))
    }

    fn cipher_key(&self) -> UnboundCipherKey {
        UnboundCipherKey::new(&AES_256, &self.0.danger_expose()[MAC_KEY_BYTES..])
            .expect("an AES-256 key is 32 bytes")
    }

    fn tag(&self, iv: &[u8], associated: &[u8], ciphertext: &[u8]) -> [u8; TAG_BYTES] {
        let key = hmac::Key::new(hmac::HMAC_SHA512, &self.0.danger_expose()[..MAC_KEY_BYTES]);
        let mut context = hmac::Context::with_key(&key);
        let associated_bits = associated.len() as u64 * 8;
        for part in [associated, iv, ciphertext, &associated_bits.to_be_bytes()] {
            context.update(part);
        }
        *context.sign().as_ref().first_chunk().expect("HMAC-SHA-512 is 64 bytes")
    }
}

/// SP 800-108r1 section 4.1, counter mode with HMAC-SHA-512, of which one block must do: at most 64 bytes.
fn derive(secret: &SecretBytes, label: &[u8], context: &[u8], bytes: usize) -> SecretBytes {
    assert!(bytes <= PRF_BYTES, "one block of HMAC-SHA-512 is 64 bytes");
    let bits = bytes as u32 * 8;
    let key = hmac::Key::new(hmac::HMAC_SHA512, secret.danger_expose());
    let mut mac = hmac::Context::with_key(&key);
    for part in [&1_u32.to_be_bytes(), label, &[0], context, &bits.to_be_bytes()] {
        mac.update(part);
    }
    SecretBytes::new(mac.sign().as_ref()[..bytes].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::hex;
    use proptest::prelude::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// The answer that the Azure CLI knows.
    #[test]
    fn derivation_gives_the_known_answer() {
        let derived = derive(&SecretBytes::new(vec![0x41; 32]), b"label", b"context", 32);
        assert_eq!(
            hex(derived.danger_expose()),
            "f0ca51f6308791404bf68b56024ee7c64d6c737716f81d47e1e68b5c4e399575"
        );
        let key = ContentKey::derive(&SecretBytes::new((0..32).collect()), "SD.Test.1");
        assert_eq!(
            hex(key.danger_expose().danger_expose()),
            "600434959f98268942a3b22d5bb29432cfe3850603fe294a5538923a8dccae8e\
             5787a67401a5926424ca946d89620b2e681b217785986d2a86f56c5ebd6aebbe"
        );
    }

    /// RFC 7518 appendix B.3.
    #[test]
    fn encryption_gives_the_published_answer() {
        let key = ContentKey::new(SecretBytes::new((0..64).collect())).unwrap();
        let iv = unhex("1af38c2dc2b96ffdd86694092341bc04").try_into().unwrap();
        let plaintext = "A cipher system must not be required to be secret, and it must be able to fall into the \
                         hands of the enemy without inconvenience";
        let associated = b"The second principle of Auguste Kerckhoffs";
        let (ciphertext, tag) =
            key.encrypt(&iv, associated, &SecretBytes::new(plaintext.as_bytes().to_vec()));
        assert_eq!(
            hex(&ciphertext),
            "4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd\
             822c301dd67c373bccb584ad3e9279c2e6d12a1374b77f077553df829410446b\
             36ebd97066296ae6427ea75c2e0846a11a09ccf5370dc80bfecbad28c73f09b3\
             a3b75e662a2594410ae496b2e2e6609e31e6e02cc837f053d21f37ff4f51950b\
             be2638d09dd7a4930930806d0703b1f6"
        );
        assert_eq!(hex(&tag), "4dd3b4c088a7f45c216839645b2012bf2e6269a8c56a816dbc1b267761955bc5");
        let opened = key.decrypt(&iv, associated, &ciphertext, &tag).unwrap();
        assert_eq!(opened.danger_expose(), plaintext.as_bytes());
    }

    #[test]
    fn each_flipped_bit_is_refused() {
        let key = ContentKey::new(SecretBytes::new((0..64).collect())).unwrap();
        let (iv, associated) = ([7; 16], b"header".to_vec());
        let (ciphertext, tag) = key.encrypt(&iv, &associated, &SecretBytes::new(b"text".to_vec()));
        let whole = [iv.as_slice(), &associated, &ciphertext, &tag].concat();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (iv, rest) = damaged.split_first_chunk().unwrap();
            let (rest, tag) = rest.split_last_chunk().unwrap();
            let (associated, ciphertext) = rest.split_at(associated.len());
            assert!(key.decrypt(iv, associated, ciphertext, tag).is_none(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_was_encrypted_opens(text in proptest::collection::vec(any::<u8>(), 0..100), iv: [u8; 16]) {
            let key = ContentKey::derive(&SecretBytes::new(vec![1; 32]), "label");
            let (ciphertext, tag) = key.encrypt(&iv, b"a", &SecretBytes::new(text.clone()));
            let opened = key.decrypt(&iv, b"a", &ciphertext, &tag).unwrap();
            prop_assert_eq!(opened.danger_expose(), text);
        }

        /// A text with a good tag need not be whole blocks.
        #[test]
        fn authentic_nonsense_never_panics(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let key = ContentKey::derive(&SecretBytes::new(vec![1; 32]), "label");
            let tag = key.tag(&[0; 16], b"a", &text);
            let _ = key.decrypt(&[0; 16], b"a", &text, &tag);
        }
    }
}
