//! `holdfast doctor`: what protects this pool and what does not, each with what to do about it.
//!
//! It changes nothing and opens nothing that is sealed. What it cannot see it says it cannot see; what no row is about was
//! not looked at. `docs/threat-model.md` is the whole.

pub mod facts;
mod files;
mod finding;
mod keys;
mod log;
mod machine;

use crate::CommandError;
use crate::SECONDS_PER_DAY;
use crate::client;
use crate::client::login::{Client, Target, located};
use crate::client::output::{self as client_output, Format};
use crate::environment::word;
use crate::holders;
use crate::layout::{self, Layout};
use crate::limits;
use crate::output::{line, verdict};
use crate::production::{self, tls::Chain};
use crate::state::{Principals, Settings};
use domain::setting::Setting;
use facts::{Facts, Network, Protection, Unanswered};
use finding::{Finding, State};
use keys::OldAlgorithms;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use seal::RootKind;
use serde_json::json;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// A full backup that is older is old.
const BACKUP_DAYS: u64 = 31;
/// To connect to a port of this machine.
const LOOPBACK_TIME: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub struct Arguments {
    /// Where the quickstart keeps everything.
    #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
    data: PathBuf,
    /// The principal that reads the keys.
    #[arg(long = "as", value_name = "PRINCIPAL", default_value = "app")]
    principal: String,
    /// Exit code 1 if anything is weak or missing.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    output: client_output::Arguments,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    // It reads a client's secret.
    crate::hardening::harden();
    let layout = Layout::new(arguments.data.clone());
    let findings = examine(&layout, &arguments.principal)?;
    let printed = match arguments.output.format() {
        Format::Json => line(format_args!(
            "{}",
            json!({ "data": layout.data.display().to_string(), "findings": findings })
        )),
        Format::Table => print(&findings),
    };
    let short = findings.iter().any(|finding| finding.state.falls_short());
    let code = if arguments.strict && short { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    verdict(printed.map_err(Into::into), code)
}

fn print(findings: &[Finding]) -> std::io::Result<()> {
    findings.iter().try_for_each(Finding::print)?;
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    line(format_args!(
        "\n{} ok, {} weak, {} missing, {} unknown. What no row is about was not looked at.",
        count(State::Ok),
        count(State::Weak),
        count(State::Missing),
        count(State::Unknown)
    ))
}

fn examine(layout: &Layout, principal: &str) -> Result<Vec<Finding>, CommandError> {
    if production::is_production(layout) {
        return of_production(layout);
    }
    let data = layout.data.display();
    let missing = || format!("there is no quickstart in {data}; start one with `holdfast quickstart`");
    let settings = Settings::read(layout).map_err(|error| located(error, layout))?.ok_or_else(missing)?;
    let principals = Principals::read(layout).map_err(|error| located(error, layout))?.ok_or_else(missing)?;
    let unreadable = |error: std::io::Error| format!("cannot look at {data}: {error}");
    let now = SystemTime::now();

    let facts = Facts::ask(&layout.admin_socket());
    let mut findings = vec![running(
        &facts,
        format!("holdfast quickstart --detach --data {}", word(&layout.data.display().to_string())),
    )];
    findings.extend(of_genesis(&facts));
    findings.push(root_of_trust(layout).map_err(unreadable)?);
    findings.push(security_domain(layout).map_err(unreadable)?);
    findings.push(backup(&facts, now));
    findings.extend(absent());
    findings.extend(of_process(&facts));
    findings.push(log::check(layout)?);
    findings.push(files::check(layout).map_err(unreadable)?);
    findings.extend(of_quickstart(&principals));
    findings.push(managed_identity(&settings));
    findings.push(authority(layout, now)?);
    findings.push(machine::disk(layout).map_err(unreadable)?);
    findings.push(machine::clock(layout, now).map_err(unreadable)?);
    match facts {
        Err(Unanswered::NotRunning) => {
            findings.push(Finding::unknown("keys", "the pool does not run"));
            findings.extend(keys::old_algorithms(None, OldAlgorithms::default()));
        }
        Ok(_) | Err(Unanswered::NoFacts) => findings.extend(over_the_wire(layout, principal, now)?),
    }
    Ok(findings)
}

/// A pool of class production: what its machine shows without a token, as only its owner's issuer gives those.
fn of_production(layout: &Layout) -> Result<Vec<Finding>, CommandError> {
    let data = layout.data.display();
    let unreadable = |error: std::io::Error| format!("cannot look at {data}: {error}");
    let now = SystemTime::now();
    let facts = Facts::ask(&layout.admin_socket());
    let start = format!(
        "holdfast pool serve --data {} --root-credential FILE --listen ADDRESS:PORT",
        word(&layout.data.display().to_string())
    );
    let mut findings = vec![running(&facts, start)];
    findings.extend(of_genesis(&facts));
    findings.push(of_domain(&facts));
    findings.push(root_of_trust(layout).map_err(unreadable)?);
    findings.push(tls_certificate(layout, now)?);
    let written = limits::network_rules(&layout.limits()).map(|(rules, _)| rules.to_string());
    findings.push(of_network(&facts, written.map_err(|error| error.to_string())));
    findings.push(backup(&facts, now));
    findings.extend(absent());
    findings.extend(of_process(&facts));
    findings.push(log::check(layout)?);
    findings.push(files::check(layout).map_err(unreadable)?);
    findings.push(machine::disk(layout).map_err(unreadable)?);
    findings.push(machine::clock(layout, now).map_err(unreadable)?);
    Ok(findings)
}

/// The rules in force, and whether they are those that `pool.toml` has: these come into force at a start or a SIGHUP.
fn of_network(facts: &Result<Facts, Unanswered>, written: Result<String, String>) -> Finding {
    const NAME: &str = "network rules";
    let Ok(Facts { network: Some(Network { rules: in_force, open_to_all }), .. }) = facts else {
        return Finding::unknown(NAME, "only the running pool says which are in force");
    };
    match written {
        Err(reason) => Finding::weak(
            NAME,
            format!("in force: {in_force}; pool.toml has none to go by: {reason}"),
            "The pool does not start again with this file, and a SIGHUP changes nothing.",
            "mend the file, then send the pool a SIGHUP",
        ),
        Ok(written) if written != *in_force => Finding::weak(
            NAME,
            format!("in force: {in_force}; in pool.toml: {written}"),
            "What was written is not what holds.",
            "send the pool a SIGHUP",
        ),
        Ok(_) if *open_to_all => Finding::weak(
            NAME,
            "none: clients may come from any address",
            "A stolen token can be used from anywhere that reaches this machine.",
            "default_action = \"Deny\" and ip_rules under [network] in pool.toml, then a SIGHUP",
        ),
        Ok(_) => Finding::ok(NAME, in_force.clone()),
    }
}

/// Whether the pool has a domain that its owner knows.
fn of_domain(facts: &Result<Facts, Unanswered>) -> Finding {
    const NAME: &str = "security domain";
    let Ok(facts) = facts else {
        return Finding::unknown(NAME, "sealed, and only the running pool says it");
    };
    match (facts.active, &facts.unconfirmed_fingerprint) {
        (_, Some(fingerprint)) => Finding::missing(
            NAME,
            format!("was uploaded, and nobody has confirmed it; its owner key is {fingerprint}"),
            "No key works. It may be anybody's: whoever gets hold of an exchange key can encrypt a domain to it.",
            "compare it with `holdfast ceremony inspect` of the domain's file, then `holdfast pool confirm`",
        ),
        (Some(false), None) => Finding::missing(
            NAME,
            "was not handed out: the pool is not active",
            "No key works. Without it nobody can bring the pool's keys into another one when this machine is lost.",
            "an initial administrator downloads it for its holders: `az keyvault security-domain download`",
        ),
        (Some(true), None) => {
            Finding::ok(NAME, "its holders have it; whether a quorum still does, they know")
        }
        (None, None) => Finding::unknown(NAME, "the pool is of another release"),
    }
}

fn tls_certificate(layout: &Layout, now: SystemTime) -> Result<Finding, CommandError> {
    const NAME: &str = "certificate of the pool";
    let path = layout.tls_chain();
    let Some(pem) = crate::files::read(&path)? else {
        return Ok(Finding::missing(
            NAME,
            "there is none",
            "The pool does not serve.",
            format!(
                "have {} signed, then `holdfast pool certificate install`",
                layout.tls_request().display()
            ),
        ));
    };
    let chain = Chain::parse(&pem).map_err(|error| format!("{}: {error}", path.display()))?;
    let remedy = "`holdfast pool certificate request`, your CA, `holdfast pool certificate install`, and start the pool again";
    Ok(machine::certificate(NAME, &chain.certificates[0], now, remedy))
}

fn running(facts: &Result<Facts, Unanswered>, start: String) -> Finding {
    match facts {
        Ok(facts) => Finding::ok("service", format!("runs as process {}", facts.pid)),
        Err(Unanswered::NoFacts) => Finding::unknown(
            "service",
            "runs, and does not say more: it is of another release, or of another user",
        ),
        Err(Unanswered::NotRunning) => Finding::missing(
            "service",
            "does not run",
            "Nobody can use a key. What only a running pool can say is unknown below.",
            start,
        ),
    }
}

/// What the owner fixed when the pool was made.
fn of_genesis(facts: &Result<Facts, Unanswered>) -> Vec<Finding> {
    let Ok(facts) = facts else {
        let unseen = |check| Finding::unknown(check, "sealed, and only the running pool says it");
        let checks = ["class", "purge protection", "retention", "audit durability", "break-glass group"];
        return checks.map(unseen).into();
    };
    vec![
        match facts.class.as_str() {
            "test" => Finding::weak(
                "class",
                "test",
                "A pool for trying things. Roles of the quickstart's principals are put back at each start, and what is weak below is let pass.",
                "keep no keys in it that matter; `holdfast pool create` founds one of class production",
            ),
            other => Finding::ok("class", other),
        },
        if facts.purge_protection {
            Finding::ok("purge protection", "on")
        } else {
            Finding::weak(
                "purge protection",
                "off",
                "One Crypto Officer can destroy a deleted key for ever, with all that it encrypts.",
                "give Crypto Officer to few; a quickstart's pool is made without purge protection",
            )
        },
        match facts.retention_days {
            90.. => Finding::ok(
                "retention",
                format!("deleted keys can be recovered for {} days", facts.retention_days),
            ),
            days => Finding::weak(
                "retention",
                format!("deleted keys can be recovered for {days} days"),
                "A deletion that nobody notices in that time is for ever.",
                "it was fixed when the pool was made; watch for KeyDelete in `holdfast audit show`",
            ),
        },
        match facts.audit_durability.as_str() {
            "synced" => {
                Finding::ok("audit durability", "an answer leaves after the disk has confirmed its event")
            }
            other => Finding::weak(
                "audit durability",
                other,
                "When the machine loses power, keys may have been used without a trace.",
                "it was fixed when the pool was made",
            ),
        },
        match &facts.break_glass_group {
            None => Finding::ok("break-glass group", "none: nobody assigns roles without holding one"),
            Some(group) => Finding::weak(
                "break-glass group",
                group,
                "Its members may assign Administrator without holding a role, and the issuer says who they are.",
                "it was fixed when the pool was made; watch for RoleAssignmentCreate in `holdfast audit show`",
            ),
        },
    ]
}

fn root_of_trust(layout: &Layout) -> std::io::Result<Finding> {
    const NAME: &str = "root of trust";
    let sealed = std::fs::read(layout.sealed_domain())?;
    if RootKind::of(&sealed) == Ok(RootKind::Credential) {
        return Ok(Finding::ok(
            NAME,
            "a credential, handed over at each start; whoever has the disks without it has to guess it",
        ));
    }
    if !layout.root_key().exists() {
        return Ok(Finding::weak(
            NAME,
            format!("{} is missing", layout.root_key().display()),
            "The pool stays sealed and answers 503. Nothing is lost.",
            "put the file back from its copy, and the pool opens",
        ));
    }
    let beside = match machine::same_file_system(layout)? {
        true => "on the same file system as pool/",
        false => "on another file system than pool/",
    };
    Ok(Finding::weak(
        NAME,
        format!("a file, {}, {beside}", layout.root_key().display()),
        "With it and pool/ every record opens, offline. It stops who takes pool/ alone; it does not stop root, this user, or who copies the whole directory.",
        "keep root/ on another disk (a symbolic link will do) and out of copies of pool/; or begin a pool with --root-credential",
    ))
}

/// By what is in `ceremony/`: who else holds a domain the holders know.
fn security_domain(layout: &Layout) -> std::io::Result<Finding> {
    const NAME: &str = "security domain";
    let ceremony = layout.ceremony();
    let mut keys = 0;
    if ceremony.is_dir() {
        for entry in std::fs::read_dir(&ceremony)? {
            keys += usize::from(entry?.path().extension().is_some_and(|extension| extension == "key"));
        }
    }
    Ok(match (ceremony.join(holders::FILE).exists(), keys) {
        (false, _) => Finding::missing(
            NAME,
            "there is no file of it in ceremony/",
            "Unless other holders were given it, nobody can bring it into another pool when this disk or root.key is lost.",
            "a quickstart makes it in the first seconds after its start; if it does not, its log says why",
        ),
        (true, 0) => Finding::ok(NAME, "is in ceremony/, and no holder's key is beside it"),
        (true, keys) => Finding::weak(
            NAME,
            format!("in ceremony/, beside {keys} of its holders' keys, none with a passphrase"),
            "Who copies this directory has a quorum; who loses it, with the disk, has none.",
            "move each holder-N.key to a place of its own; docs/ceremony.md has how real holders do it",
        ),
    })
}

fn backup(facts: &Result<Facts, Unanswered>, now: SystemTime) -> Finding {
    const NAME: &str = "backup";
    const WHY: &str = "What was made since is lost with the machine's disk.";
    const REMEDY: &str =
        "`holdfast backup start`, now and regularly, to where this machine's fate does not reach";
    let Ok(facts) = facts else {
        return Finding::unknown(NAME, "only the running pool says when it made one");
    };
    let Some(at) = facts.last_backup else {
        return Finding::missing(NAME, "this pool has made none", WHY, REMEDY);
    };
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(u64::try_from(at).unwrap_or_default()) / SECONDS_PER_DAY.unsigned_abs() {
        0 => Finding::ok(NAME, "the last full one was completed today"),
        days @ ..=BACKUP_DAYS => {
            Finding::ok(NAME, format!("the last full one was completed {days} days ago"))
        }
        days => Finding::weak(NAME, format!("the last full one was completed {days} days ago"), WHY, REMEDY),
    }
}

/// What this release does not have, whatever the pool.
fn absent() -> [Finding; 2] {
    [
        Finding::missing(
            "rollback",
            "undetected: no anchor",
            "Who puts pool/ back to an earlier copy brings back revoked roles and deleted keys and removes events; nothing here notices.",
            "keep receipts (x-holdfast-receipt) elsewhere, and give them to `holdfast audit verify --receipt`",
        ),
        Finding::missing(
            "live root",
            "not stopped: no sandbox of its own, no confidential VM",
            "Root on this machine reads keys from memory while the pool runs.",
            "let nobody be root there whom you would not give the keys",
        ),
    ]
}

fn swap(protection: &Protection, swaps: Option<bool>) -> Finding {
    let weak = |found, why| {
        let remedy =
            "raise RLIMIT_MEMLOCK (ulimit -l unlimited) and start the pool again, or do without swap";
        Finding::weak("swap", found, why, remedy)
    };
    match (protection.memory_locked, protection.arena_locked, swaps) {
        (Some(true), None | Some(true), _) => Finding::ok("swap", "memory is locked"),
        (_, _, Some(false)) => Finding::ok("swap", "memory is not locked, and this machine has no swap now"),
        (None, _, _) => Finding::unknown("swap", "the pool does not say whether memory is locked"),
        (Some(false), Some(true), _) => weak(
            "memory of keys is locked, and no other",
            "Plaintexts and secrets of the pool may reach the swap device, and stay there.",
        ),
        (Some(_), _, _) => weak("memory is not locked", "Keys may reach the swap device, and stay there."),
    }
}

fn of_process(facts: &Result<Facts, Unanswered>) -> Vec<Finding> {
    let Ok(Facts { protection, .. }) = facts else {
        return vec![Finding::unknown(
            "memory of the process",
            "only the running pool says how it is protected",
        )];
    };
    let Protection { dumpable, core_limit, no_new_privileges, filtered, .. } = protection;
    let weak = |check, found, why, remedy| Finding::weak(check, found, why, remedy);
    vec![
        match (dumpable, core_limit) {
            (Some(false), Some(0)) => Finding::ok(
                "core files and debuggers",
                "no core file is written, and no process of the same user attaches",
            ),
            _ => weak(
                "core files and debuggers",
                "RLIMIT_CORE or PR_SET_DUMPABLE was refused",
                "A crash may write keys to disk, or another program of the same user may read them.",
                "allow both where the pool is started; ulimit -c 0",
            ),
        },
        swap(protection, machine::swaps()),
        match no_new_privileges {
            Some(true) => Finding::ok("gain of rights", "nothing that the process starts can gain any"),
            _ => weak(
                "gain of rights",
                "PR_SET_NO_NEW_PRIVS was refused",
                "A program started from a process that was taken over could gain rights.",
                "allow it where the pool is started",
            ),
        },
        match filtered {
            Some(true) => Finding::ok("system calls", "are filtered"),
            _ => Finding::missing(
                "system calls",
                "are not filtered",
                "A flaw in the server has all the rights of its user.",
                "run it in a container or unit with a seccomp filter, under a user of its own",
            ),
        },
    ]
}

/// What a quickstart puts on one machine that an owner would keep apart.
fn of_quickstart(principals: &Principals) -> Vec<Finding> {
    let mut findings = vec![
        Finding::weak(
            "identity issuer",
            "runs in the pool's process; its key is in identity/issuer.json",
            "Who has it is any principal of the pool.",
            "`holdfast pool create` pins an issuer of yours",
        ),
        Finding::weak(
            "certificate authority",
            "its key is in ca/ca.key",
            "Who has it can stand between the pool and a client that trusts it.",
            "do not add this CA to a system's trust store",
        ),
        Finding::weak(
            "clients' secrets",
            "in clear in identity/: principals.json, app.pem and identity-header, for `holdfast env`",
            "Who reads the first may use every key and assign every role; the others are as good as `app`.",
            "keep this directory, and shells that ran `holdfast env`, to yourself",
        ),
    ];
    if principals.conformance.is_some() {
        findings.push(Finding::weak(
            "conformance principal",
            "holds Administrator, Crypto Officer and Crypto User at once",
            "Nothing that one role keeps from another is kept from it.",
            "begin anew without --with-conformance-principal",
        ));
    }
    findings
}

fn managed_identity(settings: &Settings) -> Finding {
    const NAME: &str = "managed identity";
    let address = (Ipv4Addr::LOCALHOST, settings.managed_identity_port()).into();
    match TcpStream::connect_timeout(&address, LOOPBACK_TIME) {
        Err(_) => Finding::ok(NAME, "nobody answers for it"),
        Ok(_) => Finding::weak(
            NAME,
            format!("answers at port {} of this machine", settings.managed_identity_port()),
            "Every program here, of whichever user, can be the principal app.",
            "start the quickstart with --no-managed-identity",
        ),
    }
}

fn authority(layout: &Layout, now: SystemTime) -> Result<Finding, CommandError> {
    let path = layout.ca_certificate();
    let pem = std::fs::read(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let der = CertificateDer::from_pem_slice(&pem)
        .map_err(|_| format!("{} is damaged: it is not a certificate in PEM", path.display()))?;
    let remedy = "stop the pool, remove ca/, start it: clients need the new ca.pem";
    Ok(machine::certificate("certificate of the CA", &der, now, remedy))
}

/// What the pool shows to every client, and to those that may read keys and settings.
fn over_the_wire(layout: &Layout, principal: &str, now: SystemTime) -> Result<Vec<Finding>, CommandError> {
    let mut client = Client::new(Target::quickstart(layout, principal)?);
    let mut administrator = Client::new(Target::quickstart(layout, "admin")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (keys, settings) = runtime.block_on(async {
        (keys::Keys::read(&mut client).await, client::setting::all(&mut administrator).await)
    });
    let mut findings = Vec::new();
    if let Some(certificate) = client.channel().certificate() {
        let remedy = "start the pool again: it gets a certificate for 90 days at each start";
        findings.push(machine::certificate("certificate of the pool", certificate, now, remedy));
    }
    let settings = settings.unwrap_or_default();
    let is_on = |setting: Setting| {
        settings.iter().find(|held| held.name == setting.name())?.value.parse::<bool>().ok()
    };
    let taken = OldAlgorithms { rsa15: is_on(Setting::Rsa15Decryption), cbc: is_on(Setting::Cbc) };
    match keys {
        Ok(keys) => {
            findings.extend(keys.findings(now, limits::read(&layout.limits())?.versions_per_key));
            findings.extend(keys::old_algorithms(Some(&keys), taken));
        }
        Err(error) => {
            let found = format!(
                "not looked at, as {principal} cannot list them ({error}); --as names another principal"
            );
            findings.push(Finding::unknown("keys", found));
            findings.extend(keys::old_algorithms(None, taken));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            pid: 1,
            class: "production".into(),
            retention_days: 90,
            purge_protection: true,
            audit_durability: "synced".into(),
            break_glass_group: None,
            active: Some(true),
            unconfirmed_fingerprint: None,
            last_backup: Some(0),
            network: Some(Network { rules: "closed".into(), open_to_all: false }),
            protection: Protection {
                dumpable: Some(false),
                core_limit: Some(0),
                no_new_privileges: Some(true),
                filtered: Some(true),
                memory_locked: Some(true),
                arena_locked: Some(true),
            },
        }
    }

    fn short(findings: &[Finding]) -> Vec<&'static str> {
        findings.iter().filter(|finding| finding.state.falls_short()).map(|finding| finding.check).collect()
    }

    #[test]
    fn each_fact_that_falls_short_has_its_row() {
        assert!(short(&of_genesis(&Ok(facts()))).is_empty());
        assert!(short(&of_process(&Ok(facts()))).is_empty());
        let genesis = |change: fn(&mut Facts)| {
            let mut facts = facts();
            change(&mut facts);
            short(&of_genesis(&Ok(facts)))
        };
        assert_eq!(genesis(|facts| facts.class = "test".into()), ["class"]);
        assert_eq!(genesis(|facts| facts.purge_protection = false), ["purge protection"]);
        assert_eq!(genesis(|facts| facts.retention_days = 89), ["retention"]);
        assert_eq!(genesis(|facts| facts.audit_durability = "written".into()), ["audit durability"]);
        assert_eq!(genesis(|facts| facts.break_glass_group = Some("g".into())), ["break-glass group"]);
        let process = |change: fn(&mut Protection)| {
            let mut facts = facts();
            change(&mut facts.protection);
            short(&of_process(&Ok(facts)))
        };
        for change in [
            (|protection| protection.dumpable = Some(true)) as fn(&mut Protection),
            |protection| protection.dumpable = None,
            |protection| protection.core_limit = None,
            |protection| protection.core_limit = Some(1),
        ] {
            assert_eq!(process(change), ["core files and debuggers"]);
        }
        let swap = |memory_locked, arena_locked, swaps| {
            let held = Protection { memory_locked, arena_locked, ..facts().protection };
            super::swap(&held, swaps).state
        };
        for swaps in [Some(true), None] {
            assert_eq!(swap(Some(true), Some(true), swaps), State::Ok);
            // The first of the arena is locked where the limit is far too low for the rest.
            assert_eq!(swap(Some(false), Some(true), swaps), State::Weak);
            assert_eq!(swap(Some(false), None, swaps), State::Weak);
            assert_eq!(swap(Some(true), Some(false), swaps), State::Weak);
            assert_eq!(swap(None, None, swaps), State::Unknown);
        }
        assert_eq!(swap(Some(false), Some(false), Some(false)), State::Ok);
        assert_eq!(process(|protection| protection.no_new_privileges = None), ["gain of rights"]);
        assert_eq!(process(|protection| protection.filtered = Some(false)), ["system calls"]);
    }

    #[test]
    fn a_domain_that_nobody_confirmed_is_shown_with_its_fingerprint() {
        let mut held = facts();
        assert_eq!(of_domain(&Ok(facts())).state, State::Ok);
        held.unconfirmed_fingerprint = Some("abcd".into());
        let unconfirmed = of_domain(&Ok(held));
        assert!(unconfirmed.state == State::Missing && unconfirmed.found.contains("abcd"));
        let mut held = facts();
        held.active = Some(false);
        assert_eq!(of_domain(&Ok(held)).state, State::Missing);
    }

    #[test]
    fn a_domain_is_as_safe_as_its_holders_keys_are_apart() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        let state = || security_domain(&layout).unwrap().state;
        assert_eq!(state(), State::Missing);
        crate::files::create_directory(&layout.ceremony()).unwrap();
        let make = |name: &str| crate::files::write(&layout.ceremony().join(name), b"").unwrap();
        make("holder-1.key");
        make("holder-1.cer");
        assert_eq!(state(), State::Missing);
        make(holders::FILE);
        assert_eq!(state(), State::Weak);
        std::fs::remove_file(layout.ceremony().join("holder-1.key")).unwrap();
        assert_eq!(state(), State::Ok);
    }

    #[test]
    fn what_cannot_be_seen_is_unknown_and_not_well() {
        for unanswered in [Unanswered::NotRunning, Unanswered::NoFacts] {
            for findings in [of_genesis(&Err(unanswered)), of_process(&Err(unanswered))] {
                assert!(findings.iter().all(|finding| finding.state == State::Unknown));
            }
        }
    }

    #[test]
    fn network_rules_are_looked_at_as_they_are_in_force() {
        let of = |facts: Facts, written: Result<&str, &str>| {
            of_network(&Ok(facts), written.map(str::to_owned).map_err(str::to_owned))
        };
        assert_eq!(of(facts(), Ok("closed")).state, State::Ok);
        let other = of(facts(), Ok("closed, but for one"));
        assert!(other.state == State::Weak && other.found.contains("but for one"));
        let open = Some(Network { rules: "closed".into(), open_to_all: true });
        assert_eq!(of(Facts { network: open, ..facts() }, Ok("closed")).state, State::Weak);
        let unreadable = of(facts(), Err("line 3"));
        assert!(unreadable.state == State::Weak && unreadable.found.contains("line 3"));
        assert_eq!(of(Facts { network: None, ..facts() }, Ok("closed")).state, State::Unknown);
        assert_eq!(of_network(&Err(Unanswered::NotRunning), Ok("closed".into())).state, State::Unknown);
    }

    #[test]
    fn a_backup_grows_old() {
        let of = |at, days: u64| {
            let facts = Facts { last_backup: at, ..facts() };
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(days * SECONDS_PER_DAY.unsigned_abs());
            backup(&Ok(facts), now).state.falls_short()
        };
        assert_eq!(
            [of(None, 1), of(Some(0), 0), of(Some(0), 31), of(Some(0), 32)],
            [true, false, false, true]
        );
    }

    #[test]
    fn whatever_falls_short_says_why_and_what_to_do() {
        let mut weak = facts();
        weak.class = "test".into();
        weak.purge_protection = false;
        let findings: Vec<_> = of_genesis(&Ok(weak))
            .into_iter()
            .chain(absent())
            .chain([backup(&Ok(Facts { last_backup: None, ..facts() }), SystemTime::now())])
            .filter(|finding| finding.state.falls_short())
            .collect();
        assert!(findings.len() >= 5);
        for finding in findings {
            assert!(!finding.why.is_empty() && !finding.remedy.is_empty(), "{}", finding.check);
        }
    }
}
