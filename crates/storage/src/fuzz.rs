//! One function for each parser of foreign bytes, for fuzzing and for property tests. Each goes on to what the parser
//! gives, and checks what must hold of it.

use crate::{ChunkBuilder, KeyBackup, Manifest, read_chunk};
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

/// The content of a chunk of a full backup.
pub fn full_backup_chunk(bytes: &[u8]) {
    let Ok(records) = read_chunk(&SecretBytes::copy(bytes)) else { return };
    let mut builder = ChunkBuilder::default();
    let mut chunks: Vec<SecretBytes> = records.iter().filter_map(|record| builder.add(record)).collect();
    chunks.extend(builder.take());
    let again: Vec<_> = chunks.iter().flat_map(|chunk| read_chunk(chunk).expect("written here")).collect();
    assert_eq!(again, records, "what was read is written and read again");
}

/// The content of a full backup's manifest.
pub fn full_backup_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(&SecretBytes::copy(bytes)) else { return };
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest), "what was read is written and read again");
}
