//! Tokens in, callers out; and, in [`issuer`], the embedded OIDC issuer.
//!
//! This crate establishes who is calling. It never decides what a caller may do, opens no socket, reads no file
//! and no clock: the time is an argument, keys and documents come as bytes.

pub mod attestation;
pub mod audience;
pub mod challenge;
pub mod issuer;
pub mod key_set;
pub mod key_source;
pub mod token;

mod der;
mod jws;
mod text;

pub use audience::{Audiences, MalformedSuffix};
pub use challenge::challenge;
pub use key_set::{KeySet, KeySetError};
pub use key_source::{KeySetSource, KeySetSourceError};
pub use text::query_value;
pub use token::{TokenError, TokenVerifier, VerifierConfig};
