//! The structures and enumerations that functions take and give, and how they are made of core's.
//! Apart from the functions, as their layout is the ABI: changing it is another `LLMLB_ABI_VERSION`.

use std::ffi::{c_char, c_void};
use std::ptr;

use chrono::{DateTime, Utc};
use llmlb_lock_core::{LockInfo, Server, ServerState, StopOptions, StopOutcome};

use crate::pointer::Out;

/// Who guards a port.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct llmlb_lock_info_t {
    /// When the process took the lock or was handed it: seconds since 1970-01-01T00:00:00Z ...
    pub started_at_sec: i64,
    /// ... and nanoseconds, 0 to 999999999.
    pub started_at_nsec: u32,
    /// The process id.
    pub pid: u32,
    /// The guarded port.
    pub port: u16,
}

impl llmlb_lock_info_t {
    pub(crate) fn new(pid: u32, started_at: DateTime<Utc>, port: u16) -> Self {
        Self {
            started_at_sec: started_at.timestamp(),
            // chrono has leap seconds in the nanoseconds, time_t has none.
            started_at_nsec: started_at.timestamp_subsec_nanos().min(999_999_999),
            pid,
            port,
        }
    }
}

impl From<&LockInfo> for llmlb_lock_info_t {
    fn from(info: &LockInfo) -> Self {
        Self::new(info.pid, info.started_at, info.port)
    }
}

/// Asked while a function waits, with the caller's `user_data`: true ends the wait with
/// `LLMLB_INTERRUPTED`. It runs on the thread that waits, at least every 50 ms, and must not throw
/// or longjmp.
pub type llmlb_interrupted_t = Option<unsafe extern "C" fn(user_data: *mut c_void) -> bool>;

/// How `llmlb_lock_acquire_with` acquires. All zero is a good start, and the default.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct llmlb_acquire_options_t {
    /// The lock directory; NULL for the default one.
    pub directory: *const c_char,
    /// How long to wait for another holder to leave, in milliseconds: 0 not to wait, UINT64_MAX
    /// without end.
    pub timeout_ms: u64,
    /// Ends the wait; NULL if nothing does.
    pub interrupted: llmlb_interrupted_t,
    /// Passed on to `interrupted`.
    pub user_data: *mut c_void,
}

/// How `llmlb_stop_server` stops. Start from `llmlb_stop_options_default`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct llmlb_stop_options_t {
    /// The lock directory; NULL for the default one.
    pub directory: *const c_char,
    /// How long the server may take to end after it was asked to, in milliseconds; UINT64_MAX
    /// without end. 5000 by default.
    pub timeout_ms: u64,
    /// Whether it is killed when the time has run out. Not by default.
    pub force: bool,
    /// Ends the wait; NULL if nothing does. A server that was asked to end does so all the same.
    pub interrupted: llmlb_interrupted_t,
    /// Passed on to `interrupted`.
    pub user_data: *mut c_void,
}

/// The default: the default directory, without waiting. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_acquire_options_default() -> llmlb_acquire_options_t {
    llmlb_acquire_options_t {
        directory: ptr::null(),
        timeout_ms: 0,
        interrupted: None,
        user_data: ptr::null_mut(),
    }
}

/// The default: the default directory, 5 seconds, no force. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_stop_options_default() -> llmlb_stop_options_t {
    let options = StopOptions::default();
    llmlb_stop_options_t {
        directory: ptr::null(),
        timeout_ms: options.timeout.as_millis() as u64,
        force: options.force,
        interrupted: None,
        user_data: ptr::null_mut(),
    }
}

/// How `llmlb_stop_server` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum llmlb_stop_status_t {
    /// In a way that has no number in this version.
    LLMLB_STOP_OTHER = 0,
    /// The server has ended, and its lock file is gone.
    LLMLB_STOP_STOPPED = 1,
    /// There was no server, nor a lock file.
    LLMLB_STOP_NOT_RUNNING = 2,
    /// There was no server; the lock file it left behind was removed.
    LLMLB_STOP_STALE_CLEANED = 3,
    /// The server was asked to end, but still runs.
    LLMLB_STOP_TIMED_OUT = 4,
    /// There was no server any more; processes that it had left behind were ended.
    LLMLB_STOP_LEFT_OVERS_ENDED = 5,
}

/// What `llmlb_stop_server` found and did.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct llmlb_stop_outcome_t {
    /// How it ended.
    pub status: llmlb_stop_status_t,
    /// Whether the server had to be killed: its time had run out, or, on Windows, it listens not.
    pub forced: bool,
    /// Whether `info` says who the server was; else it is all zero.
    pub has_info: bool,
    /// Who the server was.
    pub info: llmlb_lock_info_t,
}

impl From<StopOutcome> for llmlb_stop_outcome_t {
    fn from(outcome: StopOutcome) -> Self {
        use llmlb_stop_status_t::*;
        let (status, info, forced) = match outcome {
            StopOutcome::Stopped { info, forced, .. } => (LLMLB_STOP_STOPPED, Some(info), forced),
            StopOutcome::NotRunning => (LLMLB_STOP_NOT_RUNNING, None, false),
            StopOutcome::StaleCleaned { info } => (LLMLB_STOP_STALE_CLEANED, info, false),
            StopOutcome::LeftOversEnded { .. } => (LLMLB_STOP_LEFT_OVERS_ENDED, None, false),
            StopOutcome::TimedOut { info } => (LLMLB_STOP_TIMED_OUT, Some(info), false),
            _ => (LLMLB_STOP_OTHER, None, false),
        };
        Self {
            status,
            forced,
            has_info: info.is_some(),
            info: info.as_ref().map(Into::into).unwrap_or_default(),
        }
    }
}

/// Whether the server behind a lock file lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum llmlb_server_state_t {
    /// Something that has no number in this version.
    LLMLB_SERVER_OTHER = 0,
    /// The process that the file names is alive.
    LLMLB_SERVER_RUNNING = 1,
    /// The lock is held, but not by a process that the file names.
    LLMLB_SERVER_HELD = 2,
    /// Left behind: nobody holds the lock. The next acquire recovers it.
    LLMLB_SERVER_STALE = 3,
    /// The file may not be read, or is no regular file.
    LLMLB_SERVER_UNREADABLE = 4,
}

/// The size of `owner` in `llmlb_server_t`, in bytes with the terminating NUL.
pub const LLMLB_OWNER_SIZE: usize = 64;

/// One lock file in a lock directory.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct llmlb_server_t {
    /// The port it guards.
    pub port: u16,
    /// What became of its holder.
    pub state: llmlb_server_state_t,
    /// Whether `info` says what the file says; else it is all zero.
    pub has_info: bool,
    /// What the file says.
    pub info: llmlb_lock_info_t,
    /// Who owns a file that is unreadable, where that is known: a user's name or number, cut to
    /// fit; else "".
    pub owner: [c_char; LLMLB_OWNER_SIZE],
}

impl From<&Server> for llmlb_server_t {
    fn from(server: &Server) -> Self {
        use llmlb_server_state_t::*;
        let mut owner = [0; LLMLB_OWNER_SIZE];
        let state = match &server.state {
            ServerState::Running => LLMLB_SERVER_RUNNING,
            ServerState::Held => LLMLB_SERVER_HELD,
            ServerState::Stale => LLMLB_SERVER_STALE,
            ServerState::Unreadable { owner: name } => {
                if let Some(name) = name {
                    copy_cut(name, &mut owner);
                }
                LLMLB_SERVER_UNREADABLE
            }
            _ => LLMLB_SERVER_OTHER,
        };
        Self {
            port: server.port,
            state,
            has_info: server.info.is_some(),
            info: server.info.as_ref().map(Into::into).unwrap_or_default(),
            owner,
        }
    }
}

/// Copies what fits, whole characters only, and leaves the last byte as it is.
fn copy_cut(text: &str, buffer: &mut [c_char]) {
    let mut len = text.len().min(buffer.len() - 1);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    for (to, from) in buffer.iter_mut().zip(&text.as_bytes()[..len]) {
        *to = *from as c_char;
    }
}

/// Writes the holder's details; of all out-parameters only these are written on failure.
pub(crate) fn write_holder(
    holder: Out<llmlb_lock_info_t>,
    e: llmlb_lock_core::LockError,
) -> crate::failure::Failure {
    if let llmlb_lock_core::LockError::AlreadyRunning {
        port,
        pid,
        started_at,
    } = &e
    {
        holder.write(llmlb_lock_info_t::new(*pid, *started_at, *port));
    }
    e.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(all(unix, target_pointer_width = "64"))]
    #[test]
    fn layouts_are_frozen() {
        use std::mem::offset_of;

        // Programs are compiled with these: another layout is another LLMLB_ABI_VERSION.
        assert_eq!(crate::LLMLB_ABI_VERSION, 1);
        assert_eq!(size_of::<llmlb_lock_info_t>(), 24);
        assert_eq!(offset_of!(llmlb_lock_info_t, port), 16);
        assert_eq!(size_of::<llmlb_acquire_options_t>(), 32);
        assert_eq!(offset_of!(llmlb_acquire_options_t, user_data), 24);
        assert_eq!(size_of::<llmlb_stop_options_t>(), 40);
        assert_eq!(offset_of!(llmlb_stop_options_t, force), 16);
        assert_eq!(size_of::<llmlb_stop_outcome_t>(), 32);
        assert_eq!(offset_of!(llmlb_stop_outcome_t, info), 8);
        assert_eq!(size_of::<llmlb_server_t>(), 104);
        assert_eq!(offset_of!(llmlb_server_t, info), 16);
        assert_eq!(offset_of!(llmlb_server_t, owner), 40);
    }

    #[test]
    fn a_long_owner_is_cut_between_characters() {
        let mut buffer = [0; 5];
        copy_cut("abéé", &mut buffer);
        assert_eq!(buffer.map(|c| c as u8), *b"ab\xc3\xa9\0");
        let mut buffer = [0; 4];
        copy_cut("abéé", &mut buffer);
        assert_eq!(buffer.map(|c| c as u8), *b"ab\0\0");
    }

    #[test]
    fn a_leap_second_stays_within_the_second() {
        let leap = "2016-12-31T23:59:60.5Z".parse().unwrap();
        let info = llmlb_lock_info_t::new(1, leap, 2);
        assert_eq!(
            (info.started_at_sec, info.started_at_nsec),
            (1_483_228_799, 999_999_999)
        );
        let before_1970 = "1969-12-31T23:59:59.25Z".parse().unwrap();
        let info = llmlb_lock_info_t::new(1, before_1970, 2);
        assert_eq!(
            (info.started_at_sec, info.started_at_nsec),
            (-1, 250_000_000)
        );
    }
}
