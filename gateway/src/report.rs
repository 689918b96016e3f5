//! What is told of a request when it has ended: to the metrics, and to the log.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use tracing::debug;

use crate::metrics::{CLIENT_LEFT, Metrics};

pub(crate) struct Ended<'a> {
    /// Method and path, if they are logged.
    pub(crate) line: Option<&'a str>,
    pub(crate) peer: Option<SocketAddr>,
    /// Where its place was.
    pub(crate) backend: Option<&'a str>,
    /// Of the answer, if there was one before the client left.
    pub(crate) status: Option<StatusCode>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) total: Duration,
    /// How its answer ended: nothing, if well.
    pub(crate) end: &'static str,
}

pub(crate) fn ended(metrics: &Metrics, request: &Ended<'_>) {
    let code = request.status.map_or(CLIENT_LEFT, |status| status.as_u16());
    match request.backend {
        Some(name) => metrics.ended(name, code, request.first_byte, request.total),
        None => metrics.count("", code),
    }
    if let Some(line) = request.line {
        let peer = request.peer.map_or("-".to_owned(), |peer| peer.to_string());
        let backend = request.backend.unwrap_or("-");
        let first = request.first_byte.unwrap_or_default();
        let (total, end) = (request.total, request.end);
        debug!("{peer} {line} {code} {backend} first={first:?} total={total:?} {end}");
    }
}
