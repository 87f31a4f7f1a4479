//! What this crate calls of aws-lc below aws-lc-rs. There are two reasons: aws-lc-rs does not expose it (AES key wrap, RSA
//! exponents other than 65537, PKCS#1 v1.5 signatures over bytes that carry no DigestInfo), or it would hold or return
//! a key in memory of Rust's allocator (AES-CBC and HMAC keys, encoded private keys). All of what is here lies in the
//! library's memory, which is the [`crate::arena`].
//!
//! The argument for the unsafe code in it: each pointer handed over comes from a live Rust slice or from an owner below
//! that frees it once; each length handed over is that slice's; output buffers are as long as the library's contract
//! asks, checked or made so on the spot; no pointer is kept by the library after the call. Functions here take and give
//! slices and owners, so nothing outside can break this.
#![allow(unsafe_code)]

mod ec;
mod mac;
mod memory;
mod number;
mod rsa;

pub(crate) use ec::generate_ec;
pub(crate) use mac::{Hash, MacKey};
pub(crate) use memory::{address_of_an_allocation, secret_memory};
pub(crate) use number::SecretNumber;
pub(crate) use rsa::{RsaPrivateKey, rsa_recover_raw};

use aws_lc_sys as ffi;
use crypto::SecretBytes;
use std::ffi::{c_int, c_uint};
use std::ptr::{NonNull, null};

const WRAP_OVERHEAD: usize = 8;
const BLOCK_BYTES: usize = 16;

/// Owns one library object and frees it once; the library wipes private numbers as it frees them.
macro_rules! owned {
    ($name:ident, $raw:ty, $free:path) => {
        struct $name(std::ptr::NonNull<$raw>);

        impl $name {
            fn from_raw(raw: *mut $raw) -> Option<Self> {
                std::ptr::NonNull::new(raw).map(Self)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the pointer came from the library, is not null and is freed only here.
                unsafe { $free(self.0.as_ptr()) }
            }
        }
    };
}
use owned;

/// A key expanded for encryption. It never was anywhere but in the library's memory.
pub(crate) struct AesEncrypting(Schedule);

/// A key expanded for decryption.
pub(crate) struct AesDecrypting(Schedule);

impl AesEncrypting {
    /// `None` unless the key has 16, 24 or 32 bytes, and where no memory is left.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        Schedule::new(key, ffi::AES_set_encrypt_key).map(Self)
    }

    /// AES key wrap (RFC 3394, default initial value). `None` unless the plaintext is a multiple of 8 bytes and at least
    /// 16.
    pub(crate) fn wrap(&self, plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut wrapped = vec![0; plaintext.len() + WRAP_OVERHEAD];
        // SAFETY: the library writes `in_len + 8` bytes to `out` (include/openssl/aes.h), which is what `wrapped` has; a
        // null IV selects the default initial value.
        let written = unsafe {
            ffi::AES_wrap_key(
                self.0.0.as_ptr(),
                null(),
                wrapped.as_mut_ptr(),
                plaintext.as_ptr(),
                plaintext.len(),
            )
        };
        (usize::try_from(written) == Ok(wrapped.len())).then_some(wrapped)
    }

    /// AES key wrap with padding (RFC 5649), for a plaintext of any length but zero.
    pub(crate) fn wrap_padded(&self, plaintext: &[u8]) -> Option<Vec<u8>> {
        let mut wrapped = vec![0; plaintext.len().next_multiple_of(WRAP_OVERHEAD) + WRAP_OVERHEAD];
        let mut length = 0;
        // SAFETY: the library writes at most `max_out` bytes to `out` and the count to `out_len` (include/openssl/aes.h);
        // `wrapped` has as many, which is what it asks for.
        let done = unsafe {
            ffi::AES_wrap_key_padded(
                self.0.0.as_ptr(),
                wrapped.as_mut_ptr(),
                &mut length,
                wrapped.len(),
                plaintext.as_ptr(),
                plaintext.len(),
            )
        };
        (done == 1 && length == wrapped.len()).then_some(wrapped)
    }

    /// AES-CBC in place. `None` unless `data` is whole blocks.
    pub(crate) fn cbc(&self, iv: [u8; BLOCK_BYTES], data: &mut [u8]) -> Option<()> {
        self.0.cbc(iv, data, ffi::AES_ENCRYPT)
    }
}

impl AesDecrypting {
    /// `None` unless the key has 16, 24 or 32 bytes, and where no memory is left.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        Schedule::new(key, ffi::AES_set_decrypt_key).map(Self)
    }

    /// The inverse of [`AesEncrypting::wrap`]; `None` also where the integrity check fails.
    pub(crate) fn unwrap(&self, wrapped: &[u8]) -> Option<SecretBytes> {
        let mut plaintext = SecretBytes::zeroed(wrapped.len().checked_sub(WRAP_OVERHEAD)?);
        // SAFETY: the library writes `in_len - 8` bytes to `out` (include/openssl/aes.h), which is what `plaintext` has,
        // and refuses inputs shorter than 24 bytes before it writes; a null IV selects the default initial value.
        let written = unsafe {
            ffi::AES_unwrap_key(
                self.0.0.as_ptr(),
                null(),
                plaintext.danger_expose_mut().as_mut_ptr(),
                wrapped.as_ptr(),
                wrapped.len(),
            )
        };
        (usize::try_from(written) == Ok(plaintext.len())).then_some(plaintext)
    }

    /// AES key wrap with padding undone (RFC 5649); `None` also where the integrity check fails.
    pub(crate) fn unwrap_padded(&self, wrapped: &[u8]) -> Option<SecretBytes> {
        let mut plaintext = SecretBytes::zeroed(wrapped.len().checked_sub(WRAP_OVERHEAD)?);
        let mut length = 0;
        // SAFETY: the library writes at most `max_out` bytes to `out` and the count to `out_len` (include/openssl/aes.h);
        // `plaintext` has as many, and `in_len - 8` of them is what the library asks for.
        let opened = unsafe {
            ffi::AES_unwrap_key_padded(
                self.0.0.as_ptr(),
                plaintext.danger_expose_mut().as_mut_ptr(),
                &mut length,
                plaintext.len(),
                wrapped.as_ptr(),
                wrapped.len(),
            )
        };
        (opened == 1 && length <= plaintext.len()).then(|| {
            plaintext.truncate(length);
            plaintext
        })
    }

    /// AES-CBC in place. `None` unless `data` is whole blocks.
    pub(crate) fn cbc(&self, iv: [u8; BLOCK_BYTES], data: &mut [u8]) -> Option<()> {
        self.0.cbc(iv, data, ffi::AES_DECRYPT)
    }
}

/// An expanded AES key in the library's memory.
struct Schedule(NonNull<ffi::AES_KEY>);

// SAFETY: nothing is written to the schedule after it was made; it may be read by several threads and freed by any.
unsafe impl Send for Schedule {}
// SAFETY: as above.
unsafe impl Sync for Schedule {}

impl Schedule {
    fn new(
        key: &[u8],
        expand: unsafe extern "C" fn(*const u8, c_uint, *mut ffi::AES_KEY) -> c_int,
    ) -> Option<Self> {
        let bits = match key.len() {
            16 => 128,
            24 => 192,
            32 => 256,
            _ => return None,
        };
        // SAFETY: no pointers. The result is null, which is caught, or memory of that size, aligned for any object of the
        // library, zero, and thus a valid schedule.
        let schedule = Self(NonNull::new(unsafe { ffi::OPENSSL_zalloc(size_of::<ffi::AES_KEY>()) }.cast())?);
        // SAFETY: the library reads `bits / 8` bytes, which is the slice's length (above), and fills the schedule.
        (unsafe { expand(key.as_ptr(), bits, schedule.0.as_ptr()) } == 0).then_some(schedule)
    }

    fn cbc(&self, mut iv: [u8; BLOCK_BYTES], data: &mut [u8], direction: i32) -> Option<()> {
        if !data.len().is_multiple_of(BLOCK_BYTES) {
            return None;
        }
        let start = data.as_mut_ptr();
        // SAFETY: the library reads and writes `len` bytes, whole blocks (above), and may do so in place; it reads and
        // writes one block at `ivec`.
        unsafe {
            ffi::AES_cbc_encrypt(start, start, data.len(), self.0.as_ptr(), iv.as_mut_ptr(), direction);
        }
        Some(())
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        // SAFETY: allocated by the library, freed only here. `OPENSSL_free` wipes what it frees.
        unsafe { ffi::OPENSSL_free(self.0.as_ptr().cast()) };
    }
}
