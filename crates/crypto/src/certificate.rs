//! The owner key and the instance certificates that it issues.
//!
//! The owner key (P-384) is a CA and nothing else. Each start of a core makes its own keys, never exported, and has
//! them certified here with pool, node, incarnation, purpose, class, genesis hash and expiry: an X.509 v3 certificate
//! whose one subject alternative name is a URI that spells the claims out, so that any tool shows them
//! (`docs/formats/instance-certificate.md`).

use crate::SecretBytes;
use crate::digest::{hex, random, sha256};
use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1,
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    KeyPair, UnparsedPublicKey,
};
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::IntDate;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, SigningKey,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509Version};

const SCALAR_BYTES: usize = 48;
const POINT_BYTES: usize = 97;
/// How a point begins that is written with both coordinates (SEC 1 section 2.3.3).
const UNCOMPRESSED: u8 = 4;
const CLAIMS_PREFIX: &str = "holdfast:instance?v=1";
const OID_EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const OID_P256: &str = "1.2.840.10045.3.1.7";
const OID_ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
const PEM_LABEL: &str = "PUBLIC KEY";
const OWNER_NAME: &str = "Holdfast owner";
/// SubjectPublicKeyInfo of a P-384 point (RFC 5480), up to the point itself.
const P384_SPKI_PREFIX: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
    0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];

/// Certifies instance keys; signs the genesis record. P-384, ECDSA with SHA-384.
pub struct OwnerKey {
    fixed: EcdsaKeyPair,
    for_certificates: EcdsaKeyPair,
}

/// The public half, as an owner compares and an auditor holds it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OwnerPublicKey {
    /// Uncompressed point, 97 bytes.
    pub point: Vec<u8>,
}

/// What an incarnation key is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Purpose {
    AuditCheckpoint,
    Attestation,
    Release,
    /// Signs the manifests of full backups.
    Backup,
}

impl Purpose {
    const ALL: [Purpose; 4] =
        [Purpose::AuditCheckpoint, Purpose::Attestation, Purpose::Release, Purpose::Backup];

    pub const fn as_str(self) -> &'static str {
        match self {
            Purpose::AuditCheckpoint => "audit-checkpoint",
            Purpose::Attestation => "attestation",
            Purpose::Release => "release",
            Purpose::Backup => "backup",
        }
    }
}

/// What a certificate says of the key it certifies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstanceClaims {
    pub pool: Guid,
    pub node: Guid,
    /// Random for each start of a core.
    pub incarnation: Guid,
    pub purpose: Purpose,
    pub class: PoolClass,
    /// SHA-256 of the signed genesis record.
    pub genesis_hash: [u8; 32],
    pub not_before: IntDate,
    pub not_after: IntDate,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum CertificateError {
    #[error("not a certificate, or not one of this project's instance certificates")]
    Malformed,
    #[error("the certificate was not issued by this owner key")]
    WrongIssuer,
}

impl OwnerKey {
    pub(crate) fn generate() -> Self {
        let key =
            EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("the library makes P-384 keys");
        let scalar: EcPrivateKeyBin<'_> = key.private_key().as_be_bytes().expect("a new key has a scalar");
        let point = key.public_key().as_ref().to_vec();
        Self::from_parts(scalar.as_ref(), &point).expect("a new key is consistent")
    }

    /// Scalar, 48 bytes, then point, 97 bytes.
    pub(crate) fn danger_export(&self) -> SecretBytes {
        let scalar: EcPrivateKeyBin<'_> =
            self.fixed.private_key().as_be_bytes().expect("a P-384 key has a scalar");
        let mut bytes = Vec::with_capacity(SCALAR_BYTES + POINT_BYTES);
        bytes.extend_from_slice(scalar.as_ref());
        bytes.extend_from_slice(self.fixed.public_key().as_ref());
        SecretBytes::new(bytes)
    }

    pub(crate) fn import(bytes: &[u8]) -> Option<Self> {
        let (scalar, point) = bytes.split_at_checked(SCALAR_BYTES)?;
        // The library also takes the hybrid encoding (X9.62), of which there would be two of each key.
        if is_point(point) { Self::from_parts(scalar, point) } else { None }
    }

    fn from_parts(scalar: &[u8], point: &[u8]) -> Option<Self> {
        let key = |algorithm| EcdsaKeyPair::from_private_key_and_public_key(algorithm, scalar, point).ok();
        Some(Self {
            fixed: key(&ECDSA_P384_SHA384_FIXED_SIGNING)?,
            for_certificates: key(&ECDSA_P384_SHA384_ASN1_SIGNING)?,
        })
    }

    pub fn public_key(&self) -> OwnerPublicKey {
        OwnerPublicKey { point: self.fixed.public_key().as_ref().to_vec() }
    }

    /// ECDSA P-384 with SHA-384 over `message`, r‖s, 96 bytes. For the genesis record.
    pub fn sign_genesis(&self, message: &[u8]) -> Vec<u8> {
        self.fixed.sign(&SystemRandom::new(), message).expect("a P-384 key signs").as_ref().to_vec()
    }

    /// DER of an X.509 certificate for `key`.
    pub fn certify(&self, claims: &InstanceClaims, key: &InstanceKey) -> Vec<u8> {
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = self.name();
        let issuer = Issuer::from_params(&issuer, CertificateSigner(&self.for_certificates));
        let mut params = CertificateParams::default();
        params.distinguished_name =
            common_name(&format!("Holdfast {} {}", claims.purpose.as_str(), claims.incarnation));
        let uri = claims_uri(claims).as_str().try_into().expect("the claims are ASCII");
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = date(claims.not_before);
        params.not_after = date(claims.not_after);
        params.serial_number = Some(fresh_serial());
        let certificate =
            params.signed_by(&SubjectKey(&key.0), &issuer).expect("the parameters are complete");
        certificate.der().to_vec()
    }

    /// DER of the owner key's own certificate, for tools that build chains of them. Nobody trusts it for being there.
    pub fn self_certify(&self, not_before: IntDate, not_after: IntDate) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.name();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date(not_before);
        params.not_after = date(not_after);
        params.serial_number = Some(fresh_serial());
        let signer = CertificateSigner(&self.for_certificates);
        params.self_signed(&signer).expect("the parameters are complete").der().to_vec()
    }

    fn name(&self) -> DistinguishedName {
        common_name(&format!("{OWNER_NAME} {}", self.public_key().fingerprint()))
    }
}

impl OwnerPublicKey {
    /// The key that a certificate of [`OwnerKey::self_certify`] names, and that signed it. Whose key that is, it does
    /// not show.
    pub fn from_certificate(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        let key = certificate.public_key().raw;
        let point = key.strip_prefix(P384_SPKI_PREFIX.as_slice()).ok_or(CertificateError::Malformed)?;
        if !rest.is_empty() || !is_point(point) || !certificate.is_ca() {
            return Err(CertificateError::Malformed);
        }
        let signature = certificate.signature_value.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, point)
            .verify(certificate.tbs_certificate.as_ref(), signature)
            .map_err(|_| CertificateError::WrongIssuer)?;
        Ok(Self { point: point.to_vec() })
    }

    /// SHA-256 of the point, hex: what people compare.
    pub fn fingerprint(&self) -> String {
        hex(&sha256(&[&self.point]))
    }

    pub fn verify_genesis(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &self.point).verify(message, signature).is_ok()
    }

    /// Checks the issuer's signature, reads claims and key. Does not judge time or purpose: callers do.
    pub fn verify_certificate(
        &self,
        der: &[u8],
    ) -> Result<(InstanceClaims, InstancePublicKey), CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        let algorithm = &certificate.signature_algorithm;
        if !rest.is_empty()
            || certificate.version() != X509Version::V3
            || algorithm.algorithm.to_id_string() != OID_ECDSA_SHA384
            || algorithm != &certificate.tbs_certificate.signature
        {
            return Err(CertificateError::Malformed);
        }
        // The parser is lenient about the frame around what is signed: two spellings of one certificate must not both
        // be good.
        if der != frame(certificate.tbs_certificate.as_ref(), certificate.signature_value.data.as_ref()) {
            return Err(CertificateError::Malformed);
        }
        // The signature first: nothing below is worth reading without it.
        let signature = certificate.signature_value.data.as_ref();
        UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, &self.point)
            .verify(certificate.tbs_certificate.as_ref(), signature)
            .map_err(|_| CertificateError::WrongIssuer)?;
        read_claims(&certificate).ok_or(CertificateError::Malformed)
    }

    /// SubjectPublicKeyInfo as PEM, for `holdfast audit verify` and for any other tool.
    pub fn to_pem(&self) -> String {
        let der = [P384_SPKI_PREFIX.as_slice(), &self.point].concat();
        pem::encode_config(
            &pem::Pem::new(PEM_LABEL, der),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        )
    }

    pub fn from_pem(text: &str) -> Result<Self, CertificateError> {
        let malformed = CertificateError::Malformed;
        let pem = pem::parse(text).map_err(|_| malformed.clone())?;
        let point = pem.contents().strip_prefix(P384_SPKI_PREFIX.as_slice()).ok_or(malformed.clone())?;
        if pem.tag() != PEM_LABEL || !is_point(point) {
            return Err(malformed);
        }
        Ok(Self { point: point.to_vec() })
    }
}

/// A key of this incarnation: P-256, made at start, never exported.
pub struct InstanceKey(EcdsaKeyPair);

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InstancePublicKey {
    /// Uncompressed point, 65 bytes.
    pub point: Vec<u8>,
}

impl InstanceKey {
    pub fn generate() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("the library makes P-256 keys"))
    }

    pub fn public_key(&self) -> InstancePublicKey {
        InstancePublicKey { point: self.0.public_key().as_ref().to_vec() }
    }

    /// ECDSA P-256 with SHA-256 over `message`, r‖s, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.0.sign(&SystemRandom::new(), message).expect("a P-256 key signs");
        signature.as_ref().try_into().expect("a fixed P-256 signature is 64 bytes")
    }
}

impl InstancePublicKey {
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point).verify(message, signature).is_ok()
    }
}

/// The subject's side: a public key and nothing more.
struct SubjectKey<'a>(&'a EcdsaKeyPair);

impl PublicKeyData for SubjectKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

struct CertificateSigner<'a>(&'a EcdsaKeyPair);

impl PublicKeyData for CertificateSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P384_SHA384
    }
}

impl SigningKey for CertificateSigner<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature =
            self.0.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signature.as_ref().to_vec())
    }
}

/// Whether these are as many bytes as a P-384 point has that is written with both coordinates, and say so.
fn is_point(bytes: &[u8]) -> bool {
    bytes.len() == POINT_BYTES && bytes[0] == UNCOMPRESSED
}

pub(crate) fn fresh_serial() -> SerialNumber {
    let mut serial = [0; 16];
    random(&mut serial);
    // Positive, and without a leading zero byte, as DER wants it.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&serial)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn date(date: IntDate) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(date.unix_seconds()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn claims_uri(claims: &InstanceClaims) -> String {
    format!(
        "{CLAIMS_PREFIX}&pool={}&node={}&incarnation={}&purpose={}&class={}&genesis={}",
        claims.pool,
        claims.node,
        claims.incarnation,
        claims.purpose.as_str(),
        claims.class.as_str(),
        hex(&claims.genesis_hash)
    )
}

fn read_claims(certificate: &X509Certificate<'_>) -> Option<(InstanceClaims, InstancePublicKey)> {
    let uri = only_uri(certificate)?;
    let mut values = uri.strip_prefix(CLAIMS_PREFIX)?.strip_prefix('&')?.split('&');
    let mut value = |name: &str| values.next()?.strip_prefix(name)?.strip_prefix('=');
    let claims = InstanceClaims {
        pool: value("pool")?.parse().ok()?,
        node: value("node")?.parse().ok()?,
        incarnation: value("incarnation")?.parse().ok()?,
        purpose: value("purpose")
            .and_then(|text| Purpose::ALL.into_iter().find(|known| known.as_str() == text))?,
        class: match value("class")? {
            "production" => PoolClass::Production,
            "test" => PoolClass::Test,
            _ => return None,
        },
        genesis_hash: unhex(value("genesis")?)?,
        not_before: IntDate::from_unix_seconds(certificate.validity().not_before.timestamp()),
        not_after: IntDate::from_unix_seconds(certificate.validity().not_after.timestamp()),
    };
    let key = certificate.public_key();
    let point = key.subject_public_key.data.to_vec();
    let curve = key.algorithm.parameters.as_ref()?.as_oid().ok()?;
    let is_p256_point = key.algorithm.algorithm.to_id_string() == OID_EC_PUBLIC_KEY
        && curve.to_id_string() == OID_P256
        && point.len() == 65
        && point[0] == 4;
    // One spelling only: what was read must be what would be written.
    (is_p256_point && claims_uri(&claims) == uri).then_some((claims, InstancePublicKey { point }))
}

/// The certificate's one subject alternative name, if every extension is one that we write.
fn only_uri<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut uri = None;
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => match names.general_names.as_slice() {
                [GeneralName::URI(text)] if uri.is_none() => uri = Some(*text),
                _ => return None,
            },
            ParsedExtension::KeyUsage(usage) if usage.digital_signature() => {}
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca => {}
            ParsedExtension::SubjectKeyIdentifier(_) | ParsedExtension::AuthorityKeyIdentifier(_) => {}
            _ => return None,
        }
    }
    uri
}

/// A certificate's DER around its signed part: `SEQUENCE { tbs, ecdsa-with-SHA384, BIT STRING signature }`.
fn frame(signed: &[u8], signature: &[u8]) -> Vec<u8> {
    let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
    let signature = der_value(0x03, &[&[0], signature].concat());
    der_value(0x30, &[signed, &algorithm, &signature].concat())
}

fn der_value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = length.iter().position(|byte| *byte != 0).unwrap_or(length.len() - 1);
    let length = &length[significant..];
    match length {
        [short] if *short < 0x80 => [&[tag, *short], content].concat(),
        long => [&[tag, 0x80 | long.len() as u8], long, content].concat(),
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks(2)) {
        let digit = |character: u8| (character as char).to_digit(16).map(|digit| digit as u8);
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn claims() -> InstanceClaims {
        InstanceClaims {
            pool: Guid([1; 16]),
            node: Guid([2; 16]),
            incarnation: Guid([3; 16]),
            purpose: Purpose::AuditCheckpoint,
            class: PoolClass::Test,
            genesis_hash: [0xab; 32],
            not_before: IntDate::from_unix_seconds(1_800_000_000),
            not_after: IntDate::from_unix_seconds(1_900_000_000),
        }
    }

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_golden_certificate_verifies_for_ever() {
        let owner = OwnerPublicKey::from_pem(&String::from_utf8(golden("owner-v1.pem")).unwrap()).unwrap();
        let (read, key) = owner.verify_certificate(&golden("instance-certificate-v1.der")).unwrap();
        assert_eq!(read, claims());
        assert_eq!(key.point.len(), 65);
    }

    #[test]
    fn serial_numbers_are_positive_of_one_length_and_never_the_same() {
        let (owner, key) = (OwnerKey::generate(), InstanceKey::generate());
        let serials: Vec<_> = std::iter::repeat_with(|| {
            let der = owner.certify(&claims(), &key);
            X509Certificate::from_der(&der).unwrap().1.raw_serial().to_vec()
        })
        .take(64)
        .collect();
        for serial in &serials {
            assert!(serial.len() == 16 && (0x40..0x80).contains(&serial[0]), "{}", hex(serial));
        }
        assert_eq!(serials.iter().collect::<BTreeSet<_>>().len(), serials.len());
    }

    #[test]
    fn certificates_say_what_was_certified() {
        let (owner, key) = (OwnerKey::generate(), InstanceKey::generate());
        for purpose in Purpose::ALL {
            let claims = InstanceClaims { purpose, ..claims() };
            let der = owner.certify(&claims, &key);
            assert_eq!(owner.public_key().verify_certificate(&der), Ok((claims, key.public_key())));
            let other = OwnerKey::generate().public_key();
            assert_eq!(other.verify_certificate(&der), Err(CertificateError::WrongIssuer));
        }
    }

    #[test]
    fn each_flipped_bit_of_a_certificate_is_refused() {
        let owner = OwnerPublicKey::from_pem(&String::from_utf8(golden("owner-v1.pem")).unwrap()).unwrap();
        let der = golden("instance-certificate-v1.der");
        for bit in 0..der.len() * 8 {
            let mut damaged = der.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(owner.verify_certificate(&damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn owner_key_survives_export_and_pem() {
        let owner = OwnerKey::generate();
        let again = OwnerKey::import(owner.danger_export().danger_expose()).unwrap();
        assert!(owner.public_key().verify_genesis(b"genesis", &again.sign_genesis(b"genesis")));
        assert!(!owner.public_key().verify_genesis(b"another", &again.sign_genesis(b"genesis")));
        assert_eq!(OwnerPublicKey::from_pem(&owner.public_key().to_pem()), Ok(owner.public_key()));
        let mut mixed = owner.danger_export().danger_expose().to_vec();
        mixed[SCALAR_BYTES..].copy_from_slice(&OwnerKey::generate().public_key().point);
        assert!(OwnerKey::import(&mixed).is_none());
    }

    #[test]
    fn instance_keys_sign() {
        let key = InstanceKey::generate();
        let signature = key.sign(b"checkpoint");
        assert!(key.public_key().verify(b"checkpoint", &signature));
        assert!(!key.public_key().verify(b"checkpoinT", &signature));
        assert!(!InstanceKey::generate().public_key().verify(b"checkpoint", &signature));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
            let owner = OwnerPublicKey { point: vec![4; POINT_BYTES] };
            prop_assert!(owner.verify_certificate(&bytes).is_err());
            let _ = OwnerPublicKey::from_pem(&text);
        }
    }
}
