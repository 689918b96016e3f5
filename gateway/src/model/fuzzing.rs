//! What must hold for every input. Apart from the tests, as a fuzzer runs the same.

use super::multipart::Multipart;
use super::scan::{Found, KEYS, Scan};

const WANTED: &[&str] = &["model", "name", "previous_response_id"];

/// Lengths of pieces up to a zero, then the input they are cut from.
fn cuts(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|b| *b == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (&[], data),
    }
}

/// The pieces, one after the other, with lengths that repeat.
fn pieces<'a>(lengths: &'a [u8], mut body: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut lengths = lengths.iter().cycle();
    std::iter::from_fn(move || {
        let len = lengths.next().map_or(body.len(), |len| usize::from(*len));
        let (piece, rest) = body.split_at(len.min(body.len()));
        body = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// In whatever pieces JSON comes, the same is found; of what a parser takes, what it finds.
pub fn scan_of_json(data: &[u8]) {
    let (lengths, body) = cuts(data);
    let mut whole = Scan::new(WANTED);
    whole.push(body);
    let mut cut = Scan::new(WANTED);
    for piece in pieces(lengths, body) {
        cut.push(piece);
    }
    assert_eq!(cut.kind(), whole.kind());
    let found: [Found; KEYS] = whole.found();
    assert_eq!(cut.found(), found);
    let Ok(serde_json::Value::Object(object)) = serde_json::from_slice(body) else {
        return;
    };
    for (key, found) in WANTED.iter().zip(found) {
        if let Found::Text(text) = found {
            assert_eq!(object.get(*key).and_then(|v| v.as_str()), Some(&*text));
        }
    }
}

/// However much of a form has come when it is looked at, the same is found in the end.
pub fn scan_of_multipart(data: &[u8]) {
    let (lengths, body) = cuts(data);
    let mut whole = Multipart::new(b"b", "model");
    whole.scan(body);
    let mut grown = Multipart::new(b"b", "model");
    let mut end = 0;
    for piece in pieces(lengths, body) {
        end += piece.len();
        grown.scan(&body[..end]);
    }
    assert_eq!(grown.found(), whole.found());
}
