//! `holdfast gateway`: the one port for pools, in a process of its own, started by the quickstart and by nobody else.
//!
//! It reads what anybody sends before anybody has said who he is, so it has as little as can be: no file, no key, no right to
//! listen. Its input is a socket to who started it, over which it is given the sockets that clients come to, then told a line
//! of JSON each: where it is, which name is whose, and whether it is there, which it answers with a byte. The end of its input
//! is its end.

use crate::CommandError;
use crate::hardening;
use crate::instance_command::hear;
use crate::layout::socket_name;
use crate::own_user::{self, User};
use crate::places::{Capacity, Places};
use crate::pool_directory::Names;
use crate::runtime::quick_runtime;
use domain::pool::PoolClass;
use gateway::Directory;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Sockets that clients come to; the system passes on no more than 253 at once.
pub const MAX_LISTENERS: usize = 64;

/// The first line in.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Where the sockets of those who serve are.
    pub directory: PathBuf,
    /// Whom the process is to be; without, it stays whom it was started as.
    pub user: Option<User>,
    /// How many of the sockets that clients come to, the last ones, are of private networks.
    pub private: usize,
    pub names: Names,
}

/// All further lines in.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Told {
    Names(Names),
    /// Take no connection any more; those there are go on.
    Close,
    /// Whether it is there.
    Ping,
}

struct Sockets {
    names: watch::Receiver<Names>,
    is_private: bool,
}

impl Directory for Sockets {
    fn find(&self, name: Option<&str>) -> Option<PathBuf> {
        let names = self.names.borrow();
        let socket = if self.is_private { names.private_socket(name) } else { names.socket(name) };
        socket.map(PathBuf::from)
    }

    fn nobody(&self) -> PathBuf {
        socket_name(self.names.borrow().gateway_port).into()
    }
}

pub fn run() -> Result<ExitCode, CommandError> {
    let listeners = receive(rustix::stdio::stdin())?;
    let start: Start = hear()?;
    // The directories above are closed to the user; seen from within, they need not be passed.
    std::env::set_current_dir(&start.directory)?;
    if let Some(user) = start.user {
        own_user::become_user(user)?;
    }
    let hardening = hardening::for_server(PoolClass::Test)?;
    let (names, known) = watch::channel(start.names);
    let (close, closing) = watch::channel(false);
    let (ping, mut pings) = mpsc::channel(1);
    let (end, mut ending) = watch::channel(false);
    std::thread::spawn(move || {
        // What is no message ends the process, as the end of the input does.
        while let Ok(told) = hear() {
            match told {
                Told::Names(told) => {
                    names.send_replace(told);
                }
                Told::Close => {
                    close.send_replace(true);
                }
                // One that waits is answer enough.
                Told::Ping => drop(ping.try_send(())),
            }
        }
        end.send_replace(true);
    });
    let runtime = quick_runtime()?;
    runtime.block_on(async {
        let capacity = Capacity::within(hardening.descriptors);
        let places = Places::new(capacity.gateway, capacity.gateway / 4);
        let public = listeners.len().saturating_sub(start.private);
        for (number, listener) in listeners.into_iter().enumerate() {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let places = places.clone();
            let admit = move |address| places.take(address);
            let sockets = Sockets { names: known.clone(), is_private: number >= public };
            tokio::spawn(gateway::serve(listener, Arc::new(sockets), admit, closing.clone()));
        }
        tokio::spawn(async move {
            // By the threads that pass bytes on: where they hang, so does this.
            while pings.recv().await.is_some() && rustix::io::write(rustix::stdio::stdin(), b".").is_ok() {}
        });
        let _ = ending.wait_for(|ending| *ending).await;
        Ok(ExitCode::SUCCESS)
    })
}

/// With one byte, so that a reader sees them before any line.
pub fn give<'a>(
    socket: impl AsFd,
    listeners: impl IntoIterator<Item = &'a TcpListener>,
) -> Result<(), CommandError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let listeners: Vec<_> = listeners.into_iter().map(AsFd::as_fd).collect();
    if listeners.len() > MAX_LISTENERS || !control.push(SendAncillaryMessage::ScmRights(&listeners)) {
        return Err(format!("the gateway listens at no more than {MAX_LISTENERS} addresses").into());
    }
    sendmsg(socket, &[IoSlice::new(b".")], &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: impl AsFd) -> Result<Vec<TcpListener>, CommandError> {
    let fail = || "this command is started by the quickstart: it was given nothing to listen at";
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
    received.map_err(|error| format!("{}: {error}", fail()))?;
    let mut given: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            given.extend(descriptors);
        }
    }
    if given.is_empty() { Err(fail().into()) } else { Ok(given.into_iter().map(TcpListener::from).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockets_arrive_and_nothing_else_passes_for_them() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap()).collect();
        give(&ours, &listeners).unwrap();
        let addresses = |listeners: &[TcpListener]| -> Vec<_> {
            listeners.iter().map(|listener| listener.local_addr().unwrap()).collect()
        };
        assert_eq!(addresses(&receive(&theirs).unwrap()), addresses(&listeners));
        std::io::Write::write_all(&mut &ours, b"{}\n").unwrap();
        assert!(receive(&theirs).is_err(), "a line is no socket");
        drop(ours);
        assert!(receive(&theirs).is_err() || receive(&theirs).is_err());
        let many: Vec<_> = (0..=MAX_LISTENERS).map(|_| listeners[0].try_clone().unwrap()).collect();
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(give(&ours, &many).unwrap_err().to_string().contains("no more than 64"));
    }
}
