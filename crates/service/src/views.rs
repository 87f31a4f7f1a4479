//! What operations take and give, as plain values. Strings stop before here.

use crypto::PrivateParts;
use crypto::import::WrappedKind;
use domain::algorithm::KeySpec;
use domain::key::{KeyOperations, Tags, Version};
use domain::name::{KeyName, KeyVersion};
use domain::pool::RetentionDays;
use domain::release::ReleasePolicy;
use domain::time::IntDate;

/// A key, or one of its versions.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyReference {
    pub name: KeyName,
    /// `None` means the current version.
    pub version: Option<KeyVersion>,
}

/// What the creator of a key chooses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewKey {
    pub name: KeyName,
    pub spec: KeySpec,
    pub public_exponent: Option<u64>,
    /// `None`: what keys of this type usually do.
    pub operations: Option<KeyOperations>,
    pub enabled: bool,
    pub not_before: Option<IntDate>,
    pub expires: Option<IntDate>,
    pub exportable: bool,
    pub release: Option<ReleasePolicy>,
    pub tags: Tags,
}

/// A private key that its owner hands over. No `Debug` and no `Clone`, as of its parts.
pub struct ImportedKey {
    /// `spec` is what the parts say, and `public_exponent` is among them.
    pub new: NewKey,
    pub parts: PrivateParts,
}

/// A private key that comes wrapped for a key of this pool (BYOK). Its size is known when it is open.
pub struct WrappedKey {
    pub name: KeyName,
    pub kind: WrappedKind,
    /// The version of the key that it is wrapped for.
    pub kek: KeyReference,
    pub ciphertext: Vec<u8>,
    pub operations: Option<KeyOperations>,
    pub enabled: bool,
    pub not_before: Option<IntDate>,
    pub expires: Option<IntDate>,
    pub exportable: bool,
    pub release: Option<ReleasePolicy>,
    pub tags: Tags,
}

/// A key version as its readers see it, with what the pool says about its deletion.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyView {
    pub version: Version,
    pub retention: RetentionDays,
    pub purge_protection: bool,
}

/// A deleted key as its readers see it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeletedKeyView {
    /// Its current version.
    pub key: KeyView,
    pub deleted_at: IntDate,
    /// When the pool purges it by itself.
    pub purge_at: IntDate,
}

/// Which part of a list is wanted: at most `limit` items behind `after`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PageRequest<C> {
    pub limit: usize,
    pub after: Option<C>,
}

/// Part of a list. `next` is the place of the last item, where others follow it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Page<T, C> {
    pub items: Vec<T>,
    pub next: Option<C>,
}

impl<T, C> Page<T, C> {
    /// From one item more than `limit`, where there are as many; `place` gives an item's place.
    pub(crate) fn new(mut items: Vec<T>, limit: usize, place: impl Fn(&T) -> C) -> Self {
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(place);
        Self { items, next }
    }
}

/// The result of sign, wrap and the like, with the version that did it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UsedKey<T> {
    pub name: KeyName,
    pub version: KeyVersion,
    pub result: T,
}
