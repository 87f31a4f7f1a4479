//! Memory for clear keys, where it is full: parsed keys that wait to be used give theirs up before anything fails for it.

use crate::pool::LoadedKeys;
use crypto::import::{PrivateParts, WrappedKind};
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::{
    Generated, LoadedKey, MaskedMaterial, MaterialBinding, Partition, PartitionError, SelfTestFailed,
};
use domain::algorithm::KeySpec;
use std::cell::Cell;
use std::sync::Arc;

/// The keys that can make room.
#[derive(Clone)]
pub(crate) struct Room(Arc<LoadedKeys>);

impl Room {
    pub fn new(loaded: Arc<LoadedKeys>) -> Self {
        Self(loaded)
    }

    /// Tries again where there was no room: with half of the keys that wait gone, then with all.
    pub fn make_for<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, PartitionError>,
    ) -> Result<T, PartitionError> {
        for make_room in [Self::drop_half, Self::drop_all] {
            match attempt() {
                Err(PartitionError::NoRoom(_)) => make_room(self),
                done => return done,
            }
        }
        attempt()
    }

    fn drop_half(&self) {
        let keep = Cell::new(false);
        self.0.retain(|_, _| {
            keep.set(!keep.get());
            keep.get()
        });
    }

    fn drop_all(&self) {
        self.0.clear();
    }
}

/// A partition for which keys that wait make room, whatever it is asked for.
pub(crate) struct Roomy {
    pub partition: Arc<dyn Partition>,
    pub room: Room,
}

impl Partition for Roomy {
    fn generate(
        &self,
        spec: KeySpec,
        public_exponent: Option<u64>,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.room.make_for(|| self.partition.generate(spec, public_exponent, binding))
    }

    fn import(
        &self,
        spec: KeySpec,
        parts: &PrivateParts,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        self.room.make_for(|| self.partition.import(spec, parts, binding))
    }

    fn unwrap(
        &self,
        kek: &dyn LoadedKey,
        kind: WrappedKind,
        wrapped: &[u8],
    ) -> Result<PrivateParts, PartitionError> {
        self.room.make_for(|| self.partition.unwrap(kek, kind, wrapped))
    }

    fn load(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
    ) -> Result<Arc<dyn LoadedKey>, PartitionError> {
        self.room.make_for(|| self.partition.load(spec, masked, binding))
    }

    fn rebind(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        from: &MaterialBinding,
        to: &MaterialBinding,
    ) -> Result<MaskedMaterial, PartitionError> {
        self.room.make_for(|| self.partition.rebind(spec, masked, from, to))
    }

    fn release(
        &self,
        spec: KeySpec,
        masked: &MaskedMaterial,
        binding: &MaterialBinding,
        to: &ReleaseKey,
        wrap: KeyWrap,
    ) -> Result<Vec<u8>, PartitionError> {
        self.room.make_for(|| self.partition.release(spec, masked, binding, to, wrap))
    }

    fn random(&self, out: &mut [u8]) -> Result<(), PartitionError> {
        self.partition.random(out)
    }

    fn self_test(&self) -> Result<(), SelfTestFailed> {
        self.partition.self_test()
    }
}
