//! `/v1/models`: what all backends list; where none lists any, a backend's own answer.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use crate::shared::Shared;
use crate::{model, proxy};

/// `GET /v1/models`.
pub(super) async fn list(state: State<Arc<Shared>>, request: Request) -> Response {
    let catalog = state.catalog();
    if !state.life.is_serving() || !catalog.known {
        return proxy::handler(state, request).await;
    }
    json(&state, catalog.list.clone())
}

/// `GET /v1/models/ID`, from the same lists: not all servers that have the one have the other.
pub(super) async fn one(state: State<Arc<Shared>>, request: Request) -> Response {
    let id = model::model_in_path(request.uri().path()).unwrap_or_default();
    let entry = state.catalog().entry(&id);
    match entry {
        Some(entry) if state.life.is_serving() => json(&state, entry),
        _ => proxy::handler(state, request).await,
    }
}

fn json(shared: &Shared, body: Bytes) -> Response {
    shared.metrics.answered(StatusCode::OK.as_u16());
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}
