//! Sealing of stored records: AES-256-GCM under a key used once.
//!
//! Sealed record, format version 1 (`docs/formats/sealed-record.md`):
//! `version u8 = 1 | kind u8 | epoch u32 LE | record version u64 LE | salt 24 bytes | ciphertext | tag 16 bytes`.
//! Key = SP 800-108 counter mode, HMAC-SHA-256 (data key of the epoch, "holdfast record v1" ‖ 0x00 ‖ salt), 32 bytes;
//! the nonce is zero, as the key is used once. Associated data: the header before the salt, then pool id, domain id,
//! class, and the MAC of the name.

use crate::SecretBytes;
use crate::single_use::{self, SALT_BYTES};
use aws_lc_rs::hmac;
use domain::guid::Guid;
use domain::pool::PoolClass;

const FORMAT_VERSION: u8 = 1;
const HEADER_BYTES: usize = 14;
const LABEL: &[u8] = b"holdfast record v1";
const WRAP_LABEL: &[u8] = b"holdfast data key v1";

/// The random key of one epoch, from which each record's single-use key is derived.
pub struct DataKey {
    pub(crate) epoch: u32,
    pub(crate) key: SecretBytes,
}

/// A data key as stored and backed up: AES-256-GCM under the domain KEK (`docs/formats/wrapped-data-key.md`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrappedDataKey(pub Vec<u8>);

/// MACs names, so that the engine learns nothing legible.
pub struct NameKey {
    names: hmac::Key,
    digest: hmac::Key,
}

impl NameKey {
    pub(crate) fn new(key: &SecretBytes) -> Self {
        let digest = single_use::derive(key.danger_expose(), b"holdfast pool digest v1", b"");
        Self {
            names: hmac::Key::new(hmac::HMAC_SHA256, key.danger_expose()),
            digest: hmac::Key::new(hmac::HMAC_SHA256, digest.danger_expose()),
        }
    }

    /// HMAC-SHA-256(name key, kind ‖ name): the name under which a record of `kind` is stored.
    pub fn mac(&self, kind: u8, name: &[u8]) -> [u8; 32] {
        mac(&self.names, &[&[kind], name])
    }

    /// HMAC-SHA-256 under a key derived from the name key, for the pool digest: one term for a (kind, name MAC,
    /// record version) triple. The digest is the sum of all terms modulo 2^256 (a keyed multiset hash).
    pub fn digest_term(&self, kind: u8, name_mac: &[u8; 32], record_version: u64) -> [u8; 32] {
        mac(&self.digest, &[&[kind], name_mac, &record_version.to_le_bytes()])
    }
}

fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("HMAC-SHA-256 is 32 bytes")
}

/// Where a record belongs: all of it is associated data.
#[derive(Clone, Copy, Debug)]
pub struct RecordPlace<'a> {
    pub pool: Guid,
    pub security_domain: Guid,
    pub class: PoolClass,
    pub kind: u8,
    pub name_mac: &'a [u8; 32],
    pub record_version: u64,
}

#[derive(Debug, thiserror::Error, Eq, PartialEq, Clone)]
pub enum RecordError {
    #[error("the record is not of a format version that this release reads")]
    UnknownFormat,
    #[error("the record is of epoch {actual}, not {expected}")]
    WrongEpoch { expected: u32, actual: u32 },
    /// Damaged, moved from another name, kind, version or pool, or sealed under another key.
    #[error("the record does not open at its place")]
    DoesNotOpen,
}

impl DataKey {
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    pub fn seal(&self, place: &RecordPlace<'_>, plaintext: &SecretBytes) -> Vec<u8> {
        self.seal_with_salt(place, plaintext, single_use::fresh_salt())
    }

    pub(crate) fn seal_with_salt(
        &self,
        place: &RecordPlace<'_>,
        plaintext: &SecretBytes,
        salt: [u8; SALT_BYTES],
    ) -> Vec<u8> {
        let header = header_bytes(place.kind, self.epoch, place.record_version);
        let associated = associated_data(&header, place);
        let mut sealed = header.to_vec();
        single_use::seal(
            self.key.danger_expose(),
            LABEL,
            &salt,
            &associated,
            plaintext.danger_expose(),
            &mut sealed,
        );
        sealed
    }

    /// `place.record_version` is taken from the record's own header (see [`header`]); the caller checks it against
    /// what it expects.
    pub fn open(&self, place: &RecordPlace<'_>, sealed: &[u8]) -> Result<SecretBytes, RecordError> {
        let header = header(sealed)?;
        if header.epoch != self.epoch {
            return Err(RecordError::WrongEpoch { expected: self.epoch, actual: header.epoch });
        }
        let header = header_bytes(place.kind, self.epoch, place.record_version);
        let (found, body) = sealed.split_at(HEADER_BYTES);
        if found != header {
            return Err(RecordError::DoesNotOpen);
        }
        let associated = associated_data(&header, place);
        single_use::open(self.key.danger_expose(), LABEL, &associated, body).ok_or(RecordError::DoesNotOpen)
    }

    pub(crate) fn wrap(&self, kek: &SecretBytes, pool: Guid, class: PoolClass) -> WrappedDataKey {
        self.wrap_with_salt(kek, pool, class, single_use::fresh_salt())
    }

    fn wrap_with_salt(
        &self,
        kek: &SecretBytes,
        pool: Guid,
        class: PoolClass,
        salt: [u8; SALT_BYTES],
    ) -> WrappedDataKey {
        let mut wrapped = vec![FORMAT_VERSION];
        let associated = wrap_associated_data(pool, class, self.epoch);
        single_use::seal(
            kek.danger_expose(),
            WRAP_LABEL,
            &salt,
            &associated,
            self.key.danger_expose(),
            &mut wrapped,
        );
        WrappedDataKey(wrapped)
    }

    pub(crate) fn unwrap(
        kek: &SecretBytes,
        pool: Guid,
        class: PoolClass,
        epoch: u32,
        wrapped: &WrappedDataKey,
    ) -> Option<Self> {
        let (&version, body) = wrapped.0.split_first()?;
        if version != FORMAT_VERSION {
            return None;
        }
        let associated = wrap_associated_data(pool, class, epoch);
        let key = single_use::open(kek.danger_expose(), WRAP_LABEL, &associated, body)?;
        (key.len() == 32).then_some(Self { epoch, key })
    }
}

/// The clear header of a sealed record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RecordHeader {
    pub kind: u8,
    pub epoch: u32,
    pub record_version: u64,
}

/// Reads the header without opening the record.
pub fn header(sealed: &[u8]) -> Result<RecordHeader, RecordError> {
    let header: &[u8; HEADER_BYTES] = sealed.first_chunk().ok_or(RecordError::UnknownFormat)?;
    let [version, kind, e0, e1, e2, e3, record_version @ ..] = *header;
    if version != FORMAT_VERSION {
        return Err(RecordError::UnknownFormat);
    }
    let epoch = u32::from_le_bytes([e0, e1, e2, e3]);
    Ok(RecordHeader { kind, epoch, record_version: u64::from_le_bytes(record_version) })
}

fn header_bytes(kind: u8, epoch: u32, record_version: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = FORMAT_VERSION;
    header[1] = kind;
    header[2..6].copy_from_slice(&epoch.to_le_bytes());
    header[6..].copy_from_slice(&record_version.to_le_bytes());
    header
}

fn associated_data(header: &[u8], place: &RecordPlace<'_>) -> Vec<u8> {
    [header, &place.pool.0, &place.security_domain.0, &[class_code(place.class)], place.name_mac].concat()
}

fn wrap_associated_data(pool: Guid, class: PoolClass, epoch: u32) -> Vec<u8> {
    [&[FORMAT_VERSION], pool.0.as_slice(), &[class_code(class)], &epoch.to_le_bytes()].concat()
}

pub(crate) fn class_code(class: PoolClass) -> u8 {
    match class {
        PoolClass::Production => 1,
        PoolClass::Test => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME_MAC: [u8; 32] = [7; 32];

    fn data_key() -> DataKey {
        DataKey { epoch: 3, key: SecretBytes::new(vec![9; 32]) }
    }

    fn place() -> RecordPlace<'static> {
        RecordPlace {
            pool: Guid([1; 16]),
            security_domain: Guid([2; 16]),
            class: PoolClass::Test,
            kind: b'k',
            name_mac: &NAME_MAC,
            record_version: 77,
        }
    }

    fn sealed() -> Vec<u8> {
        data_key().seal_with_salt(&place(), &SecretBytes::new(b"a masked record".to_vec()), [5; SALT_BYTES])
    }

    #[test]
    fn sealed_record_matches_its_golden_file() {
        let golden = include_bytes!("../tests/golden/sealed-record-v1.bin");
        assert_eq!(sealed(), golden);
        assert_eq!(data_key().open(&place(), golden).unwrap().danger_expose(), b"a masked record");
    }

    #[test]
    fn each_flipped_bit_is_refused() {
        let sealed = sealed();
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(data_key().open(&place(), &damaged).is_err(), "bit {bit}");
        }
        for length in 0..sealed.len() {
            assert!(data_key().open(&place(), &sealed[..length]).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_record_opens_only_at_its_place() {
        let other_mac = [8; 32];
        let places = [
            RecordPlace { pool: Guid([9; 16]), ..place() },
            RecordPlace { security_domain: Guid([9; 16]), ..place() },
            RecordPlace { class: PoolClass::Production, ..place() },
            RecordPlace { kind: b'v', ..place() },
            RecordPlace { name_mac: &other_mac, ..place() },
            RecordPlace { record_version: 78, ..place() },
        ];
        for place in places {
            assert!(data_key().open(&place, &sealed()).is_err(), "{place:?}");
        }
        let other_epoch = DataKey { epoch: 4, key: SecretBytes::new(vec![9; 32]) };
        assert_eq!(
            other_epoch.open(&place(), &sealed()).err(),
            Some(RecordError::WrongEpoch { expected: 4, actual: 3 })
        );
    }

    #[test]
    fn a_wrapped_data_key_matches_its_golden_file() {
        let golden = WrappedDataKey(include_bytes!("../tests/golden/wrapped-data-key-v1.bin").to_vec());
        let kek = SecretBytes::new(vec![4; 32]);
        let (pool, class) = (Guid([1; 16]), PoolClass::Test);
        assert_eq!(data_key().wrap_with_salt(&kek, pool, class, [5; SALT_BYTES]), golden);
        let key = DataKey::unwrap(&kek, pool, class, 3, &golden).unwrap();
        assert_eq!(key.key.danger_expose(), [9; 32]);
        for bit in 0..golden.0.len() * 8 {
            let mut damaged = golden.clone();
            damaged.0[bit / 8] ^= 1 << (bit % 8);
            assert!(DataKey::unwrap(&kek, pool, class, 3, &damaged).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_wrapped_data_key_opens_only_for_its_pool_class_and_epoch() {
        let kek = SecretBytes::new(vec![4; 32]);
        let (pool, class) = (Guid([1; 16]), PoolClass::Test);
        let wrapped = data_key().wrap(&kek, pool, class);
        let open = |pool, class, epoch| DataKey::unwrap(&kek, pool, class, epoch, &wrapped);
        assert_eq!(open(pool, class, 3).unwrap().key.danger_expose(), [9; 32]);
        assert!(open(Guid([2; 16]), class, 3).is_none());
        assert!(open(pool, PoolClass::Production, 3).is_none());
        assert!(open(pool, class, 2).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = header(&bytes);
            prop_assert!(data_key().open(&place(), &bytes).is_err());
        }
    }
}
