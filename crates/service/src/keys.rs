//! Use cases of live keys: create, read, list, update, and the six operations that use them.

use crate::error::Error;
use crate::failures::{Attempt, Refused};
use crate::index::Held;
use crate::pool::{Change, Pool};
use crate::quota::Limited;
use crate::shares::Payer;
use crate::ticket::{Recorded, Ticket};
use crate::views::{ImportedKey, KeyReference, KeyView, NewKey, Page, PageRequest, UsedKey, WrappedKey};
use crate::workers::CostClass;
use audit::event::{Event, EventResult};
use crypto::{
    Ciphertext, Decrypt, Encrypt, LoadedKey, MaterialBinding, PartitionError, PrivateParts, SecretBytes,
};
use domain::access::{Action, Grant, Scope, action};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{
    Attributes, Key, KeyOperation, KeyOperations, Origin, Version, VersionChange, check_exportable,
};
use domain::name::{KeyName, KeyVersion};
use domain::setting::Setting;
use domain::time::IntDate;
use std::sync::Arc;
use storage::{KeyRecord, Record, RecordId, Stamp, VersionRecord};

/// A data action that uses a key for one of its `key_ops`.
trait KeyUse: Action {
    const OPERATION: KeyOperation;
}

macro_rules! key_uses {
    ($($action:ident => $operation:ident,)*) => {
        $(impl KeyUse for action::$action { const OPERATION: KeyOperation = KeyOperation::$operation; })*
    };
}

key_uses! {
    Sign => Sign,
    Verify => Verify,
    Encrypt => Encrypt,
    Decrypt => Decrypt,
    Wrap => WrapKey,
    Unwrap => UnwrapKey,
    KeyImport => Import,
}

/// A data action that makes a version of a key.
pub(crate) trait Making: Action {}

impl Making for action::KeyCreate {}
impl Making for action::KeyImport {}
impl Making for action::KeyRotate {}

/// Which algorithms go with a key for an operation.
type Rule = fn(EncryptionAlgorithm, KeySpec) -> bool;

/// A key that its grant allows to use, now.
struct Usable {
    name: KeyName,
    version: KeyVersion,
    spec: KeySpec,
    key: Arc<dyn LoadedKey>,
}

/// Owned input of encryption, as it may cross to another thread.
#[derive(Clone)]
pub struct EncryptInput {
    pub plaintext: Arc<SecretBytes>,
    pub iv: Option<Vec<u8>>,
    pub additional_data: Option<Vec<u8>>,
}

/// Owned input of decryption.
#[derive(Clone)]
pub struct DecryptInput {
    pub ciphertext: Vec<u8>,
    pub iv: Option<Vec<u8>>,
    pub additional_data: Option<Vec<u8>>,
    pub tag: Option<Vec<u8>>,
}

impl Pool {
    /// Makes a key, or a new version of one that exists.
    pub async fn create_key(self: &Arc<Self>, mut ticket: Ticket, new: NewKey) -> Recorded<KeyView> {
        let scope = Scope::Key(new.name.clone());
        let version = self.new_version();
        ticket.about_key(&new.name, Some(version));
        ticket.asks::<action::KeyCreate>(&scope);
        let made = async {
            let grant = ticket.authorize::<action::KeyCreate>(scope)?;
            self.check_policy(new.release.as_ref())?;
            self.make_version(&grant, &new, version, Source::Generated).await
        };
        let made = made.await;
        self.record_made(ticket, made).await
    }

    /// Takes in a private key that its owner hands over, as a key or a new version of one that exists.
    pub async fn import_key(self: &Arc<Self>, mut ticket: Ticket, key: ImportedKey) -> Recorded<KeyView> {
        let ImportedKey { new, parts } = key;
        let scope = Scope::Key(new.name.clone());
        let version = self.new_version();
        ticket.about_key(&new.name, Some(version));
        ticket.asks::<action::KeyImport>(&scope);
        let made = async {
            let grant = ticket.authorize::<action::KeyImport>(scope)?;
            self.check_policy(new.release.as_ref())?;
            self.make_version(&grant, &new, version, Source::Imported(parts)).await
        };
        let made = made.await;
        self.record_made(ticket, made).await
    }

    /// Takes in a private key that was wrapped for a key of this pool. The caller needs the right to import at both: whoever
    /// may import one key may not use another for it.
    pub async fn import_wrapped_key(
        self: &Arc<Self>,
        mut ticket: Ticket,
        wrapped: WrappedKey,
    ) -> Recorded<KeyView> {
        let scope = Scope::Key(wrapped.name.clone());
        let version = self.new_version();
        ticket.about_key(&wrapped.name, Some(version));
        ticket.asks::<action::KeyImport>(&scope);
        ticket.details(format!("wrapped for {}", shown(&wrapped.kek)));
        let made = async {
            let grant = ticket.authorize::<action::KeyImport>(scope)?;
            // Before anything costs: a name that is taken, or full, is known.
            self.extended(&wrapped.name, version)?;
            self.check_policy(wrapped.release.as_ref())?;
            let parts = self.open_wrapped(&ticket, &wrapped).await?;
            let new = NewKey {
                name: wrapped.name.clone(),
                spec: parts.spec()?,
                public_exponent: None,
                operations: wrapped.operations,
                enabled: wrapped.enabled,
                not_before: wrapped.not_before,
                expires: wrapped.expires,
                exportable: wrapped.exportable,
                release: wrapped.release.clone(),
                tags: wrapped.tags.clone(),
            };
            self.make_version(&grant, &new, version, Source::Unwrapped(parts)).await
        };
        let made = made.await;
        self.record_made(ticket, made).await
    }

    /// The parts of a wrapped key, opened with its KEK. Says of the KEK what keeps it from that.
    async fn open_wrapped(&self, ticket: &Ticket, wrapped: &WrappedKey) -> Result<PrivateParts, Error> {
        let grant = ticket.authorize::<action::KeyImport>(Scope::Key(wrapped.kek.name.clone()))?;
        let amiss = |error: Error| match error {
            error @ (Error::KeyNotFound { .. } | Error::VersionNotFound { .. } | Error::UseRefused(_)) => {
                Error::BadParameter(format!("the key that header.kid names cannot unwrap: {error}"))
            }
            other => other,
        };
        let usable = self.usable(&grant, wrapped.kek.version).map_err(amiss)?;
        let (partition, key) = (self.partition().clone(), usable.key);
        let (kind, ciphertext) = (wrapped.kind, wrapped.ciphertext.clone());
        let open = move || partition.unwrap(key.as_ref(), kind, &ciphertext);
        let payer = Some(grant.caller().object_id);
        Ok(self.workers().run(CostClass::RsaPrivate, payer, open).await??)
    }

    pub async fn read_key(self: &Arc<Self>, mut ticket: Ticket, key: KeyReference) -> Recorded<KeyView> {
        let scope = Scope::Key(key.name.clone());
        ticket.about_key(&key.name, key.version);
        ticket.asks::<action::KeyRead>(&scope);
        let read = || {
            let grant = ticket.authorize::<action::KeyRead>(scope)?;
            let held = self.stored(&grant, key.version)?;
            Ok(self.view(&held.version.value.version))
        };
        let result = read();
        ticket.record(result).await
    }

    /// Keys that the caller may read, each with its current version, by name.
    pub async fn list_keys(
        self: &Arc<Self>,
        mut ticket: Ticket,
        request: PageRequest<KeyName>,
    ) -> Recorded<Page<KeyView, KeyName>> {
        ticket.asks::<action::KeyRead>(&Scope::Keys);
        let listed = ticket.sight::<action::KeyRead>().map(|sight| {
            let held = self.index().page(request.after.as_ref(), request.limit + 1, |key| {
                !key.is_deleted() && sight.covers(&key.name)
            });
            let views = held.iter().map(|held| self.view(&held.version.value.version)).collect();
            Page::new(views, request.limit, |view: &KeyView| view.version.name.clone())
        });
        ticket.record(listed).await
    }

    /// Versions of one key, oldest first.
    pub async fn list_versions(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: KeyName,
        request: PageRequest<KeyVersion>,
    ) -> Recorded<Page<KeyView, KeyVersion>> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::KeyRead>(&scope);
        let list = || {
            let grant = ticket.authorize::<action::KeyRead>(scope)?;
            let versions = self.stored(&grant, None)?.key.value.versions().to_vec();
            let start = match request.after {
                None => 0,
                Some(after) => versions
                    .iter()
                    .position(|version| *version == after)
                    .map(|position| position + 1)
                    .ok_or_else(|| Error::BadParameter("$skiptoken is of another key".into()))?,
            };
            let views = versions[start..]
                .iter()
                .take(request.limit + 1)
                .map(|version| Ok(self.view(&self.stored(&grant, Some(*version))?.version.value.version)))
                .collect::<Result<Vec<_>, Error>>()?;
            Ok(Page::new(views, request.limit, |view: &KeyView| view.version.version))
        };
        let result = list();
        ticket.record(result).await
    }

    /// Changes attributes, `key_ops`, tags or release policy of one version.
    pub async fn update_key(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        change: VersionChange,
    ) -> Recorded<KeyView> {
        let scope = Scope::Key(key.name.clone());
        ticket.about_key(&key.name, key.version);
        ticket.asks::<action::KeyWrite>(&scope);
        let granted = ticket.authorize::<action::KeyWrite>(scope.clone()).map(|_| ());
        if let Err(denied) = granted {
            return ticket.record(Err(denied)).await;
        }
        // The version that is current now is the one meant, whatever becomes current meanwhile.
        let version = key.version.or_else(|| self.index().key(&key.name).map(|key| key.value.current()));
        ticket.about_key(&key.name, version);
        let now = self.key_time().int_date();
        if let Err(refused) = self.check_policy(change.release.as_ref()) {
            return ticket.record(Err(refused)).await;
        }
        let decide = || {
            let held = self.live(&key.name, version)?;
            let changed = VersionRecord {
                version: held.version.value.version.changed(&change, now)?,
                material: held.version.value.material.clone(),
            };
            Ok(Change {
                expectations: vec![
                    (RecordId::Key(key.name.clone()), Some(held.key.stamp)),
                    (RecordId::Version(key.name.clone(), changed.version.version), Some(held.version.stamp)),
                ],
                value: self.view(&changed.version),
                puts: vec![Record::Version(changed)],
                deletes: vec![],
            })
        };
        self.record_change(ticket, decide).await
    }

    /// Random bytes from the partition's generator.
    pub async fn random_bytes(self: &Arc<Self>, mut ticket: Ticket, count: usize) -> Recorded<SecretBytes> {
        ticket.asks::<action::RandomBytes>(&Scope::Root);
        let bytes = ticket.authorize::<action::RandomBytes>(Scope::Root).map(|_| {
            let mut bytes = vec![0; count];
            crypto::digest::random(&mut bytes);
            SecretBytes::new(bytes)
        });
        ticket.record(bytes).await
    }

    pub async fn sign(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        algorithm: SignatureAlgorithm,
        digest: Vec<u8>,
    ) -> Recorded<UsedKey<Vec<u8>>> {
        ticket.with_algorithm(algorithm.as_str());
        let cost = Cost::of_private(algorithm.fits_rsa());
        self.use_key::<action::Sign, _, _>(
            ticket,
            key,
            cost,
            |_| Ok(()),
            move |key, _| key.sign(algorithm, &digest),
        )
        .await
    }

    pub async fn verify(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        algorithm: SignatureAlgorithm,
        digest: Vec<u8>,
        signature: Vec<u8>,
    ) -> Recorded<UsedKey<bool>> {
        ticket.with_algorithm(algorithm.as_str());
        self.use_key::<action::Verify, _, _>(
            ticket,
            key,
            Cost::Inline,
            |_| Ok(()),
            move |key, _| key.verify(algorithm, &digest, &signature),
        )
        .await
    }

    pub async fn encrypt(
        self: &Arc<Self>,
        ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        input: EncryptInput,
    ) -> Recorded<UsedKey<Ciphertext>> {
        self.hide::<action::Encrypt>(ticket, key, algorithm, EncryptionAlgorithm::encrypts_with, input).await
    }

    pub async fn decrypt(
        self: &Arc<Self>,
        ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        input: DecryptInput,
    ) -> Recorded<UsedKey<SecretBytes>> {
        self.reveal::<action::Decrypt>(ticket, key, algorithm, EncryptionAlgorithm::encrypts_with, input)
            .await
    }

    pub async fn wrap_key(
        self: &Arc<Self>,
        ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        input: EncryptInput,
    ) -> Recorded<UsedKey<Ciphertext>> {
        self.hide::<action::Wrap>(ticket, key, algorithm, EncryptionAlgorithm::wraps_with, input).await
    }

    pub async fn unwrap_key(
        self: &Arc<Self>,
        ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        input: DecryptInput,
    ) -> Recorded<UsedKey<SecretBytes>> {
        self.reveal::<action::Unwrap>(ticket, key, algorithm, EncryptionAlgorithm::wraps_with, input).await
    }

    /// Encrypt and wrapKey: one computation, two rights and two rules of which algorithms go.
    async fn hide<A: KeyUse>(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        rule: Rule,
        input: EncryptInput,
    ) -> Recorded<UsedKey<Ciphertext>> {
        ticket.with_algorithm(algorithm.as_str());
        let admit = |usable: &Usable| {
            check_fits(algorithm, usable.spec, rule)?;
            self.check_mode(algorithm)
        };
        self.use_key::<A, _, _>(ticket, key, Cost::of_encryption(algorithm), admit, move |key, _| {
            encrypt(key, algorithm, &input)
        })
        .await
    }

    /// Decrypt and unwrapKey, likewise.
    async fn reveal<A: KeyUse>(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        algorithm: EncryptionAlgorithm,
        rule: Rule,
        input: DecryptInput,
    ) -> Recorded<UsedKey<SecretBytes>> {
        ticket.with_algorithm(algorithm.as_str());
        let cost = Cost::of_private(algorithm.is_rsa());
        let pool = self.clone();
        let admit = |usable: &Usable| {
            check_fits(algorithm, usable.spec, rule)?;
            self.check_mode(algorithm)?;
            self.admit_decryption(algorithm, usable)
        };
        self.use_key::<A, _, _>(ticket, key, cost, admit, move |key, attempt| {
            let result = decrypt(key, algorithm, &input);
            if result.as_ref().is_err_and(|error| *error == PartitionError::DecryptionFailed)
                && let Some(attempt) = attempt.take()
            {
                pool.count_failure(attempt);
            }
            result
        })
        .await
    }

    fn check_mode(&self, algorithm: EncryptionAlgorithm) -> Result<(), Error> {
        if algorithm.is_cbc() && !self.setting(Setting::Cbc) { Err(Error::CbcOff) } else { Ok(()) }
    }

    /// Whether `RSA1_5` decrypts here, and how often it may still fail with this key: to an attacker who may choose
    /// the ciphertext, each failure and each success is a bit of some other ciphertext's plaintext.
    fn admit_decryption(
        &self,
        algorithm: EncryptionAlgorithm,
        usable: &Usable,
    ) -> Result<Option<Attempt>, Error> {
        if algorithm != EncryptionAlgorithm::Rsa15 {
            return Ok(None);
        }
        if !self.setting(Setting::Rsa15Decryption) {
            return Err(Error::Rsa15Off);
        }
        let Some(limiter) = self.rsa15_failures() else { return Ok(None) };
        let place = (usable.name.clone(), usable.version);
        limiter.begin(&place, self.now()).map(Some).map_err(|refused| match refused {
            Refused::Limit { retry_after_seconds } => {
                let limit = self.limits().rsa15_failures_per_hour;
                Error::TooManyFailures { limit, retry_after_seconds }
            }
            Refused::TooManyAtOnce => Error::Busy("decryptions with RSA1_5"),
        })
    }

    fn count_failure(&self, attempt: Attempt) {
        let (name, version) = attempt.place().clone();
        if !attempt.failed() {
            return;
        }
        let limit = self.limits().rsa15_failures_per_hour;
        tracing::warn!(limit, "decryption with RSA1_5 fails too often with one key version");
        let event = Event {
            operation: "DecryptionFailureAlarm".into(),
            result: EventResult::Success,
            key_name: Some(name.to_string()),
            key_version: Some(version.to_string()),
            algorithm: Some(EncryptionAlgorithm::Rsa15.as_str().into()),
            detail: format!(
                "{limit} decryptions with RSA1_5 have failed within an hour; further ones are refused until it is over"
            ),
            ..self.blank_event()
        };
        if let Err(error) = self.audit().enqueue(self.seal_event(&event)) {
            tracing::error!(%error, "an alarm was not recorded");
        }
    }

    /// Authorise, find, load, compute, record: in this order, and the result leaves only with its event durable.
    async fn use_key<A: KeyUse, G: Send + 'static, T: Send + 'static>(
        self: &Arc<Self>,
        mut ticket: Ticket,
        reference: KeyReference,
        cost: Cost,
        admit: impl FnOnce(&Usable) -> Result<G, Error>,
        mut operate: impl FnMut(&dyn LoadedKey, &mut G) -> Result<T, PartitionError> + Send + 'static,
    ) -> Recorded<UsedKey<T>> {
        let scope = Scope::Key(reference.name.clone());
        ticket.about_key(&reference.name, reference.version);
        ticket.asks::<A>(&scope);
        let usable = ticket
            .authorize::<A>(scope)
            .and_then(|grant| self.usable(&grant, reference.version))
            .and_then(|usable| admit(&usable).map(|admitted| (usable, admitted)));
        let (usable, mut admitted) = match usable {
            Ok(usable) => usable,
            Err(error) => return ticket.record(Err(error)).await,
        };
        ticket.about_key(&reference.name, Some(usable.version));
        let (key, room) = (usable.key, self.room().clone());
        let mut operate = move || room.make_for(|| operate(key.as_ref(), &mut admitted));
        let result = match (cost, usable.spec) {
            (Cost::RandomIv, _) => match self.count_invocation(&usable.name, usable.version).await {
                Ok(()) => operate().map_err(Error::from),
                Err(error) => Err(error),
            },
            (Cost::Threads(class), KeySpec::Rsa(_)) => {
                let payer = Some(ticket.caller().object_id);
                let ran = self.workers().run(class, payer, operate).await;
                ran.and_then(|result| result.map_err(Error::from))
            }
            (Cost::Threads(_) | Cost::Inline, _) => operate().map_err(Error::from),
        };
        let (name, version) = (usable.name, usable.version);
        ticket.record(result.map(|result| UsedKey { name, version, result })).await
    }

    fn usable<A: KeyUse>(&self, grant: &Grant<'_, A>, version: Option<KeyVersion>) -> Result<Usable, Error> {
        let record = self.stored(grant, version)?.version.value;
        let held = &record.version;
        held.check_use(A::OPERATION, self.key_time().int_date())?;
        let place = (held.name.clone(), held.version);
        let key = match self.loaded().get(&place) {
            Some(key) => key,
            None => {
                let key = self.load(&record)?;
                self.loaded().insert(place.clone(), key.clone());
                // Disabled or deleted meanwhile, it was taken out before it was put in.
                let still = self.live(&held.name, Some(held.version));
                if !still.is_ok_and(|held| held.version.value.version.attributes.enabled) {
                    self.loaded().remove(&place);
                }
                key
            }
        };
        let (name, version) = place;
        Ok(Usable { name, version, spec: held.spec, key })
    }

    fn load(&self, record: &VersionRecord) -> Result<Arc<dyn LoadedKey>, PartitionError> {
        let held = &record.version;
        let binding = self.binding(&held.name, held.version);
        self.partition().load(held.spec, &record.material, &binding)
    }

    /// The record that a grant is for. The grant names the key, so the check cannot drift from what it protects.
    pub(crate) fn stored<A: Action>(
        &self,
        grant: &Grant<'_, A>,
        version: Option<KeyVersion>,
    ) -> Result<Held, Error> {
        let name = grant.key().ok_or_else(|| Error::BadParameter("the request names no key".into()))?;
        self.live(name, version)
    }

    /// A version of a key that is not deleted.
    pub(crate) fn live(&self, name: &KeyName, version: Option<KeyVersion>) -> Result<Held, Error> {
        let not_found = || Error::KeyNotFound { name: name.clone() };
        match (self.index().held(name, version), version) {
            (Some(held), _) if held.key.value.is_deleted() => Err(not_found()),
            (Some(held), _) => Ok(held),
            (None, Some(version)) if self.index().key(name).is_some_and(|key| !key.value.is_deleted()) => {
                Err(Error::VersionNotFound { name: name.clone(), version })
            }
            (None, _) => Err(not_found()),
        }
    }

    pub(crate) fn new_version(&self) -> KeyVersion {
        let mut version = [0; 16];
        self.random().fill(&mut version);
        KeyVersion(version)
    }

    /// A version of `new` with the material that the partition makes or takes in.
    pub(crate) async fn make_version<A: Making>(
        &self,
        grant: &Grant<'_, A>,
        new: &NewKey,
        version: KeyVersion,
        source: Source,
    ) -> Result<VersionRecord, Error> {
        self.generate_version(new, version, source, Some(grant.caller().object_id)).await
    }

    /// Likewise without a grant, for what the pool does of its own accord.
    pub(crate) async fn generate_version(
        &self,
        new: &NewKey,
        version: KeyVersion,
        source: Source,
        payer: Payer,
    ) -> Result<VersionRecord, Error> {
        let operations =
            new.operations.unwrap_or_else(|| KeyOperations::default_for(new.spec)).check(new.spec)?;
        operations.check_origin(source.origin())?;
        let now: IntDate = self.key_time().int_date();
        let attributes = Attributes {
            enabled: new.enabled,
            not_before: new.not_before,
            expires: new.expires,
            created: now,
            updated: now,
            exportable: new.exportable,
        };
        attributes.check()?;
        check_exportable(new.exportable, new.release.as_ref(), operations)?;
        // Before the costly part; decided again, for good, when the change is committed.
        self.extended(&new.name, version)?;
        let partition = self.partition().clone();
        let binding = self.binding(&new.name, version);
        let (spec, exponent) = (new.spec, new.public_exponent);
        let origin = source.origin();
        let ready = match &source {
            Source::Generated => self.ready_keys().take(spec, exponent),
            Source::Imported(_) | Source::Unwrapped(_) => None,
        };
        let make = move || match source {
            Source::Generated => partition.generate(spec, exponent, &binding),
            Source::Imported(parts) | Source::Unwrapped(parts) => partition.import(spec, &parts, &binding),
        };
        let generated = match (spec, ready) {
            (_, Some(ready)) => {
                self.workers().prompt_idle_work();
                ready.bind(self.partition().as_ref(), &self.binding(&new.name, version))?
            }
            // Imported ones as well: their primes are tested.
            (KeySpec::Rsa(_), None) => self.workers().run(CostClass::KeyGeneration, payer, make).await??,
            (KeySpec::Ec(_) | KeySpec::Oct(_), None) => make()?,
        };
        let version = Version {
            name: new.name.clone(),
            version,
            spec,
            public: generated.public,
            operations,
            attributes,
            tags: new.tags.clone(),
            origin,
            release: new.release.clone(),
        };
        Ok(VersionRecord { version, material: generated.masked })
    }

    async fn record_made(
        self: &Arc<Self>,
        ticket: Ticket,
        made: Result<VersionRecord, Error>,
    ) -> Recorded<KeyView> {
        match made {
            Ok(record) => self.record_change(ticket, || self.decide_create(&record)).await,
            Err(error) => ticket.record(Err(error)).await,
        }
    }

    pub(crate) fn decide_create(&self, made: &VersionRecord) -> Result<Change<KeyView>, Error> {
        let mut record = made.clone();
        let version = record.version.version;
        let (held, key) = self.extended(&record.version.name, version)?;
        // As the key's first creator wrote it, so that all its versions have identifiers of one spelling.
        record.version.name = key.name.clone();
        Ok(Change {
            expectations: vec![
                (RecordId::Key(key.name.clone()), held),
                (RecordId::Version(key.name.clone(), version), None),
            ],
            value: self.view(&record.version),
            puts: vec![Record::Key(KeyRecord { key }), Record::Version(record)],
            deletes: vec![],
        })
    }

    /// The key of that name with `version` as its new current one, and the stamp of what it is made from.
    fn extended(&self, name: &KeyName, version: KeyVersion) -> Result<(Option<Stamp>, Key), Error> {
        match self.index().key(name) {
            Some(held) => {
                let key = held.value.with_version(version, self.limits().versions_per_key)?;
                Ok((Some(held.stamp), key))
            }
            None => {
                self.check_left(&Limited::Keys, 0)?;
                Ok((None, Key::first(name.clone(), version)))
            }
        }
    }

    pub(crate) fn view(&self, version: &Version) -> KeyView {
        let genesis = self.genesis();
        KeyView {
            version: version.clone(),
            retention: genesis.retention,
            purge_protection: genesis.purge_protection,
        }
    }

    fn binding(&self, name: &KeyName, version: KeyVersion) -> MaterialBinding {
        binding(self.genesis().pool, name, version)
    }
}

/// Where the material of a new version comes from.
pub(crate) enum Source {
    /// The partition makes it, or has made it ahead.
    Generated,
    /// The partition takes it in.
    Imported(PrivateParts),
    /// Likewise, after another key of the pool opened it.
    Unwrapped(PrivateParts),
}

impl Source {
    fn origin(&self) -> Origin {
        match self {
            Source::Generated => Origin::Generated,
            Source::Imported(_) => Origin::Imported,
            Source::Unwrapped(_) => Origin::Wrapped,
        }
    }
}

/// `name/version`
fn shown(key: &KeyReference) -> String {
    match key.version {
        Some(version) => format!("{}/{version}", key.name),
        None => key.name.to_string(),
    }
}

/// What a key version's material is bound to: the pool, the name, the version. The partition adds the type.
pub(crate) fn binding(pool: Guid, name: &KeyName, version: KeyVersion) -> MaterialBinding {
    MaterialBinding([&pool.0, version.0.as_slice(), name.canonical().as_bytes()].concat())
}

/// What a use of a key takes besides its computation.
#[derive(Clone, Copy)]
enum Cost {
    /// Done where the request runs.
    Inline,
    /// Done on the threads of its class.
    Threads(CostClass),
    /// Draws a random IV, and is counted for it.
    RandomIv,
}

impl Cost {
    fn of_private(is_rsa: bool) -> Self {
        if is_rsa { Cost::Threads(CostClass::RsaPrivate) } else { Cost::Inline }
    }

    fn of_encryption(algorithm: EncryptionAlgorithm) -> Self {
        match algorithm {
            EncryptionAlgorithm::AesGcm(_) => Cost::RandomIv,
            _ => Cost::Inline,
        }
    }
}

/// Encrypt and wrapKey share algorithms only in part: `A256KW` does not encrypt, `A256GCM` does not wrap.
fn check_fits(algorithm: EncryptionAlgorithm, spec: KeySpec, rule: Rule) -> Result<(), PartitionError> {
    if rule(algorithm, spec) {
        Ok(())
    } else {
        Err(PartitionError::AlgorithmMismatch { algorithm: algorithm.as_str(), spec })
    }
}

fn encrypt(
    key: &dyn LoadedKey,
    algorithm: EncryptionAlgorithm,
    input: &EncryptInput,
) -> Result<Ciphertext, PartitionError> {
    let input = Encrypt {
        plaintext: input.plaintext.danger_expose(),
        iv: input.iv.as_deref(),
        additional_data: input.additional_data.as_deref(),
    };
    key.encrypt(algorithm, &input)
}

fn decrypt(
    key: &dyn LoadedKey,
    algorithm: EncryptionAlgorithm,
    input: &DecryptInput,
) -> Result<SecretBytes, PartitionError> {
    let input = Decrypt {
        ciphertext: &input.ciphertext,
        iv: input.iv.as_deref(),
        additional_data: input.additional_data.as_deref(),
        tag: input.tag.as_deref(),
    };
    key.decrypt(algorithm, &input)
}
