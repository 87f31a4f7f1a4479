//! Starts the processes under measurement on their core, and makes a pool ready to be called.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::rsa::KeySize;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::client::{Connection, Endpoint, request};
use crate::load::{Request, Target};
use crate::raw::{Curve, PLAINTEXT_BYTES, Primitive};
use crate::{Failure, machine};

const API_VERSION: &str = "7.4";
const HOST: &str = "demo.managedhsm.localhost";
const READY_WITHIN: Duration = Duration::from_secs(60);
/// As many may wait for a new RSA key before one principal's share of the queue is full.
const RSA_MAKERS: usize = 4;
/// Enough to keep the core busy with RSA; more would only wait.
const RSA_SIGNERS: usize = 32;
/// Connections that make many keys.
const MAKERS: usize = 32;
/// As many names take turns in the rows that make keys: no two connections are at the same one, and none gets more versions
/// than a key may have.
const NAMES: u64 = 4_000;

/// What counts as recorded: the event is on the disk, or the operating system has it. Fixed when a pool is made.
pub const SYNCED: &str = "synced";
pub const WRITTEN: &str = "written";

/// The server with a quickstart pool, killed when dropped.
pub struct Pool {
    process: Child,
    variables: BTreeMap<String, String>,
    port: u16,
}

/// What the client that measures has of a pool.
pub struct Access {
    host: String,
    token: String,
    endpoint: Endpoint,
    gateway: Endpoint,
    process: u32,
}

impl Pool {
    /// With a new pool in `directory`, which may hold as many keys as a pool can.
    pub async fn start(program: &Path, directory: &Path, durability: &str) -> Result<Self, Failure> {
        Self::start_new(program, directory, &["--audit-durability", durability]).await
    }

    /// With a new pool in `directory` that may back itself up to `folder`.
    pub async fn start_backing_up_to(
        program: &Path,
        directory: &Path,
        folder: &Path,
    ) -> Result<Self, Failure> {
        let folder = folder.to_str().ok_or_else(|| Failure::new("the folder's name is no text"))?;
        Self::start_new(program, directory, &["--audit-durability", SYNCED, "--backup-folder", folder]).await
    }

    async fn start_new(program: &Path, directory: &Path, flags: &[&str]) -> Result<Self, Failure> {
        let data = directory.join("data");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join("pool.toml"), "[limits]\nkeys = 100000\nready_keys = 0\n")?;
        Self::start_as(program, directory, free_ports(6)?, flags).await
    }

    /// With the pool that is in `directory`.
    pub async fn start_again(program: &Path, directory: &Path, port: u16) -> Result<Self, Failure> {
        Self::start_as(program, directory, port, &["--audit-durability", SYNCED]).await
    }

    async fn start_as(program: &Path, directory: &Path, port: u16, flags: &[&str]) -> Result<Self, Failure> {
        let log = std::fs::File::create(directory.join("server.log"))?;
        let process = on_server_core(program)
            .args(["quickstart", "--with-conformance-principal"])
            .args(["--port", &port.to_string()])
            .args(flags)
            .arg("--data")
            .arg(directory.join("data"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut pool = Self { process, variables: BTreeMap::new(), port };
        pool.wait_until_ready(program, directory).await?;
        Ok(pool)
    }

    /// Waits for the exports of `holdfast env`, and until a request is answered.
    async fn wait_until_ready(&mut self, program: &Path, directory: &Path) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < READY_WITHIN {
            if let Some(status) = self.process.try_wait()? {
                let log = directory.join("server.log");
                return Err(Failure::new(format!("server ended with {status}; see {}", log.display())));
            }
            if !self.variables.contains_key("CA_BUNDLE") {
                let output = Command::new(program)
                    .args(["env", "--conformance", "--data"])
                    .arg(directory.join("data"))
                    .output()?;
                self.variables = exports(&String::from_utf8_lossy(&output.stdout));
            }
            if self.variables.contains_key("CA_BUNDLE") && self.roots()?.is_file() && self.answers().await? {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Err(Failure::new(format!("server not ready after {READY_WITHIN:?}")))
    }

    async fn answers(&self) -> Result<bool, Failure> {
        let endpoint = Endpoint::new(HOST, self.port, &self.roots()?)?;
        let Ok(mut connection) = Connection::open(&endpoint).await else { return Ok(false) };
        let request = request("GET", "/healthstatus", HOST, None, "", "");
        Ok(connection.exchange(&request).await.is_ok_and(|answer| answer.status == 200))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a person would, so that all is written.
    pub fn stop(mut self) -> Result<(), Failure> {
        let process = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
        self.process.wait()?;
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill(mut self) -> Result<(), Failure> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    pub fn process(&self) -> u32 {
        self.process.id()
    }

    pub async fn access(&self) -> Result<Arc<Access>, Failure> {
        Ok(Arc::new(Access {
            host: format!("{HOST}:{}", self.port),
            token: self.token().await?,
            endpoint: Endpoint::new(HOST, self.port, &self.roots()?)?,
            gateway: Endpoint::new(HOST, self.port + 1, &self.roots()?)?,
            process: self.process.id(),
        }))
    }

    /// An access token for a principal that may do everything, from the embedded issuer.
    async fn token(&self) -> Result<String, Failure> {
        let authority = self.variable("AUTHORITY_HOST")?;
        let malformed = || Failure::new(format!("AUTHORITY_HOST is not https://host:port: {authority}"));
        let address = authority.strip_prefix("https://").ok_or_else(malformed)?;
        let (host, port) = address.rsplit_once(':').ok_or_else(malformed)?;
        let endpoint = Endpoint::new(host, port.parse().map_err(|_| malformed())?, &self.roots()?)?;
        let path = format!("/{}/oauth2/v2.0/token", self.variable("TENANT_ID")?);
        // Ids and secrets are letters, digits, `-` and `_`: nothing in them needs escaping.
        let body = format!(
            "grant_type=client_credentials&client_id={}&client_secret={}&scope=https%3A%2F%2Fmanagedhsm.localhost%3A{}%2F.default",
            self.variable("CLIENT_ID")?,
            self.variable("CLIENT_SECRET")?,
            self.port
        );
        let request = request("POST", &path, address, None, "application/x-www-form-urlencoded", &body);
        let mut connection = Connection::open(&endpoint).await?;
        let answer = json_of(&mut connection, &request).await?;
        let token = answer["access_token"].as_str();
        token.map(str::to_owned).ok_or_else(|| Failure::new("the issuer gave no access token"))
    }

    fn roots(&self) -> Result<PathBuf, Failure> {
        self.variable("CA_BUNDLE").map(PathBuf::from)
    }

    fn variable(&self, name: &str) -> Result<&str, Failure> {
        let value = self.variables.get(name).map(String::as_str);
        value.ok_or_else(|| Failure::new(format!("holdfast env does not set {name}")))
    }
}

impl Access {
    pub async fn connect(&self) -> Result<Connection, Failure> {
        Connection::open(&self.endpoint).await
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}api-version={API_VERSION}");
        request(method, &path, &self.host, Some(&self.token), "application/json", body)
    }

    pub fn target(&self, name: &'static str, primitive: Option<Primitive>, request: Request) -> Target {
        Target {
            name,
            primitive,
            endpoint: self.endpoint.clone(),
            request,
            process: self.process,
            most_connections: usize::MAX,
        }
    }

    /// The same request of the same pool by the port that is all pools'.
    fn by_gateway(&self, name: &'static str, request: Request) -> Target {
        Target { endpoint: self.gateway.clone(), ..self.target(name, None, request) }
    }

    /// Makes a key of `kind`; returns its path with its version.
    pub async fn create(
        &self,
        connection: &mut Connection,
        name: &str,
        kind: &Value,
    ) -> Result<String, Failure> {
        let request = self.request("POST", &format!("/keys/{name}/create"), &kind.to_string());
        let bundle = json_of(connection, &request).await?;
        let id = bundle["key"]["kid"].as_str().and_then(|id| id.split_once("/keys/"));
        let (_, path) = id.ok_or_else(|| Failure::new("a key bundle has no kid"))?;
        Ok(format!("/keys/{path}"))
    }

    /// Sends them all, over as many connections as make many keys, in no order.
    pub async fn send_all(&self, requests: Vec<Vec<u8>>) -> Result<(), Failure> {
        let mut workers = JoinSet::new();
        for part in requests.chunks(requests.len().div_ceil(MAKERS).max(1)) {
            let (mut connection, part) = (self.connect().await?, part.to_vec());
            workers.spawn(async move {
                for request in part {
                    json_of(&mut connection, &request).await?;
                }
                Ok::<_, Failure>(())
            });
        }
        while let Some(worker) = workers.join_next().await {
            worker??;
        }
        Ok(())
    }

    /// Makes the keys, and gives a row for each operation.
    pub async fn prepare(&self) -> Result<Vec<Target>, Failure> {
        let mut connection = self.connect().await?;
        let mut rows = Vec::new();
        let post = |path: &str, body: Value| Request::same(self.request("POST", path, &body.to_string()));
        for (name, bits, size) in [
            ("RSA-2048 sign, RS256", 2048, KeySize::Rsa2048),
            ("RSA-3072 sign, RS256", 3072, KeySize::Rsa3072),
            ("RSA-4096 sign, RS256", 4096, KeySize::Rsa4096),
        ] {
            let kind = json!({"kty": "RSA-HSM", "key_size": bits});
            let path = self.create(&mut connection, &format!("bench-rsa-{bits}"), &kind).await?;
            let body = json!({"alg": "RS256", "value": encoded(&[0x5a; 32])});
            let target =
                self.target(name, Some(Primitive::RsaSign(size)), post(&format!("{path}/sign"), body));
            rows.push(Target { most_connections: RSA_SIGNERS, ..target });
        }
        for (sign, verify, name, algorithm, bytes, curve) in [
            ("P-256 sign, ES256", "P-256 verify, ES256", "P-256", "ES256", 32, Curve::P256),
            ("P-256K sign, ES256K", "P-256K verify, ES256K", "P-256K", "ES256K", 32, Curve::P256K),
            ("P-384 sign, ES384", "P-384 verify, ES384", "P-384", "ES384", 48, Curve::P384),
            ("P-521 sign, ES512", "P-521 verify, ES512", "P-521", "ES512", 64, Curve::P521),
        ] {
            let kind = json!({"kty": "EC-HSM", "crv": name});
            let path = self.create(&mut connection, &format!("bench-{name}"), &kind).await?;
            let digest = encoded(&vec![0x5a; bytes]);
            let body = json!({"alg": algorithm, "value": digest});
            let request = self.request("POST", &format!("{path}/sign"), &body.to_string());
            let signature = json_of(&mut connection, &request).await?["value"].clone();
            rows.push(self.target(sign, Some(Primitive::EcSign(curve)), Request::same(request.clone())));
            if name == "P-256" {
                rows.push(self.by_gateway("P-256 sign, by the gateway", Request::same(request)));
            }
            let body = json!({"alg": algorithm, "digest": digest, "value": signature});
            let request = post(&format!("{path}/verify"), body);
            rows.push(self.target(verify, Some(Primitive::EcVerify(curve)), request));
            if name == "P-256" {
                let request = self.request("GET", &path, "");
                rows.push(self.target("get key", None, Request::same(request.clone())));
                rows.push(self.by_gateway("get key, by the gateway", Request::same(request)));
            }
        }
        let kind = json!({"kty": "oct-HSM", "key_size": 256});
        let path = self.create(&mut connection, "bench-oct", &kind).await?;
        let body = json!({"alg": "A256GCM", "value": encoded(&[0xa5; PLAINTEXT_BYTES])});
        let request = post(&format!("{path}/encrypt"), body);
        rows.push(self.target("A256GCM encrypt, 1 KiB", Some(Primitive::Encrypt), request));
        let body = json!({"alg": "A256KW", "value": encoded(&[0xa5; 32])});
        let request = post(&format!("{path}/wrapkey"), body);
        rows.push(self.target("A256KW wrapKey", Some(Primitive::WrapKey), request));
        for number in 0..25 {
            self.create(&mut connection, &format!("bench-list-{number}"), &kind).await?;
        }
        let request = Request::same(self.request("GET", "/keys?maxresults=25", ""));
        rows.push(self.target("list 25 keys", None, request));
        let role = "/providers/Microsoft.Authorization/roleDefinitions/00000000-0000-4000-8000-00000000beef";
        let body = json!({"properties": {"roleName": "bench", "permissions": [{"dataActions": [
            "Microsoft.KeyVault/managedHsm/keys/read/action"
        ]}]}});
        let request = self.request("PUT", role, &body.to_string());
        // Who may not write roles has no such row: it is an administrator's.
        if connection.exchange(&request).await?.status < 300 {
            let target = self.target("write a role definition", None, Request::same(request));
            // Each rests on the names of all others, so that two at a time are a conflict.
            rows.push(Target { most_connections: 1, ..target });
        }
        rows.push(self.maker("create oct-256", json!({"kty": "oct-HSM", "key_size": 256})));
        rows.push(self.maker("create P-256", json!({"kty": "EC-HSM", "crv": "P-256"})));
        for (name, bits) in [("create RSA-2048", 2048), ("create RSA-4096", 4096)] {
            let maker = self.maker(name, json!({"kty": "RSA-HSM", "key_size": bits}));
            rows.push(Target { most_connections: RSA_MAKERS, ..maker });
        }
        Ok(rows)
    }

    /// Some rows again, for a pool whose events are not synced.
    pub async fn prepare_written(&self) -> Result<Vec<Target>, Failure> {
        let renamed = self.prepare().await?.into_iter().filter_map(|target| {
            let name = match target.name {
                "P-256 sign, ES256" => "P-256 sign, ES256, audit written",
                "get key" => "get key, audit written",
                "A256GCM encrypt, 1 KiB" => "A256GCM encrypt, 1 KiB, audit written",
                _ => return None,
            };
            Some(Target { name, ..target })
        });
        Ok(renamed.collect())
    }

    fn maker(&self, name: &'static str, kind: Value) -> Target {
        let (host, token, body) = (self.host.clone(), self.token.clone(), kind.to_string());
        let names = name.replace(' ', "-");
        let request = Request::numbered(move |number| {
            let path = format!("/keys/{names}-{}/create?api-version={API_VERSION}", number % NAMES);
            request("POST", &path, &host, Some(&token), "application/json", &body)
        });
        Target { most_connections: MAKERS, ..self.target(name, None, request) }
    }
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Drop for Pool {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// The bare handler, killed when dropped.
pub struct Bare {
    process: Child,
    port: u16,
    certificate: PathBuf,
}

impl Bare {
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        let certificate = directory.join("bare.pem");
        let mut command = on_server_core(&std::env::current_exe()?);
        let mut process = command.arg("bare").arg(&certificate).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(output) = process.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(port) => Ok(Self { process, port, certificate }),
            Err(_) => {
                end(&mut process);
                Err(Failure::new("the bare handler did not start"))
            }
        }
    }

    /// Asked as the server is asked for a signature, with a token of the usual length.
    pub fn target(&self) -> Result<Target, Failure> {
        let body = json!({"alg": "RS256", "value": URL_SAFE_NO_PAD.encode([0x5a; 32])}).to_string();
        let path = format!("/keys/bench/{}/sign?api-version={API_VERSION}", "0".repeat(32));
        let token = "t".repeat(1000);
        Ok(Target {
            name: "bare handler",
            primitive: None,
            endpoint: Endpoint::new("localhost", self.port, &self.certificate)?,
            request: Request::same(request(
                "POST",
                &path,
                "localhost",
                Some(&token),
                "application/json",
                &body,
            )),
            process: self.process.id(),
            most_connections: usize::MAX,
        })
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

fn end(process: &mut Child) {
    let _ = process.kill();
    let _ = process.wait();
}

/// `program`, to be run on the server's core alone. `taskset` becomes the program, so that the process is
/// the one to be measured and ended.
fn on_server_core(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &machine::SERVER_CORE.to_string()]).arg(program).stdin(Stdio::null());
    command
}

pub async fn json_of(connection: &mut Connection, request: &[u8]) -> Result<Value, Failure> {
    let answer = connection.exchange(request).await?;
    let body = String::from_utf8_lossy(answer.body);
    if !(200..300).contains(&answer.status) {
        return Err(Failure::new(format!("answer {}: {body}", answer.status)));
    }
    Ok(serde_json::from_str(&body)?)
}

/// The variables of lines such as `export NAME='value'`.
fn exports(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

/// Of eight ports each, below those of outgoing connections.
const PORT_SLOTS: usize = 1000;

/// The first of `count` neighbouring ports that nobody listens on.
fn free_ports(count: u16) -> Result<u16, Failure> {
    let free = |port: &u16| {
        (*port..*port + count).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    // Not all from the same: a run whose server was just killed would lose its ports to another run.
    let first = std::process::id() as usize % PORT_SLOTS;
    let mut ports = (0..PORT_SLOTS).map(|slot| 24_000 + 8 * ((first + slot) % PORT_SLOTS) as u16);
    ports.find(free).ok_or_else(|| Failure::new("no free ports below 32000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_without_their_quotes() {
        let read = exports("# a comment\nexport A='b=c'\nexport B=''\nother\n");
        assert_eq!(read, BTreeMap::from([("A".into(), "b=c".into()), ("B".into(), String::new())]));
    }
}
