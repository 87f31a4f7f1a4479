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
use parking_lot::{Condvar, Mutex};

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
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<FileState>,
    /// Name to index in `files`, as the running system sees it.
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// The names after each change that was not synced.
    pending_names: Vec<BTreeMap<String, usize>>,
    writes: u64,
    syncs: u64,
    holds: u64,
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

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// A disk that holds so many bytes over all files, counted by length.
    pub fn with_capacity(bytes: u64) -> Self {
        let disk = Self::new();
        disk.set_capacity(Some(bytes));
        disk
    }

    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.state.lock().capacity_bytes = bytes;
    }

    /// How many disk writes there were: writes, changes of length, syncs, and changes of names.
    pub fn writes(&self) -> u64 {
        self.0.state.lock().writes
    }

    /// How many of them were syncs of a file.
    pub fn syncs(&self) -> u64 {
        self.0.state.lock().syncs
    }

    /// Lets every sync wait until the hold is dropped, so that work can queue up behind it.
    pub fn hold_syncs(&self) -> SyncHold {
        self.0.state.lock().holds += 1;
        SyncHold(self.clone())
    }

    /// Lets write number `write` (the first is 0) go wrong.
    pub fn fail_at(&self, write: u64, fault: Fault) {
        self.0.state.lock().faults.insert(write, fault);
    }

    /// Whether [`Fault::PowerLoss`] has struck.
    pub fn power_lost(&self) -> bool {
        self.0.state.lock().power_lost
    }

    /// Opens the file `name`, creating it where it is missing: a redb backend, among others.
    pub fn file(&self, name: &str) -> io::Result<SimFile> {
        let mut state = self.0.state.lock();
        let index = match state.names.get(name) {
            Some(index) => *index,
            None => state.create(name)?,
        };
        Ok(SimFile { disk: self.clone(), index })
    }

    /// Flips one bit of what is stored.
    pub fn flip_bit(&self, name: &str, offset: usize, bit: u8) {
        let mut state = self.0.state.lock();
        let index = state.names[name];
        let file = &mut state.files[index];
        file.current[offset] ^= 1 << bit;
        file.durable[offset] ^= 1 << bit;
    }

    /// What the running system reads from `name`.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.0.state.lock();
        state.names.get(name).map(|index| state.files[*index].current.clone())
    }

    /// The disk as it is found after the power failed now. This one is left as it is, so that several losses
    /// of the same moment can be looked at.
    pub fn after_power_loss(&self, loss: Loss) -> SimDisk {
        let state = self.0.state.lock();
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
        SimDisk(Arc::new(Shared { state: Mutex::new(after), released: Condvar::new() }))
    }
}

/// Syncs of its disk wait until it is dropped.
#[derive(Debug)]
pub struct SyncHold(SimDisk);

impl Drop for SyncHold {
    fn drop(&mut self) {
        self.0.0.state.lock().holds -= 1;
        self.0.0.released.notify_all();
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
        let state = self.disk.0.state.lock();
        state.check_power()?;
        Ok(state.files[self.index].current.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.0.state.lock();
        state.check_power()?;
        let current = &state.files[self.index].current;
        let start = usize::try_from(offset).unwrap();
        let bytes = current.get(start..start + out.len()).ok_or(ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.state.lock();
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
        let mut state = self.disk.0.state.lock();
        let fault = state.count()?;
        let length = usize::try_from(bytes).unwrap();
        state.check_room(self.index, length)?;
        let file = &mut state.files[self.index];
        file.current.resize(length, 0);
        file.pending.push(Pending::Length(length));
        fail(fault)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.state.lock();
        self.disk.0.released.wait_while(&mut state, |state| state.holds > 0);
        state.syncs += 1;
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
        let state = self.0.state.lock();
        state.check_power()?;
        Ok(state.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.state.lock();
        if state.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let index = state.create(name)?;
        Ok(Box::new(SimFile { disk: self.clone(), index }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.0.state.lock();
        state.check_power()?;
        let index = *state.names.get(name).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), index }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let fault = state.count()?;
        let index = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), index);
        state.names_changed(fault)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let fault = state.count()?;
        state.names.remove(name).ok_or(ErrorKind::NotFound)?;
        state.names_changed(fault)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.0.state.lock();
        let fault = state.count()?;
        if fault.is_none() {
            state.durable_names = state.names.clone();
            state.pending_names.clear();
        }
        fail(fault)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.0.state.lock();
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

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "file";

    fn synced(contents: &[u8]) -> (SimDisk, SimFile) {
        let disk = SimDisk::new();
        let file = disk.file(NAME).unwrap();
        file.write_at(0, contents).unwrap();
        file.sync().unwrap();
        Directory::sync(&disk).unwrap();
        (disk, file)
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_need_not() {
        let (disk, file) = synced(&[1; 2000]);
        file.write_at(100, &[2; 2000]).unwrap();
        assert_eq!(disk.after_power_loss(Loss::All).contents(NAME).unwrap(), [1; 2000]);
        let kept = disk.after_power_loss(Loss::Nothing).contents(NAME).unwrap();
        assert_eq!(kept, disk.contents(NAME).unwrap());
        assert_eq!(kept[100..], [2; 2000]);
    }

    #[test]
    fn a_write_is_torn_at_sectors_and_only_there() {
        let (disk, file) = synced(&[1; 8 * SECTOR_BYTES]);
        file.write_at(0, &[2; 8 * SECTOR_BYTES]).unwrap();
        let mut mixed = 0;
        for seed in 0..50 {
            let contents = disk.after_power_loss(Loss::Seed(seed)).contents(NAME).unwrap();
            let sectors: Vec<u8> = contents
                .chunks(SECTOR_BYTES)
                .map(|sector| {
                    assert!(
                        sector.iter().all(|byte| *byte == sector[0]),
                        "seed {seed}: torn inside a sector"
                    );
                    sector[0]
                })
                .collect();
            mixed += usize::from(sectors.contains(&1) && sectors.contains(&2));
        }
        assert!(mixed > 25, "only {mixed} of 50 losses tore the write");
    }

    #[test]
    fn an_unsynced_name_is_lost_with_its_synced_contents() {
        let disk = SimDisk::new();
        let file = disk.file(NAME).unwrap();
        file.write_at(0, b"contents").unwrap();
        file.sync().unwrap();
        assert_eq!(disk.after_power_loss(Loss::All).list().unwrap(), Vec::<String>::new());
        assert_eq!(disk.after_power_loss(Loss::Nothing).contents(NAME).unwrap(), b"contents");
        Directory::sync(&disk).unwrap();
        disk.rename(NAME, "other").unwrap();
        assert_eq!(disk.after_power_loss(Loss::All).list().unwrap(), [NAME]);
        assert_eq!(disk.after_power_loss(Loss::Nothing).list().unwrap(), ["other"]);
    }

    #[test]
    fn a_sync_after_a_failed_sync_proves_nothing() {
        let (disk, file) = synced(&[1; SECTOR_BYTES]);
        file.write_at(0, &[2; SECTOR_BYTES]).unwrap();
        disk.fail_at(disk.writes(), Fault::Eio);
        file.sync().unwrap_err();
        file.sync().unwrap();
        assert_eq!(disk.contents(NAME).unwrap(), [2; SECTOR_BYTES], "the page cache shows it");
        assert_eq!(disk.after_power_loss(Loss::Nothing).contents(NAME).unwrap(), [1; SECTOR_BYTES]);
    }

    #[test]
    fn a_cut_file_grows_back_as_zeros() {
        let (disk, file) = synced(&[1; 3000]);
        file.set_len(100).unwrap();
        file.write_at(2000, &[2; 10]).unwrap();
        file.sync().unwrap();
        let contents = disk.after_power_loss(Loss::All).contents(NAME).unwrap();
        assert_eq!(contents[..100], [1; 100]);
        assert_eq!(contents[100..2000], [0; 1900]);
        assert_eq!(contents[2000..], [2; 10]);
    }

    #[test]
    fn a_full_disk_refuses_growth_and_nothing_else() {
        let disk = SimDisk::with_capacity(1000);
        let file = disk.file(NAME).unwrap();
        file.write_at(0, &[1; 900]).unwrap();
        assert_eq!(file.write_at(900, &[1; 101]).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.free_bytes().unwrap(), 100);
        file.write_at(0, &[2; 900]).unwrap();
        disk.set_capacity(None);
        file.write_at(900, &[1; 101]).unwrap();
    }
}
