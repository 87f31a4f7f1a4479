//! The primitive alone, with its key parsed: the rate that no server around it can pass.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{self, Digest, SHA256, SHA384, SHA512, digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap as _};
use aws_lc_rs::rand::fill;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256K1_SHA256_FIXED,
    ECDSA_P256K1_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED, ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    EcdsaVerificationAlgorithm, KeyPair as _, ParsedPublicKey, RSA_PKCS1_SHA256,
};

use crate::{Failure, machine};

/// Bytes of plaintext in the encryption row.
pub const PLAINTEXT_BYTES: usize = 1024;

/// A primitive as the server uses it: digests, not messages; an encryption draws its own nonce.
#[derive(Clone, Copy, Debug)]
pub enum Primitive {
    RsaSign(KeySize),
    EcSign(Curve),
    EcVerify(Curve),
    Encrypt,
    WrapKey,
}

#[derive(Clone, Copy, Debug)]
pub enum Curve {
    P256,
    P256K,
    P384,
    P521,
}

impl Curve {
    fn algorithms(
        self,
    ) -> (&'static digest::Algorithm, &'static EcdsaSigningAlgorithm, &'static EcdsaVerificationAlgorithm)
    {
        match self {
            Curve::P256 => (&SHA256, &ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P256_SHA256_FIXED),
            Curve::P256K => (&SHA256, &ECDSA_P256K1_SHA256_FIXED_SIGNING, &ECDSA_P256K1_SHA256_FIXED),
            Curve::P384 => (&SHA384, &ECDSA_P384_SHA384_FIXED_SIGNING, &ECDSA_P384_SHA384_FIXED),
            Curve::P521 => (&SHA512, &ECDSA_P521_SHA512_FIXED_SIGNING, &ECDSA_P521_SHA512_FIXED),
        }
    }
}

/// Operations in a second of `primitive`, on the server's core.
pub fn rate(primitive: Primitive, duration: Duration) -> Result<f64, Failure> {
    let thread = std::thread::spawn(move || {
        machine::pin_to(machine::SERVER_CORE)?;
        match primitive {
            Primitive::RsaSign(size) => rsa_sign(size, duration),
            Primitive::EcSign(curve) => ec_sign(curve, duration),
            Primitive::EcVerify(curve) => ec_verify(curve, duration),
            Primitive::Encrypt => encrypt(duration),
            Primitive::WrapKey => wrap_key(duration),
        }
    });
    thread.join().map_err(|_| Failure::new("the raw primitive panicked"))?
}

/// What is signed everywhere.
fn message_digest(algorithm: &'static digest::Algorithm) -> Digest {
    digest(algorithm, b"message")
}

fn rsa_sign(size: KeySize, duration: Duration) -> Result<f64, Failure> {
    let key = KeyPair::generate(size)?;
    let digest = message_digest(&SHA256);
    let mut signature = vec![0; key.public_modulus_len()];
    repeat(duration, || Ok(key.sign_digest(&RSA_PKCS1_SHA256, &digest, black_box(&mut signature))?))
}

fn ec_sign(curve: Curve, duration: Duration) -> Result<f64, Failure> {
    let (hash, signing, _) = curve.algorithms();
    let key = EcdsaKeyPair::generate(signing)?;
    let digest = message_digest(hash);
    repeat(duration, || {
        black_box(key.sign_digest(&digest)?);
        Ok(())
    })
}

fn ec_verify(curve: Curve, duration: Duration) -> Result<f64, Failure> {
    let (hash, signing, verifying) = curve.algorithms();
    let key = EcdsaKeyPair::generate(signing)?;
    let digest = message_digest(hash);
    let signature = key.sign_digest(&digest)?;
    let public = ParsedPublicKey::new(verifying, key.public_key().as_ref())?;
    repeat(duration, || Ok(public.verify_digest_sig(&digest, black_box(signature.as_ref()))?))
}

fn wrap_key(duration: Duration) -> Result<f64, Failure> {
    let mut wrapped = [0; 40];
    repeat(duration, || {
        // A key is made into a schedule for each call, and the call takes it.
        let key = AesKek::new(&AES_256, &[7; 32])?;
        black_box(key.wrap(&[9; 32], &mut wrapped)?);
        Ok(())
    })
}

fn encrypt(duration: Duration) -> Result<f64, Failure> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32])?);
    let mut text = vec![1; PLAINTEXT_BYTES];
    repeat(duration, || {
        let mut nonce = [0; 12];
        fill(&mut nonce)?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let _ = black_box(key.seal_in_place_separate_tag(nonce, Aad::empty(), black_box(&mut text))?);
        Ok(())
    })
}

fn repeat(duration: Duration, mut operation: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    for _ in 0..10 {
        operation()?;
    }
    let began = Instant::now();
    let mut done = 0_u32;
    // In small batches, so that reading the clock is no part of the rate.
    while began.elapsed() < duration {
        for _ in 0..10 {
            operation()?;
        }
        done += 10;
    }
    Ok(f64::from(done) / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_primitive_has_a_rate() {
        let curves = [Curve::P256, Curve::P256K, Curve::P384, Curve::P521];
        let curves =
            curves.into_iter().flat_map(|curve| [Primitive::EcSign(curve), Primitive::EcVerify(curve)]);
        let others = [Primitive::RsaSign(KeySize::Rsa2048), Primitive::Encrypt, Primitive::WrapKey];
        for primitive in curves.chain(others) {
            let rate = rate(primitive, Duration::from_millis(5)).unwrap();
            assert!(rate > 1.0, "{primitive:?}: {rate}");
        }
    }
}
