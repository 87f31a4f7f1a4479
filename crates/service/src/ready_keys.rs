//! RSA keys made ahead, so that who creates one need not wait until two primes are found.
//!
//! They are made by the thread that makes keys, once it has had nothing else to do for a while, and are tested there as
//! every new key is. They are the pool's own until used: masked by the partition, bound to an id that is no key's, in
//! memory alone. Whoever takes one has it masked anew for its own name and version; nobody else gets it.

use crypto::{Generated, MaskedMaterial, MaterialBinding, Partition, PartitionError};
use domain::algorithm::{KeySpec, RsaSize};
use domain::guid::Guid;
use domain::key::PublicKey;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// The exponent that keys have unless their creator names another.
const USUAL_EXPONENT: u64 = 65537;
const SIZES: [RsaSize; 3] = [RsaSize::Rsa2048, RsaSize::Rsa3072, RsaSize::Rsa4096];

pub(crate) struct ReadyKeys {
    partition: Arc<dyn Partition>,
    pool: Guid,
    /// Of each size.
    wanted: usize,
    keys: Mutex<HashMap<RsaSize, Vec<ReadyKey>>>,
}

/// A key that nobody has.
pub(crate) struct ReadyKey {
    spec: KeySpec,
    public: PublicKey,
    masked: MaskedMaterial,
    binding: MaterialBinding,
}

impl ReadyKeys {
    pub fn new(partition: Arc<dyn Partition>, pool: Guid, wanted: usize) -> Self {
        Self { partition, pool, wanted, keys: Mutex::default() }
    }

    /// One that is of `spec` and has `exponent`, and is the caller's from now on.
    pub fn take(&self, spec: KeySpec, exponent: Option<u64>) -> Option<ReadyKey> {
        let KeySpec::Rsa(size) = spec else { return None };
        if exponent.is_some_and(|exponent| exponent != USUAL_EXPONENT) {
            return None;
        }
        self.keys.lock().get_mut(&size)?.pop()
    }

    pub fn count(&self) -> usize {
        self.keys.lock().values().map(Vec::len).sum()
    }

    /// Makes one key of the smallest size that lacks one; false where none does, or none can be made.
    pub fn make_one(&self) -> bool {
        let lacking = {
            let keys = self.keys.lock();
            SIZES.into_iter().find(|size| keys.get(size).map_or(0, Vec::len) < self.wanted)
        };
        let Some(size) = lacking else { return false };
        let spec = KeySpec::Rsa(size);
        let mut id = [0; 16];
        crypto::digest::random(&mut id);
        let binding = MaterialBinding([b"ready key".as_slice(), &self.pool.0, &id].concat());
        match self.partition.generate(spec, None, &binding) {
            Ok(Generated { public, masked }) => {
                let key = ReadyKey { spec, public, masked, binding };
                self.keys.lock().entry(size).or_default().push(key);
                true
            }
            Err(error) => {
                tracing::warn!(%error, %spec, "no key could be made ahead");
                false
            }
        }
    }
}

impl ReadyKey {
    /// As a key of the record that `binding` names.
    pub fn bind(
        self,
        partition: &dyn Partition,
        binding: &MaterialBinding,
    ) -> Result<Generated, PartitionError> {
        let masked = partition.rebind(self.spec, &self.masked, &self.binding, binding)?;
        Ok(Generated { public: self.public, masked })
    }
}
