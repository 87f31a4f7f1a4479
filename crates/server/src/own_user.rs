//! A user of its own for each process that a quickstart starts, where root started the quickstart: it may read what is its
//! own and nothing else, and reach no other process. Elsewhere all run as one user.
//!
//! No entry in a list of users is needed. The numbers are from a range that no distribution hands out; each data directory
//! has a block of it, chosen by chance, so that two quickstarts on one machine have nothing in common either.

use crate::CommandError;
use crate::files;
use crate::layout::Layout;
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, geteuid, getuid, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid, set_thread_uid,
};
use serde::{Deserialize, Serialize};
use service::{Random, SystemRandom};
use std::fs::Permissions;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;
use zeroize::Zeroizing;

/// Above what systemd hands out to containers, below what it calls foreign.
const NUMBERS: Range<u32> = 1_900_000_000..2_100_000_000;
/// As many users one data directory gives, ever: none is given twice.
const BLOCK: u32 = 10_000;
/// The first is the gateway's; the others are for processes to come.
const RESERVED: u32 = 16;
/// In a pool's directory, beside its port; both are root's.
const USER: &str = "user";
/// The pool's own may add to its directory and rename what it added there, and touch nothing that root put there.
const SHARED_MODE: u32 = 0o1770;
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// Number of a user and of the group that has nobody else.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct User(u32);

#[derive(Debug, thiserror::Error)]
#[error("{0} is not the number of a user that Holdfast gives to a process")]
pub struct NotOurs(u32);

impl TryFrom<u32> for User {
    type Error = NotOurs;
    /// Whatever a file says, it is never the number of root, or of anybody who has a name.
    fn try_from(number: u32) -> Result<Self, NotOurs> {
        if NUMBERS.contains(&number) { Ok(Self(number)) } else { Err(NotOurs(number)) }
    }
}

impl From<User> for u32 {
    fn from(user: User) -> Self {
        user.0
    }
}

/// Which users a data directory has given.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Given {
    version: u32,
    first: u32,
    given: u32,
}

/// Whether this process can give others a user each.
pub fn can_be_given() -> bool {
    let covers = |map: &str| std::fs::read_to_string(map).is_ok_and(|map| maps(&map, &NUMBERS));
    geteuid().is_root()
        && capabilities(None).is_ok_and(|rights| rights.effective.contains(NEEDED))
        && covers("/proc/self/uid_map")
        && covers("/proc/self/gid_map")
        && std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "allow")
}

/// Whether a map of `/proc/self` has all of `numbers` in one of its lines: first inside, first outside, how many.
fn maps(map: &str, numbers: &Range<u32>) -> bool {
    map.lines().any(|line| {
        let mut words = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) = (words.next(), words.next(), words.next())
        else {
            return false;
        };
        first <= u64::from(numbers.start) && first.saturating_add(count) >= u64::from(numbers.end)
    })
}

/// The user of the pool that is kept below `directory`, the same from start to start, and what is there is its own; `None`
/// where all run as one user.
pub fn of_pool(layout: &Layout, directory: &Path) -> Result<Option<User>, CommandError> {
    let path = directory.join(USER);
    if !can_be_given() {
        return match files::read(&path)? {
            None => Ok(None),
            Some(_) => Err(format!(
                "{} says that the pool has a user of its own: only root can start it, with the capabilities to change owners and users",
                path.display()
            )
            .into()),
        };
    }
    let held = files::read_or_make::<CommandError>(&path, || {
        Ok(Zeroizing::new(next(&layout.users())?.0.to_string().into_bytes()))
    })?;
    let number: Option<u32> = std::str::from_utf8(&held).ok().and_then(|text| text.trim().parse().ok());
    let user: User =
        number.ok_or_else(|| format!("{} is damaged: it is a number", path.display()))?.try_into()?;
    hand_over(directory, user)
        .map_err(|error| format!("{} cannot be given to user {}: {error}", directory.display(), user.0))?;
    Ok(Some(user))
}

/// The users that a data directory gives to its processes; none where all run as one user. What cannot be read gives none.
pub fn block(layout: &Layout) -> Range<u32> {
    let held = files::read(&layout.users()).ok().flatten();
    match held.and_then(|held| serde_json::from_slice::<Given>(&held).ok()) {
        Some(Given { first, .. }) if User::try_from(first).is_ok() => first..first.saturating_add(BLOCK),
        Some(_) | None => 0..0,
    }
}

/// The gateway's.
pub fn of_gateway(layout: &Layout) -> Result<Option<User>, CommandError> {
    if !can_be_given() {
        return Ok(None);
    }
    let path = layout.users();
    let given = given(&path)?;
    if !path.exists() {
        files::write(&path, &serde_json::to_vec(&given)?)?;
    }
    let user = User::try_from(given.first)?;
    // It passes through, to the sockets that are for it.
    std::fs::set_permissions(layout.run(), Permissions::from_mode(0o710))?;
    chown(layout.run(), None, Some(user.0))?;
    Ok(Some(user))
}

/// Counted before it is used: after a crash a number is lost and never given twice.
fn next(path: &Path) -> Result<User, CommandError> {
    let mut given = given(path)?;
    if given.given >= BLOCK {
        return Err(
            format!("all {BLOCK} users that this data directory can give were given: make another").into()
        );
    }
    let user = given.first.checked_add(given.given).ok_or("no such number")?.try_into()?;
    given.given += 1;
    files::write(path, &serde_json::to_vec(&given)?)?;
    Ok(user)
}

fn given(path: &Path) -> Result<Given, CommandError> {
    let given: Given = match files::read(path)? {
        Some(held) => serde_json::from_slice(&held)
            .map_err(|error| format!("{} is damaged ({error}): put it back from a copy", path.display()))?,
        None => {
            let mut chance = [0; 4];
            SystemRandom.fill(&mut chance);
            let blocks = (NUMBERS.end - NUMBERS.start) / BLOCK;
            let first = NUMBERS.start + u32::from_le_bytes(chance) % blocks * BLOCK;
            Given { version: 1, first, given: RESERVED }
        }
    };
    if given.version != 1 {
        return Err(
            format!("{} is of a later release: its version is {}", path.display(), given.version).into()
        );
    }
    if !(RESERVED..=BLOCK).contains(&given.given) {
        return Err(
            format!("{} is damaged: {} users cannot have been given", path.display(), given.given).into()
        );
    }
    Ok(given)
}

/// Once: from when the directory is the user's group's, the user may have put anything there, and root changes no owner in it.
fn hand_over(directory: &Path, user: User) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(directory)?;
    if !metadata.is_dir() {
        return Err(io::Error::other("it is not a directory"));
    }
    if metadata.gid() == user.0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // The pool, and what was or will be in its place; files beside them are root's.
        if entry.file_type()?.is_dir() {
            give(&entry.path(), user)?;
        }
    }
    std::fs::set_permissions(directory, Permissions::from_mode(SHARED_MODE))?;
    chown(directory, None, Some(user.0))?;
    std::fs::File::open(directory)?.sync_all()
}

fn give(path: &Path, user: User) -> io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), user)?;
        }
    }
    lchown(path, Some(user.0), Some(user.0))
}

/// This process is `user` from here on, for good, and has no right beyond that user's.
///
/// The system calls are for one thread, so this is for a process that has one. It is done here and not by whoever starts the
/// process, as what it needs to open first is nobody's but root's.
pub fn become_user(user: User) -> Result<(), CommandError> {
    let fail = |what: &'static str| move |error: Errno| format!("cannot {what}: {error}");
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err("this process has threads already, and would not change its user as a whole".into());
    }
    // Who is not root may lock no more memory than this.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if capability_is_in_bounding_set(capability) == Ok(true) {
            remove_capability_from_bounding_set(capability).map_err(fail("give up a capability"))?;
        }
    }
    let (uid, gid) = (Uid::from_raw(user.0), Gid::from_raw(user.0));
    set_no_new_privs(true).map_err(fail("refuse new privileges"))?;
    set_thread_groups(&[]).map_err(fail("leave its groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(fail("change its group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(fail("change its user"))?;
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, nothing).map_err(fail("give up its capabilities"))?;
    // A mistake here is worth an end.
    let gone = capabilities(None).is_ok_and(|rights| rights == nothing);
    if !gone || getuid() != uid || geteuid() != uid || set_thread_uid(Uid::ROOT).is_ok() {
        return Err("this process could not give up its rights".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_file_makes_a_process_root_or_anybody_with_a_name() {
        for number in [0, 1000, 65_534, NUMBERS.start - 1, NUMBERS.end, u32::MAX] {
            assert!(User::try_from(number).is_err(), "{number}");
            assert!(serde_json::from_str::<User>(&number.to_string()).is_err(), "{number}");
        }
        assert_eq!(serde_json::from_str::<User>("1900000000").unwrap(), User(NUMBERS.start));
    }

    #[test]
    fn no_user_is_given_twice_and_there_is_a_last_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.json");
        let first = next(&path).unwrap();
        assert_eq!((first.0 - NUMBERS.start) % BLOCK, RESERVED);
        assert_eq!(next(&path).unwrap().0, first.0 + 1);
        let start = first.0 - RESERVED;
        let text = format!("{{\"version\":1,\"first\":{},\"given\":{}}}", start, BLOCK - 1);
        files::write(&path, text.as_bytes()).unwrap();
        assert_eq!(next(&path).unwrap().0, start + BLOCK - 1);
        assert!(next(&path).unwrap_err().to_string().contains("all 10000 users"));
        for (text, expected) in [
            ("{\"version\":2,\"first\":1900000000,\"given\":0}", "later release"),
            ("{\"version\":1,\"first\":0,\"given\":16}", "16 is not the number"),
            ("{\"version\":1,\"first\":4294967295,\"given\":99}", "no such number"),
            ("{\"version\":1,\"first\":1900000000,\"given\":15}", "15 users cannot have been given"),
            ("{\"version\":1,\"first\":1900000000}", "damaged"),
        ] {
            files::write(&path, text.as_bytes()).unwrap();
            let error = next(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_golden_file_is_read_and_written_again_byte_for_byte() {
        let golden = include_bytes!("../tests/golden/users-v1.json");
        let held: Given = serde_json::from_slice(golden).unwrap();
        assert_eq!((held.first, held.given), (1_950_000_000, RESERVED));
        assert_eq!(serde_json::to_vec(&held).unwrap(), golden);
    }

    #[test]
    fn a_namespace_without_the_numbers_is_noticed() {
        assert!(maps("         0          0 4294967295\n", &NUMBERS));
        for map in ["", "0 100000 65536\n", "0 0\n", "a b c\n", "1900000001 0 4294967295\n"] {
            assert!(!maps(map, &NUMBERS), "{map}");
        }
    }
}
