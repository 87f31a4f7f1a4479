//! Processes that a quickstart starts, of its own program.

use std::ffi::OsStr;
use std::io;
use std::process::Command;
use std::time::Duration;

/// How often a process is asked whether it is there.
pub const PING_PERIOD: Duration = Duration::from_secs(3);
/// One that said nothing for this long hangs, and is ended.
pub const SILENCE: Duration = Duration::from_secs(15);
/// Whoever served this long begins anew with short pauses.
const STEADY: Duration = Duration::from_secs(60);

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

/// How long to wait before a process that ended is started again: longer each time.
pub struct Pauses {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Pauses {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// After a process that was there for so long.
    pub fn after(&mut self, there: Duration) -> Duration {
        let pause = if there > STEADY { self.first } else { self.next };
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

fn is_passed_on(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        PASSED_ON.contains(&name) || (cfg!(feature = "danger-test") && name.starts_with(FOR_TESTS))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_longest_and_begin_anew_behind_who_was_steady() {
        let second = Duration::from_secs(1);
        let mut pauses = Pauses::new(second, 5 * second);
        let there = [second, second, STEADY, second, second, STEADY + second, second];
        let waited = there.map(|there| pauses.after(there).as_secs());
        assert_eq!(waited, [1, 2, 4, 5, 5, 1, 2]);
    }
}
