//! How long a backend may take to begin with an answer, and to go on with it. Without limits, which is
//! the default, nothing is timed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use crate::options::Options;

/// Waits for the beginning of an answer, for so long after the request has been sent.
pub(super) async fn first_byte<T>(
    patience: Duration,
    uploaded: Option<oneshot::Receiver<()>>,
    answer: impl Future<Output = T>,
) -> Result<T, String> {
    let too_late = async {
        if let Some(uploaded) = uploaded {
            let _ = uploaded.await;
        }
        sleep(patience).await;
    };
    tokio::select! {
        biased;
        answer = answer => Ok(answer),
        () = too_late => Err(format!("it did not begin to answer within {patience:?}")),
    }
}

/// Watches the pauses of one answer.
pub(super) struct Pauses {
    /// The first.
    first: Option<Duration>,
    /// All others.
    idle: Option<Duration>,
    running: Option<Pin<Box<Sleep>>>,
}

impl Pauses {
    pub(super) fn limited(options: &Options) -> Self {
        let idle = options.stream_idle_timeout;
        Self {
            first: options.first_byte_timeout.or(idle),
            idle,
            running: None,
        }
    }

    /// A piece of the answer has come.
    pub(super) fn end(&mut self) {
        self.first = self.idle;
        self.running = None;
    }

    /// There is none yet. Ready when that has been so for too long.
    pub(super) fn poll_too_long(&mut self, context: &mut Context<'_>) -> Poll<String> {
        let Some(patience) = self.first else {
            return Poll::Pending;
        };
        let running = self
            .running
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(running.as_mut().poll(context));
        Poll::Ready(format!("its answer paused for {patience:?}"))
    }
}
