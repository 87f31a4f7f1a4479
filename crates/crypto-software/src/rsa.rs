//! RSA keys. Material is PKCS#8 DER (RFC 5958).

use crate::aws_lc;
use crate::errors::{failed_to, input_length, invalid_material, mismatch};
use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, Pkcs1PrivateDecryptingKey, Pkcs1PublicEncryptingKey, PrivateDecryptingKey,
    PublicEncryptingKey,
};
use aws_lc_rs::signature::{
    KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA256,
    RSA_PSS_SHA384, RSA_PSS_SHA512, RsaParameters, RsaSignatureEncoding,
};
use crypto::{PartitionError, SecretBytes};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use std::sync::OnceLock;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// The exponent of every key whose creator names none (F4).
const USUAL_EXPONENT: u64 = 65537;
/// The largest exponent that the library makes keys with.
const MAX_EXPONENT: u64 = u32::MAX as u64;
/// PKCS#1 v1.5 padding takes at least this much of the modulus (RFC 8017 section 9.2).
const PKCS1_OVERHEAD: usize = 11;

/// A private key, parsed once. What only some callers need is made when first needed.
pub(crate) struct RsaKey {
    pair: KeyPair,
    public: RsaPublicKey,
    decrypting: OnceLock<Option<Decrypting>>,
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

struct Decrypting {
    pkcs1: Pkcs1PrivateDecryptingKey,
    oaep: OaepPrivateDecryptingKey,
}

struct Encrypting {
    pkcs1: Pkcs1PublicEncryptingKey,
    oaep: OaepPublicEncryptingKey,
}

/// A signature algorithm over a digest, in the library's terms.
struct Scheme {
    slot: usize,
    digest: &'static digest::Algorithm,
    signing: &'static RsaSignatureEncoding,
    verifying: &'static RsaParameters,
}

/// Makes a key. PKCS#8 DER.
pub(crate) fn generate(
    size: RsaSize,
    public_exponent: Option<u64>,
) -> Result<Zeroizing<Vec<u8>>, PartitionError> {
    let pair = match public_exponent.unwrap_or(USUAL_EXPONENT) {
        USUAL_EXPONENT => {
            let size = match size {
                RsaSize::Rsa2048 => KeySize::Rsa2048,
                RsaSize::Rsa3072 => KeySize::Rsa3072,
                RsaSize::Rsa4096 => KeySize::Rsa4096,
            };
            KeyPair::generate(size).map_err(failed_to("generate an RSA key"))?
        }
        exponent @ 3..=MAX_EXPONENT if exponent % 2 == 1 => {
            let der = aws_lc::generate_rsa(size.bits(), exponent as u32)
                .ok_or(PartitionError::Internal("generate an RSA key"))?;
            KeyPair::from_der(&der).map_err(failed_to("generate an RSA key"))?
        }
        refused => {
            return Err(invalid_material(format!(
                "public exponent {refused} is not supported: 65537, or an odd number from 3 to {MAX_EXPONENT}"
            )));
        }
    };
    pkcs8(&pair)
}

fn pkcs8(pair: &KeyPair) -> Result<Zeroizing<Vec<u8>>, PartitionError> {
    let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed_to("encode an RSA key"))?;
    Ok(Zeroizing::new(der.as_ref().to_vec()))
}

impl RsaKey {
    /// From PKCS#8 DER, checked: two primes, consistent numbers, a modulus of exactly `size`, one spelling.
    pub(crate) fn parse(size: RsaSize, material: &[u8]) -> Result<Self, PartitionError> {
        let malformed = || invalid_material("not a consistent RSA private key in PKCS#8".into());
        let pair = KeyPair::from_pkcs8(material).map_err(|_| malformed())?;
        // The library passes over attributes, and over bytes behind the key.
        if !bool::from(pkcs8(&pair)?.ct_eq(material)) {
            return Err(malformed());
        }
        let spki: PublicKeyX509Der<'_> =
            pair.public_key().as_der().map_err(failed_to("encode an RSA public key"))?;
        let modulus = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
        // The first byte's top bit as well: 2047 bits are no key of 2048.
        if modulus.len() != size.bytes() || modulus[0] & 0x80 == 0 {
            return Err(invalid_material(format!("the modulus is not of {} bits", size.bits())));
        }
        let public = RsaPublicKey::new(size, pair.public_key().as_ref().to_vec(), spki.as_ref().to_vec());
        Ok(Self { pair, public, decrypting: OnceLock::new() })
    }

    pub(crate) fn public(&self) -> &RsaPublicKey {
        &self.public
    }

    pub(crate) fn public_numbers(&self) -> PublicKey {
        PublicKey::Rsa {
            modulus: self.pair.public_key().modulus().big_endian_without_leading_zero().to_vec(),
            exponent: self.pair.public_key().exponent().big_endian_without_leading_zero().to_vec(),
        }
    }

    pub(crate) fn sign(
        &self,
        algorithm: SignatureAlgorithm,
        digest: &[u8],
    ) -> Result<Vec<u8>, PartitionError> {
        let size = self.public.size;
        if algorithm == SignatureAlgorithm::RsNull {
            check_raw_length(size, digest)?;
            return aws_lc::rsa_sign_raw(&pkcs8(&self.pair)?, size.bytes(), digest)
                .ok_or(PartitionError::Internal("sign with RSNULL"));
        }
        let scheme = scheme(algorithm, size)?;
        let digest = import_digest(digest, scheme.digest)?;
        let mut signature = vec![0; size.bytes()];
        self.pair
            .sign_digest(scheme.signing, &digest, &mut signature)
            .map_err(failed_to("sign with an RSA key"))?;
        Ok(signature)
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
        let keys = self
            .decrypting
            .get_or_init(|| Decrypting::new(&self.pair))
            .as_ref()
            .ok_or(PartitionError::Internal("prepare an RSA key for decryption"))?;
        let mut buffer = Zeroizing::new(vec![0; size.bytes()]);
        let plaintext = match oaep(algorithm) {
            Some(oaep) => keys.oaep.decrypt(oaep, ciphertext, &mut buffer, None),
            None if algorithm == EncryptionAlgorithm::Rsa15 => keys.pkcs1.decrypt(ciphertext, &mut buffer),
            None => return Err(mismatch(algorithm.as_str(), KeySpec::Rsa(size))),
        };
        plaintext
            .map(|plaintext| SecretBytes::new(plaintext.to_vec()))
            .map_err(|_| PartitionError::DecryptionFailed)
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

impl Decrypting {
    fn new(pair: &KeyPair) -> Option<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(&pkcs8(pair).ok()?).ok()?;
        let pkcs1 = Pkcs1PrivateDecryptingKey::new(key.clone()).ok()?;
        Some(Self { pkcs1, oaep: OaepPrivateDecryptingKey::new(key).ok()? })
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
    let (slot, digest, signing, verifying) = match algorithm {
        Rs256 => (0, &digest::SHA256, &RSA_PKCS1_SHA256, &RSA_PKCS1_2048_8192_SHA256),
        Rs384 => (1, &digest::SHA384, &RSA_PKCS1_SHA384, &RSA_PKCS1_2048_8192_SHA384),
        Rs512 => (2, &digest::SHA512, &RSA_PKCS1_SHA512, &RSA_PKCS1_2048_8192_SHA512),
        Ps256 => (3, &digest::SHA256, &RSA_PSS_SHA256, &RSA_PSS_2048_8192_SHA256),
        Ps384 => (4, &digest::SHA384, &RSA_PSS_SHA384, &RSA_PSS_2048_8192_SHA384),
        Ps512 => (5, &digest::SHA512, &RSA_PSS_SHA512, &RSA_PSS_2048_8192_SHA512),
        RsNull | Es256 | Es256K | Es384 | Es512 | Hs256 | Hs384 | Hs512 => {
            return Err(mismatch(algorithm.as_str(), KeySpec::Rsa(size)));
        }
    };
    Ok(Scheme { slot, digest, signing, verifying })
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
