//! The kinds of record and their names.

use crypto::MaskedMaterial;
use crypto::record::NameKey;
use domain::access::{CustomRole, RoleAssignment};
use domain::guid::Guid;
use domain::key::{Key, Version};
use domain::name::{KeyName, KeyVersion};
use domain::principal::ObjectId;
use domain::setting::{Setting, SettingValue};
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
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingRecord {
    pub setting: Setting,
    pub value: SettingValue,
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
    /// The domain was uploaded, and nobody has said yet that it is the right one: whoever knows an exchange key can encrypt
    /// a domain to it whose secrets are not secret. Until an administrator has, no key works here.
    pub awaits_confirmation: bool,
}

/// How often a custom role was defined. Their names are compared among all of them, and two definitions write different
/// records: each writes this one as well, so that of two that were decided at one moment the second decides again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RoleNamesRecord {
    pub definitions: u64,
}

/// What a job does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum JobKind {
    Backup,
    Restore,
    /// One key out of a full backup.
    SelectiveRestore,
    /// The checks of a backup alone.
    PreBackup,
    /// The checks of a restore alone.
    PreRestore,
}

/// A backup or restore that a request began.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Job {
    pub id: Guid,
    pub kind: JobKind,
    /// The container's URI, as the request gave it; never with a token.
    pub container: String,
    pub folder: Option<String>,
    pub key: Option<KeyName>,
    pub started: IntDate,
    /// `None` while it is under way.
    pub end: Option<JobEnd>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JobEnd {
    pub at: IntDate,
    /// Code and message of what went wrong; `None` for a success.
    pub failure: Option<(String, String)>,
    /// What a success has to say.
    pub detail: String,
}

/// The latest jobs, oldest first, in one record: so that of two that begin at one moment the second decides again.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct JobsRecord {
    /// When a full backup of this pool was last completed.
    pub last_backup: Option<IntDate>,
    pub jobs: Vec<Job>,
}

impl JobsRecord {
    /// The one that is under way.
    pub fn running(&self) -> Option<&Job> {
        self.jobs.iter().find(|job| job.end.is_none())
    }
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
    Jobs(JobsRecord),
    Outbox(OutboxRecord),
}

/// About what a record has beside material, texts and lists.
const RECORD_BYTES: usize = 1024;

impl Record {
    /// Of its value in the engine, to plan with.
    pub fn approximate_bytes(&self) -> usize {
        let text = |length: usize| length + 16;
        RECORD_BYTES
            + match self {
                Record::Version(record) => {
                    let tags = record.version.tags.iter();
                    let tags: usize = tags.map(|(name, value)| text(name.len()) + text(value.len())).sum();
                    let policy =
                        record.version.release.as_ref().map_or(0, |policy| text(policy.document().len()));
                    record.material.0.len() + tags + policy
                }
                Record::Key(record) => record.key.versions().len() * 16,
                Record::Role(role) => {
                    let permissions = role.permissions().iter();
                    let actions =
                        permissions.map(|held| held.data_actions.len() + held.not_data_actions.len());
                    role.description().len() + actions.sum::<usize>() * 100
                }
                Record::Invocations(record) => record.leased.len() * 32,
                _ => 0,
            }
    }
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
    Jobs,
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
    pub const JOBS: u8 = b'j';
    pub const OUTBOX: u8 = b'o';
    /// Clear copies under `danger-test`; never counted, never read back.
    pub const CLEAR: u8 = b'!';

    /// What the pool's digest is over.
    pub fn is_counted(kind: u8) -> bool {
        !matches!(kind, DATA_KEY | GENESIS | POOL_STATE | CLEAR)
    }

    /// What a restore replaces; all else is the pool's own and outlasts it. In the engine's order.
    pub const REPLACEABLE: [u8; 5] = [ASSIGNMENT, INVOCATIONS, ROLE, KEY, VERSION];

    pub fn is_replaceable(kind: u8) -> bool {
        REPLACEABLE.contains(&kind)
    }
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
            Record::Jobs(_) => RecordId::Jobs,
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
            RecordId::Jobs => kind::JOBS,
            RecordId::Outbox(_) => kind::OUTBOX,
        }
    }

    /// Where the record is stored: `space` counts for what a restore replaces.
    pub(crate) fn place(&self, names: &NameKey, space: u32) -> Place {
        let kind = self.kind();
        let space = if kind::is_replaceable(kind) { space } else { 0 };
        let mut name = self.name();
        let mut suffix = [].as_slice();
        let bytes = space.to_be_bytes();
        if space > 0 {
            // In the MAC as well: nothing that was staged, or replaced, opens among what is in use.
            name.push(0);
            name.extend_from_slice(&bytes);
            suffix = &bytes;
        }
        let mac = names.mac(kind, &name);
        Place { kind, mac, key: [&[kind], mac.as_slice(), suffix].concat() }
    }

    fn name(&self) -> Vec<u8> {
        match self {
            RecordId::Key(name) | RecordId::Invocations(name) => name.canonical().into_bytes(),
            RecordId::Version(name, version) => [name.canonical().as_bytes(), b"/", &version.0].concat(),
            RecordId::Assignment(id) | RecordId::Role(id) | RecordId::NotBefore(id) => id.0.to_vec(),
            RecordId::RoleNames | RecordId::TestMode | RecordId::Jobs => Vec::new(),
            RecordId::Setting(setting) => setting.name().as_bytes().to_vec(),
            RecordId::Activation => Vec::new(),
            RecordId::Outbox(event_id) => event_id.to_vec(),
        }
    }
}

/// Where a record is stored.
pub(crate) struct Place {
    pub kind: u8,
    /// The MAC of the record's name, and of its space.
    pub mac: [u8; 32],
    /// The engine's key.
    pub key: Vec<u8>,
}

/// What an engine key says of the record behind it: kind, MAC, and the space that it is in.
pub(crate) fn parse_key(key: &[u8]) -> Option<(u8, &[u8; 32], u32)> {
    let (&kind, rest) = key.split_first()?;
    let (mac, space) = rest.split_first_chunk::<32>()?;
    match space {
        [] => Some((kind, mac, 0)),
        space if kind::is_replaceable(kind) => {
            let space = u32::from_be_bytes(space.try_into().ok()?);
            (space > 0).then_some((kind, mac, space))
        }
        _ => None,
    }
}

/// The engine's key of a record that has no space: its kind, then the MAC of its name.
pub(crate) fn engine_key(kind: u8, name_mac: &[u8; 32]) -> Vec<u8> {
    [&[kind], name_mac.as_slice()].concat()
}
