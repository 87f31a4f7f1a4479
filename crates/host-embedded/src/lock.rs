//! One process per directory. The lock is the operating system's (`flock`), so it cannot outlive its holder;
//! the pid in the file only serves the message of the process that is refused.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::FlockOperation;

pub(crate) const LOCK_FILE: &str = "lock";

/// Held while the value lives.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    file: File,
}

#[derive(Debug)]
pub(crate) enum LockError {
    /// `pid` is 0 where the holder has not written it yet.
    Held {
        pid: u32,
    },
    Io(io::Error),
}

impl ProcessLock {
    /// Takes the lock of `directory`, or names who has it. Does not wait for it.
    pub(crate) fn acquire(directory: &Path) -> Result<Self, LockError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(directory.join(LOCK_FILE)).map_err(LockError::Io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockError::Held { pid: recorded_pid(&file) }),
            Err(error) => return Err(LockError::Io(error.into())),
        }
        let lock = Self { file };
        lock.record(&format!("{}\n", std::process::id())).map_err(LockError::Io)?;
        Ok(lock)
    }

    fn record(&self, text: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

impl Drop for ProcessLock {
    fn drop(&mut self) {
        // A pid left behind would be harmless; an empty file is clearer. The file itself stays: removing a
        // lock file lets two processes hold locks on two files of the same name.
        let _ = self.record("");
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// The holder writes its pid just after it took the lock, hence the short patience.
fn recorded_pid(file: &File) -> u32 {
    for _ in 0..10 {
        let mut text = [0; 16];
        let length = file.read_at(&mut text, 0).unwrap_or(0);
        if let Some(pid) = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.trim().parse().ok())
        {
            return pid;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    0
}
