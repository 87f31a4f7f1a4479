//! What frames hold: a segment's header, and groups of leaves under one signed checkpoint.
//!
//! Each segment can be checked by itself: its header has the tree's frontier at its start, and the first group of each
//! incarnation in it has that incarnation's certificate.

use crate::flaw::Flaw;
use crate::frame::{self, Found, Frame, Kind};
use crate::leaf::{Leaf, MAX_LEAF_BYTES};
use crate::reader::SegmentReader;
use crate::tree::{Frontier, Hash, leaf_hash};
use crypto::certificate::{InstanceClaims, InstanceKey, InstancePublicKey, OwnerPublicKey, Purpose};
use domain::guid::Guid;
use domain::time::Time;
use host::LogError;
use std::collections::HashMap;

const CHECKPOINT_DOMAIN: &[u8] = b"holdfast checkpoint v1\0";
pub(crate) const MAX_CERTIFICATE_BYTES: usize = 8 * 1024;

/// What makes a log this pool's and this node's and no other's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub pool: Guid,
    pub genesis_hash: [u8; 32],
    pub node: Guid,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SegmentHeader {
    pub identity: Identity,
    pub number: u32,
    /// Digest of the last frame of the segment before; zero for the first segment.
    pub previous: Hash,
    pub frontier: Frontier,
}

/// A signed statement of how far the log has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    pub node: Guid,
    pub incarnation: Guid,
    pub size: u64,
    pub root: Hash,
    pub time: Time,
    pub signature: [u8; 64],
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Group {
    pub first_index: u64,
    /// DER, in an incarnation's first group of a segment; empty in its others.
    pub certificate: Vec<u8>,
    /// At least one.
    pub leaves: Vec<Leaf>,
    pub checkpoint: Checkpoint,
}

impl SegmentHeader {
    pub fn to_frame(&self) -> (Vec<u8>, Hash) {
        let mut body = Vec::with_capacity(512);
        body.extend_from_slice(&self.identity.pool.0);
        body.extend_from_slice(&self.identity.genesis_hash);
        body.extend_from_slice(&self.identity.node.0);
        body.extend_from_slice(&self.number.to_le_bytes());
        body.extend_from_slice(&self.previous);
        body.extend_from_slice(&self.frontier.size().to_le_bytes());
        self.frontier.subtrees().iter().for_each(|subtree| body.extend_from_slice(subtree));
        frame::encode(Kind::SegmentHeader, &body)
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let identity = Identity {
            pool: Guid(fields.array()?),
            genesis_hash: fields.array()?,
            node: Guid(fields.array()?),
        };
        let number = u32::from_le_bytes(fields.array()?);
        let previous = fields.array()?;
        let size = u64::from_le_bytes(fields.array()?);
        let (subtrees, rest) = fields.0.as_chunks::<32>();
        let frontier = Frontier::from_parts(size, subtrees.to_vec())?;
        rest.is_empty().then_some(Self { identity, number, previous, frontier })
    }
}

impl Checkpoint {
    /// What is signed: everything that identifies the log and its state.
    pub(crate) fn message(&self, identity: &Identity) -> Vec<u8> {
        [
            CHECKPOINT_DOMAIN,
            &identity.pool.0,
            &identity.genesis_hash,
            &self.node.0,
            &self.incarnation.0,
            &self.size.to_le_bytes(),
            &self.root,
            &self.time.unix_milliseconds().to_le_bytes(),
        ]
        .concat()
    }

    pub(crate) fn sign(mut self, identity: &Identity, key: &InstanceKey) -> Self {
        self.signature = key.sign(&self.message(identity));
        self
    }
}

impl Group {
    pub fn to_frame(&self) -> (Vec<u8>, Hash) {
        let leaves: usize = self.leaves.iter().map(|leaf| 4 + leaf.as_bytes().len()).sum();
        let mut body = Vec::with_capacity(200 + self.certificate.len() + leaves);
        let length = |bytes: usize| u32::try_from(bytes).expect("a group is bounded").to_le_bytes();
        body.extend_from_slice(&self.first_index.to_le_bytes());
        body.extend_from_slice(&length(self.leaves.len()));
        body.extend_from_slice(&length(self.certificate.len()));
        body.extend_from_slice(&self.certificate);
        for leaf in &self.leaves {
            body.extend_from_slice(&length(leaf.as_bytes().len()));
            body.extend_from_slice(leaf.as_bytes());
        }
        body.extend_from_slice(&self.checkpoint.node.0);
        body.extend_from_slice(&self.checkpoint.incarnation.0);
        body.extend_from_slice(&self.checkpoint.time.unix_milliseconds().to_le_bytes());
        body.extend_from_slice(&self.checkpoint.root);
        body.extend_from_slice(&self.checkpoint.signature);
        frame::encode(Kind::Group, &body)
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields(body);
        let first_index = u64::from_le_bytes(fields.array()?);
        let count = u32::from_le_bytes(fields.array()?);
        let certificate = fields.sized(MAX_CERTIFICATE_BYTES)?.to_vec();
        let mut leaves = Vec::new();
        for _ in 0..count {
            leaves.push(Leaf::from_bytes(fields.sized(MAX_LEAF_BYTES)?.to_vec()).ok()?);
        }
        let checkpoint = Checkpoint {
            node: Guid(fields.array()?),
            incarnation: Guid(fields.array()?),
            time: Time::from_unix_milliseconds(i64::from_le_bytes(fields.array()?)),
            root: fields.array()?,
            signature: fields.array()?,
            size: first_index.checked_add(u64::from(count))?,
        };
        let whole = fields.0.is_empty() && !leaves.is_empty();
        whole.then_some(Self { first_index, certificate, leaves, checkpoint })
    }
}

/// A certificate of one start of a core, as its log and its writer take it: for this pool and node, to sign checkpoints.
pub(crate) fn check_certificate(
    owner: &OwnerPublicKey,
    identity: &Identity,
    der: &[u8],
) -> Result<(InstanceClaims, InstancePublicKey), Flaw> {
    let (claims, key) = owner.verify_certificate(der)?;
    let ours = claims.pool == identity.pool
        && claims.genesis_hash == identity.genesis_hash
        && claims.node == identity.node
        && claims.purpose == Purpose::AuditCheckpoint;
    if ours { Ok((claims, key)) } else { Err(Flaw::ForeignCertificate) }
}

/// Follows one segment's groups: order, hashes, roots, certificates, times; signatures where asked.
pub(crate) struct Follower<'a> {
    owner: &'a OwnerPublicKey,
    identity: Identity,
    pub frontier: Frontier,
    /// Certified in this segment.
    pub instances: HashMap<Guid, (InstanceClaims, InstancePublicKey)>,
}

impl<'a> Follower<'a> {
    pub fn new(owner: &'a OwnerPublicKey, header: &SegmentHeader) -> Self {
        Self {
            owner,
            identity: header.identity,
            frontier: header.frontier.clone(),
            instances: HashMap::new(),
        }
    }

    /// The events: that they come next, and that the checkpoint's root is theirs. After an error the frontier is not to
    /// be used.
    pub fn take_leaves(&mut self, group: &Group) -> Result<(), Flaw> {
        let expected = self.frontier.size();
        if group.first_index != expected {
            return Err(Flaw::Index { found: group.first_index, expected });
        }
        group.leaves.iter().for_each(|leaf| self.frontier.push(leaf_hash(leaf.as_bytes())));
        if group.checkpoint.root == self.frontier.root() { Ok(()) } else { Err(Flaw::Root) }
    }

    pub fn take_certificate(&mut self, group: &Group) -> Result<(), Flaw> {
        if !group.certificate.is_empty() {
            let (claims, key) = check_certificate(self.owner, &self.identity, &group.certificate)?;
            self.instances.insert(claims.incarnation, (claims, key));
        }
        Ok(())
    }

    pub fn check_signature(&self, checkpoint: &Checkpoint) -> Result<(), Flaw> {
        let (claims, key) = self.instances.get(&checkpoint.incarnation).ok_or(Flaw::NoCertificate)?;
        let seconds = checkpoint.time.int_date();
        if checkpoint.node != self.identity.node {
            return Err(Flaw::Foreign);
        }
        if seconds < claims.not_before || seconds > claims.not_after {
            return Err(Flaw::OutsideValidity);
        }
        let message = checkpoint.message(&self.identity);
        if key.verify(&message, &checkpoint.signature) { Ok(()) } else { Err(Flaw::Signature) }
    }
}

/// A segment's header and groups, in order.
pub(crate) struct Segment<'a> {
    reader: SegmentReader<'a>,
    /// Where the next frame starts.
    pub offset: u64,
    /// Of the frame that was read last.
    pub digest: Hash,
}

pub(crate) enum Next {
    Header(SegmentHeader),
    Group(Group),
    End,
    /// Bytes of a write that was cut short.
    Torn(u64),
    Damaged(Flaw),
}

impl<'a> Segment<'a> {
    pub fn new(reader: SegmentReader<'a>) -> Self {
        Self { reader, offset: 0, digest: [0; 32] }
    }

    /// From a frame's start in the middle of the segment.
    pub fn at(reader: SegmentReader<'a>, offset: u64) -> Self {
        Self { reader, offset, digest: [0; 32] }
    }

    /// The next frame's content. At anything but a header or a group the segment stays where it is.
    pub async fn next(&mut self) -> Result<Next, LogError> {
        let Frame { kind, body, digest, next } = match frame::read(&mut self.reader, self.offset).await? {
            Found::Frame(frame) => frame,
            Found::End => return Ok(Next::End),
            Found::Torn { bytes } => return Ok(Next::Torn(bytes)),
            Found::Damaged(flaw) => return Ok(Next::Damaged(flaw)),
        };
        let read = match (kind, self.offset) {
            (Kind::SegmentHeader, 0) => SegmentHeader::parse(&body).map(Next::Header),
            (Kind::Group, 1..) => Group::parse(&body).map(Next::Group),
            (Kind::SegmentHeader, 1..) | (Kind::Group, 0) => None,
        };
        let Some(read) = read else { return Ok(Next::Damaged(Flaw::Malformed)) };
        self.offset = next;
        self.digest = digest;
        Ok(read)
    }

    /// Goes to the next thing behind damage that looks like a frame; false where there is none.
    pub async fn skip_damage(&mut self) -> Result<bool, LogError> {
        let behind = self.offset + frame::SECTOR as u64;
        let found = frame::find_header(&mut self.reader, behind).await?;
        self.offset = found.unwrap_or(self.offset);
        Ok(found.is_some())
    }

    /// Asks the host again for what was read ahead.
    pub fn refresh(&mut self) {
        self.reader.refresh();
    }
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn sized(&mut self, limit: usize) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        (length <= limit).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> SegmentHeader {
        let mut frontier = Frontier::default();
        (0..7u8).for_each(|index| frontier.push(leaf_hash(&[index])));
        let identity = Identity { pool: Guid([1; 16]), genesis_hash: [2; 32], node: Guid([3; 16]) };
        SegmentHeader { identity, number: 4, previous: [5; 32], frontier }
    }

    fn group() -> Group {
        let leaf = |fill: u8| Leaf::from_bytes([&[1], [fill; 60].as_slice()].concat()).unwrap();
        let checkpoint = Checkpoint {
            node: Guid([3; 16]),
            incarnation: Guid([6; 16]),
            size: 9,
            root: [7; 32],
            time: Time::from_unix_milliseconds(8),
            signature: [9; 64],
        };
        Group { first_index: 7, certificate: vec![10; 300], leaves: vec![leaf(11), leaf(12)], checkpoint }
    }

    /// The body within a frame.
    fn body(frame: (Vec<u8>, Hash)) -> Vec<u8> {
        let length = u32::from_le_bytes(frame.0[8..12].try_into().unwrap()) as usize;
        frame.0[48..48 + length].to_vec()
    }

    #[test]
    fn headers_and_groups_are_read_as_written_and_not_with_a_byte_more_or_less() {
        let (header_body, group_body) = (body(header().to_frame()), body(group().to_frame()));
        assert_eq!(SegmentHeader::parse(&header_body), Some(header()));
        assert_eq!(Group::parse(&group_body), Some(group()));
        for cut in 0..header_body.len() {
            assert_eq!(SegmentHeader::parse(&header_body[..cut]), None, "{cut} bytes");
        }
        for cut in 0..group_body.len() {
            assert_eq!(Group::parse(&group_body[..cut]), None, "{cut} bytes");
        }
        assert_eq!(SegmentHeader::parse(&[header_body, vec![0]].concat()), None);
        assert_eq!(Group::parse(&[group_body, vec![0]].concat()), None);
    }

    #[test]
    fn a_group_without_events_is_refused() {
        let empty = Group { leaves: Vec::new(), ..group() };
        assert_eq!(Group::parse(&body(empty.to_frame())), None);
    }

    /// Signatures are random, so the golden log is re-created from what was read of it.
    #[tokio::test]
    async fn the_golden_log_is_what_would_be_written_today() {
        let segments: [&[u8]; 2] = [
            include_bytes!("../tests/golden/audit-log-v1/segment-00000000.log"),
            include_bytes!("../tests/golden/audit-log-v1/segment-00000001.log"),
        ];
        for bytes in segments {
            let log = crate::reader::tests::segment_of(bytes);
            let mut segment = Segment::new(SegmentReader::new(&log, host::SegmentId(0)));
            let mut written = Vec::new();
            loop {
                match segment.next().await.unwrap() {
                    Next::Header(header) => written.extend(header.to_frame().0),
                    Next::Group(group) => written.extend(group.to_frame().0),
                    Next::End => break,
                    Next::Torn(_) | Next::Damaged(_) => panic!("byte {}", segment.offset),
                }
            }
            assert!(written.len() > 2 * frame::SECTOR);
            written.resize(bytes.len(), 0);
            assert_eq!(written, bytes);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
            at in 0usize..500,
            value: u8,
        ) {
            let _ = (SegmentHeader::parse(&bytes), Group::parse(&bytes));
            let (mut header, mut group) = (body(header().to_frame()), body(group().to_frame()));
            let at = at % header.len().min(group.len());
            header[at] = value;
            group[at] = value;
            let _ = (SegmentHeader::parse(&header), Group::parse(&group));
        }
    }
}
