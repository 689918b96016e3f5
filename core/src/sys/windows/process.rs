//! Processes as the portable rooms want them: one look-up of a PID, and a handle to stop one by.

use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use windows_sys::Win32::System::Threading::{PROCESS_TERMINATE, TerminateProcess};

use super::handle::{no_process, open_live, wait, wait_until};
use super::job::ServerJob;
use super::listed;
use super::result::succeeded;
use super::stop_event;
use crate::sys::Process;

/// What `taskkill /F` ends a process with.
const KILLED: u32 = 1;

fn to_utc(filetime: u64) -> Option<DateTime<Utc>> {
    let since_1970 = i64::try_from(filetime).ok()? - 116_444_736_000_000_000;
    DateTime::from_timestamp_micros(since_1970 / 10)
}

/// What can be told of a process. Not being able to tell is neither of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// With its creation time, in 100 ns since 1601: with its id, no other process has it, before
    /// a reboot or after.
    Alive {
        created: u64,
    },
    Dead,
    CannotTell,
}

/// Whether a process lives, and which one it is. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn life(pid: u32) -> Life {
    match open_live(pid, 0) {
        Ok(Some((_, created))) => Life::Alive { created },
        Ok(None) => Life::Dead,
        // Somebody else's, or none at all.
        Err(_) => match listed::creation_time(pid) {
            Ok(Some(created)) => Life::Alive { created },
            Ok(None) => Life::Dead,
            Err(_) => Life::CannotTell,
        },
    }
}

/// Looks one process up. `None` for none, or one that has ended. `pid` must be from 1 to
/// `i32::MAX`.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let started = match life(pid) {
        Life::Alive { created } => to_utc(created),
        Life::Dead => return None,
        Life::CannotTell => None,
    };
    Some(Process {
        started,
        parent: 0, // only of use where the holders of a lock can be told
    })
}

/// A process that can't turn into another one: its id is not given away while this is open.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    handle: OwnedHandle,
    created: u64,
    /// The server that it runs.
    job: Option<ServerJob>,
}

impl ProcessHandle {
    /// `None` where there is no such process, or it has ended.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let opened = open_live(pid, PROCESS_TERMINATE)?;
        Ok(opened.map(|(handle, created)| Self {
            pid,
            handle,
            created,
            job: ServerJob::of(pid, created),
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. False if it does not listen, and was ended at once.
    pub(crate) fn terminate(&self) -> io::Result<bool> {
        if stop_event::ask(self.pid, self.created)? {
            return Ok(true);
        }
        self.kill().map(|()| false)
    }

    /// Nothing here stops a process for a while.
    pub(crate) fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    /// Ends it with the server that it runs. A process that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // SAFETY: the handle is open, and was opened with the right to terminate.
        match succeeded(unsafe { TerminateProcess(self.handle.as_raw_handle(), KILLED) }) {
            Err(_) if wait(&self.handle, 0)? => {}
            result => result?,
        }
        self.job.as_ref().map_or(Ok(()), ServerJob::terminate)
    }

    /// Waits for its end and that of the server that it runs. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now().checked_add(timeout);
        if !wait_until(&self.handle, deadline)? {
            return Ok(false);
        }
        let job = self.job.as_ref();
        job.map_or(Ok(true), |job| job.wait_until(deadline))
    }
}

/// Terminates it. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    let pid = pid.unsigned_abs();
    ProcessHandle::open(pid)?
        .ok_or_else(|| no_process(pid))?
        .kill()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_tells_the_same_time_of_a_process_as_its_handle() {
        let own = std::process::id();
        let Life::Alive { created } = life(own) else {
            panic!("this process lives");
        };
        assert_eq!(listed::creation_time(own).unwrap(), Some(created));
        assert_eq!(listed::creation_time(own + 1).unwrap(), None);
    }

    #[test]
    fn what_may_not_be_opened_is_not_taken_for_older_than_it_is() {
        // The system's own process, which nobody opens, or wine's first.
        let Life::Alive { created } = life(4) else {
            return; // wine has none of this id
        };
        assert!(process(4).unwrap().started.is_some(), "{created}");
    }
}
