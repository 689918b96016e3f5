//! Where clients come in, within the limits of the process.
//!
//! Apart from who listens: it is one for the whole gateway.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::clients::Clients;

/// Before trying again what the operating system refused.
const PAUSE: Duration = Duration::from_millis(20);

/// The room for clients, who share the descriptors of the process, and those who have it.
pub(crate) struct Entrance {
    room: Arc<Semaphore>,
    pub(super) clients: Arc<Clients>,
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
    pub(super) async fn accept(
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
