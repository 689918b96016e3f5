//! `/health`: whether it serves, who it is, how its backends are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde::Serialize;
use serde::ser::SerializeMap;
use serde_json::Value;

use crate::backend::{Backend, State as Condition};
use crate::shared::Shared;

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
struct BackendHealth {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    state: &'static str,
    in_flight: usize,
    /// Null when it does not say.
    models: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl BackendHealth {
    fn of(backend: &Backend) -> Self {
        let (state, problem) = backend.state();
        let models = backend.models();
        Self {
            url: backend.name.clone(),
            origin: backend.origin(),
            state: name(state, backend.is_retired()),
            in_flight: backend.in_flight(),
            models: models.map(|models| models.names().map(str::to_owned).collect()),
            problem,
        }
    }
}

fn name(state: Condition, retired: bool) -> &'static str {
    match state {
        _ if retired => "draining",
        Condition::Unknown => "unknown",
        Condition::Up => "up",
        Condition::Down => "down",
    }
}

pub(super) async fn handler(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let (code, status) = if shared.life.is_serving() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down")
    };
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
    (code, Json(health).into_response())
}
