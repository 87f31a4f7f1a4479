//! `holdfast pool serve`: one pool of class production, in one process.

use super::passphrase::Sealing;
use super::{check_production, create, tls};
use crate::CommandError;
use crate::files;
use crate::instance::{Place, resource_suffix};
use crate::layout::Layout;
use crate::listener::{self, Peer, Shared};
use crate::outgoing::{Given, Outgoing};
use crate::output;
use crate::places::Capacity;
use crate::pool_listener::Way;
use crate::quickstart::{self, Ended};
use crate::root_of_trust::{RootOfTrust, Sealed};
use crate::runtime::quick_runtime;
use crate::{
    admin, authority_source, hardening, issuer_key_source, limits, pool_listener, remains, running, schedule,
    sealed,
};
use api_data::{Api, ApiConfig};
use domain::pool::PoolClass;
use hyper::service::service_fn;
use identity::Audiences;
use service::Pool;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where everything is kept.
    #[arg(long = "data", value_name = "DIR")]
    data: PathBuf,
    /// Where clients come to. Can be given again.
    #[arg(long, value_name = "ADDRESS:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// The pool's passphrase, in the first line of this file, such as a credential of systemd or /dev/fd/3. Without it every
    /// request is answered 503.
    #[arg(long, value_name = "FILE")]
    root_credential: Option<PathBuf>,
    /// Start although the clock is behind the pool's own log, because it was ahead when that was written. Once: the log
    /// says so, and whoever sets a clock back revives what has expired.
    #[arg(long)]
    clock_is_right: bool,
    #[command(flatten)]
    outgoing: Given,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode, CommandError> {
    // Before the passphrase is read.
    let hardening = hardening::for_server(PoolClass::Production)?;
    let layout = Layout::new(arguments.data.clone());
    check_production(&layout)?;
    files::create_directory(&layout.run())?;
    let _lock = running::lock(&layout)?;
    let runtime = quick_runtime()?;
    let capacity = Capacity::within(hardening.descriptors);
    // From here on it ends nothing.
    let mut hangups = {
        let _entered = runtime.enter();
        signal(SignalKind::hangup())?
    };
    loop {
        // Before it is read: a change during the attempt is another attempt.
        let tried = changed(arguments.root_credential.as_deref());
        let served = match root(arguments.root_credential.as_deref()) {
            Ok(root) => runtime.block_on(serve(&layout, arguments, root, capacity, &mut hangups)),
            Err(error) => Err(error),
        };
        let ended = match served {
            Err(error) if error.is::<Sealed>() => {
                runtime.block_on(wait_sealed(arguments, &error, capacity, tried))?
            }
            ended => ended?,
        };
        match ended {
            Ended::AsAsked => return Ok(ExitCode::SUCCESS),
            // The pool was made anew around another domain, or there is another passphrase to try.
            Ended::ToSwitch => {}
        }
    }
}

fn root(path: Option<&Path>) -> Result<RootOfTrust, CommandError> {
    let path = path.ok_or_else(|| Sealed::without_credential("no credential was given".to_owned()))?;
    RootOfTrust::credential(path).map_err(|error| Sealed::without_credential(error.to_string()).into())
}

async fn serve(
    layout: &Layout,
    arguments: &Arguments,
    root: RootOfTrust,
    capacity: Capacity,
    hangups: &mut Signal,
) -> Result<Ended, CommandError> {
    let place = Place { clock_is_right: arguments.clock_is_right, ..layout.production_place(root) };
    drop(Sealing::begin(layout)?);
    place.finish_switch()?;
    // Secrets made anew beside an old store would open nothing, and lie in the way of those that do.
    remains::check_production(layout)?;
    if !layout.sealed_domain().exists() {
        return Err(
            format!("{} is missing: put it back from a copy", layout.sealed_domain().display()).into()
        );
    }
    let (switch, mut switching) = watch::channel(false);
    let outgoing = Outgoing::read(&layout.limits(), &arguments.outgoing)?;
    let (rules, trusted) = limits::network_rules(&layout.limits())?;
    // A pool whose store has gone is not founded anew: genesis would be another one.
    let found = || -> Result<_, CommandError> {
        Err(format!("{} holds no pool: put it back from a copy", layout.store().display()).into())
    };
    let pool = place.open(found, limits::read(&layout.limits())?, &outgoing, switch).await?;
    let host = create::host(pool.genesis())?;
    pool.connect_key_source(issuer_key_source::connect_pinned)?;
    pool.connect_authorities(authority_source::of(&pool, &outgoing));
    pool.apply_network_rules(rules, trusted).await?;
    let (close, closing) = watch::channel(false);
    let shared = Shared::new(tls::open(layout, &place, &host)?, capacity.pool, closing.clone());
    let listeners = bind(&arguments.listen)?;
    let api = api(&pool, host.clone())?;
    let mut services = JoinSet::new();
    pool_listener::spawn(&mut services, listeners, Way::Public, &shared, &api);
    let admin_socket = admin::bind(&layout.admin_socket())?;
    services.spawn(admin::serve(admin_socket, pool.clone(), api.clone(), closing.clone()));
    services.spawn(issuer_key_source::keep_fresh(pool.clone(), closing.clone()));
    services.spawn(schedule::run(pool.clone(), closing));
    // Whoever started this may not listen any more.
    let _ =
        output::line(format_args!("pool {} serves at https://{host}{}", pool.genesis().name, state(&pool)));
    let ended = tokio::select! {
        ended = quickstart::wait_for_end() => ended.map(|()| Ended::AsAsked)?,
        _ = switching.wait_for(|switch| *switch) => Ended::ToSwitch,
        () = keep_rules(&pool, layout, hangups) => Ended::AsAsked,
    };
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    drop(api);
    pool.close().await;
    Ok(ended)
}

/// Puts the rules of `pool.toml` into force at each SIGHUP. Where that fails those in force stay: whoever changes them is
/// told, and nobody is let in for it.
async fn keep_rules(pool: &Arc<Pool>, layout: &Layout, hangups: &mut Signal) {
    while hangups.recv().await.is_some() {
        let applied = async {
            let (rules, trusted) = limits::network_rules(&layout.limits())?;
            pool.apply_network_rules(rules, trusted).await?;
            Ok::<_, CommandError>(())
        };
        // Whoever started this may not listen any more.
        let _ = match applied.await {
            Ok(()) => output::line(format_args!("network rules: {}", pool.network_rules())),
            Err(error) => {
                tracing::error!(%error, "the network rules stay as they are");
                Ok(())
            }
        };
    }
}

/// What has to happen before keys work.
fn state(pool: &Pool) -> String {
    if !pool.is_active() {
        ", and waits for its security domain to be downloaded, or for another pool's to be uploaded"
            .to_owned()
    } else if pool.awaits_confirmation() {
        let fingerprint = pool.domain_fingerprint();
        format!(
            ", and waits for its uploaded domain to be confirmed: holdfast pool confirm --fingerprint {fingerprint}"
        )
    } else {
        String::new()
    }
}

/// Callers come by the one name that tokens and certificate are for.
fn api(pool: &Arc<Pool>, host: String) -> Result<Arc<Api>, CommandError> {
    let suffix = resource_suffix(pool.genesis())?;
    let config = ApiConfig {
        hosts: vec![host],
        authority: pool.genesis().issuer.authority.clone(),
        audiences: Audiences::new([&suffix], [""; 0])?,
        default_resource: format!("https://{suffix}"),
    };
    Ok(Arc::new(Api::new(pool.clone(), config)))
}

fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, CommandError> {
    let bound = |address: &SocketAddr| {
        quickstart::listen(*address).map_err(|error| format!("cannot listen at {address}: {error}").into())
    };
    addresses.iter().map(bound).collect()
}

/// Answers 503 until told to end, or until there is another passphrase.
async fn wait_sealed(
    arguments: &Arguments,
    why: &CommandError,
    capacity: Capacity,
    tried: Option<SystemTime>,
) -> Result<Ended, CommandError> {
    tracing::error!("{why}");
    let (close, closing) = watch::channel(false);
    let shared = Shared::new(tls::unnamed()?, capacity.pool, closing);
    let mut services = JoinSet::new();
    for listener in bind(&arguments.listen)? {
        services.spawn(listener::serve(listener, shared.clone(), |_: Peer| service_fn(sealed::refuse)));
    }
    let _ = output::line(format_args!("sealed: {why}"));
    let path = arguments.root_credential.as_deref();
    let another = async {
        while changed(path).is_none() || changed(path) == tried {
            tokio::time::sleep(sealed::LOOK).await;
        }
    };
    let ended = tokio::select! {
        ended = quickstart::wait_for_end() => ended.map(|()| Ended::AsAsked)?,
        () = another => Ended::ToSwitch,
    };
    close.send_replace(true);
    while services.join_next().await.is_some() {}
    Ok(ended)
}

/// When the file was last changed. To try a passphrase takes a good part of a second, so none is tried twice.
fn changed(path: Option<&Path>) -> Option<SystemTime> {
    std::fs::metadata(path?).ok()?.modified().ok()
}
