//! Which requests are let in at all, before anything is read of what they bring.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::http::uri::PathAndQuery;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::Refusal;
use crate::shared::Shared;

/// Lets only those through who show the key, where one is asked for.
pub(crate) async fn require_key(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match &shared.options.api_key {
        Some(key) if !key.is_shown_by(request.headers()) => {
            shared.metrics.refused(&Refusal::Unauthorized);
            Refusal::Unauthorized.into_response()
        }
        _ => next.run(request).await,
    }
}

/// Whether a request may be passed on, being one of this `number`; and if so, its path.
pub(crate) fn admit(
    shared: &Shared,
    request: &Request,
    number: usize,
) -> Result<PathAndQuery, Refusal> {
    let path = match request.uri().path_and_query() {
        Some(path) if request.method() != Method::CONNECT && path.as_str().starts_with('/') => path,
        _ => return Err(Refusal::Unsupported("anything but a path to ask for")),
    };
    if !shared.life.is_serving() {
        return Err(Refusal::Draining);
    }
    if shared.live.roster().members().is_empty() {
        return Err(if is_openai(path) || path.path().starts_with("/api/") {
            Refusal::NoBackends(shared.options.no_backends_hint.clone())
        } else {
            Refusal::NoSuchPath(path.path().to_owned())
        });
    }
    if number > shared.limits.requests {
        return Err(Refusal::Overloaded);
    }
    Ok(path.clone())
}

/// Whether a path is of OpenAI's API, where a model that nobody lists does not exist.
pub(crate) fn is_openai(path: &PathAndQuery) -> bool {
    path.path().starts_with("/v1/")
}
