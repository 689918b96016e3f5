//! What is told of requests, to the metrics and to the log: each failure of a backend, each time that
//! a request is sent again, and each end.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use tracing::{debug, info, warn};

use crate::backend::Backend;
use crate::metrics::{CLIENT_LEFT, Metrics};
use crate::shared::Shared;
use crate::usage::Usage;

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

/// A request failed at this backend. A warning tells of it, but not of each of many.
pub(crate) fn failed(metrics: &Metrics, backend: &Backend, reason: Reason, problem: &str) {
    metrics.failed(&backend.name, reason.as_str());
    let held_back = match reason {
        // It costs nothing: the request goes elsewhere, or its refusal says why.
        Reason::Connect => None,
        _ => backend.warnings.take(),
    };
    let (name, reason) = (&backend.name, reason.as_str());
    match held_back {
        Some(0) => warn!("Backend {name} failed a request ({reason}): {problem}"),
        Some(more) => warn!(
            "Backend {name} failed a request ({reason}), and {more} before it of which nothing \
             was said: {problem}"
        ),
        None => debug!("Backend {name} failed a request ({reason}): {problem}"),
    }
}

/// A backend is left out for a while, of which a warning has told.
pub(crate) fn ejected(metrics: &Metrics, backend: &str) {
    metrics.failed(backend, "ejected");
    debug!("Backend {backend} gets no requests for now");
}

/// A request that this backend did not serve is sent again.
pub(crate) fn sent_again(metrics: &Metrics, backend: &str, why: Again) {
    metrics.retried(backend);
    debug!(
        "A request to backend {backend} is sent again: {}",
        why.as_str()
    );
}

pub(crate) struct Ended<'a> {
    pub(crate) id: &'a str,
    /// Method and path, if they are logged.
    pub(crate) line: Option<(&'a str, &'a str)>,
    pub(crate) peer: Option<SocketAddr>,
    /// Where its place was.
    pub(crate) backend: Option<&'a Backend>,
    /// Of the answer, if there was one before the client left.
    pub(crate) status: Option<StatusCode>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) total: Duration,
    /// How its answer ended: nothing, if well.
    pub(crate) end: &'static str,
    /// What it asked for, if that is listed.
    pub(crate) model: Option<&'a str>,
    pub(crate) usage: Option<Usage>,
}

pub(crate) fn ended(shared: &Shared, request: &Ended<'_>) {
    let metrics = &shared.metrics;
    let code = match request.end {
        "broken" => StatusCode::BAD_GATEWAY.as_u16(),
        "client left" => CLIENT_LEFT,
        _ => request.status.map_or(CLIENT_LEFT, |status| status.as_u16()),
    };
    match request.backend {
        Some(backend) => metrics.ended(backend, code, request.first_byte, request.total),
        None => metrics.answered(code),
    }
    if let Some((model, backend)) = request.model.zip(request.backend) {
        metrics.model_ended(model, backend, code, request.usage);
    }
    let Some((method, path)) = request.line else {
        return;
    };
    if shared.options.access_log {
        let line = AccessLine::new(request, method, path, code);
        if let Ok(line) = serde_json::to_string(&line) {
            info!(target: ACCESS, "{line}");
        }
    } else {
        let peer = request.peer.map_or("-".to_owned(), |peer| peer.to_string());
        let backend = request.backend.map_or("-", |backend| &backend.name);
        let first = request.first_byte.unwrap_or_default();
        let (total, end) = (request.total, request.end);
        debug!("{peer} {method} {path} {code} {backend} first={first:?} total={total:?} {end}");
    }
}

/// The target of the access log's events, each of which is one line of JSON.
pub const ACCESS: &str = "llmlb_gateway::access";

#[derive(Serialize)]
struct AccessLine<'a> {
    time: String,
    request_id: &'a str,
    client: Option<SocketAddr>,
    method: &'a str,
    path: &'a str,
    status: u16,
    backend: Option<&'a str>,
    model: Option<&'a str>,
    first_byte_seconds: Option<f64>,
    duration_seconds: f64,
    tokens_in: Option<u64>,
    tokens_out: Option<u64>,
    /// How the answer ended, if not well.
    #[serde(skip_serializing_if = "str::is_empty")]
    end: &'a str,
}

impl<'a> AccessLine<'a> {
    fn new(request: &Ended<'a>, method: &'a str, path: &'a str, status: u16) -> Self {
        Self {
            time: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
            request_id: request.id,
            client: request.peer,
            method,
            path,
            status,
            backend: request.backend.map(|backend| backend.name.as_str()),
            model: request.model,
            first_byte_seconds: request.first_byte.map(|time| time.as_secs_f64()),
            duration_seconds: request.total.as_secs_f64(),
            tokens_in: request.usage.map(|usage| usage.input),
            tokens_out: request.usage.map(|usage| usage.output),
            end: request.end,
        }
    }
}
