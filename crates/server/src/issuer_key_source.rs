//! The one call that a pool makes: to the place that genesis names, for its issuer's key set.
//!
//! The peer is whoever has a certificate for the pinned host that chains to a pinned root; the machine's own roots count for
//! nothing. One request, no redirect, no proxy, a limit on bytes and on time.

use crate::CommandError;
use crate::https::{Call, Client, Limits, Url};
use crate::layout::ISSUER_HOST;
use crate::output::chain;
use async_trait::async_trait;
use domain::pool::KeySource;
use host::{Destination, Dial, DialError, Socket};
use host_embedded::TcpDial;
use http::StatusCode;
use http::header::{ACCEPT, HeaderValue};
use identity::key_set::MAX_KEY_SET_BYTES;
use identity::{KeySetSource, KeySetSourceError};
use service::Pool;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// From the first packet to the last byte of the answer.
const TIME: Duration = Duration::from_secs(5);
/// How often the set is asked for without a reason: a key that the issuer took back is good for no longer than this.
const REFRESH: Duration = Duration::from_secs(3600);
const HTTPS_PORT: u16 = 443;

/// The source that `source` names, for a quickstart: its issuer is at `issuer_port` of this machine.
pub fn connect(source: &KeySource, issuer_port: u16) -> Result<Arc<dyn KeySetSource>, CommandError> {
    Ok(Arc::new(HttpsKeySource::new(source, Arc::new(IssuerDial { issuer_port }), TIME)?))
}

/// The source that `source` names, at its true address: a pool that has its operator's issuer.
pub fn connect_pinned(source: &KeySource) -> Result<Arc<dyn KeySetSource>, CommandError> {
    let url: Url = source.url.parse().map_err(|reason| format!("the key source {}: {reason}", source.url))?;
    let dial = TcpDial::new([Destination::exactly(url.host(), url.port())?], TIME);
    Ok(Arc::new(HttpsKeySource::new(source, Arc::new(dial), TIME)?))
}

/// Asks at once and then again and again, until the pool closes.
pub async fn keep_fresh(pool: Arc<Pool>, mut closing: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            () = async {
                pool.refresh_issuer_keys().await;
                tokio::time::sleep(REFRESH).await;
            } => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
    }
}

struct HttpsKeySource {
    client: Client,
    url: Url,
    time: Duration,
}

impl HttpsKeySource {
    fn new(source: &KeySource, dial: Arc<dyn Dial>, time: Duration) -> Result<Self, CommandError> {
        let malformed = |reason: &dyn std::fmt::Display| format!("the key source {}: {reason}", source.url);
        let url: Url = source.url.parse().map_err(|reason| malformed(&reason))?;
        let destination =
            Destination::exactly(url.host(), url.port()).map_err(|reason| malformed(&reason))?;
        let client = Client::new(&source.roots, [destination], dial).map_err(|reason| malformed(&reason))?;
        Ok(Self { client, url, time })
    }

    async fn get(&self) -> Result<Vec<u8>, String> {
        let mut call = Call::get();
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let limits = Limits { time: self.time, body_bytes: MAX_KEY_SET_BYTES };
        let answer = self.client.call(&self.url, call, limits).await.map_err(|error| chain(&error))?;
        // A redirect is an answer like any other that is not the key set.
        match answer.status() {
            StatusCode::OK => Ok(answer.into_body().to_vec()),
            status => Err(format!("answered {status}")),
        }
    }
}

#[async_trait]
impl KeySetSource for HttpsKeySource {
    async fn fetch(&self) -> Result<Vec<u8>, KeySetSourceError> {
        let failed =
            |reason| KeySetSourceError(format!("{}{}: {reason}", self.url.authority(), self.url.path()));
        self.get().await.map_err(failed)
    }
}

/// Knows one destination: the quickstart's own issuer, whatever port it has this time.
struct IssuerDial {
    issuer_port: u16,
}

#[async_trait]
impl Dial for IssuerDial {
    async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn Socket>, DialError> {
        if host != ISSUER_HOST || port != HTTPS_PORT {
            return Err(DialError::NotAllowed { host: host.to_owned(), port });
        }
        match TcpStream::connect((Ipv4Addr::LOCALHOST, self.issuer_port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(source) => Err(DialError::Failed { host: host.to_owned(), port, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::https::tests::{AnyName, Server, answer};
    use tokio::net::TcpListener;

    const PATIENT: Duration = Duration::from_secs(120);
    /// For an answer that does not come.
    const IMPATIENT: Duration = Duration::from_millis(300);

    fn source(server: &Server, url: &str) -> KeySource {
        KeySource { url: url.into(), roots: server.roots.clone() }
    }

    /// Asks once, while the server answers with `answer` and then neither speaks nor closes.
    async fn ask(
        server: &Server,
        source: &KeySource,
        answer: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, String> {
        let served = server.serve(answer).await;
        let source = HttpsKeySource::new(source, Arc::new(AnyName { port: served.port }), limit);
        let fetched = source.map_err(|error| error.to_string())?.fetch().await;
        if let Some(request) = served.request() {
            assert!(request.starts_with("GET /t/keys HTTP/1.1\r\n"), "{request}");
            assert!(request.to_lowercase().contains("host: issuer.localhost\r\n"), "{request}");
        }
        fetched.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_pinned_server_is_asked_and_its_answer_bounded() {
        let server = Server::new();
        let source = source(&server, "https://issuer.localhost/t/keys");
        let body = br#"{"keys":[]}"#;
        let whole = answer("200 OK\r\nContent-Length: 11", body);
        assert_eq!(ask(&server, &source, whole, PATIENT).await.as_deref(), Ok(&body[..]));

        let too_long = MAX_KEY_SET_BYTES + 1;
        let long = answer(&format!("200 OK\r\nContent-Length: {too_long}"), &vec![b' '; too_long]);
        let moved = "302 Found\r\nLocation: https://issuer.localhost/t/keys\r\nContent-Length: 0";
        for (served, words) in [
            (long, "is longer than"),
            (answer(moved, b""), "302"),
            (answer("404 Not Found\r\nContent-Length: 0", b""), "404"),
            (Vec::new(), "no answer within 300 ms"),
        ] {
            let limit = if served.is_empty() { IMPATIENT } else { PATIENT };
            let refused = ask(&server, &source, served, limit).await.unwrap_err();
            assert!(refused.contains(words), "{words}: {refused}");
            assert!(refused.starts_with("issuer.localhost/t/keys: "), "{refused}");
        }
    }

    #[tokio::test]
    async fn another_server_is_refused_before_it_is_asked() {
        let (server, other) = (Server::new(), Server::new());
        let good = answer("200 OK\r\nContent-Length: 11", br#"{"keys":[]}"#);
        let of_other = source(&other, "https://issuer.localhost/t/keys");
        let refused = ask(&server, &of_other, good, PATIENT).await.unwrap_err();
        assert!(refused.contains("certificate"), "a root that was not pinned: {refused}");
    }

    #[test]
    fn a_source_is_an_https_url_with_roots() {
        let server = Server::new();
        let refused = |source: &KeySource| connect(source, 1).err().map(|error| error.to_string());
        assert_eq!(refused(&source(&server, "https://issuer.localhost/t/keys")), None);
        for url in
            ["", "/t/keys", "http://issuer.localhost/t/keys", "https://user@issuer.localhost/", "https:///t"]
        {
            assert!(refused(&source(&server, url)).is_some(), "{url}");
        }
        for roots in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let source = KeySource { url: "https://issuer.localhost/".into(), roots: roots.to_vec() };
            assert!(refused(&source).is_some());
        }
    }

    #[tokio::test]
    async fn a_quickstart_dials_its_issuer_and_nothing_else() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let dial = IssuerDial { issuer_port: listener.local_addr().unwrap().port() };
        assert!(dial.dial(ISSUER_HOST, 443).await.is_ok());
        for (host, port) in [("localhost", 443), ("issuer.localhost.example", 443), (ISSUER_HOST, 8446)] {
            assert!(
                matches!(dial.dial(host, port).await, Err(DialError::NotAllowed { .. })),
                "{host}:{port}"
            );
        }
    }
}
