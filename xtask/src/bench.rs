//! Builds the server as it is shipped and the load generator, and lets the latter measure the former.

use crate::process::{Failure, Workspace, run as run_command};

pub fn run(workspace: &Workspace, words: &[String]) -> Result<(), Failure> {
    start(workspace, "run", words)
}

/// Load at 70 percent with a kill every minute.
pub fn soak(workspace: &Workspace, words: &[String]) -> Result<(), Failure> {
    start(workspace, "soak", words)
}

fn start(workspace: &Workspace, what: &str, words: &[String]) -> Result<(), Failure> {
    for package in ["server", "bench"] {
        run_command(workspace.cargo(&["build", "--package", package, "--profile", "dist", "--locked"]))?;
    }
    let built = workspace.target.join("dist");
    let mut command = workspace.command(built.join("bench"));
    command.arg(what).arg("--server").arg(built.join("holdfast"));
    command.arg("--data").arg(workspace.target.join("bench"));
    for word in words {
        command.arg(word);
        if word == "--write" {
            command.arg(workspace.root.join("docs").join("performance.md"));
        }
    }
    run_command(command)
}
