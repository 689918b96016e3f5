//! Makes calls again that a signal has interrupted. Apart, as every call on a file may be: on a file
//! system that waits for its server, also those that POSIX does not let be interrupted.

use std::io;

use rustix::io::Errno;

pub(crate) trait Interrupted {
    fn is_interrupted(&self) -> bool;
}

impl Interrupted for Errno {
    fn is_interrupted(&self) -> bool {
        *self == Self::INTR
    }
}

impl Interrupted for io::Error {
    fn is_interrupted(&self) -> bool {
        self.kind() == io::ErrorKind::Interrupted
    }
}

/// Async-signal-safe if `call` is.
pub(crate) fn again<T, E: Interrupted>(mut call: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    loop {
        match call() {
            Err(e) if e.is_interrupted() => {}
            result => return result,
        }
    }
}
