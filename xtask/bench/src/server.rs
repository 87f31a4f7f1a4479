//! Starts the processes under measurement on their core, and makes a pool ready to be called.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::client::{Connection, Endpoint, request};
use crate::load::Target;
use crate::raw::{PLAINTEXT_BYTES, Primitive};
use crate::{Failure, machine};

const API_VERSION: &str = "7.4";
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The server with a new quickstart pool, killed when dropped.
pub struct Pool {
    process: Child,
    variables: BTreeMap<String, String>,
    port: u16,
}

impl Pool {
    pub fn start(program: &Path, directory: &Path) -> Result<Self, Failure> {
        let data = directory.join("data");
        if data.exists() {
            std::fs::remove_dir_all(&data)?;
        }
        std::fs::create_dir_all(directory)?;
        let port = free_ports(5)?;
        let log = std::fs::File::create(directory.join("server.log"))?;
        let process = on_server_core(program)
            .arg("quickstart")
            .args(["--port", &port.to_string()])
            .arg("--data")
            .arg(&data)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut pool = Self { process, variables: BTreeMap::new(), port };
        pool.wait_until_ready(program, directory)?;
        Ok(pool)
    }

    /// Waits for the exports of `holdfast env`. The ports are bound before and the first connection waits
    /// until it is served, so nothing else needs asking.
    fn wait_until_ready(&mut self, program: &Path, directory: &Path) -> Result<(), Failure> {
        let began = Instant::now();
        while began.elapsed() < READY_WITHIN {
            if let Some(status) = self.process.try_wait()? {
                let log = directory.join("server.log");
                return Err(Failure::new(format!("server ended with {status}; see {}", log.display())));
            }
            let output =
                Command::new(program).arg("env").arg("--data").arg(directory.join("data")).output()?;
            self.variables = exports(&String::from_utf8_lossy(&output.stdout));
            if output.status.success() && self.roots()?.is_file() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Failure::new(format!("server not ready after {READY_WITHIN:?}")))
    }

    /// Makes the keys, and gives a row for each operation.
    pub async fn prepare(&self) -> Result<Vec<Target>, Failure> {
        let host = format!("demo.managedhsm.localhost:{}", self.port);
        let endpoint = Endpoint::new("demo.managedhsm.localhost", self.port, &self.roots()?)?;
        let token = self.token().await?;
        let mut connection = Connection::open(&endpoint).await?;
        let mut paths = BTreeMap::new();
        for (name, body) in [
            ("rsa", json!({"kty": "RSA-HSM", "key_size": 2048})),
            ("ec", json!({"kty": "EC-HSM", "crv": "P-256"})),
            ("oct", json!({"kty": "oct-HSM", "key_size": 256})),
        ] {
            let path = format!("/keys/bench-{name}/create?api-version={API_VERSION}");
            let body = body.to_string();
            let request = request("POST", &path, &host, Some(&token), "application/json", &body);
            let bundle = json_of(&mut connection, &request).await?;
            let id = bundle["key"]["kid"].as_str().and_then(|id| id.split_once("/keys/"));
            let (_, path) = id.ok_or_else(|| Failure::new("a key bundle has no kid"))?;
            paths.insert(name, format!("/keys/{path}"));
        }
        let digest = URL_SAFE_NO_PAD.encode([0x5a; 32]);
        let plaintext = URL_SAFE_NO_PAD.encode([0xa5; PLAINTEXT_BYTES]);
        let row = |name, primitive, method: &str, key: &str, operation: &str, body: String| {
            let path = format!("{}{operation}?api-version={API_VERSION}", paths[key]);
            let request = request(method, &path, &host, Some(&token), "application/json", &body);
            Target { name, primitive, endpoint: endpoint.clone(), request, process: self.process.id() }
        };
        let sign = |algorithm: &str| json!({"alg": algorithm, "value": digest}).to_string();
        let encrypt = json!({"alg": "A256GCM", "value": plaintext}).to_string();
        Ok(vec![
            row("RSA-2048 sign, RS256", Some(Primitive::RsaSign), "POST", "rsa", "/sign", sign("RS256")),
            row("P-256 sign, ES256", Some(Primitive::EcSign), "POST", "ec", "/sign", sign("ES256")),
            row("A256GCM encrypt, 1 KiB", Some(Primitive::Encrypt), "POST", "oct", "/encrypt", encrypt),
            row("get key", None, "GET", "ec", "", String::new()),
        ])
    }

    /// An access token for `app` from the embedded issuer.
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
            self.variable("HOLDFAST_APP_CLIENT_ID")?,
            self.variable("HOLDFAST_APP_CLIENT_SECRET")?,
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
            request: request("POST", &path, "localhost", Some(&token), "application/json", &body),
            process: self.process.id(),
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

async fn json_of(connection: &mut Connection, request: &[u8]) -> Result<Value, Failure> {
    let answer = connection.exchange(request).await?;
    let body = String::from_utf8_lossy(answer.body);
    if answer.status != 200 {
        return Err(Failure::new(format!("answer {}: {body}", answer.status)));
    }
    Ok(serde_json::from_str(&body)?)
}

/// The variables of lines such as `export NAME='value'`.
fn exports(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
}

/// The first of `count` neighbouring ports that nobody listens on, below those of outgoing connections.
fn free_ports(count: u16) -> Result<u16, Failure> {
    let free = |port: &u16| {
        (*port..*port + count).all(|port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok())
    };
    (24_000..32_000).step_by(8).find(free).ok_or_else(|| Failure::new("no free ports below 32000"))
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
