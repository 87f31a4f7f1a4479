//! The log's files: a directory of segments, zero-filled ahead of where the next append goes.
//!
//! One thread writes and syncs, so that no caller blocks its runtime. Appends overwrite zeros that are on the
//! disk already, which makes a sync cheap and lets a reader tell a write that never arrived (zeros) from
//! damage. What the bytes mean is the core's business; nothing here reads them.
//!
//! A failed write or sync is never retried: the kernel may have thrown the pages away and would report
//! success next time. The log is unavailable until it is opened again.
//!
//! File naming and zero-filling are described in `docs/formats/log-directory.md`.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use async_trait::async_trait;
use host::{Log, LogError, SegmentId, SegmentInfo};
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Directory, DiskFile, FileDirectory, is_disk_full};
use crate::lock::{LockError, ProcessLock};

/// Appends that may wait for the writer, and most of them in one sync.
const QUEUE: usize = 1024;
/// Bytes that are gathered for one sync; one append may be larger.
const MAX_GROUP_BYTES: usize = 8 * 1024 * 1024;
/// What zero-filling writes at a time, and `resume` reads at a time.
const BLOCK: usize = 64 * 1024;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What an append waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogDurability {
    /// The bytes are on the disk.
    Synced,
    /// The operating system has the bytes; power loss may take them. For test pools only.
    Written,
}

#[derive(Clone, Debug)]
pub struct LogOptions {
    pub durability: LogDurability,
    /// A new segment is filled with zeros this far, and an append refills to it.
    pub ahead_bytes: u64,
    /// How much is filled at a time while the log is idle.
    pub step_bytes: u64,
    /// Zero-filling stops while less is free; appends are refused with [`LogError::DiskFull`] once what is
    /// filled is used up.
    pub reserve_bytes: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            durability: LogDurability::Synced,
            ahead_bytes: 4 * 1024 * 1024,
            step_bytes: 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
        }
    }
}

/// [`Log`] on a directory of files. Dropping it finishes what was queued, then closes the files.
#[derive(Debug)]
pub struct FileLog {
    directory: Arc<dyn Directory>,
    failure: Arc<OnceLock<String>>,
    /// `None` once closed, where the writer ends, and where the log was opened to read it.
    queue: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
    _lock: Option<ProcessLock>,
}

impl FileLog {
    /// Opens the log in `directory`, or starts one. Refused while another process, or another log of this
    /// one, has it open.
    pub fn open(directory: impl AsRef<Path>, options: LogOptions) -> Result<Self, LogError> {
        let path = directory.as_ref();
        let directory = FileDirectory::open(path).map_err(|error| cannot_open(&error))?;
        let lock = ProcessLock::acquire(path).map_err(|error| match error {
            LockError::Held { pid } => LogError::Unavailable(format!(
                "another process (pid {pid}) has the log at {} open",
                path.display()
            )),
            LockError::Io(error) => cannot_open(&error),
        })?;
        Self::start(Arc::new(directory), options, Some(lock))
    }

    /// Opens the log in `directory`, or starts one, without a lock: for directories that no second process
    /// can reach.
    pub fn open_in(directory: Arc<dyn Directory>, options: LogOptions) -> Result<Self, LogError> {
        Self::start(directory, options, None)
    }

    /// Opens the log in `directory` to read it, even while its owner appends; nothing can be written.
    pub fn open_read_only(directory: impl AsRef<Path>) -> Result<Self, LogError> {
        let directory =
            FileDirectory::open_read_only(directory.as_ref()).map_err(|error| cannot_open(&error))?;
        segment_ids(&directory).map_err(|error| cannot_open(&error))?;
        Ok(Self {
            directory: Arc::new(directory),
            failure: Arc::default(),
            queue: None,
            writer: None,
            _lock: None,
        })
    }

    fn start(
        directory: Arc<dyn Directory>,
        options: LogOptions,
        lock: Option<ProcessLock>,
    ) -> Result<Self, LogError> {
        let last = segment_ids(&*directory).map_err(|error| cannot_open(&error))?.last().copied();
        let failure = Arc::<OnceLock<String>>::default();
        let (queue, requests) = mpsc::channel(QUEUE);
        let writer = Writer {
            directory: Arc::clone(&directory),
            failure: Arc::clone(&failure),
            requests,
            options,
            last,
            current: None,
        };
        let writer = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || writer.run())
            .map_err(|error| cannot_open(&error))?;
        Ok(Self { directory, failure, queue: Some(queue), writer: Some(writer), _lock: lock })
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, LogError>>) -> Request,
    ) -> Result<T, LogError> {
        self.check()?;
        let (reply, answer) = oneshot::channel();
        let read_only = || LogError::Unavailable("the log was opened to read it".into());
        let queue = self.queue.as_ref().ok_or_else(read_only)?;
        queue.send(request(reply)).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    fn check(&self) -> Result<(), LogError> {
        check_failure(&self.failure)
    }
}

impl Drop for FileLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Log for FileLog {
    async fn segments(&self) -> Result<Vec<SegmentInfo>, LogError> {
        let describe = || -> io::Result<Vec<SegmentInfo>> {
            let ids = segment_ids(&*self.directory)?;
            let describe = |id| Ok(SegmentInfo { id, bytes: self.directory.open(&file_name(id))?.len()? });
            ids.into_iter().map(describe).collect()
        };
        describe().map_err(|error| LogError::Unavailable(format!("cannot list the segments: {error}")))
    }

    /// Reads on the caller's thread, and goes on reading after a failed write.
    async fn read(&self, segment: SegmentId, offset: u64, max: usize) -> Result<Vec<u8>, LogError> {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.directory.open(&file_name(segment))?;
            let left = usize::try_from(file.len()?.saturating_sub(offset)).unwrap_or(usize::MAX);
            let mut bytes = vec![0; left.min(max)];
            // An offset far behind the end is no offset to the operating system.
            if !bytes.is_empty() {
                file.read_at(offset, &mut bytes)?;
            }
            Ok(bytes)
        };
        read().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => LogError::NoSuchSegment(segment),
            _ => LogError::Unavailable(format!("cannot read segment {}: {error}", segment.0)),
        })
    }

    /// Refused for any but the last segment, for an end behind it, and once the log is written: a second
    /// resume could zero what was acknowledged.
    async fn resume(&self, segment: SegmentId, end: u64) -> Result<(), LogError> {
        self.ask(|reply| Request::Resume { segment, end, reply }).await
    }

    async fn roll(&self) -> Result<SegmentId, LogError> {
        self.ask(|reply| Request::Roll { reply }).await
    }

    /// Refused on an opened log before it is resumed or rolled. A caller that gives up waiting does not take
    /// its append back.
    async fn append(&self, bytes: Vec<u8>) -> Result<(), LogError> {
        self.ask(|reply| Request::Append { bytes, reply }).await
    }
}

#[derive(Debug)]
enum Request {
    Append { bytes: Vec<u8>, reply: oneshot::Sender<Result<(), LogError>> },
    Resume { segment: SegmentId, end: u64, reply: oneshot::Sender<Result<(), LogError>> },
    Roll { reply: oneshot::Sender<Result<SegmentId, LogError>> },
}

/// The segment that is written.
struct Current {
    file: Box<dyn DiskFile>,
    /// Where the next append goes.
    position: u64,
    /// Everything between `position` and here is zero.
    filled: u64,
}

struct Writer {
    directory: Arc<dyn Directory>,
    failure: Arc<OnceLock<String>>,
    requests: mpsc::Receiver<Request>,
    options: LogOptions,
    last: Option<SegmentId>,
    /// `None` until the log is resumed or rolled.
    current: Option<Current>,
}

impl Writer {
    fn run(mut self) {
        let mut next = None;
        loop {
            let request = match next.take() {
                Some(request) => request,
                None => match self.requests.blocking_recv() {
                    Some(request) => request,
                    None => return,
                },
            };
            match request {
                Request::Append { bytes, reply } => next = self.append_group(bytes, reply),
                Request::Resume { segment, end, reply } => {
                    let _ = reply.send(self.guarded(|writer| writer.resume(segment, end)));
                }
                Request::Roll { reply } => drop(reply.send(self.guarded(Self::roll))),
            }
            if next.is_none() {
                self.fill_while_idle();
            }
        }
    }

    /// Appends `bytes` and what else waits, with one sync. Returns a request of another kind that ended it.
    fn append_group(
        &mut self,
        bytes: Vec<u8>,
        reply: oneshot::Sender<Result<(), LogError>>,
    ) -> Option<Request> {
        let mut joined = bytes;
        let mut replies = vec![reply];
        let mut other = None;
        while replies.len() < QUEUE && joined.len() < MAX_GROUP_BYTES {
            match self.requests.try_recv() {
                Ok(Request::Append { bytes, reply }) => {
                    joined.extend_from_slice(&bytes);
                    replies.push(reply);
                }
                Ok(request @ (Request::Resume { .. } | Request::Roll { .. })) => {
                    other = Some(request);
                    break;
                }
                Err(_) => break,
            }
        }
        match self.guarded(|writer| writer.append(&joined)) {
            Ok(()) => replies.into_iter().for_each(|reply| drop(reply.send(Ok(())))),
            Err(error) => replies.into_iter().for_each(|reply| drop(reply.send(Err(repeat(&error))))),
        }
        other
    }

    /// Runs `step` unless the log has failed; an error of the disk other than "full, nothing written" is the
    /// end of the log.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, StepError>) -> Result<T, LogError> {
        check_failure(&self.failure)?;
        step(self).map_err(|error| match error {
            StepError::Refused(error) => error,
            StepError::Failed(error) => {
                let reason = self.failure.get_or_init(|| format!("log failed: {error}"));
                LogError::Unavailable(reason.clone())
            }
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StepError> {
        let Self { current, directory, options, .. } = self;
        let current = current.as_mut().ok_or_else(not_resumed)?;
        let end = current.position.checked_add(bytes.len() as u64).ok_or_else(not_resumed)?;
        if end > current.filled {
            // Also for an append larger than what is filled ahead: space is taken before the first byte that
            // matters is written, so that a full disk never tears a record.
            match current.fill_to(end + options.step_bytes, &**directory, options) {
                Err(StepError::Refused(LogError::DiskFull)) => current.fill_to(end, &**directory, options)?,
                filled => filled?,
            }
        }
        current.file.write_at(current.position, bytes).map_err(StepError::Failed)?;
        if options.durability == LogDurability::Synced {
            current.file.sync().map_err(StepError::Failed)?;
        }
        current.position = end;
        Ok(())
    }

    fn resume(&mut self, segment: SegmentId, end: u64) -> Result<(), StepError> {
        let refused =
            |why: &str| Err(StepError::Refused(LogError::Unavailable(format!("cannot resume: {why}"))));
        match self.last {
            Some(last) if segment == last => {}
            Some(last) if segment < last => return refused("only the last segment is written"),
            Some(_) | None => return Err(StepError::Refused(LogError::NoSuchSegment(segment))),
        }
        if self.current.is_some() {
            return refused("the log is being written");
        }
        let file = self.directory.open(&file_name(segment)).map_err(StepError::Failed)?;
        let length = file.len().map_err(StepError::Failed)?;
        if end > length {
            return refused("its end lies behind the segment");
        }
        let mut current = Current { file, position: end, filled: length };
        current.zero_behind(length).map_err(StepError::Failed)?;
        // Synced whatever the durability: what was read as the end must stay the end.
        current.file.sync().map_err(StepError::Failed)?;
        self.current = Some(current);
        Ok(())
    }

    fn roll(&mut self) -> Result<SegmentId, StepError> {
        let id = match self.last {
            None => SegmentId(0),
            Some(last) => SegmentId(last.0.checked_add(1).ok_or_else(not_resumed)?),
        };
        refuse_below_reserve(&*self.directory, self.options.ahead_bytes, &self.options)?;
        let file = match self.directory.create(&file_name(id)) {
            Ok(file) => file,
            Err(error) if is_disk_full(&error) => return Err(StepError::Refused(LogError::DiskFull)),
            Err(error) => return Err(StepError::Failed(error)),
        };
        let mut current = Current { file, position: 0, filled: 0 };
        if let Err(error) = current.fill_to(self.options.ahead_bytes, &*self.directory, &self.options) {
            // Nothing was promised about this segment yet. If its name cannot be taken back either, the log
            // fails: the next roll would find the name in use.
            drop(current);
            self.directory.remove(&file_name(id)).map_err(StepError::Failed)?;
            return Err(error);
        }
        current.file.sync().map_err(StepError::Failed)?;
        self.directory.sync().map_err(StepError::Failed)?;
        self.last = Some(id);
        self.current = Some(current);
        Ok(id)
    }

    /// Refills the zeros in steps while nobody waits, so that an append seldom has to.
    fn fill_while_idle(&mut self) {
        if self.failure.get().is_some() {
            return;
        }
        let Some(current) = &self.current else { return };
        if current.filled - current.position + self.options.step_bytes > self.options.ahead_bytes {
            return;
        }
        let to = current.filled + self.options.step_bytes;
        // A full disk is reported by the append that needs the space; any other failure is remembered.
        let _ = self.guarded(|writer| {
            let Self { current, directory, options, .. } = writer;
            current.as_mut().ok_or_else(not_resumed)?.fill_to(to, &**directory, options)
        });
    }
}

impl Current {
    /// Writes zeros from `filled` to `to` and syncs them.
    fn fill_to(&mut self, to: u64, directory: &dyn Directory, options: &LogOptions) -> Result<(), StepError> {
        refuse_below_reserve(directory, to.saturating_sub(self.filled), options)?;
        let mut offset = self.filled;
        while offset < to {
            let length = usize::try_from(to - offset).unwrap_or(BLOCK).min(BLOCK);
            // A failed fill may leave some zeros behind the end; they are filled again later.
            self.file.write_at(offset, &ZEROS[..length]).map_err(full_or_failed)?;
            offset += length as u64;
        }
        if options.durability == LogDurability::Synced {
            self.file.sync().map_err(StepError::Failed)?;
        }
        self.filled = self.filled.max(to);
        Ok(())
    }

    /// Zeroes what is not zero between `position` and `length`.
    fn zero_behind(&mut self, length: u64) -> io::Result<()> {
        let mut block = [0; BLOCK];
        let mut offset = self.position;
        while offset < length {
            let step = usize::try_from(length - offset).unwrap_or(BLOCK).min(BLOCK);
            self.file.read_at(offset, &mut block[..step])?;
            if block[..step] != ZEROS[..step] {
                self.file.write_at(offset, &ZEROS[..step])?;
            }
            offset += step as u64;
        }
        Ok(())
    }
}

enum StepError {
    /// Nothing of consequence was written; the log goes on.
    Refused(LogError),
    Failed(io::Error),
}

fn full_or_failed(error: io::Error) -> StepError {
    if is_disk_full(&error) { StepError::Refused(LogError::DiskFull) } else { StepError::Failed(error) }
}

fn refuse_below_reserve(
    directory: &dyn Directory,
    wanted: u64,
    options: &LogOptions,
) -> Result<(), StepError> {
    let free = directory.free_bytes().map_err(StepError::Failed)?;
    match free < options.reserve_bytes.saturating_add(wanted) {
        true => Err(StepError::Refused(LogError::DiskFull)),
        false => Ok(()),
    }
}

/// The number in decimal, with at least eight digits.
fn file_name(id: SegmentId) -> String {
    format!("segment-{:08}.log", id.0)
}

fn parse_file_name(name: &str) -> Option<SegmentId> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".log")?;
    let id = SegmentId(digits.parse().ok()?);
    (file_name(id) == name).then_some(id)
}

/// Segments in order; a gap is refused, because a core that reads on past it would take a hole for an end.
fn segment_ids(directory: &dyn Directory) -> io::Result<Vec<SegmentId>> {
    let mut ids: Vec<SegmentId> = directory.list()?.iter().filter_map(|name| parse_file_name(name)).collect();
    ids.sort();
    for (expected, id) in (0..).map(SegmentId).zip(&ids) {
        if *id != expected {
            return Err(io::Error::other(format!("{} is missing", file_name(expected))));
        }
    }
    Ok(ids)
}

fn not_resumed() -> StepError {
    StepError::Refused(LogError::Unavailable("the log was not resumed at an end".into()))
}

fn check_failure(failure: &OnceLock<String>) -> Result<(), LogError> {
    failure.get().map_or(Ok(()), |reason| Err(LogError::Unavailable(reason.clone())))
}

fn closed() -> LogError {
    LogError::Unavailable("closed".into())
}

fn cannot_open(error: &dyn std::fmt::Display) -> LogError {
    LogError::Unavailable(format!("cannot open the log: {error}"))
}

/// One answer for each append of a group that failed together.
fn repeat(error: &LogError) -> LogError {
    match error {
        LogError::DiskFull => LogError::DiskFull,
        LogError::NoSuchSegment(segment) => LogError::NoSuchSegment(*segment),
        LogError::Unavailable(reason) => LogError::Unavailable(reason.clone()),
    }
}
