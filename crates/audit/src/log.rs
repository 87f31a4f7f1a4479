//! The log in operation: opening, appending in groups, reading.

use crate::leaf::Leaf;
use crate::segment::{Checkpoint, Follower, Frames, Group, Identity, Next, SegmentHeader};
use crate::tree::{Frontier, Hash, leaf_hash};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto::certificate::{InstanceKey, OwnerPublicKey};
use domain::guid::Guid;
use domain::time::Time;
use host::{Log, LogError, SegmentId};
use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, oneshot};

/// Leaves that wait for the writer, at most; beyond that requests are refused as busy.
const QUEUE: usize = 16 * 1024;
const MAX_GROUP_LEAVES: usize = 1024;
const DEFAULT_SEGMENT_BYTES: u64 = 16 << 20;
/// Bytes asked of the host at a time.
const READ_BYTES: usize = 4 << 20;

/// How far the log has come, durably.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CheckpointMark {
    pub size: u64,
    pub root: Hash,
}

#[derive(Clone, Debug)]
pub struct AuditConfig {
    identity: Identity,
    node: Guid,
    incarnation: Guid,
    owner: OwnerPublicKey,
    /// A segment that has reached this many bytes is followed by the next.
    pub segment_bytes: u64,
}

impl AuditConfig {
    pub fn new(
        pool: Guid,
        genesis_hash: [u8; 32],
        node: Guid,
        incarnation: Guid,
        owner: OwnerPublicKey,
    ) -> Self {
        let identity = Identity { pool, genesis_hash };
        Self { identity, node, incarnation, owner, segment_bytes: DEFAULT_SEGMENT_BYTES }
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    #[error("too many events wait for the audit log")]
    Busy,
    #[error("the disk of the audit log is full")]
    DiskFull,
    #[error("the audit log is closed: {0}")]
    Unavailable(String),
    #[error("an event that waits for the log is malformed")]
    MalformedLeaf,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot read the audit log")]
    Log(#[from] LogError),
    #[error("segment {segment} of the audit log, byte {offset}: {reason}")]
    Damaged { segment: u32, offset: usize, reason: String },
    #[error("segment {segment} belongs to another pool, or is out of order")]
    Foreign { segment: u32 },
    /// The log was cut, replaced or forked since the pool last wrote down how far it had come.
    #[error(
        "the audit log does not extend what the pool has on record: {found} events where {expected} were recorded, or other ones"
    )]
    DoesNotExtend { found: u64, expected: u64 },
}

/// What an opened log is, and what opening it found.
pub struct Recovered {
    pub log: AuditLog,
    pub size: u64,
    pub root: Hash,
    /// Bytes of a write that power loss cut short; nothing in them was acknowledged.
    pub torn_bytes_dropped: u64,
}

/// Proof for a caller that its event is in the log.
#[derive(Clone, Debug)]
pub struct Receipt {
    pub index: u64,
    checkpoint: Arc<Checkpoint>,
}

impl Receipt {
    /// `node=…;index=…`, and in full also the signed checkpoint: `size`, `root`, `time`, `incarnation`, `signature`.
    pub fn header_value(&self, full: bool) -> String {
        let checkpoint = &self.checkpoint;
        let short = format!("node={};index={}", checkpoint.node, self.index);
        if !full {
            return short;
        }
        format!(
            "{short};size={};root={};time={};incarnation={};signature={}",
            checkpoint.size,
            URL_SAFE_NO_PAD.encode(checkpoint.root),
            checkpoint.time.unix_milliseconds(),
            checkpoint.incarnation,
            URL_SAFE_NO_PAD.encode(checkpoint.signature),
        )
    }
}

/// Resolves when the event is durable.
pub struct Pending(oneshot::Receiver<Result<Receipt, AuditError>>);

impl Future for Pending {
    type Output = Result<Receipt, AuditError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let closed = || AuditError::Unavailable("the writer has ended".into());
        Pin::new(&mut self.0).poll(context).map(|answer| answer.unwrap_or_else(|_| Err(closed())))
    }
}

/// A handle to the log; clones share one writer.
#[derive(Clone)]
pub struct AuditLog {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

struct Shared {
    log: Arc<dyn Log>,
    latest: Mutex<CheckpointMark>,
    /// Index of each segment's first event.
    segments: Mutex<Vec<u64>>,
}

enum Message {
    Leaf(Leaf, oneshot::Sender<Result<Receipt, AuditError>>),
    Close(oneshot::Sender<()>),
}

impl AuditLog {
    /// Opens the log, or starts a new one: finds its end, checks its last segment wholly, and checks that it extends
    /// `expected`, what the pool has on record. Starts the writer on the current runtime.
    pub async fn open(
        log: Arc<dyn Log>,
        config: AuditConfig,
        key: InstanceKey,
        certificate: Vec<u8>,
        expected: Option<CheckpointMark>,
        clock: Arc<dyn Fn() -> Time + Send + Sync>,
    ) -> Result<Recovered, OpenError> {
        let end = find_end(log.as_ref(), &config).await?;
        check_extends(log.as_ref(), &config, &end, expected.unwrap_or_default()).await?;
        if let Some((segment, offset)) = end.resume {
            log.resume(segment, offset).await?;
        }
        let mark = CheckpointMark { size: end.frontier.size(), root: end.frontier.root() };
        let shared = Arc::new(Shared {
            log,
            latest: Mutex::new(mark),
            segments: Mutex::new(end.first_indexes.clone()),
        });
        let (queue, messages) = mpsc::channel(QUEUE);
        let writer = Writer {
            shared: shared.clone(),
            key,
            certificate,
            clock,
            frontier: end.frontier,
            segment: end.segment,
            last_frame_hash: end.last_frame_hash,
            certified: false,
            config,
        };
        tokio::spawn(writer.run(messages));
        Ok(Recovered {
            log: AuditLog { queue, shared },
            size: mark.size,
            root: mark.root,
            torn_bytes_dropped: end.torn_bytes,
        })
    }

    /// Hands a leaf to the writer. Once this returns the leaf will be written, whether or not anyone waits.
    pub fn enqueue(&self, leaf: Leaf) -> Result<Pending, AuditError> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send(Message::Leaf(leaf, answer)) {
            Ok(()) => Ok(Pending(answered)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(AuditError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(AuditError::Unavailable("the writer has ended".into()))
            }
        }
    }

    /// Appends a leaf and waits until it is durable.
    pub async fn append(&self, leaf: Leaf) -> Result<Receipt, AuditError> {
        self.enqueue(leaf)?.await
    }

    pub fn latest(&self) -> CheckpointMark {
        *lock(&self.shared.latest)
    }

    /// Events from index `from` on, at most `limit`, with their indexes.
    pub async fn read(&self, from: u64, limit: usize) -> Result<Vec<(u64, Leaf)>, AuditError> {
        let end = self.latest().size;
        let first_indexes = lock(&self.shared.segments).clone();
        let mut found = Vec::new();
        let start = first_indexes.partition_point(|first| *first <= from).saturating_sub(1);
        for number in start..first_indexes.len() {
            if found.len() >= limit || first_indexes[number] >= end {
                break;
            }
            let segment = SegmentId(u32::try_from(number).unwrap_or(u32::MAX));
            let bytes = read_segment(self.shared.log.as_ref(), segment).await.map_err(unavailable)?;
            let mut frames = Frames::new(&bytes);
            loop {
                match frames.next() {
                    Next::Header(_) => {}
                    Next::Group(group) if group.checkpoint.size <= end => {
                        let indexed = (group.first_index..).zip(group.leaves);
                        found.extend(indexed.filter(|(index, _)| *index >= from));
                        if found.len() >= limit {
                            break;
                        }
                    }
                    // Beyond what is durable, or being written at this moment.
                    Next::Group(_) | Next::End | Next::Torn => break,
                    Next::Damaged(_) if frames.offset >= bytes.len() => break,
                    Next::Damaged(reason) => {
                        let is_last = number + 1 == first_indexes.len();
                        let complete = found.last().is_some_and(|(index, _)| index + 1 >= end);
                        if is_last && (complete || from >= end) {
                            break;
                        }
                        return Err(AuditError::Unavailable(format!("segment {number}: {reason}")));
                    }
                }
            }
        }
        found.truncate(limit);
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
            let page = self.read(next, 10_000).await?;
            let Some((last, _)) = page.last() else { return Ok(found) };
            next = last + 1;
            found.extend(page.iter().map(|(_, leaf)| leaf.event_id()).filter(|id| ids.contains(id)));
        }
    }

    /// Writes what waits, then takes nothing more.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    config: AuditConfig,
    key: InstanceKey,
    certificate: Vec<u8>,
    clock: Arc<dyn Fn() -> Time + Send + Sync>,
    frontier: Frontier,
    segment: Option<OpenSegment>,
    last_frame_hash: [u8; 32],
    /// Whether this incarnation's certificate is in the current segment.
    certified: bool,
}

#[derive(Clone, Copy)]
struct OpenSegment {
    number: u32,
    bytes: u64,
    /// False where a crash came between the segment's creation and its header.
    has_header: bool,
}

impl Writer {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut waiting = Vec::new();
        let mut closed: Option<AuditError> = None;
        loop {
            if messages.recv_many(&mut waiting, MAX_GROUP_LEAVES).await == 0 {
                return;
            }
            let mut leaves = Vec::with_capacity(waiting.len());
            let mut answers = Vec::with_capacity(waiting.len());
            let mut close = None;
            for message in waiting.drain(..) {
                match message {
                    Message::Leaf(leaf, answer) => {
                        leaves.push(leaf);
                        answers.push(answer);
                    }
                    Message::Close(done) => close = Some(done),
                }
            }
            if !leaves.is_empty() {
                let written = match &closed {
                    Some(error) => Err(error.clone()),
                    None => self.write(leaves).await,
                };
                closed = answer(written, answers).or(closed);
            }
            if let Some(done) = close {
                // The receiver goes with this task: later leaves are refused at once.
                let _ = done.send(());
                return;
            }
        }
    }

    /// One group: hash, sign, append. Nothing of the writer's state changes unless it is durable.
    async fn write(&mut self, leaves: Vec<Leaf>) -> Result<Arc<Checkpoint>, AuditError> {
        let mut frontier = self.frontier.clone();
        leaves.iter().for_each(|leaf| frontier.push(leaf_hash(leaf.as_bytes())));
        let (mut segment, mut bytes) = self.room().await?;
        let opened_segment = !segment.has_header;
        segment.has_header = true;
        let checkpoint = Checkpoint {
            node: self.config.node,
            incarnation: self.config.incarnation,
            size: frontier.size(),
            root: frontier.root(),
            time: (self.clock)(),
            signature: [0; 64],
        }
        .sign(&self.config.identity, &self.key);
        let certificate =
            if self.certified && !opened_segment { Vec::new() } else { self.certificate.clone() };
        let group =
            Group { first_index: self.frontier.size(), certificate, leaves, checkpoint: checkpoint.clone() };
        let frame = group.to_frame();
        let last_frame_hash = crypto::digest::sha256(&[&frame]);
        bytes.extend_from_slice(&frame);
        segment.bytes += bytes.len() as u64;
        self.shared.log.append(bytes).await.map_err(unavailable)?;

        if opened_segment {
            lock(&self.shared.segments).push(self.frontier.size());
        }
        self.certified = true;
        self.segment = Some(segment);
        self.last_frame_hash = last_frame_hash;
        self.frontier = frontier;
        *lock(&self.shared.latest) = CheckpointMark { size: checkpoint.size, root: checkpoint.root };
        Ok(Arc::new(checkpoint))
    }

    /// The segment that the next group goes to, and the header to write first where it has none yet.
    async fn room(&mut self) -> Result<(OpenSegment, Vec<u8>), AuditError> {
        let segment = match self.segment {
            Some(segment) if segment.bytes < self.config.segment_bytes => segment,
            Some(_) | None => {
                let SegmentId(number) = self.shared.log.roll().await.map_err(unavailable)?;
                let segment = OpenSegment { number, bytes: 0, has_header: false };
                self.segment = Some(segment);
                segment
            }
        };
        if segment.has_header {
            return Ok((segment, Vec::new()));
        }
        let header = SegmentHeader {
            identity: self.config.identity.clone(),
            number: segment.number,
            previous: self.last_frame_hash,
            frontier: self.frontier.clone(),
        };
        Ok((segment, header.to_frame()))
    }
}

/// Answers a group's waiters. Returns the error after which the log stays closed.
fn answer(
    written: Result<Arc<Checkpoint>, AuditError>,
    answers: Vec<oneshot::Sender<Result<Receipt, AuditError>>>,
) -> Option<AuditError> {
    match written {
        Ok(checkpoint) => {
            let first = checkpoint.size - answers.len() as u64;
            for (index, waiter) in (first..).zip(answers) {
                let _ = waiter.send(Ok(Receipt { index, checkpoint: checkpoint.clone() }));
            }
            None
        }
        Err(error) => {
            for waiter in answers {
                let _ = waiter.send(Err(error.clone()));
            }
            match error {
                // Nothing was written, and space may come back.
                AuditError::DiskFull | AuditError::Busy | AuditError::MalformedLeaf => None,
                AuditError::Unavailable(_) => Some(error),
            }
        }
    }
}

struct End {
    frontier: Frontier,
    segment: Option<OpenSegment>,
    last_frame_hash: [u8; 32],
    first_indexes: Vec<u64>,
    /// The last segment and where its content ends.
    resume: Option<(SegmentId, u64)>,
    torn_bytes: u64,
}

/// One segment, checked: what its header says and where its groups lead.
struct Checked {
    header: SegmentHeader,
    frontier: Frontier,
    last_frame_hash: [u8; 32],
    end: usize,
    torn_bytes: u64,
    /// The root at the asked size, if a group of this segment ends there.
    root_at: Option<Hash>,
}

async fn find_end(log: &dyn Log, config: &AuditConfig) -> Result<End, OpenError> {
    let segments = log.segments().await?;
    let mut first_indexes = Vec::new();
    for segment in segments.iter().take(segments.len().saturating_sub(1)) {
        let bytes = log.read(segment.id, 0, 8192).await?;
        match Frames::new(&bytes).next() {
            Next::Header(header) => first_indexes.push(header.frontier.size()),
            Next::Group(_) | Next::End | Next::Torn | Next::Damaged(_) => {
                let reason = "the segment's header does not check".into();
                return Err(OpenError::Damaged { segment: segment.id.0, offset: 0, reason });
            }
        }
    }
    let Some(last) = segments.last() else {
        return Ok(End {
            frontier: Frontier::default(),
            segment: None,
            last_frame_hash: [0; 32],
            first_indexes,
            resume: None,
            torn_bytes: 0,
        });
    };
    let before = match last.id.0.checked_sub(1) {
        Some(number) => {
            let checked = check_segment(log, config, SegmentId(number), None, false).await?;
            checked.ok_or(OpenError::Foreign { segment: number })?.into()
        }
        None => None,
    };
    let before: Option<Checked> = before;
    let (frontier, previous) =
        before.map_or((Frontier::default(), [0; 32]), |before| (before.frontier, before.last_frame_hash));
    match check_segment(log, config, last.id, None, true).await? {
        Some(checked) => {
            if checked.header.frontier != frontier || checked.header.previous != previous {
                return Err(OpenError::Foreign { segment: last.id.0 });
            }
            first_indexes.push(frontier.size());
            Ok(End {
                frontier: checked.frontier,
                segment: Some(OpenSegment { number: last.id.0, bytes: checked.end as u64, has_header: true }),
                last_frame_hash: checked.last_frame_hash,
                first_indexes,
                resume: Some((last.id, checked.end as u64)),
                torn_bytes: checked.torn_bytes,
            })
        }
        // Power was lost between the segment's creation and its header.
        None => Ok(End {
            frontier,
            segment: Some(OpenSegment { number: last.id.0, bytes: 0, has_header: false }),
            last_frame_hash: previous,
            first_indexes,
            resume: Some((last.id, 0)),
            torn_bytes: 0,
        }),
    }
}

/// Follows a segment to its end; `None` where it has no header yet.
async fn check_segment(
    log: &dyn Log,
    config: &AuditConfig,
    id: SegmentId,
    at: Option<u64>,
    is_last: bool,
) -> Result<Option<Checked>, OpenError> {
    let bytes = read_segment(log, id).await?;
    let mut frames = Frames::new(&bytes);
    let damaged = |offset: usize, reason: String| OpenError::Damaged { segment: id.0, offset, reason };
    let header = match frames.next() {
        Next::Header(header) => header,
        Next::End | Next::Torn if is_last => return Ok(None),
        Next::Damaged(reason) => return Err(damaged(0, reason)),
        Next::Group(_) | Next::End | Next::Torn => {
            return Err(damaged(0, "the segment has no header".into()));
        }
    };
    if header.identity != config.identity || header.number != id.0 {
        return Err(OpenError::Foreign { segment: id.0 });
    }
    let mut follower = Follower::new(&config.owner, &header);
    let mut root_at = (at == Some(header.frontier.size())).then(|| header.frontier.root());
    loop {
        let offset = frames.offset;
        let torn_bytes = match frames.next() {
            Next::Group(group) => {
                follower.take(&group).map_err(|reason| damaged(offset, reason))?;
                if at == Some(group.checkpoint.size) {
                    root_at = Some(group.checkpoint.root);
                }
                continue;
            }
            Next::End => 0,
            Next::Torn if is_last => {
                let content = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                content.saturating_sub(offset) as u64
            }
            Next::Torn => return Err(damaged(offset, "a torn write before later segments".into())),
            Next::Header(_) => return Err(damaged(offset, "a second header".into())),
            Next::Damaged(reason) => return Err(damaged(offset, reason)),
        };
        let last_frame_hash = frames.last_frame_hash;
        let frontier = follower.frontier;
        return Ok(Some(Checked { header, frontier, last_frame_hash, end: offset, torn_bytes, root_at }));
    }
}

async fn check_extends(
    log: &dyn Log,
    config: &AuditConfig,
    end: &End,
    expected: CheckpointMark,
) -> Result<(), OpenError> {
    let found = end.frontier.size();
    let refused = OpenError::DoesNotExtend { found, expected: expected.size };
    // A pool that has recorded nothing yet is extended by any log of its own.
    if expected == CheckpointMark::default() {
        return Ok(());
    }
    if expected.size == found {
        return if end.frontier.root() == expected.root { Ok(()) } else { Err(refused) };
    }
    if expected.size > found {
        return Err(refused);
    }
    // Marks are ends of groups, so the segment that holds one shows its root.
    let number = end.first_indexes.partition_point(|first| *first <= expected.size).saturating_sub(1);
    let id = SegmentId(u32::try_from(number).unwrap_or(u32::MAX));
    let is_last = number + 1 == end.first_indexes.len();
    let root = check_segment(log, config, id, Some(expected.size), is_last)
        .await?
        .and_then(|checked| checked.root_at);
    if root == Some(expected.root) { Ok(()) } else { Err(refused) }
}

async fn read_segment(log: &dyn Log, id: SegmentId) -> Result<Vec<u8>, LogError> {
    let mut bytes = Vec::new();
    loop {
        let page = log.read(id, bytes.len() as u64, READ_BYTES).await?;
        let complete = page.len() < READ_BYTES;
        bytes.extend_from_slice(&page);
        if complete {
            return Ok(bytes);
        }
    }
}

fn unavailable(error: LogError) -> AuditError {
    match error {
        LogError::DiskFull => AuditError::DiskFull,
        error @ (LogError::NoSuchSegment(_) | LogError::Unavailable(_)) => {
            AuditError::Unavailable(error.to_string())
        }
    }
}

/// A panic while the lock is held cannot leave these values half-written.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
