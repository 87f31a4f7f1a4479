//! The table. Every figure says what it is of; a row whose client was the bottleneck says that instead.

use std::fmt::Write as _;
use std::time::Duration;

use crate::load::{Load, Target};
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

/// Renders `rows`, whose last is the bare handler.
pub fn render(options: &Options, rows: &[Row]) -> String {
    let mut text = String::from(
        "# Performance\n\nWritten by `cargo xtask bench --write`; figures of one run on one machine.\n\n\
         | request | answers/s, median (min–max) | p50 | p99 | primitive alone/s | of primitive | of bare handler | server CPU per request | server's core | client's core |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let bare = rows.last().map(rates).unwrap_or_default();
    for row in rows {
        line(&mut text, row, &bare);
    }
    let seconds = options.seconds.as_secs();
    let _ = write!(
        text,
        "\n{} rounds, interleaved, {seconds} s for each row and round; latencies are of all rounds together. \
         {} keep-alive connections, HTTP/1.1, TLS 1.3, each with one request under way. \
         Server, bare handler and primitive take turns on core {}, the client has core {} to itself; a row whose \
         client used more than {:.0} % of that core is invalid, for it measures the client. A server that had much \
         less than its whole core was held up: by the disk, by the client, or by something else on the machine.\n\n\
         - CPU: {}{}; kernel {}\n- data directory on {}; every answer waits until its audit event is synced\n\
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
        machine::file_system(&options.data),
    );
    text
}

fn line(text: &mut String, row: &Row, bare: &[f64]) {
    let own = rates(row);
    let raw: Vec<f64> = row.rounds.iter().filter_map(|round| round.raw).collect();
    let share = median(&row.rounds.iter().map(|round| round.load.client_share).collect::<Vec<_>>());
    let cpu = median(&row.rounds.iter().map(|round| round.load.server_cpu.as_secs_f64()).collect::<Vec<_>>());
    let mut latencies: Vec<u32> =
        row.rounds.iter().flat_map(|round| round.load.latencies.iter().copied()).collect();
    latencies.sort_unstable();
    let invalid = if share > MAX_CLIENT_SHARE { ", **invalid**" } else { "" };
    let _ = writeln!(
        text,
        "| {} | {} ({}–{}){invalid} | {} | {} | {} | {} | {} | {:.1} µs | {:.0} % | {:.0} % |",
        row.target.name,
        count(median(&own)),
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

/// The smallest value that `percent` of `sorted` do not exceed.
fn percentile(sorted: &[u32], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    Duration::from_micros(sorted.get(rank).copied().unwrap_or(0).into())
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
    }
}
