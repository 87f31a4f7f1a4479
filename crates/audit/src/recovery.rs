//! Opening: finds a log's end, and checks that the log extends what the pool has on record.
//!
//! Reads the segment that holds the pool's last known checkpoint and those after it; usually that is the last one alone.
//! Each of their frames is checked by its digest and each root is computed anew; of the signatures only each segment's
//! last is checked, whose root covers all before it. `verify` checks every one.

use crate::flaw::Flaw;
use crate::log::{AuditConfig, CheckpointMark, OpenError};
use crate::reader::SegmentReader;
use crate::segment::{Follower, Next, Segment, SegmentHeader};
use crate::tree::{Frontier, Hash};
use domain::time::Time;
use host::{Log, SegmentId};

/// Where a log ends and how it goes on.
pub(crate) struct End {
    pub frontier: Frontier,
    /// `None` for a new log.
    pub segment: Option<OpenSegment>,
    /// Of the last frame.
    pub digest: Hash,
    pub last_checkpoint: Option<Time>,
    /// Index of the first event of each segment that has a header.
    pub first_indexes: Vec<u64>,
    /// First index and offset of each group of the last segment.
    pub groups: Vec<(u64, u64)>,
    pub torn_bytes: u64,
}

/// The segment that is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenSegment {
    pub id: SegmentId,
    /// Where the next frame goes.
    pub offset: u64,
}

pub(crate) async fn find_end(
    log: &dyn Log,
    config: &AuditConfig,
    expected: CheckpointMark,
) -> Result<End, OpenError> {
    let segments = log.segments().await?;
    for (number, segment) in (0..).zip(&segments) {
        if segment.id != SegmentId(number) {
            return Err(damaged(SegmentId(number), 0, Flaw::OutOfOrder { found: segment.id.0 }));
        }
    }
    let mut first_indexes = Vec::with_capacity(segments.len());
    for segment in &segments {
        match read_header(log, config, segment.id).await? {
            Ok(header) => first_indexes.push(header.frontier.size()),
            // Power was lost between the last segment's creation and its header.
            Err(Next::End | Next::Torn(_)) if segment.id.0 as usize + 1 == segments.len() => {}
            Err(other) => return Err(damaged(segment.id, 0, header_flaw(other))),
        }
    }
    let mut end = End {
        frontier: Frontier::default(),
        segment: None,
        digest: [0; 32],
        last_checkpoint: None,
        first_indexes,
        groups: Vec::new(),
        torn_bytes: 0,
    };
    let mut root_at_mark = (expected.size == 0).then_some(expected.root);
    let start = first_segment_to_follow(&end.first_indexes, expected);
    for segment in segments.iter().skip(start) {
        let is_first = segment.id.0 as usize == start;
        let is_last = segment.id.0 as usize + 1 == segments.len();
        let followed = follow(log, config, segment.id, is_last, expected.size, &mut end).await?;
        if let Some(Followed { header, before, root_at, .. }) = followed {
            let (frontier, digest) = before;
            let nothing_before = segment.id == SegmentId(0);
            if (!is_first || nothing_before) && (header.frontier != frontier || header.previous != digest) {
                return Err(damaged(segment.id, 0, Flaw::DoesNotContinue));
            }
            root_at_mark = root_at_mark.or(root_at);
        }
    }
    let found = end.frontier.size();
    if root_at_mark == Some(expected.root) && expected.size <= found {
        Ok(end)
    } else {
        Err(OpenError::DoesNotExtend { found, expected: expected.size })
    }
}

/// The segment that holds the mark. Without a mark, and where the last segment has no header yet, the one before the
/// last as well, so that where they meet is checked.
fn first_segment_to_follow(first_indexes: &[u64], expected: CheckpointMark) -> usize {
    let last = first_indexes.len().saturating_sub(1);
    match expected.size {
        0 => last.saturating_sub(1),
        size => first_indexes.partition_point(|first| *first < size).saturating_sub(1),
    }
}

struct Followed {
    header: SegmentHeader,
    /// Frontier and digest at the end of the segment before, if that was followed.
    before: (Frontier, Hash),
    /// The root at the asked size, if a group of this segment ends there.
    root_at: Option<Hash>,
}

/// Follows a segment to its end and moves `end` there; `None` where it has no header yet.
async fn follow(
    log: &dyn Log,
    config: &AuditConfig,
    id: SegmentId,
    is_last: bool,
    size: u64,
    end: &mut End,
) -> Result<Option<Followed>, OpenError> {
    let mut segment = Segment::new(SegmentReader::new(log, id));
    end.groups.clear();
    let header = match segment.next().await? {
        Next::Header(header) => header,
        found @ (Next::End | Next::Torn(_)) if is_last => {
            end.segment = Some(OpenSegment { id, offset: 0 });
            if let Next::Torn(bytes) = found {
                end.torn_bytes = bytes;
            }
            return Ok(None);
        }
        other => return Err(damaged(id, 0, header_flaw(other))),
    };
    let before = (std::mem::take(&mut end.frontier), end.digest);
    let mut follower = Follower::new(&config.owner, &header);
    let mut last_checkpoint = None;
    let mut root_at = None;
    let torn_bytes = loop {
        let offset = segment.offset;
        let group = match segment.next().await? {
            Next::Group(group) => group,
            Next::End => break 0,
            Next::Torn(bytes) if is_last => break bytes,
            Next::Torn(_) => return Err(damaged(id, offset, Flaw::TornBeforeLaterSegment)),
            Next::Header(_) => return Err(damaged(id, offset, Flaw::Malformed)),
            Next::Damaged(flaw) => return Err(damaged(id, offset, flaw)),
        };
        follower
            .take_leaves(&group)
            .and_then(|()| follower.take_certificate(&group))
            .map_err(|flaw| damaged(id, offset, flaw))?;
        if group.checkpoint.size == size {
            root_at = Some(group.checkpoint.root);
        }
        end.groups.push((group.first_index, offset));
        last_checkpoint = Some((offset, group.checkpoint));
    };
    if let Some((offset, checkpoint)) = last_checkpoint {
        follower.check_signature(&checkpoint).map_err(|flaw| damaged(id, offset, flaw))?;
        end.last_checkpoint = Some(checkpoint.time);
    }
    end.frontier = follower.frontier;
    end.digest = segment.digest;
    end.segment = Some(OpenSegment { id, offset: segment.offset });
    end.torn_bytes = torn_bytes;
    Ok(Some(Followed { header, before, root_at }))
}

/// The header, or what is there instead.
async fn read_header(
    log: &dyn Log,
    config: &AuditConfig,
    id: SegmentId,
) -> Result<Result<SegmentHeader, Next>, OpenError> {
    let header = match Segment::new(SegmentReader::for_header(log, id)).next().await? {
        Next::Header(header) => header,
        other => return Ok(Err(other)),
    };
    if header.identity != config.identity {
        return Err(damaged(id, 0, Flaw::Foreign));
    }
    if header.number != id.0 {
        return Err(damaged(id, 0, Flaw::OutOfOrder { found: header.number }));
    }
    Ok(Ok(header))
}

pub(crate) fn header_flaw(found: Next) -> Flaw {
    match found {
        Next::Damaged(flaw) => flaw,
        Next::Header(_) | Next::Group(_) | Next::End | Next::Torn(_) => Flaw::NoHeader,
    }
}

fn damaged(segment: SegmentId, offset: u64, flaw: Flaw) -> OpenError {
    OpenError::Damaged { segment: segment.0, offset, flaw }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Group;
    use crate::verify::tests::{Forger, IDENTITY, INCARNATION, header, log_of};

    async fn end_of(forger: &Forger, header: SegmentHeader, groups: &[Group]) -> Result<End, OpenError> {
        let owner = forger.owner.owner_key().public_key();
        let config =
            AuditConfig::new(IDENTITY.pool, IDENTITY.genesis_hash, IDENTITY.node, INCARNATION, owner);
        find_end(&log_of(header, groups), &config, CheckpointMark::default()).await
    }

    /// Frames that check, of someone who has the disk and no key.
    #[tokio::test]
    async fn a_log_whose_last_checkpoint_is_forged_does_not_open() {
        let mut forger = Forger::new();
        let certificate = forger.certificate(|_| {});
        let first = forger.group(certificate, |_| {});
        let mut second = forger.group(Vec::new(), |_| {});
        let end = end_of(&forger, header(), &[first.clone(), second.clone()]).await.unwrap();
        assert_eq!((end.frontier.size(), end.groups.len(), end.first_indexes), (4, 2, vec![0]));
        second.checkpoint.signature[0] ^= 1;
        let refused = end_of(&forger, header(), &[first.clone(), second]).await.err();
        assert!(matches!(refused, Some(OpenError::Damaged { flaw: Flaw::Signature, .. })), "{refused:?}");

        let elsewhere = SegmentHeader { previous: [1; 32], ..header() };
        let refused = end_of(&forger, elsewhere, &[first]).await.err();
        assert!(
            matches!(refused, Some(OpenError::Damaged { flaw: Flaw::DoesNotContinue, .. })),
            "{refused:?}"
        );
    }
}
