//! `PUT /keys/{name}`: a private key in a body. Its private members go from the request's buffer into [`SecretBytes`], with
//! no copy between, and are numbers to nobody here.

use crate::byok;
use crate::release::{self, PolicyBody};
use crate::wire::{AttributesBody, BASE64URL, List, bad, first_operations, required, shorten};
use base64::Engine as _;
use domain::algorithm::Curve;
use domain::key::Tags;
use domain::name::KeyName;
use domain::time::IntDate;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer};
use service::{
    EcParts, Error, ImportedKey, NewKey, PrivateParts, RsaParts, SecretBytes, WrappedKey, WrappedKind,
};
use std::collections::BTreeMap;
use std::fmt;

/// The longest private number of any key is as long as a modulus of 4096 bits, and may have a leading zero.
const MAX_MEMBER_BYTES: usize = 4096 / 8 + 1;

/// `Hsm` is not read: whatever it says, a pool's keys are protected ones. The Azure CLI sends `false`.
#[derive(Deserialize)]
struct ImportBody {
    key: KeyBody,
    attributes: Option<AttributesBody>,
    tags: Option<BTreeMap<String, String>>,
    release_policy: Option<PolicyBody>,
}

/// A JSON Web Key (RFC 7517).
#[derive(Deserialize)]
struct KeyBody {
    kty: Option<String>,
    key_ops: Option<List<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Secret>,
    p: Option<Secret>,
    q: Option<Secret>,
    dp: Option<Secret>,
    dq: Option<Secret>,
    qi: Option<Secret>,
    k: Option<Secret>,
    key_hsm: Option<String>,
}

/// A member that nobody but the key's owner may know.
struct Secret(SecretBytes);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(SecretVisitor).map(Secret)
    }
}

struct SecretVisitor;

impl<'de> Visitor<'de> for SecretVisitor {
    type Value = SecretBytes;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("base64url")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
        let longest = base64::decoded_len_estimate(text.len());
        if longest > MAX_MEMBER_BYTES + 3 {
            return Err(E::custom("expected private members of at most 512 bytes"));
        }
        let mut bytes = SecretBytes::zeroed(longest);
        // The library's error tells where it stumbled, and over what.
        let written = BASE64URL
            .decode_slice(text, bytes.danger_expose_mut())
            .map_err(|_| E::custom("expected base64url in private members"))?;
        bytes.truncate(written);
        Ok(bytes)
    }

    /// Text with escapes, which the parser has put together in a buffer that nobody wipes. No client writes any.
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("expected base64url without escapes in private members"))
    }
}

/// What an import brings: parts in the clear, or wrapped for a key of the pool.
pub(crate) enum Import {
    Parts(ImportedKey),
    Wrapped(WrappedKey),
}

pub(crate) fn parse(name: KeyName, body: &[u8]) -> Result<Import, Error> {
    let body: ImportBody = crate::wire::parse(body)?;
    let attributes = body.attributes.unwrap_or_default();
    let exportable = attributes.exportable.unwrap_or(false);
    let release = release::policy(body.release_policy)?;
    let operations = first_operations(body.key.key_ops.clone())?;
    if let Some(file) = &body.key.key_hsm {
        let (kek, ciphertext) = byok::parse(file)?;
        return Ok(Import::Wrapped(WrappedKey {
            name,
            kind: wrapped_kind(&body.key)?,
            kek,
            ciphertext,
            operations,
            enabled: attributes.enabled.unwrap_or(true),
            not_before: attributes.nbf.map(IntDate::from_unix_seconds),
            expires: attributes.exp.map(IntDate::from_unix_seconds),
            exportable,
            release,
            tags: Tags::new(body.tags.unwrap_or_default())?,
        }));
    }
    let parts = parts(body.key)?;
    let new = NewKey {
        name,
        spec: parts.spec()?,
        public_exponent: None,
        operations,
        enabled: attributes.enabled.unwrap_or(true),
        not_before: attributes.nbf.map(IntDate::from_unix_seconds),
        expires: attributes.exp.map(IntDate::from_unix_seconds),
        exportable,
        release,
        tags: Tags::new(body.tags.unwrap_or_default())?,
    };
    Ok(Import::Parts(ImportedKey { new, parts }))
}

/// What a wrapped key is said to be. The Azure CLI names a curve for every type.
fn wrapped_kind(key: &KeyBody) -> Result<WrappedKind, Error> {
    if key.d.is_some() || key.k.is_some() {
        return Err(bad("key.key_hsm stands beside no private member".into()));
    }
    match key.kty.as_deref() {
        Some("RSA" | "RSA-HSM") => Ok(WrappedKind::Rsa),
        Some("EC" | "EC-HSM") => key
            .crv
            .as_deref()
            .and_then(Curve::parse)
            .map(WrappedKind::Ec)
            .ok_or_else(|| bad("key.crv must be P-256, P-256K, P-384 or P-521".into())),
        Some("oct" | "oct-HSM") => Ok(WrappedKind::Oct),
        Some(_) | None => Err(bad("key.kty must be RSA-HSM, EC-HSM or oct-HSM".into())),
    }
}

fn parts(key: KeyBody) -> Result<PrivateParts, Error> {
    if key.k.is_some() && !matches!(key.kty.as_deref(), Some("oct" | "oct-HSM")) {
        return Err(bad("key.k goes with a key.kty of oct-HSM alone".into()));
    }
    match key.kty.as_deref() {
        Some("RSA" | "RSA-HSM") => Ok(PrivateParts::Rsa(RsaParts {
            n: required("key.n", key.n.as_deref())?,
            e: required("key.e", key.e.as_deref())?,
            d: private("key.d", key.d)?,
            p: private("key.p", key.p)?,
            q: private("key.q", key.q)?,
            dp: key.dp.map(|Secret(bytes)| bytes),
            dq: key.dq.map(|Secret(bytes)| bytes),
            qi: key.qi.map(|Secret(bytes)| bytes),
        })),
        Some("EC" | "EC-HSM") => Ok(PrivateParts::Ec(EcParts {
            curve: key
                .crv
                .as_deref()
                .and_then(Curve::parse)
                .ok_or_else(|| bad("key.crv must be P-256, P-256K, P-384 or P-521".into()))?,
            x: required("key.x", key.x.as_deref())?,
            y: required("key.y", key.y.as_deref())?,
            d: private("key.d", key.d)?,
        })),
        // The service's own documents bring symmetric keys by BYOK alone; its SDK's tests for a Managed HSM send them so.
        Some("oct" | "oct-HSM") => Ok(PrivateParts::Oct(private("key.k", key.k)?)),
        Some(other) => Err(bad(format!(
            "key.kty `{}` is not known; expected RSA-HSM, EC-HSM or oct-HSM",
            shorten(other)
        ))),
        None => Err(bad("key.kty is missing; expected RSA-HSM, EC-HSM or oct-HSM".into())),
    }
}

fn private(member: &str, secret: Option<Secret>) -> Result<SecretBytes, Error> {
    secret.map(|Secret(bytes)| bytes).ok_or_else(|| bad(format!("{member} is missing")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn parsed(key: Value) -> Result<ImportedKey, String> {
        parse_text(&json!({ "key": key, "Hsm": false }).to_string())
    }

    fn parse_text(body: &str) -> Result<ImportedKey, String> {
        match parse("n".parse().unwrap(), body.as_bytes()).map_err(|error| error.to_string())? {
            Import::Parts(imported) => Ok(imported),
            Import::Wrapped(_) => Err("wrapped".to_owned()),
        }
    }

    fn refusal(key: Value) -> String {
        parsed(key).err().unwrap_or_default()
    }

    fn ec() -> Value {
        json!({ "kty": "EC", "crv": "P-256", "x": "AQ", "y": "Ag", "d": "AwQ=" })
    }

    #[test]
    fn members_arrive_as_they_are() {
        let imported = parsed(ec()).ok().unwrap();
        assert_eq!(imported.new.spec.to_string(), "EC-HSM P-256");
        let PrivateParts::Ec(parts) = imported.parts else { panic!("not EC") };
        assert_eq!((parts.x.as_slice(), parts.y.as_slice()), ([1].as_slice(), [2].as_slice()));
        assert_eq!(parts.d.danger_expose(), [3, 4]);
        let n = BASE64URL.encode([0x80; 256]);
        let key =
            json!({ "kty": "RSA-HSM", "n": n, "e": "AQAB", "d": "AQ", "p": "Ag", "q": "Aw", "qi": "BA" });
        let imported = parsed(key).ok().unwrap();
        let PrivateParts::Rsa(parts) = imported.parts else { panic!("not RSA") };
        assert_eq!(parts.q.danger_expose(), [3]);
        assert!(parts.dp.is_none());
        assert_eq!(parts.qi.unwrap().danger_expose(), [4]);
    }

    #[test]
    fn a_refusal_says_which_member_and_why() {
        let with = |name: &str, value: Value| {
            let mut key = ec();
            key[name] = value;
            refusal(key)
        };
        assert!(with("k", json!("AAAA")).contains("oct-HSM alone"));
        assert!(with("kty", json!("oct-HSM")).contains("key.k is missing"));
        assert!(with("key_hsm", json!("AAAA")).contains("not a BYOK file"));
        assert!(with("crv", json!("P-224")).contains("P-256K"));
        assert!(with("d", Value::Null).contains("key.d is missing"));
        assert!(with("x", Value::Null).contains("key.x is missing"));
        assert!(with("kty", json!("DSA")).contains("`DSA` is not known"));
        assert!(with("d", json!("A".repeat(10_000))).contains("at most 512 bytes"));
        assert!(
            refusal(json!({ "kty": "RSA", "n": "AQ", "e": "AQAB", "d": "AQ", "p": "AQ", "q": "AQ" }))
                .contains("2048, 3072 or 4096")
        );
    }

    /// Whatever is wrong with it, a private member is not repeated.
    #[test]
    fn a_refusal_never_holds_a_secret() {
        for (name, value) in [
            ("d", json!("hunter2!")),
            ("d", json!("hunter2\"hunter2")),
            ("d", json!(["hunter2"])),
            ("d", json!({ "hunter2": "hunter2" })),
            ("p", json!("hunter2")),
            ("k", json!("hunter2")),
            ("key_hsm", json!("hunter2")),
        ] {
            let mut key = ec();
            key[name] = value;
            key["y"] = json!("!");
            let message = refusal(key.clone());
            assert!(!message.is_empty() && !message.contains("hunter2"), "{name}: {message}");
            let whole = json!({ "key": key }).to_string();
            for length in 0..whole.len() {
                let message = parse_text(&whole[..length]).err().unwrap();
                assert!(!message.contains("hunter2"), "{name} cut at {length}: {message}");
            }
        }
        for body in
            [r#"{"key":"hunter2"}"#, r#""hunter2""#, r#"{"key":{"kty":"EC","d":"hunter2","d":"hunter2"}}"#]
        {
            let message = parse_text(body).err().unwrap();
            assert!(!message.contains("hunter2"), "{message}");
        }
    }

    #[test]
    fn escapes_in_a_private_member_are_refused() {
        let body = r#"{"key":{"kty":"EC","crv":"P-256","x":"AQ","y":"Ag","d":"\u0041Q"}}"#;
        assert!(parse_text(body).err().unwrap().contains("without escapes"));
        assert!(parse_text(&body.replace(r"\u0041", "A")).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_members_never_panic(
            kty in "(RSA|EC|oct|\\PC{0,5})", number in "[A-Za-z0-9_=+-]{0,700}", text in "\\PC{0,20}",
        ) {
            let _ = parsed(json!({
                "kty": kty, "crv": "P-256", "n": number, "e": text, "x": number, "y": number, "d": number, "p": number,
                "q": text, "dp": number, "key_ops": [text],
            }));
            let _ = parse_text(&text);
        }
    }
}
