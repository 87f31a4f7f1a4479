//! JSON bodies, in and out. Members that we do not know are ignored, as clients are newer than servers.

use crate::answers::{Attributes, KeyBundle};
use crate::release::{self, PolicyBody};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use domain::access::{CustomRole, DataAction, Permission, Role, RoleAssignment, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyOperation, KeyOperations, Tags, VersionChange};
use domain::name::{KeyName, KeyVersion};
use domain::setting::SettingValue;
use domain::time::IntDate;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use service::{
    AssignmentFilter, AttestedKey, DecryptInput, DeletedKeyView, DomainStatus, DomainView, DownloadRequest,
    EncryptInput, Error, KeyAttestation, KeyView, NewAssignment, NewKey, NotBefore, SecretBytes, SettingView,
    TransferKey,
};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use zeroize::Zeroizing;

/// base64url (RFC 4648 section 5): written without padding, read with or without; strict about unused bits.
pub(crate) const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// In one answer of `/rng`.
const MAX_RANDOM_BYTES: usize = 128;

/// In one list of a body. Whoever takes fewer says so; this is for `[{},{},…]`, which would become eighty times as large here.
const MAX_ITEMS: usize = 1000;

#[derive(Deserialize)]
struct CreateBody {
    kty: Option<String>,
    key_size: Option<u32>,
    crv: Option<String>,
    public_exponent: Option<u64>,
    key_ops: Option<List<String>>,
    attributes: Option<AttributesBody>,
    tags: Option<BTreeMap<String, String>>,
    release_policy: Option<PolicyBody>,
}

#[derive(Default, Deserialize)]
pub(crate) struct AttributesBody {
    pub enabled: Option<bool>,
    pub nbf: Option<i64>,
    pub exp: Option<i64>,
    pub exportable: Option<bool>,
}

#[derive(Deserialize)]
struct UseBody {
    alg: Option<String>,
    value: Option<Zeroizing<String>>,
    digest: Option<String>,
    iv: Option<String>,
    aad: Option<String>,
    tag: Option<String>,
}

pub(crate) fn parse_create(name: KeyName, body: &[u8]) -> Result<NewKey, Error> {
    let body: CreateBody = parse(body)?;
    let attributes = body.attributes.unwrap_or_default();
    Ok(NewKey {
        name,
        spec: parse_spec(body.kty.as_deref(), body.key_size, body.crv.as_deref())?,
        public_exponent: body.public_exponent,
        operations: first_operations(body.key_ops)?,
        enabled: attributes.enabled.unwrap_or(true),
        not_before: attributes.nbf.map(IntDate::from_unix_seconds),
        expires: attributes.exp.map(IntDate::from_unix_seconds),
        exportable: attributes.exportable.unwrap_or(false),
        release: release::policy(body.release_policy)?,
        tags: Tags::new(body.tags.unwrap_or_default())?,
    })
}

fn operations(named: Option<List<String>>) -> Result<Option<KeyOperations>, Error> {
    let parse = |text: &String| {
        KeyOperation::parse(text)
            .ok_or_else(|| bad(format!("key_ops value `{}` is not known", shorten(text))))
    };
    named.map(|List(named)| named.iter().map(parse).collect::<Result<_, _>>()).transpose()
}

/// Of a new key. Some clients write an empty list where nothing was said (Java's `importKey`): the defaults are meant, as a
/// key that may do nothing can be made by an update alone.
pub(crate) fn first_operations(named: Option<List<String>>) -> Result<Option<KeyOperations>, Error> {
    operations(named.filter(|List(named)| !named.is_empty()))
}

#[derive(Deserialize)]
struct UpdateBody {
    key_ops: Option<List<String>>,
    attributes: Option<AttributesBody>,
    tags: Option<BTreeMap<String, String>>,
    release_policy: Option<PolicyBody>,
}

/// What is not named stays as it is; `tags` are replaced as a whole.
pub(crate) fn parse_update(body: &[u8]) -> Result<VersionChange, Error> {
    let body: UpdateBody = parse(body)?;
    let attributes = body.attributes.unwrap_or_default();
    Ok(VersionChange {
        operations: operations(body.key_ops)?,
        enabled: attributes.enabled,
        not_before: attributes.nbf.map(IntDate::from_unix_seconds),
        expires: attributes.exp.map(IntDate::from_unix_seconds),
        tags: body.tags.map(Tags::new).transpose()?,
        exportable: attributes.exportable,
        release: release::policy(body.release_policy)?,
    })
}

#[derive(Deserialize)]
struct RandomBody {
    count: usize,
}

/// `{"count"}`: 1 to 128 bytes.
pub(crate) fn parse_random(body: &[u8]) -> Result<usize, Error> {
    let RandomBody { count } = parse(body)?;
    if (1..=MAX_RANDOM_BYTES).contains(&count) {
        Ok(count)
    } else {
        Err(bad(format!("count must be 1 to {MAX_RANDOM_BYTES}")))
    }
}

#[derive(Deserialize)]
struct RestoreBody {
    value: Option<String>,
}

pub(crate) fn parse_restore(body: &[u8]) -> Result<Vec<u8>, Error> {
    let body: RestoreBody = parse(body)?;
    required("value", body.value.as_deref())
}

#[derive(Deserialize)]
struct SettingBody {
    value: Value,
}

/// `{"value":"true"}`; a JSON boolean is taken as well.
pub(crate) fn parse_setting(body: &[u8]) -> Result<SettingValue, Error> {
    match parse::<SettingBody>(body)?.value {
        Value::Bool(value) => Ok(SettingValue::Boolean(value)),
        Value::String(text) => Ok(SettingValue::Text(text)),
        _ => Err(bad("value must be a string".into())),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NotBeforeBody {
    not_before: Option<i64>,
}

/// `{"notBefore"?}`: seconds since 1970.
pub(crate) fn parse_not_before(body: &[u8]) -> Result<Option<IntDate>, Error> {
    Ok(parse::<NotBeforeBody>(body)?.not_before.map(IntDate::from_unix_seconds))
}

/// Who is to hold the security domain (security-domain-protocol section 3).
pub(crate) fn parse_download(body: &[u8]) -> Result<DownloadRequest, Error> {
    let text = std::str::from_utf8(body).map_err(|_| bad("the request body is not UTF-8".into()))?;
    DownloadRequest::parse(text).map_err(|error| bad(error.to_string()))
}

#[derive(Deserialize)]
struct ConfirmBody {
    fingerprint: String,
}

/// `{"fingerprint"}`: SHA-256 of the domain's owner key, hex.
pub(crate) fn parse_confirm(body: &[u8]) -> Result<String, Error> {
    let ConfirmBody { fingerprint } = parse(body)?;
    if fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(fingerprint)
    } else {
        Err(
            bad("fingerprint must be 64 hexadecimal digits, as `holdfast ceremony inspect` shows them".into()),
        )
    }
}

#[derive(Deserialize)]
struct UploadBody {
    value: String,
}

/// `{"value"}`: the restore blob as text.
pub(crate) fn parse_upload(body: &[u8]) -> Result<String, Error> {
    Ok(parse::<UploadBody>(body)?.value)
}

#[derive(Deserialize)]
struct RoleBody {
    properties: RoleProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RoleProperties {
    role_name: Option<String>,
    description: Option<String>,
    permissions: Option<List<PermissionBody>>,
    assignable_scopes: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PermissionBody {
    actions: Option<List<String>>,
    not_actions: Option<List<String>>,
    data_actions: Option<List<String>>,
    not_data_actions: Option<List<String>>,
}

pub(crate) fn parse_role(id: Guid, body: &[u8]) -> Result<CustomRole, Error> {
    let RoleBody { properties } = parse(body)?;
    // Some clients leave the name to the service (Terraform): one that is nobody else's.
    let name = properties.role_name.filter(|name| !name.is_empty()).unwrap_or_else(|| id.to_string());
    if properties.assignable_scopes.is_some_and(|List(scopes)| scopes.iter().any(|scope| scope != "/")) {
        return Err(Error::RoleScope);
    }
    let List(permissions) = properties.permissions.unwrap_or_default();
    let permissions = permissions.into_iter().map(permission).collect::<Result<_, _>>()?;
    Ok(CustomRole::new(id, name, properties.description.unwrap_or_default(), permissions)?)
}

/// Of a list of role assignments. Another one is refused: an answer that passes over it would name too many.
pub(crate) fn assignment_filter(text: &str) -> Result<AssignmentFilter, Error> {
    let principal = |text: &str| {
        let id = text.strip_prefix("principalId eq ")?.trim();
        id.strip_prefix('\'').and_then(|id| id.strip_suffix('\'')).unwrap_or(id).parse().ok()
    };
    match text.trim() {
        "" => Ok(AssignmentFilter::Here),
        "atScope()" => Ok(AssignmentFilter::Counting),
        text => principal(text)
            .map(AssignmentFilter::Of)
            .ok_or_else(|| bad("$filter must be atScope() or principalId eq 'ID'".into())),
    }
}

fn permission(body: PermissionBody) -> Result<Permission, Error> {
    let none = |actions: Option<List<String>>| actions.is_none_or(|List(actions)| actions.is_empty());
    if !(none(body.actions) && none(body.not_actions)) {
        // The role would look as if it gave something.
        return Err(bad("actions and notActions must be empty: a pool has data actions alone".into()));
    }
    let data_actions = |names: Option<List<String>>| {
        let parse = |name: &String| {
            DataAction::parse(name).ok_or_else(|| {
                bad(format!("data action `{}` is not known", name.chars().take(100).collect::<String>()))
            })
        };
        names.unwrap_or_default().0.iter().map(parse).collect::<Result<Vec<_>, _>>()
    };
    Ok(Permission {
        data_actions: data_actions(body.data_actions)?,
        not_data_actions: data_actions(body.not_data_actions)?,
    })
}

/// `RSA`, `EC` and `oct` are taken for their `-HSM` forms: there is no other protection here, and common tools send
/// them.
fn parse_spec(kty: Option<&str>, key_size: Option<u32>, crv: Option<&str>) -> Result<KeySpec, Error> {
    match kty {
        None => Err(bad("kty is missing; expected RSA-HSM, EC-HSM or oct-HSM".into())),
        Some("RSA-HSM" | "RSA") => RsaSize::from_bits(key_size.unwrap_or(2048))
            .map(KeySpec::Rsa)
            .ok_or_else(|| bad("key_size of an RSA key must be 2048, 3072 or 4096".into())),
        Some("EC-HSM" | "EC") => Curve::parse(crv.unwrap_or("P-256"))
            .map(KeySpec::Ec)
            .ok_or_else(|| bad("crv must be P-256, P-256K, P-384 or P-521".into())),
        Some("oct-HSM" | "oct") => OctSize::from_bits(key_size.unwrap_or(256))
            .map(KeySpec::Oct)
            .ok_or_else(|| bad("key_size of an oct key must be 128, 192 or 256".into())),
        Some(other) => {
            Err(bad(format!("kty `{}` is not known; expected RSA-HSM, EC-HSM or oct-HSM", shorten(other))))
        }
    }
}

pub(crate) fn parse_sign(body: &[u8]) -> Result<(SignatureAlgorithm, Vec<u8>), Error> {
    let body: UseBody = parse(body)?;
    let algorithm = signature_algorithm(body.alg.as_deref())?;
    let digest =
        check_digest(algorithm, "value", required("value", body.value.as_deref().map(String::as_str))?)?;
    Ok((algorithm, digest))
}

pub(crate) fn parse_verify(body: &[u8]) -> Result<(SignatureAlgorithm, Vec<u8>, Vec<u8>), Error> {
    let body: UseBody = parse(body)?;
    let algorithm = signature_algorithm(body.alg.as_deref())?;
    let digest = check_digest(algorithm, "digest", required("digest", body.digest.as_deref())?)?;
    Ok((algorithm, digest, required("value", body.value.as_deref().map(String::as_str))?))
}

pub(crate) fn parse_encrypt(body: &[u8]) -> Result<(EncryptionAlgorithm, EncryptInput), Error> {
    let body: UseBody = parse(body)?;
    let algorithm = encryption_algorithm(body.alg.as_deref())?;
    let plaintext = SecretBytes::new(required("value", body.value.as_deref().map(String::as_str))?);
    let input = EncryptInput {
        plaintext: Arc::new(plaintext),
        iv: optional("iv", body.iv.as_deref())?,
        additional_data: optional("aad", body.aad.as_deref())?,
    };
    Ok((algorithm, input))
}

pub(crate) fn parse_decrypt(body: &[u8]) -> Result<(EncryptionAlgorithm, DecryptInput), Error> {
    let body: UseBody = parse(body)?;
    let algorithm = encryption_algorithm(body.alg.as_deref())?;
    let input = DecryptInput {
        ciphertext: required("value", body.value.as_deref().map(String::as_str))?,
        iv: optional("iv", body.iv.as_deref())?,
        additional_data: optional("aad", body.aad.as_deref())?,
        tag: optional("tag", body.tag.as_deref())?,
    };
    Ok((algorithm, input))
}

#[derive(Deserialize)]
struct AssignmentBody {
    properties: AssignmentProperties,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentProperties {
    principal_id: String,
    role_definition_id: String,
}

/// `{"properties":{"principalId","roleDefinitionId"}}`; the role is named by the last segment of its id.
pub(crate) fn parse_assignment(scope: Scope, name: Guid, body: &[u8]) -> Result<NewAssignment, Error> {
    let AssignmentBody { properties } = parse(body)?;
    let principal = properties.principal_id.parse();
    let principal = principal.map_err(|error| bad(format!("properties.principalId is {error}")))?;
    let (_, role) =
        properties.role_definition_id.rsplit_once('/').unwrap_or(("", &properties.role_definition_id));
    let role =
        role.parse().map_err(|error| bad(format!("the end of properties.roleDefinitionId is {error}")))?;
    Ok(NewAssignment { name, scope, role, principal })
}

pub(crate) fn assignment(assignment: &RoleAssignment) -> Value {
    json!({
        "id": format!("Microsoft.KeyVault/providers/Microsoft.Authorization/roleAssignments/{}", assignment.name),
        "name": assignment.name.to_string(),
        "type": "Microsoft.Authorization/roleAssignments",
        "properties": {
            "principalId": assignment.principal.to_string(),
            "roleDefinitionId": role_id(assignment.role),
            "scope": assignment.scope.to_string(),
        },
    })
}

pub(crate) fn role(role: &Role) -> Value {
    let names = |actions: &[DataAction]| actions.iter().map(|action| action.as_str()).collect::<Vec<_>>();
    let permission = |allowed: &[DataAction], excluded: &[DataAction]| {
        json!({
            "actions": [],
            "notActions": [],
            "dataActions": names(allowed),
            "notDataActions": names(excluded),
        })
    };
    let (role_type, description, permissions) = match role {
        Role::BuiltIn(role) => {
            let allowed: Vec<_> =
                DataAction::ALL.iter().copied().filter(|action| role.allows(*action)).collect();
            ("AKVBuiltInRole", role.description(), vec![permission(&allowed, &[])])
        }
        Role::Custom(role) => {
            let permissions = role.permissions().iter();
            let permissions = permissions.map(|p| permission(&p.data_actions, &p.not_data_actions));
            ("CustomRole", role.description(), permissions.collect())
        }
    };
    json!({
        "id": role_id(role.id()),
        "name": role.id().to_string(),
        "type": "Microsoft.Authorization/roleDefinitions",
        "properties": {
            "roleName": role.name(),
            "description": description,
            "type": role_type,
            "assignableScopes": ["/"],
            "permissions": permissions,
        },
    })
}

pub(crate) fn setting(view: &SettingView) -> Value {
    let (value, kind) = match &view.value {
        SettingValue::Boolean(value) => (value.to_string(), "boolean"),
        SettingValue::Text(text) => (text.clone(), "string"),
    };
    json!({ "name": view.setting.name(), "value": value, "type": kind })
}

/// Booleans alone, which the service's all are: Java's client throws away the whole list for one that is not. The others are
/// read by name.
pub(crate) fn settings(views: &[SettingView]) -> Value {
    let booleans = views.iter().filter(|view| matches!(view.value, SettingValue::Boolean(_)));
    json!({ "settings": booleans.map(setting).collect::<Vec<_>>() })
}

pub(crate) fn domain_status(status: DomainStatus) -> Value {
    let word = match status {
        DomainStatus::InProgress => "InProgress",
        DomainStatus::Success => "Success",
    };
    json!({ "status": word, "status_details": "" })
}

pub(crate) fn domain(view: &DomainView) -> Value {
    json!({
        "securityDomainId": view.security_domain.to_string(),
        "fingerprint": view.fingerprint,
        "confirmed": view.confirmed,
    })
}

pub(crate) fn transfer_key(key: &TransferKey) -> Value {
    serde_json::from_str(&key.to_response()).unwrap_or_default()
}

pub(crate) fn not_before(view: &NotBefore) -> Value {
    json!({ "principalId": view.principal.to_string(), "notBefore": view.not_before.unix_seconds() })
}

pub(crate) fn list(items: Vec<Value>) -> Value {
    page(items, None)
}

pub(crate) fn page(items: Vec<Value>, next_link: Option<String>) -> Value {
    json!({ "value": items, "nextLink": next_link })
}

/// A list's item for a key: its base identifier, and the attributes of its current version.
pub(crate) fn key_item(origin: &str, view: &KeyView) -> Value {
    item(format!("{origin}/keys/{}", view.version.name), view)
}

pub(crate) fn version_item(origin: &str, view: &KeyView) -> Value {
    item(kid(origin, &view.version.name, view.version.version), view)
}

pub(crate) fn deleted_item(origin: &str, view: &DeletedKeyView) -> Value {
    with_deletion(origin, key_item(origin, &view.key), view)
}

pub(crate) fn deleted_bundle(origin: &str, view: &DeletedKeyView) -> Value {
    with_deletion(origin, json!(KeyBundle::new(origin, &view.key)), view)
}

fn item(kid: String, view: &KeyView) -> Value {
    with_tags(json!({ "kid": kid, "attributes": Attributes::new(view) }), &view.version.tags)
}

fn with_deletion(origin: &str, mut value: Value, view: &DeletedKeyView) -> Value {
    value["recoveryId"] = format!("{origin}/deletedkeys/{}", view.key.version.name).into();
    value["deletedDate"] = view.deleted_at.unix_seconds().into();
    value["scheduledPurgeDate"] = view.purge_at.unix_seconds().into();
    value
}

fn with_tags(mut value: Value, tags: &Tags) -> Value {
    if !tags.is_empty() {
        let tags: Map<String, Value> =
            tags.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        value["tags"] = Value::Object(tags);
    }
    value
}

fn role_id(id: Guid) -> String {
    format!("Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{id}")
}

/// The bundle with its attestation, in base64url (behaviour section 21).
pub(crate) fn attested_key(origin: &str, attested: &AttestedKey) -> Value {
    let KeyAttestation { certificates, private, public } = &attested.attestation;
    let mut members = json!({
        "certificatePemFile": encode(certificates.as_bytes()),
        "privateKeyAttestation": encode(private),
        "version": service::ATTESTATION_VERSION,
    });
    if let Some(public) = public {
        members["publicKeyAttestation"] = encode(public).into();
    }
    let mut bundle = json!(KeyBundle::new(origin, &attested.key));
    bundle["attributes"]["attestation"] = members;
    bundle
}

pub(crate) fn key_backup(blob: &[u8]) -> Value {
    json!({ "value": encode(blob) })
}

pub(crate) fn random(bytes: &SecretBytes) -> Value {
    json!({ "value": encode(bytes.danger_expose()) })
}

/// Behaviour section 6.3.
pub(crate) fn recovery_level(view: &KeyView) -> &'static str {
    match (view.retention.days() == 90, view.purge_protection) {
        (true, false) => "Recoverable+Purgeable",
        (true, true) => "Recoverable",
        (false, false) => "CustomizedRecoverable+Purgeable",
        (false, true) => "CustomizedRecoverable",
    }
}

pub(crate) fn kid(origin: &str, name: &KeyName, version: KeyVersion) -> String {
    format!("{origin}/keys/{name}/{version}")
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    BASE64URL.encode(bytes)
}

fn signature_algorithm(text: Option<&str>) -> Result<SignatureAlgorithm, Error> {
    let text = text.ok_or_else(|| bad("alg is missing".into()))?;
    SignatureAlgorithm::parse(text)
        .ok_or_else(|| bad(format!("alg `{}` is not a signature algorithm", shorten(text))))
}

fn encryption_algorithm(text: Option<&str>) -> Result<EncryptionAlgorithm, Error> {
    let text = text.ok_or_else(|| bad("alg is missing".into()))?;
    EncryptionAlgorithm::parse(text)
        .ok_or_else(|| bad(format!("alg `{}` is not an encryption or key wrap algorithm", shorten(text))))
}

fn check_digest(algorithm: SignatureAlgorithm, member: &str, digest: Vec<u8>) -> Result<Vec<u8>, Error> {
    match algorithm.digest_bytes() {
        Some(expected) if expected != digest.len() => Err(bad(format!(
            "{member} must be a digest of {expected} bytes for {}, not {} bytes",
            algorithm.as_str(),
            digest.len()
        ))),
        Some(_) | None => Ok(digest),
    }
}

pub(crate) fn required(member: &str, text: Option<&str>) -> Result<Vec<u8>, Error> {
    optional(member, text)?.ok_or_else(|| bad(format!("{member} is missing")))
}

fn optional(member: &str, text: Option<&str>) -> Result<Option<Vec<u8>>, Error> {
    let decode = |text: &str| BASE64URL.decode(text).map_err(|_| bad(format!("{member} is not base64url")));
    text.map(decode).transpose()
}

/// Says where and what was expected, and never what was found: that may be a secret in the wrong place.
pub(crate) fn parse<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        let reason = match error.classify() {
            serde_json::error::Category::Data => match text.find("expected") {
                Some(start) => text[start..].to_owned(),
                None if text.starts_with("missing field") => text,
                None => format!("unexpected content at line {} column {}", error.line(), error.column()),
            },
            serde_json::error::Category::Syntax
            | serde_json::error::Category::Eof
            | serde_json::error::Category::Io => {
                format!("malformed JSON at line {} column {}", error.line(), error.column())
            }
        };
        bad(format!("the request body is not as expected: {reason}"))
    })
}

/// At most [`MAX_ITEMS`]: no more are kept before it is clear that there are too many.
#[derive(Clone)]
pub(crate) struct List<T>(pub Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ListVisitor(PhantomData))
    }
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_ITEMS} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<List<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MAX_ITEMS {
                return Err(A::Error::invalid_length(MAX_ITEMS + 1, &self));
            }
            list.push(item);
        }
        Ok(List(list))
    }
}

pub(crate) fn bad(message: String) -> Error {
    Error::BadParameter(message)
}

/// Enough of a wrong value to recognise it.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_import::{self, Import};
    use proptest::prelude::*;

    fn message(result: Result<impl Sized, Error>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_refusal_says_what_was_wrong_and_not_what_was_there() {
        for (body, expected) in [
            (r#"{"alg":"RS256","value":"#, "malformed JSON at line 1 column 2"),
            (r#"[]"#, "expected"),
            (r#"{"alg":5,"value":"aa"}"#, "expected a string"),
            (r#"{"value":"aa"}"#, "alg is missing"),
            (r#"{"alg":"RS257","value":"aa"}"#, "alg `RS257` is not a signature algorithm"),
            (r#"{"alg":"RS256"}"#, "value is missing"),
            (r#"{"alg":"RS256","value":"+/=="}"#, "value is not base64url"),
            (
                r#"{"alg":"RS256","value":"AAAA"}"#,
                "value must be a digest of 32 bytes for RS256, not 3 bytes",
            ),
        ] {
            assert!(message(parse_sign(body.as_bytes())).contains(expected), "{body}");
        }
        let secret = r#"{"alg":"A256KW","value":{"secret":"hunter2"},"iv":"hunter2"}"#;
        assert!(!message(parse_encrypt(secret.as_bytes())).contains("hunter2"));
        assert!(
            !message(parse_encrypt(br#"{"attributes":"x","alg":"A256KW","value":["hunter2"]}"#))
                .contains("hunter2")
        );
    }

    #[test]
    fn a_list_has_at_most_a_thousand_items() {
        let update = |count| json!({ "key_ops": vec!["sign"; count] }).to_string();
        assert!(parse_update(update(MAX_ITEMS).as_bytes()).is_ok());
        let refused = message(parse_update(update(MAX_ITEMS + 1).as_bytes()));
        assert!(refused.contains("expected a list of at most 1000 items"), "{refused}");
    }

    #[test]
    fn base64url_is_read_with_and_without_padding_and_strictly() {
        for (text, expected) in
            [("AQI", Some(vec![1, 2])), ("AQI=", Some(vec![1, 2])), ("AQJ", None), ("A+I", None), ("A", None)]
        {
            assert_eq!(optional("value", Some(text)).ok().flatten(), expected, "{text}");
        }
    }

    #[test]
    fn key_types_are_understood_in_both_spellings() {
        let spec = |kty, size, crv| {
            parse_spec(Some(kty), size, crv).map(|spec| spec.to_string()).map_err(|e| e.to_string())
        };
        assert_eq!(spec("RSA-HSM", None, None).unwrap(), "RSA-HSM 2048");
        assert_eq!(spec("EC", Some(2048), None).unwrap(), "EC-HSM P-256");
        assert_eq!(spec("EC-HSM", None, Some("SECP256K1")).unwrap(), "EC-HSM P-256K");
        assert_eq!(spec("oct-HSM", Some(192), None).unwrap(), "oct-HSM 192");
        assert!(spec("RSA-HSM", Some(1024), None).unwrap_err().contains("2048, 3072 or 4096"));
        assert!(spec("DSA", None, None).unwrap_err().contains("`DSA` is not known"));
    }

    fn parse_everything(body: &[u8]) {
        let _ = parse_create("n".parse().unwrap(), body);
        let _ = parse_update(body);
        let _ = parse_sign(body);
        let _ = parse_verify(body);
        let _ = parse_encrypt(body);
        let _ = parse_decrypt(body);
        let _ = parse_random(body);
        let _ = parse_setting(body);
        let _ = parse_not_before(body);
        let _ = parse_download(body);
        let _ = parse_upload(body);
        let _ = parse_restore(body);
        let _ = parse_role(Guid::NIL, body);
        let _ = parse_assignment(Scope::Root, Guid::NIL, body);
    }

    #[test]
    fn a_role_that_would_look_like_more_than_it_gives_is_refused() {
        let role = |properties: Value| {
            let body = serde_json::to_vec(&json!({ "properties": properties })).unwrap();
            parse_role(Guid::NIL, &body).map(|role| role.name().to_owned()).map_err(|e| e.to_string())
        };
        let sign = "microsoft.keyvault/managedHSM/keys/SIGN/action";
        for unnamed in [json!({}), json!({"roleName": ""})] {
            assert_eq!(role(unnamed), Ok(Guid::NIL.to_string()));
        }
        assert_eq!(role(json!({"roleName": "r", "permissions": [{"dataActions": [sign]}]})), Ok("r".into()));
        for (properties, expected) in [
            (json!({"roleName": "r".repeat(129)}), "1 to 128 characters"),
            (json!({"roleName": "r", "permissions": [{"actions": ["*"]}]}), "must be empty"),
            (json!({"roleName": "r", "permissions": [{"dataActions": ["*"]}]}), "`*` is not known"),
            (json!({"roleName": "r", "assignableScopes": ["/keys"]}), "their scope is `/`"),
        ] {
            assert!(role(properties.clone()).unwrap_err().contains(expected), "{properties}");
        }
    }

    #[test]
    fn an_empty_list_of_operations_is_the_default_of_a_new_key_and_takes_all_from_an_old_one() {
        let name: KeyName = "k".parse().unwrap();
        let created = parse_create(name.clone(), br#"{"kty":"EC-HSM","crv":"P-256","key_ops":[]}"#).unwrap();
        assert_eq!(created.operations, None);
        let oct = br#"{"key":{"kty":"oct-HSM","k":"AAAAAAAAAAAAAAAAAAAAAA","key_ops":[]}}"#;
        let Ok(Import::Parts(imported)) = key_import::parse(name, oct) else { unreachable!() };
        assert_eq!(imported.new.operations, None);
        assert_eq!(parse_update(br#"{"key_ops":[]}"#).unwrap().operations, Some(KeyOperations::NONE));
    }

    #[test]
    fn filters_are_those_of_the_service_or_refused() {
        let id: Guid = "11111111-2222-3333-4444-555555555555".parse().unwrap();
        assert_eq!(assignment_filter("").unwrap(), AssignmentFilter::Here);
        assert_eq!(assignment_filter("atScope()").unwrap(), AssignmentFilter::Counting);
        for text in [format!("principalId eq '{id}'"), format!("principalId eq {id}")] {
            assert_eq!(assignment_filter(&text).unwrap(), AssignmentFilter::Of(id), "{text}");
        }
        for text in ["principalId eq ''", "principalId eq 'x'", "principalId ne 'x'", "atScope", "true"] {
            assert!(assignment_filter(text).unwrap_err().to_string().contains("$filter"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_everything(&body);
        }

        #[test]
        fn arbitrary_members_never_panic(
            alg in "(RS256|A256GCM|[a-zA-Z0-9_-]{0,10})", value in "[A-Za-z0-9_=+-]{0,80}", extra in "\\PC{0,20}",
        ) {
            let body = json!({
                "alg": alg, "value": value, "digest": value, "iv": extra, "kty": extra, "tags": {"a": extra},
                "key_ops": [alg], "count": value.len(), "attributes": {"nbf": value.len()},
                "properties": {
                    "roleName": extra, "permissions": [{"dataActions": [value]}], "principalId": value,
                    "roleDefinitionId": extra,
                },
            });
            parse_everything(&serde_json::to_vec(&body).unwrap());
        }
    }
}
