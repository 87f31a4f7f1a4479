//! `holdfast pool certificate`: asks for a certificate and takes it.

use super::passphrase::{Sealing, check_user};
use super::tls;
use crate::CommandError;
use crate::hardening;
use crate::layout::Layout;
use crate::output::line;
use crate::root_of_trust::RootOfTrust;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;
use time::OffsetDateTime;

#[derive(Subcommand)]
pub enum Command {
    /// Make a new TLS key in the pool's directory, sealed, and print the request for its certificate.
    Request {
        /// Where everything is kept.
        #[arg(long = "data", value_name = "DIR")]
        data: PathBuf,
        /// A file whose first line is the pool's passphrase.
        #[arg(long, value_name = "FILE")]
        root_credential: PathBuf,
    },
    /// Take a certificate that your CA signed. The pool has it from its next start on.
    Install {
        /// Where everything is kept.
        #[arg(long = "data", value_name = "DIR")]
        data: PathBuf,
        /// The pool's certificate, then those above it up to the root, in PEM.
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
    },
}

pub fn run(command: Command) -> Result<ExitCode, CommandError> {
    hardening::harden();
    carry_out(command)
}

fn carry_out(command: Command) -> Result<ExitCode, CommandError> {
    match command {
        Command::Request { data, root_credential } => {
            let layout = Layout::new(data);
            let host = tls::requested_host(&layout)?;
            check_user(&layout)?;
            let _sealing = Sealing::begin(&layout)?;
            let place = layout.production_place(RootOfTrust::credential(&root_credential)?);
            // A key that is sealed under another passphrase would not open at a start.
            place.opens()?;
            let request = tls::request(&layout, &place, &host)?;
            line(format_args!("{}", request.trim_end()))?;
        }
        Command::Install { data, chain } => {
            let layout = Layout::new(data);
            tls::requested_host(&layout)?;
            check_user(&layout)?;
            let pem =
                std::fs::read(&chain).map_err(|error| format!("cannot read {}: {error}", chain.display()))?;
            tls::install(&layout, &pem, OffsetDateTime::now_utc().unix_timestamp())
                .map_err(|error| format!("{}: {error}", chain.display()))?;
            line(format_args!("installed; the pool has it from its next start on"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;
    use std::os::unix::fs::chown;

    const NOBODY: u32 = 65534;

    /// The pool's user could not read what root writes, and the pool would not start.
    #[test]
    fn another_user_than_the_pools_writes_nothing() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        files::create_directory(&layout.pool()).unwrap();
        let credential = directory.path().join("passphrase");
        files::write(&credential, b"correct horse battery").unwrap();
        let place = layout.production_place(RootOfTrust::credential(&credential).unwrap());
        tls::request(&layout, &place, "payroll.managedhsm.example").unwrap();
        chown(layout.tls(), Some(NOBODY), None).unwrap();
        let count = || std::fs::read_dir(layout.tls()).unwrap().count();
        let before = count();
        let data = || layout.data.clone();
        for command in [
            Command::Request { data: data(), root_credential: credential.clone() },
            Command::Install { data: data(), chain: credential.clone() },
        ] {
            let refused = carry_out(command).unwrap_err().to_string();
            assert!(refused.contains("is user 65534's, and this is user 0"), "{refused}");
        }
        assert_eq!(count(), before);
    }
}
