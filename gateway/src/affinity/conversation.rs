//! What a request goes on with: a session that it names, or else the beginning that it shares with
//! the one before it.
//!
//! Apart from the search for a model, which reads each body while it arrives and keeps nothing of it:
//! this looks once, at what is kept, and only where it matters to which backend a request goes.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;

use axum::http::HeaderMap;
use memchr::memchr2;

use crate::options::Affinity;

/// Of a text without any structure, ever longer beginnings count, from this length on.
const SHORTEST: usize = 256;

const SESSION: &str = "x-session-id";

/// Of what is cut off, as it is too big to be kept, beginnings count up to this length: all that is
/// kept is longer, by how much is chance.
const LONGEST: usize = 2 << 20;

/// Where the first question itself is cut off, what is as long as this tells it from others.
const TELLING: usize = 64 << 10;

/// How many beginnings are looked for, from the longest on: a turn adds few messages.
const LOOKS: usize = 16;

/// Ever longer beginnings of it, each as a hash.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Conversation {
    /// The longest ones; the last is of all that there is.
    beginnings: VecDeque<u64>,
    /// Of these, each is worth to be known: of the others only the last.
    blocks: bool,
    /// The last is of a whole request, which others repeat, but do not go on with.
    whole: bool,
    anchor: u64,
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
            None => found.conversation,
        }
    }

    /// What it goes on with, from the longest on.
    pub(super) fn beginnings(&self) -> impl Iterator<Item = u64> {
        let longest = self.beginnings.iter().rev().skip(self.whole.into());
        longest.take(LOOKS).copied()
    }

    /// What it is to be found by again.
    pub(super) fn to_be_known(&self) -> impl Iterator<Item = u64> {
        let first = if self.blocks {
            0
        } else {
            self.beginnings.len().saturating_sub(1)
        };
        self.beginnings.iter().skip(first).copied()
    }

    /// What all of its turns have in common, and other conversations have not: all up to the first
    /// message of the user's. Of a text, its shortest beginning.
    pub(crate) fn anchor(&self) -> u64 {
        self.anchor
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
        let name = hasher.finish();
        Conversation {
            beginnings: [name].into(),
            blocks: false,
            whole: false,
            anchor: name,
        }
    }

    /// Each message ends a beginning. Of a list that is cut off, those count that are whole; where
    /// the user's first is not among them, also what there is of it.
    fn messages(&self, list: &mut Cursor<'_>) -> Option<Conversation> {
        let mut hasher = self.hasher.clone();
        let mut beginnings = VecDeque::new();
        let (mut asked, mut second) = (None, None);
        while let Some(message) = list.element() {
            hasher.write(message);
            let hash = hasher.clone().finish();
            match beginnings.len() {
                1 => second = second.or(Some(hash)),
                LOOKS => drop(beginnings.pop_front()),
                _ => {}
            }
            beginnings.push_back(hash);
            if asked.is_none() && is_of_user(message) {
                asked = Some(hash);
            }
        }
        let first = beginnings.front().copied();
        let is_cut = list.is_cut();
        if asked.is_none() && is_cut {
            let blocks = blocks(&mut hasher, list.rest, true);
            let telling = (TELLING / SHORTEST).ilog2() as usize;
            asked = blocks.get(telling).or(blocks.last()).copied();
            beginnings.extend(blocks);
        }
        Some(Conversation {
            anchor: asked.or(second).or(first)?,
            beginnings,
            blocks: false,
            whole: !is_cut,
        })
    }

    fn text(&self, text: &[u8], is_cut: bool) -> Option<Conversation> {
        let beginnings = blocks(&mut self.hasher.clone(), text, is_cut);
        Some(Conversation {
            anchor: *beginnings.first()?,
            beginnings: beginnings.into(),
            blocks: true,
            whole: !is_cut,
        })
    }
}

/// Ever longer beginnings of a text; the last is all of it, if it is not cut off.
fn blocks(hasher: &mut DefaultHasher, text: &[u8], is_cut: bool) -> Vec<u64> {
    let mut beginnings = Vec::new();
    let (mut written, mut next) = (0, SHORTEST);
    while written < text.len() && !(is_cut && next > text.len().min(LONGEST)) {
        let end = next.min(text.len());
        hasher.write(&text[written..end]);
        beginnings.push(hasher.clone().finish());
        (written, next) = (end, next * 2);
    }
    beginnings
}

/// Whether a message is one of the user's.
fn is_of_user(message: &[u8]) -> bool {
    let mut cursor = Cursor { rest: message };
    cursor.role() == Some(b"user")
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
                cursor.expect(b'[')?;
                self.conversation = hasher.messages(cursor);
                cursor.expect(b']')?;
            }
            (b"prompt" | b"input", b'"') if prefix => {
                let begun = cursor.rest;
                let whole = cursor.string();
                let text = whole.unwrap_or(&begun[1..]);
                self.conversation = hasher.text(text, whole.is_none());
                whole?;
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

    /// What stands as the `role` of the object that this is.
    fn role(&mut self) -> Option<&'a [u8]> {
        self.expect(b'{')?;
        loop {
            self.blank();
            let key = self.string()?;
            self.expect(b':')?;
            self.blank();
            if key == b"role" {
                return self.string();
            }
            self.value()?;
            self.expect(b',')?;
        }
    }

    /// Whether there is something left of a list of which there is no next one.
    fn is_cut(&self) -> bool {
        value_len(self.rest).is_none()
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
        of(Affinity::Prefix, body).map_or_else(Vec::new, |found| found.beginnings.into())
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
        let endless = prefix(&format!(r#"{{"messages":[{}]}}"#, [first; 999].join(",")));
        assert_eq!(endless.len(), LOOKS);
    }

    #[test]
    fn who_says_the_same_as_another_goes_on_with_nothing() {
        let begun = |body: &str| {
            let found = of(Affinity::Prefix, body).unwrap();
            (
                found.beginnings().collect::<Vec<_>>(),
                found.to_be_known().last(),
            )
        };
        let turns = [r#"{"role":"user"}"#; 3].join(",");
        let question = r#"{"messages":[{"role":"user"}"#;
        let (nothing, known) = begun(&format!("{question}]}}"));
        assert!(nothing.is_empty());
        // A longer one goes on with it, and so does one of which no more is kept.
        for longer in [
            format!(r#"{{"messages":[{turns}]}}"#),
            format!(r#"{question},{{"#),
        ] {
            assert!(begun(&longer).0.contains(&known.unwrap()), "{longer}");
        }
        assert!(begun(r#"{"prompt":"hi"}"#).0.is_empty());
        assert_eq!(begun(r#"{"user":"me"}"#).0.len(), 1);
    }

    #[test]
    fn a_conversation_is_known_to_others_by_what_comes_up_to_the_first_question() {
        let anchor = |list: &[&str]| {
            let body = format!(r#"{{"input":[{}]}}"#, list.join(","));
            of(Affinity::Prefix, &body).map(|found| found.anchor())
        };
        let system = r#"{"content":"be [kind]","role":"system"}"#;
        let first = r#"{"content":[{"role":"x","text":"hi"}], "role" : "user"}"#;
        let other = r#"{"role":"user","content":"ho"}"#;
        let answer = r#"{"role":"assistant","content":"hi"}"#;
        for before in [&[][..], &[system], &[system, answer], &[answer]] {
            let begun = [before, &[first]].concat();
            let of = |more: &[&str]| anchor(&[&begun, more].concat());
            assert_eq!(of(&[]), of(&[answer, other]));
            assert_eq!(of(&[]), of(&[answer; 40]));
            assert_ne!(of(&[]), anchor(&[before, &[other]].concat()));
        }
        // Where nobody is a user.
        assert_eq!(anchor(&["1", "2", "3"]), anchor(&["1", "2", "4"]));
        assert_ne!(anchor(&["1", "2", "3"]), anchor(&["1", "3"]));
        assert!(anchor(&["[]"]).is_some() && anchor(&[]).is_none());
    }

    #[test]
    fn of_what_is_cut_off_that_counts_which_is_kept() {
        let question = |text: &str| format!(r#"{{"role":"user","content":"{text}"}}"#);
        let big = "x".repeat(3 << 20);
        let begun = |list: &str| of(Affinity::Prefix, &format!(r#"{{"messages":[{list}"#));
        // What is kept of it is more or less by chance.
        let whole = begun(&question("a")).unwrap();
        for cut in ["", ",", ", {", r#",{"role":"user","content":"b"#] {
            let found = begun(&format!("{}{cut}", question("a"))).unwrap();
            assert_eq!(found, whole, "{cut}");
        }
        for begins in [
            "messages\":[{\"role\":\"user\",\"content\":\"",
            "prompt\":\"",
        ] {
            let cut = |text: &str| of(Affinity::Prefix, &format!("{{\"{begins}{text}")).unwrap();
            let (short, long) = (cut(&big), cut(&big.repeat(2)));
            assert_eq!(short, long, "{begins}");
            assert_ne!(short.anchor(), cut(&format!("y{big}")).anchor());
        }
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
