//! The security domain outside a pool: the file that a quorum of holders can open, the blob that brings it into
//! another pool, and the key that the blob is made for. The clients' protocol fixes the formats
//! (`docs/formats/security-domain.md`, `restore-blob.md`, `transfer-key.md`).
//!
//! - A pool hands its domain out: [`DownloadRequest::parse`], [`domain_file::write`].
//! - Holders open it, offline: [`DomainFile::parse`], [`DomainFile::open`], [`domain_file::write`] for new holders,
//!   [`restore_blob::build`] for another pool.
//! - A pool takes it: [`TransferKey::generate`], [`RestoreBlob::parse`], [`RestoreBlob::open`].
//!
//! No I/O, no clock. Randomness is an argument; RSA comes in through [`KeyTransport`] and [`KeyHolder`], so that a
//! library, a browser or a token can serve. Everything parsed here is foreign: it is bounded, and it never panics.
//! The other primitives are those of `crypto`.

pub mod description;
pub mod domain_file;
mod encrypted_data;
pub mod fuzz;
pub mod holders;
pub mod jwe;
pub mod keys;
pub mod request;
pub mod restore_blob;
pub mod shares;
mod strict_json;
pub mod transfer_key;

pub use description::DomainDescription;
pub use domain_file::DomainFile;
pub use encrypted_data::OpenedDomain;
pub use holders::{HolderSet, Quorum};
pub use keys::{KeyHolder, KeyTransport, LibraryHolder, LibraryTransport, Thumbprint, TransportFailed};
pub use request::DownloadRequest;
pub use restore_blob::RestoreBlob;
pub use transfer_key::TransferKey;

/// Fills its argument with unpredictable bytes: `&crypto::digest::random`, but for tests.
pub type RandomSource<'a> = &'a dyn Fn(&mut [u8]);
