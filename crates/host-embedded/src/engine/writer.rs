//! The writer thread: drains the queue into one synced transaction, then answers.

use std::collections::HashMap;
use std::mem::size_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use host::{Change, Commit, CommitOutcome, EngineError, Entry, Mutation, OperationId, Revision, WatchBatch};
use redb::{Database, Durability, Table, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::backend::Guard;
use super::history::Operations;
use super::{State, check_reserve, table};
use crate::disk::Directory;

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

pub(super) enum Job {
    Commit {
        commit: Commit,
        bytes: usize,
        reply: Reply<CommitOutcome>,
        /// The commit's share of the queue, given back once it is taken from it.
        room: OwnedSemaphorePermit,
    },
    Settle {
        operation: OperationId,
        reply: Reply<Option<Revision>>,
    },
}

impl Job {
    fn bytes(&self) -> usize {
        match self {
            Job::Commit { bytes, .. } => *bytes,
            Job::Settle { .. } => size_of::<OperationId>(),
        }
    }
}

/// What a commit of the group came to, true once the transaction is durable.
enum Staged {
    New(u64),
    /// Applied by an earlier group.
    AlreadyApplied(u64),
    /// Compared only, against state that the group may have changed.
    Unwritten(u64),
    Conflict(Vec<u8>),
    Refused(EngineError),
}

/// Changes of the group that the rest of the engine learns of after the sync.
struct Group {
    revision: u64,
    operations: HashMap<OperationId, u64>,
    batches: Vec<WatchBatch>,
}

pub(super) struct Writer {
    pub(super) database: Arc<Database>,
    pub(super) state: Arc<State>,
    pub(super) guard: Arc<Guard>,
    pub(super) operations: Operations,
    pub(super) directory: Option<Arc<dyn Directory>>,
    pub(super) group_commits: usize,
    pub(super) group_bytes: usize,
    pub(super) reserve_bytes: u64,
}

impl Writer {
    /// Ends when the engine is dropped and the queue is empty.
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(first) = jobs.blocking_recv() {
            let mut bytes = first.bytes();
            let mut group = vec![first];
            while group.len() < self.group_commits
                && bytes < self.group_bytes
                && let Ok(next) = jobs.try_recv()
            {
                bytes += next.bytes();
                group.push(next);
            }
            self.serve(group);
        }
    }

    fn serve(&mut self, jobs: Vec<Job>) {
        let mut commits = Vec::new();
        let mut settles = Vec::new();
        let mut replies = Vec::new();
        for job in jobs {
            match job {
                Job::Commit { commit, bytes: _, reply, room } => {
                    commits.push(commit);
                    replies.push(reply);
                    drop(room);
                }
                Job::Settle { operation, reply } => settles.push((operation, reply)),
            }
        }
        let outcomes = self.commit_group(commits);
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // A caller that went away settles by operation id.
            let _ = reply.send(outcome);
        }
        for (operation, reply) in settles {
            let revision = self.operations.revision(operation).map(Revision);
            let _ = reply.send(self.state.check().map(|()| revision));
        }
    }

    /// One outcome for each commit, in order.
    fn commit_group(&mut self, commits: Vec<Commit>) -> Vec<Result<CommitOutcome, EngineError>> {
        if commits.is_empty() {
            return Vec::new();
        }
        let count = commits.len();
        if self.state.check().is_err() {
            return (0..count).map(|_| Err(self.state.unavailable())).collect();
        }
        self.guard.transaction_starts();
        let staged = catch_unwind(AssertUnwindSafe(|| self.stage(commits)));
        let (transaction, group, staged) = match staged {
            Ok(Ok(staged)) => staged,
            Ok(Err(error)) => return self.fail_group(count, &error.to_string()),
            Err(_) => return self.fail_group(count, "redb panicked"),
        };
        let finished = catch_unwind(AssertUnwindSafe(|| {
            if group.batches.is_empty() {
                transaction.abort().map_err(redb::Error::from)
            } else {
                transaction.commit().map_err(redb::Error::from)
            }
        }));
        match finished {
            Ok(Ok(())) => self.publish(group),
            Ok(Err(error)) => return self.fail_staged(staged, &error.to_string()),
            Err(_) => return self.fail_staged(staged, "redb panicked"),
        }
        staged.into_iter().map(outcome).collect()
    }

    /// Applies the commits to a transaction that is not committed yet.
    fn stage(&self, commits: Vec<Commit>) -> Result<(WriteTransaction, Group, Vec<Staged>), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        let writable = check_reserve(self.directory.as_deref(), self.reserve_bytes);
        let before = *self.state.current.borrow();
        let mut group = Group { revision: before, operations: HashMap::new(), batches: Vec::new() };
        let mut staged = Vec::with_capacity(commits.len());
        {
            let mut data = transaction.open_table(table::DATA)?;
            for commit in commits {
                staged.push(self.stage_one(&mut data, &mut group, commit, writable.is_ok())?);
            }
            if !group.batches.is_empty() {
                let mut operations = transaction.open_table(table::OPERATIONS)?;
                for batch in &group.batches {
                    let slot = batch.revision.0 % table::REMEMBERED_OPERATIONS;
                    operations.insert(slot, &table::encode_operation(batch.revision.0, batch.operation))?;
                }
                transaction.open_table(table::META)?.insert(table::REVISION, group.revision)?;
            }
        }
        Ok((transaction, group, staged))
    }

    fn stage_one(
        &self,
        data: &mut Table<'_, &'static [u8], &'static [u8]>,
        group: &mut Group,
        commit: Commit,
        writable: bool,
    ) -> Result<Staged, redb::Error> {
        if let Some(revision) = self.operations.revision(commit.operation) {
            return Ok(Staged::AlreadyApplied(revision));
        }
        if let Some(revision) = group.operations.get(&commit.operation) {
            // A repetition within the group shares the fate of the first.
            return Ok(Staged::New(*revision));
        }
        for expectation in commit.expectations {
            if table::key_revision(data, &expectation.key)? != expectation.revision {
                return Ok(Staged::Conflict(expectation.key));
            }
        }
        if commit.mutations.is_empty() {
            return Ok(Staged::Unwritten(group.revision));
        }
        if !writable {
            return Ok(Staged::Refused(EngineError::DiskFull));
        }
        group.revision += 1;
        let revision = Revision(group.revision);
        let mut changes = Vec::with_capacity(commit.mutations.len());
        for mutation in commit.mutations {
            match mutation {
                Mutation::Put { key, value } => {
                    data.insert(key.as_slice(), table::encode(revision.0, &value).as_slice())?;
                    changes.push(Change::Put(Entry { key, value, revision }));
                }
                Mutation::Delete { key } => {
                    if data.remove(key.as_slice())?.is_some() {
                        changes.push(Change::Deleted { key });
                    }
                }
            }
        }
        group.operations.insert(commit.operation, revision.0);
        group.batches.push(WatchBatch { revision, operation: commit.operation, changes });
        Ok(Staged::New(revision.0))
    }

    /// After the sync, before any answer: whoever was told of a commit finds it everywhere.
    fn publish(&mut self, group: Group) {
        if group.batches.is_empty() {
            return;
        }
        let mut history = self.state.history.lock();
        for batch in group.batches {
            self.operations.remember(batch.revision.0, batch.operation);
            history.push(batch);
        }
        drop(history);
        self.state.current.send_replace(group.revision);
    }

    /// The transaction failed before its commit began: nothing of it is on disk as far as a reader can tell.
    fn fail_group(&self, count: usize, reason: &str) -> Vec<Result<CommitOutcome, EngineError>> {
        self.state.fail(&format!("writing failed: {reason}"));
        (0..count).map(|_| Err(self.failed_write())).collect()
    }

    fn fail_staged(&self, staged: Vec<Staged>, reason: &str) -> Vec<Result<CommitOutcome, EngineError>> {
        self.state.fail(&format!("writing failed: {reason}"));
        let unknown = self.guard.may_have_committed();
        staged
            .into_iter()
            .map(|staged| match staged {
                Staged::New(_) if unknown => Err(EngineError::OutcomeUnknown),
                // These lean on commits whose fate is unknown.
                Staged::Unwritten(_) | Staged::Conflict(_) if unknown => Err(self.state.unavailable()),
                Staged::New(_) | Staged::Unwritten(_) | Staged::Conflict(_) => Err(self.failed_write()),
                Staged::AlreadyApplied(_) | Staged::Refused(_) => outcome(staged),
            })
            .collect()
    }

    fn failed_write(&self) -> EngineError {
        if self.guard.disk_was_full() { EngineError::DiskFull } else { self.state.unavailable() }
    }
}

fn outcome(staged: Staged) -> Result<CommitOutcome, EngineError> {
    match staged {
        Staged::New(revision) | Staged::AlreadyApplied(revision) | Staged::Unwritten(revision) => {
            Ok(CommitOutcome::Committed(Revision(revision)))
        }
        Staged::Conflict(key) => Ok(CommitOutcome::Conflict { key }),
        Staged::Refused(error) => Err(error),
    }
}
