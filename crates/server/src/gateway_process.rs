//! Runs the gateway (`gateway_command`), and starts it again when it ends or hangs. Clients that come meanwhile wait: the
//! sockets that they come to stay open here.

use crate::CommandError;
use crate::child::{self, PING_PERIOD, Pauses, SILENCE};
use crate::files;
use crate::gateway_command::{Start, Told, give};
use crate::listener::closed;
use crate::own_user::User;
use crate::pool_directory::Names;
use rustix::process::{Pid, Uid, geteuid};
use serde::{Deserialize, Serialize};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::watch;

/// For one message to be taken.
const TELL_TIME: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Who the gateway is, for those who listen to nobody else.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    pub pid: i32,
    /// `None`: the one that everybody here is.
    pub user: Option<User>,
}

impl Gateway {
    pub fn is(&self, pid: Pid, uid: Uid) -> bool {
        let user = self.user.map_or(geteuid(), |user| Uid::from_raw(user.into()));
        pid.as_raw_nonzero().get() == self.pid && uid == user
    }
}

pub struct GatewayProcess {
    pub listeners: Vec<TcpListener>,
    /// Of private networks.
    pub private_listeners: Vec<TcpListener>,
    /// Of the sockets of those who serve.
    pub directory: PathBuf,
    pub log: PathBuf,
    pub user: Option<User>,
    pub names: watch::Receiver<Names>,
    /// Who it is now.
    pub gateway: watch::Sender<Option<Gateway>>,
    /// When it is to take no connection any more.
    pub closing: watch::Receiver<bool>,
    /// When those there are have ended.
    pub ending: watch::Receiver<bool>,
}

impl GatewayProcess {
    pub async fn run(mut self) {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let began = Instant::now();
            let ended = self.run_once().await;
            self.gateway.send_replace(None);
            let Err(error) = ended else { return };
            tracing::error!(%error, "the gateway's process is started again");
            tokio::select! {
                () = tokio::time::sleep(pauses.after(began.elapsed())) => {}
                () = closed(&mut self.ending) => return,
            }
        }
    }

    /// Until it is time to end.
    async fn run_once(&mut self) -> Result<(), CommandError> {
        let (ours, theirs) = BlockingStream::pair()?;
        let log = files::open_log(&self.log)?;
        let child = child::command("gateway")?
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let child = Reaped(child);
        give(&ours, self.listeners.iter().chain(&self.private_listeners))?;
        ours.set_nonblocking(true)?;
        let pid = i32::try_from(child.0.id())?;
        // Before it passes anybody on.
        self.gateway.send_replace(Some(Gateway { pid, user: self.user }));
        self.converse(UnixStream::from_std(ours)?).await
    }

    async fn converse(&mut self, stream: UnixStream) -> Result<(), CommandError> {
        let (mut output, mut input) = stream.into_split();
        let names = self.names.borrow_and_update().clone();
        let private = self.private_listeners.len();
        let start = Start { directory: self.directory.clone(), user: self.user, private, names };
        tell(&mut input, &start).await?;
        let mut heard = Instant::now();
        let mut pings = tokio::time::interval(PING_PERIOD);
        let mut open = true;
        loop {
            let mut answer = [0; 64];
            tokio::select! {
                length = output.read(&mut answer) => match length? {
                    0 => return Err("it ended".into()),
                    _ => heard = Instant::now(),
                },
                changed = self.names.changed() => {
                    changed?;
                    let names = self.names.borrow_and_update().clone();
                    tell(&mut input, &Told::Names(names)).await?;
                }
                _ = pings.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err("it hangs".into());
                    }
                    tell(&mut input, &Told::Ping).await?;
                }
                () = closed(&mut self.closing), if open => {
                    open = false;
                    tell(&mut input, &Told::Close).await?;
                }
                () = closed(&mut self.ending) => return Ok(()),
            }
        }
    }
}

async fn tell<T: Serialize>(input: &mut OwnedWriteHalf, message: &T) -> Result<(), CommandError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(tokio::time::timeout(TELL_TIME, input.write_all(&line)).await.map_err(|_| "it takes no message")??)
}

/// Ended, and nothing is left of it.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
