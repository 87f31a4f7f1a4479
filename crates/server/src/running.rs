//! Which process serves a data directory: the one that holds the lock on its pid file.

use crate::CommandError;
use crate::layout::Layout;
use crate::output;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const STOP_TIME: Duration = Duration::from_secs(20);

/// Held for as long as this process serves the directory; the operating system gives it up with the process.
pub struct Lock {
    _file: File,
}

pub fn lock(layout: &Layout) -> Result<Lock, CommandError> {
    let mut file = open(layout)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid =
                read_pid(&mut file).map_or("unknown".to_owned(), |pid| pid.as_raw_nonzero().to_string());
            return Err(format!(
                "{} is served by another process already (pid {pid}); stop it with `holdfast stop --data {}`",
                layout.data.display(),
                layout.data.display()
            )
            .into());
        }
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Lock { _file: file })
}

/// Ends the process that serves a data directory, and waits until it has ended.
pub fn stop(layout: &Layout) -> Result<ExitCode, CommandError> {
    let not_running = || format!("nothing serves {}", layout.data.display());
    if !layout.process().exists() {
        return Err(not_running().into());
    }
    let mut file = open(layout)?;
    // A pid from a file may by now be somebody else's: only the holder of the lock is ours.
    match file.try_lock() {
        Ok(()) => return Err(not_running().into()),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error.into()),
    }
    let pid = read_pid(&mut file).ok_or("the pid file is not readable")?;
    kill_process(pid, Signal::TERM)?;
    let deadline = Instant::now() + STOP_TIME;
    while test_kill_process(pid).is_ok() && file.try_lock().is_err() {
        if Instant::now() > deadline {
            return Err(format!(
                "process {} did not end within {} s",
                pid.as_raw_nonzero(),
                STOP_TIME.as_secs()
            )
            .into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    output::line(format_args!("stopped (pid {})", pid.as_raw_nonzero()))?;
    Ok(ExitCode::SUCCESS)
}

fn open(layout: &Layout) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(layout.process())
}

fn read_pid(file: &mut File) -> Option<Pid> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}
