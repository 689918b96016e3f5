//! A request's body on its way to a backend: what was kept of it, again if need be, and the rest.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::PAUSE;

/// What is sent to a backend.
pub(crate) struct Upload {
    start: Bytes,
    rest: Option<Body>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Upload {
    pub(crate) fn new(start: Bytes, rest: Option<Body>) -> Self {
        Self {
            start,
            rest,
            pause: None,
        }
    }

    pub(crate) fn empty() -> Self {
        Self::new(Bytes::new(), None)
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
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(rest).poll_frame(context) {
            self.pause = None;
            return Poll::Ready(frame);
        }
        let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(PAUSE)));
        ready!(pause.as_mut().poll(context));
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::from(
            std::io::ErrorKind::TimedOut,
        )))))
    }

    fn is_end_stream(&self) -> bool {
        self.start.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let start = self.start.len() as u64;
        let rest = self.rest.as_ref().map(Body::size_hint).unwrap_or_default();
        let mut hint = SizeHint::new();
        hint.set_lower(start + rest.lower());
        match (&self.rest, rest.upper()) {
            (None, _) => hint.set_exact(start),
            (Some(_), Some(upper)) => hint.set_upper(start + upper),
            (Some(_), None) => {}
        }
        hint
    }
}
