//! What a forked child does between fork and exec to take a lock over by itself. Apart from the lock
//! because all of it must be async-signal-safe: system calls, no allocation, no locks.

use std::io;
use std::process;

use crate::info::LockInfo;
use crate::sys::{Directory, LockFile};

/// See [`ServerLock::child_hook`](crate::ServerLock::child_hook).
#[derive(Debug)]
pub struct ChildHook {
    file: LockFile,
    directory: Directory,
    before: Vec<u8>,
    after: Vec<u8>,
}

impl ChildHook {
    pub(crate) fn prepare(file: &LockFile, directory: &Directory, port: u16) -> io::Result<Self> {
        let any = LockInfo::now(u32::MAX, port);
        let text = any.to_json()?;
        let digits = u32::MAX.to_string();
        let at = text
            .windows(digits.len())
            .position(|part| part == digits.as_bytes())
            .ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            file: file.try_clone()?,
            directory: directory.try_clone()?,
            before: text[..at].to_vec(),
            after: text[at + digits.len()..].to_vec(),
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
    /// What the system says, as a bare error number.
    pub fn run(&self) -> io::Result<()> {
        // The rest of a longer text is blanked out: blanks are no part of JSON.
        let mut text = [b' '; 160];
        let mut len = 0;
        let mut append = |part: &[u8]| {
            let end = len + part.len();
            match text.get_mut(len..end) {
                Some(room) => room.copy_from_slice(part),
                None => return Err(io::Error::from(io::ErrorKind::StorageFull)),
            }
            len = end;
            Ok(())
        };
        let mut digits = [0; 10];
        let mut first = digits.len();
        let mut pid = process::id();
        while pid > 0 {
            first -= 1;
            // A remainder of 10 is a digit.
            digits[first] = b'0' + (pid % 10) as u8;
            pid /= 10;
        }
        append(&self.before)?;
        append(&digits[first..])?;
        append(&self.after)?;
        self.file.overwrite(&text)?;
        self.file.set_inheritable(&self.directory, true)
    }
}
