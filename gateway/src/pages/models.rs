//! `/v1/models`: what all backends list; where none lists any, a backend's own answer.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::shared::Shared;
use crate::{catalog, model, proxy};

/// `GET /v1/models`.
pub(super) async fn list(state: State<Arc<Shared>>, request: Request) -> Response {
    let shared = &state.0;
    if !shared.life.is_serving() || !catalog::is_known(&shared.live) {
        return proxy::handler(state, request).await;
    }
    let entries = catalog::entries(&shared.live);
    let data: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    shared.metrics.count("", StatusCode::OK.as_u16());
    Json(json!({ "object": "list", "data": data })).into_response()
}

/// `GET /v1/models/ID`, from the same lists: not all servers that have the one have the other.
pub(super) async fn one(state: State<Arc<Shared>>, request: Request) -> Response {
    let shared = &state.0;
    let listed = catalog::entries(&shared.live);
    let id = model::in_path(request.uri().path()).unwrap_or_default();
    match listed.into_iter().find(|(known, _)| *known == id) {
        Some((_, entry)) if shared.life.is_serving() => {
            shared.metrics.count("", StatusCode::OK.as_u16());
            Json(entry).into_response()
        }
        _ => proxy::handler(state, request).await,
    }
}
