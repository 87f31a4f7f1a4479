//! The file of `quickstart --federate`: whose tokens stand for `app`. Format: `docs/formats/federated-credentials.md`.

use crate::CommandError;
use crate::output::chain;
use identity::issuer::{FEDERATION_AUDIENCE, FederatedCredential, MAX_FEDERATED_CREDENTIALS};
use serde::Deserialize;
use std::path::Path;

const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    federated: Vec<Credential>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credential {
    issuer: String,
    subject: String,
    audience: Option<String>,
    key_set: serde_json::Value,
}

pub fn read(path: &Path) -> Result<Vec<FederatedCredential>, CommandError> {
    let unreadable = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > MAX_BYTES {
        return Err(
            format!("{} is {length} bytes long, over the limit of {MAX_BYTES}", path.display()).into()
        );
    }
    let content = std::fs::read(path).map_err(unreadable)?;
    parse(&content).map_err(|error| format!("{}: {error}", path.display()).into())
}

pub fn parse(content: &[u8]) -> Result<Vec<FederatedCredential>, CommandError> {
    let file: File = serde_json::from_slice(content)?;
    if file.version != VERSION {
        return Err(format!("format version {} is not known, only {VERSION}", file.version).into());
    }
    if file.federated.len() > MAX_FEDERATED_CREDENTIALS {
        return Err(
            format!("a principal has at most {MAX_FEDERATED_CREDENTIALS} federated credentials").into()
        );
    }
    let credential = |(index, stored): (usize, Credential)| -> Result<FederatedCredential, CommandError> {
        let audience = stored.audience.unwrap_or_else(|| FEDERATION_AUDIENCE.to_owned());
        FederatedCredential::new(stored.issuer, stored.subject, audience, stored.key_set.to_string())
            .map_err(|error| format!("federated credential {index}: {}", chain(&error)).into())
    };
    file.federated.into_iter().enumerate().map(credential).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../tests/golden/federated-credentials-v1.json");

    #[test]
    fn the_golden_file_is_read() {
        let read = parse(GOLDEN).unwrap();
        let names: Vec<_> = read
            .iter()
            .map(|credential| {
                (credential.issuer.as_str(), credential.subject.as_str(), credential.audience.as_str())
            })
            .collect();
        assert_eq!(
            names,
            [
                ("https://kubernetes.example", "system:serviceaccount:default:app", FEDERATION_AUDIENCE),
                ("https://ci.example", "repo:example/app:ref:refs/heads/main", "https://holdfast.example"),
            ]
        );
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let text = std::str::from_utf8(GOLDEN).unwrap();
        for (from, to, words) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"subject\": \"system", "\"more\": 1, \"subject\": \"system", "unknown field"),
            ("https://kubernetes.example", "", "issuer of a federated credential is empty"),
            ("\"kty\": \"EC\"", "\"kty\": \"oct\"", "is of type \"oct\""),
        ] {
            assert!(text.contains(from), "{from}");
            let error = parse(text.replace(from, to).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let many = vec![serde_json::json!({"issuer": "i", "subject": "s", "key_set": {}}); 21];
        let many = serde_json::json!({"version": 1, "federated": many}).to_string();
        assert!(parse(many.as_bytes()).unwrap_err().to_string().contains("at most 20"));
    }
}
