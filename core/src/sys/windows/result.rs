//! What the system's functions give back, as Rust has it: apart, as every other file here calls them.

use std::io;

pub(super) fn is(e: &io::Error, code: u32) -> bool {
    e.raw_os_error().and_then(|raw| u32::try_from(raw).ok()) == Some(code)
}

pub(super) fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
