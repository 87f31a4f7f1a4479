//! The table. Every figure says what it is of; a row whose client was the bottleneck says that instead.

use std::fmt::Write as _;
use std::time::Duration;

use crate::backup::Backup;
use crate::load::{Load, Target, percentile};
use crate::mixed::Mixed;
use crate::scale::Scale;
use crate::{Options, machine};

/// Above this part of its core the client, not the server, sets the rate.
const MAX_CLIENT_SHARE: f64 = 0.9;

pub struct Row {
    pub target: Target,
    pub rounds: Vec<Round>,
}

pub struct Round {
    /// Rate of the primitive alone, measured just before.
    pub raw: Option<f64>,
    pub load: Load,
}

/// All that one run measured.
pub struct Report {
    /// The last is the bare handler.
    pub rows: Vec<Row>,
    pub scales: Vec<Scale>,
    pub mixed: Vec<Mixed>,
    pub backups: Vec<Backup>,
}

impl Report {
    /// What is drawn: name and microseconds of CPU time.
    pub fn bars(&self) -> Vec<(&str, f64)> {
        self.rows.iter().map(|row| (row.target.name, cpu(row) * 1e6)).collect()
    }
}

pub fn render(options: &Options, report: &Report) -> String {
    let rows = &report.rows;
    let mut text = String::from(
        "Written by `cargo xtask bench --write`; figures of one run on one machine.\n\n\
         | request | answers/s, median (min–max) | p50 | p99 | primitive alone/s | of primitive | of bare handler | server CPU per request | server's core | client's core |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let bare = rows.last().map(rates).unwrap_or_default();
    for row in rows {
        line(&mut text, row, &bare);
    }
    let seconds = options.seconds.as_secs_f64();
    let _ = write!(
        text,
        "\n{} rounds, interleaved, {seconds} s for each row and round; latencies are of all rounds together. \
         At most {} keep-alive connections (32 for RSA and where keys are made, 4 where those are RSA keys, 1 where roles are written), HTTP/1.1, TLS 1.3, each with one request under way. \
         Server, bare handler and primitive take turns on core {}, the client has core {} to itself; a row whose \
         client used more than {:.0} % of that core is invalid, for it measures the client. A server that had much \
         less than its whole core was held up: by the disk, by the client, or by something else on the machine.\n\n\
         - CPU: {}{}; kernel {}, {} autogroup\n- data directory on {}; every answer waits until its audit event is synced, or, where the row says so, until the operating system has it\n\
         - bare handler: hyper and rustls as in the server, request read, fixed answer of 300 bytes\n\
         - primitive: aws-lc-rs, key parsed, one thread\n",
        options.rounds,
        options.connections,
        machine::SERVER_CORE,
        machine::LOAD_CORE,
        MAX_CLIENT_SHARE * 100.0,
        machine::cpu_model(),
        if machine::has_ifma() { "" } else { ", without AVX-512 IFMA, which about doubles RSA" },
        machine::kernel(),
        if machine::has_autogroup() { "with" } else { "without" },
        machine::file_system(&options.data),
    );
    if !report.mixed.is_empty() {
        mixed(&mut text, &report.mixed);
    }
    if !report.scales.is_empty() {
        scales(&mut text, &report.scales);
    }
    if !report.backups.is_empty() {
        backups(&mut text, &report.backups);
    }
    text
}

fn mixed(text: &mut String, mixed: &[Mixed]) {
    text.push_str(
        "\n## Side by side\n\nOn the server's core together, and each alone with as many connections (4, and one for creation).\n\n\
         | request | alone/s | together/s | of alone | p50 together | p99 together |\n|---|---|---|---|---|---|\n",
    );
    for Mixed { name, alone, together } in mixed {
        let share = ratio(&[together.rate], &[alone.rate]);
        let (alone, rate) = (one_decimal(alone.rate), one_decimal(together.rate));
        let (p50, p99) = (time(together.percentile(50)), time(together.percentile(99)));
        let _ = writeln!(text, "| {name} | {alone} | {rate} | {share} | {p50} | {p99} |");
    }
}

fn scales(text: &mut String, scales: &[Scale]) {
    text.push_str(
        "\n## Few keys and many\n\nEC keys. Ready: from the start of the process to its first answer over TLS. Memory: resident, \
         after each of up to 5,000 of the keys was read.\n\n\
         | keys | ready after | memory | get key/s | p50 | p99 |\n|---|---|---|---|---|---|\n",
    );
    for scale in scales {
        let memory = format!("{} MiB", scale.resident_bytes >> 20);
        let (keys, rate) = (count(scale.keys as f64), count(scale.rate));
        let (ready, p50, p99) = (time(scale.ready), time(scale.p50), time(scale.p99));
        let _ = writeln!(text, "| {keys} | {ready} | {memory} | {rate} | {p50} | {p99} |");
    }
}

fn backups(text: &mut String, backups: &[Backup]) {
    text.push_str(
        "\n## Backup and restore\n\nTo a folder of the same machine and back, half of the keys EC and half AES. Memory: resident before, the \
         most that was seen meanwhile in looks a few milliseconds apart, and after.\n\n\
         | what | keys | versions | time | size | memory before | at most | after |\n|---|---|---|---|---|---|---|---|\n",
    );
    let mebibytes = |bytes: u64| format!("{} MiB", one_decimal(bytes as f64 / f64::from(1 << 20)));
    for row in backups {
        let (keys, versions) = (count(row.keys as f64), count(row.versions as f64));
        let _ = writeln!(
            text,
            "| {} | {keys} | {versions} | {} | {} | {} | {} | {} |",
            row.what,
            time(row.took),
            mebibytes(row.bytes),
            mebibytes(row.before),
            mebibytes(row.peak),
            mebibytes(row.after)
        );
    }
}

fn one_decimal(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { count(rate) }
}

/// Seconds of the server's CPU time for one request.
fn cpu(row: &Row) -> f64 {
    median(&row.rounds.iter().map(|round| round.load.server_cpu.as_secs_f64()).collect::<Vec<_>>())
}

fn line(text: &mut String, row: &Row, bare: &[f64]) {
    let own = rates(row);
    let raw: Vec<f64> = row.rounds.iter().filter_map(|round| round.raw).collect();
    let share = median(&row.rounds.iter().map(|round| round.load.client_share).collect::<Vec<_>>());
    let cpu = cpu(row);
    let mut latencies: Vec<u32> =
        row.rounds.iter().flat_map(|round| round.load.latencies.iter().copied()).collect();
    latencies.sort_unstable();
    let invalid = if share > MAX_CLIENT_SHARE { ", **invalid**" } else { "" };
    let _ = writeln!(
        text,
        "| {} | {} ({}–{}){invalid} | {} | {} | {} | {} | {} | {:.1} µs | {:.0} % | {:.0} % |",
        row.target.name,
        one_decimal(median(&own)),
        count(own.iter().copied().fold(f64::INFINITY, f64::min)),
        count(own.iter().copied().fold(0.0, f64::max)),
        time(percentile(&latencies, 50)),
        time(percentile(&latencies, 99)),
        if raw.is_empty() { "–".to_owned() } else { count(median(&raw)) },
        ratio(&own, &raw),
        ratio(&own, bare),
        cpu * 1e6,
        cpu * median(&own) * 100.0,
        share * 100.0,
    );
}

fn rates(row: &Row) -> Vec<f64> {
    row.rounds.iter().map(|round| round.load.rate).collect()
}

/// Median of the ratios round by round, so that a change of the machine's speed strikes both sides.
fn ratio(own: &[f64], other: &[f64]) -> String {
    if own.len() != other.len() || own.is_empty() {
        return "–".to_owned();
    }
    let ratios: Vec<f64> = own.iter().zip(other).map(|(own, other)| own / other).collect();
    let percent = median(&ratios) * 100.0;
    if !percent.is_finite() {
        return "–".to_owned();
    }
    if percent < 10.0 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        length if length % 2 == 1 => values[length / 2],
        length => f64::midpoint(values[length / 2 - 1], values[length / 2]),
    }
}

fn time(duration: Duration) -> String {
    let microseconds = duration.as_micros();
    if microseconds < 10_000 {
        format!("{microseconds} µs")
    } else {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    }
}

/// `12,345`
fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_percentiles_and_numbers() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let values: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&values, 50).as_micros(), 50);
        assert_eq!(percentile(&values, 99).as_micros(), 99);
        assert_eq!(percentile(&[], 99).as_micros(), 0);
        assert_eq!(
            (count(1_234_567.0), count(12.4), count(100_000.0)),
            ("1,234,567".into(), "12".into(), "100,000".into())
        );
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        assert_eq!(ratio(&[50.0, 10.0, 90.0], &[100.0, 20.0, 180.0]), "50 %");
        assert_eq!(ratio(&[1.0], &[]), "–");
        assert_eq!(ratio(&[0.0], &[0.0]), "–");
    }
}
