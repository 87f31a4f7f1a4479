//! Keys from passphrases: PBKDF2 with HMAC-SHA-256 (SP 800-132).

use crate::SecretBytes;
use crate::digest::random;
use aws_lc_rs::pbkdf2;
use std::num::NonZeroU32;

/// For what is encrypted now: about a tenth of a second, and as much for each guess.
pub const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("above zero");
pub const SALT_BYTES: usize = 16;
const KEY_BYTES: usize = 32;

/// The key that a passphrase stands for, 32 bytes.
pub fn derive(passphrase: &SecretBytes, salt: &[u8], iterations: NonZeroU32) -> SecretBytes {
    let mut key = SecretBytes::zeroed(KEY_BYTES);
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        passphrase.danger_expose(),
        key.danger_expose_mut(),
    );
    key
}

pub fn salt() -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    random(&mut salt);
    salt
}
