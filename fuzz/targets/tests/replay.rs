//! Each target over its corpus, and over what is near it: the inputs of `fuzz/corpus`, each with some bytes changed, cut,
//! repeated or spliced with another. Without coverage to guide it, but on every run. `HOLDFAST_SOAK` makes it a hundred
//! times as many; a failure prints the input as hex.
#![allow(clippy::unwrap_used)] // a failed check is a failed test

use fuzz_targets::{TARGETS, Target};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Changed inputs for each target.
const CHANGED: u64 = 400;
const MAX_BYTES: usize = 1 << 16;

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name)
}

fn inputs(target: &Target) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus(target.name)).unwrap();
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

fn run(target: &Target, what: &str, bytes: &[u8]) {
    let run = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let hex = || bytes.iter().take(4096).map(|byte| format!("{byte:02x}")).collect::<String>();
    assert!(run.is_ok(), "{} fails at {what}: {}", target.name, hex());
}

/// splitmix64: the same inputs at each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(bytes.len() + 1);
    match random.below(7) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'/', b'%'][random.below(8)],
        2 => bytes.insert(at, random.next() as u8),
        3 if at < bytes.len() => drop(bytes.drain(at..(at + 1 + random.below(8)).min(bytes.len()))),
        4 => bytes.truncate(at),
        5 => {
            let from = random.below(other.len() + 1);
            let to = (from + random.below(64)).min(other.len());
            bytes.splice(at..at, other[from..to].iter().copied());
        }
        _ => {
            let end = (at + random.below(32)).min(bytes.len());
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
    }
    bytes.truncate(MAX_BYTES);
}

#[test]
fn every_target_keeps_its_promises_on_and_near_its_corpus() {
    let rounds = if std::env::var_os("HOLDFAST_SOAK").is_some() { 100 * CHANGED } else { CHANGED };
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "no corpus for {}", target.name);
        run(target, "nothing", b"");
        for (name, bytes) in &inputs {
            run(target, name, bytes);
        }
        let mut random = Random(0x0005_eed0_f0f0);
        for round in 0..rounds {
            let (name, bytes) = &inputs[random.below(inputs.len())];
            let (_, other) = &inputs[random.below(inputs.len())];
            let mut bytes = bytes.clone();
            for _ in 0..=random.below(4) {
                change(&mut random, &mut bytes, other);
            }
            run(target, &format!("{name}, change {round}"), &bytes);
        }
    }
}

#[test]
fn every_corpus_has_a_target() {
    let directories = std::fs::read_dir(corpus("")).unwrap();
    let found: BTreeSet<_> =
        directories.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let expected: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(found, expected);
}
