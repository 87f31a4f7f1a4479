//! A backup on its way to a target, and back: a chunk at a time, and never more.

use super::target::{BackupTarget, TargetError};
use crate::error::Error;
use bytes::{Bytes, BytesMut};
use crypto::SecretBytes;
use crypto::certificate::{InstanceKey, OwnerPublicKey};
use crypto::full_backup::{
    FRAME_BYTES, FullBackupHeader, FullBackupReader, FullBackupRefused, FullBackupWriter, HEADER_BYTES,
    Opened,
};
use crypto::key_backup::{BackupDomain, BackupKey};
use storage::{ChunkBuilder, Counts, Manifest, Record, Snapshot, is_backed_up, read_chunk};

/// The one blob of a backup, in its folder.
const BLOB: &str = "backup.hfb";
/// Held of what was read from a target, unless a chunk is larger.
const WINDOW_BYTES: usize = 1 << 20;

pub(super) fn blob_name(folder: &str) -> String {
    format!("{folder}/{BLOB}")
}

/// Writes what `snapshot` shows, signed by `signer`. Nothing is there to be seen unless all of it is, and `may_be_seen` allows it
/// then.
pub(super) async fn write(
    target: &dyn BackupTarget,
    folder: &str,
    mut snapshot: Snapshot,
    pool_name: &str,
    (key, header): (&BackupKey, &FullBackupHeader),
    (signer, certificate): (&InstanceKey, &[u8]),
    may_be_seen: impl Fn() -> Result<(), Error>,
) -> Result<Counts, Error> {
    let mut blob = target.create(&blob_name(folder)).await?;
    let (mut writer, header) = FullBackupWriter::new(key, header);
    blob.write(Bytes::copy_from_slice(&header)).await?;
    let mut builder = ChunkBuilder::default();
    let mut counts = Counts::default();
    while let Some(page) =
        snapshot.next_page().await.map_err(|error| Error::StoreUnavailable(error.to_string()))?
    {
        for record in page.iter().map(|held| &held.value).filter(|record| is_backed_up(record)) {
            counts.add(record);
            if let Some(chunk) = builder.add(record) {
                blob.write(writer.seal(&chunk).into()).await?;
            }
        }
    }
    if let Some(chunk) = builder.take() {
        blob.write(writer.seal(&chunk).into()).await?;
    }
    let generation = snapshot.generation().unwrap_or_default();
    let log_size = snapshot.log_size();
    let manifest = Manifest { generation, counts: counts.clone(), pool_name: pool_name.to_owned(), log_size };
    blob.write(writer.finish(&manifest.encode(), signer, certificate).into()).await?;
    may_be_seen()?;
    blob.finish().await?;
    Ok(counts)
}

/// A backup that is being read.
pub(super) struct Reader<'t> {
    target: &'t dyn BackupTarget,
    blob: String,
    size: u64,
    /// Behind what was fetched.
    offset: u64,
    fetched: BytesMut,
    opener: FullBackupReader,
    /// By which it is known to be the same backup when it is read again.
    header: Bytes,
}

/// What comes next in a backup.
pub(super) enum Next {
    Records(Vec<Record>),
    End(Manifest),
}

impl<'t> Reader<'t> {
    pub async fn open(
        target: &'t dyn BackupTarget,
        folder: &str,
        key: &BackupKey,
        here: &BackupDomain,
        owner: &OwnerPublicKey,
    ) -> Result<Self, Error> {
        let blob = blob_name(folder);
        let size = target.size(&blob).await?.ok_or_else(|| TargetError::Missing(blob.clone()))?;
        let length = usize::try_from(size).unwrap_or(usize::MAX).min(HEADER_BYTES);
        let header = read_exactly(target, &blob, 0, length).await?;
        let opener = FullBackupReader::new(key, here, owner, &header)?;
        Ok(Self { target, blob, size, offset: length as u64, fetched: BytesMut::new(), opener, header })
    }

    /// Whose and of when it is. Believed only once a chunk has opened.
    pub fn header(&self) -> &FullBackupHeader {
        self.opener.header()
    }

    /// Whether both read one and the same backup: its salt is in its header, and each has another.
    pub fn is_same_as(&self, header: &Bytes) -> bool {
        self.header == *header
    }

    pub fn header_bytes(&self) -> Bytes {
        self.header.clone()
    }

    pub async fn next(&mut self) -> Result<Next, Error> {
        let chunk = self.opener.chunks();
        let head = self.take(FRAME_BYTES).await?;
        let frame = self.opener.frame(&head)?;
        let sealed = self.take(frame.length).await?;
        match self.opener.open(frame, &sealed)? {
            Opened::Chunk(content) => Ok(Next::Records(read(chunk, &content, read_chunk)?)),
            Opened::Manifest(_) if !self.fetched.is_empty() || self.offset < self.size => {
                Err(FullBackupRefused::Overlong.into())
            }
            Opened::Manifest(content) => Ok(Next::End(read(chunk, &content, Manifest::decode)?)),
        }
    }

    /// The next `length` bytes, or what is left of the blob.
    async fn take(&mut self, length: usize) -> Result<Bytes, Error> {
        if self.fetched.len() < length {
            let wanted = length.max(WINDOW_BYTES) - self.fetched.len();
            let left = usize::try_from(self.size.saturating_sub(self.offset)).unwrap_or(usize::MAX);
            let more = wanted.min(left);
            if more > 0 {
                let bytes = read_exactly(self.target, &self.blob, self.offset, more).await?;
                self.offset += more as u64;
                self.fetched.extend_from_slice(&bytes);
            }
        }
        let length = length.min(self.fetched.len());
        Ok(self.fetched.split_to(length).freeze())
    }
}

async fn read_exactly(
    target: &dyn BackupTarget,
    blob: &str,
    offset: u64,
    length: usize,
) -> Result<Bytes, Error> {
    let bytes = target.read(blob, offset, length).await?;
    // The target is not trusted, not even with this.
    if bytes.len() != length {
        return Err(
            TargetError::Io(format!("it gave {} bytes of the {length} asked for", bytes.len())).into()
        );
    }
    Ok(bytes)
}

fn read<T, E>(
    chunk: u64,
    content: &SecretBytes,
    decode: impl FnOnce(&SecretBytes) -> Result<T, E>,
) -> Result<T, Error> {
    decode(content).map_err(|_| FullBackupRefused::UnknownContent { chunk }.into())
}
