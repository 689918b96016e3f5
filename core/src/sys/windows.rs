//! The handle is the lock: its holder opens the file for writing and shares reading and deleting
//! alone, so that a second holder fails with a sharing violation, everyone can read, and the
//! kernel frees the lock with the last copy of the handle.
//!
//! The file is not opened to be deleted on close. That takes a handle with delete access for as
//! long as the lock is held, which shuts out every program that reads without sharing deletion
//! (as most do), and it would keep the port taken while any reader had a dead holder's file open.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::os::windows::ffi::OsStringExt;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::{
    AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle, RawHandle,
};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_FILE_NOT_FOUND, ERROR_INVALID_PARAMETER,
    ERROR_LOCK_VIOLATION, ERROR_PATH_NOT_FOUND, ERROR_SHARING_VIOLATION, FILETIME, GetLastError,
    HANDLE_FLAG_INHERIT, LocalFree, SetHandleInformation, WAIT_FAILED, WAIT_OBJECT_0, WAIT_TIMEOUT,
};
use windows_sys::Win32::Security::Authorization::{
    ConvertSidToStringSidW, ConvertStringSecurityDescriptorToSecurityDescriptorW, GetSecurityInfo,
    SDDL_REVISION_1, SE_FILE_OBJECT,
};
use windows_sys::Win32::Security::{
    EqualSid, GetTokenInformation, IsWellKnownSid, LookupAccountSidW, OWNER_SECURITY_INFORMATION,
    PSECURITY_DESCRIPTOR, PSID, SECURITY_ATTRIBUTES, TOKEN_OWNER, TOKEN_QUERY, TOKEN_USER,
    TokenOwner, TokenUser, WinBuiltinAdministratorsSid, WinLocalSystemSid,
};
use windows_sys::Win32::Storage::FileSystem::{
    BY_HANDLE_FILE_INFORMATION, FILE_ATTRIBUTE_DIRECTORY, FILE_ATTRIBUTE_REPARSE_POINT,
    FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT, FILE_READ_ATTRIBUTES,
    FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, FILE_STANDARD_INFO, FILE_TYPE_DISK,
    FileStandardInfo, GetFileInformationByHandle, GetFileInformationByHandleEx, GetFileType,
    READ_CONTROL,
};
use windows_sys::Win32::System::Threading::{
    CreateEventW, EVENT_MODIFY_STATE, GetCurrentProcess, GetProcessId, GetProcessTimes, OpenEventW,
    OpenProcess, OpenProcessToken, PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE,
    PROCESS_TERMINATE, SetEvent, TerminateProcess, WaitForSingleObject,
};

use super::{Attempt, Process, refuse};
use crate::error::context;
use crate::info::MAX_LEN;

const SHARE_ALL: u32 = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
const SHARE_HELD: u32 = FILE_SHARE_READ | FILE_SHARE_DELETE;
/// Links are opened themselves and directories can be, so that both are refused by their kind.
const AS_IT_IS: u32 = FILE_FLAG_OPEN_REPARSE_POINT | FILE_FLAG_BACKUP_SEMANTICS;
/// What `taskkill /F` ends a process with.
const KILLED: u32 = 1;

fn is(e: &io::Error, code: u32) -> bool {
    e.raw_os_error().and_then(|raw| u32::try_from(raw).ok()) == Some(code)
}

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
                Ok(Attempt::Locked(LockFile {
                    reader: None,
                    exclusive: OnceLock::from(file),
                    path,
                }))
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
        Ok(Some(LockFile {
            reader: Some(file),
            exclusive: OnceLock::new(),
            path,
        }))
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

fn open_exclusive(path: &Path, create: bool) -> io::Result<File> {
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
fn open_attributes(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .access_mode(FILE_READ_ATTRIBUTES)
        .share_mode(SHARE_ALL)
        .custom_flags(AS_IT_IS)
        .open(path)
}

/// Whether the name stays only until readers of a removed file close it: nothing else denies
/// looking at the attributes in a directory that can be listed.
fn is_leaving(path: &Path) -> bool {
    open_attributes(path)
        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound || is(&e, ERROR_ACCESS_DENIED))
}

/// An open lock file. The kernel lock is the exclusive handle: it ends when its last copy is
/// closed, here or in a process that inherited it.
#[derive(Debug)]
pub(crate) struct LockFile {
    reader: Option<File>,
    exclusive: OnceLock<File>,
    path: PathBuf,
}

impl LockFile {
    fn file(&self) -> io::Result<&File> {
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
        true
    }

    /// Gives a lock back that was taken only to look; it ends with the handle here.
    pub(crate) fn unlock(&self) {}

    /// Leaves nothing in a file that can't be removed.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file()?.set_len(0)
    }

    /// Removes the file from its directory. Only for the holder of the lock, after
    /// [`is_at`](Self::is_at).
    pub(crate) fn remove(&self, directory: &Directory, name: &str) -> io::Result<()> {
        // Where a name outlives its removal until readers have left, it must not name anybody.
        let _ = self.file()?.set_len(0);
        match std::fs::remove_file(directory.path.join(name)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(context(e, format!("cannot remove {}", self.path.display()))),
        }
    }

    pub(crate) fn set_inheritable(&self, _directory: &Directory, yes: bool) -> io::Result<()> {
        let flags = if yes { HANDLE_FLAG_INHERIT } else { 0 };
        let file = self.file()?;
        // SAFETY: the handle is open for as long as `file` is borrowed.
        succeeded(unsafe { SetHandleInformation(file.as_raw_handle(), HANDLE_FLAG_INHERIT, flags) })
    }
}

fn succeeded(result: i32) -> io::Result<()> {
    if result == 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
fn is_deleted(file: &File) -> io::Result<bool> {
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

fn at(path: &Path, e: io::Error) -> io::Error {
    context(e, path.display().to_string())
}

/// Why a file in the lock's place can't be opened.
fn explain(path: &Path, e: io::Error) -> io::Error {
    match open_attributes(path) {
        Ok(found) => check(path, &found).err().unwrap_or_else(|| at(path, e)),
        Err(_) => at(path, e),
    }
}

/// Refuses what is not a plain lock file.
fn check(path: &Path, file: &File) -> io::Result<()> {
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

/// The owner of a file.
struct Owner {
    sid: PSID,
    descriptor: PSECURITY_DESCRIPTOR,
}

impl Owner {
    fn of(file: &File) -> io::Result<Self> {
        let mut owner = Self {
            sid: ptr::null_mut(),
            descriptor: ptr::null_mut(),
        };
        // SAFETY: the handle is open; the two pointers are ours to be written, those not wanted
        // may be null.
        let code = unsafe {
            GetSecurityInfo(
                file.as_raw_handle(),
                SE_FILE_OBJECT,
                OWNER_SECURITY_INFORMATION,
                &mut owner.sid,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
                &mut owner.descriptor,
            )
        };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code as i32));
        }
        Ok(owner)
    }

    /// Whether it is the system or the administrators, who could do anything anyway.
    fn is_trusted(&self) -> bool {
        [WinLocalSystemSid, WinBuiltinAdministratorsSid]
            .into_iter()
            // SAFETY: the SID is valid as long as its descriptor, which is freed on drop alone.
            .any(|known| unsafe { IsWellKnownSid(self.sid, known) } != 0)
    }

    fn account(&self) -> Option<String> {
        let (mut name, mut domain) = ([0u16; 256], [0u16; 256]);
        let (mut name_len, mut domain_len) = (256, 256);
        let mut kind = 0;
        // SAFETY: the SID is valid, and the lengths are those of the arrays.
        let found = unsafe {
            LookupAccountSidW(
                ptr::null(),
                self.sid,
                name.as_mut_ptr(),
                &mut name_len,
                domain.as_mut_ptr(),
                &mut domain_len,
                &mut kind,
            )
        };
        let name = name.get(..name_len as usize).filter(|_| found != 0)?;
        OsString::from_wide(name).into_string().ok()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: GetSecurityInfo allocated it for us to free, and it is freed here alone.
        unsafe { LocalFree(self.descriptor) };
    }
}

/// Whether the process belongs to the owner of the lock file, or an administrator wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    let owner = Owner::of(file.file()?)?;
    if owner.is_trusted() {
        return Ok(true);
    }
    let Ok(process) = open_process(pid, PROCESS_QUERY_LIMITED_INFORMATION) else {
        return Ok(false);
    };
    let Ok(token) = open_token(process.as_raw_handle()) else {
        return Ok(false);
    };
    // An elevated process's files may belong to its group instead.
    for class in [TokenUser, TokenOwner] {
        // SAFETY: both are valid for as long as the values that own them.
        if unsafe { EqualSid(token_sid(&token, class)?.get(), owner.sid) } != 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_token(process: RawHandle) -> io::Result<OwnedHandle> {
    let mut token: RawHandle = ptr::null_mut();
    // SAFETY: the process handle is open, and the token is ours to be written.
    succeeded(unsafe { OpenProcessToken(process, TOKEN_QUERY, &mut token) })?;
    // SAFETY: a new handle that nobody else has.
    Ok(unsafe { OwnedHandle::from_raw_handle(token) })
}

/// A SID, with the buffer it lies in.
struct TokenSid {
    /// Aligned for the pointers in it, and larger than the largest SID.
    buffer: Box<[u64; 32]>,
    class: i32,
}

impl TokenSid {
    fn get(&self) -> PSID {
        let start = self.buffer.as_ptr();
        // SAFETY: the system has filled the buffer with the structure of its class.
        unsafe {
            if self.class == TokenUser {
                (*start.cast::<TOKEN_USER>()).User.Sid
            } else {
                (*start.cast::<TOKEN_OWNER>()).Owner
            }
        }
    }
}

/// `class` is `TokenUser` or `TokenOwner`.
fn token_sid(token: &OwnedHandle, class: i32) -> io::Result<TokenSid> {
    let mut buffer = Box::new([0u64; 32]);
    let mut len = 0;
    // SAFETY: the handle is open, and as many bytes as stated are ours to be written.
    succeeded(unsafe {
        GetTokenInformation(
            token.as_raw_handle(),
            class,
            buffer.as_mut_ptr().cast(),
            mem::size_of_val(&*buffer) as u32,
            &mut len,
        )
    })?;
    Ok(TokenSid { buffer, class })
}

fn open_process(pid: u32, access: u32) -> io::Result<OwnedHandle> {
    // SAFETY: takes numbers and gives back a new handle, or null.
    let handle = unsafe { OpenProcess(access, 0, pid) };
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new handle that nobody else has.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Opens a process by its exact id: Windows ignores the two lowest bits. `None` for none.
fn open_exact(pid: u32, access: u32) -> io::Result<Option<OwnedHandle>> {
    let handle = match open_process(pid, access | PROCESS_QUERY_LIMITED_INFORMATION) {
        Ok(handle) => handle,
        Err(e) if is(&e, ERROR_INVALID_PARAMETER) => return Ok(None),
        Err(e) => return Err(e),
    };
    // SAFETY: the handle is open.
    let exact = unsafe { GetProcessId(handle.as_raw_handle()) } == pid;
    Ok(exact.then_some(handle))
}

/// False when the time ran out first. Processes that have ended can still be opened.
fn wait(handle: &OwnedHandle, milliseconds: u32) -> io::Result<bool> {
    // SAFETY: the handle is open, and was opened with the right to wait.
    match unsafe { WaitForSingleObject(handle.as_raw_handle(), milliseconds) } {
        WAIT_OBJECT_0 => Ok(true),
        WAIT_TIMEOUT => Ok(false),
        WAIT_FAILED => Err(io::Error::last_os_error()),
        other => Err(io::Error::other(format!("unexpected wait result {other}"))),
    }
}

/// In 100 ns since 1601.
fn creation_time(handle: &OwnedHandle) -> io::Result<u64> {
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: the handle is open, and the four structures are ours to be written.
    succeeded(unsafe { GetProcessTimes(handle.as_raw_handle(), created, exited, kernel, user) })?;
    Ok(u64::from(times[0].dwHighDateTime) << 32 | u64::from(times[0].dwLowDateTime))
}

fn to_utc(filetime: u64) -> Option<DateTime<Utc>> {
    let since_1970 = i64::try_from(filetime).ok()? - 116_444_736_000_000_000;
    DateTime::from_timestamp_micros(since_1970 / 10)
}

/// Looks one process up. `None` for none, or one that has ended. `pid` must be from 1 to
/// `i32::MAX`.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let started = match open_exact(pid, PROCESS_SYNCHRONIZE) {
        Ok(handle) => {
            let handle = handle.filter(|handle| matches!(wait(handle, 0), Ok(false)))?;
            creation_time(&handle).ok().and_then(to_utc)
        }
        // Somebody else's then. Ids are multiples of four.
        Err(_) if pid.is_multiple_of(4) => None,
        Err(_) => return None,
    };
    Some(Process {
        started,
        parent: 0, // only of use where the holders of a lock can be told
    })
}

/// A process that can't turn into another one: its id is not given away while this is open.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    handle: OwnedHandle,
    created: u64,
}

impl ProcessHandle {
    /// `None` where there is no such process, or it has ended.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(handle) = open_exact(pid, PROCESS_SYNCHRONIZE | PROCESS_TERMINATE)? else {
            return Ok(None);
        };
        let created = creation_time(&handle)?;
        let ended = wait(&handle, 0)?;
        Ok((!ended).then_some(Self {
            pid,
            handle,
            created,
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. False if it does not listen, and was ended at once.
    pub(crate) fn terminate(&self) -> io::Result<bool> {
        if self.ask()? {
            return Ok(true);
        }
        self.kill().map(|()| false)
    }

    /// Asks it to end. False if it does not listen.
    fn ask(&self) -> io::Result<bool> {
        let name = event_name(self.pid, self.created);
        // SAFETY: the name ends with a zero.
        let event = unsafe { OpenEventW(EVENT_MODIFY_STATE, 0, name.as_ptr()) };
        if event.is_null() {
            return match io::Error::last_os_error() {
                e if is(&e, ERROR_FILE_NOT_FOUND) => Ok(false),
                e => Err(e),
            };
        }
        // SAFETY: a new handle that nobody else has.
        let event = unsafe { OwnedHandle::from_raw_handle(event) };
        // SAFETY: the handle is open, and was opened with the right to set it.
        succeeded(unsafe { SetEvent(event.as_raw_handle()) })?;
        Ok(true)
    }

    /// Nothing here stops a process for a while.
    pub(crate) fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    /// Ends it. A process that is gone already is no error.
    pub(crate) fn kill(&self) -> io::Result<()> {
        // SAFETY: the handle is open, and was opened with the right to terminate.
        match succeeded(unsafe { TerminateProcess(self.handle.as_raw_handle(), KILLED) }) {
            Err(_) if wait(&self.handle, 0)? => Ok(()),
            result => result,
        }
    }

    /// Waits for its end. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        wait_until(&self.handle, Instant::now().checked_add(timeout))
    }
}

/// False when it is later than `deadline`; `None` is no end.
fn wait_until(handle: &OwnedHandle, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        // Rounded up, not to spin through the last millisecond; the largest number is no end.
        let step = left.map_or(u128::MAX, |left| left.as_nanos().div_ceil(1_000_000));
        let step = u32::try_from(step).unwrap_or(u32::MAX).min(u32::MAX - 1);
        if wait(handle, step)? {
            return Ok(true);
        }
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}

/// Terminates it. `pid` must be from 1 to `i32::MAX`.
pub(crate) fn terminate(pid: i32) -> io::Result<()> {
    open_running(pid.unsigned_abs())?.kill()
}

fn open_running(pid: u32) -> io::Result<ProcessHandle> {
    ProcessHandle::open(pid)?.ok_or_else(|| {
        let message = format!("there is no process {pid}");
        io::Error::new(io::ErrorKind::NotFound, message)
    })
}

/// The one name by which a process can be asked to end, in all sessions of the machine.
fn event_name(pid: u32, created: u64) -> Vec<u16> {
    let name = format!("Global\\llmlb-stop-{pid}-{created:x}\0");
    name.encode_utf16().collect()
}

/// Memory that the system allocated for us.
struct Local(*mut core::ffi::c_void);

impl Drop for Local {
    fn drop(&mut self) {
        // SAFETY: allocated by the system to be freed like this, and freed here alone.
        unsafe { LocalFree(self.0) };
    }
}

/// Requests to end that [`stop_server`](crate::stop_server) makes of this process. Windows only:
/// elsewhere they are SIGTERM.
///
/// A server that listens is asked to end, and has the time that the caller gives it; one that does
/// not is terminated at once.
///
/// ```no_run
/// # fn finish_requests() {}
/// use llmlb_lock_core::{ServerLock, StopEvent};
///
/// let stop = StopEvent::listen()?;
/// let lock = ServerLock::acquire(8000)?;
/// stop.wait(None)?;
/// finish_requests();
/// lock.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is a named kernel event that belongs to this process, whatever ports it guards. Its user,
/// administrators and the system may set it, nobody else.
#[derive(Debug)]
pub struct StopEvent {
    event: OwnedHandle,
}

impl StopEvent {
    /// Listens from now on, until it is dropped: do it before acquiring.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if this process listens already; what the
    /// system says.
    pub fn listen() -> io::Result<Self> {
        // SAFETY: no handle at all, but a constant that stands for this process.
        let this = unsafe { GetCurrentProcess() };
        let token = open_token(this)?;
        let user = token_sid(&token, TokenUser)?;
        let mut text: *mut u16 = ptr::null_mut();
        // SAFETY: the SID is valid, and the pointer is ours to be written.
        succeeded(unsafe { ConvertSidToStringSidW(user.get(), &mut text) })?;
        let sid = Local(text.cast());
        let len = (0..).take_while(|&i| {
            // SAFETY: up to its zero, the string is there to be read.
            unsafe { *sid.0.cast::<u16>().add(i) != 0 }
        });
        // SAFETY: as long as it was just seen to be.
        let user = unsafe { std::slice::from_raw_parts(sid.0.cast::<u16>(), len.count()) };
        let user = String::from_utf16_lossy(user);

        // Protected, not inherited: all for the user, to set it (2) for administrators and system.
        let access = format!("D:P(A;;GA;;;{user})(A;;0x2;;;BA)(A;;0x2;;;SY)\0");
        let access: Vec<u16> = access.encode_utf16().collect();
        let mut descriptor: PSECURITY_DESCRIPTOR = ptr::null_mut();
        // SAFETY: the string ends with a zero, and the pointer is ours to be written.
        succeeded(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                access.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                ptr::null_mut(),
            )
        })?;
        let descriptor = Local(descriptor);
        let attributes = SECURITY_ATTRIBUTES {
            nLength: mem::size_of::<SECURITY_ATTRIBUTES>() as u32,
            lpSecurityDescriptor: descriptor.0,
            bInheritHandle: 0,
        };

        let own = open_process(std::process::id(), PROCESS_QUERY_LIMITED_INFORMATION)?;
        let name = event_name(std::process::id(), creation_time(&own)?);
        // SAFETY: descriptor and name outlive the call, and the name ends with a zero.
        let event = unsafe { CreateEventW(&attributes, 0, 0, name.as_ptr()) };
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: only reads what the call above has left.
        let existed = unsafe { GetLastError() } == ERROR_ALREADY_EXISTS;
        // SAFETY: a new handle that nobody else has.
        let event = unsafe { OwnedHandle::from_raw_handle(event) };
        if existed {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "this process listens for stop requests already",
            ));
        }
        Ok(Self { event })
    }

    /// Asks another process to end, as [`stop_server`](crate::stop_server) does. False if it does
    /// not listen. The caller vouches for the PID.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) for no such process; what the system says.
    pub fn request(pid: u32) -> io::Result<bool> {
        open_running(pid)?.ask()
    }

    /// Waits for the next request, or until `timeout` has run out: then it is false. Each request
    /// ends one wait, and one that comes while nobody waits ends the next.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        wait_until(
            &self.event,
            timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        )
    }
}

/// To wait for it beside other things: signalled by a request, until a wait takes it.
impl AsHandle for StopEvent {
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.event.as_handle()
    }
}
