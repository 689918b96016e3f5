//! The calling thread's last failure, as C asks for it.

use std::ffi::c_char;

use crate::failure::with_last;
use crate::panic::{boundary_or, boundary_quiet};
use crate::pointer::write_string;
use crate::result::llmlb_result_t;

/// Copies the message of the calling thread's last failure: several lines of text that name the
/// port or the path and say what to do, or "" if nothing has failed yet. Success does not clear
/// it.
///
/// `*needed` gets its size with the terminating NUL, on `LLMLB_BUFFER_TOO_SMALL` too; `buffer` may
/// be NULL if `capacity` is 0. May be called by any thread, and answers for that thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_last_error_message(
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    // Quiet, or a buffer that is too small would replace the message it is for.
    boundary_quiet(|| {
        let message = with_last(|last| last.message.clone()).unwrap_or_default();
        // SAFETY: as the header demands of every caller's buffer.
        unsafe { write_string(&message, buffer, capacity, needed) }
    })
}

/// The operating system's error number (`errno`, on Windows `GetLastError`) behind the calling
/// thread's last failure; 0 if there was none. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_last_os_error() -> i32 {
    boundary_or(0, || with_last(|last| last.os_error).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;
    use crate::failure::{Failure, set_last};

    #[test]
    fn a_message_that_does_not_fit_is_kept() {
        set_last(Failure::invalid("ten bytes."));
        let mut needed = 0;
        // SAFETY: NULL goes with a capacity of 0.
        let result = unsafe { llmlb_last_error_message(ptr::null_mut(), 0, &mut needed) };
        assert_eq!(result, llmlb_result_t::LLMLB_BUFFER_TOO_SMALL);
        assert_eq!(needed, 11);
        assert_eq!(
            with_last(|last| last.message.clone()),
            Some("ten bytes.".to_owned())
        );
    }
}
