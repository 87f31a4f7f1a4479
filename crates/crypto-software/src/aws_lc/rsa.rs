//! RSA keys, private ones in the library's memory from the first byte to the last.

use super::mac::Hash;
use super::memory::written;
use aws_lc_sys as ffi;
use crypto::SecretBytes;
use std::ptr::{NonNull, null_mut};

super::owned!(Rsa, ffi::RSA, ffi::RSA_free);
super::owned!(AnyKey, ffi::EVP_PKEY, ffi::EVP_PKEY_free);
super::owned!(KeyContext, ffi::EVP_PKEY_CTX, ffi::EVP_PKEY_CTX_free);
super::owned!(Number, ffi::BIGNUM, ffi::BN_free);

/// A private key, parsed once.
pub(crate) struct RsaPrivateKey(AnyKey);

// SAFETY: an RSA key is not changed once it was made but for values that the library computes when first needed, under a
// lock of its own (include/openssl/rsa.h, "thread safety"); it may be used by several threads and freed by any.
unsafe impl Send for RsaPrivateKey {}
// SAFETY: as above.
unsafe impl Sync for RsaPrivateKey {}

impl RsaPrivateKey {
    /// A new key. The caller has checked the exponent: odd, at least 3.
    pub(crate) fn generate(bits: u32, exponent: u32) -> Option<Self> {
        let bits = i32::try_from(bits).ok()?;
        let rsa = Rsa::from_raw(
            // SAFETY: no arguments; a null result is caught.
            unsafe { ffi::RSA_new() },
        )?;
        let exponent = Number::new(exponent)?;
        // SAFETY: both pointers are live for the call; a null callback means none.
        if unsafe { ffi::RSA_generate_key_ex(rsa.0.as_ptr(), bits, exponent.0.as_ptr(), null_mut()) } != 1 {
            return None;
        }
        Self::from_rsa(&rsa)
    }

    /// From DER of `RSAPrivateKey` (RFC 8017 appendix A.1.2). The library checks that the numbers are consistent.
    pub(crate) fn from_private_key_der(der: &[u8]) -> Option<Self> {
        let rsa = Rsa::from_raw(
            // SAFETY: pointer and length of a live slice; a null result is caught.
            unsafe { ffi::RSA_private_key_from_bytes(der.as_ptr(), der.len()) },
        )?;
        Self::from_rsa(&rsa)
    }

    fn from_rsa(rsa: &Rsa) -> Option<Self> {
        let key = AnyKey::from_raw(
            // SAFETY: no arguments; a null result is caught.
            unsafe { ffi::EVP_PKEY_new() },
        )?;
        // SAFETY: both are live; the key takes a reference of its own to `rsa`.
        (unsafe { ffi::EVP_PKEY_set1_RSA(key.0.as_ptr(), rsa.0.as_ptr()) } == 1).then_some(Self(key))
    }

    /// From PKCS#8 DER. The library checks that the numbers are consistent; it passes over attributes and over bytes
    /// behind the key.
    pub(crate) fn parse(pkcs8: &[u8]) -> Option<Self> {
        let mut input = ffi::CBS { data: pkcs8.as_ptr(), len: pkcs8.len() };
        let key = AnyKey::from_raw(
            // SAFETY: `input` spans a live slice; a null result is caught.
            unsafe { ffi::EVP_parse_private_key(&mut input) },
        )?;
        // SAFETY: the key is live.
        (unsafe { ffi::EVP_PKEY_id(key.0.as_ptr()) } == ffi::EVP_PKEY_RSA).then_some(Self(key))
    }

    /// PKCS#8 DER.
    pub(crate) fn to_pkcs8(&self) -> Option<SecretBytes> {
        // About what a key takes: the modulus, as much for each of the exponents, half as much for five numbers.
        let capacity = 5 * self.modulus_bytes();
        // SAFETY: both are live.
        written(capacity, |out| unsafe { ffi::EVP_marshal_private_key(out, self.0.0.as_ptr()) } == 1)
    }

    /// `SubjectPublicKeyInfo` (RFC 5280).
    pub(crate) fn to_spki(&self) -> Option<Vec<u8>> {
        let capacity = 2 * self.modulus_bytes();
        // SAFETY: both are live.
        let spki =
            written(capacity, |out| unsafe { ffi::EVP_marshal_public_key(out, self.0.0.as_ptr()) } == 1)?;
        Some(spki.danger_expose().to_vec())
    }

    /// `RSAPublicKey` (RFC 8017 appendix A.1.1).
    pub(crate) fn to_public_der(&self) -> Option<Vec<u8>> {
        let rsa = self.rsa()?;
        let capacity = 2 * self.modulus_bytes();
        // SAFETY: both are live.
        let der = written(capacity, |out| unsafe { ffi::RSA_marshal_public_key(out, rsa.as_ptr()) } == 1)?;
        Some(der.danger_expose().to_vec())
    }

    /// Modulus and public exponent, big-endian, without leading zeros.
    pub(crate) fn public_numbers(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let rsa = self.rsa()?.as_ptr();
        // SAFETY: the key is live; both numbers are borrowed from it, and every RSA key has them.
        let (modulus, exponent) = unsafe { (ffi::RSA_get0_n(rsa), ffi::RSA_get0_e(rsa)) };
        Some((big_endian(modulus)?, big_endian(exponent)?))
    }

    /// RSASSA-PKCS1-v1_5, or RSASSA-PSS with a salt as long as the digest, over a digest by `hash`.
    pub(crate) fn sign(&self, hash: Hash, pss: bool, digest: &[u8]) -> Option<Vec<u8>> {
        let context = self.context()?;
        let context = context.0.as_ptr();
        let mut signature = vec![0; self.modulus_bytes()];
        let mut length = signature.len();
        // SAFETY: the context is live; pointers and lengths are live slices'; the library writes at most `sig_len`
        // bytes.
        let signed = unsafe {
            ffi::EVP_PKEY_sign_init(context) == 1
                && ffi::EVP_PKEY_CTX_set_signature_md(context, hash.library()) == 1
                && (!pss
                    || ffi::EVP_PKEY_CTX_set_rsa_padding(context, ffi::RSA_PKCS1_PSS_PADDING) == 1
                        && ffi::EVP_PKEY_CTX_set_rsa_pss_saltlen(context, ffi::RSA_PSS_SALTLEN_DIGEST) == 1)
                && ffi::EVP_PKEY_sign(
                    context,
                    signature.as_mut_ptr(),
                    &mut length,
                    digest.as_ptr(),
                    digest.len(),
                ) == 1
        };
        (signed && length == signature.len()).then_some(signature)
    }

    /// RSASP1 over EMSA-PKCS1-v1_5 padding (RFC 8017 section 9.2) of `message` as it stands, with no DigestInfo.
    pub(crate) fn sign_raw(&self, message: &[u8]) -> Option<Vec<u8>> {
        let rsa = self.rsa()?;
        let mut signature = vec![0; self.modulus_bytes()];
        let mut length = 0;
        // SAFETY: `rsa` lives as long as the key; the library writes at most `max_out` bytes, the length of `signature`.
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

    /// RSAES-OAEP with `oaep` as its hash and its mask's, without a label; else RSAES-PKCS1-v1_5. `None` for whatever
    /// does not decrypt.
    pub(crate) fn decrypt(&self, oaep: Option<Hash>, ciphertext: &[u8]) -> Option<SecretBytes> {
        let context = self.context()?;
        let context = context.0.as_ptr();
        let mut plaintext = SecretBytes::zeroed(self.modulus_bytes());
        let mut length = plaintext.len();
        // SAFETY: the context is live; pointers and lengths are live slices'; the library writes at most `out_len` bytes.
        let decrypted = unsafe {
            ffi::EVP_PKEY_decrypt_init(context) == 1
                && match oaep {
                    Some(hash) => {
                        ffi::EVP_PKEY_CTX_set_rsa_padding(context, ffi::RSA_PKCS1_OAEP_PADDING) == 1
                            && ffi::EVP_PKEY_CTX_set_rsa_oaep_md(context, hash.library()) == 1
                            && ffi::EVP_PKEY_CTX_set_rsa_mgf1_md(context, hash.library()) == 1
                    }
                    None => ffi::EVP_PKEY_CTX_set_rsa_padding(context, ffi::RSA_PKCS1_PADDING) == 1,
                }
                && ffi::EVP_PKEY_decrypt(
                    context,
                    plaintext.danger_expose_mut().as_mut_ptr(),
                    &mut length,
                    ciphertext.as_ptr(),
                    ciphertext.len(),
                ) == 1
        };
        plaintext.truncate(length);
        decrypted.then_some(plaintext)
    }

    fn modulus_bytes(&self) -> usize {
        // SAFETY: the key is live.
        usize::try_from(unsafe { ffi::EVP_PKEY_size(self.0.0.as_ptr()) }).unwrap_or(0)
    }

    fn rsa(&self) -> Option<NonNull<ffi::RSA>> {
        // SAFETY: the key is live. The result is borrowed from it.
        NonNull::new(unsafe { ffi::EVP_PKEY_get0_RSA(self.0.0.as_ptr()) })
    }

    fn context(&self) -> Option<KeyContext> {
        KeyContext::from_raw(
            // SAFETY: the key is live, and the context takes a reference of its own; a null engine means none.
            unsafe { ffi::EVP_PKEY_CTX_new(self.0.0.as_ptr(), null_mut()) },
        )
    }
}

/// What [`RsaPrivateKey::sign_raw`] padded, from a signature; `None` where the padding is not of that form. `public` is DER
/// of `RSAPublicKey` (RFC 8017 appendix A.1.1).
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

/// `number` is null or live.
fn big_endian(number: *const ffi::BIGNUM) -> Option<Vec<u8>> {
    if number.is_null() {
        return None;
    }
    // SAFETY: not null, so live.
    let mut bytes = vec![0; unsafe { ffi::BN_num_bytes(number) } as usize];
    // SAFETY: the library writes as many bytes as the number has, which is what `bytes` has.
    let written = unsafe { ffi::BN_bn2bin(number, bytes.as_mut_ptr()) };
    (written == bytes.len()).then_some(bytes)
}
