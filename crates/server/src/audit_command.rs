//! `holdfast audit`: show what a running pool recorded; verify a log with the owner's public key and nothing else.

use crate::CommandError;
use crate::admin;
use crate::layout::{self, Layout};
use audit::verify::{Directory, Report, verify};
use clap::Subcommand;
use crypto::certificate::OwnerPublicKey;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Subcommand)]
pub enum Arguments {
    /// Print the events of a running pool.
    Show {
        /// Where the quickstart keeps everything.
        #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
        data: PathBuf,
        /// Print a JSON array in Azure's schema instead of lines.
        #[arg(long)]
        json: bool,
        /// Start at this event.
        #[arg(long, value_name = "INDEX", default_value_t = 0)]
        from: u64,
    },
    /// Check every hash, certificate and signature of a log. Needs no running pool and no secret.
    Verify {
        /// Where the quickstart keeps everything.
        #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
        data: PathBuf,
        /// The owner's public key from a source you trust; without it the copy beside the log is used.
        #[arg(long, value_name = "PEM")]
        owner_key: Option<PathBuf>,
    },
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    match arguments {
        Arguments::Show { data, json, from } => show(&Layout::new(data), json, from),
        Arguments::Verify { data, owner_key } => check(&Layout::new(data), owner_key),
    }
}

fn show(layout: &Layout, json: bool, from: u64) -> Result<ExitCode, CommandError> {
    let mut next = from;
    let mut events = Vec::new();
    loop {
        let page = admin::read_events(&layout.admin_socket(), next)?;
        let Some(last) = page.last() else { break };
        next = last["holdfast"]["index"].as_u64().ok_or("the pool sent an event without an index")? + 1;
        if !json {
            page.iter().for_each(|event| println!("{}", line(event)));
        } else {
            events.extend(page);
        }
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&events)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// `index time status operation key caller detail`
fn line(event: &Value) -> String {
    let ours = &event["holdfast"];
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let identity: Value =
        serde_json::from_str(event["identity"].as_str().unwrap_or("{}")).unwrap_or_default();
    let caller = &identity["claim"]["http_schemas_microsoft_com_identity"]["claims"]["objectidentifier"];
    let status = match event["httpStatusCode"].as_u64() {
        Some(0) | None => "-".to_owned(),
        Some(status) => status.to_string(),
    };
    format!(
        "{:>6}  {}  {:>3}  {:<20}  {:<24}  {:<36}  {}",
        ours["index"],
        text(&event["time"]),
        status,
        text(&event["operationName"]),
        text(&ours["key"]),
        text(caller),
        ours["detail"].as_str().unwrap_or_default(),
    )
}

fn check(layout: &Layout, owner_key: Option<PathBuf>) -> Result<ExitCode, CommandError> {
    let given = owner_key.is_some();
    let path = owner_key.unwrap_or_else(|| layout.owner_key());
    let pem = std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read the owner's public key at {}: {error}", path.display()))?;
    let owner = OwnerPublicKey::from_pem(&pem)
        .map_err(|_| format!("{} is not an owner's public key", path.display()))?;
    let directory = Directory::open(&layout.audit())
        .map_err(|error| format!("cannot read the log at {}: {error}", layout.audit().display()))?;
    let report = verify(&directory, &owner)?;
    print(&report, &owner, given);
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(report: &Report, owner: &OwnerPublicKey, given: bool) {
    println!("owner key     {}", owner.fingerprint());
    if !given {
        println!("              (the copy beside the log: compare it with the one you wrote down)");
    }
    if let Some(pool) = report.pool {
        println!("pool          {pool}");
    }
    if let Some(hash) = report.genesis_hash {
        println!("genesis       {}", hex(&hash));
    }
    println!("events        {} in {} groups and {} segments", report.events, report.groups, report.segments);
    println!("root          {}", hex(&report.root));
    for held in &report.incarnations {
        println!(
            "incarnation   {} of node {}: events {} to {}",
            held.incarnation, held.node, held.first_index, held.last_index
        );
    }
    if report.torn_bytes > 0 {
        println!(
            "tail          {} bytes of a write that was cut short or is under way; nothing in them was acknowledged",
            report.torn_bytes
        );
    }
    for failure in &report.failures {
        println!("FAILED        {failure}");
    }
    match (report.failures.is_empty(), report.events.checked_sub(1)) {
        (true, Some(last)) => println!(
            "verified      complete up to event {last}, witnessed by nobody: a host that cut or replaced the whole log\n\
             {:14}and every receipt of it would not be noticed here",
            ""
        ),
        (true, None) => println!("verified      the log is empty"),
        (false, _) => println!("NOT VERIFIED  {} failure(s)", report.failures.len()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
