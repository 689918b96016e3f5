//! The holder's part of a swap: it offers lock and listener, and is in charge again should its
//! successor not live up to it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use tokio::time::timeout;

use super::door::Door;
use super::wire::{Message, VERSION, Wire};

/// How long a successor may take from the offer until it serves: it is ready when it asks.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a knock at the door led to.
pub(super) enum Knock {
    /// Nothing was offered, or nothing came of it before it was.
    Nothing,
    /// The file may name a successor that has failed.
    Failed,
    /// The successor serves.
    Succeeded(Successor),
}

impl Door {
    /// Waits for a successor, and offers it the lock and the listener.
    pub(super) async fn offer(&self, lock: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> Knock {
        let mut wire = Wire::new(self.knock().await);
        let asked = timeout(PATIENCE, wire.receive()).await;
        if !matches!(asked, Ok(Ok(Some((Message::Ask { version: VERSION }, _))))) {
            return Knock::Nothing;
        }
        let offer = Message::Offer { version: VERSION };
        if wire.send(&offer, &[lock, listener]).await.is_err() {
            return Knock::Nothing;
        }
        match timeout(PATIENCE, wire.receive()).await {
            Ok(Ok(Some((Message::Serving, _)))) => Knock::Succeeded(Successor { wire }),
            _ => Knock::Failed,
        }
    }
}

/// Who serves in our place.
pub(crate) struct Successor {
    wire: Wire,
}

/// What became of a successor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It ends in good order, and wants us to.
    Ending,
    /// It has gone without a word.
    Gone,
}

impl Successor {
    /// We take no more connections.
    pub(crate) async fn retired(&self) {
        // If it is gone, its fate tells.
        let _ = self.wire.send(&Message::Retired, &[]).await;
    }

    /// Waits for its end. May be cancelled, and called again.
    pub(crate) async fn fate(&mut self) -> Fate {
        match self.wire.receive().await {
            Ok(Some((Message::Ending, _))) => Fate::Ending,
            _ => Fate::Gone,
        }
    }
}
