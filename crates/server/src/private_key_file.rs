//! A private or symmetric key of somebody's own, read from a file for a pool to take.

use crate::CommandError;
use crate::ceremony_command::in_file;
use crate::client::{input, usage};
use crate::passphrase;
use crypto::SecretBytes;
use crypto::key_file::{AnyKeyFile, KeyFile};
use crypto_software::ClientKey;
use std::path::{Path, PathBuf};

/// PEM: PKCS#8, also encrypted, or the older forms of RSA and EC keys.
pub fn read_pem(path: &Path, passphrase_file: Option<&PathBuf>) -> Result<ClientKey, CommandError> {
    let text = SecretBytes::copy(&input::read_key_file(path)?);
    let key = match AnyKeyFile::read(&text).map_err(in_file(path))? {
        AnyKeyFile::Pkcs1(der) => ClientKey::from_pkcs1(&der),
        AnyKeyFile::Sec1(der) => ClientKey::from_sec1(&der),
        AnyKeyFile::Pkcs8(KeyFile::Plain(der)) => ClientKey::from_pkcs8(&der),
        AnyKeyFile::Pkcs8(KeyFile::Encrypted(key)) => {
            let passphrase = match passphrase_file {
                Some(file) => passphrase::from_file(file)?,
                None => passphrase::ask(&path.display().to_string())?,
            };
            ClientKey::from_pkcs8(&key.decrypt(&passphrase).map_err(in_file(path))?)
        }
    };
    Ok(key.map_err(in_file(path))?)
}

/// A symmetric key: the bytes themselves.
pub fn read_raw(path: &Path) -> Result<ClientKey, CommandError> {
    let bytes = input::read_key_file(path)?;
    // Digits of a key are as many as a longer key's bytes, and would be taken for one of less worth.
    if !bytes.is_empty() && bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        return Err(usage(format!(
            "{} holds text, and a raw key is bytes: `xxd -r -p` or `base64 -d` makes them",
            path.display()
        )));
    }
    Ok(ClientKey::symmetric(SecretBytes::copy(&bytes)).map_err(in_file(path))?)
}
