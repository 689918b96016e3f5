//! The system's list of all processes, for what a process that may not be opened does not tell:
//! apart, as it is asked for nothing else.

use std::io;
use std::mem;
use std::ops::Range;
use std::ptr;

use windows_sys::Wdk::System::SystemInformation::{
    NtQuerySystemInformation, SystemProcessInformation,
};
use windows_sys::Win32::Foundation::STATUS_INFO_LENGTH_MISMATCH;
use windows_sys::Win32::System::WindowsProgramming::SYSTEM_PROCESS_INFORMATION;

/// A machine with more to say has lost its senses.
const MAX_LEN: usize = 1 << 26;
/// Where in `Reserved1` the creation time lies, as it has since Windows Vista.
const CREATED: Range<usize> = 24..32;

/// When a process was created, in 100 ns since 1601. `None` for one that is not listed.
pub(super) fn creation_time(pid: u32) -> io::Result<Option<u64>> {
    let list = processes()?;
    let start = list.as_ptr();
    let mut offset = 0;
    while offset + mem::size_of::<SYSTEM_PROCESS_INFORMATION>() <= list.len() {
        // SAFETY: within the list; wine does not align the entries.
        let entry = unsafe {
            let entry = start.add(offset).cast::<SYSTEM_PROCESS_INFORMATION>();
            entry.read_unaligned()
        };
        if entry.UniqueProcessId as usize == pid as usize {
            let created = entry.Reserved1[CREATED].first_chunk();
            return Ok(created.map(|&bytes| u64::from_ne_bytes(bytes)));
        }
        match entry.NextEntryOffset as usize {
            0 => break,
            next => offset += next,
        }
    }
    Ok(None)
}

/// All of them, one after the other.
fn processes() -> io::Result<Vec<u8>> {
    let mut len = 1 << 18;
    loop {
        let mut list = vec![0; len];
        // SAFETY: as many bytes as stated are ours to be written.
        let status = unsafe {
            NtQuerySystemInformation(
                SystemProcessInformation,
                list.as_mut_ptr().cast(),
                len as u32,
                ptr::null_mut(),
            )
        };
        match status {
            0.. => return Ok(list),
            STATUS_INFO_LENGTH_MISMATCH if len < MAX_LEN => len *= 2,
            _ => {
                let message = format!("the system lists no processes: status {status:#x}");
                return Err(io::Error::other(message));
            }
        }
    }
}
