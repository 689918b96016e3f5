//! What comes from C is checked here, and only here.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr::{self, NonNull};

use llmlb_lock_core::LockDir;

use crate::failure::Failure;
use crate::result::llmlb_result_t::{
    LLMLB_BUFFER_TOO_SMALL, LLMLB_INVALID_UTF8, LLMLB_NULL_ARGUMENT,
};

fn null(name: &str) -> Failure {
    Failure::new(LLMLB_NULL_ARGUMENT, format!("{name} must not be NULL"))
}

/// A place to write to: never read, as C need not have initialised it.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// # Safety
    ///
    /// `pointer` is NULL, or may be written to until this value is used.
    pub(crate) unsafe fn new(pointer: *mut T, name: &str) -> Result<Self, Failure> {
        NonNull::new(pointer).map(Self).ok_or_else(|| null(name))
    }

    pub(crate) fn write(self, value: T) {
        // SAFETY: the caller of `new` vouched for it.
        unsafe { self.0.write(value) }
    }
}

/// # Safety
///
/// `pointer` is NULL, or points to a `T` that lives as long as `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// A directory of the caller's choice.
///
/// # Safety
///
/// `path` is NULL or a NUL-terminated string.
pub(crate) unsafe fn directory(path: *const c_char) -> Result<LockDir, Failure> {
    if path.is_null() {
        return Err(null("directory"));
    }
    // SAFETY: the caller's.
    let path = unsafe { CStr::from_ptr(path) };
    let path = path.to_str().map_err(|e| {
        let shown = path.to_string_lossy();
        Failure::new(LLMLB_INVALID_UTF8, format!("directory {shown}: {e}"))
    })?;
    if path.is_empty() {
        return Err(Failure::invalid("directory must not be empty"));
    }
    Ok(LockDir::new(path))
}

/// The same, with NULL for the default directory.
///
/// # Safety
///
/// As [`directory`].
pub(crate) unsafe fn directory_or_default(path: *const c_char) -> Result<LockDir, Failure> {
    if path.is_null() {
        return Ok(LockDir::default());
    }
    // SAFETY: the caller's.
    unsafe { directory(path) }
}

/// Writes `items` to a buffer of the caller's; `*needed` gets their number, if they fit or not.
///
/// # Safety
///
/// `buffer` may be written up to `capacity` items, or is NULL; so may `needed`.
pub(crate) unsafe fn write_slice<T: Copy>(
    items: &[T],
    buffer: *mut T,
    capacity: usize,
    needed: *mut usize,
    names: (&str, &str),
) -> Result<(), Failure> {
    // SAFETY: the caller's.
    let needed = unsafe { Out::new(needed, names.1) }?;
    if buffer.is_null() && capacity > 0 {
        return Err(null(names.0));
    }
    needed.write(items.len());
    if items.len() > capacity {
        return Err(Failure::new(
            LLMLB_BUFFER_TOO_SMALL,
            format!("{}: {} needed, room for {capacity}", names.0, items.len()),
        ));
    }
    if !items.is_empty() {
        // SAFETY: there is room, and what was made here does not overlap what is the caller's.
        unsafe { ptr::copy_nonoverlapping(items.as_ptr(), buffer, items.len()) }
    }
    Ok(())
}

/// # Safety
///
/// As [`write_slice`].
pub(crate) unsafe fn write_string(
    text: &str,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    let mut bytes: Vec<c_char> = text
        .bytes()
        .filter(|&byte| byte != 0)
        .map(|byte| byte as c_char)
        .collect();
    bytes.push(0);
    // SAFETY: the caller's.
    unsafe { write_slice(&bytes, buffer, capacity, needed, ("buffer", "needed")) }
}

/// # Safety
///
/// As [`write_slice`].
pub(crate) unsafe fn write_path(
    path: &Path,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Result<(), Failure> {
    let text = path.to_str().ok_or_else(|| {
        let shown = path.display();
        Failure::new(LLMLB_INVALID_UTF8, format!("{shown} is not valid UTF-8"))
    })?;
    // SAFETY: the caller's.
    unsafe { write_string(text, buffer, capacity, needed) }
}
