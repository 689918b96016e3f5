//! Whose a lock file is: what one user does to all of them is done to his own.

use std::path::Path;

#[cfg(unix)]
use std::os::unix::fs::MetadataExt;

/// Whether it is this user's.
#[cfg(unix)]
pub(crate) fn is_own(path: &Path) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    path.symlink_metadata().is_ok_and(|file| file.uid() == own)
}

/// Whether its server is this user's to stop: all are root's.
#[cfg(unix)]
pub(crate) fn is_ours(path: &Path) -> bool {
    nix::unistd::geteuid().is_root() || is_own(path)
}

/// The directory is the user's own.
#[cfg(windows)]
pub(crate) fn is_own(_: &Path) -> bool {
    true
}

/// The directory is the user's own.
#[cfg(windows)]
pub(crate) fn is_ours(_: &Path) -> bool {
    true
}
