//! `/health`: that it lives, who it is, how its backends are; `/ready`: whether to send requests.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::{Value, json};

use crate::admission;
use crate::backend::{Backend, State as Condition};
use crate::error::Refusal;
use crate::shared::Shared;
use crate::via;

#[derive(Serialize)]
struct Health<'a> {
    status: &'static str,
    #[serde(flatten)]
    description: Description<'a>,
    /// In seconds.
    uptime: f64,
    backends: Vec<BackendHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
}

/// The owner's words, in the owner's order.
struct Description<'a>(&'a [(String, Value)]);

impl Serialize for Description<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
pub(super) struct BackendHealth {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    state: &'static str,
    in_flight: usize,
    /// How many it may have at a time, as its owner or the server itself says.
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    /// Null when it does not say.
    models: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl BackendHealth {
    pub(super) fn of(backend: &Backend) -> Self {
        let (state, problem) = backend.state();
        let models = backend.models();
        Self {
            url: backend.name.clone(),
            origin: backend.origin(),
            state: name(state, backend.is_retired(), backend.is_ejected()),
            in_flight: backend.in_flight(),
            max: backend.max(),
            models: models.map(|models| models.names().map(str::to_owned).collect()),
            problem,
        }
    }
}

fn name(state: Condition, retired: bool, ejected: bool) -> &'static str {
    match state {
        _ if retired => "draining",
        Condition::Unknown => "unknown",
        Condition::Up if ejected => "ejected",
        Condition::Up => "up",
        Condition::Down => "down",
    }
}

pub(super) fn status(shared: &Shared) -> &'static str {
    if shared.life.is_serving() {
        "ok"
    } else {
        "shutting down"
    }
}

/// `/ready`: whether requests are best sent here.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let up = || shared.live.roster().members().iter().any(|b| b.is_up());
    if !shared.life.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n")
    } else if up() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no backend is up\n")
    }
}

pub(super) async fn handler(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    // So that a backend that is this very server is not taken for a good one.
    if via::has_been_here(&headers, &shared.via) {
        return Refusal::Loop.into_response();
    }
    let status = status(&shared);
    if !admission::shows_key(&shared, &headers) {
        // Who may not ask for more may know that it serves.
        return Json(json!({ "status": status })).into_response();
    }
    let all = shared.live.all();
    let backends: Vec<_> = all.iter().map(|b| BackendHealth::of(b)).collect();
    let options = &shared.options;
    let health = Health {
        status,
        description: Description(&shared.description()),
        uptime: shared.since.elapsed().as_secs_f64(),
        hint: backends
            .is_empty()
            .then_some(options.no_backends_hint.as_str()),
        backends,
    };
    Json(health).into_response()
}
