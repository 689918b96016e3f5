//! The gate: a process that becomes the server only when the watchdog has a handle of it. Apart
//! from the guardian, as one half runs in the child.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::error::ClusterError;
use crate::watchdog::channel::{Channel, Message, ServerKin};
use crate::watchdog::guardian::Watchdog;

/// Holds back a server that was started through it. Dropping it shut ends the process: it never
/// becomes the server.
///
/// The child waits on its standard input; what opens the gate brings the server's own. No other
/// descriptor is inherited, so nothing leaks into what other threads start meanwhile.
#[derive(Debug)]
#[must_use = "the server starts when this is opened"]
pub struct Gate<'a> {
    watchdog: &'a Watchdog,
    channel: Channel,
    stdin: OwnedFd,
}

impl<'a> Gate<'a> {
    pub(crate) fn new(
        watchdog: &'a Watchdog,
        launcher: &mut Command,
        stdin: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let (channel, theirs) = Channel::pair()?;
        launcher.stdin(Stdio::from(theirs));
        Ok(Self {
            watchdog,
            channel,
            stdin: match stdin {
                Some(stdin) => stdin,
                None => File::open("/dev/null")?.into(),
            },
        })
    }

    /// Hands the child, which was just started and not waited for, to the watchdog, and lets it
    /// become the server. With `kin` all that the server starts is killed with it; without, its
    /// process group alone.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watchdog`]: the watchdog has no handle of it; the child ends.
    pub fn open(self, pid: u32, kin: Option<ServerKin>) -> Result<(), ClusterError> {
        self.watchdog.guard(pid, kin)?;
        self.channel
            .send(&Message::Open, Some(self.stdin.as_fd()))
            .map_err(ClusterError::Watchdog)
    }
}

/// What the hidden subcommand does: waits for the gate to open, then becomes the server. Returns
/// only if it can't.
///
/// # Errors
///
/// Why not: the guardian is gone ([`BrokenPipe`](io::ErrorKind::BrokenPipe)), or the command can't
/// be executed.
pub fn pass_gate(server: &mut Command) -> io::Error {
    match wait() {
        Ok(()) => server.exec(),
        Err(error) => error,
    }
}

fn wait() -> io::Result<()> {
    let channel = Channel::from(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?);
    match channel.receive(true) {
        Ok(Some((Message::Open, Some(stdin)))) => Ok(rustix::stdio::dup2_stdin(stdin)?),
        Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(error),
        _ => Err(io::Error::new(
            io::ErrorKind::BrokenPipe,
            "its guardian ended before the server was started",
        )),
    }
}
