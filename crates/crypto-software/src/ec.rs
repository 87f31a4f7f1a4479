//! Elliptic-curve keys: ECDSA over digests. Material is the scalar and then the uncompressed point, each of the curve's
//! fixed length.

use crate::aws_lc;
use crate::errors::{failed_to, invalid_material};
use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256K1_SHA256_FIXED,
    ECDSA_P256K1_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    EcdsaVerificationAlgorithm, KeyPair as _, ParsedPublicKey,
};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::Curve;
use domain::key::PublicKey;

pub(crate) struct EcKey {
    pair: EcdsaKeyPair,
    public: EcPublicKey,
}

/// The public half: verifies.
pub(crate) struct EcPublicKey {
    curve: Curve,
    parsed: ParsedPublicKey,
}

/// A curve with its one digest, in the library's terms.
struct Scheme {
    digest: &'static digest::Algorithm,
    signing: &'static EcdsaSigningAlgorithm,
    verifying: &'static EcdsaVerificationAlgorithm,
}

/// Makes a key: scalar ‖ uncompressed point.
pub(crate) fn generate(curve: Curve) -> Result<SecretBytes, PartitionError> {
    aws_lc::generate_ec(curve).ok_or(PartitionError::Internal("generate an elliptic-curve key"))
}

impl EcKey {
    /// Checked: the point is on the curve and belongs to the scalar.
    pub(crate) fn parse(curve: Curve, material: &[u8]) -> Result<Self, PartitionError> {
        let malformed = || invalid_material(format!("not a consistent private key on {}", curve.as_str()));
        let (scalar, point) = material.split_at_checked(curve.coordinate_bytes()).ok_or_else(malformed)?;
        if material.len() != material_bytes(curve) || point[0] != 4 {
            return Err(malformed());
        }
        let pair = EcdsaKeyPair::from_private_key_and_public_key(scheme(curve).signing, scalar, point)
            .map_err(|_| malformed())?;
        Ok(Self { pair, public: EcPublicKey::parse(curve, point)? })
    }

    pub(crate) fn public(&self) -> &EcPublicKey {
        &self.public
    }

    pub(crate) fn public_numbers(&self) -> PublicKey {
        let curve = self.public.curve;
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(curve.coordinate_bytes());
        PublicKey::Ec { curve, x: x.to_vec(), y: y.to_vec() }
    }

    /// r‖s. The caller has checked that the algorithm is the curve's, and the digest's length.
    pub(crate) fn sign(&self, digest: &[u8]) -> Result<Vec<u8>, PartitionError> {
        let digest = import_digest(self.public.curve, digest)?;
        let signature =
            self.pair.sign_digest(&digest).map_err(failed_to("sign with an elliptic-curve key"))?;
        Ok(signature.as_ref().to_vec())
    }
}

impl EcPublicKey {
    /// From an uncompressed point.
    pub(crate) fn parse(curve: Curve, point: &[u8]) -> Result<Self, PartitionError> {
        let parsed = ParsedPublicKey::new(scheme(curve).verifying, point)
            .map_err(|_| invalid_material(format!("not a point on {}", curve.as_str())))?;
        Ok(Self { curve, parsed })
    }

    /// Either half of the signature's range is good: s is not asked to be low, as other curves' signers do not make it
    /// so either.
    pub(crate) fn verify(&self, digest: &[u8], signature: &[u8]) -> Result<bool, PartitionError> {
        let digest = import_digest(self.curve, digest)?;
        Ok(signature.len() == 2 * self.curve.coordinate_bytes()
            && self.parsed.verify_digest_sig(&digest, signature).is_ok())
    }
}

fn material_bytes(curve: Curve) -> usize {
    3 * curve.coordinate_bytes() + 1
}

fn import_digest(curve: Curve, bytes: &[u8]) -> Result<Digest, PartitionError> {
    Digest::import_less_safe(bytes, scheme(curve).digest).map_err(failed_to("take a digest"))
}

fn scheme(curve: Curve) -> Scheme {
    let (digest, signing, verifying) = match curve {
        Curve::P256 => (&digest::SHA256, &ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P256_SHA256_FIXED),
        Curve::P256K => (&digest::SHA256, &ECDSA_P256K1_SHA256_FIXED_SIGNING, &ECDSA_P256K1_SHA256_FIXED),
        Curve::P384 => (&digest::SHA384, &ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P384_SHA384_FIXED),
        Curve::P521 => (&digest::SHA512, &ECDSA_P521_SHA512_FIXED_SIGNING, &ECDSA_P521_SHA512_FIXED),
    };
    Scheme { digest, signing, verifying }
}
