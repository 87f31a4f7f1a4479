//! Symmetric keys: AES-GCM, AES-CBC, AES key wrap, HMAC. Material is the key's bytes.

use crate::aws_lc::{AesDecrypting, AesEncrypting, Hash, MacKey};
use crate::errors::{failed_to, input_length, invalid_material, mismatch};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use crypto::{Ciphertext, Decrypt, Encrypt, PartitionError, SecretBytes};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, OctSize, SignatureAlgorithm};
use std::sync::OnceLock;
use subtle::{ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess};

/// The longest plaintext, and the longest additional data, of one call: 64 KiB. A ciphertext may be longer by what its
/// algorithm adds.
pub const MAX_INPUT_BYTES: usize = 64 * 1024;

const BLOCK_BYTES: usize = 16;
const GCM_IV_BYTES: usize = 12;
const GCM_TAG_BYTES: usize = 16;
/// Half a block: the unit of AES key wrap, and what it adds.
const WRAP_UNIT_BYTES: usize = 8;

pub(crate) struct OctKey {
    size: OctSize,
    bytes: SecretBytes,
    // Each of the following is made from `bytes` when first needed; none holds more here than a pointer.
    gcm: OnceLock<LessSafeKey>,
    encrypting: OnceLock<Option<AesEncrypting>>,
    decrypting: OnceLock<Option<AesDecrypting>>,
    macs: [OnceLock<Option<MacKey>>; 3],
}

pub(crate) fn generate(size: OctSize) -> Result<SecretBytes, PartitionError> {
    let mut bytes = SecretBytes::zeroed(size.bytes());
    rand::fill(bytes.danger_expose_mut()).map_err(failed_to("generate a symmetric key"))?;
    Ok(bytes)
}

impl OctKey {
    pub(crate) fn parse(size: OctSize, material: &[u8]) -> Result<Self, PartitionError> {
        if material.len() != size.bytes() {
            return Err(invalid_material(format!("not a key of {} bits", size.bits())));
        }
        Ok(Self {
            size,
            bytes: SecretBytes::copy(material),
            gcm: OnceLock::new(),
            encrypting: OnceLock::new(),
            decrypting: OnceLock::new(),
            macs: Default::default(),
        })
    }

    pub(crate) fn mac(&self, algorithm: SignatureAlgorithm, input: &[u8]) -> Result<Vec<u8>, PartitionError> {
        self.mac_key(algorithm)?.mac(input).ok_or(PartitionError::Internal("compute an HMAC"))
    }

    /// Constant time; a truncated MAC does not verify.
    pub(crate) fn verify_mac(
        &self,
        algorithm: SignatureAlgorithm,
        input: &[u8],
        tag: &[u8],
    ) -> Result<bool, PartitionError> {
        Ok(self.mac(algorithm, input)?.ct_eq(tag).into())
    }

    pub(crate) fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Encrypt<'_>,
    ) -> Result<Ciphertext, PartitionError> {
        let name = algorithm.as_str();
        at_most(name, "plaintext", input.plaintext, MAX_INPUT_BYTES)?;
        match algorithm {
            EncryptionAlgorithm::AesGcm(_) => {
                // A caller's IV, used twice under one key, would give away the authentication key.
                none_of(name, "iv on encryption: the pool makes it", input.iv)?;
                self.gcm_encrypt(name, input)
            }
            // Additional data is passed over, here and on decryption: clients of the service send it with every
            // algorithm, and CBC authenticates nothing.
            EncryptionAlgorithm::AesCbc(_) | EncryptionAlgorithm::AesCbcPad(_) => {
                let iv = match input.iv {
                    Some(iv) => exactly(name, "iv", iv)?,
                    None => random_bytes()?,
                };
                let padded = matches!(algorithm, EncryptionAlgorithm::AesCbcPad(_));
                self.cbc_encrypt(name, padded, iv, input.plaintext)
            }
            EncryptionAlgorithm::AesKw(_) => {
                none_of(name, "iv", input.iv)?;
                none_of(name, "additional authenticated data", input.additional_data)?;
                self.wrap(name, input.plaintext)
            }
            EncryptionAlgorithm::Rsa15 | EncryptionAlgorithm::RsaOaep | EncryptionAlgorithm::RsaOaep256 => {
                Err(mismatch(name, KeySpec::Oct(self.size)))
            }
        }
    }

    pub(crate) fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        input: &Decrypt<'_>,
    ) -> Result<SecretBytes, PartitionError> {
        let name = algorithm.as_str();
        at_most(name, "ciphertext", input.ciphertext, MAX_INPUT_BYTES + BLOCK_BYTES)?;
        match algorithm {
            EncryptionAlgorithm::AesGcm(_) => self.gcm_decrypt(name, input),
            EncryptionAlgorithm::AesCbc(_) | EncryptionAlgorithm::AesCbcPad(_) => {
                none_of(name, "tag", input.tag)?;
                let iv = exactly(name, "iv", input.iv.unwrap_or_default())?;
                let padded = matches!(algorithm, EncryptionAlgorithm::AesCbcPad(_));
                self.cbc_decrypt(name, padded, iv, input.ciphertext)
            }
            EncryptionAlgorithm::AesKw(_) => {
                none_of(name, "iv", input.iv)?;
                none_of(name, "additional authenticated data", input.additional_data)?;
                none_of(name, "tag", input.tag)?;
                self.unwrap(name, input.ciphertext)
            }
            EncryptionAlgorithm::Rsa15 | EncryptionAlgorithm::RsaOaep | EncryptionAlgorithm::RsaOaep256 => {
                Err(mismatch(name, KeySpec::Oct(self.size)))
            }
        }
    }

    fn gcm_encrypt(&self, name: &str, input: &Encrypt<'_>) -> Result<Ciphertext, PartitionError> {
        let additional = input.additional_data.unwrap_or_default();
        at_most(name, "additional authenticated data", additional, MAX_INPUT_BYTES)?;
        let iv: [u8; GCM_IV_BYTES] = random_bytes()?;
        let (bytes, tag) = self.gcm_seal(iv, additional, input.plaintext)?;
        Ok(Ciphertext { bytes, iv: Some(iv.to_vec()), tag: Some(tag) })
    }

    /// With a given IV for known answers; callers' IVs are refused before.
    pub(crate) fn gcm_seal(
        &self,
        iv: [u8; GCM_IV_BYTES],
        additional: &[u8],
        plaintext: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), PartitionError> {
        let mut bytes = plaintext.to_vec();
        let tag = self
            .gcm()
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(iv), Aad::from(additional), &mut bytes)
            .map_err(failed_to("encrypt with AES-GCM"))?;
        Ok((bytes, tag.as_ref().to_vec()))
    }

    fn gcm_decrypt(&self, name: &str, input: &Decrypt<'_>) -> Result<SecretBytes, PartitionError> {
        let additional = input.additional_data.unwrap_or_default();
        at_most(name, "additional authenticated data", additional, MAX_INPUT_BYTES)?;
        let iv: [u8; GCM_IV_BYTES] = exactly(name, "iv", input.iv.unwrap_or_default())?;
        let tag: [u8; GCM_TAG_BYTES] = exactly(name, "tag", input.tag.unwrap_or_default())?;
        let mut plaintext = SecretBytes::zeroed(input.ciphertext.len());
        self.gcm()
            .open_separate_gather(
                Nonce::assume_unique_for_key(iv),
                Aad::from(additional),
                input.ciphertext,
                &tag,
                plaintext.danger_expose_mut(),
            )
            .map_err(|_| PartitionError::DecryptionFailed)?;
        Ok(plaintext)
    }

    fn cbc_encrypt(
        &self,
        name: &str,
        padded: bool,
        iv: [u8; BLOCK_BYTES],
        plaintext: &[u8],
    ) -> Result<Ciphertext, PartitionError> {
        // The padding is added here, in a buffer that has room for it: one that grew would leave the plaintext behind.
        let mut bytes = Vec::with_capacity(plaintext.len() + BLOCK_BYTES);
        bytes.extend_from_slice(plaintext);
        if padded {
            let padding = BLOCK_BYTES - plaintext.len() % BLOCK_BYTES;
            bytes.resize(plaintext.len() + padding, padding as u8);
        } else {
            // The last block is filled up with zeros, as the service does it; what comes back has them at its end.
            bytes.resize(plaintext.len().next_multiple_of(BLOCK_BYTES), 0);
            whole_blocks(name, "plaintext", &bytes)?;
        }
        self.encrypting()?.cbc(iv, &mut bytes).ok_or(PartitionError::Internal("encrypt with AES-CBC"))?;
        Ok(Ciphertext { bytes, iv: Some(iv.to_vec()), tag: None })
    }

    fn cbc_decrypt(
        &self,
        name: &str,
        padded: bool,
        iv: [u8; BLOCK_BYTES],
        ciphertext: &[u8],
    ) -> Result<SecretBytes, PartitionError> {
        whole_blocks(name, "ciphertext", ciphertext)?;
        let mut plaintext = SecretBytes::copy(ciphertext);
        self.decrypting()?
            .cbc(iv, plaintext.danger_expose_mut())
            .ok_or(PartitionError::Internal("decrypt with AES-CBC"))?;
        if padded {
            let padding = padding_bytes(plaintext.danger_expose()).ok_or(PartitionError::DecryptionFailed)?;
            plaintext.truncate(plaintext.len() - padding);
        }
        Ok(plaintext)
    }

    fn wrap(&self, name: &str, plaintext: &[u8]) -> Result<Ciphertext, PartitionError> {
        wrap_units(name, "key to wrap", plaintext, 2)?;
        let bytes = self.encrypting()?.wrap(plaintext).ok_or(PartitionError::Internal("wrap with AES"))?;
        Ok(Ciphertext { bytes, iv: None, tag: None })
    }

    fn unwrap(&self, name: &str, wrapped: &[u8]) -> Result<SecretBytes, PartitionError> {
        wrap_units(name, "wrapped key", wrapped, 3)?;
        self.decrypting()?.unwrap(wrapped).ok_or(PartitionError::DecryptionFailed)
    }

    fn gcm(&self) -> &LessSafeKey {
        let algorithm = match self.size {
            OctSize::Oct128 => &aead::AES_128_GCM,
            OctSize::Oct192 => &aead::AES_192_GCM,
            OctSize::Oct256 => &aead::AES_256_GCM,
        };
        self.gcm.get_or_init(|| {
            LessSafeKey::new(
                UnboundKey::new(algorithm, self.bytes.danger_expose()).expect("the key is of its size"),
            )
        })
    }

    fn encrypting(&self) -> Result<&AesEncrypting, PartitionError> {
        self.encrypting
            .get_or_init(|| AesEncrypting::new(self.bytes.danger_expose()))
            .as_ref()
            .ok_or(PartitionError::Internal("prepare an AES key for encryption"))
    }

    fn decrypting(&self) -> Result<&AesDecrypting, PartitionError> {
        self.decrypting
            .get_or_init(|| AesDecrypting::new(self.bytes.danger_expose()))
            .as_ref()
            .ok_or(PartitionError::Internal("prepare an AES key for decryption"))
    }

    fn mac_key(&self, algorithm: SignatureAlgorithm) -> Result<&MacKey, PartitionError> {
        let (slot, hash) = match algorithm {
            SignatureAlgorithm::Hs256 => (0, Hash::Sha256),
            SignatureAlgorithm::Hs384 => (1, Hash::Sha384),
            SignatureAlgorithm::Hs512 => (2, Hash::Sha512),
            SignatureAlgorithm::Rs256
            | SignatureAlgorithm::Rs384
            | SignatureAlgorithm::Rs512
            | SignatureAlgorithm::RsNull
            | SignatureAlgorithm::Ps256
            | SignatureAlgorithm::Ps384
            | SignatureAlgorithm::Ps512
            | SignatureAlgorithm::Es256
            | SignatureAlgorithm::Es256K
            | SignatureAlgorithm::Es384
            | SignatureAlgorithm::Es512 => {
                return Err(mismatch(algorithm.as_str(), KeySpec::Oct(self.size)));
            }
        };
        self.macs[slot]
            .get_or_init(|| MacKey::new(hash, self.bytes.danger_expose()))
            .as_ref()
            .ok_or(PartitionError::Internal("prepare a key for HMAC"))
    }
}

/// Length of the PKCS#7 padding (RFC 5652 section 6.3). All sixteen bytes are looked at, whatever they say: how long
/// the check takes must not tell which of them was wrong.
fn padding_bytes(plaintext: &[u8]) -> Option<usize> {
    let block: &[u8; BLOCK_BYTES] = plaintext.last_chunk()?;
    let padding = block[BLOCK_BYTES - 1];
    let mut good = padding.ct_gt(&0) & !padding.ct_gt(&(BLOCK_BYTES as u8));
    for (from_end, byte) in block.iter().rev().enumerate() {
        good &= !(from_end as u8).ct_lt(&padding) | byte.ct_eq(&padding);
    }
    bool::from(good).then_some(padding.into())
}

fn random_bytes<const N: usize>() -> Result<[u8; N], PartitionError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(failed_to("make an iv"))?;
    Ok(bytes)
}

fn at_most(algorithm: &str, what: &str, bytes: &[u8], most: usize) -> Result<(), PartitionError> {
    if bytes.len() <= most {
        return Ok(());
    }
    Err(input_length(format!("{algorithm}: {what} of at most {most} bytes, not {}", bytes.len())))
}

fn exactly<const N: usize>(algorithm: &str, what: &str, bytes: &[u8]) -> Result<[u8; N], PartitionError> {
    bytes
        .try_into()
        .map_err(|_| input_length(format!("{algorithm}: {what} of {N} bytes, not {}", bytes.len())))
}

fn none_of(algorithm: &str, what: &str, bytes: Option<&[u8]>) -> Result<(), PartitionError> {
    match bytes {
        None => Ok(()),
        Some(_) => Err(input_length(format!("{algorithm} takes no {what}"))),
    }
}

fn whole_blocks(algorithm: &str, what: &str, bytes: &[u8]) -> Result<(), PartitionError> {
    if !bytes.is_empty() && bytes.len().is_multiple_of(BLOCK_BYTES) {
        return Ok(());
    }
    Err(input_length(format!(
        "{algorithm}: {what} of whole blocks of {BLOCK_BYTES} bytes, not {}",
        bytes.len()
    )))
}

fn wrap_units(algorithm: &str, what: &str, bytes: &[u8], least: usize) -> Result<(), PartitionError> {
    if bytes.len().is_multiple_of(WRAP_UNIT_BYTES) && bytes.len() >= least * WRAP_UNIT_BYTES {
        return Ok(());
    }
    Err(input_length(format!(
        "{algorithm}: {what} of a multiple of {WRAP_UNIT_BYTES} bytes, at least {}, not {}",
        least * WRAP_UNIT_BYTES,
        bytes.len()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_judged_by_all_of_its_bytes() {
        for padding in 1..=16u8 {
            let mut block = [0xee; 16];
            block[16 - usize::from(padding)..].fill(padding);
            assert_eq!(padding_bytes(&block), Some(padding.into()));
            for position in 16 - usize::from(padding)..15 {
                let mut damaged = block;
                damaged[position] ^= 0x40;
                assert_eq!(padding_bytes(&damaged), None, "padding {padding}, position {position}");
            }
        }
        for last in [0, 17, 32, 255] {
            assert_eq!(padding_bytes(&[last; 16]), None);
        }
        assert_eq!(padding_bytes(&[1; 15]), None);
    }
}
