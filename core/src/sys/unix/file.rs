//! An open lock file: its kernel lock, its content, whether it still is at its path.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;

use super::Directory;
use super::again::again;
use super::hint::hint;
use super::owner::{at, effective_uid};
use crate::error::context;
use crate::record::{BLANK, MAX_LEN};
use crate::sys::refuse;

/// An open lock file. The kernel lock belongs to this open file description: it ends when the
/// last copy of the descriptor is closed, here or in a process that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    owner: u32,
    /// Created by the call that opened it.
    new: bool,
    written: AtomicBool,
}

/// Device and inode: the same file for as long as it is open.
pub(super) type FileId = (u64, u64);

impl LockFile {
    pub(super) fn new(file: File, path: PathBuf, metadata: &Metadata, new: bool) -> Self {
        Self {
            file,
            path,
            id: (metadata.dev(), metadata.ino()),
            owner: metadata.uid(),
            new,
            written: AtomicBool::new(false),
        }
    }

    /// Tries for the kernel lock, without waiting. Not through [`Directory::open_lock`], which opens
    /// for reading alone: NFS gives no exclusive lock then.
    ///
    /// [`Directory::open_lock`]: super::Directory::open_lock
    pub(crate) fn retry(&self) -> io::Result<bool> {
        self.locked(again(|| fs2::FileExt::try_lock_exclusive(&self.file)))
    }

    /// The file as it is after a wait, with its lock: others may have written to it meanwhile.
    /// `None` where it belongs to another user, whose left-overs nobody takes, or can't be written.
    pub(crate) fn after_wait(self) -> io::Result<Option<Self>> {
        let own = self.metadata()?.uid() == effective_uid();
        let mode = rustix::fs::fcntl_getfl(&self.file).map_err(|e| at(&self.path, e.into()))?;
        let usable = own && mode.contains(OFlags::RDWR);
        Ok(usable.then_some(Self { new: false, ..self }))
    }

    /// Whether somebody holds the kernel lock. Takes a shared one for an instant where nobody does:
    /// other readers do not mind, and whoever acquires tries again.
    pub(crate) fn is_held(&self) -> io::Result<bool> {
        let free = self.locked(again(|| fs2::FileExt::try_lock_shared(&self.file)))?;
        if free {
            self.unlock();
        }
        Ok(!free)
    }

    fn locked(&self, result: io::Result<()>) -> io::Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => Ok(false),
            Err(e) => Err(context(e, format!("cannot lock {}", self.path.display()))),
        }
    }

    /// Whose it is.
    pub(crate) fn owner(&self) -> Option<u32> {
        Some(self.owner)
    }

    /// Whether both are the same file.
    pub(crate) fn is_same(&self, other: &Self) -> io::Result<bool> {
        Ok(self.id == other.id)
    }

    /// Whether the path still names this file, which nobody else can then have locked.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.is_found(again(|| rustix::fs::lstat(path)))
    }

    /// Whether the directory still has this file by that name, wherever the directory is by now.
    pub(crate) fn is_in(&self, directory: &Directory, name: &str) -> io::Result<bool> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        self.is_found(again(|| rustix::fs::statat(directory, name, flags)))
    }

    fn is_found(&self, found: rustix::io::Result<rustix::fs::Stat>) -> io::Result<bool> {
        match found {
            Ok(found) => Ok(self.id == file_id(&found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(e) => Err(at(&self.path, e.into())),
        }
    }

    /// The content, cut off one byte after the limit: read until it stays the same, as a reader may
    /// meet a writer half-way. Who holds the lock needs [`read_own`](Self::read_own) alone.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut before = self.read_own()?;
        // Who writes without end is no lock's holder, and his text is as good as any.
        for _ in 0..100 {
            let now = self.read_own()?;
            if now == before {
                break;
            }
            before = now;
        }
        Ok(before)
    }

    /// The content, of a file that nobody else can be writing.
    pub(crate) fn read_own(&self) -> io::Result<Vec<u8>> {
        // One system call for all of it: in two, it may be of two texts.
        let mut buffer = vec![0; (MAX_LEN + 1) as usize];
        let read = again(|| self.file.read_at(&mut buffer, 0));
        buffer.truncate(read.map_err(|e| at(&self.path, e))?);
        Ok(buffer)
    }

    /// Replaces the content. A reader who meets the writer half-way sees blanks where something is
    /// missing, and no text made of two: the kernel copies a text piece by piece.
    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        let failed = |e: io::Error| {
            let what = format!("cannot write {}{}", self.path.display(), hint(&e));
            context(e, what)
        };
        // A file that this very call created is empty.
        let is_empty = self.new && !self.written.swap(true, Ordering::Relaxed);
        if !is_empty {
            let old_len = again(|| self.file.metadata()).map_err(failed)?.len();
            self.blank(usize::try_from(old_len).unwrap_or(usize::MAX))
                .map_err(failed)?;
            if old_len > text.len() as u64 {
                again(|| self.file.set_len(text.len() as u64)).map_err(failed)?;
            }
        }
        self.overwrite(text).map_err(failed)
    }

    /// Puts text over the beginning of the file. Async-signal-safe.
    pub(crate) fn overwrite(&self, text: &[u8]) -> io::Result<()> {
        if again(|| self.file.write_at(text, 0))? != text.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Whether the call that opened it created it.
    pub(crate) fn is_new(&self) -> bool {
        self.new
    }

    /// Gives a lock back that was taken only to look. Never one that was kept: a child that was
    /// forked meanwhile would keep the one and lose the other.
    pub(crate) fn unlock(&self) {
        // A lock that can't be given back ends with the descriptor.
        let _ = fs2::FileExt::unlock(&self.file);
    }

    /// Makes the file, of this length, name nobody, in one write.
    pub(crate) fn blank(&self, len: usize) -> io::Result<()> {
        let blanks = [BLANK; 512];
        match blanks.get(..len) {
            Some(blanks) => self.overwrite(blanks),
            None => again(|| self.file.set_len(0)),
        }
    }

    /// Removes the file from its directory. Only for the holder of the lock, after
    /// [`is_at`](Self::is_at).
    pub(crate) fn remove(&self, directory: &Directory, name: &str) -> io::Result<()> {
        match again(|| rustix::fs::unlinkat(directory, name, AtFlags::empty())) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(context(e, format!("cannot remove {}", self.path.display()))),
        }
    }

    pub(crate) fn metadata(&self) -> io::Result<Metadata> {
        again(|| self.file.metadata()).map_err(|e| at(&self.path, e))
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

pub(super) fn file_id(found: &rustix::fs::Stat) -> FileId {
    // Their types differ between systems.
    #[allow(clippy::unnecessary_cast)]
    (found.st_dev as u64, found.st_ino as u64)
}

/// Refuses what is not a plain lock file; its owner is the caller's concern.
pub(super) fn check(path: &Path, metadata: &Metadata) -> io::Result<()> {
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
