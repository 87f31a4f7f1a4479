//! A full backup as a stream (`docs/formats/full-backup.md`): a clear header, sealed chunks, and a signed manifest as the
//! last of them. Neither side ever holds more than one chunk. What chunks say is `storage`'s.
//!
//! Each backup has a key of its own. A chunk's nonce is its position and whether it is the last, and the header is
//! associated data: chunks that are left out, doubled, put in another order or taken from another backup do not open.

use crate::SecretBytes;
use crate::certificate::{InstanceClaims, InstanceKey, OwnerPublicKey, Purpose};
use crate::digest::{RunningHash, sha256};
use crate::key_backup::{BackupDomain, BackupKey, BackupRefused};
use crate::record::class_code;
use crate::single_use::{self, SALT_BYTES, TAG_BYTES};
use crate::stack::wiping_stack;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use domain::guid::Guid;
use domain::pool::PoolClass;
use domain::time::IntDate;

const MAGIC: &[u8; 6] = b"HFFULL";
const FORMAT_VERSION: u8 = 1;
const LABEL: &[u8] = b"holdfast full backup v1";
const STACK_BYTES: usize = 8 * 1024;
const CHUNK: u8 = 1;
const MANIFEST: u8 = 2;
const SIGNATURE_BYTES: usize = 64;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 104;
/// Bytes before each chunk, from which its length is known.
pub const FRAME_BYTES: usize = 5;
/// Bytes of content in a chunk, at most.
pub const MAX_CHUNK_BYTES: usize = 512 * 1024;
/// Chunks in one backup, at most: 2 TiB, far beyond what a pool holds.
const MAX_CHUNKS: u64 = 1 << 22;

/// What a backup says in clear. Believed only once a chunk opens, as it is associated data of each.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FullBackupHeader {
    pub domain: BackupDomain,
    /// The pool that made it, to which the material inside is bound.
    pub pool: Guid,
    pub created: IntDate,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FullBackupRefused {
    #[error("this is not a full backup")]
    NotABackup,
    #[error("the backup is of format version {0}, which this release does not read")]
    UnknownFormat(u8),
    /// Of another security domain, or of the other class.
    #[error("{0}")]
    Foreign(BackupRefused),
    #[error("the backup is cut off within or before chunk {chunk}")]
    CutOff { chunk: u64 },
    #[error("the backup is followed by bytes that are not part of it")]
    Overlong,
    #[error("chunk {chunk} of the backup has a length that no chunk has")]
    ChunkLength { chunk: u64 },
    #[error(
        "chunk {chunk} of the backup does not open at its place: it is damaged, was moved, or is of another backup"
    )]
    DoesNotOpen { chunk: u64 },
    #[error("the backup's manifest is not signed by an instance of the pool that made it")]
    Unsigned,
    #[error("chunk {chunk} of the backup opens, but this release does not understand what it holds")]
    UnknownContent { chunk: u64 },
    #[error("the backup opens, but is not whole: {0}")]
    Inconsistent(String),
}

/// The key of one backup, and how far it has come.
struct Stream {
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
    /// Over everything before the manifest.
    hash: RunningHash,
    chunks: u64,
}

/// What a frame's first bytes say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    is_manifest: bool,
    /// Bytes that follow.
    pub length: usize,
}

/// Writes a backup, chunk by chunk.
pub struct FullBackupWriter(Stream);

/// Reads a backup, chunk by chunk.
pub struct FullBackupReader {
    stream: Stream,
    header: FullBackupHeader,
    owner: OwnerPublicKey,
}

/// What opens: a chunk's content, or at the end that of the manifest.
pub enum Opened {
    Chunk(SecretBytes),
    Manifest(SecretBytes),
}

impl FullBackupWriter {
    /// A new backup, and its header as it is written.
    pub fn new(key: &BackupKey, header: &FullBackupHeader) -> (Self, [u8; HEADER_BYTES]) {
        Self::with_salt(key, header, single_use::fresh_salt())
    }

    fn with_salt(
        key: &BackupKey,
        header: &FullBackupHeader,
        salt: [u8; SALT_BYTES],
    ) -> (Self, [u8; HEADER_BYTES]) {
        let header = header_bytes(header, &salt);
        (Self(Stream::new(key, header, &salt)), header)
    }

    /// The next chunk, framed.
    ///
    /// # Panics
    /// Where `content` is larger than [`MAX_CHUNK_BYTES`]: the caller divides.
    pub fn seal(&mut self, content: &SecretBytes) -> Vec<u8> {
        let sealed = self.0.seal(CHUNK, content.danger_expose());
        self.0.take(&sealed);
        sealed
    }

    /// The manifest, which ends the backup: `content`, signed together with everything before by a key of this
    /// incarnation, whose certificate goes with it.
    pub fn finish(self, content: &SecretBytes, key: &InstanceKey, certificate: &[u8]) -> Vec<u8> {
        let Self(stream) = self;
        let signature = key.sign(&stream.signed(content.danger_expose()));
        let length = u16::try_from(certificate.len()).expect("an instance certificate is below 1 KiB");
        let manifest =
            [&length.to_le_bytes(), certificate, signature.as_slice(), content.danger_expose()].concat();
        stream.seal(MANIFEST, &manifest)
    }
}

impl FullBackupReader {
    /// Begins with a backup's first [`HEADER_BYTES`]; refuses what was made for another domain or class than `here`.
    pub fn new(
        key: &BackupKey,
        here: &BackupDomain,
        owner: &OwnerPublicKey,
        header: &[u8],
    ) -> Result<Self, FullBackupRefused> {
        let (parsed, salt) = parse_header(header)?;
        here.check(&parsed.domain).map_err(FullBackupRefused::Foreign)?;
        let bytes = header.try_into().map_err(|_| FullBackupRefused::CutOff { chunk: 0 })?;
        Ok(Self { stream: Stream::new(key, bytes, &salt), header: parsed, owner: owner.clone() })
    }

    pub fn header(&self) -> &FullBackupHeader {
        &self.header
    }

    /// How many chunks were opened.
    pub fn chunks(&self) -> u64 {
        self.stream.chunks
    }

    /// How long the next chunk is, by its first [`FRAME_BYTES`].
    pub fn frame(&self, bytes: &[u8]) -> Result<Frame, FullBackupRefused> {
        let chunk = self.stream.chunks;
        let Some((&[kind], length)) = bytes.split_first_chunk::<1>() else {
            return Err(FullBackupRefused::CutOff { chunk });
        };
        let length = length.try_into().map_err(|_| FullBackupRefused::CutOff { chunk })?;
        let length = u32::from_le_bytes(length) as usize;
        let is_manifest = match kind {
            CHUNK => false,
            MANIFEST => true,
            _ => return Err(FullBackupRefused::DoesNotOpen { chunk }),
        };
        let longest = MAX_CHUNK_BYTES + TAG_BYTES;
        if !(TAG_BYTES..=longest).contains(&length) || chunk >= MAX_CHUNKS {
            return Err(FullBackupRefused::ChunkLength { chunk });
        }
        Ok(Frame { is_manifest, length })
    }

    /// Opens the next chunk, whose first bytes gave `frame`. After the manifest nothing may follow; that is the caller's
    /// to see.
    pub fn open(&mut self, frame: Frame, sealed: &[u8]) -> Result<Opened, FullBackupRefused> {
        let chunk = self.stream.chunks;
        if sealed.len() != frame.length {
            return Err(FullBackupRefused::CutOff { chunk });
        }
        let kind = if frame.is_manifest { MANIFEST } else { CHUNK };
        let content = self.stream.open(kind, sealed).ok_or(FullBackupRefused::DoesNotOpen { chunk })?;
        if !frame.is_manifest {
            self.stream.take(&frame_bytes(kind, sealed.len()));
            self.stream.hash.update(sealed);
            return Ok(Opened::Chunk(content));
        }
        self.manifest(content.danger_expose()).map(Opened::Manifest).ok_or(FullBackupRefused::Unsigned)
    }

    fn manifest(&self, bytes: &[u8]) -> Option<SecretBytes> {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (certificate, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let (signature, content) = rest.split_at_checked(SIGNATURE_BYTES)?;
        let (claims, key) = self.owner.verify_certificate(certificate).ok()?;
        let is_its_own = self.is_of_this_backup(&claims);
        (is_its_own && key.verify(&self.stream.signed(content), signature))
            .then(|| SecretBytes::copy(content))
    }

    /// Expiry is not asked: a backup is kept for longer than an instance lives. Only that it was not over when the backup
    /// was made.
    fn is_of_this_backup(&self, claims: &InstanceClaims) -> bool {
        let FullBackupHeader { domain, pool, created } = &self.header;
        claims.purpose == Purpose::Backup
            && claims.class == domain.class
            && claims.pool == *pool
            && claims.not_after >= *created
    }
}

impl Stream {
    fn new(key: &BackupKey, header: [u8; HEADER_BYTES], salt: &[u8; SALT_BYTES]) -> Self {
        let derived = single_use::derive(key.danger_expose(), LABEL, salt);
        let key = wiping_stack::<STACK_BYTES, _>(|| {
            LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, derived.danger_expose()).expect("an AES-256 key is 32 bytes"),
            )
        });
        let mut hash = RunningHash::of_length(32).expect("SHA-256 has 32 bytes");
        hash.update(&header);
        Self { key, header, hash, chunks: 0 }
    }

    /// By position and kind: under a backup's key no nonce comes twice.
    fn nonce(&self, kind: u8) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.chunks.to_be_bytes());
        nonce[11] = kind;
        Nonce::assume_unique_for_key(nonce)
    }

    fn associated(&self, frame: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([self.header.as_slice(), frame].concat())
    }

    fn seal(&self, kind: u8, content: &[u8]) -> Vec<u8> {
        assert!(content.len() <= MAX_CHUNK_BYTES, "a chunk over its limit");
        let frame = frame_bytes(kind, content.len() + TAG_BYTES);
        let mut out = Vec::with_capacity(FRAME_BYTES + content.len() + TAG_BYTES);
        out.extend_from_slice(&frame);
        out.extend_from_slice(content);
        let tag = wiping_stack::<STACK_BYTES, _>(|| {
            let aad = self.associated(&frame);
            self.key.seal_in_place_separate_tag(self.nonce(kind), aad, &mut out[FRAME_BYTES..])
        });
        out.extend_from_slice(tag.expect("a chunk is far below the limit of AES-GCM").as_ref());
        out
    }

    fn open(&self, kind: u8, sealed: &[u8]) -> Option<SecretBytes> {
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG_BYTES>()?;
        let frame = frame_bytes(kind, sealed.len());
        let mut content = SecretBytes::zeroed(ciphertext.len());
        let opened = wiping_stack::<STACK_BYTES, _>(|| {
            let (aad, out) = (self.associated(&frame), content.danger_expose_mut());
            self.key.open_separate_gather(self.nonce(kind), aad, ciphertext, tag, out)
        });
        opened.ok()?;
        Some(content)
    }

    /// Goes on to the next position, with these bytes hashed.
    fn take(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.chunks += 1;
    }

    fn signed(&self, content: &[u8]) -> Vec<u8> {
        let hash = self.hash.clone().finish();
        [LABEL, &[0], &hash, &self.chunks.to_le_bytes(), &sha256(&[content])].concat()
    }
}

fn frame_bytes(kind: u8, length: usize) -> [u8; FRAME_BYTES] {
    let mut frame = [kind; FRAME_BYTES];
    let length = u32::try_from(length).expect("a chunk is below its limit");
    frame[1..].copy_from_slice(&length.to_le_bytes());
    frame
}

fn header_bytes(header: &FullBackupHeader, salt: &[u8; SALT_BYTES]) -> [u8; HEADER_BYTES] {
    let FullBackupHeader { domain, pool, created } = header;
    let bytes = [
        MAGIC.as_slice(),
        &[FORMAT_VERSION],
        &domain.security_domain.0,
        &domain.owner_fingerprint,
        &[class_code(domain.class)],
        &pool.0,
        &created.unix_seconds().to_le_bytes(),
        salt,
    ]
    .concat();
    bytes.try_into().expect("the fields are as long as the header")
}

fn parse_header(bytes: &[u8]) -> Result<(FullBackupHeader, [u8; SALT_BYTES]), FullBackupRefused> {
    let (&version, _) = bytes
        .strip_prefix(MAGIC.as_slice())
        .and_then(<[u8]>::split_first)
        .ok_or(FullBackupRefused::NotABackup)?;
    if version != FORMAT_VERSION {
        return Err(FullBackupRefused::UnknownFormat(version));
    }
    let bytes: &[u8; HEADER_BYTES] = bytes.try_into().map_err(|_| FullBackupRefused::CutOff { chunk: 0 })?;
    let mut rest = &bytes[MAGIC.len() + 1..];
    let security_domain = Guid(take(&mut rest));
    let owner_fingerprint = take(&mut rest);
    let [class] = take(&mut rest);
    let class = [PoolClass::Production, PoolClass::Test]
        .into_iter()
        .find(|known| class_code(*known) == class)
        .ok_or(FullBackupRefused::NotABackup)?;
    let pool = Guid(take(&mut rest));
    let created = IntDate::from_unix_seconds(i64::from_le_bytes(take(&mut rest)));
    let domain = BackupDomain { security_domain, owner_fingerprint, class };
    Ok((FullBackupHeader { domain, pool, created }, take(&mut rest)))
}

/// The next field of a header that is known to be there in full.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, behind) = rest.split_first_chunk().expect("the fields are as long as the header");
    *rest = behind;
    *field
}

/// What a reader gets out of any bytes, for fuzzing: each chunk's content until one is refused.
pub fn read_all(
    reader: &mut FullBackupReader,
    mut rest: &[u8],
) -> Result<Vec<SecretBytes>, FullBackupRefused> {
    let mut contents = Vec::new();
    loop {
        let (head, behind) = rest.split_at(rest.len().min(FRAME_BYTES));
        let frame = reader.frame(head)?;
        let (sealed, behind) = behind.split_at(behind.len().min(frame.length));
        rest = behind;
        match reader.open(frame, sealed)? {
            Opened::Chunk(content) => contents.push(content),
            Opened::Manifest(content) if rest.is_empty() => {
                contents.push(content);
                return Ok(contents);
            }
            Opened::Manifest(_) => return Err(FullBackupRefused::Overlong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain_secrets::DomainSecrets;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// Made once: a P-384 key costs more to import than all the rest.
    fn secrets() -> &'static DomainSecrets {
        static SECRETS: LazyLock<DomainSecrets> = LazyLock::new(|| {
            let golden = include_bytes!("../tests/golden/domain-secrets-v1.bin");
            DomainSecrets::import(&SecretBytes::new(golden.to_vec())).unwrap()
        });
        &SECRETS
    }

    fn made() -> FullBackupHeader {
        let owner = secrets().owner_key().public_key();
        FullBackupHeader {
            domain: BackupDomain::new(Guid([2; 16]), &owner, PoolClass::Test),
            pool: Guid([1; 16]),
            created: IntDate::from_unix_seconds(1_800_000_000),
        }
    }

    fn claims() -> InstanceClaims {
        InstanceClaims {
            pool: Guid([1; 16]),
            node: Guid([3; 16]),
            incarnation: Guid([4; 16]),
            purpose: Purpose::Backup,
            class: PoolClass::Test,
            genesis_hash: [5; 32],
            not_before: IntDate::from_unix_seconds(1_799_990_000),
            not_after: IntDate::from_unix_seconds(1_800_100_000),
        }
    }

    /// Header, chunks and manifest, apart.
    fn parts(claims: &InstanceClaims, salt: u8) -> Vec<Vec<u8>> {
        let secrets = secrets();
        let key = InstanceKey::generate();
        let certificate = secrets.owner_key().certify(claims, &key);
        let (mut writer, header) =
            FullBackupWriter::with_salt(&secrets.backup_key(), &made(), [salt; SALT_BYTES]);
        let content = |text: &str| SecretBytes::new(text.as_bytes().to_vec());
        let chunks = ["one", "two", "three"].map(|text| writer.seal(&content(text)));
        let manifest = writer.finish(&content("all"), &key, &certificate);
        [header.to_vec()].into_iter().chain(chunks).chain([manifest]).collect()
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, FullBackupRefused> {
        read_as(&made().domain, bytes)
    }

    fn read_as(here: &BackupDomain, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FullBackupRefused> {
        let secrets = secrets();
        let (header, rest) = bytes.split_at(bytes.len().min(HEADER_BYTES));
        let owner = secrets.owner_key().public_key();
        let mut reader = FullBackupReader::new(&secrets.backup_key(), here, &owner, header)?;
        let contents = read_all(&mut reader, rest)?;
        Ok(contents.iter().map(|content| content.danger_expose().to_vec()).collect())
    }

    /// Signatures are random, so the file is read and its chunks, not its manifest, are made again.
    #[test]
    fn a_backup_matches_its_golden_file() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/full-backup-v1.bin");
        if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(path).exists() {
            std::fs::write(path, parts(&claims(), 6).concat()).unwrap();
        }
        let golden = std::fs::read(path).unwrap();
        let texts: [&[u8]; 4] = [b"one", b"two", b"three", b"all"];
        assert_eq!(read(&golden).unwrap(), texts);
        let chunks = parts(&claims(), 6)[..4].concat();
        assert_eq!(golden[..chunks.len()], chunks);
    }

    #[test]
    fn each_flipped_bit_and_each_other_length_is_refused() {
        let whole = parts(&claims(), 6).concat();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            let refused = read(&whole[..length]).unwrap_err();
            if length > MAGIC.len() {
                assert!(matches!(refused, FullBackupRefused::CutOff { .. }), "length {length}: {refused}");
            }
        }
        assert_eq!(read(&[whole.as_slice(), &[0]].concat()), Err(FullBackupRefused::Overlong));
    }

    /// Chunks left out, doubled, in another order, of another backup, and ends that are none.
    #[test]
    fn what_is_not_the_backup_as_it_was_written_is_refused() {
        let own = parts(&claims(), 6);
        let other = parts(&claims(), 7);
        let arrange = |order: &[usize]| order.iter().flat_map(|part| own[*part].clone()).collect::<Vec<_>>();
        for (order, chunk) in [
            ([0, 2, 1, 3, 4].as_slice(), 0),
            (&[0, 1, 3, 4], 1),
            (&[0, 1, 1, 2, 3, 4], 1),
            (&[0, 1, 2, 4], 2),
            (&[0, 4], 0),
        ] {
            assert_eq!(read(&arrange(order)), Err(FullBackupRefused::DoesNotOpen { chunk }), "{order:?}");
        }
        assert_eq!(read(&arrange(&[0, 1, 2, 3])), Err(FullBackupRefused::CutOff { chunk: 3 }));
        for swapped in 1..5 {
            let mut mixed = own.clone();
            mixed[swapped].clone_from(&other[swapped]);
            let chunk = swapped as u64 - 1;
            assert_eq!(read(&mixed.concat()), Err(FullBackupRefused::DoesNotOpen { chunk }));
        }
    }

    #[test]
    fn only_an_instance_of_the_pool_that_made_it_signs_it() {
        let wrong: [fn(&mut InstanceClaims); 4] = [
            |claims| claims.purpose = Purpose::AuditCheckpoint,
            |claims| claims.class = PoolClass::Production,
            |claims| claims.pool = Guid([9; 16]),
            |claims| claims.not_after = IntDate::from_unix_seconds(1_799_999_999),
        ];
        for bend in wrong {
            let mut claims = claims();
            bend(&mut claims);
            assert_eq!(read(&parts(&claims, 6).concat()), Err(FullBackupRefused::Unsigned));
        }
        let stranger = DomainSecrets::generate();
        let secrets = secrets();
        let key = InstanceKey::generate();
        let certificate = stranger.owner_key().certify(&claims(), &key);
        let (writer, header) = FullBackupWriter::new(&secrets.backup_key(), &made());
        let manifest = writer.finish(&SecretBytes::new(vec![]), &key, &certificate);
        assert_eq!(read(&[header.to_vec(), manifest].concat()), Err(FullBackupRefused::Unsigned));
    }

    #[test]
    fn another_domain_or_class_is_named() {
        let whole = parts(&claims(), 6).concat();
        let here = made().domain;
        let other = BackupDomain { owner_fingerprint: [9; 32], ..here };
        let message = read_as(&other, &whole).unwrap_err().to_string();
        let fingerprints = [here, other].map(|domain| crate::digest::hex(&domain.owner_fingerprint));
        assert!(fingerprints.iter().all(|fingerprint| message.contains(fingerprint)), "{message}");
        let production = BackupDomain { class: PoolClass::Production, ..here };
        let refused = read_as(&production, &whole).unwrap_err();
        assert!(matches!(refused, FullBackupRefused::Foreign(BackupRefused::OtherClass { .. })));
        // A class that is written over does not make it a backup of that class.
        let mut forged = whole.clone();
        forged[55] = class_code(PoolClass::Production);
        assert_eq!(read_as(&production, &forged), Err(FullBackupRefused::DoesNotOpen { chunk: 0 }));
        assert_eq!(read(b"HFFULL\x02"), Err(FullBackupRefused::UnknownFormat(2)));
        assert_eq!(read(b"garbage"), Err(FullBackupRefused::NotABackup));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), ours in any::<bool>()) {
            let mut bytes = bytes;
            if ours {
                bytes.splice(0..0, parts(&claims(), 6)[0].clone());
            }
            prop_assert!(read(&bytes).is_err());
        }
    }
}
