//! HMAC whose key and states lie in the library's memory.

use aws_lc_sys as ffi;

/// The longest: SHA-512.
const MOST_BYTES: usize = 64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) fn library(self) -> *const ffi::EVP_MD {
        // SAFETY: no arguments; the results are constants of the library.
        unsafe {
            match self {
                Self::Sha1 => ffi::EVP_sha1(),
                Self::Sha256 => ffi::EVP_sha256(),
                Self::Sha384 => ffi::EVP_sha384(),
                Self::Sha512 => ffi::EVP_sha512(),
            }
        }
    }
}

super::owned!(Context, ffi::HMAC_CTX, ffi::HMAC_CTX_free);

/// A key with its two states precomputed.
pub(crate) struct MacKey(Context);

// SAFETY: nothing is written to the context after it was made: each MAC is computed in a copy. It may be copied by
// several threads and freed by any.
unsafe impl Send for MacKey {}
// SAFETY: as above.
unsafe impl Sync for MacKey {}

impl MacKey {
    pub(crate) fn new(hash: Hash, key: &[u8]) -> Option<Self> {
        let context = new_context()?;
        // SAFETY: the context is live; pointer and length are a live slice's; a null engine means none.
        let ready = unsafe {
            ffi::HMAC_Init_ex(
                context.0.as_ptr(),
                key.as_ptr().cast(),
                key.len(),
                hash.library(),
                std::ptr::null_mut(),
            )
        };
        (ready == 1).then_some(Self(context))
    }

    pub(crate) fn mac(&self, input: &[u8]) -> Option<Vec<u8>> {
        let context = new_context()?;
        let mut mac = vec![0; MOST_BYTES];
        let mut length = 0;
        // SAFETY: both contexts are live and not the same; pointer and length are a live slice's; the library writes at
        // most the longest digest's bytes, which `mac` has.
        let done = unsafe {
            ffi::HMAC_CTX_copy_ex(context.0.as_ptr(), self.0.0.as_ptr()) == 1
                && ffi::HMAC_Update(context.0.as_ptr(), input.as_ptr(), input.len()) == 1
                && ffi::HMAC_Final(context.0.as_ptr(), mac.as_mut_ptr(), &mut length) == 1
        };
        mac.truncate(usize::try_from(length).ok()?);
        done.then_some(mac)
    }
}

fn new_context() -> Option<Context> {
    Context::from_raw(
        // SAFETY: no arguments; a null result is caught.
        unsafe { ffi::HMAC_CTX_new() },
    )
}
