//! One ticket per authenticated request, one audit event per ticket.
//!
//! A ticket is taken when the caller is known and spent when the outcome is: a reply can only be made from a spent
//! ticket. One that is dropped instead (the caller went away) still leaves its event.

use crate::error::Error;
use crate::pool::{CommittedLeaf, Pool};
use audit::event::{CallerIdentity, Event, EventResult};
use audit::{Announced, Receipt};
use crypto::audit_key::AuditSealer;
use domain::access::{Action, DataAction, Grant, Scope, Sight};
use domain::guid::Guid;
use domain::name::{KeyName, KeyVersion};
use domain::principal::Caller;
use domain::time::Time;
use std::sync::Arc;
use std::time::Instant;
use storage::OutboxRecord;

const SPENT_BY_VALUE: &str = "whoever spends a ticket has it no more";

/// How an API shows a refusal: HTTP status, code, inner code. Recorded as it was answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shown {
    pub status: u16,
    pub code: &'static str,
    pub inner_code: Option<&'static str>,
}

/// What a request looked like from outside. Bounded by whoever fills it in.
#[derive(Clone, Debug)]
pub struct RequestFacts {
    pub request_id: Guid,
    pub correlation_id: String,
    pub client_address: String,
    pub user_agent: String,
    /// Without anything secret in its query.
    pub uri: String,
    pub api_version: String,
    pub received: Instant,
    pub received_at: Time,
    /// The API's table of statuses.
    pub show: fn(&Error) -> Shown,
}

/// The outcome of a request, recorded: the event is durable before this exists.
#[derive(Debug)]
#[must_use]
pub struct Recorded<T> {
    result: Result<T, Error>,
    receipt: Option<Receipt>,
}

impl<T> Recorded<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Recorded<U> {
        Recorded { result: self.result.map(change), receipt: self.receipt }
    }

    /// Of a change whose event went with its commit, and is in the log by now, or owed to it.
    pub(crate) fn with_commit(value: T, receipt: Result<Receipt, Error>) -> Self {
        match receipt {
            Ok(receipt) => Self { result: Ok(value), receipt: Some(receipt) },
            Err(error) => Self { result: Err(error), receipt: None },
        }
    }

    /// Of a request whose ticket was lost with the task that had it, and left its event there.
    pub(crate) fn interrupted(error: Error) -> Self {
        Self { result: Err(error), receipt: None }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.result.is_ok()
    }

    pub fn into_parts(self) -> (Result<T, Error>, Option<Receipt>) {
        (self.result, self.receipt)
    }
}

pub struct Ticket {
    pool: Arc<Pool>,
    caller: Arc<Caller>,
    /// `None` once spent. Apart, as a ticket is handed on often.
    request: Option<Box<KnownRequest>>,
    /// While the outcome is open.
    announced: Option<Announced>,
}

#[derive(Clone)]
struct KnownRequest {
    facts: RequestFacts,
    subject: Subject,
}

/// What the request was about, as far as it was understood.
#[derive(Clone, Debug, Default)]
struct Subject {
    operation: &'static str,
    key_name: Option<KeyName>,
    key_version: Option<KeyVersion>,
    algorithm: Option<&'static str>,
    data_action: Option<&'static str>,
    scope: Option<String>,
    /// What a change sets, for changes that the other members do not tell.
    detail: String,
    /// HTTP status of a success.
    success: u16,
}

impl Ticket {
    pub(crate) fn new(pool: Arc<Pool>, caller: Arc<Caller>, facts: RequestFacts) -> Self {
        let subject = Subject { operation: "Unknown", success: 200, ..Subject::default() };
        let announced = Some(pool.audit().announce());
        Self { pool, caller, request: Some(Box::new(KnownRequest { facts, subject })), announced }
    }

    fn request(&self) -> &KnownRequest {
        self.request.as_ref().expect(SPENT_BY_VALUE)
    }

    fn subject(&mut self) -> &mut Subject {
        &mut self.request.as_mut().expect(SPENT_BY_VALUE).subject
    }

    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// How the API shows a refusal, for what outlives the request.
    pub(crate) fn show(&self) -> fn(&Error) -> Shown {
        self.request().facts.show
    }

    pub(crate) fn received_at(&self) -> Time {
        self.request().facts.received_at
    }

    /// Names the operation (behaviour section 18.3), once the route is known.
    pub fn operation(&mut self, name: &'static str) {
        self.subject().operation = name;
    }

    /// The HTTP status with which a success will be answered; 200 unless said.
    pub fn succeeds_with(&mut self, status: u16) {
        self.subject().success = status;
    }

    pub(crate) fn about_key(&mut self, name: &KeyName, version: Option<KeyVersion>) {
        let subject = self.subject();
        subject.key_name = Some(name.clone());
        subject.key_version = version;
    }

    pub(crate) fn with_algorithm(&mut self, algorithm: &'static str) {
        self.subject().algorithm = Some(algorithm);
    }

    /// Says what a successful change sets.
    pub(crate) fn details(&mut self, detail: String) {
        self.subject().detail = detail;
    }

    /// Notes what right is asked for, so that the event has it whether or not it is granted.
    pub(crate) fn asks<A: Action>(&mut self, scope: &Scope) {
        let subject = self.subject();
        subject.data_action = Some(A::DATA_ACTION.as_str());
        subject.scope = Some(scope.to_string());
    }

    /// The caller's right to do `A` at `scope`, by the roles of this moment.
    pub(crate) fn authorize<A: Action>(&self, scope: Scope) -> Result<Grant<'_, A>, Error> {
        self.check_open::<A>()?;
        Ok(self.pool.roles_in_force().authorize(&self.caller, scope)?)
    }

    /// To which keys the caller may do `A`, by the roles of this moment.
    pub(crate) fn sight<A: Action>(&self) -> Result<Sight<A>, Error> {
        self.check_open::<A>()?;
        Ok(self.pool.roles_in_force().sight(&self.caller)?)
    }

    fn check_open<A: Action>(&self) -> Result<(), Error> {
        self.pool.check_readable()?;
        if self.pool.is_restoring() && A::DATA_ACTION != DataAction::RestoreStatus {
            Err(Error::Restoring)
        } else {
            self.pool.check_activated::<A>()
        }
    }

    /// Refuses a request that no use case took.
    pub async fn refuse<T>(self, error: Error) -> Recorded<T> {
        self.record(Err(error)).await
    }

    /// Records the outcome; only then is there something to answer.
    pub(crate) async fn record<T>(mut self, result: Result<T, Error>) -> Recorded<T> {
        let request = *self.request.take().expect(SPENT_BY_VALUE);
        let received = request.facts.received;
        let leaf = self.pool.seal_event(&self.event(request, result.as_ref().err()));
        self.announced = None;
        match self.pool.append(leaf, received.elapsed()).await {
            Ok(receipt) => Recorded { result, receipt: Some(receipt) },
            Err(error) => Recorded { result: Err(error.into()), receipt: None },
        }
    }

    /// The event went with a commit.
    pub(crate) fn spend(&mut self) {
        self.request = None;
        self.announced = None;
    }

    /// The sealed event of a success, to go with a commit. The ticket is not spent: there may be no commit.
    pub(crate) fn leaf(&self) -> CommittedLeaf {
        self.leaf_for(self.pool.sealer())
    }

    /// Likewise, to be the first event of a pool whose audit key is `sealer`'s.
    pub(crate) fn first_event(&self, sealer: &AuditSealer) -> OutboxRecord {
        self.leaf_for(sealer).outbox(0)
    }

    fn leaf_for(&self, sealer: &AuditSealer) -> CommittedLeaf {
        CommittedLeaf::seal(self.event(self.request().clone(), None), sealer)
    }

    /// Of success or of `error`.
    fn event(&self, request: KnownRequest, error: Option<&Error>) -> Event {
        let KnownRequest { facts, subject } = request;
        let (status, result, detail) = match error {
            None => (subject.success, EventResult::Success, subject.detail),
            Some(error) => {
                let shown = (facts.show)(error);
                let inner_code = shown.inner_code.map(str::to_owned);
                let result = EventResult::Failure { code: shown.code.to_owned(), inner_code };
                (shown.status, result, error.to_string())
            }
        };
        let caller = CallerIdentity {
            tenant: self.caller.tenant.to_string(),
            object_id: self.caller.object_id,
            application_id: self.caller.application_id.clone(),
            user_principal_name: self.caller.user_principal_name.clone(),
        };
        Event {
            time: facts.received_at,
            operation: subject.operation.to_owned(),
            api_version: facts.api_version,
            result,
            http_status: status,
            duration_microseconds: facts.received.elapsed().as_micros().try_into().unwrap_or(u64::MAX),
            caller: Some(caller),
            client_address: facts.client_address,
            user_agent: facts.user_agent,
            correlation_id: facts.correlation_id,
            request_id: Some(facts.request_id),
            request_uri: facts.uri,
            key_name: subject.key_name.map(|name| name.to_string()),
            key_version: subject.key_version.map(|version| version.to_string()),
            algorithm: subject.algorithm.map(str::to_owned),
            data_action: subject.data_action.map(str::to_owned),
            scope: subject.scope,
            detail,
            ..self.pool.blank_event()
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            let leaf = self.pool.seal_event(&self.event(*request, Some(&Error::CallerLeft)));
            // Nobody waits for it; if the log is full or gone, so is the service.
            if let Err(error) = self.pool.audit().enqueue(leaf) {
                tracing::error!(%error, "the event of an abandoned request was not recorded");
            }
        }
    }
}
