//! Takes connections, within the limits of the process, and divides them among the workers.

mod clients;
mod conversation;
mod crew;
mod framing;
mod socket;
mod strict;
mod work;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::life::Phase;
use crate::shared::Shared;
use clients::Clients;
use crew::Crew;
use work::work;

/// Before trying again what the operating system refused.
const PAUSE: Duration = Duration::from_millis(20);

/// Serves until told to drain, then until nothing is in flight, or told to cut off what is; or until
/// told to close the port, then until the last connection has ended.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    allow_for_bursts(&listener);
    let (crew, here, threads) = Crew::hire(shared, &app)?;
    let serving = async {
        tokio::join!(take_in(listener, crew, shared), work(here, app, shared));
        Ok(())
    };
    tokio::try_join!(serving, threads.done())?;
    Ok(())
}

/// Takes connections for all workers.
async fn take_in(listener: TcpListener, crew: Crew, shared: &Shared) {
    let mut phase = shared.life.phases();
    loop {
        let now = *phase.borrow_and_update();
        let accepted = tokio::select! {
            _ = phase.changed(), if now < Phase::Retired => continue,
            accepted = shared.entrance.accept(&listener), if now == Phase::Serving => accepted,
            else => break,
        };
        let (stream, address, permit) = accepted;
        crew.give(stream, address, permit);
    }
}

/// Where clients come in: one for the whole gateway, as they share its descriptors.
pub(crate) struct Entrance {
    room: Arc<Semaphore>,
    clients: Arc<Clients>,
    warned: AtomicBool,
}

impl Entrance {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(room)),
            clients: Arc::default(),
            warned: AtomicBool::new(false),
        }
    }

    /// Waits for a client and for room to serve it; where there is none, idle ones make it.
    async fn accept(
        &self,
        listener: &TcpListener,
    ) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
        loop {
            let (stream, address) = match listener.accept().await {
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
    fn warn(&self, what: &str) {
        if !self.warned.swap(true, Ordering::Relaxed) {
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
