//! Whether there is such a program to run, and what is said where it can't be. Apart from running
//! it: a check and a start are to say the same.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use crate::exit::{self, Failure};

/// Looks for what would keep it from being run, without running it.
pub(crate) fn check_command(program: &OsStr) -> Result<(), Failure> {
    look(program).map_err(|e| cannot_run(program, &e))
}

pub(crate) fn cannot_run(program: &OsStr, e: &io::Error) -> Failure {
    let name = Path::new(program).display();
    if e.kind() == io::ErrorKind::NotFound {
        if is_there(program) {
            let why = "the interpreter that its first line names is missing";
            let message = format!("cannot run {name}: {why}");
            return Failure::new(exit::NOT_EXECUTABLE, message);
        }
        let hint = "check its spelling and PATH";
        let message = format!("cannot run {name}: no such command; {hint}");
        return Failure::new(exit::NOT_FOUND, message);
    }
    Failure::new(exit::NOT_EXECUTABLE, format!("cannot run {name}: {e}"))
}

#[cfg(not(unix))]
fn look(program: &OsStr) -> io::Result<()> {
    which::which(program)
        .map(drop)
        .map_err(|_| io::ErrorKind::NotFound.into())
}

#[cfg(not(unix))]
fn is_there(_: &OsStr) -> bool {
    false
}

#[cfg(unix)]
use unix::{is_there, look};

#[cfg(unix)]
mod unix {
    use std::ffi::{OsStr, OsString};
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, AtFlags};
    use nix::unistd::{AccessFlags, faccessat};

    /// What execvp(3) looks along where there is no PATH.
    const DEFAULT_PATH: &str = "/bin:/usr/bin";

    /// The kernel reads no more of a first line.
    const LONGEST_LINE: u64 = 256;

    pub(super) fn look(program: &OsStr) -> io::Result<()> {
        let path = find(program)?;
        match interpreter(&path) {
            Some(interpreter) => executable(&interpreter),
            None => Ok(()),
        }
    }

    /// Whether that it is missing must be said of something else.
    pub(super) fn is_there(program: &OsStr) -> bool {
        find(program).is_ok()
    }

    /// As execvp(3) does: what may not be run is passed over, and told where there is no other.
    fn find(program: &OsStr) -> io::Result<PathBuf> {
        if program.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        let path = PathBuf::from(program);
        if program.as_bytes().contains(&b'/') {
            return executable(&path).map(|()| path);
        }
        let directories = std::env::var_os("PATH").unwrap_or(DEFAULT_PATH.into());
        let mut failed = Errno::ENOENT.into();
        for directory in std::env::split_paths(&directories) {
            let path = directory.join(program);
            match executable(&path) {
                Ok(()) => return Ok(path),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => failed = e,
                Err(_) => {}
            }
        }
        Err(failed)
    }

    fn executable(path: &Path) -> io::Result<()> {
        // A directory may be looked into, which is told by the same bit.
        if !path.metadata()?.is_file() {
            return Err(Errno::EACCES.into());
        }
        Ok(faccessat(
            AT_FDCWD,
            path,
            AccessFlags::X_OK,
            AtFlags::AT_EACCESS,
        )?)
    }

    /// Of a script. None where there is none, or it may not be read.
    fn interpreter(path: &Path) -> Option<PathBuf> {
        let mut start = Vec::new();
        let file = File::open(path).ok()?;
        file.take(LONGEST_LINE).read_to_end(&mut start).ok()?;
        let rest = start.strip_prefix(b"#!")?;
        let line = rest.split(|&byte| byte == b'\n').next()?;
        let mut words = line.split(|byte| b" \t".contains(byte));
        let name = words.find(|word| !word.is_empty())?;
        Some(OsString::from(OsStr::from_bytes(name)).into())
    }
}
