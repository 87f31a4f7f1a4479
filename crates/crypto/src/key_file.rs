//! A holder's private key as a file: PKCS#8 in PEM, encrypted under a passphrase (PBES2: PBKDF2 with HMAC-SHA-256,
//! AES-256-CBC), as any other tool reads and writes it.
//!
//! AES-CBC authenticates nothing: a damaged file shows as a wrong passphrase or as a key that is not one.

use crate::SecretBytes;
use crate::digest::random;
use crate::passphrase::{self, ITERATIONS};
use aws_lc_rs::cipher::{
    AES_256, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::{Decode, Encode};
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::{self, Kdf, Pbkdf2Params, Pbkdf2Prf};
use std::num::NonZeroU32;
use zeroize::Zeroizing;

/// A file that asks for more is refused: minutes of work would look like a hang.
const MAX_ITERATIONS: u32 = 10_000_000;
const MAX_FILE_BYTES: usize = 64 * 1024;
const BLOCK_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
const ENCRYPTED_LABEL: &str = "ENCRYPTED PRIVATE KEY";
const PLAIN_LABEL: &str = "PRIVATE KEY";
const RSA_LABEL: &str = "RSA PRIVATE KEY";
const EC_LABEL: &str = "EC PRIVATE KEY";

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyFileError {
    #[error("not a private key in PEM (PKCS#8)")]
    Malformed,
    #[error(
        "the private key is encrypted in another way than PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC; \
         `openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256` converts it"
    )]
    UnknownEncryption,
    #[error("the private key asks for more than {MAX_ITERATIONS} iterations of PBKDF2")]
    TooManyIterations,
    #[error("wrong passphrase, or a damaged file")]
    WrongPassphrase,
}

/// A private key's file, read and not yet opened.
pub enum KeyFile {
    Plain(SecretBytes),
    Encrypted(EncryptedKey),
}

/// PKCS#8 EncryptedPrivateKeyInfo in DER.
pub struct EncryptedKey(Vec<u8>);

/// A private key as any tool writes it.
pub enum AnyKeyFile {
    Pkcs8(KeyFile),
    /// `RSAPrivateKey` (RFC 8017 appendix A.1.2).
    Pkcs1(SecretBytes),
    /// `ECPrivateKey` (RFC 5915).
    Sec1(SecretBytes),
}

impl AnyKeyFile {
    /// The first private key in a PEM text. Others may stand before it: OpenSSL writes a curve's parameters first.
    pub fn read(text: &SecretBytes) -> Result<Self, KeyFileError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(KeyFileError::Malformed);
        }
        let blocks = pem::parse_many(text.danger_expose()).map_err(|_| KeyFileError::Malformed)?;
        let mut keys = blocks.into_iter().filter_map(|block| {
            // The old way to encrypt, with a key from MD5.
            let encrypted = block.headers().get("Proc-Type").is_some_and(|kind| kind.contains("ENCRYPTED"));
            let label = block.tag().to_owned();
            let content = SecretBytes::new(block.into_contents());
            match label.as_str() {
                RSA_LABEL | EC_LABEL if encrypted => Some(Err(KeyFileError::UnknownEncryption)),
                RSA_LABEL => Some(Ok(Self::Pkcs1(content))),
                EC_LABEL => Some(Ok(Self::Sec1(content))),
                PLAIN_LABEL => Some(Ok(Self::Pkcs8(KeyFile::Plain(content)))),
                ENCRYPTED_LABEL => {
                    let der = content.danger_expose().to_vec();
                    Some(Ok(Self::Pkcs8(KeyFile::Encrypted(EncryptedKey(der)))))
                }
                _ => None,
            }
        });
        let first = keys.next().ok_or(KeyFileError::Malformed)?;
        // Taken to the end, so that each is wiped.
        keys.for_each(drop);
        first
    }
}

impl KeyFile {
    pub fn read(pem: &SecretBytes) -> Result<Self, KeyFileError> {
        if pem.len() > MAX_FILE_BYTES {
            return Err(KeyFileError::Malformed);
        }
        let pem = pem::parse(pem.danger_expose()).map_err(|_| KeyFileError::Malformed)?;
        match pem.tag() {
            ENCRYPTED_LABEL => Ok(Self::Encrypted(EncryptedKey(pem.into_contents()))),
            PLAIN_LABEL => Ok(Self::Plain(SecretBytes::new(pem.into_contents()))),
            _ => Err(KeyFileError::Malformed),
        }
    }
}

impl EncryptedKey {
    /// The key in PKCS#8.
    pub fn decrypt(&self, passphrase: &SecretBytes) -> Result<SecretBytes, KeyFileError> {
        let info =
            pkcs8::EncryptedPrivateKeyInfoRef::from_der(&self.0).map_err(|_| KeyFileError::Malformed)?;
        let EncryptionScheme::Pbes2(parameters) = &info.encryption_algorithm else {
            return Err(KeyFileError::UnknownEncryption);
        };
        let (Kdf::Pbkdf2(kdf), pbes2::EncryptionScheme::Aes256Cbc { iv }) =
            (&parameters.kdf, &parameters.encryption)
        else {
            return Err(KeyFileError::UnknownEncryption);
        };
        let other_length = kdf.key_length.is_some_and(|length| usize::from(length) != KEY_BYTES);
        if kdf.prf != Pbkdf2Prf::HmacWithSha256 || other_length {
            return Err(KeyFileError::UnknownEncryption);
        }
        if kdf.iteration_count > MAX_ITERATIONS {
            return Err(KeyFileError::TooManyIterations);
        }
        let iterations = NonZeroU32::new(kdf.iteration_count).ok_or(KeyFileError::Malformed)?;
        let key = PaddedBlockDecryptingKey::cbc_pkcs7(derive(passphrase, kdf.salt.as_ref(), iterations))
            .expect("AES has a CBC mode");
        let mut text = Zeroizing::new(info.encrypted_data.as_bytes().to_vec());
        let opened = key
            .decrypt(&mut text, DecryptionContext::Iv128(FixedLength::from(iv)))
            .map_err(|_| KeyFileError::WrongPassphrase)?;
        Ok(SecretBytes::new(opened.to_vec()))
    }
}

/// PEM of a PKCS#8 key, encrypted.
pub fn encrypt(pkcs8: &SecretBytes, passphrase: &SecretBytes) -> String {
    let salt = passphrase::salt();
    let mut iv = [0; BLOCK_BYTES];
    random(&mut iv);
    let key = PaddedBlockEncryptingKey::cbc_pkcs7(derive(passphrase, &salt, ITERATIONS))
        .expect("AES has a CBC mode");
    // Room for the padding as well, so that the key is not left behind in a buffer that grew.
    let mut text = Vec::with_capacity(pkcs8.len() + BLOCK_BYTES);
    text.extend_from_slice(pkcs8.danger_expose());
    key.less_safe_encrypt(&mut text, EncryptionContext::Iv128(FixedLength::from(iv)))
        .expect("a padded text can be encrypted");
    let kdf = Pbkdf2Params::hmac_sha256(ITERATIONS.get(), &salt).expect("the parameters are in range");
    let parameters =
        pbes2::Parameters { kdf: kdf.into(), encryption: pbes2::EncryptionScheme::Aes256Cbc { iv } };
    let info = pkcs8::EncryptedPrivateKeyInfoRef {
        encryption_algorithm: EncryptionScheme::Pbes2(parameters),
        encrypted_data: OctetStringRef::new(&text).expect("a key is far below the limit of DER"),
    };
    let der = info.to_der().expect("the parameters are complete");
    let pem = pem::Pem::new(ENCRYPTED_LABEL, der);
    pem::encode_config(&pem, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

fn derive(passphrase: &SecretBytes, salt: &[u8], iterations: NonZeroU32) -> UnboundCipherKey {
    let key = passphrase::derive(passphrase, salt, iterations);
    UnboundCipherKey::new(&AES_256, key.danger_expose()).expect("an AES-256 key is 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secret(text: &str) -> SecretBytes {
        SecretBytes::new(text.as_bytes().to_vec())
    }

    fn open(pem: &str, passphrase: &str) -> Result<SecretBytes, KeyFileError> {
        match KeyFile::read(&secret(pem))? {
            KeyFile::Plain(key) => Ok(key),
            KeyFile::Encrypted(key) => key.decrypt(&secret(passphrase)),
        }
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_alone() {
        let pem = encrypt(&secret("a key"), &secret("correct horse"));
        assert_eq!(open(&pem, "correct horse").unwrap().danger_expose(), b"a key");
        // One wrong passphrase in 256 or so leaves a padding that looks right; the key is then none.
        assert!(open(&pem, "Correct horse").is_err() || open(&pem, "correct horsE").is_err());
        assert!(!pem.contains("a key") && pem.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----\n"));
    }

    /// Made by OpenSSL 3.0 (`genpkey -aes-256-cbc`), whose defaults these are.
    #[test]
    fn a_key_of_openssl_opens() {
        let pem = include_str!("../tests/certificates/openssl-encrypted.key");
        let key = open(pem, "holdfast").unwrap();
        assert!(crate::transport::TransportKey::from_pkcs8(key).is_ok());
    }

    #[test]
    fn the_first_private_key_is_taken_whatever_its_kind() {
        let block = |label: &str, head: &str| {
            format!("-----BEGIN {label}-----\n{head}YSBrZXk=\n-----END {label}-----\n")
        };
        let read = |text: &str| AnyKeyFile::read(&secret(text));
        let parameters = block("EC PARAMETERS", "");
        let with = |label| format!("{parameters}{}{}", block(label, ""), block("PRIVATE KEY", ""));
        assert!(
            matches!(read(&with(EC_LABEL)), Ok(AnyKeyFile::Sec1(key)) if key.danger_expose() == b"a key")
        );
        assert!(matches!(read(&with(RSA_LABEL)), Ok(AnyKeyFile::Pkcs1(_))));
        assert!(matches!(read(&with(PLAIN_LABEL)), Ok(AnyKeyFile::Pkcs8(KeyFile::Plain(_)))));
        assert!(matches!(read(&with(ENCRYPTED_LABEL)), Ok(AnyKeyFile::Pkcs8(KeyFile::Encrypted(_)))));
        assert_eq!(read(&parameters).err(), Some(KeyFileError::Malformed));
        let old = block(RSA_LABEL, "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n");
        assert_eq!(read(&old).err(), Some(KeyFileError::UnknownEncryption));
    }

    #[test]
    fn other_encryption_and_other_files_are_refused_with_the_reason() {
        let refused = |name: &str| {
            let path = format!("{}/tests/certificates/{name}", env!("CARGO_MANIFEST_DIR"));
            open(&std::fs::read_to_string(path).unwrap(), "holdfast").err().unwrap()
        };
        assert_eq!(refused("openssl-scrypt.key"), KeyFileError::UnknownEncryption);
        assert_eq!(refused("openssl-aes-128.key"), KeyFileError::UnknownEncryption);
        assert_eq!(open("nonsense", "").err(), Some(KeyFileError::Malformed));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(KeyFile::read(&SecretBytes::new(bytes.clone())).is_err());
            prop_assert!(AnyKeyFile::read(&SecretBytes::new(bytes.clone())).is_err());
            prop_assert!(EncryptedKey(bytes).decrypt(&secret("p")).is_err());
        }
    }
}
