//! Idle connections to one backend.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connection::Connection;
use crate::worker;

/// Below the shortest time a model server is known to keep an idle connection (llama.cpp: 5 s).
const IDLE: Duration = Duration::from_secs(4);

#[derive(Default)]
struct Idle {
    /// By when they were put here.
    connections: Vec<(Connection, Instant)>,
    closed: bool,
}

/// One shelf for each worker, whose runtime drives them: on another's they would be carried from
/// thread to thread at every turn.
pub(crate) struct Pool(Box<[Mutex<Idle>]>);

impl Pool {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Mutex::default()).collect())
    }

    /// The one used last, which is the likeliest to live.
    pub(crate) fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        while let Some((connection, since)) = idle.connections.pop() {
            if since.elapsed() < IDLE && connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose answer has been read to its end.
    pub(crate) fn put(self: Arc<Self>, mut connection: Connection) {
        if connection.is_ready() {
            self.push(connection);
        } else if !connection.is_closed() {
            tokio::spawn(async move {
                if connection.ready().await {
                    self.push(connection);
                }
            });
        }
    }

    fn push(&self, connection: Connection) {
        let mut idle = self.idle();
        if !idle.closed {
            idle.connections.push((connection, Instant::now()));
        }
    }

    /// Closes those that have become too old to use.
    pub(crate) fn prune(&self) {
        let fresh = |(connection, since): &(Connection, Instant)| {
            since.elapsed() < IDLE && connection.is_ready()
        };
        for shelf in &self.0 {
            lock(shelf).connections.retain(fresh);
        }
    }

    /// Closes all, and what is put here from now on.
    pub(crate) fn close(&self) {
        for shelf in &self.0 {
            let mut idle = lock(shelf);
            idle.closed = true;
            idle.connections.clear();
        }
    }

    pub(crate) fn open(&self) {
        for shelf in &self.0 {
            lock(shelf).closed = false;
        }
    }

    /// This worker's.
    fn idle(&self) -> MutexGuard<'_, Idle> {
        lock(&self.0[worker::index() % self.0.len()])
    }
}

fn lock(shelf: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}
