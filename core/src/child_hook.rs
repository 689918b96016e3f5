//! What a forked child does between fork and exec to take a lock over by itself. Apart from the lock
//! because all of it must be async-signal-safe: system calls, no allocation, no locks.

use std::io;
use std::process;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use crate::info::LockInfo;
use crate::record::{BLANK, Identity, Record};
use crate::sys::{self, Directory, LockFile};

/// Longer than any text that is written here; the rest of an older one is blanked out.
const ROOM: usize = 256;

/// See [`ServerLock::child_hook`](crate::ServerLock::child_hook).
///
/// It does not keep the port guarded: once the lock is dropped, [`run`](Self::run) fails.
#[derive(Debug)]
#[must_use = "it does nothing until the child runs it"]
pub struct ChildHook {
    file: Weak<LockFile>,
    directory: Weak<Directory>,
    identified: Template,
    /// For a child that can't tell its own identity.
    named: Template,
}

impl ChildHook {
    pub(crate) fn prepare(
        file: &Arc<LockFile>,
        directory: &Arc<Directory>,
        port: u16,
    ) -> io::Result<Self> {
        let mut record = Record {
            info: LockInfo::now(u32::MAX, port),
            identity: None,
        };
        let named = Template::new(&record, [u64::from(u32::MAX), 0, 0])?;
        record.identity = sys::own_identity().unwrap_or_default();
        let identified = match &mut record.identity {
            Some(identity) => {
                *identity = Identity {
                    pid_ns: Some(u64::MAX - 1),
                    start_ticks: Some(u64::MAX),
                    ..identity.clone()
                };
                Template::new(&record, [u64::from(u32::MAX), u64::MAX - 1, u64::MAX])?
            }
            None => named.clone(),
        };
        Ok(Self {
            file: Arc::downgrade(file),
            directory: Arc::downgrade(directory),
            identified,
            named,
        })
    }

    /// For the forked child. Async-signal-safe: makes system calls, and neither allocates nor
    /// locks.
    ///
    /// From here on the child can be signalled by its name: a parent with signal handlers resets
    /// them first, or a signal that comes before the exec is lost in them.
    ///
    /// # Errors
    ///
    /// What the system says, as a bare error number; `EBADF` if the lock was dropped.
    pub fn run(&self) -> io::Result<()> {
        // The lock is in the child's memory as well, so that these are never the last.
        let (Some(file), Some(directory)) = (self.file.upgrade(), self.directory.upgrade()) else {
            return Err(Errno::BADF.into());
        };
        let mut text = [BLANK; ROOM];
        let pid = u64::from(process::id());
        match sys::forked_identity() {
            Ok((pid_ns, start)) => self.identified.fill(&mut text, [pid, pid_ns, start])?,
            Err(_) => self.named.fill(&mut text, [pid, 0, 0])?,
        }
        // Blank between the old text and the new: no reader sees one made of both.
        file.overwrite(&[BLANK; ROOM])?;
        file.overwrite(&text)?;
        file.set_inheritable(&directory, true)
    }
}

/// A record's text, with places for the numbers that only the child knows.
#[derive(Debug, Clone)]
struct Template {
    /// What stands before each number, and after the last.
    parts: [Vec<u8>; 4],
}

impl Template {
    /// `numbers` stand in the record's text in this order; one that does not leaves no place.
    fn new(record: &Record, numbers: [u64; 3]) -> io::Result<Self> {
        let mut rest = record.to_json()?;
        let mut parts: [Vec<u8>; 4] = Default::default();
        for (part, number) in parts.iter_mut().zip(numbers) {
            let digits = number.to_string().into_bytes();
            let found = rest.windows(digits.len()).position(|place| place == digits);
            if let Some(at) = found.filter(|_| number != 0) {
                let after = rest.split_off(at + digits.len());
                rest.truncate(at);
                *part = std::mem::replace(&mut rest, after);
            }
        }
        parts[3] = rest;
        Ok(Self { parts })
    }

    /// Async-signal-safe.
    fn fill(&self, text: &mut [u8], numbers: [u64; 3]) -> io::Result<()> {
        let mut len = 0;
        let [first, second, third, last] = &self.parts;
        for (part, number) in [first, second, third].into_iter().zip(numbers) {
            if !part.is_empty() {
                append(text, &mut len, part)?;
                append_number(text, &mut len, number)?;
            }
        }
        append(text, &mut len, last)
    }
}

fn append(text: &mut [u8], len: &mut usize, part: &[u8]) -> io::Result<()> {
    let end = *len + part.len();
    let room = text.get_mut(*len..end).ok_or(io::ErrorKind::StorageFull)?;
    room.copy_from_slice(part);
    *len = end;
    Ok(())
}

fn append_number(text: &mut [u8], len: &mut usize, mut number: u64) -> io::Result<()> {
    let mut digits = [b'0'; 20];
    let mut first = digits.len() - 1;
    loop {
        // A remainder of 10 is a digit.
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return append(text, len, &digits[first..]);
        }
        first -= 1;
    }
}
