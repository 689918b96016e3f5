//! A file of backends: read whole or refused whole, with the line and the reason.
//!
//! A URL a line with `weight=`, `max=` and `key-env=` behind it, `#` before remarks; or, where the
//! name ends in `.toml`, a `[[backend]]` table for each, with the same names.

use std::fmt::Display;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::document::{self, Document, Problem, Setting};
use super::entry::{Backend, place};
use super::repeated;
use crate::own_address;

/// As much of a file as is read: room for some 10,000 backends.
const MOST: u64 = 1 << 20;

/// Settings that are for nobody else's eyes.
const SECRETS: [&str; 2] = ["api-key", "backend-api-key"];

/// What tells that a file has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<std::time::SystemTime>,
    len: u64,
    /// Another file may have come in its place with the same time and length.
    #[cfg(unix)]
    id: (u64, u64),
}

/// What is wrong with a configuration.
pub(crate) type Check = fn(&Document) -> Result<(), Problem>;

pub(crate) struct BackendsFile {
    path: PathBuf,
    /// Where it is a configuration.
    check: Option<Check>,
    /// What no backend may be: the balancer's own.
    listening: Vec<SocketAddr>,
}

impl BackendsFile {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            check: None,
            listening: Vec::new(),
        }
    }

    /// A configuration, which has settings too.
    pub(crate) fn config(path: &Path, check: Check) -> Self {
        Self {
            path: path.to_owned(),
            check: Some(check),
            listening: Vec::new(),
        }
    }

    /// Refuses backends at these addresses.
    pub(super) fn set_listening(&mut self, addresses: &[SocketAddr]) {
        self.listening = addresses.to_vec();
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// None where it can't be looked at: then reading tells why.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some(Stamp {
            modified: metadata.modified().ok(),
            len: metadata.len(),
            #[cfg(unix)]
            id: {
                use std::os::unix::fs::MetadataExt;
                (metadata.dev(), metadata.ino())
            },
        })
    }

    /// What it says, or what to say of it.
    pub(crate) fn read(&self) -> Result<Document, String> {
        let text = self.text();
        let text = text.map_err(|e| format!("cannot read {}: {e}", self.path.display()))?;
        // Some editors begin with one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let is_toml = self.path.extension().is_some_and(|ext| ext == "toml");
        let parsed = match self.check {
            Some(check) => document::parse(text).and_then(|document| {
                check(&document)?;
                Ok(document)
            }),
            None if is_toml => parse_toml(text),
            None => parse_lines(text).map(Document::of),
        };
        let parsed = parsed.and_then(|document| self.admit(document));
        parsed.map_err(|(line, problem)| self.refused(format!("line {line}: {problem}")))
    }

    /// What to say where it has a key in it that others can read.
    pub(super) fn exposure(&self, document: &Document) -> Option<String> {
        let mut names = document.settings.iter().map(|setting| &*setting.name);
        let key = names.find(|name| SECRETS.contains(name))?;
        let path = self.path.display();
        self.is_exposed()
            .then(|| format!("{path} has {key} in it, and is not for you alone: chmod 600 {path}"))
    }

    #[cfg(unix)]
    fn is_exposed(&self) -> bool {
        use std::os::unix::fs::PermissionsExt;
        let metadata = fs::metadata(&self.path);
        metadata.is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
    }

    /// Who may read it is not asked.
    #[cfg(not(unix))]
    fn is_exposed(&self) -> bool {
        false
    }

    /// Each backend once, and none that is the balancer itself.
    fn admit(&self, mut document: Document) -> Result<Document, Problem> {
        document.backends = repeated::once(document.backends)?;
        for backend in &document.backends {
            let checked = own_address::check(backend.place.url(), &self.listening);
            checked.map_err(|problem| (backend.line.unwrap_or(1), problem))?;
        }
        Ok(document)
    }

    fn text(&self) -> io::Result<String> {
        use std::io::Read;
        let file = open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut text = String::new();
        file.take(MOST + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MOST {
            return Err(io::Error::other(format!("it is longer than {MOST} bytes")));
        }
        Ok(text)
    }

    fn refused(&self, problem: impl Display) -> String {
        format!("{}: {problem}", self.path.display())
    }
}

fn parse_lines(text: &str) -> Result<Vec<Backend>, Problem> {
    let numbered = text.lines().enumerate();
    let lines = numbered.map(|(index, line)| (index + 1, without_remark(line).trim()));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            let mut backend = parse_line(line).map_err(|problem| (number, problem))?;
            backend.line = Some(number);
            Ok(backend)
        })
        .collect()
}

/// A `#` within a word belongs to it.
fn without_remark(line: &str) -> &str {
    let begins = |at: usize| at == 0 || line[..at].ends_with(char::is_whitespace);
    let remark = line
        .match_indices('#')
        .map(|(at, _)| at)
        .find(|&at| begins(at));
    &line[..remark.unwrap_or(line.len())]
}

fn parse_line(line: &str) -> Result<Backend, String> {
    let mut words = line.split_whitespace();
    let mut backend = Backend::new(place(words.next().unwrap_or_default())?);
    let mut seen = Vec::new();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        if seen.contains(&name) {
            return Err(format!("{name} is given twice"));
        }
        seen.push(name);
        match name {
            "weight" => backend.weight = number(name, value)?,
            "max" => backend.max = Some(number(name, value)?),
            "key-env" => backend.set_key_from(value)?,
            _ => return Err(format!("'{name}' is none of weight=, max=, key-env=")),
        }
    }
    Ok(backend)
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{name} is a number from 1 on, not '{value}'"))
}

/// A file of backends has nothing beside them.
fn parse_toml(text: &str) -> Result<Document, Problem> {
    let document = document::parse(text)?;
    match document.settings.first() {
        None => Ok(document),
        Some(Setting { name, line, .. }) => {
            let problem = format!("'{name}' is none of [[backend]]; options are for --config");
            Err((*line, problem))
        }
    }
}

/// A FIFO would be waited for.
fn open(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backends::Place;

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_keeps_nobody_waiting() {
        use std::sync::mpsc;
        use std::time::Duration;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backends");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(BackendsFile::new(&path).text()));
        let told = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert!(told.unwrap_err().to_string().contains("no regular file"));
    }

    fn shown(backends: &[Backend]) -> Vec<(String, u32, Option<usize>)> {
        let url = |place: &Place| match place {
            Place::One(url) => url.to_string(),
            Place::Each(url) => format!("each of {url}"),
        };
        let show = |b: &Backend| (url(&b.place), b.weight.get(), b.max.map(usize::from));
        backends.iter().map(show).collect()
    }

    #[test]
    fn both_kinds_of_file_say_the_same() {
        let lines = "# the fleet\n\nhttp://a:8000/v1 weight=2 max=8 # big\n\
                     \tdns+http://models:8000  \nhttp://c/#x\n";
        let toml = "[[backend]]\nurl = \"http://a:8000/v1\"\nweight = 2\nmax = 8\n\
                    [[backend]]\nurl = \"dns+http://models:8000\"\n[[backend]]\nurl = \"http://c/#x\"\n";
        let expected = [
            ("http://a:8000".to_owned(), 2, Some(8)),
            ("each of http://models:8000".to_owned(), 1, None),
            ("http://c".to_owned(), 1, None),
        ];
        assert_eq!(shown(&parse_lines(lines).unwrap()), expected);
        assert_eq!(shown(&parse_toml(toml).unwrap().backends), expected);
        assert!(parse_lines("").unwrap().is_empty());
        assert!(parse_toml("# none\n").unwrap().backends.is_empty());
    }

    #[test]
    fn a_problem_is_told_with_its_line() {
        for (text, line, part) in [
            (
                "http://a\nftp://b\n",
                2,
                "'ftp://b': a URL begins with http://",
            ),
            ("http://user:secret@b", 1, "credentials"),
            (
                "http://a weight=0",
                1,
                "weight is a number from 1 on, not '0'",
            ),
            ("\n\nhttp://a max=many", 3, "max is a number"),
            ("http://a max=1 max=2", 1, "max is given twice"),
            ("http://a fast", 1, "'fast' is none of"),
            (
                "http://a key-env=LLMLB_TEST_NO_SUCH",
                1,
                "no variable LLMLB_TEST_NO_SUCH",
            ),
        ] {
            let (found, problem) = parse_lines(text).unwrap_err();
            assert!(
                found == line && problem.contains(part),
                "{text}: {found} {problem}"
            );
            assert!(!problem.contains("secret"), "{problem}");
        }
        for (text, line, part) in [
            (
                "[[backend]]\nurl = \"http://a\"\n\n[[backend]]\nurl = \"b\"\n",
                5,
                "'b'",
            ),
            ("[[backend]]\nurl = \"http://a\"\nwieght = 2\n", 3, "wieght"),
            ("[[backend]]\nweight = 2\n", 1, "url"),
            (
                "[[backend]]\nurl = \"http://a\"\nweight = 0\n",
                3,
                "weight is a number from 1 on, not 0",
            ),
            ("x = \n", 1, ""),
        ] {
            let (found, problem) = parse_toml(text).unwrap_err();
            assert!(
                found == line && problem.contains(part),
                "{text}: {found} {problem}"
            );
        }
    }
}
