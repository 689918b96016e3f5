//! A place at a backend, waited for where all that fit have as many requests as they may.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::backend::Place;
use crate::desk::{Arrival, Asked, NoPlace};
use crate::error::Refusal;
use crate::life::Phase;
use crate::peer::Peer;
use crate::pick::{Tried, Wanted};
use crate::queue::TooLong;
use crate::shared::Shared;

/// Why there is none.
pub(super) enum Without {
    Place(NoPlace),
    /// It was waited for in vain, or could not be.
    Wait(Refusal),
}

/// What a request keeps where a backend has not taken it: its place in the order in which all came,
/// and how long it has waited.
#[derive(Default)]
pub(super) struct Patience {
    arrival: Arrival,
    waited: Duration,
}

pub(super) async fn place(
    shared: &Arc<Shared>,
    peer: &Peer,
    wanted: &Wanted<'_>,
    tried: &Tried,
    patience: &mut Patience,
) -> Result<Place, Without> {
    let full = |TooLong { retry_after }| Without::Wait(Refusal::QueueFull(retry_after));
    let asked = (shared.live).take_or_wait(wanted, tried, &mut patience.arrival);
    let mut ticket = match asked.map_err(full)? {
        Asked::Told(told) => return told.map_err(Without::Place),
        Asked::Waits(ticket) => ticket,
    };
    let left = shared.options.queue_timeout.saturating_sub(patience.waited);
    let until = Instant::from_std(ticket.since) + left;
    peer.waits.store(true, Ordering::Relaxed);
    let mut phase = shared.life.phases();
    let told = tokio::select! {
        // First, as the places that others leave then are no good.
        biased;
        _ = phase.wait_for(|phase| *phase == Phase::Cut) => None,
        told = timeout_at(until, ticket.told()) => Some(told),
    };
    let waited = ticket.since.elapsed();
    patience.waited += waited;
    shared.metrics.waited(waited);
    let Some(told) = told else {
        return Err(Without::Wait(Refusal::Draining));
    };
    peer.waits.store(false, Ordering::Relaxed);
    match told {
        Ok(found) => found.map_err(Without::Place),
        Err(_) => Err(Without::Wait(Refusal::QueueTimedOut)),
    }
}
