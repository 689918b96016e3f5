//! Whether a client's connection waits for a request. hyper does not tell: but it takes up a deadline
//! for each head that it waits for, and drops it when that has come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hyper::rt::Timer;
use tokio::time::{Sleep, sleep};

/// What one connection is about.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// One more with each head that is waited for, and one more when it has come.
    heads: AtomicU64,
    /// What has been read so far ends within a request.
    within: AtomicBool,
    /// An answer of ours is about to be written.
    answered: AtomicBool,
}

impl Activity {
    /// The number of the head that is waited for, if nothing has come of it.
    fn head(&self) -> Option<u64> {
        let heads = self.heads.load(Ordering::Relaxed);
        let waits = heads % 2 == 1 && !self.is_within();
        waits.then_some(heads)
    }

    /// Whether hyper waits for a head. After another protocol was agreed on, it does not.
    pub(super) fn awaits_head(&self) -> bool {
        self.heads.load(Ordering::Relaxed) % 2 == 1
    }

    pub(super) fn is_within(&self) -> bool {
        self.within.load(Ordering::Relaxed)
    }

    pub(super) fn has_read(&self, within: bool) {
        self.within.store(within, Ordering::Relaxed);
    }

    pub(super) fn answers(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether what is written is an answer of ours: one each.
    pub(super) fn takes_answer(&self) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        self.answered.store(false, Ordering::Relaxed);
        answered
    }
}

/// hyper's clock, which never rings: who idles for too long is left elsewhere.
pub(super) struct Clock {
    activity: Arc<Activity>,
    /// Nobody looks at it.
    now: Instant,
}

impl Clock {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        Self {
            activity: Arc::clone(activity),
            now: Instant::now(),
        }
    }
}

impl Timer for Clock {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.activity.heads.fetch_add(1, Ordering::Relaxed);
        Box::pin(Deadline(Arc::clone(&self.activity)))
    }

    fn sleep_until(&self, _: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(Duration::ZERO)
    }

    fn now(&self) -> Instant {
        self.now
    }
}

/// There while hyper waits for a head.
struct Deadline(Arc<Activity>);

impl Drop for Deadline {
    fn drop(&mut self) {
        self.0.heads.fetch_add(1, Ordering::Relaxed);
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl hyper::rt::Sleep for Deadline {}

/// A connection that has waited for a request for this long, and up to twice as long, is quiet.
const QUIET: Duration = Duration::from_millis(50);

/// Waits until a connection is quiet. The clock is set once in that time, not for each request.
#[derive(Default)]
pub(super) struct Quiet {
    timer: Option<Pin<Box<Sleep>>>,
    /// Which head was waited for when it was set.
    head: Option<u64>,
}

impl Quiet {
    /// To be asked whenever hyper has done what it could.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, activity: &Activity) -> Poll<()> {
        let Some(head) = activity.head() else {
            return Poll::Pending;
        };
        loop {
            let timer = self.timer.get_or_insert_with(|| {
                self.head = Some(head);
                Box::pin(sleep(QUIET))
            });
            ready!(timer.as_mut().poll(context));
            self.timer = None;
            if self.head == Some(head) {
                return Poll::Ready(());
            }
        }
    }
}
