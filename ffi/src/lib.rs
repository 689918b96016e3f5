//! The C ABI of `llmlb-lock-core`: `libllmlb_lock`, described to C by `include/llmlb_lock.h`.
//!
//! The doc comments of everything exported become the header's, so they speak to a C programmer.
//! What holds for every function (NULL, strings, threads) is said once, in the header's opening,
//! which is in `cbindgen.toml`.

// Names are those of the header, so that the two can be read side by side.
#![allow(non_camel_case_types)]
// The header's opening states the contract of all pointers once.
#![allow(clippy::missing_safety_doc)]

mod error;
mod failure;
mod lock;
mod log;
mod panic;
mod pointer;
mod result;
mod server;
#[cfg(windows)]
mod stop_event;
mod types;
mod version;

pub use error::*;
pub use lock::*;
pub use log::*;
pub use result::*;
pub use server::*;
#[cfg(windows)]
pub use stop_event::*;
pub use types::*;
pub use version::*;
