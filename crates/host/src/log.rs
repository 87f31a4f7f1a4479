//! Append-only segments of opaque bytes. Framing, hashes and signatures belong to the core's `audit` crate.

use async_trait::async_trait;

/// Numbers a segment, from 0, without gaps.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SegmentId(pub u32);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SegmentInfo {
    pub id: SegmentId,
    /// Bytes in the segment, preallocated zeros at its end included.
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the disk is full")]
    DiskFull,
    #[error("segment {0:?} does not exist")]
    NoSuchSegment(SegmentId),
    /// A write or sync failed: how much reached the disk is unknown, so nothing more is appended until the
    /// log is opened again.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
}

/// Only the last segment is written; earlier ones never change.
///
/// Bytes of a segment that were never written read as zero, and the file is zero-filled ahead of the write
/// position, so that a reader can tell a torn write (a whole 512-byte sector still zero) from a damaged one.
#[async_trait]
pub trait Log: Send + Sync {
    /// All segments, oldest first. Empty for a new log.
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError>;
    /// Up to `max` bytes of `segment` from `offset`; fewer only at its end.
    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError>;
    /// Sets where the next append to the last segment goes, and zeroes everything behind it, durably.
    /// Called once after opening, before the first append, with the end that the core found.
    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError>;
    /// Starts the next segment; durable (file and directory entry) on return.
    async fn roll(&self) -> Result<SegmentId, LogError>;
    /// Appends to the last segment. On return the bytes are durable (or, where the pool's durability is
    /// `written`, handed to the operating system).
    async fn append(&self, bytes: Vec<u8>) -> Result<(), LogError>;
}
