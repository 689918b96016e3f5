//! The whole error space, in the words the user reads.

use std::fmt;
use std::io;
use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat, Utc};
use thiserror::Error;

/// Everything that can go wrong with a server lock.
///
/// Messages name the port or the path and say what to do next.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another server holds the port, and this is who.
    #[error(
        "Server already running on port {port} (PID: {pid}, started: {started})\n\n\
         To stop: llmlb stop --port {port}\n\
         Or:      kill -TERM {pid}",
        started = started_at.to_rfc3339_opts(SecondsFormat::Secs, true)
    )]
    AlreadyRunning {
        /// The guarded port.
        port: u16,
        /// The holder's process id.
        pid: u32,
        /// When the holder took the lock.
        started_at: DateTime<Utc>,
    },
    /// The lock could not be taken; the message names the path and the reason.
    #[error("Failed to acquire lock: {0}")]
    AcquireFailed(#[source] io::Error),
    /// The lock could not be given back cleanly: its file could not be removed, or another process,
    /// as a forked child, has it still and keeps the port guarded. This one holds it no more.
    #[error("Failed to release lock: {0}")]
    ReleaseFailed(#[source] io::Error),
    /// The lock file is not what this library writes. Comes from reading alone: acquiring recovers
    /// a corrupt file that nobody holds.
    #[error("Lock file corrupted: {0}")]
    Corrupted(String),
    /// The lock directory could not be created or opened.
    #[error("Failed to create lock directory: {0}")]
    DirectoryCreationFailed(#[source] io::Error),
    /// The lock is held, but its file does not name a live process that can be shown or signalled.
    #[error(
        "Port {port} is locked by a process that {path} does not name\n\n\
         To end it, unless it is another user's: llmlb stop --port {port}\n\
         To see it, as root:                     fuser -v {path}", path = path.display()
    )]
    HeldByUnknown {
        /// The guarded port.
        port: u16,
        /// The lock file.
        path: PathBuf,
    },
    /// Port 0 names no port.
    #[error("Invalid port {port}: a lock needs a port from 1 to 65535")]
    InvalidPort {
        /// The refused port.
        port: u16,
    },
    /// The lock file was removed or replaced while this lock was held: another server can start.
    #[error(
        "Lock for port {port} was lost: {path} was removed or replaced by someone else; \
         restart this server to guard the port again", path = path.display()
    )]
    Lost {
        /// The port that is no longer guarded.
        port: u16,
        /// Where the lock file was.
        path: PathBuf,
    },
    /// A lock can only be handed over to a live process, and not to a thread.
    #[error("Cannot hand the lock for port {port} over to PID {pid}: no such running process")]
    NoSuchProcess {
        /// The guarded port.
        port: u16,
        /// The process that was named.
        pid: u32,
    },
    /// Only the process that acquired or adopted a lock may rewrite it.
    #[error("The lock for port {port} belongs to PID {owner}; call adopt() in this process first")]
    NotOwner {
        /// The guarded port.
        port: u16,
        /// The process the lock belongs to.
        owner: u32,
    },
    /// The lock file could not be rewritten for its new holder.
    #[error("Failed to hand the lock over: {0}")]
    HandOverFailed(#[source] io::Error),
    /// A lock file or the lock directory could not be read.
    #[error("Failed to read lock: {0}")]
    ReadFailed(#[source] io::Error),
    /// The process that the file names cannot be shown to hold the lock: it is not signalled.
    #[error(
        "Not stopping PID {pid}: {path} names it for port {port}, but {reason}\n\n\
         If it is your server: kill -TERM {pid}\n\
         If it is not:         rm {path}", path = path.display()
    )]
    NotHolder {
        /// The guarded port.
        port: u16,
        /// The process that was spared.
        pid: u32,
        /// The lock file.
        path: PathBuf,
        /// Why it is not taken for the holder.
        reason: &'static str,
    },
    /// The server could not be signalled or waited for.
    #[error("Failed to stop server: {0}")]
    StopFailed(#[source] io::Error),
    /// A wait was ended by its `interrupted` callback.
    #[error("Interrupted while waiting for port {port}")]
    Interrupted {
        /// The port that was waited for.
        port: u16,
    },
}

impl LockError {
    /// The operating system's error number, where one caused this error.
    pub fn raw_os_error(&self) -> Option<i32> {
        match self {
            Self::AcquireFailed(e)
            | Self::ReleaseFailed(e)
            | Self::DirectoryCreationFailed(e)
            | Self::HandOverFailed(e)
            | Self::ReadFailed(e)
            | Self::StopFailed(e) => os_error(e),
            _ => None,
        }
    }
}

pub(crate) fn os_error(e: &io::Error) -> Option<i32> {
    e.raw_os_error()
        .or_else(|| os_error(&e.get_ref()?.downcast_ref::<Context>()?.source))
}

/// An [`io::Error`] with what was being done, to which path; keeps the error number reachable.
#[derive(Debug)]
struct Context {
    what: String,
    source: io::Error,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for Context {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

pub(crate) fn context(source: impl Into<io::Error>, what: impl Into<String>) -> io::Error {
    let source = source.into();
    io::Error::new(
        source.kind(),
        Context {
            what: what.into(),
            source,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_number_is_found_below_every_context() {
        let os = || io::Error::from_raw_os_error(20);
        let nested = context(context(os(), "cannot open"), "set a directory");
        assert_eq!(LockError::ReadFailed(os()).raw_os_error(), Some(20));
        assert_eq!(LockError::ReadFailed(nested).raw_os_error(), Some(20));
        assert_eq!(
            LockError::ReadFailed(io::Error::other("")).raw_os_error(),
            None
        );
    }
}
