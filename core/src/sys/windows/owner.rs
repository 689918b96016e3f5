//! Who owns a lock file, and whether a process is theirs: what decides whom `stop` may end.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::windows::ffi::OsStringExt;
use std::os::windows::io::AsRawHandle;
use std::ptr;

use windows_sys::Win32::Foundation::LocalFree;
use windows_sys::Win32::Security::Authorization::{GetSecurityInfo, SE_FILE_OBJECT};
use windows_sys::Win32::Security::{
    EqualSid, IsWellKnownSid, LookupAccountSidW, OWNER_SECURITY_INFORMATION, PSECURITY_DESCRIPTOR,
    PSID, TokenOwner, TokenUser, WinBuiltinAdministratorsSid, WinLocalSystemSid,
};
use windows_sys::Win32::System::Threading::PROCESS_QUERY_LIMITED_INFORMATION;

use super::file::LockFile;
use super::handle::open_process;
use super::token::{open_token, token_sid};

/// The owner of a file.
pub(super) struct Owner {
    sid: PSID,
    descriptor: PSECURITY_DESCRIPTOR,
}

impl Owner {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let mut owner = Self {
            sid: ptr::null_mut(),
            descriptor: ptr::null_mut(),
        };
        // SAFETY: the handle is open; the two pointers are ours to be written, those not wanted
        // may be null.
        let code = unsafe {
            GetSecurityInfo(
                file.as_raw_handle(),
                SE_FILE_OBJECT,
                OWNER_SECURITY_INFORMATION,
                &mut owner.sid,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                &mut owner.descriptor,
            )
        };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code as i32));
        }
        Ok(owner)
    }

    /// Whether it is the system or the administrators, who could do anything anyway.
    fn is_trusted(&self) -> bool {
        [WinLocalSystemSid, WinBuiltinAdministratorsSid]
            .into_iter()
            // SAFETY: the SID is valid as long as its descriptor, which is freed on drop alone.
            .any(|known| unsafe { IsWellKnownSid(self.sid, known) } != 0)
    }

    pub(super) fn account(&self) -> Option<String> {
        let (mut name, mut domain) = ([0u16; 256], [0u16; 256]);
        let (mut name_len, mut domain_len) = (256, 256);
        let mut kind = 0;
        // SAFETY: the SID is valid, and the lengths are those of the arrays.
        let found = unsafe {
            LookupAccountSidW(
                ptr::null(),
                self.sid,
                name.as_mut_ptr(),
                &mut name_len,
                domain.as_mut_ptr(),
                &mut domain_len,
                &mut kind,
            )
        };
        let name = name.get(..name_len as usize).filter(|_| found != 0)?;
        OsString::from_wide(name).into_string().ok()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: GetSecurityInfo allocated it for us to free, and it is freed here alone.
        unsafe { LocalFree(self.descriptor) };
    }
}

/// Whether the process belongs to the owner of the lock file, or an administrator wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    let owner = Owner::of(file.file()?)?;
    if owner.is_trusted() {
        return Ok(true);
    }
    let Ok(process) = open_process(pid, PROCESS_QUERY_LIMITED_INFORMATION) else {
        return Ok(false);
    };
    let Ok(token) = open_token(process.as_raw_handle()) else {
        return Ok(false);
    };
    // An elevated process's files may belong to its group instead.
    for class in [TokenUser, TokenOwner] {
        // SAFETY: both are valid for as long as the values that own them.
        if unsafe { EqualSid(token_sid(&token, class)?.get(), owner.sid) } != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
