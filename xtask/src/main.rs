//! The project's chores: what CI runs, and what a person runs before a commit.
//!
//! `cargo xtask test` is the one command that decides whether a tree is good. It refuses to pass over
//! anything quietly: a tool that is missing is installed or is an error, and what cannot be checked here
//! (advisories without their database) is said in so many words.

mod bench;
mod conformance;
mod dependencies;
mod documents;
mod e2e;
mod fuzz;
mod licences;
mod metadata;
mod policy;
mod process;
mod setup;
mod stages;

use std::process::ExitCode;

use process::{Failure, Workspace};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xtask: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), Failure> {
    let Some((command, rest)) = arguments.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    if matches!(command.as_str(), "help" | "--help" | "-h") {
        print!("{HELP}");
        return Ok(());
    }
    let workspace = Workspace::locate()?;
    match command.as_str() {
        "setup" => no_more(rest).and_then(|()| setup::run(&workspace)),
        // CI runs what a person runs.
        "test" | "ci" => no_more(rest).and_then(|()| stages::run(&workspace)),
        "fmt-check" => no_more(rest).and_then(|()| stages::format(&workspace)),
        "clippy" => no_more(rest).and_then(|()| stages::clippy(&workspace)),
        "deps" => no_more(rest).and_then(|()| dependencies::run(&workspace)),
        "deny" => no_more(rest).and_then(|()| licences::run(&workspace)),
        "unit" => no_more(rest).and_then(|()| stages::unit_tests(&workspace).map(drop)),
        "docs" => no_more(rest).and_then(|()| documents::run(&workspace)),
        // Words after the command go to pytest: `cargo xtask e2e -k denied`.
        "e2e" => {
            setup::run(&workspace)?;
            e2e::build(&workspace)?;
            e2e::run(&workspace, rest).map(drop)
        }
        "soak" => match rest.split_first() {
            Some((word, rest)) if word == "load" => bench::soak(&workspace, rest),
            _ => no_more(rest).and_then(|()| stages::soak(&workspace)),
        },
        "fuzz" => no_more(rest).and_then(|()| fuzz::soak(&workspace)),
        "conformance" => conformance::run(&workspace, rest),
        "bench" => bench::run(&workspace, rest),
        unknown => Err(Failure::new(format!("no such command: {unknown}\n{HELP}"))),
    }
}

fn no_more(rest: &[String]) -> Result<(), Failure> {
    match rest {
        [] => Ok(()),
        [word, ..] => Err(Failure::new(format!("unexpected argument: {word}"))),
    }
}

const HELP: &str = "\
cargo xtask COMMAND

  setup         checks for the tools that building and testing need; as root installs them
  test, ci      every stage below from setup to e2e, with the seconds that each took
  fmt-check     rustfmt
  clippy        clippy, warnings refused
  deps          who may depend on whom
  deny          licences, banned crates, advisories
  docs          every page of docs/formats names a golden file that exists
  unit          unit and integration tests
  e2e [WORDS]   end-to-end tests with the Azure SDK and CLI; WORDS go to pytest
  soak          the long versions: 500 kills, more cases for each property, each fuzz target for a minute
  soak load [--minutes N]
                an hour, or N minutes, at 70 percent load with a kill every minute
  fuzz          of these, the fuzz targets alone
  conformance [--allow-missing] [SUITE...]
                the Azure SDK's own tests against a pool started here
  bench [--write] [--quick] [--seconds N] [--rounds N] [--connections N] [--only TEXT]
                request rates against the raw primitive and a bare handler
";
