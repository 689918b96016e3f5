//! All that differs between operating systems. Each has the same items:
//!
//! - [`Directory`] and [`LockFile`]: the lock file and its kernel lock.
//! - [`process`]: who a PID is, by one look-up.
//! - [`ProcessHandle`]: a process that cannot turn into another one while it is signalled.
//! - [`holds`], [`holders`], [`stragglers`]: who really holds a lock, where the kernel tells.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub(crate) use unix::*;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub(crate) use linux::*;

#[cfg(all(unix, not(target_os = "linux")))]
mod macos;
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) use macos::*;

#[cfg(not(target_os = "linux"))]
mod untold;
#[cfg(not(target_os = "linux"))]
pub(crate) use untold::*;

#[cfg(windows)]
#[allow(unsafe_code)]
mod windows;
#[cfg(windows)]
pub use windows::StopEvent;
#[cfg(windows)]
pub(crate) use windows::*;

use std::io;
use std::path::Path;

use chrono::{DateTime, Utc};

/// A live process: not a zombie, not a thread.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// When it started, where the system tells; may be off by a second.
    pub(crate) started: Option<DateTime<Utc>>,
    pub(crate) parent: u32,
    /// The same exactly, on a scale of the system's own that no clock changes.
    pub(crate) start: u64,
    /// Whose it is, where the look-up happens to tell.
    pub(crate) owner: Option<u32>,
}

/// One try to take the lock.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// The kernel lock is ours. The path may name another file by now.
    Locked(LockFile),
    /// Somebody else has it. The file is open for reading and for [`LockFile::retry`].
    Contended(LockFile),
    /// The file came or went between two looks: try again.
    Moved,
    /// The directory itself is gone.
    NoDirectory,
}

/// The error for something in the lock's place that is no lock file.
fn refuse(path: &Path, why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "{} {why}; it was left alone: look at it, then remove it",
            path.display()
        ),
    )
}
