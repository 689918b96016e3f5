//! What is told of requests, to the metrics and to the log: each failure of a backend, each time that
//! a request is sent again, and each end.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use tracing::debug;

use crate::metrics::{CLIENT_LEFT, Metrics};

/// What a backend did to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// It took no connection.
    Connect,
    /// It broke before it answered, or answered what is no HTTP.
    Reset,
    /// It answered with a 5xx that says it is in trouble.
    Answer,
    /// Its answer broke off.
    BrokenStream,
    /// It took too long to begin, or to go on.
    Timeout,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Answer => "answer",
            Self::BrokenStream => "broken stream",
            Self::Timeout => "timeout",
        }
    }
}

/// Why a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// A pooled connection had died: to the same backend.
    Stale,
    /// No connection was to be had: to another one.
    Unreachable,
    /// It said that it has enough: to another one.
    TurnedAway,
}

impl Again {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "its pooled connection was dead",
            Self::Unreachable => "it could not be reached",
            Self::TurnedAway => "it had enough",
        }
    }
}

/// A request failed at this backend.
pub(crate) fn failed(backend: &str, reason: Reason, problem: &str) {
    debug!(
        "Backend {backend} failed a request ({}): {problem}",
        reason.as_str()
    );
}

/// A backend is left out for a while, of which a warning has told.
pub(crate) fn ejected(backend: &str) {
    debug!("Backend {backend} gets no requests for now");
}

/// A request that this backend did not serve is sent again.
pub(crate) fn sent_again(backend: &str, why: Again) {
    debug!(
        "A request to backend {backend} is sent again: {}",
        why.as_str()
    );
}

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
