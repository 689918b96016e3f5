//! The two calls that rustix has no safe name for, and a timer for all threads: all `unsafe` of this
//! crate is here.
#![allow(unsafe_code)]

use std::io;

/// A timer that any thread may use, not only the one that made it.
pub(crate) struct ProcessTimer(pub(crate) nix::sys::timer::Timer);

// SAFETY: a timer's id is the process's, not a thread's; that it is a pointer is how libc writes it.
unsafe impl Send for ProcessTimer {}

/// Real-time priority for this thread and those it starts, above all that is not real-time. Needs CAP_SYS_NICE or
/// RLIMIT_RTPRIO.
pub(crate) fn real_time() -> io::Result<()> {
    // The kernel's `struct sched_param`, by its own call: musl's function refuses to make it.
    let priority: libc::c_int = 1;
    // Threads that it starts have it as well: they are waited for.
    // SAFETY: the pointer is to a live local; 0 is the calling thread.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO,
            &raw const priority,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor above the standard ones: what was inherited would be kept open for as
/// long as this process lives, a lock among it. Only for a process that has opened nothing yet.
pub(crate) fn close_inherited() {
    // SAFETY: no pointers; that nothing of this process is among them is the caller's contract.
    // Before Linux 5.9 there is no such call, and what was inherited stays open.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
}
