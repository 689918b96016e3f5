//! A failed call, made of what core says, and kept for the thread that made it: apart from the
//! functions that tell it, which are exported and so run inside the boundary that stands on this.

use std::cell::RefCell;
use std::io;

use llmlb_lock_core::LockError;

use crate::result::llmlb_result_t::{self, *};

/// A failed call: its code, and what `llmlb_last_error_message` and `llmlb_last_os_error` tell.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: llmlb_result_t,
    pub(crate) message: String,
    pub(crate) os_error: i32,
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

pub(crate) fn with_last<T>(f: impl FnOnce(&Failure) -> T) -> Option<T> {
    LAST.try_with(|last| last.borrow().as_ref().map(f))
        .ok()
        .flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;
    use crate::result::variants;

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
}
