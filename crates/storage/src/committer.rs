//! One task that commits: it takes what waits, checks it, and writes it with the pool state in one engine commit.
//!
//! The pool state is compared in every commit, so a second core on the same store is noticed at its first write.

use crate::codec;
use crate::pool_state::{CheckpointMark, PoolState};
use crate::record::{Place, Record, RecordId, Stamp, engine_key, kind, parse_key};
use crate::store::{CommitError, Committed, Observer, Sealing, Table, Transaction};
use crypto::SecretBytes;
use host::{
    Commit, CommitOutcome, Engine, EngineError, Entry, Expectation, Mutation, OperationId, Revision, Scan,
};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::sync::oneshot;

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
    Mark,
    Special(Special),
}

type Answer = oneshot::Sender<Result<Committed, CommitError>>;

/// What a restore asks for. Rare, and never in a group with anything else.
pub(crate) enum Special {
    /// A space that was never used, by its number.
    NewSpace { answer: oneshot::Sender<Result<u32, CommitError>> },
    /// Writes records that nobody sees.
    Stage { space: u32, records: Vec<Record>, answer: Answer },
    /// Makes what was staged all that there is of what a restore replaces, together with a transaction on the rest.
    Switch { space: u32, transaction: Transaction, applied: Applying, answer: Answer },
    /// What was staged is not wanted.
    Discard { space: u32 },
}

/// Called between the commit and its acknowledgement.
pub(crate) type Applying = Box<dyn FnOnce(Stamp) + Send + Sync>;

struct Waiting {
    transaction: Transaction,
    answer: oneshot::Sender<Result<Committed, CommitError>>,
}

pub(crate) struct Committer {
    engine: Arc<dyn Engine>,
    sealing: Arc<Sealing>,
    table: Table,
    state: PoolState,
    state_revision: Revision,
    state_mac: [u8; 32],
    checkpoint: Arc<dyn Fn() -> CheckpointMark + Send + Sync>,
    observer: Observer,
    waiting: VecDeque<Waiting>,
    drained: Vec<[u8; 16]>,
    specials: VecDeque<Special>,
    /// How far the log has come is to be written down, though nothing else is.
    marking: bool,
    /// What may be staged in: how many records there are in each space, and their digest. They are in no table, which would
    /// hold them beside what is in use.
    staged: HashMap<u32, PoolState>,
    /// Looks for what was replaced, or staged for nothing; it is removed when there is nothing else to do.
    sweep: Option<Sweep>,
    /// As in `state`, for whoever reads a snapshot.
    space: Arc<AtomicU32>,
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
    /// A space that this is staged in, and what it holds then.
    staged: Option<(u32, PoolState)>,
    applied: Option<Applying>,
    changes: Vec<Applied>,
    answers: Vec<oneshot::Sender<Result<Committed, CommitError>>>,
}

impl Committer {
    pub fn new(
        engine: Arc<dyn Engine>,
        sealing: Arc<Sealing>,
        (table, has_garbage): (Table, bool),
        (state, state_revision): (PoolState, Revision),
        space: Arc<AtomicU32>,
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
            specials: VecDeque::new(),
            marking: false,
            staged: HashMap::new(),
            sweep: has_garbage.then(Sweep::default),
            space,
            failed: None,
        }
    }

    pub async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        loop {
            if self.waiting.is_empty() && self.specials.is_empty() && !self.marking {
                let swept = self.sweep.is_some() && self.failed.is_none();
                let next = if swept {
                    queue.try_recv()
                } else {
                    queue.recv().await.ok_or(TryRecvError::Disconnected)
                };
                match next {
                    Ok(request) => self.take(request),
                    Err(TryRecvError::Empty) => {
                        self.sweep().await;
                        continue;
                    }
                    // What is left of the garbage is found at the next start.
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            while let Ok(request) = queue.try_recv() {
                self.take(request);
            }
            if let Some(sweep) = &mut self.sweep {
                sweep.pause();
            }
            if let Some(special) = self.specials.pop_front() {
                self.serve(special).await;
            } else if self.waiting.is_empty() {
                self.mark().await;
            } else {
                self.commit_group().await;
            }
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

    /// Where the log has grown since the last commit.
    async fn mark(&mut self) {
        self.marking = false;
        if self.failed.is_none() && (self.checkpoint)() != self.state.checkpoint {
            let group = self.cleanup_only();
            self.write(group).await;
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Commit { transaction, answer } => {
                self.waiting.push_back(Waiting { transaction, answer })
            }
            Request::Drained { event_id } => self.drained.push(event_id),
            Request::Mark => self.marking = true,
            Request::Special(special) => self.specials.push_back(special),
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
            staged: None,
            applied: None,
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
        id.place(&self.sealing.names, self.state.space).key
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
        let Place { kind, mac, key } = record.id().place(&self.sealing.names, self.state.space);
        self.expect_unchanged(group, &key);
        if let Some((old, _)) = self.table.get(&key) {
            group.state.remove(&self.sealing.names, kind, &mac, old.0);
        }
        group.state.insert(&self.sealing.names, kind, &mac, group.generation);
        self.write_record(group, Place { kind, mac, key }, record);
    }

    fn write_record(&self, group: &mut Group, place: Place, record: &Record) {
        let Place { kind, mac, key } = place;
        let content = codec::encode(record);
        clear_copy(group, &mac, &content);
        let value = self.sealing.seal(kind, &mac, group.generation, &content);
        group.bytes += value.len();
        group.mutations.push(Mutation::Put { key, value });
    }

    async fn serve(&mut self, special: Special) {
        if let Some(reason) = &self.failed {
            let refused = CommitError::Unavailable(reason.clone());
            match special {
                Special::NewSpace { answer } => drop(answer.send(Err(refused))),
                Special::Stage { answer, .. } | Special::Switch { answer, .. } => {
                    drop(answer.send(Err(refused)));
                }
                Special::Discard { .. } => {}
            }
            return;
        }
        match special {
            Special::NewSpace { answer } => {
                let mut group = self.new_group();
                group.state.last_space += 1;
                let space = group.state.last_space;
                let (noted, written) = oneshot::channel();
                group.answers.push(noted);
                self.write(group).await;
                let written = written
                    .await
                    .unwrap_or_else(|_| Err(CommitError::Unavailable("the pool is closing".into())));
                if written.is_ok() {
                    self.staged.insert(space, PoolState::default());
                }
                let _ = answer.send(written.map(|_| space));
            }
            Special::Stage { space, records, answer } => self.stage(space, &records, answer).await,
            Special::Switch { space, transaction, applied, answer } => {
                self.switch(space, transaction, applied, answer).await;
            }
            // Whoever gave up while the switch was on its way asks for what is in use by now.
            Special::Discard { space } if space == self.state.space => {}
            Special::Discard { space } => {
                self.staged.remove(&space);
                self.sweep = Some(Sweep::default());
            }
        }
    }

    /// Each record once: what is there already is refused, as is a space that was not asked for.
    async fn stage(&mut self, space: u32, records: &[Record], answer: Answer) {
        let Some(mut held) = self.staged.get(&space).copied() else {
            let _ = answer.send(Err(CommitError::Conflict));
            return;
        };
        let mut group = self.new_group();
        for record in records {
            let place = record.id().place(&self.sealing.names, space);
            if !group.touched.insert(place.key.clone()) {
                let _ = answer.send(Err(CommitError::Conflict));
                return;
            }
            held.insert(&self.sealing.names, place.kind, &place.mac, group.generation);
            group.expectations.push(Expectation { key: place.key.clone(), revision: None });
            self.write_record(&mut group, place, record);
        }
        group.staged = Some((space, held));
        group.answers.push(answer);
        self.write(group).await;
    }

    /// One commit: the pool state names another space, and its digest is over what is in use then.
    async fn switch(&mut self, space: u32, transaction: Transaction, applied: Applying, answer: Answer) {
        let of_the_pool = |id: &RecordId| !kind::is_replaceable(id.kind());
        let fits = transaction.puts.iter().all(|record| of_the_pool(&record.id()))
            && transaction.deletes.iter().all(of_the_pool);
        if !fits || !self.staged.contains_key(&space) || !self.expectations_hold(&transaction) {
            let _ = answer.send(Err(CommitError::Conflict));
            return;
        }
        let mut group = self.new_group();
        for (key, (stamp, _)) in &self.table {
            if let Some((kind, mac, _)) = parse_key(key).filter(|(kind, ..)| kind::is_replaceable(*kind)) {
                group.state.remove(&self.sealing.names, kind, mac, stamp.0);
            }
        }
        group.state.absorb(&self.staged.get(&space).copied().unwrap_or_default());
        group.state.space = space;
        group.applied = Some(applied);
        let touched = self.touched_keys(&transaction);
        self.add(&mut group, Waiting { transaction, answer }, touched);
        self.write(group).await;
        if self.state.space == space {
            self.staged.remove(&space);
            self.sweep = Some(Sweep::default());
            if let Err(error) = self.read_table().await {
                self.fail(format!("what was restored cannot be read: {error}"));
            }
        }
    }

    /// Replaces what the table has of replaceable records by what is in use now, never holding both.
    async fn read_table(&mut self) -> Result<(), String> {
        self.table.retain(|key, _| !key.first().is_some_and(|kind| kind::is_replaceable(*kind)));
        for kind in kind::REPLACEABLE {
            let mut scan = self.engine.scan(&[kind]).await.map_err(|error| error.to_string())?;
            loop {
                let page = scan.next_page(MAX_MUTATIONS).await.map_err(|error| error.to_string())?;
                if page.is_empty() {
                    break;
                }
                tokio::task::yield_now().await;
                for entry in page {
                    let in_use = parse_key(&entry.key).is_some_and(|(.., held)| held == self.state.space);
                    let header = crypto::record::header(&entry.value);
                    if let (true, Ok(header)) = (in_use, header) {
                        self.table.insert(entry.key, (Stamp(header.record_version), entry.revision));
                    }
                }
            }
        }
        // The stamps are believed for their sum alone: it is of what was staged.
        let mut counted = PoolState::default();
        for (key, (stamp, _)) in &self.table {
            if let Some((kind, mac, _)) = parse_key(key).filter(|(kind, ..)| kind::is_counted(*kind)) {
                counted.insert(&self.sealing.names, kind, mac, stamp.0);
            }
        }
        if counted.digest != self.state.digest || counted.records != self.state.records {
            return Err("it is not what was staged".into());
        }
        Ok(())
    }

    /// Removes some of what nobody uses.
    async fn sweep(&mut self) {
        let Some(mut sweep) = self.sweep.take() else { return };
        let page = match sweep.next_page(self.engine.as_ref()).await {
            Ok(Some(page)) => page,
            Ok(None) => return,
            Err(error) => {
                // The next start finds it.
                tracing::error!(%error, "what a restore left over is not removed");
                return;
            }
        };
        self.sweep = Some(sweep);
        let mut group = self.new_group();
        for entry in page {
            let unused = |space: u32| space != self.state.space && !self.staged.contains_key(&space);
            if parse_key(&entry.key).is_some_and(|(.., space)| unused(space)) {
                let Entry { key, revision, .. } = entry;
                group.expectations.push(Expectation { key: key.clone(), revision: Some(revision) });
                group.mutations.push(Mutation::Delete { key });
            }
        }
        if group.mutations.is_empty() {
            tokio::task::yield_now().await;
        } else {
            self.write(group).await;
        }
    }

    fn delete(&self, group: &mut Group, id: &RecordId) {
        let Place { kind, mac, key } = id.place(&self.sealing.names, self.state.space);
        let Some((old, _)) = self.table.get(&key) else { return };
        self.expect_unchanged(group, &key);
        group.state.remove(&self.sealing.names, kind, &mac, old.0);
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
        group.mutations.push(Mutation::Put { key: state_key.clone(), value });
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
                match group.staged {
                    Some((space, held)) => {
                        self.staged.insert(space, held);
                        self.applied(group.generation, group.state, revision, &[]);
                    }
                    None => self.applied(group.generation, group.state, revision, &group.mutations),
                }
                let stamp = Stamp(group.generation);
                if let Some(applied) = group.applied {
                    applied(stamp);
                }
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
            Ok(CommitOutcome::Conflict { key }) if group.staged.is_some() && key != state_key => {
                CommitError::Conflict
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
        // Before anybody hears of it: a snapshot is of what is in use by then.
        self.space.store(state.space, Ordering::Release);
        self.state = state;
        self.state_revision = revision;
        let sealing = &self.sealing;
        let table = &self.table;
        self.drained.retain(|event_id| {
            let id = RecordId::Outbox(*event_id);
            table.contains_key(&id.place(&sealing.names, 0).key)
        });
    }

    async fn settle(&mut self, operation: OperationId) -> Result<CommitOutcome, EngineError> {
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

/// A walk through the replaceable records of all spaces, by kind and first byte of the MAC.
#[derive(Default)]
struct Sweep {
    prefixes: usize,
    /// In the midst of a prefix. Given up when something else is to be done, as the engine keeps for it what it shows.
    scan: Option<Box<dyn Scan>>,
}

impl Sweep {
    /// `None` once everything was looked at.
    async fn next_page(&mut self, engine: &dyn Engine) -> Result<Option<Vec<Entry>>, EngineError> {
        let Some(kind) = kind::REPLACEABLE.get(self.prefixes >> 8) else { return Ok(None) };
        let scan = match &mut self.scan {
            Some(scan) => scan,
            none => none.insert(engine.scan(&[*kind, self.prefixes as u8]).await?),
        };
        let page = scan.next_page(MAX_MUTATIONS - 1).await?;
        if page.is_empty() {
            self.prefixes += 1;
            self.scan = None;
        }
        Ok(Some(page))
    }

    fn pause(&mut self) {
        self.scan = None;
    }
}

impl Group {
    /// A transaction that is too large for any group goes alone; the engine has the last word on it.
    fn has_room_for(&self, transaction: &Transaction) -> bool {
        let more = mutations(transaction);
        let shares = more <= MAX_SHARED_MUTATIONS && !self.alone;
        let bytes: usize = transaction.puts.iter().map(Record::approximate_bytes).sum();
        let fits = self.mutations.len() + more <= MAX_MUTATIONS && self.bytes + bytes <= MAX_BYTES;
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
