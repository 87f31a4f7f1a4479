//! `holdfast audit`: show what a running pool recorded; verify a log with the owner's public key and nothing else.

use crate::CommandError;
use crate::admin;
use crate::layout::{self, Layout};
use crate::output;
use audit::ReceiptText;
use audit::verify::{Report, Witness, verify};
use clap::Subcommand;
use crypto::certificate::OwnerPublicKey;
use crypto::digest::hex;
use host_embedded::FileLog;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

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
        /// Go on with what happens from now on, until interrupted.
        #[arg(long, conflicts_with = "json")]
        follow: bool,
    },
    /// Check every hash, certificate and signature of a log. Needs no running pool and no secret.
    Verify {
        /// Where the quickstart keeps everything.
        #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
        data: PathBuf,
        /// The owner's public key from a source you trust; without it the copy beside the log is used.
        #[arg(long, value_name = "PEM")]
        owner_key: Option<PathBuf>,
        /// A receipt that an answer carried (the whole value of x-holdfast-receipt); the log must agree with it.
        #[arg(long = "receipt", value_name = "RECEIPT")]
        receipts: Vec<String>,
    },
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    match arguments {
        Arguments::Show { data, json: true, from, .. } => show_json(&Layout::new(data), from),
        Arguments::Show { data, json: false, from, follow } => show(&Layout::new(data), from, follow),
        Arguments::Verify { data, owner_key, receipts } => check(&Layout::new(data), owner_key, &receipts),
    }
}

fn show(layout: &Layout, from: u64, follow: bool) -> Result<ExitCode, CommandError> {
    let mut next = from;
    loop {
        let page = read_page(layout, &mut next)?;
        for event in &page {
            output::line(format_args!("{}", line(event)))?;
        }
        match (page.is_empty(), follow) {
            (true, false) => return Ok(ExitCode::SUCCESS),
            (true, true) => std::thread::sleep(FOLLOW_INTERVAL),
            (false, _) => {}
        }
    }
}

fn show_json(layout: &Layout, from: u64) -> Result<ExitCode, CommandError> {
    let mut next = from;
    let mut events = Vec::new();
    loop {
        let page = read_page(layout, &mut next)?;
        if page.is_empty() {
            break;
        }
        events.extend(page);
    }
    output::line(format_args!("{}", serde_json::to_string_pretty(&events)?))?;
    Ok(ExitCode::SUCCESS)
}

/// The events from `next` on that fit one answer, none at the end; moves `next` behind them.
fn read_page(layout: &Layout, next: &mut u64) -> Result<Vec<Value>, CommandError> {
    let page = admin::read_events(&layout.admin_socket(), *next)?;
    if let Some(last) = page.last() {
        *next = last["holdfast"]["index"].as_u64().ok_or("the pool sent an event without an index")? + 1;
    }
    Ok(page)
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

fn check(layout: &Layout, owner_key: Option<PathBuf>, receipts: &[String]) -> Result<ExitCode, CommandError> {
    let given = owner_key.is_some();
    let path = owner_key.unwrap_or_else(|| layout.owner_key());
    let pem = std::fs::read_to_string(&path)
        .map_err(|error| format!("cannot read the owner's public key at {}: {error}", path.display()))?;
    let owner = OwnerPublicKey::from_pem(&pem)
        .map_err(|_| format!("{} is not an owner's public key", path.display()))?;
    let receipts = receipts.iter().map(|receipt| receipt.parse::<ReceiptText>().map(Witness::Receipt));
    let witnesses = receipts.collect::<Result<Vec<_>, _>>()?;
    // Read-only and without a lock: the pool may be running, and nothing here can change its log.
    let log = FileLog::open_read_only(layout.audit())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let report = runtime.block_on(verify(&log, &owner, None, &witnesses))?;
    // Whatever becomes of the text, the exit code is the verdict.
    let _ = output::line(format_args!("{}", describe(&report, &owner, given)));
    Ok(if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn describe(report: &Report, owner: &OwnerPublicKey, given: bool) -> String {
    let mut lines = Vec::new();
    lines.push(format!("owner key     {}", owner.fingerprint()));
    if !given {
        lines.push(
            "              (the copy beside the log: compare it with the one you wrote down)".to_owned(),
        );
    }
    if let Some(pool) = report.pool {
        lines.push(format!("pool          {pool}"));
    }
    if let Some(hash) = report.genesis_hash {
        lines.push(format!("genesis       {}", hex(&hash)));
    }
    lines.push(format!(
        "events        {} in {} groups and {} segments",
        report.events, report.groups, report.segments
    ));
    lines.push(format!("root          {}", hex(&report.root)));
    for held in &report.incarnations {
        lines.push(format!(
            "incarnation   {} of node {}: events {} to {}",
            held.incarnation, held.node, held.first_index, held.last_index
        ));
    }
    if report.torn_bytes > 0 {
        lines.push(format!(
            "tail          {} bytes of a write that was cut short or is under way; nothing in them was acknowledged",
            report.torn_bytes
        ));
    }
    for failure in &report.failures {
        lines.push(format!("FAILED        {failure}"));
    }
    let verdict = if report.failures.is_empty() { "verified      " } else { "NOT VERIFIED  " };
    lines.push(format!("{verdict}{report}"));
    if report.witnesses == 0 {
        lines.push(
            "              (give --receipt: without one, a log that was cut at its end looks complete)"
                .to_owned(),
        );
    }
    lines.join("\n")
}
