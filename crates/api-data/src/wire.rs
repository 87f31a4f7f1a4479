//! JSON bodies, in and out. Members that we do not know are ignored, as clients are newer than servers.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use domain::access::{BuiltInRole, DataAction, RoleAssignment, Scope};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::guid::Guid;
use domain::key::{KeyOperation, PublicKey, Tags};
use domain::name::KeyName;
use domain::time::IntDate;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use service::{DecryptInput, EncryptInput, Error, KeyView, NewAssignment, NewKey, SecretBytes, UsedKey};
use std::collections::BTreeMap;
use std::sync::Arc;
use zeroize::Zeroizing;

/// base64url (RFC 4648 section 5): written without padding, read with or without; strict about unused bits.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Deserialize)]
struct CreateBody {
    kty: Option<String>,
    key_size: Option<u32>,
    crv: Option<String>,
    public_exponent: Option<u64>,
    key_ops: Option<Vec<String>>,
    attributes: Option<AttributesBody>,
    tags: Option<BTreeMap<String, String>>,
    release_policy: Option<Value>,
}

#[derive(Default, Deserialize)]
struct AttributesBody {
    enabled: Option<bool>,
    nbf: Option<i64>,
    exp: Option<i64>,
    exportable: Option<bool>,
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
    if body.release_policy.is_some_and(|policy| !policy.is_null()) || attributes.exportable == Some(true) {
        return Err(bad("release_policy and attributes.exportable are not supported by this release".into()));
    }
    let operations = body.key_ops.map(|operations| {
        let parse = |text: &String| {
            KeyOperation::parse(text)
                .ok_or_else(|| bad(format!("key_ops value `{}` is not known", shorten(text))))
        };
        operations.iter().map(parse).collect::<Result<_, _>>()
    });
    Ok(NewKey {
        name,
        spec: parse_spec(body.kty.as_deref(), body.key_size, body.crv.as_deref())?,
        public_exponent: body.public_exponent,
        operations: operations.transpose()?,
        enabled: attributes.enabled.unwrap_or(true),
        not_before: attributes.nbf.map(IntDate::from_unix_seconds),
        expires: attributes.exp.map(IntDate::from_unix_seconds),
        exportable: false,
        tags: Tags::new(body.tags.unwrap_or_default())?,
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

pub(crate) fn role(role: BuiltInRole) -> Value {
    let actions: Vec<_> =
        DataAction::ALL.iter().filter(|action| role.allows(**action)).map(|action| action.as_str()).collect();
    json!({
        "id": role_id(role.id()),
        "name": role.id().to_string(),
        "type": "Microsoft.Authorization/roleDefinitions",
        "properties": {
            "roleName": role.name(),
            "description": "",
            "type": "AKVBuiltInRole",
            "assignableScopes": ["/"],
            "permissions": [
                { "actions": [], "notActions": [], "dataActions": actions, "notDataActions": [] }
            ],
        },
    })
}

pub(crate) fn list(items: Vec<Value>) -> Value {
    json!({ "value": items, "nextLink": null })
}

fn role_id(id: Guid) -> String {
    format!("Microsoft.KeyVault/providers/Microsoft.Authorization/roleDefinitions/{id}")
}

/// A key bundle. `origin` is `https://` and the host as the client wrote it.
pub(crate) fn key_bundle(origin: &str, view: &KeyView) -> Value {
    let version = &view.version;
    let mut key = json!({
        "kid": kid(origin, &version.name, &version.version.to_string()),
        "kty": version.spec.key_type(),
        "key_ops": version.operations.iter().map(KeyOperation::as_str).collect::<Vec<_>>(),
    });
    match &version.public {
        PublicKey::Rsa { modulus, exponent } => {
            key["n"] = encode(modulus).into();
            key["e"] = encode(exponent).into();
        }
        PublicKey::Ec { curve, x, y } => {
            key["crv"] = curve.as_str().into();
            key["x"] = encode(x).into();
            key["y"] = encode(y).into();
        }
        PublicKey::Oct => {}
    }
    let mut bundle = json!({ "key": key, "attributes": attributes(view) });
    if !version.tags.is_empty() {
        let tags: Map<String, Value> =
            version.tags.iter().map(|(name, value)| (name.clone(), value.clone().into())).collect();
        bundle["tags"] = Value::Object(tags);
    }
    bundle
}

pub(crate) fn used_key(origin: &str, used: &UsedKey<impl AsRef<[u8]>>) -> Value {
    json!({ "kid": kid(origin, &used.name, &used.version.to_string()), "value": encode(used.result.as_ref()) })
}

pub(crate) fn decrypted(origin: &str, used: &UsedKey<SecretBytes>) -> Value {
    json!({
        "kid": kid(origin, &used.name, &used.version.to_string()),
        "value": encode(used.result.danger_expose()),
    })
}

pub(crate) fn encrypted(
    origin: &str,
    used: &UsedKey<service::Ciphertext>,
    additional_data: Option<&[u8]>,
) -> Value {
    let ciphertext = &used.result;
    let mut body = json!({
        "kid": kid(origin, &used.name, &used.version.to_string()),
        "value": encode(&ciphertext.bytes),
    });
    let parts = [
        ("iv", ciphertext.iv.as_deref()),
        ("tag", ciphertext.tag.as_deref()),
        ("aad", additional_data.filter(|_| ciphertext.tag.is_some())),
    ];
    for (name, part) in parts {
        if let Some(part) = part {
            body[name] = encode(part).into();
        }
    }
    body
}

fn attributes(view: &KeyView) -> Value {
    let held = &view.version.attributes;
    let mut attributes = json!({
        "enabled": held.enabled,
        "created": held.created.unix_seconds(),
        "updated": held.updated.unix_seconds(),
        "recoveryLevel": recovery_level(view),
        "recoverableDays": view.retention.days(),
        "exportable": held.exportable,
    });
    for (name, date) in [("nbf", held.not_before), ("exp", held.expires)] {
        if let Some(date) = date {
            attributes[name] = date.unix_seconds().into();
        }
    }
    attributes
}

/// Behaviour section 6.3.
fn recovery_level(view: &KeyView) -> &'static str {
    match (view.retention.days() == 90, view.purge_protection) {
        (true, false) => "Recoverable+Purgeable",
        (true, true) => "Recoverable",
        (false, false) => "CustomizedRecoverable+Purgeable",
        (false, true) => "CustomizedRecoverable",
    }
}

fn kid(origin: &str, name: &KeyName, version: &str) -> String {
    format!("{origin}/keys/{name}/{version}")
}

fn encode(bytes: &[u8]) -> String {
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

fn required(member: &str, text: Option<&str>) -> Result<Vec<u8>, Error> {
    optional(member, text)?.ok_or_else(|| bad(format!("{member} is missing")))
}

fn optional(member: &str, text: Option<&str>) -> Result<Option<Vec<u8>>, Error> {
    let decode = |text: &str| BASE64URL.decode(text).map_err(|_| bad(format!("{member} is not base64url")));
    text.map(decode).transpose()
}

/// Says where and what was expected, and never what was found: that may be a secret in the wrong place.
fn parse<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, Error> {
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

fn bad(message: String) -> Error {
    Error::BadParameter(message)
}

/// Enough of a wrong value to recognise it.
fn shorten(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
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

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_create("n".parse().unwrap(), &body);
            let _ = parse_sign(&body);
            let _ = parse_verify(&body);
            let _ = parse_encrypt(&body);
            let _ = parse_decrypt(&body);
        }

        #[test]
        fn arbitrary_members_never_panic(
            alg in "(RS256|A256GCM|[a-zA-Z0-9_-]{0,10})", value in "[A-Za-z0-9_=+-]{0,80}", extra in "\\PC{0,20}",
        ) {
            let body = json!({"alg": alg, "value": value, "digest": value, "iv": extra, "kty": extra, "tags": {"a": extra}});
            let body = serde_json::to_vec(&body).unwrap();
            let _ = parse_create("n".parse().unwrap(), &body);
            let _ = parse_sign(&body);
            let _ = parse_verify(&body);
            let _ = parse_encrypt(&body);
            let _ = parse_decrypt(&body);
        }
    }
}
