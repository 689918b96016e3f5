//! What the gateway answers itself, and where: all else is passed on.

mod health;
mod live;
mod metrics;
mod models;
mod ollama;

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Method;
use axum::routing::get;
use axum::{Router, middleware};

use crate::error::Refusal;
use crate::shared::Shared;
use crate::{admission, proxy};

/// Whether a request may go past the [`router`] to a backend, as nearly all do: what it has for one
/// of these comes to the same, at a price.
pub(crate) fn is_for_backends(request: &Request) -> bool {
    // What is here is asked for by other methods, some of which answer without a body.
    request.method() == Method::POST && !is_own(request.uri().path())
}

/// Whether a path is one of those, or begins like one.
fn is_own(path: &str) -> bool {
    match path {
        "/metrics" | "/health" | "/ready" | "/api/tags" | "/api/ps" => true,
        _ => path.starts_with("/llmlb") || path.starts_with("/v1/models"),
    }
}

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    let mut guarded = Router::new()
        .route("/metrics", get(metrics::handler))
        .route("/llmlb/state", get(live::state))
        .route("/v1/models", get(models::list).fallback(proxy::handler))
        .route(
            "/v1/models/{*id}",
            get(models::one).fallback(proxy::handler),
        )
        .route("/api/tags", get(ollama::tags).fallback(proxy::handler))
        .route("/api/ps", get(ollama::ps).fallback(proxy::handler))
        .fallback(proxy::handler);
    if shared.options.api_key.is_some() {
        let require = middleware::from_fn_with_state(Arc::clone(shared), admission::require_key);
        guarded = guarded.layer(require);
    }
    guarded
        .route("/health", get(health::handler))
        .route("/ready", get(health::ready))
        .route("/llmlb", get(live::page))
        .method_not_allowed_fallback(|| async { Refusal::MethodNotAllowed })
        .with_state(Arc::clone(shared))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn what_is_answered_here_is_not_sent_past_it() {
        let goes_past = |method, path| {
            let request = Request::builder().method(method).uri(path);
            is_for_backends(&request.body(Body::empty()).unwrap())
        };
        // All that the router knows.
        for own in [
            "/metrics",
            "/llmlb/state",
            "/v1/models",
            "/v1/models/a/b",
            "/api/tags?x",
            "/api/ps",
            "/health",
            "/ready",
            "/llmlb",
        ] {
            assert!(!goes_past(Method::POST, own), "{own}");
        }
        for other in ["/v1/chat/completions", "/api/chat", "/"] {
            assert!(goes_past(Method::POST, other), "{other}");
            assert!(!goes_past(Method::HEAD, other), "{other}");
        }
    }
}
