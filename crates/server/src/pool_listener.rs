//! The data plane's listeners of one pool.

use crate::layout::RESOURCE_SUFFIX;
use crate::listener::{self, Peer, Shared, Source};
use api_data::{Api, ApiConfig, Connection, Origin};
use domain::pool::PUBLIC_AUDIENCE;
use hyper::service::service_fn;
use identity::{Audiences, MalformedSuffix};
use service::Pool;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::task::JoinSet;

/// `authority`: where challenges send a client. `port`: of the resource for clients that name no host of ours.
pub fn api(pool: &Arc<Pool>, authority: String, port: u16) -> Result<Arc<Api>, MalformedSuffix> {
    let host = format!("{}.{RESOURCE_SUFFIX}", pool.genesis().name);
    let config = ApiConfig {
        hosts: [host.as_str(), "localhost", "127.0.0.1", "[::1]"].map(String::from).to_vec(),
        authority,
        audiences: Audiences::new([RESOURCE_SUFFIX], [PUBLIC_AUDIENCE])?,
        default_resource: format!("https://{RESOURCE_SUFFIX}:{port}"),
    };
    Ok(Arc::new(Api::new(pool.clone(), config)))
}

/// By which way the clients of a listener come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    Public,
    /// From the gateway's listeners for private networks.
    Private,
}

/// Serves `api` on each of `listeners`.
pub fn spawn<L: Source + Sync>(
    services: &mut JoinSet<()>,
    listeners: Vec<L>,
    way: Way,
    shared: &Shared,
    api: &Arc<Api>,
) {
    for listener in listeners {
        let api = api.clone();
        let handler = move |peer: Peer| {
            let api = api.clone();
            let Peer { address, server_name, called } = peer;
            let origin = match way {
                Way::Public => Origin::Network(address),
                Way::Private => Origin::Private { client: address, called: called.ip() },
            };
            let connection = Connection { origin, server_name, local_port: called.port() };
            service_fn(move |request| {
                let (api, connection) = (api.clone(), connection.clone());
                async move { Ok::<_, Infallible>(api.handle(request, connection).await) }
            })
        };
        services.spawn(listener::serve(listener, shared.clone(), handler));
    }
}
