//! Reads into a compressed body, as far as that is worth the time.
//!
//! Apart from the search itself, which knows nothing of compression. The body is passed on as it
//! came: what is unpacked here is looked at and thrown away.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use super::scan::{Found, KEYS, Kind, Scan};

/// How much may come out of it: a bomb of a few kilobytes must not cost seconds.
pub(super) const MOST: usize = 16 << 20;

/// How much of it is unpacked at once, before others have their turn.
pub(super) const PIECE: usize = 256 << 10;

/// The search in a gzip body.
pub(super) struct Gzip {
    decoder: MultiGzDecoder<Sink>,
    /// It is no gzip, or unpacks to too much.
    failed: bool,
}

struct Sink {
    scan: Scan,
    unpacked: usize,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.unpacked += data.len();
        if self.unpacked > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.scan.push(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Gzip {
    pub(super) fn new(scan: Scan) -> Self {
        let sink = Sink { scan, unpacked: 0 };
        Self {
            decoder: MultiGzDecoder::new(sink),
            failed: false,
        }
    }

    /// Reads some of it, and says how much.
    pub(super) fn push(&mut self, data: &[u8]) -> usize {
        if self.failed {
            return data.len();
        }
        let before = self.decoder.get_ref().unpacked;
        let mut read = 0;
        while read < data.len() && self.decoder.get_ref().unpacked - before < PIECE {
            match self.decoder.write(&data[read..]) {
                Ok(0) => break,
                Ok(len) => read += len,
                Err(_) => {
                    self.failed = true;
                    return data.len();
                }
            }
        }
        // What follows the last member is none of its business.
        if read == 0 { data.len() } else { read }
    }

    pub(super) fn scan(&self) -> &Scan {
        &self.decoder.get_ref().scan
    }

    /// As far as it has been read.
    pub(super) fn found_yet(&self) -> [Found; KEYS] {
        self.decoder.get_ref().scan.found()
    }

    /// In the end: there is no telling whether a search that ended early is over.
    pub(super) fn found(&mut self) -> [Found; KEYS] {
        let failed = self.failed || self.decoder.try_finish().is_err();
        let scan = &self.decoder.get_ref().scan;
        let mut found = scan.found();
        if failed && scan.kind() != Kind::Other && found[0] == Found::Nothing {
            found[0] = Found::Unreadable;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn packed(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn model(body: &[u8], piece: usize) -> Found {
        let mut gzip = Gzip::new(Scan::new(&["model"]));
        for mut part in body.chunks(piece) {
            while !part.is_empty() {
                part = &part[gzip.push(part)..];
            }
        }
        let [model, ..] = gzip.found();
        model
    }

    #[test]
    fn the_model_is_found_in_what_is_packed() {
        let body = packed(br#"{"messages":[],"model":"a"}"#);
        for piece in [1, 7, 4096] {
            assert_eq!(model(&body, piece), Found::Text("a".to_owned()));
        }
        let members = [packed(b"{\"mod"), packed(b"el\":\"a\"}")].concat();
        assert_eq!(model(&members, 4096), Found::Text("a".to_owned()));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let blanks = packed(&[b" ".repeat(MOST + 1), br#"{"model":"a"}"#.to_vec()].concat());
        assert!(blanks.len() < 1 << 20);
        let mut gzip = Gzip::new(Scan::new(&["model"]));
        let mut rest = blanks.as_slice();
        let mut turns = 0;
        while !rest.is_empty() {
            let before = gzip.decoder.get_ref().unpacked;
            rest = &rest[gzip.push(rest)..];
            assert!(gzip.decoder.get_ref().unpacked - before <= PIECE + (64 << 10));
            turns += 1;
        }
        assert!(turns >= MOST / PIECE / 2, "{turns}");
        assert!(gzip.decoder.get_ref().unpacked <= MOST + (64 << 10));
        assert_eq!(gzip.found()[0], Found::Unreadable);
    }

    #[test]
    fn what_is_no_gzip_cannot_be_read() {
        assert_eq!(model(br#"{"model":"a"}"#, 4096), Found::Unreadable);
        let body = packed(br#"{"n":1,"model":"a"}"#);
        assert_eq!(model(&body[..body.len() / 2], 4096), Found::Unreadable);
    }
}
