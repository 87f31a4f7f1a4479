//! Keys and their versions: attributes, permitted operations, and when a version may be used.

use crate::algorithm::{Curve, KeySpec};
use crate::name::{KeyName, KeyVersion};
use crate::pool::RetentionDays;
use crate::release::ReleasePolicy;
use crate::rotation::RotationPolicy;
use crate::time::IntDate;
use std::collections::BTreeMap;

/// Tags that one key may have.
pub const MAX_TAGS: usize = 15;
/// Characters in a tag's name, and in its value.
pub const MAX_TAG_CHARACTERS: usize = 256;

/// The public part of a key. Coordinates have the curve's fixed length; RSA numbers have no leading zeros.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PublicKey {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ec {
        curve: Curve,
        x: Vec<u8>,
        y: Vec<u8>,
    },
    /// Symmetric keys show nothing.
    Oct,
}

impl PublicKey {
    /// As records and statements hold it: RSA modulus and exponent, EC x and y, for oct nothing.
    pub fn parts(&self) -> (&[u8], &[u8]) {
        match self {
            PublicKey::Rsa { modulus, exponent } => (modulus, exponent),
            PublicKey::Ec { curve: _, x, y } => (x, y),
            PublicKey::Oct => (&[], &[]),
        }
    }

    /// The inverse of [`PublicKey::parts`]; `None` where a coordinate has not its curve's length, or a
    /// symmetric key shows something.
    pub fn from_parts(spec: KeySpec, first: Vec<u8>, second: Vec<u8>) -> Option<Self> {
        match spec {
            KeySpec::Rsa(_) => Some(PublicKey::Rsa { modulus: first, exponent: second }),
            KeySpec::Ec(curve) => {
                let bytes = curve.coordinate_bytes();
                (first.len() == bytes && second.len() == bytes).then_some(PublicKey::Ec {
                    curve,
                    x: first,
                    y: second,
                })
            }
            KeySpec::Oct(_) => (first.is_empty() && second.is_empty()).then_some(PublicKey::Oct),
        }
    }
}

/// One member of `key_ops`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum KeyOperation {
    Encrypt,
    Decrypt,
    Sign,
    Verify,
    WrapKey,
    UnwrapKey,
    Import,
    Export,
}

impl KeyOperation {
    pub const ALL: [KeyOperation; 8] = [
        KeyOperation::Encrypt,
        KeyOperation::Decrypt,
        KeyOperation::Sign,
        KeyOperation::Verify,
        KeyOperation::WrapKey,
        KeyOperation::UnwrapKey,
        KeyOperation::Import,
        KeyOperation::Export,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            KeyOperation::Encrypt => "encrypt",
            KeyOperation::Decrypt => "decrypt",
            KeyOperation::Sign => "sign",
            KeyOperation::Verify => "verify",
            KeyOperation::WrapKey => "wrapKey",
            KeyOperation::UnwrapKey => "unwrapKey",
            KeyOperation::Import => "import",
            KeyOperation::Export => "export",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == text)
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// The `key_ops` of a key version, as a set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KeyOperations(u16);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyOperationsRefused {
    #[error("key_ops value `import` cannot stand beside any other value")]
    ImportWithOthers,
    #[error("key_ops value `{}` does not go with a key of type {spec}", operation.as_str())]
    NotForType { operation: KeyOperation, spec: KeySpec },
    #[error(
        "key_ops value `import` can neither be given to a key nor taken from it: what is wrapped for it opens nowhere else"
    )]
    ImportFixed,
    #[error(
        "key_ops value `import` is for a key that is made in the pool: whoever brought this one in could open what is wrapped for it"
    )]
    ImportBroughtIn,
}

impl KeyOperations {
    pub const NONE: KeyOperations = KeyOperations(0);

    /// What a key of `spec` may do when its creator names nothing.
    pub fn default_for(spec: KeySpec) -> Self {
        Self::fitting(spec)
            .filter(|operation| !matches!(operation, KeyOperation::Import | KeyOperation::Export))
            .collect()
    }

    /// Checks a caller's choice for a key of `spec`.
    pub fn check(self, spec: KeySpec) -> Result<Self, KeyOperationsRefused> {
        if self.contains(KeyOperation::Import) && self != Self(KeyOperation::Import.bit()) {
            return Err(KeyOperationsRefused::ImportWithOthers);
        }
        match self.iter().find(|&operation| !Self::fitting(spec).any(|fitting| fitting == operation)) {
            Some(operation) => Err(KeyOperationsRefused::NotForType { operation, spec }),
            None => Ok(self),
        }
    }

    /// That a key-exchange key is of the pool's own making. Where that was not written down it is not known, and a new one
    /// costs nothing.
    pub fn check_origin(self, origin: Origin) -> Result<(), KeyOperationsRefused> {
        match (self.contains(KeyOperation::Import), origin) {
            (true, Origin::Imported | Origin::Wrapped | Origin::Unknown) => {
                Err(KeyOperationsRefused::ImportBroughtIn)
            }
            (true, Origin::Generated) | (false, _) => Ok(()),
        }
    }

    pub const fn contains(self, operation: KeyOperation) -> bool {
        self.0 & operation.bit() != 0
    }

    pub fn iter(self) -> impl Iterator<Item = KeyOperation> {
        KeyOperation::ALL.into_iter().filter(move |operation| self.contains(*operation))
    }

    /// The set as bits, in the order of [`KeyOperation::ALL`]; for storage.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// The inverse of [`KeyOperations::bits`]; `None` where a bit has no meaning.
    pub const fn from_bits(bits: u16) -> Option<Self> {
        if bits < 1 << KeyOperation::ALL.len() { Some(Self(bits)) } else { None }
    }

    fn fitting(spec: KeySpec) -> impl Iterator<Item = KeyOperation> {
        KeyOperation::ALL.into_iter().filter(move |operation| match operation {
            KeyOperation::Sign | KeyOperation::Verify | KeyOperation::Export => true,
            KeyOperation::Encrypt
            | KeyOperation::Decrypt
            | KeyOperation::WrapKey
            | KeyOperation::UnwrapKey => !matches!(spec, KeySpec::Ec(_)),
            KeyOperation::Import => matches!(spec, KeySpec::Rsa(_)),
        })
    }
}

impl FromIterator<KeyOperation> for KeyOperations {
    fn from_iter<I: IntoIterator<Item = KeyOperation>>(operations: I) -> Self {
        Self(operations.into_iter().fold(0, |bits, operation| bits | operation.bit()))
    }
}

/// Free-form labels, legible to anyone who may read or list the key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tags(BTreeMap<String, String>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TagsRefused {
    #[error("a key has at most {MAX_TAGS} tags, not {0}")]
    TooMany(usize),
    #[error("a tag's name and value have at most {MAX_TAG_CHARACTERS} characters each")]
    TooLong,
}

impl Tags {
    pub fn new(tags: BTreeMap<String, String>) -> Result<Self, TagsRefused> {
        if tags.len() > MAX_TAGS {
            return Err(TagsRefused::TooMany(tags.len()));
        }
        let too_long = |text: &String| text.chars().count() > MAX_TAG_CHARACTERS;
        if tags.iter().any(|(name, value)| too_long(name) || too_long(value)) {
            return Err(TagsRefused::TooLong);
        }
        Ok(Self(tags))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The attributes of a key version (behaviour section 5).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attributes {
    pub enabled: bool,
    pub not_before: Option<IntDate>,
    pub expires: Option<IntDate>,
    pub created: IntDate,
    pub updated: IntDate,
    pub exportable: bool,
}

impl Attributes {
    /// Whether the time window can ever be open.
    pub fn check(&self) -> Result<(), EmptyWindow> {
        match (self.not_before, self.expires) {
            (Some(not_before), Some(expires)) if expires <= not_before => Err(EmptyWindow),
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("attributes.exp must be later than attributes.nbf")]
pub struct EmptyWindow;

/// What an update changes in a key version; `None` leaves it as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VersionChange {
    pub operations: Option<KeyOperations>,
    pub enabled: Option<bool>,
    pub not_before: Option<IntDate>,
    pub expires: Option<IntDate>,
    /// All tags: those not named are gone.
    pub tags: Option<Tags>,
    /// Only as it is.
    pub exportable: Option<bool>,
    pub release: Option<ReleasePolicy>,
}

/// Why a key may not be given out, or not be made so that it may (behaviour sections 5 and 8).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ReleaseRefused {
    #[error("attributes.exportable needs a release_policy: nothing else says whom the key may be given to")]
    NoPolicy,
    #[error(
        "release_policy goes with a key whose attributes.exportable is true, which is chosen when a key is made"
    )]
    NotExportable,
    #[error("a key with key_ops value `import` opens others' keys and cannot be exportable")]
    KeyExchangeKey,
    #[error("attributes.exportable is fixed when a key is made")]
    ExportableFixed,
    #[error("the release policy of this key version is immutable")]
    Immutable,
    #[error("the key is not exportable: it never leaves this pool")]
    NotReleasable,
    #[error("{0}")]
    Use(#[from] UseRefused),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ChangeRefused {
    #[error("{0}")]
    Operations(#[from] KeyOperationsRefused),
    #[error("{0}")]
    Window(#[from] EmptyWindow),
    #[error("{0}")]
    Release(#[from] ReleaseRefused),
}

/// Whether a key may be exportable as its maker wants it: with a policy, and never a key that opens others'.
pub fn check_exportable(
    exportable: bool,
    release: Option<&ReleasePolicy>,
    operations: KeyOperations,
) -> Result<(), ReleaseRefused> {
    match (exportable, release) {
        (true, None) => Err(ReleaseRefused::NoPolicy),
        (false, Some(_)) => Err(ReleaseRefused::NotExportable),
        (true, Some(_)) if operations.contains(KeyOperation::Import) => Err(ReleaseRefused::KeyExchangeKey),
        (true, Some(_)) | (false, None) => Ok(()),
    }
}

/// How the material of a version came into the partition.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Origin {
    /// Made there.
    Generated,
    /// Handed over by its owner, who had it in the clear.
    Imported,
    /// Handed over wrapped for a key of the pool (BYOK): in the clear at its maker's alone.
    Wrapped,
    /// Made by a release that did not write it down.
    Unknown,
}

impl Origin {
    pub const ALL: [Origin; 4] = [Origin::Unknown, Origin::Generated, Origin::Imported, Origin::Wrapped];

    pub const fn as_str(self) -> &'static str {
        match self {
            Origin::Generated => "generated",
            Origin::Imported => "imported",
            Origin::Wrapped => "wrapped",
            Origin::Unknown => "unknown",
        }
    }

    /// As it is written in records and statements.
    pub const fn code(self) -> u8 {
        match self {
            Origin::Unknown => 0,
            Origin::Generated => 1,
            Origin::Imported => 2,
            Origin::Wrapped => 3,
        }
    }

    /// The inverse of [`Origin::code`].
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|origin| origin.code() == code)
    }
}

/// One version of a key, without its material.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    pub name: KeyName,
    pub version: KeyVersion,
    pub spec: KeySpec,
    pub public: PublicKey,
    pub operations: KeyOperations,
    pub attributes: Attributes,
    pub tags: Tags,
    pub origin: Origin,
    /// There exactly when the version is exportable.
    pub release: Option<ReleasePolicy>,
}

/// Why a key version may not be used for an operation now.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UseRefused {
    #[error("operation {} is not allowed on a disabled key", operation.as_str())]
    Disabled { operation: KeyOperation },
    #[error("operation {} is not allowed before the key's nbf ({}; now {})", operation.as_str(), not_before.unix_seconds(), now.unix_seconds())]
    NotYetValid { operation: KeyOperation, not_before: IntDate, now: IntDate },
    #[error("operation {} is not allowed after the key's exp ({}; now {})", operation.as_str(), expires.unix_seconds(), now.unix_seconds())]
    Expired { operation: KeyOperation, expires: IntDate, now: IntDate },
    #[error("operation {} is not among the key's key_ops", operation.as_str())]
    NotPermitted { operation: KeyOperation },
    #[error("{0}")]
    Operations(#[from] KeyOperationsRefused),
}

impl Version {
    /// This version after `change`.
    pub fn changed(&self, change: &VersionChange, now: IntDate) -> Result<Self, ChangeRefused> {
        let held = &self.attributes;
        let attributes = Attributes {
            enabled: change.enabled.unwrap_or(held.enabled),
            not_before: change.not_before.or(held.not_before),
            expires: change.expires.or(held.expires),
            updated: now,
            ..*held
        };
        attributes.check()?;
        let operations = match change.operations {
            Some(operations) => operations.check(self.spec)?,
            None => self.operations,
        };
        // A key-exchange key that could become one that decrypts would give out what was wrapped for it.
        if operations.contains(KeyOperation::Import) != self.operations.contains(KeyOperation::Import) {
            return Err(KeyOperationsRefused::ImportFixed.into());
        }
        let tags = change.tags.clone().unwrap_or_else(|| self.tags.clone());
        let release = self.changed_release(change)?;
        check_exportable(attributes.exportable, release.as_ref(), operations)?;
        Ok(Self { operations, attributes, tags, release, ..self.clone() })
    }

    fn changed_release(&self, change: &VersionChange) -> Result<Option<ReleasePolicy>, ReleaseRefused> {
        if change.exportable.is_some_and(|exportable| exportable != self.attributes.exportable) {
            return Err(ReleaseRefused::ExportableFixed);
        }
        match (&self.release, &change.release) {
            (Some(held), Some(new)) if held.is_immutable() && held != new => Err(ReleaseRefused::Immutable),
            (held, new) => Ok(new.as_ref().or(held.as_ref()).cloned()),
        }
    }

    /// The policy by which this version may be given out. `enabled` binds, the time window does not (behaviour section 5),
    /// nor do `key_ops`: what permits a release is the policy.
    pub fn check_release(&self) -> Result<&ReleasePolicy, ReleaseRefused> {
        if !self.attributes.enabled {
            return Err(UseRefused::Disabled { operation: KeyOperation::Export }.into());
        }
        self.release.as_ref().filter(|_| self.attributes.exportable).ok_or(ReleaseRefused::NotReleasable)
    }

    /// Whether this version may serve `operation` at `now`: enabled, in `key_ops`, and `nbf <= now < exp`.
    ///
    /// The time window does not bind decrypt, unwrap and verify, so that old data stays readable; `enabled` binds
    /// everything (behaviour section 5).
    pub fn check_use(&self, operation: KeyOperation, now: IntDate) -> Result<(), UseRefused> {
        if !self.attributes.enabled {
            return Err(UseRefused::Disabled { operation });
        }
        if !self.operations.contains(operation) {
            return Err(UseRefused::NotPermitted { operation });
        }
        let bound_by_window = match operation {
            KeyOperation::Encrypt | KeyOperation::Sign | KeyOperation::WrapKey | KeyOperation::Import => true,
            KeyOperation::Decrypt | KeyOperation::Verify | KeyOperation::UnwrapKey | KeyOperation::Export => {
                false
            }
        };
        if !bound_by_window {
            return Ok(());
        }
        match (self.attributes.not_before, self.attributes.expires) {
            (Some(not_before), _) if now < not_before => {
                Err(UseRefused::NotYetValid { operation, not_before, now })
            }
            (_, Some(expires)) if now >= expires => Err(UseRefused::Expired { operation, expires, now }),
            _ => Ok(self.operations.check_origin(self.origin)?),
        }
    }
}

/// A key: its name and its versions, oldest first. The last one is current.
///
/// Live or deleted, as a whole: a deleted key can be looked at, recovered and purged, and nothing else. Its name stays
/// taken until it is purged (behaviour section 6).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    pub name: KeyName,
    versions: Vec<KeyVersion>,
    deleted_at: Option<IntDate>,
    rotation: Option<RotationPolicy>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyRefused {
    #[error("the key has {limit} versions, which is the limit")]
    TooManyVersions { limit: usize },
    #[error("a key has at least one version, and each once")]
    InconsistentVersions,
    #[error("a deleted key holds this name; recover it, or purge it to use the name anew")]
    Deleted,
    #[error("the key is not deleted")]
    NotDeleted,
    #[error("this pool has purge protection: the key is purged by itself at {}, and not before", purge_at.unix_seconds())]
    PurgeProtected { purge_at: IntDate },
}

impl Key {
    pub fn first(name: KeyName, version: KeyVersion) -> Self {
        Self { name, versions: vec![version], deleted_at: None, rotation: None }
    }

    /// A key as read from storage.
    pub fn from_stored(
        name: KeyName,
        versions: Vec<KeyVersion>,
        deleted_at: Option<IntDate>,
    ) -> Result<Self, KeyRefused> {
        let mut seen = std::collections::HashSet::new();
        if versions.is_empty() || !versions.iter().all(|version| seen.insert(*version)) {
            return Err(KeyRefused::InconsistentVersions);
        }
        Ok(Self { name, versions, deleted_at, rotation: None })
    }

    /// The key with this policy in the place of its own. An empty one is none.
    pub fn with_rotation(self, policy: Option<RotationPolicy>) -> Self {
        Self { rotation: policy.filter(|policy| !policy.is_empty()), ..self }
    }

    /// `None` where its owner has set none.
    pub fn rotation(&self) -> Option<&RotationPolicy> {
        self.rotation.as_ref()
    }

    pub fn versions(&self) -> &[KeyVersion] {
        &self.versions
    }

    pub fn current(&self) -> KeyVersion {
        *self.versions.last().expect("a key has at least one version")
    }

    /// When the key was deleted; `None` while it is live.
    pub fn deleted_at(&self) -> Option<IntDate> {
        self.deleted_at
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted_at.is_some()
    }

    /// The key with `version` as its new current version, unless it has `limit` already.
    pub fn with_version(&self, version: KeyVersion, limit: usize) -> Result<Self, KeyRefused> {
        if self.is_deleted() {
            return Err(KeyRefused::Deleted);
        }
        if self.versions.len() >= limit {
            return Err(KeyRefused::TooManyVersions { limit });
        }
        let mut versions = self.versions.clone();
        versions.push(version);
        Ok(Self::from_stored(self.name.clone(), versions, None)?.with_rotation(self.rotation.clone()))
    }

    pub fn delete(&self, now: IntDate) -> Result<Self, KeyRefused> {
        if self.is_deleted() {
            return Err(KeyRefused::Deleted);
        }
        Ok(Self { deleted_at: Some(now), ..self.clone() })
    }

    /// Likewise, kept for its retention from `now` on if it is deleted: as a restore brings it.
    #[must_use]
    pub fn kept_from(&self, now: IntDate) -> Self {
        Self { deleted_at: self.deleted_at.map(|at| at.max(now)), ..self.clone() }
    }

    pub fn recover(&self) -> Result<Self, KeyRefused> {
        if !self.is_deleted() {
            return Err(KeyRefused::NotDeleted);
        }
        Ok(Self { deleted_at: None, ..self.clone() })
    }

    /// Whether the key may be purged at `now`. Purge protection holds until retention has passed.
    pub fn check_purge(
        &self,
        retention: RetentionDays,
        purge_protection: bool,
        now: IntDate,
    ) -> Result<(), KeyRefused> {
        let purge_at = retention.after(self.deleted_at.ok_or(KeyRefused::NotDeleted)?);
        if purge_protection && now < purge_at {
            return Err(KeyRefused::PurgeProtected { purge_at });
        }
        Ok(())
    }

    /// Whether retention has passed: the pool purges the key by itself.
    pub fn is_due_for_purge(&self, retention: RetentionDays, now: IntDate) -> bool {
        self.deleted_at.is_some_and(|deleted_at| now >= retention.after(deleted_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{OctSize, RsaSize};

    const NOW: IntDate = IntDate::from_unix_seconds(1_000);

    fn version(change: impl FnOnce(&mut Version)) -> Version {
        let spec = KeySpec::Oct(OctSize::Oct256);
        let mut version = Version {
            name: "k".parse().unwrap(),
            version: KeyVersion([7; 16]),
            spec,
            public: PublicKey::Oct,
            operations: KeyOperations::default_for(spec),
            attributes: Attributes {
                enabled: true,
                not_before: None,
                expires: None,
                created: NOW,
                updated: NOW,
                exportable: false,
            },
            tags: Tags::default(),
            origin: Origin::Generated,
            release: None,
        };
        change(&mut version);
        version
    }

    fn allowed(version: &Version, now: i64) -> Vec<&'static str> {
        let now = IntDate::from_unix_seconds(now);
        KeyOperation::ALL
            .into_iter()
            .filter(|operation| version.check_use(*operation, now).is_ok())
            .map(KeyOperation::as_str)
            .collect()
    }

    #[test]
    fn the_window_is_nbf_inclusive_and_exp_exclusive() {
        let version = version(|v| {
            v.attributes.not_before = Some(IntDate::from_unix_seconds(900));
            v.attributes.expires = Some(IntDate::from_unix_seconds(1_100));
        });
        let everything = ["encrypt", "decrypt", "sign", "verify", "wrapKey", "unwrapKey"];
        let readable = ["decrypt", "verify", "unwrapKey"];
        assert_eq!(allowed(&version, 899), readable);
        assert_eq!(allowed(&version, 900), everything);
        assert_eq!(allowed(&version, 1_099), everything);
        assert_eq!(allowed(&version, 1_100), readable);
    }

    #[test]
    fn a_disabled_key_does_nothing_at_all() {
        assert!(allowed(&version(|v| v.attributes.enabled = false), 1_000).is_empty());
    }

    #[test]
    fn key_ops_limit_what_a_key_does() {
        let version = version(|v| v.operations = [KeyOperation::Sign].into_iter().collect());
        assert_eq!(allowed(&version, 1_000), ["sign"]);
    }

    #[test]
    fn import_stands_alone_and_on_rsa_only() {
        let rsa = KeySpec::Rsa(RsaSize::Rsa2048);
        let import: KeyOperations = [KeyOperation::Import].into_iter().collect();
        let both: KeyOperations = [KeyOperation::Import, KeyOperation::Sign].into_iter().collect();
        assert_eq!(import.check(rsa), Ok(import));
        assert_eq!(both.check(rsa), Err(KeyOperationsRefused::ImportWithOthers));
        let ec = KeySpec::Ec(Curve::P256);
        let encrypt: KeyOperations = [KeyOperation::Encrypt].into_iter().collect();
        assert_eq!(
            encrypt.check(ec),
            Err(KeyOperationsRefused::NotForType { operation: KeyOperation::Encrypt, spec: ec })
        );
    }

    #[test]
    fn a_key_exchange_key_is_made_in_the_pool() {
        let import: KeyOperations = [KeyOperation::Import].into_iter().collect();
        let signs: KeyOperations = [KeyOperation::Sign].into_iter().collect();
        for origin in Origin::ALL {
            let refused = Err(KeyOperationsRefused::ImportBroughtIn);
            assert_eq!(
                import.check_origin(origin),
                if origin == Origin::Generated { Ok(()) } else { refused }
            );
            assert_eq!(signs.check_origin(origin), Ok(()));
            let held = version(|v| {
                (v.spec, v.operations, v.origin) = (KeySpec::Rsa(RsaSize::Rsa2048), import, origin);
            });
            let is_used = held.check_use(KeyOperation::Import, IntDate::from_unix_seconds(1_000)).is_ok();
            assert_eq!(is_used, origin == Origin::Generated);
        }
    }

    /// Whoever could turn one into the other would read what others wrapped for it.
    #[test]
    fn a_key_exchange_key_stays_one_and_no_other_becomes_one() {
        let of = |operation| [operation].into_iter().collect::<KeyOperations>();
        let change =
            |to: KeyOperation| VersionChange { operations: Some(of(to)), ..VersionChange::default() };
        let of_rsa =
            |operation| version(|v| (v.spec, v.operations) = (KeySpec::Rsa(RsaSize::Rsa2048), of(operation)));
        let (exchange, other) = (of_rsa(KeyOperation::Import), of_rsa(KeyOperation::Decrypt));
        let fixed = Err(ChangeRefused::Operations(KeyOperationsRefused::ImportFixed));
        let now = IntDate::from_unix_seconds(1_000);
        assert_eq!(exchange.changed(&change(KeyOperation::Decrypt), now), fixed);
        assert_eq!(other.changed(&change(KeyOperation::Import), now), fixed);
        let nothing = VersionChange { operations: Some(KeyOperations::NONE), ..VersionChange::default() };
        assert_eq!(exchange.changed(&nothing, now), fixed);
        assert!(exchange.changed(&change(KeyOperation::Import), now).is_ok());
        assert!(other.changed(&nothing, now).is_ok());
    }

    #[test]
    fn operations_round_trip_through_bits() {
        for bits in 0..=255 {
            assert_eq!(KeyOperations::from_bits(bits).unwrap().bits(), bits);
        }
        assert_eq!(KeyOperations::from_bits(256), None);
    }

    #[test]
    fn the_hundred_and_first_version_is_refused() {
        let mut key = Key::first("k".parse().unwrap(), KeyVersion([0; 16]));
        for number in 1..100u8 {
            key = key.with_version(KeyVersion([number; 16]), 100).unwrap();
        }
        assert_eq!(key.current(), KeyVersion([99; 16]));
        let refused = key.with_version(KeyVersion([100; 16]), 100);
        assert_eq!(refused, Err(KeyRefused::TooManyVersions { limit: 100 }));
    }

    #[test]
    fn a_deleted_key_takes_no_version_and_comes_back_as_it_was() {
        let key = Key::first("k".parse().unwrap(), KeyVersion([0; 16]));
        assert_eq!(key.recover(), Err(KeyRefused::NotDeleted));
        let deleted = key.delete(NOW).unwrap();
        assert_eq!(deleted.deleted_at(), Some(NOW));
        assert_eq!(deleted.delete(NOW), Err(KeyRefused::Deleted));
        assert_eq!(deleted.with_version(KeyVersion([1; 16]), 100), Err(KeyRefused::Deleted));
        assert_eq!(deleted.recover(), Ok(key));
    }

    #[test]
    fn purge_protection_holds_to_the_last_second_of_retention() {
        let week = RetentionDays::new(7).unwrap();
        let key = Key::first("k".parse().unwrap(), KeyVersion([0; 16]));
        assert_eq!(key.check_purge(week, false, NOW), Err(KeyRefused::NotDeleted));
        let deleted = key.delete(NOW).unwrap();
        let end = IntDate::from_unix_seconds(1_000 + 7 * 86_400);
        let before = IntDate::from_unix_seconds(end.unix_seconds() - 1);
        assert_eq!(deleted.check_purge(week, false, NOW), Ok(()));
        let protected = Err(KeyRefused::PurgeProtected { purge_at: end });
        assert_eq!(deleted.check_purge(week, true, before), protected);
        assert_eq!(deleted.check_purge(week, true, end), Ok(()));
        let due = [key.is_due_for_purge(week, end), deleted.is_due_for_purge(week, before)];
        assert_eq!(due, [false, false]);
        assert!(deleted.is_due_for_purge(week, end));
    }

    #[test]
    fn an_update_changes_what_it_names_and_nothing_else() {
        let held = version(|v| v.attributes.expires = Some(IntDate::from_unix_seconds(2_000)));
        let later = IntDate::from_unix_seconds(1_500);
        let disabled =
            held.changed(&VersionChange { enabled: Some(false), ..VersionChange::default() }, later).unwrap();
        let mut expected = held.clone();
        expected.attributes.enabled = false;
        expected.attributes.updated = later;
        assert_eq!(disabled, expected);
        let too_late =
            VersionChange { not_before: Some(IntDate::from_unix_seconds(2_000)), ..VersionChange::default() };
        assert_eq!(held.changed(&too_late, later), Err(ChangeRefused::Window(EmptyWindow)));
        let import = [KeyOperation::Import].into_iter().collect();
        let change = VersionChange { operations: Some(import), ..VersionChange::default() };
        assert!(matches!(held.changed(&change, later), Err(ChangeRefused::Operations(_))));
    }

    fn policy(claim: &str, immutable: bool) -> Option<ReleasePolicy> {
        let document = format!(
            r#"{{"anyOf":[{{"authority":"https://a","allOf":[{{"claim":"{claim}","equals":1}}]}}]}}"#
        );
        Some(ReleasePolicy::new(document, None, immutable).unwrap())
    }

    fn exportable(release: Option<ReleasePolicy>) -> Version {
        version(|v| {
            v.attributes.exportable = true;
            v.release = release;
        })
    }

    #[test]
    fn exportable_and_policy_come_together_and_never_on_a_key_exchange_key() {
        let some = policy("a", false);
        let import: KeyOperations = [KeyOperation::Import].into_iter().collect();
        let check = |exportable, release: &Option<ReleasePolicy>, operations| {
            check_exportable(exportable, release.as_ref(), operations)
        };
        assert_eq!(check(true, &some, KeyOperations::NONE), Ok(()));
        assert_eq!(check(false, &None, import), Ok(()));
        assert_eq!(check(true, &None, KeyOperations::NONE), Err(ReleaseRefused::NoPolicy));
        assert_eq!(check(false, &some, KeyOperations::NONE), Err(ReleaseRefused::NotExportable));
        assert_eq!(check(true, &some, import), Err(ReleaseRefused::KeyExchangeKey));
    }

    #[test]
    fn a_policy_changes_until_it_is_immutable() {
        let to = |release| VersionChange { release, ..VersionChange::default() };
        let changed = |held: &Version, change: &VersionChange| held.changed(change, NOW);
        let held = exportable(policy("a", false));
        let other = changed(&held, &to(policy("b", true))).unwrap();
        assert_eq!(other.release, policy("b", true));
        for change in [policy("c", true), policy("b", false)] {
            let refused = changed(&other, &to(change));
            assert_eq!(refused, Err(ChangeRefused::Release(ReleaseRefused::Immutable)));
        }
        let disabled = VersionChange { enabled: Some(false), ..to(policy("b", true)) };
        assert_eq!(changed(&other, &disabled).unwrap().release, policy("b", true));
        let refused = changed(&version(|_| ()), &to(policy("a", false)));
        assert_eq!(refused, Err(ChangeRefused::Release(ReleaseRefused::NotExportable)));
        for (held, exportable) in [(&held, false), (&version(|_| ()), true)] {
            let change = VersionChange { exportable: Some(exportable), ..VersionChange::default() };
            assert_eq!(changed(held, &change), Err(ChangeRefused::Release(ReleaseRefused::ExportableFixed)));
        }
    }

    #[test]
    fn a_release_asks_for_enabled_and_a_policy_and_for_no_time() {
        let held = exportable(policy("a", false));
        let past = Version {
            attributes: Attributes { expires: Some(IntDate::from_unix_seconds(1)), ..held.attributes },
            ..held.clone()
        };
        assert!(past.check_release().is_ok());
        let disabled =
            Version { attributes: Attributes { enabled: false, ..held.attributes }, ..held.clone() };
        assert!(matches!(disabled.check_release(), Err(ReleaseRefused::Use(UseRefused::Disabled { .. }))));
        for no in [version(|_| ()), exportable(None), version(|v| v.release = policy("a", false))] {
            assert_eq!(no.check_release(), Err(ReleaseRefused::NotReleasable));
        }
    }

    #[test]
    fn tags_are_bounded() {
        let tags =
            |count: usize| (0..count).map(|n| (n.to_string(), String::new())).collect::<BTreeMap<_, _>>();
        assert!(Tags::new(tags(15)).is_ok());
        assert_eq!(Tags::new(tags(16)), Err(TagsRefused::TooMany(16)));
        let long = BTreeMap::from([("n".into(), "é".repeat(257))]);
        assert_eq!(Tags::new(long), Err(TagsRefused::TooLong));
        assert!(Tags::new(BTreeMap::from([("n".into(), "é".repeat(256))])).is_ok());
    }
}
