//! `holdfast pool create`: founds a pool of class production.

use super::passphrase::Sealing;
use super::tls;
use crate::CommandError;
use crate::hardening;
use crate::instance::{Founding, resource_suffix};
use crate::issuer_key_source;
use crate::layout::Layout;
use crate::limits;
use crate::outgoing::{Given, Outgoing};
use crate::output::line;
use crate::root_of_trust::RootOfTrust;
use crate::{files, remains, running};
use domain::guid::Guid;
use domain::name::PoolName;
use domain::pool::{AuditDurability, Genesis, IssuerPin, KeySource, PoolClass, RetentionDays};
use domain::principal::TenantId;
use identity::{Audiences, KeySet};
use service::{Pool, Random, SystemRandom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;

/// Of a file of keys or roots. Both are pinned in genesis, which is one record.
const MAX_PINNED_BYTES: u64 = 256 * 1024;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where everything is to be kept: a new directory, or an empty one.
    #[arg(long = "data", value_name = "DIR")]
    data: PathBuf,
    /// The pool's name, 3 to 24 letters, digits and hyphens: the first label of its host.
    #[arg(long)]
    name: PoolName,
    /// Its host is NAME.managedhsm.DOMAIN, and tokens for it are tokens for https://managedhsm.DOMAIN.
    #[arg(long)]
    domain: String,
    /// Who signs callers' tokens, as their `iss` says. Can be given again where it has several names.
    #[arg(long, value_name = "URL", required = true)]
    issuer: Vec<String>,
    /// Where clients are sent for tokens; the issuer without its /v2.0 unless said.
    #[arg(long, value_name = "URL")]
    authority: Option<String>,
    /// The issuer's keys, a JSON Web Key Set. These are the only ones for ever, unless --issuer-keys-url says where to ask.
    #[arg(long, value_name = "FILE")]
    issuer_keys: PathBuf,
    /// Where the issuer serves its keys. Needs --issuer-ca.
    #[arg(long, value_name = "URL", requires = "issuer_ca")]
    issuer_keys_url: Option<String>,
    /// The CAs that count for --issuer-keys-url, in PEM. No others do.
    #[arg(long, value_name = "FILE", requires = "issuer_keys_url")]
    issuer_ca: Option<PathBuf>,
    /// The tenant in callers' tokens.
    #[arg(long)]
    tenant: String,
    /// Object id of one who is to hold Managed HSM Administrator from the start. Can be given again.
    #[arg(long = "administrator", value_name = "ID", required = true)]
    administrators: Vec<Guid>,
    /// Seal the pool's secrets under the passphrase in the first line of this file, such as a credential of systemd. It is needed
    /// at each start, and kept nowhere.
    #[arg(long, value_name = "FILE")]
    root_credential: PathBuf,
    /// Let nobody purge a deleted key before its retention has passed.
    #[arg(long)]
    purge_protection: bool,
    /// Days for which a deleted key can be recovered: 7 to 90.
    #[arg(long, value_name = "DAYS", default_value_t = RetentionDays::DEFAULT.days(), value_parser = clap::value_parser!(u8).range(7..=90))]
    retention_days: u8,
    /// A group whose members may assign Managed HSM Administrator at `/` without holding a role. None unless said.
    #[arg(long, value_name = "ID")]
    break_glass_group: Option<Guid>,
    /// Let the security domain be downloaded again, for other holders. One stolen administrator's token then defeats the
    /// quorum.
    #[arg(long)]
    allow_domain_redownload: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    hardening::for_class(PoolClass::Production)?;
    let genesis = genesis(arguments)?;
    let root = RootOfTrust::credential(&arguments.root_credential)?;
    let layout = Layout::new(arguments.data.clone());
    if layout.principals().exists() || layout.settings().exists() {
        return Err(format!("{} has a quickstart: choose another directory", layout.data.display()).into());
    }
    for directory in [&layout.data, &layout.data.join("run"), &layout.tls(), &layout.pool()] {
        files::create_directory(directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    let _lock = running::lock(&layout)?;
    remains::check_production(&layout)?;
    let _sealing = Sealing::begin(&layout)?;
    let place = layout.production_place(root);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut is_new = false;
    let pool = runtime.block_on(async {
        let found = || {
            is_new = true;
            Ok(Founding { genesis, activation: None })
        };
        let outgoing = Outgoing::read(&layout.limits(), &Given::default())?;
        let (switch, _) = watch::channel(false);
        place.open(found, limits::read(&layout.limits())?, &outgoing, switch).await
    })?;
    // Of the pool that there is, should it have been founded before.
    let host = host(pool.genesis())?;
    let described = describe(&pool, &host);
    // The first start may have been cut short between the two.
    is_new |= !layout.tls_request().exists();
    let made = if is_new { tls::request(&layout, &place, &host).map(drop) } else { Ok(()) };
    runtime.block_on(pool.close());
    made?;
    if !is_new {
        return Err(format!(
            "{} holds a pool already, and what it is was said when it was founded:\n{}",
            layout.data.display(),
            described.join("\n")
        )
        .into());
    }
    print(&layout, &described, &host)?;
    Ok(ExitCode::SUCCESS)
}

fn genesis(arguments: &Arguments) -> Result<Genesis, CommandError> {
    let suffix = format!("managedhsm.{}", arguments.domain.to_ascii_lowercase());
    Audiences::new([&suffix], [""; 0]).map_err(|error| format!("--domain {}: {error}", arguments.domain))?;
    for url in arguments.issuer.iter().chain(&arguments.authority) {
        if !url.starts_with("https://") {
            return Err(format!("{url} does not begin with https://").into());
        }
    }
    let key_set = read_pinned(&arguments.issuer_keys)?;
    KeySet::parse(&key_set).map_err(|error| format!("{}: {error}", arguments.issuer_keys.display()))?;
    let key_source = match (&arguments.issuer_keys_url, &arguments.issuer_ca) {
        (Some(url), Some(ca)) => Some(KeySource { url: url.clone(), roots: read_pinned(ca)? }),
        _ => None,
    };
    if let Some(source) = &key_source {
        issuer_key_source::connect_pinned(source)?;
    }
    let issuer = arguments.issuer.first().ok_or("--issuer is missing")?;
    let authority = arguments.authority.as_deref().unwrap_or_else(|| {
        let issuer = issuer.trim_end_matches('/');
        issuer.strip_suffix("/v2.0").unwrap_or(issuer)
    });
    let genesis = Genesis {
        pool: SystemRandom.guid(),
        name: arguments.name.clone(),
        security_domain: SystemRandom.guid(),
        class: PoolClass::Production,
        tenant: TenantId::parse(&arguments.tenant).map_err(|error| format!("--tenant: {error}"))?,
        issuer: IssuerPin {
            issuers: arguments.issuer.clone(),
            authority: authority.to_owned(),
            key_set,
            audiences: vec![format!("https://{suffix}")],
            key_source,
        },
        initial_administrators: arguments.administrators.clone(),
        break_glass_group: arguments.break_glass_group,
        retention: RetentionDays::new(u32::from(arguments.retention_days))?,
        purge_protection: arguments.purge_protection,
        audit_durability: AuditDurability::Synced,
        allow_domain_redownload: arguments.allow_domain_redownload,
    };
    genesis.check()?;
    Ok(genesis)
}

fn read_pinned(path: &Path) -> Result<Vec<u8>, CommandError> {
    let shown = path.display();
    let content = std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
    if content.len() as u64 > MAX_PINNED_BYTES {
        return Err(format!("{shown} has more than {MAX_PINNED_BYTES} bytes").into());
    }
    Ok(content)
}

/// The one host of a pool of class production.
pub fn host(genesis: &Genesis) -> Result<String, CommandError> {
    Ok(format!("{}.{}", genesis.name, resource_suffix(genesis)?).to_ascii_lowercase())
}

/// What an owner writes down, and compares with `holdfast ceremony inspect` before the pool is trusted.
fn describe(pool: &Arc<Pool>, host: &str) -> Vec<String> {
    let genesis = pool.genesis();
    let yes = |value: bool| if value { "yes" } else { "no" };
    let list = |values: Vec<String>| values.join(", ");
    vec![
        format!("  pool               {} ({})", genesis.name, genesis.pool),
        format!("  host               {host}"),
        format!("  genesis            {}", crypto::digest::hex(&pool.genesis_hash())),
        format!("  owner key          {}", pool.domain_fingerprint()),
        format!("  tokens for         {}", list(genesis.issuer.audiences.clone())),
        format!("  issued by          {}", list(genesis.issuer.issuers.clone())),
        format!("  tenant             {}", genesis.tenant),
        format!(
            "  administrators     {}",
            list(genesis.initial_administrators.iter().map(Guid::to_string).collect())
        ),
        format!(
            "  break-glass group  {}",
            genesis.break_glass_group.map_or("none".to_owned(), |id| id.to_string())
        ),
        format!(
            "  retention          {} days, purge protection: {}",
            genesis.retention.days(),
            yes(genesis.purge_protection)
        ),
        format!("  domain again       {}", yes(genesis.allow_domain_redownload)),
    ]
}

fn print(layout: &Layout, described: &[String], host: &str) -> Result<(), CommandError> {
    let data = crate::environment::word(&layout.data.display().to_string());
    line(format_args!(
        "A pool of class production was founded. Write this down where nobody who runs this machine can change it:

{}

What comes next:

  1. Have your CA sign {} for {host}, then
     holdfast pool certificate install --data {data} --chain CHAIN.pem
  2. holdfast pool serve --data {data} --root-credential FILE --listen ADDRESS:PORT
  3. An administrator named above downloads the security domain for its holders, which activates the pool, and compares
     genesis and owner key: holdfast ceremony inspect FILE",
        described.join("\n"),
        layout.tls_request().display(),
    ))?;
    Ok(())
}
