//! Being asked to stop, on Windows: an event of the system's in place of SIGTERM, which every other
//! system has. Apart, as it belongs to a process and to no lock.

use std::ffi::c_void;
use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle};
use std::time::Duration;

use llmlb_lock_core::StopEvent;

use crate::failure::Failure;
use crate::panic::{boundary, boundary_or};
use crate::pointer::{Out, reference};
use crate::result::llmlb_result_t;

/// Requests to end that `llmlb_stop_server` makes of this process, from
/// `llmlb_stop_event_listen` until `llmlb_stop_event_free`. Windows only: elsewhere they are
/// SIGTERM.
///
/// A server that listens is asked to end, and has the time that the caller gives it; one that does
/// not is terminated at once.
#[cfg(windows)]
pub struct llmlb_stop_event_t {
    event: StopEvent,
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        let code = match e.kind() {
            io::ErrorKind::AlreadyExists => llmlb_result_t::LLMLB_INVALID_ARGUMENT,
            _ => llmlb_result_t::LLMLB_STOP_EVENT_FAILED,
        };
        Self {
            code,
            message: format!("Failed to listen for stop requests: {e}"),
            os_error: e.raw_os_error().unwrap_or(0),
        }
    }
}

/// Listens for requests to end, whatever ports this process guards: call it before acquiring. On
/// success `*event` is a new handle, to be freed with `llmlb_stop_event_free`. Windows only.
///
/// `LLMLB_INVALID_ARGUMENT` if this process listens already, `LLMLB_STOP_EVENT_FAILED` if the
/// system refuses. May be called by any thread.
#[cfg(windows)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_stop_event_listen(
    event: *mut *mut llmlb_stop_event_t,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let out = unsafe { Out::new(event, "event") }?;
        let event = StopEvent::listen()?;
        out.write(Box::into_raw(Box::new(llmlb_stop_event_t { event })));
        Ok(())
    })
}

/// Waits up to `timeout_ms` milliseconds for the next request, UINT64_MAX without end; `*requested`
/// tells whether there was one. Each request ends one wait, and one that comes while nobody waits
/// ends the next. Windows only.
///
/// `LLMLB_STOP_EVENT_FAILED` if the system refuses. May be called by any thread.
#[cfg(windows)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_stop_event_wait(
    event: *const llmlb_stop_event_t,
    timeout_ms: u64,
    requested: *mut bool,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (event, requested) = unsafe {
            (
                reference(event, "event")?,
                Out::new(requested, "requested")?,
            )
        };
        let timeout = (timeout_ms != u64::MAX).then(|| Duration::from_millis(timeout_ms));
        requested.write(event.event.wait(timeout)?);
        Ok(())
    })
}

/// The event's HANDLE, to wait for it beside other things: a wait that it ends takes the request.
/// It stays the library's: do not close it. Windows only.
///
/// May be called by any thread.
#[cfg(windows)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_stop_event_handle(
    event: *const llmlb_stop_event_t,
    handle: *mut *mut c_void,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (event, handle) = unsafe { (reference(event, "event")?, Out::new(handle, "handle")?) };
        handle.write(event.event.as_handle().as_raw_handle());
        Ok(())
    })
}

/// Listens no longer, and frees the handle. NULL is fine; one that was freed before, or that
/// another thread is using, is undefined behaviour. Windows only.
#[cfg(windows)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_stop_event_free(event: *mut llmlb_stop_event_t) {
    boundary_or((), || {
        if !event.is_null() {
            // SAFETY: it came from Box::into_raw, and the caller frees it once.
            drop(unsafe { Box::from_raw(event) });
        }
    });
}
