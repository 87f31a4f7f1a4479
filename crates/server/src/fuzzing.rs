//! Parsers of foreign bytes, for fuzz targets alone. Each goes on to what the parser gives, and checks what must hold of it.
#![allow(clippy::unwrap_used, clippy::panic)] // a failed check is a finding

pub use crate::azure_blob::fuzzing::{http_answer, identity_answer, storage_location};
pub use crate::client::fuzzing::{
    apply_file, attestation_file, client_challenge, client_key, client_link, client_refusal,
    encrypted_document,
};

use crate::certificates::CertificateAuthority;
use crate::client::public_key::{bit_string, element};
use crate::instance_command::Said;
use crate::issuer_federation;
use crate::production::tls::Chain;
use crate::provisioner::hear;
use crate::proxy::destination;
use identity::issuer::MAX_FEDERATED_CREDENTIALS;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
use std::collections::HashMap;
use std::sync::LazyLock;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

const POOL: &str = "payroll";
const HOST: &str = "payroll.managedhsm.localhost";

static CA: LazyLock<CertificateAuthority> = LazyLock::new(|| CertificateAuthority::passing().unwrap());

/// A request of a pool's process. The certificate is for the key that asked, and for that pool's name alone. Whether there
/// is one.
pub fn certificate_request(bytes: &[u8]) -> bool {
    let Ok([certificate, _]) = CA.sign_for_pool(&bytes.into(), POOL) else { return false };
    let (_, request) = X509CertificationRequest::from_der(bytes).unwrap();
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
    assert_eq!(certificate.public_key().raw, request.certification_request_info.subject_pki.raw);
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth && !usage.any && !usage.code_signing);
    if let Some(names) = certificate.subject_alternative_name().unwrap() {
        assert!(names.value.general_names.iter().all(|name| *name == GeneralName::DNSName(HOST)));
    }
    true
}

/// The attributes of a request, under a good signature: all that its key's owner can ask for.
pub fn certificate_request_attributes(bytes: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const ATTRIBUTES: u8 = 0xa0;
    /// Version 1, and a subject without a name.
    const BEGIN: [u8; 5] = [0x02, 0x01, 0x00, SEQUENCE, 0x00];
    /// ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
    const ALGORITHM: [u8; 12] = [SEQUENCE, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let attributes = element(ATTRIBUTES, bytes);
    let info = [&BEGIN[..], &KEY.subject_public_key_info(), &attributes].concat();
    let info = element(SEQUENCE, &info);
    let signature = bit_string(&KEY.sign(&info).unwrap());
    certificate_request(&element(SEQUENCE, &[&info[..], &ALGORITHM, &signature].concat()))
}

/// What a pool's process says, a line each.
pub fn pool_process_lines(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(said)) = hear(&mut rest) {
        let mut line = serde_json::to_vec(&said).unwrap();
        line.push(b'\n');
        assert_eq!(hear(&mut line.as_slice()).unwrap().as_ref(), Some(&said));
        if let Said::Request { der } = &said {
            certificate_request(der);
        }
    }
}

/// The head of a CONNECT request. It leads to the ports of this quickstart, a pool's name to that pool, or nowhere.
pub fn connect_head(bytes: &[u8]) {
    const PORTS: [u16; 2] = [8443, 8446];
    const OWN: u16 = 8500;
    let pools = HashMap::from([("own".to_owned(), OWN)]);
    let found = destination(bytes, &PORTS, &pools);
    match found {
        Ok(port) => {
            assert!(PORTS.contains(&port) || port == OWN, "{port}");
            let line = bytes.split(|byte| *byte == b'\r').next().unwrap();
            let target = std::str::from_utf8(line).unwrap().split(' ').nth(1).unwrap().to_ascii_lowercase();
            let (host, asked) = target.rsplit_once(':').unwrap();
            let asked: u16 = asked.parse().unwrap();
            let ours = ["localhost", "127.0.0.1"].contains(&host) || host.ends_with(".localhost");
            assert!(ours, "{target}");
            let moved = host == "own.managedhsm.localhost" && asked != PORTS[1];
            assert_eq!(port, if moved { OWN } else { asked }, "{target}");
        }
        Err(status) => {
            assert!(["400 Bad Request", "403 Forbidden", "405 Method Not Allowed"].contains(&status))
        }
    }
    // What comes behind the first line says nothing.
    let more = [bytes, b"\r\nHost: localhost:8446\r\n\r\n"].concat();
    assert_eq!(destination(&more, &PORTS, &pools), found);
}

/// A chain of certificates in PEM, as an operator's CA made it.
pub fn tls_chain(bytes: &[u8]) {
    const HOST: &str = "payroll.managedhsm.example";
    const WILDCARD: &str = "*.managedhsm.example";
    let Ok(chain) = Chain::parse(bytes) else { return };
    let first = chain.certificates.first().unwrap();
    let again = pem::encode(&pem::Pem::new("CERTIFICATE", first.to_vec()));
    let again = Chain::parse(again.as_bytes()).unwrap();
    assert_eq!(again.certificates, std::slice::from_ref(first));
    let is_for_host = chain.check_host(HOST).is_ok();
    assert_eq!(again.check_host(HOST).is_ok(), is_for_host);
    if is_for_host {
        let (_, certificate) = x509_parser::parse_x509_certificate(first).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let is_host = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => [HOST, WILDCARD].iter().any(|host| name.eq_ignore_ascii_case(host)),
            _ => false,
        };
        assert!(names.value.general_names.iter().any(is_host), "{:?}", names.value);
    }
}

/// Whose tokens stand for a client of the quickstart's issuer.
pub fn federated_credentials(bytes: &[u8]) {
    let Ok(credentials) = issuer_federation::parse(bytes) else { return };
    assert!(credentials.len() <= MAX_FEDERATED_CREDENTIALS);
    for credential in credentials {
        assert!(!credential.issuer.is_empty() && !credential.subject.is_empty());
        assert!(!credential.audience.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! corpus {
        ($name:literal) => {
            include_bytes!(concat!("../../../fuzz/corpus/", $name))
        };
    }

    /// Where nothing ever was signed, the promises of the targets would say nothing.
    #[test]
    fn a_request_is_signed_for_the_key_that_asked_or_not_at_all() {
        assert!(certificate_request(corpus!("certificate_request/own")));
        assert!(certificate_request_attributes(corpus!("certificate_request_attributes/own")));
        assert!(certificate_request_attributes(corpus!("certificate_request_attributes/client-usage")));
        assert!(!certificate_request_attributes(corpus!("certificate_request_attributes/other-name")));
        // By the kind of its signature it would be a key of P-256, which nobody has.
        assert!(!certificate_request(corpus!("certificate_request/p384-with-sha256")));
    }
}
