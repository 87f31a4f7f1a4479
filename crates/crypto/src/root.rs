//! Sealing under a machine's root of trust: what lets a node restart unattended. The construction is that of a sealed
//! record, under the root's key.

use crate::SecretBytes;
use crate::single_use;
use aws_lc_rs::pbkdf2;
use std::num::NonZeroU32;

const LABEL: &[u8] = b"holdfast root seal v1";
const KEY_BYTES: usize = 32;

/// The root key that a passphrase stands for: PBKDF2 with HMAC-SHA-256 (SP 800-132), 32 bytes.
pub fn from_passphrase(passphrase: &SecretBytes, salt: &[u8], iterations: NonZeroU32) -> SecretBytes {
    let mut key = vec![0; KEY_BYTES];
    pbkdf2::derive(
        pbkdf2::PBKDF2_HMAC_SHA256,
        iterations,
        salt,
        passphrase.danger_expose(),
        key.as_mut_slice(),
    );
    SecretBytes::new(key)
}

/// A salt for [`from_passphrase`].
pub fn passphrase_salt() -> [u8; 16] {
    let mut salt = [0; 16];
    crate::digest::random(&mut salt);
    salt
}

/// `salt 24 bytes | ciphertext | tag 16 bytes` under a 32-byte root key.
pub fn seal(root: &SecretBytes, associated: &[u8], plaintext: &SecretBytes) -> Vec<u8> {
    let mut sealed = Vec::new();
    let salt = single_use::fresh_salt();
    single_use::seal(root.danger_expose(), LABEL, &salt, associated, plaintext.danger_expose(), &mut sealed);
    sealed
}

/// `None` for anything that was not sealed under this key with this associated data.
pub fn open(root: &SecretBytes, associated: &[u8], sealed: &[u8]) -> Option<SecretBytes> {
    single_use::open(root.danger_expose(), LABEL, associated, sealed)
}
