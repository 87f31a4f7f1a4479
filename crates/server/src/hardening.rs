//! What keeps secrets in this process, set before any key is read.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Memory that must be lockable before all of it is locked: with less, later allocations would fail.
const ENOUGH_LOCKABLE_BYTES: u64 = 4 << 30;

/// What was reached.
#[derive(Clone, Copy, Debug)]
pub struct Hardening {
    /// No core file is written, and no other process of this user may attach or read this one's memory.
    pub no_dumps: bool,
    /// Nothing this process starts can gain rights.
    pub no_new_privileges: bool,
    /// No page goes to swap.
    pub memory_locked: bool,
}

pub fn harden() -> Hardening {
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).is_ok();
    let no_dumps = no_core && set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok();
    let no_new_privileges = rustix::thread::set_no_new_privs(true).is_ok();
    Hardening { no_dumps, no_new_privileges, memory_locked: lock_memory() }
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
