//! A guarded port as a handle: acquiring, handing over, adopting, releasing. Apart from what can be
//! done about other processes' servers (`server`), which needs no handle.

use std::ffi::{c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmlb_lock_core::{LockDir, ServerLock};

use crate::failure::Failure;
#[cfg(not(windows))]
use crate::panic::boundary_quiet;
use crate::panic::{boundary, boundary_or};
#[cfg(not(windows))]
use crate::pointer::write_string;
use crate::pointer::{Out, directory_or_default, reference, write_path};
use crate::result::llmlb_result_t;
use crate::types::{llmlb_acquire_options_t, llmlb_interrupted_t, llmlb_lock_info_t, write_holder};

/// A port that is guarded by this process, from an acquire until `llmlb_lock_release` or
/// `llmlb_lock_free`, or until the process ends, however it ends.
///
/// A forked child has a copy, which keeps the lock as long as it is open. Releasing or freeing the
/// copy closes it and does nothing else: only the process that acquired or adopted the lock gives
/// it back. Do not fork while another thread is inside a function with the same handle, if the
/// child is to use it.
pub struct llmlb_lock_t {
    /// Empty once released.
    lock: Mutex<Option<ServerLock>>,
}

impl llmlb_lock_t {
    fn lock(&self) -> MutexGuard<'_, Option<ServerLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, f: impl FnOnce(&mut ServerLock) -> Result<T, Failure>) -> Result<T, Failure> {
        f(self.lock().as_mut().ok_or_else(released)?)
    }
}

fn released() -> Failure {
    Failure::invalid("the lock was released before")
}

/// The caller's callback, as core wants it.
///
/// # Safety
///
/// The callback may be called with `user_data` as long as the value lives.
pub(crate) unsafe fn interrupter(
    interrupted: llmlb_interrupted_t,
    user_data: *mut c_void,
) -> impl FnMut() -> bool {
    move || match interrupted {
        // SAFETY: the caller's.
        Some(interrupted) => unsafe { interrupted(user_data) },
        None => false,
    }
}

/// # Safety
///
/// As the header demands of every pointer.
unsafe fn acquire(
    port: u16,
    lock: *mut *mut llmlb_lock_t,
    holder: *mut llmlb_lock_info_t,
    acquire: impl FnOnce() -> Result<Result<ServerLock, llmlb_lock_core::LockError>, Failure>,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (lock, holder) = unsafe { (Out::new(lock, "lock")?, Out::new(holder, "holder")?) };
        if port == 0 {
            return Err(llmlb_lock_core::LockError::InvalidPort { port }.into());
        }
        let acquired = acquire()?.map_err(|e| write_holder(holder, e))?;
        lock.write(Box::into_raw(Box::new(llmlb_lock_t {
            lock: Mutex::new(Some(acquired)),
        })));
        Ok(())
    })
}

/// Guards `port` in the default directory. Does not wait for another holder to leave.
///
/// A file that nobody holds is recovered. A lock that is held without naming a live process, as it
/// is for an instant when servers start or stop, is looked at again for about one second.
///
/// On success `*lock` is a new handle, to be freed with `llmlb_lock_free`. On
/// `LLMLB_ALREADY_RUNNING`, and only then, `*holder` says by whom the port is guarded.
///
/// Else `LLMLB_HELD_BY_UNKNOWN`, `LLMLB_INVALID_PORT`, `LLMLB_DIRECTORY_CREATION_FAILED` or
/// `LLMLB_ACQUIRE_FAILED`. May be called by many threads at once: one of them gets the lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_acquire(
    port: u16,
    lock: *mut *mut llmlb_lock_t,
    holder: *mut llmlb_lock_info_t,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    unsafe { acquire(port, lock, holder, || Ok(LockDir::default().acquire(port))) }
}

/// `llmlb_lock_acquire`, waiting up to `timeout_ms` milliseconds for another holder to leave;
/// UINT64_MAX waits without end. May be called by many threads at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_acquire_timeout(
    port: u16,
    timeout_ms: u64,
    lock: *mut *mut llmlb_lock_t,
    holder: *mut llmlb_lock_info_t,
) -> llmlb_result_t {
    let timeout = Duration::from_millis(timeout_ms);
    // SAFETY: the caller's.
    unsafe {
        acquire(port, lock, holder, || {
            Ok(LockDir::default().acquire_timeout(port, timeout))
        })
    }
}

/// `llmlb_lock_acquire` in a directory of the caller's choice, with a wait that a callback can end.
///
/// A directory that does not exist is created with its parents; one that does is used with the
/// mode it has. Also `LLMLB_INVALID_UTF8`, `LLMLB_INVALID_ARGUMENT` for an empty directory, and
/// `LLMLB_INTERRUPTED`. May be called by many threads at once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_acquire_with(
    port: u16,
    options: *const llmlb_acquire_options_t,
    lock: *mut *mut llmlb_lock_t,
    holder: *mut llmlb_lock_info_t,
) -> llmlb_result_t {
    // SAFETY: the caller's.
    unsafe {
        acquire(port, lock, holder, || {
            let options = reference(options, "options")?;
            let directory = directory_or_default(options.directory)?;
            let interrupted = interrupter(options.interrupted, options.user_data);
            let timeout = Duration::from_millis(options.timeout_ms);
            Ok(directory.acquire_interruptible(port, timeout, interrupted))
        })
    }
}

/// Whom the lock file names: this process, or the one the lock was handed over to.
///
/// May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_info(
    lock: *const llmlb_lock_t,
    info: *mut llmlb_lock_info_t,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (lock, info) = unsafe { (reference(lock, "lock")?, Out::new(info, "info")?) };
        info.write(lock.with(|lock| Ok(lock.info().into()))?);
        Ok(())
    })
}

/// Copies the path of the lock file. For `buffer`, `capacity` and `needed` see
/// `llmlb_last_error_message`.
///
/// May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_file(
    lock: *const llmlb_lock_t,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        unsafe {
            reference(lock, "lock")?.with(|lock| write_path(lock.path(), buffer, capacity, needed))
        }
    })
}

/// The descriptor that carries the kernel lock, to be passed on to a server. It stays the
/// library's: do not close it. A copy (`dup`, a descriptor that is sent or inherited) guards the
/// port as well until it is closed. Not on Windows.
///
/// May be called by any thread.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_fd(
    lock: *const llmlb_lock_t,
    fd: *mut std::ffi::c_int,
) -> llmlb_result_t {
    use std::os::fd::{AsFd, AsRawFd};
    boundary(|| {
        // SAFETY: the caller's.
        let (lock, fd) = unsafe { (reference(lock, "lock")?, Out::new(fd, "fd")?) };
        fd.write(lock.with(|lock| Ok(lock.as_fd().as_raw_fd()))?);
        Ok(())
    })
}

/// Lets processes started from now on inherit the lock, or no longer: such a process keeps the
/// port guarded as long as it lives and does not close the descriptors.
///
/// The children of every thread inherit them: make it short where others may start processes.
/// `LLMLB_HAND_OVER_FAILED` if the system refuses. On Windows they have to be started with handles
/// inherited. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_set_inheritable(
    lock: *const llmlb_lock_t,
    inheritable: bool,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        lock.with(|lock| Ok(lock.set_inheritable(inheritable)?))
    })
}

/// Makes the lock file name the process `pid`, which inherited the lock, so that it is the one
/// shown and stopped.
///
/// From then on the port is guarded as long as any process has the descriptor, this one included:
/// free the handle, and it is guarded exactly as long as the other process lives. Releasing and
/// freeing no longer remove the file; a supervisor that stays calls `llmlb_lock_adopt` when its
/// server has ended.
///
/// `LLMLB_NO_SUCH_PROCESS`, `LLMLB_NOT_OWNER` in a forked child, `LLMLB_LOST` as for
/// `llmlb_lock_verify`, `LLMLB_HAND_OVER_FAILED` if the file can't be written. May be called by
/// any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_hand_over(lock: *mut llmlb_lock_t, pid: u32) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        lock.with(|lock| Ok(lock.hand_over(pid)?))
    })
}

/// Makes the lock file name this process: after a daemonizing fork, or to take the lock back after
/// `llmlb_lock_hand_over`.
///
/// The process that forked must not release or free the lock meanwhile: it leaves by `_exit`.
/// `LLMLB_LOST`, `LLMLB_HAND_OVER_FAILED`. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_adopt(lock: *mut llmlb_lock_t) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        lock.with(|lock| Ok(lock.adopt()?))
    })
}

/// Tells whether the path of the lock file still is our file. Who removes it lets another server
/// start: a server that runs for long may ask now and then.
///
/// `LLMLB_LOST` if it is not, `LLMLB_READ_FAILED` if that can't be told. May be called by any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_verify(lock: *const llmlb_lock_t) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        lock.with(|lock| Ok(lock.verify()?))
    })
}

/// Gives the lock back and removes its file. The handle remains, to be freed: until then all that
/// is done with it is `LLMLB_INVALID_ARGUMENT`.
///
/// In a forked child, and after `llmlb_lock_hand_over`, this only closes the descriptor.
/// `LLMLB_RELEASE_FAILED` if another process, as a forked child, has the lock's descriptor for about
/// a second yet: the port stays guarded until that has closed it. Also if the file can't be removed:
/// the port is free all the same, the next acquire recovers the file. May be called by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_release(lock: *mut llmlb_lock_t) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        let taken = lock.lock().take().ok_or_else(released)?;
        Ok(taken.release()?)
    })
}

/// Releases the lock if that was not done, and frees the handle. NULL is fine; a handle that was
/// freed before is undefined behaviour, as is one that another thread is using.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_free(lock: *mut llmlb_lock_t) {
    boundary_or((), || {
        if !lock.is_null() {
            // SAFETY: it came from Box::into_raw, and the caller frees it once.
            drop(unsafe { Box::from_raw(lock) });
        }
    });
}

/// Copies what a launcher puts into its server's environment as `LLMLB_SERVER_ID_ENV`: the name of
/// one start of the server, another with each call. By it `llmlb_stop_server`,
/// `llmlb_end_left_overs` and the program find what the server has left behind, also when launcher
/// and server were killed. Not on Windows.
///
/// `LLMLB_HAND_OVER_FAILED` if the lock directory can't be looked at. For `buffer`, `capacity` and
/// `needed` see `llmlb_last_error_message`; 128 bytes are enough. May be called by any thread.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_server_id(
    lock: *const llmlb_lock_t,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let lock = unsafe { reference(lock, "lock") }?;
        let id = lock.with(|lock| Ok(lock.server_id()?))?;
        // SAFETY: the caller's.
        unsafe { write_string(id.as_str(), buffer, capacity, needed) }
    })
}

/// What a forked child does before exec to take the lock over by itself, made by
/// `llmlb_lock_child_hook`. Not on Windows.
///
/// Unlike with `llmlb_lock_set_inheritable`, no other child inherits the lock, and the lock file
/// never names a launcher that was killed while its server starts.
#[cfg(not(windows))]
pub struct llmlb_child_hook_t {
    hook: llmlb_lock_core::ChildHook,
}

/// Prepares for `llmlb_child_hook_run`. On success `*hook` is a new hook, to be freed with
/// `llmlb_child_hook_free`; it has copies of the lock's descriptors, so the port is guarded until
/// then, too. Not on Windows.
///
/// `LLMLB_HAND_OVER_FAILED` if the descriptors can't be duplicated. May be called by any thread.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_lock_child_hook(
    lock: *const llmlb_lock_t,
    hook: *mut *mut llmlb_child_hook_t,
) -> llmlb_result_t {
    boundary(|| {
        // SAFETY: the caller's.
        let (lock, out) = unsafe { (reference(lock, "lock")?, Out::new(hook, "hook")?) };
        let hook = lock.with(|lock| Ok(lock.child_hook()?))?;
        out.write(Box::into_raw(Box::new(llmlb_child_hook_t { hook })));
        Ok(())
    })
}

/// Called by the child between fork and exec: makes the lock file name it, and the program it
/// becomes inherit the lock. The parent then frees hook and lock, or calls `llmlb_lock_adopt` if
/// the child could not start the program. Not on Windows.
///
/// Async-signal-safe, so for children of programs with many threads, too: it neither allocates nor
/// locks, and leaves no last error. `LLMLB_HAND_OVER_FAILED` if the file can't be written.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_child_hook_run(hook: *const llmlb_child_hook_t) -> llmlb_result_t {
    boundary_quiet(|| {
        // SAFETY: the caller's.
        let Some(hook) = (unsafe { hook.as_ref() }) else {
            return Err(Failure::new(
                llmlb_result_t::LLMLB_NULL_ARGUMENT,
                String::new(),
            ));
        };
        let failed = |_| Failure::new(llmlb_result_t::LLMLB_HAND_OVER_FAILED, String::new());
        hook.hook.run().map_err(failed)
    })
}

/// Frees the hook, and closes its copies of the descriptors. NULL is fine; one that was freed
/// before, or that another thread is using, is undefined behaviour. Not on Windows.
#[cfg(not(windows))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn llmlb_child_hook_free(hook: *mut llmlb_child_hook_t) {
    boundary_or((), || {
        if !hook.is_null() {
            // SAFETY: it came from Box::into_raw, and the caller frees it once.
            drop(unsafe { Box::from_raw(hook) });
        }
    });
}
