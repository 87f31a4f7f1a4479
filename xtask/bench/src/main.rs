//! How much of the machine's cryptography reaches a client.
//!
//! One run measures, interleaved on the same core: the primitive alone, the built server over TLS with its
//! audit log, and a bare TLS handler that answers a fixed text. The load comes from the other core. Nothing
//! of ours is linked: the server is the binary that is shipped.

mod bare;
mod client;
mod load;
mod machine;
mod raw;
mod report;
mod server;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What ended a run, in words for the person who started it.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What to run, and how long.
pub struct Options {
    pub server: PathBuf,
    /// Where the pool under test lives for the length of the run.
    pub data: PathBuf,
    /// Writes the report to this file as well.
    pub write: Option<PathBuf>,
    pub seconds: Duration,
    pub rounds: usize,
    pub connections: usize,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((command, rest)) if command == "run" => parse(rest).and_then(|options| run(&options)),
        Some((command, rest)) if command == "bare" => bare::run(rest),
        _ => Err(Failure::new(
            "usage: bench run --server FILE --data DIR [--write FILE] [--seconds N] [--rounds N] [--connections N]",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bench: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn parse(words: &[String]) -> Result<Options, Failure> {
    let mut options = Options {
        server: PathBuf::new(),
        data: PathBuf::new(),
        write: None,
        seconds: Duration::from_secs(2),
        rounds: 5,
        connections: 32,
    };
    let mut words = words.iter();
    while let Some(name) = words.next() {
        let value = words.next().ok_or_else(|| Failure::new(format!("{name} needs a value")))?;
        let number = || {
            let parsed = value.parse::<usize>().ok().filter(|number| (1..=10_000).contains(number));
            parsed.ok_or_else(|| Failure::new(format!("{name} takes a number from 1 to 10000, not {value}")))
        };
        match name.as_str() {
            "--server" => options.server = value.into(),
            "--data" => options.data = value.into(),
            "--write" => options.write = Some(value.into()),
            "--seconds" => options.seconds = Duration::from_secs(number()? as u64),
            "--rounds" => options.rounds = number()?,
            "--connections" => options.connections = number()?,
            unknown => return Err(Failure::new(format!("unexpected argument: {unknown}"))),
        }
    }
    if options.server.as_os_str().is_empty() || options.data.as_os_str().is_empty() {
        return Err(Failure::new("--server and --data are needed"));
    }
    Ok(options)
}

fn run(options: &Options) -> Result<(), Failure> {
    machine::pin_to(machine::LOAD_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(options))?;
    print!("{report}");
    if let Some(file) = &options.write {
        std::fs::write(file, report)?;
    }
    Ok(())
}

async fn measure(options: &Options) -> Result<String, Failure> {
    let pool = server::Pool::start(&options.server, &options.data)?;
    let bare = server::Bare::start(&options.data)?;
    let targets = pool.prepare().await?;
    let mut rows: Vec<report::Row> = Vec::new();
    for target in targets.into_iter().chain([bare.target()?]) {
        rows.push(report::Row { target, rounds: Vec::new() });
    }
    for round in 1..=options.rounds {
        for row in &mut rows {
            eprintln!("bench: round {round} of {}: {}", options.rounds, row.target.name);
            // The server is idle meanwhile, and both have the core to themselves.
            let raw = match row.target.primitive {
                Some(primitive) => Some(raw::rate(primitive, options.seconds / 2)?),
                None => None,
            };
            let load = load::run(&row.target, options.connections, options.seconds).await?;
            row.rounds.push(report::Round { raw, load });
        }
    }
    Ok(report::render(options, &rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_read_and_nonsense_is_refused() {
        let options = parse(&words("--server s --data d --seconds 3 --rounds 7 --connections 64")).unwrap();
        assert_eq!((options.seconds.as_secs(), options.rounds, options.connections), (3, 7, 64));
        for bad in [
            "--server s",
            "--data d",
            "--server s --data d --rounds 0",
            "--server s --data d --odd 1",
            "--server",
        ] {
            assert!(parse(&words(bad)).is_err(), "{bad}");
        }
    }
}
