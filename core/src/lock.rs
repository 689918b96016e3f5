//! A port that this process guards: its lock handed over, taken back, given back.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

#[cfg(unix)]
use crate::child_hook::ChildHook;
use crate::dir::{LockDir, SETTLE, file_name};
use crate::error::{LockError, context};
use crate::info::LockInfo;
use crate::left_behind::end_other_holders;
use crate::left_over::{LeftOver, end_before_start};
use crate::process::{find, is_holder};
use crate::record::{Content, Record};
use crate::removal::{Freed, lock_freed, remove_freed};
#[cfg(unix)]
use crate::server_id::ServerId;
use crate::sys::{self, Directory, LockFile};

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
#[must_use = "the port is guarded only as long as this is kept"]
pub struct ServerLock {
    /// Shared with nobody but [`ChildHook`]s, which do not keep it.
    file: Arc<LockFile>,
    directory: Arc<Directory>,
    path: PathBuf,
    info: LockInfo,
    /// The process that may rewrite and remove the file, and its generation: a child in a PID
    /// namespace of its own may have the same PID.
    owner: u32,
    generation: u64,
    released: bool,
}

impl ServerLock {
    /// The file names this process, which has just locked it.
    pub(crate) fn new(file: LockFile, directory: Directory, path: PathBuf, info: LockInfo) -> Self {
        Self {
            file: Arc::new(file),
            directory: Arc::new(directory),
            path,
            owner: info.pid,
            info,
            generation: sys::generation(),
            released: false,
        }
    }

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
        if self.is_in_place().map_err(LockError::ReadFailed)? {
            return Ok(());
        }
        Err(self.lost())
    }

    /// By the directory's descriptor, so that a daemon that changes its root keeps its lock.
    fn is_in_place(&self) -> io::Result<bool> {
        Ok(self
            .file
            .is_in(&self.directory, &file_name(self.info.port))?
            && self.directory.is_at_its_path()?)
    }

    fn lost(&self) -> LockError {
        LockError::Lost {
            port: self.info.port,
            path: self.path.clone(),
        }
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
        let port = self.info.port;
        if !self.is_own() {
            return Err(LockError::NotOwner {
                port,
                owner: self.owner,
            });
        }
        let found = find(pid).map_err(|e| {
            let what = format!("cannot tell whether PID {pid} lives, to guard port {port}");
            LockError::HandOverFailed(context(e, what))
        })?;
        let process = found.ok_or(LockError::NoSuchProcess { port, pid })?;
        self.rename_holder(&Record::of(pid, &process, port))
    }

    /// Whether this is the process that acquired or adopted it, and no forked child.
    fn is_own(&self) -> bool {
        self.generation == sys::generation()
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
        self.rename_holder(&Record::own(self.info.port))?;
        self.owner = self.info.pid;
        self.generation = sys::generation();
        Ok(())
    }

    /// Takes the lock back from a server it was handed over to and that has ended: every other
    /// process that has the lock's descriptor, as what the server left behind may, is asked to end,
    /// and killed after `grace`; then the file names this process. Who is about to close it anyway,
    /// as a child between fork and exec, has up to a second for that first, or `grace` if that is
    /// less.
    ///
    /// Finding them is possible on Linux; elsewhere this is [`adopt`](Self::adopt).
    ///
    /// # Errors
    ///
    /// As [`adopt`](Self::adopt), and [`LockError::StopFailed`] if a process can't be ended.
    pub fn reclaim(&mut self, grace: Duration) -> Result<(), LockError> {
        // The kernel is asked first: nobody else has it, usually.
        if !self.hold_alone(SETTLE.min(grace))? {
            end_other_holders(&self.file, grace).map_err(LockError::StopFailed)?;
            if !self.hold_alone(SETTLE)? {
                return Err(LockError::StopFailed(self.still_held()));
            }
        }
        self.adopt()
    }

    /// Takes the lock by another description of the file: only that shows that nobody has the first.
    /// False if somebody has after this time.
    fn hold_alone(&mut self, patience: Duration) -> Result<bool, LockError> {
        let failed = LockError::StopFailed;
        let name = file_name(self.info.port);
        let second = self.directory.open_again(&name, &self.file);
        let Some(second) = second.map_err(failed)? else {
            return Err(self.lost());
        };
        // As on release: in the instant without the lock the file names nobody.
        let len = self.file.read_own().map_err(failed)?.len();
        let blanked = self.file.blank(len);
        blanked.map_err(|e| failed(context(e, format!("cannot write {}", self.path.display()))))?;
        self.file = Arc::new(second);
        let freed = lock_freed(&self.directory, &name, self.info.port, &self.file, patience);
        match freed.map_err(failed)? {
            Freed::Ours => Ok(true),
            Freed::Gone => Err(self.lost()),
            // Adopted before, it names us, and says nothing of who holds the lock.
            Freed::Taken(next) if next.info == self.info => Ok(false),
            Freed::Taken(next) => Err(LockError::already_running(next.info)),
            Freed::Held => Ok(false),
        }
    }

    fn still_held(&self) -> io::Error {
        let what = format!(
            "another process still holds {path}, so port {port} stays guarded until it ends; to end \
             it, unless it is another user's: llmlb stop --port {port}; to see it, as root: fuser -v \
             {path}",
            path = self.path.display(),
            port = self.info.port,
        );
        io::Error::new(io::ErrorKind::ResourceBusy, what)
    }

    fn rename_holder(&mut self, record: &Record) -> Result<(), LockError> {
        self.verify()?;
        write_record(&self.file, record).map_err(LockError::HandOverFailed)?;
        self.info = record.info.clone();
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
        ChildHook::prepare(&self.file, &self.directory, self.info.port)
            .map_err(LockError::HandOverFailed)
    }

    /// Names one start of a server under this lock, anew with each call. A launcher puts it into its
    /// server's environment as [`SERVER_ID_ENV`](crate::SERVER_ID_ENV): then what the server leaves
    /// behind is found and ended also when launcher and server have been killed.
    ///
    /// # Errors
    ///
    /// [`LockError::HandOverFailed`] if the lock directory can't be looked at.
    #[cfg(unix)]
    pub fn server_id(&self) -> Result<ServerId, LockError> {
        let found = sys::user_and_place(&*self.directory).map_err(LockError::HandOverFailed)?;
        let (user, place) = found;
        Ok(ServerId::new(
            self.info.port,
            user,
            place,
            sys::own_session(),
        ))
    }

    /// Ends what killed servers of this port have left behind, before a new one is started: SIGTERM,
    /// and SIGKILL when `grace` has run out. Tells who they were. They are found on Linux, by
    /// [`SERVER_ID_ENV`](crate::SERVER_ID_ENV); elsewhere there are none to be seen.
    ///
    /// # Errors
    ///
    /// - [`LockError::ReadFailed`] if processes can't be looked at.
    /// - [`LockError::StopFailed`] if one may not be signalled, or does not end though killed.
    pub fn end_left_overs(&self, grace: Duration) -> Result<Vec<LeftOver>, LockError> {
        end_before_start(&self.directory, self.info.port, grace)
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
    /// [`LockError::ReleaseFailed`]
    ///
    /// - of kind [`ResourceBusy`](io::ErrorKind::ResourceBusy) if another process, as a forked
    ///   child, has the lock's descriptor for about a second yet: the port stays guarded until that
    ///   has closed it;
    /// - else if the file can't be removed: the port is free all the same, and the next acquire
    ///   recovers the file, which names nobody.
    pub fn release(mut self) -> Result<(), LockError> {
        self.give_back().map_err(LockError::ReleaseFailed)
    }

    fn give_back(&mut self) -> io::Result<()> {
        // Never unlocked, only closed: unlocking in a forked child frees the parent's lock too.
        if self.released || !self.is_own() || self.info.pid != self.owner {
            return Ok(());
        }
        self.released = true;
        let port = self.info.port;
        let name = file_name(port);
        let second = self.directory.open_again(&name, &self.file);
        if let Ok(None) = second {
            self.warn_replaced();
            return Ok(());
        }
        let bytes = match self.named() {
            Ok(Named::Us(bytes)) => bytes,
            Ok(Named::Another) => return Ok(()), // a forked child has adopted it
            Err(e) => {
                // It will be free, and our name would keep others out for as long as we live.
                let _ = self.file.blank(usize::MAX);
                return Err(e);
            }
        };
        // Whoever looks at the file from here on, or finds it left behind, must not find us in it.
        let blanked = self.file.blank(bytes.len());
        if let Some(second) = second? {
            // This closes the first.
            self.file = Arc::new(second);
        }
        match remove_freed(&self.directory, &name, port, &self.file, SETTLE)? {
            Freed::Ours => debug!("Lock released for port {port}"),
            Freed::Gone => self.warn_replaced(),
            Freed::Taken(_) => {}
            Freed::Held => return blanked.and(Err(self.still_held())),
        }
        Ok(())
    }

    fn named(&self) -> io::Result<Named> {
        let bytes = self.file.read_own()?;
        if let Content::Holder(other) = Content::parse(&bytes, self.info.port)
            && other.info != self.info
            && is_holder(&other, &self.file)?
        {
            return Ok(Named::Another);
        }
        Ok(Named::Us(bytes))
    }

    fn warn_replaced(&self) {
        warn!(
            "Lock file {} was removed or replaced while port {} was guarded",
            self.path.display(),
            self.info.port
        );
    }
}

/// Whom the file names.
enum Named {
    /// This process, or nobody: the whole text.
    Us(Vec<u8>),
    Another,
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
            .field("lock_path", &self.path)
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

pub(crate) fn write_record(file: &LockFile, record: &Record) -> io::Result<()> {
    file.write(&record.to_json()?)
}
