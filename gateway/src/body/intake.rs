//! What bodies that are on their way take, and how much of that there is for all of them.
//!
//! Apart from the limit on requests in flight: who sends slowly must not keep out those that have
//! sent all.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::uploads::{Uploads, Waited};
use crate::error::Refusal;

/// How much of each body is kept: to find the model in, and to send again.
pub(super) const KEPT: usize = 4 << 20;

/// How much is kept of one whose model has not been found by then.
pub(super) const MOST: usize = 64 << 20;

/// What is kept beyond [`KEPT`] is counted in these.
const UNIT: usize = 1 << 20;

/// How many of them there are for all bodies.
const UNITS: usize = 256;

pub(crate) struct Intake {
    uploads: Arc<Uploads>,
    memory: Arc<Semaphore>,
}

impl Intake {
    /// For as many bodies at once.
    pub(crate) fn new(uploads: usize) -> Self {
        Self {
            uploads: Arc::new(Uploads::new(uploads)),
            memory: Arc::new(Semaphore::new(UNITS)),
        }
    }

    /// A body has to be waited for.
    pub(super) fn wait(&self) -> Result<Waited, Refusal> {
        self.uploads.wait()
    }

    /// Has this much memory taken for a body, beside what it has.
    pub(super) fn keep(
        &self,
        len: usize,
        taken: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<(), Refusal> {
        let units = len.saturating_sub(KEPT).div_ceil(UNIT);
        let has = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = units.saturating_sub(has);
        if missing == 0 {
            return Ok(());
        }
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory);
        let more = memory.try_acquire_many_owned(missing);
        let more = more.map_err(|_| Refusal::TooManyUploads)?;
        match taken {
            Some(taken) => taken.merge(more),
            None => *taken = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_and_does_not_grow_without_bound() {
        let intake = Intake::new(1);
        let mut taken = Vec::new();
        loop {
            let mut one = None;
            if intake.keep(MOST, &mut one).is_err() {
                break;
            }
            taken.push(one);
        }
        assert_eq!(taken.len(), UNITS / ((MOST - KEPT) / UNIT));
        drop(taken);
        let mut one = None;
        for len in [0, KEPT, KEPT + 1, KEPT + UNIT + 1] {
            assert!(intake.keep(len, &mut one).is_ok());
        }
        let has = one.as_ref().map(OwnedSemaphorePermit::num_permits);
        assert_eq!(has, Some(2));
    }
}
