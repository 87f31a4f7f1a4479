//! What the rest of the pool may know of cryptography: the interface of a [`Partition`], and the keys of the
//! pool itself (security domain, record sealing, audit sealing, instance certificates).
//!
//! No other crate can name key material: customers' keys are opaque handles ([`LoadedKey`]) or masked bytes
//! ([`MaskedMaterial`]), the pool's own keys are types without accessors. Synchronous, no I/O.

pub mod attestation;
pub mod audit_key;
pub mod certificate;
pub mod content;
pub mod digest;
pub mod domain_secrets;
pub mod full_backup;
pub mod import;
pub mod key_backup;
pub mod key_exchange;
pub mod key_file;
pub mod masking;
pub mod partition;
pub mod passphrase;
pub mod record;
pub mod release;
pub mod root;
pub mod secret;
mod single_use;
pub mod stack;
pub mod transport;

pub use import::PrivateParts;
pub use partition::{
    Ciphertext, Decrypt, Encrypt, Generated, LoadedKey, MaskedMaterial, MaterialBinding, Partition,
    PartitionError, SelfTestFailed,
};
pub use secret::SecretBytes;
