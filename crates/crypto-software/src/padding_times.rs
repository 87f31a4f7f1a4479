//! How long RSA with PKCS#1 v1.5 takes to refuse a padding, by what is wrong with it. Reported, for whoever reads it (`cargo
//! test -p crypto-software padding_times -- --nocapture`): only the answers are asserted, as a machine that does other
//! things as well says nothing by a figure that is a little off. Over HTTP: `tests/e2e/test_padding_oracle.py`.

use crate::SoftwareKey;
use crate::aws_lc::SecretNumber;
use crypto::{Decrypt, LoadedKey, PartitionError};
use domain::algorithm::{EncryptionAlgorithm, KeySpec, RsaSize};
use domain::key::PublicKey;
use std::time::Instant;

const BYTES: usize = 256;
const ROUNDS: usize = 150;
const KINDS: [&str; 6] =
    ["first byte", "block type 1", "block type 0", "no zero byte", "padding of 7 bytes", "no padding"];

/// A padded message that is none (RFC 8017 section 7.2.2), made anew each time.
fn padded(kind: usize) -> [u8; BYTES] {
    let mut padded = [0; BYTES];
    crypto::digest::random(&mut padded);
    padded.iter_mut().for_each(|byte| *byte = (*byte).max(1));
    let (start, zero) = match kind {
        0 => ([1, 2], Some(224)),
        1 => ([0, 1], Some(224)),
        2 => ([0, 0], Some(224)),
        3 => ([0, 2], None),
        4 => ([0, 2], Some(9)),
        _ => ([0, 2], Some(2)),
    };
    padded[..2].copy_from_slice(&start);
    if let Some(zero) = zero {
        padded[zero] = 0;
    }
    padded
}

#[test]
fn refusals_are_one_answer_and_their_times_are_reported() {
    let key =
        SoftwareKey::parse(KeySpec::Rsa(RsaSize::Rsa2048), crate::rsa::generate_for_tests().danger_expose())
            .unwrap();
    let PublicKey::Rsa { modulus, exponent } = key.public_numbers() else { panic!("not RSA") };
    let [modulus, exponent] = [modulus, exponent].map(|bytes| SecretNumber::from_bytes(&bytes).unwrap());
    let mut times = KINDS.map(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        for step in 0..KINDS.len() {
            // In another order each time, or what comes before would be a part of a kind.
            let kind = (step * [1, 5][round % 2] + round / 2) % KINDS.len();
            let number = SecretNumber::from_bytes(&padded(kind)).unwrap();
            let encrypted = number.power(&exponent, &modulus).unwrap().to_bytes().unwrap();
            let mut ciphertext = [0; BYTES];
            ciphertext[BYTES - encrypted.len()..].copy_from_slice(encrypted.danger_expose());
            let input = Decrypt { ciphertext: &ciphertext, iv: None, additional_data: None, tag: None };
            let began = Instant::now();
            let answer = key.decrypt(EncryptionAlgorithm::Rsa15, &input);
            times[kind].push(began.elapsed().as_nanos() as f64 / 1000.0);
            assert_eq!(answer.err(), Some(PartitionError::DecryptionFailed), "{}", KINDS[kind]);
        }
    }
    for (kind, name) in KINDS.iter().enumerate() {
        let others = (0..KINDS.len()).filter(|other| *other != kind);
        let others = Sample::of(others.flat_map(|other| times[other].iter().copied()).collect());
        let own = Sample::of(times[kind].clone());
        let t = (own.mean - others.mean) / (own.spread + others.spread).sqrt();
        println!("{name:20} mean {:8.2} µs, Welch's t against the others {t:+6.2}", own.mean);
    }
}

struct Sample {
    mean: f64,
    /// Variance over count.
    spread: f64,
}

impl Sample {
    /// Without the slowest tenth, which are the machine's and not the operation's.
    fn of(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        times.truncate(times.len() * 9 / 10);
        let count = times.len() as f64;
        let mean = times.iter().sum::<f64>() / count;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Self { mean, spread: variance / count }
    }
}
