use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::dir::{LockDir, check_port, file_name};
use crate::error::{LockError, context};
use crate::info::{Content, LockInfo};
use crate::process::{find, is_consistent, is_holder};
use crate::stop::end_other_holders;
use crate::sys::{Attempt, Directory, LockFile};

/// How long a held lock may go without naming its holder before that is an error.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);
/// How often a waiter tries for the lock: one system call each time.
const WAIT_STEP: Duration = Duration::from_millis(7);
/// Once in how many tries a waiter looks whether it waits for the right file.
const CHECK_STEPS: u32 = 50;

/// A port that is guarded by this process.
///
/// The guard lasts until [`release`](Self::release), until it is dropped, or until the process
/// ends, however it ends. Losing the value by [`std::mem::forget`] or [`std::process::exit`]
/// leaves a stale file behind, which the next acquire recovers.
///
/// # Forks
///
/// A forked child has a copy, which keeps the lock as long as it is open. Dropping the copy closes
/// it and does nothing else: only the process that acquired or adopted the lock releases it.
pub struct ServerLock {
    file: LockFile,
    directory: Directory,
    path: PathBuf,
    info: LockInfo,
    /// The process that may rewrite and remove the file.
    owner: u32,
    released: bool,
}

impl ServerLock {
    /// Guards `port` in the default directory. Does not wait for another holder to leave.
    ///
    /// # Errors
    ///
    /// As [`LockDir::acquire`].
    pub fn acquire(port: u16) -> Result<Self, LockError> {
        LockDir::default().acquire(port)
    }

    /// Guards `port` in the default directory, waiting up to `timeout` for its holder to leave.
    ///
    /// # Errors
    ///
    /// As [`LockDir::acquire`], of the last try.
    pub fn acquire_timeout(port: u16, timeout: Duration) -> Result<Self, LockError> {
        LockDir::default().acquire_timeout(port, timeout)
    }

    /// Whom the lock file names: this process, or the one the lock was handed over to.
    pub fn info(&self) -> &LockInfo {
        &self.info
    }

    /// Where the lock file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells whether the path still is our file.
    ///
    /// Someone who removes it lets another server start: a server that runs for long may ask now
    /// and then.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if it is not, [`LockError::ReadFailed`] if that can't be told.
    pub fn verify(&self) -> Result<(), LockError> {
        if self.file.is_at(&self.path).map_err(LockError::ReadFailed)? {
            return Ok(());
        }
        Err(LockError::Lost {
            port: self.info.port,
            path: self.path.clone(),
        })
    }

    /// Makes the file name another process, to which the lock's descriptor was passed on (see
    /// [`set_inheritable`](Self::set_inheritable)), so that it is the one shown and stopped.
    ///
    /// From then on the guard lasts as long as any process has the descriptor, this one included:
    /// drop the lock, and it lasts exactly as long as the other. Dropping it no longer removes the
    /// file; a supervisor that stays calls [`adopt`](Self::adopt) when its server has ended.
    ///
    /// # Errors
    ///
    /// - [`LockError::NoSuchProcess`] if `pid` is not a live process.
    /// - [`LockError::NotOwner`] in a forked child, [`LockError::Lost`] as for
    ///   [`verify`](Self::verify).
    /// - [`LockError::HandOverFailed`] if the file can't be written.
    pub fn hand_over(&mut self, pid: u32) -> Result<(), LockError> {
        if process::id() != self.owner {
            return Err(LockError::NotOwner {
                port: self.info.port,
                owner: self.owner,
            });
        }
        if find(pid).is_none() {
            return Err(LockError::NoSuchProcess {
                port: self.info.port,
                pid,
            });
        }
        self.rename_holder(pid)
    }

    /// Makes the file name this process: after a daemonizing fork, or to take the lock back after
    /// [`hand_over`](Self::hand_over).
    ///
    /// The process that forked must not release the lock meanwhile: it leaves by
    /// [`std::process::exit`], or forgets it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] as for [`verify`](Self::verify), [`LockError::HandOverFailed`] if the
    /// file can't be written.
    pub fn adopt(&mut self) -> Result<(), LockError> {
        self.rename_holder(process::id())?;
        self.owner = process::id();
        Ok(())
    }

    /// Takes the lock back from a server it was handed over to and that has ended: every other
    /// process that has the lock's descriptor, as what the server left behind may, is asked to end,
    /// and killed after `grace`; then the file names this process.
    ///
    /// Finding them is possible on Linux; elsewhere this is [`adopt`](Self::adopt).
    ///
    /// # Errors
    ///
    /// As [`adopt`](Self::adopt), and [`LockError::StopFailed`] if a process can't be ended.
    pub fn reclaim(&mut self, grace: Duration) -> Result<(), LockError> {
        end_other_holders(&self.file, grace).map_err(LockError::StopFailed)?;
        self.adopt()
    }

    fn rename_holder(&mut self, pid: u32) -> Result<(), LockError> {
        self.verify()?;
        let info = LockInfo::now(pid, self.info.port);
        write_info(&self.file, &info).map_err(LockError::HandOverFailed)?;
        self.info = info;
        self.verify()
    }

    /// Lets processes started from now on inherit the lock's descriptors, or no longer.
    ///
    /// Such a process keeps the port guarded as long as it lives and does not close them. Every
    /// thread's children inherit them: make it short where others may start processes. On Windows
    /// the children have to be started with handles inherited, as [`std::process::Command`] does.
    ///
    /// # Errors
    ///
    /// [`LockError::HandOverFailed`] if the system refuses.
    pub fn set_inheritable(&self, inheritable: bool) -> Result<(), LockError> {
        self.file
            .set_inheritable(&self.directory, inheritable)
            .map_err(LockError::HandOverFailed)
    }

    /// What a child does between fork and exec to take the lock over by itself: it keeps the
    /// descriptors and puts its own PID into the file. Unlike with
    /// [`set_inheritable`](Self::set_inheritable), no other child inherits them, and the file
    /// never names a launcher that was killed while its server starts.
    ///
    /// ```
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let locks = llmlb_lock_core::LockDir::new(directory.path());
    /// # let mut lock = locks.acquire(8000)?;
    /// use std::os::unix::process::CommandExt;
    ///
    /// let hook = lock.child_hook()?;
    /// let mut command = std::process::Command::new("sleep");
    /// // SAFETY: the hook is async-signal-safe.
    /// unsafe { command.arg("600").pre_exec(move || hook.run()) };
    /// match command.spawn() {
    ///     Ok(mut server) => {
    ///         lock.hand_over(server.id())?; // to the same effect, and for lock.info()
    ///         # server.kill().unwrap();
    ///         # server.wait().unwrap();
    ///     }
    ///     Err(_) => lock.adopt()?,
    /// }
    /// # Ok::<(), llmlb_lock_core::LockError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LockError::HandOverFailed`] if the descriptors can't be duplicated.
    #[cfg(unix)]
    pub fn child_hook(&self) -> Result<ChildHook, LockError> {
        let prepare = || {
            let any = LockInfo::now(u32::MAX, self.info.port);
            let text = info_text(&any)?;
            let digits = u32::MAX.to_string();
            let at = text
                .windows(digits.len())
                .position(|part| part == digits.as_bytes())
                .ok_or(io::ErrorKind::InvalidData)?;
            Ok(ChildHook {
                file: self.file.try_clone()?,
                directory: self.directory.try_clone()?,
                before: text[..at].to_vec(),
                after: text[at + digits.len()..].to_vec(),
            })
        };
        prepare().map_err(LockError::HandOverFailed)
    }

    /// The lock directory's descriptor, for launchers that pass descriptors on one by one: a
    /// server that has it too keeps the directory's files from being aged away.
    #[cfg(unix)]
    pub fn directory_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.directory)
    }

    /// Gives the lock back and removes its file. Dropping it does the same, and logs errors.
    ///
    /// In a forked child, and after [`hand_over`](Self::hand_over), this only closes the
    /// descriptor.
    ///
    /// # Errors
    ///
    /// [`LockError::ReleaseFailed`] if the file can't be removed. The port is free all the same;
    /// the next acquire recovers the file.
    pub fn release(mut self) -> Result<(), LockError> {
        self.give_back().map_err(LockError::ReleaseFailed)
    }

    fn give_back(&mut self) -> io::Result<()> {
        // Never unlocked, only closed: unlocking in a forked child frees the parent's lock too.
        if self.released || process::id() != self.owner || self.info.pid != self.owner {
            return Ok(());
        }
        self.released = true;
        let file = &self.file;
        if !file.is_at(&self.path)? {
            warn!(
                "Lock file {} was removed or replaced while port {} was guarded",
                self.path.display(),
                self.info.port
            );
            return Ok(());
        }
        if let Content::Holder(other) = Content::parse(&file.read()?, self.info.port)
            && other.pid != self.owner
            && is_holder(&other, file)
        {
            return Ok(()); // a forked child has adopted it
        }
        if let Err(e) = file.remove(&self.directory, &file_name(self.info.port)) {
            // Our PID in a free file would keep others out for as long as we live.
            let _ = file.clear();
            return Err(e);
        }
        debug!("Lock released for port {}", self.info.port);
        Ok(())
    }
}

impl Drop for ServerLock {
    fn drop(&mut self) {
        if let Err(e) = self.give_back() {
            warn!("Failed to release lock for port {}: {e}", self.info.port);
        }
    }
}

impl fmt::Debug for ServerLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLock")
            .field("path", &self.path)
            .field("info", &self.info)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// The descriptor that carries the kernel lock, to be passed on to a server.
#[cfg(unix)]
impl std::os::fd::AsFd for ServerLock {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// See [`ServerLock::child_hook`].
#[cfg(unix)]
#[derive(Debug)]
pub struct ChildHook {
    file: LockFile,
    directory: Directory,
    before: Vec<u8>,
    after: Vec<u8>,
}

#[cfg(unix)]
impl ChildHook {
    /// For the forked child. Async-signal-safe: makes system calls, and neither allocates nor
    /// locks.
    ///
    /// From here on the child can be signalled by its name: a parent with signal handlers resets
    /// them first, or a signal that comes before the exec is lost in them.
    ///
    /// # Errors
    ///
    /// What the system says, as a bare error number.
    pub fn run(&self) -> io::Result<()> {
        // The rest of a longer text is blanked out: blanks are no part of JSON.
        let mut text = [b' '; 160];
        let mut len = 0;
        let mut append = |part: &[u8]| {
            let end = len + part.len();
            match text.get_mut(len..end) {
                Some(room) => room.copy_from_slice(part),
                None => return Err(io::Error::from(io::ErrorKind::StorageFull)),
            }
            len = end;
            Ok(())
        };
        let mut digits = [0; 10];
        let mut first = digits.len();
        let mut pid = process::id();
        while pid > 0 {
            first -= 1;
            // A remainder of 10 is a digit.
            digits[first] = b'0' + (pid % 10) as u8;
            pid /= 10;
        }
        append(&self.before)?;
        append(&digits[first..])?;
        append(&self.after)?;
        self.file.overwrite(&text)?;
        self.file.set_inheritable(&self.directory, true)
    }
}

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
                            return Err(already_running(info));
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
                        return Err(already_running(info));
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
        Ok(Claim::Acquired(ServerLock {
            file,
            directory,
            path,
            info,
            owner: own,
            released: false,
        }))
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

pub(crate) fn already_running(info: LockInfo) -> LockError {
    LockError::AlreadyRunning {
        port: info.port,
        pid: info.pid,
        started_at: info.started_at,
    }
}

fn write_info(file: &LockFile, info: &LockInfo) -> io::Result<()> {
    file.write(&info_text(info)?)
}

fn info_text(info: &LockInfo) -> io::Result<Vec<u8>> {
    serde_json::to_vec(info).map_err(|e| context(e, "cannot write JSON"))
}
