//! Use cases of keys: create, read, and the six operations that use them.

use crate::error::Error;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use crate::views::{KeyReference, KeyView, NewKey, UsedKey};
use crate::workers::CostClass;
use crypto::{Ciphertext, Decrypt, Encrypt, LoadedKey, MaterialBinding, PartitionError, SecretBytes};
use domain::access::{Action, Grant, Scope, action};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, SignatureAlgorithm};
use domain::key::{Attributes, Key, KeyOperation, KeyOperations, Version};
use domain::name::{KeyName, KeyVersion};
use domain::time::IntDate;
use std::sync::Arc;
use storage::{KeyRecord, Record, RecordId, VersionRecord};

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
}

/// Which algorithms go with a key for an operation.
type Rule = fn(EncryptionAlgorithm, KeySpec) -> bool;

/// A key that its grant allows to use, now.
struct Usable {
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
        let mut version = [0; 16];
        self.random().fill(&mut version);
        let version = KeyVersion(version);
        ticket.about_key(&new.name, Some(version));
        ticket.asks::<action::KeyCreate>(&scope);
        let made = async {
            let grant = ticket.authorize::<action::KeyCreate>(scope)?;
            self.make_version(&grant, &new, version).await
        };
        let record = match made.await {
            Ok(record) => record,
            Err(error) => return ticket.record(Err(error)).await,
        };
        let view = self.view(&record.version);
        self.record_change(ticket, || self.decide_create(&record, view.clone())).await
    }

    pub async fn read_key(self: &Arc<Self>, mut ticket: Ticket, key: KeyReference) -> Recorded<KeyView> {
        let scope = Scope::Key(key.name.clone());
        ticket.about_key(&key.name, key.version);
        ticket.asks::<action::KeyRead>(&scope);
        let read = || {
            let grant = ticket.authorize::<action::KeyRead>(scope)?;
            let record = self.stored(&grant, key.version)?;
            Ok(self.view(&record.version))
        };
        let result = read();
        ticket.record(result).await
    }

    pub async fn sign(
        self: &Arc<Self>,
        mut ticket: Ticket,
        key: KeyReference,
        algorithm: SignatureAlgorithm,
        digest: Vec<u8>,
    ) -> Recorded<UsedKey<Vec<u8>>> {
        ticket.with_algorithm(algorithm.as_str());
        let cost = cost_of_private(algorithm.fits_rsa());
        self.use_key::<action::Sign, _>(ticket, key, cost, move |key| key.sign(algorithm, &digest)).await
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
        self.use_key::<action::Verify, _>(ticket, key, None, move |key| {
            key.verify(algorithm, &digest, &signature)
        })
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
        self.use_key::<A, _>(ticket, key, None, move |key| {
            fits(algorithm, key, rule)?;
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
        let cost = cost_of_private(algorithm.is_rsa());
        self.use_key::<A, _>(ticket, key, cost, move |key| {
            fits(algorithm, key, rule)?;
            decrypt(key, algorithm, &input)
        })
        .await
    }

    /// Authorise, find, load, compute, record: in this order, and the result leaves only with its event durable.
    async fn use_key<A: KeyUse, T: Send + 'static>(
        self: &Arc<Self>,
        mut ticket: Ticket,
        reference: KeyReference,
        cost: Option<CostClass>,
        operate: impl FnOnce(&dyn LoadedKey) -> Result<T, PartitionError> + Send + 'static,
    ) -> Recorded<UsedKey<T>> {
        let scope = Scope::Key(reference.name.clone());
        ticket.about_key(&reference.name, reference.version);
        ticket.asks::<A>(&scope);
        let usable = ticket
            .authorize::<A>(scope)
            .map_err(Error::from)
            .and_then(|grant| self.usable(&grant, reference.version));
        let usable = match usable {
            Ok(usable) => usable,
            Err(error) => return ticket.record(Err(error)).await,
        };
        ticket.about_key(&reference.name, Some(usable.version));
        let key = usable.key;
        let result = match (cost, usable.spec) {
            (Some(class), KeySpec::Rsa(_)) => {
                let ran = self.workers().run(class, move || operate(key.as_ref())).await;
                ran.and_then(|result| result.map_err(Error::from))
            }
            (Some(_) | None, _) => operate(key.as_ref()).map_err(Error::from),
        };
        let name = reference.name;
        let version = usable.version;
        ticket.record(result.map(|result| UsedKey { name, version, result })).await
    }

    fn usable<A: KeyUse>(&self, grant: &Grant<'_, A>, version: Option<KeyVersion>) -> Result<Usable, Error> {
        let record = self.stored(grant, version)?;
        let held = &record.version;
        held.check_use(A::OPERATION, self.now().int_date())?;
        let place = (held.name.clone(), held.version);
        let key = match self.loaded().get(&place) {
            Some(key) => key,
            None => {
                let key = self.partition().load(
                    held.spec,
                    &record.material,
                    &self.binding(&held.name, held.version),
                )?;
                self.loaded().insert(place, key.clone());
                key
            }
        };
        Ok(Usable { version: held.version, spec: held.spec, key })
    }

    /// The record that a grant is for. The grant names the key, so the check cannot drift from what it protects.
    fn stored<A: Action>(
        &self,
        grant: &Grant<'_, A>,
        version: Option<KeyVersion>,
    ) -> Result<Arc<VersionRecord>, Error> {
        let name = grant.key().ok_or_else(|| Error::BadParameter("the request names no key".into()))?;
        self.index().version(name, version).ok_or_else(|| match (version, self.index().key(name)) {
            (Some(version), Some(_)) => Error::VersionNotFound { name: name.clone(), version },
            (_, _) => Error::KeyNotFound { name: name.clone() },
        })
    }

    async fn make_version(
        &self,
        _grant: &Grant<'_, action::KeyCreate>,
        new: &NewKey,
        version: KeyVersion,
    ) -> Result<VersionRecord, Error> {
        let operations =
            new.operations.unwrap_or_else(|| KeyOperations::default_for(new.spec)).check(new.spec)?;
        if let (Some(not_before), Some(expires)) = (new.not_before, new.expires)
            && expires <= not_before
        {
            return Err(Error::BadParameter("attributes.exp must be later than attributes.nbf".into()));
        }
        // Before the costly part; decided again, for good, when the change is committed.
        self.check_room(&new.name)?;
        let partition = self.partition().clone();
        let binding = self.binding(&new.name, version);
        let (spec, exponent) = (new.spec, new.public_exponent);
        let generate = move || partition.generate(spec, exponent, &binding);
        let generated = match spec {
            KeySpec::Rsa(_) => self.workers().run(CostClass::KeyGeneration, generate).await??,
            KeySpec::Ec(_) | KeySpec::Oct(_) => generate()?,
        };
        let now: IntDate = self.now().int_date();
        let version = Version {
            name: new.name.clone(),
            version,
            spec,
            public: generated.public,
            operations,
            attributes: Attributes {
                enabled: new.enabled,
                not_before: new.not_before,
                expires: new.expires,
                created: now,
                updated: now,
                exportable: new.exportable,
            },
            tags: new.tags.clone(),
        };
        Ok(VersionRecord { version, material: generated.masked })
    }

    fn decide_create(&self, record: &VersionRecord, view: KeyView) -> Result<Change<KeyView>, Error> {
        let name = &record.version.name;
        let version = record.version.version;
        let held = self.index().key(name);
        let key = match &held {
            // The name stays as its first creator wrote it.
            Some(held) => held.value.with_version(version)?,
            None => {
                self.check_room(name)?;
                Key::first(name.clone(), version)
            }
        };
        Ok(Change {
            expectations: vec![
                (RecordId::Key(name.clone()), held.map(|held| held.stamp)),
                (RecordId::Version(name.clone(), version), None),
            ],
            puts: vec![Record::Key(KeyRecord { key }), Record::Version(record.clone())],
            deletes: vec![],
            value: view,
        })
    }

    fn check_room(&self, name: &KeyName) -> Result<(), Error> {
        let limit = self.limits().keys;
        if self.index().key(name).is_none() && self.index().key_count() >= limit {
            return Err(Error::LimitReached { what: "keys", limit });
        }
        Ok(())
    }

    fn view(&self, version: &Version) -> KeyView {
        let genesis = self.genesis();
        KeyView {
            version: version.clone(),
            retention: genesis.retention,
            purge_protection: genesis.purge_protection,
        }
    }

    /// What a key version's material is bound to: the pool, the name, the version. The partition adds the type.
    fn binding(&self, name: &KeyName, version: KeyVersion) -> MaterialBinding {
        let pool = self.genesis().pool.0;
        MaterialBinding([&pool, version.0.as_slice(), name.canonical().as_bytes()].concat())
    }
}

fn cost_of_private(is_rsa: bool) -> Option<CostClass> {
    is_rsa.then_some(CostClass::RsaPrivate)
}

/// Encrypt and wrapKey share algorithms only in part: `A256KW` does not encrypt, `A256GCM` does not wrap.
fn fits(algorithm: EncryptionAlgorithm, key: &dyn LoadedKey, rule: Rule) -> Result<(), PartitionError> {
    let spec = key.spec();
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
