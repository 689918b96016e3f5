//! `/api/tags` and `/api/ps`: what all Ollama servers list; where none does, a backend's own answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::task::JoinSet;

use crate::backend::Backend;
use crate::shared::Shared;
use crate::{ollama, proxy};

/// `GET /api/tags`: what there is.
pub(super) async fn tags(state: State<Arc<Shared>>, request: Request) -> Response {
    merged(state, request, "/api/tags").await
}

/// `GET /api/ps`: what is loaded.
pub(super) async fn ps(state: State<Arc<Shared>>, request: Request) -> Response {
    merged(state, request, "/api/ps").await
}

async fn merged(state: State<Arc<Shared>>, request: Request, path: &'static str) -> Response {
    let servers = servers(&state);
    // One alone answers for itself, whatever it says.
    if servers.is_empty() || !state.life.is_serving() || state.live.roster().members().len() == 1 {
        return proxy::handler(state, request).await;
    }
    let mut asked = JoinSet::new();
    for (order, server) in servers.into_iter().enumerate() {
        asked.spawn(async move { (order, ollama::list(&server, path).await) });
    }
    let mut lists = asked.join_all().await;
    lists.sort_by_key(|(order, _)| *order);
    let lists: Vec<_> = lists.into_iter().filter_map(|(_, list)| list).collect();
    if lists.is_empty() {
        return proxy::handler(state, request).await;
    }
    state.metrics.answered(StatusCode::OK.as_u16());
    Json(json!({ "models": ollama::merge(lists.into_iter()) })).into_response()
}

fn servers(shared: &Shared) -> Vec<Arc<Backend>> {
    let roster = shared.live.roster();
    let members = roster.members().iter();
    let telling = members.filter(|b| b.is_up() && b.loaded.tells());
    telling.cloned().collect()
}
