//! One row of the report.

use crate::client::output::clean;
use crate::output::line;
use serde::Serialize;
use std::io;

/// Columns of the report, as most terminals show.
const WIDTH: usize = 100;
const INDENT: &str = "         ";

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// There, and not enough.
    Weak,
    /// Not there.
    Missing,
    /// Could not be looked at.
    Unknown,
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Weak => "weak",
            State::Missing => "missing",
            State::Unknown => "unknown",
        }
    }

    /// Whether `--strict` takes it for a failure.
    pub const fn falls_short(self) -> bool {
        matches!(self, State::Weak | State::Missing)
    }
}

/// What protects the pool, or does not.
#[derive(Debug, Serialize)]
pub struct Finding {
    pub check: &'static str,
    pub state: State,
    pub found: String,
    /// What it means, and what is not stopped.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub why: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    pub fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), why: "", remedy: String::new() }
    }

    pub fn unknown(check: &'static str, found: impl Into<String>) -> Self {
        Self { state: State::Unknown, ..Self::ok(check, found) }
    }

    pub fn weak(
        check: &'static str,
        found: impl Into<String>,
        why: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self { check, state: State::Weak, found: found.into(), why, remedy: remedy.into() }
    }

    pub fn missing(
        check: &'static str,
        found: impl Into<String>,
        why: &'static str,
        remedy: impl Into<String>,
    ) -> Self {
        Self { state: State::Missing, ..Self::weak(check, found, why, remedy) }
    }

    pub fn print(&self) -> io::Result<()> {
        self.lines().iter().try_for_each(|text| line(format_args!("{text}")))
    }

    fn lines(&self) -> Vec<String> {
        let mut lines =
            wrap(&format!("{:<7}  ", self.state.as_str()), &format!("{}: {}", self.check, self.found));
        for (label, text) in [("why: ", self.why), ("do:  ", self.remedy.as_str())] {
            if !text.is_empty() {
                lines.extend(wrap(&format!("{INDENT}{label}"), text));
            }
        }
        lines
    }
}

/// `text` in lines that are not longer than the report's width, the first behind `start`, the others below it. A word that
/// is longer, such as a path, stands alone and whole.
fn wrap(start: &str, text: &str) -> Vec<String> {
    let mut lines = vec![start.to_owned()];
    let mut is_first_word = true;
    for word in clean(text).split(' ') {
        let last = lines.last_mut().expect("there is a first line");
        if !is_first_word && last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(format!("{}{word}", " ".repeat(start.chars().count())));
            continue;
        }
        if !is_first_word {
            last.push(' ');
        }
        last.push_str(word);
        is_first_word = false;
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_words_stay_whole() {
        let path = format!("/{}", "x".repeat(150));
        let found = format!("{} {path} end", "word ".repeat(30).trim_end());
        let lines = Finding::weak("a check", found, "it is so", "nothing").lines();
        assert!(lines[0].starts_with("weak     a check: word "));
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH || line.trim() == path), "{lines:#?}");
        assert_eq!(lines[lines.len() - 2..], ["         why: it is so", "         do:  nothing"]);
        assert_eq!(lines.join(" ").matches("word").count(), 30);
    }

    #[test]
    fn only_what_falls_short_fails_a_strict_run() {
        let short: Vec<_> = [State::Ok, State::Weak, State::Missing, State::Unknown]
            .into_iter()
            .filter(|state| state.falls_short())
            .collect();
        assert_eq!(short, [State::Weak, State::Missing]);
    }
}
