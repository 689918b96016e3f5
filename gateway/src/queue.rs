//! The queue before backends that have as many requests as they may: first come, first served, by
//! whichever backend fits first.
//!
//! Apart from choosing, as it knows nothing of backends: it keeps the order, and calls those who may
//! look again. All who wait for the same (the same model, say) are of one kind, and only the first of
//! a kind looks: the first of all, and if there is nothing for it, the first of the next kind.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Of the measured time between two places that come free, this share is the newest one's.
const NEWEST: f64 = 0.1;

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind(u64);

impl Kind {
    pub(crate) fn of(what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self(hasher.finish())
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    most: usize,
    line: Mutex<Line>,
    /// How many wait, to be seen without the lock.
    len: AtomicUsize,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    waiting: VecDeque<Waiter>,
    pace: Pace,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    kind: Kind,
    called: Arc<Notify>,
}

/// How fast places come free while somebody waits.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    seconds: Option<f64>,
}

/// The queue has as many as it may.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    /// When it is likely to have gone on by one.
    pub(crate) retry_after: Duration,
}

impl Queue {
    /// For so many.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            line: Mutex::default(),
            len: AtomicUsize::new(0),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst)
    }

    /// Who has joined looks once it is called, which happens at once where nobody is before it.
    pub(crate) fn join(self: &Arc<Self>, kind: Kind) -> Result<Ticket, TooLong> {
        let mut line = self.line();
        if line.waiting.len() >= self.most {
            return Err(TooLong {
                retry_after: line.pace.time_for(line.waiting.len() + 1),
            });
        }
        let id = line.next;
        line.next += 1;
        let called = Arc::new(Notify::new());
        line.waiting.push_back(Waiter {
            id,
            kind,
            called: Arc::clone(&called),
        });
        self.len.store(line.waiting.len(), Ordering::SeqCst);
        // A place may have come free before anybody waited.
        line.call_first();
        Ok(Ticket {
            queue: Arc::clone(self),
            id,
            called,
            since: Instant::now(),
        })
    }

    /// A place has come free.
    pub(crate) fn freed(&self) {
        if self.len() == 0 {
            return;
        }
        let mut line = self.line();
        line.pace.tick();
        line.call_first();
    }

    /// Backends have come, or serve again.
    pub(crate) fn changed(&self) {
        if self.len() > 0 {
            self.line().call_first();
        }
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn call_first(&self) {
        if let Some(first) = self.waiting.front() {
            first.called.notify_one();
        }
    }

    /// Calls the first of the next kind behind this one.
    fn call_behind(&self, id: u64) {
        let mut kinds: Vec<Kind> = Vec::new();
        for waiter in &self.waiting {
            let is_first = !kinds.contains(&waiter.kind);
            if is_first && waiter.id > id {
                waiter.called.notify_one();
                return;
            }
            if is_first {
                kinds.push(waiter.kind);
            }
        }
    }
}

impl Pace {
    fn tick(&mut self) {
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let new = now.duration_since(last).as_secs_f64();
            let old = self.seconds.unwrap_or(new);
            self.seconds = Some(old + (new - old) * NEWEST);
        }
    }

    /// A second, as long as nothing is known.
    fn time_for(&self, count: usize) -> Duration {
        let one = self.seconds.unwrap_or_default();
        Duration::try_from_secs_f64(one * count as f64).unwrap_or(Duration::MAX)
    }
}

/// A place in the queue, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    id: u64,
    called: Arc<Notify>,
    pub(crate) since: Instant,
}

impl Ticket {
    /// There is nothing for it: the next one may look.
    pub(crate) fn pass_on(&self) {
        self.queue.line().call_behind(self.id);
    }

    /// Waits to be called. A call of before counts.
    pub(crate) async fn called(&self) {
        self.called.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        // It is near the front, most often.
        if let Some(at) = line.waiting.iter().position(|waiter| waiter.id == self.id) {
            line.waiting.remove(at);
        }
        self.queue.len.store(line.waiting.len(), Ordering::SeqCst);
        // There may be more than one place; and a call that it has not heard is another's.
        line.call_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_called(ticket: &Ticket) -> bool {
        let called = std::pin::pin!(ticket.called());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        called.poll(&mut context).is_ready()
    }

    #[test]
    fn the_first_looks_and_then_the_first_of_the_next_kind() {
        let queue = Arc::new(Queue::new(8));
        let (a, b) = (Kind::of("a"), Kind::of("b"));
        queue.freed();
        let first = queue.join(a).unwrap();
        assert!(is_called(&first) && !is_called(&first));
        let second = queue.join(a).unwrap();
        let other = queue.join(b).unwrap();
        // Each that joins may have come too late for a place.
        assert!(is_called(&first) && !is_called(&second) && !is_called(&other));
        first.pass_on();
        assert!(!is_called(&second) && is_called(&other));
        other.pass_on();
        assert!(!is_called(&first) && !is_called(&second));
        queue.freed();
        // It leaves with a call that it has not heard.
        drop(first);
        assert!(is_called(&second) && !is_called(&other));
        second.pass_on();
        assert!(is_called(&other));
        drop((second, other));
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn it_has_an_end_and_tells_when_to_come_again() {
        let queue = Arc::new(Queue::new(1));
        let kind = Kind::of(());
        let _first = queue.join(kind).unwrap();
        let refused = queue.join(kind).unwrap_err();
        assert_eq!(refused.retry_after, Duration::ZERO);
        queue.freed();
        std::thread::sleep(Duration::from_millis(5));
        queue.freed();
        let refused = queue.join(kind).unwrap_err();
        assert!(
            refused.retry_after >= Duration::from_millis(10),
            "{refused:?}"
        );
    }
}
