//! Release policies in bodies, and the answer of a release.

use crate::answers::KeyBundle;
use crate::wire::{self, BASE64URL, bad, required};
use base64::Engine as _;
use domain::release::ReleasePolicy;
use serde::Deserialize;
use serde_json::{Value, json};
use service::{Error, KeyWrap, ReleaseRequest, ReleasedKey};

/// Longest nonce that is shown to a caller again.
const MAX_NONCE_BYTES: usize = 1024;
const SCHEMA_VERSION: &str = "1.0.0";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PolicyBody {
    content_type: Option<String>,
    data: Option<String>,
    immutable: Option<bool>,
}

/// `{"data","contentType"?,"immutable"?}`; `null` and no member at all are no policy.
pub(crate) fn policy(body: Option<PolicyBody>) -> Result<Option<ReleasePolicy>, Error> {
    let Some(body) = body else { return Ok(None) };
    let document = required("release_policy.data", body.data.as_deref())?;
    let document = String::from_utf8(document).map_err(|_| bad("release_policy.data is not UTF-8".into()))?;
    Ok(Some(ReleasePolicy::new(document, body.content_type, body.immutable.unwrap_or(false))?))
}

pub(crate) fn policy_value(policy: &ReleasePolicy) -> Value {
    json!({
        "contentType": policy.content_type(),
        "data": BASE64URL.encode(policy.document()),
        "immutable": policy.is_immutable(),
    })
}

#[derive(Deserialize)]
struct ReleaseBody {
    target: Option<String>,
    nonce: Option<String>,
    enc: Option<String>,
}

/// What is asked, and the nonce that the answer repeats.
pub(crate) fn parse(body: &[u8]) -> Result<(ReleaseRequest, Option<String>), Error> {
    let body: ReleaseBody = wire::parse(body)?;
    let target = body.target.filter(|target| !target.is_empty());
    let target = target.ok_or_else(|| bad("target is missing: the attestation token".into()))?;
    let wrap = match body.enc.as_deref() {
        None => KeyWrap::Sha1,
        Some(text) => KeyWrap::parse(text).ok_or_else(|| {
            let known = KeyWrap::ALL.map(KeyWrap::as_str).join(", ");
            bad(format!("enc `{}` is not known; expected one of {known}", wire::shorten(text)))
        })?,
    };
    if body.nonce.as_ref().is_some_and(|nonce| nonce.len() > MAX_NONCE_BYTES) {
        return Err(bad(format!("nonce has more than {MAX_NONCE_BYTES} bytes")));
    }
    Ok((ReleaseRequest { target, wrap }, body.nonce))
}

/// The payload that the pool signs (`docs/formats/key-release.md`).
pub(crate) fn payload(origin: &str, api_version: &str, nonce: Option<&str>, released: &ReleasedKey) -> Value {
    let enc = released.wrap.as_str();
    let key_hsm = json!({
        "schema_version": SCHEMA_VERSION,
        "header": { "kid": released.release_kid, "alg": "dir", "enc": enc },
        "ciphertext": BASE64URL.encode(&released.wrapped),
    });
    let mut key = json!(KeyBundle::new(origin, &released.view));
    key["key"]["key_hsm"] = BASE64URL.encode(key_hsm.to_string()).into();
    let mut request = json!({
        "api-version": api_version,
        "enc": enc,
        "kid": key["key"]["kid"],
    });
    if let Some(nonce) = nonce {
        request["nonce"] = nonce.into();
    }
    json!({ "request": request, "response": { "key": key } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::algorithm::{Curve, KeySpec};
    use domain::key::{Attributes, KeyOperations, Origin, PublicKey, Tags, Version};
    use domain::name::KeyVersion;
    use domain::pool::RetentionDays;
    use domain::time::IntDate;
    use proptest::prelude::*;
    use service::KeyView;

    fn message(body: &str) -> String {
        parse(body.as_bytes()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_release_names_an_assertion_and_a_way_to_wrap() {
        let (request, nonce) =
            parse(br#"{"target":"a.b.c","nonce":"n","enc":"RSA_AES_KEY_WRAP_384"}"#).unwrap();
        assert_eq!((request.target.as_str(), request.wrap), ("a.b.c", KeyWrap::Sha384));
        assert_eq!(nonce.as_deref(), Some("n"));
        assert_eq!(parse(br#"{"target":"t"}"#).unwrap().0.wrap, KeyWrap::Sha1);
        assert!(message("{}").contains("target is missing"));
        assert!(message(r#"{"target":""}"#).contains("target is missing"));
        assert!(message(r#"{"target":"t","enc":"RSA1_5"}"#).contains("CKM_RSA_AES_KEY_WRAP"));
        let long = "n".repeat(MAX_NONCE_BYTES + 1);
        assert!(message(&format!(r#"{{"target":"t","nonce":"{long}"}}"#)).contains("nonce has more than"));
    }

    #[test]
    fn a_policy_comes_back_as_it_was_given() {
        let document = r#"{ "anyof":[{"allof":[{"claim":"a","equals":1.50}],"authority":"https://a/"}] }"#;
        let body = |value: Value| serde_json::from_value::<PolicyBody>(value).unwrap();
        let given = body(json!({ "data": BASE64URL.encode(document), "immutable": true }));
        let value = policy_value(&policy(Some(given)).unwrap().unwrap());
        assert_eq!(value["data"], BASE64URL.encode(document));
        assert_eq!(value["contentType"], "application/json; charset=utf-8");
        assert_eq!(value["immutable"], true);
        assert_eq!(policy(None).unwrap(), None);
        let refused = |value: Value| policy(Some(body(value))).unwrap_err().to_string();
        assert!(refused(json!({})).contains("release_policy.data is missing"));
        assert!(refused(json!({ "data": "_w" })).contains("not UTF-8"));
        assert!(refused(json!({ "data": "e30" })).contains("anyOf, the list of authorities, is missing"));
    }

    fn released() -> ReleasedKey {
        let spec = KeySpec::Ec(Curve::P256);
        let at = IntDate::from_unix_seconds;
        let document = r#"{"anyOf":[{"authority":"https://a","allOf":[{"claim":"b","equals":true}]}]}"#;
        let version = Version {
            name: "payroll".parse().unwrap(),
            version: KeyVersion([0x11; 16]),
            spec,
            public: PublicKey::Ec { curve: Curve::P256, x: vec![1; 32], y: vec![2; 32] },
            operations: KeyOperations::default_for(spec),
            attributes: Attributes {
                enabled: true,
                not_before: None,
                expires: None,
                created: at(1_800_000_000),
                updated: at(1_800_000_001),
                exportable: true,
            },
            tags: Tags::default(),
            origin: Origin::Generated,
            release: Some(ReleasePolicy::new(document.into(), None, true).unwrap()),
        };
        ReleasedKey {
            view: KeyView { version, retention: RetentionDays::DEFAULT, purge_protection: false },
            wrapped: vec![0xaa; 12],
            wrap: KeyWrap::Sha256,
            release_kid: "HCLTransferKey".into(),
        }
    }

    #[test]
    fn the_payload_is_the_golden_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/key-release-payload.json");
        let made = payload("https://demo.managedhsm.localhost", "7.6", Some("a nonce"), &released());
        if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() && !std::path::Path::new(path).exists() {
            std::fs::write(path, format!("{made:#}\n")).unwrap();
        }
        let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(made, golden);
        let bare = payload("https://h", "7.6", None, &released());
        assert!(bare["request"].get("nonce").is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_members_never_panic(target in "\\PC{0,60}", enc in "\\PC{0,30}", data in "[A-Za-z0-9_-]{0,60}") {
            let _ = parse(json!({ "target": target, "enc": enc, "nonce": target }).to_string().as_bytes());
            let _ = policy(Some(PolicyBody { content_type: Some(enc), data: Some(data), immutable: None }));
        }
    }
}
