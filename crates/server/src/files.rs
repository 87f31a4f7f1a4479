//! Files that are there wholly or not at all, whenever the power fails, and are nobody else's to read.

use service::{Random, SystemRandom};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// Makes `path` and what is missing above it, mode 0700, so that no power loss takes them back.
pub fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = parent(path);
    create_directory(parent)?;
    step()?;
    match DirBuilder::new().mode(0o700).create(path) {
        // Made meanwhile by another process, which the lock will tell from this one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        made => made?,
    }
    sync_directory(parent)
}

/// Writes `path` through a temporary file, mode 0600: after power loss it is the old file or the new one.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    step()?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    step()?;
    file.write_all(content)?;
    file.sync_all()?;
    rename(Path::new(&temporary), path)?;
    sync_parent(path)
}

/// Not yet durable; [`sync_directory`] makes it so.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)
}

/// What a process says is added to; nobody else's to read.
pub fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Puts noise in the place of what a file holds. Where a file system or a disk keeps earlier contents elsewhere, those stay.
pub fn overwrite(path: &Path) -> io::Result<()> {
    step()?;
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut noise = vec![0; length];
    SystemRandom.fill(&mut noise);
    file.write_all(&noise)?;
    file.sync_all()
}

/// Removes a file, durably; nothing where there is none.
pub fn remove(path: &Path) -> io::Result<()> {
    step()?;
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes a directory with all that is in it; nothing where there is none.
pub fn remove_directory(path: &Path) -> io::Result<()> {
    step()?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    step()?;
    File::open(path)?.sync_all()
}

/// Comes before whatever changes the disk, so that tests can end there.
#[cfg(not(test))]
fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
use ending::step;

/// An end of this process, as far as files are concerned, before a step of a test's choice.
#[cfg(test)]
pub mod ending {
    use std::cell::Cell;
    use std::io;
    use std::path::Path;

    thread_local! {
        /// Steps that are left; `None`: as many as there are.
        static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// What `work` gives, and whether all its steps were made; from `step` on none is.
    pub async fn at<T>(step: u64, work: impl Future<Output = T>) -> (T, bool) {
        LEFT.set(Some(step));
        let done = work.await;
        (done, LEFT.replace(None).is_some_and(|left| left > 0))
    }

    /// A directory as it was left, to go on from more than once.
    pub fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    pub(super) fn step() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the process has ended")),
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}

/// The content of `path`, or `None` where there is no such file.
pub fn read(path: &Path) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(Zeroizing::new(content))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The content of `path`; where there is none, what `make` makes, written first.
pub fn read_or_make<E: From<io::Error>>(
    path: &Path,
    make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, E>,
) -> Result<Zeroizing<Vec<u8>>, E> {
    if let Some(content) = read(path)? {
        return Ok(content);
    }
    let content = make()?;
    write(path, &content)?;
    Ok(content)
}

/// Of a path that may be relative, where its directory has no name.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(parent(path))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A pool with a user of its own is a name in the directory it was started in.
    #[test]
    fn the_directory_of_a_bare_name_is_synced() {
        sync_parent(Path::new("pool")).unwrap();
    }

    #[test]
    fn files_and_directories_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        create_directory(&path).unwrap();
        let file = path.join("secret");
        write(&file, b"one").unwrap();
        write(&file, b"two").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
        assert_eq!(fs::read(&file).unwrap(), b"two");
        let kept = read_or_make::<io::Error>(&file, || panic!("made again")).unwrap();
        assert_eq!(kept.as_slice(), b"two");
    }
}
