//! The stop event, which is to Windows what SIGTERM is to Unix: both ends of it, who listens and
//! who asks.

use std::io;
use std::mem;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    ERROR_ALREADY_EXISTS, ERROR_FILE_NOT_FOUND, GetLastError, LocalFree,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, SDDL_REVISION_1,
};
use windows_sys::Win32::Security::{PSECURITY_DESCRIPTOR, SECURITY_ATTRIBUTES, TokenUser};
use windows_sys::Win32::System::Threading::{
    CreateEventW, EVENT_MODIFY_STATE, GetCurrentProcess, OpenEventW,
    PROCESS_QUERY_LIMITED_INFORMATION, SetEvent,
};

use super::handle::{creation_time, no_process, open_live, open_process, wait_until};
use super::result::{is, succeeded};
use super::token::{open_token, token_sid};

/// The one name by which a process can be asked to end, in all sessions of the machine.
fn event_name(pid: u32, created: u64) -> Vec<u16> {
    let name = format!("Global\\llmlb-stop-{pid}-{created:x}\0");
    name.encode_utf16().collect()
}

/// Asks a process to end, which its caller has open. False if it does not listen.
pub(super) fn ask(pid: u32, created: u64) -> io::Result<bool> {
    let name = event_name(pid, created);
    // SAFETY: the name ends with a zero.
    let event = unsafe { OpenEventW(EVENT_MODIFY_STATE, 0, name.as_ptr()) };
    if event.is_null() {
        return match io::Error::last_os_error() {
            e if is(&e, ERROR_FILE_NOT_FOUND) => Ok(false),
            e => Err(e),
        };
    }
    // SAFETY: a new handle that nobody else has.
    let event = unsafe { OwnedHandle::from_raw_handle(event) };
    // SAFETY: the handle is open, and was opened with the right to set it.
    succeeded(unsafe { SetEvent(event.as_raw_handle()) })?;
    Ok(true)
}

/// Memory that the system allocated for us.
struct Local(*mut core::ffi::c_void);

impl Drop for Local {
    fn drop(&mut self) {
        // SAFETY: allocated by the system to be freed like this, and freed here alone.
        unsafe { LocalFree(self.0) };
    }
}

/// Requests to end that [`stop_server`](crate::stop_server) makes of this process. Windows only:
/// elsewhere they are SIGTERM.
///
/// A server that listens is asked to end, and has the time that the caller gives it; one that does
/// not is terminated at once.
///
/// ```no_run
/// # fn finish_requests() {}
/// use llmlb_lock_core::{ServerLock, StopEvent};
///
/// let stop = StopEvent::listen()?;
/// let lock = ServerLock::acquire(8000)?;
/// stop.wait(None)?;
/// finish_requests();
/// lock.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is a named kernel event that belongs to this process, whatever ports it guards. Its user,
/// administrators and the system may set it, nobody else.
#[derive(Debug)]
pub struct StopEvent {
    event: OwnedHandle,
}

impl StopEvent {
    /// Listens from now on, until it is dropped: do it before acquiring.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if this process listens already; what the
    /// system says.
    pub fn listen() -> io::Result<Self> {
        // SAFETY: no handle at all, but a constant that stands for this process.
        let this = unsafe { GetCurrentProcess() };
        let token = open_token(this)?;
        let user = token_sid(&token, TokenUser)?;
        let mut text: *mut u16 = ptr::null_mut();
        // SAFETY: the SID is valid, and the pointer is ours to be written.
        succeeded(unsafe { ConvertSidToStringSidW(user.get(), &mut text) })?;
        let sid = Local(text.cast());
        let len = (0..).take_while(|&i| {
            // SAFETY: up to its zero, the string is there to be read.
            unsafe { *sid.0.cast::<u16>().add(i) != 0 }
        });
        // SAFETY: as long as it was just seen to be.
        let user = unsafe { std::slice::from_raw_parts(sid.0.cast::<u16>(), len.count()) };
        let user = String::from_utf16_lossy(user);

        // Protected, not inherited: all for the user, to set it (2) for administrators and system.
        let access = format!("D:P(A;;GA;;;{user})(A;;0x2;;;BA)(A;;0x2;;;SY)\0");
        let access: Vec<u16> = access.encode_utf16().collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the string ends with a zero, and the pointer is ours to be written.
        succeeded(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                access.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        })?;
        let descriptor = Local(descriptor);
        let attributes = SECURITY_ATTRIBUTES {
            nLength: mem::size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: descriptor.0,
            bInheritHandle: 0,
        };

        let own = open_process(std::process::id(), PROCESS_QUERY_LIMITED_INFORMATION)?;
        let name = event_name(std::process::id(), creation_time(&own)?);
        // SAFETY: descriptor and name outlive the call, and the name ends with a zero.
        let event = unsafe { CreateEventW(&attributes, 0, 0, name.as_ptr()) };
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: only reads what the call above has left.
        let existed = unsafe { GetLastError() } == ERROR_ALREADY_EXISTS;
        // SAFETY: a new handle that nobody else has.
        let event = unsafe { OwnedHandle::from_raw_handle(event) };
        if existed {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this process listens for stop requests already",
            ));
        }
        Ok(Self { event })
    }

    /// Asks another process to end, as [`stop_server`](crate::stop_server) does. False if it does
    /// not listen. The caller vouches for the PID.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) for no such process; what the system says.
    pub fn request(pid: u32) -> io::Result<bool> {
        // Open while it is asked, so that its id is not given away.
        let (_process, created) = open_live(pid, 0)?.ok_or_else(|| no_process(pid))?;
        ask(pid, created)
    }

    /// Waits for the next request, or until `timeout` has run out: then it is false. Each request
    /// ends one wait, and one that comes while nobody waits ends the next.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait_until(
            &self.event,
            timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        )
    }
}

/// To wait for it beside other things: signalled by a request, until a wait takes it.
impl AsHandle for StopEvent {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.event.as_handle()
    }
}
