//! AES-256-GCM under a key that seals one message: nothing to coordinate between nodes or clones of a machine.
//!
//! `salt 24 bytes | ciphertext | tag 16 bytes`. Key = SP 800-108r1 section 4.1, counter mode with HMAC-SHA-256, over
//! the fixed info `label ‖ 0x00 ‖ salt ‖ [256]32` (big-endian bits); one block is 32 bytes. Two messages share a key
//! only if two random 192-bit salts meet.

use crate::SecretBytes;
use crate::digest::random;
use crate::stack::wiping_stack;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::kdf::{KbkdfCtrHmacAlgorithmId, get_kbkdf_ctr_hmac_algorithm, kbkdf_ctr_hmac};

/// Bytes of salt before the ciphertext.
pub const SALT_BYTES: usize = 24;
/// Bytes of tag behind the ciphertext.
pub const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// More than an HMAC or AES-GCM of the library puts on the stack, and the handle of a key with it. Derivation and
/// encryption are wiped together: an event is sealed for each request.
const STACK_BYTES: usize = 12 * 1024;

/// A salt from the random source.
pub fn fresh_salt() -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    random(&mut salt);
    salt
}

/// 32 bytes derived from `secret` for `label` and `context`.
pub fn derive(secret: &[u8], label: &[u8], context: &[u8]) -> SecretBytes {
    wiping_stack::<STACK_BYTES, _>(|| derive_unwiped(secret, label, context))
}

fn derive_unwiped(secret: &[u8], label: &[u8], context: &[u8]) -> SecretBytes {
    let bits = (KEY_BYTES as u32) * 8;
    let info = [label, &[0], context, &bits.to_be_bytes()].concat();
    let algorithm = get_kbkdf_ctr_hmac_algorithm(KbkdfCtrHmacAlgorithmId::Sha256)
        .expect("the library has counter mode with HMAC-SHA-256");
    let mut key = SecretBytes::zeroed(KEY_BYTES);
    kbkdf_ctr_hmac(algorithm, secret, &info, key.danger_expose_mut())
        .expect("32 bytes can be derived from any secret");
    key
}

/// Appends salt, ciphertext and tag to `out`. The salt comes from [`fresh_salt`]; a fixed one is for golden files.
pub fn seal(
    secret: &[u8],
    label: &[u8],
    salt: &[u8; SALT_BYTES],
    associated: &[u8],
    plaintext: &[u8],
    out: &mut Vec<u8>,
) {
    // Room for the tag as well, so that the plaintext is not left behind in a buffer that grew.
    out.reserve(SALT_BYTES + plaintext.len() + TAG_BYTES);
    out.extend_from_slice(salt);
    let start = out.len();
    out.extend_from_slice(plaintext);
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let tag = wiping_stack::<STACK_BYTES, _>(|| {
        let key = key_unwiped(secret, label, salt);
        key.seal_in_place_separate_tag(nonce, Aad::from(associated), &mut out[start..])
    });
    let tag = tag.expect("a record is far below the limit of AES-GCM");
    out.extend_from_slice(tag.as_ref());
}

/// Opens `salt | ciphertext | tag`; `None` for whatever does not open, without saying why.
pub fn open(secret: &[u8], label: &[u8], associated: &[u8], sealed: &[u8]) -> Option<SecretBytes> {
    let (salt, body) = sealed.split_first_chunk::<SALT_BYTES>()?;
    let (ciphertext, tag) = body.split_last_chunk::<TAG_BYTES>()?;
    let mut plaintext = SecretBytes::zeroed(ciphertext.len());
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = wiping_stack::<STACK_BYTES, _>(|| {
        let key = key_unwiped(secret, label, salt);
        key.open_separate_gather(nonce, Aad::from(associated), ciphertext, tag, plaintext.danger_expose_mut())
    });
    opened.ok()?;
    Some(plaintext)
}

fn key_unwiped(secret: &[u8], label: &[u8], salt: &[u8; SALT_BYTES]) -> LessSafeKey {
    let key = derive_unwiped(secret, label, salt);
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.danger_expose()).expect("an AES-256 key is 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hmac;

    /// SP 800-108r1 section 4.1 written out: K(1) = PRF(K_I, [1]32 ‖ Label ‖ 0x00 ‖ Context ‖ [L]32).
    #[test]
    fn derivation_is_what_the_standard_says() {
        let secret = [0x41; 32];
        let input =
            [&1u32.to_be_bytes(), b"label".as_slice(), &[0], b"context", &256u32.to_be_bytes()].concat();
        let expected = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), &input);
        assert_eq!(derive(&secret, b"label", b"context").danger_expose(), expected.as_ref());
    }
}
