//! `holdfast quickstart`: a pool named `demo` of class test with an issuer and a CA of its own, in one process, ready
//! in under a second. Run again, all is as it was.
//!
//! Everything is made step by step, each file wholly or not at all, so that whatever moment the first start ends at,
//! the next one goes on from there.

use crate::CommandError;
use crate::certificates::CertificateAuthority;
use crate::layout::{self, DEFAULT_PORT, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::listener::{self, Limits, Peer};
use crate::{admin, files, hardening, proxy, running};
use api_data::{Api, ApiConfig, Connection};
use crypto::SecretBytes;
use crypto::domain_secrets::DomainSecrets;
use crypto_software::SoftwarePartition;
use domain::access::{BuiltInRole, Scope};
use domain::guid::Guid;
use domain::pool::{AuditDurability, Genesis, IssuerPin, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::Time;
use host::Engine;
use host_embedded::{EngineOptions, FileLog, LogOptions, RedbEngine};
use hyper::service::service_fn;
use hyper_util::service::TowerToHyperService;
use identity::Audiences;
use identity::issuer::{
    DEFAULT_TOKEN_LIFETIME, GRAPH_AUDIENCE, Issuer, IssuerConfig, IssuerState, RESOURCE_MANAGER_AUDIENCES,
    generate_client_secret,
};
use seal::{FILE_ROOT_BYTES, FileRoot, Root};
use serde::{Deserialize, Serialize};
use service::{Clock, Pool, PoolLimits, PoolParts, Random, SystemClock, SystemRandom};
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

/// Issuer and proxy ports, counted from the pool's.
const ISSUER_OFFSET: u16 = 3;
const PROXY_OFFSET: u16 = 4;
const PUBLIC_AUDIENCE: &str = "https://managedhsm.azure.net";
const BACKLOG: u32 = 1024;
const DETACH_TIME: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub struct Arguments {
    /// Where everything is kept.
    #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
    data: PathBuf,
    /// The pool's port; the issuer is at this plus 3, the CONNECT proxy at this plus 4. Default 8443, or as last time.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_531))]
    port: Option<u16>,
    /// Serve in the background; `holdfast stop` ends it.
    #[arg(long)]
    detach: bool,
    /// Also make a principal that holds Administrator, Crypto Officer and Crypto User, for conformance suites.
    #[arg(long)]
    with_conformance_principal: bool,
    /// Trust the CAs in this PEM file for calls that the pool makes (class test only; no operation makes one yet).
    #[arg(long, value_name = "FILE")]
    trust_ca: Option<PathBuf>,
    /// Print the lines for /etc/hosts, and do nothing else.
    #[arg(long)]
    hosts: bool,
}

/// What is to be as it was at the next start.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    version: u32,
    pub port: u16,
}

/// The principals of a quickstart, with their secrets, for `holdfast env`.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Principals {
    version: u32,
    pub tenant: String,
    pub admin: Principal,
    pub app: Principal,
    pub conformance: Option<Principal>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    pub client_id: String,
    pub object_id: String,
    pub client_secret: Zeroizing<String>,
}

impl Settings {
    pub fn read(layout: &Layout) -> Result<Option<Self>, CommandError> {
        read_json(&layout.settings())
    }

    pub fn issuer_url(&self) -> String {
        format!("https://localhost:{}", self.port + ISSUER_OFFSET)
    }

    pub fn proxy_port(&self) -> u16 {
        self.port + PROXY_OFFSET
    }
}

impl Principals {
    pub fn read(layout: &Layout) -> Result<Option<Self>, CommandError> {
        read_json(&layout.principals())
    }

    /// Reads the principals; makes those that are missing.
    fn open(layout: &Layout, with_conformance: bool) -> Result<Self, CommandError> {
        let held = Self::read(layout)?;
        let complete = held.as_ref().is_some_and(|held| held.conformance.is_some() || !with_conformance);
        let mut principals = match held {
            Some(held) => held,
            None => Self {
                version: 1,
                tenant: SystemRandom.guid().to_string(),
                admin: Principal::new()?,
                app: Principal::new()?,
                conformance: None,
            },
        };
        if with_conformance && principals.conformance.is_none() {
            principals.conformance = Some(Principal::new()?);
        }
        if !complete {
            files::write(&layout.principals(), &Zeroizing::new(serde_json::to_vec_pretty(&principals)?))?;
        }
        Ok(principals)
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &Principal)> {
        let conformance = self.conformance.as_ref().map(|principal| ("conformance", principal));
        [("admin", &self.admin), ("app", &self.app)].into_iter().chain(conformance)
    }
}

impl Principal {
    fn new() -> Result<Self, CommandError> {
        Ok(Self {
            client_id: SystemRandom.guid().to_string(),
            object_id: SystemRandom.guid().to_string(),
            client_secret: generate_client_secret()?,
        })
    }

    fn object_id(&self) -> Result<Guid, CommandError> {
        Ok(self.object_id.parse()?)
    }
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    if arguments.hosts {
        println!("127.0.0.1 {POOL_NAME}.{RESOURCE_SUFFIX}");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(path) = &arguments.trust_ca {
        let pem = std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let count = rustls_pki_types::pem::PemObject::pem_slice_iter(&pem)
            .filter(|read: &Result<rustls_pki_types::CertificateDer<'_>, _>| read.is_ok())
            .count();
        if count == 0 {
            return Err(format!("{} holds no certificate in PEM", path.display()).into());
        }
    }
    if arguments.detach {
        return detach(&arguments);
    }
    let hardening = hardening::harden();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(std::io::stderr)
        .compact()
        .init();
    if !(hardening.no_dumps && hardening.no_new_privileges) {
        tracing::warn!(?hardening, "this process could not be hardened wholly");
    }
    if !hardening.memory_locked {
        tracing::info!("memory is not locked: raise RLIMIT_MEMLOCK so that keys cannot reach swap");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(&arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Arguments) -> Result<(), CommandError> {
    let layout = Layout::new(arguments.data.clone());
    for directory in layout.directories() {
        files::create_directory(&directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    let _lock = running::lock(&layout)?;
    let before = Settings::read(&layout)?;
    let port = arguments.port.or(before.as_ref().map(|held| held.port)).unwrap_or(DEFAULT_PORT);
    let settings = Settings { version: 1, port };
    let listeners = Listeners::bind(&settings)?;
    if before.is_none_or(|before| before.port != port) {
        files::write(&layout.settings(), &serde_json::to_vec_pretty(&settings)?)?;
    }

    let principals = Principals::open(&layout, arguments.with_conformance_principal)?;
    let authority = CertificateAuthority::open(&layout)?;
    let issuer = open_issuer(&layout, &settings, &principals)?;
    let pool = open_pool(&layout, &issuer, &principals).await?;

    let (close, closing) = watch::channel(false);
    let mut services = JoinSet::new();
    let api = Arc::new(Api::new(
        pool.clone(),
        ApiConfig {
            hosts: [&format!("{POOL_NAME}.{RESOURCE_SUFFIX}"), "localhost", "127.0.0.1", "[::1]"]
                .map(String::from)
                .to_vec(),
            authority: format!("{}/{}", settings.issuer_url(), principals.tenant),
            audiences: Audiences::new([RESOURCE_SUFFIX], [PUBLIC_AUDIENCE])?,
            default_resource: format!("https://{RESOURCE_SUFFIX}:{port}"),
        },
    ));
    let pool_tls = authority.server_config()?;
    for listener in listeners.pool {
        let api = api.clone();
        let handler = move |peer: Peer| {
            let api = api.clone();
            let Peer { address, server_name, local_port } = peer;
            let connection = Connection { peer: address, server_name, local_port };
            service_fn(move |request| {
                let (api, connection) = (api.clone(), connection.clone());
                async move { Ok::<_, Infallible>(api.handle(request, connection).await) }
            })
        };
        services.spawn(listener::serve(
            listener,
            pool_tls.clone(),
            Limits::default(),
            closing.clone(),
            handler,
        ));
    }
    let issuer_tls = authority.server_config()?;
    let router = issuer.router();
    for listener in listeners.issuer {
        let router = router.clone();
        let handler = move |_: Peer| TowerToHyperService::new(router.clone());
        services.spawn(listener::serve(
            listener,
            issuer_tls.clone(),
            Limits::default(),
            closing.clone(),
            handler,
        ));
    }
    services.spawn(proxy::serve(listeners.proxy, vec![port, port + ISSUER_OFFSET], closing.clone()));
    services.spawn(admin::serve(admin::bind(&layout.admin_socket())?, pool.clone(), closing));

    files::write(&layout.ready(), std::process::id().to_string().as_bytes())?;
    print_welcome(&layout, &settings);
    wait_for_end().await?;
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    drop(api);
    pool.close().await;
    Ok(())
}

async fn wait_for_end() -> Result<(), CommandError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

struct Listeners {
    pool: Vec<TcpListener>,
    issuer: Vec<TcpListener>,
    proxy: TcpListener,
}

impl Listeners {
    fn bind(settings: &Settings) -> Result<Self, CommandError> {
        let on_loopback = |what: &str, port: u16| -> Result<Vec<TcpListener>, CommandError> {
            let mut listeners = vec![bind((Ipv4Addr::LOCALHOST, port).into(), what)?];
            // Where there is no IPv6 loopback, nobody misses it.
            listeners.extend(bind((Ipv6Addr::LOCALHOST, port).into(), what).ok());
            Ok(listeners)
        };
        Ok(Self {
            pool: on_loopback("the pool", settings.port)?,
            issuer: on_loopback("the issuer", settings.port + ISSUER_OFFSET)?,
            proxy: bind((Ipv4Addr::LOCALHOST, settings.proxy_port()).into(), "the CONNECT proxy")?,
        })
    }
}

fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, CommandError> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|error| {
        let port = address.port();
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "is in use".to_owned(),
            _ => format!("cannot be opened ({error})"),
        };
        format!("port {port} for {what} {reason}; choose others with `holdfast quickstart --port N` (N for the pool, N+3 for the issuer, N+4 for the CONNECT proxy)").into()
    })
}

fn open_issuer(
    layout: &Layout,
    settings: &Settings,
    principals: &Principals,
) -> Result<Arc<Issuer>, CommandError> {
    let tenant = TenantId::parse(&principals.tenant)?;
    let held = files::read(&layout.issuer())?;
    let mut state = match &held {
        Some(held) => IssuerState::parse(held)?,
        None => IssuerState::generate(tenant.clone())?,
    };
    for (name, principal) in principals.named() {
        state.register(principal.client_id.parse()?, principal.object_id()?, name, &principal.client_secret);
    }
    let json = state.to_json()?;
    if held.is_none_or(|held| *held != *json) {
        files::write(&layout.issuer(), &json)?;
    }
    let exact = RESOURCE_MANAGER_AUDIENCES.into_iter().chain([GRAPH_AUDIENCE, PUBLIC_AUDIENCE]);
    let config = IssuerConfig {
        base_url: settings.issuer_url(),
        issuer: Some(token_issuer(&tenant)),
        tenant,
        alias_tenant: Some(TenantId::parse("adfs")?),
        audiences: Audiences::new([RESOURCE_SUFFIX], exact)?,
        clients: state.clients.clone(),
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    };
    let clock = Arc::new(|| -> Time { SystemClock.now() });
    Ok(Arc::new(Issuer::new(config, state.signing_key()?, clock)?))
}

/// `iss` of the quickstart's tokens. Genesis pins it for ever, so it says nothing of ports.
fn token_issuer(tenant: &TenantId) -> String {
    format!("https://issuer.localhost/{tenant}/v2.0")
}

async fn open_pool(
    layout: &Layout,
    issuer: &Issuer,
    principals: &Principals,
) -> Result<Arc<Pool>, CommandError> {
    let root_key = files::read_or_make::<CommandError>(&layout.root_key(), || {
        let mut key = Zeroizing::new(vec![0; FILE_ROOT_BYTES]);
        SystemRandom.fill(&mut key);
        Ok(key)
    })?;
    let root = FileRoot::new(SecretBytes::new(root_key.to_vec()))?;
    let node = files::read_or_make::<CommandError>(&layout.node(), || {
        Ok(Zeroizing::new(SystemRandom.guid().to_string().into_bytes()))
    })?;
    let node: Guid = std::str::from_utf8(&node)?.trim().parse()?;
    let sealed = files::read_or_make::<CommandError>(&layout.sealed_domain(), || {
        Ok(Zeroizing::new(root.seal(node, &DomainSecrets::generate().danger_export())))
    })?;
    let secrets = root.open(node, &sealed).map_err(|error| {
        format!(
            "{} and {} do not belong together: {error}",
            layout.sealed_domain().display(),
            layout.root_key().display()
        )
    })?;
    let secrets = DomainSecrets::import(&secrets)?;
    let owner = secrets.owner_key().public_key();
    files::read_or_make::<CommandError>(&layout.owner_key(), || {
        Ok(Zeroizing::new(owner.to_pem().into_bytes()))
    })?;

    let engine: Arc<dyn Engine> = Arc::new(RedbEngine::open(layout.store(), EngineOptions::default())?);
    let log = Arc::new(FileLog::open(layout.audit(), LogOptions::default())?);
    if !Pool::is_founded(engine.as_ref(), &secrets).await? {
        Pool::found(engine.as_ref(), &secrets, genesis(issuer, principals)?).await?;
    }
    let parts = PoolParts {
        engine,
        log,
        partition: Arc::new(SoftwarePartition::new(secrets.partition_wrapping_key())),
        secrets,
        node,
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        limits: PoolLimits::default(),
        resource_suffixes: vec![RESOURCE_SUFFIX.to_owned()],
    };
    let pool = Pool::open(parts).await?;
    let mut assignments = vec![(principals.app.object_id()?, BuiltInRole::CryptoUser, Scope::Root)];
    if let Some(conformance) = &principals.conformance {
        let roles = [BuiltInRole::Administrator, BuiltInRole::CryptoOfficer, BuiltInRole::CryptoUser];
        let object_id = conformance.object_id()?;
        assignments.extend(roles.map(|role| (object_id, role, Scope::Root)));
    }
    pool.bootstrap_assignments(assignments).await?;
    Ok(pool)
}

fn genesis(issuer: &Issuer, principals: &Principals) -> Result<Genesis, CommandError> {
    let genesis = Genesis {
        pool: SystemRandom.guid(),
        name: POOL_NAME.parse()?,
        security_domain: SystemRandom.guid(),
        class: PoolClass::Test,
        tenant: TenantId::parse(&principals.tenant)?,
        issuer: IssuerPin {
            issuers: vec![issuer.issuer()],
            authority: issuer.authority(),
            key_set: issuer.key_set_json(),
            audiences: vec![PUBLIC_AUDIENCE.to_owned()],
        },
        initial_administrators: vec![principals.admin.object_id()?],
        break_glass_group: None,
        retention: RetentionDays::DEFAULT,
        purge_protection: false,
        audit_durability: AuditDurability::Synced,
        allow_domain_redownload: false,
    };
    genesis.check()?;
    Ok(genesis)
}

/// Starts this program once more, in a process group of its own, and waits until it serves.
fn detach(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    let layout = Layout::new(std::path::absolute(&arguments.data)?);
    layout.directories().iter().try_for_each(|directory| files::create_directory(directory))?;
    match std::fs::remove_file(layout.ready()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    files::write(&layout.log(), b"")?;
    let log = std::fs::OpenOptions::new().append(true).open(layout.log())?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("quickstart").arg("--data").arg(&layout.data);
    if let Some(port) = arguments.port {
        command.arg("--port").arg(port.to_string());
    }
    if arguments.with_conformance_principal {
        command.arg("--with-conformance-principal");
    }
    if let Some(path) = &arguments.trust_ca {
        command.arg("--trust-ca").arg(std::path::absolute(path)?);
    }
    let mut child =
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
    let deadline = Instant::now() + DETACH_TIME;
    while !layout.ready().exists() {
        if let Some(status) = child.try_wait()? {
            let log = std::fs::read_to_string(layout.log()).unwrap_or_default();
            eprint!("{log}");
            return Err(format!("the quickstart ended at once ({status})").into());
        }
        if Instant::now() > deadline {
            return Err(format!(
                "the quickstart is not ready after {} s; see {}",
                DETACH_TIME.as_secs(),
                layout.log().display()
            )
            .into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    print!("{}", std::fs::read_to_string(layout.log())?);
    Ok(ExitCode::SUCCESS)
}

fn print_welcome(layout: &Layout, settings: &Settings) {
    let data = layout.data.display();
    let option =
        if layout.data == layout::default_directory() { String::new() } else { format!(" --data '{data}'") };
    println!(
        "Holdfast serves a pool of class test. Do not keep keys in it that matter.

  pool     https://{POOL_NAME}.{RESOURCE_SUFFIX}:{port}  (also https://127.0.0.1:{port})
  issuer   {issuer}
  data     {data}

In another terminal:

  eval \"$(holdfast env{option})\"

  python3 - <<'END'                            # pip install azure-keyvault-keys azure-identity
  import os
  from azure.identity import ClientSecretCredential
  from azure.keyvault.keys import KeyClient
  credential = ClientSecretCredential(
      os.environ[\"TENANT_ID\"], os.environ[\"CLIENT_ID\"], os.environ[\"CLIENT_SECRET\"],
      authority=os.environ[\"AUTHORITY_HOST\"], disable_instance_discovery=True)
  client = KeyClient(os.environ[\"HOLDFAST_POOL_URL_IP\"], credential, verify_challenge_resource=False)
  print(client.create_ec_key(\"first\", hardware_protected=True).id)
  END

By name instead of by address: HTTPS_PROXY=$HOLDFAST_PROXY, or the line of `holdfast quickstart --hosts` in /etc/hosts.
What happened: holdfast audit show{option}
To end it:     holdfast stop{option}",
        port = settings.port,
        issuer = settings.issuer_url(),
    );
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &std::path::Path) -> Result<Option<T>, CommandError> {
    let Some(content) = files::read(path)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&content).map_err(|error| {
        format!("{} is damaged (line {}, column {})", path.display(), error.line(), error.column())
    })?;
    Ok(Some(parsed))
}
