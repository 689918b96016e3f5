//! `/llmlb`: a page that shows what runs, and what it shows.
//!
//! The page is one file without anything from elsewhere, and says nothing by itself; the numbers
//! are asked for with the key, where there is one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use super::health;
use crate::history::Sample;
use crate::shared::Shared;

const PAGE: &str = include_str!("page.html");

/// It runs its own script and style, and speaks to this server alone.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                      img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) async fn page() -> Response {
    let headers = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (CACHE_CONTROL, "no-cache"),
    ];
    (headers, PAGE).into_response()
}

#[derive(Serialize)]
struct Seen {
    version: &'static str,
    status: &'static str,
    /// In seconds.
    uptime: f64,
    about: BTreeMap<String, Value>,
    backends: Vec<BackendSeen>,
    models: Vec<ModelSeen>,
    history: Vec<Sample>,
}

#[derive(Serialize)]
struct BackendSeen {
    #[serde(flatten)]
    health: health::BackendHealth,
    requests: u64,
    /// On average, in seconds.
    first_token: Option<f64>,
}

#[derive(Serialize)]
struct ModelSeen {
    model: String,
    requests: u64,
    first_token: Option<f64>,
    tokens_in: u64,
    tokens_out: u64,
}

pub(super) async fn state(State(shared): State<Arc<Shared>>) -> Response {
    let summary = shared.metrics.summary();
    let backends = shared.live.all();
    let backends = backends.iter().map(|backend| {
        let of = summary.backends.get(&backend.name);
        BackendSeen {
            health: health::BackendHealth::of(backend),
            requests: of.map_or(0, |of| of.requests),
            first_token: of.and_then(|of| of.first_token()),
        }
    });
    let models = summary.models.iter().map(|(model, of)| ModelSeen {
        model: model.clone(),
        requests: of.requests,
        first_token: of.first_token(),
        tokens_in: of.tokens_in,
        tokens_out: of.tokens_out,
    });
    let status = health::status(&shared);
    let seen = Seen {
        version: env!("CARGO_PKG_VERSION"),
        status,
        uptime: shared.since.elapsed().as_secs_f64(),
        about: shared.description().iter().cloned().collect(),
        backends: backends.collect(),
        models: models.collect(),
        history: shared.history.samples(),
    };
    ([(CACHE_CONTROL, "no-store")], Json(seen)).into_response()
}
