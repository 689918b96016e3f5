//! Whose a file is, and what is said to those whose it is not.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use nix::unistd::{Uid, User};

use crate::error::context;

pub(super) fn at(path: &Path, e: io::Error) -> io::Error {
    context(e, path.display().to_string())
}

pub(super) fn foreign(path: &Path, uid: u32) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!(
            "{} belongs to user {}, who may have a server on this port; it was left alone: \
             choose another port, or ask them{}",
            path.display(),
            user_name(uid),
            if effective_uid() == 0 {
                " (as root, `llmlb stop` removes it if it is a left-over)"
            } else {
                ""
            }
        ),
    )
}

pub(crate) fn effective_uid() -> u32 {
    Uid::effective().as_raw()
}

/// For root and for the owner alike: a stranger's file is never a reason to remove or signal.
pub(super) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}

/// The user, and what tells a lock directory from every other one, also from one that takes its
/// inode later.
pub(crate) fn user_and_place(directory: impl AsFd) -> io::Result<(u32, String)> {
    let metadata = File::from(directory.as_fd().try_clone_to_owned()?).metadata()?;
    let born = metadata.created().ok();
    let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.unwrap_or_default().as_nanos();
    let place = format!("{:x}-{:x}-{born:x}", metadata.dev(), metadata.ino());
    Ok((effective_uid(), place))
}

pub(crate) fn own_session() -> u32 {
    nix::unistd::getsid(None).map_or(0, |session| session.as_raw().cast_unsigned())
}
