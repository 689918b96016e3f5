//! A lock whose holder is still there, and has passed its descriptor on. Apart from acquiring, because
//! nothing is tried for or recovered: the kernel lock is one and the same all along.

use std::os::fd::OwnedFd;
use std::process;

use crate::dir::{LockDir, check_port, file_name};
use crate::error::LockError;
use crate::info::LockInfo;
use crate::lock::ServerLock;

impl LockDir {
    /// Continues the lock of another process, which has passed its descriptor on
    /// ([`ServerLock::as_fd`](std::os::fd::AsFd), `SCM_RIGHTS`): from here on the file names this
    /// process. The port is guarded all the while, and as long as either of the two has it.
    ///
    /// The other process calls [`ServerLock::adopt`] to have the lock back, or
    /// [`ServerLock::hand_over`], and drops it.
    ///
    /// # Errors
    ///
    /// - [`LockError::Lost`] if the descriptor is not of the file that is at the port's path.
    /// - [`LockError::HeldByUnknown`] if it does not carry the lock, which somebody else holds.
    /// - [`LockError::HandOverFailed`] if the file can't be written, or is no lock file.
    pub fn take_over(&self, port: u16, lock: OwnedFd) -> Result<ServerLock, LockError> {
        check_port(port)?;
        let path = self.lock_path(port);
        let lost = || LockError::Lost {
            port,
            path: self.lock_path(port),
        };
        let failed = LockError::HandOverFailed;
        let directory = self.open().map_err(failed)?.ok_or_else(lost)?;
        let file = directory.received(lock, &file_name(port)).map_err(failed)?;
        // On a description that has the lock this changes nothing.
        if !file.retry().map_err(failed)? {
            return Err(LockError::HeldByUnknown { port, path });
        }
        // Checks, before it writes, that it still is the file there.
        let info = LockInfo::now(process::id(), port);
        let mut lock = ServerLock::new(file, directory, path, info);
        lock.adopt()?;
        Ok(lock)
    }
}
