//! How much of the machine's cryptography reaches a client.
//!
//! One run measures, interleaved on the same core: the primitive alone, the built server over TLS with its
//! audit log, and a bare TLS handler that answers a fixed text. The load comes from the other core. Nothing
//! of ours is linked: the server is the binary that is shipped.

mod backup;
mod bare;
mod client;
mod load;
mod machine;
mod mixed;
mod plot;
mod raw;
mod report;
mod scale;
mod server;
mod soak;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Between these the page's figures stand.
const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- end of figures -->";

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
    /// Of the soak.
    pub minutes: u64,
    /// A look at everything that is too short to mean anything.
    pub quick: bool,
    /// Only rows whose name contains this; `mixed load`, `growing pool` and `backup and restore` are names too.
    pub only: String,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.split_first() {
        Some((command, rest)) if command == "run" => parse(rest).and_then(|options| run(&options)),
        Some((command, rest)) if command == "soak" => parse(rest).and_then(|options| soak::run(&options)),
        Some((command, rest)) if command == "bare" => bare::run(rest),
        _ => Err(Failure::new(
            "usage: bench run --server FILE --data DIR [--write FILE] [--seconds N] [--rounds N] [--connections N] [--only TEXT] [--quick]\n\
             or bench soak --server FILE --data DIR [--minutes N]",
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
        connections: 128,
        only: String::new(),
        minutes: 60,
        quick: false,
    };
    let mut words = words.iter();
    while let Some(name) = words.next() {
        if name == "--quick" {
            options.quick = true;
            (options.seconds, options.rounds) = (Duration::from_millis(200), 1);
            continue;
        }
        let value = words.next().ok_or_else(|| Failure::new(format!("{name} needs a value")))?;
        let number = || {
            let parsed = value.parse::<usize>().ok().filter(|number| (1..=10_000).contains(number));
            parsed.ok_or_else(|| Failure::new(format!("{name} takes a number from 1 to 10000, not {value}")))
        };
        match name.as_str() {
            "--server" => options.server = value.into(),
            "--data" => options.data = value.into(),
            "--write" => options.write = Some(value.into()),
            "--only" => options.only.clone_from(value),
            "--seconds" => options.seconds = Duration::from_secs(number()? as u64),
            "--rounds" => options.rounds = number()?,
            "--minutes" => options.minutes = number()? as u64,
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
    let text = report::render(options, &report);
    print!("{text}");
    if let Some(file) = &options.write {
        let page = std::fs::read_to_string(file)?;
        std::fs::write(file, with_figures(&page, &text)?)?;
        std::fs::write(file.with_extension("svg"), plot::render(&report.bars()))?;
    }
    Ok(())
}

/// `page` with `figures` between its two marks. What stands around them is written by people.
fn with_figures(page: &str, figures: &str) -> Result<String, Failure> {
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, behind) =
        parts.ok_or_else(|| Failure::new(format!("the page lacks the marks {BEGIN} and {END}")))?;
    Ok(format!("{before}{BEGIN}\n\n{figures}\n{END}{behind}"))
}

async fn measure(options: &Options) -> Result<report::Report, Failure> {
    let pool = server::Pool::start(&options.server, &options.data.join("rows"), server::SYNCED).await?;
    let written =
        server::Pool::start(&options.server, &options.data.join("written"), server::WRITTEN).await?;
    let bare = server::Bare::start(&options.data)?;
    let access = pool.access().await?;
    let mut rows: Vec<report::Row> = Vec::new();
    let prepared =
        access.prepare().await?.into_iter().chain(written.access().await?.prepare_written().await?);
    let wanted = prepared.filter(|target| options.wants(target.name));
    for target in wanted.chain([bare.target()?]) {
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
    let (mut mixed, mut scales, mut backups) = (Vec::new(), Vec::new(), Vec::new());
    if options.wants("mixed load") {
        mixed = mixed::measure(options, &access).await?;
    }
    drop((pool, written));
    if options.wants("growing pool") {
        let sizes: &[usize] = if options.quick { &[10, 100] } else { &[100, 10_000, 99_999] };
        scales = scale::measure(options, sizes).await?;
    }
    if options.wants(backup::NAME) {
        let sizes: &[usize] = if options.quick { &[10, 20] } else { &[500, 5_000] };
        backups = backup::measure(options, sizes).await?;
    }
    Ok(report::Report { rows, scales, mixed, backups })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn figures_replace_figures_and_nothing_else() {
        let page = format!("# Page\n{BEGIN}\nold\n{END}\nWhy\n");
        let written = with_figures(&page, "new\n").unwrap();
        assert_eq!(written, format!("# Page\n{BEGIN}\n\nnew\n\n{END}\nWhy\n"));
        assert_eq!(with_figures(&written, "new\n").unwrap(), written);
        assert!(with_figures("# Page\n", "new").is_err());
    }

    #[test]
    fn options_are_read_and_nonsense_is_refused() {
        let options =
            parse(&words("--server s --data d --quick --seconds 3 --rounds 7 --connections 64")).unwrap();
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
