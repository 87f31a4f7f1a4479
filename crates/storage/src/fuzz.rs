//! One function for each parser of foreign bytes, for fuzzing and for property tests. Each goes on to what the parser
//! gives, and checks what must hold of it.

use crate::KeyBackup;
use crypto::SecretBytes;
use crypto::key_backup::{self, MAX_BACKUP_BYTES};

/// The blob of a single-key backup, as far as it is read before it opens.
pub fn key_backup(bytes: &[u8]) {
    if key_backup::header(bytes).is_ok() {
        assert!(bytes.len() <= MAX_BACKUP_BYTES, "a blob over the limit");
    }
}

/// What is inside one that opens.
pub fn key_backup_content(bytes: &[u8]) {
    let Ok(backup) = KeyBackup::decode(&SecretBytes::new(bytes.to_vec())) else { return };
    assert_eq!(backup.key().versions().len(), backup.versions().len(), "a version for each name");
    assert_eq!(KeyBackup::decode(&backup.encode()), Ok(backup), "what was read is written and read again");
}
