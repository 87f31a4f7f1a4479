//! The least HTTP/1.1 client that can measure: one connection, one request at a time, no allocation in
//! between. It must cost less than the server does, or the measurement is of the client.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Failure;

/// Longest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Where to connect, and whom to trust there.
#[derive(Clone)]
pub struct Endpoint {
    pub port: u16,
    pub name: ServerName<'static>,
    pub tls: Arc<ClientConfig>,
}

impl Endpoint {
    /// `host`: the name or address in the certificate; the connection goes to 127.0.0.1 in any case.
    pub fn new(host: &str, port: u16, roots: &Path) -> Result<Self, Failure> {
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(roots)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", roots.display())))?
        {
            store.add(certificate.map_err(|error| Failure::new(format!("{}: {error}", roots.display())))?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { port, name: ServerName::try_from(host.to_owned())?, tls: Arc::new(tls) })
    }
}

/// A keep-alive connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// Status and body of an answer.
pub struct Answer<'a> {
    pub status: u16,
    pub body: &'a [u8],
    /// The event's place in the log, where the answer has a receipt.
    pub receipt_index: Option<u64>,
}

impl Connection {
    pub async fn open(endpoint: &Endpoint) -> Result<Self, Failure> {
        let plain = TcpStream::connect(("127.0.0.1", endpoint.port)).await?;
        plain.set_nodelay(true)?;
        let connector = TlsConnector::from(endpoint.tls.clone());
        let stream = connector.connect(endpoint.name.clone(), plain).await?;
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends `request` as it is and reads the answer to its end.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Answer<'_>, Failure> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        let mut head = None;
        loop {
            if head.is_none() {
                head = parse_head(&self.buffer)?;
            }
            if let Some(head) = &head
                && self.buffer.len() >= head.length + head.body
            {
                let body = &self.buffer[head.length..head.length + head.body];
                return Ok(Answer { status: head.status, body, receipt_index: head.receipt_index });
            }
            if self.buffer.len() > MAX_ANSWER_BYTES {
                return Err(Failure::new("answer is longer than a mebibyte"));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Failure::new("server closed the connection"));
            }
        }
    }
}

/// A whole request, to be sent again and again.
pub fn request(method: &str, path: &str, host: &str, token: Option<&str>, kind: &str, body: &str) -> Vec<u8> {
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let content = match body {
        "" => String::new(),
        body => format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len()),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}{content}\r\n{body}").into_bytes()
}

struct Head {
    status: u16,
    /// Bytes before the body.
    length: usize,
    /// Bytes of the body.
    body: usize,
    receipt_index: Option<u64>,
}

/// `None` while the head is not there in full.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let malformed = || Failure::new("answer is not the HTTP/1.1 that this client reads");
    let text = std::str::from_utf8(&bytes[..end]).map_err(|_| malformed())?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let (mut length, mut receipt_index) = (None, None);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("x-holdfast-receipt") {
            receipt_index = value.rsplit_once("index=").and_then(|(_, index)| index.parse().ok());
        }
    }
    match (status, length) {
        (Some(status), Some(body)) => Ok(Some(Head { status, length: end + 4, body, receipt_index })),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        assert!(parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n").unwrap().is_none());
        let text = b"HTTP/1.1 200 OK\r\nX-Holdfast-Receipt: node=a;index=7\r\ncontent-length: 2\r\n\r\n{}";
        let head = parse_head(text).unwrap().unwrap();
        assert_eq!((head.status, head.length, head.body), (200, text.len() - 2, 2));
        assert_eq!(head.receipt_index, Some(7));
        for bad in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", "x\r\n\r\n"] {
            assert!(parse_head(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
