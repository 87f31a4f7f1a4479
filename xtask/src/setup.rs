//! The tools that building and testing need, beyond Rust itself.
//!
//! Looks for each by using it, not by package name. What is missing is installed where that is possible
//! (root, on a system with apt-get); elsewhere the exact command is printed and setup fails. It never
//! goes on without a tool.

use std::path::Path;

use crate::process::{Failure, Workspace, on_path, output, read, run as run_command, succeeds};

/// A tool, how to tell that it works, and the Debian packages that bring it.
struct Tool {
    name: &'static str,
    used_for: &'static str,
    works: fn(&Workspace) -> bool,
    packages: &'static [&'static str],
}

const TOOLS: &[Tool] = &[
    Tool {
        name: "a C compiler",
        used_for: "building the cryptographic library",
        works: compiles_c,
        packages: &["gcc", "libc6-dev"],
    },
    Tool {
        name: "cmake",
        used_for: "building the cryptographic library",
        works: |workspace| answers(workspace, "cmake", &["--version"]),
        packages: &["cmake"],
    },
    Tool {
        name: "python3, 3.11 or later, with venv",
        used_for: "the end-to-end tests",
        works: |workspace| {
            let words = "import ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 11))";
            answers(workspace, "python3", &["-c", words])
        },
        packages: &["python3", "python3-venv"],
    },
    Tool {
        name: "iproute2",
        used_for: "the end-to-end tests of network rules, which need addresses of their own",
        works: |workspace| answers(workspace, "ip", &["-V"]),
        packages: &["iproute2"],
    },
    Tool {
        name: "systemd-analyze",
        used_for: "the end-to-end tests of the packaging, which have it read the units",
        // Elsewhere those tests are skipped by name.
        works: |workspace| {
            std::env::var_os("CI").is_none() || answers(workspace, "systemd-analyze", &["--version"])
        },
        packages: &["systemd"],
    },
    Tool {
        name: "bash",
        used_for: "the end-to-end tests",
        works: |workspace| answers(workspace, "bash", &["--version"]),
        packages: &["bash"],
    },
    Tool {
        name: "node",
        used_for: "the storage emulator of the end-to-end tests",
        works: |workspace| answers(workspace, "node", &["--version"]),
        packages: &["nodejs"],
    },
    Tool {
        name: "npm",
        used_for: "installing the storage emulator",
        works: |workspace| answers(workspace, "npm", &["--version"]),
        packages: &["npm"],
    },
];

pub fn run(workspace: &Workspace) -> Result<(), Failure> {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !(tool.works)(workspace)).collect();
    if !missing.is_empty() {
        install(workspace, &missing)?;
    }
    for component in ["fmt", "clippy"] {
        if !succeeds(workspace.cargo(&[component, "--version"])) {
            let name = if component == "fmt" { "rustfmt" } else { component };
            return Err(Failure::new(format!("missing: {name}; run: rustup component add {name}")));
        }
    }
    for environment in [&TESTS, &AZURE_CLI] {
        virtual_environment(workspace, environment)?;
    }
    azurite(workspace)?;
    println!("setup: everything is here");
    Ok(())
}

fn install(workspace: &Workspace, missing: &[&Tool]) -> Result<(), Failure> {
    for tool in missing {
        println!("setup: missing: {}, for {}", tool.name, tool.used_for);
    }
    let packages: Vec<&str> = missing.iter().flat_map(|tool| tool.packages).copied().collect();
    let line = apt_line(&packages);
    if !on_path("apt-get") {
        return Err(Failure::new(format!(
            "this system has no apt-get: install what Debian has as {}",
            packages.join(" ")
        )));
    }
    if !is_root(workspace) {
        return Err(Failure::new(format!("run this, then try again:\n  sudo {line}")));
    }
    println!("setup: {line}");
    let mut update = workspace.command("apt-get");
    update.args(["update", "-qq"]);
    run_command(update)?;
    let mut apt = workspace.command("apt-get");
    apt.args(["install", "-y", "--no-install-recommends"]).args(&packages);
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    run_command(apt)?;
    match missing.iter().find(|tool| !(tool.works)(workspace)) {
        None => Ok(()),
        // Another one stands earlier on the path, for instance a Python built without its venv module.
        Some(tool) => Err(Failure::new(format!(
            "{} still does not work after {line}: check which one comes first on the path",
            tool.name
        ))),
    }
}

fn apt_line(packages: &[&str]) -> String {
    format!("apt-get install -y --no-install-recommends {}", packages.join(" "))
}

fn is_root(workspace: &Workspace) -> bool {
    let mut command = workspace.command("id");
    command.arg("-u");
    output(command).is_ok_and(|id| id.trim() == "0")
}

fn answers(workspace: &Workspace, program: &str, words: &[&str]) -> bool {
    let mut command = workspace.command(program);
    command.args(words);
    succeeds(command)
}

/// A compiler without the C library's headers is found and is of no use.
fn compiles_c(workspace: &Workspace) -> bool {
    let mut command = workspace.command("cc");
    command.args(["-E", "-include", "stdlib.h", "-x", "c", "/dev/null"]);
    succeeds(command)
}

/// Python packages in an environment of their own under the target directory.
struct Environment {
    directory: &'static str,
    /// In `tests/e2e`; every package pinned.
    requirements: &'static str,
    pip: &'static [&'static str],
    /// What shows that the environment works, run by its Python.
    works: &'static [&'static str],
}

/// The tests and the SDK that they call.
const TESTS: Environment = Environment {
    directory: Workspace::PYTHON_ENVIRONMENT,
    requirements: "requirements.txt",
    pip: &[],
    works: &["-c", "import pytest, azure.keyvault.keys"],
};
/// The Azure CLI, which pins versions of the SDK that the tests do not want. It would install a library for each
/// service of Azure; its file of requirements is complete without them.
const AZURE_CLI: Environment = Environment {
    directory: Workspace::AZ_ENVIRONMENT,
    requirements: "requirements-az.txt",
    pip: &["--no-deps"],
    works: &["-c", "import azure.cli.command_modules.keyvault, azure.mgmt.keyvault"],
};

/// Made once for each content of the requirements file and each Python.
fn virtual_environment(workspace: &Workspace, environment: &Environment) -> Result<(), Failure> {
    let requirements = workspace.root.join("tests").join("e2e").join(environment.requirements);
    let directory = workspace.target.join(environment.directory);
    let stamp = directory.join("installed.txt");
    let mut version = workspace.command("python3");
    version.args(["-c", "import sys; print(sys.executable, sys.version)"]);
    // The stamp holds all that the environment was made from, so comparing it needs no digest.
    let wanted = format!("{}{}", output(version)?, read(&requirements)?);
    let python = |words: &[&str]| {
        let mut command = workspace.command(directory.join("bin").join("python"));
        command.args(words);
        command
    };
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted)
        && succeeds(python(environment.works))
    {
        return Ok(());
    }
    println!("setup: Python packages into {}", directory.display());
    let mut make = workspace.command("python3");
    make.args(["-m", "venv", "--clear"]).arg(&directory);
    run_command(make)?;
    let mut pip = python(&["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    pip.args(environment.pip).arg("-r").arg(&requirements);
    run_command(pip)?;
    write(&stamp, &wanted)
}

/// The emulator of Azure Storage, as `tests/e2e/azurite` pins it with all that it needs. Made once for each content of
/// the lock file.
pub fn azurite(workspace: &Workspace) -> Result<(), Failure> {
    let pinned = workspace.root.join("tests").join("e2e").join("azurite");
    let directory = workspace.azurite_directory();
    let stamp = directory.join("installed.txt");
    let lock = read(&pinned.join("package-lock.json"))?;
    let answers = || {
        let mut command = workspace.command(workspace.azurite());
        command.arg("--version");
        succeeds(command)
    };
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == lock) && answers() {
        return Ok(());
    }
    println!("setup: the storage emulator into {}", directory.display());
    std::fs::create_dir_all(&directory)
        .map_err(|error| Failure::new(format!("cannot make {}: {error}", directory.display())))?;
    write(&directory.join("package.json"), &read(&pinned.join("package.json"))?)?;
    write(&directory.join("package-lock.json"), &lock)?;
    let mut npm = workspace.command("npm");
    // No script of a package runs.
    npm.args([
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--loglevel=error",
    ]);
    npm.current_dir(&directory);
    run_command(npm)?;
    if !answers() {
        return Err(Failure::new(format!("{} does not start", workspace.azurite().display())));
    }
    write(&stamp, &lock)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text)
        .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_paste_is_exact() {
        assert_eq!(
            apt_line(&["cmake", "python3-venv"]),
            "apt-get install -y --no-install-recommends cmake python3-venv"
        );
    }
}
