//! Bytes that must not leak, and where they live.
//!
//! Nothing here may use `unsafe`, so memory that is locked and kept out of dumps is `crypto-software`'s to make. A
//! process that links it has such memory for every [`SecretBytes`]; one that does not (an auditor's) has ordinary memory,
//! wiped on drop.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use zeroize::{Zeroize, Zeroizing};

/// Memory for secrets of a fixed length, wiped on drop.
pub trait SecretMemory: Send + Sync {
    fn bytes(&self) -> &[u8];
    fn bytes_mut(&mut self) -> &mut [u8];
}

impl SecretMemory for Zeroizing<Vec<u8>> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self
    }
}

/// Makes memory for secrets: so many bytes, all zero, or `None` where no room is left.
pub type Allocate = fn(usize) -> Option<Box<dyn SecretMemory>>;

static ALLOCATE: OnceLock<Allocate> = OnceLock::new();
static IN_ORDINARY_MEMORY: AtomicU64 = AtomicU64::new(0);

/// Sets where secrets live from now on. The first caller in a process is heard; `false` for any other.
pub fn install(allocate: Allocate) -> bool {
    ALLOCATE.set(allocate).is_ok()
}

/// How many secrets had to live in ordinary memory so far: all of them where nothing is installed, else those for which
/// there was no room.
pub fn in_ordinary_memory() -> u64 {
    IN_ORDINARY_MEMORY.load(Ordering::Relaxed)
}

/// Secret bytes. Wiped on drop; no `Debug`, `Clone`, `PartialEq` or serde on purpose.
pub struct SecretBytes {
    memory: Box<dyn SecretMemory>,
    /// The secret may be shorter than its memory: an upper bound was enough to make it.
    length: usize,
}

impl SecretBytes {
    /// Moves `bytes` to where secrets live; the vector is wiped.
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let secret = Self::copy(&bytes);
        bytes.zeroize();
        secret
    }

    /// For bytes that someone else owns and wipes.
    pub fn copy(bytes: &[u8]) -> Self {
        let mut secret = Self::zeroed(bytes.len());
        secret.danger_expose_mut().copy_from_slice(bytes);
        secret
    }

    /// Room for a secret that is written in place, so that it never was anywhere else.
    pub fn zeroed(length: usize) -> Self {
        let memory = ALLOCATE.get().and_then(|allocate| allocate(length)).unwrap_or_else(|| {
            // Whoever loads keys asks for room first and is refused; what is left is a caller's plaintext.
            IN_ORDINARY_MEMORY.fetch_add(1, Ordering::Relaxed);
            Box::new(Zeroizing::new(vec![0; length]))
        });
        Self { memory, length }
    }

    /// For memory that already holds the secret, of the same kind as what is installed.
    pub fn from_memory(memory: Box<dyn SecretMemory>) -> Self {
        let length = memory.bytes().len();
        Self { memory, length }
    }

    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps the first `length` bytes. What is behind them is wiped now, as all else is on drop.
    pub fn truncate(&mut self, length: usize) {
        if length < self.length {
            self.danger_expose_mut()[length..].zeroize();
            self.length = length;
        }
    }

    /// The bytes themselves. Each caller is a place where a secret can leak: search for this name in review.
    pub fn danger_expose(&self) -> &[u8] {
        &self.memory.bytes()[..self.length]
    }

    /// Likewise, to write them.
    pub fn danger_expose_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_secret_keeps_nothing_of_the_longer_one() {
        let mut secret = SecretBytes::new(vec![7; 40]);
        secret.truncate(16);
        assert_eq!(secret.danger_expose(), [7; 16]);
        assert_eq!(secret.len(), 16);
        assert_eq!(secret.memory.bytes()[16..], [0; 24]);
        secret.truncate(30);
        assert_eq!(secret.len(), 16);
    }

    #[test]
    fn an_empty_secret_is_empty() {
        assert!(SecretBytes::new(Vec::new()).is_empty());
        assert!(SecretBytes::zeroed(0).danger_expose().is_empty());
    }

    /// No other memory is installed in this crate's own tests.
    #[test]
    fn secrets_in_ordinary_memory_are_counted() {
        let before = in_ordinary_memory();
        drop(SecretBytes::zeroed(1));
        assert!(in_ordinary_memory() > before);
    }
}
