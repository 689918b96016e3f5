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

/// Asks a server that has come, and now and then again. One that does not answer is taken at the word
/// that it gave before.
pub(crate) async fn look(backend: &Backend) {
    if !backend.slots.are_due() {
        return;
    }
    let mut told = None;
    for (path, name) in TOLD {
        match timeout(PATIENCE, probe::get(backend, path)).await {
            Ok(Ok((StatusCode::OK, body))) => told = read(&body, name),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
        if told.is_some() {
            break;
        }
    }
    backend
        .slots
        .told
        .store(told.unwrap_or(0), Ordering::Relaxed);
    backend.limit();
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
    use super::*;

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
