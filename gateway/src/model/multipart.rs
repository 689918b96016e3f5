//! Finds a field of a form (RFC 7578) while it arrives.
//!
//! Apart from a form parser, as those want to have the whole stream, and this one only looks at
//! what is kept anyway, each byte once.

use std::ops::Range;

use memchr::memmem::Finder;

use super::scan::Found;

/// Of a field's value; more is no name.
const LONGEST: usize = 4096;

/// Of a part's headers.
const LONGEST_HEAD: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// After a boundary.
    Boundary,
    Head,
    Data {
        start: usize,
        wanted: bool,
    },
    End,
    Broken,
}

/// The search for one field.
#[derive(Debug)]
pub(crate) struct Multipart {
    /// A line break, two dashes and the boundary.
    delimiter: Finder<'static>,
    field: &'static str,
    found: Found,
    /// Where its value stands.
    spot: Option<Range<usize>>,
    /// Where the first part's boundary begins.
    first: Option<usize>,
    state: State,
    /// How far it has been read.
    at: usize,
}

impl Multipart {
    pub(crate) fn new(boundary: &[u8], field: &'static str) -> Self {
        let delimiter = [b"\r\n--", boundary].concat();
        Self {
            delimiter: Finder::new(&delimiter).into_owned(),
            field,
            found: Found::Nothing,
            spot: None,
            first: None,
            state: State::Preamble,
            at: 0,
        }
    }

    /// The boundary that a `Content-Type` names, if it is a form's.
    pub(crate) fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
        let (kind, rest) = split_at_byte(content_type, b';');
        if !kind
            .trim_ascii()
            .eq_ignore_ascii_case(b"multipart/form-data")
        {
            return None;
        }
        parameter(rest, b"boundary").filter(|boundary| (1..=70).contains(&boundary.len()))
    }

    /// Of what has come; the last of equal fields.
    pub(crate) fn found(&self) -> Found {
        match self.state {
            State::Data { wanted: true, .. } => Found::Unreadable,
            _ => self.found.clone(),
        }
    }

    /// Where the value of the last of equal fields stands.
    pub(crate) fn spot(&self) -> Option<Range<usize>> {
        self.spot.clone()
    }

    /// Where another field could be put before all others, and the boundary with its dashes.
    pub(crate) fn first(&self) -> Option<(usize, &[u8])> {
        Some((self.first?, &self.delimiter.needle()[2..]))
    }

    /// Reads on in the body, of which more has come than the last time.
    pub(crate) fn scan(&mut self, body: &[u8]) {
        while self.step(body) {}
    }

    /// Whether there may be more to read.
    fn step(&mut self, body: &[u8]) -> bool {
        match self.state {
            State::Preamble => self.preamble(body),
            State::Boundary => self.boundary_line(body),
            State::Head => self.head(body),
            State::Data { start, wanted } => self.data(body, start, wanted),
            State::End | State::Broken => false,
        }
    }

    fn preamble(&mut self, body: &[u8]) -> bool {
        // The first has no line break before it.
        let first = &self.delimiter.needle()[2..];
        if self.at == 0 {
            if body.starts_with(first) {
                self.at = first.len();
                self.first = Some(0);
                self.state = State::Boundary;
                return true;
            }
            if first.starts_with(body) {
                return false;
            }
        }
        match self.find(body) {
            Some(found) => {
                self.first = Some(found + 2);
                self.at = found + self.delimiter.needle().len();
                self.state = State::Boundary;
                true
            }
            None => false,
        }
    }

    /// The next delimiter; without one, its beginning may have come.
    fn find(&mut self, body: &[u8]) -> Option<usize> {
        let rest = body.get(self.at..)?;
        let found = self.delimiter.find(rest);
        if found.is_none() {
            let overlap = self.delimiter.needle().len() - 1;
            self.at = self.at.max(body.len().saturating_sub(overlap));
        }
        found.map(|found| self.at + found)
    }

    fn boundary_line(&mut self, body: &[u8]) -> bool {
        let rest = body.get(self.at..).unwrap_or_default();
        let padding = rest
            .iter()
            .take_while(|b| matches!(b, b' ' | b'\t'))
            .count();
        let after = &rest[padding..];
        let Some(first) = after.first() else {
            return false;
        };
        if padding == 0 && *first == b'-' {
            if after.len() < 2 {
                return false;
            }
            self.state = if after[1] == b'-' {
                State::End
            } else {
                State::Broken
            };
            return false;
        }
        if *first == b'\r' && after.len() < 2 {
            return false;
        }
        if !after.starts_with(b"\r\n") {
            self.state = State::Broken;
            return false;
        }
        // Its line break also ends an empty head.
        self.at += padding;
        self.state = State::Head;
        true
    }

    fn head(&mut self, body: &[u8]) -> bool {
        let rest = body.get(self.at..).unwrap_or_default();
        let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else {
            if rest.len() > LONGEST_HEAD {
                self.state = State::Broken;
            }
            return false;
        };
        if end > LONGEST_HEAD {
            self.state = State::Broken;
            return false;
        }
        let wanted = names_field(&rest[..end], self.field);
        // The line break that ends the head may begin the delimiter of an empty part.
        self.at += end + 2;
        self.state = State::Data {
            start: self.at + 2,
            wanted,
        };
        true
    }

    fn data(&mut self, body: &[u8], start: usize, wanted: bool) -> bool {
        let Some(end) = self.find(body) else {
            return false;
        };
        if wanted {
            let value = body.get(start..end).unwrap_or_default();
            self.spot = Some(start..start + value.len());
            self.found = match std::str::from_utf8(value) {
                Ok("") => Found::Nothing,
                Ok(value) if value.len() <= LONGEST => Found::Text(value.to_owned()),
                _ => Found::Unreadable,
            };
        }
        self.at = end + self.delimiter.needle().len();
        self.state = State::Boundary;
        true
    }
}

/// Whether a part is this field, and no file.
fn names_field(head: &[u8], field: &str) -> bool {
    for line in head.split(|b| *b == b'\n') {
        let (name, value) = split_at_byte(line.trim_ascii(), b':');
        if !name
            .trim_ascii()
            .eq_ignore_ascii_case(b"content-disposition")
        {
            continue;
        }
        let (_, parameters) = split_at_byte(value, b';');
        return parameter(parameters, b"name").as_deref() == Some(field.as_bytes())
            && parameter(parameters, b"filename").is_none();
    }
    false
}

fn split_at_byte(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    match memchr::memchr(byte, text) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[]),
    }
}

/// The value of `name=value` or `name="value"`, in a list with semicolons in between.
fn parameter(mut list: &[u8], wanted: &[u8]) -> Option<Vec<u8>> {
    while !list.is_empty() {
        let name_end = list.iter().position(|b| matches!(b, b'=' | b';'));
        let name_end = name_end.unwrap_or(list.len());
        let name = list[..name_end].trim_ascii();
        let mut rest = list.get(name_end..).unwrap_or_default();
        let mut value = Vec::new();
        if let Some(after) = rest.strip_prefix(b"=") {
            (value, rest) = parameter_value(after.trim_ascii_start());
        }
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        (_, list) = split_at_byte(rest, b';');
    }
    None
}

/// A parameter's value, and what follows it.
fn parameter_value(text: &[u8]) -> (Vec<u8>, &[u8]) {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', text).unwrap_or(text.len());
        return (text[..end].trim_ascii().to_vec(), &text[end..]);
    };
    let mut value = Vec::new();
    let mut bytes = quoted.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => break,
            b'\\' => value.extend(bytes.next()),
            byte => value.push(*byte),
        }
    }
    (value, bytes.as_slice())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::fuzzing;

    fn part(head: &str, data: &str) -> String {
        format!("--b\r\nContent-Disposition: {head}\r\n\r\n{data}\r\n")
    }

    fn model(body: &str) -> Found {
        let mut whole = Multipart::new(b"b", "model");
        whole.scan(body.as_bytes());
        let mut grown = Multipart::new(b"b", "model");
        for end in 0..=body.len() {
            grown.scan(&body.as_bytes()[..end]);
        }
        assert_eq!(grown.found(), whole.found(), "{body}");
        whole.found()
    }

    fn text(name: &str) -> Found {
        Found::Text(name.to_owned())
    }

    #[test]
    fn the_field_is_found_before_and_after_a_file() {
        let field = part("form-data; name=\"model\"", "whisper/\u{e4}");
        let file = part(
            "form-data; name=\"file\"; filename=\"a\\\"; name=model\"",
            "\r\n--\r\n--c\r\n\0 name=\"model\"",
        );
        for body in [
            format!("{field}{file}--b--\r\n"),
            format!("{file}{field}--b--"),
            format!("preamble\r\n{file}{field}--b"),
            format!("{file}{}--b", field.replace("--b\r\n", "--b  \r\n")),
        ] {
            assert_eq!(model(&body), text("whisper/\u{e4}"), "{body}");
        }
    }

    #[test]
    fn names_are_written_in_several_ways() {
        for head in [
            "form-data; name=model",
            "form-data;name=\"model\"",
            "form-data; NAME = \"mo\\del\"",
            "form-data; x=\"a;name=y\"; name=\"model\"\r\nContent-Type: text/plain",
        ] {
            assert_eq!(model(&(part(head, "a") + "--b--")), text("a"), "{head}");
        }
        let body = "--b\r\ncontent-type: text/plain\r\nCONTENT-DISPOSITION:form-data; name=model\r\n\r\na\r\n--b--";
        assert_eq!(model(body), text("a"));
        for head in [
            "form-data; name=\"models\"",
            "form-data; filename=\"model\"",
            "form-data; name=\"model\"; filename=\"f\"",
            "form-data",
        ] {
            assert_eq!(
                model(&(part(head, "a") + "--b--")),
                Found::Nothing,
                "{head}"
            );
        }
    }

    #[test]
    fn the_last_counts_and_half_a_value_is_none() {
        let field = |name| part("form-data; name=\"model\"", name);
        assert_eq!(model(&(field("a") + &field("b") + "--b--")), text("b"));
        assert_eq!(
            model("--b\r\nContent-Disposition: form-data; name=model\r\n\r\na"),
            Found::Unreadable
        );
        assert_eq!(model(&(field("") + "--b--")), Found::Nothing);
        assert_eq!(model("--b\r\n\r\n--b--"), Found::Nothing);
        assert_eq!(model("--bb\r\nno"), Found::Nothing);
        assert_eq!(model(""), Found::Nothing);
    }

    #[test]
    fn boundaries_come_from_the_content_type() {
        let boundary = |text: &str| Multipart::boundary(text.as_bytes());
        for (text, found) in [
            ("multipart/form-data; boundary=abc", "abc"),
            ("Multipart/Form-Data;charset=x; Boundary=\"a b\"", "a b"),
        ] {
            assert_eq!(boundary(text).as_deref(), Some(found.as_bytes()), "{text}");
        }
        for text in [
            "",
            "application/json",
            "multipart/form-data",
            "multipart/mixed; boundary=a",
            "multipart/form-data; boundary=\"\"",
        ] {
            assert_eq!(boundary(text), None, "{text}");
        }
        assert_eq!(
            boundary(&format!("multipart/form-data; boundary={}", "x".repeat(71))),
            None
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn of_anything_it_finds_the_same_in_all_pieces(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "--b", "\r\n", "\r\n--b", "--", "\r", "-", " ", "x", "\"", ";", "\\",
                    "Content-Disposition: form-data; name=\"model\"", "\r\n\r\n", "name=model",
                ]),
                0..24,
            ),
            cuts in prop::collection::vec(any::<u8>(), 1..8),
        ) {
            fuzzing::scan_of_multipart(&[cuts.as_slice(), &[0], parts.concat().as_bytes()].concat());
        }
    }
}
