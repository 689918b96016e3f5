//! What a request goes on with: a session that it names, or else the beginning that it shares with
//! the one before it.
//!
//! Apart from the search for a model, which reads each body while it arrives and keeps nothing of it:
//! this looks once, at what is kept, and only where it matters to which backend a request goes.

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use axum::http::HeaderMap;
use memchr::memchr2;

use crate::options::Affinity;

/// Of a text without any structure, ever longer beginnings count, from this length on.
const SHORTEST: usize = 256;

const SESSION: &str = "x-session-id";

/// Ever longer beginnings of it, each as a hash; the last is of all that there is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    beginnings: Vec<u64>,
    /// Of these, each is worth to be known: of the others only the last.
    blocks: bool,
}

impl Conversation {
    /// Of a request for this model, with as much of its body as is kept.
    pub(crate) fn of(
        affinity: Affinity,
        model: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Option<Self> {
        if affinity == Affinity::Off {
            return None;
        }
        let hasher = Beginnings::of(model);
        if let Some(session) = headers.get(SESSION).filter(|name| !name.is_empty()) {
            return Some(hasher.session(session.as_bytes()));
        }
        let found = Found::in_body(body, affinity == Affinity::Prefix, &hasher);
        match found.session() {
            Some(session) => Some(hasher.session(session)),
            None => found
                .conversation
                .filter(|found| !found.beginnings.is_empty()),
        }
    }

    /// From the longest on.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = u64> {
        self.beginnings.iter().rev().copied()
    }

    /// What it is to be found by again.
    pub(super) fn to_be_known(&self) -> &[u64] {
        let first = if self.blocks {
            0
        } else {
            self.beginnings.len().saturating_sub(1)
        };
        self.beginnings.get(first..).unwrap_or_default()
    }

    /// What all of it have in common who begin alike: their first message, and with a system prompt
    /// the one behind that.
    pub(crate) fn anchor(&self) -> u64 {
        let anchor = self.beginnings.get(1).or(self.beginnings.first());
        anchor.copied().unwrap_or_default()
    }
}

/// Makes the hashes. They are the same in each process: balancers side by side, and the one that
/// takes this one's place, agree on where a conversation begins.
struct Beginnings {
    hasher: DefaultHasher,
}

impl Beginnings {
    fn of(model: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        hasher.write(model.unwrap_or_default().as_bytes());
        hasher.write_u8(0xff);
        Self { hasher }
    }

    fn session(&self, name: &[u8]) -> Conversation {
        let mut hasher = self.hasher.clone();
        hasher.write(name);
        Conversation {
            beginnings: vec![hasher.finish()],
            blocks: false,
        }
    }

    /// Each message ends a beginning.
    fn messages(&self, list: &mut Cursor<'_>) -> Conversation {
        let mut hasher = self.hasher.clone();
        let mut beginnings = Vec::new();
        while let Some(message) = list.element() {
            hasher.write(message);
            beginnings.push(hasher.clone().finish());
        }
        Conversation {
            beginnings,
            blocks: false,
        }
    }

    fn text(&self, text: &[u8]) -> Conversation {
        let mut hasher = self.hasher.clone();
        let mut beginnings = Vec::new();
        let (mut written, mut next) = (0, SHORTEST);
        while written < text.len() {
            let end = next.min(text.len());
            hasher.write(&text[written..end]);
            beginnings.push(hasher.clone().finish());
            (written, next) = (end, next * 2);
        }
        Conversation {
            beginnings,
            blocks: true,
        }
    }
}

/// What stands at the top of a body.
#[derive(Default)]
struct Found<'a> {
    cache_key: Option<&'a [u8]>,
    user: Option<&'a [u8]>,
    conversation: Option<Conversation>,
}

impl<'a> Found<'a> {
    /// Of a body that is cut off, or no JSON, what can be read.
    fn in_body(body: &'a [u8], prefix: bool, hasher: &Beginnings) -> Self {
        let mut found = Self::default();
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        let mut cursor = Cursor { rest: body };
        if cursor.expect(b'{').is_some() {
            while found.member(&mut cursor, prefix, hasher).is_some() {}
        }
        found
    }

    fn member(&mut self, cursor: &mut Cursor<'a>, prefix: bool, hasher: &Beginnings) -> Option<()> {
        cursor.blank();
        let key = cursor.string()?;
        cursor.expect(b':')?;
        cursor.blank();
        match (key, *cursor.rest.first()?) {
            (b"prompt_cache_key", b'"') => self.cache_key = Some(cursor.string()?),
            (b"user", b'"') => self.user = Some(cursor.string()?),
            (b"messages" | b"input", b'[') if prefix => {
                let whole = cursor.value()?;
                let mut list = Cursor { rest: &whole[1..] };
                self.conversation = Some(hasher.messages(&mut list));
            }
            (b"prompt" | b"input", b'"') if prefix => {
                self.conversation = Some(hasher.text(cursor.string()?));
            }
            _ => drop(cursor.value()?),
        }
        cursor.expect(b',')
    }

    fn session(&self) -> Option<&'a [u8]> {
        let named = [self.cache_key, self.user];
        named.into_iter().flatten().find(|name| !name.is_empty())
    }
}

/// Reads JSON without building anything, and without any stack for what is nested.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn blank(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        self.blank();
        let (first, rest) = self.rest.split_first()?;
        (*first == wanted).then(|| self.rest = rest)
    }

    /// What stands between its quotes, as it is written.
    fn string(&mut self) -> Option<&'a [u8]> {
        let text = self.rest.strip_prefix(b"\"")?;
        let end = string_end(text)?;
        self.rest = &text[end + 1..];
        Some(&text[..end])
    }

    /// All of the next value. What is no JSON ends somewhere.
    fn value(&mut self) -> Option<&'a [u8]> {
        let all = self.rest;
        let len = value_len(all)?;
        self.rest = &all[len..];
        Some(&all[..len])
    }

    /// The next of a list.
    fn element(&mut self) -> Option<&'a [u8]> {
        self.blank();
        let element = self.value().filter(|element| !element.is_empty())?;
        let _ = self.expect(b',');
        Some(element)
    }
}

/// Where a string ends that has begun.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

fn value_len(bytes: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match *bytes.get(at)? {
            b'"' => at += 1 + string_end(&bytes[at + 1..])?,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return Some(at),
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => return Some(at),
            _ => {
                at += 1;
                continue;
            }
        }
        at += 1;
        if depth == 0 && matches!(bytes[at - 1], b'"' | b'}' | b']') {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn of(affinity: Affinity, body: &str) -> Option<Conversation> {
        Conversation::of(affinity, Some("m"), &HeaderMap::new(), body.as_bytes())
    }

    fn prefix(body: &str) -> Vec<u64> {
        of(Affinity::Prefix, body).map_or_else(Vec::new, |found| found.beginnings)
    }

    #[test]
    fn a_longer_conversation_begins_as_the_shorter_one() {
        let system = r#"{"role":"system","content":"be \"kind\", [and]} short"}"#;
        let first = r#"{"role":"user","content":[{"type":"text","text":"hi"}]}"#;
        let answer = r#"{"role":"assistant","content":"a\\"}"#;
        let short = prefix(&format!(r#"{{"model":"m","messages":[{system},{first}]}}"#));
        let long = prefix(&format!(
            r#" {{"stream" : true, "x":{{"messages":[1]}}, "messages" : [ {system} , {first},{answer}, {first} ],"n":1}}"#
        ));
        assert_eq!((short.len(), long.len()), (2, 4));
        assert_eq!(short, long[..2]);
        let other = prefix(&format!(r#"{{"messages":[{system},{answer}]}}"#));
        assert_eq!(other[0], short[0]);
        assert_ne!(other[1], short[1]);
    }

    #[test]
    fn a_text_has_ever_longer_beginnings() {
        let text = "x".repeat(1000);
        let of = |text: &str| prefix(&format!(r#"{{"prompt":"{text}"}}"#));
        // 256, 512, and all of it.
        let (short, long) = (of(&text), of(&text.repeat(2)));
        assert_eq!((short.len(), long.len()), (3, 4));
        assert_eq!(short[..2], long[..2]);
        assert_eq!(of("brief").len(), 1);
    }

    #[test]
    fn a_session_counts_before_what_is_said() {
        let body = |rest: &str| format!(r#"{{"messages":[{{"content":"hi"}}]{rest}}}"#);
        let keyed = body(r#","user":"u","prompt_cache_key":"k""#);
        let other = r#"{"prompt_cache_key":"k","messages":[{"content":"no"}]}"#;
        for affinity in [Affinity::Prefix, Affinity::Session] {
            assert_eq!(of(affinity, &keyed), of(affinity, other));
            assert_ne!(of(affinity, &keyed), of(affinity, &body(r#","user":"u""#)));
            let mut headers = HeaderMap::new();
            headers.insert(SESSION, HeaderValue::from_static("s"));
            let named =
                |body: &str| Conversation::of(affinity, Some("m"), &headers, body.as_bytes());
            assert_eq!(named(&keyed), named("not even JSON"));
            assert_ne!(named(&keyed), of(affinity, &keyed));
        }
        assert!(of(Affinity::Prefix, &body("")).is_some());
        assert_eq!(of(Affinity::Session, &body("")), None);
        assert_eq!(of(Affinity::Off, &keyed), None);
        // Another model is another conversation.
        let model =
            |name| Conversation::of(Affinity::Prefix, name, &HeaderMap::new(), other.as_bytes());
        assert_ne!(model(Some("a")), model(Some("b")));
    }

    #[test]
    fn what_can_not_be_read_is_no_conversation() {
        for body in [
            "",
            "[]",
            "{",
            "{}",
            "null",
            r#"{"messages"#,
            r#"{"messages":["#,
            r#"{"messages":[]}"#,
            r#"{"messages":{}}"#,
            r#"{"prompt":["a","b"]}"#,
            r#"{"prompt":"cut"#,
            r#"{"a":1"#,
            r#"{"messages":"a"}"#,
            r#"{"prompt":"\"#,
            "{\"a\":]}",
            "{,}",
            "{\"a\" 1}",
        ] {
            assert_eq!(of(Affinity::Prefix, body), None, "{body}");
        }
    }
}
