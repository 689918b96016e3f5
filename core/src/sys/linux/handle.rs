//! A process that cannot turn into another one while it is signalled.

use std::io::{self};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::error::context;
use crate::sys::unix::again;

use super::process::{pidfd, stat};

/// How often a process without a pidfd is looked at.
const FALLBACK_POLL: Duration = Duration::from_millis(2);
/// A process that can't turn into another one: a pidfd, or, where the kernel or a sandbox refuses
/// those, the PID together with its start.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    pidfd: Option<OwnedFd>,
    start: u64,
}

impl ProcessHandle {
    /// `None` where there is no such process. `pid` must be from 1 to `i32::MAX`.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let pidfd = match pidfd(pid) {
            Ok(fd) => Some(fd),
            Err(Errno::SRCH) => return Ok(None),
            Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => None,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None), // a thread
            Err(e) => return Err(context(e, format!("pidfd of PID {pid}"))),
        };
        let Some(stat) = stat(pid)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            pidfd,
            start: stat.start,
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. True: it can be asked.
    pub(crate) fn terminate(&self) -> io::Result<bool> {
        self.signal(Signal::TERM).map(|()| true)
    }

    /// Lets it go on if it is stopped (Ctrl-Z): it could not react otherwise.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// A process that is gone already is no error.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let result = match &self.pidfd {
            Some(pidfd) => again(|| rustix::process::pidfd_send_signal(pidfd, signal)),
            None if self.is_gone()? => return Ok(()),
            None => match i32::try_from(self.pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Err(Errno::SRCH),
            },
        };
        match result {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn is_gone(&self) -> io::Result<bool> {
        let stat = stat(self.pid)?;
        Ok(stat.is_none_or(|stat| !stat.is_alive() || stat.start != self.start))
    }

    /// Waits for its end; a zombie has ended. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(pidfd) = &self.pidfd else {
                if self.is_gone()? {
                    return Ok(true);
                }
                if left.is_zero() {
                    return Ok(false);
                }
                std::thread::sleep(left.min(FALLBACK_POLL));
                continue;
            };
            let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            let timespec = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match rustix::event::poll(&mut fds, Some(&timespec)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
