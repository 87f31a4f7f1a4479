//! What a command works on: a file, standard input, or text on the command line.

use super::usage;
use crate::CommandError;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use crypto::digest::RunningHash;
use domain::algorithm::SignatureAlgorithm;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// base64url (RFC 4648 section 5): written without padding, read with or without.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// More than the service takes in one call, so that it is the service that says what is too much.
const MAX_BYTES: u64 = 128 * 1024;
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;

pub fn encode(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(BASE64URL.encode(bytes))
}

/// `what` names the text in the refusal; the text itself may be a secret.
pub fn decode(what: &str, text: &str) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let bytes = BASE64URL.decode(text.trim());
    bytes.map(Zeroizing::new).map_err(|_| usage(format!("{what} is not base64url")))
}

/// For the parser of the command line.
pub fn parse_base64url(text: &str) -> Result<Bytes, String> {
    BASE64URL.decode(text).map(Bytes).map_err(|_| "not base64url".to_owned())
}

/// Bytes that the command line had in base64url.
#[derive(Clone, Debug)]
pub struct Bytes(pub Vec<u8>);

/// Opens `path`; `-` or none is standard input.
fn open(path: Option<&Path>) -> Result<Box<dyn Read>, CommandError> {
    match path.filter(|path| *path != Path::new("-")) {
        None => {
            if io::stdin().is_terminal() {
                eprintln!("holdfast: reading from the terminal; Ctrl-D ends it");
            }
            Ok(Box::new(io::stdin().lock()))
        }
        Some(path) => {
            let file = File::open(path).map_err(|error| unreadable(Some(path), &error))?;
            Ok(Box::new(file))
        }
    }
}

fn unreadable(path: Option<&Path>, error: &io::Error) -> CommandError {
    let from = path.map_or_else(|| "standard input".to_owned(), |path| path.display().to_string());
    format!("cannot read {from}: {error}").into()
}

/// All of it, if it is not more than a call can carry.
pub fn read(path: Option<&Path>) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    read_up_to(path, MAX_BYTES)?.ok_or_else(|| {
        usage(format!(
            "the input has more than {MAX_BYTES} bytes, and one call takes 64 KiB: encrypt with a key of your own, and wrap that"
        ))
    })
}

/// A file that `key backup` wrote, or what somebody takes for one.
pub fn read_backup(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let limit = service::MAX_BACKUP_BYTES as u64;
    read_up_to(Some(path), limit)?
        .ok_or_else(|| usage(format!("the input has more than {limit} bytes, and no backup of a key has")))
}

/// A file of at most `limit` bytes.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, CommandError> {
    let content = read_up_to(Some(path), limit)?;
    let content = content.ok_or_else(|| usage(format!("{} has more than {limit} bytes", path.display())))?;
    Ok(content.to_vec())
}

/// A file of keys: one in the clear, wrapped or public.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let small = read_up_to(Some(path), MAX_KEY_FILE_BYTES)?;
    small.ok_or_else(|| {
        usage(format!("{} has more than {MAX_KEY_FILE_BYTES} bytes, and no key has", path.display()))
    })
}

/// `None` where there is more than `limit`.
fn read_up_to(path: Option<&Path>, limit: u64) -> Result<Option<Zeroizing<Vec<u8>>>, CommandError> {
    // Room for all of it at once: a vector that grows leaves copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(limit as usize + 1));
    let read = open(path)?.take(limit + 1).read_to_end(&mut content);
    read.map_err(|error| unreadable(path, &error))?;
    Ok((content.len() as u64 <= limit).then_some(content))
}

/// A digest, or what to make one of.
#[derive(clap::Args)]
pub struct Message {
    /// What is signed: it is hashed here, as the service takes digests alone. `-` or none: standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "digest")]
    file: Option<PathBuf>,
    /// Its digest in base64url, instead.
    #[arg(long, value_name = "BASE64URL", value_parser = parse_base64url, allow_hyphen_values = true)]
    digest: Option<Bytes>,
}

impl Message {
    /// What the service takes for `algorithm`: the hash of the file, or for RSNULL the file as it is.
    pub fn digest(&self, algorithm: SignatureAlgorithm) -> Result<Vec<u8>, CommandError> {
        if let Some(Bytes(digest)) = &self.digest {
            return match algorithm.digest_bytes() {
                Some(expected) if expected != digest.len() => Err(usage(format!(
                    "a digest for {} has {expected} bytes, not {}",
                    algorithm.as_str(),
                    digest.len()
                ))),
                Some(_) | None => Ok(digest.clone()),
            };
        }
        match algorithm.digest_bytes().and_then(RunningHash::of_length) {
            Some(hash) => {
                let path = self.file.as_deref();
                digest(open(path)?, hash).map_err(|error| unreadable(path, &error))
            }
            None => Ok(read(self.file.as_deref())?.to_vec()),
        }
    }
}

fn digest(mut input: impl Read, mut hash: RunningHash) -> io::Result<Vec<u8>> {
    let mut buffer = Zeroizing::new(vec![0; 64 * 1024]);
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hash.finish()),
            read => hash.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::digest::hex;

    #[test]
    fn every_algorithm_with_a_digest_has_its_hash() {
        for algorithm in SignatureAlgorithm::ALL {
            let Some(bytes) = algorithm.digest_bytes() else { continue };
            let hash = RunningHash::of_length(bytes).unwrap();
            assert_eq!(digest(&b"abc"[..], hash).unwrap().len(), bytes, "{}", algorithm.as_str());
        }
    }

    #[test]
    fn a_file_is_hashed_and_a_digest_is_measured() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("message");
        std::fs::write(&path, b"abc").unwrap();
        let file = Message { file: Some(path), digest: None };
        assert_eq!(
            hex(&file.digest(SignatureAlgorithm::Es256).unwrap()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(file.digest(SignatureAlgorithm::RsNull).unwrap(), b"abc");
        let given = Message { file: None, digest: Some(Bytes(vec![7; 32])) };
        assert_eq!(given.digest(SignatureAlgorithm::Ps256).unwrap(), [7; 32]);
        assert!(
            given.digest(SignatureAlgorithm::Es512).unwrap_err().to_string().contains("64 bytes, not 32")
        );
        assert!(decode("the tag", "+/").unwrap_err().to_string().contains("the tag is not base64url"));
    }
}
