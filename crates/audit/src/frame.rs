//! Frames: how a segment's bytes are cut, and how a torn write is told from damage.
//!
//! `magic "HFfr" | kind u8 | body length u32 LE | header check 4 bytes | body | body check 8 bytes | end mark 0xa5`. The
//! checks are the first bytes of SHA-256; they find accidents, and signatures find forgeries.
//!
//! A frame is appended only after the one before it is durable, over bytes that are zero, and a disk writes sectors of
//! 512 bytes whole or not at all. So a frame that power loss cut short has a sector that is still zero, and nothing
//! but zeros behind it; nothing that was acknowledged is in it. No sector of a finished frame is zero: the first has the
//! magic, the last the end mark, and those between are ciphertext, hashes and signatures. Whatever else does not check is damage, and is reported, never dropped.

use crypto::digest::sha256;

const MAGIC: [u8; 4] = *b"HFfr";
pub(crate) const HEADER_BYTES: usize = 13;
const CHECK_BYTES: usize = 8;
const END_MARK: u8 = 0xa5;
/// Behind the body.
const TRAILER_BYTES: usize = CHECK_BYTES + 1;
const SECTOR: usize = 512;
/// A group of 1,024 leaves of 1 KiB, with room.
pub(crate) const MAX_BODY_BYTES: usize = 4 << 20;

pub(crate) const KIND_SEGMENT_HEADER: u8 = 1;
pub(crate) const KIND_GROUP: u8 = 2;

#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Parsed<'a> {
    Frame {
        kind: u8,
        body: &'a [u8],
        next: usize,
    },
    /// Nothing but zeros from here on.
    End,
    /// A write that power loss cut short: never acknowledged.
    Torn,
    Damaged(&'static str),
}

pub(crate) fn encode(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + body.len() + TRAILER_BYTES);
    frame.extend_from_slice(&MAGIC);
    frame.push(kind);
    let length = u32::try_from(body.len()).expect("a group is bounded far below 4 GiB");
    frame.extend_from_slice(&length.to_le_bytes());
    let check = header_check(&frame);
    frame.extend_from_slice(&check);
    frame.extend_from_slice(body);
    frame.extend_from_slice(&body_check(kind, body));
    frame.push(END_MARK);
    frame
}

/// Reads the frame at `offset` of a segment.
pub(crate) fn parse(segment: &[u8], offset: usize) -> Parsed<'_> {
    let rest = &segment[offset.min(segment.len())..];
    if rest.iter().all(|byte| *byte == 0) {
        return Parsed::End;
    }
    let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
        return Parsed::Damaged("bytes behind the last frame");
    };
    if header[9..] != header_check(&header[..9]) {
        return torn_or(segment, offset, None, "the frame's header does not check");
    }
    let length = u32::from_le_bytes([header[5], header[6], header[7], header[8]]) as usize;
    if header[..4] != MAGIC || length > MAX_BODY_BYTES {
        return Parsed::Damaged("not a frame of format version 1");
    }
    let end = HEADER_BYTES + length + TRAILER_BYTES;
    let body = rest.get(HEADER_BYTES..HEADER_BYTES + length);
    let trailer = rest.get(HEADER_BYTES + length..end);
    match (body, trailer) {
        (Some(body), Some([check @ .., END_MARK])) if check == body_check(header[4], body) => {
            Parsed::Frame { kind: header[4], body, next: offset + end }
        }
        (_, _) => torn_or(segment, offset, Some(offset + end), "the frame's body does not check"),
    }
}

/// Torn if a sector of the frame was not written and nothing follows it; otherwise damaged. `end` is unknown where the
/// header does not check: then only the sectors that hold the header are looked at, and what is behind may belong to it.
fn torn_or<'a>(segment: &[u8], start: usize, end: Option<usize>, reason: &'static str) -> Parsed<'a> {
    let is_zero = |from: usize, to: usize| {
        let to = to.min(segment.len());
        from < to && segment[from..to].iter().all(|byte| *byte == 0)
    };
    let looked_at = end.unwrap_or(start + HEADER_BYTES).min(segment.len());
    let mut from = start;
    while from < looked_at {
        let sector_end = (from / SECTOR + 1) * SECTOR;
        let first = from == start;
        if is_zero(from, end.map_or(sector_end, |end| sector_end.min(end))) {
            return match end {
                Some(end) if !first && end < segment.len() && !is_zero(end, segment.len()) => {
                    Parsed::Damaged("a missing sector before later frames")
                }
                Some(_) | None => Parsed::Torn,
            };
        }
        from = sector_end;
    }
    Parsed::Damaged(reason)
}

fn header_check(header: &[u8]) -> [u8; 4] {
    let digest = sha256(&[b"holdfast frame header v1", header]);
    [digest[0], digest[1], digest[2], digest[3]]
}

fn body_check(kind: u8, body: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = sha256(&[b"holdfast frame body v1", &[kind], body]);
    digest[..CHECK_BYTES].try_into().expect("a digest is longer than a check")
}

#[cfg(test)]
mod tests {
    use super::*;
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
            bytes.extend(encode(KIND_GROUP, &body(*length)));
        }
        bytes.resize(bytes.len().next_multiple_of(SECTOR) + 4 * SECTOR, 0);
        (bytes, starts)
    }

    #[test]
    fn frames_follow_one_another_to_the_end() {
        let (bytes, _) = segment(&[10, 2000, 300]);
        let mut offset = 0;
        for length in [10, 2000, 300] {
            let Parsed::Frame { kind: KIND_GROUP, body: found, next } = parse(&bytes, offset) else {
                panic!()
            };
            assert_eq!(found, body(length));
            offset = next;
        }
        assert_eq!(parse(&bytes, offset), Parsed::End);
    }

    /// Any set of the last frame's sectors that is not all of them: torn, or nothing at all.
    #[test]
    fn a_torn_last_frame_is_recognised_whichever_sectors_reached_the_disk() {
        for first in [10, 479, 490, 494, 504, 510] {
            let (bytes, starts) = segment(&[first, 1800]);
            let start = starts[1];
            let end = start + HEADER_BYTES + 1800 + TRAILER_BYTES;
            let sectors: Vec<usize> = (start / SECTOR..=(end - 1) / SECTOR).collect();
            for written in 0..(1u32 << sectors.len()) - 1 {
                let mut torn = bytes.clone();
                for (bit, sector) in sectors.iter().enumerate() {
                    if written & (1 << bit) == 0 {
                        torn[(sector * SECTOR).max(start)..(sector + 1) * SECTOR].fill(0);
                    }
                }
                let expected = if written == 0 { Parsed::End } else { Parsed::Torn };
                assert_eq!(parse(&torn, start), expected, "first {first}, sectors {written:b}");
            }
        }
    }

    #[test]
    fn each_flipped_bit_of_a_written_frame_is_damage() {
        let (bytes, starts) = segment(&[700, 900]);
        for start in starts {
            let Parsed::Frame { next, .. } = parse(&bytes, start) else { panic!() };
            for bit in start * 8..next * 8 {
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert!(matches!(parse(&damaged, start), Parsed::Damaged(_)), "bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), offset in 0usize..2100) {
            let _ = parse(&bytes, offset);
        }
    }
}
