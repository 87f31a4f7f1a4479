//! The control plane of a quickstart: Azure Resource Manager on a listener of its own.

use crate::CommandError;
use crate::files;
use crate::instance::Parameters as Genesis;
use crate::layout::{ISSUER_HOST, Layout, RESOURCE_SUFFIX};
use crate::provisioner::Children;
use crate::state::{Principals, Settings};
use api_control::{Control, ControlConfig};
use domain::guid::Guid;
use domain::pool::RetentionDays;
use domain::principal::TenantId;
use domain::time::Time;
use fabric::pools::{Life, PoolRecord};
use fabric::{Fabric, FabricConfig, Role};
use host_embedded::{EngineOptions, RedbEngine};
use identity::issuer::{Issuer, RESOURCE_MANAGER_AUDIENCES, subscription_id};
use identity::{Audiences, TokenVerifier, VerifierConfig};
use service::{Clock, Pool, SystemClock};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const CACHED_TOKENS: usize = 100;
const PURGE_PERIOD: Duration = Duration::from_secs(60);
const MAX_JUMP: Duration = Duration::from_secs(60 * 60);
/// How long the clock is watched before anything is destroyed by it.
const WATCHED: Duration = Duration::from_secs(60 * 60);
pub const RESOURCE_GROUP: &str = "quickstart";
pub const LOCATION: &str = "local";

/// What pools of the control plane are founded with, beside their own parameters.
pub fn founding(layout: &Layout, issuer: &Issuer, tenant: &str) -> Result<Genesis, CommandError> {
    Ok(Genesis {
        tenant: tenant.to_owned(),
        issuer: issuer.issuer(),
        issuer_authority: issuer.authority(),
        key_set: String::from_utf8(issuer.key_set_json())?,
        key_source_url: format!("https://{ISSUER_HOST}/{tenant}/discovery/v2.0/keys"),
        key_source_roots: std::fs::read_to_string(layout.ca_certificate())?,
        administrators: vec![],
        retention_days: RetentionDays::DEFAULT.days(),
        purge_protection: false,
        audit_written: false,
    })
}

/// `pools`: the quickstart's own, which are shown and not changed.
pub async fn open(
    layout: &Layout,
    settings: &Settings,
    principals: &Principals,
    issuer: &Arc<Issuer>,
    children: Arc<Children>,
    pools: impl Iterator<Item = &Arc<Pool>>,
    private_networks: BTreeMap<String, IpAddr>,
) -> Result<Arc<Control>, CommandError> {
    let tenant = TenantId::parse(&principals.tenant)?;
    let config = FabricConfig {
        name: "Holdfast".to_owned(),
        tenant: principals.tenant.clone(),
        subscription: subscription_id(&tenant).to_string(),
        resource_group: RESOURCE_GROUP.to_owned(),
        location: LOCATION.to_owned(),
        private_networks,
        now: || SystemClock.now().int_date().unix_seconds(),
    };
    let directory = layout.fabric();
    files::create_directory(&directory)?;
    let engine = Arc::new(RedbEngine::open(directory.join("store"), EngineOptions::default())?);
    let fixed = pools.map(|pool| shown(pool)).collect();
    let fabric = Arc::new(Fabric::open(config, engine, children, fixed).await?);
    let conformance = principals.conformance.as_ref().map(|principal| (principal, Role::Owner));
    let held = [(&principals.admin, Role::Owner), (&principals.app, Role::Reader)];
    for (principal, role) in held.into_iter().chain(conformance) {
        // The same at every start, so that there is one.
        let mut id: Guid = principal.object_id()?;
        id.0[0] ^= 0xff;
        fabric.bootstrap(&id.to_string(), &principal.object_id, role).await?;
    }
    let base_url = settings.control_url();
    let audiences: Vec<String> =
        RESOURCE_MANAGER_AUDIENCES.into_iter().map(String::from).chain([base_url.clone()]).collect();
    let verifier = TokenVerifier::new(
        VerifierConfig {
            issuers: vec![issuer.issuer()],
            tenant,
            audiences: Audiences::new([""; 0], audiences.iter().map(String::as_str))?,
            cached_tokens: CACHED_TOKENS,
        },
        issuer.key_set(),
    );
    let authenticate = {
        let issuer = issuer.clone();
        move |token: &str| {
            // The issuer's keys may have changed. The same ones change nothing.
            verifier.replace_keys(issuer.key_set());
            let caller = verifier.verify(token, SystemClock.now()).map_err(|error| error.to_string())?;
            Ok(caller.object_id.to_string())
        }
    };
    Ok(Arc::new(Control {
        fabric,
        config: ControlConfig {
            base_url,
            authority: settings.issuer_url(),
            graph: settings.issuer_url(),
            pool_suffix: format!("{RESOURCE_SUFFIX}:{}", settings.gateway_port()),
            audiences: RESOURCE_MANAGER_AUDIENCES.map(String::from).to_vec(),
        },
        authenticate: Box::new(authenticate),
    }))
}

/// Starts the pools that should run, then purges what is due, until it is time to close. What is destroyed is gone, so the
/// clock is watched first, as by the pools themselves (`service::Schedule`): whoever sets it ahead destroys nothing.
pub async fn keep(fabric: Arc<Fabric>, mut closing: watch::Receiver<bool>) {
    let mut watched = WatchedClock::new(&SystemClock);
    tokio::select! {
        () = fabric.reconcile() => {}
        _ = closing.wait_for(|closing| *closing) => return,
    }
    loop {
        if watched.is_trusted(&SystemClock) {
            fabric.purge_due().await;
        }
        tokio::select! {
            () = tokio::time::sleep(PURGE_PERIOD) => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

/// A clock since it was first looked at.
struct WatchedClock {
    began: (Time, Duration),
    jumped: bool,
}

impl WatchedClock {
    fn new(clock: &dyn Clock) -> Self {
        Self { began: (clock.now(), clock.monotonic()), jumped: false }
    }

    /// Whether it has been watched for long enough and was never set.
    fn is_trusted(&mut self, clock: &dyn Clock) -> bool {
        let passed = clock.monotonic().saturating_sub(self.began.1);
        let by_wall = clock.now().unix_milliseconds() - self.began.0.unix_milliseconds();
        let jump = i64::try_from(passed.as_millis()).unwrap_or(i64::MAX).abs_diff(by_wall);
        if u128::from(jump) > MAX_JUMP.as_millis() && !self.jumped {
            self.jumped = true;
            tracing::error!("the clock was set: no deleted pool is destroyed until the next start");
        }
        !self.jumped && passed >= WATCHED
    }
}

fn shown(pool: &Pool) -> PoolRecord {
    let genesis = pool.genesis();
    PoolRecord {
        version: 1,
        name: genesis.name.to_string(),
        administrators: genesis.initial_administrators.iter().map(ToString::to_string).collect(),
        retention_days: genesis.retention.days(),
        purge_protection: genesis.purge_protection,
        tags: Default::default(),
        network: Default::default(),
        created_at: 0,
        created_by: "holdfast quickstart".to_owned(),
        life: Life::Present,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    const HOUR: i64 = 60 * 60 * 1000;

    /// Milliseconds on the wall, and since the start of the machine.
    #[derive(Default)]
    struct Hands(AtomicI64, AtomicI64);

    impl Clock for Hands {
        fn now(&self) -> Time {
            Time::from_unix_milliseconds(self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.1.load(Ordering::Relaxed).unsigned_abs())
        }
    }

    #[test]
    fn a_clock_is_trusted_after_an_hour_and_never_again_once_it_was_set() {
        let clock = Hands::default();
        let mut watched = WatchedClock::new(&clock);
        let mut at = |wall: i64, monotonic: i64| {
            clock.0.store(wall, Ordering::Relaxed);
            clock.1.store(monotonic, Ordering::Relaxed);
            watched.is_trusted(&clock)
        };
        assert!(!at(0, 0) && !at(HOUR - 1, HOUR - 1));
        assert!(at(HOUR, HOUR) && at(200 * HOUR, 201 * HOUR));
        assert!(!at(24 * 8 * HOUR, HOUR), "set ahead by a week");
        assert!(!at(300 * HOUR, 300 * HOUR), "and set back");
    }
}
