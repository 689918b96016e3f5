//! Taking a lock: trying, waiting, and what a free lock's file says of those who had it before.

use std::process;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::dir::{LockDir, SETTLE, check_port, file_name};
use crate::error::LockError;
use crate::info::{Content, LockInfo};
use crate::lock::{ServerLock, write_info};
use crate::process::{is_consistent, is_holder};
use crate::sys::{Attempt, Directory, LockFile};

/// How often a waiter tries for the lock: one system call each time.
const WAIT_STEP: Duration = Duration::from_millis(7);
/// Once in how many tries a waiter looks whether it waits for the right file.
const CHECK_STEPS: u32 = 50;

impl LockDir {
    /// Guards `port`. Does not wait for another holder to leave.
    ///
    /// A file that nobody holds is recovered, with a warning. A lock that is held without naming a
    /// live process, as it is for an instant when servers start or stop, is looked at again for
    /// about one second.
    ///
    /// # Errors
    ///
    /// - [`LockError::AlreadyRunning`]: another server has the port, and this is who.
    /// - [`LockError::HeldByUnknown`]: it is held, and the file does not tell by whom.
    /// - [`LockError::InvalidPort`] for port 0.
    /// - [`LockError::DirectoryCreationFailed`], [`LockError::AcquireFailed`]: the directory or
    ///   the file can't be used, for instance because something that is not a lock file is in its
    ///   place, or another user's is.
    pub fn acquire(&self, port: u16) -> Result<ServerLock, LockError> {
        self.acquire_timeout(port, Duration::ZERO)
    }

    /// Guards `port`, waiting up to `timeout` for its holder to leave.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), of the last try.
    pub fn acquire_timeout(&self, port: u16, timeout: Duration) -> Result<ServerLock, LockError> {
        self.acquire_interruptible(port, timeout, || false)
    }

    /// [`acquire_timeout`](Self::acquire_timeout), ended by `interrupted` when that returns true.
    /// It is called every few milliseconds, and only while waiting.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire), and [`LockError::Interrupted`].
    pub fn acquire_interruptible(
        &self,
        port: u16,
        timeout: Duration,
        mut interrupted: impl FnMut() -> bool,
    ) -> Result<ServerLock, LockError> {
        check_port(port)?;
        let name = file_name(port);
        let mut directory = self.open_or_create()?;
        // A timeout too long for the clock is one without end.
        let deadline = Instant::now().checked_add(timeout);
        let mut unclear: Option<Unclear> = None;
        let mut pause = |step: Duration| {
            if interrupted() {
                return Err(LockError::Interrupted { port });
            }
            thread::sleep(step);
            Ok(())
        };
        loop {
            let expired = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let waiting = match directory
                .try_lock(&name)
                .map_err(LockError::AcquireFailed)?
            {
                Attempt::Locked(file) => match self.claim(file, directory, port)? {
                    Claim::Acquired(lock) => return Ok(lock),
                    Claim::Moved(returned) => {
                        directory = returned;
                        None
                    }
                    // It closed its descriptors, as daemonizers do: there is no lock to wait on.
                    Claim::Alive(info, returned) => {
                        directory = returned;
                        if expired() {
                            return Err(LockError::already_running(info));
                        }
                        pause(5 * WAIT_STEP)?;
                        unclear = None;
                        continue;
                    }
                },
                Attempt::Contended(file) => Some(file),
                Attempt::Moved => None,
                Attempt::NoDirectory => {
                    directory = self.open_or_create()?;
                    None
                }
            };
            if let Some(file) = waiting {
                let bytes = file.read().map_err(LockError::AcquireFailed)?;
                if let Content::Holder(info) = Content::parse(&bytes, port)
                    && is_holder(&info, &file)
                {
                    if expired() {
                        return Err(LockError::already_running(info));
                    }
                    // Whatever we lock here is looked at anew: the holder removes the file.
                    let path = self.lock_path(port);
                    let mut steps = 0_u32;
                    while !expired() && !file.retry().map_err(LockError::AcquireFailed)? {
                        pause(WAIT_STEP)?;
                        steps = steps.wrapping_add(1);
                        // A file that was removed under its holder is no longer worth a wait.
                        if steps.is_multiple_of(CHECK_STEPS)
                            && !file.is_at(&path).map_err(LockError::AcquireFailed)?
                        {
                            break;
                        }
                    }
                    file.unlock();
                    unclear = None;
                    continue;
                }
            }
            // Someone is starting, stopping or recovering this very moment.
            let unclear = unclear.get_or_insert_with(Unclear::now);
            if expired() && unclear.since.elapsed() >= SETTLE {
                return Err(LockError::HeldByUnknown {
                    port,
                    path: self.lock_path(port),
                });
            }
            pause(unclear.next_pause())?;
        }
    }

    /// Under the kernel lock: makes the file ours, unless that would hurt someone.
    fn claim(&self, file: LockFile, directory: Directory, port: u16) -> Result<Claim, LockError> {
        let failed = LockError::AcquireFailed;
        let path = self.lock_path(port);
        if !file.is_at(&path).map_err(failed)? {
            file.unlock();
            return Ok(Claim::Moved(directory));
        }
        let own = process::id();
        match Content::parse(&file.read().map_err(failed)?, port) {
            Content::Empty if file.is_new() => {}
            Content::Empty => warn!("Stale lock file detected (empty), cleaning up"),
            Content::Holder(info) if info.pid != own && is_consistent(&info) => {
                file.unlock();
                return Ok(Claim::Alive(info, directory));
            }
            Content::Holder(info) => warn!(
                "Stale lock file detected (PID {} not running), cleaning up",
                info.pid
            ),
            Content::Corrupt(why) => {
                warn!("Stale lock file detected ({why}), cleaning up");
            }
        }
        let info = LockInfo::now(own, port);
        if let Err(e) = write_info(&file, &info) {
            // Half a text must not stay behind.
            let _ = file.remove(&directory, &file_name(port));
            return Err(failed(e));
        }
        directory.keep();
        debug!("Lock acquired for port {port} (PID: {own})");
        Ok(Claim::Acquired(ServerLock::new(
            file, directory, path, info,
        )))
    }
}

enum Claim {
    Acquired(ServerLock),
    /// The path names another file by now.
    Moved(Directory),
    /// Its holder lives without the kernel lock.
    Alive(LockInfo, Directory),
}

/// A time in which nobody could be named.
struct Unclear {
    since: Instant,
    pause: Duration,
}

impl Unclear {
    fn now() -> Self {
        Self {
            since: Instant::now(),
            pause: Duration::from_micros(50),
        }
    }

    fn next_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).min(WAIT_STEP);
        self.pause
    }
}
