//! What the binary `holdfast` does. Each subcommand is a module; this file only chooses. A library, so that fuzz targets
//! reach its parsers; nothing else is to use it.

mod admin;
mod audit_command;
mod authority_source;
mod azure_blob;
mod backup_folder;
mod byok_command;
mod ceremony_command;
mod certificates;
mod child;
mod client;
mod control;
mod detach;
mod doctor;
mod environment;
mod files;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod gateway_command;
mod gateway_process;
mod hardening;
mod holders;
mod https;
mod instance;
mod instance_command;
mod issuer_federation;
mod issuer_key_source;
mod layout;
mod limits;
mod listener;
mod managed_identity;
mod network;
mod outgoing;
mod output;
mod own_user;
mod passphrase;
mod places;
mod pool_directory;
mod pool_listener;
mod private_key_file;
mod private_networks;
mod production;
mod provisioner;
mod proxy;
mod quickstart;
mod remains;
mod root_of_trust;
mod running;
mod runtime;
mod schedule;
mod sealed;
mod state;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const SECONDS_PER_DAY: i64 = 86_400;

/// A managed HSM that its owner runs, compatible with Azure Key Vault Managed HSM.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a pool named `demo` of class test on this machine, with an issuer and a CA of its own.
    Quickstart(quickstart::Arguments),
    /// Found and serve a pool of class production, with your own issuer and certificate authority.
    #[command(subcommand)]
    Pool(production::Command),
    /// End a quickstart that runs in the background.
    Stop(DataDirectory),
    /// Print shell exports that point clients at a quickstart: eval "$(holdfast env)".
    Env(environment::Arguments),
    /// Read or verify a pool's audit log.
    #[command(subcommand)]
    Audit(audit_command::Arguments),
    /// Make, show, use and remove keys, over the wire API.
    Key(client::Arguments<client::key::Command>),
    /// Get a pool's signed statement about a key, and verify one offline.
    Attest(client::Arguments<client::attest::Command>),
    /// Give, take and explain rights, over the wire API.
    Role(client::Arguments<client::role::Command>),
    /// Withdraw a principal's tokens, as when one was stolen.
    Token(client::Arguments<client::token::Command>),
    /// Back up a whole pool and restore it, over the wire API.
    Backup(client::Arguments<client::backup::Command>),
    /// Show and change a pool's settings, over the wire API.
    Setting(client::Arguments<client::setting::Command>),
    /// Make a pool what a file says: settings, roles, keys, assignments.
    Apply(client::apply::Arguments),
    /// Let time pass for the keys of a pool of class test.
    Clock(client::Arguments<client::test_mode::ClockCommand>),
    /// Refuse requests and delay roles in a pool of class test, to try its clients.
    Simulate(client::test_mode::Simulate),
    /// Make holders' keys, and check, restore or re-key a security domain, offline.
    #[command(subcommand)]
    Ceremony(ceremony_command::Arguments),
    /// Wrap a key of yours for a pool, and explain a wrapped key that a pool does not take, offline.
    #[command(subcommand)]
    Byok(byok_command::Arguments),
    /// Serve one pool of a control plane, which starts this.
    #[command(hide = true)]
    Instance,
    /// Pass clients of a quickstart on to whom they name; the quickstart starts this.
    #[command(hide = true)]
    Gateway,
    /// Say what protects a pool and what does not, and what to do about it.
    Doctor(doctor::Arguments),
}

#[derive(clap::Args)]
struct DataDirectory {
    /// Where the quickstart keeps everything.
    #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
    data: PathBuf,
}

/// What went wrong, in words for whoever typed the command.
type CommandError = Box<dyn std::error::Error + Send + Sync>;

/// Does what the command line says.
pub fn run() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Quickstart(arguments) => quickstart::run(arguments),
        Command::Pool(command) => production::run(command),
        Command::Stop(arguments) => running::stop(&layout::Layout::new(arguments.data)),
        Command::Env(arguments) => environment::run(&arguments),
        Command::Audit(arguments) => audit_command::run(arguments),
        Command::Key(arguments) => client::key::run(arguments),
        Command::Attest(arguments) => client::attest::run(arguments),
        Command::Role(arguments) => client::role::run(arguments),
        Command::Token(arguments) => client::token::run(arguments),
        Command::Backup(arguments) => client::backup::run(arguments),
        Command::Setting(arguments) => client::setting::run(arguments),
        Command::Apply(arguments) => client::apply::run(arguments),
        Command::Clock(arguments) => client::test_mode::clock(arguments),
        Command::Simulate(arguments) => client::test_mode::simulate(arguments),
        Command::Ceremony(arguments) => ceremony_command::run(arguments),
        Command::Byok(arguments) => byok_command::run(arguments),
        Command::Instance => instance_command::run(),
        Command::Gateway => gateway_command::run(),
        Command::Doctor(arguments) => doctor::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) if output::reader_has_gone(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  because: {error}");
                source = error.source();
            }
            for hint in client::hints(&error) {
                eprintln!("  {hint}");
            }
            client::exit_code(&error)
        }
    }
}
