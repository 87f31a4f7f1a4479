//! `holdfast pool passphrase`: seals under another passphrase what is sealed under the pool's.
//!
//! That is several files, and no file system replaces several at once. So all of them are sealed anew in a directory
//! beside, complete and durable before it is marked as such; then they are moved into place, by this command or, where it
//! was cut short, by the next one that seals or opens anything. Until the mark is there the old passphrase opens the pool and
//! the new one does not; from then on it is the other way round.

use super::check_production;
use crate::CommandError;
use crate::files;
use crate::hardening;
use crate::instance::{COMPLETE, discard};
use crate::layout::Layout;
use crate::output::line;
use crate::root_of_trust::RootOfTrust;
use crate::{remains, running};
use crypto::SecretBytes;
use domain::pool::PoolClass;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where everything is kept. Nobody may be serving it.
    #[arg(long = "data", value_name = "DIR")]
    data: PathBuf,
    /// A file whose first line is the passphrase that the pool has.
    #[arg(long, value_name = "FILE")]
    root_credential: PathBuf,
    /// A file whose first line is the one that it is to have from now on.
    #[arg(long, value_name = "FILE")]
    new_root_credential: PathBuf,
}

/// Held while anything is sealed: all of it is sealed under one passphrase.
pub struct Sealing {
    _directory: File,
}

impl Sealing {
    /// Waits for whoever else is sealing, and finishes a change of the passphrase that was cut short.
    pub fn begin(layout: &Layout) -> io::Result<Self> {
        let directory = File::open(layout.tls())?;
        directory.lock()?;
        finish(layout)?;
        Ok(Self { _directory: directory })
    }
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    // The domain's secrets are in memory meanwhile.
    hardening::for_class(PoolClass::Production)?;
    let layout = Layout::new(arguments.data.clone());
    check_production(&layout)?;
    check_user(&layout)?;
    files::create_directory(&layout.run())?;
    let _lock = running::lock(&layout)?;
    let _sealing = Sealing::begin(&layout)?;
    let old = RootOfTrust::credential(&arguments.root_credential)
        .map_err(|error| format!("the passphrase that the pool has: {error}"))?;
    let new = RootOfTrust::credential(&arguments.new_root_credential)
        .map_err(|error| format!("the new passphrase: {error}"))?;
    layout.production_place(old.clone()).finish_switch()?;
    remains::check_production(&layout)?;
    let count = change(&layout, &old, &new)?;
    line(format_args!(
        "sealed under the new passphrase: {count} files. Hand it over from the next start on. A copy of {} that was made before opens with the old one",
        layout.data.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Files that another user makes here are not the pool's to read.
pub(super) fn check_user(layout: &Layout) -> Result<(), CommandError> {
    let tls = layout.tls();
    let held =
        std::fs::metadata(&tls).map_err(|error| format!("cannot look at {}: {error}", tls.display()))?;
    let owner = held.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    Err(format!(
        "{} is user {owner}'s, and this is user {user}: what it writes the pool could not read",
        tls.display()
    )
    .into())
}

/// How many files were sealed anew. Whatever fails before the mark leaves everything as it was.
fn change(layout: &Layout, old: &RootOfTrust, new: &RootOfTrust) -> Result<usize, CommandError> {
    let node = layout.production_place(old.clone()).own_node()?;
    let domain = layout.sealed_domain();
    let sealed = read(&domain)?;
    let is_new = new.open(&domain, node, &sealed).is_ok();
    match old.open(&domain, node, &sealed) {
        Ok(_) if is_new => return Err("the new passphrase is the one that the pool has".into()),
        Ok(_) => {}
        Err(_) if is_new => return Err("the pool has the new passphrase already, and not the old one".into()),
        Err(error) => return Err(error),
    }
    let mut opened: Vec<(PathBuf, SecretBytes)> = Vec::new();
    for path in sealed_files(layout)? {
        let place = layout.data.join(&path);
        opened.push((path, old.open_secret(&place, node, &read(&place)?)?));
    }
    let prepared = opened.iter().try_for_each(|(path, secret)| -> Result<(), CommandError> {
        let place = next(layout).join(path);
        files::create_directory(place.parent().unwrap_or(&layout.data))?;
        files::write(&place, &new.seal(node, secret)?)?;
        let again = new.open_secret(&place, node, &read(&place)?)?;
        if again.danger_expose() != secret.danger_expose() {
            return Err(format!("{} did not come back as it was written", place.display()).into());
        }
        Ok(())
    });
    let marked = prepared.and_then(|()| Ok(files::write(&next(layout).join(COMPLETE), b"")?));
    if let Err(error) = marked {
        discard(&next(layout))?;
        return Err(error);
    }
    finish(layout).map_err(|error| {
        format!("the pool has the new passphrase, and its files are put in place at the next start: {error}")
    })?;
    Ok(opened.len())
}

/// Moves what is complete into place, and throws away what is not.
fn finish(layout: &Layout) -> io::Result<()> {
    if next(layout).join(COMPLETE).exists() {
        for path in sealed_files(layout)? {
            let (new, old) = (next(layout).join(&path), layout.data.join(&path));
            if new.exists() {
                files::overwrite(&old)?;
                files::rename(&new, &old)?;
                files::sync_directory(old.parent().unwrap_or(&layout.data))?;
            }
        }
    }
    discard(&next(layout))
}

fn next(layout: &Layout) -> PathBuf {
    layout.data.join("passphrase.next")
}

/// Whatever is sealed under the passphrase, as seen from the data directory: the domain, those of pools that were replaced,
/// and a key for each certificate that was asked for.
fn sealed_files(layout: &Layout) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&layout.data)? {
        let name = PathBuf::from(entry?.file_name());
        let is_a_pools =
            name.to_str().is_some_and(|name| name == "pool" || name.starts_with("pool.replaced-"));
        let sealed = name.join("domain.sealed");
        if is_a_pools && layout.data.join(&sealed).exists() {
            files.push(sealed);
        }
    }
    for entry in std::fs::read_dir(layout.tls())? {
        let name = PathBuf::from(entry?.file_name());
        if name.extension().is_some_and(|extension| extension == "sealed") {
            files.push(Path::new("tls").join(name));
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    Ok(std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crypto::domain_secrets::DomainSecrets;
    use domain::guid::Guid;

    const NODE: Guid = Guid([5; 16]);
    const SEALED: [&str; 4] =
        ["pool.replaced-1/domain.sealed", "pool/domain.sealed", "tls/aa.sealed", "tls/bb.sealed"];

    /// Key files in the place of passphrases, which take a good part of a second each to try.
    struct Roots {
        directory: tempfile::TempDir,
        old: RootOfTrust,
        new: RootOfTrust,
    }

    impl Roots {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let [old, new] = ["old", "new"].map(|name| {
                let root = RootOfTrust::KeyFile(directory.path().join(name));
                root.seal_first(NODE, &SecretBytes::new(vec![1])).unwrap();
                root
            });
            Self { directory, old, new }
        }

        /// A pool that took in a domain and asked for two certificates.
        fn pool(&self) -> tempfile::TempDir {
            let directory = tempfile::tempdir().unwrap();
            for path in SEALED {
                let place = directory.path().join(path);
                files::create_directory(place.parent().unwrap()).unwrap();
                let secret = match path.strip_suffix("domain.sealed") {
                    Some(_) => DomainSecrets::generate().danger_export(),
                    None => SecretBytes::new(path.as_bytes().to_vec()),
                };
                files::write(&place, &self.old.seal(NODE, &secret).unwrap()).unwrap();
            }
            files::write(&directory.path().join("pool/node"), NODE.to_string().as_bytes()).unwrap();
            files::write(&directory.path().join("tls/chain.pem"), b"a chain").unwrap();
            directory
        }
    }

    /// What each file holds, opened with `root`; `None` where any does not open.
    fn opened(layout: &Layout, root: &RootOfTrust) -> Option<Vec<Vec<u8>>> {
        let open = |path: &str| {
            let path = layout.data.join(path);
            let secret = root.open_secret(&path, NODE, &std::fs::read(&path).unwrap()).ok()?;
            Some(secret.danger_expose().to_vec())
        };
        SEALED.into_iter().map(open).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let names = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The process ends before each step in turn that changes the disk, then again before each step of the start after that.
    #[tokio::test]
    async fn an_end_at_any_step_leaves_a_pool_of_the_old_passphrase_or_of_the_new_one() {
        let roots = Roots::new();
        let before = roots.pool();
        let content = opened(&Layout::new(before.path().into()), &roots.old).unwrap();
        let (mut olds, mut news) = (0, 0);
        for step in 0.. {
            let directory = tempfile::tempdir().unwrap();
            files::ending::copy(before.path(), directory.path());
            let layout = Layout::new(directory.path().into());
            let changed = async { change(&layout, &roots.old, &roots.new).is_ok() };
            let (acknowledged, whole) = files::ending::at(step, changed).await;
            for again in 0.. {
                let left = tempfile::tempdir().unwrap();
                files::ending::copy(directory.path(), left.path());
                let layout = Layout::new(left.path().into());
                let (_, whole) = files::ending::at(again, async { Sealing::begin(&layout) }).await;
                Sealing::begin(&layout).unwrap();
                let place = format!("step {step}, then {again}");
                match (opened(&layout, &roots.old), opened(&layout, &roots.new)) {
                    (Some(old), None) => {
                        assert!(!acknowledged, "{place}: acknowledged and lost");
                        assert_eq!(old, content, "{place}");
                        olds += 1;
                    }
                    (None, Some(new)) => {
                        assert_eq!(new, content, "{place}");
                        news += 1;
                    }
                    _ => panic!("{place}: neither passphrase opens all"),
                }
                assert_eq!(names(left.path()), ["pool", "pool.replaced-1", "tls"], "{place}");
                if whole {
                    break;
                }
            }
            if whole {
                assert!(acknowledged, "nothing ended it");
                break;
            }
        }
        assert!(olds > 15 && news > 15, "{olds} old, {news} new");
    }

    #[test]
    fn the_wrong_passphrase_changes_nothing_and_each_refusal_says_why() {
        let roots = Roots::new();
        let pool = roots.pool();
        let layout = Layout::new(pool.path().into());
        let other = Roots::new();
        let content = || SEALED.map(|path| std::fs::read(pool.path().join(path)).unwrap());
        let before = content();
        let refused =
            |old: &RootOfTrust, new: &RootOfTrust| change(&layout, old, new).unwrap_err().to_string();
        assert!(refused(&other.old, &roots.new).contains("domain.sealed"));
        assert!(refused(&roots.old, &roots.old).contains("is the one that the pool has"));
        assert!(refused(&other.old, &roots.old).contains("has the new passphrase already"));
        // One file of many that is another's.
        let foreign = other.old.seal(NODE, &SecretBytes::new(vec![1])).unwrap();
        files::write(&pool.path().join("tls/cc.sealed"), &foreign).unwrap();
        assert!(refused(&roots.old, &roots.new).contains("cc.sealed"));
        // What lies where the new files are to be made.
        std::fs::remove_file(pool.path().join("tls/cc.sealed")).unwrap();
        files::write(&pool.path().join("passphrase.next"), b"").unwrap();
        assert!(change(&layout, &roots.old, &roots.new).is_err());
        std::fs::remove_file(pool.path().join("passphrase.next")).unwrap();
        assert_eq!(content(), before);
        assert_eq!(change(&layout, &roots.old, &roots.new).unwrap(), SEALED.len());
        drop(roots.directory);
    }

    /// What was sealed under the old passphrase is not left on the disk by us.
    #[test]
    fn the_old_files_are_overwritten() {
        let roots = Roots::new();
        let pool = roots.pool();
        let old: Vec<_> = SEALED
            .iter()
            .enumerate()
            .map(|(number, path)| {
                let kept = pool.path().join(number.to_string());
                std::fs::hard_link(pool.path().join(path), &kept).unwrap();
                (std::fs::read(&kept).unwrap(), kept)
            })
            .collect();
        change(&Layout::new(pool.path().into()), &roots.old, &roots.new).unwrap();
        for (sealed, kept) in old {
            let now = std::fs::read(kept).unwrap();
            assert_eq!(now.len(), sealed.len());
            assert_ne!(now[40..], sealed[40..]);
        }
    }

    #[test]
    fn whoever_seals_waits_for_whoever_else_does() {
        let roots = Roots::new();
        let pool = roots.pool();
        let layout = Layout::new(pool.path().into());
        let first = Sealing::begin(&layout).unwrap();
        let second = File::open(layout.tls()).unwrap();
        assert!(second.try_lock().is_err());
        drop(first);
        second.try_lock().unwrap();
    }
}
