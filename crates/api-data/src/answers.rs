//! The bodies that leave most often, written without a tree of values in between. Members are in alphabetical order, as
//! they are in every other body.

use crate::release;
use crate::wire::{encode, kid, recovery_level};
use bytes::Bytes;
use domain::key::{KeyOperation, PublicKey, Tags};
use serde::{Serialize, Serializer};
use serde_json::Value;
use service::{Ciphertext, KeyView, SecretBytes, UsedKey};

/// Most bodies fit.
const USUAL_BYTES: usize = 768;

/// The text of a body.
pub(crate) struct Json(Vec<u8>);

impl Json {
    fn of(body: &impl Serialize) -> Self {
        let mut text = Vec::with_capacity(USUAL_BYTES);
        serde_json::to_writer(&mut text, body).expect("bodies have text for names, and memory takes all");
        Self(text)
    }
}

impl From<Value> for Json {
    fn from(value: Value) -> Self {
        Self::of(&value)
    }
}

impl From<Json> for Bytes {
    fn from(Json(text): Json) -> Self {
        text.into()
    }
}

/// A key's bundle. `origin` is `https://` and the host as the client wrote it.
#[derive(Serialize)]
pub(crate) struct KeyBundle<'a> {
    attributes: Attributes,
    key: WebKey,
    #[serde(skip_serializing_if = "Option::is_none")]
    release_policy: Option<Value>,
    #[serde(skip_serializing_if = "Tags::is_empty", serialize_with = "tags")]
    tags: &'a Tags,
}

#[derive(Serialize)]
pub(crate) struct Attributes {
    created: i64,
    enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    exp: Option<i64>,
    exportable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    #[serde(rename = "recoverableDays")]
    recoverable_days: u8,
    #[serde(rename = "recoveryLevel")]
    recovery_level: &'static str,
    updated: i64,
}

#[derive(Serialize)]
struct WebKey {
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
    key_ops: Vec<&'static str>,
    kid: String,
    kty: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
}

#[derive(Serialize)]
struct UsedKeyBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    kid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    value: String,
}

impl<'a> KeyBundle<'a> {
    pub fn new(origin: &str, view: &'a KeyView) -> Self {
        let version = &view.version;
        let mut key = WebKey {
            crv: None,
            e: None,
            key_ops: version.operations.iter().map(KeyOperation::as_str).collect(),
            kid: kid(origin, &version.name, version.version),
            kty: version.spec.key_type(),
            n: None,
            x: None,
            y: None,
        };
        match &version.public {
            PublicKey::Rsa { modulus, exponent } => {
                (key.n, key.e) = (Some(encode(modulus)), Some(encode(exponent)));
            }
            PublicKey::Ec { curve, x, y } => {
                (key.crv, key.x, key.y) = (Some(curve.as_str()), Some(encode(x)), Some(encode(y)));
            }
            PublicKey::Oct => {}
        }
        let release_policy = version.release.as_ref().map(release::policy_value);
        Self { attributes: Attributes::new(view), key, release_policy, tags: &version.tags }
    }
}

impl Attributes {
    pub fn new(view: &KeyView) -> Self {
        let held = &view.version.attributes;
        Self {
            created: held.created.unix_seconds(),
            enabled: held.enabled,
            exp: held.expires.map(|date| date.unix_seconds()),
            exportable: held.exportable,
            nbf: held.not_before.map(|date| date.unix_seconds()),
            recoverable_days: view.retention.days(),
            recovery_level: recovery_level(view),
            updated: held.updated.unix_seconds(),
        }
    }
}

fn tags<S: Serializer>(tags: &Tags, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tags.iter())
}

pub(crate) fn key_bundle(origin: &str, view: &KeyView) -> Json {
    Json::of(&KeyBundle::new(origin, view))
}

pub(crate) fn used_key(origin: &str, used: &UsedKey<impl AsRef<[u8]>>) -> Json {
    Json::of(&used_key_body(origin, used, used.result.as_ref()))
}

pub(crate) fn decrypted(origin: &str, used: &UsedKey<SecretBytes>) -> Json {
    Json::of(&used_key_body(origin, used, used.result.danger_expose()))
}

/// `additional_data` is shown to the caller again where the algorithm took it.
pub(crate) fn encrypted(origin: &str, used: &UsedKey<Ciphertext>, additional_data: Option<&[u8]>) -> Json {
    let ciphertext = &used.result;
    Json::of(&UsedKeyBody {
        aad: additional_data.filter(|_| ciphertext.tag.is_some()).map(encode),
        iv: ciphertext.iv.as_deref().map(encode),
        tag: ciphertext.tag.as_deref().map(encode),
        ..used_key_body(origin, used, &ciphertext.bytes)
    })
}

fn used_key_body<T>(origin: &str, used: &UsedKey<T>, value: &[u8]) -> UsedKeyBody {
    let kid = kid(origin, &used.name, used.version);
    UsedKeyBody { aad: None, iv: None, kid, tag: None, value: encode(value) }
}
