//! The one task that appends: gathers what waits into a group, signs one checkpoint over it, and answers once the group
//! is durable. One frame is under way at a time; the next group gathers meanwhile in the queue.
//!
//! A sync and a signature cost as much for one event as for a hundred, so a group gathers a little longer where that
//! holds nobody up: while other requests are ready to run, up to half of those that come and go; and while events are
//! announced, as long as every request in the group has the patience ([`Announced`](crate::Announced)). An event that
//! is alone is written at once.

use crate::leaf::Leaf;
use crate::log::{AuditConfig, AuditError, CheckpointMark, Shared, unavailable};
use crate::receipt::Receipt;
use crate::recovery::{End, OpenSegment};
use crate::segment::{Checkpoint, Group, SegmentHeader};
use crate::tree::{Frontier, Hash, leaf_hash};
use crypto::certificate::{InstanceClaims, InstanceKey};
use domain::time::{IntDate, Time};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

const MAX_GROUP_LEAVES: usize = 1024;
/// A group ends with the leaf that reaches this.
const MAX_GROUP_BYTES: usize = 1 << 20;
/// How often a group lets everything else that is ready run first.
const MAX_TURNS: usize = 16;
/// The part of the requests that were seen to come and go that is forgotten with each group.
const COMING_PART: usize = 16;
/// The runtime's timers are no finer.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

pub(crate) type Answer = oneshot::Sender<Result<Receipt, AuditError>>;

pub(crate) enum Message {
    Leaf(Waiting),
    Close(oneshot::Sender<()>),
}

/// A leaf, how long its group may be held back for it, and who waits.
pub(crate) struct Waiting {
    pub leaf: Leaf,
    pub patience: Duration,
    pub answer: Answer,
}

/// What was handed in and is not written yet.
struct Inbox {
    messages: mpsc::Receiver<Message>,
    received: Vec<Message>,
    leaves: VecDeque<Waiting>,
    /// How many requests come and go, as far as lately seen.
    coming: usize,
    /// Who waits for the end.
    closing: Vec<oneshot::Sender<()>>,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    config: AuditConfig,
    key: InstanceKey,
    certificate: Vec<u8>,
    not_after: IntDate,
    clock: Arc<dyn Fn() -> Time + Send + Sync>,
    /// No checkpoint is older: the last one's time, or the start of the certificate's validity.
    not_before: Time,
    frontier: Frontier,
    segment: Option<OpenSegment>,
    /// Of the last frame.
    digest: Hash,
    /// Whether this incarnation's certificate is in the current segment.
    certified: bool,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        config: AuditConfig,
        key: InstanceKey,
        certificate: Vec<u8>,
        claims: &InstanceClaims,
        clock: Arc<dyn Fn() -> Time + Send + Sync>,
        end: End,
    ) -> Self {
        let End { frontier, segment, digest, last_checkpoint, .. } = end;
        let certified_from =
            Time::from_unix_milliseconds(claims.not_before.unix_seconds().saturating_mul(1000));
        Self {
            shared,
            config,
            key,
            certificate,
            not_after: claims.not_after,
            clock,
            not_before: last_checkpoint.map_or(certified_from, |last| last.max(certified_from)),
            frontier,
            segment,
            digest,
            certified: false,
        }
    }

    pub async fn run(mut self, messages: mpsc::Receiver<Message>) {
        let mut inbox =
            Inbox { messages, received: Vec::new(), leaves: VecDeque::new(), coming: 0, closing: Vec::new() };
        let mut last_group = 0;
        while inbox.wait().await {
            inbox.gather(last_group, &self.shared, self.config.longest_wait).await;
            let (group, answers) = next_group(&mut inbox.leaves);
            last_group = group.len();
            if !group.is_empty() {
                let written = self.write_unless_failed(group).await;
                send_answers(&written, answers);
            }
        }
        for done in inbox.closing {
            // Whoever closed the log may have stopped waiting.
            let _: Result<(), ()> = oneshot::Sender::send(done, ());
        }
    }

    async fn write_unless_failed(&mut self, leaves: Vec<Leaf>) -> Result<Arc<Checkpoint>, AuditError> {
        if let Some(error) = self.shared.failed.get() {
            return Err(error.clone());
        }
        let written = self.write(leaves).await;
        match &written {
            Ok(_) => {}
            // Nothing was written, and space may come back.
            Err(AuditError::DiskFull) => tracing::warn!("the disk of the audit log is full"),
            // How much was written is unknown: only opening the log again can tell.
            Err(error) => {
                tracing::error!(%error, "the audit log takes no more events");
                let _ = self.shared.failed.set(error.clone());
            }
        }
        written
    }

    /// One group: hash, sign, append. The writer's state moves on only once the group is durable.
    async fn write(&mut self, leaves: Vec<Leaf>) -> Result<Arc<Checkpoint>, AuditError> {
        let time = self.checkpoint_time()?;
        let segment = self.room().await?;
        let mut frontier = self.frontier.clone();
        leaves.iter().for_each(|leaf| frontier.push(leaf_hash(leaf.as_bytes())));
        let checkpoint = Checkpoint {
            node: self.config.identity.node,
            incarnation: self.config.incarnation,
            size: frontier.size(),
            root: frontier.root(),
            time,
            signature: [0; 64],
        }
        .sign(&self.config.identity, &self.key);
        let certificate = if self.certified { Vec::new() } else { self.certificate.clone() };
        let first_index = self.frontier.size();
        let (frame, digest) = Group { first_index, certificate, leaves, checkpoint }.to_frame();
        self.append(segment, frame, digest).await?;

        self.frontier = frontier;
        self.certified = true;
        self.not_before = time;
        let mut places = self.shared.places();
        places.groups.push((first_index, segment.offset));
        places.latest = CheckpointMark { size: checkpoint.size, root: checkpoint.root };
        Ok(Arc::new(checkpoint))
    }

    /// Now, but never before the last checkpoint, and only while this incarnation's certificate is valid.
    fn checkpoint_time(&self) -> Result<Time, AuditError> {
        let time = (self.clock)().max(self.not_before);
        if time.int_date() > self.not_after {
            return Err(AuditError::Unavailable("the certificate of this incarnation has expired".into()));
        }
        Ok(time)
    }

    /// The segment that the next group goes to: the current one, or a new one once that is full. A header is durable
    /// before the first group is written, so that only one frame is ever under way.
    async fn room(&mut self) -> Result<OpenSegment, AuditError> {
        let segment = match self.segment {
            Some(segment) if segment.offset < self.config.segment_bytes.max(1) => segment,
            Some(_) | None => {
                let id = self.shared.log.roll().await.map_err(unavailable)?;
                let segment = OpenSegment { id, offset: 0 };
                self.segment = Some(segment);
                segment
            }
        };
        if segment.offset > 0 {
            return Ok(segment);
        }
        let header = SegmentHeader {
            identity: self.config.identity,
            number: segment.id.0,
            previous: self.digest,
            frontier: self.frontier.clone(),
        };
        let (frame, digest) = header.to_frame();
        let segment = self.append(segment, frame, digest).await?;
        self.certified = false;
        let mut places = self.shared.places();
        places.first_indexes.push(self.frontier.size());
        places.groups.clear();
        Ok(segment)
    }

    /// Appends a frame; returns the segment behind it.
    async fn append(
        &mut self,
        segment: OpenSegment,
        frame: Vec<u8>,
        digest: Hash,
    ) -> Result<OpenSegment, AuditError> {
        let offset = segment.offset + frame.len() as u64;
        self.shared.log.append(frame).await.map_err(unavailable)?;
        let segment = OpenSegment { offset, ..segment };
        self.segment = Some(segment);
        self.digest = digest;
        Ok(segment)
    }
}

impl Inbox {
    /// Waits until there is something; false once there never will be.
    async fn wait(&mut self) -> bool {
        if self.leaves.is_empty() && self.messages.recv_many(&mut self.received, MAX_GROUP_LEAVES).await == 0
        {
            return false;
        }
        self.take();
        true
    }

    /// Takes what is there, up to a group.
    fn take(&mut self) {
        while self.leaves.len() + self.received.len() < MAX_GROUP_LEAVES
            && let Ok(message) = self.messages.try_recv()
        {
            self.received.push(message);
        }
        for message in self.received.drain(..) {
            match message {
                Message::Leaf(waiting) => self.leaves.push_back(waiting),
                // What was handed in before is still received; nothing can be handed in from here on.
                Message::Close(done) => {
                    self.messages.close();
                    self.closing.push(done);
                }
            }
        }
    }

    /// Gathers a little longer, after a group of `last_group` leaves.
    async fn gather(&mut self, last_group: usize, shared: &Shared, longest_wait: Duration) {
        // Those whose answers went out a moment ago come again, those here would have to wait for another sync. Half of
        // them all is a group, so that one half is at work while the other is written.
        self.coming = come_and_go(self.coming, last_group + self.leaves.len());
        let half = self.coming.div_ceil(2);
        for _ in 0..MAX_TURNS {
            let before = self.leaves.len();
            if before >= half {
                break;
            }
            // Everything that is ready runs before this goes on.
            tokio::task::yield_now().await;
            self.take();
            if self.leaves.len() == before {
                break;
            }
        }
        let began = Instant::now();
        while self.leaves.len() < shared.announced()
            && let patience = self.patience().min(longest_wait)
            && patience >= SHORTEST_WAIT
        {
            let received = self.messages.recv_many(&mut self.received, MAX_GROUP_LEAVES);
            match tokio::time::timeout_at(began + patience, received).await {
                Ok(1..) => self.take(),
                Ok(0) | Err(_) => return,
            }
        }
    }

    /// Of the request in the group that has the least.
    fn patience(&self) -> Duration {
        self.leaves.iter().map(|waiting| waiting.patience).min().unwrap_or_default()
    }
}

/// How many requests come and go, of which so many were `seen` just now. Forgotten slowly: where a log answers at once few
/// have come by then, and small groups would stay small.
fn come_and_go(before: usize, seen: usize) -> usize {
    seen.max(before - before.div_ceil(COMING_PART))
}

/// Takes leaves from the front until there are enough for a group.
fn next_group(leaves: &mut VecDeque<Waiting>) -> (Vec<Leaf>, Vec<Answer>) {
    let mut bytes = 0;
    let mut count = 0;
    while count < leaves.len().min(MAX_GROUP_LEAVES) && bytes < MAX_GROUP_BYTES {
        bytes += leaves[count].leaf.as_bytes().len();
        count += 1;
    }
    leaves.drain(..count).map(|waiting| (waiting.leaf, waiting.answer)).unzip()
}

fn send_answers(written: &Result<Arc<Checkpoint>, AuditError>, answers: Vec<Answer>) {
    // A waiter that is gone does not want its answer.
    match written {
        Ok(checkpoint) => {
            let first = checkpoint.size - answers.len() as u64;
            for (index, answer) in (first..).zip(answers) {
                let _ = answer.send(Ok(Receipt { index, checkpoint: checkpoint.clone() }));
            }
        }
        Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_come_and_go_grows_at_once_and_shrinks_slowly() {
        assert_eq!(come_and_go(0, 1), 1);
        assert_eq!(come_and_go(2, 32), 32);
        assert_eq!(come_and_go(32, 3), 30);
        let after = |groups| (0..groups).fold(32, |before, _| come_and_go(before, 3));
        assert!(after(6) > 16, "one group after another that was early");
        assert_eq!(after(100), 3, "the others are gone");
    }
}
