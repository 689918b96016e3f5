//! Servers of this machine, whoever started them: seeing and stopping them, which needs no handle.

use std::ffi::c_char;
use std::time::Duration;

use llmlb_lock_core::{LockDir, LockError, StopOptions};

use crate::failure::Failure;
use crate::lock::interrupter;
use crate::panic::{boundary, boundary_or};
use crate::pointer::{Out, directory, directory_or_default, reference, write_path, write_slice};
use crate::result::llmlb_result_t;
use crate::types::{llmlb_lock_info_t, llmlb_server_t, llmlb_stop_options_t, llmlb_stop_outcome_t};

/// What the lock file for `port` in the default directory says, whether its holder lives or not.
///
/// `*found` tells whether there is such a file, and `*info` is written if there is.
/// `LLMLB_INVALID_PORT`, `LLMLB_CORRUPTED`, `LLMLB_READ_FAILED`. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_read_lock_info(
    port: u16,
    info: *mut llmlb_lock_info_t,
    found: *mut bool,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { read_lock_info(|| Ok(LockDir::default()), port, info, found) })
}

/// `llmlb_read_lock_info` in a directory of the caller's choice. Also `LLMLB_INVALID_UTF8`, and
/// `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_read_lock_info_in(
    directory: *const c_char,
    port: u16,
    info: *mut llmlb_lock_info_t,
    found: *mut bool,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { read_lock_info(|| self::directory(directory), port, info, found) })
}

/// # Safety
///
/// As the header demands of every pointer.
unsafe fn read_lock_info(
    directory: impl FnOnce() -> Result<LockDir, Failure>,
    port: u16,
    info: *mut llmlb_lock_info_t,
    found: *mut bool,
) -> Result<(), Failure> {
    // SAFETY: the caller's.
    let (info, found) = unsafe { (Out::new(info, "info")?, Out::new(found, "found")?) };
    let read = directory()?.read_lock_info(port)?;
    found.write(read.is_some());
    if let Some(read) = read {
        info.write((&read).into());
    }
    Ok(())
}

/// Lists every lock file in the default directory with its state, by port. Changes nothing, and
/// touches no lock of a live server.
///
/// `*count` gets their number, on `LLMLB_BUFFER_TOO_SMALL` too, when `servers` is left as it is:
/// make room and call again, more than once if servers start meanwhile. `servers` may be NULL if
/// `capacity`, the number of entries there is room for, is 0.
///
/// `LLMLB_READ_FAILED` if the directory may not be read. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_list_servers(
    servers: *mut llmlb_server_t,
    capacity: usize,
    count: *mut usize,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { list_servers(|| Ok(LockDir::default()), servers, capacity, count) })
}

/// `llmlb_list_servers` in a directory of the caller's choice. Also `LLMLB_INVALID_UTF8`, and
/// `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_list_servers_in(
    directory: *const c_char,
    servers: *mut llmlb_server_t,
    capacity: usize,
    count: *mut usize,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { list_servers(|| self::directory(directory), servers, capacity, count) })
}

/// # Safety
///
/// As the header demands of every pointer.
unsafe fn list_servers(
    directory: impl FnOnce() -> Result<LockDir, Failure>,
    servers: *mut llmlb_server_t,
    capacity: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    let found = directory()?.servers()?;
    let found: Vec<llmlb_server_t> = found.iter().map(Into::into).collect();
    // SAFETY: the caller's.
    unsafe { write_slice(&found, servers, capacity, count, ("servers", "count")) }
}

/// Stops the server that guards `port`, and waits until it has ended and its lock file is gone.
///
/// It is asked with SIGTERM, through a handle that cannot come to mean another process, and only
/// if it can be shown to hold the lock and belongs to the owner of the lock file. Processes it
/// leaves behind that hold the lock are ended with it. On Windows it is asked through an event; a
/// process that does not listen for it (`llmlb_stop_event_listen`) is terminated at once, with or
/// without `force`.
///
/// `LLMLB_OK` means that `*outcome` tells how it went, not that the server has ended: look for
/// `LLMLB_STOP_TIMED_OUT`. `LLMLB_NOT_HOLDER` if the named process is not provably the holder,
/// `LLMLB_HELD_BY_UNKNOWN` if the holder can't be found, `LLMLB_STOP_FAILED` if it may not be
/// signalled or is the calling process itself; `LLMLB_INTERRUPTED`, `LLMLB_INVALID_PORT`,
/// `LLMLB_READ_FAILED`, `LLMLB_INVALID_UTF8`, `LLMLB_INVALID_ARGUMENT` for an empty directory. May
/// be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_stop_server(
    port: u16,
    options: *const llmlb_stop_options_t,
    outcome: *mut llmlb_stop_outcome_t,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (options, outcome) = unsafe {
            (
                reference(options, "options")?,
                Out::new(outcome, "outcome")?,
            )
        };
        // SAFETY: the caller's.
        let directory = unsafe { directory_or_default(options.directory) }?;
        // SAFETY: the caller's.
        let interrupted = unsafe { interrupter(options.interrupted, options.user_data) };
        let how = StopOptions::default()
            .timeout(Duration::from_millis(options.timeout_ms))
            .force(options.force);
        // Without a callback the wait need not wake up for one.
        let stopped = match options.interrupted {
            Some(_) => directory.stop_interruptible(port, &how, interrupted),
            None => directory.stop_server(port, &how),
        };
        outcome.write(stopped?.into());
        Ok(())
    })
}

/// Ends what killed servers of `port` have left behind, for launchers that are about to take the
/// lock: SIGTERM, and SIGKILL after `grace_ms` milliseconds. `*ended` gets the number of processes.
/// Nothing is touched that belongs to a server which lives, or whose launcher does.
///
/// They are known by `LLMLB_SERVER_ID_ENV` in their environment, and on Linux alone: elsewhere there
/// are none to be seen. `llmlb_stop_server` ends them too. `directory` may be NULL for the default
/// one.
///
/// `LLMLB_READ_FAILED` if processes can't be looked at, `LLMLB_STOP_FAILED` if one may not be
/// signalled or does not end though killed; `LLMLB_INVALID_PORT`, `LLMLB_INVALID_UTF8`,
/// `LLMLB_INVALID_ARGUMENT` for an empty directory. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_end_left_overs(
    directory: *const c_char,
    port: u16,
    grace_ms: u64,
    ended: *mut usize,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let ended = unsafe { Out::new(ended, "ended") }?;
        // SAFETY: the caller's.
        let directory = unsafe { directory_or_default(directory) }?;
        let grace = Duration::from_millis(grace_ms);
        ended.write(directory.end_left_overs(port, grace)?.len());
        Ok(())
    })
}

/// Asks a process to end, with SIGTERM; on Windows it is terminated at once. The caller vouches
/// for `pid`: `llmlb_stop_server` checks it instead, and waits.
///
/// `LLMLB_INVALID_ARGUMENT`, and nothing is signalled, for 0 and anything above INT32_MAX: `kill`
/// takes those for process groups. `LLMLB_NO_SUCH_PROCESS`, `LLMLB_STOP_FAILED` if it may not be
/// signalled. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_stop_process(pid: u32) -> llmlb_result_t {
    boundary(|| llmlb_lock_core::stop_process(pid).map_err(|e| Failure::of_signal(&e, pid)))
}

/// Whether a process with this id is running. A zombie is not, and the id of a thread is none. A
/// PID alone is weak evidence, as the system gives it to another process in time.
///
/// May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_is_process_running(pid: u32) -> bool {
    boundary_or(false, || llmlb_lock_core::is_process_running(pid))
}

/// Copies the path where the lock file for `port` is or would be in the default directory.
/// `LLMLB_INVALID_PORT`, `LLMLB_INVALID_UTF8`. For `buffer`, `capacity` and `needed` see
/// `llmlb_last_error_message`.
///
/// May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_path(
    port: u16,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { lock_path(&LockDir::default(), port, buffer, capacity, needed) })
}

/// `llmlb_lock_path` in a directory of the caller's choice. Also `LLMLB_INVALID_ARGUMENT` for an
/// empty directory. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_path_in(
    directory: *const c_char,
    port: u16,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        unsafe { lock_path(&self::directory(directory)?, port, buffer, capacity, needed) }
    })
}

/// # Safety
///
/// As the header demands of every pointer.
unsafe fn lock_path(
    directory: &LockDir,
    port: u16,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    if port == 0 {
        return Err(LockError::InvalidPort { port }.into());
    }
    // SAFETY: the caller's.
    unsafe { write_path(&directory.lock_path(port), buffer, capacity, needed) }
}

/// Copies the path of the default directory: `$LLMLB_LOCK_DIR` if that is set and not empty, else
/// `llmlb` in the system's temporary directory. `LLMLB_INVALID_UTF8`. For `buffer`, `capacity` and
/// `needed` see `llmlb_last_error_message`.
///
/// May be called by any thread; like everything that uses the default directory, not while
/// another changes the environment.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_dir(
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    boundary(|| unsafe { write_path(LockDir::default().path(), buffer, capacity, needed) })
}
