//! Handles of processes, opened, looked at and waited for: below the processes of the portable
//! rooms and the stop event, which both stand on it.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::time::Instant;

use windows_sys::Win32::Foundation::{
    ERROR_INVALID_PARAMETER, FILETIME, WAIT_FAILED, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows_sys::Win32::System::Threading::{
    GetProcessId, GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION,
    PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

use super::result::{is, succeeded};

pub(super) fn open_process(pid: u32, access: u32) -> io::Result<OwnedHandle> {
    // SAFETY: takes numbers and gives back a new handle, or null.
    let handle = unsafe { OpenProcess(access, 0, pid) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new handle that nobody else has.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Opens a process by its exact id: Windows ignores the two lowest bits. `None` for none.
fn open_exact(pid: u32, access: u32) -> io::Result<Option<OwnedHandle>> {
    let handle = match open_process(pid, access | PROCESS_QUERY_LIMITED_INFORMATION) {
        Ok(handle) => handle,
        Err(e) if is(&e, ERROR_INVALID_PARAMETER) => return Ok(None),
        Err(e) => return Err(e),
    };
    // SAFETY: the handle is open.
    let exact = unsafe { GetProcessId(handle.as_raw_handle()) } == pid;
    Ok(exact.then_some(handle))
}

/// A process that has not ended, and its creation time. `None` where there is no such process.
pub(super) fn open_live(pid: u32, access: u32) -> io::Result<Option<(OwnedHandle, u64)>> {
    let Some(handle) = open_exact(pid, PROCESS_SYNCHRONIZE | access)? else {
        return Ok(None);
    };
    let created = creation_time(&handle)?;
    let ended = wait(&handle, 0)?;
    Ok((!ended).then_some((handle, created)))
}

/// The error where a process is asked for that there is none of.
pub(super) fn no_process(pid: u32) -> io::Error {
    let message = format!("there is no process {pid}");
    io::Error::new(io::ErrorKind::NotFound, message)
}

/// False when the time ran out first. Processes that have ended can still be opened.
pub(super) fn wait(handle: &OwnedHandle, milliseconds: u32) -> io::Result<bool> {
    // SAFETY: the handle is open, and was opened with the right to wait.
    match unsafe { WaitForSingleObject(handle.as_raw_handle(), milliseconds) } {
        WAIT_OBJECT_0 => Ok(true),
        WAIT_TIMEOUT => Ok(false),
        WAIT_FAILED => Err(io::Error::last_os_error()),
        other => Err(io::Error::other(format!("unexpected wait result {other}"))),
    }
}

/// In 100 ns since 1601.
pub(super) fn creation_time(handle: &OwnedHandle) -> io::Result<u64> {
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: the handle is open, and the four structures are ours to be written.
    succeeded(unsafe { GetProcessTimes(handle.as_raw_handle(), created, exited, kernel, user) })?;
    Ok(u64::from(times[0].dwHighDateTime) << 32 | u64::from(times[0].dwLowDateTime))
}

/// False when it is later than `deadline`; `None` is no end.
pub(super) fn wait_until(handle: &OwnedHandle, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up, not to spin through the last millisecond; the largest number is no end.
        let step = left.map_or(u128::MAX, |left| left.as_nanos().div_ceil(1_000_000));
        let step = u32::try_from(step).unwrap_or(u32::MAX).min(u32::MAX - 1);
        if wait(handle, step)? {
            return Ok(true);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}
