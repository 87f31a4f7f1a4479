//! What the arena costs, and how large it gets.
//!
//!     cargo run --profile dist -p crypto-software --features danger-test --example arena
//!
//! runs itself with and without the arena in turn and prints rates of one thread, and of two, per second of processor time; then the bytes that keys
//! take, as parsed and once used.

use crypto::domain_secrets::PartitionWrappingKey;
use crypto::stack::wiping_stack;
use crypto::{Encrypt, LoadedKey, MaskedMaterial, MaterialBinding, Partition};
use crypto_software::{SoftwarePartition, arena};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use std::sync::Arc;
use std::time::{Duration, Instant};

const WITHOUT: &str = "HOLDFAST_DANGER_NO_ARENA";
const CHILD: &str = "HOLDFAST_ARENA_EXAMPLE";
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(400);

type Work<'a> = Box<dyn Fn() + Sync + 'a>;

fn main() {
    if std::env::var_os(CHILD).is_some() {
        return measure();
    }
    let program = std::env::current_exe().expect("a program has a path");
    let mut rates: [Vec<Vec<(String, f64)>>; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (without, rates) in rates.iter_mut().enumerate() {
            let mut command = std::process::Command::new(&program);
            command.env(CHILD, "1");
            if without == 1 {
                command.env(WITHOUT, "1");
            }
            let output = command.output().expect("this program runs again");
            rates.push(parse(&String::from_utf8_lossy(&output.stdout)));
        }
    }
    println!("{:<34} {:>12} {:>12} {:>8}", "per second", "arena", "malloc", "ratio");
    for (row, (name, _)) in rates[0][0].iter().enumerate() {
        let median = |rates: &[Vec<(String, f64)>]| {
            let mut values: Vec<f64> = rates.iter().map(|round| round[row].1).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (with, without) = (median(&rates[0]), median(&rates[1]));
        println!("{name:<34} {with:>12.0} {without:>12.0} {:>8.3}", with / without);
    }
    sizes();
}

fn parse(output: &str) -> Vec<(String, f64)> {
    let rows = output.lines().filter_map(|line| line.split_once('\t'));
    rows.filter_map(|(name, rate)| Some((name.to_owned(), rate.parse().ok()?))).collect()
}

struct Keys {
    partition: SoftwarePartition,
    masked: Vec<(KeySpec, MaskedMaterial)>,
}

fn binding() -> MaterialBinding {
    MaterialBinding(b"a key".to_vec())
}

impl Keys {
    fn new(specs: &[KeySpec]) -> Self {
        let partition = SoftwarePartition::new(PartitionWrappingKey::from_bytes([7; 32]));
        let make = |spec: &KeySpec| {
            let generated = partition.generate(*spec, None, &binding()).expect("a key is made");
            (*spec, generated.masked)
        };
        let masked = specs.iter().map(make).collect();
        Self { partition, masked }
    }

    fn load(&self, index: usize) -> Arc<dyn LoadedKey> {
        let (spec, masked) = &self.masked[index];
        self.partition.load(*spec, masked, &binding()).expect("a key loads")
    }
}

fn measure() {
    let keys =
        Keys::new(&[KeySpec::Rsa(RsaSize::Rsa2048), KeySpec::Ec(Curve::P256), KeySpec::Oct(OctSize::Oct256)]);
    let [rsa, ec, oct] = [0, 1, 2].map(|index| keys.load(index));
    let sign =
        |key: &Arc<dyn LoadedKey>, algorithm| drop(key.sign(algorithm, &[5; 32]).expect("a key signs"));
    let encrypt = |algorithm| {
        let input = Encrypt { plaintext: &[5; 1024], iv: None, additional_data: None };
        drop(oct.encrypt(algorithm, &input).expect("a key encrypts"));
    };
    let rows: [(&str, Work<'_>); 10] = [
        ("RSA-2048 sign", Box::new(|| sign(&rsa, SignatureAlgorithm::Rs256))),
        ("RSA-2048 unmask and parse", Box::new(|| drop(keys.load(0)))),
        ("P-256 sign", Box::new(|| sign(&ec, SignatureAlgorithm::Es256))),
        ("P-256 unmask and parse", Box::new(|| drop(keys.load(1)))),
        ("A256GCM encrypt 1 KiB", Box::new(|| encrypt(EncryptionAlgorithm::AesGcm(OctSize::Oct256)))),
        ("A256CBC encrypt 1 KiB", Box::new(|| encrypt(EncryptionAlgorithm::AesCbc(OctSize::Oct256)))),
        ("A256KW wrap 1 KiB", Box::new(|| encrypt(EncryptionAlgorithm::AesKw(OctSize::Oct256)))),
        ("HS256", Box::new(|| sign(&oct, SignatureAlgorithm::Hs256))),
        ("wiping 24 KiB of stack", Box::new(|| wiping_stack::<{ 24 * 1024 }, _>(|| ()))),
        ("wiping 72 KiB of stack", Box::new(|| wiping_stack::<{ 72 * 1024 }, _>(|| ()))),
    ];
    for (name, work) in &rows {
        for threads in [1, 2] {
            println!(
                "{name}, {threads} thread{}\t{}",
                if threads == 1 { "" } else { "s" },
                rate(threads, work)
            );
        }
    }
}

/// Operations in a second of processor time, so that what else the machine does counts for little.
fn rate(threads: usize, work: &Work<'_>) -> f64 {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let run = || {
            let (before, mut count) = (processor_time(), 0u64);
            while began.elapsed() < TIME {
                work();
                count += 1;
            }
            (count, processor_time() - before)
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("a thread ends well"))
            .map(|(count, time)| count as f64 / time.as_secs_f64())
            .sum()
    })
}

/// Of this thread.
fn processor_time() -> Duration {
    let statistics =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel keeps statistics");
    let nanoseconds = statistics.split(' ').next().and_then(|time| time.parse().ok());
    Duration::from_nanos(nanoseconds.expect("the first number is the time on a processor"))
}

/// How much of the arena one key takes, from many copies of it.
fn sizes() {
    const COPIES: usize = 1_000;
    println!("\n{:<34} {:>12} {:>12}", "bytes of the arena for a key", "parsed", "used");
    let used = || arena::status().map_or(0, |status| status.used_bytes);
    for (spec, algorithm) in [
        (KeySpec::Rsa(RsaSize::Rsa2048), SignatureAlgorithm::Rs256),
        (KeySpec::Rsa(RsaSize::Rsa3072), SignatureAlgorithm::Rs256),
        (KeySpec::Rsa(RsaSize::Rsa4096), SignatureAlgorithm::Rs256),
        (KeySpec::Ec(Curve::P256), SignatureAlgorithm::Es256),
        (KeySpec::Oct(OctSize::Oct256), SignatureAlgorithm::Hs256),
    ] {
        let keys = Keys::new(&[spec]);
        let before = used();
        let loaded: Vec<_> = (0..COPIES).map(|_| keys.load(0)).collect();
        let parsed = used() - before;
        loaded.iter().for_each(|key| drop(key.sign(algorithm, &[5; 32]).expect("a key signs")));
        println!("{:<34} {:>12} {:>12}", spec.to_string(), parsed / COPIES, (used() - before) / COPIES);
    }
}
