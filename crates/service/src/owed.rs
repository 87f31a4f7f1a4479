//! Events of committed changes that the log has refused, as a disk was full.
//!
//! The change stands, so its event must not wait for the next start while others are written: it goes in before anything
//! else does, and until then nothing is answered and nothing changed.

use crate::error::Error;
use crate::pool::{CommittedLeaf, Pool};
use crate::tasks::to_its_end;
use audit::event::Event;
use audit::{AuditError, Leaf, Receipt};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

#[derive(Default)]
pub(crate) struct Owed {
    /// Read by each request, without the lock.
    any: AtomicBool,
    leaves: Mutex<VecDeque<Leaf>>,
}

impl Owed {
    async fn push(&self, leaf: Leaf) {
        let mut leaves = self.leaves.lock().await;
        leaves.push_back(leaf);
        self.any.store(true, Ordering::Release);
    }
}

impl Pool {
    /// Appends the event of a request that has taken `taken` so far.
    pub(crate) async fn append(self: &Arc<Self>, leaf: Leaf, taken: Duration) -> Result<Receipt, AuditError> {
        self.settle().await?;
        self.audit().append_after(leaf, taken).await
    }

    /// Appends an event that is the pool's own, and no request's.
    pub(crate) async fn append_own(self: &Arc<Self>, event: &Event) -> Result<(), AuditError> {
        self.append(self.seal_event(event), Duration::ZERO).await.map(drop)
    }

    /// Refuses a change whose event the log would not take, before it is made.
    pub(crate) async fn check_log(self: &Arc<Self>) -> Result<(), Error> {
        self.audit().check()?;
        Ok(self.settle().await?)
    }

    /// Appends what is owed.
    pub(crate) async fn settle(self: &Arc<Self>) -> Result<(), AuditError> {
        if !self.owed().any.load(Ordering::Acquire) {
            return Ok(());
        }
        let pool = self.clone();
        // Whoever asked may leave: an event must not be taken for owed that was handed in.
        to_its_end(async move {
            let owed = pool.owed();
            let mut leaves = owed.leaves.lock().await;
            while let Some(leaf) = leaves.front() {
                pool.audit().append(leaf.clone()).await?;
                pool.store().drained(leaf.event_id()).await;
                leaves.pop_front();
            }
            owed.any.store(false, Ordering::Release);
            Ok(())
        })
        .await
    }

    /// Brings the event of a commit into the log. Where that refuses it the caller is told that the service is not
    /// available, which is the truth.
    pub(crate) async fn log_committed(&self, CommittedLeaf(leaf): CommittedLeaf) -> Result<Receipt, Error> {
        let event_id = leaf.event_id();
        match self.audit().append_committed(leaf.clone()).await {
            Ok(receipt) => {
                self.store().drained(event_id).await;
                Ok(receipt)
            }
            Err(error) => {
                tracing::error!(%error, "a change was made whose event the log does not take; nothing is answered until it does");
                self.owed().push(leaf).await;
                Err(error.into())
            }
        }
    }
}
