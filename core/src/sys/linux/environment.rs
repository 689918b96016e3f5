//! What a process was told at its start. Apart, because what `/proc/PID/environ` shows has more
//! meanings than there and not there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::holders::is_lack_of_descriptors;
use super::stuck::{self, Wait};
use crate::error::context;
use crate::server_id::SERVER_ID_ENV;

/// How long the kernel may take to show an environment. It waits for a process that is about to
/// become another program, and that may wait for a network mount that hangs.
const PATIENCE: Duration = Duration::from_millis(250);

/// A program gets no more than 6 MiB of environment; and a process may say later that all of its
/// memory is that, at the cost of whoever reads it.
const LONGEST: usize = 8 << 20;

/// A variable in the environment a process was started with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Variable {
    Is(String),
    /// The environment is there, and does not have it.
    Unset,
    /// There is none at all, as of `env -i`, of a zombie, of the kernel's own threads, and of any
    /// process for the instant in which it becomes another program.
    Empty,
    /// It may not be read, is longer than any, or has been overwritten, as by programs that set their
    /// title.
    Unknown,
}

/// Reads environments in a thread of its own, so that one which can't be read holds nobody up: the
/// thread is left to wait for it, and the process is not asked again meanwhile.
#[derive(Default)]
pub(super) struct Reader(Option<Worker>);

impl Reader {
    /// What is said of the server that a process belongs to.
    pub(super) fn server_id(&mut self, pid: u32) -> Variable {
        self.variable(pid, SERVER_ID_ENV)
    }

    /// The same; a process that is about to become another program has none for an instant, and is
    /// looked at again.
    pub(super) fn settled_server_id(&mut self, pid: u32) -> Variable {
        for _ in 0..3 {
            match self.server_id(pid) {
                Variable::Empty => thread::sleep(Duration::from_millis(1)),
                found => return found,
            }
        }
        self.server_id(pid)
    }

    pub(super) fn variable(&mut self, pid: u32, name: &str) -> Variable {
        match self.look_up(pid, format!("/proc/{pid}/environ"), name) {
            // That of a main thread which has ended is seen through the others.
            Variable::Empty => threads(pid)
                .unwrap_or_default()
                .into_iter()
                .filter(|&thread| thread != pid)
                .map(|thread| self.look_up(pid, format!("/proc/{pid}/task/{thread}/environ"), name))
                .find(|found| *found != Variable::Empty)
                .unwrap_or(Variable::Empty),
            found => found,
        }
    }

    fn look_up(&mut self, pid: u32, path: String, name: &str) -> Variable {
        match self.read(pid, path, LONGEST) {
            Some(Ok(bytes)) if bytes.len() < LONGEST => parse(&bytes, name),
            _ => Variable::Unknown,
        }
    }

    /// At most so many bytes; `None` if it takes too long.
    fn read(&mut self, pid: u32, path: String, most: usize) -> Option<io::Result<Vec<u8>>> {
        if stuck::is_out_of_reach(pid) {
            return None;
        }
        if self.0.is_none() {
            self.0 = Some(Worker::start().ok()?);
        }
        let worker = self.0.as_ref()?;
        worker.paths.send((path, most)).ok()?;
        let read = worker.texts.recv_timeout(PATIENCE).ok();
        if read.is_none() {
            worker.wait.give_up(pid);
            self.0 = None;
        }
        read
    }
}

/// The arguments that a process shows, each with a NUL at its end, and no more of them than `most`
/// bytes. `None` if they may not be read, or it takes too long.
pub(crate) fn command_line(pid: u32, most: usize) -> Option<Vec<u8>> {
    Reader::default()
        .read(pid, format!("/proc/{pid}/cmdline"), most)?
        .ok()
}

/// A thread that reads. It ends when its reader has gone, or with the process.
struct Worker {
    paths: Sender<(String, usize)>,
    texts: Receiver<io::Result<Vec<u8>>>,
    wait: Wait,
}

impl Worker {
    fn start() -> io::Result<Self> {
        let (paths, asked) = channel::<(String, usize)>();
        let (answer, texts) = channel();
        let wait = Wait::default();
        let its = wait.clone();
        let read = move || {
            for (path, most) in asked {
                if answer.send(read(&path, most)).is_err() {
                    break;
                }
            }
            its.end();
        };
        thread::Builder::new()
            .name("environments".to_owned())
            .spawn(read)?;
        Ok(Self { paths, texts, wait })
    }
}

fn read(path: &str, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The threads of a process, as far as they are shown. An error only where no descriptors are left.
pub(super) fn threads(pid: u32) -> io::Result<Vec<u32>> {
    let path = format!("/proc/{pid}/task");
    let entries = match fs::read_dir(&path) {
        Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, path)),
        entries => entries.into_iter().flatten().flatten(),
    };
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    Ok(entries.filter_map(number).collect())
}

fn parse(bytes: &[u8], name: &str) -> Variable {
    let Some(entries) = bytes.strip_suffix(b"\0") else {
        return match bytes {
            [] => Variable::Empty,
            _ => Variable::Unknown,
        };
    };
    let mut whole = true;
    for entry in entries.split(|&b| b == 0) {
        let Some(at) = entry.iter().position(|&b| b == b'=') else {
            whole = false;
            continue;
        };
        if &entry[..at] == name.as_bytes() {
            return match std::str::from_utf8(&entry[at + 1..]) {
                Ok(value) => Variable::Is(value.to_owned()),
                Err(_) => Variable::Unset,
            };
        }
    }
    if whole {
        Variable::Unset
    } else {
        Variable::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overwritten_environment_is_not_one_without_the_variable() {
        let is = |bytes: &[u8]| parse(bytes, "ID");
        assert_eq!(is(b"A=b\0ID=1=2\0"), Variable::Is("1=2".to_owned()));
        assert_eq!(is(b"A=b\0XID=1\0"), Variable::Unset);
        assert_eq!(is(b""), Variable::Empty);
        assert_eq!(is(b"title --port=1\0\0\0\0"), Variable::Unknown);
        assert_eq!(is(b"title, and blanks    "), Variable::Unknown);
    }
}
