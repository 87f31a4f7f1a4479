//! Where the workspace is, and how another program is run from it.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::metadata;

/// Why a command of ours did not succeed, in words for the person who ran it.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The directories that everything here works in.
#[derive(Debug)]
pub struct Workspace {
    /// Holds the root manifest.
    pub root: PathBuf,
    /// Cargo's target directory, wherever the environment or the configuration put it.
    pub target: PathBuf,
}

impl Workspace {
    pub fn locate() -> Result<Self, Failure> {
        // Cargo says where the package that it runs lies. What was compiled in may be another checkout, if two
        // of them share a target directory.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().ok_or_else(|| Failure::new("xtask has no parent directory"))?;
        let target = metadata::target_directory(root)?;
        Ok(Self { root: root.to_owned(), target })
    }

    /// A command that runs at the root, without standard input: nothing here may wait for a person.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).stdin(Stdio::null());
        command
    }

    /// Cargo, with the settings that every stage shares so that each dependency is compiled once.
    pub fn cargo(&self, words: &[&str]) -> Command {
        let mut command = self.command(cargo_program());
        command.args(words).env("CARGO_INCREMENTAL", "0");
        // Set by the cargo that started this program, about this program.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH"
            {
                command.env_remove(name);
            }
        }
        command
    }

    /// Names of the virtual environments that `setup` makes in the target directory.
    pub const PYTHON_ENVIRONMENT: &'static str = "venv";
    pub const AZ_ENVIRONMENT: &'static str = "venv-az";

    /// The Python that runs the end-to-end tests.
    pub fn python(&self) -> PathBuf {
        self.target.join(Self::PYTHON_ENVIRONMENT).join("bin").join("python")
    }

    /// Where `setup` installs the storage emulator, which runs on node.
    pub fn azurite_directory(&self) -> PathBuf {
        self.target.join("azurite")
    }

    /// The storage emulator that backups go to.
    pub fn azurite(&self) -> PathBuf {
        self.azurite_directory().join("node_modules").join(".bin").join("azurite-blob")
    }

    /// The Azure CLI that they call.
    pub fn az(&self) -> PathBuf {
        self.target.join(Self::AZ_ENVIRONMENT).join("bin").join("az")
    }
}

/// The cargo that runs us, or the one on the path.
pub fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Runs `command` to its end, its output going where ours goes.
pub fn run(mut command: Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| not_started(&command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{} failed: {status}", shown(&command)))) }
}

/// Runs `command` and hands each line of its standard output to `line` as well as to ours.
pub fn run_with_lines(mut command: Command, mut line: impl FnMut(&str)) -> Result<(), Failure> {
    command.stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| not_started(&command, &error))?;
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut bytes = Vec::new();
        // Not `lines()`: a test may print bytes that are not UTF-8.
        while output.read_until(b'\n', &mut bytes).unwrap_or(0) > 0 {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            print!("{text}");
            let _ = std::io::stdout().flush();
            line(text.trim_end());
            bytes.clear();
        }
    }
    let status = child.wait().map_err(|error| not_started(&command, &error))?;
    if status.success() { Ok(()) } else { Err(Failure::new(format!("{} failed: {status}", shown(&command)))) }
}

/// Standard output of `command`, which must succeed.
pub fn output(mut command: Command) -> Result<String, Failure> {
    let output = command.output().map_err(|error| not_started(&command, &error))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(format!("{} failed: {}: {complaint}", shown(&command), output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `command` starts and succeeds; what it prints is dropped.
pub fn succeeds(mut command: Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether a program of this name is on the path.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

pub fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot run {}: {error}", shown(command)))
}
