//! A future beside the one that matters, looked at only when it has something to say: most of what
//! wakes a task is for the other.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

pub(super) struct Aside<F> {
    future: F,
    bell: Arc<Bell>,
    /// What the future is given to ring it.
    waker: Waker,
}

/// Wakes the task, and tells what for.
struct Bell {
    rung: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.wake_by_ref();
    }
}

impl<F: Future + Unpin> Aside<F> {
    /// For a future that only one task polls.
    pub(super) fn new(future: F) -> Self {
        let bell = Arc::new(Bell {
            rung: AtomicBool::new(true),
            task: Mutex::new(Waker::noop().clone()),
        });
        Self {
            future,
            waker: Waker::from(Arc::clone(&bell)),
            bell,
        }
    }
}

impl<F: Future + Unpin> Future for Aside<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        if !this.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        {
            let task = this.bell.task.lock();
            let mut task = task.unwrap_or_else(PoisonError::into_inner);
            task.clone_from(context.waker());
        }
        // Before the future looks, so that what comes while it does is not missed.
        this.bell.rung.store(false, Ordering::Release);
        Pin::new(&mut this.future).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_when_its_task_was() {
        let (sender, mut receiver) = oneshot::channel();
        let polls = AtomicUsize::new(0);
        let counted = poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut receiver).poll(context)
        });
        let mut aside = Aside::new(counted);
        for _ in 0..9 {
            let now = poll_fn(|context| Poll::Ready(Pin::new(&mut aside).poll(context)));
            assert!(now.await.is_pending());
            yield_now().await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        let tell = tokio::spawn(async move { sender.send(7) });
        assert_eq!(aside.await, Ok(7));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
        assert_eq!(tell.await.unwrap(), Ok(()));
    }
}
