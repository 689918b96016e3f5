use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Attempt, refuse};
use crate::error::context;
use crate::info::MAX_LEN;

const DIRECTORY_MODE: u32 = 0o1777;
const FILE_MODE: u32 = 0o600;

/// The lock directory, kept open: what happens to its path can't redirect what we do in it.
#[derive(Debug)]
pub(crate) struct Directory {
    file: File,
    path: PathBuf,
}

impl Directory {
    /// `shared` is the default directory below the world-writable temporary one: no symlink is
    /// followed, and it is created for all users. Another is the caller's own business.
    pub(crate) fn open(path: &Path, shared: bool) -> io::Result<Self> {
        let mut flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if shared {
            flags |= OFlags::NOFOLLOW;
        }
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => {
                let directory = Self {
                    file: fd.into(),
                    path: path.to_path_buf(),
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
        match builder.create(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        Self::open(path, shared)
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
        })
    }

    /// Opens a directory to all users whose creator was ended before it could: ours, with the
    /// sticky bit, and without what a umask took away.
    fn finish(&self) -> io::Result<()> {
        let metadata = self.file.metadata().map_err(|e| at(&self.path, e))?;
        let mode = metadata.mode() & 0o7777;
        if metadata.uid() == effective_uid() && mode != DIRECTORY_MODE && mode & 0o1000 != 0 {
            let mode = Permissions::from_mode(DIRECTORY_MODE);
            self.file
                .set_permissions(mode)
                .map_err(|e| at(&self.path, e))?;
        }
        Ok(())
    }

    /// Keeps systemd-tmpfiles from ageing the directory's files for as long as it stays open.
    pub(crate) fn keep(&self) {
        // Best effort: the lock does not rest on it.
        let _ = fs2::FileExt::try_lock_shared(&self.file);
    }

    pub(crate) fn try_lock(&self, name: &str) -> io::Result<Attempt> {
        let (file, new) = match self.create_or_open(name)? {
            Opened::File { file, new } => (file, new),
            Opened::NoDirectory => return Ok(Attempt::NoDirectory),
            Opened::Gone => return Ok(Attempt::Moved),
        };
        let path = self.path.join(name);
        let metadata = file.metadata().map_err(|e| at(&path, e))?;
        if metadata.nlink() == 0 {
            return Ok(Attempt::Moved);
        }
        check(&path, &metadata)?;
        let file = LockFile { file, path, new };
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
            file.file
                .set_permissions(Permissions::from_mode(FILE_MODE))
                .map_err(|e| at(&file.path, e))?;
        }
        Ok(Attempt::Locked(file))
    }

    /// Creation and opening are apart, because with `fs.protected_regular` the kernel refuses
    /// `O_CREAT` on another user's file in a sticky directory, even to root.
    fn create_or_open(&self, name: &str) -> io::Result<Opened> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let create = flags | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(FILE_MODE as _);
        let open = || match rustix::fs::openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Opened::existing(fd)),
            Err(Errno::NOENT) => Ok(Opened::Gone),
            Err(e) => Err(self.explain(name, e)),
        };
        // First the case in which someone waits for the answer: a running server's file.
        match open()? {
            Opened::Gone => {}
            opened => return Ok(opened),
        }
        match rustix::fs::openat(&self.file, name, create, mode) {
            Ok(fd) => Ok(Opened::File {
                file: fd.into(),
                new: true,
            }),
            Err(Errno::EXIST) => open(),
            Err(Errno::NOENT) => Ok(Opened::NoDirectory),
            Err(e) => {
                let path = self.path.join(name);
                let hint = match e {
                    Errno::ACCESS => {
                        ", set LLMLB_LOCK_DIR to a directory you may write to, or have this one \
                         opened by its owner (chmod 1777)"
                    }
                    _ => "",
                };
                let what = format!("cannot create {}{hint}", path.display());
                Err(context(e, what))
            }
        }
    }

    /// Opens without creating and without a lock; `None` where there is no such file.
    pub(crate) fn open_lock(&self, name: &str) -> io::Result<Option<LockFile>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let path = self.path.join(name);
        let file: File = match rustix::fs::openat(&self.file, name, flags, Mode::empty()) {
            Ok(fd) => fd.into(),
            Err(Errno::NOENT) => return Ok(None),
            Err(e) => return Err(self.explain(name, e)),
        };
        check(&path, &file.metadata().map_err(|e| at(&path, e))?)?;
        Ok(Some(LockFile {
            file,
            path,
            new: false,
        }))
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
    /// Removed in between.
    Gone,
    NoDirectory,
}

impl Opened {
    fn existing(fd: OwnedFd) -> Self {
        Self::File {
            file: fd.into(),
            new: false,
        }
    }
}

/// An open lock file. The kernel lock belongs to this open file description: it ends when the
/// last copy of the descriptor is closed, here or in a process that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    file: File,
    path: PathBuf,
    new: bool,
}

impl LockFile {
    /// Tries for the kernel lock, without waiting.
    pub(crate) fn retry(&self) -> io::Result<bool> {
        match fs2::FileExt::try_lock_exclusive(&self.file) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(false),
            Err(e) => Err(context(e, format!("cannot lock {}", self.path.display()))),
        }
    }

    /// Whether the path still names this file, which nobody else can then have locked.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.file.metadata().map_err(|e| at(path, e))?;
        if ours.nlink() == 0 {
            return Ok(false);
        }
        match path.symlink_metadata() {
            Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(at(path, e)),
        }
    }

    /// The content, cut off one byte after the limit.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 512];
        let mut len = 0;
        loop {
            match self.file.read_at(&mut buffer[len..], len as u64) {
                // A short read of a regular file has reached its end.
                Ok(n) if len + n < buffer.len() => {
                    len += n;
                    break;
                }
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(at(&self.path, e)),
            }
            if len as u64 > MAX_LEN {
                break;
            }
            if len == buffer.len() {
                buffer.resize((MAX_LEN + 1) as usize, 0);
            }
        }
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Replaces the content. A reader sees the old or the new text, never half of one.
    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        let failed = |e| context(e, format!("cannot write {}", self.path.display()));
        let old_len = self.file.metadata().map_err(failed)?.len();
        let mut padded = text.to_vec();
        if old_len > text.len() as u64 {
            // Blanks are no part of JSON: the tail of a longer text is never read behind ours.
            padded.resize(old_len.min(MAX_LEN) as usize, b' ');
        }
        if self.file.write_at(&padded, 0).map_err(failed)? != padded.len() {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        if old_len > text.len() as u64 {
            self.file.set_len(text.len() as u64).map_err(failed)?;
        }
        Ok(())
    }

    /// Puts text over the beginning of the file. Async-signal-safe.
    pub(crate) fn overwrite(&self, text: &[u8]) -> io::Result<()> {
        if self.file.write_at(text, 0)? != text.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            path: self.path.clone(),
            new: self.new,
        })
    }

    /// Whether this very call created it.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Gives a lock back that was taken only to look. Never one that was kept: a child that was
    /// forked meanwhile would keep the one and lose the other.
    pub(crate) fn unlock(&self) {
        // A lock that can't be given back ends with the descriptor.
        let _ = fs2::FileExt::unlock(&self.file);
    }

    /// Leaves nothing in a file that can't be removed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0).map_err(|e| at(&self.path, e))
    }

    /// Removes the file from its directory. Only for the holder of the lock, after
    /// [`is_at`](Self::is_at).
    pub(crate) fn remove(&self, directory: &Directory, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&directory.file, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(context(e, format!("cannot remove {}", self.path.display()))),
        }
    }

    pub(crate) fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata().map_err(|e| at(&self.path, e))
    }

    pub(crate) fn set_inheritable(&self, directory: &Directory, yes: bool) -> io::Result<()> {
        use rustix::io::FdFlags;
        let flags = if yes {
            FdFlags::empty()
        } else {
            FdFlags::CLOEXEC
        };
        rustix::io::fcntl_setfd(&self.file, flags)?;
        rustix::io::fcntl_setfd(&directory.file, flags)?;
        Ok(())
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn at(path: &Path, e: io::Error) -> io::Error {
    context(e, path.display().to_string())
}

fn foreign(path: &Path, uid: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} belongs to user {}, who may have a server on this port; it was left alone: \
             choose another port, or ask them{}",
            path.display(),
            user_name(uid),
            if effective_uid() == 0 {
                " (as root, `llmlb stop` removes it if it is a left-over)"
            } else {
                ""
            }
        ),
    )
}

/// Refuses what is not a plain lock file; its owner is the caller's concern.
fn check(path: &Path, metadata: &std::fs::Metadata) -> io::Result<()> {
    let kind = metadata.file_type();
    let what = if kind.is_file() {
        if metadata.nlink() <= 1 {
            return Ok(());
        }
        "has another hard link"
    } else if kind.is_symlink() {
        "is a symbolic link, not a lock file"
    } else if kind.is_dir() {
        "is a directory, not a lock file"
    } else if kind.is_fifo() {
        "is a FIFO, not a lock file"
    } else if kind.is_socket() {
        "is a socket, not a lock file"
    } else {
        "is a device, not a lock file"
    };
    Err(refuse(path, what))
}

fn effective_uid() -> u32 {
    Uid::effective().as_raw()
}

/// For root and for the owner alike: a stranger's file is never a reason to remove or signal.
pub(crate) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// Sends SIGTERM. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGTERM)?)
}
