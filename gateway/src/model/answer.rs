//! What an answer tells of things that the backend has made: their IDs.
//!
//! Apart from the answer's way to the client, which waits for nothing that is found here.

use axum::http::{HeaderMap, StatusCode};
use bytes::BytesMut;
use memchr::memmem;
use serde::Deserialize;

use super::scan::{Found, Scan};
use crate::form::Form;

/// A batch tells in these where its results are.
const IDS: &[&str] = &["id", "output_file_id", "error_file_id"];

/// How much of a stream is looked at: its first event, which repeats the request.
const FIRST_EVENT: usize = 256 << 10;

/// An answer that is being read.
pub(crate) struct Answer(Reading);

#[expect(clippy::large_enum_variant, reason = "most are the largest one")]
enum Reading {
    Json { scan: Scan, told: [bool; IDS.len()] },
    Events(BytesMut),
    Done,
}

impl Answer {
    /// One that may tell of something made.
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        if !status.is_success() {
            return None;
        }
        match Form::of(headers)? {
            Form::Document => {
                let scan = Scan::new(IDS);
                let told = [false; IDS.len()];
                Some(Self(Reading::Json { scan, told }))
            }
            Form::Events => Some(Self(Reading::Events(BytesMut::new()))),
            Form::Lines => None,
        }
    }

    /// Reads the next piece. Returns the IDs that are new in it.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Vec<String> {
        match &mut self.0 {
            Reading::Json { scan, told } => {
                scan.push(piece);
                let found = scan.found().into_iter().zip(told);
                let new = found.filter_map(|(found, told)| match found {
                    Found::Text(id) if !std::mem::replace(told, true) => Some(id),
                    _ => None,
                });
                new.collect()
            }
            Reading::Events(start) => {
                // Its end may have begun before.
                let from = start.len().saturating_sub(3);
                start.extend_from_slice(piece);
                let end = first_event_end(&start[from..]).map(|end| from + end);
                if end.is_none() && start.len() < FIRST_EVENT {
                    return Vec::new();
                }
                let id = end.and_then(|end| id_in_event(&start[..end]));
                self.0 = Reading::Done;
                id.into_iter().collect()
            }
            Reading::Done => Vec::new(),
        }
    }
}

fn first_event_end(stream: &[u8]) -> Option<usize> {
    let lf = memmem::find(stream, b"\n\n");
    let crlf = memmem::find(stream, b"\r\n\r\n");
    match (lf, crlf) {
        (Some(lf), Some(crlf)) => Some(lf.min(crlf)),
        (one, other) => one.or(other),
    }
}

/// The first event of a response tells what it is.
fn id_in_event(event: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Event {
        response: Made,
    }
    #[derive(Deserialize)]
    struct Made {
        id: String,
    }
    let data = event
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"data:"))?;
    let event: Event = serde_json::from_slice(data).ok()?;
    Some(event.response.id)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::CONTENT_TYPE;

    use super::*;

    fn ids(kind: &'static str, body: &str) -> Vec<String> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let Some(mut answer) = Answer::new(StatusCode::OK, &headers) else {
            return Vec::new();
        };
        let pieces = body.as_bytes().chunks(3);
        pieces.flat_map(|piece| answer.read(piece)).collect()
    }

    #[test]
    fn ids_are_found_where_each_kind_of_answer_has_them() {
        let json = r#"{"id":"b-1","output":{"id":"no"},"output_file_id":"f-1"}"#;
        assert_eq!(ids("application/json; charset=utf-8", json), ["b-1", "f-1"]);
        for end in ["\n", "\r\n"] {
            let event = format!(
                "event: response.created{end}data: {{\"type\":\"x\",\"response\":{{\"id\":\"r-1\"}}}}{end}{end}"
            );
            assert_eq!(ids("text/event-stream", &(event.clone() + &event)), ["r-1"]);
        }
        assert!(ids("text/plain", json).is_empty());
        assert!(
            ids(
                "application/json",
                r#"{"object":"list","data":[{"id":"x"}]}"#
            )
            .is_empty()
        );
        let long = "x".repeat(FIRST_EVENT + 1);
        assert!(ids("text/event-stream", &long).is_empty());
    }
}
