//! The blob of a single-key backup (`docs/formats/key-backup.md`): a clear header, then content sealed under the
//! security domain's backup key. What the content says is `storage`'s.

use crate::SecretBytes;
use crate::certificate::OwnerPublicKey;
use crate::digest::{hex, sha256};
use crate::record::class_code;
use crate::single_use::{self, SALT_BYTES, TAG_BYTES};
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::IntDate;

const MAGIC: &[u8; 5] = b"HFKEY";
const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 83;
const LABEL: &[u8] = b"holdfast key backup v1";

/// Bytes of a blob: an engine commits 1.5 MiB at once, and a key is restored at once. A hundred versions of RSA-4096, each
/// with 15 tags of the longest, are 1.1 MB where the tags are ASCII.
pub const MAX_BACKUP_BYTES: usize = 5 << 18;

/// Seals backups. Kept by a pool while it runs, as the other secrets of its domain are not.
pub struct BackupKey(SecretBytes);

impl BackupKey {
    pub(crate) fn new(key: &SecretBytes) -> Self {
        Self(SecretBytes::new(key.danger_expose().to_vec()))
    }

    pub(crate) fn danger_expose(&self) -> &[u8] {
        self.0.danger_expose()
    }
}

/// A security domain and class, as a backup names them: where it was made, and where alone it may be restored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackupDomain {
    pub security_domain: Guid,
    /// SHA-256 of the owner key's point.
    pub owner_fingerprint: [u8; 32],
    pub class: PoolClass,
}

impl BackupDomain {
    pub fn new(security_domain: Guid, owner: &OwnerPublicKey, class: PoolClass) -> Self {
        Self { security_domain, owner_fingerprint: sha256(&[&owner.point]), class }
    }

    /// That what was made in `made_in` may be restored here.
    pub(crate) fn check(&self, made_in: &BackupDomain) -> Result<(), BackupRefused> {
        if made_in.owner_fingerprint != self.owner_fingerprint
            || made_in.security_domain != self.security_domain
        {
            return Err(BackupRefused::OtherDomain {
                theirs: hex(&made_in.owner_fingerprint),
                ours: hex(&self.owner_fingerprint),
            });
        }
        if made_in.class != self.class {
            return Err(BackupRefused::OtherClass { theirs: made_in.class, ours: self.class });
        }
        Ok(())
    }
}

/// What a backup says in clear. Believed only once the content opens, as it is associated data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BackupHeader {
    pub domain: BackupDomain,
    /// The pool that made it, to which the material inside is bound.
    pub pool: Guid,
    pub created: IntDate,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BackupRefused {
    #[error(
        "a backup of a key has at most {MAX_BACKUP_BYTES} bytes, as it is restored at once, and this one has {0}"
    )]
    TooLarge(usize),
    #[error("this is not a backup of a key")]
    NotABackup,
    #[error("the backup is of format version {0}, which this release does not read")]
    UnknownFormat(u8),
    #[error("the backup is cut off: it has {actual} bytes and should have {expected}")]
    CutOff { expected: u64, actual: usize },
    #[error("the backup is followed by {0} bytes that are not part of it")]
    Overlong(u64),
    #[error(
        "the backup was made in the security domain whose owner key has fingerprint {theirs}, and can be restored only there; the owner key of this pool has fingerprint {ours}"
    )]
    OtherDomain { theirs: String, ours: String },
    #[error("the backup was made in a pool of class {}, and this one is of class {}", theirs.as_str(), ours.as_str())]
    OtherClass { theirs: PoolClass, ours: PoolClass },
    #[error("the backup is damaged: it does not open with the backup key of its security domain")]
    DoesNotOpen,
    #[error("the backup opens, but this release does not understand what it holds")]
    UnknownContent,
}

/// Reads the header, and whether the blob has the length that it says, without opening it.
pub fn header(blob: &[u8]) -> Result<BackupHeader, BackupRefused> {
    if blob.len() > MAX_BACKUP_BYTES {
        return Err(BackupRefused::TooLarge(blob.len()));
    }
    let (&version, _) =
        blob.strip_prefix(MAGIC.as_slice()).and_then(<[u8]>::split_first).ok_or(BackupRefused::NotABackup)?;
    if version != FORMAT_VERSION {
        return Err(BackupRefused::UnknownFormat(version));
    }
    let cut_off = |expected: usize| BackupRefused::CutOff { expected: expected as u64, actual: blob.len() };
    let shortest = HEADER_BYTES + SALT_BYTES + TAG_BYTES;
    let mut fields = Fields(blob.get(MAGIC.len() + 1..HEADER_BYTES).ok_or(cut_off(shortest))?);
    let (security_domain, owner_fingerprint) = (fields.take(), fields.take());
    let [class] = fields.take();
    let header = BackupHeader {
        domain: BackupDomain {
            security_domain: Guid(security_domain),
            owner_fingerprint,
            class: [PoolClass::Production, PoolClass::Test]
                .into_iter()
                .find(|known| class_code(*known) == class)
                .ok_or(BackupRefused::NotABackup)?,
        },
        pool: Guid(fields.take()),
        created: IntDate::from_unix_seconds(i64::from_le_bytes(fields.take())),
    };
    let expected = HEADER_BYTES as u64 + u64::from(u32::from_le_bytes(fields.take()));
    let actual = blob.len() as u64;
    if actual < expected {
        return Err(BackupRefused::CutOff { expected, actual: blob.len() });
    }
    if actual > expected {
        return Err(BackupRefused::Overlong(actual - expected));
    }
    Ok(header)
}

impl BackupKey {
    /// The blob with `content` inside, unless it would be too large to be opened.
    pub fn seal(&self, header: &BackupHeader, content: &SecretBytes) -> Result<Vec<u8>, BackupRefused> {
        match HEADER_BYTES + SALT_BYTES + content.len() + TAG_BYTES {
            0..=MAX_BACKUP_BYTES => Ok(self.seal_with_salt(header, content, single_use::fresh_salt())),
            bytes => Err(BackupRefused::TooLarge(bytes)),
        }
    }

    fn seal_with_salt(
        &self,
        header: &BackupHeader,
        content: &SecretBytes,
        salt: [u8; SALT_BYTES],
    ) -> Vec<u8> {
        let header = header_bytes(header, content.len() + SALT_BYTES + TAG_BYTES);
        let mut blob = header.clone();
        single_use::seal(self.0.danger_expose(), LABEL, &salt, &header, content.danger_expose(), &mut blob);
        blob
    }

    /// The header and content of a blob that was made in `here`'s domain and class.
    pub fn open(
        &self,
        here: &BackupDomain,
        blob: &[u8],
    ) -> Result<(BackupHeader, SecretBytes), BackupRefused> {
        let header = header(blob)?;
        here.check(&header.domain)?;
        let (associated, sealed) = blob.split_at(HEADER_BYTES);
        let content = single_use::open(self.0.danger_expose(), LABEL, associated, sealed);
        content.map(|content| (header, content)).ok_or(BackupRefused::DoesNotOpen)
    }
}

fn header_bytes(header: &BackupHeader, sealed_bytes: usize) -> Vec<u8> {
    let sealed_bytes = u32::try_from(sealed_bytes).expect("a backup is no larger than its limit");
    let BackupHeader { domain, pool, created } = header;
    [
        MAGIC.as_slice(),
        &[FORMAT_VERSION],
        &domain.security_domain.0,
        &domain.owner_fingerprint,
        &[class_code(domain.class)],
        &pool.0,
        &created.unix_seconds().to_le_bytes(),
        &sealed_bytes.to_le_bytes(),
    ]
    .concat()
}

/// The header behind magic and version, which is known to be there in full.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("the fields are as long as the header");
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> BackupKey {
        BackupKey(SecretBytes::new(vec![4; 32]))
    }

    fn here() -> BackupDomain {
        BackupDomain { security_domain: Guid([2; 16]), owner_fingerprint: [3; 32], class: PoolClass::Test }
    }

    fn made() -> BackupHeader {
        BackupHeader {
            domain: here(),
            pool: Guid([1; 16]),
            created: IntDate::from_unix_seconds(1_800_000_000),
        }
    }

    fn blob() -> Vec<u8> {
        key().seal_with_salt(&made(), &SecretBytes::new(b"a key".to_vec()), [5; SALT_BYTES])
    }

    fn refused(here: &BackupDomain, blob: &[u8]) -> BackupRefused {
        key().open(here, blob).err().unwrap()
    }

    #[test]
    fn a_blob_matches_its_golden_file() {
        let golden = include_bytes!("../tests/golden/key-backup-v1.bin");
        assert_eq!(blob(), golden);
        let (header, content) = key().open(&here(), golden).unwrap();
        assert_eq!(header, made());
        assert_eq!(content.danger_expose(), b"a key");
    }

    #[test]
    fn each_flipped_bit_and_each_other_length_is_refused() {
        let blob = blob();
        for bit in 0..blob.len() * 8 {
            let mut damaged = blob.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(key().open(&here(), &damaged).is_err(), "bit {bit}");
        }
        for length in 0..blob.len() {
            let expected = if length <= MAGIC.len() {
                matches!(refused(&here(), &blob[..length]), BackupRefused::NotABackup)
            } else {
                matches!(refused(&here(), &blob[..length]), BackupRefused::CutOff { actual, .. } if actual == length)
            };
            assert!(expected, "length {length}");
        }
        assert_eq!(refused(&here(), &[blob, vec![0; 3]].concat()), BackupRefused::Overlong(3));
    }

    #[test]
    fn each_kind_of_wrong_blob_has_a_message_of_its_own() {
        let other_id = BackupDomain { security_domain: Guid([9; 16]), ..here() };
        let other_owner = BackupDomain { owner_fingerprint: [9; 32], ..here() };
        assert!(matches!(refused(&other_id, &blob()), BackupRefused::OtherDomain { .. }));
        let message = refused(&other_owner, &blob()).to_string();
        assert!(message.contains(&"03".repeat(32)) && message.contains(&"09".repeat(32)), "{message}");
        let production = BackupDomain { class: PoolClass::Production, ..here() };
        assert_eq!(
            refused(&production, &blob()),
            BackupRefused::OtherClass { theirs: PoolClass::Test, ours: PoolClass::Production }
        );
        assert_eq!(refused(&here(), b"HFKEY\x02"), BackupRefused::UnknownFormat(2));
        assert_eq!(refused(&here(), b"garbage"), BackupRefused::NotABackup);
        assert_eq!(
            refused(&here(), &vec![0; MAX_BACKUP_BYTES + 1]),
            BackupRefused::TooLarge(MAX_BACKUP_BYTES + 1)
        );
        let stranger = BackupKey(SecretBytes::new(vec![6; 32]));
        assert_eq!(stranger.open(&here(), &blob()).err(), Some(BackupRefused::DoesNotOpen));
    }

    /// A class that is written over does not make a backup of production good for a pool of class test.
    #[test]
    fn test_and_production_never_mix() {
        let production = BackupDomain { class: PoolClass::Production, ..here() };
        let mut blob = blob();
        blob[54] = class_code(PoolClass::Production);
        assert_eq!(refused(&production, &blob), BackupRefused::DoesNotOpen);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), ours in any::<bool>()) {
            if ours {
                bytes.splice(0..0, *b"HFKEY\x01");
            }
            let _ = header(&bytes);
            prop_assert!(key().open(&here(), &bytes).is_err());
        }
    }
}
