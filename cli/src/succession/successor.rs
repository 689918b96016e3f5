//! The successor's part of a swap: it asks for lock and listener, is named, and serves.

use std::net::{SocketAddr, TcpListener};
use std::process;
use std::time::Duration;

use llmlb_lock_core::{LockDir, ServerLock};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::door::call;
use super::wire::{Message, VERSION, Wire};

/// How long a holder may take to offer: others may be before us.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who served in our place, and may yet serve what it had begun.
pub(crate) struct Predecessor {
    wire: Wire,
}

/// Asks the server on the port to hand over; `None` where it can't or does not. Its listener has to
/// be one of `wanted`.
pub(super) async fn ask(
    locks: &LockDir,
    port: u16,
    wanted: &[SocketAddr],
) -> Option<(ServerLock, TcpListener, Predecessor)> {
    let mut wire = Wire::new(call(&locks.lock_path(port)).await?);
    wire.send(&Message::Ask { version: VERSION }, &[])
        .await
        .ok()?;
    let offered = timeout(PATIENCE, wire.receive()).await.ok()?.ok()??;
    let (Message::Offer { version: VERSION }, beside) = offered else {
        return None;
    };
    let [lock, listener] = <[_; 2]>::try_from(beside).ok()?;
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().ok()?;
    if !wanted.contains(&address) {
        warn!("The server on port {port} listens on {address}, and is replaced with a gap");
        return None;
    }
    let lock = match locks.take_over(port, lock) {
        Ok(lock) => lock,
        Err(e) => {
            warn!("{e}");
            return None;
        }
    };
    let told = wire.send(&Message::Serving, &[]).await;
    // Without an answer the file tells who is in charge: a holder that lives has named itself
    // again before it turned away.
    let answer = timeout(PATIENCE, wire.receive()).await;
    if told.is_ok() && matches!(answer, Ok(Ok(Some((Message::Retired, _))))) {
        debug!("The server before us retires");
    } else if !names_us(locks, port) {
        return None;
    }
    Some((lock, listener, Predecessor { wire }))
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
    }
}
