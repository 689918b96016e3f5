//! Taking a lock: trying, waiting, and what a free lock's file says of those who had it before.

use std::io;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::dir::{LockDir, SETTLE, check_port, file_name};
use crate::error::{LockError, context};
use crate::info::LockInfo;
use crate::lock::{ServerLock, write_record};
use crate::process::{could_be, is_holder, is_live_holder};
use crate::record::{Content, Record};
use crate::sys::{self, Attempt, Directory, LockFile};
use crate::wait::{self, Over};

/// The longest pause before looking again for who can't be waited on, or can't be named.
const WAIT_STEP: Duration = Duration::from_millis(7);

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
    /// It is called at least every 100 milliseconds, after each signal that this thread handles,
    /// and only while waiting.
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
        // Looked up before anybody waits for our name in a file that we have locked, and then known.
        let _ = sys::own_identity();
        let mut directory = self.open_or_create()?;
        // A timeout too long for the clock is one without end.
        let deadline = Instant::now().checked_add(timeout);
        let mut unclear: Option<Unclear> = None;
        let mut locked: Option<LockFile> = None;
        let pause = |step: Duration, interrupted: &mut dyn FnMut() -> bool| {
            if interrupted() {
                return Err(LockError::Interrupted { port });
            }
            thread::sleep(step);
            Ok(())
        };
        loop {
            let expired = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
            let attempt = match locked.take() {
                Some(file) => Attempt::Locked(file),
                None => directory
                    .try_lock(&name)
                    .map_err(LockError::AcquireFailed)?,
            };
            let waiting = match attempt {
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
                        pause(5 * WAIT_STEP, &mut interrupted)?;
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
                let settled = match holder_of(&file, port)? {
                    Some(info) if expired() => return Err(LockError::already_running(info)),
                    Some(_) => {
                        unclear = None;
                        true
                    }
                    // Nobody will be named any more, as a dead server's child holds it perhaps.
                    None => unclear.as_ref().is_some_and(Unclear::is_settled) && !expired(),
                };
                if settled {
                    let path = self.lock_path(port);
                    let over = wait::for_holder(&file, &path, deadline, &mut interrupted);
                    match over.map_err(LockError::AcquireFailed)? {
                        Over::Interrupted => return Err(LockError::Interrupted { port }),
                        // Given up for an instant, many who wait would take it from each other.
                        Over::Locked => {
                            locked = file.after_wait().map_err(LockError::AcquireFailed)?;
                        }
                        Over::Moved | Over::Expired => {}
                    }
                    if directory
                        .is_at_its_path()
                        .map_err(LockError::AcquireFailed)?
                    {
                        continue;
                    }
                }
            }
            // Moved away or removed: whoever starts or stops by now does so in another one.
            if !directory
                .is_at_its_path()
                .map_err(LockError::AcquireFailed)?
            {
                directory = self.open_or_create()?;
                continue;
            }
            // Someone is starting, stopping or recovering this very moment.
            let unclear = unclear.get_or_insert_with(Unclear::now);
            if expired() && unclear.is_settled() {
                return Err(LockError::HeldByUnknown {
                    port,
                    path: self.lock_path(port),
                });
            }
            pause(unclear.next_pause(), &mut interrupted)?;
        }
    }

    /// Under the kernel lock: makes the file ours, unless that would hurt someone.
    fn claim(&self, file: LockFile, directory: Directory, port: u16) -> Result<Claim, LockError> {
        let failed = LockError::AcquireFailed;
        let path = self.lock_path(port);
        let name = file_name(port);
        if !file.is_at(&path).map_err(failed)? {
            // The directory was moved away, perhaps, and our file with it.
            if file.is_new() && file.is_in(&directory, &name).map_err(failed)? {
                file.remove(&directory, &name).map_err(failed)?;
            } else {
                file.unlock();
            }
            return Ok(Claim::Moved(directory));
        }
        let left_over = match self.left_over(&file, port)? {
            Found::Nothing => None,
            Found::LeftOver(what) => Some(what),
            Found::Alive(info) => {
                file.unlock();
                return Ok(Claim::Alive(info, directory));
            }
        };
        let record = Record::own(port);
        if let Err(e) = write_record(&file, &record) {
            // Half a text must not stay behind.
            let _ = file.remove(&directory, &name);
            return Err(failed(e));
        }
        // Not before the lock has a name: whoever is refused meanwhile is told by whom.
        if let Some(what) = left_over {
            warn!("Stale lock file detected ({what}), cleaning up port {port}");
        }
        directory.keep();
        let info = record.info;
        debug!("Lock acquired for port {port} (PID: {})", info.pid);
        Ok(Claim::Acquired(ServerLock::new(
            file, directory, path, info,
        )))
    }

    /// What a file says whose lock was free.
    fn left_over(&self, file: &LockFile, port: u16) -> Result<Found, LockError> {
        if file.is_new() {
            return Ok(Found::Nothing);
        }
        let failed = LockError::AcquireFailed;
        let bytes = file.read_own().map_err(failed)?;
        Ok(match Content::parse(&bytes, port) {
            // Its holder gives it back this very moment, or could not remove it then.
            Content::Blank => Found::Nothing,
            Content::Empty => Found::LeftOver("empty".to_owned()),
            Content::Corrupt(why) => Found::LeftOver(why),
            Content::Holder(record) => {
                let pid = record.info.pid;
                let lives = || is_live_holder(&record, file);
                if pid != process::id() && lives().map_err(|e| failed(unknown(e, pid, port)))? {
                    return Ok(Found::Alive(record.info));
                }
                // One that is recycled is not the one that is meant.
                let recycled = pid == process::id() || !could_be(&record);
                Found::LeftOver(match recycled {
                    true => format!("PID {pid} not running"),
                    false => format!("PID {pid} runs, but does not hold the lock"),
                })
            }
        })
    }
}

/// Whom a lock that is held can be shown and waited for.
fn holder_of(file: &LockFile, port: u16) -> Result<Option<LockInfo>, LockError> {
    let failed = LockError::AcquireFailed;
    let Content::Holder(record) = Content::parse(&file.read().map_err(failed)?, port) else {
        return Ok(None);
    };
    let pid = record.info.pid;
    if !is_holder(&record, file).map_err(|e| failed(unknown(e, pid, port)))? {
        return Ok(None);
    }
    // Without an identity the file may as well be a left-over at which a reader looks just now.
    if record.identity.is_none() && !file.is_held().map_err(failed)? {
        return Ok(None);
    }
    Ok(Some(record.info))
}

fn unknown(e: io::Error, pid: u32, port: u16) -> io::Error {
    context(
        e,
        format!("cannot tell whether PID {pid} guards port {port}"),
    )
}

/// What the file of a free lock says.
enum Found {
    Nothing,
    /// Its holder has ended.
    LeftOver(String),
    /// Its holder lives without the kernel lock.
    Alive(LockInfo),
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

    /// It has lasted longer than starting, stopping or recovering takes.
    fn is_settled(&self) -> bool {
        self.since.elapsed() >= SETTLE
    }

    fn next_pause(&mut self) -> Duration {
        self.pause = (self.pause * 2).min(WAIT_STEP);
        self.pause
    }
}
