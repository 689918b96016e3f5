//! Looks at a backend: whether it is up, and what it serves.

use std::pin::pin;
use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, USER_AGENT, VIA};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use tokio::time::{Instant, timeout_at};

use crate::backend::{Backend, Care, Connection, Models, Trouble};
use crate::body::Upload;
use crate::live::Live;
use crate::slots;

/// Who asks, to the servers asked.
pub(crate) const PROBE: &str = "llmlb";

/// How long a backend may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest list of models that is read, in bytes.
const LIST: usize = 4 << 20;

/// How long one may take that meanwhile sends what others have asked for.
const LONGEST: Duration = Duration::from_secs(30);

/// Looks at one backend once, and notes what it found.
pub(crate) async fn look(live: &Live, backend: &Backend) {
    let work = backend.work();
    match probe(backend).await {
        Ok(()) => backend.answered(work),
        // Some servers do one thing at a time: one that is silent while it works is well.
        Err(Silence::Working) => return,
        Err(Silence::Total) if backend.may_be_busy(work) => return,
        Err(Silence::Total) => return backend.failed(silent(&backend.care)),
        Err(Silence::None(trouble)) => return backend.failed(trouble),
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
    slots::look(backend).await;
}

/// Why there is no answer.
pub(crate) enum Silence {
    /// It took the connection, and then nothing came.
    Total,
    /// The same, but answers to requests came.
    Working,
    /// There is none: it said what is wrong, or does not even take a connection.
    None(Trouble),
}

/// Counts as all the looks that could have been taken meanwhile, and two of it are enough.
fn silent(care: &Care) -> Trouble {
    let looks = PATIENCE.as_secs_f64() / care.health_interval.as_secs_f64().max(0.001);
    let weight = 1 + looks.min(f64::from(u32::MAX / 2)) as u32;
    Trouble {
        weight: weight.max(care.thresholds.fall.div_ceil(2)),
        ..Trouble::new(format!("no answer within {PATIENCE:?}"))
    }
}

/// A server that loads its model says so by this.
fn answered(path: &str, status: StatusCode) -> Trouble {
    Trouble {
        starting: status == StatusCode::SERVICE_UNAVAILABLE,
        ..Trouble::new(format!("{path} answered {status}"))
    }
}

async fn probe(backend: &Backend) -> Result<(), Silence> {
    let resolved = backend.resolve().await;
    resolved.map_err(|e| Silence::None(Trouble::connecting(&e)))?;
    for path in ["/health", "/v1/models"] {
        let (status, _) = get(backend, path).await?;
        match status {
            // That it asks for a key shows that it is there.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Ok(()),
            status if path == "/health" && is_no_path(status) => {}
            status if status.as_u16() < 400 => return Ok(()),
            status => return Err(Silence::None(answered(path, status))),
        }
    }
    Ok(())
}

/// Whether nothing is to be had there, now or later.
pub(crate) fn is_no_path(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
    )
}

/// Asks it for something, on a connection of its own.
pub(crate) async fn get(
    backend: &Backend,
    path: &'static str,
) -> Result<(StatusCode, Bytes), Silence> {
    let connection = backend.connect().await;
    let connection = connection.map_err(|e| Silence::None(Trouble::connecting(&e)))?;
    let begun = Instant::now();
    let mut heard = begun;
    let mut asking = pin!(ask(backend, connection, path));
    while heard - begun < LONGEST {
        if let Ok(answer) = timeout_at(heard + PATIENCE, asking.as_mut()).await {
            return answer.map_err(|problem| Silence::None(Trouble::new(problem)));
        }
        match backend.last_answer() {
            last if last > heard => heard = last,
            _ => return Err(Silence::Total),
        }
    }
    Err(Silence::Working)
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
    headers.insert(USER_AGENT, HeaderValue::from_static(PROBE));
    headers.insert(VIA, backend.care.via.clone());
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

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::backend::{Place, Slot, State};
    use crate::options::Options;
    use crate::set::BackendSpec;

    const BUSY: Duration = Duration::from_secs(100);

    fn care() -> Care {
        let options = Options::new().busy_timeout(BUSY);
        Care::of(&options, 1, HeaderValue::from_static("1.1 test"))
    }

    async fn look_at(backend: &Backend) {
        look(&Live::new(care(), 0), backend).await;
    }

    /// A backend that accepts connections and says nothing, on a clock that jumps.
    async fn mute() -> (TcpListener, Arc<Backend>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let spec = BackendSpec::new(url.parse().unwrap());
        let backend = Backend::new(spec, &care(), Slot::default());
        backend.succeeded();
        (listener, Arc::new(backend))
    }

    /// Its probes are answered while it has a request.
    fn answers_while_busy(backend: &Arc<Backend>) -> Place {
        let place = Place::take(Arc::clone(backend));
        backend.answered(backend.work());
        place
    }

    /// How long it is until the next look.
    async fn rest(backend: &Backend) -> Duration {
        let begun = Instant::now();
        backend.rest(begun).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn whether_it_answers_while_it_works_is_found_out_soon_but_not_for_ever() {
        let interval = Options::new().health_interval;
        let (_listener, backend) = mute().await;
        assert!(rest(&backend).await >= interval);
        let _place = answers_while_busy(&backend);
        assert!(rest(&backend).await >= interval);
        let (_listener, serial) = mute().await;
        let _place = Place::take(Arc::clone(&serial));
        let mut soon = 0;
        while rest(&serial).await < interval {
            soon += 1;
        }
        assert_eq!(soon, 8);
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_says_nothing_is_down_at_once() {
        let (_listener, backend) = mute().await;
        let begun = Instant::now();
        look_at(&backend).await;
        assert_eq!(backend.state().0, State::Down);
        assert!(begun.elapsed() < PATIENCE * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_may_do_one_thing_at_a_time_has_patience_with_an_end() {
        let (listener, backend) = mute().await;
        let place = Place::take(backend);
        let begun = Instant::now();
        while place.state().0 == State::Up {
            look_at(&place).await;
        }
        assert!(begun.elapsed() >= BUSY, "{:?}", begun.elapsed());
        assert!(begun.elapsed() < BUSY + PATIENCE * 2);

        // One that takes no connections is not working.
        let (gone, backend) = mute().await;
        let place = Place::take(backend);
        drop((listener, gone));
        for _ in 0..place.care.thresholds.fall {
            look_at(&place).await;
        }
        assert_eq!(place.state().0, State::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answered_while_busy_is_hung_when_it_does_not() {
        let (_listener, backend) = mute().await;
        let place = answers_while_busy(&backend);
        look_at(&place).await;
        assert_eq!(place.state().0, State::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_sends_to_others_is_a_sign_of_life() {
        let (_listener, backend) = mute().await;
        let place = answers_while_busy(&backend);
        let streaming = Arc::clone(&backend);
        let stream = tokio::spawn(async move {
            loop {
                streaming.answering(Instant::now());
                sleep(Duration::from_secs(1)).await;
            }
        });
        advance(Duration::from_secs(1)).await;
        for _ in 0..3 {
            look_at(&place).await;
        }
        assert_eq!(place.state().0, State::Up);
        stream.abort();
        look_at(&place).await;
        assert_eq!(place.state().0, State::Down);
    }

    #[tokio::test]
    async fn a_server_that_gets_ready_is_asked_again_soon() {
        let (listener, backend) = mute().await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let loading = b"HTTP/1.1 503 Loading\r\nContent-Length: 0\r\n\r\n";
                let _ = stream.write_all(loading).await;
            }
        });
        for _ in 0..backend.care.thresholds.fall {
            look_at(&backend).await;
        }
        let (state, problem) = backend.state();
        assert_eq!(state, State::Down);
        assert!(problem.unwrap().contains("503"));
        let before = Instant::now();
        backend.rest(before).await;
        assert!(before.elapsed() < backend.care.health_interval);
    }
}
