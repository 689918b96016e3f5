use std::cell::RefCell;
use std::ffi::{CStr, c_char};
use std::io;

use llmlb_lock_core::LockError;

use crate::panic::{boundary_or, boundary_quiet};
use crate::pointer::write_string;

/// What a function has to say. Numbers are never changed or used again; new ones may come, so
/// treat those you do not know as failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub enum llmlb_result_t {
    /// It worked.
    LLMLB_OK = 0,
    /// A pointer was NULL that may not be.
    LLMLB_NULL_ARGUMENT = 1,
    /// An argument has a value that makes no sense, or the handle was released before.
    LLMLB_INVALID_ARGUMENT = 2,
    /// A path is not valid UTF-8.
    LLMLB_INVALID_UTF8 = 3,
    /// The caller's buffer is too small; the needed size was written.
    LLMLB_BUFFER_TOO_SMALL = 4,
    /// A bug in the library. It was contained, but do not use the handles involved again.
    LLMLB_PANIC = 5,
    /// The program was compiled with the header of an incompatible version.
    LLMLB_ABI_MISMATCH = 6,
    /// A failure that has no number in this version.
    LLMLB_OTHER = 7,
    /// Another server holds the port; the holder's details were written.
    LLMLB_ALREADY_RUNNING = 16,
    /// The lock could not be taken.
    LLMLB_ACQUIRE_FAILED = 17,
    /// The lock file could not be removed. The port is free all the same.
    LLMLB_RELEASE_FAILED = 18,
    /// The lock file is not what this library writes. Only reading says so: acquiring recovers a
    /// corrupt file that nobody holds.
    LLMLB_CORRUPTED = 19,
    /// The lock directory could not be created or opened.
    LLMLB_DIRECTORY_CREATION_FAILED = 20,
    /// The lock is held, but its file does not name a live process.
    LLMLB_HELD_BY_UNKNOWN = 21,
    /// Port 0 names no port.
    LLMLB_INVALID_PORT = 22,
    /// The lock file was removed or replaced while the lock was held: another server can start.
    LLMLB_LOST = 23,
    /// There is no such running process.
    LLMLB_NO_SUCH_PROCESS = 24,
    /// Only the process that acquired or adopted a lock may hand it over.
    LLMLB_NOT_OWNER = 25,
    /// The lock could not be made inheritable, or its file not rewritten for a new holder.
    LLMLB_HAND_OVER_FAILED = 26,
    /// A lock file or the lock directory could not be read.
    LLMLB_READ_FAILED = 27,
    /// The process that the file names cannot be shown to hold the lock: it was not signalled.
    LLMLB_NOT_HOLDER = 28,
    /// The process could not be signalled or waited for.
    LLMLB_STOP_FAILED = 29,
    /// The caller's `interrupted` callback ended a wait.
    LLMLB_INTERRUPTED = 30,
}

use llmlb_result_t::*;

/// A failed call: its code, and what `llmlb_last_error_message` and `llmlb_last_os_error` tell.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: llmlb_result_t,
    message: String,
    os_error: i32,
}

impl Failure {
    pub(crate) fn new(code: llmlb_result_t, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            os_error: 0,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(LLMLB_INVALID_ARGUMENT, message)
    }

    /// Of [`stop_process`](llmlb_lock_core::stop_process), which has no error type of its own.
    pub(crate) fn of_signal(e: &io::Error, pid: u32) -> Self {
        let code = match e.kind() {
            io::ErrorKind::InvalidInput => LLMLB_INVALID_ARGUMENT,
            // ESRCH has no kind; the other systems' way to say it has.
            io::ErrorKind::NotFound => LLMLB_NO_SUCH_PROCESS,
            _ if !llmlb_lock_core::is_process_running(pid) => LLMLB_NO_SUCH_PROCESS,
            _ => LLMLB_STOP_FAILED,
        };
        Self {
            code,
            message: format!("Failed to stop PID {pid}: {e}"),
            os_error: e.raw_os_error().unwrap_or(0),
        }
    }
}

impl From<LockError> for Failure {
    fn from(e: LockError) -> Self {
        Self {
            code: code_of(&e),
            message: e.to_string(),
            os_error: e.raw_os_error().unwrap_or(0),
        }
    }
}

fn code_of(e: &LockError) -> llmlb_result_t {
    match e {
        LockError::AlreadyRunning { .. } => LLMLB_ALREADY_RUNNING,
        LockError::AcquireFailed(_) => LLMLB_ACQUIRE_FAILED,
        LockError::ReleaseFailed(_) => LLMLB_RELEASE_FAILED,
        LockError::Corrupted(_) => LLMLB_CORRUPTED,
        LockError::DirectoryCreationFailed(_) => LLMLB_DIRECTORY_CREATION_FAILED,
        LockError::HeldByUnknown { .. } => LLMLB_HELD_BY_UNKNOWN,
        LockError::InvalidPort { .. } => LLMLB_INVALID_PORT,
        LockError::Lost { .. } => LLMLB_LOST,
        LockError::NoSuchProcess { .. } => LLMLB_NO_SUCH_PROCESS,
        LockError::NotOwner { .. } => LLMLB_NOT_OWNER,
        LockError::HandOverFailed(_) => LLMLB_HAND_OVER_FAILED,
        LockError::ReadFailed(_) => LLMLB_READ_FAILED,
        LockError::NotHolder { .. } => LLMLB_NOT_HOLDER,
        LockError::StopFailed(_) => LLMLB_STOP_FAILED,
        LockError::Interrupted { .. } => LLMLB_INTERRUPTED,
        // LockError is non-exhaustive; a test below finds a variant that ends up here.
        _ => LLMLB_OTHER,
    }
}

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

pub(crate) fn set_last(failure: Failure) {
    // A thread that is ending has no place for it any more, and nobody to ask for it.
    let _ = LAST.try_with(|last| last.replace(Some(failure)));
}

fn with_last<T>(f: impl FnOnce(&Failure) -> T) -> Option<T> {
    LAST.try_with(|last| last.borrow().as_ref().map(f))
        .ok()
        .flatten()
}

/// A short text for a result, in English, such as "Lock file is corrupted". Never NULL, also for
/// numbers this version does not know; valid for ever. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_result_string(result: u32) -> *const c_char {
    text(result).as_ptr()
}

fn text(result: u32) -> &'static CStr {
    /// Finds the variant without making one of a number that may be none.
    macro_rules! texts {
        ($($variant:ident => $text:literal,)*) => {
            match result {
                $(n if n == $variant as u32 => $text,)*
                _ => c"Unknown result",
            }
        };
    }
    texts! {
        LLMLB_OK => c"Success",
        LLMLB_NULL_ARGUMENT => c"A required pointer is NULL",
        LLMLB_INVALID_ARGUMENT => c"Invalid argument",
        LLMLB_INVALID_UTF8 => c"Path is not valid UTF-8",
        LLMLB_BUFFER_TOO_SMALL => c"Buffer is too small",
        LLMLB_PANIC => c"Internal error",
        LLMLB_ABI_MISMATCH => c"Header and library do not match",
        LLMLB_OTHER => c"Unclassified failure",
        LLMLB_ALREADY_RUNNING => c"Server already running on this port",
        LLMLB_ACQUIRE_FAILED => c"Failed to acquire lock",
        LLMLB_RELEASE_FAILED => c"Failed to release lock",
        LLMLB_CORRUPTED => c"Lock file is corrupted",
        LLMLB_DIRECTORY_CREATION_FAILED => c"Failed to create lock directory",
        LLMLB_HELD_BY_UNKNOWN => c"Port is locked by an unknown process",
        LLMLB_INVALID_PORT => c"Invalid port",
        LLMLB_LOST => c"Lock file was removed or replaced",
        LLMLB_NO_SUCH_PROCESS => c"No such process",
        LLMLB_NOT_OWNER => c"Lock belongs to another process",
        LLMLB_HAND_OVER_FAILED => c"Failed to hand the lock over",
        LLMLB_READ_FAILED => c"Failed to read lock",
        LLMLB_NOT_HOLDER => c"Named process does not hold the lock",
        LLMLB_STOP_FAILED => c"Failed to stop server",
        LLMLB_INTERRUPTED => c"Interrupted while waiting",
    }
}

/// Copies the message of the calling thread's last failure: several lines of text that name the
/// port or the path and say what to do, or "" if nothing has failed yet. Success does not clear
/// it.
///
/// `*needed` gets its size with the terminating NUL, on `LLMLB_BUFFER_TOO_SMALL` too; `buffer` may
/// be NULL if `capacity` is 0. May be called by any thread, and answers for that thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_last_error_message(
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    // Quiet, or a buffer that is too small would replace the message it is for.
    boundary_quiet(|| {
        let message = with_last(|last| last.message.clone()).unwrap_or_default();
        // SAFETY: as the header demands of every caller's buffer.
        unsafe { write_string(&message, buffer, capacity, needed) }
    })
}

/// The operating system's error number (`errno`, on Windows `GetLastError`) behind the calling
/// thread's last failure; 0 if there was none. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn llmlb_last_os_error() -> i32 {
    boundary_or(0, || with_last(|last| last.os_error).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    /// One of each.
    fn samples() -> Vec<LockError> {
        let io = || io::Error::from_raw_os_error(5);
        let path = PathBuf::new;
        vec![
            LockError::AlreadyRunning {
                port: 1,
                pid: 2,
                started_at: Default::default(),
            },
            LockError::AcquireFailed(io()),
            LockError::ReleaseFailed(io()),
            LockError::Corrupted(String::new()),
            LockError::DirectoryCreationFailed(io()),
            LockError::HeldByUnknown {
                port: 1,
                path: path(),
            },
            LockError::InvalidPort { port: 0 },
            LockError::Lost {
                port: 1,
                path: path(),
            },
            LockError::NoSuchProcess { port: 1, pid: 2 },
            LockError::NotOwner { port: 1, owner: 2 },
            LockError::HandOverFailed(io()),
            LockError::ReadFailed(io()),
            LockError::NotHolder {
                port: 1,
                pid: 2,
                path: path(),
                reason: "",
            },
            LockError::StopFailed(io()),
            LockError::Interrupted { port: 1 },
        ]
    }

    fn variants(source: &str, name: &str) -> Vec<syn::Variant> {
        let file = syn::parse_file(source).unwrap();
        let found = file.items.into_iter().find_map(|item| match item {
            syn::Item::Enum(item) if item.ident == name => Some(item.variants),
            _ => None,
        });
        found.unwrap().into_iter().collect()
    }

    fn screaming(name: &str) -> String {
        let mut out = String::from("LLMLB");
        for c in name.chars() {
            if c.is_uppercase() {
                out.push('_');
            }
            out.push(c.to_ascii_uppercase());
        }
        out
    }

    #[test]
    fn every_lock_error_has_the_code_of_its_name() {
        let core = variants(include_str!("../../core/src/error.rs"), "LockError");
        let core: BTreeSet<String> = core
            .iter()
            .map(|v| screaming(&v.ident.to_string()))
            .collect();
        let mapped: BTreeSet<String> = samples()
            .iter()
            .map(|e| format!("{:?}", code_of(e)))
            .collect();
        assert_eq!(
            core, mapped,
            "a variant of LockError needs a new number in llmlb_result_t, an arm in code_of, and a sample"
        );
        for e in samples() {
            let debug = format!("{e:?}");
            let name = debug.split([' ', '(', '{']).next().unwrap();
            assert_eq!(screaming(name), format!("{:?}", code_of(&e)));
        }
    }

    #[test]
    fn numbers_are_explicit_and_frozen() {
        let results = variants(include_str!("error.rs"), "llmlb_result_t");
        let mut frozen = String::new();
        for variant in &results {
            let Some((
                _,
                syn::Expr::Lit(syn::ExprLit {
                    lit: syn::Lit::Int(n),
                    ..
                }),
            )) = &variant.discriminant
            else {
                panic!("{} has no explicit number", variant.ident);
            };
            frozen += &format!(
                "{}={n} ",
                variant.ident.to_string().trim_start_matches("LLMLB_")
            );
        }
        // Only ever append to this line.
        assert_eq!(
            frozen.trim_end(),
            "OK=0 NULL_ARGUMENT=1 INVALID_ARGUMENT=2 INVALID_UTF8=3 BUFFER_TOO_SMALL=4 PANIC=5 \
             ABI_MISMATCH=6 OTHER=7 ALREADY_RUNNING=16 ACQUIRE_FAILED=17 RELEASE_FAILED=18 \
             CORRUPTED=19 DIRECTORY_CREATION_FAILED=20 HELD_BY_UNKNOWN=21 INVALID_PORT=22 \
             LOST=23 NO_SUCH_PROCESS=24 NOT_OWNER=25 HAND_OVER_FAILED=26 READ_FAILED=27 \
             NOT_HOLDER=28 STOP_FAILED=29 INTERRUPTED=30"
        );
        // And each has a text of its own.
        let texts: BTreeSet<&CStr> = (0..64).map(text).collect();
        assert_eq!(texts.len(), results.len() + 1);
    }
}
