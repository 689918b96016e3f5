//! Whose a lock file is: what one user does to all of them is done to his own.

use std::path::Path;

#[cfg(unix)]
use std::os::unix::fs::MetadataExt;

/// The number of the user whose it is.
#[cfg(unix)]
pub(crate) fn of(path: &Path) -> Option<u32> {
    path.symlink_metadata().ok().map(|file| file.uid())
}

/// Of this process.
#[cfg(unix)]
pub(crate) fn own() -> Option<u32> {
    Some(nix::unistd::geteuid().as_raw())
}

/// Whether its server is this user's to stop: all are root's.
#[cfg(unix)]
pub(crate) fn is_ours(path: &Path) -> bool {
    nix::unistd::geteuid().is_root() || of(path) == own()
}

/// The directory is the user's own.
#[cfg(windows)]
pub(crate) fn of(_: &Path) -> Option<u32> {
    own()
}

/// Users have no numbers there.
#[cfg(windows)]
pub(crate) fn own() -> Option<u32> {
    None
}

/// The directory is the user's own.
#[cfg(windows)]
pub(crate) fn is_ours(_: &Path) -> bool {
    true
}
