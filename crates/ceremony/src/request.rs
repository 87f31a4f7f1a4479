//! The body of a request for the security domain: certificates of the holders, and how many of them are needed.

use crate::holders::{HolderSet, HoldersRefused, Quorum};
use crate::strict_json;
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use crypto::transport::{TransportCertificate, TransportError};
use serde::Deserialize;

/// Bytes of a request that are read at all: ten certificates of the greatest size.
pub const MAX_REQUEST_BYTES: usize = 512 * 1024;

#[derive(Deserialize)]
struct RequestWire {
    certificates: Vec<CertificateWire>,
    /// Optional in the clients' model; the least is meant.
    required: Option<u64>,
}

/// A JSON Web Key. `kid`, `use` and `key_ops` are not read: some clients send them and some do not. Nor are the thumbprints,
/// which follow from the certificate: Terraform sends one that is of its base64 text.
#[derive(Deserialize)]
struct CertificateWire {
    x5c: Vec<String>,
    kty: Option<String>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RequestRefused {
    #[error("the request for the security domain cannot be read: {0}")]
    Malformed(String),
    #[error("certificate {index}: x5c must be one certificate in standard base64, without a chain")]
    Chain { index: usize },
    #[error("certificate {index}: {error}")]
    Certificate { index: usize, error: TransportError },
    #[error("certificate {index}: {member} is not that of the certificate in x5c")]
    Mismatch { index: usize, member: &'static str },
    #[error(transparent)]
    Holders(#[from] HoldersRefused),
}

/// Who is to hold the security domain.
#[derive(Clone, Debug)]
pub struct DownloadRequest {
    pub holders: HolderSet,
}

impl DownloadRequest {
    pub fn parse(body: &str) -> Result<Self, RequestRefused> {
        let request: RequestWire = strict_json::read(body, MAX_REQUEST_BYTES)
            .map_err(|error| RequestRefused::Malformed(error.to_string()))?;
        let required = request.required.unwrap_or(Quorum::MIN_REQUIRED.into());
        // Before a certificate is looked at: their number bounds the work.
        Quorum::new(required, request.certificates.len() as u64)?;
        let certificates = request.certificates.iter().zip(1..).map(|(wire, index)| wire.read(index));
        let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { holders: HolderSet::new(certificates, required)? })
    }
}

impl CertificateWire {
    fn read(&self, index: usize) -> Result<TransportCertificate, RequestRefused> {
        let [x5c] = self.x5c.as_slice() else { return Err(RequestRefused::Chain { index }) };
        let der = BASE64_STANDARD.decode(x5c).map_err(|_| RequestRefused::Chain { index })?;
        let certificate = TransportCertificate::from_der(&der)
            .map_err(|error| RequestRefused::Certificate { index, error })?;
        let is = |member: &Option<String>, expected: &[u8]| {
            member.as_ref().is_none_or(|text| decodes_to(text, expected))
        };
        let mismatch = |member| RequestRefused::Mismatch { index, member };
        let checks = [
            ("kty", self.kty.as_ref().is_none_or(|kty| kty == "RSA" || kty == "RSA-HSM")),
            ("alg", self.alg.as_ref().is_none_or(|alg| alg == "RSA-OAEP-256")),
            ("n", is(&self.n, certificate.modulus())),
            ("e", is(&self.e, certificate.exponent())),
        ];
        match checks.into_iter().find(|(_, good)| !good) {
            Some((member, _)) => Err(mismatch(member)),
            None => Ok(certificate),
        }
    }
}

/// Exactly: a number has no leading zeros (RFC 7518 section 2).
fn decodes_to(text: &str, expected: &[u8]) -> bool {
    BASE64_URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes == expected)
}
