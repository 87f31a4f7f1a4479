//! What the engine remembers in memory: the last operations, to settle lost answers, and the last commits,
//! to feed watchers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use host::{Change, EngineError, OperationId, Revision, Watch, WatchBatch};
use tokio::sync::watch;

use super::State;
use super::table::REMEMBERED_OPERATIONS;

/// The ring of operations, as on disk.
#[derive(Debug)]
pub(super) struct Operations {
    revisions: HashMap<OperationId, u64>,
    order: VecDeque<OperationId>,
}

impl Operations {
    /// `stored` in order of revision, oldest first.
    pub(super) fn from_sorted(stored: Vec<(u64, OperationId)>) -> Self {
        let mut operations = Self { revisions: HashMap::new(), order: VecDeque::new() };
        for (revision, operation) in stored {
            operations.remember(revision, operation);
        }
        operations
    }

    pub(super) fn revision(&self, operation: OperationId) -> Option<u64> {
        self.revisions.get(&operation).copied()
    }

    pub(super) fn remember(&mut self, revision: u64, operation: OperationId) {
        self.revisions.insert(operation, revision);
        self.order.push_back(operation);
        if self.order.len() as u64 > REMEMBERED_OPERATIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.revisions.remove(&oldest);
        }
    }
}

/// The last commits, without a gap, bounded in number and bytes.
#[derive(Debug)]
pub(super) struct History {
    /// The revision of the first batch, or of the next commit where there is none.
    first: u64,
    batches: VecDeque<(Arc<WatchBatch>, usize)>,
    bytes: usize,
    max_batches: usize,
    max_bytes: usize,
}

impl History {
    /// Empty, after a start at `revision`.
    pub(super) fn new(revision: u64, max_batches: usize, max_bytes: usize) -> Self {
        Self { first: revision + 1, batches: VecDeque::new(), bytes: 0, max_batches, max_bytes }
    }

    /// `batch` is of the revision after the last one.
    pub(super) fn push(&mut self, batch: WatchBatch) {
        let bytes = batch_bytes(&batch);
        self.bytes += bytes;
        self.batches.push_back((Arc::new(batch), bytes));
        while self.batches.len() > self.max_batches || self.bytes > self.max_bytes {
            let Some((_, bytes)) = self.batches.pop_front() else { break };
            self.bytes -= bytes;
            self.first += 1;
        }
    }

    /// The commit after `revision`; `None` while there is none yet.
    fn after(&self, revision: u64) -> Result<Option<Arc<WatchBatch>>, EngineError> {
        let Some(index) = revision.saturating_add(1).checked_sub(self.first) else {
            return Err(EngineError::Compacted(Revision(self.first)));
        };
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        Ok(self.batches.get(index).map(|(batch, _)| batch.clone()))
    }
}

/// Follows the history from a revision on.
pub(super) struct HistoryWatch {
    state: Arc<State>,
    current: watch::Receiver<u64>,
    seen: u64,
}

impl HistoryWatch {
    pub(super) fn new(state: Arc<State>, from: Revision) -> Self {
        let current = state.current.subscribe();
        Self { state, current, seen: from.0 }
    }

    pub(super) fn check(&self) -> Result<(), EngineError> {
        self.state.history.lock().after(self.seen).map(drop)
    }
}

#[async_trait]
impl Watch for HistoryWatch {
    async fn next(&mut self) -> Result<WatchBatch, EngineError> {
        loop {
            // Marked as seen before looking, so that a commit in between wakes us up.
            self.current.borrow_and_update();
            self.state.check()?;
            let batch = self.state.history.lock().after(self.seen)?;
            if let Some(batch) = batch {
                self.seen = batch.revision.0;
                return Ok(Arc::unwrap_or_clone(batch));
            }
            if self.current.changed().await.is_err() {
                return Err(self.state.unavailable());
            }
        }
    }
}

fn batch_bytes(batch: &WatchBatch) -> usize {
    let changes = batch.changes.iter().map(|change| match change {
        Change::Put(entry) => entry.key.len() + entry.value.len(),
        Change::Deleted { key } => key.len(),
    });
    // What a batch costs beside its bytes, roughly.
    const OVERHEAD: usize = 128;
    OVERHEAD + changes.sum::<usize>()
}
