//! Frames: how a segment's bytes are cut, and how a write that was cut short is told from damage.
//!
//! A frame starts at a multiple of 512 bytes and fills whole sectors:
//! `magic 8 | body length u32 LE | header check 4 | digest 32 | body | fill 0xff`. Header check and digest are SHA-256;
//! they find accidents, and signatures find forgeries.
//!
//! One frame is written at a time, after the one before it is durable, over sectors that are zero; a disk writes a
//! sector whole or not at all. So a frame that power loss cut short lacks a sector, which still is zero, and has only
//! zeros behind it. No sector of a finished frame is zero: the first has the magic, the last has fill or the end of a
//! signature, those between have ciphertext, hashes or a certificate. Whatever fits neither is damage, and is
//! reported, never dropped. `docs/formats/audit-log.md` has the argument in full.

use crate::flaw::Flaw;
use crate::reader::SegmentReader;
use crate::tree::Hash;
use crypto::digest::sha256;
use host::LogError;

pub(crate) const SECTOR: usize = 512;
const HEADER_BYTES: usize = 48;
const HEADER_CHECKED_BYTES: usize = 12;
const FILL: u8 = 0xff;
/// A group of a mebibyte of leaves, and room for one more leaf of the largest size and a certificate.
pub(crate) const MAX_BODY_BYTES: usize = 2 << 20;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    SegmentHeader,
    Group,
}

impl Kind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Kind::SegmentHeader => b"HFAUDIT1",
            Kind::Group => b"HFGROUP1",
        }
    }
}

/// What a segment has at some offset.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Found {
    Frame(Frame),
    /// Nothing but zeros from here on.
    End,
    /// A write that was cut short, and was never acknowledged; `bytes` up to the last one that is not zero.
    Torn {
        bytes: u64,
    },
    Damaged(Flaw),
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub kind: Kind,
    pub body: Vec<u8>,
    pub digest: Hash,
    /// Where the next frame starts.
    pub next: u64,
}

/// The frame's bytes and its digest.
pub(crate) fn encode(kind: Kind, body: &[u8]) -> (Vec<u8>, Hash) {
    let mut frame = Vec::with_capacity((HEADER_BYTES + body.len()).next_multiple_of(SECTOR));
    frame.extend_from_slice(kind.magic());
    let length = u32::try_from(body.len()).expect("a group is bounded far below 4 GiB");
    frame.extend_from_slice(&length.to_le_bytes());
    let check = header_check(&frame);
    frame.extend_from_slice(&check);
    let digest = digest(kind, body);
    frame.extend_from_slice(&digest);
    frame.extend_from_slice(body);
    frame.resize(frame.len().next_multiple_of(SECTOR), FILL);
    (frame, digest)
}

/// Reads what is at `offset`, a multiple of 512.
pub(crate) async fn read(segment: &mut SegmentReader<'_>, offset: u64) -> Result<Found, LogError> {
    let sector = segment.bytes(offset, SECTOR).await?;
    if is_zero(sector) {
        return past_a_missing_sector(segment, offset).await;
    }
    // A sector is written whole: a header that is there at all is there in full.
    let Some(header) = Header::parse(sector) else { return Ok(Found::Damaged(Flaw::FrameHeader)) };
    let extent = header.extent();
    let frame = segment.bytes(offset, extent).await?;
    if frame.len() < extent {
        // Zeros reach past a frame's end before it is written.
        return Ok(Found::Damaged(Flaw::FramePastEnd));
    }
    let (body, fill) = frame[HEADER_BYTES..].split_at(header.body_bytes);
    if digest(header.kind, body) == header.digest && fill.iter().all(|byte| *byte == FILL) {
        let body = body.to_vec();
        let next = offset + extent as u64;
        return Ok(Found::Frame(Frame { kind: header.kind, body, digest: header.digest, next }));
    }
    if !frame.chunks(SECTOR).any(is_zero) {
        return Ok(Found::Damaged(Flaw::FrameContent));
    }
    let written = frame.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    match last_content(segment, offset + extent as u64).await? {
        None => Ok(Found::Torn { bytes: written as u64 }),
        Some(_) => Ok(Found::Damaged(Flaw::MissingSector)),
    }
}

/// Where the next frame starts, judged by its header alone: at `offset` or behind it.
pub(crate) async fn find_header(
    segment: &mut SegmentReader<'_>,
    mut offset: u64,
) -> Result<Option<u64>, LogError> {
    loop {
        let sector = segment.bytes(offset, SECTOR).await?;
        if sector.is_empty() {
            return Ok(None);
        }
        if Header::parse(sector).is_some() {
            return Ok(Some(offset));
        }
        offset += SECTOR as u64;
    }
}

/// The first sector of a frame is not there. If a frame follows, something that was acknowledged is lost.
async fn past_a_missing_sector(segment: &mut SegmentReader<'_>, offset: u64) -> Result<Found, LogError> {
    match last_content(segment, offset).await? {
        None => Ok(Found::End),
        Some(_) if find_header(segment, offset).await?.is_some() => Ok(Found::Damaged(Flaw::MissingSector)),
        Some(last) => Ok(Found::Torn { bytes: last + 1 - offset }),
    }
}

/// Where the last byte that is not zero is, from `offset` on.
async fn last_content(segment: &mut SegmentReader<'_>, mut offset: u64) -> Result<Option<u64>, LogError> {
    let mut last = None;
    loop {
        let bytes = segment.bytes(offset, SegmentReader::CHUNK_BYTES).await?;
        if bytes.is_empty() {
            return Ok(last);
        }
        if let Some(position) = bytes.iter().rposition(|byte| *byte != 0) {
            last = Some(offset + position as u64);
        }
        offset += bytes.len() as u64;
    }
}

struct Header {
    kind: Kind,
    body_bytes: usize,
    digest: Hash,
}

impl Header {
    fn parse(sector: &[u8]) -> Option<Self> {
        let header = sector.first_chunk::<HEADER_BYTES>()?;
        let (checked, rest) = header.split_at(HEADER_CHECKED_BYTES);
        let (check, digest) = rest.split_at(4);
        let (magic, length) = checked.split_first_chunk::<8>()?;
        let kind = [Kind::SegmentHeader, Kind::Group].into_iter().find(|kind| kind.magic() == magic)?;
        let body_bytes = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let checks = check == header_check(checked) && body_bytes <= MAX_BODY_BYTES;
        checks.then_some(Self { kind, body_bytes, digest: digest.try_into().ok()? })
    }

    fn extent(&self) -> usize {
        (HEADER_BYTES + self.body_bytes).next_multiple_of(SECTOR)
    }
}

fn header_check(checked: &[u8]) -> [u8; 4] {
    let [a, b, c, d, ..] = sha256(&[b"holdfast frame header v1", checked]);
    [a, b, c, d]
}

fn digest(kind: Kind, body: &[u8]) -> Hash {
    sha256(&[b"holdfast frame v1", kind.magic(), body])
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reader::tests::segment_of;
    use proptest::prelude::*;

    /// No zero bytes, as ciphertext has no zero sectors.
    fn body(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index % 255) as u8 + 1).collect()
    }

    fn segment(bodies: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut starts = Vec::new();
        for length in bodies {
            starts.push(bytes.len());
            bytes.extend(encode(Kind::Group, &body(*length)).0);
        }
        starts.push(bytes.len());
        bytes.resize(bytes.len() + 4 * SECTOR, 0);
        (bytes, starts)
    }

    async fn read_at(bytes: &[u8], offset: usize) -> Found {
        let log = segment_of(bytes);
        read(&mut SegmentReader::new(&log, host::SegmentId(0)), offset as u64).await.unwrap()
    }

    #[tokio::test]
    async fn frames_follow_one_another_to_the_end() {
        let lengths = [10, SECTOR - HEADER_BYTES, SECTOR - HEADER_BYTES + 1, 2000];
        let (bytes, starts) = segment(&lengths);
        for (index, length) in lengths.into_iter().enumerate() {
            let Found::Frame(frame) = read_at(&bytes, starts[index]).await else { panic!("frame {index}") };
            assert_eq!((frame.kind, &frame.body), (Kind::Group, &body(length)));
            assert_eq!(frame.next, starts[index + 1] as u64);
        }
        assert_eq!(read_at(&bytes, starts[lengths.len()]).await, Found::End);
    }

    /// Any set of the last frame's sectors that is not all of them: cut short, or nothing at all.
    #[tokio::test]
    async fn a_last_frame_that_was_cut_short_is_recognised_whichever_sectors_were_written() {
        for length in [1800, 3 * SECTOR - HEADER_BYTES, 3 * SECTOR - HEADER_BYTES + 1] {
            let (bytes, starts) = segment(&[700, length]);
            let sectors = starts[1] / SECTOR..starts[2] / SECTOR;
            for written in 0..(1u32 << sectors.len()) - 1 {
                let mut torn = bytes.clone();
                for (bit, sector) in sectors.clone().enumerate() {
                    if written & (1 << bit) == 0 {
                        torn[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
                    }
                }
                let found = read_at(&torn, starts[1]).await;
                let as_expected = match written {
                    0 => found == Found::End,
                    _ => matches!(found, Found::Torn { bytes } if bytes > 0),
                };
                assert!(as_expected, "length {length}, sectors {written:b}: {found:?}");
            }
        }
    }

    /// The same holes in a frame that another one follows, which was therefore acknowledged.
    #[tokio::test]
    async fn a_missing_sector_before_a_later_frame_is_damage() {
        let (bytes, starts) = segment(&[1800, 10]);
        for sector in 0..starts[1] / SECTOR {
            let mut damaged = bytes.clone();
            damaged[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
            let found = read_at(&damaged, 0).await;
            assert_eq!(found, Found::Damaged(Flaw::MissingSector), "sector {sector}");
        }
    }

    #[tokio::test]
    async fn each_flipped_bit_of_a_written_frame_is_damage() {
        let (bytes, starts) = segment(&[700, 900]);
        for (start, end) in [(starts[0], starts[1]), (starts[1], starts[2])] {
            for bit in start * 8..end * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(read_at(&damaged, start).await, Found::Damaged(_)), "bit {bit}");
            }
        }
    }

    #[tokio::test]
    async fn a_bit_in_what_was_never_written_is_seen() {
        let (bytes, starts) = segment(&[700]);
        for bit in starts[1] * 8..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = read_at(&damaged, starts[1]).await;
            assert!(matches!(found, Found::Torn { .. } | Found::Damaged(_)), "bit {bit}: {found:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_cut_is_damage() {
        let (bytes, _) = segment(&[700]);
        for length in 1..2 * SECTOR {
            let found = read_at(&bytes[..length], 0).await;
            assert!(matches!(found, Found::Damaged(_)), "length {length}: {found:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            body in proptest::collection::vec(any::<u8>(), 0..600),
            at in 0usize..4,
        ) {
            let frame = encode(Kind::Group, &body).0;
            let at = (at * SECTOR).min(bytes.len());
            bytes.splice(at..(at + frame.len()).min(bytes.len()), frame);
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for offset in (0..bytes.len() + 2 * SECTOR).step_by(SECTOR) {
                let _ = runtime.block_on(read_at(&bytes, offset));
            }
        }
    }
}
