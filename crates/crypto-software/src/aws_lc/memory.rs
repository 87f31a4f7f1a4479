//! Bytes in the library's memory.

use aws_lc_sys as ffi;
use crypto::SecretBytes;
use crypto::secret::SecretMemory;
use std::ptr::{NonNull, null_mut};

/// Bytes in memory of the library's allocator, which wipes what it frees.
pub(super) struct Buffer {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the bytes belong to this owner alone and are reached through it; the allocator may be called by any thread.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Buffer {
    fn zeroed(length: usize) -> Option<Self> {
        // SAFETY: no pointers. The result is null, which is caught, or `length` bytes, all zero, and one more where
        // `length` is zero.
        let start = unsafe { ffi::OPENSSL_zalloc(length.max(1)) };
        Some(Self { start: NonNull::new(start.cast())?, length })
    }
}

impl SecretMemory for Buffer {
    fn bytes(&self) -> &[u8] {
        // SAFETY: `length` initialised bytes, ours.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by the library, freed only here.
        unsafe { ffi::OPENSSL_free(self.start.as_ptr().cast()) };
    }
}

/// Where every [`SecretBytes`] of the process lives.
pub(crate) fn secret_memory(length: usize) -> Option<Box<dyn SecretMemory>> {
    Some(Box::new(Buffer::zeroed(length)?))
}

/// Where the library allocates, to be compared with where it should.
pub(crate) fn address_of_an_allocation() -> Option<usize> {
    Buffer::zeroed(1).map(|buffer| buffer.start.as_ptr() as usize)
}

/// What `write` wrote, in the memory that it was written to: it is not copied.
pub(super) fn written(capacity: usize, write: impl FnOnce(*mut ffi::CBB) -> bool) -> Option<SecretBytes> {
    let mut writer = Writer::new(capacity)?;
    if !write(&mut writer.0) {
        return None;
    }
    let (mut start, mut length) = (null_mut(), 0);
    // SAFETY: the writer is live and both out-pointers are to live locals. On success `length` bytes at `start`,
    // allocated by the library, are ours.
    if unsafe { ffi::CBB_finish(&mut writer.0, &mut start, &mut length) } != 1 {
        return None;
    }
    Some(SecretBytes::from_memory(Box::new(Buffer { start: NonNull::new(start)?, length })))
}

struct Writer(ffi::CBB);

impl Writer {
    fn new(capacity: usize) -> Option<Self> {
        let mut writer = std::mem::MaybeUninit::zeroed();
        // SAFETY: the library initialises what the pointer is to, whether it succeeds or not.
        let made = unsafe { ffi::CBB_init(writer.as_mut_ptr(), capacity) };
        // SAFETY: initialised above; all zero is a valid value, too.
        let writer = Self(unsafe { writer.assume_init() });
        (made == 1).then_some(writer)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // SAFETY: the writer is live; after `CBB_finish` it owns nothing, and this may still be called.
        unsafe { ffi::CBB_cleanup(&mut self.0) };
    }
}
