//! The lock directory, kept open, and how files in it are found, created and refused.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::again::again;
use super::file::{FileId, LockFile, check, file_id};
use super::hint::hint;
use super::owner::{at, effective_uid, foreign, user_name};
use crate::error::context;
use crate::sys::{Attempt, refuse};

const DIRECTORY_MODE: u32 = 0o1777;
const FILE_MODE: u32 = 0o600;

/// The lock directory, kept open: what happens to its path can't redirect what we do in it.
#[derive(Debug)]
pub(crate) struct Directory {
    file: File,
    path: PathBuf,
    root: Option<FileId>,
}

/// This process's root directory: it changes in a process that calls `chroot`.
fn root() -> Option<FileId> {
    again(|| rustix::fs::stat("/"))
        .ok()
        .map(|found| file_id(&found))
}

/// As it was when this process first opened a lock directory.
fn first_root() -> Option<FileId> {
    static FIRST: OnceLock<Option<FileId>> = OnceLock::new();
    match FIRST.get() {
        Some(first) => *first,
        None => {
            let now = root();
            let _ = FIRST.set(now);
            now
        }
    }
}

impl Directory {
    /// `shared` is the default directory below the world-writable temporary one: no symlink is
    /// followed, and it is created for all users. Another is the caller's own business.
    pub(crate) fn open(path: &Path, shared: bool) -> io::Result<Self> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if shared {
            flags |= OFlags::NOFOLLOW;
        }
        match again(|| rustix::fs::open(path, flags, Mode::empty())) {
            Ok(fd) => {
                let directory = Self {
                    file: above_stdio(fd).map_err(|e| at(path, e.into()))?.into(),
                    path: path.to_path_buf(),
                    root: first_root(),
                };
                if shared {
                    directory.finish()?;
                }
                Ok(directory)
            }
            Err(Errno::LOOP) | Err(Errno::NOTDIR) if path.is_symlink() => {
                Err(refuse(path, "is a symbolic link, and may lead anywhere"))
            }
            Err(e) => Err(context(
                e,
                format!("cannot open directory {}", path.display()),
            )),
        }
    }

    pub(crate) fn create(path: &Path, shared: bool) -> io::Result<Self> {
        let failed = |e| context(e, format!("cannot create directory {}", path.display()));
        let mut builder = std::fs::DirBuilder::new();
        if shared {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(failed)?;
            }
            builder.mode(DIRECTORY_MODE);
        } else {
            builder.recursive(true);
        }
        match again(|| builder.create(path)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        Self::open(path, shared)
    }

    /// Opens a directory to all users whose creator was ended before it could: ours, with the
    /// sticky bit, and without what a umask took away.
    fn finish(&self) -> io::Result<()> {
        let metadata = again(|| self.file.metadata()).map_err(|e| at(&self.path, e))?;
        let mode = metadata.mode() & 0o7777;
        if metadata.uid() == effective_uid() && mode != DIRECTORY_MODE && mode & 0o1000 != 0 {
            let mode = Permissions::from_mode(DIRECTORY_MODE);
            again(|| self.file.set_permissions(mode.clone())).map_err(|e| at(&self.path, e))?;
        }
        Ok(())
    }

    /// Keeps systemd-tmpfiles from ageing the directory's files for as long as it stays open.
    pub(crate) fn keep(&self) {
        // Best effort: the lock does not rest on it.
        let _ = fs2::FileExt::try_lock_shared(&self.file);
    }

    /// Whether its path still leads here. Taken for granted in a process that has changed its root:
    /// its paths lead elsewhere.
    pub(crate) fn is_at_its_path(&self) -> io::Result<bool> {
        let failed = |e: Errno| at(&self.path, e.into());
        let ours = again(|| rustix::fs::fstat(&self.file)).map_err(failed)?;
        match again(|| rustix::fs::stat(&self.path)) {
            Ok(found) if file_id(&found) == file_id(&ours) => Ok(true),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(root() != self.root),
            Err(e) => Err(failed(e)),
        }
    }

    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Attempt> {
        let (file, new) = match self.create_or_open(name)? {
            Opened::File { file, new } => (file, new),
            Opened::Held(file) => return Ok(Attempt::Contended(file)),
            Opened::NoDirectory => return Ok(Attempt::NoDirectory),
            Opened::Gone => return Ok(Attempt::Moved),
        };
        let path = self.path.join(name);
        let metadata = again(|| file.metadata()).map_err(|e| at(&path, e))?;
        if metadata.nlink() == 0 {
            return Ok(Attempt::Moved);
        }
        check(&path, &metadata)?;
        let file = LockFile::new(file, path, &metadata, new);
        let locked = file.retry()?;
        if metadata.uid() != effective_uid() {
            // Only root gets here. A live holder is worth naming, a left-over not worth trusting.
            return if locked {
                Err(foreign(&file.path, metadata.uid()))
            } else {
                Ok(Attempt::Contended(file))
            };
        }
        if !locked {
            return Ok(Attempt::Contended(file));
        }
        if metadata.mode() & 0o7777 != FILE_MODE {
            let mode = Permissions::from_mode(FILE_MODE);
            again(|| file.file.set_permissions(mode.clone())).map_err(|e| at(&file.path, e))?;
        }
        Ok(Attempt::Locked(file))
    }

    /// Creation and opening are apart, because with `fs.protected_regular` the kernel refuses
    /// `O_CREAT` on another user's file in a sticky directory, even to root.
    fn create_or_open(&self, name: &str) -> io::Result<Opened> {
        let create = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | OFlags::NONBLOCK;
        let mode = Mode::from_raw_mode(FILE_MODE as _);
        let open = || match self.open_existing(name, OFlags::RDWR) {
            Ok(file) => Ok(Opened::File { file, new: false }),
            Err(Errno::NOENT) => Ok(Opened::Gone),
            Err(Errno::ROFS) => self.open_unwritable(name),
            Err(e) => Err(self.explain(name, e)),
        };
        // First the case in which someone waits for the answer: a running server's file.
        match open()? {
            Opened::Gone => {}
            opened => return Ok(opened),
        }
        let created = again(|| rustix::fs::openat(&self.file, name, create, mode));
        match created.and_then(above_stdio) {
            Ok(fd) => Ok(Opened::File {
                file: fd.into(),
                new: true,
            }),
            Err(Errno::EXIST) => open(),
            Err(Errno::NOENT) => Ok(Opened::NoDirectory),
            Err(e) => {
                let path = self.path.join(name);
                let e = io::Error::from(e);
                let what = format!("cannot create {}{}", path.display(), hint(&e));
                Err(context(e, what))
            }
        }
    }

    /// Nobody starts where nothing can be written, but who has started elsewhere, where it can be, is
    /// worth naming.
    fn open_unwritable(&self, name: &str) -> io::Result<Opened> {
        match self.open_lock(name)? {
            Some(file) if file.is_held()? => Ok(Opened::Held(file)),
            Some(_) => {
                let e = io::Error::from(Errno::ROFS);
                let path = self.path.join(name);
                let what = format!("cannot write {}{}", path.display(), hint(&e));
                Err(context(e, what))
            }
            None => Ok(Opened::Gone),
        }
    }

    /// Opens for reading, without creating and without a lock; `None` where there is no such file.
    pub(crate) fn open_lock(&self, name: &str) -> io::Result<Option<LockFile>> {
        let file = match self.open_existing(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.explain(name, e)),
        };
        let path = self.path.join(name);
        let metadata = again(|| file.metadata()).map_err(|e| at(&path, e))?;
        check(&path, &metadata)?;
        Ok(Some(LockFile::new(file, path, &metadata, false)))
    }

    /// Opens a second description of a file that is open, to lock and remove it; `None` where the
    /// name is not that file's any more.
    pub(crate) fn open_again(&self, name: &str, first: &LockFile) -> io::Result<Option<LockFile>> {
        let file = match self.open_existing(name, OFlags::RDWR) {
            Ok(file) => file,
            Err(_) if !first.is_in(self, name)? => return Ok(None),
            Err(e) => return Err(self.explain(name, e)),
        };
        let path = self.path.join(name);
        let metadata = again(|| file.metadata()).map_err(|e| at(&path, e))?;
        let second = LockFile::new(file, path, &metadata, false);
        Ok((second.id == first.id).then_some(second))
    }

    fn open_existing(&self, name: &str, access: OFlags) -> Result<File, Errno> {
        let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = again(|| rustix::fs::openat(&self.file, name, flags, Mode::empty()))?;
        Ok(above_stdio(fd)?.into())
    }

    /// A lock file whose descriptor came from another process.
    pub(crate) fn received(&self, descriptor: OwnedFd, name: &str) -> io::Result<LockFile> {
        let file = File::from(descriptor);
        let path = self.path.join(name);
        let metadata = file.metadata().map_err(|e| at(&path, e))?;
        check(&path, &metadata)?;
        Ok(LockFile::new(file, path, &metadata, false))
    }

    /// Why a file in the lock's place can't be opened.
    fn explain(&self, name: &str, e: Errno) -> io::Error {
        let path = self.path.join(name);
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(_) => return at(&path, e.into()),
        };
        match check(&path, &metadata) {
            Err(refused) => refused,
            Ok(()) if e == Errno::ACCESS && metadata.uid() != effective_uid() => {
                foreign(&path, metadata.uid())
            }
            Ok(()) => at(&path, e.into()),
        }
    }

    /// Who owns the entry, for showing.
    pub(crate) fn owner(&self, name: &str) -> Option<String> {
        let metadata = self.path.join(name).symlink_metadata().ok()?;
        Some(user_name(metadata.uid()))
    }

    /// The names of all entries.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        let failed = |e| context(e, format!("cannot list {}", self.path.display()));
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.file).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            names.push(OsString::from_vec(entry.file_name().to_bytes().to_vec()));
        }
        Ok(names)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

enum Opened {
    File {
        file: File,
        /// Created by this call.
        new: bool,
    },
    /// For reading alone, and somebody has the lock.
    Held(LockFile),
    /// Removed in between.
    Gone,
    NoDirectory,
}

/// Never standard input, output or error, which a program may have closed: what it prints would be
/// written into the lock file.
fn above_stdio(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3)
}
