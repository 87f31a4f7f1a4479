//! `holdfast backup`: full backups and restores, over the wire API alone.

use super::login::{Client, Target};
use super::moment;
use super::output::{self, Format};
use super::{Arguments, Refused, run as run_client, usage};
use crate::CommandError;
use crate::output::{line, verdict};
use clap::Subcommand;
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use zeroize::Zeroizing;

/// Between two looks at a job.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_SAS_BYTES: u64 = 4096;
/// Of each list of a difference, shown in a table.
const SHOWN: usize = 20;

#[derive(Subcommand)]
pub enum Command {
    /// Back up the whole pool.
    Start {
        #[command(flatten)]
        storage: Storage,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Replace all keys of the pool by those of a backup; with --key, bring back one key that is not in the pool.
    Restore {
        #[command(flatten)]
        storage: Storage,
        /// The backup's folder in the container, such as mhsm-demo-20270115080000.
        #[arg(long)]
        folder: String,
        /// This key alone.
        #[arg(long, value_name = "NAME")]
        key: Option<String>,
        /// Only show what would change.
        #[arg(long, conflicts_with = "key")]
        dry_run: bool,
        /// Do not wait until it is done.
        #[arg(long)]
        no_wait: bool,
    },
    /// Check whether a backup could be made there; with --folder, whether that one could be restored.
    Check {
        #[command(flatten)]
        storage: Storage,
        #[arg(long)]
        folder: Option<String>,
    },
    /// Show how a backup or a restore goes, or went.
    Status {
        /// As `start` and `restore` print it.
        job: String,
    },
}

#[derive(clap::Args)]
pub struct Storage {
    /// The container: https://ACCOUNT.blob.core.windows.net/CONTAINER, or file:// and the folder that the pool's operator
    /// named.
    #[arg(long = "container", value_name = "URI")]
    container: String,
    /// A file with a shared access signature for the container; `-` reads standard input. Without one the pool's own
    /// identity goes there.
    #[arg(long, value_name = "FILE")]
    sas_file: Option<PathBuf>,
}

impl Storage {
    fn body(&self) -> Result<Value, CommandError> {
        let mut body = json!({ "storageResourceUri": self.container });
        match &self.sas_file {
            Some(path) => body["token"] = read_sas(path)?.trim().into(),
            None => body["useManagedIdentity"] = true.into(),
        }
        Ok(body)
    }
}

/// Not from the command line, which everybody on the machine can read.
fn read_sas(path: &Path) -> Result<Zeroizing<String>, CommandError> {
    let mut text = Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_SAS_BYTES + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_SAS_BYTES + 1).read_to_string(&mut text))
    };
    read.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    if text.len() as u64 > MAX_SAS_BYTES {
        return Err(usage(format!("{} holds more than a shared access signature", path.display())));
    }
    Ok(text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    job_id: String,
    status: String,
    status_details: Option<String>,
    start_time: i64,
    end_time: Option<i64>,
    azure_storage_blob_container_uri: Option<String>,
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "admin")?);
        match arguments.command {
            Command::Start { storage, no_wait } => {
                let begun = begin(&mut client, Method::POST, "/backup", storage.body()?).await?;
                follow(&mut client, "backup", begun, no_wait, format).await
            }
            Command::Restore { storage, folder, key, dry_run, no_wait } => {
                let body = json!({ "sasTokenParameters": storage.body()?, "folderToRestore": folder, "folder": folder });
                if dry_run {
                    return preview(&mut client, body, format).await;
                }
                let path = key.map_or_else(|| "/restore".to_owned(), |key| format!("/keys/{key}/restore"));
                let begun = begin(&mut client, Method::PUT, &path, body).await?;
                follow(&mut client, "restore", begun, no_wait, format).await
            }
            Command::Check { storage, folder: None } => {
                let begun = begin(&mut client, Method::POST, "/prebackup", storage.body()?).await?;
                follow(&mut client, "backup", begun, false, format).await
            }
            Command::Check { storage, folder: Some(folder) } => {
                let body = json!({ "sasTokenParameters": storage.body()?, "folderToRestore": folder });
                let begun = begin(&mut client, Method::PUT, "/prerestore", body).await?;
                follow(&mut client, "restore", begun, false, format).await
            }
            Command::Status { job } => {
                let is_id = job.chars().all(|character| character.is_ascii_hexdigit() || character == '-');
                if !is_id {
                    return Err(usage(format!("`{job}` is not a job's id")));
                }
                let body = match status(&mut client, "backup", &job).await {
                    Err(error) if error.downcast_ref::<Refused>().is_some_and(Refused::is_not_found) => {
                        status(&mut client, "restore", &job).await?
                    }
                    other => other?,
                };
                show(&body, format)
            }
        }
    })
}

async fn begin(
    client: &mut Client,
    method: Method,
    path: &str,
    body: Value,
) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    Ok(client.call(method, path, Some(body.to_string().into())).await?.body)
}

async fn status(client: &mut Client, what: &str, id: &str) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    Ok(client.call(Method::GET, &format!("/{what}/{id}/pending"), None).await?.body)
}

/// Waits for the end, and shows it.
async fn follow(
    client: &mut Client,
    what: &str,
    begun: Zeroizing<Vec<u8>>,
    no_wait: bool,
    format: Format,
) -> Result<ExitCode, CommandError> {
    let id = job(&begun)?.job_id;
    let mut body = begun;
    while !no_wait && job(&body)?.status == "InProgress" {
        tokio::time::sleep(PAUSE).await;
        body = status(client, what, &id).await?;
    }
    show(&body, format)
}

fn job(body: &[u8]) -> Result<Job, CommandError> {
    Ok(serde_json::from_slice(body).map_err(|_| "the service's answer holds no job")?)
}

fn show(body: &[u8], format: Format) -> Result<ExitCode, CommandError> {
    let job = job(body)?;
    let code = if job.status == "Failed" { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    let printed = if format == Format::Json {
        output::print_body(body)
    } else {
        let mut fields = vec![("job", job.job_id), ("status", job.status.clone())];
        fields.extend(job.status_details.map(|details| ("details", details)));
        fields.extend(job.azure_storage_blob_container_uri.map(|uri| ("backup", uri)));
        if let Some(end) = job.end_time {
            fields.push(("seconds", (end - job.start_time).to_string()));
        }
        output::print_fields(&fields)
    };
    verdict(printed.map_err(Into::into), code)
}

async fn preview(client: &mut Client, body: Value, format: Format) -> Result<ExitCode, CommandError> {
    let answer = client.call(Method::PUT, "/holdfast/restorepreview", Some(body.to_string().into())).await?;
    if format == Format::Json {
        output::print_body(&answer.body)?;
        return Ok(ExitCode::SUCCESS);
    }
    let body: Value = serde_json::from_slice(&answer.body)?;
    let date = |member: &str| body[member].as_i64().map(moment::show);
    if let Some(made_at) = date("madeAt") {
        line(format_args!("the backup is of {made_at}, generation {}", body["generation"]))?;
        if let Some(size) = body["logSize"].as_u64() {
            line(format_args!("the log of its pool had {size} events: what was done later is behind them"))?;
        }
    }
    if let Some(last) = date("olderThanBackupOf") {
        line(format_args!("IT IS OLDER than the last backup that the pool made, begun {last}"))?;
    }
    let roles = if body["replacesRoles"] == true { "those of the backup" } else { "kept" };
    line(format_args!("roles will be {roles}"))?;
    for (member, what) in [
        ("newKeys", "new keys"),
        ("lostKeys", "keys that are lost"),
        ("lostVersions", "versions that are lost"),
        ("changedKeys", "changes of keys"),
        ("newRoles", "roles that come"),
        ("lostRoles", "roles that go"),
    ] {
        let list: Vec<&str> =
            body[member].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if list.is_empty() {
            continue;
        }
        let shown = list.len().min(SHOWN);
        let count = body["counts"][member].as_u64().unwrap_or(list.len() as u64);
        line(format_args!("{count} {what}:"))?;
        for item in list.iter().take(shown) {
            line(format_args!("  {}", output::clean(item)))?;
        }
        if count > shown as u64 {
            line(format_args!("  and {} more; --output json has the first thousand", count - shown as u64))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
