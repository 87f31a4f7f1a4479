//! `holdfast key`: makes, shows, uses and removes keys, over the wire API alone.

use super::connection::Answer;
use super::document::{Document, parse_kid};
use super::import::Import;
use super::login::{Client, Target};
use super::moment::{self, Moment};
use super::output::{self, Format, Table};
use super::release::{PolicyArguments, Release, described, held_policy};
use super::{Arguments, input, list, public_key, run as run_client, usage};
use crate::CommandError;
use crate::output::{line, verdict};
use bytes::Bytes;
use clap::Subcommand;
use domain::algorithm::{Curve, EncryptionAlgorithm, KeySpec, OctSize, RsaSize, SignatureAlgorithm};
use domain::key::KeyOperation;
use domain::name::{KeyName, KeyVersion};
use domain::time::IntDate;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::OffsetDateTime;
use zeroize::Zeroizing;

#[derive(Subcommand)]
pub enum Command {
    /// Make a key, or a new version of one.
    Create(Create),
    /// Hand in a key of yours, or a new version of one: in the clear, or wrapped by `holdfast byok pack` or an HSM.
    Import(Import),
    /// List the keys.
    List {
        /// Those that were deleted and not purged yet, instead.
        #[arg(long)]
        deleted: bool,
    },
    /// List the versions of a key.
    Versions { name: KeyName },
    /// Show a key's attributes and public part.
    Show(Show),
    /// Change what a version may do, and when.
    Update(Update),
    /// Sign a file or a digest.
    Sign(Sign),
    /// Check a signature. Exit code 1 where it does not verify.
    Verify(Verify),
    /// Encrypt up to 64 KiB, or what fits a block of RSA. Writes a document with all that `decrypt` needs.
    Encrypt(Encrypt),
    /// Decrypt what `encrypt` wrote, or a bare ciphertext.
    Decrypt(Decrypt),
    /// Wrap a key of yours. Writes a document with all that `unwrap` needs.
    Wrap(Encrypt),
    /// Unwrap what `wrap` wrote, or a bare wrapped key.
    Unwrap(Decrypt),
    /// Give an exportable key, wrapped, to an environment that proves to be what the key's release policy asks for.
    Release(Release),
    /// Delete a key with all its versions. It can be recovered until it is purged.
    Delete { name: KeyName },
    /// Bring back a deleted key.
    Recover { name: KeyName },
    /// Destroy a deleted key. Nothing brings it back.
    Purge {
        name: KeyName,
        /// Do not ask. Needed where there is no terminal to ask at.
        #[arg(long)]
        yes: bool,
    },
    /// Write a key with all its versions to a file, sealed for pools of this security domain alone.
    Backup {
        name: KeyName,
        /// Where to; `-`: standard output.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Make a key anew from what `backup` wrote, under the name that it had.
    Restore {
        /// `-`: standard input.
        file: PathBuf,
    },
    /// Random bytes from the pool.
    Random {
        /// How many.
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
        /// Write the bytes themselves to a file (`-`: standard output) instead of base64url.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
pub struct Create {
    name: KeyName,
    /// RSA-HSM, EC-HSM or oct-HSM.
    #[arg(long = "type", value_name = "TYPE", value_parser = KeyType::parse)]
    key_type: KeyType,
    /// Bits: RSA-HSM 2048 (the default), 3072, 4096; oct-HSM 128, 192, 256 (the default).
    #[arg(long, value_name = "BITS")]
    size: Option<u32>,
    /// EC-HSM: P-256 (the default), P-256K, P-384, P-521.
    #[arg(long, value_parser = parse_curve)]
    curve: Option<Curve>,
    #[command(flatten)]
    changes: Changes,
    /// May be given to whoever meets the release policy. Goes with --policy, and never changes.
    #[arg(long)]
    exportable: bool,
    #[command(flatten)]
    policy: PolicyArguments,
    /// Not to be used until it is enabled.
    #[arg(long)]
    disabled: bool,
}

/// What `create`, `import` and `update` have in common.
#[derive(clap::Args)]
pub struct Changes {
    /// What the key may do, comma-separated: encrypt, decrypt, sign, verify, wrapKey, unwrapKey, import.
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',', value_parser = parse_operation)]
    ops: Option<Vec<KeyOperation>>,
    /// No use from then on, but to decrypt, unwrap and verify: 2027-01-31, 2027-01-31T12:00:00Z, +90d.
    #[arg(long, value_name = "DATE")]
    expires: Option<Moment>,
    /// No use before, but to decrypt, unwrap and verify.
    #[arg(long, value_name = "DATE")]
    not_before: Option<Moment>,
    /// A label, legible to whoever may read or list the key. Once for each.
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
}

#[derive(clap::Args)]
pub struct Show {
    name: KeyName,
    /// The current one otherwise.
    #[arg(long, conflicts_with = "deleted")]
    version: Option<KeyVersion>,
    /// A key that was deleted.
    #[arg(long)]
    deleted: bool,
    /// The public key in PEM, and nothing else.
    #[arg(long)]
    pem: bool,
    /// The release policy as it was given, and nothing else.
    #[arg(long, conflicts_with = "pem")]
    policy: bool,
}

#[derive(clap::Args)]
pub struct Update {
    name: KeyName,
    /// The current one otherwise.
    #[arg(long)]
    version: Option<KeyVersion>,
    #[command(flatten)]
    changes: Changes,
    #[command(flatten)]
    policy: PolicyArguments,
    /// May be used again.
    #[arg(long, conflicts_with = "disabled")]
    enabled: bool,
    /// May not be used, for anything.
    #[arg(long)]
    disabled: bool,
    /// Take all tags away. With --tag: all but those given.
    #[arg(long)]
    no_tags: bool,
}

#[derive(clap::Args)]
pub struct Sign {
    name: KeyName,
    #[arg(long)]
    version: Option<KeyVersion>,
    /// RS256 and so on, PS256 and so on, ES256, ES256K, ES384, ES512, HS256 and so on, RSNULL.
    #[arg(long, value_parser = parse_signature_algorithm)]
    alg: SignatureAlgorithm,
    #[command(flatten)]
    message: input::Message,
    /// Write the signature itself to a file (`-`: standard output) instead of base64url.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Verify {
    name: KeyName,
    #[arg(long)]
    version: Option<KeyVersion>,
    #[arg(long, value_parser = parse_signature_algorithm)]
    alg: SignatureAlgorithm,
    #[command(flatten)]
    message: input::Message,
    #[command(flatten)]
    signature: Signature,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Signature {
    #[arg(long, value_name = "BASE64URL", value_parser = input::parse_base64url, allow_hyphen_values = true)]
    signature: Option<input::Bytes>,
    /// The signature itself, as `sign --out` writes it.
    #[arg(long, value_name = "FILE")]
    signature_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct Encrypt {
    name: KeyName,
    #[arg(long)]
    version: Option<KeyVersion>,
    /// RSA-OAEP-256, A256GCM, A256CBCPAD and their kind; to wrap RSA-OAEP-256, A256KW and their kind.
    #[arg(long, value_parser = parse_encryption_algorithm)]
    alg: EncryptionAlgorithm,
    /// What to encrypt; `-` or none: standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Additional authenticated data of GCM. The document holds it in clear.
    #[arg(long, value_name = "BASE64URL", value_parser = input::parse_base64url, allow_hyphen_values = true)]
    aad: Option<input::Bytes>,
    /// Write there instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the bare ciphertext. Not for GCM and CBC, which need their iv to decrypt.
    #[arg(long)]
    raw: bool,
}

#[derive(clap::Args)]
pub struct Decrypt {
    name: KeyName,
    /// What to decrypt; `-` or none: standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The input is a bare ciphertext of this algorithm, not a document.
    #[arg(long, value_parser = parse_encryption_algorithm)]
    alg: Option<EncryptionAlgorithm>,
    /// Of a bare ciphertext; the current one otherwise.
    #[arg(long, requires = "alg")]
    version: Option<KeyVersion>,
    #[arg(long, value_name = "BASE64URL", requires = "alg")]
    #[arg(value_parser = input::parse_base64url, allow_hyphen_values = true)]
    iv: Option<input::Bytes>,
    #[arg(long, value_name = "BASE64URL", requires = "alg")]
    #[arg(value_parser = input::parse_base64url, allow_hyphen_values = true)]
    tag: Option<input::Bytes>,
    #[arg(long, value_name = "BASE64URL", requires = "alg")]
    #[arg(value_parser = input::parse_base64url, allow_hyphen_values = true)]
    aad: Option<input::Bytes>,
    /// Write there instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(arguments: Arguments<Command>) -> Result<ExitCode, CommandError> {
    let format = arguments.output.format();
    // What a command makes is printed bare, unless JSON was asked for by name.
    let json = arguments.output.wants_json();
    run_client(async move {
        let mut client = Client::new(Target::find(&arguments.login, "app")?);
        let client = &mut client;
        match arguments.command {
            Command::Create(create) => {
                let body = create.body(OffsetDateTime::now_utc())?;
                let path = format!("/keys/{}/create", create.name);
                show(&client.call(Method::POST, &path, Some(body)).await?, format)
            }
            Command::Import(import) => {
                let path = format!("/keys/{}", import.name());
                let body = import.body(OffsetDateTime::now_utc())?;
                show(&client.call(Method::PUT, &path, Some(body)).await?, format)
            }
            Command::List { deleted: false } => print_keys(&list::all(client, "/keys").await?, format),
            Command::List { deleted: true } => {
                print_deleted(&list::all(client, "/deletedkeys").await?, format)
            }
            Command::Versions { name } => {
                print_versions(&list::all(client, &format!("/keys/{name}/versions")).await?, format)
            }
            Command::Show(arguments) => arguments.run(client, format).await,
            Command::Update(update) => {
                let body = update.body(OffsetDateTime::now_utc())?;
                let path = key_path(&update.name, update.version);
                show(&client.call(Method::PATCH, &path, Some(body)).await?, format)
            }
            Command::Sign(sign) => sign.run(client, json).await,
            Command::Verify(verify) => verify.run(client, json).await,
            Command::Encrypt(encrypt) => encrypt.run(client, "encrypt", json).await,
            Command::Decrypt(decrypt) => decrypt.run(client, "decrypt", json).await,
            Command::Wrap(wrap) => wrap.run(client, "wrapkey", json).await,
            Command::Unwrap(unwrap) => unwrap.run(client, "unwrapkey", json).await,
            Command::Release(release) => release.run(client, json).await,
            Command::Delete { name } => {
                show(&client.call(Method::DELETE, &format!("/keys/{name}"), None).await?, format)
            }
            Command::Recover { name } => {
                let path = format!("/deletedkeys/{name}/recover");
                show(&client.call(Method::POST, &path, None).await?, format)
            }
            Command::Purge { name, yes } => {
                if !yes {
                    confirm(&name)?;
                }
                client.call(Method::DELETE, &format!("/deletedkeys/{name}"), None).await?;
                if format == Format::Table {
                    line(format_args!("purged {name}"))?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Command::Backup { name, out } => {
                let answer = client.call(Method::POST, &format!("/keys/{name}/backup"), None).await?;
                output::write_bytes(Some(&out), &value(&answer)?)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Restore { file } => {
                let body = json!({ "value": input::encode(&input::read_backup(&file)?).as_str() });
                let body = body.to_string().into();
                show(&client.call(Method::POST, "/keys/restore", Some(body)).await?, format)
            }
            Command::Random { count, out } => random(client, count, out.as_deref(), json).await,
        }
    })
}

impl Create {
    fn body(&self, now: OffsetDateTime) -> Result<Bytes, CommandError> {
        let spec = self.key_type.spec(self.size, self.curve)?;
        let mut body = json!({ "kty": spec.key_type() });
        match spec {
            KeySpec::Rsa(size) => body["key_size"] = size.bits().into(),
            KeySpec::Oct(size) => body["key_size"] = size.bits().into(),
            KeySpec::Ec(curve) => body["crv"] = curve.as_str().into(),
        }
        self.changes.put_into(&mut body, now)?;
        self.policy.put_new_into(self.exportable, &mut body)?;
        if self.disabled {
            body["attributes"]["enabled"] = false.into();
        }
        Ok(body.to_string().into())
    }
}

impl Update {
    fn body(&self, now: OffsetDateTime) -> Result<Bytes, CommandError> {
        let mut body = json!({});
        self.changes.put_into(&mut body, now)?;
        self.policy.put_into(&mut body)?;
        if self.enabled || self.disabled {
            body["attributes"]["enabled"] = self.enabled.into();
        }
        if self.no_tags && self.changes.tags.is_empty() {
            body["tags"] = json!({});
        }
        if body.as_object().is_none_or(Map::is_empty) {
            return Err(usage("nothing to change was given: see `holdfast key update --help`".into()));
        }
        Ok(body.to_string().into())
    }
}

impl Changes {
    pub(super) fn put_into(&self, body: &mut Value, now: OffsetDateTime) -> Result<(), CommandError> {
        if let Some(operations) = &self.ops {
            body["key_ops"] = operations.iter().map(|operation| operation.as_str()).collect();
        }
        for (name, moment) in [("exp", self.expires), ("nbf", self.not_before)] {
            if let Some(moment) = moment {
                let date = moment.int_date(now).map(IntDate::unix_seconds);
                body["attributes"][name] =
                    date.ok_or_else(|| usage("the calendar ends before that date".into()))?.into();
            }
        }
        if !self.tags.is_empty() {
            let tags: Map<String, Value> =
                self.tags.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
            body["tags"] = Value::Object(tags);
        }
        Ok(())
    }
}

impl Show {
    async fn run(self, client: &mut Client, format: Format) -> Result<ExitCode, CommandError> {
        let path = match self.deleted {
            true => format!("/deletedkeys/{}", self.name),
            false => key_path(&self.name, self.version),
        };
        let answer = client.call(Method::GET, &path, None).await?;
        if self.pem {
            let pem = public_key::pem(&parse::<Value>(&answer)?["key"])?;
            line(format_args!("{}", pem.trim_end()))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.policy {
            let policy = held_policy(&parse(&answer)?)?;
            let policy = policy.ok_or("this version has no release policy: it is not exportable")?;
            output::write_bytes(None, policy.document().as_bytes())?;
            return Ok(ExitCode::SUCCESS);
        }
        show(&answer, format)
    }
}

impl Sign {
    async fn run(self, client: &mut Client, json: bool) -> Result<ExitCode, CommandError> {
        let digest = input::encode(&self.message.digest(self.alg)?);
        let body = UseBody { value: Some(&digest), ..UseBody::new(self.alg.as_str()) };
        let path = format!("{}/sign", key_path(&self.name, self.version));
        let answer = client.call(Method::POST, &path, Some(body.to_bytes()?)).await?;
        print_value(&answer, self.out.as_deref(), json)
    }
}

impl Verify {
    async fn run(self, client: &mut Client, json: bool) -> Result<ExitCode, CommandError> {
        let Signature { signature, signature_file } = &self.signature;
        let signature = match (signature, signature_file) {
            (Some(input::Bytes(bytes)), _) => input::encode(bytes),
            (None, path) => input::encode(&input::read(path.as_deref())?),
        };
        let digest = input::encode(&self.message.digest(self.alg)?);
        let body =
            UseBody { value: Some(&signature), digest: Some(&digest), ..UseBody::new(self.alg.as_str()) };
        let path = format!("{}/verify", key_path(&self.name, self.version));
        let answer = client.call(Method::POST, &path, Some(body.to_bytes()?)).await?;
        let valid = parse::<Value>(&answer)?["value"].as_bool();
        let valid = valid.ok_or("the service's answer does not say whether the signature is valid")?;
        let printed = if json {
            output::print_body(&answer.body)
        } else {
            line(format_args!("{}", if valid { "valid" } else { "not valid" }))
        };
        verdict(printed.map_err(Into::into), if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Encrypt {
    async fn run(self, client: &mut Client, operation: &str, json: bool) -> Result<ExitCode, CommandError> {
        let needs_more = matches!(
            self.alg,
            EncryptionAlgorithm::AesGcm(_)
                | EncryptionAlgorithm::AesCbc(_)
                | EncryptionAlgorithm::AesCbcPad(_)
        );
        if self.raw && needs_more {
            let alg = self.alg.as_str();
            return Err(usage(format!(
                "a bare ciphertext of {alg} could not be decrypted without its iv: leave --raw away"
            )));
        }
        let plaintext = input::encode(&input::read(self.file.as_deref())?);
        let encoded = self.aad.map(|input::Bytes(bytes)| input::encode(&bytes));
        let body = UseBody {
            value: Some(&plaintext),
            aad: encoded.as_ref().map(|text| text.as_str()),
            ..UseBody::new(self.alg.as_str())
        };
        let path = format!("{}/{operation}", key_path(&self.name, self.version));
        let answer = client.call(Method::POST, &path, Some(body.to_bytes()?)).await?;
        if json {
            output::print_body(&answer.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let made: Ciphertext = parse(&answer)?;
        if self.raw {
            output::write_bytes(self.out.as_deref(), &input::decode("the service's answer", &made.value)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut document = Document::new(self.alg, made.kid, made.value);
        (document.iv, document.tag) = (made.iv, made.tag);
        // What the caller gave, whether or not the service repeats it.
        document.aad = encoded.map(|text| text.to_string());
        output::write_bytes(self.out.as_deref(), &document.to_json()?)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Decrypt {
    async fn run(self, client: &mut Client, operation: &str, json: bool) -> Result<ExitCode, CommandError> {
        let content = input::read(self.file.as_deref())?;
        let (document, version) = match self.alg {
            None => {
                let document = Document::parse(&content)?;
                let version = document.version_of(&self.name)?;
                (document, Some(version))
            }
            Some(algorithm) => {
                let encoded = |bytes: Option<input::Bytes>| {
                    bytes.map(|input::Bytes(bytes)| input::encode(&bytes).to_string())
                };
                let value = input::encode(&content).to_string();
                let (iv, aad, tag) = (encoded(self.iv), encoded(self.aad), encoded(self.tag));
                let mut bare = Document::new(algorithm, String::new(), value);
                (bare.iv, bare.aad, bare.tag) = (iv, aad, tag);
                (bare, self.version)
            }
        };
        let body = UseBody {
            value: Some(&document.value),
            iv: document.iv.as_deref(),
            aad: document.aad.as_deref(),
            tag: document.tag.as_deref(),
            ..UseBody::new(document.algorithm()?.as_str())
        };
        let path = format!("{}/{operation}", key_path(&self.name, version));
        let answer = client.call(Method::POST, &path, Some(body.to_bytes()?)).await?;
        if json {
            output::print_body(&answer.body)?;
        } else {
            output::write_bytes(self.out.as_deref(), &value(&answer)?)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn random(
    client: &mut Client,
    count: u32,
    out: Option<&Path>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let body = json!({ "count": count }).to_string();
    let answer = client.call(Method::POST, "/rng", Some(body.into())).await?;
    print_value(&answer, out, json)
}

/// `value` of an answer: bare to a file, or base64url to standard output.
fn print_value(answer: &Answer, out: Option<&Path>, json: bool) -> Result<ExitCode, CommandError> {
    match out {
        Some(path) => output::write_bytes(Some(path), &value(answer)?)?,
        None if json => output::print_body(&answer.body)?,
        None => output::print_body(input::encode(&value(answer)?).as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn value(answer: &Answer) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    #[derive(Deserialize)]
    struct Holder {
        value: Zeroizing<String>,
    }
    let Holder { value } = parse(answer)?;
    input::decode("the service's answer", &value)
}

/// Asks for the name once more. Never guesses what somebody would have said.
fn confirm(name: &KeyName) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(usage(format!(
            "purging {name} destroys it for ever, and there is no terminal to ask at: give --yes if that is meant"
        )));
    }
    eprint!("Purging {name} destroys it for ever. Type its name to go on: ");
    io::stderr().flush()?;
    let mut typed = String::new();
    io::stdin().lock().read_line(&mut typed)?;
    if typed.trim() == name.as_str() { Ok(()) } else { Err("not purged: that is not its name".into()) }
}

#[derive(Serialize)]
struct UseBody<'a> {
    alg: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iv: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aad: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

impl<'a> UseBody<'a> {
    fn new(alg: &'a str) -> Self {
        Self { alg, value: None, digest: None, iv: None, aad: None, tag: None }
    }

    /// Wiped once it was sent, as it may hold a plaintext.
    fn to_bytes(&self) -> Result<Bytes, CommandError> {
        let members = [self.value, self.digest, self.iv, self.aad, self.tag];
        let length: usize = members.iter().flatten().map(|text| text.len()).sum();
        // Room for all of it at once: a vector that grows leaves copies behind.
        let mut body = Zeroizing::new(Vec::with_capacity(length + 256));
        serde_json::to_writer(&mut *body, self)?;
        Ok(Bytes::from_owner(body))
    }
}

#[derive(Deserialize)]
struct Ciphertext {
    kid: String,
    value: String,
    iv: Option<String>,
    tag: Option<String>,
}

pub(super) fn parse<'de, T: Deserialize<'de>>(answer: &'de Answer) -> Result<T, CommandError> {
    // What is wrong with it is not said: it may be a plaintext.
    serde_json::from_slice(&answer.body).map_err(|_| "the service's answer is not as expected".into())
}

/// Without a version: the current one.
pub(super) fn key_path(name: &KeyName, version: Option<KeyVersion>) -> String {
    match version {
        Some(version) => format!("/keys/{name}/{version}"),
        None => format!("/keys/{name}"),
    }
}

/// A bundle, live or deleted.
fn show(answer: &Answer, format: Format) -> Result<ExitCode, CommandError> {
    match format {
        Format::Json => output::print_body(&answer.body)?,
        Format::Table => output::print_fields(&fields(&parse(answer)?))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn fields(bundle: &Value) -> Vec<(&'static str, String)> {
    let (key, attributes) = (&bundle["key"], &bundle["attributes"]);
    let kid = text(&key["kid"]);
    let (name, version) =
        parse_kid(&kid).map(|(name, version)| (name.to_string(), version.to_string())).unwrap_or_default();
    let operations: Vec<_> = key["key_ops"].as_array().into_iter().flatten().map(text).collect();
    let mut fields = vec![
        ("name", name),
        ("version", version),
        ("id", kid),
        ("type", key_type(key)),
        ("operations", operations.join(", ")),
        ("enabled", text(&attributes["enabled"])),
        ("created", date(&attributes["created"])),
        ("updated", date(&attributes["updated"])),
        ("not before", date(&attributes["nbf"])),
        ("expires", date(&attributes["exp"])),
        ("recovery", recovery(attributes)),
        ("exportable", exportable(bundle)),
        ("tags", tags(bundle)),
        ("deleted", date(&bundle["deletedDate"])),
        ("purge due", date(&bundle["scheduledPurgeDate"])),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// With size or curve, where the public part tells it.
fn key_type(key: &Value) -> String {
    let kind = text(&key["kty"]);
    let modulus = key["n"].as_str().and_then(|text| input::decode("n", text).ok());
    let curve = key["crv"].as_str().map(str::to_owned);
    let detail = modulus.map(|modulus| (modulus.len() * 8).to_string()).or(curve);
    detail.map_or_else(|| kind.clone(), |detail| format!("{kind} {detail}"))
}

fn recovery(attributes: &Value) -> String {
    let level = text(&attributes["recoveryLevel"]);
    match attributes["recoverableDays"].as_u64() {
        Some(days) => format!("{level}, {days} days"),
        None => level,
    }
}

/// To whom, as far as a line can say; `key show --policy` has the whole policy.
fn exportable(bundle: &Value) -> String {
    if bundle["attributes"]["exportable"] != true {
        return String::new();
    }
    match held_policy(bundle) {
        Ok(Some(policy)) => described(&policy),
        Ok(None) => "by no release policy".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn tags(item: &Value) -> String {
    let tags = item["tags"].as_object().into_iter().flatten();
    tags.map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(", ")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn date(value: &Value) -> String {
    value.as_i64().map(moment::show).unwrap_or_default()
}

fn print_keys(items: &[Value], format: Format) -> Result<ExitCode, CommandError> {
    print_list(items, format, &["NAME", "ENABLED", "CREATED", "EXPIRES", "TAGS"], |item| {
        let attributes = &item["attributes"];
        vec![
            last_segment(&item["kid"]),
            text(&attributes["enabled"]),
            date(&attributes["created"]),
            date(&attributes["exp"]),
            tags(item),
        ]
    })
}

fn print_deleted(items: &[Value], format: Format) -> Result<ExitCode, CommandError> {
    print_list(items, format, &["NAME", "DELETED", "PURGE DUE", "RECOVERY"], |item| {
        vec![
            last_segment(&item["recoveryId"]),
            date(&item["deletedDate"]),
            date(&item["scheduledPurgeDate"]),
            recovery(&item["attributes"]),
        ]
    })
}

fn print_versions(items: &[Value], format: Format) -> Result<ExitCode, CommandError> {
    print_list(items, format, &["VERSION", "ENABLED", "CREATED", "NOT BEFORE", "EXPIRES", "TAGS"], |item| {
        let attributes = &item["attributes"];
        vec![
            last_segment(&item["kid"]),
            text(&attributes["enabled"]),
            date(&attributes["created"]),
            date(&attributes["nbf"]),
            date(&attributes["exp"]),
            tags(item),
        ]
    })
}

fn print_list(
    items: &[Value],
    format: Format,
    head: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<ExitCode, CommandError> {
    match format {
        Format::Json => list::print(items)?,
        Format::Table => {
            let mut table = Table::new(head);
            items.iter().for_each(|item| table.row(row(item)));
            table.print()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn last_segment(id: &Value) -> String {
    let id = text(id);
    id.rsplit('/').next().unwrap_or_default().to_owned()
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyType {
    Rsa,
    Ec,
    Oct,
}

impl KeyType {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "rsa-hsm" | "rsa" => Ok(KeyType::Rsa),
            "ec-hsm" | "ec" => Ok(KeyType::Ec),
            "oct-hsm" | "oct" => Ok(KeyType::Oct),
            _ => Err("expected RSA-HSM, EC-HSM or oct-HSM".to_owned()),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            KeyType::Rsa => "RSA-HSM",
            KeyType::Ec => "EC-HSM",
            KeyType::Oct => "oct-HSM",
        }
    }

    pub fn spec(self, size: Option<u32>, curve: Option<Curve>) -> Result<KeySpec, CommandError> {
        match (self, size, curve) {
            (KeyType::Ec, None, curve) => Ok(KeySpec::Ec(curve.unwrap_or(Curve::P256))),
            (KeyType::Ec, Some(_), _) => Err(usage("an EC-HSM key has a --curve, not a --size".into())),
            (KeyType::Rsa | KeyType::Oct, _, Some(_)) => {
                Err(usage("only an EC-HSM key has a --curve".into()))
            }
            (KeyType::Rsa, size, None) => RsaSize::from_bits(size.unwrap_or(2048))
                .map(KeySpec::Rsa)
                .ok_or_else(|| usage("--size of an RSA-HSM key is 2048, 3072 or 4096".into())),
            (KeyType::Oct, size, None) => OctSize::from_bits(size.unwrap_or(256))
                .map(KeySpec::Oct)
                .ok_or_else(|| usage("--size of an oct-HSM key is 128, 192 or 256".into())),
        }
    }
}

pub(super) fn parse_curve(text: &str) -> Result<Curve, String> {
    Curve::parse(&text.to_ascii_uppercase())
        .ok_or_else(|| "expected P-256, P-256K, P-384 or P-521".to_owned())
}

pub fn parse_operation(text: &str) -> Result<KeyOperation, String> {
    let found = KeyOperation::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(text));
    found.ok_or_else(|| format!("expected some of {}", names(KeyOperation::ALL.map(KeyOperation::as_str))))
}

fn parse_signature_algorithm(text: &str) -> Result<SignatureAlgorithm, String> {
    SignatureAlgorithm::parse(&text.to_ascii_uppercase()).ok_or_else(|| {
        format!("expected one of {}", names(SignatureAlgorithm::ALL.map(SignatureAlgorithm::as_str)))
    })
}

fn parse_encryption_algorithm(text: &str) -> Result<EncryptionAlgorithm, String> {
    EncryptionAlgorithm::parse(&text.to_ascii_uppercase()).ok_or_else(|| {
        format!("expected one of {}", names(EncryptionAlgorithm::ALL.map(EncryptionAlgorithm::as_str)))
    })
}

fn names<const COUNT: usize>(names: [&'static str; COUNT]) -> String {
    names.join(", ")
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() { Err("a tag has a name".to_owned()) } else { Ok((name.to_owned(), value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        arguments: Arguments<Command>,
    }

    fn command(words: &str) -> Result<Command, String> {
        let words = ["key"].into_iter().chain(words.split_whitespace());
        Program::try_parse_from(words)
            .map(|program| program.arguments.command)
            .map_err(|error| error.to_string())
    }

    fn created(words: &str) -> Result<Value, String> {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        match command(&format!("create k {words}"))? {
            Command::Create(create) => {
                let body = create.body(now).map_err(|error| error.to_string())?;
                Ok(serde_json::from_slice(&body).unwrap())
            }
            _ => panic!("another command"),
        }
    }

    #[test]
    fn the_parser_is_consistent() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }

    #[test]
    fn create_asks_for_what_was_said_and_no_more() {
        assert_eq!(created("--type rsa").unwrap(), json!({"kty": "RSA-HSM", "key_size": 2048}));
        assert_eq!(created("--type oct-HSM --size 128").unwrap(), json!({"kty": "oct-HSM", "key_size": 128}));
        assert_eq!(
            created("--type EC-HSM --curve p-256k").unwrap(),
            json!({"kty": "EC-HSM", "crv": "P-256K"})
        );
        let all = "--type EC --ops sign,VERIFY --expires +1h --not-before 1970-01-01 --disabled --tag a=b=c --tag d=";
        assert_eq!(
            created(all).unwrap(),
            json!({
                "kty": "EC-HSM", "crv": "P-256", "key_ops": ["sign", "verify"],
                "attributes": {"exp": 1_003_600, "nbf": 0, "enabled": false},
                "tags": {"a": "b=c", "d": ""},
            })
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_sent() {
        for (words, expected) in [
            ("--type rsa --size 1024", "2048, 3072 or 4096"),
            ("--type oct --size 512", "128, 192 or 256"),
            ("--type ec --size 256", "--curve, not a --size"),
            ("--type rsa --curve P-256", "only an EC-HSM"),
            ("--type dsa", "expected RSA-HSM"),
            ("--type ec --curve P-255", "expected P-256"),
            ("--type rsa --ops sign,fly", "expected some of encrypt"),
            ("--type rsa --expires soon", "expected a date"),
            ("--type rsa --tag novalue", "NAME=VALUE"),
            ("", "--type"),
        ] {
            let refusal = created(words).unwrap_err();
            assert!(refusal.contains(expected), "{words}: {refusal}");
        }
        for words in [
            "show a_b",
            "show k --version 12",
            "show k --deleted --version 0123456789abcdef0123456789abcdef",
            "sign k",
            "sign k --alg ES257",
            "sign k --alg ES256 --digest + ",
            "sign k --alg ES256 --digest AA --file f",
            "verify k --alg ES256",
            "verify k --alg ES256 --signature AA --signature-file f",
            "decrypt k --iv AA",
            "random 0",
            "purge",
            "backup k",
            "restore",
            "show k --pem --policy",
            "update k --immutable",
            "update k --exportable",
            "release k",
            "release k --attestation a --enc RSA-OAEP",
        ] {
            assert!(command(words).is_err(), "{words}");
        }
    }

    #[test]
    fn a_key_is_exportable_by_a_policy_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.json");
        let document = r#"{"anyOf":[{"authority":"https://a","allOf":[{"claim":"b","equals":1}]}]}"#;
        std::fs::write(&path, document).unwrap();
        let path = path.display();
        let key = created(&format!("--type EC --exportable --policy {path} --immutable")).unwrap();
        assert_eq!(key["attributes"], json!({ "exportable": true }));
        let policy = json!({ "data": input::encode(document.as_bytes()).as_str(), "immutable": true });
        assert_eq!(key["release_policy"], policy);
        assert_eq!(
            exportable(&json!({ "attributes": { "exportable": true }, "release_policy": policy })),
            "by the word of https://a; immutable policy"
        );
        assert_eq!(exportable(&json!({ "attributes": { "exportable": false } })), "");
        for (words, expected) in [
            ("--type EC --exportable".to_owned(), "--exportable goes with --policy"),
            (format!("--type EC --policy {path}"), "--policy goes with --exportable"),
            ("--type EC --exportable --immutable".to_owned(), "--policy"),
            (format!("--type EC --exportable --policy {path}.gone"), "cannot read"),
        ] {
            let refusal = created(&words).unwrap_err();
            assert!(refusal.contains(expected), "{words}: {refusal}");
        }
    }

    #[test]
    fn base64url_may_begin_with_a_hyphen() {
        for words in [
            "verify k --alg ES256 --signature -A --digest -w",
            "encrypt k --alg A256GCM --aad -A",
            "decrypt k --alg A256GCM --iv -A --tag -A --aad -A",
        ] {
            assert!(command(words).is_ok(), "{words}");
        }
    }

    #[test]
    fn update_sends_only_what_changes() {
        let updated = |words: &str| match command(&format!("update k {words}")).unwrap() {
            Command::Update(update) => {
                update.body(OffsetDateTime::UNIX_EPOCH).map_err(|error| error.to_string())
            }
            _ => panic!("another command"),
        };
        let json = |words: &str| serde_json::from_slice::<Value>(&updated(words).unwrap()).unwrap();
        assert_eq!(json("--enabled"), json!({"attributes": {"enabled": true}}));
        assert_eq!(json("--disabled"), json!({"attributes": {"enabled": false}}));
        assert_eq!(json("--no-tags"), json!({"tags": {}}));
        assert_eq!(json("--no-tags --tag a=b"), json!({"tags": {"a": "b"}}));
        assert_eq!(json("--ops sign"), json!({"key_ops": ["sign"]}));
        assert!(updated("").unwrap_err().contains("nothing to change"));
        assert!(command("update k --enabled --disabled").is_err());
    }

    #[test]
    fn a_bundle_is_shown_with_its_dates_and_without_what_it_lacks() {
        let bundle = json!({
            "key": {
                "kid": "https://h/keys/k/0123456789abcdef0123456789abcdef", "kty": "RSA-HSM",
                "key_ops": ["sign", "verify"], "n": input::encode(&[0xff; 256]).as_str(), "e": "AQAB",
            },
            "attributes": {
                "enabled": true, "created": 0, "updated": 0, "exp": 86_400,
                "recoveryLevel": "Recoverable+Purgeable", "recoverableDays": 90,
            },
            "tags": {"a": "b"},
        });
        let shown = fields(&bundle);
        let field =
            |name: &str| shown.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str());
        assert_eq!(field("name"), Some("k"));
        assert_eq!(field("type"), Some("RSA-HSM 2048"));
        assert_eq!(field("operations"), Some("sign, verify"));
        assert_eq!(field("expires"), Some("1970-01-02T00:00:00Z"));
        assert_eq!(field("recovery"), Some("Recoverable+Purgeable, 90 days"));
        assert_eq!(field("tags"), Some("a=b"));
        assert_eq!((field("not before"), field("deleted")), (None, None));
    }
}
