//! The beginning of a request's body, as it comes from a client.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::PAUSE;
use crate::error::Refusal;

/// How much of a body is kept: to find the model in, and to send again.
const KEPT: usize = 4 << 20;

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
}
