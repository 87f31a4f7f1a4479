//! `holdfast apply`: makes a pool what a file says, over the wire API alone.
//!
//! The file is read and checked whole, then the pool is asked what there is, and only then, when nothing was found amiss in
//! either, something is changed. What the file does not name is left alone, unless `--prune` says otherwise.

pub mod file;
mod plan;

use super::login::{self, Client, Target};
use super::output::{self, Format};
use super::{run as run_client, usage};
use crate::CommandError;
use crate::layout::Layout;
use crate::output::{line, verdict};
use domain::release::MAX_POLICY_BYTES;
use plan::{Change, Who, plan};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const MAX_FILE_BYTES: u64 = 1 << 20;
/// Exit code of `--dry-run` where something would change. 2 and 3 are taken, as everywhere.
const WOULD_CHANGE: u8 = 4;

/// Makes a pool what a file says.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    login: login::Arguments,
    #[command(flatten)]
    output: output::Arguments,
    /// What there is to be: settings, roles, keys, assignments (docs/cli.md).
    file: PathBuf,
    /// Say what would be changed, and change nothing. Exit code 4 where that is something, 0 where it is nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also delete what the sections of the file do not name. Keys can be recovered until they are purged.
    #[arg(long)]
    prune: bool,
}

/// The two clients: in a quickstart no principal but that of conformance suites may do both.
pub struct Clients {
    /// For keys.
    app: Client,
    /// For all else.
    admin: Client,
}

impl Clients {
    fn of(&mut self, who: Who) -> &mut Client {
        match who {
            Who::App => &mut self.app,
            Who::Admin => &mut self.admin,
        }
    }
}

/// A file that was read and is of the form.
pub struct Desired {
    from: String,
    wanted: file::Wanted,
}

impl Desired {
    pub fn read(path: &Path) -> Result<Self, CommandError> {
        let from = path.display().to_string();
        let text = String::from_utf8(super::input::read_file(path, MAX_FILE_BYTES)?)
            .map_err(|_| usage(format!("{from} is not text")))?;
        let open = |name: &str| read_document(path, name);
        let wanted = file::read(&text, &open).map_err(|mistakes| amiss(&from, &mistakes))?;
        Ok(Self { from, wanted })
    }

    /// Makes a quickstart that serves by now what the file says.
    pub async fn sow(&self, layout: &Layout) -> Result<(), CommandError> {
        let mut clients = Clients {
            app: Client::new(Target::quickstart(layout, "app")?),
            admin: Client::new(Target::quickstart(layout, "admin")?),
        };
        let changes = self.plan(&mut clients, false).await?;
        make_all(&mut clients, &changes).await
    }

    async fn plan(&self, clients: &mut Clients, prune: bool) -> Result<Vec<Change>, CommandError> {
        plan(clients, &self.wanted, prune).await?.map_err(|mistakes| amiss(&self.from, &mistakes))
    }
}

/// A release policy beside the file that names it.
fn read_document(file: &Path, name: &str) -> Result<String, String> {
    // `-` is standard input, and a file here.
    let beside = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let bytes = super::input::read_file(&beside.join(name), MAX_POLICY_BYTES as u64);
    String::from_utf8(bytes.map_err(|error| error.to_string())?).map_err(|_| "not text".to_owned())
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    let desired = Desired::read(&arguments.file)?;
    run_client(async move {
        let mut clients = Clients {
            app: Client::new(Target::find(&arguments.login, "app")?),
            admin: Client::new(Target::find(&arguments.login, "admin")?),
        };
        let changes = desired.plan(&mut clients, arguments.prune).await?;
        if !arguments.dry_run {
            make_all(&mut clients, &changes).await?;
        }
        let printed = print(&changes, arguments.dry_run, format);
        let would = arguments.dry_run && !changes.is_empty();
        verdict(printed, if would { ExitCode::from(WOULD_CHANGE) } else { ExitCode::SUCCESS })
    })
}

async fn make_all(clients: &mut Clients, changes: &[Change]) -> Result<(), CommandError> {
    for (done, change) in changes.iter().enumerate() {
        make(clients, change).await.inspect_err(|_| report_partly(&changes[..done], change))?;
    }
    Ok(())
}

async fn make(clients: &mut Clients, change: &Change) -> Result<(), CommandError> {
    let body = change.body.as_ref().map(|body| body.to_string().into());
    clients.of(change.who).call(change.method.clone(), &change.path, body).await?;
    Ok(())
}

/// Nothing is undone, and the next run goes on from there.
fn report_partly(done: &[Change], failed: &Change) {
    for change in done {
        eprintln!("done    {change}");
    }
    eprintln!("failed  {failed}");
}

fn amiss(file: &str, mistakes: &[String]) -> CommandError {
    let lines: Vec<String> = mistakes.iter().map(|mistake| output::clean(mistake)).collect();
    usage(format!("{file} cannot be applied, and nothing was changed:\n  {}", lines.join("\n  ")))
}

fn print(changes: &[Change], dry_run: bool, format: Format) -> Result<(), CommandError> {
    match format {
        Format::Json => {
            let change = |change: &Change| -> Value {
                json!({
                    "action": change.action.as_str(), "kind": change.kind, "name": change.name,
                    "detail": change.detail,
                })
            };
            let all: Vec<Value> = changes.iter().map(change).collect();
            line(format_args!("{}", json!({ "applied": !dry_run, "changes": all })))?;
        }
        Format::Table => {
            for change in changes {
                line(format_args!("{}", output::clean(&change.to_string())))?;
            }
            let count = changes.len();
            match (count, dry_run) {
                (0, _) => line(format_args!("nothing to change"))?,
                (_, true) => line(format_args!("{count} to change; nothing was changed"))?,
                (_, false) => line(format_args!("{count} changed"))?,
            }
        }
    }
    Ok(())
}
