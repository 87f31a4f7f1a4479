//! Use cases of rotation: a key's policy, a new version on demand, and the one that the pool makes when it is due.

use crate::deletion;
use crate::error::Error;
use crate::index::Held;
use crate::keys::Source;
use crate::pool::{Change, Pool};
use crate::ticket::{Recorded, Ticket};
use crate::views::{KeyView, NewKey};
use audit::event::{Event, EventResult};
use domain::access::{Scope, action};
use domain::key::{Key, PublicKey, Version};
use domain::name::KeyName;
use domain::rotation::{LifetimeAction, Period, RotationPolicy, RotationRefused, Trigger};
use domain::time::IntDate;
use std::sync::Arc;
use storage::{RecordId, VersionRecord};

/// What an owner asks for; checked where the time of its making is known.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewRotationPolicy {
    pub actions: Vec<(LifetimeAction, Trigger)>,
    pub expiry: Option<Period>,
}

/// A key's policy, or that it has none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RotationView {
    /// As the key's first creator wrote it.
    pub name: KeyName,
    pub policy: Option<RotationPolicy>,
}

impl RotationView {
    fn of(key: &Key) -> Self {
        Self { name: key.name.clone(), policy: key.rotation().cloned() }
    }
}

impl Pool {
    pub async fn read_rotation_policy(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: KeyName,
    ) -> Recorded<RotationView> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::KeyRead>(&scope);
        let read = || {
            ticket.authorize::<action::KeyRead>(scope)?;
            Ok(RotationView::of(&self.live(&name, None)?.key.value))
        };
        let result = read();
        ticket.record(result).await
    }

    /// Sets the policy, or takes it away where `new` says nothing.
    pub async fn set_rotation_policy(
        self: &Arc<Self>,
        mut ticket: Ticket,
        name: KeyName,
        new: NewRotationPolicy,
    ) -> Recorded<RotationView> {
        let scope = Scope::Key(name.clone());
        ticket.about_key(&name, None);
        ticket.asks::<action::KeyWrite>(&scope);
        if let Err(denied) = ticket.authorize::<action::KeyWrite>(scope).map(|_| ()) {
            return ticket.record(Err(denied)).await;
        }
        ticket.details(described(&new));
        let now = self.key_time().int_date();
        let decide = || {
            let held = self.live(&name, None)?.key;
            let created = held.value.rotation().map_or(now, |policy| policy.created);
            let policy = RotationPolicy::new(new.actions.clone(), new.expiry, created, now)?;
            let key = Key::clone(&held.value).with_rotation(Some(policy));
            let view = RotationView::of(&key);
            Ok(deletion::replace(&held, key, view))
        };
        self.record_change(ticket, decide).await
    }

    /// A new version of the same kind. The key must have a policy (behaviour section 7.2).
    pub async fn rotate_key(self: &Arc<Self>, mut ticket: Ticket, name: KeyName) -> Recorded<KeyView> {
        let scope = Scope::Key(name.clone());
        let version = self.new_version();
        ticket.about_key(&name, Some(version));
        ticket.asks::<action::KeyRotate>(&scope);
        let made = async {
            let grant = ticket.authorize::<action::KeyRotate>(scope)?;
            let new = self.next_of(&self.live(&name, None)?)?;
            self.make_version(&grant, &new, version, Source::Generated).await
        };
        let made = match made.await {
            Ok(made) => made,
            Err(error) => return ticket.record(Err(error)).await,
        };
        self.record_change(ticket, || self.decide_rotation(&made)).await
    }

    /// Gives each key whose policy says so its next version. Returns how many that were. One that fails is reported and
    /// does not keep the others from theirs; it is tried again at the next call.
    pub async fn rotate_due_keys(self: &Arc<Self>) -> Result<usize, Error> {
        let limit = self.limits().versions_per_key;
        let candidates = self.index().page(None, usize::MAX, |key| {
            !key.is_deleted() && key.rotation().is_some() && key.versions().len() < limit
        });
        let mut rotated = 0;
        for held in candidates {
            let name = &held.key.value.name;
            match self.rotate_if_due(name).await {
                Ok(true) => rotated += 1,
                // Deleted, or rotated by its owner, meanwhile.
                Ok(false) | Err(Error::KeyNotFound { .. }) => {}
                // Without its event nothing more is done at all.
                Err(error @ (Error::AuditUnavailable(_) | Error::StoreUnavailable(_))) => return Err(error),
                Err(error) => tracing::error!(%error, key = %name, "a rotation that is due failed"),
            }
        }
        Ok(rotated)
    }

    async fn rotate_if_due(self: &Arc<Self>, name: &KeyName) -> Result<bool, Error> {
        let held = self.live(name, None)?;
        if !is_due(&held.key.value, &held.version.value.version, self.key_time().int_date()) {
            return Ok(false);
        }
        let before = held.version.value.version.version;
        let new = self.next_of(&held)?;
        let version = self.new_version();
        let made = self.generate_version(&new, version, Source::Generated, None).await?;
        let event = Event {
            operation: "KeyRotateIfDue".into(),
            result: EventResult::Success,
            key_name: Some(new.name.to_string()),
            key_version: Some(version.to_string()),
            scope: Some(Scope::Key(new.name.clone()).to_string()),
            detail: format!("rotated by the pool: its policy asks for a version after {before}"),
            ..self.blank_event()
        };
        let decide = || {
            // Whoever else made a version meanwhile has done what was due, or set another policy.
            let held = self.live(name, None)?;
            let now = self.key_time().int_date();
            if held.key.value.current() != before
                || !is_due(&held.key.value, &held.version.value.version, now)
            {
                return Err(Error::TooManyConflicts);
            }
            self.decide_rotation(&made)
        };
        match self.change(self.seal_committed(event), decide).await {
            Ok(changed) => changed.receipt.map(|_| true),
            Err(Error::TooManyConflicts) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the next version of a key is to be: like the current one, good for as long as the policy says. A disabled key
    /// stays disabled: who may rotate may not, by that alone, enable.
    fn next_of(&self, held: &Held) -> Result<NewKey, Error> {
        let policy = held.key.value.rotation().ok_or(RotationRefused::NoPolicy)?;
        let current = &held.version.value.version;
        Ok(NewKey {
            name: held.key.value.name.clone(),
            spec: current.spec,
            public_exponent: exponent(&current.public),
            operations: Some(current.operations),
            enabled: current.attributes.enabled,
            not_before: None,
            expires: policy.expires(self.key_time().int_date()),
            exportable: current.attributes.exportable,
            release: current.release.clone(),
            tags: current.tags.clone(),
        })
    }

    /// Decided with the key as it is now, since a version can take seconds to make: it may have been disabled meanwhile, or
    /// been given another policy, which the new version has as well. What became current must be of the same kind.
    fn decide_rotation(&self, made: &VersionRecord) -> Result<Change<KeyView>, Error> {
        let held = self.live(&made.version.name, None)?;
        let new = self.next_of(&held)?;
        let current = &held.version.value.version;
        if current.spec != made.version.spec {
            return Err(Error::TooManyConflicts);
        }
        let mut made = made.clone();
        let version = &mut made.version;
        version.operations = current.operations;
        version.attributes.enabled = new.enabled;
        version.attributes.expires = new.expires;
        version.attributes.exportable = new.exportable;
        version.release = new.release;
        version.tags = new.tags;
        let mut change = self.decide_create(&made)?;
        let place = RecordId::Version(held.key.value.name.clone(), current.version);
        change.expectations.push((place, Some(held.version.stamp)));
        Ok(change)
    }
}

/// Whether the pool is to rotate by itself: its policy says so, and the key is in use.
fn is_due(key: &Key, current: &Version, now: IntDate) -> bool {
    let attributes = &current.attributes;
    let due = key.rotation().and_then(|policy| policy.rotation_due(attributes.created, attributes.expires));
    attributes.enabled && due.is_some_and(|due| now >= due)
}

/// The exponent of an RSA key that is not the usual one, for the partition to choose again.
fn exponent(public: &PublicKey) -> Option<u64> {
    let PublicKey::Rsa { exponent, .. } = public else { return None };
    let mut value = 0_u64;
    for byte in exponent {
        value = value.checked_mul(256)?.checked_add(u64::from(*byte))?;
    }
    Some(value)
}

fn described(new: &NewRotationPolicy) -> String {
    let action = |(action, trigger): &(LifetimeAction, Trigger)| {
        let action = match action {
            LifetimeAction::Rotate => "rotate",
            LifetimeAction::Notify => "notify",
        };
        match trigger {
            Trigger::AfterCreate(period) => format!("{action} {period} after creation"),
            Trigger::BeforeExpiry(period) => format!("{action} {period} before expiry"),
        }
    };
    let expiry = new.expiry.map(|period| format!("versions expire after {period}"));
    let parts: Vec<String> = new.actions.iter().map(action).chain(expiry).collect();
    if parts.is_empty() { "no policy".to_owned() } else { parts.join(", ") }
}
