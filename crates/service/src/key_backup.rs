//! Use cases of single-key backup: a key with all its versions as one blob, and back, within one security domain.

use crate::error::Error;
use crate::keys::binding;
use crate::pool::{Change, Pool};
use crate::quota::Limited;
use crate::ticket::{Recorded, Ticket};
use crate::views::KeyView;
use crypto::key_backup::{BackupDomain, BackupHeader, BackupKey, BackupRefused};
use crypto::{MaskedMaterial, Partition};
use domain::access::{Denied, Scope, action};
use domain::guid::Guid;
use domain::key::KeyRefused;
use domain::name::KeyName;
use std::sync::Arc;
use storage::{KeyBackup, KeyRecord, Record, RecordId, VersionRecord};

/// What a pool keeps for backups of single keys.
pub(crate) struct KeyBackups {
    pub key: BackupKey,
    pub domain: BackupDomain,
}

impl Pool {
    /// The key with all its versions, sealed for pools of this security domain alone.
    pub async fn backup_key(self: &Arc<Self>, mut ticket: Ticket, name: KeyName) -> Recorded<Vec<u8>> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::KeyBackup>(&scope);
        let made = ticket.authorize::<action::KeyBackup>(scope).and_then(|_| self.write_backup(&name));
        ticket.record(made).await
    }

    /// Makes the key that `blob` holds, as it was. Its name is in there, so the blob is opened before the caller's
    /// right to that name is known. Whoever has no right to restore all keys is told one thing, whether the blob does
    /// not open or holds a key that is not theirs: what a blob is, or whose, is not for them to find out.
    pub async fn restore_key(self: &Arc<Self>, mut ticket: Ticket, blob: Vec<u8>) -> Recorded<KeyView> {
        ticket.asks::<action::KeyRestore>(&Scope::Keys);
        let all_keys = match ticket.sight::<action::KeyRestore>() {
            Ok(_) => ticket.authorize::<action::KeyRestore>(Scope::Keys).map(|_| ()),
            Err(none) => return ticket.record(Err(none)).await,
        };
        let opened = self.read_backup(&blob);
        let (from, backup) = match (opened, all_keys) {
            (Ok(opened), _) => opened,
            (Err(_), Err(denied)) => return ticket.record(Err(denied)).await,
            (Err(refused), Ok(())) => return ticket.record(Err(refused)).await,
        };
        let name = backup.key().name.clone();
        let scope = Scope::Key(name.clone());
        let granted = ticket.authorize::<action::KeyRestore>(scope.clone()).map(|_| ());
        if let Err(denied) = granted {
            return ticket.record(Err(without_key(denied))).await;
        }
        ticket.about_key(&name, Some(backup.key().current()));
        ticket.asks::<action::KeyRestore>(&scope);
        let decided = self
            .check_restore(&backup)
            .and_then(|()| rebind(self.partition().as_ref(), &backup, from.pool, self.genesis().pool));
        let versions = match decided {
            Ok(versions) => versions,
            Err(error) => return ticket.record(Err(error)).await,
        };
        self.record_change(ticket, || self.decide_restore(&backup, &versions)).await
    }

    fn write_backup(&self, name: &KeyName) -> Result<Vec<u8>, Error> {
        let (key, versions) = self
            .index()
            .whole(name)
            .filter(|(key, _)| !key.is_deleted())
            .ok_or_else(|| Error::KeyNotFound { name: name.clone() })?;
        let versions = versions.iter().map(|record| VersionRecord::clone(record)).collect();
        // Read after the key, so that the count can only be too high.
        let invocations = self.index().invocations(name).map(|held| held.value);
        let backup = KeyBackup::new(key.as_ref().clone(), versions, invocations)
            .map_err(|error| Error::StoreUnavailable(error.to_string()))?;
        let KeyBackups { key, domain } = self.key_backups();
        let header =
            BackupHeader { domain: *domain, pool: self.genesis().pool, created: self.now().int_date() };
        Ok(key.seal(&header, &backup.encode())?)
    }

    fn read_backup(&self, blob: &[u8]) -> Result<(BackupHeader, KeyBackup), Error> {
        let KeyBackups { key, domain } = self.key_backups();
        let (header, content) = key.open(domain, blob)?;
        let backup = KeyBackup::decode(&content).map_err(|_| BackupRefused::UnknownContent)?;
        Ok((header, backup))
    }

    /// That the name is free, and within the limits.
    pub(crate) fn check_restore(&self, backup: &KeyBackup) -> Result<(), Error> {
        let limits = self.limits();
        let key = backup.key();
        match self.index().key(&key.name) {
            Some(held) if held.value.is_deleted() => return Err(KeyRefused::Deleted.into()),
            Some(held) => return Err(Error::KeyExists { name: held.value.name.clone() }),
            None => self.check_left(&Limited::Keys, 0)?,
        }
        if key.versions().len() > limits.versions_per_key {
            return Err(Error::LimitReached { what: "versions of a key", limit: limits.versions_per_key });
        }
        Ok(())
    }

    pub(crate) fn decide_restore(
        &self,
        backup: &KeyBackup,
        versions: &[VersionRecord],
    ) -> Result<Change<KeyView>, Error> {
        self.check_restore(backup)?;
        let key = backup.key();
        let current = versions.last().ok_or(BackupRefused::UnknownContent)?;
        let name = &key.name;
        let ids = versions.iter().map(|record| RecordId::Version(name.clone(), record.version.version));
        let others = [RecordId::Key(name.clone()), RecordId::Invocations(name.clone())];
        let mut puts = vec![Record::Key(KeyRecord { key: key.clone() })];
        puts.extend(versions.iter().cloned().map(Record::Version));
        puts.extend(backup.invocations().cloned().map(Record::Invocations));
        Ok(Change {
            expectations: others.into_iter().chain(ids).map(|id| (id, None)).collect(),
            value: self.view(&current.version),
            puts,
            deletes: vec![],
        })
    }
}

/// The versions with their material bound to pool `to` instead of `from`.
fn rebind(
    partition: &dyn Partition,
    backup: &KeyBackup,
    from: Guid,
    to: Guid,
) -> Result<Vec<VersionRecord>, Error> {
    let rebind = |record: &VersionRecord| {
        let version = &record.version;
        let place = |pool| binding(pool, &version.name, version.version);
        let material: MaskedMaterial =
            partition.rebind(version.spec, &record.material, &place(from), &place(to))?;
        Ok(VersionRecord { version: version.clone(), material })
    };
    backup.versions().iter().map(rebind).collect()
}

/// The refusal at the scope of all keys, as it is of a blob that does not open.
fn without_key(denied: Error) -> Error {
    match denied {
        Error::Denied(denied) => Denied { scope: Scope::Keys, ..denied }.into(),
        other => other,
    }
}
