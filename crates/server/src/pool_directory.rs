//! Which name on the gateway's port is whose, and what a client hears for a name that is nobody's.

use crate::layout::{
    CONTROL_HOST, ISSUER_HOST, POOL_NAME, RESOURCE_SUFFIX, private_socket_name, socket_name,
};
use crate::listener::Peer;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::Service;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};

/// Each listener's socket is named after its own port.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Names {
    /// Running ones, or about to run again.
    pub pools: HashMap<String, u16>,
    pub control_port: u16,
    pub issuer_port: u16,
    pub gateway_port: u16,
}

impl Names {
    pub fn port(&self, name: Option<&str>) -> Option<u16> {
        let pool = match name {
            // Who names nobody, or just this machine, gets the pool that every quickstart has.
            None | Some("localhost") => POOL_NAME,
            Some(CONTROL_HOST) => return Some(self.control_port),
            Some(ISSUER_HOST) => return Some(self.issuer_port),
            Some(name) => name.strip_suffix(RESOURCE_SUFFIX)?.strip_suffix('.')?,
        };
        self.pools.get(pool).copied()
    }

    /// The name of the socket of whoever serves `name`.
    pub fn socket(&self, name: Option<&str>) -> Option<String> {
        self.port(name).map(socket_name)
    }

    /// The same for clients that come from a private network, by which pools have another way in.
    pub fn private_socket(&self, name: Option<&str>) -> Option<String> {
        let port = self.port(name)?;
        let is_pool = port != self.control_port && port != self.issuer_port;
        Some(if is_pool { private_socket_name(port) } else { socket_name(port) })
    }
}

/// The handler of a connection for a name that nobody serves now.
pub struct Nobody {
    is_known: bool,
}

impl Nobody {
    pub fn new(names: &Names, peer: &Peer) -> Self {
        Self { is_known: names.port(peer.server_name.as_deref()).is_some() }
    }
}

impl Service<Request<Incoming>> for Nobody {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, _: Request<Incoming>) -> Self::Future {
        ready(Ok(absent(self.is_known)))
    }
}

fn absent(is_known: bool) -> Response<Full<Bytes>> {
    let (status, code, message) = if is_known {
        (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", "The pool does not serve at present.")
    } else {
        (StatusCode::NOT_FOUND, "NotFound", "No pool of this name is served here.")
    };
    let body = serde_json::json!({ "error": { "code": code, "message": message } });
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Kept, a connection would lead here for as long as its client tries, whoever serves the name by then.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if is_known {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_one_owner() {
        let names = Names {
            pools: [("demo", 1), ("blank", 11), ("payroll", 31)]
                .map(|(name, port)| (name.to_owned(), port))
                .into(),
            control_port: 3,
            issuer_port: 4,
            gateway_port: 2,
        };
        for (name, port) in [
            (None, Some(1)),
            (Some("localhost"), Some(1)),
            (Some("demo.managedhsm.localhost"), Some(1)),
            (Some("blank.managedhsm.localhost"), Some(11)),
            (Some("payroll.managedhsm.localhost"), Some(31)),
            (Some("management.localhost"), Some(3)),
            (Some("issuer.localhost"), Some(4)),
            (Some("other.managedhsm.localhost"), None),
            (Some("managedhsm.localhost"), None),
            (Some("demo"), None),
            (Some("demomanagedhsm.localhost"), None),
            (Some("demo.managedhsm.localhost.example.com"), None),
        ] {
            assert_eq!(names.port(name), port, "{name:?}");
        }
        let private = [
            (None, Some("1.priv")),
            (Some("payroll.managedhsm.localhost"), Some("31.priv")),
            (Some("management.localhost"), Some("3.sock")),
            (Some("issuer.localhost"), Some("4.sock")),
            (Some("other.managedhsm.localhost"), None),
        ];
        for (name, socket) in private {
            assert_eq!(names.private_socket(name).as_deref(), socket, "{name:?}");
        }
    }
}
