//! Processes that a quickstart starts, of its own program.

use std::ffi::OsStr;
use std::io;
use std::process::Command;

/// Variables that say how a process tells what it does. What else was given to the quickstart, such as another program's
/// secrets, is nobody else's.
const PASSED_ON: [&str; 3] = ["HOLDFAST_LOG", "NO_COLOR", "RUST_BACKTRACE"];
/// Switches for tests of what must hold, which a shipped build does not have.
const FOR_TESTS: &str = "HOLDFAST_DANGER_";

/// The program that this is, in another role, with nothing of this one's environment that it does not need.
pub fn command(role: &str) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(role).env_clear().envs(std::env::vars_os().filter(|(name, _)| is_passed_on(name)));
    Ok(command)
}

fn is_passed_on(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        PASSED_ON.contains(&name) || (cfg!(feature = "danger-test") && name.starts_with(FOR_TESTS))
    })
}
