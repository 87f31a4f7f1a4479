//! The primitive alone, with its key parsed: the rate that no server around it can pass.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{Digest, SHA256, digest};
use aws_lc_rs::rand::fill;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256};

use crate::{Failure, machine};

/// Bytes of plaintext in the encryption row.
pub const PLAINTEXT_BYTES: usize = 1024;

/// A primitive as the server uses it: digests, not messages; an encryption draws its own nonce.
#[derive(Clone, Copy, Debug)]
pub enum Primitive {
    RsaSign,
    EcSign,
    Encrypt,
}

/// Operations in a second of `primitive`, on the server's core.
pub fn rate(primitive: Primitive, duration: Duration) -> Result<f64, Failure> {
    let thread = std::thread::spawn(move || {
        machine::pin_to(machine::SERVER_CORE)?;
        let digest = digest(&SHA256, b"message");
        match primitive {
            Primitive::RsaSign => rsa_sign(&digest, duration),
            Primitive::EcSign => ec_sign(&digest, duration),
            Primitive::Encrypt => encrypt(duration),
        }
    });
    thread.join().map_err(|_| Failure::new("the raw primitive panicked"))?
}

fn rsa_sign(digest: &Digest, duration: Duration) -> Result<f64, Failure> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let mut signature = vec![0; key.public_modulus_len()];
    repeat(duration, || Ok(key.sign_digest(&RSA_PKCS1_SHA256, digest, black_box(&mut signature))?))
}

fn ec_sign(digest: &Digest, duration: Duration) -> Result<f64, Failure> {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    repeat(duration, || {
        black_box(key.sign_digest(digest)?);
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
        for primitive in [Primitive::RsaSign, Primitive::EcSign, Primitive::Encrypt] {
            let rate = rate(primitive, Duration::from_millis(5)).unwrap();
            assert!(rate > 1.0, "{primitive:?}: {rate}");
        }
    }
}
