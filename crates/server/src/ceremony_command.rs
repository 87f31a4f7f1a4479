//! `holdfast ceremony`: holders' keys, and what a quorum of holders does with a security domain. Offline: it opens no
//! socket, and it writes nothing but the files it is asked for, which it never overwrites.

use crate::CommandError;
use crate::SECONDS_PER_DAY;
use crate::hardening::harden;
use crate::output;
use crate::passphrase;
use ceremony::{
    DomainDescription, DomainFile, HolderSet, KeyHolder, LibraryHolder, LibraryTransport, OpenedDomain,
    Quorum, RestoreBlob, Thumbprint, restore_blob, transfer_key,
};
use clap::Subcommand;
use crypto::SecretBytes;
use crypto::digest::{hex, random};
use crypto::key_file::{self, KeyFile};
use crypto::transport::{SelfSigned, TransportCertificate, TransportKey};
use domain::time::IntDate;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

const MAX_INPUT_BYTES: u64 = 1 << 20;
/// Beside `NAME.key` lies `NAME.cer`, as the Azure CLI wants it.
const KEY_EXTENSION: &str = "key";
const CERTIFICATE_EXTENSION: &str = "cer";

#[derive(Subcommand)]
pub enum Arguments {
    /// Make a holder's key: NAME.key, encrypted, and NAME.cer, a certificate to hand over. Run it where the key stays.
    Keygen {
        /// Letters, digits, - and _.
        #[arg(value_parser = holder_name)]
        name: String,
        /// Where the two files go.
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
        /// How long the certificate says it is valid. Nothing refuses a holder's certificate for its age.
        #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u16).range(1..=36500))]
        days: u16,
        /// Read the passphrase from the first line of a file, or of a descriptor as /dev/fd/3, instead of asking.
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Show what a security domain file, a restore blob or a certificate says. Needs no private key and proves nothing.
    Inspect {
        file: PathBuf,
        /// Certificates, to show holders by the names in them.
        certificates: Vec<PathBuf>,
    },
    /// Open a security domain with a quorum's keys, say which domain it is, and forget it.
    Verify {
        #[command(flatten)]
        quorum: QuorumArguments,
    },
    /// Re-encrypt a security domain to the exchange key of a pool that waits for one.
    RestoreBlob {
        #[command(flatten)]
        quorum: QuorumArguments,
        /// The certificate of the exchange key, from `az keyvault security-domain init-recovery`.
        #[arg(long, value_name = "CERTIFICATE")]
        exchange_key: PathBuf,
        /// What the certificate's thumbprint must be, from whoever runs the new pool; without it the terminal asks.
        #[arg(long, value_name = "THUMBPRINT", allow_hyphen_values = true, value_parser = thumbprint)]
        exchange_thumbprint: Option<Thumbprint>,
        /// The blob; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the same security domain for other holders or another quorum. Old files go on to open with old keys.
    Rekey {
        #[command(flatten)]
        quorum: QuorumArguments,
        /// A new holder's certificate; 3 to 10 of them.
        #[arg(long = "holder", value_name = "CERTIFICATE", required = true)]
        holders: Vec<PathBuf>,
        /// How many of the new holders are needed; 2 to 10.
        #[arg(long, value_name = "M")]
        required: u8,
        /// The new file; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

#[derive(clap::Args)]
pub struct QuorumArguments {
    /// The security domain file.
    file: PathBuf,
    /// A holder's private key NAME.key, with NAME.cer beside it; a quorum of them.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// The passphrase's file for each --key, in their order; what is not given is asked for.
    #[arg(long = "passphrase-file", value_name = "FILE")]
    passphrase_files: Vec<PathBuf>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    // No core files, no debugger, no swap, as far as the system allows.
    for shortfall in harden().shortfalls() {
        eprintln!("holdfast: {shortfall}");
    }
    match arguments {
        Arguments::Keygen { name, out, days, passphrase_file } => {
            keygen(&name, &out, days, passphrase_file.as_deref())
        }
        Arguments::Inspect { file, certificates } => inspect(&file, &certificates),
        Arguments::Verify { quorum } => verify(&quorum),
        Arguments::RestoreBlob { quorum, exchange_key, exchange_thumbprint, out } => {
            make_restore_blob(&quorum, &exchange_key, exchange_thumbprint, &out)
        }
        Arguments::Rekey { quorum, holders, required, out } => rekey(&quorum, &holders, required, &out),
    }
}

fn keygen(
    name: &str,
    out: &Path,
    days: u16,
    passphrase_file: Option<&Path>,
) -> Result<ExitCode, CommandError> {
    let path = |extension| out.join(name).with_extension(extension);
    let (key_path, certificate_path) = (path(KEY_EXTENSION), path(CERTIFICATE_EXTENSION));
    // Before anything is typed.
    [&key_path, &certificate_path].into_iter().try_for_each(|path| refuse_existing(path))?;
    let passphrase = match passphrase_file {
        Some(path) => passphrase::from_file(path)?,
        None => passphrase::ask_new(&key_path.display().to_string())?,
    };
    passphrase::check_new(&passphrase)?;
    let key = TransportKey::generate();
    let now = now();
    let certificate = key.certify(&SelfSigned {
        common_name: name,
        uri: None,
        not_before: IntDate::from_unix_seconds(now),
        not_after: IntDate::from_unix_seconds(now + i64::from(days) * SECONDS_PER_DAY),
    })?;
    write_new(&key_path, key_file::encrypt(key.danger_export_pkcs8(), &passphrase).as_bytes())?;
    write_new(&certificate_path, certificate.to_pem().as_bytes())?;
    print(&[
        format!("key           {}, which nobody but its holder may have", key_path.display()),
        format!("certificate   {}, to hand over", certificate_path.display()),
        format!("thumbprint    {}, to be read out when it is", Thumbprint::of(&certificate)),
    ])
}

fn inspect(path: &Path, certificates: &[PathBuf]) -> Result<ExitCode, CommandError> {
    let content = read(path)?;
    let known = certificates.iter().map(|path| read_certificate(path)).collect::<Result<Vec<_>, _>>()?;
    let text = std::str::from_utf8(&content).ok().filter(|text| text.trim_start().starts_with('{'));
    let Some(text) = text else {
        return print(&describe_certificate(&read_certificate(path)?));
    };
    // Which of the two it is, its own parser says in the end.
    if text.contains("\"WrappedKey\"") {
        let blob = RestoreBlob::parse(text).map_err(in_file(path))?;
        return print(&[
            "restore blob".to_owned(),
            format!("for           {}", blob.recipient()),
            "              only the pool whose exchange key this is can open it".to_owned(),
        ]);
    }
    let file = DomainFile::parse(text).map_err(in_file(path))?;
    let mut lines = describe(file.description(), file.quorum(), file.holders(), &known);
    lines.push("NOT PROVEN    this is what the file says; `holdfast ceremony verify` opens it".to_owned());
    print(&lines)
}

fn verify(arguments: &QuorumArguments) -> Result<ExitCode, CommandError> {
    let (file, holders) = arguments.read()?;
    let opened = open(arguments, &file, &holders)?;
    let mut lines = describe(&opened.description, file.quorum(), file.holders(), &[]);
    drop(opened);
    lines.push("VERIFIED      these keys open the file, and nothing in it was changed".to_owned());
    print(&lines)
}

fn make_restore_blob(
    arguments: &QuorumArguments,
    exchange_key: &Path,
    expected: Option<Thumbprint>,
    out: &Path,
) -> Result<ExitCode, CommandError> {
    refuse_existing(out)?;
    let exchange = read_certificate(exchange_key)?;
    let pool = transfer_key::pool_of(&exchange).map_err(in_file(exchange_key))?;
    if exchange.not_after().unix_seconds() < now() {
        return Err("the exchange key has expired; ask the new pool for another".into());
    }
    let thumbprint = Thumbprint::of(&exchange);
    match expected {
        Some(expected) if expected != thumbprint => {
            return Err(format!("the exchange key's thumbprint is {thumbprint}, not {expected}").into());
        }
        Some(_) => {}
        // The certificate signs itself: only people can tell whose key it is.
        None => {
            let question = format!(
                "The blob gives the security domain to whoever has this exchange key:\n  \
                 pool {pool}, thumbprint {thumbprint}\n\
                 Is that what the new pool's operator read out? Type yes: "
            );
            let answer = passphrase::confirm(&question)
                .map_err(|_| "there is no terminal to ask at; give --exchange-thumbprint")?;
            if !answer {
                return Err("not confirmed; nothing was written".into());
            }
        }
    }
    let (file, holders) = arguments.read()?;
    let opened = open(arguments, &file, &holders)?;
    let blob = restore_blob::build(&opened, &exchange, &LibraryTransport, &random)?;
    write_new(out, blob.as_bytes())?;
    let mut lines = describe(&opened.description, file.quorum(), file.holders(), &[]);
    lines.push(format!("restore blob  {}, for pool {pool} alone", out.display()));
    print(&lines)
}

fn rekey(
    arguments: &QuorumArguments,
    certificates: &[PathBuf],
    required: u8,
    out: &Path,
) -> Result<ExitCode, CommandError> {
    refuse_existing(out)?;
    let certificates =
        certificates.iter().map(|path| read_certificate(path)).collect::<Result<Vec<_>, _>>()?;
    let set = HolderSet::new(certificates, required)?;
    let (file, holders) = arguments.read()?;
    let opened = open(arguments, &file, &holders)?;
    let text = opened.rekey(&set, &LibraryTransport, &random)?;
    let written = DomainFile::parse(&text)?;
    write_new(out, text.as_bytes())?;
    let mut lines = describe(written.description(), written.quorum(), written.holders(), set.certificates());
    lines.push(format!("written       {}", out.display()));
    lines.push(
        "              the old file still opens with the old keys: destroy every copy of it".to_owned(),
    );
    print(&lines)
}

impl QuorumArguments {
    /// The file, and the keys, opened: each with its own passphrase.
    fn read(&self) -> Result<(DomainFile, Vec<LibraryHolder>), CommandError> {
        if self.passphrase_files.len() > self.keys.len() {
            return Err("there are more passphrase files than keys".into());
        }
        let content = read(&self.file)?;
        let text = std::str::from_utf8(&content).map_err(in_file(&self.file))?;
        let file = DomainFile::parse(text).map_err(in_file(&self.file))?;
        let (given, required) = (self.keys.len(), file.quorum().required());
        // Before anything is typed.
        if given < usize::from(required) {
            return Err(format!("--key was given {given} times and a quorum is {required} keys").into());
        }
        let keys = self.keys.iter().enumerate();
        let holders = keys.map(|(index, path)| read_key(path, self.passphrase_files.get(index)));
        Ok((file, holders.collect::<Result<_, _>>()?))
    }
}

fn open(
    arguments: &QuorumArguments,
    file: &DomainFile,
    holders: &[LibraryHolder],
) -> Result<OpenedDomain, CommandError> {
    let keys: Vec<&dyn KeyHolder> = holders.iter().map(|holder| holder as &dyn KeyHolder).collect();
    Ok(file.open(&keys, &random).map_err(in_file(&arguments.file))?)
}

/// The private key in `NAME.key`, for the certificate in `NAME.cer`.
fn read_key(path: &Path, passphrase_file: Option<&PathBuf>) -> Result<LibraryHolder, CommandError> {
    let certificate_path = path.with_extension(CERTIFICATE_EXTENSION);
    if !certificate_path.exists() {
        let (key, certificate) = (path.display(), certificate_path.display());
        return Err(format!("the certificate of {key} must lie beside it, as {certificate}").into());
    }
    let certificate = read_certificate(&certificate_path)?;
    let pkcs8 = match KeyFile::read(&SecretBytes::new(read(path)?)).map_err(in_file(path))? {
        KeyFile::Plain(pkcs8) => {
            eprintln!("holdfast: {} is not encrypted: whoever copies it has the key", path.display());
            pkcs8
        }
        KeyFile::Encrypted(key) => {
            let passphrase = match passphrase_file {
                Some(file) => passphrase::from_file(file)?,
                None => passphrase::ask(&path.display().to_string())?,
            };
            key.decrypt(&passphrase).map_err(in_file(path))?
        }
    };
    let key = TransportKey::from_pkcs8(pkcs8).map_err(in_file(path))?;
    Ok(LibraryHolder::new(key, &certificate).map_err(in_file(path))?)
}

fn read_certificate(path: &Path) -> Result<TransportCertificate, CommandError> {
    Ok(TransportCertificate::from_file(&read(path)?).map_err(in_file(path))?)
}

fn describe(
    domain: &DomainDescription,
    quorum: Quorum,
    holders: impl Iterator<Item = Thumbprint>,
    known: &[TransportCertificate],
) -> Vec<String> {
    let mut lines = vec![
        format!("domain        {}", domain.security_domain),
        format!("pool          {} ({})", domain.pool_name, domain.pool),
        format!("class         {}", domain.class.as_str()),
        format!("genesis       {}", hex(&domain.genesis_hash)),
        format!("owner key     {}", hex(&domain.owner_fingerprint)),
        format!("quorum        {} of {}", quorum.required(), quorum.holders()),
    ];
    for holder in holders {
        let name = known.iter().find(|certificate| Thumbprint::of(certificate) == holder);
        let name =
            name.map(|certificate| format!("  {}", printable(certificate.subject()))).unwrap_or_default();
        lines.push(format!("holder        {holder}{name}"));
    }
    lines
}

fn describe_certificate(certificate: &TransportCertificate) -> Vec<String> {
    let what = match transfer_key::pool_of(certificate) {
        Ok(pool) => format!("exchange key of pool {pool}, as it says itself"),
        Err(_) => "certificate".to_owned(),
    };
    vec![
        what,
        format!("subject       {}", printable(certificate.subject())),
        format!("key           RSA, {} bits", certificate.bits()),
        format!("thumbprint    {}", Thumbprint::of(certificate)),
        format!("sha256        {}", hex(&certificate.thumbprint())),
    ]
}

/// A foreign name: it cannot move the cursor or start a line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

fn holder_name(text: &str) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let good = (1..=64).contains(&text.len()) && text.bytes().all(plain);
    good.then(|| text.to_owned()).ok_or("a name is 1 to 64 letters, digits, - and _")
}

/// As files and `inspect` write it, or the SHA-256 that any other tool shows, with or without colons.
fn thumbprint(text: &str) -> Result<Thumbprint, &'static str> {
    let malformed = "a thumbprint is 43 characters of base64url or 64 digits of hexadecimal";
    if let Ok(thumbprint) = text.parse() {
        return Ok(thumbprint);
    }
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let (pairs, rest) = digits.as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).ok_or(malformed);
    let bytes = pairs.iter().map(|[high, low]| Ok((digit(*high)? << 4 | digit(*low)?) as u8));
    let bytes = bytes.collect::<Result<Vec<_>, &str>>()?;
    if rest.is_empty() { bytes.try_into().map(Thumbprint).map_err(|_| malformed) } else { Err(malformed) }
}

pub(crate) fn print(lines: &[String]) -> Result<ExitCode, CommandError> {
    output::line(format_args!("{}", lines.join("\n")))?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn in_file<E: std::fmt::Display>(path: &Path) -> impl Fn(E) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

fn read(path: &Path) -> Result<Vec<u8>, CommandError> {
    let unreadable = |error: io::Error| format!("cannot read {}: {error}", path.display());
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_INPUT_BYTES).read_to_end(&mut content).map_err(unreadable)?;
    Ok(content)
}

pub(crate) fn refuse_existing(path: &Path) -> Result<(), CommandError> {
    // Also a link that leads nowhere.
    match fs::symlink_metadata(path) {
        Ok(_) => Err(format!("{} exists and is not overwritten", path.display()).into()),
        Err(_) => Ok(()),
    }
}

/// A file of its owner's alone, wholly or not at all.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> Result<(), CommandError> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    Ok(written.map_err(failed)?)
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_private_and_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        assert!(refuse_existing(&path).is_ok());
        write_new(&path, b"one").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(refuse_existing(&path).is_err() && write_new(&path, b"two").is_err());
        let dangling = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(refuse_existing(&dangling).is_err() && write_new(&dangling, b"two").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn thumbprints_are_read_as_tools_write_them() {
        let expected = Thumbprint([0xfb; 32]);
        let colons = ["FB"; 32].join(":");
        for text in [expected.to_string(), "fb".repeat(32), colons] {
            assert_eq!(thumbprint(&text), Ok(expected), "{text}");
        }
        for text in ["", "fb", &"fb".repeat(33), &"f".repeat(63), &"é".repeat(32)] {
            assert!(thumbprint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_holders_name_is_a_plain_file_name() {
        assert!(holder_name("ada-1_B").is_ok());
        for name in ["", "a.b", "../a", "a b", "ä", &"a".repeat(65)] {
            assert!(holder_name(name).is_err(), "{name}");
        }
    }
}
