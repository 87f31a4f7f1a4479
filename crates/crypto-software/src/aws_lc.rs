//! The few functions of aws-lc that aws-lc-rs does not expose: AES key wrap with a key schedule that is wiped (and for
//! 192-bit keys at all), RSA keys with a public exponent other than 65537, and PKCS#1 v1.5 signatures over bytes that
//! carry no DigestInfo. The only unsafe code of this crate.
//!
//! The argument for all of it: each pointer handed over comes from a live Rust slice or from an owner below that frees
//! it once; each length handed over is that slice's; output buffers are as long as the library's contract asks, checked
//! or made so on the spot; no pointer is kept by the library after the call. Functions here take and give slices, so
//! nothing outside can break this.
#![allow(unsafe_code)]

use aws_lc_sys as ffi;
use std::ptr::{NonNull, null, null_mut};
use zeroize::{Zeroize, Zeroizing};

const WRAP_OVERHEAD: usize = 8;

/// AES key wrap (RFC 3394, default initial value). `None` unless the key has 16, 24 or 32 bytes and the plaintext is a
/// multiple of 8 bytes and at least 16.
pub(crate) fn aes_wrap(key: &[u8], plaintext: &[u8]) -> Option<Vec<u8>> {
    let schedule = AesSchedule::new(key, ffi::AES_set_encrypt_key)?;
    let mut wrapped = vec![0; plaintext.len() + WRAP_OVERHEAD];
    // SAFETY: the library writes `in_len + 8` bytes to `out` (include/openssl/aes.h), which is what `wrapped` has; a
    // null IV selects the default initial value.
    let written = unsafe {
        ffi::AES_wrap_key(&*schedule.0, null(), wrapped.as_mut_ptr(), plaintext.as_ptr(), plaintext.len())
    };
    (usize::try_from(written) == Ok(wrapped.len())).then_some(wrapped)
}

/// The inverse of [`aes_wrap`]; `None` also where the integrity check fails.
pub(crate) fn aes_unwrap(key: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let schedule = AesSchedule::new(key, ffi::AES_set_decrypt_key)?;
    let mut plaintext = Zeroizing::new(vec![0; wrapped.len().checked_sub(WRAP_OVERHEAD)?]);
    // SAFETY: the library writes `in_len - 8` bytes to `out` (include/openssl/aes.h), which is what `plaintext` has, and
    // refuses inputs shorter than 24 bytes before it writes; a null IV selects the default initial value.
    let written = unsafe {
        ffi::AES_unwrap_key(&*schedule.0, null(), plaintext.as_mut_ptr(), wrapped.as_ptr(), wrapped.len())
    };
    (usize::try_from(written) == Ok(plaintext.len())).then_some(plaintext)
}

/// A new RSA key, as DER of `RSAPrivateKey` (RFC 8017 appendix A.1.2). The caller has checked the exponent: odd, at
/// least 3.
pub(crate) fn generate_rsa(bits: u32, exponent: u32) -> Option<Zeroizing<Vec<u8>>> {
    let bits = i32::try_from(bits).ok()?;
    let key = Rsa::from_raw(
        // SAFETY: no arguments; a null result is caught.
        unsafe { ffi::RSA_new() },
    )?;
    let number = Number::new(exponent)?;
    // SAFETY: both pointers are live for the call; a null callback means none.
    if unsafe { ffi::RSA_generate_key_ex(key.0.as_ptr(), bits, number.0.as_ptr(), null_mut()) } != 1 {
        return None;
    }
    let (mut der, mut length) = (null_mut(), 0);
    // SAFETY: both out-pointers are to live locals; on success the library has allocated `length` bytes at `der`, which
    // are ours to free.
    if unsafe { ffi::RSA_private_key_to_bytes(&mut der, &mut length, key.0.as_ptr()) } != 1 || der.is_null() {
        return None;
    }
    // SAFETY: `der` points at `length` initialised bytes (above), read once and then freed. `OPENSSL_free` wipes what it
    // frees.
    let copy = Zeroizing::new(unsafe { std::slice::from_raw_parts(der, length) }.to_vec());
    unsafe { ffi::OPENSSL_free(der.cast()) };
    Some(copy)
}

/// RSASP1 over EMSA-PKCS1-v1_5 padding (RFC 8017 section 9.2) of `message` as it stands, with no DigestInfo.
pub(crate) fn rsa_sign_raw(pkcs8: &[u8], modulus_bytes: usize, message: &[u8]) -> Option<Vec<u8>> {
    let mut input = ffi::CBS { data: pkcs8.as_ptr(), len: pkcs8.len() };
    let key = AnyKey::from_raw(
        // SAFETY: `input` spans a live slice; a null result is caught.
        unsafe { ffi::EVP_parse_private_key(&mut input) },
    )?;
    // SAFETY: `key` is live. The result is borrowed from it, or null for a key that is not RSA.
    let rsa = NonNull::new(unsafe { ffi::EVP_PKEY_get0_RSA(key.0.as_ptr()) })?;
    let mut signature = vec![0; modulus_bytes];
    let mut length = 0;
    // SAFETY: `rsa` lives as long as `key`; the library writes at most `max_out` bytes, the length of `signature`.
    let signed = unsafe {
        ffi::RSA_sign_raw(
            rsa.as_ptr(),
            &mut length,
            signature.as_mut_ptr(),
            signature.len(),
            message.as_ptr(),
            message.len(),
            ffi::RSA_PKCS1_PADDING,
        )
    };
    (signed == 1 && length == signature.len()).then_some(signature)
}

/// What [`rsa_sign_raw`] padded, from a signature; `None` where the padding is not of that form. `public` is DER of
/// `RSAPublicKey` (RFC 8017 appendix A.1.1).
pub(crate) fn rsa_recover_raw(public: &[u8], modulus_bytes: usize, signature: &[u8]) -> Option<Vec<u8>> {
    let key = Rsa::from_raw(
        // SAFETY: pointer and length of a live slice; a null result is caught.
        unsafe { ffi::RSA_public_key_from_bytes(public.as_ptr(), public.len()) },
    )?;
    let mut message = vec![0; modulus_bytes];
    let mut length = 0;
    // SAFETY: `key` is live; the library writes at most `max_out` bytes, the length of `message`.
    let recovered = unsafe {
        ffi::RSA_verify_raw(
            key.0.as_ptr(),
            &mut length,
            message.as_mut_ptr(),
            message.len(),
            signature.as_ptr(),
            signature.len(),
            ffi::RSA_PKCS1_PADDING,
        )
    };
    if recovered != 1 || length > message.len() {
        return None;
    }
    message.truncate(length);
    Some(message)
}

/// An expanded AES key, boxed so that moving it leaves no copy behind.
struct AesSchedule(Box<ffi::AES_KEY>);

impl AesSchedule {
    fn new(
        key: &[u8],
        expand: unsafe extern "C" fn(*const u8, std::ffi::c_uint, *mut ffi::AES_KEY) -> std::ffi::c_int,
    ) -> Option<Self> {
        let bits = match key.len() {
            16 => 128,
            24 => 192,
            32 => 256,
            _ => return None,
        };
        let mut schedule = Self(Box::new(ffi::AES_KEY { rd_key: [0; 60], rounds: 0 }));
        // SAFETY: the library reads `bits / 8` bytes, which is the slice's length (above), and fills the schedule.
        (unsafe { expand(key.as_ptr(), bits, &mut *schedule.0) } == 0).then_some(schedule)
    }
}

impl Drop for AesSchedule {
    fn drop(&mut self) {
        self.0.rd_key.zeroize();
    }
}

/// Owns one library object and frees it once; the library wipes private numbers as it frees them.
macro_rules! owned {
    ($name:ident, $raw:ty, $free:path) => {
        struct $name(NonNull<$raw>);

        impl $name {
            fn from_raw(raw: *mut $raw) -> Option<Self> {
                NonNull::new(raw).map(Self)
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

owned!(Rsa, ffi::RSA, ffi::RSA_free);
owned!(AnyKey, ffi::EVP_PKEY, ffi::EVP_PKEY_free);
owned!(Number, ffi::BIGNUM, ffi::BN_free);

impl Number {
    fn new(value: u32) -> Option<Self> {
        let number = Self::from_raw(
            // SAFETY: no arguments; a null result is caught.
            unsafe { ffi::BN_new() },
        )?;
        // SAFETY: the number is live.
        (unsafe { ffi::BN_set_u64(number.0.as_ptr(), value.into()) } == 1).then_some(number)
    }
}
