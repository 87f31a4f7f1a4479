//! The secrets of a security domain (design section 2): what a quorum of holders can rebuild a pool from.

use crate::SecretBytes;
use crate::audit_key::AuditSealer;
use crate::certificate::OwnerKey;
use crate::record::{DataKey, NameKey, WrappedDataKey};
use domain::pool::{Genesis, PoolClass};

/// Key bytes for a partition's masking, handed to the partition once.
pub struct PartitionWrappingKey(pub(crate) SecretBytes);

impl PartitionWrappingKey {
    /// 32 bytes, for an implementation of `Partition` only.
    pub fn danger_expose(&self) -> &[u8] {
        self.0.danger_expose()
    }
}

/// Owner key (P-384), partition wrapping key, domain KEK, name key, backup key.
pub struct DomainSecrets {
    // fields are private and have no accessor outside this crate
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
        todo!()
    }

    /// Format version 1, see docs/formats/domain-secrets.md. For sealing and for the security domain file only.
    pub fn danger_export(&self) -> SecretBytes {
        todo!()
    }

    pub fn import(_bytes: &SecretBytes) -> Result<Self, DomainSecretsError> {
        todo!()
    }

    pub fn owner_key(&self) -> &OwnerKey {
        todo!()
    }

    pub fn partition_wrapping_key(&self) -> PartitionWrappingKey {
        todo!()
    }

    /// MAC key of stored names; never rotates.
    pub fn name_key(&self) -> NameKey {
        todo!()
    }

    /// A fresh random data key for `epoch`, wrapped under the domain KEK for storage.
    pub fn new_data_key(&self, _pool: domain::guid::Guid, _class: PoolClass, _epoch: u32) -> (DataKey, WrappedDataKey) {
        todo!()
    }

    pub fn unwrap_data_key(
        &self,
        _pool: domain::guid::Guid,
        _class: PoolClass,
        _epoch: u32,
        _wrapped: &WrappedDataKey,
    ) -> Result<DataKey, DomainSecretsError> {
        todo!()
    }

    /// Derived from the domain KEK: SP 800-108, label "holdfast audit key v1", context pool id ‖ epoch. It opens
    /// audit events and nothing else, so it can be given to an auditor.
    pub fn audit_sealer(&self, _genesis: &Genesis, _epoch: u32) -> AuditSealer {
        todo!()
    }
}
