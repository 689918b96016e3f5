//! Looks after the backends: whether they are up, and what they serve.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::Gateway;
use crate::backend::{Backend, Models};
use crate::body::Upload;
use crate::connection::Connection;

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for the first look at all of them.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// The longest list of models that is read, in bytes.
const LIST: usize = 4 << 20;

/// Begins to watch, and returns when every backend has been looked at or time is up.
pub(crate) async fn watch(gateway: &Arc<Gateway>) {
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
    // Some servers do one thing at a time: one that is silent while it works is well.
    let busy_before = backend.in_flight() > 0;
    let found = probe(backend, key).await;
    let busy = busy_before || backend.in_flight() > 0;
    match found {
        Ok(()) => {}
        Err(Trouble::Silent) if busy || backend.answered_within(PATIENCE + interval) => return,
        Err(trouble) => return backend.failed(trouble.to_string()),
    }
    // First what it serves, so that nothing is sent to it on a guess.
    match get(backend, "/v1/models", key).await {
        Ok((StatusCode::OK, body)) => backend.set_models(Models::parse(&body)),
        // It keeps that to itself, or does not know.
        Ok((
            StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED,
            _,
        )) => backend.set_models(None),
        // What was known is the best guess.
        _ => {}
    }
    backend.succeeded();
}

/// What is wrong with a backend.
enum Trouble {
    /// It took the connection, and then time ran out.
    Silent,
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => write!(f, "no answer within {PATIENCE:?}"),
            Self::Other(problem) => f.write_str(problem),
        }
    }
}

async fn probe(backend: &Backend, key: Option<&HeaderValue>) -> Result<(), Trouble> {
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
            status => return Err(Trouble::Other(format!("{path} answered {status}"))),
        }
    }
    Ok(())
}

async fn get(
    backend: &Backend,
    path: &'static str,
    key: Option<&HeaderValue>,
) -> Result<(StatusCode, Bytes), Trouble> {
    let connection = backend.connect().await;
    let connection = connection.map_err(|e| Trouble::Other(e.to_string()))?;
    match timeout(PATIENCE, ask(backend, connection, path, key)).await {
        Ok(answer) => answer.map_err(Trouble::Other),
        Err(_) => Err(Trouble::Silent),
    }
}

async fn ask(
    backend: &Backend,
    mut connection: Connection,
    path: &'static str,
    key: Option<&HeaderValue>,
) -> Result<(StatusCode, Bytes), String> {
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
    use crate::backend::{Backends, State, Thresholds};

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

        // Silent because it computes an answer, which comes in one piece.
        let (listener, backend) = mute().await;
        let backends = Backends::new(vec![Arc::new(backend)]);
        let place = backends.choose(None, true, &[]).ok().unwrap();
        look(&place, None, Duration::from_secs(60)).await;
        assert_eq!(place.state().0, State::Up);

        // Then it has gone.
        drop(listener);
        look(&place, None, Duration::from_secs(60)).await;
        assert_eq!(place.state().0, State::Down);

        let (_listener, backend) = mute().await;
        look(&backend, None, Duration::from_secs(60)).await;
        assert_eq!(backend.state().0, State::Down);
    }
}
