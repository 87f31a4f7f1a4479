//! The quickstart's CA, and the certificates that it signs for the listeners; and the certificate by which the principal
//! `app` proves who it is, which nobody signs but itself.
//!
//! A listener makes its key at each start and asks for a certificate with a request (PKCS#10); the CA copies from the
//! request nothing but the public key and names that it knows.

use crate::CommandError;
use crate::files;
use crate::layout::{CONTROL_HOST, ISSUER_HOST, Layout, POOL_NAME, RESOURCE_SUFFIX};
use identity::issuer::SigningKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequest, CertificateSigningRequestParams,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, PublicKeyData, SanType,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

const CA_YEARS: i64 = 10;
const LISTENER_DAYS: i64 = 90;
/// For clocks that are a little behind ours.
const BACKDATED: Duration = Duration::hours(1);

/// Signs listeners' requests; its key stays in `DIR/ca`.
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl CertificateAuthority {
    /// Reads the CA, or makes it at first.
    pub fn open(layout: &Layout) -> Result<Self, CommandError> {
        let key = files::read_or_make::<CommandError>(&layout.ca_key(), || {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            Ok(Zeroizing::new(key.serialize_pem().into_bytes()))
        })?;
        let key = KeyPair::from_pem(std::str::from_utf8(&key)?)?;
        let certificate = files::read_or_make::<CommandError>(&layout.ca_certificate(), || {
            Ok(Zeroizing::new(root_params().self_signed(&key)?.pem().into_bytes()))
        })?;
        Self::of(key, std::str::from_utf8(&certificate)?)
    }

    fn of(key: KeyPair, pem: &str) -> Result<Self, CommandError> {
        let certificate = rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes())
            .map_err(|_| "the CA's certificate is not PEM")?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(pem, key)?, certificate })
    }

    /// One that is kept nowhere.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn passing() -> Result<Self, CommandError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let pem = root_params().self_signed(&key)?.pem();
        Self::of(key, &pem)
    }

    /// A certificate for the key that signed `request`, for those of its names that are ours.
    fn sign(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        known: &[SanType],
        host: &str,
    ) -> Result<CertificateDer<'static>, CommandError> {
        let (_, asked) =
            X509CertificationRequest::from_der(request).map_err(|_| "it is no certificate request")?;
        // Checks the request's own signature: whoever asks holds the key.
        let request = CertificateSigningRequestParams::from_der(request)?;
        // What kind of key it is, it takes from the kind of signature.
        if request.public_key.subject_public_key_info() != asked.certification_request_info.subject_pki.raw {
            return Err("the CA signs for no key whose requests are signed in another way than usual".into());
        }
        if let Some(name) = request.params.subject_alt_names.iter().find(|name| !known.contains(name)) {
            return Err(format!("the CA signs for its own names only, not for {name:?}").into());
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(host);
        params.subject_alt_names = request.params.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(Duration::days(LISTENER_DAYS));
        Ok(params.signed_by(&request.public_key, &self.issuer)?.der().clone())
    }

    /// The chain for the process of the pool `name`, which asks with `request`: for that pool's host, and for no other's.
    pub fn sign_for_pool(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        name: &str,
    ) -> Result<[CertificateDer<'static>; 2], CommandError> {
        let host = format!("{name}.{RESOURCE_SUFFIX}");
        Ok([self.sign(request, &pool_names(&host)?, &host)?, self.certificate.clone()])
    }

    /// TLS for a listener of this process.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CommandError> {
        let key = ListenerKey::new(names())?;
        let host = format!("{POOL_NAME}.{RESOURCE_SUFFIX}");
        let certificate = self.sign(key.request(), &names(), &host)?;
        key.server_config(vec![certificate, self.certificate.clone()])
    }
}

/// A listener's key, which was made now and is never written anywhere, and the request for its certificate.
pub struct ListenerKey {
    key: KeyPair,
    request: CertificateSigningRequest,
}

impl ListenerKey {
    fn new(names: Vec<SanType>) -> Result<Self, CommandError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let request = params.serialize_request(&key)?;
        Ok(Self { key, request })
    }

    pub fn for_pool(name: &str) -> Result<Self, CommandError> {
        Self::new(pool_names(&format!("{name}.{RESOURCE_SUFFIX}"))?)
    }

    pub fn request(&self) -> &CertificateSigningRequestDer<'static> {
        self.request.der()
    }

    pub fn server_config(
        self,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<ServerConfig>, CommandError> {
        server_config(self.key.serialize_der(), chain)
    }
}

/// TLS as every listener speaks it, with the key `pkcs8`, which has to be the one of `chain`'s first certificate.
pub fn server_config(
    pkcs8: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
) -> Result<Arc<ServerConfig>, CommandError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::try_from(pkcs8)?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The certificate of the principal `app`, made at first with its key: whoever reads the file can be `app`. RSA, as
/// clients sign with nothing else.
pub fn app_certificate(layout: &Layout) -> Result<CertificateDer<'static>, CommandError> {
    let pem = files::read_or_make::<CommandError>(&layout.app_certificate(), || {
        let key_pem = SigningKey::generate()?.to_pkcs8_pem()?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(&key_pem, &PKCS_RSA_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name("Holdfast quickstart app (class test)");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = validity(Duration::days(365 * CA_YEARS));
        let certificate = params.self_signed(&key)?.pem();
        // Room for both, so that no part of the key is left behind by growing.
        let mut pem = Zeroizing::new(Vec::with_capacity(key_pem.len() + certificate.len()));
        pem.extend_from_slice(key_pem.as_bytes());
        pem.extend_from_slice(certificate.as_bytes());
        Ok(pem)
    })?;
    let unreadable = || format!("{} holds no certificate in PEM", layout.app_certificate().display());
    Ok(rustls_pki_types::pem::PemObject::from_pem_slice(&pem).map_err(|_| unreadable())?)
}

/// A key of the attestation authority for tests, and its certificate, which nobody signs but itself.
pub fn attestation_key() -> Result<(SigningKey, Vec<u8>), CommandError> {
    let signing = SigningKey::generate()?;
    let key = KeyPair::from_pkcs8_pem_and_sign_algo(&signing.to_pkcs8_pem()?, &PKCS_RSA_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Holdfast quickstart attestation (class test)");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = validity(Duration::days(365 * CA_YEARS));
    let certificate = params.self_signed(&key)?.der().to_vec();
    Ok((signing, certificate))
}

/// No address and not `localhost`: a certificate has no port, so it would be as good for the issuer and the control plane,
/// which clients call there.
fn pool_names(host: &str) -> Result<Vec<SanType>, CommandError> {
    Ok(vec![SanType::DnsName(host.try_into()?)])
}

fn names() -> Vec<SanType> {
    let dns = [
        &format!("{POOL_NAME}.{RESOURCE_SUFFIX}"),
        &format!("*.{RESOURCE_SUFFIX}"),
        "localhost",
        ISSUER_HOST,
        CONTROL_HOST,
    ];
    let dns = dns.map(|name| SanType::DnsName(name.try_into().expect("our names are ASCII")));
    let addresses =
        [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(SanType::IpAddress);
    dns.into_iter().chain(addresses).collect()
}

fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Holdfast quickstart CA (class test)");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = validity(Duration::days(365 * CA_YEARS));
    params
}

fn validity(length: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - BACKDATED, now + length)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished_name = DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    #[test]
    fn the_ca_signs_for_its_own_names_only() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
        let ca = CertificateAuthority::open(&layout).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName("login.example.com".try_into().unwrap())];
        let request = params.serialize_request(&key).unwrap();
        assert!(ca.sign(request.der(), &names(), "x").unwrap_err().to_string().contains("login.example.com"));
        params.subject_alt_names = names();
        assert!(ca.sign(params.serialize_request(&key).unwrap().der(), &names(), "x").is_ok());
        // A pool's process gets a certificate for its own pool.
        let own = ListenerKey::for_pool("payroll").unwrap();
        assert!(ca.sign_for_pool(own.request(), "payroll").is_ok());
        assert!(ca.sign_for_pool(own.request(), "demo").is_err());
        assert!(ca.sign_for_pool(params.serialize_request(&key).unwrap().der(), "payroll").is_err());
        for shared in names() {
            let mut names = pool_names("payroll.managedhsm.localhost").unwrap();
            names.push(shared.clone());
            let asked = ListenerKey::new(names).unwrap();
            assert!(ca.sign_for_pool(asked.request(), "payroll").is_err(), "{shared:?}");
        }
        // The CA is the same at the next start.
        assert_eq!(CertificateAuthority::open(&layout).unwrap().certificate, ca.certificate);
    }

    proptest! {
        /// A pool's process is another user's, and may send anything: the CA signs for the key that asked, or not at all.
        #[test]
        fn damaged_requests_are_signed_for_nobody_else(
            position in 0usize..1000,
            value in any::<u8>(),
            length in 0usize..1000,
            anything in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            static CA: LazyLock<CertificateAuthority> =
                LazyLock::new(|| CertificateAuthority::passing().unwrap());
            let own = ListenerKey::for_pool("payroll").unwrap();
            let good = own.request().to_vec();
            let at = position % good.len();
            let mut changed = good.clone();
            changed[at] = value;
            let longer = [&good[..at], &anything, &good[at..]].concat();
            for bytes in [changed, longer, good[..length % good.len()].to_vec(), anything] {
                if let Ok([certificate, _]) = CA.sign_for_pool(&bytes.into(), "payroll") {
                    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
                    prop_assert_eq!(certificate.public_key().raw, own.key.subject_public_key_info());
                }
            }
        }
    }
}
