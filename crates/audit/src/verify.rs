//! Offline verification with nothing but the owner's public key: every hash, root, certificate and signature of every
//! segment. One segment is in memory at a time.

use crate::segment::{Follower, Frames, Next};
use crate::tree::{Frontier, Hash};
use crypto::certificate::OwnerPublicKey;
use domain::guid::Guid;
use domain::time::{IntDate, Time};
use std::io;
use std::path::{Path, PathBuf};

/// Where segments are read from, in order.
pub trait SegmentSource {
    fn count(&self) -> usize;
    fn read(&self, number: usize) -> io::Result<Vec<u8>>;
}

/// A pool's log directory.
pub struct Directory {
    segments: Vec<PathBuf>,
}

impl Directory {
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_segment = |name: &str| name.starts_with("segment-") && name.ends_with(".log");
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_segment) {
                segments.push(entry.path());
            }
        }
        // Names have a fixed width, so their order is that of their numbers.
        segments.sort();
        Ok(Self { segments })
    }
}

impl SegmentSource for Directory {
    fn count(&self) -> usize {
        self.segments.len()
    }

    fn read(&self, number: usize) -> io::Result<Vec<u8>> {
        std::fs::read(&self.segments[number])
    }
}

/// One start of a core, as its certificate and its checkpoints show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Incarnation {
    pub incarnation: Guid,
    pub node: Guid,
    pub first_index: u64,
    pub last_index: u64,
    pub not_after: IntDate,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub pool: Option<Guid>,
    pub genesis_hash: Option<[u8; 32]>,
    pub segments: usize,
    pub groups: u64,
    pub events: u64,
    pub root: Hash,
    pub last_checkpoint: Option<Time>,
    pub incarnations: Vec<Incarnation>,
    /// Bytes of a write that was cut short, or is under way.
    pub torn_bytes: u64,
    /// Empty if and only if everything checks.
    pub failures: Vec<Failure>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("segment {segment}, byte {offset}: {reason}")]
pub struct Failure {
    pub segment: usize,
    pub offset: usize,
    pub reason: String,
}

/// Verifies all of `source`. A failure ends the check of its segment; the next segments are still looked at, from what
/// their headers claim.
pub fn verify(source: &dyn SegmentSource, owner: &OwnerPublicKey) -> io::Result<Report> {
    let mut report = Report { root: Frontier::default().root(), ..Report::default() };
    let mut before: Option<(Frontier, [u8; 32])> = Some((Frontier::default(), [0; 32]));
    for number in 0..source.count() {
        let bytes = source.read(number)?;
        let is_last = number + 1 == source.count();
        before = verify_segment(&mut report, owner, number, &bytes, is_last, before);
        report.segments += 1;
    }
    Ok(report)
}

/// Returns the frontier and the last frame's hash where the segment checks to its end.
fn verify_segment(
    report: &mut Report,
    owner: &OwnerPublicKey,
    segment: usize,
    bytes: &[u8],
    is_last: bool,
    before: Option<(Frontier, [u8; 32])>,
) -> Option<(Frontier, [u8; 32])> {
    let mut frames = Frames::new(bytes);
    let fail = |report: &mut Report, offset: usize, reason: String| {
        report.failures.push(Failure { segment, offset, reason });
        None
    };
    let header = match frames.next() {
        Next::Header(header) => header,
        Next::End | Next::Torn if is_last => return before,
        Next::Damaged(reason) => return fail(report, 0, reason),
        Next::Group(_) | Next::End | Next::Torn => {
            return fail(report, 0, "the segment has no header".into());
        }
    };
    let identity = &header.identity;
    let foreign = report.pool.is_some_and(|pool| pool != identity.pool)
        || report.genesis_hash.is_some_and(|hash| hash != identity.genesis_hash);
    if foreign || header.number as usize != segment {
        return fail(report, 0, "the segment belongs to another pool, or is out of order".into());
    }
    report.pool = Some(identity.pool);
    report.genesis_hash = Some(identity.genesis_hash);
    if let Some((frontier, previous)) = before
        && (header.frontier != frontier || header.previous != previous)
    {
        return fail(report, 0, "the segment does not continue the one before it".into());
    }
    let mut follower = Follower::new(owner, &header);
    loop {
        let offset = frames.offset;
        match frames.next() {
            Next::Group(group) => {
                if let Err(reason) = follower.take(&group) {
                    return fail(report, offset, reason);
                }
                let checkpoint = &group.checkpoint;
                report.groups += 1;
                report.events = checkpoint.size;
                report.root = checkpoint.root;
                report.last_checkpoint = Some(checkpoint.time);
                let not_after = follower.instances[&checkpoint.incarnation].0.not_after;
                let last_index = checkpoint.size.saturating_sub(1);
                match report.incarnations.last_mut() {
                    Some(held) if held.incarnation == checkpoint.incarnation => held.last_index = last_index,
                    Some(_) | None => report.incarnations.push(Incarnation {
                        incarnation: checkpoint.incarnation,
                        node: checkpoint.node,
                        first_index: group.first_index,
                        last_index,
                        not_after,
                    }),
                }
            }
            Next::End => return Some((follower.frontier, frames.last_frame_hash)),
            Next::Torn if is_last => {
                let content = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                report.torn_bytes = content.saturating_sub(offset) as u64;
                return Some((follower.frontier, frames.last_frame_hash));
            }
            Next::Torn => return fail(report, offset, "a torn write before later segments".into()),
            Next::Header(_) => return fail(report, offset, "a second header".into()),
            Next::Damaged(reason) => return fail(report, offset, reason),
        }
    }
}
