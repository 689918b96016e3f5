//! Request bodies: what they ask for, and sending them on, again if need be.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::{Sleep, sleep, timeout};

use crate::error::Refusal;

/// How much of a body is kept: to find the model in, and to send again.
const KEPT: usize = 4 << 20;

/// How long a client may pause while it sends one.
const PAUSE: Duration = Duration::from_secs(30);

/// A body, of which the beginning is read.
pub(crate) struct Received {
    pub(crate) start: Bytes,
    /// What follows it.
    pub(crate) rest: Option<Body>,
}

impl Received {
    /// Reads all of a JSON object that is not too big to keep, and the first piece of all else.
    pub(crate) async fn read(mut body: Body) -> Result<Self, Refusal> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while !body.is_end_stream() {
            let frame = match timeout(PAUSE, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(e))) => return Err(Refusal::BadBody(e.to_string())),
                Ok(None) => break,
                Err(_) => return Err(Refusal::BodyTimedOut),
            };
            let Ok(data) = frame.into_data() else { break };
            // Most bodies come in one piece, which needs no copy.
            if first.is_empty() {
                first = data;
            } else {
                if all.is_empty() {
                    all.extend_from_slice(&first);
                }
                all.extend_from_slice(&data);
            }
            let read = first.len().max(all.len());
            let object = first.trim_ascii_start().first().is_none_or(|&b| b == b'{');
            if !object || read >= KEPT {
                let rest = (!body.is_end_stream()).then_some(body);
                return Ok(Self::new(first, all, rest));
            }
        }
        Ok(Self::new(first, all, None))
    }

    fn new(first: Bytes, all: BytesMut, rest: Option<Body>) -> Self {
        let start = if all.is_empty() { first } else { all.freeze() };
        Self { start, rest }
    }

    /// The model that it names, if it is JSON, complete and does.
    pub(crate) fn model(&self) -> Option<Cow<'_, str>> {
        #[derive(Deserialize)]
        struct Named<'a> {
            #[serde(borrow)]
            model: Cow<'a, str>,
        }
        if self.rest.is_some() || self.start.is_empty() {
            return None;
        }
        let named: Named<'_> = serde_json::from_slice(&self.start).ok()?;
        Some(named.model)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &'static str) -> Option<String> {
        let received = Received {
            start: Bytes::from_static(text.as_bytes()),
            rest: None,
        };
        received.model().map(Cow::into_owned)
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        assert_eq!(model(r#"{"model":"a"}"#).as_deref(), Some("a"));
        let late = r#" {"messages":[{"model":"no"}],"model":"a\"\u00e4/b","n":1} "#;
        assert_eq!(model(late).as_deref(), Some("a\"ä/b"));
    }

    #[test]
    fn anything_else_names_none() {
        for text in [
            "",
            "{}",
            "[]",
            "model",
            r#"{"model":1}"#,
            r#"{"model":"a""#,
            "{\"model\":\"\u{0}\"}",
        ] {
            assert_eq!(model(text), None, "{text}");
        }
    }
}
