//! Opening a store, reading all of it, and committing transactions.

use crate::codec;
use crate::committer::{Applying, Committer, Request, Special};
use crate::genesis::SignedGenesis;
use crate::pool_state::{CheckpointMark, PoolState};
use crate::record::{OutboxRecord, Record, RecordId, Stamp, UnreadableRecord, engine_key, kind, parse_key};
use crypto::SecretBytes;
use crypto::digest::hex;
use crypto::domain_secrets::DomainSecrets;
use crypto::record::{DataKey, NameKey, RecordPlace, WrappedDataKey};
use domain::guid::Guid;
use domain::pool::{Genesis, PoolClass};
use host::{
    Commit, CommitOutcome, Engine, EngineError, Entry, Expectation, Mutation, OperationId, Revision, Scan,
};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Transactions waiting for the committer, at most; beyond that callers wait.
const QUEUE: usize = 1024;
/// Entries read at a time at start.
const SCAN_PAGE: usize = 1000;
/// Entries of a snapshot read at a time.
const SNAPSHOT_PAGE: usize = 64;
/// The epoch whose data key seals the genesis record alone. It is bound to no pool, as the pool's identity is what the
/// record holds.
const GENESIS_EPOCH: u32 = 0;
const FIRST_EPOCH: u32 = 1;

/// A record with the generation at which it was written.
#[derive(Clone, Debug)]
pub struct Stamped<T> {
    pub value: T,
    pub stamp: Stamp,
}

/// Everything that a store held when it was opened.
#[derive(Debug)]
pub struct Contents {
    pub records: Vec<Stamped<Record>>,
    /// How far the audit log had come at the last commit: the log must extend this.
    pub checkpoint: CheckpointMark,
}

/// What must hold, what is written, and the event that records it: all or nothing.
#[derive(Debug)]
pub struct Transaction {
    /// For each record that the decision was based on: the stamp it had, or `None` where it was absent.
    pub expectations: Vec<(RecordId, Option<Stamp>)>,
    pub puts: Vec<Record>,
    pub deletes: Vec<RecordId>,
    pub event: OutboxRecord,
}

/// Is told what a transaction put, with the stamp that all of it has now, and what it deleted. Must not block.
pub type Observer = Arc<dyn Fn(Stamp, Vec<Record>, Vec<RecordId>) + Send + Sync>;

/// A transaction is durable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Committed {
    /// The stamp of everything that the transaction put.
    pub stamp: Stamp,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// Something the decision was based on has changed: read again and decide again.
    #[error("a record was changed by somebody else meanwhile")]
    Conflict,
    #[error("the disk is full")]
    DiskFull,
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot read the engine")]
    Engine(#[from] EngineError),
    #[error("the store holds no pool")]
    Empty,
    #[error("the store already holds another pool")]
    AlreadyFounded,
    #[error("{0}")]
    Genesis(#[from] crate::genesis::UnreadableGenesis),
    #[error("the data key of epoch {epoch} does not belong to this security domain, or is damaged")]
    DataKey { epoch: u32 },
    #[error("record {key}: {reason}")]
    Record { key: String, reason: String },
    #[error("the pool state is missing")]
    NoPoolState,
    /// A record was removed, added, or put back to an older version since the pool state was written.
    #[error(
        "the records do not match the pool state: {found} records where {expected} were committed, or one is not the version that was committed"
    )]
    DigestMismatch { found: u64, expected: u64 },
}

pub(crate) struct Sealing {
    pub names: NameKey,
    pub data_key: DataKey,
    pub pool: Guid,
    pub security_domain: Guid,
    pub class: PoolClass,
}

impl Sealing {
    pub fn place<'a>(&self, kind: u8, name_mac: &'a [u8; 32], record_version: u64) -> RecordPlace<'a> {
        let Sealing { pool, security_domain, class, .. } = *self;
        RecordPlace { pool, security_domain, class, kind, name_mac, record_version }
    }

    pub fn seal(&self, kind: u8, name_mac: &[u8; 32], record_version: u64, content: &SecretBytes) -> Vec<u8> {
        self.data_key.seal(&self.place(kind, name_mac, record_version), content)
    }
}

/// Writes the genesis record, the initial records and the first pool state of a new pool, or nothing if the store
/// holds this very pool.
pub async fn found(
    engine: &dyn Engine,
    secrets: &DomainSecrets,
    genesis: Genesis,
    initial: Vec<Record>,
) -> Result<SignedGenesis, OpenError> {
    if let Some(held) = read_genesis(engine, secrets).await? {
        return if *held.genesis() == genesis { Ok(held) } else { Err(OpenError::AlreadyFounded) };
    }
    let signed = SignedGenesis::sign(genesis, secrets.owner_key());
    let genesis = signed.genesis();
    let names = secrets.name_key();
    let (genesis_key, wrapped_genesis_key) =
        secrets.new_data_key(Guid::NIL, PoolClass::Production, GENESIS_EPOCH);
    let (data_key, wrapped_data_key) = secrets.new_data_key(genesis.pool, genesis.class, FIRST_EPOCH);
    let sealing = Sealing {
        names,
        data_key,
        pool: genesis.pool,
        security_domain: genesis.security_domain,
        class: genesis.class,
    };
    let genesis_mac = sealing.names.mac(kind::GENESIS, b"");
    let content = SecretBytes::new(signed.bytes().to_vec());
    let state_mac = sealing.names.mac(kind::POOL_STATE, b"");
    let mut state = PoolState::default();
    let mut puts = Vec::new();
    for record in initial {
        let place = record.id().place(&sealing.names, state.space);
        state.insert(&sealing.names, place.kind, &place.mac, state.generation);
        let value = sealing.seal(place.kind, &place.mac, state.generation, &codec::encode(&record));
        puts.push((place.key, value));
    }
    let state = codec::encode_pool_state(&state);
    puts.extend([
        (data_key_key(GENESIS_EPOCH), wrapped_genesis_key.0),
        (data_key_key(FIRST_EPOCH), wrapped_data_key.0),
        (engine_key(kind::GENESIS, &genesis_mac), genesis_key.seal(&genesis_place(&genesis_mac), &content)),
        (engine_key(kind::POOL_STATE, &state_mac), sealing.seal(kind::POOL_STATE, &state_mac, 0, &state)),
    ]);
    let mut operation = [0; 16];
    crypto::digest::random(&mut operation);
    let commit = Commit {
        operation: OperationId(operation),
        expectations: puts.iter().map(|(key, _)| Expectation { key: key.clone(), revision: None }).collect(),
        mutations: puts.into_iter().map(|(key, value)| Mutation::Put { key, value }).collect(),
    };
    match engine.commit(commit).await? {
        CommitOutcome::Committed(_) => Ok(signed),
        CommitOutcome::Conflict { .. } => Err(OpenError::AlreadyFounded),
    }
}

/// A pool's records, ready to be written. Reading happens once, at [`Store::open`]: afterwards the caller's index is
/// the truth, kept by what each commit returns.
pub struct Store {
    requests: mpsc::Sender<Request>,
    genesis: SignedGenesis,
    engine: Arc<dyn Engine>,
    sealing: Arc<Sealing>,
    /// Of the replaceable records that are in use.
    space: Arc<AtomicU32>,
    committer: tokio::task::JoinHandle<()>,
}

impl Store {
    /// Reads and checks everything, then starts the committer on the current runtime.
    ///
    /// `checkpoint` tells how far the audit log has come, durably; each commit writes it into the pool state.
    /// `observer` is told of each transaction, in the order of commits and before the transaction is acknowledged.
    pub async fn open(
        engine: Arc<dyn Engine>,
        secrets: &DomainSecrets,
        checkpoint: Arc<dyn Fn() -> CheckpointMark + Send + Sync>,
        observer: Observer,
    ) -> Result<(Store, Contents), OpenError> {
        let genesis = read_genesis(engine.as_ref(), secrets).await?.ok_or(OpenError::Empty)?;
        let pool = genesis.genesis();
        let epoch = FIRST_EPOCH;
        let wrapped = engine.get(&data_key_key(epoch)).await?.ok_or(OpenError::DataKey { epoch })?;
        let data_key = secrets
            .unwrap_data_key(pool.pool, pool.class, epoch, &WrappedDataKey(wrapped.value))
            .map_err(|_| OpenError::DataKey { epoch })?;
        let sealing = Sealing {
            names: secrets.name_key(),
            data_key,
            pool: pool.pool,
            security_domain: pool.security_domain,
            class: pool.class,
        };
        let (state, state_revision) = read_state(engine.as_ref(), &sealing).await?;
        let read = read_all(engine.as_ref(), &sealing, state.space).await?;
        if read.counted.digest != state.digest || read.counted.records != state.records {
            return Err(OpenError::DigestMismatch { found: read.counted.records, expected: state.records });
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let sealing = Arc::new(sealing);
        let space = Arc::new(AtomicU32::new(state.space));
        let committer = Committer::new(
            engine.clone(),
            sealing.clone(),
            (read.table, read.has_garbage),
            (state, state_revision),
            space.clone(),
            checkpoint,
            observer,
        );
        let committer = tokio::spawn(committer.run(queue));
        let contents = Contents { records: read.records, checkpoint: state.checkpoint };
        Ok((Store { requests, genesis, engine, sealing, space, committer }, contents))
    }

    pub fn genesis(&self) -> &SignedGenesis {
        &self.genesis
    }

    /// Commits, durably, together with whatever else waits. Dropping the future does not undo the commit.
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request::Commit { transaction, answer }).await.map_err(|_| closing())?;
        answered.await.map_err(|_| closing())?
    }

    /// The log has this event: its outbox record goes with the next commit.
    pub async fn drained(&self, event_id: [u8; 16]) {
        // If the committer is gone, the record stays and the next start finds the event in the log.
        let _ = self.requests.send(Request::Drained { event_id }).await;
    }

    /// Writes down how far the log has come, if it has since the last commit: from there on, what is cut off it is missed at
    /// the next start.
    pub async fn mark(&self) {
        let _ = self.requests.send(Request::Mark).await;
    }

    /// All records as they are at this moment, page by page. Nothing is staged or switched meanwhile: the caller sees to
    /// that.
    pub async fn snapshot(&self) -> Result<Snapshot, OpenError> {
        let scan = self.engine.scan(b"").await?;
        let sealing = self.sealing.clone();
        Ok(Snapshot::new(scan, sealing, self.space.load(Ordering::Acquire)))
    }

    /// A place for records that nobody sees until [`Store::switch`].
    pub async fn new_space(&self) -> Result<Staging<'_>, CommitError> {
        let (answer, answered) = oneshot::channel();
        self.special(Special::NewSpace { answer }).await?;
        let space = answered.await.map_err(|_| closing())??;
        Ok(Staging { store: self, space, switched: false })
    }

    async fn special(&self, special: Special) -> Result<(), CommitError> {
        self.requests.send(Request::Special(special)).await.map_err(|_| closing())
    }

    /// Writes what is still to be cleaned up, and how far the log came, and stops. A store that is dropped writes no mark: it
    /// may be one that did not go with its log.
    pub async fn close(self) {
        self.mark().await;
        drop(self.requests);
        let _ = self.committer.await;
    }
}

fn closing() -> CommitError {
    CommitError::Unavailable("the pool is closing".into())
}

/// Records that wait to replace all of their kinds at once. Dropped without having done so, they are removed.
pub struct Staging<'s> {
    store: &'s Store,
    space: u32,
    switched: bool,
}

impl Staging<'_> {
    /// Writes `records`, so many as an engine takes in one commit. One that was staged before is a conflict.
    pub async fn stage(&self, records: Vec<Record>) -> Result<Committed, CommitError> {
        let (answer, answered) = oneshot::channel();
        self.store.special(Special::Stage { space: self.space, records, answer }).await?;
        answered.await.map_err(|_| closing())?
    }

    /// The staged record of that name.
    pub async fn read(&self, id: &RecordId) -> Result<Option<Record>, OpenError> {
        let Store { engine, sealing, .. } = self.store;
        let place = id.place(&sealing.names, self.space);
        let Some(entry) = engine.get(&place.key).await? else { return Ok(None) };
        Ok(Some(open_record(sealing, &entry, self.space)?.value))
    }

    /// Replaces keys, versions, assignments, roles and invocations by what was staged, in one commit with
    /// `transaction`, which is about other records. `applied` is called when that is durable, before anybody hears of
    /// it.
    pub async fn switch(
        mut self,
        transaction: Transaction,
        applied: impl FnOnce(Stamp) + Send + Sync + 'static,
    ) -> Result<Committed, CommitError> {
        let (answer, answered) = oneshot::channel();
        let applied: Applying = Box::new(applied);
        self.store.special(Special::Switch { space: self.space, transaction, applied, answer }).await?;
        let answered = answered.await.map_err(|_| closing())?;
        self.switched = answered.is_ok();
        answered
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if !self.switched {
            // Where the queue is full or gone, the next start removes them.
            let _ = self.store.requests.try_send(Request::Special(Special::Discard { space: self.space }));
        }
    }
}

pub(crate) type Table = HashMap<Vec<u8>, (Stamp, Revision)>;

struct ReadAll {
    records: Vec<Stamped<Record>>,
    table: Table,
    /// Records of other spaces: staged, or replaced, when the pool was stopped.
    has_garbage: bool,
    counted: PoolState,
}

async fn read_state(engine: &dyn Engine, sealing: &Sealing) -> Result<(PoolState, Revision), OpenError> {
    let mac = sealing.names.mac(kind::POOL_STATE, b"");
    let entry = engine.get(&engine_key(kind::POOL_STATE, &mac)).await?.ok_or(OpenError::NoPoolState)?;
    Ok((open_state(sealing, &entry)?, entry.revision))
}

fn open_state(sealing: &Sealing, entry: &Entry) -> Result<PoolState, OpenError> {
    let (content, _) = open_entry(sealing, entry)?;
    codec::decode_pool_state(&content).map_err(|error| unreadable(entry, error.to_string()))
}

fn open_entry(sealing: &Sealing, entry: &Entry) -> Result<(SecretBytes, Stamp), OpenError> {
    let fail = |reason: String| unreadable(entry, reason);
    let (kind, mac, _) = parse_key(&entry.key).ok_or_else(|| fail("the name is not a MAC".into()))?;
    let header = crypto::record::header(&entry.value).map_err(|error| fail(error.to_string()))?;
    let place = sealing.place(kind, mac, header.record_version);
    let content = sealing.data_key.open(&place, &entry.value).map_err(|error| fail(error.to_string()))?;
    Ok((content, Stamp(header.record_version)))
}

/// Opens a record at its place in `space`.
fn open_record(sealing: &Sealing, entry: &Entry, space: u32) -> Result<Stamped<Record>, OpenError> {
    let fail = |reason: String| unreadable(entry, reason);
    let (content, stamp) = open_entry(sealing, entry)?;
    let kind = entry.key.first().copied().unwrap_or_default();
    let record = codec::decode(kind, &content).map_err(|error| fail(error.to_string()))?;
    // The content names itself; the place it was found at must agree, or two names could share a record.
    if record.id().place(&sealing.names, space).key != entry.key {
        return Err(fail(UnreadableRecord::Malformed.to_string()));
    }
    Ok(Stamped { value: record, stamp })
}

fn unreadable(entry: &Entry, reason: String) -> OpenError {
    OpenError::Record { key: describe_key(&entry.key), reason }
}

/// Whether an entry is a record in use, at `space`; one that is not was staged or replaced.
fn is_in_use(entry: &Entry, space: u32) -> Result<bool, OpenError> {
    let (kind, _, held) =
        parse_key(&entry.key).ok_or_else(|| unreadable(entry, "the name is not a MAC".into()))?;
    Ok(!kind::is_replaceable(kind) || held == space)
}

async fn read_all(engine: &dyn Engine, sealing: &Sealing, space: u32) -> Result<ReadAll, OpenError> {
    let mut read = ReadAll {
        records: Vec::new(),
        table: Table::new(),
        has_garbage: false,
        counted: PoolState::default(),
    };
    let mut scan = engine.scan(b"").await?;
    loop {
        let page = scan.next_page(SCAN_PAGE).await?;
        if page.is_empty() {
            return Ok(read);
        }
        for entry in page {
            match entry.key.first() {
                Some(&(kind::DATA_KEY | kind::GENESIS | kind::CLEAR | kind::POOL_STATE)) => continue,
                Some(_) if !is_in_use(&entry, space)? => {
                    read.has_garbage = true;
                    continue;
                }
                Some(_) | None => {}
            }
            let Stamped { value, stamp } = open_record(sealing, &entry, space)?;
            let place = value.id().place(&sealing.names, space);
            read.counted.insert(&sealing.names, place.kind, &place.mac, stamp.0);
            read.table.insert(place.key, (stamp, entry.revision));
            read.records.push(Stamped { value, stamp });
        }
    }
}

/// A store's records in pages, all at one revision, checked to be whole at the end.
pub struct Snapshot {
    scan: Box<dyn Scan>,
    sealing: Arc<Sealing>,
    space: u32,
    counted: PoolState,
    state: Option<PoolState>,
}

impl Snapshot {
    fn new(scan: Box<dyn Scan>, sealing: Arc<Sealing>, space: u32) -> Self {
        Self { scan, sealing, space, counted: PoolState::default(), state: None }
    }

    /// Further records; `None` at the end, when all of them were what the pool state says.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Stamped<Record>>>, OpenError> {
        let page = self.scan.next_page(SNAPSHOT_PAGE).await?;
        if page.is_empty() {
            let state = self.state.ok_or(OpenError::NoPoolState)?;
            let (found, expected) = (self.counted.records, state.records);
            let is_whole = self.counted.digest == state.digest && found == expected;
            return if is_whole { Ok(None) } else { Err(OpenError::DigestMismatch { found, expected }) };
        }
        let mut records = Vec::new();
        for entry in page {
            match entry.key.first() {
                Some(&(kind::DATA_KEY | kind::GENESIS | kind::CLEAR)) => continue,
                Some(&kind::POOL_STATE) => {
                    self.state = Some(open_state(&self.sealing, &entry)?);
                    continue;
                }
                Some(_) if !is_in_use(&entry, self.space)? => continue,
                Some(_) | None => {}
            }
            let Stamped { value, stamp } = open_record(&self.sealing, &entry, self.space)?;
            let place = value.id().place(&self.sealing.names, self.space);
            self.counted.insert(&self.sealing.names, place.kind, &place.mac, stamp.0);
            records.push(Stamped { value, stamp });
        }
        Ok(Some(records))
    }

    /// How many events the log had at the pool's last commit, once all was read.
    pub fn log_size(&self) -> Option<u64> {
        self.state.map(|state| state.checkpoint.size)
    }

    /// The generation of the pool that was read, once it was read to its end.
    pub fn generation(&self) -> Option<u64> {
        self.state.map(|state| state.generation)
    }
}

/// The genesis of the pool that `engine` holds, if it holds one.
pub async fn read_genesis(
    engine: &dyn Engine,
    secrets: &DomainSecrets,
) -> Result<Option<SignedGenesis>, OpenError> {
    let mac = secrets.name_key().mac(kind::GENESIS, b"");
    let key = engine_key(kind::GENESIS, &mac);
    let Some(entry) = engine.get(&key).await? else {
        // A genesis under another name key is another domain's pool.
        let mut others = engine.scan(&[kind::GENESIS]).await?;
        return if others.next_page(1).await?.is_empty() { Ok(None) } else { Err(OpenError::AlreadyFounded) };
    };
    let epoch = GENESIS_EPOCH;
    let wrapped = engine.get(&data_key_key(epoch)).await?.ok_or(OpenError::DataKey { epoch })?;
    let data_key = secrets
        .unwrap_data_key(Guid::NIL, PoolClass::Production, epoch, &WrappedDataKey(wrapped.value))
        .map_err(|_| OpenError::DataKey { epoch })?;
    let content = data_key
        .open(&genesis_place(&mac), &entry.value)
        .map_err(|error| OpenError::Record { key: describe_key(&key), reason: error.to_string() })?;
    Ok(Some(SignedGenesis::read(content.danger_expose(), &secrets.owner_key().public_key())?))
}

fn genesis_place(name_mac: &[u8; 32]) -> RecordPlace<'_> {
    RecordPlace {
        pool: Guid::NIL,
        security_domain: Guid::NIL,
        class: PoolClass::Production,
        kind: kind::GENESIS,
        name_mac,
        record_version: 0,
    }
}

fn data_key_key(epoch: u32) -> Vec<u8> {
    [&[kind::DATA_KEY], epoch.to_be_bytes().as_slice()].concat()
}

fn describe_key(key: &[u8]) -> String {
    match key.split_first() {
        Some((kind, name)) => {
            format!("{}/{}", char::from(*kind).escape_default(), hex(&name[..name.len().min(8)]))
        }
        None => "without a key".into(),
    }
}
