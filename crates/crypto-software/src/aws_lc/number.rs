//! Whole numbers that are secret, with the arithmetic that a private RSA key's parts are checked by. `None` always means
//! that no memory is left, unless a function says otherwise.

use aws_lc_sys as ffi;
use crypto::SecretBytes;
use std::ffi::c_int;
use std::ptr::{null, null_mut};

super::owned!(Raw, ffi::BIGNUM, ffi::BN_clear_free);
super::owned!(Scratch, ffi::BN_CTX, ffi::BN_CTX_free);

/// Rounds of the primality test for a number that somebody else chose: as the library's
/// `BN_prime_checks_for_validation`, whatever the size.
const PRIMALITY_ROUNDS: c_int = 64;

/// A number that is not negative.
pub(crate) struct SecretNumber(Raw);

impl SecretNumber {
    /// Big-endian; leading zeros do not count.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: pointer and length of a live slice; a null result is caught, a null target means a new number.
        Raw::from_raw(unsafe { ffi::BN_bin2bn(bytes.as_ptr(), bytes.len(), null_mut()) }).map(Self)
    }

    /// Big-endian, without leading zeros.
    pub(crate) fn to_bytes(&self) -> Option<SecretBytes> {
        let mut bytes = SecretBytes::zeroed(self.bits().div_ceil(8) as usize);
        let out = bytes.danger_expose_mut();
        // SAFETY: the number is live; the library writes the slice's length, and refuses a number that is longer.
        let written = unsafe { ffi::BN_bn2bin_padded(out.as_mut_ptr(), out.len(), self.raw()) };
        (written == 1).then_some(bytes)
    }

    pub(crate) fn bits(&self) -> u32 {
        // SAFETY: the number is live.
        unsafe { ffi::BN_num_bits(self.raw()) }
    }

    pub(crate) fn is_odd(&self) -> bool {
        // SAFETY: the number is live.
        unsafe { ffi::BN_is_odd(self.raw()) == 1 }
    }

    /// In constant time.
    pub(crate) fn equals(&self, other: &Self) -> bool {
        // SAFETY: both numbers are live.
        unsafe { ffi::BN_equal_consttime(self.raw(), other.raw()) == 1 }
    }

    pub(crate) fn is_less_than(&self, other: &Self) -> bool {
        // SAFETY: both numbers are live.
        unsafe { ffi::BN_cmp(self.raw(), other.raw()) < 0 }
    }

    /// `self - subtrahend`; `None` also where that would be negative.
    pub(crate) fn less(&self, subtrahend: &Self) -> Option<Self> {
        let difference = Self::zero()?;
        // SAFETY: all three numbers are live.
        let done = unsafe { ffi::BN_usub(difference.raw(), self.raw(), subtrahend.raw()) };
        (done == 1).then_some(difference)
    }

    pub(crate) fn times(&self, factor: &Self) -> Option<Self> {
        let (product, scratch) = (Self::zero()?, scratch()?);
        // SAFETY: the three numbers and the scratch space are live.
        let done = unsafe { ffi::BN_mul(product.raw(), self.raw(), factor.raw(), scratch.0.as_ptr()) };
        (done == 1).then_some(product)
    }

    /// `self` modulo `divisor`; `None` also where that is zero.
    pub(crate) fn modulo(&self, divisor: &Self) -> Option<Self> {
        let (remainder, scratch) = (Self::zero()?, scratch()?);
        // SAFETY: the three numbers and the scratch space are live.
        let done = unsafe { ffi::BN_nnmod(remainder.raw(), self.raw(), divisor.raw(), scratch.0.as_ptr()) };
        (done == 1).then_some(remainder)
    }

    /// `self` to the power of `exponent`, modulo an odd `modulus` above `self`. In constant time. `None` also for any
    /// other modulus.
    pub(crate) fn power(&self, exponent: &Self, modulus: &Self) -> Option<Self> {
        let (power, scratch) = (Self::zero()?, scratch()?);
        // SAFETY: the four numbers and the scratch space are live; a null Montgomery context means that the library makes
        // one.
        let done = unsafe {
            ffi::BN_mod_exp_mont_consttime(
                power.raw(),
                self.raw(),
                exponent.raw(),
                modulus.raw(),
                scratch.0.as_ptr(),
                null(),
            )
        };
        (done == 1).then_some(power)
    }

    /// Whether it is a prime, but for one in 2^128 of the numbers that are not.
    pub(crate) fn is_prime(&self) -> Option<bool> {
        let scratch = scratch()?;
        let mut is_prime = 0;
        // SAFETY: the number, the scratch space and the out-pointer are live; a null callback means none.
        let done = unsafe {
            ffi::BN_primality_test(
                &mut is_prime,
                self.raw(),
                PRIMALITY_ROUNDS,
                scratch.0.as_ptr(),
                1,
                null_mut(),
            )
        };
        (done == 1).then_some(is_prime == 1)
    }

    fn zero() -> Option<Self> {
        // SAFETY: no arguments; a null result is caught.
        Raw::from_raw(unsafe { ffi::BN_new() }).map(Self)
    }

    fn raw(&self) -> *mut ffi::BIGNUM {
        self.0.0.as_ptr()
    }
}

fn scratch() -> Option<Scratch> {
    // SAFETY: no arguments; a null result is caught.
    Scratch::from_raw(unsafe { ffi::BN_CTX_new() })
}
