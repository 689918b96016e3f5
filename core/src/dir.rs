use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{LockError, context};
use crate::info::{Content, LockInfo};
use crate::process;
use crate::sys::Directory;

/// The environment variable that names the default lock directory.
pub const LOCK_DIR_ENV: &str = "LLMLB_LOCK_DIR";

/// How long reading looks again at a file that is being written.
const SETTLE_READ: Duration = Duration::from_millis(20);

/// A directory of server locks. The free functions work on [`LockDir::default`].
///
/// All who are to see each other must use the same directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockDir {
    path: PathBuf,
    /// The default below the temporary directory, shared by all users of the machine.
    shared: bool,
}

impl LockDir {
    /// A directory of the caller's choice. Where it does not exist, the first acquire creates it,
    /// with its parents and the usual permissions; where it does, it is used with the mode it has.
    ///
    /// A relative path is resolved now, so that it means the same after a change of directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            path: std::path::absolute(&path).unwrap_or(path),
            shared: false,
        }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the lock file for `port` is, or would be.
    pub fn lock_path(&self, port: u16) -> PathBuf {
        self.path.join(file_name(port))
    }

    /// What the lock file for `port` says, alive or not; `None` where there is none, or where its
    /// writer has not written yet.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidPort`] for port 0.
    /// - [`LockError::Corrupted`] if it is not a lock file's content.
    /// - [`LockError::ReadFailed`] if it may not be read, or is not a regular file.
    pub fn read_lock_info(&self, port: u16) -> Result<Option<LockInfo>, LockError> {
        check_port(port)?;
        let started = Instant::now();
        loop {
            let Some(directory) = self.open().map_err(LockError::ReadFailed)? else {
                return Ok(None);
            };
            let file = directory.open_lock(&file_name(port));
            let Some(file) = file.map_err(LockError::ReadFailed)? else {
                return Ok(None);
            };
            let bytes = file.read().map_err(LockError::ReadFailed)?;
            match Content::parse(&bytes, port) {
                Content::Empty => return Ok(None),
                Content::Holder(info) => return Ok(Some(info)),
                Content::Corrupt(_) if started.elapsed() < SETTLE_READ => {
                    thread::sleep(Duration::from_millis(1));
                }
                Content::Corrupt(why) => {
                    let path = self.lock_path(port);
                    return Err(LockError::Corrupted(format!("{}: {why}", path.display())));
                }
            }
        }
    }

    /// Every lock file here with its state, by port. A directory that does not exist has none.
    ///
    /// Nothing is changed, and no lock of a live server is touched.
    ///
    /// # Errors
    ///
    /// [`LockError::ReadFailed`] if the directory may not be read.
    pub fn servers(&self) -> Result<Vec<Server>, LockError> {
        let Some(directory) = self.open().map_err(LockError::ReadFailed)? else {
            return Ok(Vec::new());
        };
        let names = directory.names().map_err(LockError::ReadFailed)?;
        let mut ports: Vec<u16> = names.iter().filter_map(|name| port_of(name)).collect();
        ports.sort_unstable();
        Ok(ports
            .into_iter()
            .filter_map(|port| self.examine(&directory, port))
            .collect())
    }

    /// The state of one port's lock file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// As [`servers`](Self::servers), and [`LockError::InvalidPort`] for port 0.
    pub fn server(&self, port: u16) -> Result<Option<Server>, LockError> {
        check_port(port)?;
        let directory = self.open().map_err(LockError::ReadFailed)?;
        Ok(directory.and_then(|directory| self.examine(&directory, port)))
    }

    fn examine(&self, directory: &Directory, port: u16) -> Option<Server> {
        let name = file_name(port);
        let (info, state) = match self.look(directory, port, &name) {
            Ok(found) => found?,
            Err(_) => {
                let owner = directory.owner(&name);
                (None, ServerState::Unreadable { owner })
            }
        };
        Some(Server {
            port,
            path: self.path.join(name),
            info,
            state,
        })
    }

    fn look(
        &self,
        directory: &Directory,
        port: u16,
        name: &str,
    ) -> io::Result<Option<(Option<LockInfo>, ServerState)>> {
        let started = Instant::now();
        loop {
            let Some(file) = directory.open_lock(name)? else {
                return Ok(None);
            };
            let info = Content::parse(&file.read()?, port).holder();
            if let Some(info) = &info
                && process::is_consistent(info)
            {
                return Ok(Some((Some(info.clone()), ServerState::Running)));
            }
            // Nobody to be seen: now, and only now, the kernel is asked. The lock this takes for
            // an instant if it is free is on a left-over, and acquirers try again.
            let held = !file.retry()?;
            if !held {
                file.unlock();
                if !file.is_at(&self.path.join(name))? {
                    return Ok(None);
                }
                return Ok(Some((info, ServerState::Stale)));
            }
            if let Some(info) = &info
                && process::is_holder(info, &file)
            {
                return Ok(Some((Some(info.clone()), ServerState::Running)));
            }
            if started.elapsed() >= SETTLE_READ {
                return Ok(Some((info, ServerState::Held)));
            }
            // Someone is starting, stopping or recovering this very moment.
            drop(file);
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Live servers, by port. What cannot be read is left out: [`servers`](Self::servers) tells.
    pub fn list_all_locks(&self) -> Vec<LockInfo> {
        let servers = self.servers().unwrap_or_else(|e| {
            tracing::warn!("Cannot list locks: {e}");
            Vec::new()
        });
        servers
            .into_iter()
            .filter(|server| server.state == ServerState::Running)
            .filter_map(|server| server.info)
            .collect()
    }

    /// Opens the directory; `None` where it does not exist.
    pub(crate) fn open(&self) -> io::Result<Option<Directory>> {
        match Directory::open(&self.path, self.shared) {
            Ok(directory) => Ok(Some(directory)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn open_or_create(&self) -> Result<Directory, LockError> {
        let opened = match self.open() {
            Ok(Some(directory)) => Ok(directory),
            Ok(None) => Directory::create(&self.path, self.shared),
            Err(e) => Err(e),
        };
        opened.map_err(|e| {
            let hint = format!("set {LOCK_DIR_ENV} to a directory you may write to");
            LockError::DirectoryCreationFailed(context(e, hint))
        })
    }
}

impl Default for LockDir {
    /// `LLMLB_LOCK_DIR` if it is set and not empty, else `llmlb` in the system's temporary
    /// directory: created for all users (mode 1777) and never through a symbolic link on Unix.
    fn default() -> Self {
        if let Some(path) = env::var_os(LOCK_DIR_ENV).filter(|path| !path.is_empty()) {
            return Self::new(path);
        }
        let mut temporary = env::temp_dir();
        if temporary.as_os_str().is_empty() {
            // TMPDIR="" would put the locks below wherever each process happens to be.
            temporary = PathBuf::from("/tmp");
        }
        Self {
            shared: true,
            ..Self::new(temporary.join("llmlb"))
        }
    }
}

/// One lock file in a [`LockDir`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// The port it guards.
    pub port: u16,
    /// Where the file is.
    pub path: PathBuf,
    /// What the file says, where it can be read.
    pub info: Option<LockInfo>,
    /// What became of its holder.
    pub state: ServerState,
}

/// Whether the server behind a lock file lives.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerState {
    /// The process that the file names is alive.
    Running,
    /// The kernel lock is held, but not by a process that the file names.
    Held,
    /// Left behind: nobody holds the lock. The next acquire recovers it.
    Stale,
    /// The file may not be read, or is no regular file.
    Unreadable {
        /// The owner's name, or number where it has none.
        owner: Option<String>,
    },
}

pub(crate) fn check_port(port: u16) -> Result<(), LockError> {
    if port == 0 {
        return Err(LockError::InvalidPort { port });
    }
    Ok(())
}

pub(crate) fn file_name(port: u16) -> String {
    format!("serve_{port}.lock")
}

fn port_of(name: &OsStr) -> Option<u16> {
    let digits = name
        .to_str()?
        .strip_prefix("serve_")?
        .strip_suffix(".lock")?;
    let port = digits.parse().ok().filter(|&port| port != 0)?;
    // "+80" and "080" parse too, but are no names of ours.
    (*name == *file_name(port)).then_some(port)
}

/// [`LockDir::path`] of the default directory.
pub fn lock_dir() -> PathBuf {
    LockDir::default().path
}

/// [`LockDir::lock_path`] in the default directory.
pub fn lock_path(port: u16) -> PathBuf {
    LockDir::default().lock_path(port)
}

/// [`LockDir::read_lock_info`] in the default directory.
///
/// # Errors
///
/// As [`LockDir::read_lock_info`].
pub fn read_lock_info(port: u16) -> Result<Option<LockInfo>, LockError> {
    LockDir::default().read_lock_info(port)
}

/// [`LockDir::list_all_locks`] in the default directory.
pub fn list_all_locks() -> Vec<LockInfo> {
    LockDir::default().list_all_locks()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_we_write_are_lock_files() {
        assert_eq!(port_of("serve_8000.lock".as_ref()), Some(8000));
        assert_eq!(port_of("serve_65535.lock".as_ref()), Some(65535));
        for other in [
            "serve_0.lock",
            "serve_65536.lock",
            "serve_080.lock",
            "serve_+80.lock",
            "serve_.lock",
            "serve_80.lock.bak",
            "Serve_80.lock",
        ] {
            assert_eq!(port_of(other.as_ref()), None, "{other}");
        }
    }

    #[test]
    fn a_relative_directory_is_made_absolute() {
        assert!(LockDir::new("some/where").path().is_absolute());
    }
}
