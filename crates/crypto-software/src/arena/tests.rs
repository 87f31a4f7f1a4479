use super::*;
use crate::SoftwarePartition;
use crate::aws_lc::secret_memory;
use crypto::domain_secrets::PartitionWrappingKey;
use crypto::secret::SecretMemory;
use crypto::{LoadedKey, MaskedMaterial, MaterialBinding, Partition, PartitionError, SecretBytes};
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};
use std::sync::Barrier;

/// Set in processes that tests start, to what they are to do.
pub(super) const ROLE: &str = "HOLDFAST_ARENA_TEST_ROLE";
const SIGABRT: i32 = 6;

fn small() -> Arena {
    Arena::reserve(4 * CHUNK_BYTES, 3).unwrap()
}

/// This test binary again, to do `role`.
pub(super) fn process(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "arena::tests::what_another_test_asks_of_a_process", "--nocapture"]);
    command.env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn outcome(role: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = process(role);
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

fn succeeded(output: &Output) -> bool {
    let passed = output.status.success() && String::from_utf8_lossy(&output.stdout).contains("role done");
    if !passed {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    passed
}

#[test]
fn what_another_test_asks_of_a_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    match role.as_str() {
        "free twice" => {
            let arena = small();
            let _neighbour = arena.allocate(100);
            let pointer = arena.allocate(100);
            arena.free(pointer);
            arena.free(pointer);
        }
        "free twice, large" => {
            let arena = small();
            let pointer = arena.allocate(100_000);
            arena.free(pointer);
            arena.free(pointer);
        }
        "free from elsewhere" => small().free(Box::into_raw(Box::new(0u8))),
        "free into a slot" => {
            let arena = small();
            arena.free(arena.allocate(100).wrapping_add(16));
        }
        "free into a large one" => {
            let arena = small();
            arena.free(arena.allocate(100_000).wrapping_add(SPAN_BYTES));
        }
        "run over the end" => {
            let arena = small();
            let all = USABLE_SPANS * SPAN_BYTES;
            wipe(arena.allocate(all), all + 1);
        }
        "exhausted" => exhausted(),
        "nothing lockable" => nothing_lockable(),
        "use keys" => super::leaks::use_keys(),
        other => panic!("no such role: {other}"),
    }
    println!("role done");
}

#[test]
fn each_size_gets_the_smallest_slot_that_fits() {
    for bytes in 1..=LARGEST_SLOT_BYTES {
        let class = class_of(bytes).unwrap();
        assert!(class_bytes(class) >= bytes, "{bytes}");
        assert!(class == 0 || class_bytes(class - 1) < bytes, "{bytes}");
    }
    assert_eq!(class_of(0), Some(0));
    assert_eq!(class_of(LARGEST_SLOT_BYTES), Some(CLASSES - 1));
    assert_eq!(class_of(LARGEST_SLOT_BYTES + 1), None);
    for class in 0..CLASSES {
        assert!(class_bytes(class).is_multiple_of(UNIT_BYTES) && slots_of(class) <= MOST_SLOTS);
    }
}

/// A model keeps what each live allocation was filled with.
struct Checked<'a> {
    arena: &'a Arena,
    live: BTreeMap<usize, (usize, u8)>,
}

impl Checked<'_> {
    fn allocate(&mut self, bytes: usize, fill: u8) {
        let pointer = self.arena.allocate(bytes);
        if pointer.is_null() {
            return;
        }
        let address = pointer as usize;
        assert!(address.is_multiple_of(UNIT_BYTES));
        let held = self.arena.bytes_at(pointer);
        assert!(held >= bytes);
        let before = self.live.range(..=address).next_back();
        assert!(before.is_none_or(|(start, (bytes, _))| start + bytes <= address));
        assert!(self.live.range(address..).next().is_none_or(|(start, _)| address + held <= *start));
        assert!(bytes_of(pointer, held).iter().all(|byte| *byte == 0), "not wiped");
        bytes_of(pointer, bytes).fill(fill);
        self.live.insert(address, (bytes, fill));
    }

    fn take(&mut self, which: usize) -> Option<(*mut u8, usize, u8)> {
        let address = *self.live.keys().nth(which % self.live.len().max(1))?;
        let (bytes, fill) = self.live.remove(&address)?;
        let pointer = address as *mut u8;
        assert!(bytes_of(pointer, bytes).iter().all(|byte| *byte == fill), "overwritten");
        Some((pointer, bytes, fill))
    }

    fn free(&mut self, which: usize) {
        if let Some((pointer, bytes, _)) = self.take(which) {
            self.arena.free(pointer);
            assert!(bytes_of(pointer, bytes).iter().all(|byte| *byte == 0), "not wiped");
        }
    }

    fn reallocate(&mut self, which: usize, bytes: usize) {
        let Some((pointer, before, fill)) = self.take(which) else { return };
        let moved = self.arena.reallocate(pointer, bytes);
        if moved.is_null() {
            self.live.insert(pointer as usize, (before, fill));
            return;
        }
        assert!(bytes_of(moved, before.min(bytes)).iter().all(|byte| *byte == fill), "not copied");
        if moved != pointer {
            assert!(bytes_of(pointer, before).iter().all(|byte| *byte == 0), "not wiped");
        }
        bytes_of(moved, bytes).fill(fill);
        self.live.insert(moved as usize, (bytes, fill));
    }
}

fn bytes_of<'a>(pointer: *mut u8, bytes: usize) -> &'a mut [u8] {
    // SAFETY: tests ask for memory of an arena that is accessible and that no one else uses meanwhile.
    unsafe { std::slice::from_raw_parts_mut(pointer, bytes) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn allocations_are_zero_apart_and_kept(
        steps in proptest::collection::vec((0..10u8, prop_oneof![4 => 0..600usize, 2 => 0..9000usize, 1 => 0..300_000usize], any::<u8>()), 1..400),
    ) {
        let arena = small();
        let mut checked = Checked { arena: &arena, live: BTreeMap::new() };
        for (step, bytes, fill) in steps {
            match step {
                0..5 => checked.allocate(bytes, fill | 1),
                5..8 => checked.free(bytes),
                _ => checked.reallocate(fill.into(), bytes),
            }
        }
        while !checked.live.is_empty() {
            checked.free(0);
        }
        let kept = arena.status().used_bytes / SPAN_BYTES;
        prop_assert!(kept <= CLASSES, "{kept} spans are not given back");
    }
}

/// What one thread allocated another frees.
#[test]
fn threads_share_an_arena() {
    let arena = Arena::reserve(16 * CHUNK_BYTES, 3).unwrap();
    let handed_over: Vec<Mutex<Vec<(usize, usize)>>> = (0..4).map(|_| Mutex::default()).collect();
    // Where one thread does not get to run, what waits for it must not fill the arena.
    let in_step = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (arena, handed_over, in_step) = (&arena, &handed_over, &in_step);
            scope.spawn(move || {
                for round in 0..5_000usize {
                    if round % 100 == 0 {
                        in_step.wait();
                    }
                    let bytes = (round * 37 + thread * 101) % 3_000 + 1;
                    let pointer = arena.allocate(bytes);
                    assert!(bytes_of(pointer, bytes).iter().all(|byte| *byte == 0));
                    bytes_of(pointer, bytes).fill(0xff);
                    handed_over[(thread + 1) % 4].lock().unwrap().push((pointer as usize, bytes));
                    for (pointer, bytes) in std::mem::take(&mut *handed_over[thread].lock().unwrap()) {
                        assert!(bytes_of(pointer as *mut u8, bytes).iter().all(|byte| *byte == 0xff));
                        arena.free(pointer as *mut u8);
                    }
                }
            });
        }
    });
    for (pointer, _) in handed_over.iter().flat_map(|left| left.lock().unwrap().clone()) {
        arena.free(pointer as *mut u8);
    }
    assert!(arena.status().used_bytes <= 3 * CLASSES * SPAN_BYTES);
}

#[test]
fn a_full_arena_gives_null_and_recovers() {
    let arena = Arena::reserve(CHUNK_BYTES, 1).unwrap();
    let mut taken: Vec<_> =
        std::iter::repeat_with(|| arena.allocate(4096)).take_while(|pointer| !pointer.is_null()).collect();
    assert_eq!(taken.len(), USABLE_SPANS * 4);
    assert!(arena.allocate(SPAN_BYTES * 2).is_null());
    assert!(arena.reallocate(taken[0], 5000).is_null());
    assert!(!arena.has_left(1000));
    taken.drain(..).for_each(|pointer| arena.free(pointer));
    assert!(arena.has_left(2));
    assert!(!arena.allocate(SPAN_BYTES * 32).is_null());
    assert!(arena.allocate(CHUNK_BYTES).is_null(), "larger than a chunk");
    assert!(arena.allocate(usize::MAX).is_null());
}

#[test]
fn pages_are_locked_and_marked_and_have_guards() {
    let arena = small();
    arena.grow_to(2 * CHUNK_BYTES);
    let start = arena.base.as_ptr() as usize;
    let usable = USABLE_SPANS * SPAN_BYTES;
    let before = mapping_at(start - 1);
    let first = mapping_at(start);
    let guard = mapping_at(start + usable);
    assert!(before.permissions == "---p" && guard.permissions == "---p");
    assert_eq!((first.start, first.end, first.permissions.as_str()), (start, start + usable, "rw-p"));
    assert_eq!(guard.end, start + CHUNK_BYTES);
    for mark in ["dd", "wf"] {
        assert!(first.marks.iter().any(|held| held == mark), "{mark} is not among {:?}", first.marks);
    }
    let status = arena.status();
    assert!(status.kept_out_of_dumps && status.empty_in_children);
    assert_eq!(status.grown_bytes, 2 * CHUNK_BYTES);
    assert_eq!(status.is_locked(), first.marks.iter().any(|held| held == "lo"));
}

struct Mapping {
    start: usize,
    end: usize,
    permissions: String,
    marks: Vec<String>,
}

fn mapping_at(address: usize) -> Mapping {
    let mut found = None;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some((range, permissions)) = super::leaks::mapping(line) {
            if let Some(found) = found.filter(|found: &Mapping| !found.marks.is_empty()) {
                return found;
            }
            found = range.contains(&address).then(|| Mapping {
                start: range.start,
                end: range.end,
                permissions: permissions.to_owned(),
                marks: Vec::new(),
            });
        } else if let (Some(found), Some(marks)) = (&mut found, line.strip_prefix("VmFlags:")) {
            found.marks = marks.split_whitespace().map(str::to_owned).collect();
        }
    }
    found.unwrap()
}

#[test]
fn misuse_ends_the_process() {
    for (role, complaint) in [
        ("free twice", "freed twice"),
        ("free twice, large", "freed twice"),
        ("free from elsewhere", "from elsewhere"),
        ("free into a slot", "into an allocation"),
        ("free into a large one", "into an allocation"),
    ] {
        let output = outcome(role, &[]);
        assert_eq!(output.status.signal(), Some(SIGABRT), "{role}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(complaint), "{role}");
    }
    let overrun = outcome("run over the end", &[]);
    assert_eq!(overrun.status.signal(), Some(11), "the guard does not stop an overrun");
}

#[test]
fn the_library_allocates_from_the_arena() {
    assert!(is_in_use());
    assert!(status().is_some());
    let before = crypto::secret::in_ordinary_memory();
    let secret = SecretBytes::zeroed(40);
    assert!(range().unwrap().contains(&(secret.danger_expose().as_ptr() as usize)));
    assert_eq!(crypto::secret::in_ordinary_memory(), before);
}

use super::hooks::range;

fn binding() -> MaterialBinding {
    MaterialBinding(b"a key".to_vec())
}

#[test]
fn a_full_arena_refuses_keys_and_ends_nothing() {
    assert!(succeeded(&outcome("exhausted", &[("HOLDFAST_DANGER_ARENA_BYTES", "3145728")])));
}

/// What a caller gets when the last byte is gone: an error, and all is well when there is room again.
fn exhausted() {
    let partition = SoftwarePartition::new(PartitionWrappingKey::from_bytes([7; 32]));
    let specs = [KeySpec::Rsa(RsaSize::Rsa2048), KeySpec::Ec(Curve::P256), KeySpec::Oct(OctSize::Oct256)];
    let masked: Vec<(KeySpec, MaskedMaterial)> =
        specs.map(|spec| (spec, partition.generate(spec, None, &binding()).unwrap().masked)).into();
    let material = crate::rsa::generate(RsaSize::Rsa2048, None).unwrap();
    let unused = crate::rsa::RsaKey::parse(RsaSize::Rsa2048, material.danger_expose()).unwrap();
    let mut loaded: Vec<std::sync::Arc<dyn LoadedKey>> = Vec::new();
    let refusal = 'full: loop {
        for (spec, masked) in &masked {
            match partition.load(*spec, masked, &binding()) {
                Ok(key) => loaded.push(key),
                Err(refusal) => break 'full refusal,
            }
        }
    };
    assert_eq!(refusal, PartitionError::NoRoom("find room for another key in locked memory"));
    assert!(loaded.len() > 30, "{} keys fill it", loaded.len());
    assert!(partition.generate(specs[0], None, &binding()).is_err());
    // Those that are there can be used: that is what the last part is kept for.
    for key in &loaded[..3] {
        use_once(key.as_ref()).unwrap();
    }

    let mut taken: Vec<Box<dyn SecretMemory>> = Vec::new();
    let sizes = [SPAN_BYTES * 8, SPAN_BYTES].into_iter().chain((0..CLASSES).rev().map(class_bytes));
    for bytes in sizes {
        taken.extend(std::iter::from_fn(|| secret_memory(bytes)));
    }
    let no_room = Some(PartitionError::NoRoom("find room for the use of a key in locked memory"));
    for key in &loaded[..3] {
        assert_eq!(use_once(key.as_ref()).err(), no_room);
    }
    for (spec, masked) in &masked {
        assert_eq!(partition.rebind(*spec, masked, &binding(), &binding()).err(), no_room);
    }
    // So does the library, should it come to that.
    assert!(unused.sign(SignatureAlgorithm::Rs256, &[5; 32]).is_err());
    assert!(unused.decrypt(EncryptionAlgorithm::RsaOaep256, &[5; 256]).is_err());
    assert!(crate::aws_lc::MacKey::new(crate::aws_lc::Hash::Sha256, &[5; 32]).is_none());
    assert!(crate::aws_lc::AesEncrypting::new(&[5; 32]).is_none());
    assert!(crate::rsa::generate(RsaSize::Rsa2048, None).is_err());
    assert!(crate::ec::generate(Curve::P256).is_err());

    // A key grows when it is first used, so most of them have to go for the others to be used.
    drop(taken);
    loaded.truncate(loaded.len() / 5);
    for key in &loaded {
        use_once(key.as_ref()).unwrap();
    }
    loaded.clear();
    assert!(partition.generate(specs[0], None, &binding()).is_ok());
}

fn use_once(key: &dyn LoadedKey) -> Result<(), PartitionError> {
    match key.spec() {
        KeySpec::Rsa(_) => key.sign(SignatureAlgorithm::Ps256, &[5; 32]).map(drop),
        KeySpec::Ec(_) => key.sign(SignatureAlgorithm::Es256, &[5; 32]).map(drop),
        KeySpec::Oct(_) => {
            let input = crypto::Encrypt { plaintext: &[5; 32], iv: None, additional_data: None };
            key.encrypt(EncryptionAlgorithm::AesKw(OctSize::Oct256), &input).map(drop)
        }
    }
}

#[test]
fn what_cannot_be_locked_is_told_and_refused_where_keys_matter() {
    assert!(succeeded(&outcome("nothing lockable", &[])));
}

/// As a service without the right to lock memory, and with a limit that is far too low.
fn nothing_lockable() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let chunk = 2 * CHUNK_BYTES as u64;
    setrlimit(Resource::Memlock, Rlimit { current: Some(chunk), maximum: Some(chunk) }).unwrap();
    let mut rights = capabilities(None).unwrap();
    rights.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, rights).unwrap();

    // Class test: what there is not room for is used unlocked, and told.
    start(8 * CHUNK_BYTES);
    let reached = status().unwrap();
    assert_eq!(reached.grown_bytes, 8 * CHUNK_BYTES);
    assert!(reached.locked_bytes <= 2 * CHUNK_BYTES && !reached.is_locked());

    // Class production: refused, and nothing more is used that is not locked.
    let shortage = require_locked().unwrap_err();
    assert!(shortage.locked_bytes < PRODUCTION_BYTES && shortage.wanted_bytes == PRODUCTION_BYTES);
    let arena = small();
    assert!(arena.refuse_unlockable(), "nothing is in use yet");
    assert!(arena.allocate(100).is_null());
    assert_eq!(arena.status().grown_bytes, 0);
}
