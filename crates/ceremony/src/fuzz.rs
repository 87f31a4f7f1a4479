//! One function for each parser of foreign bytes, for fuzzing and for property tests. Each goes on to what the parser
//! gives, and checks what must hold of it.

use crate::jwe::Jwe;
use crate::shares::Share;
use crate::{DomainFile, DownloadRequest, Quorum, RestoreBlob, TransferKey, transfer_key};
use crypto::SecretBytes;
use crypto::key_file::KeyFile;
use crypto::transport::TransportCertificate;

/// The body of a request for the security domain.
pub fn download_request(bytes: &[u8]) {
    let Some(request) = text(bytes).and_then(|text| DownloadRequest::parse(text).ok()) else { return };
    check_quorum(request.holders.quorum(), request.holders.certificates().len());
}

/// A security domain file.
pub fn domain_file(bytes: &[u8]) {
    let Some(file) = text(bytes).and_then(|text| DomainFile::parse(text).ok()) else { return };
    check_quorum(file.quorum(), file.holders().count());
}

/// A restore blob.
pub fn restore_blob(bytes: &[u8]) {
    let Some(blob) = text(bytes).and_then(|text| RestoreBlob::parse(text).ok()) else { return };
    let recipient = blob.recipient();
    assert_eq!(recipient.to_string().parse(), Ok(recipient), "a thumbprint has one spelling");
}

/// A compact JWE.
pub fn jwe(bytes: &[u8]) {
    let _ = text(bytes).map(Jwe::parse);
}

/// What a share's JWE holds.
pub fn share(bytes: &[u8]) {
    let Ok(share) = Share::parse(&SecretBytes::new(bytes.to_vec())) else { return };
    assert_eq!(share.to_bytes().danger_expose(), bytes, "a share has one spelling");
}

/// A transfer key, as a pool seals it.
pub fn transfer_key(bytes: &[u8]) {
    let _ = TransferKey::import(&SecretBytes::new(bytes.to_vec()));
}

/// A certificate: a holder's, or that of an exchange key.
pub fn certificate(bytes: &[u8]) {
    let Ok(certificate) = TransportCertificate::from_file(bytes) else { return };
    assert!(certificate.bits() >= 2048, "a small key carries no secret");
    let _ = (certificate.subject(), transfer_key::pool_of(&certificate));
    assert_eq!(TransportCertificate::from_file(certificate.to_pem().as_bytes()), Ok(certificate));
}

/// A private key's file. Not its decryption, which would be all that is ever run.
pub fn key_file(bytes: &[u8]) {
    let _ = KeyFile::read(&SecretBytes::new(bytes.to_vec()));
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn check_quorum(quorum: Quorum, holders: usize) {
    assert_eq!(usize::from(quorum.holders()), holders, "a quorum is of those who are there");
    assert!(Quorum::new(quorum.required(), quorum.holders()).is_ok(), "a quorum is one of the protocol");
}
