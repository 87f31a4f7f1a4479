//! Use cases of deletion: a key is deleted as a whole, looked at, recovered, and purged by its administrators or, when
//! retention has passed, by the pool.

use crate::error::Error;
use crate::index::Held;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use crate::views::{DeletedKeyView, KeyView, Page, PageRequest};
use audit::event::{Event, EventResult};
use domain::access::{Scope, action};
use domain::key::Key;
use domain::name::KeyName;
use domain::time::IntDate;
use std::sync::Arc;
use storage::{KeyRecord, Record, RecordId, Stamped};

impl Pool {
    pub async fn delete_key(self: &Arc<Self>, mut ticket: Ticket, name: KeyName) -> Recorded<DeletedKeyView> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::KeyDelete>(&scope);
        if let Err(denied) = ticket.authorize::<action::KeyDelete>(scope).map(|_| ()) {
            return ticket.record(Err(denied)).await;
        }
        let now = self.key_time().int_date();
        let decide = || {
            let not_found = || Error::KeyNotFound { name: name.clone() };
            let held = self.index().held(&name, None).ok_or_else(not_found)?;
            // To whoever deletes it, a deleted key is gone.
            let deleted = held.key.value.delete(now).map_err(|_| not_found())?;
            let view = self.deleted_view(&held, now);
            Ok(replace(&held.key, deleted, view))
        };
        self.record_change(ticket, decide).await
    }

    pub async fn read_deleted_key(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: KeyName,
    ) -> Recorded<DeletedKeyView> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::DeletedKeyRead>(&scope);
        let read = || {
            let _grant = ticket.authorize::<action::DeletedKeyRead>(scope)?;
            let (held, deleted_at) = self.deleted(&name)?;
            Ok(self.deleted_view(&held, deleted_at))
        };
        let result = read();
        ticket.record(result).await
    }

    /// Deleted keys that the caller may see, by name.
    pub async fn list_deleted_keys(
        self: &Arc<Self>,
        mut ticket: Ticket,
        request: PageRequest<KeyName>,
    ) -> Recorded<Page<DeletedKeyView, KeyName>> {
        ticket.asks::<action::DeletedKeyRead>(&Scope::Keys);
        let listed = ticket.sight::<action::DeletedKeyRead>().map(|sight| {
            let held = self.index().page(request.after.as_ref(), request.limit + 1, |key| {
                key.is_deleted() && sight.covers(&key.name)
            });
            let view = |held: &Held| Some(self.deleted_view(held, held.key.value.deleted_at()?));
            let views = held.iter().filter_map(view).collect();
            Page::new(views, request.limit, |view: &DeletedKeyView| view.key.version.name.clone())
        });
        ticket.record(listed).await
    }

    /// Makes a deleted key live again, as it was.
    pub async fn recover_key(self: &Arc<Self>, mut ticket: Ticket, name: KeyName) -> Recorded<KeyView> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::DeletedKeyRecover>(&scope);
        if let Err(denied) = ticket.authorize::<action::DeletedKeyRecover>(scope).map(|_| ()) {
            return ticket.record(Err(denied)).await;
        }
        let decide = || {
            let (held, _) = self.deleted(&name)?;
            let view = self.view(&held.version.value.version);
            Ok(replace(&held.key, held.key.value.recover()?, view))
        };
        self.record_change(ticket, decide).await
    }

    /// Destroys a deleted key, its versions and the role assignments made for it alone.
    pub async fn purge_key(self: &Arc<Self>, mut ticket: Ticket, name: KeyName) -> Recorded<()> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::DeletedKeyPurge>(&scope);
        if let Err(denied) = ticket.authorize::<action::DeletedKeyPurge>(scope).map(|_| ()) {
            return ticket.record(Err(denied)).await;
        }
        let now = self.key_time().int_date();
        self.record_change(ticket, || self.decide_purge(&name, now)).await
    }

    /// Purges what is due. Returns how many keys that were; the first that fails ends it, to be tried again later.
    pub async fn purge_due_keys(self: &Arc<Self>) -> Result<usize, Error> {
        let genesis = self.genesis();
        let now = self.key_time().int_date();
        let due = self.index().page(None, usize::MAX, |key| key.is_due_for_purge(genesis.retention, now));
        for held in &due {
            let name = &held.key.value.name;
            let event = Event {
                operation: "KeyPurge".into(),
                result: EventResult::Success,
                key_name: Some(name.to_string()),
                scope: Some(Scope::Key(name.clone()).to_string()),
                detail: format!("purged by the pool: deleted {} days ago", self.genesis().retention.days()),
                ..self.blank_event()
            };
            // Recovered meanwhile, or purged by somebody else, it is not due any more.
            match self.change(self.seal_committed(event), || self.decide_purge(name, now)).await {
                Ok(changed) => {
                    changed.receipt?;
                }
                Err(Error::DeletedKeyNotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(due.len())
    }

    fn decide_purge(&self, name: &KeyName, now: IntDate) -> Result<Change<()>, Error> {
        let genesis = self.genesis();
        let (held, _) = self.deleted(name)?;
        held.key.value.check_purge(genesis.retention, genesis.purge_protection, now)?;
        let mut expectations = vec![(RecordId::Key(name.clone()), Some(held.key.stamp))];
        let mut deletes = vec![RecordId::Key(name.clone())];
        let versions = held.key.value.versions().iter();
        deletes.extend(versions.map(|version| RecordId::Version(name.clone(), *version)));
        if let Some(held) = self.index().invocations(name) {
            expectations.push((RecordId::Invocations(name.clone()), Some(held.stamp)));
            deletes.push(RecordId::Invocations(name.clone()));
        }
        // A key that is made under this name later must not find the rights that were given for this one.
        let scope = Scope::Key(name.clone());
        for assignment in self.roles().assignments().filter(|assignment| assignment.scope == scope) {
            let Some((_, stamp)) = self.index().assignment(assignment.name) else { continue };
            expectations.push((RecordId::Assignment(assignment.name), Some(stamp)));
            deletes.push(RecordId::Assignment(assignment.name));
        }
        Ok(Change { expectations, puts: vec![], deletes, value: () })
    }

    fn deleted(&self, name: &KeyName) -> Result<(Held, IntDate), Error> {
        let held = self.index().held(name, None);
        held.and_then(|held| held.key.value.deleted_at().map(|deleted_at| (held, deleted_at)))
            .ok_or_else(|| Error::DeletedKeyNotFound { name: name.clone() })
    }

    fn deleted_view(&self, held: &Held, deleted_at: IntDate) -> DeletedKeyView {
        DeletedKeyView {
            key: self.view(&held.version.value.version),
            deleted_at,
            purge_at: self.genesis().retention.after(deleted_at),
        }
    }
}

/// Puts `key` in the place of `held`, if that is unchanged.
pub(crate) fn replace<T>(held: &Stamped<Arc<Key>>, key: Key, value: T) -> Change<T> {
    Change {
        expectations: vec![(RecordId::Key(key.name.clone()), Some(held.stamp))],
        puts: vec![Record::Key(KeyRecord { key })],
        deletes: vec![],
        value,
    }
}
