//! The one arena of the process, and aws-lc's allocator on it.

use super::{Arena, MOST_BYTES, MOST_SHARDS, PRODUCTION_BYTES, Status, fail};
use crate::{aws_lc, registers};
use aws_lc_sys as ffi;
use crypto::PartitionError;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

static ARENA: OnceLock<Arena> = OnceLock::new();

/// Called by the loader before `main`: no thread exists, no Rust code has run, and aws-lc, which has no constructors, has
/// allocated nothing. Whatever it allocates in this process comes from the arena.
#[used]
// SAFETY: entries of this section are called once each, with arguments that a function may leave alone.
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;

extern "C" fn install() {
    // What a key is held in comes from aws-lc's allocator, be that the arena or not.
    crypto::secret::install(aws_lc::secret_memory);
    if danger::without_arena() {
        return;
    }
    crypto::stack::install(registers::clear);
    // Refused addresses are told by `status`; the process may be one that needs no key.
    let Ok(arena) = Arena::reserve(danger::most_bytes().unwrap_or(MOST_BYTES), processors()) else { return };
    if ARENA.set(arena).is_err() {
        fail("made twice");
    }
    // SAFETY: the three functions below keep to the contract of malloc, realloc and free, with one another and from any
    // thread, and call nothing of aws-lc.
    if unsafe { ffi::CRYPTO_set_mem_functions(Some(allocate), Some(reallocate), Some(free)) } != 1 {
        fail("aws-lc has another allocator already");
    }
}

/// What the arena is and has reached; `None` where aws-lc does not allocate from it. The check is made, not remembered.
pub fn status() -> Option<Status> {
    ARENA.get().filter(|_| is_in_use()).map(Arena::status)
}

/// Whether what aws-lc allocates now lies in the arena.
pub fn is_in_use() -> bool {
    let Some(arena) = ARENA.get() else { return false };
    aws_lc::address_of_an_allocation().is_some_and(|address| arena.contains(address))
}

/// Makes `bytes` accessible, and locks them where that is allowed, so that the first requests need not wait for it.
pub fn start(bytes: usize) {
    if let Some(arena) = ARENA.get() {
        arena.grow_to(bytes);
    }
}

/// Why keys that matter may not live in this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shortage {
    pub locked_bytes: usize,
    pub wanted_bytes: usize,
}

/// For class production: locks [`PRODUCTION_BYTES`] now, and uses nothing from here on that cannot be locked.
///
/// # Errors
/// `Shortage` if less could be locked, if memory that is not locked already is in use, or if there is no arena.
pub fn require_locked() -> Result<(), Shortage> {
    let shortage = |locked_bytes| Shortage { locked_bytes, wanted_bytes: PRODUCTION_BYTES };
    let arena = ARENA.get().filter(|_| is_in_use()).ok_or(shortage(0))?;
    let all_locked = arena.refuse_unlockable();
    arena.grow_to(PRODUCTION_BYTES);
    let locked = arena.status().locked_bytes;
    if all_locked && locked >= PRODUCTION_BYTES { Ok(()) } else { Err(shortage(locked)) }
}

/// Refuses one more key when a sixteenth of the arena is left: keys grow when they are first used.
pub(crate) fn admit_key() -> Result<(), PartitionError> {
    admit(16, "find room for another key in locked memory")
}

/// Refuses the use of a key when hardly anything is left. aws-lc answers most allocations that fail with an error, yet
/// ends the process where it needs one for random numbers.
pub(crate) fn admit_use() -> Result<(), PartitionError> {
    admit(64, "find room for the use of a key in locked memory")
}

fn admit(parts: usize, what: &'static str) -> Result<(), PartitionError> {
    match ARENA.get() {
        Some(arena) if !arena.has_left(parts) => Err(PartitionError::NoRoom(what)),
        Some(_) | None => Ok(()),
    }
}

/// Where the arena lies, guards included.
#[cfg(test)]
pub(crate) fn range() -> Option<std::ops::Range<usize>> {
    let arena = ARENA.get()?;
    let base = arena.base.as_ptr() as usize;
    Some(base - super::SPAN_BYTES..base + arena.spans.len() * super::SPAN_BYTES)
}

fn processors() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(MOST_SHARDS, |set| set.count() as usize)
}

fn arena() -> &'static Arena {
    ARENA.get().unwrap_or_else(|| fail("used before it was made"))
}

unsafe extern "C" fn allocate(bytes: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    arena().allocate(bytes).cast()
}

unsafe extern "C" fn reallocate(
    pointer: *mut c_void,
    bytes: usize,
    _file: *const c_char,
    _line: c_int,
) -> *mut c_void {
    // aws-lc calls `malloc` itself where there is nothing to reallocate.
    arena().reallocate(pointer.cast(), bytes).cast()
}

unsafe extern "C" fn free(pointer: *mut c_void, _file: *const c_char, _line: c_int) {
    // aws-lc keeps null to itself.
    arena().free(pointer.cast());
}

/// Switches for tests of this module's own promises; in a shipped build they are constants.
#[cfg(any(test, feature = "danger-test"))]
mod danger {
    /// The control: the search for keys has to find them where there is no arena.
    pub(super) fn without_arena() -> bool {
        std::env::var_os("HOLDFAST_DANGER_NO_ARENA").is_some()
    }

    /// An arena small enough to be filled.
    pub(super) fn most_bytes() -> Option<usize> {
        std::env::var("HOLDFAST_DANGER_ARENA_BYTES").ok()?.parse().ok()
    }
}

#[cfg(not(any(test, feature = "danger-test")))]
mod danger {
    pub(super) const fn without_arena() -> bool {
        false
    }

    pub(super) const fn most_bytes() -> Option<usize> {
        None
    }
}
