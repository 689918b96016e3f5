//! The lock file itself, and the kernel lock that is its exclusive handle. It knows its path, and
//! nothing of the directory that opened it.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsRawHandle;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_LOCK_VIOLATION, ERROR_SHARING_VIOLATION,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_REPARSE_POINT,
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_READ_ATTRIBUTES,
    FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_STANDARD_INFO, FILE_TYPE_DISK,
    FileStandardInfo, GetFileInformationByHandle, GetFileInformationByHandleEx, GetFileType,
};

use super::result::{is, succeeded};
use crate::error::context;
use crate::record::MAX_LEN;
use crate::sys::refuse;

pub(super) const SHARE_ALL: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
const SHARE_HELD: u32 = FILE_SHARE_READ | FILE_SHARE_DELETE;
/// Links are opened themselves and directories can be, so that both are refused by their kind.
pub(super) const AS_IT_IS: u32 = FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS;

/// An open lock file. The kernel lock is the exclusive handle: it ends when its last copy is
/// closed, here or in a process that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    reader: Option<File>,
    exclusive: OnceLock<File>,
    path: PathBuf,
}

impl LockFile {
    /// One whose lock was just taken: `file` is the exclusive handle.
    pub(super) fn locked(file: File, path: PathBuf) -> Self {
        Self {
            reader: None,
            exclusive: OnceLock::from(file),
            path,
        }
    }

    /// One that may only be read for now.
    pub(super) fn unlocked(file: File, path: PathBuf) -> Self {
        Self {
            reader: Some(file),
            exclusive: OnceLock::new(),
            path,
        }
    }

    pub(super) fn file(&self) -> io::Result<&File> {
        let file = self.exclusive.get().or(self.reader.as_ref());
        file.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Tries for the kernel lock, without waiting. True as well when the file is gone from its
    /// place and nobody can take it any more: [`is_at`](Self::is_at) tells.
    pub(crate) fn retry(&self) -> io::Result<bool> {
        if self.exclusive.get().is_some() {
            return Ok(true);
        }
        let failed = |e| context(e, format!("cannot lock {}", self.path.display()));
        match open_exclusive(&self.path, false) {
            Ok(file) => {
                let same = identity(&file).map_err(failed)?
                    == identity(self.file().map_err(failed)?).map_err(failed)?;
                if same {
                    // Another thread's handle is as good.
                    let _ = self.exclusive.set(file);
                }
                Ok(true)
            }
            Err(e) if is(&e, ERROR_SHARING_VIOLATION) => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) if is(&e, ERROR_ACCESS_DENIED) && is_leaving(&self.path) => Ok(true),
            Err(e) if is(&e, ERROR_ACCESS_DENIED) && self.is_written() => Ok(false),
            Err(e) => Err(failed(e)),
        }
    }

    /// No number here.
    pub(crate) fn owner(&self) -> Option<u32> {
        None
    }

    /// Whether somebody holds the kernel lock.
    pub(crate) fn is_held(&self) -> io::Result<bool> {
        Ok(!self.retry()?)
    }

    /// Whether both are the same file.
    pub(crate) fn is_same(&self, other: &Self) -> io::Result<bool> {
        Ok(identity(self.file()?)? == identity(other.file()?)?)
    }

    /// Whether somebody has a file open for writing that we may only read.
    fn is_written(&self) -> bool {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .share_mode(SHARE_HELD)
            .custom_flags(AS_IT_IS);
        let opened = options.open(&self.path);
        opened.is_err_and(|e| is(&e, ERROR_SHARING_VIOLATION))
    }

    /// Whether the path still names this file, which nobody else can then have locked.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        let failed = |e| at(path, e);
        let file = self.file().map_err(failed)?;
        if is_deleted(file).map_err(failed)? {
            return Ok(false);
        }
        let found = match open_attributes(path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) if is(&e, ERROR_ACCESS_DENIED) => return Ok(false), // see is_leaving
            Err(e) => return Err(failed(e)),
        };
        Ok(identity(&found).map_err(failed)? == identity(file).map_err(failed)?)
    }

    /// The content, cut off one byte after the limit.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let failed = |e| at(&self.path, e);
        let file = self.file().map_err(failed)?;
        let mut buffer = vec![0; (MAX_LEN + 1) as usize];
        let mut len = 0;
        while len < buffer.len() {
            match file.seek_read(&mut buffer[len..], len as u64) {
                Ok(0) => break,
                Ok(n) => len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // llmlb 5.x locks the very bytes that say who it is.
                Err(e) if is(&e, ERROR_LOCK_VIOLATION) => return Ok(Vec::new()),
                Err(e) => return Err(failed(e)),
            }
        }
        buffer.truncate(len);
        Ok(buffer)
    }

    /// The content, of a file that nobody else can be writing.
    pub(crate) fn read_own(&self) -> io::Result<Vec<u8>> {
        self.read()
    }

    /// Replaces the content in one write, then cuts off what a longer text left.
    pub(crate) fn write(&self, text: &[u8]) -> io::Result<()> {
        let failed = |e| context(e, format!("cannot write {}", self.path.display()));
        let file = self.file().map_err(failed)?;
        let old_len = file.metadata().map_err(failed)?.len();
        let mut padded = text.to_vec();
        if old_len > text.len() as u64 {
            // Blanks are no part of JSON: the tail of a longer text is never read behind ours.
            padded.resize(old_len.min(MAX_LEN) as usize, b' ');
        }
        if file.seek_write(&padded, 0).map_err(failed)? != padded.len() {
            return Err(failed(io::ErrorKind::StorageFull.into()));
        }
        if old_len > text.len() as u64 {
            file.set_len(text.len() as u64).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether this very call created it; not told here.
    pub(crate) fn is_new(&self) -> bool {
        let len = self.file().and_then(|file| file.metadata());
        len.is_ok_and(|metadata| metadata.len() == 0)
    }

    /// The file after a wait, if it has the lock: here it may be gone as well.
    pub(crate) fn after_wait(self) -> io::Result<Option<Self>> {
        Ok(None)
    }

    /// Gives a lock back that was taken only to look; it ends with the handle here.
    pub(crate) fn unlock(&self) {}

    /// Makes the file, of this length, name nobody.
    pub(crate) fn blank(&self, _len: usize) -> io::Result<()> {
        self.file()?.set_len(0)
    }
}

pub(super) fn open_exclusive(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .share_mode(SHARE_HELD)
        .custom_flags(AS_IT_IS)
        .open(path)
}

/// Opens what is at the path to look at it, which no share mode forbids.
pub(super) fn open_attributes(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(FILE_READ_ATTRIBUTES)
        .share_mode(SHARE_ALL)
        .custom_flags(AS_IT_IS)
        .open(path)
}

/// Whether the name stays only until readers of a removed file close it: nothing else denies
/// looking at the attributes in a directory that can be listed.
pub(super) fn is_leaving(path: &Path) -> bool {
    open_attributes(path)
        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound || is(&e, ERROR_ACCESS_DENIED))
}

fn information(file: &File) -> io::Result<BY_HANDLE_FILE_INFORMATION> {
    let mut information = BY_HANDLE_FILE_INFORMATION::default();
    // SAFETY: the handle is open, and the structure is ours to be written.
    succeeded(unsafe { GetFileInformationByHandle(file.as_raw_handle(), &mut information) })?;
    Ok(information)
}

/// Volume and file number: the same for two handles on one file, while both are open.
fn identity(file: &File) -> io::Result<(u32, u32, u32)> {
    let found = information(file)?;
    Ok((
        found.dwVolumeSerialNumber,
        found.nFileIndexHigh,
        found.nFileIndexLow,
    ))
}

/// Whether the file is removed, and stays only for those who have it open.
pub(super) fn is_deleted(file: &File) -> io::Result<bool> {
    let mut standard = FILE_STANDARD_INFO::default();
    let size = mem::size_of::<FILE_STANDARD_INFO>() as u32;
    // SAFETY: the handle is open, and `size` bytes of the structure are ours to be written.
    let result = unsafe {
        GetFileInformationByHandleEx(
            file.as_raw_handle(),
            FileStandardInfo,
            (&raw mut standard).cast(),
            size,
        )
    };
    match succeeded(result) {
        Ok(()) => Ok(standard.DeletePending || standard.NumberOfLinks == 0),
        Err(e) if is(&e, ERROR_ACCESS_DENIED) => Ok(true),
        Err(e) => Err(e),
    }
}

pub(super) fn at(path: &Path, e: io::Error) -> io::Error {
    context(e, path.display().to_string())
}

/// Why a file in the lock's place can't be opened.
pub(super) fn explain(path: &Path, e: io::Error) -> io::Error {
    match open_attributes(path) {
        Ok(found) => check(path, &found).err().unwrap_or_else(|| at(path, e)),
        Err(_) => at(path, e),
    }
}

/// Refuses what is not a plain lock file.
pub(super) fn check(path: &Path, file: &File) -> io::Result<()> {
    // SAFETY: the handle is open.
    if unsafe { GetFileType(file.as_raw_handle()) } != FILE_TYPE_DISK {
        return Err(refuse(path, "is a device, not a lock file"));
    }
    let found = information(file).map_err(|e| at(path, e))?;
    let has = |attribute| found.dwFileAttributes & attribute != 0;
    let what = if has(FILE_ATTRIBUTE_REPARSE_POINT) {
        "is a link, not a lock file"
    } else if has(FILE_ATTRIBUTE_DIRECTORY) {
        "is a directory, not a lock file"
    } else if found.nNumberOfLinks > 1 {
        "has another hard link"
    } else {
        return Ok(());
    };
    Err(refuse(path, what))
}
