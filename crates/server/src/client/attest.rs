//! `holdfast attest`: gets a pool's statement about a key over the wire API, and verifies one offline.

use super::login::{Client, Target};
use super::moment;
use super::output::{self, Format, Table};
use super::verdict::{Document, Expectations, Trust, Verdict, verify};
use super::{Arguments, run as run_client, usage};
use crate::CommandError;
use crate::layout::{self, Layout};
use crate::output::{line, verdict};
use ceremony::DomainFile;
use clap::Subcommand;
use crypto::certificate::OwnerPublicKey;
use domain::guid::Guid;
use domain::key::{KeyOperation, KeyOperations, Origin};
use domain::name::{KeyName, KeyVersion};
use domain::pool::PoolClass;
use domain::time::IntDate;
use http::Method;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::{Duration, OffsetDateTime};

/// An answer of a pool is some 6 KiB.
const MAX_FILE_BYTES: u64 = 256 * 1024;

#[derive(Subcommand)]
pub enum Command {
    /// Ask the pool for its statement about a key, and keep the answer as it came.
    Get {
        name: KeyName,
        /// The current one otherwise.
        #[arg(long)]
        version: Option<KeyVersion>,
        /// Where to; `-` or none: standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Verify a statement, offline: a verdict for each claim. Exit code 1 where one fails. Without --owner-key,
    /// --owner-fingerprint or --domain-file the copy of the owner key in the quickstart's directory is believed.
    Verify(Box<Verify>),
}

#[derive(clap::Args)]
pub struct Verify {
    /// What `attest get`, or `az keyvault key get-attestation -f`, wrote.
    file: PathBuf,
    #[command(flatten)]
    trust: TrustArguments,
    /// The pool must have this genesis record: SHA-256, 64 digits of hex.
    #[arg(long, value_name = "SHA256", value_parser = parse_digest)]
    genesis: Option<[u8; 32]>,
    #[arg(long, value_name = "GUID")]
    pool: Option<Guid>,
    /// production or test.
    #[arg(long, value_parser = parse_class)]
    class: Option<PoolClass>,
    /// The statement must be about this key.
    #[arg(long, value_name = "NAME")]
    key: Option<KeyName>,
    #[arg(long, value_name = "VERSION")]
    key_version: Option<KeyVersion>,
    /// A public key in PEM that must be the key's.
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// What the key may do, no more and no less; comma-separated.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',', value_parser = parse_operation)]
    ops: Option<Vec<KeyOperation>>,
    /// generated (in the pool), imported or wrapped (BYOK).
    #[arg(long, value_parser = parse_origin)]
    origin: Option<Origin>,
    /// The key must not be exportable.
    #[arg(long)]
    not_exportable: bool,
    /// A release policy, as it was given to the pool, that must be the key's.
    #[arg(long, value_name = "FILE")]
    release_policy: Option<PathBuf>,
    /// How old the statement may be: 12h, 90d, 2w.
    #[arg(long, value_name = "TIME", value_parser = parse_length)]
    max_age: Option<Duration>,
}

/// Whose statements are believed.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct TrustArguments {
    /// The owner's public key, from a source you trust.
    #[arg(long, value_name = "PEM")]
    owner_key: Option<PathBuf>,
    /// Its fingerprint: 64 digits of hex.
    #[arg(long, value_name = "SHA256", value_parser = parse_digest)]
    owner_fingerprint: Option<[u8; 32]>,
    /// The security domain file, of which the pool, its genesis record and its owner are taken.
    #[arg(long, value_name = "FILE")]
    domain_file: Option<PathBuf>,
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    match arguments.command {
        Command::Get { name, version, out } => run_client(async move {
            let mut client = Client::new(Target::find(&arguments.login, "app")?);
            let version = version.map(|version| version.to_string()).unwrap_or_default();
            let path = format!("/keys/{name}/{version}/attestation");
            let answer = client.call(Method::GET, &path, None).await?;
            let mut body = answer.body.to_vec();
            body.push(b'\n');
            output::write_bytes(out.as_deref(), &body)?;
            Ok(ExitCode::SUCCESS)
        }),
        Command::Verify(arguments_of) => {
            let data = arguments.login.data.unwrap_or_else(layout::default_directory);
            arguments_of.run(&Layout::new(data), format)
        }
    }
}

impl Verify {
    fn run(self, layout: &Layout, format: Format) -> Result<ExitCode, CommandError> {
        let document = Document::parse(&read(&self.file)?)?;
        let (trust, expected, note) = self.resolve(layout)?;
        let verdicts = verify(&document, &trust, &expected, now());
        let failed = verdicts.iter().any(Verdict::is_failure);
        let printed = match format {
            Format::Json => print_json(&verdicts, failed),
            Format::Table => print_table(&verdicts, note, failed),
        };
        verdict(printed, if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Reads what the arguments name.
    fn resolve(self, layout: &Layout) -> Result<(Trust, Expectations, Option<&'static str>), CommandError> {
        let mut expected = Expectations {
            pool: self.pool,
            class: self.class,
            genesis_hash: self.genesis,
            name: self.key,
            version: self.key_version,
            operations: self.ops.map(|operations| operations.into_iter().collect::<KeyOperations>()),
            origin: self.origin,
            not_exportable: self.not_exportable,
            max_age_seconds: self.max_age.map(Duration::whole_seconds),
            public_key: self.public_key.as_deref().map(read_text).transpose()?,
            release_policy: self.release_policy.as_deref().map(read).transpose()?,
            security_domain: None,
        };
        if let Some(trust) = self.trust.resolve(&mut expected)? {
            return Ok((trust, expected, None));
        }
        let note = "the owner key is the copy in the pool's directory: compare its fingerprint with the one you wrote down";
        Ok((Trust::Owner(read_owner(&layout.owner_key())?), expected, Some(note)))
    }
}

impl TrustArguments {
    /// Whom they name, if anybody. What the same source tells of the pool is expected, too.
    pub fn resolve(self, expected: &mut Expectations) -> Result<Option<Trust>, CommandError> {
        let Self { owner_key, owner_fingerprint, domain_file } = self;
        if let Some(path) = domain_file {
            let file = DomainFile::parse(&read_text(&path)?)
                .map_err(|error| format!("{} is no security domain file: {error}", path.display()))?;
            let held = file.description();
            expected.pool = Some(agreed("--pool", expected.pool, held.pool)?);
            expected.class = Some(agreed("--class", expected.class, held.class)?);
            expected.genesis_hash = Some(agreed("--genesis", expected.genesis_hash, held.genesis_hash)?);
            expected.security_domain = Some(held.security_domain);
            return Ok(Some(Trust::Fingerprint(held.owner_fingerprint)));
        }
        match (owner_fingerprint, owner_key) {
            (Some(fingerprint), _) => Ok(Some(Trust::Fingerprint(fingerprint))),
            (None, Some(path)) => Ok(Some(Trust::Owner(read_owner(&path)?))),
            (None, None) => Ok(None),
        }
    }
}

fn read_owner(path: &Path) -> Result<OwnerPublicKey, CommandError> {
    let owner = OwnerPublicKey::from_pem(&read_text(path)?);
    owner.map_err(|_| format!("{} is not an owner's public key", path.display()).into())
}

fn agreed<T: PartialEq>(option: &str, given: Option<T>, held: T) -> Result<T, CommandError> {
    if given.is_some_and(|given| given != held) {
        return Err(usage(format!("{option} says something else than the security domain file")));
    }
    Ok(held)
}

fn print_table(verdicts: &[Verdict], note: Option<&str>, failed: bool) -> Result<(), CommandError> {
    let mut table = Table::new(&["CLAIM", "VERDICT", "VALUE"]);
    for verdict in verdicts {
        let reason = verdict.reason().map(|reason| format!(" ({reason})")).unwrap_or_default();
        let word = verdict.outcome.as_str().to_owned();
        table.row([verdict.claim.to_owned(), word, format!("{}{reason}", verdict.value)]);
    }
    table.print()?;
    if let Some(note) = note {
        line(format_args!("{note}"))?;
    }
    Ok(line(format_args!("{}", if failed { "NOT VERIFIED" } else { "verified" }))?)
}

fn print_json(verdicts: &[Verdict], failed: bool) -> Result<(), CommandError> {
    let claim = |verdict: &Verdict| -> Value {
        let mut claim = json!({
            "claim": verdict.claim, "verdict": verdict.outcome.as_str(), "value": verdict.value,
        });
        if let Some(reason) = verdict.reason() {
            claim["reason"] = reason.into();
        }
        claim
    };
    let claims: Vec<Value> = verdicts.iter().map(claim).collect();
    line(format_args!("{}", json!({ "verified": !failed, "claims": claims })))?;
    Ok(())
}

pub fn now() -> IntDate {
    IntDate::from_unix_seconds(OffsetDateTime::now_utc().unix_timestamp())
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    super::input::read_file(path, MAX_FILE_BYTES)
}

fn read_text(path: &Path) -> Result<String, CommandError> {
    String::from_utf8(read(path)?).map_err(|_| format!("{} is not text", path.display()).into())
}

fn parse_digest(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|character| *character != ':').collect();
    let mut digest = [0; 32];
    hex::decode_to_slice(&digits, &mut digest).map_err(|_| "expected 64 digits of hex".to_owned())?;
    Ok(digest)
}

fn parse_class(text: &str) -> Result<PoolClass, String> {
    [PoolClass::Production, PoolClass::Test]
        .into_iter()
        .find(|class| class.as_str() == text)
        .ok_or_else(|| "expected production or test".to_owned())
}

fn parse_origin(text: &str) -> Result<Origin, String> {
    Origin::ALL
        .into_iter()
        .find(|origin| *origin != Origin::Unknown && origin.as_str() == text)
        .ok_or_else(|| "expected generated, imported or wrapped".to_owned())
}

fn parse_operation(text: &str) -> Result<KeyOperation, String> {
    KeyOperation::parse(text).ok_or_else(|| format!("`{text}` is no key operation"))
}

fn parse_length(text: &str) -> Result<Duration, String> {
    moment::parse_length(text).ok_or_else(|| "expected a time such as 12h, 90d or 2w".to_owned())
}
