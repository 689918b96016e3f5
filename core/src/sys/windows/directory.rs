//! The lock directory, and the ways to a lock file in it: what the portable rooms open, list and
//! remove goes by its path, as Windows has nothing like `openat`.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::windows::fs::OpenOptionsExt;
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_PATH_NOT_FOUND, ERROR_SHARING_VIOLATION, HANDLE_FLAG_INHERIT,
    SetHandleInformation,
};
use windows_sys::Win32::Storage::FileSystem::READ_CONTROL;

use super::file::{
    AS_IT_IS, LockFile, SHARE_ALL, at, check, explain, is_deleted, is_leaving, open_exclusive,
};
use super::owner::Owner;
use super::result::{is, succeeded};
use crate::error::context;
use crate::sys::{Attempt, refuse};

/// The lock directory. Windows refuses to rename one that has open files in it.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// `shared` is the default directory below the temporary one: no link is followed. Another is
    /// the caller's own business.
    pub(crate) fn open(path: &Path, shared: bool) -> io::Result<Self> {
        let failed = |e| context(e, format!("cannot open directory {}", path.display()));
        if shared && path.symlink_metadata().map_err(failed)?.is_symlink() {
            return Err(refuse(path, "is a link, and may lead anywhere"));
        }
        if !path.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    /// Who may use it is inherited from its parent, the user's own temporary directory by default.
    pub(crate) fn create(path: &Path, shared: bool) -> io::Result<Self> {
        std::fs::create_dir_all(path)
            .map_err(|e| context(e, format!("cannot create directory {}", path.display())))?;
        Self::open(path, shared)
    }

    /// Files that are open are not aged away here.
    pub(crate) fn keep(&self) {}

    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Attempt> {
        let path = self.path.join(name);
        match open_exclusive(&path, true) {
            Ok(file) => {
                if is_deleted(&file).map_err(|e| at(&path, e))? {
                    return Ok(Attempt::Moved);
                }
                check(&path, &file)?;
                Ok(Attempt::Locked(LockFile::locked(file, path)))
            }
            Err(e) if is(&e, ERROR_PATH_NOT_FOUND) => Ok(Attempt::NoDirectory),
            Err(e) if is(&e, ERROR_SHARING_VIOLATION) => match self.open_lock(name) {
                Ok(Some(file)) => Ok(Attempt::Contended(file)),
                Ok(None) => Ok(Attempt::Moved),
                // A backup or a scan for viruses wants it alone for an instant.
                Err(e) if is(&e, ERROR_SHARING_VIOLATION) => Ok(Attempt::Moved),
                Err(e) => Err(e),
            },
            Err(e) if is(&e, ERROR_ACCESS_DENIED) && is_leaving(&path) => Ok(Attempt::Moved),
            Err(e) => Err(explain(&path, e)),
        }
    }

    /// Opens without creating and without a lock; `None` where there is no such file.
    pub(crate) fn open_lock(&self, name: &str) -> io::Result<Option<LockFile>> {
        let path = self.path.join(name);
        let mut options = OpenOptions::new();
        options.read(true).share_mode(SHARE_ALL);
        let file = match options.custom_flags(AS_IT_IS).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if is(&e, ERROR_ACCESS_DENIED) && is_leaving(&path) => return Ok(None),
            Err(e) if is(&e, ERROR_SHARING_VIOLATION) => return Err(e),
            Err(e) => return Err(explain(&path, e)),
        };
        if is_deleted(&file).map_err(|e| at(&path, e))? {
            return Ok(None);
        }
        check(&path, &file)?;
        Ok(Some(LockFile::unlocked(file, path)))
    }

    /// Opens once more a file that is open; `None` where the name is another file's by now.
    pub(crate) fn open_again(&self, name: &str, first: &LockFile) -> io::Result<Option<LockFile>> {
        match self.open_lock(name)? {
            Some(second) if second.is_same(first).map_err(|e| at(&self.path, e))? => {
                Ok(Some(second))
            }
            _ => Ok(None),
        }
    }

    /// A directory with open files in it can't be renamed here.
    pub(crate) fn is_at_its_path(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Who owns the entry, for showing.
    pub(crate) fn owner(&self, name: &str) -> Option<String> {
        let mut options = OpenOptions::new();
        options
            .access_mode(READ_CONTROL)
            .share_mode(SHARE_ALL)
            .custom_flags(AS_IT_IS);
        let file = options.open(self.path.join(name)).ok()?;
        Owner::of(&file).ok()?.account()
    }

    /// The names of all entries.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let failed = |e| context(e, format!("cannot list {}", self.path.display()));
        std::fs::read_dir(&self.path)
            .map_err(failed)?
            .map(|entry| Ok(entry.map_err(failed)?.file_name()))
            .collect()
    }
}

/// What is done to a file by way of its directory.
impl LockFile {
    /// Whether the directory still has this file by that name.
    pub(crate) fn is_in(&self, directory: &Directory, name: &str) -> io::Result<bool> {
        self.is_at(&directory.path.join(name))
    }

    /// Removes the file from its directory. Only for the holder of the lock, after
    /// [`is_at`](Self::is_at).
    pub(crate) fn remove(&self, directory: &Directory, name: &str) -> io::Result<()> {
        // Where a name outlives its removal until readers have left, it must not name anybody.
        let _ = self.file()?.set_len(0);
        let path = directory.path.join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(context(e, format!("cannot remove {}", path.display()))),
        }
    }

    pub(crate) fn set_inheritable(&self, _directory: &Directory, yes: bool) -> io::Result<()> {
        let flags = if yes { HANDLE_FLAG_INHERIT } else { 0 };
        let file = self.file()?;
        // SAFETY: the handle is open for as long as `file` is borrowed.
        succeeded(unsafe { SetHandleInformation(file.as_raw_handle(), HANDLE_FLAG_INHERIT, flags) })
    }
}
