//! Bytes that must not leak.

use zeroize::Zeroizing;

/// Secret bytes. Wiped on drop; no `Debug`, `Clone`, `PartialEq` or serde on purpose.
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes themselves. Each caller is a place where a secret can leak: search for this name in review.
    pub fn danger_expose(&self) -> &[u8] {
        &self.0
    }
}
