//! What a computation leaves behind on the stack and in registers.
//!
//! A library that wipes what it allocates still spills scalars, nonces and round keys to its frames, and nothing
//! overwrites those until some later call happens to reach as deep.

use std::hint::black_box;
use std::sync::OnceLock;

static CLEAR_REGISTERS: OnceLock<fn()> = OnceLock::new();

/// Sets what clears the registers that a caller does not expect back. Nothing here may use `unsafe`, so that is
/// `crypto-software`'s to bring. The first caller in a process is heard; `false` for any other.
pub fn install(clear_registers: fn()) -> bool {
    CLEAR_REGISTERS.set(clear_registers).is_ok()
}

/// Runs `work`, then overwrites the stack below it, `BYTES` of it, which has to be more than `work` uses; then clears
/// registers.
///
/// What `work` returns goes through the caller's frame, so it is to be a result or an owner, never a secret by value.
pub fn wiping_stack<const BYTES: usize, T>(work: impl FnOnce() -> T) -> T {
    let result = apart(work);
    overwrite::<BYTES>();
    if let Some(clear) = CLEAR_REGISTERS.get() {
        clear();
    }
    result
}

/// A call of its own, so that the frames of `work` lie where those of [`overwrite`] will.
#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn overwrite<const BYTES: usize>() {
    let mut frame = [0u8; BYTES];
    // Not to be optimised away: the frame is looked at, as far as the compiler can tell.
    black_box(&mut frame);
}
