//! A request's body on its way to a backend: what was kept of it, again if need be, and the rest.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

use super::pace::Pace;
use crate::error::Refusal;

/// A client sends too slowly, or no more.
#[derive(Debug, thiserror::Error)]
#[error("the body stopped coming, or comes too slowly")]
struct TooSlow;

/// Why a body could not be sent, by the error of who was to send it.
pub(crate) fn upload_failed(error: &(dyn Error + 'static)) -> Refusal {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if cause.is::<TooSlow>() {
        return Refusal::BodyTimedOut;
    }
    Refusal::BadBody(cause.to_string())
}

/// What is sent to a backend.
pub(crate) struct Upload {
    start: Bytes,
    trailers: Option<HeaderMap>,
    rest: Option<Body>,
    pace: Pace,
    pause: Option<(Instant, Pin<Box<Sleep>>)>,
    /// Goes with it.
    end: Option<oneshot::Sender<()>>,
}

impl Upload {
    pub(super) fn new(start: Bytes, trailers: Option<HeaderMap>, rest: Option<Body>) -> Self {
        Self {
            start,
            trailers,
            rest,
            pace: Pace::held(),
            pause: None,
            end: None,
        }
    }

    /// What ends when all of it has been sent, or nobody sends it any more.
    pub(crate) fn tell_end(&mut self) -> oneshot::Receiver<()> {
        let (end, ended) = oneshot::channel();
        self.end = Some(end);
        ended
    }

    pub(crate) fn empty() -> Self {
        Self::new(Bytes::new(), None, None)
    }

    fn came(&mut self, frame: Option<&Frame<Bytes>>) {
        if let Some((since, _)) = self.pause.take() {
            self.pace.waited(since.elapsed());
        }
        let data = frame.and_then(Frame::data_ref);
        self.pace.read(data.map_or(0, Bytes::len));
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.start.is_empty() {
            let start = std::mem::take(&mut self.start);
            return Poll::Ready(Some(Ok(Frame::data(start))));
        }
        let Some(rest) = &mut self.rest else {
            let trailers = self.trailers.take().map(Frame::trailers);
            return Poll::Ready(trailers.map(Ok));
        };
        if let Poll::Ready(frame) = Pin::new(rest).poll_frame(context) {
            self.came(frame.as_ref().and_then(|frame| frame.as_ref().ok()));
            return Poll::Ready(frame);
        }
        let patience = self.pace.patience();
        let now = || (Instant::now(), Box::pin(sleep(patience)));
        let (_, pause) = self.pause.get_or_insert_with(now);
        ready!(pause.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(TooSlow))))
    }

    fn is_end_stream(&self) -> bool {
        self.start.is_empty()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let start = self.start.len() as u64;
        let rest = self.rest.as_ref().map(Body::size_hint).unwrap_or_default();
        let mut hint = SizeHint::new();
        hint.set_lower(start + rest.lower());
        match (&self.rest, rest.upper()) {
            // Trailers follow chunks alone.
            _ if self.trailers.is_some() => {}
            (None, _) => hint.set_exact(start),
            (Some(_), Some(upper)) => hint.set_upper(start + upper),
            (Some(_), None) => {}
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt;

    use super::*;

    /// A client that sends so many bytes every second, so often, and then nothing.
    struct Client {
        each: usize,
        times: u32,
        pause: Pin<Box<Sleep>>,
    }

    const SECOND: Duration = Duration::from_secs(1);

    impl http_body::Body for Client {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
            if self.times == 0 {
                return Poll::Pending;
            }
            ready!(self.pause.as_mut().poll(context));
            self.times -= 1;
            self.pause = Box::pin(sleep(SECOND));
            Poll::Ready(Some(Ok(Frame::data(vec![b'x'; self.each].into()))))
        }
    }

    /// How much of it came and how long that took, by when it was left.
    async fn sent(each: usize, times: u32) -> (usize, Duration) {
        let pause = Box::pin(sleep(SECOND));
        let client = Client { each, times, pause };
        let mut upload = Upload::new("start".into(), None, Some(Body::new(client)));
        let since = Instant::now();
        let mut len = 0;
        loop {
            match upload.frame().await.unwrap() {
                Ok(data) => len += data.into_data().unwrap().len(),
                Err(e) => {
                    assert!(matches!(upload_failed(&e), Refusal::BodyTimedOut), "{e}");
                    return (len - "start".len(), since.elapsed());
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_while_a_place_is_held_is_left_within_seconds() {
        let (len, took) = sent(1 << 20, 0).await;
        assert!(len == 0 && took < SECOND * 6, "{len} in {took:?}");
        // However much came before.
        let (len, took) = sent(1 << 20, 100).await;
        assert!(len == 100 << 20 && took < SECOND * 106, "{len} in {took:?}");
        // Too little, too, and enough is enough.
        let (_, took) = sent(600, 100).await;
        assert!(took < SECOND * 6, "{took:?}");
        let (len, took) = sent(64 << 10, 100).await;
        assert!(len == 100 << 16 && took > SECOND * 100, "{len} in {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_reads_slowly_costs_the_client_nothing() {
        let pause = Box::pin(sleep(Duration::ZERO));
        let client = Client {
            each: 1,
            times: 10,
            pause,
        };
        let mut upload = Upload::new(Bytes::new(), None, Some(Body::new(client)));
        for _ in 0..10 {
            sleep(SECOND * 60).await;
            assert!(upload.frame().await.unwrap().is_ok());
        }
    }
}
