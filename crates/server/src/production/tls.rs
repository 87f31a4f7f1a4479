//! The TLS key of a pool of class production, and the certificate of its operator's CA.
//!
//! A CA that is run by people cannot sign at each start, so the key outlasts the process: it is made here, sealed under the
//! pool's root of trust, and never elsewhere in the clear. A key is kept under the hash of its public half, so a chain
//! finds its key, and a chain that was put in place while the key was being renewed finds none and is refused.

use crate::CommandError;
use crate::certificates::server_config;
use crate::files;
use crate::instance::Place;
use crate::layout::Layout;
use crypto::SecretBytes;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, ServerName};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Of a chain in PEM.
const MAX_CHAIN_BYTES: usize = 256 * 1024;

impl Layout {
    /// What the CA is asked for.
    pub fn tls_request(&self) -> PathBuf {
        self.tls().join("request.pem")
    }

    /// What it answered: the pool's certificate, then those above it.
    pub fn tls_chain(&self) -> PathBuf {
        self.tls().join("chain.pem")
    }

    fn tls_key(&self, public_key: &[u8]) -> PathBuf {
        let digest = crypto::digest::hex(&crypto::digest::sha256(&[public_key]));
        self.tls().join(format!("{digest}.sealed"))
    }
}

/// Makes a new key for `host` and asks for its certificate, in PEM. The key that is in use stays until a certificate for
/// the new one is installed.
pub fn request(layout: &Layout, place: &Place, host: &str) -> Result<String, CommandError> {
    files::create_directory(&layout.tls())?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, host);
    params.subject_alt_names = vec![SanType::DnsName(host.try_into()?)];
    let pem = params.serialize_request(&key)?.pem()?;
    let sealed = place.root.seal(place.own_node()?, &SecretBytes::new(key.serialize_der()))?;
    files::write(&layout.tls_key(&key.subject_public_key_info()), &sealed)?;
    files::write(&layout.tls_request(), pem.as_bytes())?;
    Ok(pem)
}

/// The host that a certificate was asked for.
pub fn requested_host(layout: &Layout) -> Result<String, CommandError> {
    let path = layout.tls_request();
    let damaged =
        || format!("{} is no certificate request of a pool: put it back from a copy", path.display());
    let pem = read(&path)?.ok_or_else(|| {
        format!("{} is missing: is a pool of class production in {}?", path.display(), layout.data.display())
    })?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).map_err(|_| damaged())?;
    let request = CertificateSigningRequestParams::from_der(&der).map_err(|_| damaged())?;
    match request.params.subject_alt_names.as_slice() {
        [SanType::DnsName(host)] => Ok(host.as_str().to_owned()),
        _ => Err(damaged().into()),
    }
}

/// Puts `pem` in place for the next start, if it is a chain for a key of this pool and for its host, and good at `now`.
pub fn install(layout: &Layout, pem: &[u8], now: i64) -> Result<(), CommandError> {
    let chain = Chain::parse(pem)?;
    chain.check_host(&requested_host(layout)?)?;
    if !layout.tls_key(&chain.public_key).exists() {
        return Err(format!(
            "the certificate is for a key that this pool does not have: have {} signed",
            layout.tls_request().display()
        )
        .into());
    }
    if now < chain.not_before || now >= chain.not_after {
        return Err("the certificate is not good now: clients would refuse it".into());
    }
    Ok(files::write(&layout.tls_chain(), pem)?)
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, CommandError> {
    Ok(files::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?)
}

/// TLS for the pool at `host`.
pub fn open(layout: &Layout, place: &Place, host: &str) -> Result<Arc<ServerConfig>, CommandError> {
    let path = layout.tls_chain();
    let pem = read(&path)?.ok_or_else(|| {
        format!(
            "the pool has no certificate yet: have {} signed by your CA, then `holdfast pool certificate install`",
            layout.tls_request().display()
        )
    })?;
    let chain = Chain::parse(&pem).map_err(|error| format!("{}: {error}", path.display()))?;
    chain.check_host(host).map_err(|error| format!("{}: {error}", path.display()))?;
    let sealed_path = layout.tls_key(&chain.public_key);
    let sealed = read(&sealed_path)?
        .ok_or_else(|| format!("{}, the key of {}, is missing", sealed_path.display(), path.display()))?;
    let key = place.root.open_secret(&sealed_path, place.own_node()?, &sealed)?;
    // That the key is another than the certificate's, rustls says.
    server_config(key.danger_expose().to_vec(), chain.certificates)
}

/// TLS of nobody in particular, for a pool whose key is sealed with everything else. Clients that check whom they speak to
/// will not take it, and must not.
pub fn unnamed() -> Result<Arc<ServerConfig>, CommandError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Holdfast: a pool that is sealed");
    let certificate = params.self_signed(&key)?.der().clone();
    server_config(key.serialize_der(), vec![certificate])
}

/// A chain in PEM, the pool's own certificate first.
pub struct Chain {
    pub certificates: Vec<CertificateDer<'static>>,
    /// SubjectPublicKeyInfo of the first.
    public_key: Vec<u8>,
    not_before: i64,
    not_after: i64,
}

impl Chain {
    pub fn parse(pem: &[u8]) -> Result<Self, CommandError> {
        if pem.len() > MAX_CHAIN_BYTES {
            return Err(format!("a chain has at most {MAX_CHAIN_BYTES} bytes").into());
        }
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|_| "it is not a chain of certificates in PEM")?;
        let first = certificates.first().ok_or("it holds no certificate in PEM")?;
        let (_, certificate) =
            x509_parser::parse_x509_certificate(first).map_err(|_| "its first certificate is malformed")?;
        let public_key = certificate.public_key().raw.to_vec();
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        Ok(Self { public_key, not_before, not_after, certificates })
    }

    pub fn check_host(&self, host: &str) -> Result<(), CommandError> {
        let name = ServerName::try_from(host.to_owned())?;
        let parsed = rustls::server::ParsedCertificate::try_from(&self.certificates[0])
            .map_err(|_| "its first certificate is not one that TLS takes")?;
        rustls::client::verify_server_name(&parsed, &name).map_err(|_| {
            format!("its first certificate does not name {host}: the pool's own comes first").into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root_of_trust::RootOfTrust;
    use rcgen::{BasicConstraints, IsCa, Issuer};

    const HOST: &str = "payroll.managedhsm.example";

    struct Ca(Issuer<'static, KeyPair>);

    impl Ca {
        fn new() -> Self {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            Self(Issuer::new(params, key))
        }

        fn sign(&self, request: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
            let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
            change(&mut request.params);
            request.signed_by(&self.0).unwrap().pem()
        }
    }

    fn place(layout: &Layout) -> Place {
        let path = layout.data.join("passphrase");
        files::write(&path, b"correct horse battery").unwrap();
        layout.production_place(RootOfTrust::credential(&path).unwrap())
    }

    #[test]
    fn a_chain_is_taken_for_a_key_and_the_host_of_this_pool_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        files::create_directory(&layout.pool()).unwrap();
        let place = place(&layout);
        let (ca, now) = (Ca::new(), time::OffsetDateTime::now_utc().unix_timestamp());
        assert!(requested_host(&layout).unwrap_err().to_string().contains("request.pem is missing"));
        let refused = |pem: &str| install(&layout, pem.as_bytes(), now).unwrap_err().to_string();

        let first = request(&layout, &place, HOST).unwrap();
        assert_eq!(requested_host(&layout).unwrap(), HOST);
        assert!(open(&layout, &place, HOST).unwrap_err().to_string().contains("no certificate yet"));
        let good = ca.sign(&first, |_| {});
        for nothing in ["", "nonsense", &first] {
            assert!(refused(nothing).contains("holds no certificate"), "{nothing}");
        }
        let other = ca.sign(&first, |params| {
            params.subject_alt_names = vec![SanType::DnsName("other.example".try_into().unwrap())];
        });
        assert!(refused(&other).contains("does not name payroll.managedhsm.example"));
        let ended = ca.sign(&first, |params| params.not_after = rcgen::date_time_ymd(2001, 1, 1));
        assert!(refused(&ended).contains("not good now"));
        let foreign = {
            let elsewhere = tempfile::tempdir().unwrap();
            let elsewhere = Layout::new(elsewhere.path().join("data"));
            ca.sign(&request(&elsewhere, &place, HOST).unwrap(), |_| {})
        };
        assert!(refused(&foreign).contains("a key that this pool does not have"));
        assert!(!layout.tls_chain().exists());

        install(&layout, good.as_bytes(), now).unwrap();
        open(&layout, &place, HOST).unwrap();
        assert!(open(&layout, &place, "other.example").unwrap_err().to_string().contains("does not name"));
        // The key in use stays until the next one has its certificate.
        let second = request(&layout, &place, HOST).unwrap();
        assert_ne!(first, second);
        open(&layout, &place, HOST).unwrap();
        install(&layout, ca.sign(&second, |_| {}).as_bytes(), now).unwrap();
        open(&layout, &place, HOST).unwrap();
    }

    #[test]
    fn a_key_is_sealed_and_one_in_the_place_of_another_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        files::create_directory(&layout.pool()).unwrap();
        let place = place(&layout);
        let (ca, now) = (Ca::new(), time::OffsetDateTime::now_utc().unix_timestamp());
        let [first, second] = [(); 2].map(|()| ca.sign(&request(&layout, &place, HOST).unwrap(), |_| {}));
        let [first, second] = [first, second]
            .map(|pem| (layout.tls_key(&Chain::parse(pem.as_bytes()).unwrap().public_key), pem));
        let sealed = std::fs::read(&first.0).unwrap();
        assert_eq!(seal::RootKind::of(&sealed), Ok(seal::RootKind::Credential));
        install(&layout, second.1.as_bytes(), now).unwrap();
        files::write(&second.0, &sealed).unwrap();
        assert!(open(&layout, &place, HOST).is_err());
        std::fs::remove_file(&second.0).unwrap();
        assert!(open(&layout, &place, HOST).unwrap_err().to_string().contains("is missing"));
    }
}
