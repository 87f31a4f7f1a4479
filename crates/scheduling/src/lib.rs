//! How soon a thread gets the processor, and how long it keeps it.
//!
//! Linux lets a thread that computes finish its slice, 1.4 ms on a machine of two processors, before one that wakes may run,
//! whatever their priorities; a request wakes threads three times. Since 6.12 a thread can ask for a slice of its own, and one
//! that wakes with a shorter slice need not wait for the end of a longer one. Earlier kernels take the wish and ignore it.
//!
//! A crate of its own for its two system calls: no library offers them without `unsafe` (sched_setattr(2)).
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The least that the kernel grants.
const QUICK_SLICE: Duration = Duration::from_micros(100);
/// Longer than what the kernel gives its own threads, those that complete a write among them.
const SLOW_SLICE: Duration = Duration::from_millis(3);
const LOWEST_PRIORITY: i32 = 19;

/// Lets the calling thread, and those it starts from now on, run as soon as they wake.
///
/// # Errors
/// What the operating system said; the thread runs on as it was.
pub fn quick() -> io::Result<()> {
    change(QUICK_SLICE, 0)
}

/// Puts the calling thread behind all others by `nice` steps (setpriority(2)): it is interrupted at once and seldom.
///
/// # Errors
/// What the operating system said; the thread runs on as it was.
pub fn slow(nice: i32) -> io::Result<()> {
    change(SLOW_SLICE, nice)
}

fn change(slice: Duration, nice: i32) -> io::Result<()> {
    let mut attributes = of_this_thread()?;
    // Whoever gave the process a class of its own, such as real time, knows better.
    if attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
        attributes.sched_nice = attributes.sched_nice.saturating_add(nice).min(LOWEST_PRIORITY);
        set(&attributes)?;
    }
    Ok(())
}

fn of_this_thread() -> io::Result<libc::sched_attr> {
    let mut attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes at most as many bytes as the third argument says, all of them the structure's; it is plain
    // integers, of which any value is one. 0 is the calling thread.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, attributes.size, 0u32) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

fn set(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes as the structure says that it has, and writes that number alone where it knows
    // less, which it cannot: this is the first version of the structure. The pointer is to a copy of this function's own.
    let mut attributes = *attributes;
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attributes, 0u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nice and slice of a thread that `act` was called on, and of one that it started.
    fn after(act: impl FnOnce() -> io::Result<()> + Send) -> [(i32, Duration); 2] {
        let now = || {
            let attributes = of_this_thread().unwrap();
            (attributes.sched_nice, Duration::from_nanos(attributes.sched_runtime))
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                act().unwrap();
                [now(), std::thread::spawn(now).join().unwrap()]
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn a_thread_is_what_it_asked_for_and_so_are_those_it_starts() {
        let before = after(|| Ok(()));
        let (nice, slice) = before[0];
        // A kernel before 6.12 says nothing of slices.
        let granted = |wanted| if slice.is_zero() { slice } else { wanted };
        assert_eq!(after(quick), [(nice, granted(QUICK_SLICE)); 2]);
        assert_eq!(after(|| slow(5)), [((nice + 5).min(19), granted(SLOW_SLICE)); 2]);
        assert_eq!(after(|| slow(100)), [(19, granted(SLOW_SLICE)); 2], "there is nothing lower");
        assert_eq!(after(|| Ok(())), before, "of other threads nothing changed");
    }
}
