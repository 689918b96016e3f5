//! Where locks are, and what the file of one of them says.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LockError, context};
use crate::info::LockInfo;
use crate::record::Content;
use crate::sys::{Directory, LockFile};

/// The environment variable that names the default lock directory.
pub const LOCK_DIR_ENV: &str = "LLMLB_LOCK_DIR";

/// How long reading looks again at a file that is being written.
pub(crate) const SETTLE_READ: Duration = Duration::from_millis(20);

/// How long a held lock may go without naming its holder before that is an error.
pub(crate) const SETTLE: Duration = Duration::from_secs(1);

/// A directory of server locks. The free functions work on [`LockDir::default`].
///
/// All who are to see each other must use the same directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockDir {
    path: PathBuf,
    /// The default below the temporary directory, shared by all users of the machine.
    shared: bool,
}

impl LockDir {
    /// A directory of the caller's choice. Where it does not exist, the first acquire creates it,
    /// with its parents and the usual permissions; where it does, it is used with the mode it has.
    ///
    /// A relative path is resolved now, so that it means the same after a change of directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            path: std::path::absolute(&path).unwrap_or(path),
            shared: false,
        }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the lock file for `port` is, or would be.
    pub fn lock_path(&self, port: u16) -> PathBuf {
        self.path.join(file_name(port))
    }

    /// What the lock file for `port` says, alive or not; `None` where there is none. Waits up to a
    /// second for whoever holds the lock to write it, where it is held and says nothing.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidPort`] for port 0.
    /// - [`LockError::Corrupted`] if it is not a lock file's content, or stays empty.
    /// - [`LockError::ReadFailed`] if it may not be read, or is not a regular file.
    pub fn read_lock_info(&self, port: u16) -> Result<Option<LockInfo>, LockError> {
        check_port(port)?;
        let failed = LockError::ReadFailed;
        let started = Instant::now();
        let mut seen: Option<(LockFile, Instant)> = None;
        loop {
            let Some(directory) = self.open().map_err(failed)? else {
                return Ok(None);
            };
            let Some(file) = directory.open_lock(&file_name(port)).map_err(failed)? else {
                return Ok(None);
            };
            let why = match Content::parse(&file.read().map_err(failed)?, port) {
                Content::Holder(record) => return Ok(Some(record.info)),
                Content::Empty => "empty".to_owned(),
                Content::Blank => "names nobody".to_owned(),
                Content::Corrupt(why) => why,
            };
            // Its writer may be in the act, and each start has a file of its own.
            let since = match seen.take() {
                Some((first, since)) if first.is_same(&file).map_err(failed)? => since,
                _ => Instant::now(),
            };
            // A writer that the machine keeps waiting holds the lock meanwhile.
            let is_settled = since.elapsed() >= SETTLE_READ && !file.is_held().map_err(failed)?;
            if is_settled || started.elapsed() >= SETTLE {
                let path = self.lock_path(port);
                return Err(LockError::Corrupted(format!("{}: {why}", path.display())));
            }
            seen = Some((file, since));
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Opens the directory; `None` where it does not exist.
    pub(crate) fn open(&self) -> io::Result<Option<Directory>> {
        match Directory::open(&self.path, self.shared) {
            Ok(directory) => Ok(Some(directory)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn open_or_create(&self) -> Result<Directory, LockError> {
        let open = || match self.open() {
            Ok(Some(directory)) => Ok(directory),
            Ok(None) => Directory::create(&self.path, self.shared),
            Err(e) => Err(e),
        };
        let opened = match open() {
            // Removed between its creation and its opening.
            Err(e) if e.kind() == io::ErrorKind::NotFound => open(),
            opened => opened,
        };
        opened.map_err(|e| {
            let hint = format!("set {LOCK_DIR_ENV} to a directory you may write to");
            LockError::DirectoryCreationFailed(context(e, hint))
        })
    }
}

impl Default for LockDir {
    /// `LLMLB_LOCK_DIR` if it is set and not empty, else `llmlb` in the system's temporary
    /// directory: created for all users (mode 1777) and never through a symbolic link on Unix.
    fn default() -> Self {
        if let Some(path) = env::var_os(LOCK_DIR_ENV).filter(|path| !path.is_empty()) {
            return Self::new(path);
        }
        let mut temporary = env::temp_dir();
        if temporary.as_os_str().is_empty() {
            // TMPDIR="" would put the locks below wherever each process happens to be.
            temporary = PathBuf::from("/tmp");
        }
        Self {
            shared: true,
            ..Self::new(temporary.join("llmlb"))
        }
    }
}

pub(crate) fn check_port(port: u16) -> Result<(), LockError> {
    if port == 0 {
        return Err(LockError::InvalidPort { port });
    }
    Ok(())
}

pub(crate) fn file_name(port: u16) -> String {
    format!("serve_{port}.lock")
}

/// [`LockDir::path`] of the default directory.
pub fn lock_dir() -> PathBuf {
    LockDir::default().path
}

/// [`LockDir::lock_path`] in the default directory.
pub fn lock_path(port: u16) -> PathBuf {
    LockDir::default().lock_path(port)
}

/// [`LockDir::read_lock_info`] in the default directory.
///
/// # Errors
///
/// As [`LockDir::read_lock_info`].
pub fn read_lock_info(port: u16) -> Result<Option<LockInfo>, LockError> {
    LockDir::default().read_lock_info(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_directory_is_made_absolute() {
        assert!(LockDir::new("some/where").path().is_absolute());
    }
}
