//! Processes as the portable rooms want them: one look-up of a PID, and a handle to stop one by.

use std::io;
use std::os::windows::io::{AsRawHandle, OwnedHandle};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use windows_sys::Win32::System::Threading::{
    PROCESS_SYNCHRONIZE, PROCESS_TERMINATE, TerminateProcess,
};

use super::handle::{creation_time, no_process, open_exact, open_live, wait, wait_until};
use super::result::succeeded;
use super::stop_event;
use crate::sys::Process;

/// What `taskkill /F` ends a process with.
const KILLED: u32 = 1;

fn to_utc(filetime: u64) -> Option<DateTime<Utc>> {
    let since_1970 = i64::try_from(filetime).ok()? - 116_444_736_000_000_000;
    DateTime::from_timestamp_micros(since_1970 / 10)
}

/// Looks one process up. `None` for none, or one that has ended. `pid` must be from 1 to
/// `i32::MAX`.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let started = match open_exact(pid, PROCESS_SYNCHRONIZE) {
        Ok(handle) => {
            let handle = handle.filter(|handle| matches!(wait(handle, 0), Ok(false)))?;
            creation_time(&handle).ok().and_then(to_utc)
        }
        // Somebody else's then. Ids are multiples of four.
        Err(_) if pid.is_multiple_of(4) => None,
        Err(_) => return None,
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
}

impl ProcessHandle {
    /// `None` where there is no such process, or it has ended.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let opened = open_live(pid, PROCESS_TERMINATE)?;
        Ok(opened.map(|(handle, created)| Self {
            pid,
            handle,
            created,
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

    /// Ends it. A process that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // SAFETY: the handle is open, and was opened with the right to terminate.
        match succeeded(unsafe { TerminateProcess(self.handle.as_raw_handle(), KILLED) }) {
            Err(_) if wait(&self.handle, 0)? => Ok(()),
            result => result,
        }
    }

    /// Waits for its end. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_until(&self.handle, Instant::now().checked_add(timeout))
    }
}

/// Terminates it. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    let pid = pid.unsigned_abs();
    ProcessHandle::open(pid)?
        .ok_or_else(|| no_process(pid))?
        .kill()
}
