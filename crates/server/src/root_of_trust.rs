//! What opens a pool's sealed domain on this machine, and what becomes of a pool whose domain does not open.

use crate::CommandError;
use crate::{files, passphrase};
use crypto::SecretBytes;
use crypto::domain_secrets::DomainSecrets;
use domain::guid::Guid;
use seal::{CredentialRoot, FILE_ROOT_BYTES, FileRoot, Root, RootKind, SealError};
use service::{Random, SystemRandom};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// What seals a pool's secrets to this machine.
#[derive(Clone)]
pub enum RootOfTrust {
    /// A key in a file, made where nothing has been sealed yet.
    KeyFile(PathBuf),
    /// Such a file that was opened by a process that could not open it now. It is read when it is needed, and not kept in
    /// memory.
    OpenKeyFile { path: PathBuf, file: Arc<File> },
    /// A passphrase that the process was handed and that is not kept on the machine.
    Credential(Arc<CredentialRoot>),
}

impl fmt::Debug for RootOfTrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(path) | Self::OpenKeyFile { path, .. } => {
                f.debug_tuple("KeyFile").field(path).finish()
            }
            Self::Credential(_) => f.write_str("Credential"),
        }
    }
}

/// The root of trust is missing, or is not the one that the domain was sealed under. What is sealed stays as it is.
#[derive(Debug, thiserror::Error)]
#[error("the pool stays sealed: {reason}; {remedy}")]
pub struct Sealed {
    reason: String,
    remedy: String,
}

impl Sealed {
    /// The process was not handed what it was to be handed.
    pub fn without_credential(reason: String) -> Self {
        Self { reason, remedy: "hand it over with --root-credential FILE, and the pool opens".to_owned() }
    }
}

impl RootOfTrust {
    /// The passphrase in the first line of a file, such as `$CREDENTIALS_DIRECTORY/holdfast` or `/dev/fd/3`.
    pub fn credential(path: &Path) -> Result<Self, CommandError> {
        let passphrase = passphrase::from_file(path)?;
        passphrase::check_new(&passphrase)?;
        Ok(Self::Credential(Arc::new(CredentialRoot::new(passphrase))))
    }

    /// The key file at `path`, opened; made where `is_new` says that nothing was sealed under it yet. `sealed` is for the
    /// message of who lost it.
    pub fn open_key_file(path: PathBuf, sealed: &Path, is_new: bool) -> Result<Self, CommandError> {
        if is_new {
            make_key_file(&path)?;
        }
        match File::open(&path) {
            Ok(file) => Ok(Self::OpenKeyFile { path, file: Arc::new(file) }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(&path, sealed).into()),
            Err(error) => Err(error.into()),
        }
    }

    /// The domain's secrets in `sealed`, which is the file `path`. What does not open is [`Sealed`].
    pub fn open(&self, path: &Path, node: Guid, sealed: &[u8]) -> Result<DomainSecrets, CommandError> {
        Ok(DomainSecrets::import(&self.open_secret(path, node, sealed)?)?)
    }

    /// Likewise any secret.
    pub fn open_secret(&self, path: &Path, node: Guid, sealed: &[u8]) -> Result<SecretBytes, CommandError> {
        let opened = match self {
            Self::KeyFile(key) => match files::read(key)? {
                Some(key) => file_root(&key).and_then(|root| root.open(node, sealed)),
                None if RootKind::of(sealed) == Ok(RootKind::File) => return Err(missing(key, path).into()),
                None => Err(SealError::OtherKind),
            },
            Self::OpenKeyFile { file, .. } => {
                file_root(&read_key(file)?).and_then(|root| root.open(node, sealed))
            }
            Self::Credential(root) => root.open(node, sealed),
        };
        Ok(opened.map_err(|error| self.sealed(path, error))?)
    }

    fn sealed(&self, path: &Path, error: SealError) -> Sealed {
        let shown = path.display();
        let remedy = match (error, self) {
            (SealError::OtherKind, Self::KeyFile(_) | Self::OpenKeyFile { .. }) => {
                "it was sealed under a credential: start with --root-credential".to_owned()
            }
            (SealError::OtherKind, Self::Credential(_)) => {
                "it was sealed under a key in root/: start without --root-credential".to_owned()
            }
            (_, Self::KeyFile(key) | Self::OpenKeyFile { path: key, .. }) => format!(
                "put {} and {shown} back from copies that belong together",
                key.display()
            ),
            (_, Self::Credential(_)) => {
                "start with the passphrase that it was sealed under, or rebuild the pool from its security domain and a backup".to_owned()
            }
        };
        Sealed { reason: format!("{shown}: {error}"), remedy }
    }

    /// Seals what was not sealed on this machine before: the key file is made where there is none.
    pub fn seal_first(&self, node: Guid, secret: &SecretBytes) -> Result<Vec<u8>, CommandError> {
        match self {
            Self::KeyFile(path) => Ok(file_root(&make_key_file(path)?)?.seal(node, secret)),
            Self::OpenKeyFile { file, .. } => Ok(file_root(&read_key(file)?)?.seal(node, secret)),
            Self::Credential(root) => Ok(root.seal(node, secret)),
        }
    }

    pub fn seal(&self, node: Guid, secret: &SecretBytes) -> Result<Vec<u8>, CommandError> {
        match self {
            Self::KeyFile(path) => {
                let key = files::read(path)?.ok_or_else(|| format!("{} is missing", path.display()))?;
                Ok(file_root(&key)?.seal(node, secret))
            }
            Self::OpenKeyFile { file, .. } => Ok(file_root(&read_key(file)?)?.seal(node, secret)),
            Self::Credential(root) => Ok(root.seal(node, secret)),
        }
    }

    /// Whether waiting can help: a file may be put back, the passphrase was read once.
    pub fn may_come_back(&self) -> bool {
        matches!(self, Self::KeyFile(_))
    }
}

fn make_key_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    files::read_or_make(path, || {
        let mut key = Zeroizing::new(vec![0; FILE_ROOT_BYTES]);
        SystemRandom.fill(&mut key);
        Ok(key)
    })
}

/// One byte more than it has to have, so that a longer one is refused.
fn read_key(file: &File) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut key = Zeroizing::new(vec![0; FILE_ROOT_BYTES + 1]);
    let mut length = 0;
    while length < key.len() {
        match file.read_at(&mut key[length..], length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    key.truncate(length);
    Ok(key)
}

fn missing(key: &Path, sealed: &Path) -> Sealed {
    Sealed {
        reason: format!("{}, which {} was sealed under, is missing", key.display(), sealed.display()),
        remedy: "put it back from its copy, and the pool opens".to_owned(),
    }
}

fn file_root(key: &[u8]) -> Result<FileRoot, SealError> {
    FileRoot::new(SecretBytes::copy(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Guid = Guid([5; 16]);

    fn refused(root: &RootOfTrust, sealed: &[u8]) -> String {
        let error = root.open(Path::new("domain.sealed"), NODE, sealed).err().unwrap();
        error.downcast::<Sealed>().unwrap().to_string()
    }

    fn credential(directory: &Path, passphrase: &str) -> Result<RootOfTrust, CommandError> {
        let path = directory.join("passphrase");
        files::write(&path, passphrase.as_bytes())?;
        RootOfTrust::credential(&path)
    }

    #[test]
    fn each_root_opens_what_it_sealed_and_says_what_is_amiss_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let secrets = DomainSecrets::generate();
        let key = directory.path().join("root.key");
        let file = RootOfTrust::KeyFile(key.clone());
        let by_file = file.seal_first(NODE, &secrets.danger_export()).unwrap();
        let right = credential(directory.path(), "correct horse battery").unwrap();
        let by_credential = right.seal_first(NODE, &secrets.danger_export()).unwrap();
        for (root, sealed) in [(&file, &by_file), (&right, &by_credential)] {
            let opened = root.open(Path::new("domain.sealed"), NODE, sealed).unwrap();
            assert_eq!(opened.owner_key().public_key().to_pem(), secrets.owner_key().public_key().to_pem());
        }
        assert!(refused(&file, &by_credential).contains("start with --root-credential"));
        assert!(refused(&right, &by_file).contains("start without --root-credential"));
        let wrong = credential(directory.path(), "correct horse batterx").unwrap();
        assert!(refused(&wrong, &by_credential).contains("the passphrase that it was sealed under"));
        files::write(&key, &[1; FILE_ROOT_BYTES]).unwrap();
        assert!(refused(&file, &by_file).contains("copies that belong together"));
        std::fs::remove_file(&key).unwrap();
        assert!(
            refused(&file, &by_file).contains("root.key, which domain.sealed was sealed under, is missing")
        );
        assert!(!key.exists(), "a key made anew would open nothing");
        assert!(file.seal(NODE, &secrets.danger_export()).is_err());
    }

    #[test]
    fn a_key_file_that_is_open_serves_like_one_that_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (key, sealed_at) = (directory.path().join("root.key"), Path::new("domain.sealed"));
        let lost = RootOfTrust::open_key_file(key.clone(), sealed_at, false).unwrap_err();
        assert!(lost.downcast::<Sealed>().unwrap().to_string().contains("is missing"));
        assert!(!key.exists(), "a key made anew would open nothing");
        let open = RootOfTrust::open_key_file(key.clone(), sealed_at, true).unwrap();
        let secrets = DomainSecrets::generate();
        let first = open.seal_first(NODE, &secrets.danger_export()).unwrap();
        let again = open.seal(NODE, &secrets.danger_export()).unwrap();
        for sealed in [first, again] {
            for root in [&open, &RootOfTrust::KeyFile(key.clone())] {
                root.open(sealed_at, NODE, &sealed).unwrap();
            }
        }
        std::fs::OpenOptions::new().append(true).open(&key).unwrap().set_len(40).unwrap();
        assert!(open.seal(NODE, &secrets.danger_export()).is_err(), "a longer key is no key");
    }

    #[test]
    fn a_passphrase_has_a_least_length_and_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        assert!(credential(directory.path(), "short").is_err());
        let root = credential(directory.path(), "correct horse battery").unwrap();
        assert_eq!(format!("{root:?}"), "Credential");
    }
}
