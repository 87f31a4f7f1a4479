//! An engine's contents as a map, and random commits whose fate the map predicts.

use std::collections::BTreeMap;

use host::{Commit, CommitOutcome, Engine, EngineError, Entry, Expectation, Mutation, OperationId, Revision};

use crate::Random;

/// What an engine holds, if it keeps its promises.
#[derive(Clone, Debug, Default)]
pub struct Model {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Revision)>,
    revision: Revision,
}

/// A commit that was sent, with its answer.
#[derive(Debug)]
pub struct Attempt {
    pub commit: Commit,
    pub answer: Result<CommitOutcome, EngineError>,
}

impl Model {
    /// Applies a commit that the engine placed at `revision`.
    ///
    /// # Panics
    /// Where an expectation of the commit does not hold there: the engine should have refused it.
    pub fn apply(&mut self, commit: &Commit, revision: Revision) {
        assert!(revision > self.revision, "{revision:?} comes after {:?}", self.revision);
        assert_eq!(self.conflict(commit), None, "{commit:?} was applied at {revision:?}");
        self.revision = revision;
        for mutation in &commit.mutations {
            match mutation {
                Mutation::Put { key, value } => {
                    self.entries.insert(key.clone(), (value.clone(), revision));
                }
                Mutation::Delete { key } => {
                    self.entries.remove(key);
                }
            }
        }
    }

    /// The first key whose expectation does not hold.
    pub fn conflict(&self, commit: &Commit) -> Option<Vec<u8>> {
        let holds = |expectation: &&Expectation| {
            self.entries.get(&expectation.key).map(|(_, revision)| *revision) != expectation.revision
        };
        commit.expectations.iter().find(holds).map(|expectation| expectation.key.clone())
    }

    /// Takes over what one round of concurrent commits did, after a crash or not: what was acknowledged must
    /// be there, at the revision that was answered; the rest is there or not as `settle` says. Then the engine
    /// must hold exactly what follows from that.
    pub async fn reconcile(&mut self, engine: &impl Engine, round: &[Attempt]) {
        let mut applied = Vec::new();
        let mut refused = Vec::new();
        for attempt in round {
            let settled = engine.settle(attempt.commit.operation).await.unwrap();
            match &attempt.answer {
                Ok(CommitOutcome::Committed(revision)) if !attempt.commit.mutations.is_empty() => {
                    assert_eq!(settled, Some(*revision), "acknowledged: {attempt:?}");
                }
                // It only compared.
                Ok(CommitOutcome::Committed(_)) => continue,
                Ok(CommitOutcome::Conflict { key }) => {
                    assert_eq!(settled, None, "refused: {attempt:?}");
                    refused.push((&attempt.commit, key));
                }
                Err(EngineError::OutcomeUnknown) => {}
                Err(EngineError::Unavailable(_) | EngineError::DiskFull) => {
                    assert_eq!(settled, None, "known as not applied: {attempt:?}");
                }
                Err(
                    EngineError::Compacted(_)
                    | EngineError::InUse { .. }
                    | EngineError::TooLarge { .. }
                    | EngineError::Malformed(_),
                ) => panic!("no answer to a commit of this model: {attempt:?}"),
            }
            if let Some(revision) = settled {
                applied.push((revision, &attempt.commit));
            }
        }
        applied.sort_by_key(|(revision, _)| *revision);
        // A refusal is right if the expectation failed at some moment of the round.
        let mut refused_rightly: Vec<bool> =
            refused.iter().map(|(commit, key)| self.conflict(commit).as_ref() == Some(*key)).collect();
        for (revision, commit) in applied {
            self.apply(commit, revision);
            for ((commit, key), rightly) in refused.iter().zip(&mut refused_rightly) {
                *rightly |= self.conflict(commit).as_ref() == Some(*key);
            }
        }
        assert!(refused_rightly.iter().all(|rightly| *rightly), "a refusal without cause: {refused:?}");
        self.check(engine).await;
    }

    /// The engine holds exactly this.
    pub async fn check(&self, engine: &impl Engine) {
        let mut scan = engine.scan(b"").await.unwrap();
        let mut found = Vec::new();
        loop {
            let page = scan.next_page(64).await.unwrap();
            if page.is_empty() {
                break;
            }
            found.extend(page);
        }
        let expected: Vec<Entry> = self
            .entries
            .iter()
            .map(|(key, (value, revision))| Entry {
                key: key.clone(),
                value: value.clone(),
                revision: *revision,
            })
            .collect();
        assert_eq!(found, expected);
        assert_eq!(scan.revision(), self.revision);
    }

    fn revision_of(&self, key: &[u8]) -> Option<Revision> {
        self.entries.get(key).map(|(_, revision)| *revision)
    }
}

/// A commit over few keys, so that commits meet: mostly with expectations that held in `model`, some stale,
/// some without mutations.
pub fn random_commit(random: &mut Random, model: &Model) -> Commit {
    const KEYS: u64 = 12;
    let key = |random: &mut Random| format!("key/{:02}", random.below(KEYS)).into_bytes();
    let mut operation = [0; 16];
    operation.copy_from_slice(&random.bytes(16));
    let mut expectations = Vec::new();
    for _ in 0..random.below(3) {
        let key = key(random);
        let revision = if random.chance(8) {
            random.chance(2).then(|| Revision(random.below(50)))
        } else {
            model.revision_of(&key)
        };
        expectations.push(Expectation { key, revision });
    }
    let mut mutations = BTreeMap::new();
    let count = if random.chance(10) { 0 } else { 1 + random.below(4) };
    for _ in 0..count {
        let key = key(random);
        let mutation = if random.chance(4) {
            Mutation::Delete { key: key.clone() }
        } else {
            // Some span several pages and sectors.
            let bytes = if random.chance(6) { 20_000 } else { 300 };
            let bytes = usize::try_from(random.below(bytes)).unwrap();
            Mutation::Put { key: key.clone(), value: random.bytes(bytes) }
        };
        mutations.insert(key, mutation);
    }
    Commit { operation: OperationId(operation), expectations, mutations: mutations.into_values().collect() }
}
