//! A disk in memory that keeps exactly what a real one promises: what was synced survives a loss of power;
//! what was not may survive, vanish or be torn at any sector, in any order.
//!
//! The model, which is harsher than most disks:
//! - A write reaches the disk sector by sector (512 bytes); each sector survives or not on its own.
//! - A file's length and a directory's names are kept in order: some prefix of what was not synced survives.
//! - After a failed sync the pages count as clean: a later sync succeeds without having written them, as
//!   Linux does. Only what is written again can become durable.
//! - Bytes between the old end of a file and a surviving later write read as zero.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use host_embedded::{Directory, DiskFile};
use parking_lot::Mutex;

use crate::Random;

/// The unit in which a write is torn.
pub const SECTOR_BYTES: usize = 512;

/// What goes wrong at one disk write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// This write is under way when the power fails; every later operation fails too.
    PowerLoss,
    /// This write fails with an I/O error, having written any part of it.
    Eio,
    /// This write fails for want of space, having written nothing.
    Enospc,
}

/// What the disk makes of writes that were not synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Loss {
    /// All are lost, names included.
    All,
    /// None is lost.
    Nothing,
    /// Each sector, length and name by seed.
    Seed(u64),
}

impl Loss {
    /// Both extremes and `seeds` mixtures that begin at `first`.
    pub fn variants(first: u64, seeds: u64) -> impl Iterator<Item = Loss> {
        [Loss::All, Loss::Nothing].into_iter().chain((first..first + seeds).map(Loss::Seed))
    }
}

/// A directory of files. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<FileState>,
    /// Name to index in `files`, as the running system sees it.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// The names after each change that was not synced.
    pending_names: Vec<BTreeMap<String, usize>>,
    writes: u64,
    faults: BTreeMap<u64, Fault>,
    power_lost: bool,
    capacity_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct FileState {
    /// As the running system sees it.
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    /// Whole sectors as they were after a write, the last one short at the end of the file.
    Sectors {
        offset: usize,
        bytes: Vec<u8>,
    },
    Length(usize),
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// A disk that holds so many bytes over all files, counted by length.
    pub fn with_capacity(bytes: u64) -> Self {
        let disk = Self::new();
        disk.set_capacity(Some(bytes));
        disk
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity_bytes = bytes;
    }

    /// How many disk writes there were: writes, changes of length, syncs, and changes of names.
    pub fn writes(&self) -> u64 {
        self.0.lock().writes
    }

    /// Lets write number `write` (the first is 0) go wrong.
    pub fn fail_at(&self, write: u64, fault: Fault) {
        self.0.lock().faults.insert(write, fault);
    }

    /// Whether [`Fault::PowerLoss`] has struck.
    pub fn power_lost(&self) -> bool {
        self.0.lock().power_lost
    }

    /// Opens the file `name`, creating it where it is missing: a redb backend, among others.
    pub fn file(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.0.lock();
        let index = match state.names.get(name) {
            Some(index) => *index,
            None => state.create(name)?,
        };
        Ok(SimFile { disk: self.clone(), index })
    }

    /// Flips one bit of what is stored.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let mut state = self.0.lock();
        let index = state.names[name];
        let file = &mut state.files[index];
        file.current[offset] ^= 1 << bit;
        file.durable[offset] ^= 1 << bit;
    }

    /// What the running system reads from `name`.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.lock();
        state.names.get(name).map(|index| state.files[*index].current.clone())
    }

    /// The disk as it is found after the power failed now. This one is left as it is, so that several losses
    /// of the same moment can be looked at.
    pub fn after_power_loss(&self, loss: Loss) -> SimDisk {
        let state = self.0.lock();
        let mut choice = Choice::new(loss);
        let names = match choice.prefix(state.pending_names.len()) {
            0 => &state.durable_names,
            kept => &state.pending_names[kept - 1],
        };
        let mut after = State { capacity_bytes: state.capacity_bytes, ..State::default() };
        for (name, index) in names {
            let contents = state.files[*index].after_power_loss(&mut choice);
            after.names.insert(name.clone(), after.files.len());
            after.files.push(FileState { current: contents.clone(), durable: contents, pending: Vec::new() });
        }
        after.durable_names = after.names.clone();
        SimDisk(Arc::new(Mutex::new(after)))
    }
}

impl State {
    /// Counts a disk write. `Ok(Some)` is a fault that strikes in the middle of it.
    fn count(&mut self) -> io::Result<Option<Fault>> {
        self.check_power()?;
        let number = self.writes;
        self.writes += 1;
        match self.faults.get(&number) {
            Some(Fault::Enospc) => Err(ErrorKind::StorageFull.into()),
            Some(Fault::PowerLoss) => {
                self.power_lost = true;
                Ok(Some(Fault::PowerLoss))
            }
            Some(Fault::Eio) => Ok(Some(Fault::Eio)),
            None => Ok(None),
        }
    }

    fn check_power(&self) -> io::Result<()> {
        if self.power_lost { Err(power_lost()) } else { Ok(()) }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|index| self.files[*index].current.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.capacity_bytes.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    /// Refuses to let a file grow to `length` where the disk is too small.
    fn check_room(&self, index: usize, length: usize) -> io::Result<()> {
        let grows = length.saturating_sub(self.files[index].current.len());
        if grows as u64 > self.free() { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn create(&mut self, name: &str) -> io::Result<usize> {
        let fault = self.count()?;
        let index = self.files.len();
        self.files.push(FileState::default());
        self.names.insert(name.to_owned(), index);
        self.names_changed(fault)?;
        Ok(index)
    }

    fn names_changed(&mut self, fault: Option<Fault>) -> io::Result<()> {
        self.pending_names.push(self.names.clone());
        fail(fault)
    }
}

impl FileState {
    fn after_power_loss(&self, choice: &mut Choice) -> Vec<u8> {
        let lengths = self.pending.iter().filter(|pending| matches!(pending, Pending::Length(_))).count();
        let mut lengths_kept = choice.prefix(lengths);
        let mut length = self.durable.len();
        let mut disk = self.durable.clone();
        for pending in &self.pending {
            match pending {
                Pending::Length(new) if lengths_kept > 0 => {
                    lengths_kept -= 1;
                    length = *new;
                    // A cut file that grows again shows zeros, not what was there.
                    disk.truncate(length);
                }
                Pending::Length(_) => {}
                Pending::Sectors { offset, bytes } => {
                    for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        if choice.keep() {
                            overwrite(&mut disk, offset + index * SECTOR_BYTES, sector);
                        }
                    }
                }
            }
        }
        disk.resize(length, 0);
        disk
    }
}

/// One open file of a [`SimDisk`].
#[derive(Clone, Debug)]
pub struct SimFile {
    disk: SimDisk,
    index: usize,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let state = self.disk.0.lock();
        state.check_power()?;
        Ok(state.files[self.index].current.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.0.lock();
        state.check_power()?;
        let current = &state.files[self.index].current;
        let start = usize::try_from(offset).unwrap();
        let bytes = current.get(start..start + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let fault = state.count()?;
        let start = usize::try_from(offset).unwrap();
        let end = start + bytes.len();
        state.check_room(self.index, end)?;
        let file = &mut state.files[self.index];
        if end > file.current.len() {
            file.pending.push(Pending::Length(end));
        }
        overwrite(&mut file.current, start, bytes);
        let first = start / SECTOR_BYTES * SECTOR_BYTES;
        let last = end.next_multiple_of(SECTOR_BYTES).min(file.current.len());
        let sectors = file.current[first..last].to_vec();
        file.pending.push(Pending::Sectors { offset: first, bytes: sectors });
        fail(fault)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let fault = state.count()?;
        let length = usize::try_from(bytes).unwrap();
        state.check_room(self.index, length)?;
        let file = &mut state.files[self.index];
        file.current.resize(length, 0);
        file.pending.push(Pending::Length(length));
        fail(fault)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let fault = match state.count() {
            Ok(fault) => fault,
            // A sync that runs out of space has written some pages and forgotten all, as one that fails.
            Err(error) if error.kind() == ErrorKind::StorageFull => {
                state.files[self.index].pending.clear();
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let file = &mut state.files[self.index];
        match fault {
            None => {
                // Not `current`: what an earlier sync failed to write is still not on the disk.
                file.durable = file.after_power_loss(&mut Choice::new(Loss::Nothing));
                file.pending.clear();
            }
            Some(Fault::Eio | Fault::Enospc) => file.pending.clear(),
            Some(Fault::PowerLoss) => {}
        }
        fail(fault)
    }
}

impl Directory for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        state.check_power()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        if state.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let index = state.create(name)?;
        Ok(Box::new(SimFile { disk: self.clone(), index }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.0.lock();
        state.check_power()?;
        let index = *state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), index }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.count()?;
        let index = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), index);
        state.names_changed(fault)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.count()?;
        state.names.remove(name).ok_or(ErrorKind::NotFound)?;
        state.names_changed(fault)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.count()?;
        if fault.is_none() {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
        }
        fail(fault)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.0.lock();
        state.check_power()?;
        Ok(state.free())
    }
}

/// Decides what survives.
enum Choice {
    Same(bool),
    Mixed {
        random: Random,
        /// Survivors among 4; fixed per loss, so that some losses take nearly all and some nearly nothing.
        survivors: u64,
    },
}

impl Choice {
    fn new(loss: Loss) -> Self {
        match loss {
            Loss::All => Choice::Same(false),
            Loss::Nothing => Choice::Same(true),
            Loss::Seed(seed) => {
                let mut random = Random::new(seed);
                let survivors = 1 + random.below(3);
                Choice::Mixed { random, survivors }
            }
        }
    }

    fn keep(&mut self) -> bool {
        match self {
            Choice::Same(keep) => *keep,
            Choice::Mixed { random, survivors } => random.below(4) < *survivors,
        }
    }

    fn prefix(&mut self, count: usize) -> usize {
        match self {
            Choice::Same(keep) => {
                if *keep {
                    count
                } else {
                    0
                }
            }
            Choice::Mixed { random, .. } => usize::try_from(random.below(count as u64 + 1)).unwrap(),
        }
    }
}

fn overwrite(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[offset..end].copy_from_slice(bytes);
}

fn fail(fault: Option<Fault>) -> io::Result<()> {
    match fault {
        None => Ok(()),
        Some(Fault::PowerLoss) => Err(power_lost()),
        Some(Fault::Eio) => Err(io::Error::other("simulated I/O error")),
        Some(Fault::Enospc) => Err(ErrorKind::StorageFull.into()),
    }
}

fn power_lost() -> io::Error {
    io::Error::other("simulated loss of power")
}
