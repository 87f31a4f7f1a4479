//! Use cases of the security domain: handed out once, to holders of whom a quorum can open it; taken in by a pool that
//! has none of its own yet.
//!
//! A pool is *provisioned* until one of the two has happened, and no key exists before. One of class production that took
//! a domain in waits on, until an administrator has said that it is the right one: an exchange key tells nobody apart, so
//! whoever gets hold of one can encrypt a domain to it whose secrets he knows. What a holder's share or an exchange key
//! protects is `ceremony`'s; here is who may ask, and when.

use crate::error::Error;
use crate::pool::{AUDIT_EPOCH, Change, Pool};
use crate::tasks::to_its_end;
use crate::ticket::{Recorded, Ticket};
use crate::workers::CostClass;
use audit::event::{Event, EventResult};
use ceremony::{
    DomainDescription, DownloadRequest, HolderSet, LibraryTransport, OpenedDomain, RestoreBlob, TransferKey,
    domain_file,
};
use crypto::domain_secrets::DomainSecrets;
use domain::access::{Action, DataAction, Scope, action};
use domain::guid::Guid;
use domain::pool::{Genesis, PoolClass};
use domain::principal::Caller;
use domain::time::IntDate;
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use storage::{ActivationRecord, OutboxRecord, Record, RecordId};

/// How long a pool keeps an exchange key whose blob does not come.
const TRANSFER_KEY_SECONDS: i64 = 24 * 60 * 60;

/// What a provisioned pool becomes when it takes in a domain.
pub struct Installation {
    pub secrets: DomainSecrets,
    /// The pool's own, but of the domain that was taken in.
    pub genesis: Genesis,
    pub activation: ActivationRecord,
    /// Of the upload, for the log that the pool begins then: the one in which the request has its event stays behind.
    pub event: OutboxRecord,
}

/// Makes a pool anew around another domain's secrets. The pool itself cannot: it would have to change what its own
/// records are sealed under.
pub trait Installer: Send + Sync {
    /// Prepares everything beside what there is. Only when all of it is durable does the next start take it, wholly.
    fn prepare<'a>(
        &'a self,
        installation: Installation,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;

    /// Lets that start come, once the answers that are under way have left.
    fn switch(&self);
}

/// How far a download or an upload has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DomainStatus {
    InProgress,
    Success,
}

/// What a pool knows of its domain while it runs.
pub(crate) struct DomainState {
    /// Dropped when nobody may ask for them any more.
    secrets: Mutex<Option<Arc<DomainSecrets>>>,
    transfer_key: Mutex<Option<(Arc<TransferKey>, IntDate)>>,
    /// Whether the next start makes the pool anew. Held while a domain is handed out or taken in: never both, or a file
    /// would be with its holders that no pool has.
    uploaded: tokio::sync::Mutex<bool>,
    /// From a download until its status was asked for once. Activation takes the service a while, and clients that ask at
    /// once, as the SDK's own tests do, expect to find it under way.
    download_is_new: AtomicBool,
    installer: Option<Arc<dyn Installer>>,
    /// Of the owner key: by it people tell one domain from another.
    fingerprint: String,
}

impl DomainState {
    pub fn new(secrets: DomainSecrets, installer: Option<Arc<dyn Installer>>) -> Self {
        Self {
            fingerprint: secrets.owner_key().public_key().fingerprint(),
            secrets: Mutex::new(Some(Arc::new(secrets))),
            transfer_key: Mutex::default(),
            uploaded: tokio::sync::Mutex::new(false),
            download_is_new: AtomicBool::new(false),
            installer,
        }
    }

    fn secrets(&self) -> Option<Arc<DomainSecrets>> {
        self.secrets.lock().clone()
    }

    pub fn forget_secrets(&self) {
        *self.secrets.lock() = None;
    }
}

/// What works before activation (behaviour section 13.1): the domain itself, and looking at roles.
pub(crate) fn works_before_activation<A: Action>() -> bool {
    matches!(
        A::DATA_ACTION,
        DataAction::SecurityDomainDownload
            | DataAction::SecurityDomainDownloadRead
            | DataAction::SecurityDomainUpload
            | DataAction::SecurityDomainUploadRead
            | DataAction::SecurityDomainTransferKeyRead
            | DataAction::RoleAssignmentRead
            | DataAction::RoleDefinitionRead
    )
}

/// What works while an uploaded domain waits to be confirmed: to confirm it, and what worked before it came, but to hand it
/// out. It has its holders, and a pool that hands a domain out vouches for it.
fn works_before_confirmation<A: Action>() -> bool {
    match A::DATA_ACTION {
        DataAction::SecurityDomainConfirm => true,
        DataAction::SecurityDomainDownload => false,
        _ => works_before_activation::<A>(),
    }
}

/// Which domain a pool has, and whether it may be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DomainView {
    pub security_domain: Guid,
    /// SHA-256 of the owner key's point, as `holdfast ceremony inspect` shows it.
    pub fingerprint: String,
    pub confirmed: bool,
}

impl Pool {
    pub fn is_active(&self) -> bool {
        self.index().activation().is_some()
    }

    /// The pool's domain came by upload, and no administrator has confirmed it yet.
    pub fn awaits_confirmation(&self) -> bool {
        self.index().activation().is_some_and(|held| held.value.awaits_confirmation)
    }

    /// SHA-256 of the owner key's point, hex: what people compare.
    pub fn domain_fingerprint(&self) -> &str {
        &self.domain_state().fingerprint
    }

    /// Whether a request of that kind may be made of the pool as it is.
    pub(crate) fn check_activated<A: Action>(&self) -> Result<(), Error> {
        match self.index().activation() {
            None if works_before_activation::<A>() => Ok(()),
            None => Err(Error::NotActivated),
            Some(held) if held.value.awaits_confirmation && !works_before_confirmation::<A>() => {
                Err(Error::DomainNotConfirmed { fingerprint: self.domain_fingerprint().to_owned() })
            }
            Some(_) => Ok(()),
        }
    }

    /// An administrator says that the uploaded domain, which has `fingerprint`, is the right one. Said again, or of a domain
    /// that was made here, it changes nothing.
    pub async fn confirm_domain(
        self: &Arc<Self>,
        mut ticket: Ticket,
        fingerprint: String,
    ) -> Recorded<DomainView> {
        ticket.asks::<action::SecurityDomainConfirm>(&Scope::Root);
        let authorized = ticket.authorize::<action::SecurityDomainConfirm>(Scope::Root).map(|_| ());
        let checked = authorized.and_then(|()| self.check_fingerprint(&fingerprint));
        if let Err(error) = checked {
            return ticket.record(Err(error)).await;
        }
        // Another domain may be taken in until then, and is this pool's in a moment: that one is to be confirmed.
        let uploaded = self.domain_state().uploaded.lock().await;
        if *uploaded {
            return ticket.record(Err(Error::TooManyConflicts)).await;
        }
        let view = DomainView {
            security_domain: self.genesis().security_domain,
            fingerprint: self.domain_fingerprint().to_owned(),
            confirmed: true,
        };
        if !self.awaits_confirmation() {
            return ticket.record(Ok(view)).await;
        }
        ticket.details(format!("domain {} with owner key {}", view.security_domain, view.fingerprint));
        let decide = || {
            let held = self.index().activation().ok_or(Error::NotActivated)?;
            let confirmed = ActivationRecord { awaits_confirmation: false, ..held.value.clone() };
            Ok(Change {
                expectations: vec![(RecordId::Activation, Some(held.stamp))],
                puts: vec![Record::Activation(confirmed)],
                deletes: vec![],
                value: view.clone(),
            })
        };
        self.record_change(ticket, decide).await
    }

    fn check_fingerprint(&self, said: &str) -> Result<(), Error> {
        let ours = self.domain_fingerprint();
        if said.eq_ignore_ascii_case(ours) {
            return Ok(());
        }
        Err(Error::BadParameter(format!(
            "this pool's domain has the fingerprint {ours}, which is another one: compare it with `holdfast ceremony inspect` of the domain's file; if it is not that domain, upload the right one"
        )))
    }

    /// Hands the domain out to `request`'s holders, which activates the pool: once. The same holders again are given
    /// the same file, in case the first answer never reached them; it opens for nobody else.
    pub async fn download_domain(
        self: &Arc<Self>,
        mut ticket: Ticket,
        request: DownloadRequest,
    ) -> Recorded<String> {
        ticket.asks::<action::SecurityDomainDownload>(&Scope::Root);
        let authorized = ticket.authorize::<action::SecurityDomainDownload>(Scope::Root).map(|_| ());
        if let Err(error) = authorized {
            return ticket.record(Err(error)).await;
        }
        let pool = self.clone();
        to_its_end(async move { pool.hand_out(ticket, &request.holders).await }).await
    }

    async fn hand_out(self: &Arc<Self>, mut ticket: Ticket, holders: &HolderSet) -> Recorded<String> {
        let uploaded = self.domain_state().uploaded.lock().await;
        let made = if *uploaded { Err(Error::AlreadyActive) } else { self.write_domain(holders) };
        let record = match made {
            Ok(record) => record,
            Err(error) => return ticket.record(Err(error)).await,
        };
        ticket.details(describe(&record));
        let recorded = self.record_change(ticket, || self.decide_download(&record)).await;
        self.domain_state().download_is_new.store(true, Ordering::Relaxed);
        self.forget_unneeded_secrets();
        recorded
    }

    pub async fn download_status(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<DomainStatus> {
        ticket.asks::<action::SecurityDomainDownloadRead>(&Scope::Root);
        let status = ticket.authorize::<action::SecurityDomainDownloadRead>(Scope::Root).map(|_| {
            let is_new = self.domain_state().download_is_new.swap(false, Ordering::Relaxed);
            if self.is_active() && !is_new { DomainStatus::Success } else { DomainStatus::InProgress }
        });
        ticket.record(status).await
    }

    /// A new exchange key, to which a quorum of another pool's holders encrypts that pool's domain. The one before is
    /// good for nothing from here on.
    pub async fn new_transfer_key(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<Arc<TransferKey>> {
        ticket.asks::<action::SecurityDomainTransferKeyRead>(&Scope::Root);
        let authorized = ticket.authorize::<action::SecurityDomainTransferKeyRead>(Scope::Root).map(|_| ());
        let checked = match authorized {
            Ok(()) => self.check_waits_for_domain().await,
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            return ticket.record(Err(error)).await;
        }
        let now = self.now().int_date();
        let until = IntDate::from_unix_seconds(now.unix_seconds() + TRANSFER_KEY_SECONDS);
        let (pool, name) = (self.genesis().pool, self.genesis().name.clone());
        let payer = Some(ticket.caller().object_id);
        let generate = move || TransferKey::generate(pool, &name, now, until);
        let made = self.workers().run(CostClass::KeyGeneration, payer, generate).await.map(Arc::new);
        if let Ok(key) = &made {
            *self.domain_state().transfer_key.lock() = Some((key.clone(), until));
        }
        ticket.record(made).await
    }

    /// Takes in the domain of another pool. All or nothing: what is prepared becomes this pool at its next start,
    /// which follows at once.
    pub async fn upload_domain(self: &Arc<Self>, mut ticket: Ticket, blob: String) -> Recorded<DomainStatus> {
        ticket.asks::<action::SecurityDomainUpload>(&Scope::Root);
        let authorized = ticket.authorize::<action::SecurityDomainUpload>(Scope::Root).map(|_| ());
        if let Err(error) = authorized {
            return ticket.record(Err(error)).await;
        }
        let pool = self.clone();
        to_its_end(async move { pool.take_in(ticket, blob).await }).await
    }

    async fn take_in(self: &Arc<Self>, mut ticket: Ticket, blob: String) -> Recorded<DomainStatus> {
        let mut uploaded = self.domain_state().uploaded.lock().await;
        let installed = match self.open_blob(ticket.caller(), blob, *uploaded).await {
            Ok(opened) => {
                ticket.details(format!(
                    "domain {} of pool {}, owner {}",
                    opened.description.security_domain,
                    opened.description.pool_name,
                    crypto::digest::hex(&opened.description.owner_fingerprint)
                ));
                self.install(&ticket, opened).await
            }
            Err(error) => Err(error),
        };
        let done = installed.is_ok();
        *uploaded |= done;
        let recorded = ticket.record(installed.map(|()| DomainStatus::InProgress)).await;
        if done && let Some(installer) = &self.domain_state().installer {
            installer.switch();
        }
        recorded
    }

    pub async fn upload_status(self: &Arc<Self>, mut ticket: Ticket) -> Recorded<DomainStatus> {
        ticket.asks::<action::SecurityDomainUploadRead>(&Scope::Root);
        let status = ticket
            .authorize::<action::SecurityDomainUploadRead>(Scope::Root)
            .map(|_| if self.is_active() { DomainStatus::Success } else { DomainStatus::InProgress });
        ticket.record(status).await
    }

    /// Whether nobody was given the domain of this active pool yet.
    pub fn domain_was_not_handed_out(&self) -> bool {
        self.index().activation().is_some_and(|held| held.value.holders.is_empty())
    }

    /// Activates a pool of class test that was made before pools had to be.
    pub async fn bootstrap_activation(self: &Arc<Self>) -> Result<(), Error> {
        match self.genesis().class {
            PoolClass::Test if self.is_active() => return Ok(()),
            PoolClass::Test => {}
            class @ PoolClass::Production => return Err(Error::TestClassOnly(class)),
        }
        let at = self.now().int_date();
        let record = ActivationRecord {
            at,
            domain_file: None,
            holders: vec![],
            required: 0,
            awaits_confirmation: false,
        };
        let event = Event {
            operation: "PoolActivate".into(),
            result: EventResult::Success,
            detail: "made before pools were provisioned first, and in use".into(),
            ..self.blank_event()
        };
        let decide = || {
            Ok(Change {
                expectations: vec![(RecordId::Activation, None)],
                puts: vec![Record::Activation(record.clone())],
                deletes: vec![],
                value: (),
            })
        };
        self.change(self.seal_committed(event), decide).await?.receipt.map(|_| ())
    }

    /// Hands the domain out without a caller, for a pool of class test that was active from the start.
    pub async fn bootstrap_domain(self: &Arc<Self>, holders: &HolderSet) -> Result<String, Error> {
        match self.genesis().class {
            PoolClass::Test => {}
            class @ PoolClass::Production => return Err(Error::TestClassOnly(class)),
        }
        let record = self.write_domain(holders)?;
        let event = Event {
            operation: "SecurityDomainBackup".into(),
            result: EventResult::Success,
            detail: format!("set up from the start: {}", describe(&record)),
            ..self.blank_event()
        };
        let changed = self.change(self.seal_committed(event), || self.decide_download(&record)).await?;
        changed.receipt?;
        self.forget_unneeded_secrets();
        Ok(changed.value)
    }

    fn write_domain(&self, holders: &HolderSet) -> Result<ActivationRecord, Error> {
        let genesis = self.genesis();
        let mut thumbprints: Vec<[u8; 32]> = holders.thumbprints().into_iter().map(|print| print.0).collect();
        thumbprints.sort_unstable();
        let required = holders.quorum().required();
        let activation = self.index().activation();
        if let Some(held) = &activation
            && held.value.holders == thumbprints
            && held.value.required == required
        {
            return Ok(ActivationRecord::clone(&held.value));
        }
        let handed_out = activation.as_ref().is_some_and(|held| !held.value.holders.is_empty());
        let secrets =
            self.domain_state().secrets().filter(|_| !handed_out || genesis.allow_domain_redownload);
        let secrets = secrets.ok_or(Error::DomainHandedOut)?;
        let owner = secrets.owner_key().public_key();
        let description = DomainDescription::new(genesis, self.genesis_hash(), &owner);
        let file =
            domain_file::write(&description, &secrets, holders, &LibraryTransport, &crypto::digest::random)
                .map_err(|error| Error::BadParameter(error.to_string()))?;
        let at = activation.map_or(self.now().int_date(), |held| held.value.at);
        let domain_file = Some(file);
        let awaits_confirmation = self.awaits_confirmation();
        Ok(ActivationRecord { at, domain_file, holders: thumbprints, required, awaits_confirmation })
    }

    fn decide_download(&self, record: &ActivationRecord) -> Result<Change<String>, Error> {
        let held = self.index().activation();
        if let Some(held) = &held
            && !held.value.holders.is_empty()
            && held.value != *record
            && !self.genesis().allow_domain_redownload
        {
            return Err(Error::DomainHandedOut);
        }
        let file = record.domain_file.clone().ok_or(Error::DomainHandedOut)?;
        Ok(Change {
            expectations: vec![(RecordId::Activation, held.map(|held| held.stamp))],
            puts: vec![Record::Activation(record.clone())],
            deletes: vec![],
            value: file,
        })
    }

    /// Once handed out the domain is for its holders; the pool goes on without what only a download needs.
    pub(crate) fn forget_unneeded_secrets(&self) {
        let handed_out = self.index().activation().is_some_and(|held| !held.value.holders.is_empty());
        if handed_out && !self.genesis().allow_domain_redownload {
            self.domain_state().forget_secrets();
        }
    }

    async fn check_waits_for_domain(&self) -> Result<(), Error> {
        let uploaded = self.domain_state().uploaded.lock().await;
        self.check_may_take_in(*uploaded)
    }

    fn check_may_take_in(&self, uploaded: bool) -> Result<(), Error> {
        // One that nobody has confirmed holds no key, and may be the wrong one: another can take its place.
        let is_used = self.is_active() && !self.awaits_confirmation();
        if uploaded || is_used { Err(Error::AlreadyActive) } else { Ok(()) }
    }

    async fn open_blob(&self, caller: &Caller, blob: String, uploaded: bool) -> Result<OpenedDomain, Error> {
        self.check_may_take_in(uploaded)?;
        let held = self.domain_state().transfer_key.lock().clone();
        let now = self.now().int_date();
        let key = held.filter(|(_, until)| now < *until).ok_or(Error::NoTransferKey)?.0;
        let blob = RestoreBlob::parse(&blob).map_err(|error| Error::BadParameter(error.to_string()))?;
        let open = move || blob.open(key.as_ref(), &crypto::digest::random);
        let opened = self.workers().run(CostClass::RsaPrivate, Some(caller.object_id), open).await?;
        // One answer for whatever is wrong with it; also where a domain of class test is to come to production, or the
        // other way round.
        opened
            .ok()
            .filter(|opened| opened.description.class == self.genesis().class)
            .ok_or(Error::BlobNotOpened)
    }

    async fn install(&self, ticket: &Ticket, opened: OpenedDomain) -> Result<(), Error> {
        let unavailable = || Error::StoreUnavailable("this pool cannot be made anew".into());
        let installer = self.domain_state().installer.clone().ok_or_else(unavailable)?;
        let mut holders: Vec<[u8; 32]> = opened.holders.iter().map(|print| print.0).collect();
        holders.sort_unstable();
        let genesis =
            Genesis { security_domain: opened.description.security_domain, ..self.genesis().clone() };
        let installation = Installation {
            event: ticket.first_event(&opened.secrets.audit_sealer(&genesis, AUDIT_EPOCH)),
            genesis,
            secrets: opened.secrets,
            activation: ActivationRecord {
                at: self.now().int_date(),
                domain_file: None,
                holders,
                required: opened.required,
                awaits_confirmation: match self.genesis().class {
                    PoolClass::Production => true,
                    PoolClass::Test => false,
                },
            },
        };
        installer.prepare(installation).await.map_err(Error::StoreUnavailable)?;
        *self.domain_state().transfer_key.lock() = None;
        Ok(())
    }
}

fn describe(record: &ActivationRecord) -> String {
    let holders: Vec<_> = record.holders.iter().map(|print| crypto::digest::hex(&print[..8])).collect();
    format!("{} of {} holders: {}", record.required, holders.len(), holders.join(", "))
}
