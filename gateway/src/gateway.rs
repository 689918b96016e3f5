//! What an embedding program has in hand.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::follow::{Task, follow};
use crate::life::Phase;
use crate::options::Options;
use crate::set::BackendSet;
use crate::shared::Shared;
use crate::{listen, pages};

/// A load balancer. See [the crate](crate) for how to embed one.
///
/// Must be used within a tokio runtime. When it is dropped, nobody looks after the backends any
/// more.
pub struct Gateway {
    shared: Arc<Shared>,
    follower: Mutex<Option<Task>>,
}

impl Gateway {
    /// One that has no backends yet, and serves nobody.
    ///
    /// # Errors
    ///
    /// When its metrics cannot be set up, which is not known to happen.
    pub fn new(options: Options) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(options)?),
            follower: Mutex::new(None),
        })
    }

    /// What `/health` says of this server from now on, beside its state, in the order given.
    pub fn describe(&self, description: Vec<(String, Value)>) {
        *self.shared.description() = description;
    }

    /// How many backends answer health checks, and how many there are.
    #[must_use]
    pub fn backends_up(&self) -> (usize, usize) {
        let roster = self.shared.live.roster();
        let up = roster.members().iter().filter(|b| b.is_up()).count();
        (up, roster.members().len())
    }

    /// Takes its backends from here, the set that is there now and all that come: backends that
    /// stay keep their state and their connections, new ones are given requests after their first
    /// good health check, and those that are gone finish what they have. When the sender is
    /// dropped, the last set stays.
    ///
    /// Returns when each backend of the first set has been looked at, within a second in any case.
    /// Called again, it follows the new source instead.
    pub async fn follow(&self, sets: watch::Receiver<BackendSet>) {
        drop(self.follower().take());
        let task = follow(Arc::clone(&self.shared), sets).await;
        *self.follower() = Some(task);
    }

    /// Serves until [drained](Self::drain) or [cut off](Self::cut).
    ///
    /// # Errors
    ///
    /// When a [worker](Options::workers)'s thread or runtime can't be started. What goes wrong with a
    /// client is its own affair, and a listener that fails is tried again.
    pub async fn serve(&self, listener: TcpListener) -> io::Result<()> {
        listen::serve(listener, self.router(), &self.shared).await
    }

    /// The same as a service, for a program that takes connections itself. It sees to their limits
    /// and deadlines, too, and tells [who asks](crate::ClientAddress).
    pub fn router(&self) -> Router {
        pages::router(&self.shared)
    }

    /// Takes no more connections, for a successor that takes them from the same listener. Requests
    /// on the connections there are are served as before, each the last on its connection.
    pub fn retire(&self) {
        self.shared.life.advance(Phase::Retiring);
    }

    /// Takes connections again after [`retire`](Self::retire), as the successor has failed.
    pub fn resume(&self) {
        self.shared.life.resume();
    }

    /// Closes the listener after [`retire`](Self::retire). [`serve`](Self::serve) ends with the
    /// last connection; those on which nothing is asked any more are closed after five seconds.
    pub fn close_port(&self) {
        self.shared.life.advance(Phase::Retired);
    }

    /// Says on `/ready` that requests are best sent elsewhere, and serves on: for load balancers above
    /// that look there, before [`drain`](Self::drain).
    pub fn leave_soon(&self) {
        self.shared.life.leave_soon();
    }

    /// Takes no more, and lets what is in flight finish.
    pub fn drain(&self) {
        self.shared.life.advance(Phase::Draining);
    }

    /// Waits until nothing is in flight. After [`drain`](Self::drain), [`serve`](Self::serve)
    /// does that by itself.
    pub async fn wait_until_idle(&self) {
        self.shared.life.wait_until_idle().await;
    }

    /// Ends what is in flight, on connections that [`serve`](Self::serve) took.
    pub fn cut(&self) {
        self.shared.life.advance(Phase::Cut);
    }

    fn follower(&self) -> std::sync::MutexGuard<'_, Option<Task>> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").finish_non_exhaustive()
    }
}
