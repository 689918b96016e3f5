//! What all Unix systems share: the lock directory, the lock file and its `flock`, owners.

mod again;
mod directory;
mod file;
mod hint;
mod owner;

#[cfg(target_os = "linux")]
pub(crate) use again::again;
pub(crate) use directory::Directory;
pub(crate) use file::LockFile;
pub(crate) use owner::{own_session, user_and_place};

use std::io;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Sends SIGTERM. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
}
