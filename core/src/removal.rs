//! Removing the lock file of a lock that nobody holds any more. Apart, because whoever gives a lock
//! back, takes it back or stops its holder has the same question, and the kernel alone has the answer.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::is_holder;
use crate::record::{Content, Record};
use crate::sys::{Directory, LockFile};

/// What became of a lock that was let go.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Freed {
    /// Nobody held it: it is locked by our own description now, and the file is the one at its
    /// place.
    Ours,
    /// The file is at its place no more.
    Gone,
    /// The next start has it already: file and lock are theirs.
    Taken(Record),
    /// Somebody who does not name himself in the file holds it still.
    Held,
}

/// Tells whether anybody else holds a lock, by locking it through `second`: a description of the
/// file other than the one that held it, which is closed by now in this process.
///
/// Others may hold it for an instant and let go of it, as a child between fork and exec does, or a
/// reader who looks: it is tried for `patience`.
///
/// The file has to name nobody when the first is closed, or one that has ended: in the instant
/// between, another start may take the lock, and write its name.
pub(crate) fn lock_freed(
    directory: &Directory,
    name: &str,
    port: u16,
    second: &LockFile,
    patience: Duration,
) -> io::Result<Freed> {
    let started = Instant::now();
    let mut pause = Duration::from_micros(50);
    while !second.retry()? {
        if let Content::Holder(record) = Content::parse(&second.read()?, port)
            && is_holder(&record, second)?
        {
            return Ok(Freed::Taken(record));
        }
        if started.elapsed() >= patience {
            return Ok(Freed::Held);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
    if second.is_in(directory, name)? {
        return Ok(Freed::Ours);
    }
    Ok(Freed::Gone)
}

/// [`lock_freed`], and removes the file if nobody holds it. An error on the way leaves it.
pub(crate) fn remove_freed(
    directory: &Directory,
    name: &str,
    port: u16,
    second: &LockFile,
    patience: Duration,
) -> io::Result<Freed> {
    let freed = lock_freed(directory, name, port, second, patience)?;
    if freed == Freed::Ours {
        second.remove(directory, name)?;
    }
    Ok(freed)
}
