//! Offline verification with nothing but the owner's public key: every frame, hash, root, certificate and signature of
//! every segment, in memory that does not grow with the log.
//!
//! What it cannot show: that nothing was cut off the end, or that no other log with the same beginning exists. Receipts
//! and checkpoints that someone else kept show that, as far as they reach.

use crate::flaw::Flaw;
use crate::log::CheckpointMark;
use crate::reader::SegmentReader;
use crate::receipt::ReceiptText;
use crate::recovery::header_flaw;
use crate::segment::{Checkpoint, Follower, Group, Identity, Next, Segment, SegmentHeader};
use crate::tree::{Frontier, Hash};
use crypto::certificate::{InstanceClaims, InstancePublicKey, OwnerPublicKey};
use domain::guid::Guid;
use domain::time::{IntDate, Time};
use host::{Log, LogError, SegmentId};
use std::collections::HashMap;
use std::fmt;

/// A log that is being written may show a frame half; it is asked again this often while what it shows changes.
const MAX_REREADS: usize = 100;

/// What someone kept of the log, to hold it to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Witness {
    Receipt(ReceiptText),
    /// A size and root from a source that is trusted by itself, such as pool state or an earlier report.
    Mark(CheckpointMark),
}

/// One start of a core, as its certificate and its checkpoints show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Incarnation {
    pub incarnation: Guid,
    pub node: Guid,
    pub first_index: u64,
    pub last_index: u64,
    pub not_before: IntDate,
    pub not_after: IntDate,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    pub pool: Option<Guid>,
    pub node: Option<Guid>,
    pub genesis_hash: Option<[u8; 32]>,
    pub segments: u32,
    pub groups: u64,
    /// Of the last group that was read.
    pub events: u64,
    pub root: Hash,
    pub last_checkpoint: Option<Time>,
    pub incarnations: Vec<Incarnation>,
    /// Bytes behind the last group: of a write that was cut short, or is under way.
    pub torn_bytes: u64,
    /// Events from the beginning that all checks hold for.
    pub complete_to: u64,
    /// How many of the witnesses agree, and up to how many events they reach.
    pub witnesses: usize,
    pub witnessed_to: u64,
    /// Empty if and only if everything checks.
    pub failures: Vec<Failure>,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Failure {
    #[error("segment {segment}, byte {offset}, group {group}: {flaw}")]
    Segment {
        segment: u32,
        offset: u64,
        /// Counted from 0 in the segment; where the segment's header fails, also 0.
        group: u64,
        flaw: Flaw,
    },
    /// `number` counts the witnesses given, from 0.
    #[error("witness {number}: {reason}")]
    Witness { number: usize, reason: &'static str },
    #[error("the log's genesis is not the expected one")]
    Genesis,
    #[error("the log has no segment")]
    Empty,
}

impl fmt::Display for Report {
    /// One sentence: what is shown, and by whom it is witnessed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "complete up to {} events, ", self.complete_to)?;
        match self.witnesses {
            0 => formatter.write_str("witnessed by nobody"),
            1 => write!(formatter, "witnessed by 1 receipt up to {}", self.witnessed_to),
            count => write!(formatter, "witnessed by {count} receipts up to {}", self.witnessed_to),
        }?;
        match self.failures.len() {
            0 => Ok(()),
            1 => formatter.write_str("; 1 failure"),
            count => write!(formatter, "; {count} failures"),
        }
    }
}

/// Verifies all of `log` and holds it to `witnesses`, and to `genesis_hash` if the caller knows it. Goes on after a
/// failure wherever something can still be checked.
///
/// # Errors
///
/// Only where the log cannot be read; what is wrong with what was read is in the report.
pub async fn verify(
    log: &dyn Log,
    owner: &OwnerPublicKey,
    genesis_hash: Option<[u8; 32]>,
    witnesses: &[Witness],
) -> Result<Report, LogError> {
    let segments = log.segments().await?;
    let mut verifier = Verifier {
        log,
        owner,
        genesis_hash,
        report: Report { root: Frontier::default().root(), ..Report::default() },
        before: Some((Frontier::default(), [0; 32])),
        identity: None,
        instances: HashMap::new(),
        roots: HashMap::new(),
    };
    for witness in witnesses {
        verifier.roots.extend(witness.checkpoint().map(|mark| (mark.size, None)));
    }
    if segments.is_empty() {
        verifier.report.failures.push(Failure::Empty);
    }
    for (number, segment) in (0..).zip(&segments) {
        verifier.report.segments += 1;
        let is_last = number as usize + 1 == segments.len();
        if segment.id == SegmentId(number) {
            verifier.segment(number, is_last).await?;
        } else {
            verifier.fail(number, 0, 0, Flaw::OutOfOrder { found: segment.id.0 });
        }
    }
    for (number, witness) in witnesses.iter().enumerate() {
        verifier.hold_to(number, witness);
    }
    Ok(verifier.report)
}

impl Witness {
    fn checkpoint(&self) -> Option<CheckpointMark> {
        match self {
            Witness::Receipt(receipt) => receipt
                .checkpoint
                .map(|checkpoint| CheckpointMark { size: checkpoint.size, root: checkpoint.root }),
            Witness::Mark(mark) => Some(*mark),
        }
    }
}

struct Verifier<'a> {
    log: &'a dyn Log,
    owner: &'a OwnerPublicKey,
    genesis_hash: Option<[u8; 32]>,
    report: Report,
    /// Frontier and digest at the end of the segment before; `None` where that did not check to its end.
    before: Option<(Frontier, Hash)>,
    identity: Option<Identity>,
    /// All that were certified anywhere in the log.
    instances: HashMap<Guid, (InstanceClaims, InstancePublicKey)>,
    /// Roots at the sizes that witnesses speak of.
    roots: HashMap<u64, Option<Hash>>,
}

impl Verifier<'_> {
    fn fail(&mut self, segment: u32, offset: u64, group: u64, flaw: Flaw) {
        self.report.failures.push(Failure::Segment { segment, offset, group, flaw });
    }

    async fn segment(&mut self, number: u32, is_last: bool) -> Result<(), LogError> {
        let mut segment = Segment::new(SegmentReader::new(self.log, SegmentId(number)));
        let before = self.before.take();
        let header = match self.settled(&mut segment, is_last).await? {
            Next::Header(header) => header,
            // Created, and nothing durable in it.
            Next::End if is_last => return Ok(()),
            Next::Torn(bytes) if is_last => {
                self.report.torn_bytes = bytes;
                return Ok(());
            }
            other => {
                self.fail(number, 0, 0, header_flaw(other));
                return Ok(());
            }
        };
        if let Err(flaw) = self.check_header(number, &header, before) {
            self.fail(number, 0, 0, flaw);
        }
        let mut follower = Follower::new(self.owner, &header);
        // Lost with a frame that does not check: later roots in this segment cannot be computed.
        let mut knows_roots = true;
        for group_number in 0.. {
            let offset = segment.offset;
            let flaw = match self.settled(&mut segment, is_last).await? {
                Next::Group(group) => {
                    self.group(number, offset, group_number, &group, &mut follower, &mut knows_roots);
                    continue;
                }
                Next::End => break,
                Next::Torn(bytes) if is_last => {
                    self.report.torn_bytes = bytes;
                    break;
                }
                Next::Torn(_) => Flaw::TornBeforeLaterSegment,
                Next::Header(_) => Flaw::Malformed,
                Next::Damaged(flaw) => flaw,
            };
            self.fail(number, offset, group_number, flaw);
            knows_roots = false;
            if !segment.skip_damage().await? {
                break;
            }
        }
        if knows_roots {
            self.before = Some((follower.frontier, segment.digest));
        }
        Ok(())
    }

    fn check_header(
        &mut self,
        number: u32,
        header: &SegmentHeader,
        before: Option<(Frontier, Hash)>,
    ) -> Result<(), Flaw> {
        if self.identity.is_none() {
            self.identity = Some(header.identity);
            self.report.pool = Some(header.identity.pool);
            self.report.node = Some(header.identity.node);
            self.report.genesis_hash = Some(header.identity.genesis_hash);
            if self.genesis_hash.is_some_and(|expected| expected != header.identity.genesis_hash) {
                self.report.failures.push(Failure::Genesis);
            }
        }
        if self.identity != Some(header.identity) {
            return Err(Flaw::Foreign);
        }
        if header.number != number {
            return Err(Flaw::OutOfOrder { found: header.number });
        }
        match before {
            Some((frontier, digest)) if header.frontier != frontier || header.previous != digest => {
                Err(Flaw::DoesNotContinue)
            }
            Some(_) | None => Ok(()),
        }
    }

    fn group(
        &mut self,
        segment: u32,
        offset: u64,
        number: u64,
        group: &Group,
        follower: &mut Follower<'_>,
        knows_roots: &mut bool,
    ) {
        if *knows_roots && let Err(flaw) = follower.take_leaves(group) {
            *knows_roots = false;
            self.fail(segment, offset, number, flaw);
        }
        if let Err(flaw) = follower.take_certificate(group) {
            self.fail(segment, offset, number, flaw);
        }
        let checkpoint = &group.checkpoint;
        if let Err(flaw) = follower.check_signature(checkpoint) {
            self.fail(segment, offset, number, flaw);
        }
        if self.report.last_checkpoint.is_some_and(|last| last > checkpoint.time) {
            self.fail(segment, offset, number, Flaw::TimeRunsBackwards);
        }
        self.report.groups += 1;
        self.report.events = checkpoint.size;
        self.report.root = checkpoint.root;
        self.report.last_checkpoint = Some(checkpoint.time);
        // Nothing failed here or before.
        if self.report.failures.is_empty() {
            self.report.complete_to = checkpoint.size;
            if let Some(root) = self.roots.get_mut(&checkpoint.size) {
                *root = Some(checkpoint.root);
            }
        }
        if let Some((claims, key)) = follower.instances.get(&checkpoint.incarnation) {
            self.instances.entry(checkpoint.incarnation).or_insert_with(|| (claims.clone(), key.clone()));
            let claims = claims.clone();
            self.note_incarnation(group, claims);
        }
    }

    fn note_incarnation(&mut self, group: &Group, claims: InstanceClaims) {
        let last_index = group.checkpoint.size.saturating_sub(1);
        match self.report.incarnations.last_mut() {
            Some(last) if last.incarnation == claims.incarnation => last.last_index = last_index,
            Some(_) | None => self.report.incarnations.push(Incarnation {
                incarnation: claims.incarnation,
                node: claims.node,
                first_index: group.first_index,
                last_index,
                not_before: claims.not_before,
                not_after: claims.not_after,
            }),
        }
    }

    /// What is next; where the last segment seems to end or to be damaged there, asked again until the answer stays the
    /// same, because the log may be being written at this moment.
    async fn settled(&self, segment: &mut Segment<'_>, is_last: bool) -> Result<Next, LogError> {
        let mut found = segment.next().await?;
        for _ in 0..MAX_REREADS {
            let before = match &found {
                Next::Torn(bytes) => (Some(*bytes), None),
                Next::Damaged(flaw) => (None, Some(flaw.clone())),
                Next::Header(_) | Next::Group(_) | Next::End => return Ok(found),
            };
            if !is_last {
                return Ok(found);
            }
            segment.refresh();
            found = segment.next().await?;
            let unchanged = match &found {
                Next::Torn(bytes) => before.0 == Some(*bytes),
                Next::Damaged(flaw) => before.1.as_ref() == Some(flaw),
                Next::Header(_) | Next::Group(_) | Next::End => return Ok(found),
            };
            if unchanged {
                return Ok(found);
            }
        }
        Ok(found)
    }

    fn hold_to(&mut self, number: usize, witness: &Witness) {
        let reach = match self.disagreement(witness) {
            Some(reason) => return self.report.failures.push(Failure::Witness { number, reason }),
            None => match witness {
                Witness::Receipt(receipt) => receipt.checkpoint.map_or(receipt.index + 1, |held| held.size),
                Witness::Mark(mark) => mark.size,
            },
        };
        self.report.witnesses += 1;
        self.report.witnessed_to = self.report.witnessed_to.max(reach);
    }

    /// Why the log is not what the witness saw.
    fn disagreement(&self, witness: &Witness) -> Option<&'static str> {
        if let Witness::Receipt(receipt) = witness {
            if self.identity.is_some_and(|identity| identity.node != receipt.node) {
                return Some("the receipt is of another node's log");
            }
            if receipt.index >= self.report.complete_to {
                return Some("the log does not have the receipt's event, or does not check up to it");
            }
            if receipt.checkpoint.as_ref().is_some_and(|checkpoint| !self.signed(checkpoint)) {
                return Some("the receipt was not signed by an incarnation that this log knows");
            }
        }
        let mark = witness.checkpoint().filter(|mark| mark.size > 0)?;
        match self.roots.get(&mark.size).copied().flatten() {
            Some(root) if root == mark.root => None,
            Some(_) => Some("the log was changed or forked: another root was witnessed at this size"),
            None => Some(
                "the log has no such checkpoint, or does not check up to it: it was cut, changed or forked",
            ),
        }
    }

    fn signed(&self, checkpoint: &Checkpoint) -> bool {
        let Some(identity) = self.identity else { return false };
        self.instances
            .get(&checkpoint.incarnation)
            .is_some_and(|(_, key)| key.verify(&checkpoint.message(&identity), &checkpoint.signature))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::leaf::Leaf;
    use crate::reader::tests::{OneSegment, segment_of};
    use crate::tree::leaf_hash;
    use crypto::certificate::{InstanceKey, Purpose};
    use crypto::domain_secrets::DomainSecrets;
    use domain::pool::PoolClass;

    pub(crate) const IDENTITY: Identity =
        Identity { pool: Guid([1; 16]), genesis_hash: [2; 32], node: Guid([3; 16]) };
    pub(crate) const INCARNATION: Guid = Guid([4; 16]);

    /// Writes what an attacker could who has the disk, and also one who has an incarnation's key.
    pub(crate) struct Forger {
        pub owner: DomainSecrets,
        key: InstanceKey,
        frontier: Frontier,
    }

    impl Forger {
        pub fn new() -> Self {
            Self {
                owner: DomainSecrets::generate(),
                key: InstanceKey::generate(),
                frontier: Frontier::default(),
            }
        }

        fn claims(&self) -> InstanceClaims {
            InstanceClaims {
                pool: IDENTITY.pool,
                node: IDENTITY.node,
                incarnation: INCARNATION,
                purpose: Purpose::AuditCheckpoint,
                class: PoolClass::Test,
                genesis_hash: IDENTITY.genesis_hash,
                not_before: IntDate::from_unix_seconds(100),
                not_after: IntDate::from_unix_seconds(200),
            }
        }

        pub fn certificate(&self, change: impl FnOnce(&mut InstanceClaims)) -> Vec<u8> {
            let mut claims = self.claims();
            change(&mut claims);
            self.owner.owner_key().certify(&claims, &self.key)
        }

        /// A group of two events, changed before it is signed.
        pub fn group(&mut self, certificate: Vec<u8>, change: impl FnOnce(&mut Group)) -> Group {
            let first_index = self.frontier.size();
            let leaf =
                |index: u64| Leaf::from_bytes([[1].as_slice(), &[index as u8 + 1; 40]].concat()).unwrap();
            let leaves = vec![leaf(first_index), leaf(first_index + 1)];
            leaves.iter().for_each(|leaf| self.frontier.push(leaf_hash(leaf.as_bytes())));
            let checkpoint = Checkpoint {
                node: IDENTITY.node,
                incarnation: INCARNATION,
                size: self.frontier.size(),
                root: self.frontier.root(),
                time: Time::from_unix_milliseconds(150_000),
                signature: [0; 64],
            };
            let mut group = Group { first_index, certificate, leaves, checkpoint };
            change(&mut group);
            group.checkpoint = group.checkpoint.sign(&IDENTITY, &self.key);
            group
        }

        async fn report(&self, header: SegmentHeader, groups: &[Group]) -> Report {
            let owner = self.owner.owner_key().public_key();
            verify(&log_of(header, groups), &owner, Some(IDENTITY.genesis_hash), &[]).await.unwrap()
        }
    }

    pub(crate) fn log_of(header: SegmentHeader, groups: &[Group]) -> OneSegment {
        let mut bytes = header.to_frame().0;
        groups.iter().for_each(|group| bytes.extend(group.to_frame().0));
        bytes.resize(bytes.len() + 4096, 0);
        segment_of(&bytes)
    }

    pub(crate) fn header() -> SegmentHeader {
        SegmentHeader { identity: IDENTITY, number: 0, previous: [0; 32], frontier: Frontier::default() }
    }

    /// The flaws and the group that each is in.
    fn flaws(report: &Report) -> Vec<(u64, Flaw)> {
        let flaw = |failure: &Failure| match failure {
            Failure::Segment { group, flaw, .. } => (*group, flaw.clone()),
            other => panic!("{other}"),
        };
        report.failures.iter().map(flaw).collect()
    }

    /// One forged group between two good ones.
    async fn with_forged_middle(
        certify: impl FnOnce(&Forger) -> Vec<u8>,
        change: impl FnOnce(&mut Group),
        change_signed: impl FnOnce(&mut Group),
    ) -> (Report, Vec<(u64, Flaw)>) {
        let mut forger = Forger::new();
        let certificate = forger.certificate(|_| {});
        let first = forger.group(certificate, |_| {});
        let second = certify(&forger);
        let mut second = forger.group(second, change);
        change_signed(&mut second);
        let third = forger.group(Vec::new(), |_| {});
        let report = forger.report(header(), &[first, second, third]).await;
        let flaws = flaws(&report);
        (report, flaws)
    }

    #[tokio::test]
    async fn an_honest_log_verifies() {
        let (report, flaws) = with_forged_middle(|_| Vec::new(), |_| {}, |_| {}).await;
        assert_eq!(flaws, []);
        assert_eq!((report.complete_to, report.groups, report.segments), (6, 3, 1));
        assert_eq!(report.to_string(), "complete up to 6 events, witnessed by nobody");
    }

    #[tokio::test]
    async fn a_forged_signature_is_found_and_what_follows_is_still_checked() {
        let (report, flaws) =
            with_forged_middle(|_| Vec::new(), |_| {}, |group| group.checkpoint.signature[9] ^= 1).await;
        assert_eq!(flaws, [(1, Flaw::Signature)]);
        assert_eq!((report.complete_to, report.events), (2, 6));
        assert_eq!(report.to_string(), "complete up to 2 events, witnessed by nobody; 1 failure");
    }

    #[tokio::test]
    async fn a_changed_event_is_found() {
        let change = |group: &mut Group| {
            let mut bytes = group.leaves[1].as_bytes().to_vec();
            bytes[30] ^= 1;
            group.leaves[1] = Leaf::from_bytes(bytes).unwrap();
        };
        assert_eq!(with_forged_middle(|_| Vec::new(), |_| {}, change).await.1, [(1, Flaw::Root)]);
        // Signed anew, even: its incarnation's key does not help against the groups around it.
        assert_eq!(with_forged_middle(|_| Vec::new(), change, |_| {}).await.1, [(1, Flaw::Root)]);
    }

    #[tokio::test]
    async fn a_missing_or_doubled_group_is_found() {
        let flaw = Flaw::Index { found: 3, expected: 2 };
        assert_eq!(
            with_forged_middle(|_| Vec::new(), |group| group.first_index += 1, |_| {}).await.1[0],
            (1, flaw)
        );
        let mut forger = Forger::new();
        let certificate = forger.certificate(|_| {});
        let first = forger.group(certificate, |_| {});
        let report = forger.report(header(), &[first.clone(), first]).await;
        assert_eq!(flaws(&report), [(1, Flaw::Index { found: 0, expected: 2 })]);
    }

    #[tokio::test]
    async fn certificates_that_do_not_allow_it_sign_no_checkpoint() {
        let foreign = |change: fn(&mut InstanceClaims)| {
            with_forged_middle(move |forger| forger.certificate(change), |_| {}, |_| {})
        };
        let refused = [(1, Flaw::ForeignCertificate)];
        assert_eq!(foreign(|claims| claims.purpose = Purpose::Release).await.1, refused);
        assert_eq!(foreign(|claims| claims.pool = Guid([9; 16])).await.1, refused);
        assert_eq!(foreign(|claims| claims.node = Guid([9; 16])).await.1, refused);
        assert_eq!(foreign(|claims| claims.genesis_hash = [9; 32]).await.1, refused);
        let other_owner = |_: &Forger| Forger::new().certificate(|_| {});
        let refused = [(1, Flaw::Certificate(crypto::certificate::CertificateError::WrongIssuer))];
        assert_eq!(with_forged_middle(other_owner, |_| {}, |_| {}).await.1, refused);
        let uncertified = |group: &mut Group| group.checkpoint.incarnation = Guid([9; 16]);
        assert_eq!(
            with_forged_middle(|_| Vec::new(), uncertified, |_| {}).await.1,
            [(1, Flaw::NoCertificate)]
        );
    }

    #[tokio::test]
    async fn a_checkpoint_keeps_to_its_certificate_and_to_its_node() {
        let at = |seconds: i64| {
            move |group: &mut Group| group.checkpoint.time = Time::from_unix_milliseconds(seconds * 1000)
        };
        assert_eq!(
            with_forged_middle(|_| Vec::new(), at(201), |_| {}).await.1[0],
            (1, Flaw::OutsideValidity)
        );
        assert_eq!(
            with_forged_middle(|_| Vec::new(), at(99), |_| {}).await.1,
            [(1, Flaw::OutsideValidity), (1, Flaw::TimeRunsBackwards)]
        );
        assert_eq!(
            with_forged_middle(|_| Vec::new(), at(149), |_| {}).await.1,
            [(1, Flaw::TimeRunsBackwards)]
        );
        let node = |group: &mut Group| group.checkpoint.node = Guid([9; 16]);
        assert_eq!(with_forged_middle(|_| Vec::new(), node, |_| {}).await.1, [(1, Flaw::Foreign)]);
    }

    #[tokio::test]
    async fn a_first_segment_that_starts_in_the_middle_is_found() {
        let mut forger = Forger::new();
        let certificate = forger.certificate(|_| {});
        let _ = forger.group(Vec::new(), |_| {});
        let header = SegmentHeader { frontier: forger.frontier.clone(), ..header() };
        let group = forger.group(certificate, |_| {});
        let report = forger.report(header, &[group]).await;
        assert_eq!(flaws(&report), [(0, Flaw::DoesNotContinue)]);
        assert_eq!(report.complete_to, 0);
    }
}
