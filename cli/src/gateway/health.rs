//! Looks after the backends: whether they are up, and what they serve.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::Gateway;
use super::backend::{Backend, Models};
use super::body::Upload;

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for the first look at all of them.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The longest list of models that is read, in bytes.
const LIST: usize = 4 << 20;

/// Begins to watch, and returns when every backend has been looked at or time is up.
pub(super) async fn watch(gateway: &Arc<Gateway>) {
    let (looked, mut all_looked) = mpsc::channel::<()>(1);
    for backend in gateway.backends.all() {
        let backend = Arc::clone(backend);
        let mut looked = Some(looked.clone());
        let interval = gateway.options.health_interval;
        let key = gateway.backend_key.clone();
        tokio::spawn(async move {
            loop {
                look(&backend, key.as_ref(), interval).await;
                drop(looked.take());
                backend.pool.prune();
                sleep(interval).await;
            }
        });
    }
    drop(looked);
    // Ends when no sender is left. A backend that answers late comes in when it does.
    let _ = timeout(FIRST_LOOK, all_looked.recv()).await;
}

async fn look(backend: &Backend, key: Option<&HeaderValue>, interval: Duration) {
    match timeout(PATIENCE, probe(backend, key)).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => return backend.failed(problem),
        // Some servers do one thing at a time: one that generates is well.
        Err(_) if backend.answered_within(PATIENCE + interval) => return,
        Err(_) => return backend.failed(format!("no answer within {PATIENCE:?}")),
    }
    // First what it serves, so that nothing is sent to it on a guess.
    match timeout(PATIENCE, get(backend, "/v1/models", key)).await {
        Ok(Ok((StatusCode::OK, body))) => backend.set_models(Models::parse(&body)),
        // It keeps that to itself, or does not know.
        Ok(Ok((status, _))) if status.is_client_error() => backend.set_models(None),
        // What was known is the best guess.
        _ => {}
    }
    backend.succeeded();
}

async fn probe(backend: &Backend, key: Option<&HeaderValue>) -> Result<(), String> {
    for path in ["/health", "/v1/models"] {
        let (status, _) = get(backend, path, key).await?;
        match status {
            // That it asks for a key shows that it is there.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(()),
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED
                if path == "/health" => {}
            status if status.as_u16() < 400 => return Ok(()),
            status => return Err(format!("{path} answered {status}")),
        }
    }
    Ok(())
}

async fn get(
    backend: &Backend,
    path: &'static str,
    key: Option<&HeaderValue>,
) -> Result<(StatusCode, Bytes), String> {
    let mut connection = backend.connect().await.map_err(|e| e.to_string())?;
    let mut request = Request::new(Upload::empty());
    *request.uri_mut() = backend.uri(&PathAndQuery::from_static(path));
    let headers = request.headers_mut();
    headers.insert(HOST, backend.host_header.clone());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(USER_AGENT, HeaderValue::from_static("llmlb"));
    if let Some(key) = key {
        headers.insert(AUTHORIZATION, key.clone());
    }
    let response = connection.send(request).await;
    let response = response.map_err(|e| format!("{path}: {}", e.error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), LIST).collect().await;
    let body = body.map_err(|e| format!("{path}: {e}"))?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::gateway::backend::{State, Thresholds};

    /// A backend that accepts connections and says nothing, on a clock that jumps.
    async fn mute() -> (TcpListener, Backend) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let thresholds = Thresholds { rise: 1, fall: 1 };
        let backend = Backend::new(&url.parse().unwrap(), thresholds, PATIENCE);
        backend.succeeded();
        (listener, backend)
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_says_nothing_is_down_unless_it_is_busy_answering() {
        let (_listener, backend) = mute().await;
        backend.answering();
        look(&backend, None, Duration::from_secs(60)).await;
        assert_eq!(backend.state().0, State::Up);

        let (_listener, backend) = mute().await;
        look(&backend, None, Duration::from_secs(60)).await;
        assert_eq!(backend.state().0, State::Down);
    }
}
