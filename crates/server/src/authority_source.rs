//! Documents of attestation authorities: the address was written by whoever made a key, so it is called with nothing but a
//! path, at the one host and port that it names, and only over TLS with a certificate that a trusted root vouches for.

use crate::https::{Call, Client, Limits, MalformedUrl, Url};
use crate::outgoing::Outgoing;
use crate::output::chain;
use async_trait::async_trait;
use domain::pool::PoolClass;
use host::Destination;
use host_embedded::TcpDial;
use http::StatusCode;
use http::header::{ACCEPT, HeaderValue};
use identity::attestation::{AuthoritySource, AuthoritySourceError};
use identity::key_set::MAX_KEY_SET_BYTES;
use service::Pool;
use std::sync::Arc;
use std::time::Duration;

const CONNECT_TIME: Duration = Duration::from_secs(3);
const TIME: Duration = Duration::from_secs(5);

struct HttpsAuthorities {
    /// PEM.
    roots: Vec<u8>,
}

/// What `pool` may ask. Beside the operator's CAs a pool of class test trusts the one of its issuer, where an authority in the
/// box is.
pub fn of(pool: &Pool, outgoing: &Outgoing) -> Arc<dyn AuthoritySource> {
    let genesis = pool.genesis();
    let own = match (genesis.class, &genesis.issuer.key_source) {
        (PoolClass::Test, Some(source)) => source.roots.as_slice(),
        (PoolClass::Test, None) | (PoolClass::Production, _) => &[],
    };
    Arc::new(HttpsAuthorities { roots: [outgoing.roots(), b"\n", own].concat() })
}

impl HttpsAuthorities {
    async fn call(&self, origin: &str, path: &str) -> Result<Vec<u8>, String> {
        let url = origin.parse().and_then(|origin: Url| origin.at(path));
        let url = url.map_err(|error: MalformedUrl| error.to_string())?;
        let only = Destination::exactly(url.host(), url.port()).map_err(|error| error.to_string())?;
        let dial = TcpDial::new([only.clone()], CONNECT_TIME);
        let client = Client::new(&self.roots, [only], Arc::new(dial)).map_err(|error| error.to_string())?;
        let mut call = Call::get();
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let limits = Limits { time: TIME, body_bytes: MAX_KEY_SET_BYTES };
        let answer = client.call(&url, call, limits).await.map_err(|error| chain(&error))?;
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body().to_vec()),
            status => Err(format!("answered {status}")),
        }
    }
}

#[async_trait]
impl AuthoritySource for HttpsAuthorities {
    async fn get(&self, origin: &str, path: &str) -> Result<Vec<u8>, AuthoritySourceError> {
        self.call(origin, path)
            .await
            .map_err(|reason| AuthoritySourceError(format!("{origin}{path}: {reason}")))
    }
}
