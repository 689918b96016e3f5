//! The beginning of a request's body, as it comes from a client.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::intake::{Intake, KEPT, MOST};
use super::pace::Pace;
use super::upload::Upload;
use super::uploads::Waited;
use crate::error::Refusal;
use crate::model::Search;

/// A body, of which the beginning is read.
pub(crate) struct Received {
    pub(crate) start: Bytes,
    trailers: Option<HeaderMap>,
    /// What follows it.
    pub(crate) rest: Option<Body>,
    /// For what is kept beyond the usual.
    memory: Option<OwnedSemaphorePermit>,
}

impl Received {
    /// Reads all of a body that is not too big to keep, and the beginning of one that is; that is
    /// read on if it names the model and that is still `needed`. Nobody's place is taken meanwhile.
    pub(crate) async fn read(
        body: Body,
        search: &mut Search,
        intake: &Intake,
        needed: bool,
    ) -> Result<Self, Refusal> {
        let mut reading = Reading::new(body, intake);
        while let Some(piece) = reading.next().await? {
            if search.goes_on() {
                search.read(&piece, reading.kept()).await;
            }
            let len = reading.kept().len();
            let more = needed && len < MOST && search.goes_on() && !search.has_model();
            if len >= KEPT && !more {
                return Ok(reading.finish(true));
            }
            intake.keep(len, &mut reading.memory)?;
        }
        Ok(reading.finish(false))
    }

    /// What is sent to a backend. What is not kept goes with it.
    pub(crate) fn upload(&mut self) -> Upload {
        let rest = self.rest.take();
        Upload::new(self.start.clone(), self.trailers.clone(), rest)
    }

    /// Has so much memory counted for it.
    pub(crate) fn keep(&mut self, len: usize, intake: &Intake) -> Result<(), Refusal> {
        intake.keep(len, &mut self.memory)
    }

    /// Its length, if that is known before it is sent.
    pub(crate) fn length(&self) -> Option<u64> {
        if self.trailers.is_some() {
            return None;
        }
        let rest = self.rest.as_ref();
        let rest = rest.map_or(Some(0), |rest| rest.size_hint().exact())?;
        Some(self.start.len() as u64 + rest)
    }

    pub(crate) fn has_length(&self) -> bool {
        self.length().is_some()
    }
}

/// A body that is being read.
struct Reading<'a> {
    body: Body,
    intake: &'a Intake,
    /// Most bodies come in one piece, which needs no copy.
    first: Bytes,
    all: BytesMut,
    trailers: Option<HeaderMap>,
    pace: Pace,
    memory: Option<OwnedSemaphorePermit>,
    upload: Option<Waited>,
}

impl<'a> Reading<'a> {
    fn new(body: Body, intake: &'a Intake) -> Self {
        Self {
            body,
            intake,
            first: Bytes::new(),
            all: BytesMut::new(),
            trailers: None,
            pace: Pace::free(),
            memory: None,
            upload: None,
        }
    }

    fn kept(&self) -> &[u8] {
        if self.all.is_empty() {
            &self.first
        } else {
            &self.all
        }
    }

    /// The next piece, which is kept.
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            if self.body.is_end_stream() {
                return Ok(None);
            }
            let Some(frame) = self.frame().await? else {
                return Ok(None);
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    self.keep(&data);
                    return Ok(Some(data));
                }
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    async fn frame(&mut self) -> Result<Option<Frame<Bytes>>, Refusal> {
        let mut frame = pin!(self.body.frame());
        // What has come with the head takes nobody's place.
        let now = poll_fn(|context| {
            Poll::Ready(match frame.as_mut().poll(context) {
                Poll::Ready(frame) => Some(frame),
                Poll::Pending => None,
            })
        });
        let frame = match now.await {
            Some(frame) => frame,
            None => {
                let upload = match &mut self.upload {
                    Some(upload) => upload,
                    none => none.insert(self.intake.wait()?),
                };
                let since = Instant::now();
                let frame = select! {
                    biased;
                    frame = timeout(self.pace.patience(), frame) => frame.ok(),
                    () = upload.cut() => None,
                };
                self.pace.waited(since.elapsed());
                frame.ok_or(Refusal::BodyTimedOut)?
            }
        };
        frame
            .transpose()
            .map_err(|e| Refusal::BadBody(e.to_string()))
    }

    fn keep(&mut self, data: &Bytes) {
        self.pace.read(data.len());
        if let Some(upload) = &self.upload {
            upload.read(data.len());
        }
        if self.first.is_empty() {
            self.first = data.clone();
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(data);
    }

    fn finish(self, goes_on: bool) -> Received {
        let goes_on = goes_on && !self.body.is_end_stream();
        Received {
            start: if self.all.is_empty() {
                self.first
            } else {
                self.all.freeze()
            },
            trailers: self.trailers,
            rest: goes_on.then_some(self.body),
            memory: self.memory,
        }
    }
}
