//! The software partition behind a gate of a test's own.

use super::Bench;
use crypto::import::WrappedKind;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::{
    Generated, LoadedKey, MaskedMaterial, MaterialBinding, Partition, PartitionError, PrivateParts,
    SelfTestFailed,
};
use crypto_software::SoftwarePartition;
use domain::algorithm::KeySpec;
use std::sync::Arc;

pub trait Gate: Send + Sync {
    /// Asked before a key is made, brought in, loaded or released.
    fn admit(&self) -> Result<(), PartitionError> {
        Ok(())
    }

    /// Asked instead before one is made.
    fn admit_generation(&self) -> Result<(), PartitionError> {
        self.admit()
    }

    /// What is handed out for a key that was loaded.
    fn loaded(&self, key: Arc<dyn LoadedKey>) -> Arc<dyn LoadedKey> {
        key
    }
}

pub struct Gated<G> {
    partition: SoftwarePartition,
    pub gate: G,
}

impl<G: Gate> Gated<G> {
    pub fn new(bench: &Bench, gate: G) -> Arc<Self> {
        let partition = SoftwarePartition::new(bench.secrets().partition_wrapping_key());
        Arc::new(Self { partition, gate })
    }

    fn admit(&self) -> Result<&SoftwarePartition, PartitionError> {
        self.gate.admit().map(|()| &self.partition)
    }
}

impl<G: Gate> Partition for Gated<G> {
    fn generate(
        &self,
        spec: KeySpec,
        public_exponent: Option<u64>,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.gate.admit_generation()?;
        self.partition.generate(spec, public_exponent, binding)
    }

    fn import(
        &self,
        spec: KeySpec,
        parts: &PrivateParts,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.admit()?.import(spec, parts, binding)
    }

    fn unwrap(
        &self,
        kek: &dyn LoadedKey,
        kind: WrappedKind,
        wrapped: &[u8],
    ) -> Result<PrivateParts, PartitionError> {
        self.admit()?.unwrap(kek, kind, wrapped)
    }

    fn load(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
    ) -> Result<Arc<dyn LoadedKey>, PartitionError> {
        self.admit()?.load(spec, masked, binding).map(|key| self.gate.loaded(key))
    }

    fn release(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
        to: &ReleaseKey,
        wrap: KeyWrap,
    ) -> Result<Vec<u8>, PartitionError> {
        self.admit()?.release(spec, masked, binding, to, wrap)
    }

    fn rebind(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        from: &MaterialBinding,
        to: &MaterialBinding,
    ) -> Result<MaskedMaterial, PartitionError> {
        self.partition.rebind(spec, masked, from, to)
    }

    fn random(&self, out: &mut [u8]) -> Result<(), PartitionError> {
        self.partition.random(out)
    }

    fn self_test(&self) -> Result<(), SelfTestFailed> {
        self.partition.self_test()
    }
}
