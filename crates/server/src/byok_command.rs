//! `holdfast byok`: wraps a key for a pool where the key is, and explains a wrapped key. Offline: it opens no socket, and
//! writes nothing but the file it is asked for, which it never overwrites.

use crate::CommandError;
use crate::ceremony_command::{in_file, print, printable, refuse_existing, write_new};
use crate::client::attest::{TrustArguments, now};
use crate::client::document::parse_kid;
use crate::client::verdict::{Document, Expectations, verify};
use crate::client::{input, public_key, usage};
use crate::hardening::harden;
use crate::output::verdict;
use crate::private_key_file;
use api_data::byok::{Examined, examine};
use clap::Subcommand;
use crypto::key_exchange::KeyExchangeKey;
use domain::algorithm::{KeySpec, RsaSize};
use domain::key::{KeyOperation, KeyOperations, Origin};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What an import takes behind the first layer.
const MAX_SECOND_LAYER_BYTES: usize = 4096;
/// AES key wrap with padding works in half blocks and adds one (RFC 5649).
const HALF_BLOCK_BYTES: usize = 8;

#[derive(Subcommand)]
pub enum Arguments {
    /// Wrap a private or symmetric key for a key-exchange key of a pool. No other key and nobody else can open it. With
    /// --owner-key, --owner-fingerprint or --domain-file, for none but a key that the attestation in its file proves to have
    /// been made in a pool of that owner.
    Pack {
        #[command(flatten)]
        source: Source,
        /// The public half of the key-exchange key: JSON, as `attest get` or `key show` writes it, or PEM, as
        /// `az keyvault key download`.
        #[arg(long, value_name = "FILE")]
        kek: PathBuf,
        /// Its identifier with its version, https://HOST/keys/NAME/VERSION; JSON has it already.
        #[arg(long, value_name = "ID")]
        kid: Option<String>,
        #[command(flatten)]
        trust: TrustArguments,
        /// The wrapped key; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Of a PEM file that is encrypted: the first line of a file, or of a descriptor as /dev/fd/3, instead of asking.
        #[arg(long, value_name = "FILE", conflicts_with = "raw")]
        passphrase_file: Option<PathBuf>,
    },
    /// Say what is wrong with a wrapped key, as far as that is seen without a private key. Exit code 1 where something is.
    Check {
        file: PathBuf,
        /// The public half of the key that it should be wrapped for, as for `pack`.
        #[arg(long, value_name = "FILE")]
        kek: Option<PathBuf>,
        /// The identifier of that key.
        #[arg(long, value_name = "ID")]
        kid: Option<String>,
    },
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
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    // No core files, no debugger, no swap, as far as the system allows.
    for shortfall in harden().shortfalls() {
        eprintln!("holdfast: {shortfall}");
    }
    match arguments {
        Arguments::Pack { source, kek, kid, trust, out, passphrase_file } => {
            pack(&source, &kek, kid, trust, &out, passphrase_file.as_ref())
        }
        Arguments::Check { file, kek, kid } => check(&file, kek.as_deref(), kid),
    }
}

fn pack(
    source: &Source,
    kek_file: &Path,
    kid: Option<String>,
    trust: TrustArguments,
    out: &Path,
    passphrase_file: Option<&PathBuf>,
) -> Result<ExitCode, CommandError> {
    refuse_existing(out)?;
    let kek_content = input::read_key_file(kek_file)?;
    let kek = Kek::parse(kek_file, &kek_content, kid)?;
    let kid = kek.kid.as_deref().ok_or_else(|| {
        usage("the key-exchange key's file does not say which key it is: give --kid, with the version".into())
    })?;
    let origin = kek_origin(kek_file, &kek_content, &kek.pem, kid, trust)?;
    // Before a private key is read: what makes the file useless is known now.
    let file = |ciphertext: &[u8]| {
        json!({
            "schema_version": "1.0.0",
            "header": { "kid": kid, "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP" },
            "ciphertext": input::encode(ciphertext).as_str(),
            "generator": concat!("holdfast ", env!("CARGO_PKG_VERSION")),
        })
    };
    if let Some(problem) = examine(file(&[0]).to_string().as_bytes()).problems.first() {
        return Err(usage(problem.clone()));
    }
    let key = match (&source.pem, &source.raw) {
        (Some(path), _) => private_key_file::read_pem(path, passphrase_file)?,
        (None, Some(path)) => private_key_file::read_raw(path)?,
        (None, None) => return Err(usage("a key to wrap was not given".into())),
    };
    let spec = key.spec();
    let wrapped = kek.key.wrap(key.danger_encoding())?;
    drop(key);
    let mut text = serde_json::to_string_pretty(&file(&wrapped))?;
    text.push('\n');
    write_new(out, text.as_bytes())?;
    let curve = match spec {
        KeySpec::Ec(curve) => format!(" --curve {}", curve.as_str()),
        KeySpec::Rsa(_) | KeySpec::Oct(_) => String::new(),
    };
    print(&[
        format!("key           {spec}"),
        format!("wrapped for   {}", printable(kid)),
        origin,
        format!("written       {}", out.display()),
        format!(
            "to import it  holdfast key import NAME --byok-file {} --type {}{curve}",
            out.display(),
            spec.key_type()
        ),
    ])
}

/// Where the key-exchange key was made, in words. An error where `trust` names somebody and the attestation in the key's file
/// does not prove that it was made in a pool of theirs, for imports alone.
fn kek_origin(
    path: &Path,
    content: &[u8],
    pem: &str,
    kid: &str,
    trust: TrustArguments,
) -> Result<String, CommandError> {
    let named = parse_kid(kid);
    let mut expected = Expectations {
        name: named.as_ref().map(|(name, _)| name.clone()),
        version: named.map(|(_, version)| version),
        // The very key that is wrapped for: a file may hold one key and another's attestation.
        public_key: Some(pem.to_owned()),
        operations: Some(KeyOperations::from_iter([KeyOperation::Import])),
        origin: Some(Origin::Generated),
        not_exportable: true,
        ..Expectations::default()
    };
    let Some(trust) = trust.resolve(&mut expected)? else {
        return Ok(
            "NOT PROVEN    where that key was made: give what `attest get` wrote as --kek, and --owner-key"
                .to_owned(),
        );
    };
    let document = Document::parse(content)
        .map_err(|error| format!("{}: {error}; `attest get` writes a file that has one", path.display()))?;
    let verdicts = verify(&document, &trust, &expected, now());
    if let Some(failed) = verdicts.iter().find(|verdict| verdict.is_failure()) {
        let reason = failed.reason().unwrap_or("nobody vouches for it");
        return Err(format!(
            "{} does not prove that the key-exchange key was made in a pool of this owner: {} {}: {reason}",
            path.display(),
            failed.claim,
            printable(&failed.value),
        )
        .into());
    }
    let pool = verdicts.iter().find(|verdict| verdict.claim == "pool").map_or("", |verdict| &verdict.value);
    Ok(format!("proven        made in pool {pool}, which its owner vouches for"))
}

fn check(path: &Path, kek: Option<&Path>, kid: Option<String>) -> Result<ExitCode, CommandError> {
    let content = input::read_key_file(path)?;
    let kek = kek.map(|kek| Kek::parse(kek, &input::read_key_file(kek)?, kid.clone())).transpose()?;
    let expected = kek.as_ref().map_or(kid.as_deref(), |kek| kek.kid.as_deref());
    let examined = examine(&content);
    let mut lines = describe(&examined);
    let problems = problems(&examined, kek.as_ref().map(|kek| &kek.key), expected);
    lines.extend(problems.iter().map(|problem| format!("PROBLEM       {}", printable(problem))));
    if problems.is_empty() {
        lines.push(
            "NO PROBLEM    that is seen without the private key; whether it opens, the pool will say"
                .to_owned(),
        );
    }
    let code = if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    verdict(print(&lines).map(drop), code)
}

fn describe(examined: &Examined) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(kid) = &examined.kid {
        lines.push(format!("wrapped for   {}", printable(kid)));
    }
    if let Some(generator) = &examined.generator {
        lines.push(format!("made by       {}", printable(generator)));
    }
    if let Some(ciphertext) = &examined.ciphertext {
        lines.push(format!("ciphertext    {} bytes", ciphertext.len()));
        for size in RsaSize::ALL {
            if let Some(content) = content_bytes(ciphertext, size) {
                lines.push(format!(
                    "              for a KEK of {} bits: {}",
                    size.bits(),
                    by_length(content)
                ));
            }
        }
    }
    lines
}

/// What an import would refuse, and what speaks against `key` and `kid`, where they are known.
fn problems(examined: &Examined, key: Option<&KeyExchangeKey>, kid: Option<&str>) -> Vec<String> {
    let mut problems = examined.problems.clone();
    if let (Some(found), Some(expected)) = (&examined.kid, kid)
        && !same_version(found, expected)
    {
        problems.push(format!("header.kid is `{found}`, and the key-exchange key is `{expected}`"));
    }
    let Some(ciphertext) = &examined.ciphertext else { return problems };
    let Some(key) = key else {
        if RsaSize::ALL.iter().all(|size| content_bytes(ciphertext, *size).is_none()) {
            problems.push(format!(
                "ciphertext has {} bytes: whatever the size of the KEK, what is behind its first layer is not from AES \
                 key wrap with padding, 16 to {MAX_SECOND_LAYER_BYTES} bytes and a multiple of {HALF_BLOCK_BYTES}",
                ciphertext.len()
            ));
        }
        return problems;
    };
    let size = key.size();
    match ciphertext.split_at_checked(size.bytes()) {
        Some((first, _)) if content_bytes(ciphertext, size).is_some() => {
            if !key.admits(first) {
                problems.push(format!(
                    "the first {} bytes of ciphertext are a number beyond the modulus of this KEK: made for another key",
                    size.bytes()
                ));
            }
        }
        _ => problems.push(format!(
            "ciphertext has {} bytes; for a KEK of {} bits it has {}, and 16 to {MAX_SECOND_LAYER_BYTES} more, a multiple of \
             {HALF_BLOCK_BYTES}",
            ciphertext.len(),
            size.bits(),
            size.bytes()
        )),
    }
    problems
}

/// Pools have several names; a name and version are one key of one security domain.
fn same_version(left: &str, right: &str) -> bool {
    let end = |kid: &str| {
        let mut segments = kid.rsplit('/');
        [segments.next(), segments.next()].map(|segment| segment.unwrap_or_default().to_ascii_lowercase())
    };
    end(left) == end(right)
}

/// The most bytes that the second layer can hold; `None` where it is none, for a KEK of this size.
fn content_bytes(ciphertext: &[u8], size: RsaSize) -> Option<usize> {
    let second = ciphertext.len().checked_sub(size.bytes())?;
    let fits = (2 * HALF_BLOCK_BYTES..=MAX_SECOND_LAYER_BYTES).contains(&second);
    (fits && second.is_multiple_of(HALF_BLOCK_BYTES)).then(|| second - HALF_BLOCK_BYTES)
}

fn by_length(content: usize) -> String {
    let what = match content {
        16 | 24 | 32 => "a symmetric key",
        40..=304 => "an EC key",
        1160..=1264 => "an RSA key of 2048 bits",
        1704..=1840 => "an RSA key of 3072 bits",
        2280..=2440 => "an RSA key of 4096 bits",
        _ => "no key that a pool takes",
    };
    format!("{what}, by the length of {content} bytes or up to 7 fewer")
}

/// The public half of a key-exchange key, and which it is.
struct Kek {
    key: KeyExchangeKey,
    /// The same.
    pem: String,
    kid: Option<String>,
}

impl Kek {
    /// A public key in PEM, or a key as the service or `az` shows it. `kid` is what the command line says.
    fn parse(path: &Path, content: &[u8], kid: Option<String>) -> Result<Self, CommandError> {
        if !content.trim_ascii_start().starts_with(b"{") {
            let key = KeyExchangeKey::from_file(content).map_err(in_file(path))?;
            return Ok(Self { key, pem: String::from_utf8_lossy(content).into_owned(), kid });
        }
        let shown: Value = serde_json::from_slice(content).map_err(in_file(path))?;
        let mut key = if shown["key"].is_object() { shown["key"].clone() } else { shown };
        // `az` shows numbers in the other alphabet.
        for member in ["n", "e"] {
            if let Value::String(text) = &mut key[member] {
                *text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
            }
        }
        let operations = key["key_ops"].as_array();
        if operations.is_some_and(|operations| !matches!(operations.as_slice(), [only] if only == "import")) {
            return Err(format!(
                "{}: its key_ops are not `import` alone, so no pool takes what is wrapped for this key",
                path.display()
            )
            .into());
        }
        let shown = key["kid"].as_str().map(str::to_owned);
        if let (Some(shown), Some(given)) = (&shown, &kid)
            && !same_version(shown, given)
        {
            return Err(usage(format!(
                "{} is the key {}, and --kid says {}",
                path.display(),
                printable(shown),
                printable(given)
            )));
        }
        let pem = public_key::pem(&key).map_err(in_file(path))?;
        Ok(Self {
            key: KeyExchangeKey::from_file(pem.as_bytes()).map_err(in_file(path))?,
            pem,
            kid: kid.or(shown),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(ciphertext: usize) -> Examined {
        let file = json!({
            "schema_version": "1.0.0",
            "header": {
                "kid": "https://h/keys/kek/0123456789abcdef0123456789abcdef", "alg": "dir", "enc": "CKM_RSA_AES_KEY_WRAP",
            },
            "ciphertext": input::encode(&vec![0; ciphertext]).as_str(),
        });
        examine(file.to_string().as_bytes())
    }

    /// Lengths at which a layer begins, ends or does not fit.
    #[test]
    fn a_second_layer_is_whole_half_blocks_of_a_bounded_length() {
        for (bytes, content) in [
            (255, None),
            (256, None),
            (264, None),
            (272, Some(8)),
            (273, None),
            (280, Some(16)),
            (4352, Some(4088)),
            (4360, None),
        ] {
            assert_eq!(content_bytes(&vec![0; bytes], RsaSize::Rsa2048), content, "{bytes}");
        }
        assert!(problems(&found(288), None, None).is_empty());
        assert!(problems(&found(200), None, None)[0].contains("whatever the size"));
    }

    #[test]
    fn one_version_has_a_name_at_every_host() {
        assert!(same_version("https://a/keys/k/0F", "https://b:1/keys/k/0f"));
        assert!(!same_version("https://a/keys/k/0f", "https://a/keys/k/1f"));
        assert!(!same_version("https://a/keys/k/0f", "https://a/keys/l/0f"));
    }

    proptest! {
        #[test]
        fn no_ciphertext_panics(bytes in 0_usize..9000) {
            let examined = found(bytes);
            let _ = (describe(&examined), problems(&examined, None, Some("k")));
        }
    }
}
