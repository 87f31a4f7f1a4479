//! The fuzz targets under libFuzzer, each for a while: `HOLDFAST_FUZZ_SECONDS`, one minute unless said.
//!
//! The compiler of the workspace instruments the code itself (LLVM's coverage pass), so no other toolchain and no tool of
//! cargo is needed; a C++ compiler is, for libFuzzer. What is found new goes to a directory beside the build, an input
//! that breaks a promise to `fuzz/artifacts`, to be kept in `fuzz/corpus` once it is understood.

use std::path::Path;

use crate::process::{Failure, Workspace, output, run};

/// 8-bit counters and comparisons guide the fuzzer. One unit for each crate, as coverage is registered by unit.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

pub fn soak(workspace: &Workspace) -> Result<(), Failure> {
    let seconds = std::env::var("HOLDFAST_FUZZ_SECONDS").unwrap_or_else(|_| "60".to_owned());
    let triple = host_triple(workspace)?;
    let target = workspace.target.join("fuzz");
    // The versions that are fuzzed are the workspace's; cargo adds what the engine needs beside them.
    let lock = workspace.root.join("fuzz").join("Cargo.lock");
    std::fs::copy(workspace.root.join("Cargo.lock"), &lock).map_err(|error| cannot_use(&lock, &error))?;
    let mut build = workspace.cargo(&["build", "--release", "--target", &triple]);
    build.current_dir(workspace.root.join("fuzz"));
    build.env("RUSTFLAGS", INSTRUMENTATION.join(" ")).env("CARGO_TARGET_DIR", &target);
    run(build)?;
    let program = target.join(&triple).join("release").join("fuzz");
    let corpus = workspace.root.join("fuzz").join("corpus");
    for name in directories(&corpus)? {
        let found = target.join("found").join(&name);
        let artifacts = workspace.root.join("fuzz").join("artifacts").join(&name);
        for directory in [&found, &artifacts] {
            std::fs::create_dir_all(directory).map_err(|error| cannot_use(directory, &error))?;
        }
        println!("fuzz: {name}");
        let mut fuzzer = workspace.command(&program);
        fuzzer.env("HOLDFAST_FUZZ_TARGET", &name);
        fuzzer.arg(format!("-max_total_time={seconds}"));
        fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
        fuzzer.args(["-timeout=20", "-rss_limit_mb=2048", "-max_len=16384", "-verbosity=0"]);
        fuzzer.arg(found).arg(corpus.join(&name));
        run(fuzzer)
            .map_err(|failure| Failure::new(format!("{name}: {failure}; see {}", artifacts.display())))?;
    }
    Ok(())
}

fn host_triple(workspace: &Workspace) -> Result<String, Failure> {
    let mut command = workspace.command("rustc");
    command.arg("-vV");
    let version = output(command)?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure::new("rustc does not say what its host is"))
}

fn directories(path: &Path) -> Result<Vec<String>, Failure> {
    let entries = std::fs::read_dir(path).map_err(|error| cannot_use(path, &error))?;
    let mut names: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn cannot_use(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot use {}: {error}", path.display()))
}
