//! The kinds of record and their names.

use crypto::MaskedMaterial;
use crypto::record::NameKey;
use domain::access::{CustomRole, RoleAssignment};
use domain::guid::Guid;
use domain::key::{Key, Version};
use domain::name::{KeyName, KeyVersion};
use domain::principal::ObjectId;
use domain::setting::Setting;
use domain::test_mode::TestMode;
use domain::time::IntDate;
use std::collections::BTreeMap;

/// The generation of the pool in which a record was last written: grows with every commit, over all records.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Stamp(pub u64);

/// A key without its versions' contents.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRecord {
    pub key: Key,
}

/// One key version with its masked material.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VersionRecord {
    pub version: Version,
    pub material: MaskedMaterial,
}

/// An audit event that belongs to a commit, until the log has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutboxRecord {
    pub event_id: [u8; 16],
    /// The log held this many leaves when the commit was made, so the event is nowhere before.
    pub not_before_index: u64,
    /// The leaf as the log takes it.
    pub leaf: Vec<u8>,
}

/// A setting that was changed from its default, or back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SettingRecord {
    pub setting: Setting,
    pub value: bool,
}

/// Tokens of a principal that were issued before this moment count for nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotBeforeRecord {
    pub principal: ObjectId,
    pub not_before: IntDate,
}

/// For each version of a key that ever encrypted with a random IV: how many such encryptions may have been made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvocationsRecord {
    pub name: KeyName,
    pub leased: BTreeMap<KeyVersion, u64>,
}

/// That the pool has left the state in which it was provisioned. A pool without it waits for activation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ActivationRecord {
    pub at: IntDate,
    /// The security domain file that was handed out, which only a quorum of its holders opens; `None` where the
    /// domain came by upload, or where nobody ever asked for it.
    pub domain_file: Option<String>,
    /// SHA-256 thumbprints of the holders' certificates, in ascending order, and how many of them are a quorum.
    pub holders: Vec<[u8; 32]>,
    pub required: u8,
}

/// How often a custom role was defined. Their names are compared among all of them, and two definitions write different
/// records: each writes this one as well, so that of two that were decided at one moment the second decides again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RoleNamesRecord {
    pub definitions: u64,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    Key(KeyRecord),
    Version(VersionRecord),
    Assignment(RoleAssignment),
    Role(CustomRole),
    RoleNames(RoleNamesRecord),
    TestMode(TestMode),
    Setting(SettingRecord),
    NotBefore(NotBeforeRecord),
    Activation(ActivationRecord),
    Invocations(InvocationsRecord),
    Outbox(OutboxRecord),
}

/// Names a record within its pool.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum RecordId {
    Key(KeyName),
    Version(KeyName, KeyVersion),
    Assignment(Guid),
    Role(Guid),
    RoleNames,
    TestMode,
    Setting(Setting),
    NotBefore(ObjectId),
    Activation,
    Invocations(KeyName),
    Outbox([u8; 16]),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnreadableRecord {
    #[error("a record of kind {0:#04x}, which this release does not know")]
    UnknownKind(u8),
    #[error("the record's content is not of format version 1 of its kind")]
    Malformed,
}

pub(crate) mod kind {
    pub const DATA_KEY: u8 = b'e';
    pub const GENESIS: u8 = b'g';
    pub const POOL_STATE: u8 = b'p';
    pub const KEY: u8 = b'k';
    pub const VERSION: u8 = b'v';
    pub const ASSIGNMENT: u8 = b'a';
    pub const ROLE: u8 = b'd';
    pub const ROLE_NAMES: u8 = b'r';
    pub const TEST_MODE: u8 = b't';
    pub const SETTING: u8 = b's';
    pub const NOT_BEFORE: u8 = b'n';
    pub const ACTIVATION: u8 = b'l';
    pub const INVOCATIONS: u8 = b'c';
    pub const OUTBOX: u8 = b'o';
    /// Clear copies under `danger-test`; never counted, never read back.
    pub const CLEAR: u8 = b'!';
}

impl Record {
    pub fn id(&self) -> RecordId {
        match self {
            Record::Key(record) => RecordId::Key(record.key.name.clone()),
            Record::Version(record) => RecordId::Version(record.version.name.clone(), record.version.version),
            Record::Assignment(record) => RecordId::Assignment(record.name),
            Record::Role(role) => RecordId::Role(role.id()),
            Record::RoleNames(_) => RecordId::RoleNames,
            Record::TestMode(_) => RecordId::TestMode,
            Record::Setting(record) => RecordId::Setting(record.setting),
            Record::NotBefore(record) => RecordId::NotBefore(record.principal),
            Record::Activation(_) => RecordId::Activation,
            Record::Invocations(record) => RecordId::Invocations(record.name.clone()),
            Record::Outbox(record) => RecordId::Outbox(record.event_id),
        }
    }
}

impl RecordId {
    pub(crate) fn kind(&self) -> u8 {
        match self {
            RecordId::Key(_) => kind::KEY,
            RecordId::Version(..) => kind::VERSION,
            RecordId::Assignment(_) => kind::ASSIGNMENT,
            RecordId::Role(_) => kind::ROLE,
            RecordId::RoleNames => kind::ROLE_NAMES,
            RecordId::TestMode => kind::TEST_MODE,
            RecordId::Setting(_) => kind::SETTING,
            RecordId::NotBefore(_) => kind::NOT_BEFORE,
            RecordId::Activation => kind::ACTIVATION,
            RecordId::Invocations(_) => kind::INVOCATIONS,
            RecordId::Outbox(_) => kind::OUTBOX,
        }
    }

    /// The MAC under which the record is stored.
    pub(crate) fn mac(&self, names: &NameKey) -> [u8; 32] {
        let name = match self {
            RecordId::Key(name) | RecordId::Invocations(name) => name.canonical().into_bytes(),
            RecordId::Version(name, version) => [name.canonical().as_bytes(), b"/", &version.0].concat(),
            RecordId::Assignment(id) | RecordId::Role(id) | RecordId::NotBefore(id) => id.0.to_vec(),
            RecordId::RoleNames | RecordId::TestMode => Vec::new(),
            RecordId::Setting(setting) => setting.name().as_bytes().to_vec(),
            RecordId::Activation => Vec::new(),
            RecordId::Outbox(event_id) => event_id.to_vec(),
        };
        names.mac(self.kind(), &name)
    }
}

/// The engine's key of a record: its kind, then the MAC of its name.
pub(crate) fn engine_key(kind: u8, name_mac: &[u8; 32]) -> Vec<u8> {
    [&[kind], name_mac.as_slice()].concat()
}
