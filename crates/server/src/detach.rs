//! `quickstart --detach`: this program once more, in a session of its own.
//!
//! Both ends of the readiness signal are the child's standard output: what the child prints before it closes that is the
//! welcome of a pool that serves, and nothing printed means that it ended. Errors up to then go straight to whoever typed
//! the command; later ones to the log file.

use crate::CommandError;
use crate::environment::word;
use crate::files;
use crate::layout::Layout;
use crate::output;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// What the background process prints in the place of a welcome when it serves nothing but 503.
pub const SEALED: &str = "Sealed";
const START_TIME: Duration = Duration::from_secs(60);

/// Runs `arguments` of this program in the background; returns once it serves.
pub fn start<'a>(
    arguments: impl IntoIterator<Item = &'a std::ffi::OsStr>,
    layout: &Layout,
) -> Result<ExitCode, CommandError> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut printed = child.stdout.take().ok_or("the background process has no output")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = printed.read_to_string(&mut text).map(|_| text);
        // Nobody waits any more: the time was over.
        let _ = send.send(read);
    });
    let Ok(text) = receive.recv_timeout(START_TIME) else {
        child.kill()?;
        child.wait()?;
        return Err(format!("not ready after {} s, so it was ended", START_TIME.as_secs()).into());
    };
    let text = text?;
    if text.is_empty() {
        let status = child.wait()?;
        return match status.code() {
            // It has said why.
            Some(code) if code != 0 => Ok(ExitCode::FAILURE),
            _ => Err(format!("the background process ended before it served ({status})").into()),
        };
    }
    output::line(format_args!("{}", text.trim_end()))?;
    output::line(format_args!("Its log:       {}", word(&layout.log().display().to_string())))?;
    Ok(if text.starts_with(SEALED) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// In the background process, first of all: no terminal's end is its end.
pub fn leave_terminal() -> io::Result<()> {
    rustix::process::setsid().map(|_| ()).map_err(io::Error::from)
}

/// In the background process, once it serves: from here on everything goes to `log`, and whoever waits sees the end of
/// what was printed. The log of the run before is kept beside it.
pub fn print_to(log: &Path) -> io::Result<()> {
    let mut before = log.as_os_str().to_owned();
    before.push(".before");
    match fs::rename(log, before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let log = files::open_log(log)?;
    rustix::stdio::dup2_stderr(&log)?;
    rustix::stdio::dup2_stdout(&log)?;
    Ok(())
}
