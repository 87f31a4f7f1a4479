//! What only the running pool can say of itself, over its administration socket. Nothing of it is secret.

use crate::hardening;
use crypto_software::arena;
use domain::time::IntDate;
use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use serde::{Deserialize, Serialize};
use service::Pool;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(10);
const MAX_BYTES: u64 = 64 * 1024;

/// What genesis fixed, and what the process reached. Members that are not known are left out or ignored, as the pool may
/// be of another release.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    pub pid: u32,
    pub class: String,
    pub retention_days: u8,
    pub purge_protection: bool,
    pub audit_durability: String,
    pub break_glass_group: Option<String>,
    /// `None`: a pool of an earlier release, that does not say.
    #[serde(default)]
    pub active: Option<bool>,
    /// Of an uploaded domain that nobody has confirmed.
    #[serde(default)]
    pub unconfirmed_fingerprint: Option<String>,
    /// When this pool completed its last full backup, in Unix seconds.
    #[serde(default)]
    pub last_backup: Option<i64>,
    #[serde(default)]
    pub network: Option<Network>,
    pub protection: Protection,
}

/// Which addresses may come.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// In the words of the log.
    pub rules: String,
    pub open_to_all: bool,
}

/// How far the process is from others' reach. `None`: the system did not say.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Protection {
    /// Whether core files may be written and debuggers of the same user attach.
    pub dumpable: Option<bool>,
    /// Bytes of a core file; `None` without a limit.
    pub core_limit: Option<u64>,
    pub no_new_privileges: Option<bool>,
    /// Whether system calls are filtered.
    pub filtered: Option<bool>,
    /// All of it, so that nothing reaches swap.
    #[serde(default)]
    pub memory_locked: Option<bool>,
    /// That of keys.
    #[serde(default)]
    pub arena_locked: Option<bool>,
}

impl Facts {
    /// Of the process that this is.
    pub fn of(pool: &Pool) -> Self {
        let genesis = pool.genesis();
        let rules = pool.network_rules();
        Self {
            pid: std::process::id(),
            class: genesis.class.as_str().to_owned(),
            retention_days: genesis.retention.days(),
            purge_protection: genesis.purge_protection,
            audit_durability: genesis.audit_durability.as_str().to_owned(),
            break_glass_group: genesis.break_glass_group.map(|group| group.to_string()),
            active: Some(pool.is_active()),
            unconfirmed_fingerprint: pool.awaits_confirmation().then(|| pool.domain_fingerprint().to_owned()),
            last_backup: pool.last_backup_at().map(IntDate::unix_seconds),
            network: Some(Network { open_to_all: rules.is_open_to_all(), rules: rules.to_string() }),
            protection: Protection::of_this_process(),
        }
    }

    /// As the pool at `socket` gives them. `Err`: why not.
    pub fn ask(socket: &Path) -> Result<Self, Unanswered> {
        let mut stream = UnixStream::connect(socket).map_err(|_| Unanswered::NotRunning)?;
        let answer = ask(&mut stream).map_err(|_| Unanswered::NoFacts)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(Unanswered::NoFacts)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(Unanswered::NoFacts);
        }
        serde_json::from_str(body).map_err(|_| Unanswered::NoFacts)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unanswered {
    NotRunning,
    /// It runs, and is of another release or another user.
    NoFacts,
}

fn ask(stream: &mut UnixStream) -> std::io::Result<String> {
    stream.set_read_timeout(Some(TIME))?;
    stream.write_all(b"GET /pool HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}

impl Protection {
    fn of_this_process() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let dumpable =
            dumpable_behavior().ok().map(|behaviour| !matches!(behaviour, DumpableBehavior::NotDumpable));
        Self {
            dumpable,
            core_limit: getrlimit(Resource::Core).current,
            no_new_privileges: rustix::thread::no_new_privs().ok(),
            filtered: number(&status, "Seccomp").map(|mode| mode != 0),
            memory_locked: Some(hardening::memory_is_locked()),
            arena_locked: arena::status().map(|status| status.is_locked()),
        }
    }
}

/// The number behind `name:` in the lines of `/proc/PID/status`.
fn number(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let status = "Name:\tholdfast\nVmLck:\t    4096 kB\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(number(status, "VmLck"), Some(4096));
        assert_eq!(number(status, "Seccomp"), Some(2));
        assert_eq!(number(status, "Vm"), None);
        assert_eq!(number(status, "Name"), None);
    }

    #[test]
    fn where_nothing_listens_nothing_runs() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = Facts::ask(&directory.path().join("admin.sock"));
        assert_eq!(nowhere.unwrap_err(), Unanswered::NotRunning);
    }
}
