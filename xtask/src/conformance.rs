//! The Azure SDK's own tests, run by the conformance harness against a pool started here.
//!
//! `tests/conformance-expected.txt` lists the tests that must pass; the run fails where one of them does
//! not. Tests that pass and are not listed are printed, to be added. The harness is not part of this
//! repository: it lies beside it, or where `HOLDFAST_CONFORMANCE` says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::process::{Failure, Workspace, output, read, run as run_command};
use crate::{e2e, setup};

const DEFAULT_SUITES: [&str; 3] = ["keys", "administration", "securitydomain"];
/// Of the security domain suite: it takes a pool's domain into another, once for each of its two halves.
const BLANK_POOLS: [&str; 4] = ["source", "target", "source2", "target2"];
/// What pytest takes of the default suites: the other half of the first is for vaults, and the rest of the others passes
/// without a server.
const LIVE: &str = "mhsm or security_domain_download or TestAccessControl or TestBackupClientTests or TestExamplesTests or TestSettings";
/// From a quickstart's port to that of its last blank pool, and one more for the storage emulator.
const PORTS: u16 = 15;

pub fn run(workspace: &Workspace, words: &[String]) -> Result<(), Failure> {
    let allow_missing = words.iter().any(|word| word == "--allow-missing");
    let suites: Vec<&str> =
        words.iter().map(String::as_str).filter(|word| *word != "--allow-missing").collect();
    if let Some(unknown) = suites.iter().find(|word| word.starts_with('-')) {
        return Err(Failure::new(format!("unexpected argument: {unknown}")));
    }
    let suites = if suites.is_empty() { DEFAULT_SUITES.to_vec() } else { suites };

    let harness = harness(workspace);
    if !harness.join("python-sdk").join("run.sh").is_file() {
        let message =
            format!("no conformance harness at {}; HOLDFAST_CONFORMANCE names another", harness.display());
        if allow_missing {
            println!("conformance: NOT RUN: {message}");
            return Ok(());
        }
        return Err(Failure::new(message));
    }
    let expected = listed(&read(&workspace.root.join("tests").join("conformance-expected.txt"))?);
    e2e::build_server(workspace)?;

    let directory = workspace.target.join("conformance");
    let data = directory.join("data");
    let temporary = directory.join("harness");
    if data.exists() {
        std::fs::remove_dir_all(&data)
            .map_err(|error| Failure::new(format!("cannot empty {}: {error}", data.display())))?;
    }
    std::fs::create_dir_all(&temporary)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", temporary.display())))?;
    // Before the pool's CA takes the place of all others, in which nobody would find the package registries.
    let mut install = workspace.command("bash");
    install.arg(harness.join("python-sdk").join("run.sh")).args(&suites);
    install.env("COLLECT_ONLY", "1").env("HARNESS_TMP", &temporary);
    run_command(install)?;
    install_azurite(workspace, &temporary)?;
    let port = free_ports(PORTS)?;
    let pool = Pool::start(workspace, &harness, &data, &temporary, port)?;
    let mut script = workspace.command("bash");
    script
        .args(["-c", r#"eval "$("$0" env --conformance --data "$1")" && shift && exec bash "$@""#])
        .arg(e2e::binary(workspace))
        .arg(&data)
        .arg(harness.join("python-sdk").join("run.sh"))
        .args(&suites)
        .env("HARNESS_TMP", &temporary)
        .env("AZURITE_PORT", azurite_port(port).to_string());
    if std::env::var_os("PYTEST_K").is_none() && suites.iter().all(|suite| DEFAULT_SUITES.contains(suite)) {
        script.env("PYTEST_K", LIVE);
    }
    // The harness fails where any test does; which ones must pass is for the list to say.
    let finished = script.status();
    drop(pool);
    finished.map_err(|error| Failure::new(format!("cannot run the harness: {error}")))?;

    let results = results(workspace, &temporary.join("python").join("reports"))?;
    judge(&expected, &results, &suites)
}

/// Fails where a listed test of the suites that ran did not pass.
fn judge(
    expected: &BTreeSet<String>,
    results: &BTreeMap<String, String>,
    suites: &[&str],
) -> Result<(), Failure> {
    if results.is_empty() {
        return Err(Failure::new("the harness reported no test"));
    }
    let passed = results.iter().filter(|(_, outcome)| *outcome == "passed").map(|(name, _)| name);
    let unlisted: Vec<&String> = passed.clone().filter(|name| !expected.contains(*name)).collect();
    for name in &unlisted {
        println!("conformance: passes, not listed: {name}");
    }
    let mut failures = 0;
    let ran = |name: &str| name.split_once("::").is_some_and(|(report, _)| suites.contains(&suite(report)));
    for name in expected.iter().filter(|name| ran(name)) {
        let outcome = results.get(name).map_or("did not run", String::as_str);
        if outcome != "passed" {
            failures += 1;
            println!("conformance: must pass: {name}: {outcome}");
        }
    }
    let listed = expected.iter().filter(|name| ran(name)).count();
    println!(
        "conformance: {} of {} tests pass; {listed} are listed, {} pass unlisted",
        passed.count(),
        results.len(),
        unlisted.len()
    );
    if failures == 0 { Ok(()) } else { Err(Failure::new(format!("{failures} listed tests did not pass"))) }
}

/// The suite of a report: the harness reports a suite's asynchronous half apart where it has pools of its own.
fn suite(report: &str) -> &str {
    report.strip_suffix("-async").unwrap_or(report)
}

fn harness(workspace: &Workspace) -> PathBuf {
    match std::env::var_os("HOLDFAST_CONFORMANCE") {
        Some(path) => path.into(),
        None => workspace.root.join("..").join("shared").join("conformance"),
    }
}

/// Lines of the list, without comments and blank lines.
fn listed(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

/// Every test of the reports with its outcome. Python reads them: the reports are XML, and the parser is
/// there already.
fn results(workspace: &Workspace, reports: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut command = workspace.command("python3");
    command.args(["-c", READ_REPORTS]).arg(reports);
    let text = output(command)?;
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    Ok(lines.map(|(outcome, name)| (name.to_owned(), outcome.to_owned())).collect())
}

const READ_REPORTS: &str = r#"
import pathlib, sys, xml.etree.ElementTree as tree
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.xml")):
    for case in tree.parse(path).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        print(outcome, f"{path.stem}::{case.get('classname')}::{case.get('name')}", sep="\t")
"#;

/// The storage emulator, where the harness would install one of its own.
fn install_azurite(workspace: &Workspace, temporary: &Path) -> Result<(), Failure> {
    setup::azurite(workspace)?;
    let place = temporary.join("azurite");
    let modules = place.join("node_modules");
    std::fs::create_dir_all(&place)
        .map(|()| std::fs::remove_file(&modules))
        .and_then(|_| {
            std::os::unix::fs::symlink(workspace.azurite_directory().join("node_modules"), &modules)
        })
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", modules.display())))
}

fn azurite_port(port: u16) -> u16 {
    port + PORTS - 1
}

/// A running pool, stopped when it goes out of scope.
struct Pool<'a> {
    workspace: &'a Workspace,
    data: PathBuf,
}

impl<'a> Pool<'a> {
    fn start(
        workspace: &'a Workspace,
        harness: &Path,
        data: &Path,
        temporary: &Path,
        port: u16,
    ) -> Result<Self, Failure> {
        // The release and backup tests make the pool call services of the harness, under its own root.
        let certificates = temporary.join("certs");
        let mut make = workspace.command("bash");
        make.arg(harness.join("common").join("certs.sh")).arg(&certificates);
        run_command(make)?;
        let mut command = workspace.command(e2e::binary(workspace));
        command.args(["quickstart", "--detach", "--with-conformance-principal", "--port", &port.to_string()]);
        command.arg("--data").arg(data).arg("--trust-ca").arg(certificates.join("ca.pem"));
        command.args(["--blob-endpoint", &format!("127.0.0.1:{}", azurite_port(port))]);
        command.args(BLANK_POOLS.iter().flat_map(|name| ["--blank-pool", name]));
        run_command(command)?;
        Ok(Self { workspace, data: data.to_owned() })
    }
}

impl Drop for Pool<'_> {
    fn drop(&mut self) {
        let mut command = self.workspace.command(e2e::binary(self.workspace));
        command.arg("stop").arg("--data").arg(&self.data);
        if let Err(failure) = run_command(command) {
            eprintln!("conformance: {failure}");
        }
    }
}

/// The first of `count` neighbouring ports that nobody listens on.
fn free_ports(count: u16) -> Result<u16, Failure> {
    // Below the range that the kernel hands out for outgoing connections.
    let start = 18_000 + u16::try_from(std::process::id() % 800).unwrap_or(0) * PORTS;
    let free = |port: &u16| (*port..*port + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
    (start..32_000).step_by(PORTS.into()).find(free).ok_or_else(|| Failure::new("no free ports below 32000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_test_that_does_not_pass_fails_the_run() {
        let expected = listed("# keys\n\nkeys::a::passes\nkeys::a::fails\nadministration::b::not_run\n");
        let result = |name: &str, outcome: &str| (name.to_owned(), outcome.to_owned());
        let mut results =
            BTreeMap::from([result("keys::a::passes", "passed"), result("keys::a::fails", "failed")]);
        let failure = judge(&expected, &results, &["keys"]).unwrap_err();
        assert_eq!(failure.to_string(), "1 listed tests did not pass");
        results.insert("keys::a::fails".to_owned(), "passed".to_owned());
        judge(&expected, &results, &["keys"]).unwrap();
    }

    #[test]
    fn the_halves_of_a_suite_are_one_suite() {
        let expected = listed("securitydomain::a::sync\nsecuritydomain-async::a::async");
        let passed = |name: &str| (name.to_owned(), "passed".to_owned());
        let mut results = BTreeMap::from([passed("securitydomain::a::sync")]);
        assert!(judge(&expected, &results, &["securitydomain"]).is_err());
        results.extend([passed("securitydomain-async::a::async")]);
        judge(&expected, &results, &["securitydomain"]).unwrap();
        judge(&expected, &BTreeMap::from([passed("keys::a::b")]), &["keys"]).unwrap();
    }

    #[test]
    fn a_listed_test_that_did_not_run_fails_the_run() {
        let expected = listed("keys::a::gone");
        let results = BTreeMap::from([("keys::a::other".to_owned(), "passed".to_owned())]);
        assert!(judge(&expected, &results, &["keys"]).is_err());
    }
}
