//! What to do where the lock directory takes no file.

use std::io;

/// To follow the path that could not be created or written.
pub(super) fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => {
            ", set LLMLB_LOCK_DIR to a directory you may write to, or have this one opened by its \
             owner (chmod 1777)"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            ", set LLMLB_LOCK_DIR to a directory you may write to, the same for all who use the port"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ", make room there, or set LLMLB_LOCK_DIR to another directory, the same for all who use \
             the port"
        }
        _ => "",
    }
}
