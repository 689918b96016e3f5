//! How many requests a server works at, at a time, where it tells: llama.cpp at `/props`, SGLang at
//! `/server_info`. What its owner says comes first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::backend::Backend;
use crate::probe::{self, PROBE};

/// Where it is told, and by what name.
const TOLD: [(&str, &str); 2] = [
    ("/props", "total_slots"),
    ("/server_info", "max_running_requests"),
];

/// How long an answer is waited for: it is good to have, and no more.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long one holds: another server may have come in its place unseen.
const HOLDS: Duration = Duration::from_secs(30);

/// What one server has told.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    asked: Mutex<Option<Instant>>,
    /// Nothing as 0.
    told: AtomicUsize,
}

impl Slots {
    pub(crate) fn told(&self) -> Option<usize> {
        Some(self.told.load(Ordering::Relaxed)).filter(|slots| *slots > 0)
    }

    /// It failed: another server may come in its place.
    pub(crate) fn forget(&self) {
        *self.asked() = None;
    }

    /// Whether to ask now, which counts as asked.
    fn are_due(&self) -> bool {
        let mut asked = self.asked();
        let due = asked.is_none_or(|asked| asked.elapsed() >= HOLDS);
        if due {
            *asked = Some(Instant::now());
        }
        due
    }

    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a server that has come, and now and then again. One that does not answer, or can't at the
/// moment, is taken at the word that it gave before.
pub(crate) async fn look(backend: &Backend) {
    if !backend.slots.are_due() {
        return;
    }
    if let Some(told) = ask(backend).await {
        backend.slots.told.store(told, Ordering::Relaxed);
        backend.limit();
    }
}

/// What a server tells, 0 if it has nothing to tell.
async fn ask(backend: &Backend) -> Option<usize> {
    let mut knows_all = true;
    for (path, name) in TOLD {
        match timeout(PATIENCE, probe::get(backend, path)).await {
            Ok(Ok((StatusCode::OK, body))) => {
                if let Some(told) = read(&body, name) {
                    return Some(told);
                }
            }
            Ok(Ok((status, _))) => knows_all &= probe::is_no_path(status),
            Ok(Err(_)) | Err(_) => return None,
        }
    }
    knows_all.then_some(0)
}

fn read(body: &[u8], name: &str) -> Option<usize> {
    let all: Value = serde_json::from_slice(body).ok()?;
    let slots = usize::try_from(all.get(name)?.as_u64()?).ok()?;
    (slots > 0).then_some(slots)
}

/// Whether another gateway asks this: its backends are many, and any one's answer would be wrong.
pub(crate) fn is_asked(path: &str, headers: &HeaderMap) -> bool {
    TOLD.iter().any(|(told, _)| *told == path)
        && headers.get(USER_AGENT).is_some_and(|agent| agent == PROBE)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderValue;
    use axum::routing::get;
    use tokio::net::TcpListener;

    use super::*;
    use crate::backend::{Care, Slot};
    use crate::options::Options;
    use crate::set::BackendSpec;

    type Said = (StatusCode, &'static str);

    /// A server that says what is in there when it is asked for its slots.
    async fn saying(said: &'static Mutex<Said>) -> Backend {
        let props = get(move || async move { *said.lock().unwrap() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/props", props);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let care = Care::of(&Options::new(), 1, HeaderValue::from_static("1.1 test"));
        let spec = BackendSpec::new(url.parse().unwrap());
        Backend::new(spec, &care, Slot::default())
    }

    #[tokio::test]
    async fn what_was_told_holds_until_it_is_taken_back() {
        static SAID: Mutex<Said> = Mutex::new((StatusCode::OK, ""));
        const TWO: &str = r#"{"total_slots":2}"#;
        let backend = saying(&SAID).await;
        for (status, body, told) in [
            (404, "", None),
            (503, TWO, None),
            (200, TWO, Some(2)),
            (503, "", Some(2)),
            (429, "", Some(2)),
            (500, "", Some(2)),
            (401, "", Some(2)),
            (404, "", None),
            (200, TWO, Some(2)),
            (501, "", None),
            (200, TWO, Some(2)),
            (405, "", None),
            (200, TWO, Some(2)),
            (200, "{}", None),
        ] {
            *SAID.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body);
            backend.slots.forget();
            look(&backend).await;
            assert_eq!(backend.slots.told(), told, "{status} {body}");
        }
    }

    #[test]
    fn only_a_number_of_slots_is_one() {
        assert_eq!(
            read(br#"{"total_slots":4,"model":"m"}"#, "total_slots"),
            Some(4)
        );
        for body in [
            "",
            "[]",
            "{}",
            r#"{"total_slots":0}"#,
            r#"{"total_slots":-1}"#,
            r#"{"total_slots":"4"}"#,
            r#"{"total_slots":null}"#,
        ] {
            assert_eq!(read(body.as_bytes(), "total_slots"), None, "{body}");
        }
    }
}
