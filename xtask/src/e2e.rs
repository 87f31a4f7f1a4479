//! Builds the server as the end-to-end tests use it, and runs them.
//!
//! Two binaries: the server itself, and one whose sealing can be switched off, which shows that the
//! search for legible bytes at rest would find some if there were any. Both are copied away from where
//! cargo builds, so that neither is ever taken for the other and a build meanwhile changes nothing.

use std::path::{Path, PathBuf};

use crate::process::{Failure, Workspace, run as run_command, run_with_lines};

pub fn build(workspace: &Workspace) -> Result<(), Failure> {
    build_as(workspace, &["--features", "danger-test"], &control_binary(workspace))?;
    build_server(workspace)
}

/// The server alone, at [`binary`].
pub fn build_server(workspace: &Workspace) -> Result<(), Failure> {
    build_as(workspace, &[], &binary(workspace))
}

/// Runs the tests; `words` go to pytest. Gives pytest's summary line.
pub fn run(workspace: &Workspace, words: &[String]) -> Result<String, Failure> {
    run_with(workspace, words, &[])
}

pub fn run_with(
    workspace: &Workspace,
    words: &[String],
    variables: &[(&str, &str)],
) -> Result<String, Failure> {
    let mut command = workspace.command(workspace.python());
    command.args(["-m", "pytest", "-p", "no:cacheprovider", "-ra", "tests/e2e"]).args(words);
    command.env("HOLDFAST_BIN", binary(workspace)).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("HOLDFAST_AZ", workspace.az()).env("HOLDFAST_AZURITE", workspace.azurite());
    // A switch of the person's shell must not reach the server under test.
    command.env_remove("HOLDFAST_DANGER_NO_SEALING").env_remove("HOLDFAST_BIN_UNSEALED");
    if control_binary(workspace).is_file() {
        command.env("HOLDFAST_BIN_UNSEALED", control_binary(workspace));
    }
    command.envs(variables.iter().copied());
    let mut summary = None;
    run_with_lines(command, |line| {
        if is_summary(line) {
            summary = Some(line.to_owned());
        }
    })?;
    summary.ok_or_else(|| Failure::new("pytest printed no summary"))
}

/// The server, built with the profile of the tests.
pub fn binary(workspace: &Workspace) -> PathBuf {
    workspace.target.join("e2e").join("holdfast")
}

fn control_binary(workspace: &Workspace) -> PathBuf {
    workspace.target.join("e2e").join("holdfast-unsealed")
}

fn build_as(workspace: &Workspace, words: &[&str], place: &Path) -> Result<(), Failure> {
    let mut command = workspace.cargo(&["build", "--package", "server", "--profile", "ci", "--locked"]);
    command.args(words);
    run_command(command)?;
    let built = workspace.target.join("ci").join("holdfast");
    let copied = std::fs::create_dir_all(workspace.target.join("e2e"))
        // A copy that still runs cannot be written to, but its name can be taken away.
        .map(|()| std::fs::remove_file(place))
        .and_then(|_| std::fs::copy(&built, place));
    copied.map(drop).map_err(|error| Failure::new(format!("cannot write {}: {error}", place.display())))
}

/// `==== 12 passed, 1 skipped in 3.45s ====`, or the same without the bars.
fn is_summary(line: &str) -> bool {
    let text = line.trim_matches(|character| character == '=' || character == ' ');
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.contains(" in ")
        && ["passed", "failed", "skipped", "error"].iter().any(|word| text.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_pytest_is_known_from_other_lines() {
        assert!(is_summary("======= 12 passed, 1 skipped in 3.45s ======="));
        assert!(is_summary("3 failed, 4 passed in 61.02s (0:01:01)"));
        assert!(!is_summary("tests/e2e/test_tour.py ....   [ 12%]"));
        assert!(!is_summary("collected 12 items"));
    }
}
