//! Whether a PID is alive, and can be the one that wrote a lock file.

use std::io;

use chrono::TimeDelta;

use crate::info::LockInfo;
use crate::sys::{self, LockFile, Process};

/// A process may seem to start this much after the lock it took: start times are coarse.
const START_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// Whether a process with this id is running. A zombie is not, and the id of a thread is none.
///
/// A PID alone is weak evidence, as the system gives it to another process in time: to know
/// whether a port is guarded, ask [`LockDir::servers`](crate::LockDir::servers).
pub fn is_process_running(pid: u32) -> bool {
    find(pid).is_some()
}

/// Asks the process to end: SIGTERM on Unix; on Windows it is terminated at once.
///
/// The caller vouches for the PID. [`stop_server`](crate::stop_server) checks it instead, and
/// waits.
///
/// # Errors
///
/// - [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 and for anything above [`i32::MAX`],
///   before any system call: `kill` takes those for process groups, or for every process there is.
/// - What the system says: no such process, not permitted.
pub fn stop_process(pid: u32) -> io::Result<()> {
    let pid = valid_pid(pid).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{pid} is not the id of a process; nothing was signalled"),
        )
    })?;
    sys::terminate(pid)
}

fn valid_pid(pid: u32) -> Option<i32> {
    i32::try_from(pid).ok().filter(|&pid| pid > 0)
}

pub(crate) fn find(pid: u32) -> Option<Process> {
    valid_pid(pid)?;
    sys::process(pid)
}

/// Whether the process that `info` names is running and can have written it: one that started
/// later got a recycled PID.
pub(crate) fn is_consistent(info: &LockInfo) -> bool {
    find(info.pid).is_some_and(|process| started_in_time(&process, info))
}

fn started_in_time(process: &Process, info: &LockInfo) -> bool {
    process
        .started
        .is_none_or(|started| started - START_TOLERANCE <= info.started_at)
}

/// The same for a lock that is held: its holder may also be recognised by its descriptor, which
/// tells the truth when the wall clock was set after the lock was taken.
pub(crate) fn is_holder(info: &LockInfo, file: &LockFile) -> bool {
    find(info.pid).is_some_and(|process| {
        started_in_time(&process, info) || matches!(sys::holds(info.pid, file), Ok(Some(true)))
    })
}
