//! What finds no room where output goes, as on a full disk: it is left out, counted, and told of as
//! soon as there is room again. Apart from both that write so, the log and a COMMAND's output.

use std::io;

/// How much of one kind was lost since it was last told.
pub(crate) struct Lost {
    what: &'static str,
    weigh: fn(&[u8]) -> usize,
    count: usize,
    why: String,
    /// Whether a line is begun and has no end.
    is_cut: bool,
}

impl Lost {
    pub(crate) fn new(what: &'static str, weigh: fn(&[u8]) -> usize) -> Self {
        Self {
            what,
            weigh,
            count: 0,
            why: String::new(),
            is_cut: false,
        }
    }

    /// Counts what has never come to be written.
    pub(super) fn add(&mut self, count: usize, why: &str) {
        if count > 0 {
            self.count += count;
            why.clone_into(&mut self.why);
        }
    }

    /// Tells first what was lost before. An error is the reason why the rest is lost.
    pub(crate) fn write(&mut self, text: &[u8], mut write: impl FnMut(&[u8]) -> io::Result<usize>) {
        if self.count > 0 {
            let Self {
                count, what, why, ..
            } = self;
            let remark = super::warning(&format!("{count} {what} were lost here: {why}"));
            let end = if self.is_cut { "\n" } else { "" };
            if self
                .write_all(format!("{end}{remark}").as_bytes(), &mut write)
                .is_err()
            {
                self.count += (self.weigh)(text);
                return;
            }
            self.count = 0;
        }
        if let Err((rest, e)) = self.write_all(text, &mut write) {
            self.count += (self.weigh)(rest);
            self.why = e.to_string();
        }
    }

    /// What could not be written, and why.
    fn write_all<'a>(
        &mut self,
        mut text: &'a [u8],
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> Result<(), (&'a [u8], io::Error)> {
        while !text.is_empty() {
            match write(text) {
                Ok(0) => return Err((text, io::ErrorKind::WriteZero.into())),
                Ok(len) => {
                    let (written, rest) = text.split_at(len);
                    self.is_cut = !written.ends_with(b"\n");
                    text = rest;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err((text, e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::Lost;

    #[test]
    fn what_is_lost_is_counted_and_told_on_a_line_of_its_own() {
        let mut disk = Vec::new();
        let mut lost = Lost::new("bytes", <[u8]>::len);
        let mut write = |room: usize, text: &[u8]| {
            let mut left = room;
            lost.write(text, |text| {
                let len = text.len().min(left);
                left -= len;
                disk.extend_from_slice(&text[..len]);
                match len {
                    0 => Err(io::Error::other("full")),
                    len => Ok(len),
                }
            });
        };
        write(100, b"whole\n");
        write(3, b"cut off\n");
        write(0, b"gone\n");
        write(100, b"whole\n");
        let disk = String::from_utf8(disk).unwrap();
        let lines: Vec<_> = disk.lines().collect();
        assert_eq!(
            (lines[0], lines[1], lines[3]),
            ("whole", "cut", "whole"),
            "{disk}"
        );
        assert!(
            lines[2].ends_with(" WARN 10 bytes were lost here: full"),
            "{disk}"
        );
    }
}
