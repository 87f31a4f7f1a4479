//! What a full backup holds (`docs/formats/full-backup.md`): records in chunks, and a manifest of what there are.

use crate::codec;
use crate::pool_state::Digest;
use crate::record::{Record, UnreadableRecord, VersionRecord, kind};
use crypto::SecretBytes;
use crypto::full_backup::MAX_CHUNK_BYTES;
use domain::name::KeyVersion;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

/// A chunk ends before the record that would bring it over this.
const CHUNK_BYTES: usize = 256 * 1024;
const HEAD_BYTES: usize = 5;

/// Whether a record goes into a backup. What a pool is, how it is set and what was done with it does not.
pub fn is_backed_up(record: &Record) -> bool {
    kind::is_replaceable(record.id().kind())
}

/// Fills one chunk after another.
#[derive(Default)]
pub struct ChunkBuilder {
    content: Vec<u8>,
}

impl ChunkBuilder {
    /// Adds a record; gives the chunk that was full before it.
    pub fn add(&mut self, record: &Record) -> Option<SecretBytes> {
        let encoded = codec::encode(record);
        let length = HEAD_BYTES + encoded.len();
        let full = if self.content.len() + length > CHUNK_BYTES { self.take() } else { None };
        // Once, at its full size: what a vector leaves behind when it grows is not wiped.
        self.content.reserve_exact(CHUNK_BYTES.max(length).saturating_sub(self.content.len()));
        self.content.push(record.id().kind());
        let bytes = u32::try_from(encoded.len()).expect("a record is below the engine's limit of a value");
        self.content.extend_from_slice(&bytes.to_le_bytes());
        self.content.extend_from_slice(encoded.danger_expose());
        full
    }

    /// What was added since the last chunk.
    pub fn take(&mut self) -> Option<SecretBytes> {
        let content = std::mem::take(&mut self.content);
        (!content.is_empty()).then(|| SecretBytes::new(content))
    }
}

/// The records of a chunk's content.
pub fn read_chunk(content: &SecretBytes) -> Result<Vec<Record>, UnreadableRecord> {
    let mut rest = content.danger_expose();
    if rest.len() > MAX_CHUNK_BYTES {
        return Err(UnreadableRecord::Malformed);
    }
    let mut records = Vec::new();
    while !rest.is_empty() {
        let (&[record_kind, length @ ..], behind) =
            rest.split_first_chunk::<HEAD_BYTES>().ok_or(UnreadableRecord::Malformed)?;
        let length = u32::from_le_bytes(length) as usize;
        let (encoded, behind) = behind.split_at_checked(length).ok_or(UnreadableRecord::Malformed)?;
        if !kind::is_replaceable(record_kind) {
            return Err(UnreadableRecord::UnknownKind(record_kind));
        }
        records.push(codec::decode(record_kind, &SecretBytes::copy(encoded))?);
        rest = behind;
    }
    Ok(records)
}

/// How many records there are of each kind.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts(BTreeMap<u8, u64>);

impl Counts {
    pub fn add(&mut self, record: &Record) {
        *self.0.entry(record.id().kind()).or_default() += 1;
    }

    pub fn keys(&self) -> u64 {
        self.0.get(&kind::KEY).copied().unwrap_or_default()
    }

    pub fn versions(&self) -> u64 {
        self.0.get(&kind::VERSION).copied().unwrap_or_default()
    }

    /// Keys whose encryptions were counted.
    pub fn counted_keys(&self) -> u64 {
        self.0.get(&kind::INVOCATIONS).copied().unwrap_or_default()
    }

    pub fn assignments(&self) -> u64 {
        self.0.get(&kind::ASSIGNMENT).copied().unwrap_or_default()
    }
}

/// Whether the versions that there are, are those that keys name: two sums of digests, each of a key's name and a version,
/// so that records may come in any order and nothing is kept for each of them.
///
/// It finds faults of a writer. Nobody chooses what is summed against it, as the sums are keyed by chance.
pub struct Pairing {
    key: [u8; 32],
    named: Digest,
    held: Digest,
}

impl Pairing {
    pub fn keyed() -> Self {
        let mut key = [0; 32];
        crypto::digest::random(&mut key);
        Self { key, named: Digest::default(), held: Digest::default() }
    }

    pub fn add(&mut self, record: &Record) {
        match record {
            Record::Key(record) => {
                let name = record.key.name.canonical();
                for version in record.key.versions() {
                    self.named.add(&term(&self.key, &name, *version));
                }
            }
            Record::Version(VersionRecord { version, .. }) => {
                self.held.add(&term(&self.key, &version.name.canonical(), version.version));
            }
            _ => {}
        }
    }

    pub fn is_even(&self) -> bool {
        self.named == self.held
    }
}

fn term(key: &[u8; 32], name: &str, version: KeyVersion) -> [u8; 32] {
    crypto::digest::sha256(&[key, name.as_bytes(), b"/", &version.0])
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Of the pool, which all of the backup shows.
    pub generation: u64,
    pub counts: Counts,
    pub pool_name: String,
    /// How many events the pool's log had, at least, when the backup was made; earlier releases did not say.
    pub log_size: Option<u64>,
}

#[derive(Encode, Decode)]
struct ManifestV1 {
    #[n(0)]
    generation: u64,
    /// Ascending.
    #[cbor(n(1), with = "minicbor::bytes")]
    kinds: Vec<u8>,
    #[n(2)]
    counts: Vec<u64>,
    #[n(3)]
    pool_name: String,
    #[n(4)]
    log_size: Option<u64>,
}

impl Manifest {
    pub fn encode(&self) -> SecretBytes {
        codec::to_bytes(&ManifestV1 {
            generation: self.generation,
            kinds: self.counts.0.keys().copied().collect(),
            counts: self.counts.0.values().copied().collect(),
            pool_name: self.pool_name.clone(),
            log_size: self.log_size,
        })
    }

    pub fn decode(content: &SecretBytes) -> Result<Self, UnreadableRecord> {
        let wire: ManifestV1 = codec::from_bytes(content)?;
        let ascending = wire.kinds.is_sorted_by(|one, next| one < next);
        if !ascending || wire.kinds.len() != wire.counts.len() {
            return Err(UnreadableRecord::Malformed);
        }
        Ok(Self {
            generation: wire.generation,
            counts: Counts(wire.kinds.into_iter().zip(wire.counts).collect()),
            pool_name: wire.pool_name,
            log_size: wire.log_size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz;
    use crate::record::{InvocationsRecord, RoleNamesRecord};
    use domain::access::{BuiltInRole, RoleAssignment, Scope};
    use domain::guid::Guid;
    use domain::name::KeyVersion;
    use proptest::prelude::*;

    fn assignment(number: u8) -> Record {
        Record::Assignment(RoleAssignment {
            name: Guid([number; 16]),
            scope: Scope::Keys,
            role: BuiltInRole::CryptoUser.id(),
            principal: Guid([number; 16]),
        })
    }

    fn counted() -> Record {
        let leased = BTreeMap::from([(KeyVersion([5; 16]), 65_536)]);
        Record::Invocations(InvocationsRecord { name: "k".parse().unwrap(), leased })
    }

    fn chunk() -> SecretBytes {
        let mut builder = ChunkBuilder::default();
        assert!(builder.add(&assignment(1)).is_none() && builder.add(&counted()).is_none());
        builder.take().unwrap()
    }

    fn manifest() -> Manifest {
        let mut counts = Counts::default();
        counts.add(&assignment(1));
        counts.add(&counted());
        Manifest { generation: 300, counts, pool_name: "demo".into(), log_size: None }
    }

    #[test]
    fn content_matches_its_golden_files_both_ways() {
        let golden = |name: &str, written: &SecretBytes| {
            let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(&path).exists() {
                std::fs::write(&path, written.danger_expose()).unwrap();
            }
            let golden = std::fs::read(&path).unwrap();
            assert_eq!(written.danger_expose(), golden);
            SecretBytes::new(golden)
        };
        let chunk = golden("full-backup-chunk.bin", &chunk());
        assert_eq!(read_chunk(&chunk), Ok(vec![assignment(1), counted()]));
        let bytes = golden("full-backup-manifest.cbor", &manifest().encode());
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
        let with_log = Manifest { log_size: Some(4000), ..manifest() };
        let bytes = golden("full-backup-manifest-log.cbor", &with_log.encode());
        assert_eq!(Manifest::decode(&bytes), Ok(with_log));
    }

    /// However many records there are, what is held is one chunk.
    #[test]
    fn a_chunk_ends_before_it_grows_over_its_size() {
        let mut builder = ChunkBuilder::default();
        let mut chunks = Vec::new();
        let mut held = 0;
        for number in 0..20_000_u32 {
            chunks.extend(builder.add(&assignment(number as u8)));
            held = held.max(builder.content.capacity());
        }
        chunks.extend(builder.take());
        assert!(held <= CHUNK_BYTES && chunks.len() > 3, "{held} bytes, {} chunks", chunks.len());
        assert!(chunks.iter().all(|chunk| chunk.len() <= CHUNK_BYTES));
        let read: usize = chunks.iter().map(|chunk| read_chunk(chunk).unwrap().len()).sum();
        assert_eq!(read, 20_000);
    }

    #[test]
    fn only_what_is_backed_up_is_read_back() {
        let names = Record::RoleNames(RoleNamesRecord { definitions: 1 });
        assert!(!is_backed_up(&names) && is_backed_up(&assignment(1)));
        let mut builder = ChunkBuilder::default();
        builder.add(&names);
        assert_eq!(
            read_chunk(&builder.take().unwrap()),
            Err(UnreadableRecord::UnknownKind(kind::ROLE_NAMES))
        );
        let bytes = chunk().danger_expose().to_vec();
        for cut in 1..bytes.len() {
            let read = read_chunk(&SecretBytes::copy(&bytes[..cut]));
            assert!(read.is_err() || read.unwrap().len() == 1, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz::full_backup_chunk(&bytes);
            fuzz::full_backup_manifest(&bytes);
        }

        #[test]
        fn damaged_content_never_panics(position in any::<prop::sample::Index>(), value in any::<u8>()) {
            for content in [chunk(), manifest().encode()] {
                let mut bytes = content.danger_expose().to_vec();
                let position = position.index(bytes.len());
                bytes[position] = value;
                fuzz::full_backup_chunk(&bytes);
                fuzz::full_backup_manifest(&bytes);
            }
        }
    }
}
