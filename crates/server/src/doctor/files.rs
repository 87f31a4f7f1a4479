//! Modes and owners of a data directory: what is in it is one user's, and nobody else's to read or replace.

use super::finding::Finding;
use crate::layout::Layout;
use crate::own_user;
use std::fs::{self, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const CHECK: &str = "modes and owners";
/// Named one by one; how many more there are is said.
const SHOWN: usize = 5;
const STICKY: u32 = 0o1000;

/// Whose things may be.
struct Owners {
    owner: u32,
    /// Users of processes that root started, each with a group of its own: that group is nobody else.
    given: Range<u32>,
    /// Where such a process has things of its own.
    pools: PathBuf,
}

impl Owners {
    fn may_have(&self, path: &Path, user: u32) -> bool {
        user == self.owner || (self.given.contains(&user) && path.starts_with(&self.pools))
    }
}

pub fn check(layout: &Layout) -> io::Result<Finding> {
    let data = std::path::absolute(&layout.data)?;
    let owner = fs::metadata(&data)?.uid();
    let owners = Owners { owner, given: own_user::block(layout), pools: data.join("pools") };
    let mut problems = above(&data, owner);
    let mut looked_at = 0;
    // What `az` keeps there is as private as the directory that it is in.
    let of_az = data.join("az");
    walk(&data, &mut |path, metadata| {
        if path != of_az && path.starts_with(&of_az) {
            return;
        }
        looked_at += 1;
        let public = path == data.join("ca").join("ca.pem");
        problems.extend(problem(path, metadata, &owners, public));
    })?;
    if problems.is_empty() {
        return Ok(Finding::ok(
            CHECK,
            match owners.given.is_empty() {
                true => format!("{looked_at} files and directories, all of user {owner} alone"),
                false => format!(
                    "{looked_at} files and directories, each of user {owner} or of the process that it is for"
                ),
            },
        ));
    }
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    let mut found = problems.join("; ");
    if more > 0 {
        found += &format!("; and {more} more");
    }
    Ok(Finding::weak(
        CHECK,
        found,
        "Unless a directory above keeps others out, who reads these can be any principal and open every record; who replaces them chooses what is served.",
        format!(
            "chmod -R {}= {}; and find out who read it meanwhile",
            if owners.given.is_empty() { "go" } else { "o" },
            crate::environment::word(&data.display().to_string())
        ),
    ))
}

fn walk(path: &Path, look: &mut impl FnMut(&Path, &Metadata)) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    look(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match walk(&entry?.path(), look) {
                // Whatever serves it may have taken it away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                walked => walked?,
            }
        }
    }
    Ok(())
}

fn problem(path: &Path, metadata: &Metadata, owners: &Owners, public: bool) -> Option<String> {
    let shown = path.display();
    if metadata.is_symlink() {
        // Its own mode says nothing. What it leads to is judged, and no more than that.
        return match fs::metadata(path) {
            Ok(target) => problem(path, &target, owners, public),
            Err(_) => Some(format!("{shown} is a symbolic link to nothing")),
        };
    }
    if !owners.may_have(path, metadata.uid()) {
        return Some(format!("{shown} belongs to user {}", metadata.uid()));
    }
    let mode = metadata.permissions().mode() & 0o777;
    let group = if owners.given.contains(&metadata.gid()) { 0 } else { 0o070 };
    let forbidden = if public { 0o022 } else { group | 0o007 };
    (mode & forbidden != 0).then(|| format!("{shown} has mode {mode:03o}"))
}

/// Directories above in which others could put another directory in the place of this one.
fn above(data: &Path, owner: u32) -> Vec<String> {
    let replaceable = |path: &&Path| {
        fs::metadata(path).is_ok_and(|metadata| {
            let mode = metadata.permissions().mode();
            let foreign = metadata.uid() != owner && metadata.uid() != 0;
            foreign || (mode & 0o022 != 0 && mode & STICKY == 0)
        })
    };
    let ancestors: Vec<PathBuf> =
        data.ancestors().skip(1).filter(replaceable).map(Path::to_path_buf).collect();
    ancestors.iter().map(|path| format!("others may rename what is in {}", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;
    use std::fs::Permissions;

    fn layout(directory: &tempfile::TempDir) -> Layout {
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| crate::files::create_directory(path).unwrap());
        crate::files::write(&layout.root_key(), b"key").unwrap();
        crate::files::write(&layout.ca_certificate(), b"certificate").unwrap();
        layout
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn each_file_that_others_may_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        assert_eq!(check(&layout).unwrap().state, State::Ok);
        mode(&layout.ca_certificate(), 0o644);
        assert_eq!(check(&layout).unwrap().state, State::Ok, "the CA's certificate is public");
        for (path, bits) in [
            (layout.root_key(), 0o640),
            (layout.root_key(), 0o602),
            (layout.ca_certificate(), 0o666),
            (layout.pool(), 0o750),
        ] {
            let before = fs::metadata(&path).unwrap().permissions();
            mode(&path, bits);
            let finding = check(&layout).unwrap();
            assert_eq!(finding.state, State::Weak);
            assert!(
                finding.found.contains(&format!("{} has mode {bits:03o}", path.display())),
                "{}",
                finding.found
            );
            fs::set_permissions(&path, before).unwrap();
        }
        assert_eq!(check(&layout).unwrap().state, State::Ok);
    }

    /// A group of a process of ours may have what is given to it; others may not, and its user nothing outside its pool.
    #[test]
    fn a_process_has_what_is_given_to_it() {
        let (first, stranger) = (1_950_000_000, 1000);
        let owners = Owners { owner: 0, given: first..first + 10_000, pools: "/data/pools".into() };
        for (path, user, may) in [
            ("/data/pools/payroll/pool/store", first + 16, true),
            ("/data/pools/payroll/pool/store", stranger, false),
            ("/data/root/payroll.key", first + 16, false),
            ("/data/root/payroll.key", 0, true),
        ] {
            assert_eq!(owners.may_have(Path::new(path), user), may, "{path} {user}");
        }
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let metadata = |bits| {
            mode(&layout.root_key(), bits);
            fs::metadata(layout.root_key()).unwrap()
        };
        let gid = metadata(0o600).gid();
        let owner = metadata(0o600).uid();
        let given = Owners { owner, given: gid..gid + 1, pools: PathBuf::new() };
        let found = |bits| problem(&layout.root_key(), &metadata(bits), &given, false).is_some();
        assert_eq!([0o600, 0o660, 0o664, 0o601].map(found), [false, false, true, true]);
    }

    #[test]
    fn what_az_keeps_is_its_own_matter() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let az = layout.az_configuration(8443);
        crate::files::create_directory(&az).unwrap();
        let file = az.join("config");
        fs::write(&file, b"").unwrap();
        mode(&file, 0o644);
        assert_eq!(check(&layout).unwrap().state, State::Ok);
        mode(&layout.data.join("az"), 0o755);
        assert_eq!(check(&layout).unwrap().state, State::Weak);
    }

    #[test]
    fn a_link_is_judged_by_what_it_leads_to() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(layout.root_key(), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, layout.root_key()).unwrap();
        assert_eq!(check(&layout).unwrap().state, State::Ok);
        mode(&elsewhere, 0o644);
        assert_eq!(check(&layout).unwrap().state, State::Weak);
        fs::remove_file(&elsewhere).unwrap();
        assert!(check(&layout).unwrap().found.contains("link to nothing"));
    }

    #[test]
    fn a_directory_that_others_could_replace_is_no_home() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        mode(directory.path(), 0o777);
        assert!(check(&layout).unwrap().found.contains("others may rename"));
        mode(directory.path(), 0o1777);
        assert_eq!(check(&layout).unwrap().state, State::Ok);
    }
}
