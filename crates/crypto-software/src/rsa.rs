//! RSA keys. Material is PKCS#8 DER (RFC 5958).

use crate::aws_lc::{self, Hash, RsaPrivateKey};
use crate::errors::{failed_to, input_length, invalid_material, mismatch};
use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey,
    Pkcs1PublicEncryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use std::sync::OnceLock;
use subtle::ConstantTimeEq;

/// The exponent of every key whose creator names none (F4).
const USUAL_EXPONENT: u64 = 65537;
/// The largest exponent that the library makes keys with.
pub(crate) const MAX_EXPONENT: u64 = u32::MAX as u64;
/// PKCS#1 v1.5 padding takes at least this much of the modulus (RFC 8017 section 9.2).
const PKCS1_OVERHEAD: usize = 11;

/// A private key, parsed once.
pub(crate) struct RsaKey {
    private: RsaPrivateKey,
    public: RsaPublicKey,
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

/// The public half: verifies and encrypts.
pub(crate) struct RsaPublicKey {
    size: RsaSize,
    /// `RSAPublicKey` (RFC 8017 appendix A.1.1).
    der: Vec<u8>,
    spki: Vec<u8>,
    verifying: [OnceLock<Option<ParsedPublicKey>>; 6],
    encrypting: OnceLock<Option<Encrypting>>,
}

struct Encrypting {
    pkcs1: Pkcs1PublicEncryptingKey,
    oaep: OaepPublicEncryptingKey,
}

/// A signature algorithm over a digest, in the library's terms.
struct Scheme {
    slot: usize,
    hash: Hash,
    pss: bool,
    digest: &'static digest::Algorithm,
    verifying: &'static RsaParameters,
}

/// Makes a key. PKCS#8 DER.
pub(crate) fn generate(size: RsaSize, public_exponent: Option<u64>) -> Result<SecretBytes, PartitionError> {
    let exponent = match public_exponent.unwrap_or(USUAL_EXPONENT) {
        exponent @ 3..=MAX_EXPONENT if exponent % 2 == 1 => exponent as u32,
        refused => {
            return Err(invalid_material(format!(
                "public exponent {refused} is not supported: 65537, or an odd number from 3 to {MAX_EXPONENT}"
            )));
        }
    };
    RsaPrivateKey::generate(size.bits(), exponent)
        .and_then(|key| key.to_pkcs8())
        .ok_or(PartitionError::Internal("generate an RSA key"))
}

/// PKCS#8 DER, the same at each call.
#[cfg(test)]
pub(crate) fn generate_for_tests() -> &'static SecretBytes {
    static KEY: OnceLock<SecretBytes> = OnceLock::new();
    KEY.get_or_init(|| generate(RsaSize::Rsa2048, None).expect("a key"))
}

/// PKCS#8 DER from an `RSAPrivateKey` (RFC 8017 appendix A.1.2), as the library reads and checks it.
pub(crate) fn from_private_key_der(der: &[u8]) -> Result<SecretBytes, PartitionError> {
    RsaPrivateKey::from_private_key_der(der)
        .ok_or_else(|| invalid_material("the parts are not of one RSA key".into()))?
        .to_pkcs8()
        .ok_or(PartitionError::Internal("encode an RSA key"))
}

impl RsaKey {
    /// From PKCS#8 DER, checked: two primes, consistent numbers, a modulus of exactly `size`, one spelling.
    pub(crate) fn parse(size: RsaSize, material: &[u8]) -> Result<Self, PartitionError> {
        let malformed = || invalid_material("not a consistent RSA private key in PKCS#8".into());
        let encode = || PartitionError::Internal("encode an RSA key");
        let private = RsaPrivateKey::parse(material).ok_or_else(malformed)?;
        // The library passes over attributes, and over bytes behind the key.
        let canonical = private.to_pkcs8().ok_or_else(encode)?;
        if !bool::from(canonical.danger_expose().ct_eq(material)) {
            return Err(malformed());
        }
        let (modulus, exponent) = private.public_numbers().ok_or_else(encode)?;
        // The first byte's top bit as well: 2047 bits are no key of 2048.
        if modulus.len() != size.bytes() || modulus[0] & 0x80 == 0 {
            return Err(invalid_material(format!("the modulus is not of {} bits", size.bits())));
        }
        let der = private.to_public_der().ok_or_else(encode)?;
        let spki = private.to_spki().ok_or_else(encode)?;
        Ok(Self { private, public: RsaPublicKey::new(size, der, spki), modulus, exponent })
    }

    pub(crate) fn public(&self) -> &RsaPublicKey {
        &self.public
    }

    pub(crate) fn public_numbers(&self) -> PublicKey {
        PublicKey::Rsa { modulus: self.modulus.clone(), exponent: self.exponent.clone() }
    }

    pub(crate) fn sign(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<Vec<u8>, PartitionError> {
        let size = self.public.size;
        if algorithm == SignatureAlgorithm::RsNull {
            check_raw_length(size, digest)?;
            return self.private.sign_raw(digest).ok_or(PartitionError::Internal("sign with RSNULL"));
        }
        let scheme = scheme(algorithm, size)?;
        self.private
            .sign(scheme.hash, scheme.pss, digest)
            .ok_or(PartitionError::Internal("sign with an RSA key"))
    }

    /// Every failure that depends on the key or on the padding is the same `DecryptionFailed`.
    pub(crate) fn decrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        ciphertext: &[u8],
    ) -> Result<SecretBytes, PartitionError> {
        let size = self.public.size;
        if ciphertext.len() != size.bytes() {
            return Err(input_length(format!(
                "{} with a key of {} bits decrypts {} bytes, not {}",
                algorithm.as_str(),
                size.bits(),
                size.bytes(),
                ciphertext.len()
            )));
        }
        let plaintext = match algorithm {
            EncryptionAlgorithm::RsaOaep => self.private.decrypt(Some(Hash::Sha1), ciphertext),
            EncryptionAlgorithm::RsaOaep256 => self.private.decrypt(Some(Hash::Sha256), ciphertext),
            EncryptionAlgorithm::Rsa15 => self.private.decrypt(None, ciphertext),
            EncryptionAlgorithm::AesGcm(_)
            | EncryptionAlgorithm::AesCbc(_)
            | EncryptionAlgorithm::AesCbcPad(_)
            | EncryptionAlgorithm::AesKw(_) => return Err(mismatch(algorithm.as_str(), KeySpec::Rsa(size))),
        };
        plaintext.ok_or(PartitionError::DecryptionFailed)
    }
}

impl RsaPublicKey {
    pub(crate) fn new(size: RsaSize, der: Vec<u8>, spki: Vec<u8>) -> Self {
        Self { size, der, spki, verifying: Default::default(), encrypting: OnceLock::new() }
    }

    pub(crate) fn verify(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<bool, PartitionError> {
        if algorithm == SignatureAlgorithm::RsNull {
            check_raw_length(self.size, digest)?;
            // The library checks the whole padding; a signature of another length is none.
            let recovered = (signature.len() == self.size.bytes())
                .then(|| aws_lc::rsa_recover_raw(&self.der, self.size.bytes(), signature))
                .flatten();
            return Ok(recovered.is_some_and(|message| message.ct_eq(digest).into()));
        }
        let scheme = scheme(algorithm, self.size)?;
        let digest = import_digest(digest, scheme.digest)?;
        let key = self.verifying[scheme.slot]
            .get_or_init(|| ParsedPublicKey::new(scheme.verifying, &self.der).ok())
            .as_ref()
            .ok_or(PartitionError::Internal("prepare an RSA key for verification"))?;
        Ok(signature.len() == self.size.bytes() && key.verify_digest_sig(&digest, signature).is_ok())
    }

    pub(crate) fn encrypt(
        &self,
        algorithm: EncryptionAlgorithm,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, PartitionError> {
        let keys = self
            .encrypting
            .get_or_init(|| Encrypting::new(&self.spki))
            .as_ref()
            .ok_or(PartitionError::Internal("prepare an RSA key for encryption"))?;
        let oaep = oaep(algorithm);
        let most = match oaep {
            Some(oaep) => keys.oaep.max_plaintext_size(oaep),
            None if algorithm == EncryptionAlgorithm::Rsa15 => self.size.bytes() - PKCS1_OVERHEAD,
            None => return Err(mismatch(algorithm.as_str(), KeySpec::Rsa(self.size))),
        };
        if plaintext.len() > most {
            return Err(input_length(format!(
                "{} with a key of {} bits encrypts at most {most} bytes, not {}",
                algorithm.as_str(),
                self.size.bits(),
                plaintext.len()
            )));
        }
        let mut ciphertext = vec![0; self.size.bytes()];
        let written = match oaep {
            Some(oaep) => keys.oaep.encrypt(oaep, plaintext, &mut ciphertext, None),
            None => keys.pkcs1.encrypt(plaintext, &mut ciphertext),
        };
        let written = written.map_err(failed_to("encrypt with an RSA key"))?.len();
        ciphertext.truncate(written);
        Ok(ciphertext)
    }
}

impl Encrypting {
    fn new(spki: &[u8]) -> Option<Self> {
        let key = PublicEncryptingKey::from_der(spki).ok()?;
        let pkcs1 = Pkcs1PublicEncryptingKey::new(key.clone()).ok()?;
        Some(Self { pkcs1, oaep: OaepPublicEncryptingKey::new(key).ok()? })
    }
}

fn scheme(algorithm: SignatureAlgorithm, size: RsaSize) -> Result<Scheme, PartitionError> {
    use SignatureAlgorithm::{
        Es256, Es256K, Es384, Es512, Hs256, Hs384, Hs512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512, RsNull,
    };
    let (slot, hash, pss, digest, verifying) = match algorithm {
        Rs256 => (0, Hash::Sha256, false, &digest::SHA256, &RSA_PKCS1_2048_8192_SHA256),
        Rs384 => (1, Hash::Sha384, false, &digest::SHA384, &RSA_PKCS1_2048_8192_SHA384),
        Rs512 => (2, Hash::Sha512, false, &digest::SHA512, &RSA_PKCS1_2048_8192_SHA512),
        Ps256 => (3, Hash::Sha256, true, &digest::SHA256, &RSA_PSS_2048_8192_SHA256),
        Ps384 => (4, Hash::Sha384, true, &digest::SHA384, &RSA_PSS_2048_8192_SHA384),
        Ps512 => (5, Hash::Sha512, true, &digest::SHA512, &RSA_PSS_2048_8192_SHA512),
        RsNull | Es256 | Es256K | Es384 | Es512 | Hs256 | Hs384 | Hs512 => {
            return Err(mismatch(algorithm.as_str(), KeySpec::Rsa(size)));
        }
    };
    Ok(Scheme { slot, hash, pss, digest, verifying })
}

fn oaep(algorithm: EncryptionAlgorithm) -> Option<&'static OaepAlgorithm> {
    match algorithm {
        EncryptionAlgorithm::RsaOaep => Some(&OAEP_SHA1_MGF1SHA1),
        EncryptionAlgorithm::RsaOaep256 => Some(&OAEP_SHA256_MGF1SHA256),
        EncryptionAlgorithm::Rsa15
        | EncryptionAlgorithm::AesGcm(_)
        | EncryptionAlgorithm::AesCbc(_)
        | EncryptionAlgorithm::AesCbcPad(_)
        | EncryptionAlgorithm::AesKw(_) => None,
    }
}

/// The caller's bytes as a digest of `algorithm`; their length has been checked.
fn import_digest(bytes: &[u8], algorithm: &'static digest::Algorithm) -> Result<Digest, PartitionError> {
    Digest::import_less_safe(bytes, algorithm).map_err(failed_to("take a digest"))
}

fn check_raw_length(size: RsaSize, message: &[u8]) -> Result<(), PartitionError> {
    let most = size.bytes() - PKCS1_OVERHEAD;
    if (1..=most).contains(&message.len()) {
        return Ok(());
    }
    Err(input_length(format!(
        "RSNULL with a key of {} bits takes 1 to {most} bytes, not {}",
        size.bits(),
        message.len()
    )))
}
