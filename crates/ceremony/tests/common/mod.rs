#![allow(dead_code)] // each test uses some of it

use ceremony::{DomainDescription, HolderSet, KeyHolder, LibraryHolder, OpenedDomain, TransferKey};
use crypto::SecretBytes;
use crypto::domain_secrets::DomainSecrets;
use crypto::key_file::KeyFile;
use crypto::transport::{TransportCertificate, TransportKey};
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::IntDate;
use std::path::PathBuf;

pub fn golden_path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", name].iter().collect()
}

pub fn golden(name: &str) -> String {
    std::fs::read_to_string(golden_path(name)).unwrap()
}

/// Whether golden files that are not there are to be made.
pub fn writes_golden() -> bool {
    std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some()
}

/// The secrets of crypto's golden file.
pub fn secrets() -> DomainSecrets {
    let golden = include_bytes!("../../../crypto/tests/golden/domain-secrets-v1.bin");
    DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
}

pub fn description() -> DomainDescription {
    DomainDescription {
        pool: Guid([1; 16]),
        pool_name: "payroll".parse().unwrap(),
        security_domain: Guid([2; 16]),
        class: PoolClass::Production,
        genesis_hash: [0xab; 32],
        owner_fingerprint: crypto::digest::sha256(&[&secrets().owner_key().public_key().point]),
    }
}

/// Holders are numbered from 1.
pub fn certificate(holder: usize) -> TransportCertificate {
    TransportCertificate::from_file(golden(&format!("holder-{holder}.cer")).as_bytes()).unwrap()
}

pub fn holder(number: usize) -> LibraryHolder {
    let pem = SecretBytes::new(golden(&format!("holder-{number}.key")).into_bytes());
    let KeyFile::Plain(pkcs8) = KeyFile::read(&pem).unwrap() else {
        panic!("holder {number} has a passphrase")
    };
    LibraryHolder::new(TransportKey::from_pkcs8(pkcs8).unwrap(), &certificate(number)).unwrap()
}

pub fn holders(numbers: &[usize]) -> Vec<LibraryHolder> {
    numbers.iter().map(|number| holder(*number)).collect()
}

pub fn keys(holders: &[LibraryHolder]) -> Vec<&dyn KeyHolder> {
    holders.iter().map(|holder| holder as &dyn KeyHolder).collect()
}

pub fn holder_set(numbers: &[usize], required: u8) -> HolderSet {
    HolderSet::new(numbers.iter().map(|number| certificate(*number)).collect(), required).unwrap()
}

pub fn assert_is_ours(opened: &OpenedDomain) {
    assert_eq!(opened.secrets.danger_export().danger_expose(), secrets().danger_export().danger_expose());
    assert_eq!(opened.description, description());
}

pub fn transfer_key() -> TransferKey {
    let bytes = std::fs::read(golden_path("transfer-key-v1.bin")).unwrap();
    TransferKey::import(&SecretBytes::new(bytes)).unwrap()
}

pub fn new_transfer_key() -> TransferKey {
    let dates = [1_800_000_000, 1_900_000_000].map(IntDate::from_unix_seconds);
    TransferKey::generate(Guid([9; 16]), &"payroll-2".parse().unwrap(), dates[0], dates[1])
}
