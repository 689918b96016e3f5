//! The clients that are connected, and which of them leaves when there is no room.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::socket::Socket;
use crate::peer::Peer;

/// The clients that are connected, in the order in which they came.
#[derive(Default)]
pub(super) struct Clients(Mutex<(u64, BTreeMap<u64, Arc<Client>>)>);

pub(super) struct Client {
    peer: Arc<Peer>,
    pub(super) socket: Arc<Socket>,
    pub(super) asked_to_leave: Notify,
}

impl Client {
    /// Whether any of its requests is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.peer.busy.load(Ordering::Acquire) > 0
    }
}

impl Clients {
    pub(super) fn enter(all: &Arc<Self>, peer: &Arc<Peer>, socket: &Arc<Socket>) -> Entry {
        let client = Arc::new(Client {
            peer: Arc::clone(peer),
            socket: Arc::clone(socket),
            asked_to_leave: Notify::new(),
        });
        let mut inside = all.lock();
        inside.0 += 1;
        let number = inside.0;
        inside.1.insert(number, Arc::clone(&client));
        drop(inside);
        Entry {
            all: Arc::clone(all),
            number,
            client,
        }
    }

    /// Asks the one that came first, of those that wait for nothing, to leave.
    pub(super) fn make_room(&self) {
        let inside = self.lock();
        let without_request = || {
            let clients = inside.1.values();
            clients.filter(|client| !client.is_busy())
        };
        // One that has yet to read the end of its answer goes only if there is no other.
        let chosen = without_request().find(|client| !client.socket.is_blocked());
        if let Some(client) = chosen.or_else(|| without_request().next()) {
            client.asked_to_leave.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Client>>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's, until it has left.
pub(super) struct Entry {
    all: Arc<Clients>,
    number: u64,
    pub(super) client: Arc<Client>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.lock().1.remove(&self.number);
    }
}
