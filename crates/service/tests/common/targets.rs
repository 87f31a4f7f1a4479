//! Containers in memory, whose blobs a test may bend, and which may stop in the middle.
#![allow(dead_code)] // each test binary uses a part of it

use async_trait::async_trait;
use bytes::Bytes;
use service::backup::{BackupTarget, BackupTargets, BlobWriter, StorageLocation, TargetError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Clones are the same storage. One container; anything but its address is refused.
#[derive(Clone, Default)]
pub struct MemoryTargets(Arc<Memory>);

#[derive(Default)]
struct Memory {
    blobs: Mutex<BTreeMap<String, Vec<u8>>>,
    /// The most bytes that were written or asked for at a time.
    largest: AtomicUsize,
    /// While it is held, reads and writes wait.
    held: tokio::sync::RwLock<()>,
    reads: AtomicUsize,
    /// The number of the read that waits, and all after it, while `late` is held; 0 for none.
    late_from: AtomicUsize,
    late: tokio::sync::RwLock<()>,
}

pub const CONTAINER: &str = "memory://container";

impl MemoryTargets {
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.blobs.lock().unwrap().clone()
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        self.0.blobs.lock().unwrap().insert(name.to_owned(), bytes);
    }

    pub fn largest(&self) -> usize {
        self.0.largest.load(Ordering::SeqCst)
    }

    /// Lets whatever comes next wait until this is dropped.
    pub async fn hold(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.0.held.write().await
    }

    pub fn reads(&self) -> usize {
        self.0.reads.load(Ordering::SeqCst)
    }

    /// Lets reads from number `from` on wait until this is dropped.
    pub async fn hold_reads(&self, from: usize) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.0.late_from.store(from, Ordering::SeqCst);
        self.0.late.write().await
    }

    fn note(&self, bytes: usize) {
        self.0.largest.fetch_max(bytes, Ordering::SeqCst);
    }
}

#[async_trait]
impl BackupTargets for MemoryTargets {
    async fn open(&self, location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError> {
        match location.container.as_str() {
            CONTAINER => Ok(Box::new(self.clone())),
            other => Err(TargetError::NotAllowed(format!("this pool may not go to {other}"))),
        }
    }
}

#[async_trait]
impl BackupTarget for MemoryTargets {
    async fn check(&self, _write: bool) -> Result<(), TargetError> {
        let _turn = self.0.held.read().await;
        Ok(())
    }

    async fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, TargetError> {
        if self.0.blobs.lock().unwrap().contains_key(name) {
            return Err(TargetError::Exists(name.to_owned()));
        }
        Ok(Box::new(MemoryBlob { targets: self.clone(), name: name.to_owned(), bytes: Vec::new() }))
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, TargetError> {
        Ok(self.0.blobs.lock().unwrap().get(name).map(|blob| blob.len() as u64))
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, TargetError> {
        let _turn = self.0.held.read().await;
        let number = self.0.reads.fetch_add(1, Ordering::SeqCst) + 1;
        let late_from = self.0.late_from.load(Ordering::SeqCst);
        let _late = if late_from != 0 && number >= late_from { Some(self.0.late.read().await) } else { None };
        self.note(length);
        let blobs = self.0.blobs.lock().unwrap();
        let blob = blobs.get(name).ok_or_else(|| TargetError::Missing(name.to_owned()))?;
        let start = usize::try_from(offset).unwrap();
        Ok(Bytes::copy_from_slice(&blob[start..start + length]))
    }
}

struct MemoryBlob {
    targets: MemoryTargets,
    name: String,
    bytes: Vec<u8>,
}

#[async_trait]
impl BlobWriter for MemoryBlob {
    async fn write(&mut self, bytes: Bytes) -> Result<(), TargetError> {
        let _turn = self.targets.0.held.read().await;
        self.targets.note(bytes.len());
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), TargetError> {
        self.targets.put(&self.name, self.bytes);
        Ok(())
    }
}
