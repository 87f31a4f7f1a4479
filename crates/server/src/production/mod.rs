//! `holdfast pool`: a pool of class production on one machine, with its operator's issuer and CA.
//!
//! One process and no control plane. What genesis says was said by whoever founded the pool and is never asked for again;
//! nothing that a quickstart makes on the machine (issuer, CA, holders, root key, managed identity) is made here.

mod certificate;
mod create;
mod passphrase;
mod serve;
pub mod tls;

use crate::CommandError;
use crate::client;
use crate::layout::Layout;
use clap::Subcommand;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Command {
    /// Found a pool. What is said here is said for ever.
    Create(create::Arguments),
    /// The pool's TLS certificate, which your own CA signs.
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// Seal the pool under another passphrase. It must not be serving.
    Passphrase(passphrase::Arguments),
    /// Serve the pool.
    Serve(serve::Arguments),
    /// Say that the security domain which was uploaded is the right one, over the wire API. Until then no key works.
    Confirm(client::confirm::Arguments),
}

pub fn run(command: Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Create(arguments) => create::run(&arguments),
        Command::Certificate(command) => certificate::run(command),
        Command::Passphrase(arguments) => passphrase::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Confirm(arguments) => client::confirm::run(arguments),
    }
}

/// Whether a pool of class production was made, or begun, in this directory.
pub fn is_production(layout: &Layout) -> bool {
    layout.tls().exists()
}

/// For commands that found none.
fn check_production(layout: &Layout) -> Result<(), CommandError> {
    if is_production(layout) {
        return Ok(());
    }
    Err(format!("there is no pool in {}: found one with `holdfast pool create`", layout.data.display())
        .into())
}

/// Before a quickstart makes anything.
pub fn check_not_production(layout: &Layout) -> Result<(), CommandError> {
    if is_production(layout) {
        let data = layout.data.display();
        return Err(format!(
            "{data} is for a pool of class production: serve it with `holdfast pool serve`, or choose another directory with --data"
        )
        .into());
    }
    Ok(())
}
