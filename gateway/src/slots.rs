//! How many requests a server works at, at a time, where it tells: llama.cpp at `/props`, SGLang at
//! `/server_info`. What its owner says comes first.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::http::header::USER_AGENT;
use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::backend::Backend;
use crate::probe::{self, PROBE};

/// Where it is told, and by what name.
const TOLD: [(&str, &str); 2] = [
    ("/props", "total_slots"),
    ("/server_info", "max_running_requests"),
];

/// What one server has told.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    asked: AtomicBool,
    /// Nothing as 0.
    told: AtomicUsize,
}

impl Slots {
    pub(crate) fn told(&self) -> Option<usize> {
        Some(self.told.load(Ordering::Relaxed)).filter(|slots| *slots > 0)
    }

    /// Another server may come in its place.
    pub(crate) fn forget(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }
}

/// Asks a server that has not been asked since it came.
pub(crate) async fn look(backend: &Backend) {
    if backend.slots.asked.load(Ordering::Relaxed) {
        return;
    }
    let mut told = None;
    for (path, name) in TOLD {
        match probe::get(backend, path).await {
            Ok((StatusCode::OK, body)) => told = read(&body, name),
            Ok(_) => {}
            // Asked again at the next look.
            Err(_) => return,
        }
        if told.is_some() {
            break;
        }
    }
    backend
        .slots
        .told
        .store(told.unwrap_or(0), Ordering::Relaxed);
    backend.slots.asked.store(true, Ordering::Relaxed);
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
