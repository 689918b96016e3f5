//! Finds strings at the top level of a JSON object while it arrives, in pieces of any size.
//!
//! Apart from a JSON parser, as it has to see what servers see: Python takes a BOM and `NaN`, all
//! take the last of equal keys, and a truncated or deep body is for the server to judge. Each byte
//! is looked at once, nothing is built, and no depth costs any stack.

use std::ops::Range;

use memchr::{memchr2, memrchr};

/// How many keys may be looked for.
pub(crate) const KEYS: usize = 4;

/// Of a value, as it is written; more is no name.
const LONGEST: usize = 4096;

const BOM: &[u8] = b"\xef\xbb\xbf";

/// What stands under a key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Found {
    /// No such key, or null, or an empty string, which servers take for none.
    #[default]
    Nothing,
    Text(String),
    /// Something that is no string, or not whole.
    Unreadable,
}

/// Where a value stands: of a string, what is between its quotation marks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) range: Range<usize>,
    /// It is no string.
    pub(crate) bare: bool,
}

/// What kind of document it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing but blanks has come.
    Undecided,
    Object,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// In an object, before a key.
    Key,
    InKey,
    Colon,
    Value,
    /// In a string that is wanted.
    InText,
    /// In a string that is not.
    InOther,
    Scalar,
    Nested,
    InNested,
    /// After a value.
    Next,
    End,
    /// Not in UTF-8, which some servers find out by themselves.
    Wide,
    NoObject,
    /// Nobody can read it.
    Broken,
}

/// The search for the values of some keys.
#[derive(Debug)]
pub(crate) struct Scan {
    keys: &'static [&'static str],
    found: [Found; KEYS],
    spots: [Option<Spot>; KEYS],
    state: State,
    /// How much has been read before the piece, or the rest of it, that is being read.
    read: usize,
    /// Where the object's first key would stand.
    first_key: usize,
    /// Where the value that is being read began.
    begun: usize,
    /// How much of the mark that some editors put first has come.
    bom: usize,
    /// The key that the value belongs to, if it is wanted.
    wanted: Option<usize>,
    /// Of a string in an earlier piece.
    text: Vec<u8>,
    /// The next byte of a string stands for itself.
    escaped: bool,
    /// Of what is nested in the value.
    depth: u64,
}

impl Scan {
    /// Looks for these keys, at most [`KEYS`].
    pub(crate) fn new(keys: &'static [&'static str]) -> Self {
        debug_assert!(keys.len() <= KEYS);
        Self {
            keys,
            found: Default::default(),
            spots: Default::default(),
            state: State::Start,
            read: 0,
            first_key: 0,
            begun: 0,
            bom: 0,
            wanted: None,
            text: Vec::new(),
            escaped: false,
            depth: 0,
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.state {
            State::Start => Kind::Undecided,
            State::NoObject => Kind::Other,
            _ => Kind::Object,
        }
    }

    /// What stands under each key, in their order, of what has come.
    pub(crate) fn found(&self) -> [Found; KEYS] {
        let mut found = self.found.clone();
        match (self.state, self.wanted) {
            (State::Wide, _) => found[0] = Found::Unreadable,
            (State::Colon | State::Value | State::InText | State::Nested, Some(key))
            | (State::InNested | State::Scalar, Some(key)) => found[key] = Found::Unreadable,
            _ => {}
        }
        found
    }

    /// Where the value of each key stands that is a string, or null.
    pub(crate) fn spots(&self) -> &[Option<Spot>; KEYS] {
        &self.spots
    }

    /// Where another key could be put before all others, if it is an object.
    pub(crate) fn first_key(&self) -> Option<usize> {
        (self.first_key > 0).then_some(self.first_key)
    }

    /// Reads the next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while !rest.is_empty() {
            let read = match self.state {
                State::Start => self.start(rest),
                State::Key => self.key(rest),
                State::InKey | State::InText => self.string(rest),
                State::Colon => self.expect(rest, b':', State::Value),
                State::Value => self.value(rest),
                State::InOther | State::InNested => self.skip_string(rest),
                State::Scalar => self.scalar(rest),
                State::Nested => self.nested(rest),
                State::Next => self.next(rest),
                State::End | State::Wide | State::NoObject | State::Broken => return,
            };
            self.read += read;
            rest = rest.get(read..).unwrap_or_default();
        }
    }

    fn start(&mut self, bytes: &[u8]) -> usize {
        if self.bom < BOM.len() && bytes[0] == BOM[self.bom] {
            self.bom += 1;
            return 1;
        }
        let in_mark = (1..BOM.len()).contains(&self.bom);
        let blanks = blanks(bytes);
        if blanks > 0 && !in_mark {
            // A mark has its place before them.
            self.bom = BOM.len();
            return blanks;
        }
        self.state = match bytes[0] {
            b'{' if !in_mark => State::Key,
            _ => State::NoObject,
        };
        if self.state == State::Key {
            self.first_key = self.read + 1;
        }
        1
    }

    fn key(&mut self, bytes: &[u8]) -> usize {
        let blanks = blanks(bytes);
        let Some(byte) = bytes.get(blanks) else {
            return blanks;
        };
        self.wanted = None;
        match byte {
            b'"' => return blanks + 1 + self.open(State::InKey, &bytes[blanks + 1..]),
            b'}' => self.state = State::End,
            0 => self.state = State::Wide,
            _ => self.state = State::Broken,
        }
        blanks + 1
    }

    fn value(&mut self, bytes: &[u8]) -> usize {
        let blanks = blanks(bytes);
        let Some(byte) = bytes.get(blanks) else {
            return blanks;
        };
        match (byte, self.wanted) {
            (b'"', Some(_)) => {
                self.begun = self.read + blanks + 1;
                return blanks + 1 + self.open(State::InText, &bytes[blanks + 1..]);
            }
            (b'"', None) => self.state = State::InOther,
            (b'{' | b'[', _) => {
                self.depth = 1;
                self.state = State::Nested;
            }
            (b',' | b'}' | b']' | b':', _) => self.state = State::Broken,
            _ => {
                self.state = State::Scalar;
                self.begun = self.read + blanks;
                return blanks;
            }
        }
        blanks + 1
    }

    /// After the quotation mark: most strings end in the same piece, and need no copy.
    fn open(&mut self, state: State, bytes: &[u8]) -> usize {
        self.state = state;
        self.text.clear();
        self.string(bytes)
    }

    fn string(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = self.string_end(bytes) else {
            self.keep(bytes);
            return bytes.len();
        };
        if self.text.is_empty() {
            self.close(&bytes[..end]);
        } else {
            self.keep(&bytes[..end]);
            let text = std::mem::take(&mut self.text);
            self.close(&text);
        }
        end + 1
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One more shows that it is too long.
        let room = (LONGEST + 1).saturating_sub(self.text.len());
        self.text.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn close(&mut self, raw: &[u8]) {
        if self.state == State::InKey {
            self.wanted = self.wanted_key(raw);
            self.state = State::Colon;
            return;
        }
        if let Some(key) = self.wanted.take() {
            self.found[key] = match unescaped(raw) {
                Some(text) if text.is_empty() => Found::Nothing,
                Some(text) => Found::Text(text),
                None => Found::Unreadable,
            };
            self.spots[key] = Some(Spot {
                range: self.begun..self.begun + raw.len(),
                bare: false,
            });
        }
        self.state = State::Next;
    }

    fn wanted_key(&self, raw: &[u8]) -> Option<usize> {
        if !raw.contains(&b'\\') {
            return self.keys.iter().position(|key| key.as_bytes() == raw);
        }
        let key = unescaped(raw)?;
        self.keys.iter().position(|wanted| *wanted == key)
    }

    fn skip_string(&mut self, bytes: &[u8]) -> usize {
        let Some(end) = self.string_end(bytes) else {
            return bytes.len();
        };
        self.state = match self.state {
            State::InNested => State::Nested,
            _ => State::Next,
        };
        end + 1
    }

    /// Where the string ends, if it does.
    fn string_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = usize::from(std::mem::take(&mut self.escaped));
        loop {
            let Some(rest) = bytes.get(at..) else {
                self.escaped = true;
                return None;
            };
            let found = at + memchr2(b'"', b'\\', rest)?;
            if bytes[found] == b'"' {
                return Some(found);
            }
            at = found + 2;
        }
    }

    /// A number, a literal, or what only some take for one.
    fn scalar(&mut self, bytes: &[u8]) -> usize {
        let ends = |b: &u8| matches!(b, b',' | b'}' | b']' | b'"' | b'{' | b'[' | b':');
        let end = bytes.iter().position(|b| ends(b) || is_blank(*b));
        let len = end.unwrap_or(bytes.len());
        if self.wanted.is_some() {
            self.keep(&bytes[..len]);
        }
        if end.is_some() {
            let text = std::mem::take(&mut self.text);
            if let Some(key) = self.wanted.take() {
                self.found[key] = match text.as_slice() {
                    b"null" => Found::Nothing,
                    _ => Found::Unreadable,
                };
                let range = self.begun..self.begun + text.len();
                let is_null = self.found[key] == Found::Nothing;
                self.spots[key] = is_null.then_some(Spot { range, bare: true });
            }
            self.state = State::Next;
        }
        len
    }

    fn nested(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => {
                    self.state = State::InNested;
                    return at + 1;
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        if let Some(key) = self.wanted.take() {
                            self.found[key] = Found::Unreadable;
                        }
                        self.state = State::Next;
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
        bytes.len()
    }

    fn next(&mut self, bytes: &[u8]) -> usize {
        let blanks = blanks(bytes);
        match bytes.get(blanks) {
            Some(b',') => self.state = State::Key,
            Some(b'}') => self.state = State::End,
            Some(_) => self.state = State::Broken,
            None => return blanks,
        }
        blanks + 1
    }

    fn expect(&mut self, bytes: &[u8], expected: u8, then: State) -> usize {
        let blanks = blanks(bytes);
        let Some(byte) = bytes.get(blanks) else {
            return blanks;
        };
        self.text.clear();
        self.state = if *byte == expected {
            then
        } else {
            State::Broken
        };
        blanks + 1
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// How many of them come first.
fn blanks(bytes: &[u8]) -> usize {
    let other = bytes.iter().position(|b| !is_blank(*b));
    other.unwrap_or(bytes.len())
}

/// What a string says, given what stands between its quotation marks.
fn unescaped(raw: &[u8]) -> Option<String> {
    if raw.len() > LONGEST {
        return None;
    }
    if memrchr(b'\\', raw).is_none() && !raw.iter().any(u8::is_ascii_control) {
        return String::from_utf8(raw.to_vec()).ok();
    }
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice(&quoted).ok()
}

#[cfg(test)]
mod tests;
