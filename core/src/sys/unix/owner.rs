//! Whose a file is, and what is said to those whose it is not.

use std::io;
use std::path::Path;

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

pub(super) fn effective_uid() -> u32 {
    Uid::effective().as_raw()
}

/// For root and for the owner alike: a stranger's file is never a reason to remove or signal.
pub(super) fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
