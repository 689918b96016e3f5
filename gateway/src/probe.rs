//! Looks at a backend: whether it is up, and what it serves.

use std::fmt;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

use crate::backend::{Backend, Connection, Models};
use crate::body::Upload;
use crate::live::Live;

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest list of models that is read, in bytes.
const LIST: usize = 4 << 20;

/// Looks at one backend once, and notes what it found. It is looked at every `interval`.
pub(crate) async fn look(live: &Live, backend: &Backend, interval: Duration) {
    // Some servers do one thing at a time: one that is silent while it works is well.
    let busy_before = backend.in_flight() > 0;
    let found = probe(backend).await;
    let busy = busy_before || backend.in_flight() > 0;
    match found {
        Ok(()) => {}
        Err(Trouble::Silent) if busy || backend.answered_within(PATIENCE + interval) => return,
        Err(trouble) => return backend.failed(trouble.to_string()),
    }
    // First what it serves, so that nothing is sent to it on a guess.
    let news = match get(backend, "/v1/models").await {
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
        _ => false,
    };
    if news {
        live.relist();
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

async fn probe(backend: &Backend) -> Result<(), Trouble> {
    for path in ["/health", "/v1/models"] {
        let (status, _) = get(backend, path).await?;
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

async fn get(backend: &Backend, path: &'static str) -> Result<(StatusCode, Bytes), Trouble> {
    let connection = backend.connect().await;
    let connection = connection.map_err(|e| Trouble::Other(e.to_string()))?;
    match timeout(PATIENCE, ask(backend, connection, path)).await {
        Ok(answer) => answer.map_err(Trouble::Other),
        Err(_) => Err(Trouble::Silent),
    }
}

async fn ask(
    backend: &Backend,
    mut connection: Connection,
    path: &'static str,
) -> Result<(StatusCode, Bytes), String> {
    let mut request = Request::new(Upload::empty());
    *request.uri_mut() = backend.url.uri(&PathAndQuery::from_static(path));
    let headers = request.headers_mut();
    headers.insert(HOST, backend.host_header.clone());
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(USER_AGENT, HeaderValue::from_static("llmlb"));
    if let Some(key) = backend.key() {
        headers.insert(AUTHORIZATION, key);
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
    use std::sync::Arc;

    use tokio::net::TcpListener;

    use super::*;
    use crate::backend::{Care, Place, State, Thresholds};
    use crate::set::BackendSpec;

    fn care() -> Care {
        Care {
            thresholds: Thresholds { rise: 1, fall: 1 },
            connect_timeout: PATIENCE,
            key: None,
        }
    }

    fn spec(url: &str) -> BackendSpec {
        BackendSpec::new(url.parse().unwrap())
    }

    async fn look_at(backend: &Backend) {
        look(&Live::new(care()), backend, Duration::from_secs(60)).await;
    }

    /// A backend that accepts connections and says nothing, on a clock that jumps.
    async fn mute() -> (TcpListener, Backend) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let backend = Backend::new(spec(&url), &care());
        backend.succeeded();
        (listener, backend)
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_says_nothing_is_down_unless_it_is_busy_answering() {
        let (_listener, backend) = mute().await;
        backend.answering();
        look_at(&backend).await;
        assert_eq!(backend.state().0, State::Up);

        // Silent because it computes an answer, which comes in one piece.
        let (listener, backend) = mute().await;
        let place = Place::take(Arc::new(backend));
        look_at(&place).await;
        assert_eq!(place.state().0, State::Up);

        // Then it has gone.
        drop(listener);
        look_at(&place).await;
        assert_eq!(place.state().0, State::Down);

        let (_listener, backend) = mute().await;
        look_at(&backend).await;
        assert_eq!(backend.state().0, State::Down);
    }
}
