//! The control plane's own records over an engine (docs/formats/fabric-store.md). All of them are in memory as well; each
//! change is one commit with its entry of the activity log.

use crate::access::Assignment;
use crate::activity::{Entry, Head};
use crate::pools::PoolRecord;
use crate::private_link::EndpointRecord;
use host::{Commit, CommitOutcome, Engine, EngineError, Expectation, Mutation, OperationId, Revision};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::Arc;

const POOL: &str = "pool/";
const ASSIGNMENT: &str = "assignment/";
const ENDPOINT: &str = "endpoint/";
const ACTIVITY: &str = "activity/";
const HEAD: &str = "head";
const PAGE: usize = 100;
const VERSION: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the control plane's store failed")]
    Engine(#[from] EngineError),
    #[error("the record {key} is damaged")]
    Damaged { key: String },
    #[error("the record {key} is of format version {found}; this program knows version {VERSION}")]
    Version { key: String, found: u64 },
    #[error("the activity log does not verify at entry {index}: it was changed")]
    BrokenChain { index: u64 },
    #[error("another process changed the control plane's store")]
    Conflict,
    #[error("the system has no randomness")]
    NoRandomness,
}

pub struct Store {
    engine: Arc<dyn Engine>,
    pub pools: BTreeMap<String, PoolRecord>,
    pub assignments: BTreeMap<String, Assignment>,
    pub endpoints: BTreeMap<String, EndpointRecord>,
    head: Head,
    head_revision: Option<Revision>,
}

/// One change.
pub enum Change {
    PutPool(PoolRecord),
    DeletePool(String),
    PutAssignment(Assignment),
    DeleteAssignment(String),
    PutEndpoint(EndpointRecord),
    DeleteEndpoint(String),
}

/// Who did what, for the log.
pub struct Event<'a> {
    pub time: i64,
    pub caller: &'a str,
    pub action: &'a str,
    pub scope: &'a str,
    pub succeeded: bool,
}

impl Store {
    /// Reads everything and verifies the chain.
    pub async fn open(engine: Arc<dyn Engine>) -> Result<Self, StoreError> {
        let pools = read_all::<PoolRecord>(engine.as_ref(), POOL).await?;
        let assignments = read_all::<Assignment>(engine.as_ref(), ASSIGNMENT).await?;
        let endpoints = read_all::<EndpointRecord>(engine.as_ref(), ENDPOINT).await?;
        let (head, head_revision) = match engine.get(HEAD.as_bytes()).await? {
            Some(entry) => (parse::<Head>(HEAD, &entry.value)?, Some(entry.revision)),
            None => (Head::empty(), None),
        };
        let mut walked = Head::empty();
        let mut scan = engine.scan(ACTIVITY.as_bytes()).await?;
        loop {
            let page = scan.next_page(PAGE).await?;
            if page.is_empty() {
                break;
            }
            for entry in page {
                let broken = StoreError::BrokenChain { index: walked.length };
                if entry.key != activity_key(walked.length) {
                    return Err(broken);
                }
                walked = walked.extended(&entry.value).ok_or(broken)?;
            }
        }
        if walked != head {
            return Err(StoreError::BrokenChain { index: walked.length.min(head.length) });
        }
        Ok(Self { engine, pools, assignments, endpoints, head, head_revision })
    }

    /// Makes `changes` and their entry of the log durable, all or none.
    pub async fn commit(&mut self, changes: Vec<Change>, event: Event<'_>) -> Result<(), StoreError> {
        let entry = Entry {
            version: 1,
            index: self.head.length,
            previous: self.head.hash.clone(),
            time: event.time,
            caller: event.caller.to_owned(),
            action: event.action.to_owned(),
            scope: event.scope.to_owned(),
            succeeded: event.succeeded,
        };
        let entry = to_json(&entry);
        let head = self.head.extended(&entry).ok_or(StoreError::BrokenChain { index: self.head.length })?;
        let put = |key: Vec<u8>, value: Vec<u8>| Mutation::Put { key, value };
        let mut mutations =
            vec![put(activity_key(self.head.length), entry), put(HEAD.as_bytes().to_vec(), to_json(&head))];
        for change in &changes {
            mutations.push(match change {
                Change::PutPool(pool) => put(key(POOL, &pool.name), to_json(pool)),
                Change::DeletePool(name) => Mutation::Delete { key: key(POOL, name) },
                Change::PutAssignment(assignment) => {
                    put(key(ASSIGNMENT, &assignment.id), to_json(assignment))
                }
                Change::DeleteAssignment(id) => Mutation::Delete { key: key(ASSIGNMENT, id) },
                Change::PutEndpoint(endpoint) => put(key(ENDPOINT, &endpoint.name), to_json(endpoint)),
                Change::DeleteEndpoint(name) => Mutation::Delete { key: key(ENDPOINT, name) },
            });
        }
        let mut operation = [0; 16];
        aws_lc_rs::rand::fill(&mut operation).map_err(|_| StoreError::NoRandomness)?;
        let operation = OperationId(operation);
        let expectations = vec![Expectation { key: HEAD.as_bytes().to_vec(), revision: self.head_revision }];
        let revision = match self.engine.commit(Commit { operation, expectations, mutations }).await {
            Ok(CommitOutcome::Committed(revision)) => revision,
            Ok(CommitOutcome::Conflict { .. }) => return Err(StoreError::Conflict),
            Err(EngineError::OutcomeUnknown) => {
                self.engine.settle(operation).await?.ok_or(EngineError::OutcomeUnknown)?
            }
            Err(error) => return Err(error.into()),
        };
        (self.head, self.head_revision) = (head, Some(revision));
        for change in changes {
            match change {
                Change::PutPool(pool) => drop(self.pools.insert(pool.name.clone(), pool)),
                Change::DeletePool(name) => drop(self.pools.remove(&name)),
                Change::PutAssignment(held) => drop(self.assignments.insert(held.id.clone(), held)),
                Change::DeleteAssignment(id) => drop(self.assignments.remove(&id)),
                Change::PutEndpoint(held) => drop(self.endpoints.insert(held.name.clone(), held)),
                Change::DeleteEndpoint(name) => drop(self.endpoints.remove(&name)),
            }
        }
        Ok(())
    }
}

fn key(prefix: &str, name: &str) -> Vec<u8> {
    format!("{prefix}{name}").into_bytes()
}

fn activity_key(index: u64) -> Vec<u8> {
    format!("{ACTIVITY}{index:016x}").into_bytes()
}

async fn read_all<T: DeserializeOwned>(
    engine: &dyn Engine,
    prefix: &str,
) -> Result<BTreeMap<String, T>, StoreError> {
    let mut all = BTreeMap::new();
    let mut scan = engine.scan(prefix.as_bytes()).await?;
    loop {
        let page = scan.next_page(PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        for entry in page {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            let value = parse(&key, &entry.value)?;
            all.insert(key[prefix.len()..].to_owned(), value);
        }
    }
}

pub fn parse<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    let damaged = || StoreError::Damaged { key: key.to_owned() };
    let json: serde_json::Value = serde_json::from_slice(value).map_err(|_| damaged())?;
    match json.get("version").and_then(serde_json::Value::as_u64) {
        Some(VERSION) => serde_json::from_value(json).map_err(|_| damaged()),
        Some(found) => Err(StoreError::Version { key: key.to_owned(), found }),
        None => Err(damaged()),
    }
}

pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("our records have string keys")
}
