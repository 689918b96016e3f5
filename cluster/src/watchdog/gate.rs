//! The gate: a process that becomes the server only when the watchdog has a handle of it. Apart
//! from the guardian, as one half runs in the child.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::ClusterError;
use crate::sys;
use crate::watchdog::guardian::Watchdog;

const GO: u8 = b'g';

/// Holds back a server that was started through it. Dropping it shut ends the process: it never
/// becomes the server.
#[derive(Debug)]
#[must_use = "the server starts when this is opened"]
pub struct Gate<'a> {
    watchdog: &'a Watchdog,
    ours: File,
    /// Inherited by the child; ours until it has been started.
    theirs: OwnedFd,
}

impl<'a> Gate<'a> {
    /// Adds what [`pass_gate`] reads to `launcher`, which is the program with its hidden
    /// subcommand; the server's program and arguments are added behind it.
    pub(crate) fn new(watchdog: &'a Watchdog, launcher: &mut Command) -> io::Result<Self> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        // Above the standard ones, which the child sets up anew.
        let theirs = rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?;
        fcntl_setfd(&theirs, FdFlags::empty())?;
        launcher.arg(theirs.as_raw_fd().to_string());
        Ok(Self {
            watchdog,
            ours: ours.into(),
            theirs,
        })
    }

    /// Hands the child, which was just started and not waited for, to the watchdog, and lets it
    /// become the server. `cgroup` is a cgroup (v2) that has the server and nothing else.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watchdog`]: the watchdog has no handle of it; the child ends.
    pub fn open(mut self, pid: u32, cgroup: Option<&Path>) -> Result<(), ClusterError> {
        drop(self.theirs);
        self.watchdog.guard(pid, cgroup)?;
        self.ours.write_all(&[GO]).map_err(ClusterError::Watchdog)
    }
}

/// What the hidden subcommand does: waits for the gate to open, then becomes the server. `number`
/// is the first argument that the guardian added. Returns only if it can't.
///
/// # Errors
///
/// Why not: the guardian is gone ([`BrokenPipe`](io::ErrorKind::BrokenPipe)), or the command can't
/// be executed.
pub fn pass_gate(number: &OsStr, server: &mut Command) -> io::Error {
    match wait(number) {
        Ok(()) => server.exec(),
        Err(error) => error,
    }
}

fn wait(number: &OsStr) -> io::Result<()> {
    let number = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a gate's number"))?;
    // Closed when this returns, so the server does not have it.
    let mut pipe = File::from(sys::take_descriptor(number)?);
    let mut go = [0];
    match pipe.read_exact(&mut go) {
        Ok(()) if go == [GO] => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::BrokenPipe,
            "its guardian ended before the server was started",
        )),
    }
}
