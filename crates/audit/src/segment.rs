//! What frames hold: a segment's header, and groups of leaves under one signed checkpoint.
//!
//! Each segment can be checked by itself: its header has the tree's frontier at its start, and its first group of each
//! incarnation has that incarnation's certificate.

use crate::frame::{self, KIND_GROUP, KIND_SEGMENT_HEADER, Parsed};
use crate::leaf::{Leaf, MAX_LEAF_BYTES};
use crate::tree::{Frontier, Hash, leaf_hash};
use crypto::certificate::{InstanceClaims, InstanceKey, InstancePublicKey, OwnerPublicKey, Purpose};
use crypto::digest::sha256;
use domain::guid::Guid;
use domain::time::Time;
use std::collections::HashMap;

const FORMAT_VERSION: u8 = 1;
const CHECKPOINT_DOMAIN: &[u8] = b"holdfast checkpoint v1\0";
const MAX_CERTIFICATE_BYTES: usize = 8 * 1024;

/// What makes a log this pool's and no other's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub pool: Guid,
    pub genesis_hash: [u8; 32],
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SegmentHeader {
    pub identity: Identity,
    pub number: u32,
    /// SHA-256 of the last frame of the segment before; zero for the first segment.
    pub previous: [u8; 32],
    pub frontier: Frontier,
}

/// A signed statement of how far the log has come.
#[derive(Clone, Debug, Eq, PartialEq)]
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
    /// DER, in an incarnation's first group of a segment.
    pub certificate: Vec<u8>,
    pub leaves: Vec<Leaf>,
    pub checkpoint: Checkpoint,
}

impl SegmentHeader {
    pub fn to_frame(&self) -> Vec<u8> {
        let mut body = vec![FORMAT_VERSION];
        body.extend_from_slice(&self.identity.pool.0);
        body.extend_from_slice(&self.identity.genesis_hash);
        body.extend_from_slice(&self.number.to_le_bytes());
        body.extend_from_slice(&self.previous);
        body.extend_from_slice(&self.frontier.size().to_le_bytes());
        self.frontier.subtrees().iter().for_each(|subtree| body.extend_from_slice(subtree));
        frame::encode(KIND_SEGMENT_HEADER, &body)
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let [FORMAT_VERSION] = reader.array()? else { return None };
        let identity = Identity { pool: Guid(reader.array()?), genesis_hash: reader.array()? };
        let number = u32::from_le_bytes(reader.array()?);
        let previous = reader.array()?;
        let size = u64::from_le_bytes(reader.array()?);
        let (subtrees, rest) = reader.0.as_chunks::<32>();
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
    pub fn to_frame(&self) -> Vec<u8> {
        let leaves: usize = self.leaves.iter().map(|leaf| 4 + leaf.as_bytes().len()).sum();
        let mut body = Vec::with_capacity(200 + self.certificate.len() + leaves);
        let length = |bytes: usize| u32::try_from(bytes).expect("a group is bounded").to_le_bytes();
        body.push(FORMAT_VERSION);
        body.extend_from_slice(&self.first_index.to_le_bytes());
        body.extend_from_slice(&length(self.certificate.len()));
        body.extend_from_slice(&self.certificate);
        body.extend_from_slice(&length(self.leaves.len()));
        for leaf in &self.leaves {
            body.extend_from_slice(&length(leaf.as_bytes().len()));
            body.extend_from_slice(leaf.as_bytes());
        }
        body.extend_from_slice(&self.checkpoint.node.0);
        body.extend_from_slice(&self.checkpoint.incarnation.0);
        body.extend_from_slice(&self.checkpoint.time.unix_milliseconds().to_le_bytes());
        body.extend_from_slice(&self.checkpoint.root);
        body.extend_from_slice(&self.checkpoint.signature);
        frame::encode(KIND_GROUP, &body)
    }

    pub fn parse(body: &[u8]) -> Option<Self> {
        let mut reader = Reader(body);
        let [FORMAT_VERSION] = reader.array()? else { return None };
        let first_index = u64::from_le_bytes(reader.array()?);
        let certificate = reader.sized(MAX_CERTIFICATE_BYTES)?.to_vec();
        let count = u32::from_le_bytes(reader.array()?);
        let mut leaves = Vec::new();
        for _ in 0..count {
            leaves.push(Leaf::from_bytes(reader.sized(MAX_LEAF_BYTES)?.to_vec()).ok()?);
        }
        let checkpoint = Checkpoint {
            node: Guid(reader.array()?),
            incarnation: Guid(reader.array()?),
            time: Time::from_unix_milliseconds(i64::from_le_bytes(reader.array()?)),
            root: reader.array()?,
            size: first_index.checked_add(u64::from(count))?,
            signature: reader.array()?,
        };
        reader.0.is_empty().then_some(Self { first_index, certificate, leaves, checkpoint })
    }
}

/// Follows one segment, checking everything: order, hashes, roots, certificates, signatures.
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
            identity: header.identity.clone(),
            frontier: header.frontier.clone(),
            instances: HashMap::new(),
        }
    }

    pub fn take(&mut self, group: &Group) -> Result<(), String> {
        if group.first_index != self.frontier.size() {
            return Err(format!(
                "the group starts at event {}, not {}",
                group.first_index,
                self.frontier.size()
            ));
        }
        if !group.certificate.is_empty() {
            self.take_certificate(&group.certificate)?;
        }
        group.leaves.iter().for_each(|leaf| self.frontier.push(leaf_hash(leaf.as_bytes())));
        let checkpoint = &group.checkpoint;
        if checkpoint.root != self.frontier.root() {
            return Err("the checkpoint's root is not the root of the events before it".into());
        }
        let (claims, key) = self
            .instances
            .get(&checkpoint.incarnation)
            .ok_or("the checkpoint's incarnation has no certificate in this segment")?;
        let seconds = checkpoint.time.int_date();
        if claims.node != checkpoint.node || seconds < claims.not_before || seconds > claims.not_after {
            return Err("the checkpoint does not go with its incarnation's certificate (node or time)".into());
        }
        if !key.verify(&checkpoint.message(&self.identity), &checkpoint.signature) {
            return Err("the checkpoint's signature does not verify".into());
        }
        Ok(())
    }

    fn take_certificate(&mut self, der: &[u8]) -> Result<(), String> {
        let (claims, key) = self.owner.verify_certificate(der).map_err(|error| error.to_string())?;
        let ours = claims.pool == self.identity.pool && claims.genesis_hash == self.identity.genesis_hash;
        if !ours || claims.purpose != Purpose::AuditCheckpoint {
            return Err("the certificate is for another pool or purpose".into());
        }
        self.instances.insert(claims.incarnation, (claims, key));
        Ok(())
    }
}

/// The header and the groups of a segment's bytes, in order.
pub(crate) struct Frames<'a> {
    segment: &'a [u8],
    pub offset: usize,
    /// SHA-256 of the frame that was read last.
    pub last_frame_hash: [u8; 32],
}

pub(crate) enum Next {
    Header(SegmentHeader),
    Group(Group),
    End,
    Torn,
    Damaged(String),
}

impl<'a> Frames<'a> {
    pub fn new(segment: &'a [u8]) -> Self {
        Self { segment, offset: 0, last_frame_hash: [0; 32] }
    }

    pub fn next(&mut self) -> Next {
        match frame::parse(self.segment, self.offset) {
            Parsed::End => Next::End,
            Parsed::Torn => Next::Torn,
            Parsed::Damaged(reason) => Next::Damaged(reason.to_owned()),
            Parsed::Frame { kind, body, next } => {
                let start = self.offset;
                let malformed = || Next::Damaged("the frame's content is not of format version 1".into());
                let read = match kind {
                    KIND_SEGMENT_HEADER if start == 0 => SegmentHeader::parse(body).map(Next::Header),
                    KIND_GROUP if start != 0 => Group::parse(body).map(Next::Group),
                    _ => None,
                };
                let Some(read) = read else { return malformed() };
                self.last_frame_hash = sha256(&[&self.segment[start..next]]);
                self.offset = next;
                read
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
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
