//! `holdfast quickstart`: a pool named `demo` of class test with an issuer, a CA and a gateway of its own, ready
//! in under a second. Run again, all is as it was.
//!
//! Everything is made step by step, each file wholly or not at all, so that whatever moment the first start ends at,
//! the next one goes on from there.

use crate::CommandError;
use crate::azure_blob::IdentityEndpoint;
use crate::certificates::{CertificateAuthority, app_certificate, attestation_key};
use crate::client::apply::Desired;
use crate::environment::word;
use crate::gateway_command::MAX_LISTENERS;
use crate::gateway_process::GatewayProcess;
use crate::layout::{self, CONTROL_HOST, ISSUER_HOST, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::listener::{self, FromGateway, Peer, Shared};
use crate::outgoing::{self, Outgoing};
use crate::places::Capacity;
use crate::pool_directory::{Names, Nobody};
use crate::pool_listener::Way;
use crate::private_networks::{self, PrivateNetwork};
use crate::provisioner::{Children, Ports};
use crate::root_of_trust::{RootOfTrust, Sealed};
use crate::runtime::quick_runtime;
use crate::state::{LAST_PORT, Principals, Settings};
use crate::{
    admin, authority_source, control, detach, environment, files, hardening, holders, instance,
    issuer_federation, issuer_key_source, limits, managed_identity, output, own_user, pool_listener,
    production, provisioner, proxy, remains, running, schedule, sealed,
};
use domain::access::{BuiltInRole, Scope};
use domain::name::PoolName;
use domain::pool::{Genesis, PUBLIC_AUDIENCE, PoolClass, RetentionDays};
use domain::principal::TenantId;
use domain::time::Time;
use hyper_util::service::TowerToHyperService;
use identity::Audiences;
use identity::issuer::attestation::TestAuthority;
use identity::issuer::{
    ClientCertificate, CloudConfig, DEFAULT_TOKEN_LIFETIME, FederatedCredential, GRAPH_AUDIENCE,
    INSTANCE_METADATA_PATH, Issuer, IssuerConfig, IssuerState, ManagedClient, ManagedIdentity, PoolView,
    RESOURCE_MANAGER_AUDIENCES, STORAGE_AUDIENCE, generate_client_secret,
};
use service::{ActivationRecord, Clock, Pool, SystemClock};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

/// Under this name Go clients ask the issuer alone and no directory of clouds.
const ALIAS_TENANT: &str = "adfs";
const BACKLOG: u32 = 1024;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where everything is kept.
    #[arg(long = "data", value_name = "DIR", default_value_os_t = layout::default_directory())]
    data: PathBuf,
    /// The pool's port; the gateway to all pools is at this plus 1, the control plane is at this plus 2, the issuer at this plus 3, the CONNECT proxy at this plus 4, managed identity at this plus 5.
    /// Default 8443, or as last time.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(LAST_PORT)))]
    port: Option<u16>,
    /// Have the gateway listen at this address of the machine as well, and not at its loopback alone; not kept from start to
    /// start. Can be given again.
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<IpAddr>,
    /// Have the gateway listen at this address of the machine for a private network, under a name for it. A pool of the
    /// control plane lets clients in by it once a private endpoint connection from there is approved, whatever its other
    /// network rules are. Not kept from start to start. Can be given again.
    #[arg(long = "private-listen", value_name = "NAME=ADDRESS")]
    private_networks: Vec<PrivateNetwork>,
    /// Send clients to the gateway for everything, also for the issuer and the control plane, so that no other port need be
    /// reached. Kept from start to start. Each client has to find the names that `--hosts` prints.
    #[arg(long)]
    one_port: bool,
    /// Serve in the background; `holdfast stop` ends it.
    #[arg(long)]
    detach: bool,
    /// Also make a principal that holds Administrator, Crypto Officer and Crypto User, for conformance suites.
    #[arg(long)]
    with_conformance_principal: bool,
    #[command(flatten)]
    founding: Founding,
    /// Let tokens of other issuers stand for the principal `app`: those that this file lists with their pinned keys
    /// (docs/formats/federated-credentials.md). Replaces the list of an earlier start.
    #[arg(long, value_name = "FILE")]
    federate: Option<PathBuf>,
    /// Also serve a pool of this name that is provisioned and waits for its security domain to be downloaded, or for
    /// another pool's to be uploaded. At the pool's port plus 10, the next at plus 11; kept from start to start.
    /// Can be given again.
    #[arg(long = "blank-pool", value_name = "NAME")]
    blank_pools: Vec<PoolName>,
    /// Seal the pools' secrets under the passphrase in the first line of this file, such as a credential of systemd or
    /// /dev/fd/3, and keep no key for them on this machine. Given at the first start it is needed at each.
    #[arg(long, value_name = "FILE")]
    root_credential: Option<PathBuf>,
    /// Do without managed identity, by which every program on this machine can be `app`.
    #[arg(long)]
    no_managed_identity: bool,
    /// Sign tokens with a new key from this start on. Tokens from before stay good until the next such start.
    #[arg(long)]
    rotate_issuer_key: bool,
    /// Name the tenant `adfs` in challenges, and not by its GUID: programs in Go with AZURE_TENANT_ID=adfs then ask nobody
    /// but the issuer here.
    #[arg(long)]
    adfs: bool,
    #[command(flatten)]
    outgoing: outgoing::Given,
    /// Make the pool what this file says before it is said to be ready, as `holdfast apply` does. Given again, nothing is done
    /// twice.
    #[arg(long, value_name = "FILE")]
    seed: Option<PathBuf>,
    /// Print how to register this cloud with the Azure CLI and make a pool, and do nothing else. It has to have been
    /// started once.
    #[arg(long)]
    az: bool,
    /// Print the lines for /etc/hosts, and do nothing else.
    #[arg(long)]
    hosts: bool,
    /// This is the process that `--detach` started.
    #[arg(long, hide = true)]
    detached: bool,
}

/// What is fixed when the pool is made; later starts pass over it.
#[derive(Clone, Copy, clap::Args)]
struct Founding {
    /// Days for which a deleted key can be recovered: 7 to 90. Fixed when the pool is made.
    #[arg(long, value_name = "DAYS", default_value_t = RetentionDays::DEFAULT.days(), value_parser = clap::value_parser!(u8).range(7..=90))]
    retention_days: u8,
    /// Let nobody purge a deleted key before its retention has passed. Fixed when the pool is made.
    #[arg(long)]
    purge_protection: bool,
    /// When an answer leaves: once its audit event is on the disk, or once the operating system has it. In that case
    /// loss of power takes events, and the pool then does not open again. Fixed when the pool is made.
    #[arg(long, value_enum, default_value = "synced")]
    audit_durability: Durability,
}

#[derive(Clone, Copy, Eq, PartialEq, clap::ValueEnum)]
enum Durability {
    Synced,
    Written,
}

pub fn run(arguments: Arguments) -> Result<ExitCode, CommandError> {
    if arguments.hosts {
        output::line(format_args!("127.0.0.1 {POOL_NAME}.{RESOURCE_SUFFIX} {ISSUER_HOST} {CONTROL_HOST}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.az {
        return environment::run(&environment::Arguments::for_az(arguments.data));
    }
    // Before anything is made, and by the process that its user sees.
    private_networks::check(&arguments.private_networks, &arguments.listen)?;
    Outgoing::read(&Layout::new(arguments.data.clone()).limits(), &arguments.outgoing)?;
    if arguments.detach {
        return detach(&arguments);
    }
    if arguments.detached {
        detach::leave_terminal()?;
    }
    let hardening = hardening::for_server(PoolClass::Test)?;
    let runtime = quick_runtime()?;
    let credential = arguments.root_credential.as_deref().map(RootOfTrust::credential).transpose()?;
    let layout = Layout::new(arguments.data.clone()).with_credential(credential);
    production::check_not_production(&layout)?;
    files::create_directory(&layout.data)
        .and_then(|()| files::create_directory(&layout.data.join("run")))
        .map_err(|error| format!("cannot make {}: {error}", layout.data.display()))?;
    let _lock = running::lock(&layout)?;
    if rustix::process::geteuid().is_root() && !own_user::can_be_given() {
        tracing::warn!(
            "root lacks capabilities or numbers of users: all processes run as one user (docs/operations.md)"
        );
    }
    let mut first = true;
    let mut rotate = arguments.rotate_issuer_key;
    loop {
        let capacity = Capacity::within(hardening.descriptors);
        let ended = match runtime.block_on(serve(&layout, &arguments, capacity, first, &mut rotate)) {
            Err(error) if error.is::<Sealed>() => {
                runtime.block_on(sealed::serve(&layout, &error, capacity.pool, arguments.detached))?
            }
            ended => ended?,
        };
        match ended {
            Ended::AsAsked => return Ok(ExitCode::SUCCESS),
            // A pool was made anew around another domain, or its root of trust is back: everything opens again, in a
            // fraction of a second.
            Ended::ToSwitch => first = false,
        }
    }
}

/// Why serving ended.
#[derive(Eq, PartialEq)]
pub(crate) enum Ended {
    AsAsked,
    /// A pool was made anew around another domain, or its root of trust is back.
    ToSwitch,
}

async fn serve(
    layout: &Layout,
    arguments: &Arguments,
    capacity: Capacity,
    first: bool,
    rotate: &mut bool,
) -> Result<Ended, CommandError> {
    layout.first_place().finish_switch()?;
    for directory in layout.directories() {
        files::create_directory(&directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    }
    remains::check(layout)?;
    // Two processes would serve one directory, and a purge by the one destroy what the other has.
    if let Some(name) = arguments.blank_pools.iter().find(|name| provisioner::has_pool(layout, name)) {
        return Err(format!(
            "the control plane has a pool named {name} already: choose another name for --blank-pool"
        )
        .into());
    }
    let (settings, changed) = Settings::updated(
        Settings::read(layout)?,
        arguments.port,
        &arguments.blank_pools,
        arguments.one_port,
    )?;
    let listeners = Listeners::bind(&settings, arguments)?;
    if changed {
        settings.write(layout)?;
    }

    let seed = arguments.seed.as_deref().filter(|_| first).map(Desired::read).transpose()?;
    let federated = arguments.federate.as_deref().map(issuer_federation::read).transpose()?;
    let principals = Principals::open(layout, arguments.with_conformance_principal)?;
    let authority = Arc::new(CertificateAuthority::open(layout)?);
    let issuer = open_issuer(layout, &settings, &principals, federated)?;
    let (switch, mut switching) = watch::channel(false);
    let given = outgoing::Given {
        identity: (!arguments.no_managed_identity).then(|| identity_endpoint(&settings)).transpose()?,
        ..arguments.outgoing.clone()
    };
    let outgoing = Outgoing::read(&layout.limits(), &given)?;
    let opening = Opening { layout, issuer: &issuer, principals: &principals, outgoing: &outgoing, switch };
    let pool = opening.first_pool(arguments.founding).await?;
    let mut blank_pools = Vec::new();
    for name in &settings.blank_pools {
        blank_pools.push(opening.blank_pool(name.parse()?, arguments.founding).await?);
    }
    let issuer = Arc::new(issuer.with_cloud(cloud(&settings, pool.genesis()))?);

    let issuer_port = settings.issuer_port();
    for pool in std::iter::once(&pool).chain(&blank_pools) {
        pool.connect_key_source(|source| issuer_key_source::connect(source, issuer_port))?;
        pool.connect_authorities(authority_source::of(pool, &outgoing));
    }
    // Once, though pools may open anew: another rotation is the end of the tokens from before this start.
    if std::mem::take(rotate) {
        rotate_issuer_key(layout, &issuer, &pool)?;
    }

    let (close, closing) = watch::channel(false);
    let mut services = JoinSet::new();
    let challenged = challenged_authority(&settings, &principals, arguments.adfs);
    let shared = |connections| -> Result<Shared, CommandError> {
        Ok(Shared::new(authority.server_config()?, connections, closing.clone()))
    };
    let gateway_user = own_user::of_gateway(layout)?;
    let gateway = watch::Sender::new(None);
    let from_gateway = |socket: &Path| -> Result<FromGateway, CommandError> {
        let listener = admin::bind_for_gateway(socket, gateway_user)?;
        Ok(FromGateway { listener: UnixListener::from_std(listener)?, gateway: gateway.subscribe() })
    };
    let of_pool = shared(capacity.pool)?;
    let mut proxied = vec![settings.port, settings.issuer_port()];
    let ports = (0..).map(|index| settings.blank_port(index));
    let mut own_ports = HashMap::new();
    let blank = listeners.blank.into_iter().zip(&blank_pools).zip(ports);
    let of_blank = blank.map(|((listeners, pool), port)| (listeners, pool, port));
    for (listeners, pool, port) in [(listeners.pool, &pool, settings.port)].into_iter().chain(of_blank) {
        proxied.push(port);
        let api = pool_listener::api(pool, challenged.clone(), port)?;
        pool_listener::spawn(&mut services, listeners, Way::Public, &of_pool, &api);
        for (socket, way) in
            [(layout.gateway_socket(port), Way::Public), (layout.private_socket(port), Way::Private)]
        {
            pool_listener::spawn(&mut services, vec![from_gateway(&socket)?], way, &of_pool, &api);
        }
        own_ports.insert(pool.genesis().name.to_string(), port);
        if port == settings.port {
            let socket = admin::bind(&layout.admin_socket())?;
            services.spawn(admin::serve(socket, pool.clone(), api, closing.clone()));
        }
    }
    let ports = Ports::default();
    let children = Arc::new(Children {
        layout: layout.clone(),
        authority: authority.clone(),
        port: settings.port,
        gateway_port: settings.gateway_port(),
        issuer_port,
        challenged,
        outgoing: given,
        founding: control::founding(layout, &issuer, &principals.tenant)?,
        ports: ports.clone(),
        gateway: gateway.subscribe(),
        gateway_user,
        running: Default::default(),
    });
    let own_pools = std::iter::once(&pool).chain(&blank_pools);
    let networks = private_networks::by_name(&arguments.private_networks);
    let control =
        control::open(layout, &settings, &principals, &issuer, children.clone(), own_pools, networks).await?;
    proxied.push(settings.control_port());
    let attestation = TestAuthority::new(
        settings.attestation_url(),
        || SystemClock.now(),
        || attestation_key().inspect_err(|error| tracing::error!(%error, "no key for attestation")).ok(),
    );
    let of_routers = [
        (listeners.issuer, settings.issuer_port(), issuer.clone().router().merge(attestation.router())),
        (listeners.control, settings.control_port(), control.clone().router()),
    ];
    for (listeners, port, router) in of_routers {
        let shared = shared(capacity.issuer)?;
        let by_gateway = router.clone();
        let handler = move |_: Peer| TowerToHyperService::new(by_gateway.clone());
        services.spawn(listener::serve(from_gateway(&layout.gateway_socket(port))?, shared.clone(), handler));
        for listener in listeners {
            let router = router.clone();
            let handler = move |_: Peer| TowerToHyperService::new(router.clone());
            services.spawn(listener::serve(listener, shared.clone(), handler));
        }
    }
    let gateway_port = settings.gateway_port();
    proxied.push(gateway_port);
    let names = {
        let (own_pools, control_port) = (own_ports, settings.control_port());
        move |children: &HashMap<String, u16>| {
            let pools = children.iter().chain(&own_pools).map(|(name, port)| (name.clone(), *port)).collect();
            Names { pools, control_port, issuer_port, gateway_port }
        }
    };
    let (known, knowing) = watch::channel(names(&ports.borrow()));
    let nobody = {
        let knowing = knowing.clone();
        move |peer: Peer| Nobody::new(&knowing.borrow(), &peer)
    };
    let mut of_nobody = shared(capacity.issuer)?;
    // Its answers end their connections, which is simple in HTTP/1.1 alone.
    Arc::make_mut(&mut of_nobody.tls).alpn_protocols = vec![b"http/1.1".to_vec()];
    let nobodys = from_gateway(&layout.gateway_socket(gateway_port))?;
    services.spawn(listener::serve(nobodys, of_nobody, nobody));
    let (end_gateway, ending) = watch::channel(false);
    let gateway_process = GatewayProcess {
        listeners: blocking(listeners.gateway)?,
        private_listeners: blocking(listeners.private)?,
        directory: std::path::absolute(layout.run())?,
        log: layout.gateway_log(),
        user: gateway_user,
        names: knowing,
        gateway: gateway.clone(),
        closing: closing.clone(),
        ending,
    };
    let gateway_process = tokio::spawn(gateway_process.run());
    let mut changes = ports.subscribe();
    let keep_known = tokio::spawn(async move {
        while changes.changed().await.is_ok() {
            known.send_replace(names(&changes.borrow_and_update()));
        }
    });
    let introduce = tokio::spawn({
        let children = children.clone();
        async move { children.introduce().await }
    });
    services.spawn(control::keep(control.fabric.clone(), closing.clone()));
    if let Some(listener) = listeners.managed_identity {
        let identity = open_managed_identity(layout, &issuer, &principals)?;
        let router = TowerToHyperService::new(identity.router());
        services.spawn(managed_identity::serve(listener, router, closing.clone()));
    }
    services.spawn(proxy::serve(listeners.proxy, proxied, ports, capacity.tunnels, closing.clone()));
    for pool in std::iter::once(&pool).chain(&blank_pools) {
        services.spawn(issuer_key_source::keep_fresh(pool.clone(), closing.clone()));
        services.spawn(schedule::run(pool.clone(), closing.clone()));
    }
    if pool.domain_was_not_handed_out() || holders::were_cut_short(&layout.ceremony()) {
        services.spawn(holders::hand_out(pool.clone(), layout.ceremony(), closing.clone()));
    }

    if let Some(seed) = seed {
        seed.sow(layout).await?;
    }
    if first {
        // Whoever started this may not listen any more; the pool serves all the same.
        let _ = print_welcome(layout, &settings);
        if arguments.detached {
            detach::print_to(&layout.log())?;
        }
    }
    let ended = tokio::select! {
        ended = wait_for_end() => ended.map(|()| Ended::AsAsked)?,
        _ = switching.wait_for(|switch| *switch) => Ended::ToSwitch,
    };
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    children.stop_all().await;
    keep_known.abort();
    introduce.abort();
    let _ = introduce.await;
    end_gateway.send_replace(true);
    gateway_process.await?;
    drop((issuer, control, children));
    for pool in std::iter::once(pool).chain(blank_pools) {
        pool.close().await;
    }
    Ok(ended)
}

pub(crate) async fn wait_for_end() -> Result<(), CommandError> {
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
    gateway: Vec<TcpListener>,
    private: Vec<TcpListener>,
    blank: Vec<Vec<TcpListener>>,
    control: Vec<TcpListener>,
    issuer: Vec<TcpListener>,
    proxy: TcpListener,
    managed_identity: Option<TcpListener>,
}

/// The listeners of all pools.
pub(crate) fn bind_pools(settings: &Settings) -> Result<Vec<TcpListener>, CommandError> {
    let mut listeners = bind_loopback("the pool", settings.port)?;
    for index in 0..settings.blank_pools.len() {
        listeners.extend(bind_loopback("a blank pool", settings.blank_port(index))?);
    }
    Ok(listeners)
}

impl Listeners {
    fn bind(settings: &Settings, arguments: &Arguments) -> Result<Self, CommandError> {
        let listen = &arguments.listen;
        let on_ipv4 = |what: &str, port: u16| bind((Ipv4Addr::LOCALHOST, port).into(), what);
        let mut gateway = if listen.iter().any(IpAddr::is_unspecified) {
            Vec::new()
        } else {
            bind_loopback("the gateway", settings.gateway_port())?
        };
        for address in listen {
            gateway.push(bind((*address, settings.gateway_port()).into(), "the gateway")?);
        }
        let count = gateway.len() + arguments.private_networks.len();
        if count > MAX_LISTENERS {
            return Err(format!(
                "the gateway would listen at {count} addresses, and can at {MAX_LISTENERS}: give --listen or --private-listen less often"
            )
            .into());
        }
        Ok(Self {
            pool: bind_loopback("the pool", settings.port)?,
            gateway,
            private: arguments
                .private_networks
                .iter()
                .map(|network| bind((network.address, settings.gateway_port()).into(), "a private network"))
                .collect::<Result<_, _>>()?,
            blank: (0..settings.blank_pools.len())
                .map(|index| bind_loopback("a blank pool", settings.blank_port(index)))
                .collect::<Result<_, _>>()?,
            control: bind_loopback("the control plane", settings.control_port())?,
            issuer: bind_loopback("the issuer", settings.issuer_port())?,
            proxy: on_ipv4("the CONNECT proxy", settings.proxy_port())?,
            managed_identity: (!arguments.no_managed_identity)
                .then(|| on_ipv4("managed identity", settings.managed_identity_port()))
                .transpose()?,
        })
    }
}

/// As they are passed on to another process.
fn blocking(listeners: Vec<TcpListener>) -> std::io::Result<Vec<std::net::TcpListener>> {
    listeners.into_iter().map(TcpListener::into_std).collect()
}

/// `port` of this machine alone.
pub fn bind_loopback(what: &str, port: u16) -> Result<Vec<TcpListener>, CommandError> {
    let mut listeners = vec![bind((Ipv4Addr::LOCALHOST, port).into(), what)?];
    // Where there is no IPv6 loopback nobody misses it. Where another program has the port there, clients that ask for
    // `localhost` would find that program.
    if bind_any_port(Ipv6Addr::LOCALHOST.into()).is_ok() {
        listeners.push(bind((Ipv6Addr::LOCALHOST, port).into(), what)?);
    }
    Ok(listeners)
}

fn bind_any_port(address: IpAddr) -> std::io::Result<TcpListener> {
    listen((address, 0).into())
}

pub(crate) fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn bind(address: SocketAddr, what: &str) -> Result<TcpListener, CommandError> {
    listen(address).map_err(|error| {
        let port = address.port();
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "is in use".to_owned(),
            _ => format!("of {} cannot be opened ({error})", address.ip()),
        };
        format!("port {port} for {what} {reason}; choose others with `holdfast quickstart --port N` (N for the pool, N+1 for the gateway, N+2 for the control plane, N+3 for the issuer, N+4 for the CONNECT proxy, N+5 for managed identity)").into()
    })
}

fn open_issuer(
    layout: &Layout,
    settings: &Settings,
    principals: &Principals,
    federated: Option<Vec<FederatedCredential>>,
) -> Result<Issuer, CommandError> {
    let tenant = TenantId::parse(&principals.tenant)?;
    let held = files::read(&layout.issuer())?;
    let mut state = match &held {
        Some(held) => IssuerState::parse(held)?,
        None => IssuerState::generate(tenant.clone())?,
    };
    for (name, principal) in principals.named() {
        state.register(principal.client_id.parse()?, principal.object_id()?, name, &principal.client_secret);
    }
    let app = &principals.app;
    let client = state.register(app.client_id.parse()?, app.object_id()?, "app", &app.client_secret);
    client.certificates = vec![ClientCertificate::from_der(&app_certificate(layout)?)?];
    if let Some(federated) = federated {
        client.federated = federated;
    }
    let json = state.to_json()?;
    if held.is_none_or(|held| *held != *json) {
        files::write(&layout.issuer(), &json)?;
    }
    let (base_url, control_url) = (settings.issuer_url(), settings.control_url());
    let exact = RESOURCE_MANAGER_AUDIENCES.into_iter().chain([
        GRAPH_AUDIENCE,
        &base_url,
        &control_url,
        PUBLIC_AUDIENCE,
        STORAGE_AUDIENCE,
    ]);
    let config = IssuerConfig {
        base_url: base_url.clone(),
        issuer: Some(token_issuer(&tenant)),
        tenant,
        alias_tenant: Some(TenantId::parse(ALIAS_TENANT)?),
        audiences: Audiences::new([RESOURCE_SUFFIX], exact)?,
        clients: state.clients.clone(),
        token_lifetime: DEFAULT_TOKEN_LIFETIME,
    };
    let clock = Arc::new(|| -> Time { SystemClock.now() });
    Ok(Issuer::new(config, state.signing_keys()?, clock)?)
}

/// The issuer for programs on this machine that ask without a secret: they are `app`.
fn open_managed_identity(
    layout: &Layout,
    issuer: &Arc<Issuer>,
    principals: &Principals,
) -> Result<Arc<ManagedIdentity>, CommandError> {
    let header = files::read_or_make::<CommandError>(&layout.identity_header(), || {
        Ok(Zeroizing::new(generate_client_secret()?.as_bytes().to_vec()))
    })?;
    let clients = vec![ManagedClient { client_id: principals.app.client_id.parse()?, resource_id: None }];
    Ok(Arc::new(ManagedIdentity::new(issuer.clone(), clients, std::str::from_utf8(&header)?)?))
}

/// Where the pools themselves are who `app` is.
fn identity_endpoint(settings: &Settings) -> Result<IdentityEndpoint, CommandError> {
    let address = (Ipv4Addr::LOCALHOST, settings.managed_identity_port()).into();
    Ok(IdentityEndpoint::new(address, INSTANCE_METADATA_PATH)?)
}

/// Where challenges send a client. It has to name the tenant as the client's own settings do, or SDKs refuse it.
fn challenged_authority(settings: &Settings, principals: &Principals, adfs: bool) -> String {
    let tenant = if adfs { ALIAS_TENANT } else { &principals.tenant };
    format!("{}/{tenant}", settings.issuer_url())
}

/// The pool as `az` finds it.
fn cloud(settings: &Settings, genesis: &Genesis) -> CloudConfig {
    CloudConfig {
        name: "Holdfast".to_owned(),
        pool_suffix: format!("{RESOURCE_SUFFIX}:{}", settings.port),
        resource_group: "quickstart".to_owned(),
        location: "local".to_owned(),
        pools: vec![PoolView {
            name: genesis.name.to_string(),
            initial_administrators: genesis.initial_administrators.clone(),
            retention_days: genesis.retention.days(),
            purge_protection: genesis.purge_protection,
        }],
    }
}

/// `iss` of the quickstart's tokens. Genesis pins it for ever, so it says nothing of ports.
fn token_issuer(tenant: &TenantId) -> String {
    format!("https://{ISSUER_HOST}/{tenant}/v2.0")
}

/// Where pools ask for the issuer's keys.
/// Signs tokens with a new key from now on. The state is kept first: a token signed with a key that is forgotten would be
/// good for nobody.
fn rotate_issuer_key(layout: &Layout, issuer: &Issuer, pool: &Pool) -> Result<(), CommandError> {
    let Some(source) = &pool.genesis().issuer.key_source else {
        return Err("this pool was made by an earlier release: it has its issuer's key pinned for ever, and a token signed with another would be refused".into());
    };
    if source.roots != std::fs::read(layout.ca_certificate())? {
        return Err("this pool has another CA pinned for its issuer than the one in `ca`: it could not ask for the new key, and would refuse every token".into());
    }
    let held = files::read(&layout.issuer())?.ok_or("the issuer's state has gone")?;
    let mut state = IssuerState::parse(&held)?;
    state.rotate()?;
    files::write(&layout.issuer(), &state.to_json()?)?;
    issuer.replace_keys(state.signing_keys()?);
    Ok(())
}

/// What pools are opened with.
struct Opening<'a> {
    layout: &'a Layout,
    issuer: &'a Issuer,
    principals: &'a Principals,
    outgoing: &'a Outgoing,
    switch: watch::Sender<bool>,
}

impl Opening<'_> {
    /// The pool that is there from the start: active, with roles for the quickstart's principals.
    async fn first_pool(&self, founding: Founding) -> Result<Arc<Pool>, CommandError> {
        let place = self.layout.first_place();
        let found = || {
            let genesis = self.genesis(&POOL_NAME.parse()?, founding)?;
            // Nobody waits for a ceremony at a first start; it follows at once.
            let activation = ActivationRecord {
                at: SystemClock.now().int_date(),
                domain_file: None,
                holders: vec![],
                required: 0,
                awaits_confirmation: false,
            };
            Ok(instance::Founding { genesis, activation: Some(activation) })
        };
        limits::refuse_rules(&self.layout.limits())?;
        let limits = limits::read(&self.layout.limits())?;
        let pool = place.open(found, limits, self.outgoing, self.switch.clone()).await?;
        // Made before there was a state of activation, it was in use.
        pool.bootstrap_activation().await?;
        let principals = self.principals;
        let mut assignments = vec![(principals.app.object_id()?, BuiltInRole::CryptoUser, Scope::Root)];
        if let Some(conformance) = &principals.conformance {
            let roles = [BuiltInRole::Administrator, BuiltInRole::CryptoOfficer, BuiltInRole::CryptoUser];
            let object_id = conformance.object_id()?;
            assignments.extend(roles.map(|role| (object_id, role, Scope::Root)));
        }
        pool.bootstrap_assignments(assignments).await?;
        Ok(pool)
    }

    async fn blank_pool(&self, name: PoolName, founding: Founding) -> Result<Arc<Pool>, CommandError> {
        let place = self.layout.place(name.clone());
        if let Some(directory) = place.directory.parent() {
            files::create_directory(directory)?;
        }
        place.finish_switch()?;
        let found = || Ok(instance::Founding { genesis: self.genesis(&name, founding)?, activation: None });
        place.open(found, limits::read(&self.layout.limits())?, self.outgoing, self.switch.clone()).await
    }

    fn genesis(&self, name: &PoolName, founding: Founding) -> Result<Genesis, CommandError> {
        let principals = self.principals;
        let mut parameters = control::founding(self.layout, self.issuer, &principals.tenant)?;
        parameters.administrators.push(principals.admin.object_id.clone());
        if name.as_str() != POOL_NAME
            && let Some(conformance) = &principals.conformance
        {
            parameters.administrators.push(conformance.object_id.clone());
        }
        parameters.retention_days = founding.retention_days;
        parameters.purge_protection = founding.purge_protection;
        parameters.audit_written = founding.audit_durability == Durability::Written;
        parameters.genesis(name)
    }
}

/// The same command in the background, with absolute paths.
fn detach(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    let layout = Layout::new(std::path::absolute(&arguments.data)?);
    let mut words =
        vec!["quickstart".into(), "--detached".into(), "--data".into(), layout.data.clone().into_os_string()];
    if let Some(port) = arguments.port {
        words.extend(["--port".into(), port.to_string().into()]);
    }
    if arguments.with_conformance_principal {
        words.push("--with-conformance-principal".into());
    }
    words.extend(["--retention-days".into(), arguments.founding.retention_days.to_string().into()]);
    if arguments.founding.purge_protection {
        words.push("--purge-protection".into());
    }
    if arguments.founding.audit_durability == Durability::Written {
        words.extend(["--audit-durability".into(), "written".into()]);
    }
    if arguments.one_port {
        words.push("--one-port".into());
    }
    for address in &arguments.listen {
        words.extend(["--listen".into(), address.to_string().into()]);
    }
    for network in &arguments.private_networks {
        words.extend(["--private-listen".into(), network.to_string().into()]);
    }
    for name in &arguments.blank_pools {
        words.extend(["--blank-pool".into(), name.to_string().into()]);
    }
    if let Some(path) = &arguments.federate {
        words.extend(["--federate".into(), std::path::absolute(path)?.into_os_string()]);
    }
    if let Some(path) = &arguments.root_credential {
        words.extend(["--root-credential".into(), std::path::absolute(path)?.into_os_string()]);
    }
    if let Some(path) = &arguments.seed {
        words.extend(["--seed".into(), std::path::absolute(path)?.into_os_string()]);
    }
    if arguments.no_managed_identity {
        words.push("--no-managed-identity".into());
    }
    if arguments.rotate_issuer_key {
        words.push("--rotate-issuer-key".into());
    }
    if arguments.adfs {
        words.push("--adfs".into());
    }
    words.extend(arguments.outgoing.words()?);
    detach::start(words.iter().map(std::ffi::OsString::as_os_str), &layout)
}

fn print_welcome(layout: &Layout, settings: &Settings) -> std::io::Result<()> {
    let data = layout.data.display().to_string();
    let option = if layout.data == layout::default_directory() {
        String::new()
    } else {
        format!(" --data {}", word(&data))
    };
    let (holdfast, port, issuer) = (program(), settings.port, settings.issuer_url());
    let (control, gateway) = (settings.control_url(), settings.gateway_port());
    output::line(format_args!(
        "Holdfast serves a pool of class test. Keep no keys in it that matter.

  pool     https://{POOL_NAME}.{RESOURCE_SUFFIX}:{port}  (and https://127.0.0.1:{port})
  gateway  https://{POOL_NAME}.{RESOURCE_SUFFIX}:{gateway}  (this pool, and those of the control plane by their names)
  control  {control}
  issuer   {issuer}
  data     {data}

Point a shell at it, then use any Azure SDK, here Python's:

  eval \"$({holdfast} env{option})\"
  pip install azure-keyvault-keys azure-identity

  python3 - <<'END'
  import os
  from azure.identity import ClientSecretCredential
  from azure.keyvault.keys import KeyClient
  credential = ClientSecretCredential(
      os.environ[\"TENANT_ID\"], os.environ[\"CLIENT_ID\"], os.environ[\"CLIENT_SECRET\"],
      authority=os.environ[\"AUTHORITY_HOST\"], disable_instance_discovery=True)
  client = KeyClient(os.environ[\"HOLDFAST_POOL_URL_IP\"], credential, verify_challenge_resource=False)
  print(client.create_ec_key(\"first\", hardware_protected=True).id)
  END

By its name:   HTTPS_PROXY=$HOLDFAST_PROXY, or the line of `{holdfast} quickstart --hosts` in /etc/hosts
With az:       eval \"$({holdfast} env --az{option})\", in a shell of its own; the same without eval says how to log in
What happened: {holdfast} audit show{option}
To end it:     {holdfast} stop{option}"
    ))
}

/// What to type to run this program: its name where the shell finds it by that, else its path.
fn program() -> String {
    const NAME: &str = "holdfast";
    let Some(ours) = std::env::current_exe().and_then(|path| path.canonicalize()).ok() else {
        return NAME.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|directory| directory.join(NAME)).find(|path| path.exists());
    let by_name = found.and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == ours);
    let path = ours.display().to_string();
    if by_name { NAME.to_owned() } else { word(&path) }
}
