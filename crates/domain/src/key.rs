//! Keys and their versions.

use crate::algorithm::Curve;

/// The public part of a key. Coordinates have the curve's fixed length; RSA numbers have no leading zeros.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ec {
        curve: Curve,
        x: Vec<u8>,
        y: Vec<u8>,
    },
    /// Symmetric keys show nothing.
    Oct,
}
