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
use crate::record::Identity;
use crate::sys::Process;

/// What `taskkill /F` ends a process with.
const KILLED: u32 = 1;

fn to_utc(filetime: u64) -> Option<DateTime<Utc>> {
    let since_1970 = i64::try_from(filetime).ok()? - 116_444_736_000_000_000;
    DateTime::from_timestamp_micros(since_1970 / 10)
}

/// Looks one process up. `None` for none, or one that has ended; an error where it can't be told.
/// `pid` must be from 1 to `i32::MAX`.
pub(crate) fn process(pid: u32) -> io::Result<Option<Process>> {
    let created = match open_live(pid, 0) {
        Ok(found) => found.map(|(_, created)| created),
        // Somebody else's, or none at all.
        Err(_) => listed::creation_time(pid)?,
    };
    Ok(created.map(|created| Process {
        started: to_utc(created),
        parent: 0, // only of use where the holders of a lock can be told
        start: created,
        owner: None,
    }))
}

/// That of a process which was created at `start`.
pub(crate) fn identity(start: u64) -> io::Result<Option<Identity>> {
    Ok(Some(Identity {
        creation_time: Some(start),
        ..Identity::default()
    }))
}

pub(crate) fn own_identity() -> io::Result<Option<Identity>> {
    match process(std::process::id())? {
        Some(own) => identity(own.start),
        None => Ok(None),
    }
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

    /// Whether it has ended itself, whatever the server that it runs does.
    pub(crate) fn has_ended_itself(&self) -> io::Result<bool> {
        wait(&self.handle, 0)
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
        let start = process(own).unwrap().unwrap().start;
        assert_eq!(listed::creation_time(own).unwrap(), Some(start));
        assert_eq!(listed::creation_time(own + 1).unwrap(), None);
        assert!(process(own + 1).unwrap().is_none());
    }
}
