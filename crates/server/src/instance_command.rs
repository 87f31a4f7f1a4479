//! `holdfast instance`: one pool in a process of its own, started by the control plane and by nobody else.
//!
//! It speaks with who started it over its standard input and output, a line of JSON each: it is told where the pool is and
//! what it is to be founded with if it is new, asks for a certificate for a key that it made, is given one, and says that
//! it serves and whether it is activated. The end of its input is its end, so none outlives the control plane. What it is
//! told of a pool that has been founded counts for nothing: genesis does. Network rules are the exception: it is told them
//! at each start and whenever they change, and takes what a client of the control plane may set.

use crate::CommandError;
use crate::certificates::ListenerKey;
use crate::gateway_process::Gateway;
use crate::instance::{Founding, Parameters, Place};
use crate::listener::{FromGateway, Shared};
use crate::outgoing::{self, Outgoing};
use crate::own_user::{self, User};
use crate::places::Capacity;
use crate::pool_listener::Way;
use crate::quickstart::{self, Ended};
use crate::root_of_trust::RootOfTrust;
use crate::runtime::quick_runtime;
use crate::{
    admin, authority_source, hardening, issuer_key_source, limits, network, pool_listener, schedule,
};
use domain::network::Network as KnownNetwork;
use domain::pool::PoolClass;
use fabric::Reach;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use service::{Pool, PoolLimits};
use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// Of one line; pinned key sets and roots are in it.
pub const MAX_LINE_BYTES: u64 = 1024 * 1024;
const ACTIVATION_PERIOD: Duration = Duration::from_millis(500);

/// The first line in.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub name: String,
    /// Whom the process is to be; without, it stays whom it was started as.
    pub user: Option<User>,
    pub gateway_user: Option<User>,
    pub port: u16,
    pub directory: PathBuf,
    pub root_key: PathBuf,
    pub limits: PathBuf,
    pub gateway_socket: PathBuf,
    pub private_socket: PathBuf,
    pub admin_socket: PathBuf,
    /// Of the issuer, in challenges.
    pub authority: String,
    pub issuer_port: u16,
    pub outgoing: outgoing::Given,
    pub genesis: Parameters,
}

/// Lines out.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Said {
    /// A certificate request (PKCS#10).
    Request {
        der: Vec<u8>,
    },
    Serving {
        activated: bool,
    },
    Activated,
    /// The rules with this number are in force.
    Applied {
        number: u64,
    },
    /// It is there.
    Pong,
}

/// The second line in: the certificate and its CA's, from where the pool may be called, and who the gateway is.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Certified {
    pub chain: Vec<Vec<u8>>,
    pub network: Numbered,
    pub gateway: Option<Gateway>,
}

/// Network rules, and which change of them it is.
#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Numbered {
    pub number: u64,
    pub rules: Reach,
}

/// All further lines in.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Told {
    Network(Numbered),
    /// Another process is the gateway, or none.
    Gateway(Option<Gateway>),
    /// Whether it is there.
    Ping,
}

/// What the process opens while it is still who started it. Nothing else of the machine is open to it later.
struct Opened {
    place: Place,
    outgoing: Outgoing,
    limits: PoolLimits,
    trusted: Vec<KnownNetwork>,
    gateway_socket: UnixListener,
    private_socket: UnixListener,
    admin_socket: UnixListener,
}

impl Opened {
    fn new(start: &Start) -> Result<Self, CommandError> {
        let mut place = Place {
            directory: start.directory.clone(),
            root: RootOfTrust::KeyFile(start.root_key.clone()),
            class: PoolClass::Test,
            clock_is_right: false,
        };
        if start.user.is_some() {
            let is_new = !place.is_sealed();
            place.root = RootOfTrust::open_key_file(start.root_key.clone(), &place.sealed_domain(), is_new)?;
            // The directories above are closed to the user; seen from within, they need not be passed.
            let above = start.directory.parent().ok_or("a pool has a directory above its own")?;
            std::env::set_current_dir(above)?;
            place.directory = start.directory.file_name().ok_or("a pool has a directory")?.into();
        }
        Ok(Self {
            place,
            outgoing: Outgoing::read(&start.limits, &start.outgoing)?,
            limits: limits::read(&start.limits)?,
            trusted: limits::trusted_services(&start.limits)?,
            gateway_socket: admin::bind_for_gateway(&start.gateway_socket, start.gateway_user)?,
            private_socket: admin::bind_for_gateway(&start.private_socket, start.gateway_user)?,
            admin_socket: admin::bind_early(&start.admin_socket)?,
        })
    }
}

/// What changes while it serves.
#[derive(Clone)]
struct Watched {
    networks: watch::Receiver<Numbered>,
    gateway: watch::Receiver<Option<Gateway>>,
    ending: watch::Receiver<bool>,
}

pub fn run() -> Result<ExitCode, CommandError> {
    let start: Start = hear()?;
    let opened = Opened::new(&start)?;
    if let Some(user) = start.user {
        own_user::become_user(user)?;
    }
    let hardening = hardening::for_server(PoolClass::Test)?;
    let key = ListenerKey::for_pool(&start.name)?;
    say(&Said::Request { der: key.request().to_vec() })?;
    let certified: Certified = hear()?;
    let tls = key.server_config(certified.chain.into_iter().map(CertificateDer::from).collect())?;
    let (end, ending) = watch::channel(false);
    let (network, networks) = watch::channel(certified.network);
    let (gateway, gateways) = watch::channel(certified.gateway);
    let (ping, mut pings) = mpsc::channel(1);
    std::thread::spawn(move || {
        // What is no message ends the process, as the end of the input does.
        while let Ok(told) = hear() {
            match told {
                Told::Network(rules) => {
                    network.send_replace(rules);
                }
                Told::Gateway(now) => {
                    gateway.send_replace(now);
                }
                // One that waits is answer enough.
                Told::Ping => drop(ping.try_send(())),
            }
        }
        end.send_replace(true);
    });
    let runtime = quick_runtime()?;
    runtime.spawn(async move {
        // By the threads that answer clients: where they hang, so does this.
        while pings.recv().await.is_some() && say(&Said::Pong).is_ok() {}
    });
    let capacity = Capacity::within(hardening.descriptors);
    let told = Watched { networks, gateway: gateways, ending };
    while runtime.block_on(serve(&start, &opened, &tls, capacity, &told))? == Ended::ToSwitch {}
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    start: &Start,
    opened: &Opened,
    tls: &Arc<ServerConfig>,
    capacity: Capacity,
    told: &Watched,
) -> Result<Ended, CommandError> {
    let Opened { place, outgoing, trusted, .. } = opened;
    let Watched { mut networks, gateway, mut ending } = told.clone();
    place.finish_switch()?;
    let (switch, mut switching) = watch::channel(false);
    let name = start.name.parse()?;
    let found = || Ok(Founding { genesis: start.genesis.genesis(&name)?, activation: None });
    let pool = place.open(found, opened.limits, outgoing, switch).await?;
    pool.connect_key_source(|source| issuer_key_source::connect(source, start.issuer_port))?;
    pool.connect_authorities(authority_source::of(&pool, outgoing));
    apply(&pool, networks.borrow_and_update().clone(), trusted).await?;
    let (close, closing) = watch::channel(false);
    let shared = Shared::new(tls.clone(), capacity.pool, closing.clone());
    let listeners = quickstart::bind_loopback("a pool", start.port)?;
    let api = pool_listener::api(&pool, start.authority.clone(), start.port)?;
    let mut services = JoinSet::new();
    pool_listener::spawn(&mut services, listeners, Way::Public, &shared, &api);
    for (socket, way) in [(&opened.gateway_socket, Way::Public), (&opened.private_socket, Way::Private)] {
        let from_gateway = FromGateway { listener: listen(socket)?, gateway: gateway.clone() };
        pool_listener::spawn(&mut services, vec![from_gateway], way, &shared, &api);
    }
    services.spawn(admin::serve(listen(&opened.admin_socket)?, pool.clone(), api.clone(), closing.clone()));
    services.spawn(issuer_key_source::keep_fresh(pool.clone(), closing.clone()));
    services.spawn(schedule::run(pool.clone(), closing));
    let activated = pool.is_active();
    say(&Said::Serving { activated })?;
    let activation = async {
        while !pool.is_active() {
            tokio::time::sleep(ACTIVATION_PERIOD).await;
        }
        if !activated {
            say(&Said::Activated)?;
        }
        std::future::pending::<Result<(), CommandError>>().await
    };
    let changes = async {
        while networks.changed().await.is_ok() {
            let network = networks.borrow_and_update().clone();
            apply(&pool, network, trusted).await?;
        }
        std::future::pending::<Result<(), CommandError>>().await
    };
    let ended = tokio::select! {
        _ = ending.wait_for(|ending| *ending) => Ended::AsAsked,
        _ = switching.wait_for(|switch| *switch) => Ended::ToSwitch,
        // Nobody hears any more.
        _ = activation => Ended::AsAsked,
        // With rules that are not in force it would let in whom it should not: it ends, and is started with them.
        Err(error) = changes => return Err(error),
    };
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    drop(api);
    pool.close().await;
    Ok(ended)
}

/// The same socket again, after the pool was opened anew.
fn listen(socket: &UnixListener) -> std::io::Result<tokio::net::UnixListener> {
    tokio::net::UnixListener::from_std(socket.try_clone()?)
}

/// Rules that no client of the control plane could have set are refused, whoever says them.
async fn apply(pool: &Arc<Pool>, network: Numbered, trusted: &[KnownNetwork]) -> Result<(), CommandError> {
    pool.apply_network_rules(network::reach(&network.rules)?, trusted.to_vec()).await?;
    say(&Said::Applied { number: network.number })
}

pub fn hear<T: for<'de> Deserialize<'de>>() -> Result<T, CommandError> {
    let mut line = String::new();
    // Unbuffered beyond the line: what follows is read elsewhere, and only for its end.
    std::io::stdin().lock().take(MAX_LINE_BYTES).read_line(&mut line)?;
    if line.is_empty() {
        return Err("this command is started by a quickstart: it was told nothing".into());
    }
    Ok(serde_json::from_str(&line)?)
}

fn say(said: &Said) -> Result<(), CommandError> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    out.write_all(&line)?;
    Ok(out.flush()?)
}
