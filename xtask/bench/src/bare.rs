//! The bare handler: TLS and HTTP from the same libraries as the server's, a fixed answer, and nothing else.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::Failure;

/// As long as the answer to a signature.
const BODY: &[u8; 300] = &[b' '; 300];

/// Serves on a free port until killed. Writes its certificate to the file that it is given, then its port
/// to standard output.
pub fn run(words: &[String]) -> Result<(), Failure> {
    let [certificate_file] = words else { return Err(Failure::new("usage: bench bare CERTIFICATE-FILE")) };
    let acceptor = acceptor(Path::new(certificate_file))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?.port());
        serve(&listener, &acceptor).await
    })
}

/// TLS with a new certificate for `localhost`, which is written to `certificate_file`.
fn acceptor(certificate_file: &Path) -> Result<TlsAcceptor, Failure> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    std::fs::write(certificate_file, made.cert.pem())?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(Failure::new)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn serve(listener: &TcpListener, acceptor: &TlsAcceptor) -> Result<(), Failure> {
    loop {
        let (plain, _) = listener.accept().await?;
        plain.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Ok(stream) = acceptor.accept(plain).await {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            }
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // The request is read to its end, as any handler must.
    let _ = request.into_body().collect().await;
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::client::{Endpoint, request};
    use crate::load::{self, Request, Target};

    /// The load generator and the handler understand each other, and every figure is filled in.
    #[tokio::test]
    async fn a_load_on_the_bare_handler_is_measured() {
        let certificate = std::env::temp_dir().join(format!("bench-bare-{}.pem", std::process::id()));
        let acceptor = acceptor(&certificate).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint::new("localhost", port, &certificate).unwrap();
        std::fs::remove_file(&certificate).unwrap();
        tokio::spawn(async move { serve(&listener, &acceptor).await });
        let target = Target {
            name: "bare handler",
            primitive: None,
            endpoint,
            request: Request::same(request(
                "POST",
                "/",
                "localhost",
                Some("token"),
                "application/json",
                "{}",
            )),
            process: std::process::id(),
            most_connections: 3,
        };
        let load = load::run(&target, 9, Duration::from_millis(200)).await.unwrap();
        assert!(load.rate > 10.0 && load.latencies.len() > 3, "{}", load.rate);
        assert!(load.latencies.is_sorted());
        assert!(load.client_share > 0.1);
    }
}
