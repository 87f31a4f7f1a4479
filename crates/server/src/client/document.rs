//! What `encrypt` and `wrap` write and `decrypt` and `unwrap` take: one JSON document with all that decryption needs.
//! Format: `docs/formats/encrypted-document.md`.

use super::input::decode;
use super::usage;
use crate::CommandError;
use domain::algorithm::EncryptionAlgorithm;
use domain::name::{KeyName, KeyVersion};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// A ciphertext, how it was made and with which key. Members as the service names them, in base64url.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    version: u32,
    pub alg: String,
    pub kid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub value: String,
}

impl Document {
    pub fn new(algorithm: EncryptionAlgorithm, kid: String, value: String) -> Self {
        Self {
            version: VERSION,
            alg: algorithm.as_str().to_owned(),
            kid,
            iv: None,
            aad: None,
            tag: None,
            value,
        }
    }

    pub fn parse(text: &[u8]) -> Result<Self, CommandError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let not_one = |error: serde_json::Error| {
            usage(format!(
                "the input is not a document that `encrypt` or `wrap` wrote (line {}, column {}); a bare ciphertext needs --alg",
                error.line(),
                error.column()
            ))
        };
        let Version { version } = serde_json::from_slice(text).map_err(not_one)?;
        if version != VERSION {
            return Err(usage(format!(
                "the document is of version {version}; this program knows version {VERSION}"
            )));
        }
        let document: Self = serde_json::from_slice(text).map_err(not_one)?;
        document.algorithm()?;
        for (name, member) in [("iv", &document.iv), ("aad", &document.aad), ("tag", &document.tag)] {
            member.as_deref().map(|text| decode(name, text)).transpose()?;
        }
        decode("value", &document.value)?;
        Ok(document)
    }

    pub fn algorithm(&self) -> Result<EncryptionAlgorithm, CommandError> {
        EncryptionAlgorithm::parse(&self.alg)
            .ok_or_else(|| usage("the document's alg is not an encryption or key wrap algorithm".into()))
    }

    /// The version to decrypt with, if the document is for the key `name`. Its host says nothing: a pool has several
    /// names.
    pub fn version_of(&self, name: &KeyName) -> Result<KeyVersion, CommandError> {
        let (key, version) = parse_kid(&self.kid)
            .ok_or_else(|| usage("the document's kid names no version of a key".into()))?;
        if key != *name {
            return Err(usage(format!("the document was encrypted with the key {key}, not with {name}")));
        }
        Ok(version)
    }

    pub fn to_json(&self) -> Result<Vec<u8>, CommandError> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Name and version of `https://HOST/keys/NAME/VERSION`.
pub fn parse_kid(kid: &str) -> Option<(KeyName, KeyVersion)> {
    let mut segments = kid.rsplit('/');
    let version = segments.next()?.parse().ok()?;
    let name = segments.next()?.parse().ok()?;
    segments.next()?.eq_ignore_ascii_case("keys").then_some((name, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::algorithm::OctSize;
    use proptest::prelude::*;

    const GOLDEN: &[u8] = include_bytes!("../../tests/golden/encrypted-document-v1.json");
    const KID: &str = "https://demo.managedhsm.localhost:8443/keys/payroll/0123456789abcdef0123456789abcdef";

    #[test]
    fn the_golden_document_is_read_and_written_again_byte_for_byte() {
        let document = Document::parse(GOLDEN).unwrap();
        assert_eq!(document.algorithm().unwrap(), EncryptionAlgorithm::AesGcm(OctSize::Oct256));
        let name: KeyName = "Payroll".parse().unwrap();
        assert_eq!(document.version_of(&name).unwrap().to_string(), "0123456789abcdef0123456789abcdef");
        assert_eq!(document.to_json().unwrap(), GOLDEN);
    }

    #[test]
    fn a_document_for_another_key_is_refused() {
        let document = Document::new(EncryptionAlgorithm::RsaOaep256, KID.into(), "AA".into());
        let refusal = document.version_of(&"salaries".parse().unwrap()).unwrap_err().to_string();
        assert!(refusal.contains("with the key payroll, not with salaries"), "{refusal}");
        for kid in [
            "",
            "payroll",
            "https://h/keys/payroll",
            "https://h/secrets/payroll/0123456789abcdef0123456789abcdef",
        ] {
            let document = Document::new(EncryptionAlgorithm::RsaOaep256, kid.into(), "AA".into());
            assert!(document.version_of(&"payroll".parse().unwrap()).is_err(), "{kid}");
        }
    }

    #[test]
    fn what_is_no_document_is_refused_without_repeating_it() {
        let golden = std::str::from_utf8(GOLDEN).unwrap();
        let refusal = |text: &str| Document::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(refusal("plain text").contains("--alg"));
        assert!(!refusal("{\"version\":1,\"secret\":\"x\"}").contains("secret"));
        assert!(refusal(&golden.replace("\"version\": 1", "\"version\": 2")).contains("version 2"));
        assert!(refusal(&golden.replace("A256GCM", "A257GCM")).contains("alg"));
        assert!(refusal(&golden.replace("\"tag\": \"", "\"tag\": \"+")).contains("tag is not base64url"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kid in "\\PC{0,80}") {
            let _ = Document::parse(&bytes);
            let _ = parse_kid(&kid);
        }
    }
}
