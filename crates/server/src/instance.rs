//! One pool of this process: where it is kept, how it opens, and how it is made anew around an uploaded domain.
//!
//! An uploaded security domain changes what everything is sealed under: the store, the sealed domain, the owner key.
//! So the pool is built anew in a directory beside its own, complete and durable before it is marked as such; the next
//! start then moves the old directory away and the new one in. Whatever moment the power fails at, the pool is the old
//! one or the new one.

use crate::CommandError;
use crate::files;
use crate::layout::RESOURCE_SUFFIX;
use crate::outgoing::Outgoing;
use crate::root_of_trust::RootOfTrust;
use crypto::certificate::OwnerPublicKey;
use crypto::digest::{hex, sha256};
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::guid::Guid;
use domain::name::PoolName;
use domain::pool::{
    AuditDurability, Genesis, IssuerPin, KeySource, PUBLIC_AUDIENCE, PoolClass, RetentionDays,
};
use domain::principal::TenantId;
use host::{Engine, Log};
use host_embedded::{EngineOptions, FileLog, LogDurability, LogOptions, RedbEngine};
use seal::RootKind;
use serde::{Deserialize, Serialize};
use service::{
    ActivationRecord, Installation, Installer, Pool, PoolLimits, PoolParts, Random, SystemClock, SystemRandom,
};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::watch;
use zeroize::Zeroizing;

/// In a directory that was made beside what it is to replace: it is complete, and the next start takes it.
pub const COMPLETE: &str = "complete";

/// Where a pool is kept.
#[derive(Clone, Debug)]
pub struct Place {
    pub directory: PathBuf,
    pub root: RootOfTrust,
    /// What this process was hardened for. A pool of the other class does not open here.
    pub class: PoolClass,
    pub clock_is_right: bool,
}

/// What a pool is founded with, where there is none.
pub struct Founding {
    pub genesis: Genesis,
    /// `None`: it waits for its security domain to be handed out, or for another's.
    pub activation: Option<ActivationRecord>,
}

/// What a new pool's genesis is made from, beside its name; what all pools of a quickstart have in common is not here.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    pub tenant: String,
    pub issuer: String,
    pub issuer_authority: String,
    pub key_set: String,
    pub key_source_url: String,
    pub key_source_roots: String,
    pub administrators: Vec<String>,
    pub retention_days: u8,
    pub purge_protection: bool,
    /// An audit event counts as recorded when the operating system has it.
    pub audit_written: bool,
}

impl Parameters {
    pub fn genesis(&self, name: &PoolName) -> Result<Genesis, CommandError> {
        let administrators = self.administrators.iter().map(|id| id.parse());
        let genesis = Genesis {
            pool: SystemRandom.guid(),
            name: name.clone(),
            security_domain: SystemRandom.guid(),
            class: PoolClass::Test,
            tenant: TenantId::parse(&self.tenant)?,
            issuer: IssuerPin {
                issuers: vec![self.issuer.clone()],
                authority: self.issuer_authority.clone(),
                key_set: self.key_set.clone().into_bytes(),
                audiences: vec![PUBLIC_AUDIENCE.to_owned()],
                key_source: Some(KeySource {
                    url: self.key_source_url.clone(),
                    roots: self.key_source_roots.clone().into_bytes(),
                }),
            },
            initial_administrators: administrators.collect::<Result<_, _>>()?,
            break_glass_group: None,
            retention: RetentionDays::new(u32::from(self.retention_days))?,
            purge_protection: self.purge_protection,
            audit_durability: if self.audit_written {
                AuditDurability::Written
            } else {
                AuditDurability::Synced
            },
            allow_domain_redownload: false,
        };
        genesis.check()?;
        Ok(genesis)
    }
}

impl Place {
    fn beside(&self, what: &str) -> PathBuf {
        let mut path = self.directory.clone().into_os_string();
        path.push(".");
        path.push(what);
        path.into()
    }

    /// Finishes what an upload prepared; throws away what it had not finished preparing.
    pub fn finish_switch(&self) -> io::Result<()> {
        let next = self.beside("next");
        if next.join(COMPLETE).exists() {
            if self.directory.exists() {
                files::rename(&self.directory, &self.unused("replaced"))?;
            }
            files::rename(&next, &self.directory)?;
            files::sync_parent(&self.directory)?;
        } else {
            discard(&next)?;
        }
        unmark(&self.directory)
    }

    /// The provisioned pool's log stays readable, whatever replaced it.
    fn unused(&self, what: &str) -> PathBuf {
        let path = |number: u32| self.beside(&format!("{what}-{number}"));
        let number =
            (1..).find(|number| !path(*number).exists()).expect("there are more numbers than directories");
        path(number)
    }

    /// Opens the pool; founds it first where there is none. `switch` is set when it has been made anew and the process
    /// is to open it again.
    pub async fn open(
        &self,
        founding: impl FnOnce() -> Result<Founding, CommandError>,
        limits: PoolLimits,
        outgoing: &Outgoing,
        switch: watch::Sender<bool>,
    ) -> Result<Arc<Pool>, CommandError> {
        files::create_directory(&self.directory)?;
        let node = self.node(&self.directory)?;
        let (secrets, sealed) = match files::read(&self.sealed_domain())? {
            Some(sealed) => (self.root.open(&self.sealed_domain(), node, &sealed)?, sealed),
            None => {
                let secrets = DomainSecrets::generate();
                let sealed = self.root.seal_first(node, &secrets.danger_export())?;
                files::write(&self.sealed_domain(), &sealed)?;
                (secrets, Zeroizing::new(sealed))
            }
        };
        let owner = secrets.owner_key().public_key();
        self.check_owner(&owner)?;
        let store = self.directory.join("store");
        let audit = self.directory.join("audit");
        let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open(store.clone(), EngineOptions::default())?);
        let held = Pool::genesis_in(engine.as_ref(), &secrets).await?;
        let (genesis, new) = match held {
            Some(genesis) => (genesis, None),
            None => {
                let Founding { genesis, activation } = founding()?;
                (genesis, Some(activation))
            }
        };
        self.check_class(&genesis)?;
        let durability = match genesis.audit_durability {
            AuditDurability::Synced => LogDurability::Synced,
            AuditDurability::Written => LogDurability::Written,
        };
        let log = Arc::new(FileLog::open(audit.clone(), LogOptions { durability, ..LogOptions::default() })?);
        if let Some(activation) = new {
            if !log.segments().await?.is_empty() {
                return Err(format!(
                    "{} holds no pool, yet the log in {} has events of one: put the store back from a copy",
                    store.display(),
                    audit.display()
                )
                .into());
            }
            Pool::found(engine.as_ref(), &secrets, genesis.clone(), activation).await?;
        }
        let parts = PoolParts {
            engine,
            log,
            partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
            secrets,
            opened_with: opened_with(&sealed),
            node,
            clock: Arc::new(SystemClock),
            clock_is_right: self.clock_is_right,
            random: Arc::new(SystemRandom),
            limits,
            resource_suffixes: vec![resource_suffix(&genesis)?],
            installer: Some(Arc::new(Next { place: self.clone(), switch })),
            backup_targets: Some(outgoing.backup_targets()?),
        };
        Ok(Pool::open(parts).await?)
    }

    /// Whether something was sealed for it already, in its directory or in the one that the next start takes.
    pub fn is_sealed(&self) -> bool {
        [self.sealed_domain(), self.beside("next").join("domain.sealed")]
            .iter()
            .any(|sealed| sealed.symlink_metadata().is_ok())
    }

    /// A process that serves a quickstart is not held to what class production asks for, and does things that it forbids.
    fn check_class(&self, genesis: &Genesis) -> Result<(), CommandError> {
        if genesis.class != self.class {
            let directory = self.directory.display();
            let remedy = match genesis.class {
                PoolClass::Production => "serve it with `holdfast pool serve`",
                PoolClass::Test => "it belongs to a quickstart",
            };
            return Err(
                format!("{directory} holds a pool of class {}: {remedy}", genesis.class.as_str()).into()
            );
        }
        match (self.class, &self.root) {
            (PoolClass::Production, RootOfTrust::KeyFile(_) | RootOfTrust::OpenKeyFile { .. }) => {
                Err("a pool of class production is not sealed under a key that lies on its machine: give --root-credential".into())
            }
            (PoolClass::Production, RootOfTrust::Credential(_)) | (PoolClass::Test, _) => Ok(()),
        }
    }

    pub fn sealed_domain(&self) -> PathBuf {
        self.directory.join("domain.sealed")
    }

    /// Whether the root of trust opens what is sealed here by now.
    pub fn opens(&self) -> Result<(), CommandError> {
        let Some(sealed) = files::read(&self.sealed_domain())? else { return Ok(()) };
        self.root.open(&self.sealed_domain(), self.node(&self.directory)?, &sealed).map(drop)
    }

    /// The node that this machine is to the pool.
    pub fn own_node(&self) -> Result<Guid, CommandError> {
        self.node(&self.directory)
    }

    fn node(&self, directory: &Path) -> Result<Guid, CommandError> {
        let node = files::read_or_make::<CommandError>(&directory.join("node"), || {
            Ok(Zeroizing::new(SystemRandom.guid().to_string().into_bytes()))
        })?;
        let text = std::str::from_utf8(&node).ok().map(str::trim);
        text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            format!(
                "{} is damaged: it is a GUID as text. Put it back from a copy",
                directory.join("node").display()
            )
            .into()
        })
    }

    /// Beside the log lies the key by which it is verified: written where it is missing, refused where it is another's. An
    /// auditor who was handed that one would find a forged log in order.
    fn check_owner(&self, owner: &OwnerPublicKey) -> Result<(), CommandError> {
        let path = self.directory.join("owner.pem");
        let kept =
            files::read_or_make::<CommandError>(&path, || Ok(Zeroizing::new(owner.to_pem().into_bytes())))?;
        let kept = std::str::from_utf8(&kept).ok().and_then(|text| OwnerPublicKey::from_pem(text).ok());
        if kept.as_ref() == Some(owner) {
            return Ok(());
        }
        let what = if kept.is_some() { "is not this pool's owner key" } else { "is not a public key" };
        Err(format!(
            "{} {what}, whose fingerprint is {}. Whatever was verified with that file was not verified: find out who changed it, then remove it, and the next start writes it again",
            path.display(),
            owner.fingerprint()
        )
        .into())
    }

    /// The pool anew, beside the one there is. Where that fails nothing stays that a start could take.
    async fn prepare(&self, installation: Installation) -> Result<(), CommandError> {
        let prepared = self.build_next(installation).await;
        if prepared.is_err() {
            discard(&self.beside("next"))?;
        }
        prepared
    }

    /// The mark comes last.
    async fn build_next(&self, installation: Installation) -> Result<(), CommandError> {
        let secrets = &installation.secrets;
        let next = self.beside("next");
        discard(&next)?;
        files::create_directory(&next)?;
        let node = self.node(&self.directory)?;
        files::write(&next.join("node"), node.to_string().as_bytes())?;
        files::write(&next.join("domain.sealed"), &self.root.seal(node, &secrets.danger_export())?)?;
        let owner = secrets.owner_key().public_key();
        files::write(&next.join("owner.pem"), owner.to_pem().as_bytes())?;
        let engine = RedbEngine::open(next.join("store"), EngineOptions::default())?;
        Pool::found_anew(&engine, installation).await?;
        drop(engine);
        files::write(&next.join(COMPLETE), b"")?;
        Ok(())
    }
}

/// What follows the pool's name in its host's. In class production genesis says it, as it decides whose tokens count.
pub fn resource_suffix(genesis: &Genesis) -> Result<String, CommandError> {
    match genesis.class {
        PoolClass::Test => Ok(RESOURCE_SUFFIX.to_owned()),
        PoolClass::Production => {
            let resource = genesis.issuer.audiences.first().ok_or("genesis names no resource for tokens")?;
            let suffix = resource.strip_prefix("https://");
            Ok(suffix
                .ok_or_else(|| format!("genesis names a resource that is no URL: {resource}"))?
                .to_owned())
        }
    }
}

/// Takes the mark away, durably.
/// The root of trust and the file that it opened.
fn opened_with(sealed: &[u8]) -> String {
    let root = match RootKind::of(sealed) {
        Ok(RootKind::Credential) => "a credential",
        Ok(RootKind::File) => "a key file",
        Err(_) => "a root of a kind unknown",
    };
    format!("{root}, SHA-256 of what it opened {}", hex(&sha256(&[sealed])))
}

fn unmark(directory: &Path) -> io::Result<()> {
    files::remove(&directory.join(COMPLETE))
}

/// Removes a directory that is not to be taken: the mark first, so that no start takes what is left of it when this is cut
/// short.
pub fn discard(next: &Path) -> io::Result<()> {
    unmark(next)?;
    files::remove_directory(next)
}

struct Next {
    place: Place,
    switch: watch::Sender<bool>,
}

impl Installer for Next {
    fn prepare<'a>(
        &'a self,
        installation: Installation,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move { self.place.prepare(installation).await.map_err(|error| error.to_string()) })
    }

    fn switch(&self) {
        self.switch.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outgoing::Given;
    use service::OutboxRecord;

    fn place(directory: &Path) -> Place {
        Place {
            directory: directory.join("pool"),
            root: RootOfTrust::KeyFile(directory.join("root.key")),
            class: PoolClass::Test,
            clock_is_right: false,
        }
    }

    fn make(path: &Path, content: &str) {
        files::create_directory(path).unwrap();
        files::write(&path.join("content"), content.as_bytes()).unwrap();
    }

    fn content(place: &Place) -> String {
        std::fs::read_to_string(place.directory.join("content")).unwrap()
    }

    fn names(place: &Place) -> Vec<String> {
        let names = std::fs::read_dir(place.directory.parent().unwrap()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Whatever a start finds after an end at any moment; it may itself be cut short and come again.
    #[test]
    fn each_possible_leftover_becomes_the_old_pool_or_the_new_one() {
        struct Leftover {
            pool: Option<&'static str>,
            pool_is_marked: bool,
            next: Option<&'static str>,
            next_is_marked: bool,
            becomes: Option<&'static str>,
            replaced: bool,
        }
        let none = Leftover {
            pool: None,
            pool_is_marked: false,
            next: None,
            next_is_marked: false,
            becomes: None,
            replaced: false,
        };
        let leftovers = [
            // Before the first start, or of one without an upload.
            Leftover { ..none },
            Leftover { pool: Some("old"), becomes: Some("old"), ..none },
            // While the new one is built, and while it is thrown away.
            Leftover { pool: Some("old"), next: Some("new"), becomes: Some("old"), ..none },
            // Built; nothing moved yet.
            Leftover {
                pool: Some("old"),
                next: Some("new"),
                next_is_marked: true,
                becomes: Some("new"),
                replaced: true,
                ..none
            },
            // Between the two moves neither directory has the pool's name.
            Leftover { next: Some("new"), next_is_marked: true, becomes: Some("new"), ..none },
            // Moved, and the mark not yet taken away.
            Leftover { pool: Some("new"), pool_is_marked: true, becomes: Some("new"), ..none },
        ];
        for (number, leftover) in leftovers.into_iter().enumerate() {
            let directory = tempfile::tempdir().unwrap();
            let place = place(directory.path());
            let next = place.beside("next");
            for (path, made, marked) in [
                (&place.directory, leftover.pool, leftover.pool_is_marked),
                (&next, leftover.next, leftover.next_is_marked),
            ] {
                made.into_iter().for_each(|text| make(path, text));
                if marked {
                    files::write(&path.join(COMPLETE), b"").unwrap();
                }
            }
            for _ in 0..2 {
                place.finish_switch().unwrap();
                let expected = leftover.becomes.into_iter().map(|_| "pool".to_owned());
                let replaced = leftover.replaced.then(|| "pool.replaced-1".to_owned());
                assert_eq!(names(&place), expected.chain(replaced).collect::<Vec<_>>(), "{number}");
                if let Some(becomes) = leftover.becomes {
                    assert_eq!(content(&place), becomes, "{number}");
                    assert!(!place.directory.join(COMPLETE).exists(), "{number}");
                }
            }
            if leftover.replaced {
                let replaced = place.beside("replaced-1").join("content");
                assert_eq!(std::fs::read_to_string(replaced).unwrap(), "old");
            }
        }
    }

    #[test]
    fn a_changed_owner_key_or_node_is_named_and_refused() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        files::create_directory(&place.directory).unwrap();
        let owner = |_| DomainSecrets::generate().owner_key().public_key();
        let [own, other] = [0, 1].map(owner);
        for _ in 0..2 {
            place.check_owner(&own).unwrap();
        }
        let path = place.directory.join("owner.pem");
        let refused = |content: &str| {
            std::fs::write(&path, content).unwrap();
            place.check_owner(&own).unwrap_err().to_string()
        };
        assert!(refused(&other.to_pem()).contains("owner.pem is not this pool's owner key"));
        assert!(refused("nothing").contains("owner.pem is not a public key"));
        std::fs::remove_file(&path).unwrap();
        place.check_owner(&own).unwrap();

        let node = place.node(&place.directory).unwrap();
        assert_eq!(place.node(&place.directory).unwrap(), node);
        for damaged in [&b"\xff"[..], b"", b"0123"] {
            std::fs::write(place.directory.join("node"), damaged).unwrap();
            let refused = place.node(&place.directory).unwrap_err().to_string();
            assert!(refused.contains("node is damaged"), "{refused}");
        }
    }

    #[test]
    fn a_pool_that_was_replaced_before_stays_where_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        make(&place.beside("replaced-1"), "oldest");
        make(&place.directory, "old");
        make(&place.beside("next"), "new");
        files::write(&place.beside("next").join(COMPLETE), b"").unwrap();
        place.finish_switch().unwrap();
        assert_eq!(names(&place), ["pool", "pool.replaced-1", "pool.replaced-2"]);
        assert_eq!(content(&place), "new");
    }

    /// Cut short after its first step, throwing away leaves nothing that a start would take.
    #[test]
    fn what_is_thrown_away_loses_its_mark_first() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        let next = place.beside("next");
        discard(&next).unwrap();
        make(&place.directory, "old");
        make(&next, "new");
        files::write(&next.join(COMPLETE), b"").unwrap();
        unmark(&next).unwrap();
        place.finish_switch().unwrap();
        assert_eq!(
            (names(&place).as_slice(), content(&place).as_str()),
            (["pool".to_owned()].as_slice(), "old")
        );
    }

    #[tokio::test]
    async fn what_cannot_be_built_to_its_end_leaves_nothing_beside_the_pool() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(directory.path());
        make(&place.directory, "old");
        // No directory, so the root cannot be read or made; the node is there by then.
        files::write(directory.path().join("root").as_path(), b"").unwrap();
        let root = RootOfTrust::KeyFile(directory.path().join("root").join("root.key"));
        let place = Place { root, ..place };
        let prepared = place.prepare(installation()).await;
        assert!(prepared.is_err());
        assert!(!place.beside("next").exists());
        place.finish_switch().unwrap();
        assert_eq!(content(&place), "old");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_pool_opens_in_its_class_alone() {
        let directory = tempfile::tempdir().unwrap();
        let passphrase = directory.path().join("passphrase");
        files::write(&passphrase, b"correct horse battery").unwrap();
        let credential = RootOfTrust::credential(&passphrase).unwrap();
        let key_file = RootOfTrust::KeyFile(directory.path().join("root.key"));
        let outgoing = Outgoing::read(&directory.path().join("pool.toml"), &Given::default()).unwrap();
        let open = async |name: &str, served: PoolClass, root: &RootOfTrust, founded: PoolClass| {
            let place = Place {
                directory: directory.path().join(name),
                root: root.clone(),
                class: served,
                clock_is_right: false,
            };
            let founding = || {
                let mut genesis = Genesis { class: founded, ..installation().genesis };
                genesis.issuer.key_set = include_bytes!("../../service/tests/issuer-key-set.json").to_vec();
                genesis.issuer.audiences = vec!["https://managedhsm.example".into()];
                Ok(Founding { genesis, activation: None })
            };
            let switch = watch::channel(false).0;
            match place.open(founding, PoolLimits::default(), &outgoing, switch).await {
                Ok(pool) => {
                    pool.close().await;
                    "opened".to_owned()
                }
                Err(error) => error.to_string(),
            }
        };
        let (production, test) = (PoolClass::Production, PoolClass::Test);
        assert_eq!(open("production", production, &credential, production).await, "opened");
        assert_eq!(open("test", test, &credential, test).await, "opened");
        // What is there counts, whatever it would be founded as.
        let refused = open("production", test, &credential, test).await;
        assert!(refused.contains("of class production: serve it with `holdfast pool serve`"), "{refused}");
        let refused = open("test", production, &credential, production).await;
        assert!(refused.contains("of class test: it belongs to a quickstart"), "{refused}");
        let refused = open("new", test, &credential, production).await;
        assert!(refused.contains("of class production"), "{refused}");
        let refused = open("beside its key", production, &key_file, production).await;
        assert!(refused.contains("give --root-credential"), "{refused}");
    }

    /// Whose pool a start finds: everything in it is of one domain, and opens.
    async fn owner(place: &Place) -> String {
        let sealed = files::read(&place.sealed_domain()).unwrap().unwrap();
        let node = place.node(&place.directory).unwrap();
        let secrets = place.root.open(&place.sealed_domain(), node, &sealed).unwrap();
        let owner = secrets.owner_key().public_key();
        place.check_owner(&owner).unwrap();
        let engine = RedbEngine::open(place.directory.join("store"), EngineOptions::default()).unwrap();
        assert!(Pool::genesis_in(&engine, &secrets).await.unwrap().is_some());
        owner.fingerprint().to_string()
    }

    async fn found(place: &Place) -> String {
        let Installation { secrets, genesis, .. } = installation();
        files::create_directory(&place.directory).unwrap();
        let node = place.node(&place.directory).unwrap();
        let sealed = place.root.seal_first(node, &secrets.danger_export()).unwrap();
        files::write(&place.sealed_domain(), &sealed).unwrap();
        let engine = RedbEngine::open(place.directory.join("store"), EngineOptions::default()).unwrap();
        Pool::found(&engine, &secrets, genesis, None).await.unwrap();
        drop(engine);
        owner(place).await
    }

    /// The process ends before each step in turn that changes the disk, of an upload and of the switch to what was uploaded;
    /// then again before each step of the start after that.
    #[tokio::test]
    async fn an_end_at_any_step_of_an_upload_leaves_the_old_pool_or_the_new_one() {
        let before = tempfile::tempdir().unwrap();
        let old = found(&place(before.path())).await;
        let (mut olds, mut news, mut acknowledgements) = (0, 0, 0);
        for step in 0.. {
            let directory = tempfile::tempdir().unwrap();
            files::ending::copy(before.path(), directory.path());
            let place = place(directory.path());
            let installation = installation();
            let new = installation.secrets.owner_key().public_key().fingerprint().to_string();
            let upload = async {
                let acknowledged = place.prepare(installation).await.is_ok();
                // The next start does what this one does not come to.
                let _ = acknowledged.then(|| place.finish_switch());
                acknowledged
            };
            let (acknowledged, whole) = files::ending::at(step, upload).await;
            for again in 0.. {
                let left = tempfile::tempdir().unwrap();
                files::ending::copy(directory.path(), left.path());
                let place = self::place(left.path());
                let (_, whole) = files::ending::at(again, async { place.finish_switch() }).await;
                place.finish_switch().unwrap();
                let is = owner(&place).await;
                assert!(is == old || is == new, "step {step}, then {again}: a pool of neither");
                assert!(is == new || !acknowledged, "step {step}, then {again}: acknowledged and lost");
                if is == new {
                    news += 1;
                } else {
                    olds += 1;
                }
                let mut expected = vec!["pool".to_owned(), "root.key".to_owned()];
                expected.extend((is == new).then(|| "pool.replaced-1".to_owned()));
                expected.sort();
                assert_eq!(names(&place), expected, "step {step}, then {again}");
                if whole {
                    break;
                }
            }
            acknowledgements += u32::from(acknowledged);
            if whole {
                assert!(acknowledged, "nothing ended it");
                break;
            }
        }
        assert!(olds > 15 && news > 10 && acknowledgements > 3, "{olds} old, {news} new, {acknowledgements}");
    }

    fn installation() -> Installation {
        Installation {
            secrets: DomainSecrets::generate(),
            genesis: Genesis {
                pool: Guid([1; 16]),
                name: "blank".parse().unwrap(),
                security_domain: Guid([2; 16]),
                class: PoolClass::Test,
                tenant: domain::principal::TenantId::parse("t").unwrap(),
                issuer: domain::pool::IssuerPin {
                    issuers: vec!["https://issuer.example/t/v2.0".into()],
                    authority: "https://issuer.example/t".into(),
                    key_set: br#"{"keys":[]}"#.to_vec(),
                    audiences: vec![],
                    key_source: None,
                },
                initial_administrators: vec![Guid([3; 16])],
                break_glass_group: None,
                retention: domain::pool::RetentionDays::DEFAULT,
                purge_protection: false,
                audit_durability: domain::pool::AuditDurability::Synced,
                allow_domain_redownload: false,
            },
            activation: ActivationRecord {
                at: domain::time::IntDate::from_unix_seconds(0),
                domain_file: None,
                holders: vec![[7; 32]; 3],
                required: 2,
                awaits_confirmation: false,
            },
            event: OutboxRecord { event_id: [4; 16], not_before_index: 0, leaf: vec![] },
        }
    }
}
