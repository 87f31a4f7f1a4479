//! Release policies of `holdfast key`, and `holdfast key release`: a key, wrapped for an environment that proved itself.

use super::login::Client;
use super::{input, key, output, usage};
use crate::CommandError;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crypto::release::KeyWrap;
use domain::name::{KeyName, KeyVersion};
use domain::release::{Authority, MAX_POLICY_BYTES, ReleasePolicy};
use http::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// More than the service takes, so that it is the service that says what is too much.
const MAX_ASSERTION_BYTES: u64 = 128 * 1024;

/// What `create`, `import` and `update` have in common.
#[derive(clap::Args)]
pub struct PolicyArguments {
    /// The release policy of an exportable key: to whom it may be given (docs/release.md).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The policy can never be changed.
    #[arg(long, requires = "policy")]
    immutable: bool,
}

impl PolicyArguments {
    pub fn put_into(&self, body: &mut Value) -> Result<(), CommandError> {
        if let Some(path) = &self.policy {
            let policy = read_policy(path, self.immutable).map_err(usage)?;
            body["release_policy"] = policy_body(&policy);
        }
        Ok(())
    }

    /// For keys to be: the two go together, and `exportable` is never changed.
    pub fn put_new_into(&self, exportable: bool, body: &mut Value) -> Result<(), CommandError> {
        match (exportable, &self.policy) {
            (true, None) => Err(usage(
                "--exportable goes with --policy: nothing else says whom the key may be given to".into(),
            )),
            (false, Some(_)) => Err(usage(
                "--policy goes with --exportable: a key that is not exportable is given to nobody".into(),
            )),
            (true, Some(_)) => {
                body["attributes"]["exportable"] = true.into();
                self.put_into(body)
            }
            (false, None) => Ok(()),
        }
    }
}

/// A policy that says what it can mean, from a file.
pub fn read_policy(path: &Path, immutable: bool) -> Result<ReleasePolicy, String> {
    let bytes = input::read_file(path, MAX_POLICY_BYTES as u64).map_err(|error| error.to_string())?;
    let document = String::from_utf8(bytes).map_err(|_| format!("{} is not text", path.display()))?;
    ReleasePolicy::new(document, None, immutable).map_err(|error| format!("{}: {error}", path.display()))
}

/// As the service takes it (behaviour section 8).
pub fn policy_body(policy: &ReleasePolicy) -> Value {
    json!({ "data": URL_SAFE_NO_PAD.encode(policy.document()), "immutable": policy.is_immutable() })
}

/// The policy in a bundle, as its owner wrote it; `None` without one.
pub fn held_policy(bundle: &Value) -> Result<Option<ReleasePolicy>, CommandError> {
    let held = &bundle["release_policy"];
    if held.is_null() {
        return Ok(None);
    }
    let unreadable =
        |why: String| format!("the release policy in the service's answer cannot be read: {why}");
    let data = held["data"].as_str().ok_or_else(|| unreadable("it has no data".into()))?;
    let bytes = input::decode("its data", data).map_err(|error| unreadable(error.to_string()))?;
    let document = String::from_utf8(bytes.to_vec()).map_err(|_| unreadable("it is not text".into()))?;
    let immutable = held["immutable"].as_bool().unwrap_or(false);
    let policy = ReleasePolicy::new(document, None, immutable);
    Ok(Some(policy.map_err(|error| unreadable(error.to_string()))?))
}

/// By whose word a key may leave.
pub fn described(policy: &ReleasePolicy) -> String {
    let mut authorities: Vec<&str> = policy.policy().authorities().map(Authority::as_str).collect();
    authorities.dedup();
    let immutable = if policy.is_immutable() { "immutable" } else { "mutable" };
    format!("by the word of {}; {immutable} policy", authorities.join(", "))
}

#[derive(clap::Args)]
pub struct Release {
    name: KeyName,
    /// The current one otherwise.
    #[arg(long)]
    version: Option<KeyVersion>,
    /// The assertion of an attestation authority, a signed JWT; `-`: standard input.
    #[arg(long, value_name = "FILE")]
    attestation: PathBuf,
    /// How the key is wrapped: CKM_RSA_AES_KEY_WRAP (the default), RSA_AES_KEY_WRAP_256, RSA_AES_KEY_WRAP_384.
    #[arg(long, value_name = "ENC", value_parser = parse_wrap)]
    enc: Option<KeyWrap>,
    /// Text that the answer repeats, by which the environment knows that it is new.
    #[arg(long, value_name = "TEXT")]
    nonce: Option<String>,
    /// Write the answer there instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Release {
    pub async fn run(self, client: &mut Client, json: bool) -> Result<ExitCode, CommandError> {
        let assertion = input::read_file(&self.attestation, MAX_ASSERTION_BYTES)?;
        let target = std::str::from_utf8(assertion.trim_ascii())
            .map_err(|_| usage(format!("{} is not a JWT", self.attestation.display())))?;
        let mut body = json!({ "target": target });
        if let Some(enc) = self.enc {
            body["enc"] = enc.as_str().into();
        }
        if let Some(nonce) = self.nonce {
            body["nonce"] = nonce.into();
        }
        let path = format!("{}/release", key::key_path(&self.name, self.version));
        let answer = client.call(Method::POST, &path, Some(body.to_string().into())).await?;
        if json {
            output::print_body(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let released: Value = key::parse(&answer)?;
        let jws = released["value"].as_str().ok_or("the service's answer holds no released key")?;
        output::write_bytes(self.out.as_deref(), format!("{jws}\n").as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn parse_wrap(text: &str) -> Result<KeyWrap, String> {
    KeyWrap::parse(&text.to_ascii_uppercase())
        .ok_or_else(|| format!("expected one of {}", KeyWrap::ALL.map(KeyWrap::as_str).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"anyOf":[{"authority":"https://a","allOf":[{"claim":"b","equals":true}]}]}"#;

    #[test]
    fn a_policy_is_read_sent_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.json");
        std::fs::write(&path, DOCUMENT).unwrap();
        let policy = read_policy(&path, true).unwrap();
        let bundle = json!({ "release_policy": policy_body(&policy) });
        assert_eq!(held_policy(&bundle).unwrap(), Some(policy));
        assert_eq!(held_policy(&json!({})).unwrap(), None);
        std::fs::write(&path, DOCUMENT.replace("claim", "clam")).unwrap();
        let refusal = read_policy(&path, true).unwrap_err();
        assert!(refusal.contains("policy.json: ") && refusal.contains("anyOf[0].allOf[0]"), "{refusal}");
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_policy(&path, true).unwrap_err().contains("is not text"));
        std::fs::write(&path, vec![b' '; MAX_POLICY_BYTES + 1]).unwrap();
        assert!(read_policy(&path, true).unwrap_err().contains("65536 bytes"));
    }

    #[test]
    fn an_answer_that_holds_no_policy_is_told_from_one_without() {
        for held in [json!({}), json!({ "data": "+" }), json!({ "data": "_w" }), json!({ "data": "e30" })] {
            let error = held_policy(&json!({ "release_policy": held })).unwrap_err().to_string();
            assert!(
                error.starts_with("the release policy in the service's answer cannot be read: "),
                "{error}"
            );
        }
    }
}
