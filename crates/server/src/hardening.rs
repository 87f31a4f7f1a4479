//! What keeps secrets in this process, set before any key is read; and the number of descriptors it may open.
//!
//! It asks the operating system and says what it got. It decides nothing: whoever starts a pool does, by its class.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Memory that must be lockable before all of it is locked: with less, later allocations would fail.
const ENOUGH_LOCKABLE_BYTES: u64 = 4 << 30;

/// What was reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hardening {
    /// No core file is written, and no other process of this user may attach or read this one's memory.
    pub no_dumps: bool,
    /// Nothing this process starts can gain rights.
    pub no_new_privileges: bool,
    /// No page goes to swap.
    pub memory_locked: bool,
    /// Files and sockets that may be open at once.
    pub descriptors: u64,
}

impl Hardening {
    /// What is missing, and what to do about it, a line each. A pool of class production does not start with any.
    pub fn shortfalls(&self) -> Vec<&'static str> {
        let checks = [
            (
                self.no_dumps,
                "core files or debuggers may read this process: RLIMIT_CORE or PR_SET_DUMPABLE was refused",
            ),
            (
                self.no_new_privileges,
                "programs started from here could gain rights: PR_SET_NO_NEW_PRIVS was refused",
            ),
            (
                self.memory_locked,
                "keys could reach swap: memory is not locked (raise RLIMIT_MEMLOCK, `ulimit -l unlimited`)",
            ),
        ];
        checks.into_iter().filter_map(|(reached, shortfall)| (!reached).then_some(shortfall)).collect()
    }
}

pub fn harden() -> Hardening {
    // Whatever is written from here on is nobody else's to read, should a mode be forgotten.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).is_ok();
    let no_dumps = set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok() && no_core;
    let no_new_privileges = rustix::thread::set_no_new_privs(true).is_ok();
    let memory_locked = lock_memory();
    Hardening { no_dumps, no_new_privileges, memory_locked, descriptors: raise_descriptors() }
}

fn lock_memory() -> bool {
    use rustix::mm::{MlockAllFlags, mlockall};
    let limit = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    if limit < ENOUGH_LOCKABLE_BYTES && !rustix::process::geteuid().is_root() {
        return false;
    }
    // As pages are touched: thread stacks are mostly never used.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).is_ok()
}

/// The customary soft limit of 1024 is for programs that use `select`; ours do not.
fn raise_descriptors() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let reached = if setrlimit(Resource::Nofile, raised).is_ok() { raised } else { before };
    reached.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shortfall_has_its_line() {
        let all =
            Hardening { no_dumps: true, no_new_privileges: true, memory_locked: true, descriptors: 1024 };
        assert!(all.shortfalls().is_empty());
        let swap = Hardening { memory_locked: false, ..all };
        assert_eq!(swap.shortfalls().len(), 1);
        assert!(swap.shortfalls()[0].contains("RLIMIT_MEMLOCK"));
        assert_eq!(Hardening { no_dumps: false, no_new_privileges: false, ..swap }.shortfalls().len(), 3);
    }
}
