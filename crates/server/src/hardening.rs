//! What keeps secrets in this process, set before any key is read; and the number of descriptors it may open.
//!
//! It asks the operating system and says what it got. What a pool's class makes of that is decided by [`for_class`].
//! Where keys live is settled before `main` (`crypto_software::arena`); here it is locked.

use crypto_software::arena;
use domain::pool::PoolClass;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use std::sync::atomic::{AtomicBool, Ordering};

/// Memory that must be lockable before all of it is locked: with less, later allocations would fail.
const ENOUGH_LOCKABLE_BYTES: u64 = 4 << 30;

/// Locked before the first request, so that it need not wait.
const EARLY_BYTES: usize = 4 << 20;

static MEMORY_LOCKED: AtomicBool = AtomicBool::new(false);

/// What was reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hardening {
    /// No core file is written, and no other process of this user may attach or read this one's memory.
    pub no_dumps: bool,
    /// Nothing this process starts can gain rights.
    pub no_new_privileges: bool,
    /// No page goes to swap.
    pub memory_locked: bool,
    /// The memory of keys; `None` where aws-lc does not allocate from it.
    pub arena: Option<arena::Status>,
    /// As much of the arena may be locked as a pool of class production needs.
    pub arena_lockable: bool,
    /// Files and sockets that may be open at once.
    pub descriptors: u64,
}

/// A pool whose keys matter does not start like this.
#[derive(Debug, thiserror::Error)]
#[error("a pool of class production does not start: {}", .0.join("; "))]
pub struct NotHardened(Vec<&'static str>);

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
                "plaintexts could reach swap: memory is not locked (raise RLIMIT_MEMLOCK, `ulimit -l unlimited`)",
            ),
            (
                self.arena.is_some(),
                "keys lie anywhere in memory: aws-lc does not allocate from the arena (is address space limited, `ulimit -v`?)",
            ),
            (
                self.arena.is_none_or(|arena| arena.is_locked()) && self.arena_lockable,
                "keys could reach swap: fewer than 64 MiB of them can be locked (raise RLIMIT_MEMLOCK: LimitMEMLOCK= of a unit, `ulimit -l`)",
            ),
            (
                self.arena.is_none_or(|arena| arena.kept_out_of_dumps),
                "keys would be in a core file: MADV_DONTDUMP was refused",
            ),
            (
                self.arena.is_none_or(|arena| arena.empty_in_children),
                "a process forked from this one would have its keys: MADV_WIPEONFORK was refused",
            ),
        ];
        checks.into_iter().filter_map(|(reached, shortfall)| (!reached).then_some(shortfall)).collect()
    }
}

/// Hardens, and locks memory for keys before there are any.
///
/// # Errors
/// `NotHardened` for class production, if anything is missing; class test serves all the same.
pub fn for_class(class: PoolClass) -> Result<Hardening, NotHardened> {
    raise(Resource::Memlock);
    let locked = match class {
        PoolClass::Production => arena::require_locked().is_ok(),
        PoolClass::Test => {
            arena::start(EARLY_BYTES);
            true
        }
    };
    let hardening = harden();
    let hardening = Hardening { arena_lockable: hardening.arena_lockable && locked, ..hardening };
    match (class, hardening.shortfalls()) {
        (PoolClass::Production, missing) if !missing.is_empty() => Err(NotHardened(missing)),
        (PoolClass::Production | PoolClass::Test, _) => Ok(hardening),
    }
}

/// [`for_class`] for a process that serves, and its log, to standard error. What falls short is the log's first lines.
pub fn for_server(class: PoolClass) -> Result<Hardening, NotHardened> {
    let hardening = for_class(class)?;
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .compact()
        .init();
    // Class test serves all the same.
    for shortfall in hardening.shortfalls() {
        tracing::warn!("{shortfall}");
    }
    Ok(hardening)
}

pub fn harden() -> Hardening {
    // Whatever is written from here on is nobody else's to read, should a mode be forgotten.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let no_dumps = !danger::dumpable() && refuse_dumps();
    let no_new_privileges = rustix::thread::set_no_new_privs(true).is_ok();
    let memory_locked = lock_memory();
    Hardening {
        no_dumps,
        no_new_privileges,
        memory_locked,
        arena: arena::status(),
        arena_lockable: lockable_bytes() >= arena::PRODUCTION_BYTES as u64,
        descriptors: raise(Resource::Nofile),
    }
}

fn refuse_dumps() -> bool {
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).is_ok();
    set_dumpable_behavior(DumpableBehavior::NotDumpable).is_ok() && no_core
}

/// Whether [`harden`] locked all memory of this process. The kernel does not tell it from a part that is locked.
pub fn memory_is_locked() -> bool {
    MEMORY_LOCKED.load(Ordering::Relaxed)
}

fn lock_memory() -> bool {
    use rustix::mm::{MlockAllFlags, mlockall};
    if lockable_bytes() < ENOUGH_LOCKABLE_BYTES {
        return false;
    }
    // As pages are touched: thread stacks are mostly never used.
    let locked = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).is_ok();
    MEMORY_LOCKED.store(locked, Ordering::Relaxed);
    locked
}

fn lockable_bytes() -> u64 {
    use rustix::thread::{CapabilitySet, capabilities};
    match capabilities(None) {
        Ok(rights) if rights.effective.contains(CapabilitySet::IPC_LOCK) => u64::MAX,
        Ok(_) | Err(_) => getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX),
    }
}

/// Raises a soft limit to the hard one. The customary 1024 descriptors are for programs that use `select`; ours do not.
fn raise(resource: Resource) -> u64 {
    let before = getrlimit(resource);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let reached = if setrlimit(resource, raised).is_ok() { raised } else { before };
    reached.current.unwrap_or(u64::MAX)
}

/// For the test that searches the memory of a running server; in a shipped build it is a constant.
mod danger {
    #[cfg(feature = "danger-test")]
    pub(super) fn dumpable() -> bool {
        std::env::var_os("HOLDFAST_DANGER_DUMPABLE").is_some()
    }

    #[cfg(not(feature = "danger-test"))]
    pub(super) const fn dumpable() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Hardening {
        let arena = arena::Status {
            limit_bytes: 8,
            grown_bytes: 4,
            locked_bytes: 4,
            used_bytes: 2,
            kept_out_of_dumps: true,
            empty_in_children: true,
        };
        Hardening {
            no_dumps: true,
            no_new_privileges: true,
            memory_locked: true,
            arena: Some(arena),
            arena_lockable: true,
            descriptors: 1024,
        }
    }

    #[test]
    fn each_shortfall_has_its_line() {
        let all = complete();
        assert!(all.shortfalls().is_empty());
        let arena = all.arena.unwrap();
        let with = |arena| Hardening { arena: Some(arena), ..all };
        for (short, told) in [
            (Hardening { no_dumps: false, ..all }, "RLIMIT_CORE"),
            (Hardening { no_new_privileges: false, ..all }, "PR_SET_NO_NEW_PRIVS"),
            (Hardening { memory_locked: false, ..all }, "ulimit -l unlimited"),
            (Hardening { arena: None, ..all }, "arena"),
            (Hardening { arena_lockable: false, ..all }, "LimitMEMLOCK"),
            (with(arena::Status { locked_bytes: 3, ..arena }), "LimitMEMLOCK"),
            (with(arena::Status { kept_out_of_dumps: false, ..arena }), "MADV_DONTDUMP"),
            (with(arena::Status { empty_in_children: false, ..arena }), "MADV_WIPEONFORK"),
        ] {
            let lines = short.shortfalls();
            assert!(lines.len() == 1 && lines[0].contains(told), "{told}: {lines:?}");
        }
        let nothing = Hardening { no_dumps: false, no_new_privileges: false, memory_locked: false, ..all };
        assert_eq!(nothing.shortfalls().len(), 3);
    }

    #[test]
    fn the_text_names_what_production_needs() {
        assert_eq!(arena::PRODUCTION_BYTES, 64 << 20);
    }
}
