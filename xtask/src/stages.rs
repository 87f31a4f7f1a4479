//! The stages of `cargo xtask test`, in order, each with the seconds it took. The first that fails ends
//! the run and is named.

use std::time::Instant;

use crate::process::{Failure, Workspace, run as run_command, run_with_lines};
use crate::{dependencies, documents, e2e, fuzz, licences, setup};

pub fn run(workspace: &Workspace) -> Result<(), Failure> {
    let mut clock = Clock::default();
    clock.stage("setup", || setup::run(workspace))?;
    clock.stage("fmt", || format(workspace))?;
    clock.stage("deps", || dependencies::run(workspace))?;
    clock.stage("deny", || licences::run(workspace))?;
    clock.stage("docs", || documents::run(workspace))?;
    clock.stage("clippy", || clippy(workspace))?;
    let units = clock.stage("unit and integration tests", || unit_tests(workspace))?;
    clock.stage("build for end to end", || e2e::build(workspace))?;
    let end_to_end = clock.stage("end to end", || e2e::run(workspace, &[]))?;
    clock.print();
    // The last lines are the runners' own summaries, so that whoever reads only the end knows.
    println!("{units}");
    println!("{end_to_end}");
    Ok(())
}

pub fn format(workspace: &Workspace) -> Result<(), Failure> {
    run_command(workspace.cargo(&["fmt", "--all", "--check"]))
}

pub fn clippy(workspace: &Workspace) -> Result<(), Failure> {
    run_command(workspace.cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--profile",
        "ci",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Runs every Rust test and gives the total in cargo's own words.
pub fn unit_tests(workspace: &Workspace) -> Result<String, Failure> {
    rust_tests(workspace, &[])
}

/// The long versions. Each test reads its own variable, so that one of them can be run alone as well.
pub fn soak(workspace: &Workspace) -> Result<(), Failure> {
    let mut clock = Clock::default();
    clock.stage("setup", || setup::run(workspace))?;
    clock.stage("build for end to end", || e2e::build(workspace))?;
    // Set before any thread is started would still be `unsafe`: hand the variable to the children alone.
    let kill_rounds = or("HOLDFAST_KILL_ROUNDS", "500");
    let signatures = or("HOLDFAST_SIGNATURES", "10000");
    let life_cycles = or("HOLDFAST_LIFE_CYCLES", "10000");
    let variables = [
        ("HOLDFAST_KILL_ROUNDS", kill_rounds.as_str()),
        ("HOLDFAST_SIGNATURES", signatures.as_str()),
        ("HOLDFAST_LIFE_CYCLES", life_cycles.as_str()),
        ("HOLDFAST_SOAK", "1"),
    ];
    let words = ["-k", "kill or verify_elsewhere or again_and_again or pkcs1_decryption", "--timeout=7200"]
        .map(str::to_owned);
    let end_to_end =
        clock.stage("end to end, for longer", || e2e::run_with(workspace, &words, &variables))?;
    let cases = or("PROPTEST_CASES", "5000");
    let variables = [("HOLDFAST_SOAK", "1"), ("PROPTEST_CASES", cases.as_str())];
    let units = clock.stage("properties", || rust_tests(workspace, &variables))?;
    clock.stage("fuzz", || fuzz::soak(workspace))?;
    clock.print();
    println!("{units}");
    println!("{end_to_end}");
    Ok(())
}

/// What the person's shell says, else our own figure.
fn or(variable: &str, figure: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| figure.to_owned())
}

fn rust_tests(workspace: &Workspace, variables: &[(&str, &str)]) -> Result<String, Failure> {
    let mut command =
        workspace.cargo(&["test", "--workspace", "--profile", "ci", "--locked", "--no-fail-fast"]);
    command.envs(variables.iter().copied());
    let mut totals = Totals::default();
    run_with_lines(command, |line| totals.add(line))?;
    if totals.passed == 0 {
        return Err(Failure::new("cargo test ran no test"));
    }
    Ok(totals.line())
}

#[derive(Default)]
struct Clock {
    stages: Vec<(&'static str, f64)>,
}

impl Clock {
    fn stage<T>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        println!("== {name}");
        let start = Instant::now();
        let result = work();
        let seconds = start.elapsed().as_secs_f64();
        self.stages.push((name, seconds));
        if result.is_ok() {
            println!("== {name}: {seconds:.1} s");
        } else {
            self.print();
        }
        result.map_err(|failure| Failure::new(format!("stage failed: {name}: {failure}")))
    }

    fn print(&self) {
        println!("\nseconds  stage");
        for (name, seconds) in &self.stages {
            println!("{seconds:7.1}  {name}");
        }
        println!("{:7.1}  all", self.stages.iter().map(|(_, seconds)| seconds).sum::<f64>());
    }
}

/// What the test binaries reported, added up.
#[derive(Debug, Default, Eq, PartialEq)]
struct Totals {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Takes `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line is nothing to it.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = result.split_once(". ") else { return };
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                Some(_) | None => {}
            }
        }
    }

    fn line(&self) -> String {
        let verdict = if self.failed == 0 { "ok" } else { "FAILED" };
        format!(
            "test result: {verdict}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out; all binaries together",
            self.passed, self.failed, self.ignored
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_binaries_are_added_up() {
        let mut totals = Totals::default();
        totals.add("running 3 tests");
        totals.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s",
        );
        totals.add("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(totals, Totals { passed: 5, failed: 1, ignored: 1 });
    }

    #[test]
    fn a_stage_that_fails_is_named() {
        let failure = Clock::default()
            .stage("deps", || Err::<(), _>(Failure::new("1 forbidden dependencies")))
            .unwrap_err();
        assert_eq!(failure.to_string(), "stage failed: deps: 1 forbidden dependencies");
    }
}
