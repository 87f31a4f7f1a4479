//! Full backups in one folder of this machine, which its operator named: `file://` and that folder's path is the only
//! location that opens.
//!
//! Nothing is followed: each name on the way is opened within its directory, by descriptor, and a symbolic link is refused.
//! A blob appears under its name once it is durable, and never in another's place.

use crate::CommandError;
use async_trait::async_trait;
use bytes::Bytes;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, open, openat, unlinkat};
use rustix::io::Errno;
use service::backup::{BackupTarget, BackupTargets, BlobWriter, StorageAccess, StorageLocation, TargetError};
use service::{Random, SystemRandom};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SCHEME: &str = "file://";
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The folder that an operator allowed.
pub struct BackupFolder {
    path: PathBuf,
    uri: String,
}

impl BackupFolder {
    /// Must be there: a pool makes nothing in a place that a mistyped path names.
    pub fn new(path: &Path) -> Result<Self, CommandError> {
        let fail = |error: std::io::Error| format!("the folder for backups, {}: {error}", path.display());
        let path = path.canonicalize().map_err(fail)?;
        let text = path.to_str().filter(|text| !text.contains(['?', '#', '@', '%']));
        let text = text.ok_or_else(|| {
            format!("the folder for backups, {}, has a name that no URI can have as it is", path.display())
        })?;
        if !path.is_dir() {
            return Err(format!("the folder for backups, {text}, is not a directory").into());
        }
        Ok(Self { uri: format!("{SCHEME}{text}"), path })
    }

    /// Whether a location is meant for a folder, whichever.
    pub fn is_meant(container: &str) -> bool {
        container.get(..SCHEME.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SCHEME))
    }
}

#[async_trait]
impl BackupTargets for BackupFolder {
    async fn open(&self, location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError> {
        if location.container.trim_end_matches('/') != self.uri {
            let message =
                "of the folders of its machine this pool may only use the one that its operator named";
            return Err(TargetError::NotAllowed(message.into()));
        }
        match location.access {
            StorageAccess::ManagedIdentity => Ok(Box::new(Folder { path: Arc::new(self.path.clone()) })),
            StorageAccess::Sas(_) => {
                let message =
                    "a folder takes no SAS: say useManagedIdentity, as the server itself goes there";
                Err(TargetError::NotAllowed(message.into()))
            }
        }
    }
}

struct Folder {
    path: Arc<PathBuf>,
}

impl Folder {
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, TargetError> + Send + 'static,
    ) -> Result<T, TargetError> {
        let path = self.path.clone();
        blocking(move || work(&path)).await
    }
}

#[async_trait]
impl BackupTarget for Folder {
    async fn check(&self, write: bool) -> Result<(), TargetError> {
        self.run(move |path| {
            let directory = open_root(path)?;
            if write {
                let name = temporary();
                drop(make(&directory, &name)?);
                unlinkat(&directory, &name, AtFlags::empty()).map_err(failed)?;
            }
            Ok(())
        })
        .await
    }

    async fn create(&self, name: &str) -> Result<Box<dyn BlobWriter>, TargetError> {
        let name = name.to_owned();
        self.run(move |path| {
            let (folder, blob) = split(&name)?;
            let root = open_root(path)?;
            match mkdirat(&root, folder, Mode::RWXU) {
                Ok(()) => sync(&root)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(failed(error)),
            }
            let directory = open_folder(&root, folder, &name)?;
            if stat(&directory, blob, &name)?.is_some() {
                return Err(TargetError::Exists(name));
            }
            let temporary = temporary();
            let file = make(&directory, &temporary)?;
            let blob = blob.to_owned();
            let part = Part { root, directory, folder: folder.to_owned(), temporary, blob, name };
            Ok(Box::new(Writer(Some((file, part)))) as Box<dyn BlobWriter>)
        })
        .await
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, TargetError> {
        let name = name.to_owned();
        self.run(move |path| {
            let (folder, blob) = split(&name)?;
            match open_folder(&open_root(path)?, folder, &name) {
                Ok(directory) => Ok(stat(&directory, blob, &name)?),
                Err(TargetError::Missing(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, TargetError> {
        let name = name.to_owned();
        self.run(move |path| {
            let (folder, blob) = split(&name)?;
            let directory = open_folder(&open_root(path)?, folder, &name)?;
            let file = open_blob(&directory, blob, &name)?;
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map_err(|error| TargetError::Io(error.to_string()))?;
            Ok(bytes.into())
        })
        .await
    }
}

/// A blob under a name of its own, which goes with it unless it is finished.
struct Part {
    root: OwnedFd,
    directory: OwnedFd,
    folder: String,
    temporary: String,
    blob: String,
    /// As the pool calls it.
    name: String,
}

impl Drop for Part {
    fn drop(&mut self) {
        // Once it is finished its blob has another name as well; and a folder that is not empty stays.
        let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        let _ = unlinkat(&self.root, &self.folder, AtFlags::REMOVEDIR);
    }
}

struct Writer(Option<(File, Part)>);

#[async_trait]
impl BlobWriter for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<(), TargetError> {
        let (mut file, part) =
            self.0.take().ok_or_else(|| TargetError::Io("an earlier write failed".into()))?;
        let (written, file) = blocking(move || Ok((file.write_all(&bytes), file))).await?;
        written.map_err(|error| TargetError::Io(error.to_string()))?;
        self.0 = Some((file, part));
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<(), TargetError> {
        let (file, part) = self.0.ok_or_else(|| TargetError::Io("an earlier write failed".into()))?;
        blocking(move || {
            file.sync_all().map_err(|error| TargetError::Io(error.to_string()))?;
            // A link, and not a renaming: what is there already is not replaced.
            match linkat(&part.directory, &part.temporary, &part.directory, &part.blob, AtFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Err(TargetError::Exists(part.name.clone())),
                Err(error) => return Err(failed(error)),
            }
            unlinkat(&part.directory, &part.temporary, AtFlags::empty()).map_err(failed)?;
            sync(&part.directory)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TargetError> + Send + 'static,
) -> Result<T, TargetError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| TargetError::Io("the work on it was cut short".into()))?
}

/// `folder/blob`, each a plain name.
fn split(name: &str) -> Result<(&str, &str), TargetError> {
    let is_plain = |part: &str| {
        let plain =
            |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
        !part.is_empty() && !part.starts_with('.') && part.chars().all(plain)
    };
    name.split_once('/').filter(|(folder, blob)| is_plain(folder) && is_plain(blob)).ok_or_else(|| {
        TargetError::NotAllowed("a folder of backups holds folders, and these hold no more".into())
    })
}

fn open_root(path: &Path) -> Result<OwnedFd, TargetError> {
    open(path, DIRECTORY, Mode::empty()).map_err(failed)
}

fn open_folder(root: &OwnedFd, folder: &str, name: &str) -> Result<OwnedFd, TargetError> {
    openat(root, folder, DIRECTORY, Mode::empty()).map_err(|error| missing_or_failed(error, name))
}

fn open_blob(directory: &OwnedFd, blob: &str, name: &str) -> Result<File, TargetError> {
    // Not blocking: what is no file, such as a pipe, is found out below.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file: File =
        openat(directory, blob, flags, Mode::empty()).map_err(|error| missing_or_failed(error, name))?.into();
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(TargetError::NotAllowed(format!("{name} is not a file"))),
        Err(error) => Err(TargetError::Io(error.to_string())),
    }
}

fn stat(directory: &OwnedFd, blob: &str, name: &str) -> Result<Option<u64>, TargetError> {
    match open_blob(directory, blob, name) {
        Ok(file) => {
            file.metadata().map(|held| Some(held.len())).map_err(|error| TargetError::Io(error.to_string()))
        }
        Err(TargetError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn make(directory: &OwnedFd, name: &str) -> Result<File, TargetError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::RUSR | Mode::WUSR).map(File::from).map_err(failed)
}

fn sync(directory: &OwnedFd) -> Result<(), TargetError> {
    rustix::fs::fsync(directory).map_err(failed)
}

fn temporary() -> String {
    format!(".part-{}", SystemRandom.guid())
}

fn failed(error: Errno) -> TargetError {
    TargetError::Io(std::io::Error::from(error).to_string())
}

fn missing_or_failed(error: Errno, name: &str) -> TargetError {
    match error {
        Errno::NOENT => TargetError::Missing(name.to_owned()),
        Errno::LOOP | Errno::NOTDIR => {
            TargetError::NotAllowed(format!("{name} is behind a symbolic link, or no directory"))
        }
        error => failed(error),
    }
}

/// Where a pool's backups may go: to the storage that its operator listed, and to the folder.
pub struct Places {
    pub storage: Option<Arc<dyn BackupTargets>>,
    pub folder: Option<BackupFolder>,
}

#[async_trait]
impl BackupTargets for Places {
    async fn open(&self, location: &StorageLocation) -> Result<Box<dyn BackupTarget>, TargetError> {
        let none = |what: &str| {
            TargetError::NotAllowed(format!("this pool's operator has named no {what} for backups"))
        };
        match (&self.folder, &self.storage) {
            (Some(folder), _) if BackupFolder::is_meant(&location.container) => folder.open(location).await,
            (None, _) if BackupFolder::is_meant(&location.container) => Err(none("folder")),
            (_, Some(storage)) => storage.open(location).await,
            (_, None) => Err(none("storage")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::backup::SasToken;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn location(container: &str) -> StorageLocation {
        StorageLocation { container: container.to_owned(), access: StorageAccess::ManagedIdentity }
    }

    struct Here {
        directory: tempfile::TempDir,
        folder: BackupFolder,
    }

    impl Here {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let folder = BackupFolder::new(directory.path()).unwrap();
            Self { directory, folder }
        }

        async fn target(&self) -> Box<dyn BackupTarget> {
            self.folder.open(&location(&self.folder.uri)).await.unwrap()
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.directory.path()).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    async fn write(
        target: &dyn BackupTarget,
        name: &str,
        parts: &[&'static [u8]],
    ) -> Result<(), TargetError> {
        let mut blob = target.create(name).await?;
        for part in parts {
            blob.write(Bytes::from_static(part)).await?;
        }
        blob.finish().await
    }

    #[tokio::test]
    async fn what_is_written_is_read_again_and_private_and_never_written_over() {
        let here = Here::new();
        let target = here.target().await;
        target.check(true).await.unwrap();
        assert!(here.names().is_empty(), "a check leaves something");
        assert_eq!(target.size("f/b").await, Ok(None));
        write(target.as_ref(), "f/b", &[b"one", b"two"]).await.unwrap();
        assert_eq!(target.size("f/b").await, Ok(Some(6)));
        assert_eq!(target.read("f/b", 2, 3).await.unwrap(), "etw");
        assert!(matches!(target.read("f/b", 2, 5).await, Err(TargetError::Io(_))));
        assert!(matches!(write(target.as_ref(), "f/b", &[b"x"]).await, Err(TargetError::Exists(_))));
        assert_eq!(target.read("f/b", 0, 6).await.unwrap(), "onetwo");
        let mode = |name: &str| {
            let path = here.directory.path().join(name);
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("f"), mode("f/b")), (0o700, 0o600));
        assert_eq!(std::fs::read_dir(here.directory.path().join("f")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_is_not_finished_leaves_nothing() {
        let here = Here::new();
        let target = here.target().await;
        let mut blob = target.create("f/b").await.unwrap();
        blob.write(Bytes::from_static(b"half")).await.unwrap();
        assert_eq!(target.size("f/b").await, Ok(None));
        drop(blob);
        assert!(here.names().is_empty());
        // Of two that are written at once the second is refused at its end, and the first stays.
        let one = target.create("f/b").await.unwrap();
        let two = target.create("f/b").await.unwrap();
        one.finish().await.unwrap();
        assert!(matches!(two.finish().await, Err(TargetError::Exists(_))));
        assert_eq!(target.size("f/b").await, Ok(Some(0)));
    }

    #[tokio::test]
    async fn only_the_folder_itself_opens_and_nothing_leads_out_of_it() {
        let here = Here::new();
        let uri = &here.folder.uri;
        for container in [
            format!("{uri}/sub"),
            format!("{uri}/.."),
            format!("{uri}/../x"),
            "file:///".into(),
            "file:///etc".into(),
        ] {
            let opened = here.folder.open(&location(&container)).await;
            assert!(matches!(opened, Err(TargetError::NotAllowed(_))), "{container}");
        }
        let sas = StorageLocation { access: StorageAccess::Sas(SasToken::new("s")), ..location(uri) };
        assert!(matches!(here.folder.open(&sas).await, Err(TargetError::NotAllowed(_))));
        here.folder.open(&location(&format!("{uri}/"))).await.unwrap();
        let target = here.target().await;
        for name in ["b", "../b", "f/../b", "f/g/b", "/b", "f/", ".f/b", "f/.b", "f/b\0", "f\\b/c"] {
            assert!(matches!(target.create(name).await, Err(TargetError::NotAllowed(_))), "{name}");
            assert!(target.size(name).await.is_err() && target.read(name, 0, 1).await.is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn symbolic_links_are_not_followed() {
        let here = Here::new();
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("b"), b"secret").unwrap();
        symlink(elsewhere.path(), here.directory.path().join("linked")).unwrap();
        std::fs::create_dir(here.directory.path().join("f")).unwrap();
        symlink(elsewhere.path().join("b"), here.directory.path().join("f/b")).unwrap();
        let target = here.target().await;
        for name in ["linked/b", "f/b", "linked/new"] {
            assert!(target.create(name).await.is_err(), "{name}");
            assert!(target.read(name, 0, 1).await.is_err(), "{name}");
        }
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        std::fs::create_dir(here.directory.path().join("f/directory")).unwrap();
        assert!(matches!(target.read("f/directory", 0, 1).await, Err(TargetError::NotAllowed(_))));
    }

    #[tokio::test]
    async fn what_the_operator_did_not_name_is_refused() {
        let places = Places { storage: None, folder: None };
        for container in ["file:///tmp", "FILE:///tmp", "https://storage.example/c"] {
            let Err(TargetError::NotAllowed(message)) = places.open(&location(container)).await else {
                panic!("{container} opens")
            };
            assert!(message.contains("has named no"), "{message}");
        }
        assert!(BackupFolder::new(Path::new("/nonexistent")).is_err());
        assert!(BackupFolder::new(Path::new("/etc/passwd")).is_err());
    }
}
