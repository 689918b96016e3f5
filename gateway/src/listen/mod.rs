//! Takes connections, within the limits of the process, and lets them end in good order.

mod clients;
mod conversation;
mod socket;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::life::Phase;
use crate::peer::Peer;
use crate::shared::Shared;
use clients::Clients;
use conversation::{converse, server};
use socket::Socket;

/// Before trying again what the operating system refused.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until told to drain, then until nothing is in flight, or told to cut off what is; or until
/// told to close the port, then until the last connection has ended.
pub(crate) async fn serve(listener: TcpListener, app: Router, shared: &Shared) -> io::Result<()> {
    allow_for_bursts(&listener);
    let mut phase = shared.life.phases();
    let mut door = Door {
        listener,
        room: Arc::new(Semaphore::new(shared.limits.clients)),
        clients: Arc::default(),
        warned: false,
    };
    let http = server();
    let mut connections = JoinSet::new();
    loop {
        let now = *phase.borrow_and_update();
        let accepted = tokio::select! {
            _ = phase.changed(), if now < Phase::Retired => continue,
            accepted = door.accept(), if now == Phase::Serving => accepted,
            else => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, address, permit) = accepted;
        let peer = Peer {
            address: Some(address),
            busy: Arc::default(),
            broken: Arc::default(),
            _permit: Some(Arc::new(permit)),
        };
        let socket = Socket::new(stream);
        let client = Clients::enter(&door.clients, &peer.busy, &socket);
        let app = app.clone();
        let http = http.clone();
        let phase = shared.life.phases();
        connections.spawn(converse(socket, peer, app, http, phase, client));
    }
    drop(door);
    let last = async {
        while connections.join_next().await.is_some() {}
        // Tunnels outlive their connections.
        shared.life.wait_until_idle().await;
    };
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase > Phase::Retired) => {}
        // The port has been given up.
        () = last => return Ok(()),
    }
    let finish = async {
        shared.life.wait_until_idle().await;
        shared.life.advance(Phase::Closing);
        // Requests that are yet to be read to their end, and answers to be written.
        while connections.join_next().await.is_some() {}
    };
    tokio::select! {
        () = finish => return Ok(()),
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => {}
    }
    connections.shutdown().await;
    shared.life.wait_until_idle().await;
    Ok(())
}

/// Where clients come in.
struct Door {
    listener: TcpListener,
    room: Arc<Semaphore>,
    clients: Arc<Clients>,
    warned: bool,
}

impl Door {
    /// Waits for a client and for room to serve it; where there is none, idle ones make it.
    async fn accept(&mut self) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let (stream, address) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) if belongs_to_the_client(&e) => continue,
                Err(e) => {
                    self.warn(&format!("Cannot accept connections: {e}"));
                    self.clients.make_room();
                    sleep(PAUSE).await;
                    continue;
                }
            };
            loop {
                if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                    return (stream, address, permit);
                }
                self.warn("No room for more connections: those that idle are closed");
                self.clients.make_room();
                if let Ok(Ok(permit)) = timeout(PAUSE, Arc::clone(&self.room).acquire_owned()).await
                {
                    return (stream, address, permit);
                }
            }
        }
    }

    /// Once is enough to know.
    fn warn(&mut self, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            warn!("{what}");
        }
    }
}

fn belongs_to_the_client(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

/// A burst that the queue of new connections has no room for would wait a second to try again.
#[cfg(unix)]
fn allow_for_bursts(listener: &TcpListener) {
    use nix::sys::socket::{Backlog, listen};
    // It does so already, and goes on if it can't do more.
    let _ = listen(listener, Backlog::MAXCONN);
}

#[cfg(not(unix))]
fn allow_for_bursts(_: &TcpListener) {}
