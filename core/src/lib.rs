//! One server per port, always.
//!
//! ```
//! # let dir = tempfile::tempdir().unwrap();
//! # let locks = llmlb_lock_core::LockDir::new(dir.path());
//! # let port = 8000;
//! use llmlb_lock_core::LockError;
//!
//! let lock = locks.acquire(port)?; // or ServerLock::acquire(port) for the default directory
//! match locks.acquire(port) {
//!     Err(LockError::AlreadyRunning { pid, .. }) => assert_eq!(pid, std::process::id()),
//!     other => panic!("the port is guarded: {other:?}"),
//! }
//! lock.release()?; // dropping it does the same
//! # Ok::<(), LockError>(())
//! ```
//!
//! A lock is the file `serve_<port>.lock` in a [`LockDir`], held with a kernel lock (`flock` on
//! Unix, an exclusive handle on Windows) that disappears with its last holder, however that ends.
//! **The kernel lock is the truth; the JSON in the file only says whom to show and whom to
//! signal.** Everything that can hurt (refusing, recovering, signalling, removing) is decided
//! under the lock or against a process handle, never from a bare PID.
//!
//! | you want to | call |
//! | --- | --- |
//! | guard a port | [`ServerLock::acquire`], [`ServerLock::acquire_timeout`] |
//! | give the lock to a server you start | [`ServerLock::set_inheritable`], [`ServerLock::hand_over`] |
//! | keep it across a daemonizing fork | [`ServerLock::adopt`] |
//! | see what runs | [`list_all_locks`], [`LockDir::servers`], [`read_lock_info`] |
//! | stop a server | [`stop_server`]; for a PID you trust, [`stop_process`] |
//! | be stopped gracefully | SIGTERM on Unix, `StopEvent` on Windows |
//!
//! # What it does not protect
//!
//! - Processes that do not take the lock: it is advisory, a port can still be bound without it.
//! - A holder whose lock file is removed by hand: [`ServerLock::verify`] tells.
//! - Lock directories on network file systems whose `flock` is local to each client.

// Allowed in a few rooms of `sys`.
#![deny(unsafe_code)]

mod acquire;
#[cfg(unix)]
mod child_hook;
mod dir;
mod error;
mod info;
#[cfg(target_os = "linux")]
mod kin;
mod left_behind;
mod left_over;
mod list;
mod lock;
#[cfg(unix)]
mod offspring;
mod process;
mod record;
mod removal;
mod server_id;
mod stop;
mod sys;
#[cfg(unix)]
mod take_over;
mod wait;

/// The crate that the times in [`LockInfo`] and [`LockError`] are of.
pub use chrono;

#[cfg(unix)]
pub use child_hook::ChildHook;
pub use dir::{LOCK_DIR_ENV, LockDir, lock_dir, lock_path, read_lock_info};
pub use error::LockError;
pub use info::LockInfo;
#[cfg(target_os = "linux")]
pub use kin::Kin;
pub use left_over::LeftOver;
pub use list::{Server, ServerState, list_all_locks};
pub use lock::ServerLock;
#[cfg(unix)]
pub use offspring::{Offspring, OffspringEntrance};
pub use process::{is_process_running, process_command, stop_process};
pub use server_id::{SERVER_ID_ENV, ServerId};
pub use stop::{GUARDED_PORT_ENV, StopOptions, StopOutcome, stop_server};
#[cfg(windows)]
pub use sys::{ServerJob, StopEvent};
