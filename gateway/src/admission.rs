//! Which requests are let in at all, before anything is read of what they bring.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, UPGRADE};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Body as _;

use crate::error::Refusal;
use crate::protocol::has_dot_segments;
use crate::shared::Shared;

/// Of what can be sent at all.
const LONGEST_PATH: usize = 65_534;

/// Lets only those through who show the key, where one is asked for.
pub(crate) async fn require_key(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match check_key(&shared, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether a request shows the key, if there is one to be shown. Counts those that do not.
pub(crate) fn check_key(shared: &Shared, request: &Request) -> Result<(), Refusal> {
    if shows_key(shared, request.headers()) || is_preflight(request) {
        return Ok(());
    }
    shared.metrics.refused(&Refusal::Unauthorized);
    Err(Refusal::Unauthorized)
}

/// Whether the key is shown, or none is asked for.
pub(crate) fn shows_key(shared: &Shared, headers: &HeaderMap) -> bool {
    let key = shared.options.api_key.as_ref();
    key.is_none_or(|key| key.is_shown_by(headers))
}

/// Whether a request was let in as a preflight alone, by somebody who shows no key.
pub(crate) fn is_strangers(shared: &Shared, request: &Request) -> bool {
    request.method() == Method::OPTIONS && !shows_key(shared, request.headers())
}

/// Browsers ask beforehand whether they may ask, without a key and without a body.
pub(crate) fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    request.method() == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
        && !headers.contains_key(UPGRADE)
        && request.body().is_end_stream()
}

/// Whether a request may be passed on; and if so, its path.
pub(crate) fn admit(shared: &Shared, request: &Request) -> Result<PathAndQuery, Refusal> {
    let path = match request.uri().path_and_query() {
        Some(path) if request.method() != Method::CONNECT && path.as_str().starts_with('/') => path,
        _ => return Err(Refusal::Unsupported("anything but a path to ask for")),
    };
    if !shared.life.is_serving() {
        return Err(Refusal::Draining);
    }
    let roster = shared.live.roster();
    if roster.members().is_empty() {
        return Err(if is_openai(path) || path.path().starts_with("/api/") {
            Refusal::NoBackends(shared.options.no_backends_hint.clone())
        } else {
            Refusal::NoSuchPath(path.path().to_owned())
        });
    }
    within(path, roster.longest_base())?;
    // By the time its body is here, there might be one; to wait for that is not worth it.
    if shared.slots.available_permits() == 0 {
        return Err(Refusal::Overloaded);
    }
    Ok(path.clone())
}

/// A base is all that a backend offers of its server.
fn within(path: &PathAndQuery, longest_base: usize) -> Result<(), Refusal> {
    if longest_base == 0 {
        return Ok(());
    }
    if path.as_str().len() + longest_base > LONGEST_PATH {
        return Err(Refusal::PathTooLong);
    }
    if has_dot_segments(path.path()) {
        return Err(Refusal::Malformed("its path has . or .. in it"));
    }
    Ok(())
}

/// Whether a path is of OpenAI's API, where a model that nobody lists does not exist.
pub(crate) fn is_openai(path: &PathAndQuery) -> bool {
    path.path().starts_with("/v1/")
}
