//! The successor's part of a swap: it asks for lock and listener, is named, and serves.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process;
use std::time::Duration;

use llmlb_lock_core::{LockDir, ServerLock, is_process_running};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::door::call;
use super::wire::{Message, VERSION, Wire};

/// How long a holder may take to offer: others may be before us.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);

/// How long that is waited for in silence, and at least.
pub(super) const SILENCE: Duration = Duration::from_secs(1);

/// Who served in our place, and may yet serve what it had begun.
pub(crate) struct Predecessor {
    wire: Wire,
}

/// How long the end of a process may take that has closed all it had.
const INSTANT: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(1);

/// What became of a question.
pub(super) enum Answer {
    /// Lock and port are ours.
    Granted(Box<ServerLock>, TcpListener, Predecessor),
    /// The server there does not hand over to us.
    Refused,
    /// Who was asked is no longer in charge: another may be.
    Gone,
}

/// Asks the server on the port to hand over. Its listener has to be one of `wanted`, and its answer
/// has `patience` to come.
pub(super) async fn ask(
    locks: &LockDir,
    port: u16,
    wanted: &[SocketAddr],
    patience: Duration,
) -> Answer {
    let mut wire = match call(&locks.lock_path(port)).await {
        Ok(stream) => Wire::new(stream),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => return Answer::Gone,
        Err(_) => return Answer::Refused,
    };
    let asked = wire.send(&Message::Ask { version: VERSION }, &[]).await;
    let offered = match offered(&mut wire, port, patience).await {
        Ok(Ok(Some((Message::Offer { version: VERSION }, beside)))) if asked.is_ok() => beside,
        Ok(Ok(None)) => return Answer::Gone,
        _ => return Answer::Refused,
    };
    let Ok([lock, listener]) = <[_; 2]>::try_from(offered) else {
        return Answer::Refused;
    };
    let listener = TcpListener::from(listener);
    match listener.local_addr() {
        Ok(address) if wanted.contains(&address) => {}
        Ok(address) => {
            warn!("The server on port {port} listens on {address}, and is replaced with a gap");
            return Answer::Refused;
        }
        Err(_) => return Answer::Refused,
    }
    let lock = match locks.take_over(port, lock) {
        Ok(lock) => lock,
        Err(e) => {
            warn!("{e}");
            return Answer::Gone;
        }
    };
    let told = wire.send(&Message::Serving, &[]).await;
    let answer = timeout(PATIENCE, wire.receive()).await;
    if told.is_ok() && matches!(answer, Ok(Ok(Some((Message::Retired, _))))) {
        debug!("The server before us retires");
    } else if !names_us(locks, port) {
        // It lives, and named itself again before it turned away.
        return Answer::Gone;
    }
    Answer::Granted(Box::new(lock), listener, Predecessor { wire })
}

/// What the holder says first.
async fn offered(
    wire: &mut Wire,
    port: u16,
    patience: Duration,
) -> Result<io::Result<Option<(Message, Vec<OwnedFd>)>>, Elapsed> {
    if let Ok(offered) = timeout(SILENCE.min(patience), wire.receive()).await {
        return Ok(offered);
    }
    info!("Waiting up to {patience:?} for the server on port {port} to hand over...");
    timeout(patience.saturating_sub(SILENCE), wire.receive()).await
}

fn names_us(locks: &LockDir, port: u16) -> bool {
    let named = locks.read_lock_info(port);
    named.is_ok_and(|info| info.is_some_and(|info| info.pid == process::id()))
}

impl Predecessor {
    /// Wants it to end.
    pub(crate) async fn dismiss(&self) {
        // If it is gone, all the better.
        let _ = self.wire.send(&Message::Ending, &[]).await;
    }

    /// Waits for its end.
    pub(crate) async fn gone(&mut self) {
        while let Ok(Some(_)) = self.wire.receive().await {}
        // A process lets go of what it has an instant before it is gone.
        let until = Instant::now() + INSTANT;
        let running = || self.wire.peer().is_some_and(is_process_running);
        while running() && Instant::now() < until {
            sleep(STEP).await;
        }
    }
}
