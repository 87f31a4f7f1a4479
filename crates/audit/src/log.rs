//! The log in operation: opening, handing in leaves, reading, proving.

use crate::flaw::Flaw;
use crate::leaf::Leaf;
use crate::reader::SegmentReader;
use crate::receipt::Receipt;
use crate::recovery::find_end;
use crate::segment::{Identity, MAX_CERTIFICATE_BYTES, Next, Segment, check_certificate};
use crate::tree::{Hash, ProofBuilder, leaf_hash};
use crate::writer::{Message, Waiting, Writer};
use crypto::certificate::{InstanceKey, OwnerPublicKey};
use domain::guid::Guid;
use domain::time::Time;
use host::{Log, LogError, SegmentId};
use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Leaves that wait for the writer, at most; beyond that requests are refused as busy.
const QUEUE: usize = 16 * 1024;
const DEFAULT_SEGMENT_BYTES: u64 = 16 << 20;
/// The most that any request waits for others to share a sync with: one that has taken 16 ms. One that has taken less than
/// 4 ms waits for nobody, as the runtime's timers are no finer than a millisecond.
const LONGEST_WAIT: Duration = Duration::from_millis(4);
/// The part of its own time that a request may be held back.
const PATIENCE_PART: u32 = 4;
/// A page of leaves ends with the leaf that reaches this.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// Leaves per page where the log is read for itself.
const PAGE_LEAVES: usize = 4096;

/// How far the log has come, durably.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CheckpointMark {
    /// Events in the log.
    pub size: u64,
    /// Root of the tree over them; means nothing while `size` is 0.
    pub root: Hash,
}

#[derive(Clone, Debug)]
pub struct AuditConfig {
    pub(crate) identity: Identity,
    pub(crate) incarnation: Guid,
    pub(crate) owner: OwnerPublicKey,
    /// A segment that has reached this many bytes is followed by the next.
    pub segment_bytes: u64,
    /// No event waits longer for others that were announced.
    pub longest_wait: Duration,
}

impl AuditConfig {
    /// `node` stays the same over restarts: a log belongs to one pool on one node. `incarnation` is new at each.
    pub fn new(
        pool: Guid,
        genesis_hash: [u8; 32],
        node: Guid,
        incarnation: Guid,
        owner: OwnerPublicKey,
    ) -> Self {
        let identity = Identity { pool, genesis_hash, node };
        Self {
            identity,
            incarnation,
            owner,
            segment_bytes: DEFAULT_SEGMENT_BYTES,
            longest_wait: LONGEST_WAIT,
        }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    #[error("too many events wait for the audit log")]
    Busy,
    /// Nothing of the event was written; a later one may find room.
    #[error("the disk of the audit log is full")]
    DiskFull,
    /// Whether the event was written is not known, or it was refused because of an earlier failure.
    #[error("the audit log is closed: {0}")]
    Unavailable(String),
    #[error("an event that waits for the log is malformed")]
    MalformedLeaf,
    #[error("the log does not have the events that are asked for")]
    OutOfRange,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot read the audit log")]
    Log(#[from] LogError),
    #[error("segment {segment} of the audit log is damaged at byte {offset}: {flaw}")]
    Damaged { segment: u32, offset: u64, flaw: Flaw },
    /// The log was cut, replaced or forked since the pool last wrote down how far it had come.
    #[error(
        "the audit log does not extend the {expected} events that the pool has on record; it has {found}, or other ones"
    )]
    DoesNotExtend { found: u64, expected: u64 },
    #[error("the key that is to sign checkpoints is not certified for it: {0}")]
    NotCertified(Flaw),
    /// No checkpoint may be older than the last one, nor later than the certificate allows.
    #[error(
        "the clock is far behind the audit log: its last checkpoint is of Unix time {last}, the new certificate ends at {not_after}"
    )]
    ClockBehind { last: i64, not_after: i64 },
}

/// What an opened log is, and what opening it found.
pub struct Recovered {
    pub log: AuditLog,
    pub size: u64,
    pub root: Hash,
    /// When the last checkpoint was made; no later one is older.
    pub last_checkpoint: Option<Time>,
    /// Bytes of a write that power loss cut short; nothing in them was acknowledged.
    pub torn_bytes_dropped: u64,
}

/// Resolves when the event is durable. Dropping it takes nothing back.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Receipt, AuditError>>);

impl Future for Pending {
    type Output = Result<Receipt, AuditError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(ended())))
    }
}

impl Message {
    fn of(leaf: Leaf, patience: Duration) -> (Self, Pending) {
        let (answer, answered) = oneshot::channel();
        (Self::Leaf(Waiting { leaf, patience, answer }), Pending(answered))
    }
}

/// A handle to the log; clones share one writer. When the last is dropped, what waits is written and the writer ends.
#[derive(Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

/// What the writer tells the readers.
pub(crate) struct Shared {
    pub log: Arc<dyn Log>,
    places: Mutex<Places>,
    announced: AtomicUsize,
    /// Why nothing more is written.
    pub failed: OnceLock<AuditError>,
}

/// Says that an event will follow, for as long as it lives: a group whose requests have time may wait for it.
pub struct Announced(Arc<Shared>);

impl Drop for Announced {
    fn drop(&mut self) {
        self.0.announced.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Places {
    /// Durable.
    pub latest: CheckpointMark,
    /// Index of each segment's first event.
    pub first_indexes: Vec<u64>,
    /// First index and offset of each group of the last segment.
    pub groups: Vec<(u64, u64)>,
    /// Where the last page ended, for whoever reads on from there: segment, first index of a group, its offset.
    cursor: Option<(usize, u64, u64)>,
}

impl Shared {
    /// Events that will follow.
    pub fn announced(&self) -> usize {
        self.announced.load(Ordering::Relaxed)
    }

    /// A panic while the lock is held cannot leave these values half-written.
    pub fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Places {
    /// The segment that holds event `index`, and the offset of a group at or before it.
    fn find(&self, index: u64) -> (usize, u64) {
        let number = self.first_indexes.partition_point(|first| *first <= index).saturating_sub(1);
        if number + 1 == self.first_indexes.len() {
            let group = self.groups.partition_point(|(first, _)| *first <= index).checked_sub(1);
            return (number, group.map_or(0, |group| self.groups[group].1));
        }
        match self.cursor {
            Some((segment, first, offset)) if segment == number && first <= index => (number, offset),
            Some(_) | None => (number, 0),
        }
    }
}

impl AuditLog {
    /// Opens the log, or starts a new one: finds its end, checks it, checks that it extends `expected`, what the pool
    /// has on record. Starts the writer on the current runtime.
    ///
    /// `key` signs this incarnation's checkpoints; what `certify` makes (DER) is the owner key's word for it. A checkpoint
    /// is never older than the one before it, whatever `clock` says: `certify` is told when the last one was made, so that
    /// a log whose clock was far ahead once can be gone on with.
    pub async fn open(
        log: Arc<dyn Log>,
        config: AuditConfig,
        key: InstanceKey,
        certify: impl FnOnce(&InstanceKey, Option<Time>) -> Vec<u8>,
        expected: Option<CheckpointMark>,
        clock: Arc<dyn Fn() -> Time + Send + Sync>,
    ) -> Result<Recovered, OpenError> {
        let end = find_end(log.as_ref(), &config, expected.unwrap_or_default()).await?;
        let certificate = certify(&key, end.last_checkpoint);
        let (claims, certified) = check_certificate(&config.owner, &config.identity, &certificate)
            .map_err(OpenError::NotCertified)?;
        if claims.incarnation != config.incarnation
            || certified != key.public_key()
            || certificate.len() > MAX_CERTIFICATE_BYTES
        {
            return Err(OpenError::NotCertified(Flaw::ForeignCertificate));
        }
        if let Some(last) = end.last_checkpoint.map(Time::int_date).filter(|last| *last > claims.not_after) {
            let (last, not_after) = (last.unix_seconds(), claims.not_after.unix_seconds());
            return Err(OpenError::ClockBehind { last, not_after });
        }
        if let Some(segment) = end.segment {
            log.resume(segment.id, segment.offset).await?;
        }
        let latest = CheckpointMark { size: end.frontier.size(), root: end.frontier.root() };
        let (last_checkpoint, torn_bytes_dropped) = (end.last_checkpoint, end.torn_bytes);
        let places = Places {
            latest,
            first_indexes: end.first_indexes.clone(),
            groups: end.groups.clone(),
            cursor: None,
        };
        let shared = Arc::new(Shared {
            log,
            places: Mutex::new(places),
            announced: AtomicUsize::new(0),
            failed: OnceLock::new(),
        });
        let (queue, messages) = mpsc::channel(QUEUE);
        let writer = Writer::new(shared.clone(), config, key, certificate, &claims, clock, end);
        tokio::spawn(writer.run(messages));
        let log = AuditLog { queue, shared };
        Ok(Recovered { log, size: latest.size, root: latest.root, last_checkpoint, torn_bytes_dropped })
    }

    /// Says that an event will follow.
    pub fn announce(&self) -> Announced {
        self.shared.announced.fetch_add(1, Ordering::Relaxed);
        Announced(self.shared.clone())
    }

    /// Hands a leaf to the writer. Once this returns the leaf will be written, whether or not anyone waits.
    pub fn enqueue(&self, leaf: Leaf) -> Result<Pending, AuditError> {
        self.enqueue_patiently(leaf, Duration::ZERO)
    }

    fn enqueue_patiently(&self, leaf: Leaf, patience: Duration) -> Result<Pending, AuditError> {
        let (message, pending) = Message::of(leaf, patience);
        match self.queue.try_send(message) {
            Ok(()) => Ok(pending),
            Err(mpsc::error::TrySendError::Full(_)) => Err(AuditError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ended()),
        }
    }

    /// Appends a leaf and waits until it is durable.
    pub async fn append(&self, leaf: Leaf) -> Result<Receipt, AuditError> {
        self.enqueue(leaf)?.await
    }

    /// Appends the leaf of a change that was committed: it waits for its place where too many others wait.
    pub async fn append_committed(&self, leaf: Leaf) -> Result<Receipt, AuditError> {
        let (message, pending) = Message::of(leaf, Duration::ZERO);
        self.queue.send(message).await.map_err(|_| ended())?;
        pending.await
    }

    /// Why no event will be taken until the log is opened again, if so.
    pub fn check(&self) -> Result<(), AuditError> {
        match self.shared.failed.get() {
            None if self.queue.is_closed() => Err(ended()),
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Appends the leaf of a request that has taken `taken` so far: a part of that it may still wait for others.
    pub async fn append_after(&self, leaf: Leaf, taken: Duration) -> Result<Receipt, AuditError> {
        self.enqueue_patiently(leaf, taken / PATIENCE_PART)?.await
    }

    pub fn latest(&self) -> CheckpointMark {
        self.shared.places().latest
    }

    /// Durable events from index `from` on, with their indexes: at most `limit`, and no more than fit 16 MiB. Empty only
    /// behind the end.
    ///
    /// Finds accidents on the way. A host that lies about what it stored is found by `verify` and when the log is opened,
    /// and by the audit key, which opens no changed event.
    pub async fn read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Leaf)>, AuditError> {
        let (end, (mut number, offset)) = {
            let places = self.shared.places();
            (places.latest.size, places.find(from))
        };
        let mut found = Vec::new();
        let (mut next, mut bytes) = (from, 0);
        let mut segment = self.segment(number, offset);
        while next < end && found.len() < limit && bytes < MAX_PAGE_BYTES {
            let offset = segment.offset;
            let group = match segment.next().await.map_err(unavailable)? {
                Next::Header(_) => continue,
                Next::Group(group) => group,
                Next::End if number + 1 < self.shared.places().first_indexes.len() => {
                    number += 1;
                    segment = self.segment(number, 0);
                    continue;
                }
                Next::End | Next::Torn(_) => return Err(unreadable(number, offset, Flaw::MissingSector)),
                Next::Damaged(flaw) => return Err(unreadable(number, offset, flaw)),
            };
            if group.first_index > next {
                let flaw = Flaw::Index { found: group.first_index, expected: next };
                return Err(unreadable(number, offset, flaw));
            }
            self.shared.places().cursor = Some((number, group.first_index, offset));
            for (index, leaf) in (group.first_index..end).zip(group.leaves) {
                if index == next && found.len() < limit && bytes < MAX_PAGE_BYTES {
                    next += 1;
                    bytes += leaf.as_bytes().len();
                    found.push((index, leaf));
                }
            }
        }
        Ok(found)
    }

    /// Which of `ids` are in the log at or after index `from`.
    pub async fn contains(
        &self,
        ids: &HashSet<[u8; 16]>,
        from: u64,
    ) -> Result<HashSet<[u8; 16]>, AuditError> {
        let mut found = HashSet::new();
        let mut next = from;
        loop {
            let page = self.read(next, PAGE_LEAVES).await?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            next = last + 1;
            found.extend(page.iter().map(|(_, leaf)| leaf.event_id()).filter(|id| ids.contains(id)));
        }
    }

    /// The proof that event `index` is in the log of `size` events, for [`crate::tree::verify_inclusion`]. Reads all of
    /// them.
    pub async fn prove_inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, AuditError> {
        self.prove(ProofBuilder::inclusion(index, size), size).await
    }

    /// The proof that the log of `size` events extends that of the first `earlier`, for
    /// [`crate::tree::verify_consistency`]. Reads all of them.
    pub async fn prove_consistency(&self, earlier: u64, size: u64) -> Result<Vec<Hash>, AuditError> {
        self.prove(ProofBuilder::consistency(earlier, size), size).await
    }

    /// Writes what was handed in so far, then takes nothing more.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            // The writer drops its end where it was closed already.
            let _ = closed.await;
        }
    }

    async fn prove(&self, builder: Option<ProofBuilder>, size: u64) -> Result<Vec<Hash>, AuditError> {
        let mut builder = builder.filter(|_| size <= self.latest().size).ok_or(AuditError::OutOfRange)?;
        while builder.missing() > 0 {
            let page = self.read(size - builder.missing(), PAGE_LEAVES).await?;
            if page.is_empty() {
                return Err(AuditError::OutOfRange);
            }
            page.iter().for_each(|(_, leaf)| builder.push(leaf_hash(leaf.as_bytes())));
        }
        builder.finish().ok_or(AuditError::OutOfRange)
    }

    fn segment(&self, number: usize, offset: u64) -> Segment<'_> {
        let id = SegmentId(u32::try_from(number).unwrap_or(u32::MAX));
        Segment::at(SegmentReader::new(self.shared.log.as_ref(), id), offset)
    }
}

pub(crate) fn unavailable(error: LogError) -> AuditError {
    match error {
        LogError::DiskFull => AuditError::DiskFull,
        error @ (LogError::NoSuchSegment(_) | LogError::Unavailable(_)) => {
            AuditError::Unavailable(error.to_string())
        }
    }
}

fn unreadable(segment: usize, offset: u64, flaw: Flaw) -> AuditError {
    AuditError::Unavailable(format!("segment {segment}, byte {offset}: {flaw}"))
}

fn ended() -> AuditError {
    AuditError::Unavailable("the writer has ended".into())
}
