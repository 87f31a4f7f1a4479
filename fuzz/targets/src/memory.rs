//! A host in memory: an engine and a log without a disk.

use async_trait::async_trait;
use host::{
    Commit, CommitOutcome, Engine, EngineError, Entry, Log, LogError, Mutation, OperationId, Revision, Scan,
    SegmentId, SegmentInfo, Watch,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;

#[derive(Default)]
pub(crate) struct MemoryEngine(Mutex<Contents>);

#[derive(Default)]
struct Contents {
    revision: u64,
    entries: BTreeMap<Vec<u8>, Entry>,
}

struct Pages(Revision, std::vec::IntoIter<Entry>);

#[async_trait]
impl Scan for Pages {
    fn revision(&self) -> Revision {
        self.0
    }

    async fn next_page(&mut self, limit: usize) -> Result<Vec<Entry>, EngineError> {
        Ok(self.1.by_ref().take(limit).collect())
    }
}

#[async_trait]
impl Engine for MemoryEngine {
    async fn get(&self, key: &[u8]) -> Result<Option<Entry>, EngineError> {
        Ok(self.0.lock().entries.get(key).cloned())
    }

    async fn scan(&self, prefix: &[u8]) -> Result<Box<dyn Scan>, EngineError> {
        let contents = self.0.lock();
        let found = contents.entries.values().filter(|entry| entry.key.starts_with(prefix)).cloned();
        Ok(Box::new(Pages(Revision(contents.revision), found.collect::<Vec<_>>().into_iter())))
    }

    async fn commit(&self, commit: Commit) -> Result<CommitOutcome, EngineError> {
        let mut contents = self.0.lock();
        for expected in &commit.expectations {
            if contents.entries.get(&expected.key).map(|entry| entry.revision) != expected.revision {
                return Ok(CommitOutcome::Conflict { key: expected.key.clone() });
            }
        }
        contents.revision += 1;
        let revision = Revision(contents.revision);
        for mutation in commit.mutations {
            match mutation {
                Mutation::Put { key, value } => {
                    contents.entries.insert(key.clone(), Entry { key, value, revision });
                }
                Mutation::Delete { key } => {
                    contents.entries.remove(&key);
                }
            }
        }
        Ok(CommitOutcome::Committed(revision))
    }

    async fn settle(&self, _: OperationId) -> Result<Option<Revision>, EngineError> {
        unreachable!("no answer is lost here")
    }

    async fn watch(&self, _: Revision) -> Result<Box<dyn Watch>, EngineError> {
        unreachable!("nobody watches")
    }

    async fn health(&self) -> Result<Revision, EngineError> {
        Ok(Revision(self.0.lock().revision))
    }
}

/// Segments, each with the place of its next append.
#[derive(Default)]
pub(crate) struct MemoryLog(Mutex<Vec<(Vec<u8>, usize)>>);

impl MemoryLog {
    pub fn of(segments: &[&[u8]]) -> Self {
        Self(Mutex::new(segments.iter().map(|bytes| (bytes.to_vec(), bytes.len())).collect()))
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        let segments = self.0.lock();
        let info = |(id, (bytes, _)): (u32, &(Vec<u8>, usize))| SegmentInfo {
            id: SegmentId(id),
            bytes: bytes.len() as u64,
        };
        Ok((0..).zip(segments.iter()).map(info).collect())
    }

    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
        let segments = self.0.lock();
        let (bytes, _) = segments.get(segment.0 as usize).ok_or(LogError::NoSuchSegment(segment))?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        Ok(bytes[start..start.saturating_add(max).min(bytes.len())].to_vec())
    }

    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError> {
        let mut segments = self.0.lock();
        let (bytes, next) = segments.get_mut(segment.0 as usize).ok_or(LogError::NoSuchSegment(segment))?;
        *next = usize::try_from(end).unwrap();
        bytes.truncate(*next);
        Ok(())
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        let mut segments = self.0.lock();
        segments.push((Vec::new(), 0));
        Ok(SegmentId(u32::try_from(segments.len() - 1).unwrap()))
    }

    async fn append(&self, more: Vec<u8>) -> Result<(), LogError> {
        let mut segments = self.0.lock();
        let (bytes, next) = segments.last_mut().ok_or(LogError::NoSuchSegment(SegmentId(0)))?;
        bytes.resize(*next, 0);
        bytes.extend(more);
        *next = bytes.len();
        Ok(())
    }
}
