//! Every lock of a directory with its state, without touching the lock of a live server.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::dir::{LockDir, SETTLE_READ, check_port, file_name};
use crate::error::LockError;
use crate::info::LockInfo;
use crate::process;
use crate::record::{Content, Record};
use crate::sys::Directory;

impl LockDir {
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
            path: self.path().join(name),
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
            let record = Content::parse(&file.read()?, port).holder();
            let info = |record: Option<Record>| record.map(|record| record.info);
            if let Some(record) = &record
                && process::is_live_holder(record, &file)?
            {
                return Ok(Some((Some(record.info.clone()), ServerState::Running)));
            }
            // Nobody is known for certain: now, and only now, the kernel is asked.
            let held = file.is_held()?;
            if !held && !file.is_at(&self.path().join(name))? {
                return Ok(None);
            }
            if let Some(record) = &record
                && held
                && process::is_holder(record, &file)?
            {
                return Ok(Some((Some(record.info.clone()), ServerState::Running)));
            }
            if !held || started.elapsed() >= SETTLE_READ {
                let state = match held {
                    true => ServerState::Held,
                    false => ServerState::Stale,
                };
                let shown = record.filter(|record| process::may_be_shown(record, &file));
                return Ok(Some((info(shown), state)));
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
}

/// One lock file in a [`LockDir`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// The port it guards.
    pub port: u16,
    /// Where the file is.
    pub path: PathBuf,
    /// What the file says, where it can be read and does not name a process of other users than its
    /// own.
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

fn port_of(name: &OsStr) -> Option<u16> {
    let digits = name
        .to_str()?
        .strip_prefix("serve_")?
        .strip_suffix(".lock")?;
    let port = digits.parse().ok().filter(|&port| port != 0)?;
    // "+80" and "080" parse too, but are no names of ours.
    (*name == *file_name(port)).then_some(port)
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
}
