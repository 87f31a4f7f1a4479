//! `holdfast key import`: a key of somebody's own, handed in over the wire API.

use super::key::{Changes, KeyType, parse_curve};
use super::release::PolicyArguments;
use super::{input, usage};
use crate::CommandError;
use crate::private_key_file;
use bytes::Bytes;
use domain::algorithm::Curve;
use domain::name::KeyName;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use time::OffsetDateTime;
use zeroize::Zeroizing;

#[derive(clap::Args)]
pub struct Import {
    name: KeyName,
    #[command(flatten)]
    source: Source,
    /// Of a PEM file that is encrypted: the first line of a file, or of a descriptor as /dev/fd/3, instead of asking.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["raw", "jwk", "byok_file"])]
    passphrase_file: Option<PathBuf>,
    /// Of a wrapped key: RSA-HSM, EC-HSM or oct-HSM. The others say it themselves.
    #[arg(long = "type", value_name = "TYPE", value_parser = KeyType::parse)]
    #[arg(conflicts_with_all = ["pem", "raw", "jwk"])]
    key_type: Option<KeyType>,
    /// Of a wrapped key of type EC-HSM: P-256, P-256K, P-384, P-521.
    #[arg(long, value_parser = parse_curve, conflicts_with_all = ["pem", "raw", "jwk"])]
    curve: Option<Curve>,
    #[command(flatten)]
    changes: Changes,
    /// May be given to whoever meets the release policy. Goes with --policy, and never changes.
    #[arg(long)]
    exportable: bool,
    #[command(flatten)]
    policy: PolicyArguments,
    /// Not to be used until it is enabled.
    #[arg(long)]
    disabled: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Source {
    /// An RSA or EC private key.
    #[arg(long, value_name = "FILE")]
    pem: Option<PathBuf>,
    /// A symmetric key of 16, 24 or 32 bytes, as they are.
    #[arg(long, value_name = "FILE")]
    raw: Option<PathBuf>,
    /// A JSON Web Key with its private members. What it may do stands in its key_ops.
    #[arg(long, value_name = "FILE", conflicts_with = "ops")]
    jwk: Option<PathBuf>,
    /// A key that is wrapped for a key of the pool. Goes with --type.
    #[arg(long, value_name = "FILE", requires = "key_type")]
    byok_file: Option<PathBuf>,
}

impl Import {
    pub(super) fn name(&self) -> &KeyName {
        &self.name
    }

    /// Wiped once it was sent.
    pub(super) fn body(&self, now: OffsetDateTime) -> Result<Bytes, CommandError> {
        let mut rest = json!({});
        self.changes.put_into(&mut rest, now)?;
        self.policy.put_new_into(self.exportable, &mut rest)?;
        if self.disabled {
            rest["attributes"]["enabled"] = false.into();
        }
        let operations = rest.as_object_mut().and_then(|rest| rest.remove("key_ops"));
        let Source { pem, raw, jwk, byok_file } = &self.source;
        match (pem, raw, jwk, byok_file) {
            (Some(path), ..) => {
                let key = private_key_file::read_pem(path, self.passphrase_file.as_ref())?;
                join(key.danger_json_web_key().danger_expose(), operations, &rest)
            }
            (_, Some(path), ..) => {
                let key = private_key_file::read_raw(path)?;
                join(key.danger_json_web_key().danger_expose(), operations, &rest)
            }
            (_, _, Some(path), _) => {
                let text = input::read_key_file(path)?;
                // No more of it than that it is an object: what the parser would say of the rest may be a secret.
                if serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(&text).is_err() {
                    return Err(usage(format!("{} is not a JSON Web Key", path.display())));
                }
                join(text.trim_ascii(), operations, &rest)
            }
            (.., Some(path)) => {
                let file = input::encode(&input::read_key_file(path)?);
                let mut key = json!({ "kty": self.key_type.map(KeyType::as_str), "key_hsm": file.as_str() });
                if let Some(curve) = self.curve {
                    key["crv"] = curve.as_str().into();
                }
                join(key.to_string().as_bytes(), operations, &rest)
            }
            (None, None, None, None) => Err(usage("a key to import was not given".into())),
        }
    }
}

/// A body from the texts of two objects, so that what is secret in the first is neither parsed nor copied.
fn join(key: &[u8], operations: Option<Value>, rest: &Value) -> Result<Bytes, CommandError> {
    let operations = operations.map(|names| format!("\"key_ops\":{names},")).unwrap_or_default();
    let members = key.strip_prefix(b"{").ok_or("the key is not an object")?;
    let rest = rest.to_string();
    let rest = match rest.trim_start_matches('{') {
        "}" => "}".to_owned(),
        members => format!(",{members}"),
    };
    let parts = [b"{\"key\":{", operations.as_bytes(), members, rest.as_bytes()];
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut body = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| body.extend_from_slice(part));
    Ok(Bytes::from_owner(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_body_make_one_object() {
        let key = br#"{"kty":"oct-HSM","k":"AAAA"}"#;
        let body = |operations, rest| -> Value {
            serde_json::from_slice(&join(key, operations, &rest).unwrap()).unwrap()
        };
        assert_eq!(body(None, json!({})), json!({ "key": { "kty": "oct-HSM", "k": "AAAA" } }));
        assert_eq!(
            body(Some(json!(["sign"])), json!({ "attributes": { "enabled": false }, "tags": { "a": "{" } })),
            json!({
                "key": { "key_ops": ["sign"], "kty": "oct-HSM", "k": "AAAA" },
                "attributes": { "enabled": false }, "tags": { "a": "{" },
            })
        );
        assert!(join(b"[]", None, &json!({})).is_err());
    }
}
