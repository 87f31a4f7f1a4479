//! Runs the control plane's pools: each a child process of its own (`instance_command`) that is started again when it ends.
//!
//! A child is told what its pool is to be founded with, and gets a certificate for its own name; it gets no key and gives
//! none. It ends when this process does, however that ends: its input ends with it.

use crate::CommandError;
use crate::certificates::CertificateAuthority;
use crate::child::{self, PING_PERIOD, Pauses, SILENCE};
use crate::files;
use crate::gateway_process::Gateway;
use crate::instance::Parameters as Genesis;
use crate::instance_command::{Certified, MAX_LINE_BYTES, Numbered, Said, Start, Told};
use crate::layout::{Layout, RESOURCE_SUFFIX};
use crate::network;
use crate::outgoing;
use crate::own_user::{self, User};
use crate::root_of_trust::RootOfTrust;
use async_trait::async_trait;
use domain::name::PoolName;
use fabric::{InstanceState, Network, Parameters, ProvisionError, Provisioner, Reach};
use parking_lot::{Condvar, Mutex};
use rustls_pki_types::CertificateSigningRequestDer;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// In a pool's directory: the port that it serves at. No other pool's directory has it.
const PORT: &str = "port";
const READY_TIME: Duration = Duration::from_secs(20);
const STOP_TIME: Duration = Duration::from_secs(15);
const APPLY_TIME: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The first port that a pool may get, counted from the quickstart's, and how many are tried.
const FIRST_PORT_OFFSET: u16 = 30;
const PORTS: u16 = 200;
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Names of running pools and their ports, for the gateway and the proxy.
pub type Ports = Arc<watch::Sender<HashMap<String, u16>>>;

pub struct Children {
    pub layout: Layout,
    pub authority: Arc<CertificateAuthority>,
    /// Of the quickstart's own pool.
    pub port: u16,
    pub gateway_port: u16,
    pub issuer_port: u16,
    /// In challenges.
    pub challenged: String,
    pub outgoing: outgoing::Given,
    /// What all pools are founded with; what differs is filled in.
    pub founding: Genesis,
    pub ports: Ports,
    /// Who the gateway is at present.
    pub gateway: watch::Receiver<Option<Gateway>>,
    pub gateway_user: Option<User>,
    pub running: Mutex<HashMap<String, Arc<Running>>>,
}

/// One pool's supervisor and its child.
pub struct Running {
    state: watch::Sender<InstanceState>,
    /// The number of the rules that are in force in the child.
    applied: watch::Sender<u64>,
    held: Mutex<Held>,
    changed: Condvar,
}

struct Held {
    network: Numbered,
    /// The child has its certificate, and takes messages.
    certified: bool,
    heard: Instant,
    stopping: bool,
    child: Option<Child>,
    /// The child lives as long as this is open.
    input: Option<ChildStdin>,
}

impl Running {
    fn new(rules: Reach) -> Self {
        Self {
            state: watch::Sender::new(InstanceState::Starting),
            applied: watch::Sender::new(0),
            held: Mutex::new(Held {
                network: Numbered { number: 1, rules },
                certified: false,
                heard: Instant::now(),
                stopping: false,
                child: None,
                input: None,
            }),
            changed: Condvar::new(),
        }
    }

    async fn end(&self) -> Result<(), ProvisionError> {
        {
            let mut held = self.held.lock();
            held.stopping = true;
            held.input = None;
            self.changed.notify_all();
        }
        let mut state = self.state.subscribe();
        let stopped = async |state: &mut watch::Receiver<InstanceState>| {
            let stopped = state.wait_for(|state| *state == InstanceState::Stopped);
            tokio::time::timeout(STOP_TIME, stopped).await.is_ok()
        };
        if !stopped(&mut state).await {
            if let Some(child) = &mut self.held.lock().child {
                child.kill().map_err(|error| ProvisionError(error.to_string()))?;
            }
            if !stopped(&mut state).await {
                return Err(ProvisionError("its process does not end".to_owned()));
            }
        }
        Ok(())
    }
}

impl Held {
    /// Never waits: who waited for a child with this locked would keep everybody from stopping it. A child that takes no
    /// message, though its input has room for hundreds, is ended; the reader notices.
    fn tell(&mut self, message: &impl serde::Serialize) {
        let Some(input) = &mut self.input else { return };
        if tell(input, message).is_err()
            && let Some(child) = &mut self.child
        {
            let _ = child.kill();
        }
    }
}

/// Whether the control plane has a pool of this name, deleted ones included.
pub fn has_pool(layout: &Layout, name: &PoolName) -> bool {
    layout.place(name.clone()).directory.with_file_name(PORT).exists()
}

impl Children {
    /// Ends all children, gracefully.
    pub async fn stop_all(&self) {
        let names: Vec<String> = self.running.lock().keys().cloned().collect();
        for name in names {
            if let Err(error) = self.stop(&name).await {
                tracing::error!(pool = name, %error, "a pool cannot be stopped");
            }
        }
    }

    /// Tells all pools whom to listen to, whenever it is another.
    pub async fn introduce(&self) {
        let mut gateway = self.gateway.clone();
        while gateway.changed().await.is_ok() {
            let gateway = *gateway.borrow_and_update();
            let running: Vec<_> = self.running.lock().values().cloned().collect();
            for pool in running {
                let mut held = pool.held.lock();
                if held.certified {
                    held.tell(&Told::Gateway(gateway));
                }
            }
        }
    }

    /// The pool's port, the same from start to start.
    fn port(&self, name: &str) -> Result<u16, CommandError> {
        let place = self.layout.place(name.parse()?);
        let directory = place.directory.parent().ok_or("a pool has a directory above its own")?;
        files::create_directory(directory)?;
        let taken = ports_of_pools(directory.parent().ok_or("pools have a directory")?)?;
        let held = files::read_or_make::<CommandError>(&directory.join(PORT), || {
            // A user of its own may not be able to listen at a lower one.
            let first = self.port.saturating_add(FIRST_PORT_OFFSET).max(FIRST_UNPRIVILEGED_PORT);
            let is_free =
                |port: &u16| !taken.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
            let port =
                (first..first.saturating_add(PORTS)).find(is_free).ok_or("no port is free for the pool")?;
            Ok(Zeroizing::new(port.to_string().into_bytes()))
        })?;
        Ok(std::str::from_utf8(&held)?.trim().parse()?)
    }

    fn start_message(&self, parameters: &Parameters) -> Result<Start, CommandError> {
        let place = self.layout.place(parameters.name.parse()?);
        let RootOfTrust::KeyFile(root_key) = place.root else {
            return Err("pools of the control plane cannot be sealed under a credential yet".into());
        };
        let mut genesis = self.founding.clone();
        genesis.administrators.clone_from(&parameters.administrators);
        genesis.retention_days = parameters.retention_days;
        genesis.purge_protection = parameters.purge_protection;
        let port = self.port(&parameters.name)?;
        let above = place.directory.parent().ok_or("a pool has a directory above its own")?;
        Ok(Start {
            user: own_user::of_pool(&self.layout, above)?,
            gateway_user: self.gateway_user,
            name: parameters.name.clone(),
            port,
            directory: std::path::absolute(place.directory)?,
            root_key: std::path::absolute(root_key)?,
            limits: std::path::absolute(self.layout.limits())?,
            gateway_socket: std::path::absolute(self.layout.gateway_socket(port))?,
            private_socket: std::path::absolute(self.layout.private_socket(port))?,
            admin_socket: std::path::absolute(self.layout.pool_admin_socket(port))?,
            authority: self.challenged.clone(),
            issuer_port: self.issuer_port,
            outgoing: self.outgoing.absolute()?,
            genesis,
        })
    }

    fn begin(&self, parameters: &Parameters) -> Result<Arc<Running>, CommandError> {
        let start = self.start_message(parameters)?;
        let mut running = self.running.lock();
        if let Some(running) = running.get(&parameters.name) {
            return Ok(running.clone());
        }
        let new = Arc::new(Running::new(parameters.reach.clone()));
        self.ports.send_modify(|ports| {
            ports.insert(parameters.name.clone(), start.port);
        });
        let log = self.layout.data.join("run").join(format!("{}.log", parameters.name));
        let supervisor = Supervisor {
            running: new.clone(),
            authority: self.authority.clone(),
            gateway: self.gateway.clone(),
            start,
            log,
            command: || child::command("instance"),
        };
        std::thread::Builder::new()
            .name(format!("pool {}", parameters.name))
            .spawn(move || supervisor.run())?;
        running.insert(parameters.name.clone(), new.clone());
        Ok(new)
    }

    async fn end(&self, name: &str) -> Result<(), ProvisionError> {
        let Some(running) = self.running.lock().get(name).cloned() else { return Ok(()) };
        running.end().await?;
        self.running.lock().remove(name);
        self.ports.send_modify(|ports| {
            ports.remove(name);
        });
        Ok(())
    }

    /// The root key first: without it, what is left of the rest opens for nobody.
    fn destroy(&self, name: &str) -> Result<(), CommandError> {
        let place = self.layout.place(name.parse()?);
        if let RootOfTrust::KeyFile(path) = &place.root
            && path.try_exists()?
        {
            files::overwrite(path)?;
            files::remove(path)?;
        }
        let Some(directory) = place.directory.parent() else { return Ok(()) };
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        sync_parent(directory)
    }
}

/// Of all pools, running or not: a deleted one that is recovered serves where it did.
fn ports_of_pools(directory: &Path) -> Result<Vec<u16>, CommandError> {
    let mut ports = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let held = files::read(&entry?.path().join(PORT))?;
        ports.extend(held.and_then(|held| std::str::from_utf8(&held).ok()?.trim().parse::<u16>().ok()));
    }
    Ok(ports)
}

fn sync_parent(path: &Path) -> Result<(), CommandError> {
    match path.parent() {
        Some(parent) if parent.exists() => Ok(std::fs::File::open(parent)?.sync_all()?),
        Some(_) | None => Ok(()),
    }
}

#[async_trait]
impl Provisioner for Children {
    async fn start(&self, parameters: &Parameters) -> Result<(), ProvisionError> {
        let running = self.begin(parameters).map_err(|error| ProvisionError(error.to_string()))?;
        let mut state = running.state.subscribe();
        let serves =
            state.wait_for(|state| matches!(state, InstanceState::NotActivated | InstanceState::Active));
        match tokio::time::timeout(READY_TIME, serves).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                let log = self.layout.data.join("run").join(format!("{}.log", parameters.name));
                Err(ProvisionError(format!(
                    "the pool {} did not serve within {} s; {} says why",
                    parameters.name,
                    READY_TIME.as_secs(),
                    log.display()
                )))
            }
        }
    }

    async fn stop(&self, name: &str) -> Result<(), ProvisionError> {
        self.end(name).await
    }

    async fn remove(&self, name: &str) -> Result<(), ProvisionError> {
        self.end(name).await?;
        self.destroy(name).map_err(|error| ProvisionError(error.to_string()))
    }

    fn check_network(&self, network: Network) -> Result<Network, String> {
        network::checked(network)
    }

    async fn set_reach(&self, name: &str, reach: &Reach) -> Result<(), ProvisionError> {
        let Some(running) = self.running.lock().get(name).cloned() else { return Ok(()) };
        let number = {
            let mut held = running.held.lock();
            held.network = Numbered { number: held.network.number + 1, rules: reach.clone() };
            if !held.certified {
                // It is given them with its certificate, before it serves.
                return Ok(());
            }
            let message = Told::Network(held.network.clone());
            // A child that has just ended is started with them.
            held.tell(&message);
            held.network.number
        };
        let mut applied = running.applied.subscribe();
        let in_force = applied.wait_for(|applied| *applied >= number);
        if !matches!(tokio::time::timeout(APPLY_TIME, in_force).await, Ok(Ok(_))) {
            // Better no service than one under rules that are not these: it is started again with them.
            tracing::error!(pool = name, "a pool does not take its network rules; it is ended");
            if let Some(child) = &mut running.held.lock().child {
                child.kill().map_err(|error| ProvisionError(error.to_string()))?;
            }
        }
        Ok(())
    }

    fn state(&self, name: &str) -> InstanceState {
        self.running.lock().get(name).map_or(InstanceState::Stopped, |running| *running.state.borrow())
    }

    fn uri(&self, name: &str) -> String {
        format!("https://{name}.{RESOURCE_SUFFIX}:{}/", self.gateway_port)
    }
}

struct Supervisor {
    running: Arc<Running>,
    authority: Arc<CertificateAuthority>,
    gateway: watch::Receiver<Option<Gateway>>,
    start: Start,
    log: std::path::PathBuf,
    /// What a child is started with.
    command: fn() -> io::Result<Command>,
}

impl Supervisor {
    fn run(self) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = Instant::now();
            let ended = self.run_once();
            // Reaped, and whatever it held open is closed.
            let (input, child) = {
                let mut held = self.running.held.lock();
                held.certified = false;
                (held.input.take(), held.child.take())
            };
            drop(input);
            if let Some(mut child) = child {
                let _ = child.kill();
                let _ = child.wait();
            }
            let mut held = self.running.held.lock();
            if held.stopping {
                break;
            }
            let name = &self.start.name;
            match ended {
                Ok(()) => tracing::error!(pool = name, "a pool's process ended; it is started again"),
                Err(error) => {
                    tracing::error!(pool = name, %error, "a pool cannot be started; it is tried again")
                }
            }
            self.running.state.send_replace(InstanceState::Starting);
            let deadline = Instant::now() + pauses.after(began.elapsed());
            while !held.stopping && !self.running.changed.wait_until(&mut held, deadline).timed_out() {}
            if held.stopping {
                break;
            }
        }
        self.running.state.send_replace(InstanceState::Stopped);
    }

    /// Until the child ends.
    fn run_once(&self) -> Result<(), CommandError> {
        let began = Instant::now();
        let log = files::open_log(&self.log)?;
        let mut child = (self.command)()?.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut input = child.stdin.take().ok_or("the child has no input")?;
        let output = child.stdout.take().ok_or("the child has no output")?;
        {
            let mut held = self.running.held.lock();
            held.child = Some(child);
            held.heard = Instant::now();
            if held.stopping {
                return Ok(());
            }
        }
        tell(&mut input, &self.start)?;
        rustix::io::ioctl_fionbio(&input, true)?;
        self.running.held.lock().input = Some(input);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| self.watch(&ended));
            let heard = self.listen(output, began);
            let held = self.running.held.lock();
            ended.store(true, Ordering::Relaxed);
            self.running.changed.notify_all();
            drop(held);
            heard
        })
    }

    fn listen(&self, output: ChildStdout, began: Instant) -> Result<(), CommandError> {
        let mut output = BufReader::new(output);
        while let Some(said) = hear(&mut output)? {
            self.running.held.lock().heard = Instant::now();
            match said {
                Said::Request { der } => {
                    let request = CertificateSigningRequestDer::from(der);
                    let chain = self.authority.sign_for_pool(&request, &self.start.name)?;
                    let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
                    let mut held = self.running.held.lock();
                    let network = held.network.clone();
                    // Who it is later is told to those that are certified.
                    let gateway = *self.gateway.borrow();
                    held.tell(&Certified { chain, network, gateway });
                    held.certified = true;
                }
                Said::Serving { activated } => {
                    let milliseconds = began.elapsed().as_millis();
                    tracing::info!(pool = self.start.name, milliseconds, activated, "a pool serves");
                    let state = if activated { InstanceState::Active } else { InstanceState::NotActivated };
                    self.running.state.send_replace(state);
                }
                Said::Activated => {
                    self.running.state.send_replace(InstanceState::Active);
                }
                Said::Applied { number } => {
                    self.running.applied.send_replace(number);
                }
                Said::Pong => {}
            }
        }
        Ok(())
    }

    /// A process may run and answer nobody. One that hangs is ended; then it is started again like any that ended.
    fn watch(&self, ended: &AtomicBool) {
        let mut held = self.running.held.lock();
        while !ended.load(Ordering::Relaxed) {
            let _ = self.running.changed.wait_for(&mut held, PING_PERIOD);
            if ended.load(Ordering::Relaxed) {
                return;
            }
            if held.heard.elapsed() > SILENCE {
                tracing::error!(pool = self.start.name, "a pool's process hangs; it is ended");
                if let Some(child) = &mut held.child {
                    let _ = child.kill();
                }
                return;
            }
            if held.certified {
                held.tell(&Told::Ping);
            }
        }
    }
}

fn tell<T: serde::Serialize>(input: &mut ChildStdin, message: &T) -> Result<(), CommandError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(input.write_all(&line)?)
}

/// A child is believed nothing but its own state; what is no line of that kind ends it.
pub fn hear(output: &mut impl BufRead) -> Result<Option<Said>, CommandError> {
    let mut line = String::new();
    if output.take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(layout: &Layout) -> Start {
        let path = layout.data.join("none");
        let genesis = Genesis {
            tenant: String::new(),
            issuer: String::new(),
            issuer_authority: String::new(),
            key_set: String::new(),
            key_source_url: String::new(),
            key_source_roots: String::new(),
            administrators: Vec::new(),
            retention_days: 7,
            purge_protection: false,
            audit_written: false,
        };
        Start {
            name: "payroll".to_owned(),
            user: None,
            gateway_user: None,
            port: 0,
            directory: path.clone(),
            root_key: path.clone(),
            limits: path.clone(),
            gateway_socket: path.clone(),
            private_socket: path.clone(),
            admin_socket: path,
            authority: String::new(),
            issuer_port: 0,
            outgoing: outgoing::Given::default(),
            genesis,
        }
    }

    fn supervise(layout: &Layout, command: fn() -> io::Result<Command>) -> Arc<Running> {
        let reach = Reach { network: Network::default(), private: Vec::new() };
        let running = Arc::new(Running::new(reach));
        let supervisor = Supervisor {
            running: running.clone(),
            authority: Arc::new(CertificateAuthority::open(layout).unwrap()),
            gateway: watch::Sender::new(None).subscribe(),
            start: start(layout),
            log: layout.data.join("log"),
            command,
        };
        std::thread::spawn(move || supervisor.run());
        running
    }

    /// It says that it is there, so silence does not betray it, and lets its input fill up.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_child_that_takes_no_message_holds_nobody_up_and_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("data"));
        layout.directories().iter().for_each(|path| files::create_directory(path).unwrap());
        let running = supervise(&layout, || {
            let mut command = Command::new("yes");
            command.arg("\"pong\"");
            Ok(command)
        });
        let child = || {
            let held = running.held.lock();
            held.child.as_ref().filter(|_| held.input.is_some()).map(Child::id)
        };
        let first = loop {
            match child() {
                Some(first) => break first,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let (told, all_told) = std::sync::mpsc::channel();
        let teller = running.clone();
        std::thread::spawn(move || {
            (0..100_000).for_each(|_| teller.held.lock().tell(&Told::Ping));
            told.send(())
        });
        all_told.recv_timeout(Duration::from_secs(120)).expect("nobody waits for a child");
        let ended = async {
            while child() == Some(first) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(120), ended).await.expect("it is ended");
        tokio::time::timeout(Duration::from_secs(120), running.end()).await.unwrap().unwrap();
        assert_eq!(*running.state.borrow(), InstanceState::Stopped);
    }
}
