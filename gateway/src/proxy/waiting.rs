//! A place at a backend, waited for where all that fit have as many requests as they may.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::backend::Place;
use crate::error::Refusal;
use crate::live::NoPlace;
use crate::pick::{Tried, Wanted};
use crate::queue::{Kind, TooLong};
use crate::shared::Shared;

/// Why there is none.
pub(super) enum Without {
    Place(NoPlace),
    /// It was waited for in vain, or could not be.
    Wait(Refusal),
}

pub(super) async fn place(
    shared: &Arc<Shared>,
    wanted: &Wanted<'_>,
    tried: &Tried,
) -> Result<Place, Without> {
    let queue = &shared.queue;
    if queue.len() == 0 {
        match shared.live.take(wanted, tried) {
            Err(NoPlace::Full) if shared.options.queue > 0 => {}
            found => return found.map_err(Without::Place),
        }
    }
    let kind = Kind::of((wanted.model, wanted.strict, wanted.affine));
    let ticket = queue
        .join(kind)
        .map_err(|TooLong { retry_after }| Without::Wait(Refusal::QueueFull(retry_after)))?;
    let until = Instant::from_std(ticket.since) + shared.options.queue_timeout;
    let found = loop {
        if timeout_at(until, ticket.called()).await.is_err() {
            break Err(Without::Wait(Refusal::QueueTimedOut));
        }
        match shared.live.take(wanted, tried) {
            Err(NoPlace::Full) => ticket.pass_on(),
            found => break found.map_err(Without::Place),
        }
    };
    shared.metrics.waited(ticket.since.elapsed());
    found
}
