//! Starts the built server, as a user would, on ports that nobody uses.

#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::panic, clippy::unwrap_used)] // a failed check is a failed test

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const ISSUER_OFFSET: u16 = 3;
pub const PROXY_OFFSET: u16 = 4;
pub const MANAGED_IDENTITY_OFFSET: u16 = 5;
/// Ports of one quickstart.
const TOGETHER: u16 = 6;
/// Deadlines and not durations: a loaded machine may take ten times what it takes alone.
const ANSWER_TIME: Duration = Duration::from_secs(120);
/// Three RSA keys are made, behind all else that the machine does.
const HOLDERS_TIME: Duration = Duration::from_secs(600);

/// A quickstart in a directory of its own; killed when dropped.
pub struct Quickstart {
    directory: TempDir,
    pub port: u16,
    process: Option<Child>,
    _reserved: UnixListener,
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Quickstart {
    pub fn new() -> Self {
        let (port, _reserved) = free_ports();
        Self { directory: tempfile::tempdir().unwrap(), port, process: None, _reserved }
    }

    pub fn started() -> Self {
        let mut quickstart = Self::new();
        quickstart.start(&[]);
        quickstart
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// `holdfast WORDS --data DIR`.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        command.args(words).arg("--data").arg(self.data()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    pub fn run_well(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it; returns once it says that it serves.
    pub fn start(&mut self, more: &[&str]) {
        self.start_as("Holdfast serves", more);
    }

    /// Starts it; returns once it says that the pool is sealed, with what it says.
    pub fn start_sealed(&mut self, more: &[&str]) -> String {
        self.start_as("Sealed:", more)
    }

    fn start_as(&mut self, expected: &str, more: &[&str]) -> String {
        let port = self.port.to_string();
        let mut child = self
            .command(&["quickstart", "--port", &port])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        if !first.starts_with(expected) {
            child.kill().unwrap();
            let mut errors = String::new();
            child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
            panic!("it did not start as expected: {first}{errors}");
        }
        self.process = Some(child);
        first
    }

    /// Starts it and ends it with SIGKILL after `time`, wherever it is by then.
    pub fn start_and_kill(&mut self, time: Duration) {
        let port = self.port.to_string();
        let command = &mut self.command(&["quickstart", "--port", &port]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time);
        child.kill().unwrap();
        child.wait().unwrap();
        self.wait_until_gone();
    }

    /// Until the domain is with the quickstart's holders: their keys and an event of the log come while it serves.
    pub fn wait_for_holders(&self) {
        let file = self.data().join("ceremony/security-domain.json");
        let until = Instant::now() + HOLDERS_TIME;
        while !file.exists() {
            assert!(Instant::now() < until, "no {}", file.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            self.wait_until_gone();
        }
    }

    /// The gateway's process, which ends with its quickstart, has its port for some moments longer.
    fn wait_until_gone(&self) {
        let until = Instant::now() + ANSWER_TIME;
        while !are_free(self.port) {
            assert!(Instant::now() < until, "a process did not end with its quickstart");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `holdfast env`, as names and values.
    pub fn variables(&self) -> HashMap<String, String> {
        let variable = |line: &str| {
            let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
            Some((name.to_owned(), value.trim_matches('\'').to_owned()))
        };
        self.run_well(&["env"]).lines().filter_map(variable).collect()
    }

    pub fn tls(&self, port: u16, protocol: Option<&str>) -> TlsStream {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        self.tls_over(stream, "demo.managedhsm.localhost", protocol)
    }

    pub fn tls_over(&self, stream: TcpStream, name: &str, protocol: Option<&str>) -> TlsStream {
        stream.set_read_timeout(Some(ANSWER_TIME)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.data().join("ca/ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocol.map(|name| name.as_bytes().to_vec()).into_iter().collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
    }

    pub fn request(&self, port: u16, request: &str, body: &str) -> Answer {
        exchange(self.tls(port, None), request, body)
    }

    /// An access token for `app`, from the embedded issuer.
    pub fn token(&self) -> String {
        self.token_of("APP", &format!("https%3A%2F%2Fmanagedhsm.localhost%3A{}", self.port))
    }

    /// One for `principal`, as `holdfast env` spells it, and `resource`, which is escaped.
    pub fn token_of(&self, principal: &str, resource: &str) -> String {
        let variables = self.variables();
        let of = |what: &str| variables[&format!("HOLDFAST_{principal}_{what}")].as_str();
        let form = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope={resource}%2F.default",
            of("CLIENT_ID"),
            of("CLIENT_SECRET")
        );
        let request = format!(
            "POST /{}/oauth2/v2.0/token HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/x-www-form-urlencoded",
            variables["TENANT_ID"],
            self.port + ISSUER_OFFSET
        );
        let answer = self.request(self.port + ISSUER_OFFSET, &request, &form);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let parsed: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        parsed["access_token"].as_str().unwrap().to_owned()
    }

    pub fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let request = format!(
            "{method} {path}?api-version=7.4 HTTP/1.1\r\nHost: demo.managedhsm.localhost:{}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json",
            self.port,
            self.token()
        );
        self.request(self.port, &request, body)
    }
}

impl Drop for Quickstart {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a request (its lines, without the last line end) and reads all of the answer.
pub fn exchange(mut stream: TlsStream, request: &str, body: &str) -> Answer {
    let length = body.len();
    let request = format!("{request}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// What a plain connection answers, to its end.
pub fn converse(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(ANSWER_TIME)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // Closed with bytes unread: a reset, and as good an end.
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("{error}"),
        Ok(_) | Err(_) => answer,
    }
}

pub fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

fn are_free(first: u16) -> bool {
    (first..first + TOGETHER).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// The first of six neighbouring ports that nobody uses, below the range of outgoing connections, and what keeps other tests
/// from them, of this process and of others: until a server listens, and while it is down, they are free for whoever asks the
/// kernel.
pub fn free_ports() -> (u16, UnixListener) {
    const BLOCKS: u16 = 1_600;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap();
    for _ in 0..BLOCKS {
        let block = (begin + NEXT.fetch_add(1, Ordering::Relaxed)) % BLOCKS;
        let first = 10_000 + block * TOGETHER;
        let name = SocketAddr::from_abstract_name(format!("holdfast-tests-ports-{first}")).unwrap();
        let Ok(reserved) = UnixListener::bind_addr(&name) else { continue };
        if are_free(first) {
            return (first, reserved);
        }
    }
    panic!("no free ports below 20000");
}
