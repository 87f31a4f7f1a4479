//! The search for keys in everything that a process maps, the arena left out: after a thousand operations there are none.
//! The same search of a process without an arena finds them, so it would find them here.

use super::tests::{ROLE, process};
use super::{hooks, is_in_use};
use crate::ec::EcKey;
use crate::oct::OctKey;
use crate::rsa::RsaKey;
use crate::{ECDSA_STACK_BYTES, STACK_BYTES, SoftwarePartition};
use aws_lc_sys as ffi;
use crypto::domain_secrets::PartitionWrappingKey;
use crypto::release::{KeyWrap, ReleaseKey};
use crypto::stack::wiping_stack;
use crypto::{Decrypt, Encrypt, LoadedKey, MaskedMaterial, MaterialBinding, Partition, masking};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::key::PublicKey;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout};
use std::sync::Arc;

const OPERATIONS: usize = 1_000;
const THREADS: usize = 4;
const PIECE_BYTES: usize = 16;
const WITHOUT_ARENA: &str = "HOLDFAST_DANGER_NO_ARENA";

const SPECS: [KeySpec; 8] = [
    KeySpec::Rsa(RsaSize::Rsa2048),
    KeySpec::Rsa(RsaSize::Rsa3072),
    KeySpec::Ec(Curve::P256),
    KeySpec::Ec(Curve::P384),
    KeySpec::Ec(Curve::P521),
    KeySpec::Ec(Curve::P256K),
    KeySpec::Oct(OctSize::Oct128),
    KeySpec::Oct(OctSize::Oct256),
];

fn wrapping() -> PartitionWrappingKey {
    PartitionWrappingKey::from_bytes([7; 32])
}

fn binding() -> MaterialBinding {
    MaterialBinding(b"a key".to_vec())
}

#[test]
fn no_key_is_outside_the_arena_after_a_thousand_operations() {
    let mut user = User::start(false);
    assert!(user.arena.is_some());
    let found = user.search();
    assert!(found.is_empty(), "found outside the arena: {found:?}");
    let inside = user.search_arena();
    for kind in ["rsa p", "rsa q", "rsa d", "ec scalar", "aes key"] {
        assert!(
            inside.keys().any(|name| name.starts_with(kind)),
            "{kind} is not in the arena either: {inside:?}"
        );
    }
    user.drop_keys();
    let left = user.search_arena();
    assert!(left.is_empty(), "left in the arena: {left:?}");
}

#[test]
fn a_core_file_has_no_key() {
    let user = User::start(false);
    let Some(core) = user.abort() else { return };
    assert!(core.bytes > 1 << 20);
    assert!(core.found.is_empty(), "found in a core file: {:?}", core.found);
}

#[test]
fn without_an_arena_the_search_finds_keys() {
    let mut user = User::start(true);
    assert!(user.arena.is_none());
    let found = user.search();
    for kind in ["rsa p", "rsa q", "rsa d", "rsa dp", "rsa dq", "rsa qinv", "ec scalar", "aes key"] {
        assert!(found.keys().any(|name| name.starts_with(kind)), "{kind} is not found: {found:?}");
    }
    if let Some(core) = user.abort() {
        for kind in ["rsa p", "rsa d", "ec scalar", "aes key"] {
            assert!(
                core.found.keys().any(|name| name.starts_with(kind)),
                "{kind} is not found: {:?}",
                core.found
            );
        }
    }
}

/// What the process does whose memory is searched.
pub(super) fn use_keys() {
    let partition = SoftwarePartition::new(wrapping());
    let environment = partition.generate(KeySpec::Rsa(RsaSize::Rsa2048), None, &binding()).unwrap().public;
    let PublicKey::Rsa { modulus, exponent } = environment else { unreachable!("an RSA key was made") };
    let environment = ReleaseKey::new(&modulus, &exponent).unwrap();
    let mut keys: Vec<Arc<dyn LoadedKey>> = Vec::new();
    for (spec, line) in SPECS.iter().zip(std::io::stdin().lock().lines()) {
        let masked = MaskedMaterial(hex::decode(line.unwrap()).unwrap());
        release(&partition, *spec, &masked, &environment);
        keys.push(partition.load(*spec, &masked, &binding()).unwrap());
    }
    for spec in SPECS {
        let masked = partition.generate(spec, None, &binding()).unwrap().masked;
        println!("made {}", hex::encode(&masked.0));
        release(&partition, spec, &masked, &environment);
        keys.push(partition.load(spec, &masked, &binding()).unwrap());
    }
    let uses: Vec<(usize, Use)> = (0..OPERATIONS)
        .map(|operation| (operation / 17 % keys.len(), operation))
        .map(|(key, operation)| (key, uses_of(keys[key].spec())[operation % uses_of(keys[key].spec()).len()]))
        .collect();
    // The threads live on while memory is searched: their stacks are part of it.
    let parked = Arc::new(std::sync::Barrier::new(THREADS + 1));
    for part in uses.chunks(OPERATIONS / THREADS) {
        let (part, keys, parked) = (part.to_vec(), keys.clone(), parked.clone());
        std::thread::spawn(move || {
            part.into_iter().for_each(|(key, how)| how(keys[key].as_ref()));
            drop(keys);
            parked.wait();
            loop {
                std::thread::park();
            }
        });
    }
    parked.wait();
    match hooks::range() {
        Some(range) if is_in_use() => println!("arena {:x}-{:x}", range.start, range.end),
        Some(_) | None => println!("arena none"),
    }
    println!("ready");
    let mut asked = std::io::stdin().lock().lines();
    asked.next();
    keys.clear();
    println!("dropped");
    asked.next();
}

fn release(partition: &SoftwarePartition, spec: KeySpec, masked: &MaskedMaterial, to: &ReleaseKey) {
    for wrap in KeyWrap::ALL {
        partition.release(spec, masked, &binding(), to, wrap).unwrap();
    }
}

type Use = fn(&dyn LoadedKey);

fn uses_of(spec: KeySpec) -> &'static [Use] {
    match spec {
        KeySpec::Rsa(_) => &[
            |key| drop(key.sign(SignatureAlgorithm::Rs256, &[5; 32]).unwrap()),
            |key| drop(key.sign(SignatureAlgorithm::Ps384, &[5; 48]).unwrap()),
            |key| drop(key.sign(SignatureAlgorithm::RsNull, &[5; 20]).unwrap()),
            |key| there_and_back(key, EncryptionAlgorithm::RsaOaep256),
            |key| there_and_back(key, EncryptionAlgorithm::Rsa15),
        ],
        KeySpec::Ec(Curve::P256) => &[|key| drop(key.sign(SignatureAlgorithm::Es256, &[5; 32]).unwrap())],
        KeySpec::Ec(Curve::P256K) => &[|key| drop(key.sign(SignatureAlgorithm::Es256K, &[5; 32]).unwrap())],
        KeySpec::Ec(Curve::P384) => &[|key| drop(key.sign(SignatureAlgorithm::Es384, &[5; 48]).unwrap())],
        KeySpec::Ec(Curve::P521) => &[|key| drop(key.sign(SignatureAlgorithm::Es512, &[5; 64]).unwrap())],
        KeySpec::Oct(OctSize::Oct128) => &[
            |key| there_and_back(key, EncryptionAlgorithm::AesGcm(OctSize::Oct128)),
            |key| there_and_back(key, EncryptionAlgorithm::AesCbc(OctSize::Oct128)),
            |key| there_and_back(key, EncryptionAlgorithm::AesKw(OctSize::Oct128)),
            |key| drop(key.sign(SignatureAlgorithm::Hs256, &[5; 32]).unwrap()),
        ],
        KeySpec::Oct(_) => &[
            |key| there_and_back(key, EncryptionAlgorithm::AesGcm(OctSize::Oct256)),
            |key| there_and_back(key, EncryptionAlgorithm::AesCbcPad(OctSize::Oct256)),
            |key| there_and_back(key, EncryptionAlgorithm::AesKw(OctSize::Oct256)),
            |key| drop(key.sign(SignatureAlgorithm::Hs256, &[5; 32]).unwrap()),
            |key| drop(key.sign(SignatureAlgorithm::Hs512, &[5; 64]).unwrap()),
        ],
    }
}

fn there_and_back(key: &dyn LoadedKey, algorithm: EncryptionAlgorithm) {
    let input = Encrypt { plaintext: &[0x61; 32], iv: None, additional_data: None };
    let sealed = key.encrypt(algorithm, &input).unwrap();
    let input = Decrypt {
        ciphertext: &sealed.bytes,
        iv: sealed.iv.as_deref(),
        additional_data: None,
        tag: sealed.tag.as_deref(),
    };
    assert_eq!(key.decrypt(algorithm, &input).unwrap().danger_expose(), [0x61; 32]);
}

/// A process that uses keys, as seen by whoever reads its memory.
struct User {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    arena: Option<Range<usize>>,
    secrets: Secrets,
    directory: PathBuf,
}

type Found = BTreeMap<String, usize>;

struct Core {
    bytes: usize,
    found: Found,
}

impl User {
    fn start(without_arena: bool) -> Self {
        // SAFETY of the search: the keys come masked, so that the process never has them but where it unmasks them.
        let partition = SoftwarePartition::new(wrapping());
        let given = SPECS.map(|spec| partition.generate(spec, None, &binding()).unwrap().masked);
        let directory = std::env::temp_dir().join(format!(
            "holdfast-core-{}-{without_arena}-{}",
            std::process::id(),
            rand()
        ));
        std::fs::create_dir_all(&directory).unwrap();
        let mut command = process("use keys");
        command.current_dir(&directory).stderr(std::process::Stdio::inherit());
        if without_arena {
            command.env(WITHOUT_ARENA, "1");
        }
        let mut process = command.spawn().unwrap();
        let mut input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut lines = String::new();
        for masked in &given {
            writeln!(lines, "{}", hex::encode(&masked.0)).unwrap();
        }
        input.write_all(lines.as_bytes()).unwrap();

        let mut secrets = Secrets::default();
        SPECS.iter().zip(&given).for_each(|(spec, masked)| secrets.add(*spec, masked));
        let (mut made, mut arena) = (0, None);
        loop {
            let line = read_line(&mut output);
            // The harness may have written before us on this line.
            if let Some((_, masked)) = line.split_once("made ") {
                secrets.add(SPECS[made], &MaskedMaterial(hex::decode(masked).unwrap()));
                made += 1;
            } else if let Some((start, end)) =
                line.strip_prefix("arena ").and_then(|range| range.split_once('-'))
            {
                arena = Some(address(start)..address(end));
            } else if line == "ready" {
                break;
            }
        }
        assert_eq!(made, SPECS.len());
        Self { process, input, output, arena, secrets, directory }
    }

    /// Everything that can be read but the arena.
    fn search(&mut self) -> Found {
        let arena = self.arena.clone().unwrap_or_default();
        self.search_where(|range| !(arena.start <= range.start && range.end <= arena.end))
    }

    fn search_arena(&mut self) -> Found {
        let arena = self.arena.clone().unwrap_or_default();
        self.search_where(|range| arena.start <= range.start && range.end <= arena.end)
    }

    fn search_where(&self, wanted: impl Fn(&Range<usize>) -> bool) -> Found {
        let pid = self.process.id();
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut found = Found::new();
        let mut searched = 0;
        for line in maps.lines() {
            let (range, permissions) = mapping(line).unwrap();
            if !permissions.starts_with('r')
                || line.ends_with("[vvar]")
                || line.contains("[vsyscall]")
                || !wanted(&range)
            {
                continue;
            }
            let mut bytes = vec![0; range.len()];
            memory.seek(SeekFrom::Start(range.start as u64)).unwrap();
            if memory.read_exact(&mut bytes).is_ok() {
                searched += bytes.len();
                let what = line.split_whitespace().nth(5).unwrap_or("anonymous");
                self.secrets.search(&bytes, what, &mut found);
            }
        }
        assert!(searched > 1 << 19, "only {searched} bytes searched");
        found
    }

    fn drop_keys(&mut self) {
        self.input.write_all(b"drop\n").unwrap();
        while read_line(&mut self.output) != "dropped" {}
    }

    /// The core file that the kernel writes as the process aborts; `None` where none can be found, and says so.
    fn abort(mut self) -> Option<Core> {
        use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
        let pid = Pid::from_child(&self.process);
        let most = getrlimit(Resource::Core).maximum;
        prlimit(Some(pid), Resource::Core, Rlimit { current: most, maximum: most }).unwrap();
        kill_process(pid, Signal::ABORT).unwrap();
        self.process.wait().unwrap();
        let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
        let Some(path) = self.core_file(&pattern) else {
            // Past the harness, which keeps to itself what a test prints that passes.
            let _ = writeln!(
                std::io::stderr(),
                "NO CORE FILE WAS SEARCHED FOR KEYS: there is none of this process (core_pattern {:?}, RLIMIT_CORE {most:?})",
                pattern.trim_end()
            );
            return None;
        };
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut found = Found::new();
        self.secrets.search(&bytes, "core", &mut found);
        Some(Core { bytes: bytes.len(), found })
    }

    fn core_file(&self, pattern: &str) -> Option<PathBuf> {
        let directory = core_directory(pattern, &self.directory)?;
        let is_own = |path: &Path| directory == self.directory || names_process(path, self.process.id());
        let entries = std::fs::read_dir(&directory).ok()?;
        entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| is_own(path))
    }
}

/// Where the kernel writes the core file of a process that works in `working` (core(5)); `None` where it hands it to a program
/// or a socket, or where the directory differs from process to process.
fn core_directory(pattern: &str, working: &Path) -> Option<PathBuf> {
    let pattern = pattern.trim_end();
    let directory = Path::new(pattern).parent()?;
    let is_file = !pattern.starts_with(['|', '@']) && !directory.to_string_lossy().contains('%');
    is_file
        .then(|| if directory.as_os_str().is_empty() { working.to_owned() } else { working.join(directory) })
}

/// Whether a core file's name has the number of this process: where all processes' are, no other is ours to read.
fn names_process(path: &Path, pid: u32) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|character: char| !character.is_ascii_digit()).any(|number| number == pid.to_string())
}

#[test]
fn a_core_file_is_looked_for_where_the_kernel_writes_it() {
    let working = Path::new("/tmp/w");
    for (pattern, directory) in [
        ("core\n", Some("/tmp/w")),
        ("core.%p", Some("/tmp/w")),
        ("/var/crash/core.%e.%p", Some("/var/crash")),
        ("cores/%p", Some("/tmp/w/cores")),
        ("/var/crash/%u/core", None),
        ("|/usr/lib/systemd/systemd-coredump %P", None),
        ("@/run/coredump.socket", None),
        ("", None),
    ] {
        assert_eq!(core_directory(pattern, working).as_deref(), directory.map(Path::new), "{pattern}");
    }
    for (name, is_own) in [("core.x.412", true), ("412", true), ("core.4123", false), ("core", false)] {
        assert_eq!(names_process(&Path::new("/var/crash").join(name), 412), is_own, "{name}");
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn read_line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert_ne!(output.read_line(&mut line).unwrap(), 0, "the process ended");
    line.trim_end().to_owned()
}

fn rand() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    hex::encode(bytes)
}

/// Range and permissions of a line of `/proc/PID/maps`, or of such a line in `smaps`.
pub(super) fn mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    Some((range, words.next()?))
}

fn address(text: &str) -> usize {
    usize::from_str_radix(text, 16).unwrap()
}

/// What is searched for: pieces of 16 bytes of every secret, in every order that code may keep it in. A piece is found at
/// any alignment; a remnant of a key counts as much as the whole.
#[derive(Default)]
struct Secrets {
    pieces: HashMap<[u8; PIECE_BYTES], String>,
    /// For each pair of bytes whether a piece starts with it.
    starts: Vec<bool>,
}

impl Secrets {
    fn add(&mut self, spec: KeySpec, masked: &MaskedMaterial) {
        let material = masking::open(&wrapping(), spec, &binding(), masked).unwrap();
        let material = material.danger_expose();
        match spec {
            KeySpec::Rsa(_) => {
                let names = ["d", "p", "q", "dp", "dq", "qinv"];
                for (name, number) in names.iter().zip(private_numbers(material)) {
                    self.add_number(&format!("rsa {name}"), &number);
                }
            }
            KeySpec::Ec(curve) => self.add_number("ec scalar", &material[..curve.coordinate_bytes()]),
            KeySpec::Oct(_) => self.add_symmetric(material),
        }
    }

    fn add_number(&mut self, name: &str, big_endian: &[u8]) {
        let mut little_endian = big_endian.to_vec();
        little_endian.reverse();
        little_endian.resize(little_endian.len().next_multiple_of(8), 0);
        // Words of 64 bits in big-endian order, each with its own bytes little-endian.
        let words: Vec<u8> = little_endian.chunks(8).rev().flatten().copied().collect();
        self.add_pieces(&format!("{name}, big-endian"), big_endian);
        self.add_pieces(&format!("{name}, little-endian"), &little_endian);
        self.add_pieces(&format!("{name}, words"), &words);
        self.add_pieces(&format!("{name}, digits of 52 bits"), &digits_of_52_bits(&little_endian));
    }

    fn add_symmetric(&mut self, key: &[u8]) {
        self.add_pieces("aes key", key);
        for expand in [ffi::AES_set_encrypt_key, ffi::AES_set_decrypt_key] {
            let mut schedule = ffi::AES_KEY { rd_key: [0; 60], rounds: 0 };
            // SAFETY: the library reads the slice's bits, and fills the schedule.
            assert_eq!(unsafe { expand(key.as_ptr(), key.len() as u32 * 8, &mut schedule) }, 0);
            let rounds: Vec<u8> = schedule.rd_key.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let rounds = &rounds[..(schedule.rounds as usize + 1) * 16];
            let swapped: Vec<u8> = rounds.chunks(4).flat_map(|word| word.iter().rev()).copied().collect();
            let reversed: Vec<u8> = rounds.iter().rev().copied().collect();
            for (order, bytes) in [("", rounds), (", swapped", &swapped), (", reversed", &reversed)] {
                self.add_pieces(&format!("aes schedule{order}"), bytes);
            }
        }
        for (name, pad) in [("inner", 0x36), ("outer", 0x5c)] {
            let padded: Vec<u8> = key.iter().map(|byte| byte ^ pad).collect();
            self.add_pieces(&format!("hmac {name} pad"), &padded);
        }
    }

    fn add_pieces(&mut self, name: &str, bytes: &[u8]) {
        self.starts.resize(1 << 16, false);
        for piece in bytes.chunks_exact(PIECE_BYTES) {
            let piece: [u8; PIECE_BYTES] = piece.try_into().unwrap();
            // The leading zeros of a short number are everywhere.
            if piece.iter().filter(|byte| **byte == 0).count() < 8 {
                self.starts[usize::from(u16::from_ne_bytes([piece[0], piece[1]]))] = true;
                self.pieces.entry(piece).or_insert_with(|| name.to_owned());
            }
        }
    }

    fn search(&self, memory: &[u8], place: &str, found: &mut Found) {
        for window in memory.windows(PIECE_BYTES) {
            if self.starts[usize::from(u16::from_ne_bytes([window[0], window[1]]))]
                && let Some(name) = self.pieces.get(window)
            {
                *found.entry(format!("{name}, in {place}")).or_default() += 1;
            }
        }
    }
}

fn digits_of_52_bits(little_endian: &[u8]) -> Vec<u8> {
    let bit =
        |index: usize| little_endian.get(index / 8).map_or(0, |byte| u64::from(byte >> (index % 8) & 1));
    (0..little_endian.len() * 8)
        .step_by(52)
        .flat_map(|start| (0..52).map(|offset| bit(start + offset) << offset).sum::<u64>().to_le_bytes())
        .collect()
}

/// d, p, q, d mod p-1, d mod q-1, 1/q mod p of a key in PKCS#8 (RFC 8017 appendix A.1.2).
fn private_numbers(pkcs8: &[u8]) -> Vec<Vec<u8>> {
    let outer = values(values(pkcs8)[0]);
    let inner = values(values(outer[2])[0]);
    inner[3..9].iter().map(|number| number.strip_prefix(&[0]).unwrap_or(number).to_vec()).collect()
}

/// The contents of the DER values that follow one another in `der`.
fn values(mut der: &[u8]) -> Vec<&[u8]> {
    let mut values = Vec::new();
    while let [_, length, rest @ ..] = der {
        let (length, rest) = match length {
            0x81 => (usize::from(rest[0]), &rest[1..]),
            0x82 => (usize::from(rest[0]) << 8 | usize::from(rest[1]), &rest[2..]),
            short => (usize::from(*short), rest),
        };
        let (value, behind) = rest.split_at(length);
        values.push(value);
        der = behind;
    }
    values
}

#[test]
fn the_search_sees_what_it_is_told_to_look_for() {
    let mut secrets = Secrets::default();
    let number: Vec<u8> = (1..=64).collect();
    secrets.add_number("n", &number);
    let mut memory = vec![0u8; 1000];
    memory[101..117].copy_from_slice(&number[16..32]);
    let reversed: Vec<u8> = number.iter().rev().copied().collect();
    memory[307..323].copy_from_slice(&reversed[32..48]);
    let mut found = Found::new();
    secrets.search(&memory, "here", &mut found);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["n, big-endian, in here", "n, little-endian, in here"]);
    assert_eq!(digits_of_52_bits(&[0xff; 13])[..16], [255, 255, 255, 255, 255, 255, 15, 0].repeat(2));
}

/// Each operation on a private or secret key leaves the stack alone below what is wiped after it.
#[test]
fn the_stack_that_is_wiped_is_deep_enough() {
    assert!(std::env::var_os(ROLE).is_none());
    let digest = [5; 64];
    let (mut deepest, mut deep) = (0, Vec::new());
    let mut measure = |what: &str, work: &dyn Fn()| {
        let used = stack_used(work);
        let most = if what == "ec sign" { ECDSA_STACK_BYTES } else { STACK_BYTES };
        println!("{what}: {used} of {most}");
        deep.extend((used >= most).then(|| format!("{what} uses {used}")));
        deepest = deepest.max(used);
    };
    for size in RsaSize::ALL {
        let material = crate::rsa::generate(size, None).unwrap();
        measure("rsa generate", &|| drop(crate::rsa::generate(RsaSize::Rsa2048, None).unwrap()));
        measure("rsa parse", &|| drop(RsaKey::parse(size, material.danger_expose()).unwrap()));
        let key = RsaKey::parse(size, material.danger_expose()).unwrap();
        measure("rsa sign", &|| drop(key.sign(SignatureAlgorithm::Ps512, &digest).unwrap()));
        measure("rsa decrypt", &|| {
            drop(key.decrypt(EncryptionAlgorithm::RsaOaep256, &vec![5; size.bytes()]))
        });
    }
    for (curve, algorithm) in [
        (Curve::P256, SignatureAlgorithm::Es256),
        (Curve::P256K, SignatureAlgorithm::Es256K),
        (Curve::P384, SignatureAlgorithm::Es384),
        (Curve::P521, SignatureAlgorithm::Es512),
    ] {
        let material = crate::ec::generate(curve).unwrap();
        measure("ec generate", &|| drop(crate::ec::generate(curve).unwrap()));
        measure("ec parse", &|| drop(EcKey::parse(curve, material.danger_expose()).unwrap()));
        let key = EcKey::parse(curve, material.danger_expose()).unwrap();
        let digest = &digest[..algorithm.digest_bytes().unwrap()];
        measure("ec sign", &|| drop(key.sign(digest).unwrap()));
    }
    for size in OctSize::ALL {
        let key = OctKey::parse(size, crate::oct::generate(size).unwrap().danger_expose()).unwrap();
        let input = Encrypt { plaintext: &[5; 4096], iv: None, additional_data: None };
        for algorithm in [
            EncryptionAlgorithm::AesGcm(size),
            EncryptionAlgorithm::AesCbc(size),
            EncryptionAlgorithm::AesKw(size),
        ] {
            measure(algorithm.as_str(), &|| drop(key.encrypt(algorithm, &input).unwrap()));
        }
        measure("hmac", &|| drop(key.mac(SignatureAlgorithm::Hs512, &digest).unwrap()));
    }
    assert!(deep.is_empty(), "{deep:?}");
    assert!(deepest > 1024, "nothing was measured");
}

/// What a frame held is there after it returned, and is not after [`wiping_stack`].
#[test]
fn the_stack_is_wiped_after_work() {
    // The search itself overwrites a little of it.
    assert!(left_on_the_stack(leave_behind) > LEFT_BYTES / 2, "the control finds nothing");
    let left = left_on_the_stack(|| wiping_stack::<STACK_BYTES, _>(leave_behind));
    assert!(left < 8, "{left} bytes in a row");
}

const LEFT_BYTES: usize = 8 * 1024;
const LEFT: u8 = 0xc3;

#[inline(never)]
fn leave_behind() {
    black_box(&mut [LEFT; LEFT_BYTES]);
}

/// The most bytes in a row that `work` left.
#[inline(never)]
fn left_on_the_stack(work: impl FnOnce()) -> usize {
    let lowest = paint();
    work();
    let (mut run, mut longest) = (0, 0);
    for offset in 0..PAINTED_BYTES {
        // SAFETY: as in `stack_used`.
        let byte = unsafe { std::ptr::read_volatile((lowest + offset) as *const u8) };
        run = if byte == LEFT { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

const PAINTED_BYTES: usize = 256 * 1024;
const PAINT: u8 = 0xa5;

#[inline(never)]
fn stack_used(work: &dyn Fn()) -> usize {
    // Once before, so that what is made when first needed is there.
    work();
    let lowest = paint();
    work();
    // SAFETY: the stack of this thread below the frames in use: nobody's, mapped, and just written by `paint`.
    let untouched = (0..PAINTED_BYTES)
        .take_while(|offset| unsafe { std::ptr::read_volatile((lowest + offset) as *const u8) } == PAINT)
        .count();
    PAINTED_BYTES - untouched
}

#[inline(never)]
fn paint() -> usize {
    let mut area = [PAINT; PAINTED_BYTES];
    black_box(&mut area).as_ptr() as usize
}
