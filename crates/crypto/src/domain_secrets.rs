//! The secrets of a security domain (design section 2): what a quorum of holders can rebuild a pool from.

use crate::SecretBytes;
use crate::audit_key::AuditSealer;
use crate::certificate::OwnerKey;
use crate::digest::random;
use crate::key_backup::BackupKey;
use crate::record::{DataKey, NameKey, WrappedDataKey};
use domain::guid::Guid;
use domain::pool::{Genesis, PoolClass};

const MAGIC: &[u8; 6] = b"HFDOM\x01";
const KEY_BYTES: usize = 32;
const KEYS: usize = 4;

/// Masks the material of a partition's keys ([`crate::masking`]); handed to the partition once.
pub struct PartitionWrappingKey(pub(crate) SecretBytes);

impl PartitionWrappingKey {
    /// For an implementation of `Partition` under test, which has no security domain.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(SecretBytes::new(bytes.to_vec()))
    }
}

/// Owner key (P-384), partition wrapping key, domain KEK, name key, backup key. No `Debug`, no `Clone`, no accessor of
/// bytes but [`DomainSecrets::danger_export`].
///
/// ```compile_fail
/// fn show(secrets: &crypto::domain_secrets::DomainSecrets) -> String { format!("{secrets:?}") }
/// ```
pub struct DomainSecrets {
    owner: OwnerKey,
    partition_wrapping: SecretBytes,
    kek: SecretBytes,
    name: SecretBytes,
    backup: SecretBytes,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum DomainSecretsError {
    #[error("not the secrets of a security domain (format version 1)")]
    Malformed,
    #[error("the wrapped data key does not belong to this security domain")]
    ForeignDataKey,
}

impl DomainSecrets {
    /// New secrets from the random source.
    pub fn generate() -> Self {
        let key = || {
            let mut key = SecretBytes::zeroed(KEY_BYTES);
            random(key.danger_expose_mut());
            key
        };
        Self {
            owner: OwnerKey::generate(),
            partition_wrapping: key(),
            kek: key(),
            name: key(),
            backup: key(),
        }
    }

    /// Format version 1, see `docs/formats/domain-secrets.md`. For sealing and for the security domain file only.
    pub fn danger_export(&self) -> SecretBytes {
        let owner = self.owner.danger_export();
        let keys = [&self.partition_wrapping, &self.kek, &self.name, &self.backup];
        let parts = [MAGIC.as_slice()]
            .into_iter()
            .chain(keys.map(SecretBytes::danger_expose))
            .chain([owner.danger_expose()]);
        let mut exported = SecretBytes::zeroed(MAGIC.len() + KEYS * KEY_BYTES + owner.len());
        let mut rest = exported.danger_expose_mut();
        for part in parts {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        exported
    }

    pub fn import(bytes: &SecretBytes) -> Result<Self, DomainSecretsError> {
        let malformed = DomainSecretsError::Malformed;
        let bytes = bytes.danger_expose().strip_prefix(MAGIC.as_slice()).ok_or(malformed.clone())?;
        let (keys, owner) = bytes.split_at_checked(KEYS * KEY_BYTES).ok_or(malformed.clone())?;
        let key = |index: usize| SecretBytes::copy(&keys[index * KEY_BYTES..][..KEY_BYTES]);
        Ok(Self {
            owner: OwnerKey::import(owner).ok_or(malformed)?,
            partition_wrapping: key(0),
            kek: key(1),
            name: key(2),
            backup: key(3),
        })
    }

    pub fn owner_key(&self) -> &OwnerKey {
        &self.owner
    }

    pub fn partition_wrapping_key(&self) -> PartitionWrappingKey {
        PartitionWrappingKey(SecretBytes::copy(self.partition_wrapping.danger_expose()))
    }

    /// MAC key of stored names; never rotates.
    pub fn name_key(&self) -> NameKey {
        NameKey::new(&self.name)
    }

    /// Seals backups, of single keys and full ones.
    pub fn backup_key(&self) -> BackupKey {
        BackupKey::new(&self.backup)
    }

    /// A fresh random data key for `epoch`, wrapped under the domain KEK for storage.
    pub fn new_data_key(&self, pool: Guid, class: PoolClass, epoch: u32) -> (DataKey, WrappedDataKey) {
        let mut key = SecretBytes::zeroed(KEY_BYTES);
        random(key.danger_expose_mut());
        let key = DataKey { epoch, key };
        let wrapped = key.wrap(&self.kek, pool, class);
        (key, wrapped)
    }

    pub fn unwrap_data_key(
        &self,
        pool: Guid,
        class: PoolClass,
        epoch: u32,
        wrapped: &WrappedDataKey,
    ) -> Result<DataKey, DomainSecretsError> {
        DataKey::unwrap(&self.kek, pool, class, epoch, wrapped).ok_or(DomainSecretsError::ForeignDataKey)
    }

    /// The audit sealer of a pool and audit epoch.
    pub fn audit_sealer(&self, genesis: &Genesis, epoch: u32) -> AuditSealer {
        AuditSealer::derive(&self.kek, genesis.pool, epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exported_secrets_match_their_golden_file() {
        let golden = SecretBytes::new(include_bytes!("../tests/golden/domain-secrets-v1.bin").to_vec());
        let secrets = DomainSecrets::import(&golden).unwrap();
        assert_eq!(secrets.partition_wrapping.danger_expose(), [1; 32]);
        assert_eq!(secrets.kek.danger_expose(), [2; 32]);
        assert_eq!(secrets.name.danger_expose(), [3; 32]);
        assert_eq!(secrets.backup.danger_expose(), [4; 32]);
        assert_eq!(secrets.danger_export().danger_expose(), golden.danger_expose());
    }

    #[test]
    fn generated_secrets_survive_export_and_differ_from_one_another() {
        let secrets = DomainSecrets::generate();
        let again = DomainSecrets::import(&secrets.danger_export()).unwrap();
        assert_eq!(again.owner_key().public_key(), secrets.owner_key().public_key());
        let keys = [&secrets.partition_wrapping, &secrets.kek, &secrets.name, &secrets.backup];
        for (index, key) in keys.iter().enumerate() {
            assert!(keys[..index].iter().all(|other| other.danger_expose() != key.danger_expose()));
        }
    }

    /// The library takes the hybrid encoding as well: a second spelling of the same secrets.
    #[test]
    fn the_owner_keys_point_has_one_spelling() {
        let golden = include_bytes!("../tests/golden/domain-secrets-v1.bin");
        let point = golden.len() - 97;
        for first in 0..=u8::MAX {
            let mut bytes = golden.to_vec();
            bytes[point] = first;
            assert_eq!(DomainSecrets::import(&SecretBytes::new(bytes)).is_ok(), first == 4, "{first}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), ours in any::<bool>()) {
            if ours {
                bytes.splice(0..0, *MAGIC);
            }
            let _ = DomainSecrets::import(&SecretBytes::new(bytes));
        }
    }
}
