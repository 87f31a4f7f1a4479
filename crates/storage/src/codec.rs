//! Records as CBOR (RFC 8949), format version 1: `docs/formats/store.md`.
//!
//! Fields are array positions. A later version may append fields; a reader of version 1 skips what it does not know
//! and refuses what breaks a rule of `domain`.

use crate::pool_state::{CheckpointMark, Digest, PoolState};
use crate::record::{
    ActivationRecord, InvocationsRecord, Job, JobEnd, JobKind, JobsRecord, KeyRecord, NotBeforeRecord,
    OutboxRecord, Record, RoleNamesRecord, SettingRecord, UnreadableRecord, VersionRecord, kind,
};
use crypto::{MaskedMaterial, SecretBytes};
use domain::access::{CustomRole, DataAction, Permission, RoleAssignment, Scope};
use domain::algorithm::KeySpec;
use domain::guid::Guid;
use domain::key::{Attributes, Key, KeyOperations, Origin, PublicKey, Tags, Version};
use domain::name::KeyVersion;
use domain::release::ReleasePolicy;
use domain::rotation::{LifetimeAction, Period, RotationPolicy, Trigger};
use domain::setting::{Setting, SettingValue};
use domain::test_mode::{TestMode, Throttle};
use domain::time::IntDate;
use minicbor::{Decode, Encode};
use std::collections::BTreeMap;

#[derive(Encode, Decode)]
pub(crate) struct KeyV1 {
    #[n(0)]
    name: String,
    #[cbor(n(1), with = "minicbor::bytes")]
    versions: Vec<u8>,
    /// Absent while the key is live.
    #[n(2)]
    deleted_at: Option<i64>,
    /// Absent without a policy.
    #[n(3)]
    rotation: Option<RotationV1>,
}

#[derive(Encode, Decode)]
pub(crate) struct RotationV1 {
    #[n(0)]
    actions: Vec<RotationActionV1>,
    /// ISO 8601, as the periods of actions are.
    #[n(1)]
    expiry: Option<String>,
    #[n(2)]
    created: i64,
    #[n(3)]
    updated: i64,
}

#[derive(Encode, Decode)]
pub(crate) struct RotationActionV1 {
    /// 1 rotate, 2 notify.
    #[n(0)]
    action: u8,
    /// 1 after creation, 2 before expiry.
    #[n(1)]
    trigger: u8,
    #[n(2)]
    period: String,
}

#[derive(Encode, Decode)]
pub(crate) struct VersionV1 {
    #[n(0)]
    name: String,
    #[cbor(n(1), with = "minicbor::bytes")]
    version: [u8; 16],
    /// 1 RSA, 2 EC, 3 oct.
    #[n(2)]
    key_type: u8,
    /// Bits; for EC: 256, 257 (P-256K), 384, 521.
    #[n(3)]
    size: u32,
    /// RSA modulus, or EC x.
    #[cbor(n(4), with = "minicbor::bytes")]
    public_1: Vec<u8>,
    /// RSA exponent, or EC y.
    #[cbor(n(5), with = "minicbor::bytes")]
    public_2: Vec<u8>,
    #[n(6)]
    operations: u16,
    #[n(7)]
    enabled: bool,
    #[n(8)]
    not_before: Option<i64>,
    #[n(9)]
    expires: Option<i64>,
    #[n(10)]
    created: i64,
    #[n(11)]
    updated: i64,
    #[n(12)]
    exportable: bool,
    #[n(13)]
    tags: BTreeMap<String, String>,
    #[cbor(n(14), with = "minicbor::bytes")]
    material: Vec<u8>,
    /// Absent unless the version is exportable.
    #[n(15)]
    release: Option<ReleaseV1>,
    /// 1 generated, 2 imported, 3 wrapped; absent where a release did not write it down.
    #[n(16)]
    origin: Option<u8>,
}

#[derive(Encode, Decode)]
pub(crate) struct ReleaseV1 {
    #[n(0)]
    document: String,
    #[n(1)]
    content_type: String,
    #[n(2)]
    immutable: bool,
}

#[derive(Encode, Decode)]
struct AssignmentV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    name: [u8; 16],
    #[n(1)]
    scope: String,
    #[cbor(n(2), with = "minicbor::bytes")]
    role: [u8; 16],
    #[cbor(n(3), with = "minicbor::bytes")]
    principal: [u8; 16],
}

#[derive(Encode, Decode)]
struct RoleV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    id: [u8; 16],
    #[n(1)]
    name: String,
    #[n(2)]
    description: String,
    #[n(3)]
    permissions: Vec<PermissionV1>,
}

/// Full names of data actions.
#[derive(Encode, Decode)]
struct PermissionV1 {
    #[n(0)]
    data_actions: Vec<String>,
    #[n(1)]
    not_data_actions: Vec<String>,
}

#[derive(Encode, Decode)]
struct RoleNamesV1 {
    #[n(0)]
    definitions: u64,
}

#[derive(Encode, Decode)]
struct TestModeV1 {
    #[n(0)]
    clock_offset_seconds: u64,
    /// 0: no request is refused.
    #[n(1)]
    throttle_every: u32,
    #[n(2)]
    retry_after_seconds: u32,
    #[n(3)]
    role_delay_seconds: u32,
}

#[derive(Encode, Decode)]
struct SettingV1 {
    #[n(0)]
    name: String,
    /// False for a setting that is no boolean.
    #[n(1)]
    value: bool,
    /// Absent for a boolean.
    #[n(2)]
    text: Option<String>,
}

#[derive(Encode, Decode)]
struct NotBeforeV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    principal: [u8; 16],
    #[n(1)]
    not_before: i64,
}

#[derive(Encode, Decode)]
pub(crate) struct InvocationsV1 {
    #[n(0)]
    name: String,
    /// 16 bytes each, ascending.
    #[cbor(n(1), with = "minicbor::bytes")]
    versions: Vec<u8>,
    #[n(2)]
    leased: Vec<u64>,
}

#[derive(Encode, Decode)]
struct ActivationV1 {
    #[n(0)]
    at: i64,
    #[n(1)]
    domain_file: Option<String>,
    /// 32 bytes each.
    #[cbor(n(2), with = "minicbor::bytes")]
    holders: Vec<u8>,
    #[n(3)]
    required: u8,
    /// True, or absent: also in records of earlier releases.
    #[n(4)]
    awaits_confirmation: Option<bool>,
}

#[derive(Encode, Decode)]
struct JobsV1 {
    #[n(0)]
    last_backup: Option<i64>,
    #[n(1)]
    jobs: Vec<JobV1>,
}

#[derive(Encode, Decode)]
struct JobV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    id: [u8; 16],
    /// 1 backup, 2 restore, 3 of one key, 4 checks of a backup, 5 checks of a restore.
    #[n(1)]
    kind: u8,
    #[n(2)]
    container: String,
    #[n(3)]
    folder: Option<String>,
    #[n(4)]
    key: Option<String>,
    #[n(5)]
    started: i64,
    /// Absent while it is under way.
    #[n(6)]
    end: Option<JobEndV1>,
}

#[derive(Encode, Decode)]
struct JobEndV1 {
    #[n(0)]
    at: i64,
    #[n(1)]
    detail: String,
    /// Both absent for a success.
    #[n(2)]
    code: Option<String>,
    #[n(3)]
    message: Option<String>,
}

#[derive(Encode, Decode)]
struct OutboxV1 {
    #[cbor(n(0), with = "minicbor::bytes")]
    event_id: [u8; 16],
    #[n(1)]
    not_before_index: u64,
    #[cbor(n(2), with = "minicbor::bytes")]
    leaf: Vec<u8>,
}

#[derive(Encode, Decode)]
struct PoolStateV1 {
    #[n(0)]
    generation: u64,
    #[n(1)]
    records: u64,
    #[cbor(n(2), with = "minicbor::bytes")]
    digest: [u8; 32],
    #[n(3)]
    log_size: u64,
    #[cbor(n(4), with = "minicbor::bytes")]
    log_root: [u8; 32],
    /// Both absent until something was staged.
    #[n(5)]
    space: Option<u32>,
    #[n(6)]
    last_space: Option<u32>,
}

pub(crate) fn encode(record: &Record) -> SecretBytes {
    match record {
        Record::Key(record) => to_bytes(&key_to_wire(record)),
        Record::Version(record) => to_bytes(&version_to_wire(record)),
        Record::Assignment(record) => to_bytes(&AssignmentV1 {
            name: record.name.0,
            scope: record.scope.to_string(),
            role: record.role.0,
            principal: record.principal.0,
        }),
        Record::Role(role) => to_bytes(&role_to_wire(role)),
        Record::RoleNames(record) => to_bytes(&RoleNamesV1 { definitions: record.definitions }),
        Record::TestMode(mode) => {
            let throttle = mode.throttle();
            to_bytes(&TestModeV1 {
                clock_offset_seconds: mode.clock_offset_seconds(),
                throttle_every: throttle.map_or(0, |throttle| throttle.every),
                retry_after_seconds: throttle.map_or(0, |throttle| throttle.retry_after_seconds),
                role_delay_seconds: mode.role_delay_seconds(),
            })
        }
        Record::Setting(record) => {
            let (value, text) = match &record.value {
                SettingValue::Boolean(value) => (*value, None),
                SettingValue::Text(text) => (false, Some(text.clone())),
            };
            to_bytes(&SettingV1 { name: record.setting.name().to_owned(), value, text })
        }
        Record::NotBefore(record) => to_bytes(&NotBeforeV1 {
            principal: record.principal.0,
            not_before: record.not_before.unix_seconds(),
        }),
        Record::Invocations(record) => to_bytes(&invocations_to_wire(record)),
        Record::Activation(record) => to_bytes(&ActivationV1 {
            at: record.at.unix_seconds(),
            domain_file: record.domain_file.clone(),
            holders: record.holders.concat(),
            required: record.required,
            awaits_confirmation: record.awaits_confirmation.then_some(true),
        }),
        Record::Jobs(record) => to_bytes(&jobs_to_wire(record)),
        Record::Outbox(record) => to_bytes(&OutboxV1 {
            event_id: record.event_id,
            not_before_index: record.not_before_index,
            leaf: record.leaf.clone(),
        }),
    }
}

pub(crate) fn decode(record_kind: u8, bytes: &SecretBytes) -> Result<Record, UnreadableRecord> {
    match record_kind {
        kind::KEY => key_from_wire(from_bytes(bytes)?).map(Record::Key),
        kind::VERSION => version_from_wire(from_bytes(bytes)?).map(Record::Version),
        kind::ASSIGNMENT => {
            let wire: AssignmentV1 = from_bytes(bytes)?;
            Ok(Record::Assignment(RoleAssignment {
                name: Guid(wire.name),
                scope: Scope::parse(&wire.scope).map_err(|_| UnreadableRecord::Malformed)?,
                role: Guid(wire.role),
                principal: Guid(wire.principal),
            }))
        }
        kind::ROLE => role_from_wire(from_bytes(bytes)?).map(Record::Role),
        kind::ROLE_NAMES => {
            let wire: RoleNamesV1 = from_bytes(bytes)?;
            Ok(Record::RoleNames(RoleNamesRecord { definitions: wire.definitions }))
        }
        kind::TEST_MODE => {
            let wire: TestModeV1 = from_bytes(bytes)?;
            let throttle = match (wire.throttle_every, wire.retry_after_seconds) {
                (0, 0) => None,
                (every, retry_after_seconds) => Some(Throttle { every, retry_after_seconds }),
            };
            TestMode::new(wire.clock_offset_seconds, throttle, wire.role_delay_seconds)
                .map(Record::TestMode)
                .map_err(|_| UnreadableRecord::Malformed)
        }
        kind::SETTING => {
            let wire: SettingV1 = from_bytes(bytes)?;
            let setting = Setting::parse(&wire.name).ok_or(UnreadableRecord::Malformed)?;
            let value = match (wire.value, wire.text) {
                (value, None) => SettingValue::Boolean(value),
                (false, Some(text)) => SettingValue::Text(text),
                (true, Some(_)) => return Err(UnreadableRecord::Malformed),
            };
            // As it was kept, or it was not kept by us.
            match setting.check(value.clone()) {
                Ok(checked) if checked == value => Ok(Record::Setting(SettingRecord { setting, value })),
                Ok(_) | Err(_) => Err(UnreadableRecord::Malformed),
            }
        }
        kind::NOT_BEFORE => {
            let wire: NotBeforeV1 = from_bytes(bytes)?;
            Ok(Record::NotBefore(NotBeforeRecord {
                principal: Guid(wire.principal),
                not_before: IntDate::from_unix_seconds(wire.not_before),
            }))
        }
        kind::INVOCATIONS => invocations_from_wire(from_bytes(bytes)?).map(Record::Invocations),
        kind::ACTIVATION => {
            let wire: ActivationV1 = from_bytes(bytes)?;
            let (holders, rest) = wire.holders.as_chunks::<32>();
            if !rest.is_empty() || wire.awaits_confirmation == Some(false) {
                return Err(UnreadableRecord::Malformed);
            }
            Ok(Record::Activation(ActivationRecord {
                at: IntDate::from_unix_seconds(wire.at),
                domain_file: wire.domain_file,
                holders: holders.to_vec(),
                required: wire.required,
                awaits_confirmation: wire.awaits_confirmation.is_some(),
            }))
        }
        kind::JOBS => jobs_from_wire(from_bytes(bytes)?).map(Record::Jobs),
        kind::OUTBOX => {
            let wire: OutboxV1 = from_bytes(bytes)?;
            Ok(Record::Outbox(OutboxRecord {
                event_id: wire.event_id,
                not_before_index: wire.not_before_index,
                leaf: wire.leaf,
            }))
        }
        unknown => Err(UnreadableRecord::UnknownKind(unknown)),
    }
}

pub(crate) fn encode_pool_state(state: &PoolState) -> SecretBytes {
    to_bytes(&PoolStateV1 {
        generation: state.generation,
        records: state.records,
        digest: state.digest.0,
        log_size: state.checkpoint.size,
        log_root: state.checkpoint.root,
        space: Some(state.space).filter(|_| state.last_space > 0),
        last_space: Some(state.last_space).filter(|last| *last > 0),
    })
}

pub(crate) fn decode_pool_state(bytes: &SecretBytes) -> Result<PoolState, UnreadableRecord> {
    let wire: PoolStateV1 = from_bytes(bytes)?;
    Ok(PoolState {
        generation: wire.generation,
        records: wire.records,
        digest: Digest(wire.digest),
        checkpoint: CheckpointMark { size: wire.log_size, root: wire.log_root },
        space: wire.space.unwrap_or_default(),
        last_space: wire.last_space.unwrap_or_default(),
    })
}

pub(crate) fn to_bytes<T: Encode<()>>(wire: &T) -> SecretBytes {
    SecretBytes::new(minicbor::to_vec(wire).expect("writing to memory does not fail"))
}

/// Refuses bytes behind the value: two encodings of one record must not both be readable.
pub(crate) fn from_bytes<'b, T: Decode<'b, ()>>(bytes: &'b SecretBytes) -> Result<T, UnreadableRecord> {
    let mut decoder = minicbor::Decoder::new(bytes.danger_expose());
    let value = decoder.decode().map_err(|_| UnreadableRecord::Malformed)?;
    if decoder.position() != bytes.len() {
        return Err(UnreadableRecord::Malformed);
    }
    Ok(value)
}

pub(crate) fn key_to_wire(record: &KeyRecord) -> KeyV1 {
    KeyV1 {
        name: record.key.name.to_string(),
        versions: record.key.versions().iter().flat_map(|version| version.0).collect(),
        deleted_at: record.key.deleted_at().map(IntDate::unix_seconds),
        rotation: record.key.rotation().map(rotation_to_wire),
    }
}

fn rotation_to_wire(policy: &RotationPolicy) -> RotationV1 {
    let action = |&(action, trigger): &(LifetimeAction, Trigger)| {
        let (trigger, period) = match trigger {
            Trigger::AfterCreate(period) => (1, period),
            Trigger::BeforeExpiry(period) => (2, period),
        };
        let action = match action {
            LifetimeAction::Rotate => 1,
            LifetimeAction::Notify => 2,
        };
        RotationActionV1 { action, trigger, period: period.to_string() }
    };
    RotationV1 {
        actions: policy.actions().iter().map(action).collect(),
        expiry: policy.expiry().map(|period| period.to_string()),
        created: policy.created.unix_seconds(),
        updated: policy.updated.unix_seconds(),
    }
}

fn rotation_from_wire(wire: RotationV1) -> Result<RotationPolicy, UnreadableRecord> {
    let malformed = UnreadableRecord::Malformed;
    let period = |text: &str| Period::parse(text).map_err(|_| malformed);
    let action = |wire: &RotationActionV1| {
        let action = match wire.action {
            1 => LifetimeAction::Rotate,
            2 => LifetimeAction::Notify,
            _ => return Err(malformed),
        };
        let period = period(&wire.period)?;
        match wire.trigger {
            1 => Ok((action, Trigger::AfterCreate(period))),
            2 => Ok((action, Trigger::BeforeExpiry(period))),
            _ => Err(malformed),
        }
    };
    let actions = wire.actions.iter().map(action).collect::<Result<_, _>>()?;
    let expiry = wire.expiry.as_deref().map(period).transpose()?;
    let (created, updated) =
        (IntDate::from_unix_seconds(wire.created), IntDate::from_unix_seconds(wire.updated));
    RotationPolicy::new(actions, expiry, created, updated).map_err(|_| malformed)
}

pub(crate) fn key_from_wire(wire: KeyV1) -> Result<KeyRecord, UnreadableRecord> {
    let (versions, rest) = wire.versions.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(UnreadableRecord::Malformed);
    }
    let versions = versions.iter().copied().map(KeyVersion).collect();
    let name = wire.name.parse().map_err(|_| UnreadableRecord::Malformed)?;
    let deleted_at = wire.deleted_at.map(IntDate::from_unix_seconds);
    let key = Key::from_stored(name, versions, deleted_at).map_err(|_| UnreadableRecord::Malformed)?;
    let rotation = wire.rotation.map(rotation_from_wire).transpose()?;
    Ok(KeyRecord { key: key.with_rotation(rotation) })
}

pub(crate) fn invocations_to_wire(record: &InvocationsRecord) -> InvocationsV1 {
    InvocationsV1 {
        name: record.name.to_string(),
        versions: record.leased.keys().flat_map(|version| version.0).collect(),
        leased: record.leased.values().copied().collect(),
    }
}

pub(crate) fn invocations_from_wire(wire: InvocationsV1) -> Result<InvocationsRecord, UnreadableRecord> {
    let (versions, rest) = wire.versions.as_chunks::<16>();
    let ascending = versions.is_sorted_by(|one, next| one < next);
    if !rest.is_empty() || versions.len() != wire.leased.len() || !ascending {
        return Err(UnreadableRecord::Malformed);
    }
    Ok(InvocationsRecord {
        name: wire.name.parse().map_err(|_| UnreadableRecord::Malformed)?,
        leased: versions.iter().copied().map(KeyVersion).zip(wire.leased).collect(),
    })
}

pub(crate) fn version_to_wire(record: &VersionRecord) -> VersionV1 {
    let version = &record.version;
    let (key_type, size) = version.spec.code();
    let (public_1, public_2) = version.public.parts();
    VersionV1 {
        name: version.name.to_string(),
        version: version.version.0,
        key_type,
        size,
        public_1: public_1.to_vec(),
        public_2: public_2.to_vec(),
        operations: version.operations.bits(),
        enabled: version.attributes.enabled,
        not_before: version.attributes.not_before.map(IntDate::unix_seconds),
        expires: version.attributes.expires.map(IntDate::unix_seconds),
        created: version.attributes.created.unix_seconds(),
        updated: version.attributes.updated.unix_seconds(),
        exportable: version.attributes.exportable,
        tags: version.tags.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        material: record.material.0.clone(),
        origin: Some(version.origin).filter(|origin| *origin != Origin::Unknown).map(Origin::code),
        release: version.release.as_ref().map(|policy| ReleaseV1 {
            document: policy.document().to_owned(),
            content_type: policy.content_type().to_owned(),
            immutable: policy.is_immutable(),
        }),
    }
}

pub(crate) fn version_from_wire(wire: VersionV1) -> Result<VersionRecord, UnreadableRecord> {
    let malformed = UnreadableRecord::Malformed;
    let spec = KeySpec::from_code(wire.key_type, wire.size).ok_or(malformed)?;
    let public = PublicKey::from_parts(spec, wire.public_1, wire.public_2).ok_or(malformed)?;
    let release = wire.release.map(|wire| {
        ReleasePolicy::new(wire.document, Some(wire.content_type), wire.immutable).map_err(|_| malformed)
    });
    let release = release.transpose()?;
    if wire.exportable != release.is_some() {
        return Err(malformed);
    }
    Ok(VersionRecord {
        version: Version {
            name: wire.name.parse().map_err(|_| malformed)?,
            version: KeyVersion(wire.version),
            spec,
            public,
            operations: KeyOperations::from_bits(wire.operations).ok_or(malformed)?,
            attributes: Attributes {
                enabled: wire.enabled,
                not_before: wire.not_before.map(IntDate::from_unix_seconds),
                expires: wire.expires.map(IntDate::from_unix_seconds),
                created: IntDate::from_unix_seconds(wire.created),
                updated: IntDate::from_unix_seconds(wire.updated),
                exportable: wire.exportable,
            },
            tags: Tags::new(wire.tags).map_err(|_| malformed)?,
            origin: match wire.origin {
                None => Origin::Unknown,
                Some(code) => {
                    Origin::from_code(code).filter(|origin| *origin != Origin::Unknown).ok_or(malformed)?
                }
            },
            release,
        },
        material: MaskedMaterial(wire.material),
    })
}

fn role_to_wire(role: &CustomRole) -> RoleV1 {
    let names = |actions: &[DataAction]| actions.iter().map(|action| action.as_str().to_owned()).collect();
    let permission = |permission: &Permission| PermissionV1 {
        data_actions: names(&permission.data_actions),
        not_data_actions: names(&permission.not_data_actions),
    };
    RoleV1 {
        id: role.id().0,
        name: role.name().to_owned(),
        description: role.description().to_owned(),
        permissions: role.permissions().iter().map(permission).collect(),
    }
}

fn role_from_wire(wire: RoleV1) -> Result<CustomRole, UnreadableRecord> {
    let malformed = UnreadableRecord::Malformed;
    let actions = |names: Vec<String>| {
        names.iter().map(|name| DataAction::parse(name).ok_or(malformed)).collect::<Result<Vec<_>, _>>()
    };
    let permission = |wire: PermissionV1| {
        Ok(Permission {
            data_actions: actions(wire.data_actions)?,
            not_data_actions: actions(wire.not_data_actions)?,
        })
    };
    let permissions = wire.permissions.into_iter().map(permission).collect::<Result<_, _>>()?;
    CustomRole::new(Guid(wire.id), wire.name, wire.description, permissions).map_err(|_| malformed)
}

fn jobs_to_wire(record: &JobsRecord) -> JobsV1 {
    let end = |end: &JobEnd| {
        let (code, message) = end.failure.clone().unzip();
        JobEndV1 { at: end.at.unix_seconds(), detail: end.detail.clone(), code, message }
    };
    let job = |job: &Job| JobV1 {
        id: job.id.0,
        kind: match job.kind {
            JobKind::Backup => 1,
            JobKind::Restore => 2,
            JobKind::SelectiveRestore => 3,
            JobKind::PreBackup => 4,
            JobKind::PreRestore => 5,
        },
        container: job.container.clone(),
        folder: job.folder.clone(),
        key: job.key.as_ref().map(ToString::to_string),
        started: job.started.unix_seconds(),
        end: job.end.as_ref().map(end),
    };
    JobsV1 {
        last_backup: record.last_backup.map(IntDate::unix_seconds),
        jobs: record.jobs.iter().map(job).collect(),
    }
}

fn jobs_from_wire(wire: JobsV1) -> Result<JobsRecord, UnreadableRecord> {
    let malformed = UnreadableRecord::Malformed;
    let end = |wire: JobEndV1| {
        let failure = match (wire.code, wire.message) {
            (Some(code), Some(message)) => Some((code, message)),
            (None, None) => None,
            _ => return Err(malformed),
        };
        Ok(JobEnd { at: IntDate::from_unix_seconds(wire.at), failure, detail: wire.detail })
    };
    let job = |wire: JobV1| {
        Ok(Job {
            id: Guid(wire.id),
            kind: match wire.kind {
                1 => JobKind::Backup,
                2 => JobKind::Restore,
                3 => JobKind::SelectiveRestore,
                4 => JobKind::PreBackup,
                5 => JobKind::PreRestore,
                _ => return Err(malformed),
            },
            container: wire.container,
            folder: wire.folder,
            key: wire.key.map(|name| name.parse().map_err(|_| malformed)).transpose()?,
            started: IntDate::from_unix_seconds(wire.started),
            end: wire.end.map(end).transpose()?,
        })
    };
    Ok(JobsRecord {
        last_backup: wire.last_backup.map(IntDate::from_unix_seconds),
        jobs: wire.jobs.into_iter().map(job).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::algorithm::{Curve, OctSize, RsaSize};
    use proptest::prelude::*;

    fn samples() -> Vec<(&'static str, Record)> {
        let attributes = Attributes {
            enabled: true,
            not_before: None,
            expires: Some(IntDate::from_unix_seconds(1_900_000_000)),
            created: IntDate::from_unix_seconds(1_800_000_000),
            updated: IntDate::from_unix_seconds(1_800_000_001),
            exportable: false,
        };
        let version_of = |origin: Origin, spec: KeySpec, public: PublicKey| {
            Record::Version(VersionRecord {
                version: Version {
                    name: "Payroll-2026".parse().unwrap(),
                    version: KeyVersion([0x11; 16]),
                    spec,
                    public,
                    operations: KeyOperations::default_for(spec),
                    attributes,
                    tags: Tags::new(BTreeMap::from([("team".into(), "pay".into())])).unwrap(),
                    origin,
                    release: None,
                },
                material: MaskedMaterial(vec![0xaa; 5]),
            })
        };
        let version = |spec, public| version_of(Origin::Unknown, spec, public);
        let curve = Curve::P256K;
        vec![
            (
                "key",
                Record::Key(KeyRecord {
                    key: Key::first("Payroll-2026".parse().unwrap(), KeyVersion([0x11; 16]))
                        .with_version(KeyVersion([0x22; 16]), 100)
                        .unwrap(),
                }),
            ),
            (
                "key-deleted",
                Record::Key(KeyRecord {
                    key: Key::first("Payroll-2026".parse().unwrap(), KeyVersion([0x11; 16]))
                        .delete(IntDate::from_unix_seconds(1_800_000_000))
                        .unwrap(),
                }),
            ),
            (
                "key-rotated",
                Record::Key(KeyRecord {
                    key: Key::first("Payroll-2026".parse().unwrap(), KeyVersion([0x11; 16]))
                        .with_rotation(Some(rotation_policy())),
                }),
            ),
            (
                "role",
                Record::Role(
                    CustomRole::new(
                        Guid([4; 16]),
                        "signers".into(),
                        "sign, and see what they sign with".into(),
                        vec![Permission {
                            data_actions: vec![DataAction::Sign, DataAction::KeyRead],
                            not_data_actions: vec![DataAction::Decrypt],
                        }],
                    )
                    .unwrap(),
                ),
            ),
            ("role-names", Record::RoleNames(RoleNamesRecord { definitions: 300 })),
            (
                "test-mode",
                Record::TestMode(
                    TestMode::new(7_776_000, Some(Throttle { every: 10, retry_after_seconds: 2 }), 30)
                        .unwrap(),
                ),
            ),
            (
                "setting",
                Record::Setting(SettingRecord {
                    setting: Setting::Rsa15Decryption,
                    value: SettingValue::Boolean(false),
                }),
            ),
            (
                "setting-text",
                Record::Setting(SettingRecord {
                    setting: Setting::ReleaseAuthorities,
                    value: SettingValue::Text("https://attest.example".into()),
                }),
            ),
            (
                "not-before",
                Record::NotBefore(NotBeforeRecord {
                    principal: Guid([5; 16]),
                    not_before: IntDate::from_unix_seconds(1_800_000_000),
                }),
            ),
            (
                "version-rsa",
                version(
                    KeySpec::Rsa(RsaSize::Rsa2048),
                    PublicKey::Rsa { modulus: vec![0xc1; 256], exponent: vec![1, 0, 1] },
                ),
            ),
            (
                "version-ec",
                version(KeySpec::Ec(curve), PublicKey::Ec { curve, x: vec![0; 32], y: vec![9; 32] }),
            ),
            ("version-oct", version(KeySpec::Oct(OctSize::Oct256), PublicKey::Oct)),
            ("version-wrapped", version_of(Origin::Wrapped, KeySpec::Oct(OctSize::Oct128), PublicKey::Oct)),
            ("version-exportable", exportable(version(KeySpec::Oct(OctSize::Oct256), PublicKey::Oct))),
            (
                "assignment",
                Record::Assignment(RoleAssignment {
                    name: Guid([1; 16]),
                    scope: Scope::Key("Payroll-2026".parse().unwrap()),
                    role: domain::access::BuiltInRole::CryptoUser.id(),
                    principal: Guid([2; 16]),
                }),
            ),
            (
                "invocations",
                Record::Invocations(InvocationsRecord {
                    name: "Payroll-2026".parse().unwrap(),
                    leased: BTreeMap::from([
                        (KeyVersion([0x11; 16]), 65_536),
                        (KeyVersion([0x22; 16]), 1 << 32),
                    ]),
                }),
            ),
            (
                "activation",
                Record::Activation(ActivationRecord {
                    at: IntDate::from_unix_seconds(1_800_000_000),
                    domain_file: Some("{}".into()),
                    holders: vec![[6; 32], [7; 32], [8; 32]],
                    required: 2,
                    awaits_confirmation: false,
                }),
            ),
            (
                "activation-unconfirmed",
                Record::Activation(ActivationRecord {
                    at: IntDate::from_unix_seconds(1_800_000_000),
                    domain_file: None,
                    holders: vec![[6; 32], [7; 32], [8; 32]],
                    required: 2,
                    awaits_confirmation: true,
                }),
            ),
            (
                "jobs",
                Record::Jobs(JobsRecord {
                    last_backup: Some(IntDate::from_unix_seconds(1_800_000_000)),
                    jobs: jobs(),
                }),
            ),
            (
                "outbox",
                Record::Outbox(OutboxRecord {
                    event_id: [3; 16],
                    not_before_index: 70_000,
                    leaf: vec![1, 2, 3],
                }),
            ),
        ]
    }

    fn jobs() -> Vec<Job> {
        let at = IntDate::from_unix_seconds;
        let job = |kind, end| Job {
            id: Guid([9; 16]),
            kind,
            container: "https://store.example/container".into(),
            folder: Some("mhsm-demo-20270115080000".into()),
            key: None,
            started: at(1_800_000_000),
            end,
        };
        let end = |failure| Some(JobEnd { at: at(1_800_000_001), failure, detail: "3 keys".into() });
        let failure = Some(("Conflict".into(), "Somebody else was there.".into()));
        vec![
            job(JobKind::Backup, end(None)),
            Job {
                key: Some("Payroll-2026".parse().unwrap()),
                ..job(JobKind::SelectiveRestore, end(failure))
            },
            job(JobKind::Restore, None),
        ]
    }

    fn exportable(record: Record) -> Record {
        let Record::Version(mut record) = record else { return record };
        let document =
            r#"{"anyOf":[{"authority":"https://attest.example","allOf":[{"claim":"a","equals":1}]}]}"#;
        record.version.attributes.exportable = true;
        record.version.release = Some(ReleasePolicy::new(document.into(), None, true).unwrap());
        Record::Version(record)
    }

    /// What permits a release is the policy: neither goes without the other.
    #[test]
    fn an_exportable_version_without_a_policy_is_refused() {
        let (_, record) = samples().into_iter().find(|(name, _)| *name == "version-exportable").unwrap();
        let Record::Version(record) = record else { return };
        let mut bare = record.clone();
        bare.version.release = None;
        let mut kept = record;
        kept.version.attributes.exportable = false;
        for record in [bare, kept] {
            let bytes = encode(&Record::Version(record));
            assert_eq!(decode(kind::VERSION, &bytes), Err(UnreadableRecord::Malformed));
        }
    }

    fn rotation_policy() -> RotationPolicy {
        let period = |text| Period::parse(text).unwrap();
        let actions = vec![
            (LifetimeAction::Rotate, Trigger::AfterCreate(period("P18M"))),
            (LifetimeAction::Notify, Trigger::BeforeExpiry(period("P30D"))),
        ];
        let at = IntDate::from_unix_seconds;
        RotationPolicy::new(actions, Some(period("P2Y")), at(1_800_000_000), at(1_800_000_001)).unwrap()
    }

    #[test]
    fn records_match_their_golden_files_both_ways() {
        for (name, record) in samples() {
            let path = format!("{}/tests/golden/record-{name}.cbor", env!("CARGO_MANIFEST_DIR"));
            if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(&path).exists() {
                std::fs::write(&path, encode(&record).danger_expose()).unwrap();
            }
            let golden = std::fs::read(&path).unwrap();
            assert_eq!(encode(&record).danger_expose(), golden, "{name}");
            assert_eq!(decode(record.id().kind(), &SecretBytes::new(golden)), Ok(record), "{name}");
        }
    }

    #[cfg(feature = "fuzzing")]
    #[test]
    fn every_kind_is_fuzzed() {
        for (name, record) in samples() {
            assert!(crate::fuzzing::KINDS.contains(&record.id().kind()), "{name}");
        }
    }

    #[test]
    fn bytes_behind_a_record_are_refused() {
        for (name, record) in samples() {
            let mut bytes = encode(&record).danger_expose().to_vec();
            bytes.push(0);
            let result = decode(record.id().kind(), &SecretBytes::new(bytes));
            assert_eq!(result, Err(UnreadableRecord::Malformed), "{name}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(kind in any::<u8>(), bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(kind, &SecretBytes::new(bytes));
        }

        #[test]
        fn damaged_records_never_panic(index in 0..samples().len(), position in 0usize..600, value in any::<u8>()) {
            let (_, record) = samples().swap_remove(index);
            let mut bytes = encode(&record).danger_expose().to_vec();
            let position = position % bytes.len();
            bytes[position] = value;
            let _ = decode(record.id().kind(), &SecretBytes::new(bytes));
        }
    }
}
