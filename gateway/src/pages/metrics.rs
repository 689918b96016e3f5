//! `/metrics`, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use crate::metrics::FORMAT;
use crate::shared::Shared;

pub(super) async fn handler(State(shared): State<Arc<Shared>>) -> Response {
    match shared
        .metrics
        .text(&shared.live.all(), shared.live.waiting())
    {
        Ok(text) => ([(CONTENT_TYPE, FORMAT)], text).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}
