//! Printing for whoever typed the command. `println!` panics when the reader has gone, as in `holdfast audit show | head`.

use crate::CommandError;
use std::fmt::Arguments;
use std::io::{self, Write};
use std::process::ExitCode;

/// One line to standard output.
pub fn line(text: Arguments<'_>) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_fmt(text)?;
    output.write_all(b"\n")
}

/// Whether a command failed only because its reader had seen enough.
pub fn reader_has_gone(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The end of a command that was asked whether something holds. Its exit status is the verdict, also for a reader that left
/// at the first line, as `head` and `grep -q` do.
pub fn verdict(printed: Result<(), CommandError>, code: ExitCode) -> Result<ExitCode, CommandError> {
    match printed {
        Err(error) if !reader_has_gone(error.as_ref()) => Err(error),
        Ok(()) | Err(_) => Ok(code),
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
