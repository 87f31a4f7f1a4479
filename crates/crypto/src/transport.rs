//! RSA keys that carry other keys: a holder's of a share, or the exchange key of a pool that waits for its security
//! domain. RSA-OAEP with SHA-256 throughout; certificates only say which public key is meant, nobody trusts an issuer.

use crate::SecretBytes;
use crate::certificate::fresh_serial;
use crate::digest::sha256;
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey,
    PrivateDecryptingKey, PublicEncryptingKey,
};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use domain::time::IntDate;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType,
    SignatureAlgorithm, SigningKey,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::public_key::PublicKey;
use zeroize::Zeroizing;

/// Bytes of a certificate that are read at all.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
const MIN_MODULUS_BITS: usize = 2048;
const MAX_MODULUS_BITS: usize = 8192;
const EXPONENT: [u8; 3] = [1, 0, 1];
const CERTIFICATE_LABEL: &str = "CERTIFICATE";

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TransportError {
    #[error("not an X.509 certificate")]
    NotACertificate,
    #[error("the certificate is not for an RSA key (rsaEncryption)")]
    NotRsa,
    #[error("the RSA key is {bits} bits; 2048 to 8192 are accepted")]
    Size { bits: usize },
    #[error("the RSA key has another public exponent than 65537")]
    Exponent,
    #[error("the RSA key is not valid")]
    InvalidKey,
    #[error("not an RSA private key (PKCS#8)")]
    NotAPrivateKey,
    #[error("the key cannot be wrapped or unwrapped")]
    Failed,
}

/// A certificate for an RSA key to which keys can be wrapped. Whoever made it vouches for nothing.
#[derive(Clone, Debug)]
pub struct TransportCertificate {
    der: Vec<u8>,
    modulus: Vec<u8>,
    subject: String,
    uri: Option<String>,
    not_after: IntDate,
    key: PublicEncryptingKey,
}

impl PartialEq for TransportCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for TransportCertificate {}

impl TransportCertificate {
    pub fn from_der(der: &[u8]) -> Result<Self, TransportError> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            return Err(TransportError::NotACertificate);
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| TransportError::NotACertificate)?;
        if !rest.is_empty() {
            return Err(TransportError::NotACertificate);
        }
        let public = certificate.public_key();
        let Ok(PublicKey::RSA(rsa)) = public.parsed() else { return Err(TransportError::NotRsa) };
        let (modulus, exponent) = (without_zeros(rsa.modulus), without_zeros(rsa.exponent));
        let bits = bits(modulus);
        if !(MIN_MODULUS_BITS..=MAX_MODULUS_BITS).contains(&bits) {
            return Err(TransportError::Size { bits });
        }
        if exponent != EXPONENT {
            return Err(TransportError::Exponent);
        }
        let key = PublicEncryptingKey::from_der(public.raw).map_err(|_| TransportError::InvalidKey)?;
        Ok(Self {
            der: der.to_vec(),
            modulus: modulus.to_vec(),
            subject: certificate.subject().to_string(),
            uri: only_uri(&certificate),
            not_after: IntDate::from_unix_seconds(certificate.validity().not_after.timestamp()),
            key,
        })
    }

    /// The first certificate of a PEM text, or a certificate in DER: `.cer` files are either.
    pub fn from_file(content: &[u8]) -> Result<Self, TransportError> {
        match std::str::from_utf8(content) {
            Ok(text) if text.contains("-----BEGIN") => {
                let pem = pem::parse(text).map_err(|_| TransportError::NotACertificate)?;
                if pem.tag() != CERTIFICATE_LABEL {
                    return Err(TransportError::NotACertificate);
                }
                Self::from_der(pem.contents())
            }
            Ok(_) | Err(_) => Self::from_der(content),
        }
    }

    pub fn to_pem(&self) -> String {
        let pem = pem::Pem::new(CERTIFICATE_LABEL, self.der.as_slice());
        pem::encode_config(&pem, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Big-endian, without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// Big-endian, without leading zeros.
    pub fn exponent(&self) -> &'static [u8] {
        &EXPONENT
    }

    pub fn bits(&self) -> usize {
        bits(&self.modulus)
    }

    /// What the certificate calls its subject: for people, and foreign.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The URI that is the certificate's one alternative name, if so.
    pub fn uri(&self) -> Option<&str> {
        self.uri.as_deref()
    }

    pub fn not_after(&self) -> IntDate {
        self.not_after
    }

    /// SHA-256 of the DER: `x5t#S256`.
    pub fn thumbprint(&self) -> [u8; 32] {
        sha256(&[&self.der])
    }

    /// SHA-1 of the DER: `x5t`. Clients send and expect it; nothing rests on it.
    pub fn sha1_thumbprint(&self) -> [u8; 20] {
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, self.der.as_slice());
        digest.as_ref().try_into().expect("SHA-1 is 20 bytes")
    }

    /// RSA-OAEP-256 of `key`.
    pub fn wrap(&self, key: &SecretBytes) -> Result<Vec<u8>, TransportError> {
        let public = OaepPublicEncryptingKey::new(self.key.clone()).map_err(|_| TransportError::Failed)?;
        let mut wrapped = vec![0; public.ciphertext_size()];
        let length = public
            .encrypt(&OAEP_SHA256_MGF1SHA256, key.danger_expose(), &mut wrapped, None)
            .map_err(|_| TransportError::Failed)?
            .len();
        wrapped.truncate(length);
        Ok(wrapped)
    }
}

/// What a self-signed certificate says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SelfSigned<'a> {
    pub common_name: &'a str,
    pub uri: Option<&'a str>,
    pub not_before: IntDate,
    pub not_after: IntDate,
}

/// The private half. No `Debug`, no `Clone`.
///
/// ```compile_fail
/// fn show(key: &crypto::transport::TransportKey) -> String { format!("{key:?}") }
/// ```
pub struct TransportKey {
    decrypting: OaepPrivateDecryptingKey,
    signing: KeyPair,
    pkcs8: SecretBytes,
}

impl TransportKey {
    /// A new RSA-3072 key. Takes a good part of a second.
    pub fn generate() -> Self {
        let key = KeyPair::generate(KeySize::Rsa3072).expect("the library makes RSA keys");
        let pkcs8 = key.as_der().expect("a new key can be written");
        Self::from_pkcs8(SecretBytes::new(pkcs8.as_ref().to_vec())).expect("a new key is consistent")
    }

    pub fn from_pkcs8(pkcs8: SecretBytes) -> Result<Self, TransportError> {
        let signing =
            KeyPair::from_pkcs8(pkcs8.danger_expose()).map_err(|_| TransportError::NotAPrivateKey)?;
        let decrypting = PrivateDecryptingKey::from_pkcs8(pkcs8.danger_expose())
            .ok()
            .and_then(|key| OaepPrivateDecryptingKey::new(key).ok())
            .ok_or(TransportError::InvalidKey)?;
        Ok(Self { decrypting, signing, pkcs8 })
    }

    pub fn danger_export_pkcs8(&self) -> &SecretBytes {
        &self.pkcs8
    }

    pub fn is_for(&self, certificate: &TransportCertificate) -> bool {
        certificate.key.as_der().is_ok_and(|public| {
            self.signing
                .public_key()
                .as_der()
                .is_ok_and(|own: aws_lc_rs::encoding::PublicKeyX509Der<'_>| own.as_ref() == public.as_ref())
        })
    }

    /// What [`TransportCertificate::wrap`] wrapped.
    pub fn unwrap(&self, wrapped: &[u8]) -> Result<SecretBytes, TransportError> {
        let mut key = Zeroizing::new(vec![0; self.decrypting.min_output_size()]);
        let key = self
            .decrypting
            .decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut key, None)
            .map_err(|_| TransportError::Failed)?;
        Ok(SecretBytes::new(key.to_vec()))
    }

    /// A certificate for this key, signed by itself.
    pub fn certify(&self, says: &SelfSigned<'_>) -> Result<TransportCertificate, TransportError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, says.common_name);
        if let Some(uri) = says.uri {
            let uri = uri.try_into().map_err(|_| TransportError::NotACertificate)?;
            params.subject_alt_names = vec![SanType::URI(uri)];
        }
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
        params.not_before = date(says.not_before);
        params.not_after = date(says.not_after);
        params.serial_number = Some(fresh_serial());
        let issuer = Issuer::from_params(&params, RsaSigner(&self.signing));
        let certificate = params
            .signed_by(&RsaSigner(&self.signing), &issuer)
            .map_err(|_| TransportError::NotACertificate)?;
        TransportCertificate::from_der(certificate.der())
    }
}

struct RsaSigner<'a>(&'a KeyPair);

impl PublicKeyData for RsaSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

impl SigningKey for RsaSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut signature = vec![0; self.0.public_modulus_len()];
        self.0
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature)
            .map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature)
    }
}

fn only_uri(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => Some((*uri).to_owned()),
        _ => None,
    }
}

fn date(date: IntDate) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(date.unix_seconds()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

/// Of a number without leading zeros.
fn bits(modulus: &[u8]) -> usize {
    modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KEY: LazyLock<TransportKey> = LazyLock::new(TransportKey::generate);

    fn says() -> SelfSigned<'static> {
        SelfSigned {
            common_name: "Ada",
            uri: Some("holdfast:test?a=1"),
            not_before: IntDate::from_unix_seconds(1_800_000_000),
            not_after: IntDate::from_unix_seconds(1_900_000_000),
        }
    }

    #[test]
    fn what_is_wrapped_to_a_certificate_its_key_unwraps() {
        let certificate = KEY.certify(&says()).unwrap();
        assert_eq!((certificate.bits(), certificate.subject()), (3072, "CN=Ada"));
        assert_eq!(certificate.uri(), says().uri);
        assert_eq!(certificate.not_after(), says().not_after);
        assert!(KEY.is_for(&certificate));
        let wrapped = certificate.wrap(&SecretBytes::new(vec![7; 64])).unwrap();
        assert_eq!(KEY.unwrap(&wrapped).unwrap().danger_expose(), [7; 64]);
        let again = TransportKey::from_pkcs8(SecretBytes::new(KEY.pkcs8.danger_expose().to_vec())).unwrap();
        assert_eq!(again.unwrap(&wrapped).unwrap().danger_expose(), [7; 64]);

        let other = TransportKey::generate();
        assert!(!other.is_for(&certificate));
        assert!(other.unwrap(&wrapped).is_err());
        for length in [0, 1, wrapped.len() - 1] {
            assert!(KEY.unwrap(&wrapped[..length]).is_err(), "length {length}");
        }
        let too_long = SecretBytes::new(vec![1; 3072 / 8 - 65]);
        assert_eq!(certificate.wrap(&too_long), Err(TransportError::Failed));
    }

    #[test]
    fn certificates_are_read_from_pem_and_der() {
        let certificate = KEY.certify(&says()).unwrap();
        assert_eq!(TransportCertificate::from_file(certificate.der()), Ok(certificate.clone()));
        assert_eq!(TransportCertificate::from_file(certificate.to_pem().as_bytes()), Ok(certificate.clone()));
        let longer = [certificate.der(), &[0]].concat();
        assert_eq!(TransportCertificate::from_der(&longer), Err(TransportError::NotACertificate));
        let wrong_label = certificate.to_pem().replace("CERTIFICATE", "PUBLIC KEY");
        assert!(TransportCertificate::from_file(wrong_label.as_bytes()).is_err());
    }

    #[test]
    fn keys_that_carry_no_secret_are_refused() {
        let instance = include_bytes!("../tests/golden/instance-certificate-v1.der");
        assert_eq!(TransportCertificate::from_der(instance), Err(TransportError::NotRsa));
        let small = include_bytes!("../tests/certificates/rsa-1024.der");
        assert_eq!(TransportCertificate::from_der(small), Err(TransportError::Size { bits: 1024 }));
        let three = include_bytes!("../tests/certificates/rsa-exponent-3.der");
        assert_eq!(TransportCertificate::from_der(three), Err(TransportError::Exponent));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(TransportCertificate::from_file(&bytes).is_err());
            prop_assert!(TransportKey::from_pkcs8(SecretBytes::new(bytes)).is_err());
        }

        #[test]
        fn damaged_certificates_never_panic(at in 0_usize..1000, byte: u8) {
            let mut der = include_bytes!("../tests/certificates/rsa-exponent-3.der").to_vec();
            let at = at % der.len();
            der[at] = byte;
            let _ = TransportCertificate::from_der(&der);
        }
    }
}
