//! Private parsers, for fuzz targets alone.

use crate::reader::SegmentReader;
use crate::segment::{Group, Next, Segment, SegmentHeader};
use host::{Log, SegmentId};

/// Follows the first segment of `log` from frame to frame, as opening and verifying do, to its end or its first flaw.
/// Gives how many frames there were.
pub async fn frames(log: &dyn Log) -> usize {
    let mut segment = Segment::new(SegmentReader::new(log, SegmentId(0)));
    let mut frames = 0;
    loop {
        let before = segment.offset;
        match segment.next().await {
            Ok(Next::Header(_) | Next::Group(_)) => frames += 1,
            Ok(Next::End | Next::Torn(_) | Next::Damaged(_)) | Err(_) => return frames,
        }
        assert!(segment.offset > before, "no progress at byte {before}");
    }
}

/// The frame of a segment's header that was read from a frame's body.
pub fn header(body: &[u8]) -> Option<Vec<u8>> {
    SegmentHeader::parse(body).map(|header| header.to_frame().0)
}

/// The frame of a group that was read from a frame's body.
pub fn group(body: &[u8]) -> Option<Vec<u8>> {
    Group::parse(body).map(|group| group.to_frame().0)
}
