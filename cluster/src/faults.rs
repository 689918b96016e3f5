//! Faults to plant, so that the torture run can show that it finds them. Behind a feature that no
//! build has which serves.

use std::sync::atomic::{AtomicBool, Ordering};

static DEADLINE_FROM_ANSWER: AtomicBool = AtomicBool::new(false);
static RELEASE_BY_NAME: AtomicBool = AtomicBool::new(false);

/// What to get wrong.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Count the deadline from when the answer came, not from when the renewal was sent.
    DeadlineFromAnswer,
    /// Release whatever holder the service has.
    ReleaseByName,
}

/// Gets it wrong from now on.
pub fn plant(fault: Fault) {
    match fault {
        Fault::DeadlineFromAnswer => &DEADLINE_FROM_ANSWER,
        Fault::ReleaseByName => &RELEASE_BY_NAME,
    }
    .store(true, Ordering::SeqCst);
}

pub(crate) fn deadline_from_answer() -> bool {
    DEADLINE_FROM_ANSWER.load(Ordering::SeqCst)
}

pub(crate) fn release_by_name() -> bool {
    RELEASE_BY_NAME.load(Ordering::SeqCst)
}
