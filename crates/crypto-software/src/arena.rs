//! The memory that keys live in: locked, left out of core files, empty in a forked child, wiped on free.
//!
//! aws-lc allocates here, all of it: its hooks are set by a constructor, before `main` and so before the first call of the
//! library, whoever makes it. What this crate and `crypto` hold of a key themselves lies here as well, as it is allocated
//! through the library ([`crate::aws_lc`]).
//!
//! ```text
//! reserved, inaccessible:  guard | chunk 0 | chunk 1 | ... | chunk n | guard
//! chunk, 1 MiB:            63 spans of 16 KiB, then a guard of one span
//! span:                    slots of one size, or part of one large allocation
//! ```
//!
//! Chunks are made accessible and locked one by one, as they are needed, up to a limit, and never given back. What is
//! known of the spans is kept elsewhere: it holds nothing secret, and an overrun cannot reach it. Threads are spread over
//! shards, each with spans of its own, so that they seldom wait for each other.
//!
//! An allocation for which there is no room is null, an error to whoever asked. A pointer that is freed twice, or never
//! was allocated here, ends the process: the alternative is to hand one key's memory to another.
#![allow(unsafe_code)]

mod hooks;
#[cfg(test)]
mod leaks;
#[cfg(test)]
mod tests;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use std::cell::Cell;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use hooks::{Shortage, is_in_use, require_locked, start, status};
pub(crate) use hooks::{admit_key, admit_use};

/// The most that the arena grows to. 10,000 parsed RSA-4096 keys and 4,000 TLS connections need a fifth of it
/// (docs/memory.md).
pub const MOST_BYTES: usize = 512 * 1024 * 1024;
/// What a pool of class production must be able to lock before it starts.
pub const PRODUCTION_BYTES: usize = 64 * 1024 * 1024;

const SPAN_BYTES: usize = 16 * 1024;
const SPANS_PER_CHUNK: usize = 64;
const CHUNK_BYTES: usize = SPANS_PER_CHUNK * SPAN_BYTES;
/// One is the guard.
const USABLE_SPANS: usize = SPANS_PER_CHUNK - 1;
const UNIT_BYTES: usize = 16;
const CLASSES: usize = 32;
const LARGEST_SLOT_BYTES: usize = SPAN_BYTES / 2;
const MOST_SLOTS: usize = SPAN_BYTES / UNIT_BYTES;
const MOST_SHARDS: usize = 16;
const NONE: u32 = u32::MAX;

/// What the arena is and has reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Status {
    /// What it may grow to.
    pub limit_bytes: usize,
    /// What it has grown to.
    pub grown_bytes: usize,
    /// How much of that cannot go to swap.
    pub locked_bytes: usize,
    /// How much of that holds something.
    pub used_bytes: usize,
    /// No core file has it.
    pub kept_out_of_dumps: bool,
    /// A child that this process forks finds zeros there.
    pub empty_in_children: bool,
}

impl Status {
    pub fn is_locked(&self) -> bool {
        self.locked_bytes == self.grown_bytes
    }
}

/// What happens when a new chunk cannot be locked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Unlockable {
    /// It is used all the same: class test.
    Use,
    /// It is as if there were none: class production.
    Refuse,
}

struct Arena {
    base: NonNull<u8>,
    spans: &'static [Span],
    shards: Box<[Mutex<Shard>]>,
    central: Mutex<Central>,
    /// Free spans and such as may still be made, for a look without a lock.
    left: AtomicUsize,
    kept_out_of_dumps: bool,
    empty_in_children: bool,
}

// SAFETY: `base` is the address of a mapping that lives as long as the process, and which bytes of it belong to whom is
// settled under the locks.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

/// What is known of one span. All zero is a span that is free.
struct Span {
    /// See [`SpanState`]. Written by whoever owns the span; a pointer into it keeps it from changing.
    state: AtomicU32,
    /// Slots in use, and the neighbours in the shard's list: under the shard's lock.
    used: AtomicU32,
    previous: AtomicU32,
    next: AtomicU32,
    /// One bit for each slot in use. Set and cleared under the shard's lock.
    slots: [AtomicU64; MOST_SLOTS / 64],
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum SpanState {
    Free,
    Slots {
        class: usize,
        shard: usize,
    },
    /// The first of so many spans of one allocation.
    Large {
        spans: usize,
    },
    /// A later one.
    Inside,
}

impl SpanState {
    fn encode(self) -> u32 {
        match self {
            Self::Free => 0,
            Self::Slots { class, shard } => 1 | (class as u32) << 8 | (shard as u32) << 16,
            Self::Large { spans } => 2 | (spans as u32) << 8,
            Self::Inside => 3,
        }
    }

    fn decode(state: u32) -> Self {
        let [kind, first, second, _] = state.to_le_bytes();
        match kind {
            0 => Self::Free,
            1 => Self::Slots { class: first.into(), shard: second.into() },
            2 => Self::Large { spans: first.into() },
            _ => Self::Inside,
        }
    }
}

/// For each class the first of the spans that have a slot to give.
struct Shard {
    open: [u32; CLASSES],
}

struct Central {
    /// One word for each chunk, one bit for each span of it that is free.
    free: Box<[u64]>,
    /// No span is free before this chunk.
    hint: usize,
    free_spans: usize,
    grown: usize,
    limit: usize,
    locked: usize,
    unlockable: Unlockable,
}

impl Arena {
    /// Reserves addresses, no memory.
    fn reserve(most_bytes: usize, shards: usize) -> rustix::io::Result<Self> {
        let chunks = (most_bytes / CHUNK_BYTES).max(1);
        let bytes = chunks * CHUNK_BYTES;
        // A guard before the first chunk, as big as a span so that spans stay aligned. Behind a chunk there is one anyway.
        // SAFETY: a new mapping at an address of the kernel's choice: no existing memory changes. It is never unmapped.
        let reserved = unsafe {
            rustix::mm::mmap_anonymous(
                null_mut(),
                SPAN_BYTES + bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // SAFETY: inside the mapping made above.
        let base = unsafe { reserved.cast::<u8>().add(SPAN_BYTES) };
        // SAFETY: the whole of our own mapping, in which there is nothing yet.
        let advise = |advice| unsafe { rustix::mm::madvise(reserved, SPAN_BYTES + bytes, advice) }.is_ok();
        Ok(Self {
            base: NonNull::new(base).ok_or(rustix::io::Errno::NOMEM)?,
            spans: span_table(chunks * SPANS_PER_CHUNK)?,
            shards: (0..shards.clamp(1, MOST_SHARDS))
                .map(|_| Mutex::new(Shard { open: [NONE; CLASSES] }))
                .collect(),
            central: Mutex::new(Central {
                free: vec![0; chunks].into(),
                hint: 0,
                free_spans: 0,
                grown: 0,
                limit: chunks,
                locked: 0,
                unlockable: Unlockable::Use,
            }),
            left: AtomicUsize::new(chunks * USABLE_SPANS),
            kept_out_of_dumps: advise(Advice::LinuxDontDump),
            empty_in_children: advise(Advice::LinuxWipeOnFork),
        })
    }

    /// Null where there is no room.
    fn allocate(&self, bytes: usize) -> *mut u8 {
        match class_of(bytes) {
            Some(class) => self.allocate_slot(class),
            None => self.allocate_large(bytes),
        }
    }

    fn allocate_slot(&self, class: usize) -> *mut u8 {
        let shard_index = shard_of_this_thread() % self.shards.len();
        let mut shard = lock(&self.shards[shard_index]);
        let index = match shard.open[class] {
            NONE => match self.take_spans(1) {
                Some(index) => {
                    let state = SpanState::Slots { class, shard: shard_index };
                    self.spans[index].state.store(state.encode(), Ordering::Release);
                    self.push(&mut shard, class, index as u32);
                    index as u32
                }
                None => return null_mut(),
            },
            open => open,
        };
        let span = &self.spans[index as usize];
        let slot = span.take_slot();
        let used = span.used.load(Ordering::Relaxed) + 1;
        span.used.store(used, Ordering::Relaxed);
        if used as usize == slots_of(class) {
            self.unlink(&mut shard, class, index);
        }
        self.address(index as usize, slot * class_bytes(class))
    }

    fn allocate_large(&self, bytes: usize) -> *mut u8 {
        let count = bytes.div_ceil(SPAN_BYTES);
        if count > USABLE_SPANS {
            return null_mut();
        }
        let Some(first) = self.take_spans(count) else { return null_mut() };
        for inside in &self.spans[first + 1..first + count] {
            inside.state.store(SpanState::Inside.encode(), Ordering::Relaxed);
        }
        self.spans[first].state.store(SpanState::Large { spans: count }.encode(), Ordering::Release);
        self.address(first, 0)
    }

    /// Wipes and takes back.
    fn free(&self, pointer: *mut u8) {
        let (index, offset) = self.place_of(pointer);
        let span = &self.spans[index];
        let state = span.state.load(Ordering::Acquire);
        match SpanState::decode(state) {
            SpanState::Slots { class, shard } => {
                let slot = slot_at(class, offset);
                if !span.is_taken(slot) {
                    fail("memory freed twice");
                }
                // While the slot still is the caller's: whoever gets it next finds zeros.
                wipe(pointer, class_bytes(class));
                self.free_slot(class, shard, index as u32, slot);
            }
            SpanState::Large { spans } => {
                if offset != 0 {
                    fail("a pointer into an allocation freed");
                }
                wipe(pointer, spans * SPAN_BYTES);
                for inside in &self.spans[index + 1..index + spans] {
                    inside.state.store(SpanState::Free.encode(), Ordering::Relaxed);
                }
                let free = SpanState::Free.encode();
                if span.state.compare_exchange(state, free, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                    fail("memory freed twice");
                }
                self.give_back_spans(index, spans);
            }
            SpanState::Free => fail("memory freed twice"),
            SpanState::Inside => fail("a pointer into an allocation freed"),
        }
    }

    fn free_slot(&self, class: usize, shard_index: usize, index: u32, slot: usize) {
        let span = &self.spans[index as usize];
        let mut shard = lock(&self.shards[shard_index]);
        if !span.give_back_slot(slot) {
            fail("memory freed twice");
        }
        let used = span.used.load(Ordering::Relaxed) - 1;
        span.used.store(used, Ordering::Relaxed);
        if used as usize + 1 == slots_of(class) {
            self.push(&mut shard, class, index);
        }
        let only_one = shard.open[class] == index && span.next.load(Ordering::Relaxed) == NONE;
        // The last open span of a class stays, or a lone allocation made over and over would fetch and return it.
        if used == 0 && !only_one {
            self.unlink(&mut shard, class, index);
            span.state.store(SpanState::Free.encode(), Ordering::Release);
            self.give_back_spans(index as usize, 1);
        }
    }

    /// Null, and the old allocation as it was, where there is no room.
    fn reallocate(&self, pointer: *mut u8, bytes: usize) -> *mut u8 {
        let held = self.bytes_at(pointer);
        if class_of(bytes).is_some_and(|class| class_bytes(class) == held) {
            return pointer;
        }
        let moved = self.allocate(bytes);
        if !moved.is_null() {
            // SAFETY: both are live allocations of at least as many bytes, and not the same one.
            unsafe { std::ptr::copy_nonoverlapping(pointer, moved, held.min(bytes)) };
            self.free(pointer);
        }
        moved
    }

    /// How many bytes the allocation at `pointer` may use.
    fn bytes_at(&self, pointer: *mut u8) -> usize {
        let (index, offset) = self.place_of(pointer);
        match SpanState::decode(self.spans[index].state.load(Ordering::Acquire)) {
            SpanState::Slots { class, .. } if self.spans[index].is_taken(slot_at(class, offset)) => {
                class_bytes(class)
            }
            SpanState::Large { spans } if offset == 0 => spans * SPAN_BYTES,
            _ => fail("a pointer that is no allocation"),
        }
    }

    /// Whether one part of so many is left.
    fn has_left(&self, parts: usize) -> bool {
        self.left.load(Ordering::Relaxed) > self.spans.len() / parts
    }

    fn status(&self) -> Status {
        let central = lock(&self.central);
        Status {
            limit_bytes: central.limit * CHUNK_BYTES,
            grown_bytes: central.grown * CHUNK_BYTES,
            locked_bytes: central.locked * CHUNK_BYTES,
            used_bytes: (central.grown * USABLE_SPANS - central.free_spans) * SPAN_BYTES,
            kept_out_of_dumps: self.kept_out_of_dumps,
            empty_in_children: self.empty_in_children,
        }
    }

    /// Grows to `bytes`, as far as the limit allows.
    fn grow_to(&self, bytes: usize) {
        let mut central = lock(&self.central);
        while central.grown * CHUNK_BYTES < bytes && self.grow(&mut central) {}
    }

    /// From now on what cannot be locked is not used. `false` where something already is.
    fn refuse_unlockable(&self) -> bool {
        let mut central = lock(&self.central);
        central.unlockable = Unlockable::Refuse;
        central.locked == central.grown
    }

    fn take_spans(&self, count: usize) -> Option<usize> {
        let mut central = lock(&self.central);
        loop {
            if let Some(first) = central.find(count) {
                self.left.fetch_sub(count, Ordering::Relaxed);
                return Some(first);
            }
            if !self.grow(&mut central) {
                return None;
            }
        }
    }

    fn give_back_spans(&self, first: usize, count: usize) {
        lock(&self.central).give_back(first, count);
        self.left.fetch_add(count, Ordering::Relaxed);
    }

    fn grow(&self, central: &mut Central) -> bool {
        if central.grown == central.limit {
            return false;
        }
        let start = self.address(central.grown * SPANS_PER_CHUNK, 0).cast();
        let bytes = USABLE_SPANS * SPAN_BYTES;
        // SAFETY: a part of our own mapping that is not in use yet; the last span stays inaccessible.
        let accessible =
            unsafe { rustix::mm::mprotect(start, bytes, MprotectFlags::READ | MprotectFlags::WRITE) };
        if accessible.is_err() {
            return false;
        }
        // SAFETY: the same part. Locking changes no contents.
        let locked = unsafe { rustix::mm::mlock(start, bytes) }.is_ok();
        if !locked && central.unlockable == Unlockable::Refuse {
            // SAFETY: the same part, which nobody uses.
            let _ = unsafe { rustix::mm::mprotect(start, bytes, MprotectFlags::empty()) };
            // What could not be locked now counts as none from here on.
            let lost = (central.limit - central.grown) * USABLE_SPANS;
            central.limit = central.grown;
            self.left.fetch_sub(lost, Ordering::Relaxed);
            return false;
        }
        central.free[central.grown] = !0 >> 1;
        central.hint = central.hint.min(central.grown);
        central.free_spans += USABLE_SPANS;
        central.grown += 1;
        central.locked += usize::from(locked);
        true
    }

    fn address(&self, span: usize, offset: usize) -> *mut u8 {
        // SAFETY: `span` is an index of the table, and `offset` is less than a span: inside the mapping.
        unsafe { self.base.as_ptr().add(span * SPAN_BYTES + offset) }
    }

    /// The span that `pointer` is in, and where in it.
    fn place_of(&self, pointer: *mut u8) -> (usize, usize) {
        let offset = (pointer as usize).wrapping_sub(self.base.as_ptr() as usize);
        if offset >= self.spans.len() * SPAN_BYTES {
            fail("a pointer from elsewhere");
        }
        (offset / SPAN_BYTES, offset % SPAN_BYTES)
    }

    fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.base.as_ptr() as usize) < self.spans.len() * SPAN_BYTES
    }

    fn push(&self, shard: &mut Shard, class: usize, index: u32) {
        let next = std::mem::replace(&mut shard.open[class], index);
        let span = &self.spans[index as usize];
        span.previous.store(NONE, Ordering::Relaxed);
        span.next.store(next, Ordering::Relaxed);
        if next != NONE {
            self.spans[next as usize].previous.store(index, Ordering::Relaxed);
        }
    }

    fn unlink(&self, shard: &mut Shard, class: usize, index: u32) {
        let span = &self.spans[index as usize];
        let (previous, next) = (span.previous.load(Ordering::Relaxed), span.next.load(Ordering::Relaxed));
        match previous {
            NONE => shard.open[class] = next,
            previous => self.spans[previous as usize].next.store(next, Ordering::Relaxed),
        }
        if next != NONE {
            self.spans[next as usize].previous.store(previous, Ordering::Relaxed);
        }
    }
}

impl Span {
    /// The first slot that is not in use. The caller holds the shard's lock and knows that there is one: the span is in
    /// the list of open ones.
    fn take_slot(&self) -> usize {
        for (word_index, word) in self.slots.iter().enumerate() {
            let taken = word.load(Ordering::Relaxed);
            if taken != !0 {
                let bit = (!taken).trailing_zeros();
                word.store(taken | 1 << bit, Ordering::Relaxed);
                return word_index * 64 + bit as usize;
            }
        }
        fail("an open span without a free slot")
    }

    /// `false` if it is not in use. The caller holds the shard's lock.
    fn give_back_slot(&self, slot: usize) -> bool {
        let (word, bit) = (&self.slots[slot / 64], 1 << (slot % 64));
        let taken = word.load(Ordering::Relaxed);
        word.store(taken & !bit, Ordering::Relaxed);
        taken & bit != 0
    }

    fn is_taken(&self, slot: usize) -> bool {
        self.slots[slot / 64].load(Ordering::Relaxed) & 1 << (slot % 64) != 0
    }
}

impl Central {
    /// So many free spans in a row, all of one chunk.
    fn find(&mut self, count: usize) -> Option<usize> {
        for chunk in self.hint..self.grown {
            let free = self.free[chunk];
            if free == 0 && chunk == self.hint {
                self.hint += 1;
                continue;
            }
            let starts = (1..count).fold(free, |starts, ahead| starts & free >> ahead);
            if starts != 0 {
                let first = starts.trailing_zeros() as usize;
                self.free[chunk] &= !(run(count) << first);
                self.free_spans -= count;
                return Some(chunk * SPANS_PER_CHUNK + first);
            }
        }
        None
    }

    fn give_back(&mut self, first: usize, count: usize) {
        let chunk = first / SPANS_PER_CHUNK;
        self.free[chunk] |= run(count) << (first % SPANS_PER_CHUNK);
        self.free_spans += count;
        self.hint = self.hint.min(chunk);
    }
}

/// The lowest `count` bits: 1 to 63.
fn run(count: usize) -> u64 {
    !0 >> (64 - count)
}

/// The class whose slots fit `bytes`: multiples of 16 up to 128, then four sizes for each doubling.
fn class_of(bytes: usize) -> Option<usize> {
    match bytes {
        0..=128 => Some(bytes.saturating_sub(1) / UNIT_BYTES),
        129..=LARGEST_SLOT_BYTES => {
            let doubling = (usize::BITS - (bytes - 1).leading_zeros()) as usize;
            let quarter = (bytes - 1) >> (doubling - 3);
            Some((doubling - 8) * 4 + quarter + 4)
        }
        _ => None,
    }
}

const fn class_bytes(class: usize) -> usize {
    match class {
        0..8 => (class + 1) * UNIT_BYTES,
        _ => (class % 4 + 5) << (class / 4 + 3),
    }
}

fn slots_of(class: usize) -> usize {
    const SLOTS: [usize; CLASSES] = {
        let mut slots = [0; CLASSES];
        let mut class = 0;
        while class < CLASSES {
            slots[class] = SPAN_BYTES / class_bytes(class);
            class += 1;
        }
        slots
    };
    SLOTS[class]
}

fn slot_at(class: usize, offset: usize) -> usize {
    let bytes = class_bytes(class);
    if !offset.is_multiple_of(bytes) || offset / bytes >= slots_of(class) {
        fail("a pointer into an allocation");
    }
    offset / bytes
}

fn wipe(start: *mut u8, bytes: usize) {
    // SAFETY: the caller hands over an allocation of so many bytes that is still its own.
    unsafe { std::ptr::write_bytes(start, 0, bytes) };
    // Memory that outlives this call, and someone may look at it: not to be optimised away.
    std::hint::black_box(start);
}

/// A table of spans, all free, that lives as long as the process.
fn span_table(spans: usize) -> rustix::io::Result<&'static [Span]> {
    let bytes = spans * size_of::<Span>();
    // SAFETY: a new mapping at an address of the kernel's choice. It is never unmapped.
    let table = unsafe {
        rustix::mm::mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }?;
    // SAFETY: page-aligned, as long as the slice, zeroed by the kernel, and zero is a valid value of every atomic in it;
    // it is reached through this slice alone.
    Ok(unsafe { std::slice::from_raw_parts(table.cast::<Span>(), spans) })
}

/// Threads are dealt out to shards in turn. Without a destructor, so that it can be asked while a thread ends.
fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % MOST_SHARDS);
        }
        shard.get()
    })
}

/// Nothing in here panics while it holds a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process, without allocating.
fn fail(what: &str) -> ! {
    let stderr = rustix::stdio::stderr();
    for part in ["holdfast: the memory of keys is misused: ", what, "\n"] {
        let _ = rustix::io::write(stderr, part.as_bytes());
    }
    std::process::abort()
}
