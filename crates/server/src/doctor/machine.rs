//! What the machine beneath a pool can be seen to do for it: disk, clock, certificates, swap.

use super::finding::Finding;
use crate::SECONDS_PER_DAY;
use crate::client::moment;
use crate::layout::Layout;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

const MIB: u64 = 1 << 20;
/// A reserve for events: at some hundred bytes each, more than a million.
const ENOUGH_FREE_BYTES: u64 = 1024 * MIB;
/// Between what wrote a file and what reads its time.
const CLOCK_LEEWAY: Duration = Duration::from_secs(5);
/// Time enough to be noticed and seen to.
const CERTIFICATE_DAYS: i64 = 30;

pub fn disk(layout: &Layout) -> io::Result<Finding> {
    let held = rustix::fs::statvfs(layout.pool())?;
    let free = held.f_bavail.saturating_mul(held.f_frsize);
    let found = format!("{} MiB free for {}", free / MIB, layout.pool().display());
    if free >= ENOUGH_FREE_BYTES {
        return Ok(Finding::ok("disk space", found));
    }
    Ok(Finding::weak(
        "disk space",
        found,
        "No event, no service: with a full disk the pool answers 503 until there is room.",
        format!("make room for {} MiB", ENOUGH_FREE_BYTES / MIB),
    ))
}

/// Whether the clock is behind what was written by it.
pub fn clock(layout: &Layout, now: SystemTime) -> io::Result<Finding> {
    let mut newest = SystemTime::UNIX_EPOCH;
    // A pool of class production has no CA of its own.
    let written = [layout.audit(), layout.pool(), layout.data.join("ca")];
    for directory in written.into_iter().filter(|directory| directory.exists()) {
        for entry in fs::read_dir(directory)? {
            newest = newest.max(entry?.metadata()?.modified()?);
        }
    }
    if newest > now + CLOCK_LEEWAY {
        return Ok(Finding::weak(
            "clock",
            format!(
                "it is behind what the pool wrote by {} s",
                newest.duration_since(now).unwrap_or_default().as_secs()
            ),
            "Tokens, keys and certificates are good or not by this clock; set back, it revives what has expired.",
            "set the clock, and keep it right with NTP",
        ));
    }
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let source = if synchronized {
        "systemd-timesyncd keeps it right"
    } else {
        "what keeps it right is not known here"
    };
    Ok(Finding::ok("clock", format!("not behind what the pool wrote; {source}")))
}

/// When a certificate ends. `check` names whose it is.
pub fn certificate(check: &'static str, der: &[u8], now: SystemTime, remedy: &str) -> Finding {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else {
        return Finding::weak(check, "not a certificate", "Clients will not trust it.", remedy);
    };
    let end = certificate.validity().not_after.timestamp();
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let left = end.saturating_sub(i64::try_from(now).unwrap_or(i64::MAX));
    let found = format!("good until {}", moment::show(end));
    if left >= CERTIFICATE_DAYS * SECONDS_PER_DAY {
        return Finding::ok(check, found);
    }
    let found =
        if left > 0 { format!("{found}, {} days", left / SECONDS_PER_DAY) } else { format!("was {found}") };
    Finding::weak(check, found, "Clients refuse a certificate that has ended.", remedy)
}

/// Whether `pool` and `root` lie on one file system, where the loss of one is the loss of both.
pub fn same_file_system(layout: &Layout) -> io::Result<bool> {
    Ok(fs::metadata(layout.pool())?.dev() == fs::metadata(layout.root_key())?.dev())
}

/// Whether this machine swaps at all.
pub fn swaps() -> Option<bool> {
    // One line is the head of the table.
    fs::read_to_string("/proc/swaps").ok().map(|text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| crate::files::create_directory(path).unwrap());
        crate::files::create_directory(&layout.audit()).unwrap();
        crate::files::write(&layout.node(), b"node").unwrap();
        let now = SystemTime::now();
        assert_eq!(clock(&layout, now).unwrap().state, State::Ok);
        let behind = clock(&layout, now - Duration::from_secs(3600)).unwrap();
        assert_eq!(behind.state, State::Weak);
        assert!(behind.found.contains("behind"), "{}", behind.found);
    }

    #[test]
    fn a_certificate_is_judged_by_its_end() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2027, 1, 31);
        let certificate = params.self_signed(&key).unwrap();
        let at = |days: i64| {
            let end = time::macros::datetime!(2027-01-31 0:00 UTC).unix_timestamp();
            let now = Duration::from_secs((end - days * SECONDS_PER_DAY) as u64);
            certificate_at(certificate.der(), SystemTime::UNIX_EPOCH + now)
        };
        assert_eq!(at(31).state, State::Ok);
        assert_eq!(
            (at(29).state, at(29).found.as_str()),
            (State::Weak, "good until 2027-01-31T00:00:00Z, 29 days")
        );
        assert_eq!(
            (at(-1).state, at(-1).found.as_str()),
            (State::Weak, "was good until 2027-01-31T00:00:00Z")
        );
        assert_eq!(certificate_at(b"nonsense", SystemTime::now()).state, State::Weak);
    }

    fn certificate_at(der: &[u8], now: SystemTime) -> Finding {
        certificate("a certificate", der, now, "make another")
    }
}
