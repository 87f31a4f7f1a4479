//! Which name on the gateway's port is whose, and what a client hears for a name that is nobody's.

use crate::layout::{CONTROL_HOST, ISSUER_HOST, Layout, POOL_NAME, RESOURCE_SUFFIX};
use crate::listener::Peer;
use crate::provisioner::Ports;
use bytes::Bytes;
use gateway::Directory;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::Service;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::path::PathBuf;
use std::sync::Arc;

/// Each listener's socket is named after its own port.
pub struct Names {
    pub layout: Layout,
    /// Pools of this process.
    pub own: HashMap<String, u16>,
    /// Pools with processes of their own.
    pub children: Ports,
    pub control_port: u16,
    pub issuer_port: u16,
    pub gateway_port: u16,
}

impl Names {
    fn port(&self, name: Option<&str>) -> Option<u16> {
        let pool = match name {
            // Who names nobody, or just this machine, gets the pool that every quickstart has.
            None | Some("localhost") => POOL_NAME,
            Some(CONTROL_HOST) => return Some(self.control_port),
            Some(ISSUER_HOST) => return Some(self.issuer_port),
            Some(name) => name.strip_suffix(RESOURCE_SUFFIX)?.strip_suffix('.')?,
        };
        self.own.get(pool).copied().or_else(|| self.children.lock().get(pool).copied())
    }
}

impl Directory for Names {
    fn find(&self, name: Option<&str>) -> Option<PathBuf> {
        self.port(name).map(|port| self.layout.gateway_socket(port))
    }

    fn nobody(&self) -> PathBuf {
        self.layout.gateway_socket(self.gateway_port)
    }
}

/// The same for clients that come from a private network, by which pools have another way in.
pub struct PrivateNames(pub Arc<Names>);

impl Directory for PrivateNames {
    fn find(&self, name: Option<&str>) -> Option<PathBuf> {
        let Names { layout, control_port, issuer_port, .. } = self.0.as_ref();
        let port = self.0.port(name)?;
        let is_pool = port != *control_port && port != *issuer_port;
        Some(if is_pool { layout.private_socket(port) } else { layout.gateway_socket(port) })
    }

    fn nobody(&self) -> PathBuf {
        self.0.nobody()
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
            layout: Layout::new("data".into()),
            own: HashMap::from([("demo".to_owned(), 1), ("blank".to_owned(), 11)]),
            children: Ports::default(),
            control_port: 3,
            issuer_port: 4,
            gateway_port: 2,
        };
        names.children.lock().insert("payroll".to_owned(), 31);
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
        assert_eq!(names.nobody().file_name().unwrap(), "2.sock");
        let private = PrivateNames(Arc::new(names));
        for (name, socket) in [
            (None, Some("1.priv")),
            (Some("payroll.managedhsm.localhost"), Some("31.priv")),
            (Some("management.localhost"), Some("3.sock")),
            (Some("issuer.localhost"), Some("4.sock")),
            (Some("other.managedhsm.localhost"), None),
        ] {
            let found = private.find(name);
            assert_eq!(
                found.and_then(|path| path.file_name()?.to_str().map(String::from)).as_deref(),
                socket
            );
        }
    }
}
