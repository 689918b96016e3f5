//! Whether header and library fit each other: what a program asks before anything else.

use std::ffi::{CStr, c_char};

use crate::failure::Failure;
use crate::panic::boundary;
use crate::result::llmlb_result_t;

/// The version of this header's interface. It changes when programs must be compiled anew.
pub const LLMLB_ABI_VERSION: u32 = 1;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => unreachable!(),
    };

/// The library's version, such as "0.1.0". Never NULL, valid for ever. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The interface's version that the library was built with. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_abi_version() -> u32 {
    LLMLB_ABI_VERSION
}

/// `LLMLB_ABI_MISMATCH` unless the library fits the header the program was compiled with: call it
/// once at the start, with `LLMLB_ABI_VERSION`. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_abi_check(version: u32) -> llmlb_result_t {
    boundary(|| {
        if version == LLMLB_ABI_VERSION {
            return Ok(());
        }
        Err(Failure::new(
            llmlb_result_t::LLMLB_ABI_MISMATCH,
            format!(
                "compiled for version {version} of the interface, but libllmlb_lock has version \
                 {LLMLB_ABI_VERSION}"
            ),
        ))
    })
}
