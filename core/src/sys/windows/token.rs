//! The access token of a process, which tells whose it is: apart, as owners of files are compared
//! with it and the stop event's access is made from it.

use std::io;
use std::mem;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle, RawHandle};
use std::ptr;

use windows_sys::Win32::Security::{
    GetTokenInformation, PSID, TOKEN_OWNER, TOKEN_QUERY, TOKEN_USER, TokenUser,
};
use windows_sys::Win32::System::Threading::OpenProcessToken;

use super::result::succeeded;

pub(super) fn open_token(process: RawHandle) -> io::Result<OwnedHandle> {
    let mut token: RawHandle = ptr::null_mut();
    // SAFETY: the process handle is open, and the token is ours to be written.
    succeeded(unsafe { OpenProcessToken(process, TOKEN_QUERY, &mut token) })?;
    // SAFETY: a new handle that nobody else has.
    Ok(unsafe { OwnedHandle::from_raw_handle(token) })
}

/// A SID, with the buffer it lies in.
pub(super) struct TokenSid {
    /// Aligned for the pointers in it, and larger than the largest SID.
    buffer: Box<[u64; 32]>,
    class: i32,
}

impl TokenSid {
    pub(super) fn get(&self) -> PSID {
        let start = self.buffer.as_ptr();
        // SAFETY: the system has filled the buffer with the structure of its class.
        unsafe {
            if self.class == TokenUser {
                (*start.cast::<TOKEN_USER>()).User.Sid
            } else {
                (*start.cast::<TOKEN_OWNER>()).Owner
            }
        }
    }
}

/// `class` is `TokenUser` or `TokenOwner`.
pub(super) fn token_sid(token: &OwnedHandle, class: i32) -> io::Result<TokenSid> {
    let mut buffer = Box::new([0u64; 32]);
    let mut len = 0;
    // SAFETY: the handle is open, and as many bytes as stated are ours to be written.
    succeeded(unsafe {
        GetTokenInformation(
            token.as_raw_handle(),
            class,
            buffer.as_mut_ptr().cast(),
            mem::size_of_val(&*buffer) as u32,
            &mut len,
        )
    })?;
    Ok(TokenSid { buffer, class })
}
