//! What comes back from where backups are kept.

use crypto::SecretBytes;
use crypto::domain_secrets::DomainSecrets;
use crypto::full_backup::{FullBackupReader, HEADER_BYTES, read_all};
use crypto::key_backup::BackupDomain;
use domain::guid::Guid;
use domain::pool::PoolClass;
use std::sync::LazyLock;

/// A whole backup. Of all bytes only those of the known one open in its domain.
pub fn full_backup(bytes: &[u8]) {
    const GOLDEN: &[u8] = include_bytes!("../../../crates/crypto/tests/golden/full-backup-v1.bin");
    static SECRETS: LazyLock<DomainSecrets> = LazyLock::new(|| {
        let golden = include_bytes!("../../../crates/crypto/tests/golden/domain-secrets-v1.bin");
        DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
    });
    let owner = SECRETS.owner_key().public_key();
    let here = BackupDomain::new(Guid([2; 16]), &owner, PoolClass::Test);
    let (header, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES));
    let opened = FullBackupReader::new(&SECRETS.backup_key(), &here, &owner, header)
        .and_then(|mut reader| read_all(&mut reader, rest));
    assert_eq!(opened.is_ok(), bytes == GOLDEN);
}

/// What is inside a chunk that opens.
pub fn full_backup_chunk(bytes: &[u8]) {
    storage::fuzz::full_backup_chunk(bytes);
}

/// What is inside a manifest that opens.
pub fn full_backup_manifest(bytes: &[u8]) {
    storage::fuzz::full_backup_manifest(bytes);
}
