//! Keys on their way out, wrapped: CKM_RSA_AES_KEY_WRAP and its kin, the inverse of [`crate::wrapped_key`].

use crate::aws_lc::AesEncrypting;
use crate::errors::{failed_to, invalid_material};
use crate::pkcs8;
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPublicEncryptingKey,
    PublicEncryptingKey, PublicKeyComponents,
};
use crypto::import::EcParts;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::{Curve, KeySpec};

const AES_BYTES: usize = 32;

/// `material` as it is masked: RSA in PKCS#8, EC as scalar ‖ point, symmetric as it is.
pub(crate) fn wrap(
    spec: KeySpec,
    material: &[u8],
    to: &ReleaseKey,
    wrap: KeyWrap,
) -> Result<Vec<u8>, PartitionError> {
    let outer = encrypting(to)?;
    let mut key = SecretBytes::zeroed(AES_BYTES);
    aws_lc_rs::rand::fill(key.danger_expose_mut()).map_err(failed_to("make random bytes"))?;
    let wrapping =
        AesEncrypting::new(key.danger_expose()).ok_or(PartitionError::Internal("prepare an AES key"))?;
    let inner = match spec {
        KeySpec::Rsa(_) | KeySpec::Oct(_) => wrapping.wrap_padded(material),
        KeySpec::Ec(curve) => {
            let parts = ec_parts(curve, material)
                .ok_or_else(|| invalid_material(format!("not a private key on {}", curve.as_str())))?;
            wrapping.wrap_padded(pkcs8::of_ec(&parts).danger_expose())
        }
    };
    let inner = inner.ok_or(PartitionError::Internal("wrap a key"))?;
    let hash = match wrap {
        KeyWrap::Sha1 => &OAEP_SHA1_MGF1SHA1,
        KeyWrap::Sha256 => &OAEP_SHA256_MGF1SHA256,
        KeyWrap::Sha384 => &OAEP_SHA384_MGF1SHA384,
    };
    let mut wrapped = vec![0; to.size().bytes()];
    let written = outer
        .encrypt(hash, key.danger_expose(), &mut wrapped, None)
        // Its numbers come in an assertion, and what is encrypted is always of the same length: it can only be they.
        .map_err(|_| no_key())?
        .len();
    if written != wrapped.len() {
        return Err(PartitionError::Internal("encrypt to a release key"));
    }
    wrapped.extend_from_slice(&inner);
    Ok(wrapped)
}

fn ec_parts(curve: Curve, material: &[u8]) -> Option<EcParts> {
    let bytes = curve.coordinate_bytes();
    let (d, point) = material.split_at_checked(bytes)?;
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(bytes)?;
    (y.len() == bytes).then(|| EcParts { curve, x: x.to_vec(), y: y.to_vec(), d: SecretBytes::copy(d) })
}

fn encrypting(to: &ReleaseKey) -> Result<OaepPublicEncryptingKey, PartitionError> {
    let components = PublicKeyComponents { n: to.modulus(), e: to.exponent() };
    let key: Result<PublicEncryptingKey, _> = components.try_into();
    key.and_then(OaepPublicEncryptingKey::new).map_err(|_| no_key())
}

fn no_key() -> PartitionError {
    invalid_material("it is no RSA key that anybody can encrypt to".into())
}
