//! The handle is the lock: its holder opens the file for writing and shares reading and deleting
//! alone, so that a second holder fails with a sharing violation, everyone can read, and the
//! kernel frees the lock with the last copy of the handle.
//!
//! The file is not opened to be deleted on close. That takes a handle with delete access for as
//! long as the lock is held, which shuts out every program that reads without sharing deletion
//! (as most do), and it would keep the port taken while any reader had a dead holder's file open.

mod directory;
mod file;
mod handle;
mod owner;
mod process;
mod result;
mod stop_event;
mod token;

pub(crate) use directory::Directory;
pub(crate) use file::LockFile;
pub(crate) use owner::owned_alike;
pub(crate) use process::{ProcessHandle, identity, own_identity, process, terminate};
pub use stop_event::StopEvent;
