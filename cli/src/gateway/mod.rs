//! The built-in HTTP server.

use std::io;
use std::time::Instant;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use llmlb_lock_core::LockInfo;
use serde::Serialize;
use serde_json::json;

/// What its handlers know.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    info: LockInfo,
    since: Instant,
}

impl Gateway {
    pub(crate) fn new(info: LockInfo) -> Self {
        Self {
            info,
            since: Instant::now(),
        }
    }
}

/// Serves until `shutdown` completes, then lets requests in flight finish.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    gateway: Gateway,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let app = Router::new()
        .route("/health", get(health))
        .fallback(not_found)
        .with_state(gateway);
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown)
        .await
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(flatten)]
    info: LockInfo,
    /// In seconds.
    uptime: f64,
}

async fn health(State(gateway): State<Gateway>) -> impl IntoResponse {
    Json(Health {
        status: "ok",
        info: gateway.info,
        uptime: gateway.since.elapsed().as_secs_f64(),
    })
}

async fn not_found(uri: Uri) -> impl IntoResponse {
    let message = format!("no such path: {}", uri.path());
    let error = json!({ "error": { "message": message, "code": 404 } });
    (StatusCode::NOT_FOUND, Json(error))
}
