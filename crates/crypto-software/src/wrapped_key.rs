//! Keys that come wrapped: CKM_RSA_AES_KEY_WRAP undone, layer by layer.
//!
//! Each layer has a refusal of its own. That tells whoever sends a blob no more than they know: RSA-OAEP fails in one way,
//! whatever is wrong with it, and the layers within open only for bytes that somebody encrypted to the KEK.

use crate::aws_lc::AesDecrypting;
use crate::errors::invalid_material;
use crate::pkcs8;
use crypto::import::{PrivateParts, WrappedKind};
use crypto::{Decrypt, LoadedKey, PartitionError};
use domain::algorithm::{EncryptionAlgorithm, KeySpec};

/// PKCS#8 of an RSA-4096 key takes less than 2,400 bytes.
const MAX_INNER_BYTES: usize = 4096;

pub(crate) fn open(
    kek: &dyn LoadedKey,
    kind: WrappedKind,
    wrapped: &[u8],
) -> Result<PrivateParts, PartitionError> {
    let KeySpec::Rsa(size) = kek.spec() else {
        return Err(invalid_material(format!(
            "a key of type {} does not unwrap keys; RSA-HSM does",
            kek.spec()
        )));
    };
    let (outer, inner) =
        wrapped.split_at_checked(size.bytes()).filter(|(_, inner)| !inner.is_empty()).ok_or_else(|| {
            invalid_material(format!(
                "ciphertext has {} bytes; for a KEK of {} bits it has more than {}",
                wrapped.len(),
                size.bits(),
                size.bytes()
            ))
        })?;
    if inner.len() > MAX_INNER_BYTES {
        return Err(invalid_material(format!(
            "ciphertext holds more than {MAX_INNER_BYTES} bytes behind its first layer"
        )));
    }
    let input = Decrypt { ciphertext: outer, iv: None, additional_data: None, tag: None };
    let key = kek.decrypt(EncryptionAlgorithm::RsaOaep, &input).map_err(|error| match error {
        PartitionError::DecryptionFailed => invalid_material(format!(
            "the first {} bytes of ciphertext do not open with the KEK (RSA-OAEP with SHA-1): made for another key, or damaged",
            size.bytes()
        )),
        other => other,
    })?;
    let unwrapping = AesDecrypting::new(key.danger_expose()).ok_or_else(|| {
        invalid_material("the first layer of ciphertext holds no AES key of 16, 24 or 32 bytes".into())
    })?;
    let content = unwrapping.unwrap_padded(inner).ok_or_else(|| {
        invalid_material(
            "the second layer of ciphertext does not open with the AES key in the first (AES key wrap with padding, RFC 5649)"
                .into(),
        )
    })?;
    match kind {
        WrappedKind::Oct => Ok(PrivateParts::Oct(content)),
        WrappedKind::Rsa | WrappedKind::Ec(_) => {
            let parts = pkcs8::private_parts(content.danger_expose())?;
            match (kind, &parts) {
                (WrappedKind::Rsa, PrivateParts::Rsa(_)) => Ok(parts),
                (WrappedKind::Ec(curve), PrivateParts::Ec(found)) if found.curve == curve => Ok(parts),
                (WrappedKind::Ec(curve), PrivateParts::Ec(found)) => Err(invalid_material(format!(
                    "the wrapped key is on {}, and not on {} as key.crv says",
                    found.curve.as_str(),
                    curve.as_str()
                ))),
                (_, PrivateParts::Rsa(_)) => Err(differs("RSA")),
                (_, PrivateParts::Ec(_) | PrivateParts::Oct(_)) => Err(differs("EC")),
            }
        }
    }
}

fn differs(found: &str) -> PartitionError {
    invalid_material(format!("the wrapped key is of type {found}, and not of the type that key.kty says"))
}
