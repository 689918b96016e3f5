//! What is told of a request when it has ended: to the metrics, and to the log.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use tracing::{debug, info};

use crate::metrics::CLIENT_LEFT;
use crate::shared::Shared;
use crate::usage::Usage;

pub(crate) struct Ended<'a> {
    pub(crate) id: &'a str,
    /// Method and path, if they are logged.
    pub(crate) line: Option<(&'a str, &'a str)>,
    pub(crate) peer: Option<SocketAddr>,
    /// Where its place was.
    pub(crate) backend: Option<&'a str>,
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
        Some(name) => metrics.ended(name, code, request.first_byte, request.total),
        None => metrics.count("", code),
    }
    if let Some((model, name)) = request.model.zip(request.backend) {
        metrics.model_ended(model, name, code, request.usage);
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
        let backend = request.backend.unwrap_or("-");
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
            backend: request.backend,
            model: request.model,
            first_byte_seconds: request.first_byte.map(|time| time.as_secs_f64()),
            duration_seconds: request.total.as_secs_f64(),
            tokens_in: request.usage.map(|usage| usage.input),
            tokens_out: request.usage.map(|usage| usage.output),
            end: request.end,
        }
    }
}
