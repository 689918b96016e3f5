//! Makes an answer say the model's name that was asked for, while it passes by.
//!
//! Apart from the search in requests, which only looks: here bytes are replaced, and no piece waits
//! for the next.

use axum::http::HeaderMap;
use bytes::Bytes;

use crate::form::Form;

/// What holds the model in the events of OpenAI's responses and of Anthropic's messages.
const HOLDERS: [&[u8]; 2] = [b"response", b"message"];

const MODEL: &[u8] = b"model";

/// The longest key that matters.
const LONGEST: usize = 8;

/// An answer in JSON, or in lines that have some.
pub(crate) struct Called {
    /// The name, as it stands in a string.
    name: Vec<u8>,
    /// Each line is for itself.
    lines: bool,
    at: At,
    /// How deep it is in objects and lists.
    depth: usize,
    /// How deep the object is whose keys matter.
    watched: usize,
    /// What comes next there is a key.
    key_next: bool,
    key: Vec<u8>,
    escaped: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the document.
    Outside,
    Between,
    Key,
    /// In a string of no concern.
    Text,
    /// In the name that another was put in place of.
    Name,
}

impl Called {
    /// An answer with these headers, if it can be read.
    pub(crate) fn new(headers: &HeaderMap, name: &str) -> Option<Self> {
        let lines = Form::of(headers)? != Form::Document;
        let quoted = serde_json::Value::from(name).to_string();
        Some(Self {
            name: quoted.as_bytes()[1..quoted.len() - 1].to_vec(),
            lines,
            at: At::Outside,
            depth: 0,
            watched: 1,
            key_next: false,
            key: Vec::new(),
            escaped: false,
        })
    }

    /// The next piece, as it is to be passed on.
    pub(crate) fn read(&mut self, piece: &Bytes) -> Bytes {
        let mut out = Vec::new();
        // How much of the piece is in there, or left out of it.
        let mut done = 0;
        for (at, byte) in piece.iter().enumerate() {
            let was = self.at;
            self.step(*byte);
            match (was, self.at) {
                (At::Between, At::Name) => {
                    out.extend_from_slice(&piece[done..=at]);
                    out.extend_from_slice(&self.name);
                    done = at + 1;
                }
                // The quotation mark, or the line's end, is passed on.
                (At::Name, now) if now != At::Name => done = at,
                (At::Name, _) => done = at + 1,
                _ => {}
            }
        }
        if out.is_empty() && done == 0 {
            return piece.clone();
        }
        out.extend_from_slice(&piece[done..]);
        Bytes::from(out)
    }

    fn step(&mut self, byte: u8) {
        if self.lines && byte == b'\n' {
            self.at = At::Outside;
            self.escaped = false;
            return;
        }
        match self.at {
            At::Outside if byte == b'{' => {
                (self.at, self.depth, self.watched) = (At::Between, 1, 1);
                self.key_next = true;
                self.key.clear();
            }
            At::Outside => {}
            At::Between => self.structure(byte),
            At::Key | At::Text | At::Name => self.text(byte),
        }
    }

    fn text(&mut self, byte: u8) {
        if self.escaped {
            self.escaped = false;
        } else if byte == b'\\' {
            self.escaped = true;
        } else if byte == b'"' {
            self.at = At::Between;
            return;
        }
        // One that is longer is none that matters.
        if self.at == At::Key && self.key.len() <= LONGEST {
            self.key.push(byte);
        }
    }

    fn structure(&mut self, byte: u8) {
        let is_watched = self.depth == self.watched;
        match byte {
            b'"' if is_watched && self.key_next => {
                self.key.clear();
                self.at = At::Key;
            }
            b'"' if is_watched && self.key == MODEL => self.at = At::Name,
            b'"' => self.at = At::Text,
            b':' if is_watched => self.key_next = false,
            b',' if is_watched => {
                self.key_next = true;
                self.key.clear();
            }
            b'{' => {
                let holds = HOLDERS.contains(&self.key.as_slice());
                self.depth += 1;
                if self.watched == 1 && self.depth == 2 && holds {
                    self.watched = 2;
                    self.key_next = true;
                    self.key.clear();
                }
            }
            b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < self.watched {
                    self.watched = 1;
                    self.key_next = false;
                    self.key.clear();
                }
                if self.depth == 0 {
                    self.at = At::Outside;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};

    use super::*;

    fn called(kind: &'static str, text: &str) -> String {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let in_pieces = |len: usize| {
            let mut called = Called::new(&headers, "a\"b").unwrap();
            let pieces = text.as_bytes().chunks(len);
            let read = pieces.map(|piece| called.read(&Bytes::copy_from_slice(piece)));
            let read: Vec<u8> = read.flatten().collect();
            String::from_utf8(read).unwrap()
        };
        let whole = in_pieces(text.len());
        for len in 1..text.len().min(40) {
            assert_eq!(in_pieces(len), whole, "in pieces of {len}");
        }
        whole
    }

    #[test]
    fn only_the_models_name_is_another() {
        let json = r#"{"id":"model","model" : "x\"y","choices":[{"model":"no","text":"\"model\":\"x\""}],"o":{"model":"no"},"model":null,"n":"model"}"#;
        let expected = json.replace(r#""x\"y""#, r#""a\"b""#);
        assert_eq!(called("application/json; charset=utf-8", json), expected);
        for text in [
            "[]",
            "[{\"model\":\"x\"}]",
            "no",
            "{}",
            "{\"message\":\"model\"}",
        ] {
            let expected = text.replace("\"x\"", "\"a\\\"b\"");
            assert_eq!(called("application/json", text), expected);
        }
    }

    #[test]
    fn each_event_says_it() {
        let stream = concat!(
            ": a comment\n",
            "event: response.created\n",
            "data: {\"type\":\"x\",\"response\":{\"tools\":[{\"model\":\"no\"}],\"model\":\"x\"}}\r\n\r\n",
            "data: {\"message\":{\"model\":\"x\",\"content\":{\"model\":\"no\"}},\"model\":\"x\"}\n\n",
            "data: {\"model\":\"x\",\"choices\":[{\"delta\":{\"content\":\"{\\\"model\\\":\\\"x\\\"\"}}]}\n\n",
            "data: {\"broken\":\"\n\n",
            "data: {\"model\":\"x\"}\n\n",
            "data: [DONE]\n\n",
        );
        let expected = stream.replace("\"model\":\"x\"", "\"model\":\"a\\\"b\"");
        assert_eq!(called("text/event-stream", stream), expected);
        let lines = "{\"model\":\"x\",\"done\":false}\n{\"model\":\"x\",\"done\":true}\n";
        let expected = lines.replace("\"x\"", "\"a\\\"b\"");
        assert_eq!(called("application/x-ndjson", lines), expected);
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        let headers = |kind: &'static str, coding: &'static str| {
            HeaderMap::from_iter([
                (CONTENT_TYPE, HeaderValue::from_static(kind)),
                (CONTENT_ENCODING, HeaderValue::from_static(coding)),
            ])
        };
        assert!(Called::new(&headers("application/json", "gzip"), "a").is_none());
        assert!(Called::new(&headers("audio/wav", "identity"), "a").is_none());
        assert!(Called::new(&headers("application/json", "identity"), "a").is_some());
        assert!(Called::new(&HeaderMap::new(), "a").is_none());
    }
}
