//! An open lock file: its kernel lock, its content, whether it still is at its path.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::owner::at;
use crate::error::context;
use crate::info::MAX_LEN;
use crate::sys::refuse;

/// An open lock file. The kernel lock belongs to this open file description: it ends when the
/// last copy of the descriptor is closed, here or in a process that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) new: bool,
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
    pub(crate) fn remove(&self, directory: impl AsFd, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(context(e, format!("cannot remove {}", self.path.display()))),
        }
    }

    pub(crate) fn metadata(&self) -> io::Result<std::fs::Metadata> {
        self.file.metadata().map_err(|e| at(&self.path, e))
    }

    pub(crate) fn set_inheritable(&self, directory: impl AsFd, yes: bool) -> io::Result<()> {
        use rustix::io::FdFlags;
        let flags = if yes {
            FdFlags::empty()
        } else {
            FdFlags::CLOEXEC
        };
        rustix::io::fcntl_setfd(&self.file, flags)?;
        rustix::io::fcntl_setfd(directory, flags)?;
        Ok(())
    }
}

impl AsFd for LockFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Refuses what is not a plain lock file; its owner is the caller's concern.
pub(super) fn check(path: &Path, metadata: &std::fs::Metadata) -> io::Result<()> {
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
