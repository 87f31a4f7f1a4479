//! Whether the audit log is whole, by the public key that lies beside it.

use super::finding::Finding;
use crate::CommandError;
use crate::layout::Layout;
use audit::verify::verify;
use crypto::certificate::OwnerPublicKey;
use host_embedded::FileLog;
use std::fs;
use std::io;

const CHECK: &str = "audit log";
/// A larger one takes its time, and has a command of its own.
const MAX_BYTES: u64 = 256 << 20;

pub fn check(layout: &Layout) -> Result<Finding, CommandError> {
    let remedy =
        "holdfast audit verify, which names the place; then keep the pool closed and find out who was there";
    let why = "Events were changed, removed or put in; who used which key cannot be told from this log.";
    let bytes = size(layout)?;
    if bytes > MAX_BYTES {
        let found = format!("{} MiB, not looked at here: holdfast audit verify does", bytes >> 20);
        return Ok(Finding::unknown(CHECK, found));
    }
    let Ok(pem) = fs::read_to_string(layout.owner_key()) else {
        return Ok(Finding::unknown(
            CHECK,
            "the owner's public key is not beside it; holdfast audit verify takes one",
        ));
    };
    let owner = OwnerPublicKey::from_pem(&pem)
        .map_err(|_| format!("{} is not an owner's public key", layout.owner_key().display()))?;
    // Read-only and without a lock: the pool may be running, and nothing here can change its log.
    let log = FileLog::open_read_only(layout.audit())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let report = match runtime.block_on(verify(&log, &owner, None, &[])) {
        Ok(report) => report,
        Err(error) => return Ok(Finding::weak(CHECK, error.to_string(), why, remedy)),
    };
    Ok(match report.failures.first() {
        None => Finding::ok(
            CHECK,
            format!(
                "{} events, each hash and signature good; nobody outside was asked how many there were",
                report.events
            ),
        ),
        Some(failure) => Finding::weak(CHECK, failure.to_string(), why, remedy),
    })
}

fn size(layout: &Layout) -> io::Result<u64> {
    fs::read_dir(layout.audit())?.try_fold(0, |sum, entry| Ok(sum + entry?.metadata()?.len()))
}
