//! Where in what a client sends a request's head begins and ends.
//!
//! hyper knows, and does not tell: not that a head has begun, which is what a deadline for it needs,
//! nor that its lines end in a bare LF, which some servers take for the end of a line and others do
//! not. So this follows along, as cheaply as it can. Where it is not sure it looks no more.

use memchr::memchr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    /// So much of a body of known length is to come.
    Body(u64),
    /// In the line before a chunk.
    ChunkSize,
    /// So much of a chunk and its line break is to come.
    Chunk(u64),
    Trailers,
    /// After a request that asks for another protocol, before anything else has come.
    Asked,
    /// After something that is no HTTP, or may be none.
    Lost,
}

/// What the head says of what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    Nothing,
    Length(u64),
    Chunks,
    Unknown,
}

/// The beginning of a line, as long as any that matters.
const LINE: usize = 64;

/// What a client begins with that speaks HTTP/2.
const HTTP_2: &[u8] = b"PRI * HTTP/2";

/// A line that ends in a number matters to its end, which is so far away at most.
const NUMBER: usize = 1024;

const CONTENT_LENGTH: &[u8] = b"content-length:";

#[derive(Debug)]
pub(super) struct Framing {
    state: State,
    follows: Follows,
    /// What comes after this request may be another protocol.
    may_switch: bool,
    /// The first line of a head has come.
    begun: bool,
    /// What has come of a line in earlier pieces, as much of it as matters.
    line: Vec<u8>,
    /// How long it is in all, and its last byte.
    len: usize,
    last: u8,
    /// It speaks HTTP/2, which is not spoken here.
    pub(super) speaks_http_2: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            state: State::Head,
            follows: Follows::Nothing,
            may_switch: false,
            begun: false,
            line: Vec::new(),
            len: 0,
            last: 0,
            speaks_http_2: false,
        }
    }

    /// Whether a head has begun and not ended.
    pub(super) fn in_head(&self) -> bool {
        self.state == State::Head && (self.begun || self.len > 0)
    }

    /// Whether a request has ended, and nothing has come of the next.
    pub(super) fn is_between(&self) -> bool {
        self.state == State::Head && !self.in_head()
    }

    /// A head is waited for: no other protocol was agreed on. Returns whether that is news.
    pub(super) fn stays_http(&mut self) -> bool {
        let asked = self.state == State::Asked;
        if asked {
            self.state = State::Head;
        }
        asked
    }

    /// Whether it can be followed no more.
    pub(super) fn is_lost(&self) -> bool {
        self.state == State::Lost
    }

    /// Follows what has come. Returns where a line ends that must not go on, as of a head, or as it
    /// does.
    pub(super) fn follow(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < piece.len() {
            let rest = &piece[at..];
            let step = match self.state {
                State::Lost => return None,
                State::Asked => {
                    self.state = State::Lost;
                    return None;
                }
                State::Body(left) => {
                    let step = self.skip(rest, left, State::Body, State::Head);
                    if self.state == State::Head {
                        self.ends();
                    }
                    step
                }
                State::Chunk(left) => self.skip(rest, left, State::Chunk, State::ChunkSize),
                State::Head | State::ChunkSize | State::Trailers => {
                    let Some(end) = memchr(b'\n', rest) else {
                        self.keep(rest);
                        return None;
                    };
                    if self.line_ends(&rest[..end]) {
                        return Some(at + end);
                    }
                    end + 1
                }
            };
            at += step;
        }
        None
    }

    fn skip(&mut self, rest: &[u8], left: u64, more: fn(u64) -> State, then: State) -> usize {
        let step = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.state = match left - step as u64 {
            0 => then,
            left => more(left),
        };
        step
    }

    /// A request has come whole.
    fn ends(&mut self) {
        self.state = match std::mem::take(&mut self.may_switch) {
            true => State::Asked,
            false => State::Head,
        };
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LINE.saturating_sub(self.line.len());
        let (beginning, rest) = part.split_at(part.len().min(room));
        self.line.extend_from_slice(beginning);
        if self.state == State::ChunkSize || starts(&self.line, CONTENT_LENGTH) {
            let room = NUMBER.saturating_sub(self.line.len());
            self.line.extend_from_slice(&rest[..rest.len().min(room)]);
        }
        self.len += part.len();
        self.last = part.last().copied().unwrap_or(self.last);
    }

    /// A line is complete, of which this part was in the last piece. Returns whether it ends in a
    /// bare LF though it is one of a head, or is of HTTP/2.
    fn line_ends(&mut self, part: &[u8]) -> bool {
        let bare = part.last().copied().unwrap_or(self.last) != b'\r' || self.len + part.len() == 0;
        if self.state == State::Head && bare {
            self.state = State::Lost;
            return true;
        }
        if self.len == 0 {
            self.line_is(part, false);
        } else {
            self.keep(part);
            let line = std::mem::take(&mut self.line);
            let is_cut = line.len() < std::mem::take(&mut self.len);
            self.line_is(&line, is_cut);
        }
        self.speaks_http_2
    }

    /// What it is about; of one that is cut, what is missing does not count, or makes it unknown.
    fn line_is(&mut self, line: &[u8], is_cut: bool) {
        let empty = matches!(line, b"" | b"\r");
        match self.state {
            State::Head if !empty => {
                if self.begun {
                    self.header_is(line, is_cut);
                } else if line.starts_with(b"CONNECT ") {
                    self.may_switch = true;
                } else if line.starts_with(HTTP_2) {
                    self.speaks_http_2 = true;
                    self.state = State::Lost;
                }
                self.begun = true;
            }
            // Line breaks before a head are none of it.
            State::Head if self.begun => {
                self.begun = false;
                match std::mem::replace(&mut self.follows, Follows::Nothing) {
                    Follows::Nothing | Follows::Length(0) => self.ends(),
                    Follows::Length(len) => self.state = State::Body(len),
                    Follows::Chunks => self.state = State::ChunkSize,
                    Follows::Unknown => self.state = State::Lost,
                }
            }
            State::ChunkSize => {
                self.state = match chunk_size(line, is_cut) {
                    Some(0) => State::Trailers,
                    // With its line break.
                    Some(len) => State::Chunk(len + 2),
                    None => State::Lost,
                };
            }
            State::Trailers if empty => self.ends(),
            _ => {}
        }
    }

    fn header_is(&mut self, line: &[u8], is_cut: bool) {
        // Few begin as one of those.
        if !matches!(line[0] | 0x20, b'c' | b't' | b'u') {
            return;
        }
        if starts(line, CONTENT_LENGTH) {
            if self.follows == Follows::Nothing {
                let value = &line[CONTENT_LENGTH.len()..];
                let length = decimal(value).filter(|_| !is_cut);
                self.follows = length.map_or(Follows::Unknown, Follows::Length);
            }
        } else if starts(line, b"transfer-encoding:") {
            if self.follows != Follows::Unknown {
                self.follows = Follows::Chunks;
            }
        } else if starts(line, b"upgrade:") {
            // No other protocol is ever agreed on.
            let name = line[b"upgrade:".len()..].trim_ascii();
            self.may_switch |= is_cut || name.eq_ignore_ascii_case(b"websocket");
        }
    }
}

fn starts(line: &[u8], name: &[u8]) -> bool {
    line.get(..name.len())
        .is_some_and(|beginning| beginning.eq_ignore_ascii_case(name))
}

fn decimal(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}

fn chunk_size(line: &[u8], is_cut: bool) -> Option<u64> {
    let end = memchr(b';', line);
    let digits = match end {
        Some(end) => &line[..end],
        None if is_cut => return None,
        None => line,
    };
    let digits = std::str::from_utf8(digits.trim_ascii()).ok()?;
    let size = u64::from_str_radix(digits, 16).ok()?;
    size.checked_add(2).map(|_| size)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

    #[test]
    fn http_2_is_known_by_its_first_line() {
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        assert_eq!(bare(preface), Some(15));
        assert_eq!(bare(&format!("{GET}{preface}")), Some(GET.len() + 15));
        assert_eq!(bare("PRI * HTTP/1.1\r\nHost: h\r\n\r\n"), None);
    }

    /// Where the first line ends wrongly, in whatever pieces it comes.
    fn bare(text: &str) -> Option<usize> {
        let whole = Framing::new().follow(text.as_bytes());
        let mut framing = Framing::new();
        let bytes = text.as_bytes().chunks(1).enumerate();
        let mut found = bytes.filter_map(|(at, byte)| framing.follow(byte).map(|_| at));
        assert_eq!(found.next(), whole, "{text:?}");
        whole
    }

    #[test]
    fn a_bare_line_feed_in_a_head_is_found_and_elsewhere_it_is_data() {
        assert_eq!(bare(GET), None);
        assert_eq!(bare("GET / HTTP/1.1\nHost: h\n\n"), Some(14));
        assert_eq!(bare("GET / HTTP/1.1\r\nHost: h\n\r\n"), Some(23));
        assert_eq!(bare("GET / HTTP/1.1\r\nHost: h\r\n\n"), Some(25));
        let post = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\n\n\na";
        assert_eq!(bare(post), None);
        assert_eq!(bare(&format!("{post}{post}")), None);
        let second = format!("{post}GET / HTTP/1.1\n");
        assert_eq!(bare(&second), Some(second.len() - 1));
        let chunked = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n\
            2;x=y\r\n\n\n\r\nA\r\n0123\n56789\r\n0\r\nx-sum: 1\r\n\r\n";
        assert_eq!(bare(&format!("{chunked}{GET}\r\n{GET}")), None);
        let third = format!("{chunked}{GET}\nGET");
        assert_eq!(bare(&third), Some(third.len() - 4));
    }

    #[test]
    fn what_is_no_longer_http_is_not_looked_at() {
        for head in [
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
            "CONNECT h:1 HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        ] {
            assert_eq!(bare(&format!("{head}\n\n")), None);
        }
        let head = "GET / HTTP/1.1\r\nUpgrade: WebSocket\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(bare(&format!("{head}0\r\n\r\n\n")), None);
        let other = "GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n";
        assert_eq!(bare(&format!("{other}\n")), Some(other.len()));
    }

    #[test]
    fn a_head_is_seen_to_begin_and_to_end() {
        let mut framing = Framing::new();
        for (piece, in_head) in [
            ("", false),
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\n", true),
            ("Content-Length: 2\r\n\r", true),
            ("\n", false),
            ("{", false),
            ("}", false),
            ("P", true),
        ] {
            assert_eq!(framing.follow(piece.as_bytes()), None);
            assert_eq!(framing.in_head(), in_head, "{piece:?}");
        }
    }

    proptest! {
        #[test]
        fn no_pieces_confuse_it(
            bodies in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..40), any::<bool>()), 1..5),
            cuts in prop::collection::vec(1..30_usize, 1..8),
        ) {
            let mut sent = Vec::new();
            for (body, chunked) in &bodies {
                if *chunked {
                    sent.extend(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
                    for part in body.chunks(7) {
                        sent.extend(format!("{:x}\r\n", part.len()).bytes());
                        sent.extend(part);
                        sent.extend(b"\r\n");
                    }
                    sent.extend(b"0\r\n\r\n");
                } else {
                    let len = body.len();
                    sent.extend(format!("POST / HTTP/1.1\r\nCONTENT-LENGTH:{len}\r\n\r\n").bytes());
                    sent.extend(body);
                }
            }
            sent.extend(GET.bytes());
            let mut framing = Framing::new();
            let mut rest = sent.as_slice();
            for len in cuts.iter().cycle() {
                let (piece, after) = rest.split_at((*len).min(rest.len()));
                prop_assert_eq!(framing.follow(piece), None);
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(framing.is_between());
        }
    }
}
