//! What lies between redb and the disk: our file abstraction as a redb backend, and a guard that remembers
//! what redb has asked of it, so that a failed transaction can be told from one whose fate is unknown.

use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{BackendError, StorageBackend};

use crate::disk::DiskFile;

/// Both commit slots of redb lie in the first page: a transaction that has not touched it is not committed.
const HEADER_BYTES: u64 = 4096;

/// Locking stays unsupported: the lock file of this crate keeps other processes out.
#[derive(Debug)]
pub(super) struct DirectoryBackend(pub(super) Box<dyn DiskFile>);

impl StorageBackend for DirectoryBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }
}

#[derive(Debug)]
pub(super) struct Guard {
    inner: Box<dyn StorageBackend>,
    header_touched: AtomicBool,
    disk_full: AtomicBool,
}

impl Guard {
    pub(super) fn new(inner: Box<dyn StorageBackend>) -> Self {
        Self { inner, header_touched: AtomicBool::new(false), disk_full: AtomicBool::new(false) }
    }

    pub(super) fn transaction_starts(&self) {
        self.header_touched.store(false, Ordering::Relaxed);
    }

    /// Whether the transaction under way may have become visible to a reader of the file.
    pub(super) fn may_have_committed(&self) -> bool {
        self.header_touched.load(Ordering::Relaxed)
    }

    /// Whether any write was refused for want of space.
    pub(super) fn disk_was_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }

    fn seen<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        {
            self.disk_full.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// The guard as redb's backend. redb is the only writer, on one thread at a time, and the writer thread asks
/// after redb has returned: relaxed ordering is enough.
#[derive(Debug)]
pub(super) struct Guarded(pub(super) Arc<Guard>);

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.0.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.inner.read(offset, out)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.seen(self.0.inner.set_len(bytes))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.seen(self.0.inner.sync_data())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if offset < HEADER_BYTES {
            self.0.header_touched.store(true, Ordering::Relaxed);
        }
        self.0.seen(self.0.inner.write(offset, bytes))
    }

    fn close(&self) -> io::Result<()> {
        self.0.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.inner.query_lock_range(start, end)
    }
}
