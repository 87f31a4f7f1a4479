//! One task that commits: it takes what waits, checks it, and writes it with the pool state in one engine commit.
//!
//! The pool state is compared in every commit, so a second core on the same store is noticed at its first write.

use crate::codec;
use crate::pool_state::{CheckpointMark, PoolState};
use crate::record::{Record, RecordId, Stamp, engine_key, kind};
use crate::store::{CommitError, Committed, Observer, Sealing, Table, Transaction};
use crypto::SecretBytes;
use host::{Commit, CommitOutcome, Engine, EngineError, Expectation, Mutation, OperationId, Revision};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Mutations in one engine commit, pool state included; etcd's limit is 128.
const MAX_MUTATIONS: usize = 120;
/// A transaction of more mutations than this goes alone: a version may have 31 KB of tags, and an engine takes no group over
/// its limit.
const MAX_SHARED_MUTATIONS: usize = 16;
/// Bytes of values in one engine commit, roughly; etcd's limit is 1.5 MiB.
const MAX_BYTES: usize = 1 << 20;
/// How often the engine is asked what became of a commit whose answer was lost.
const SETTLE_TRIES: u32 = 5;

pub(crate) enum Request {
    Commit { transaction: Transaction, answer: oneshot::Sender<Result<Committed, CommitError>> },
    Drained { event_id: [u8; 16] },
}

struct Waiting {
    transaction: Transaction,
    answer: oneshot::Sender<Result<Committed, CommitError>>,
}

pub(crate) struct Committer {
    engine: Arc<dyn Engine>,
    sealing: Sealing,
    table: Table,
    state: PoolState,
    state_revision: Revision,
    state_mac: [u8; 32],
    checkpoint: Arc<dyn Fn() -> CheckpointMark + Send + Sync>,
    observer: Observer,
    waiting: VecDeque<Waiting>,
    drained: Vec<[u8; 16]>,
    /// Set once the store cannot be trusted to be ours any more; everything afterwards is refused with it.
    failed: Option<String>,
}

/// What one transaction changed, for the observer.
struct Applied {
    puts: Vec<Record>,
    deletes: Vec<RecordId>,
}

/// What one group writes, built up transaction by transaction.
struct Group {
    generation: u64,
    state: PoolState,
    touched: HashSet<Vec<u8>>,
    expectations: Vec<Expectation>,
    mutations: Vec<Mutation>,
    bytes: usize,
    /// Nothing joins what is large by itself.
    alone: bool,
    changes: Vec<Applied>,
    answers: Vec<oneshot::Sender<Result<Committed, CommitError>>>,
}

impl Committer {
    pub fn new(
        engine: Arc<dyn Engine>,
        sealing: Sealing,
        table: Table,
        state: PoolState,
        state_revision: Revision,
        checkpoint: Arc<dyn Fn() -> CheckpointMark + Send + Sync>,
        observer: Observer,
    ) -> Self {
        let state_mac = sealing.names.mac(kind::POOL_STATE, b"");
        Self {
            engine,
            sealing,
            table,
            state,
            state_revision,
            state_mac,
            checkpoint,
            observer,
            waiting: VecDeque::new(),
            drained: Vec::new(),
            failed: None,
        }
    }

    pub async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            if self.waiting.is_empty() {
                match queue.recv().await {
                    Some(request) => self.take(request),
                    None => break,
                }
            }
            while let Ok(request) = queue.try_recv() {
                self.take(request);
            }
            self.commit_group().await;
        }
        while !self.drained.is_empty() && self.failed.is_none() {
            let before = self.drained.len();
            let group = self.cleanup_only();
            self.write(group).await;
            if self.drained.len() == before {
                break;
            }
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Commit { transaction, answer } => {
                self.waiting.push_back(Waiting { transaction, answer })
            }
            Request::Drained { event_id } => self.drained.push(event_id),
        }
    }

    async fn commit_group(&mut self) {
        let mut group = self.new_group();
        let mut deferred = VecDeque::new();
        while let Some(waiting) = self.waiting.pop_front() {
            if let Some(reason) = &self.failed {
                let _ = waiting.answer.send(Err(CommitError::Unavailable(reason.clone())));
                continue;
            }
            if !group.has_room_for(&waiting.transaction) {
                self.waiting.push_front(waiting);
                break;
            }
            let ids = self.touched_keys(&waiting.transaction);
            if ids.iter().any(|key| group.touched.contains(key)) {
                // It depends on what this group writes: decide about it once that is known.
                deferred.push_back(waiting);
                continue;
            }
            if self.expectations_hold(&waiting.transaction) {
                self.add(&mut group, waiting, ids);
            } else {
                let _ = waiting.answer.send(Err(CommitError::Conflict));
            }
        }
        deferred.append(&mut self.waiting);
        self.waiting = deferred;
        if !group.answers.is_empty() {
            self.add_cleanup(&mut group);
            self.write(group).await;
        }
    }

    fn new_group(&self) -> Group {
        Group {
            generation: self.state.generation + 1,
            state: PoolState { generation: self.state.generation + 1, ..self.state },
            touched: HashSet::new(),
            expectations: Vec::new(),
            mutations: Vec::new(),
            bytes: 0,
            alone: false,
            changes: Vec::new(),
            answers: Vec::new(),
        }
    }

    fn cleanup_only(&mut self) -> Group {
        let mut group = self.new_group();
        self.add_cleanup(&mut group);
        group
    }

    fn key(&self, id: &RecordId) -> Vec<u8> {
        engine_key(id.kind(), &id.mac(&self.sealing.names))
    }

    fn touched_keys(&self, transaction: &Transaction) -> Vec<Vec<u8>> {
        let expected = transaction.expectations.iter().map(|(id, _)| self.key(id));
        let put = transaction.puts.iter().map(|record| self.key(&record.id()));
        let deleted = transaction.deletes.iter().map(|id| self.key(id));
        expected.chain(put).chain(deleted).collect()
    }

    fn expectations_hold(&self, transaction: &Transaction) -> bool {
        transaction
            .expectations
            .iter()
            .all(|(id, expected)| self.table.get(&self.key(id)).map(|(stamp, _)| *stamp) == *expected)
    }

    fn add(&self, group: &mut Group, waiting: Waiting, touched: Vec<Vec<u8>>) {
        group.touched.extend(touched);
        group.alone = mutations(&waiting.transaction) > MAX_SHARED_MUTATIONS;
        let Transaction { puts, deletes, event, .. } = waiting.transaction;
        for record in &puts {
            self.put(group, record);
        }
        self.put(group, &Record::Outbox(event));
        for id in &deletes {
            self.delete(group, id);
        }
        group.changes.push(Applied { puts, deletes });
        group.answers.push(waiting.answer);
    }

    fn put(&self, group: &mut Group, record: &Record) {
        let id = record.id();
        let name_mac = id.mac(&self.sealing.names);
        let key = engine_key(id.kind(), &name_mac);
        self.expect_unchanged(group, &key);
        if let Some((old, _)) = self.table.get(&key) {
            group.state.remove(&self.sealing.names, id.kind(), &name_mac, old.0);
        }
        group.state.insert(&self.sealing.names, id.kind(), &name_mac, group.generation);
        let content = codec::encode(record);
        clear_copy(group, &name_mac, &content);
        let value = self.sealing.seal(id.kind(), &name_mac, group.generation, &content);
        group.bytes += value.len();
        group.mutations.push(Mutation::Put { key, value });
    }

    fn delete(&self, group: &mut Group, id: &RecordId) {
        let name_mac = id.mac(&self.sealing.names);
        let key = engine_key(id.kind(), &name_mac);
        let Some((old, _)) = self.table.get(&key) else { return };
        self.expect_unchanged(group, &key);
        group.state.remove(&self.sealing.names, id.kind(), &name_mac, old.0);
        group.mutations.push(Mutation::Delete { key });
    }

    /// What this committer's table says must still be so in the engine.
    fn expect_unchanged(&self, group: &mut Group, key: &[u8]) {
        let revision = self.table.get(key).map(|(_, revision)| *revision);
        group.expectations.push(Expectation { key: key.to_vec(), revision });
    }

    fn add_cleanup(&mut self, group: &mut Group) {
        let room = MAX_MUTATIONS.saturating_sub(group.mutations.len() + 1);
        for event_id in self.drained.iter().take(room) {
            self.delete(group, &RecordId::Outbox(*event_id));
        }
    }

    async fn write(&mut self, mut group: Group) {
        group.state.checkpoint = (self.checkpoint)();
        let state = codec::encode_pool_state(&group.state);
        let state_key = engine_key(kind::POOL_STATE, &self.state_mac);
        let value = self.sealing.seal(kind::POOL_STATE, &self.state_mac, group.generation, &state);
        group.expectations.push(Expectation { key: state_key.clone(), revision: Some(self.state_revision) });
        group.mutations.push(Mutation::Put { key: state_key, value });
        let mut operation = [0; 16];
        crypto::digest::random(&mut operation);
        let operation = OperationId(operation);
        let commit =
            Commit { operation, expectations: group.expectations, mutations: group.mutations.clone() };
        let outcome = match self.engine.commit(commit).await {
            Err(EngineError::OutcomeUnknown) => self.settle(operation).await,
            outcome => outcome,
        };
        let error = match outcome {
            Ok(CommitOutcome::Committed(revision)) => {
                self.applied(group.generation, group.state, revision, &group.mutations);
                let stamp = Stamp(group.generation);
                // Here, where commits have their order, and before anybody hears of them: what the observer shows is
                // never older than what was acknowledged, and a purge is never overtaken by what it purged.
                for change in group.changes {
                    (self.observer)(stamp, change.puts, change.deletes);
                }
                for answer in group.answers {
                    let _ = answer.send(Ok(Committed { stamp }));
                }
                return;
            }
            Ok(CommitOutcome::Conflict { .. }) => self.fail("another core has written to this store".into()),
            // Nothing was written, and the next attempt may succeed.
            Err(EngineError::DiskFull) => CommitError::DiskFull,
            Err(error @ EngineError::TooLarge { .. }) => CommitError::Unavailable(error.to_string()),
            Err(error) => self.fail(error.to_string()),
        };
        for answer in group.answers {
            let _ = answer.send(Err(error.clone()));
        }
    }

    fn applied(&mut self, generation: u64, state: PoolState, revision: Revision, mutations: &[Mutation]) {
        for mutation in mutations {
            match mutation {
                Mutation::Put { key, .. } => {
                    self.table.insert(key.clone(), (Stamp(generation), revision));
                }
                Mutation::Delete { key } => {
                    self.table.remove(key);
                }
            }
        }
        self.state = state;
        self.state_revision = revision;
        let sealing = &self.sealing;
        let table = &self.table;
        self.drained.retain(|event_id| {
            let id = RecordId::Outbox(*event_id);
            table.contains_key(&engine_key(id.kind(), &id.mac(&sealing.names)))
        });
    }

    async fn settle(&self, operation: OperationId) -> Result<CommitOutcome, EngineError> {
        for attempt in 0..SETTLE_TRIES {
            match self.engine.settle(operation).await {
                Ok(Some(revision)) => return Ok(CommitOutcome::Committed(revision)),
                // Not applied, and by its name it never will be: the operation is not repeated.
                Ok(None) => break,
                Err(error) if attempt + 1 == SETTLE_TRIES => return Err(error),
                Err(_) => tokio::task::yield_now().await,
            }
        }
        Err(EngineError::Unavailable("a commit was not applied".into()))
    }

    fn fail(&mut self, reason: String) -> CommitError {
        tracing::error!(reason, "the store refuses further writes");
        self.failed = Some(reason.clone());
        CommitError::Unavailable(reason)
    }
}

impl Group {
    /// A transaction that is too large for any group goes alone; the engine has the last word on it.
    fn has_room_for(&self, transaction: &Transaction) -> bool {
        let more = mutations(transaction);
        let shares = more <= MAX_SHARED_MUTATIONS && !self.alone;
        let fits = self.mutations.len() + more <= MAX_MUTATIONS && self.bytes < MAX_BYTES;
        self.answers.is_empty() || (shares && fits)
    }
}

/// The event and the pool state included.
fn mutations(transaction: &Transaction) -> usize {
    transaction.puts.len() + transaction.deletes.len() + 2
}

#[cfg(not(feature = "danger-test"))]
fn clear_copy(_group: &mut Group, _name_mac: &[u8; 32], _content: &SecretBytes) {}

#[cfg(feature = "danger-test")]
fn clear_copy(group: &mut Group, name_mac: &[u8; 32], content: &SecretBytes) {
    if std::env::var_os("HOLDFAST_DANGER_NO_SEALING").is_some_and(|value| value == "1") {
        let key = engine_key(kind::CLEAR, name_mac);
        group.mutations.push(Mutation::Put { key, value: content.danger_expose().to_vec() });
    }
}
