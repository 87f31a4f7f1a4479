//! Sealing under a machine's root of trust: what lets a node restart unattended. The construction is that of a sealed
//! record, under the root's key.

use crate::SecretBytes;
use crate::single_use;

const LABEL: &[u8] = b"holdfast root seal v1";

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
