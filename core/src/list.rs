//! Every lock of a directory with its state, without touching the lock of a live server.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::dir::{LockDir, SETTLE_READ, check_port, file_name};
use crate::error::LockError;
use crate::info::LockInfo;
use crate::process::Processes;
use crate::record::Content;
use crate::sys::Directory;

/// Between two looks at the locks of which it is not clear whose they are.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

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
        let ports = names.iter().filter_map(|name| port_of(name)).collect();
        Ok(self.examine(&directory, ports))
    }

    /// The state of one port's lock file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// As [`servers`](Self::servers), and [`LockError::InvalidPort`] for port 0.
    pub fn server(&self, port: u16) -> Result<Option<Server>, LockError> {
        check_port(port)?;
        let directory = self.open().map_err(LockError::ReadFailed)?;
        Ok(directory.and_then(|directory| self.examine(&directory, vec![port]).pop()))
    }

    /// The state of these ports' lock files, where there are any, by port.
    ///
    /// A lock that is held and names nobody may be that of a server which is starting, stopping or
    /// recovering this very moment: those are looked at again, all of them within one wait.
    fn examine(&self, directory: &Directory, mut ports: Vec<u16>) -> Vec<Server> {
        let mut servers = Vec::new();
        let mut since: Option<Instant> = None;
        loop {
            let began = Instant::now();
            let settled = since.is_some_and(|since| since.elapsed() >= SETTLE_READ);
            let mut processes = Processes::default();
            let mut unclear = Vec::new();
            for port in ports {
                match self.look(directory, port, &mut processes) {
                    Some(server) if server.state == ServerState::Held && !settled => {
                        unclear.push(port);
                    }
                    found => servers.extend(found),
                }
            }
            if unclear.is_empty() {
                servers.sort_unstable_by_key(|server| server.port);
                return servers;
            }
            let left = SETTLE_READ.saturating_sub(since.get_or_insert_with(Instant::now).elapsed());
            // No more of the time than half of it is spent on looking.
            thread::sleep(began.elapsed().max(SHORTEST_PAUSE).min(left));
            ports = unclear;
        }
    }

    fn look(&self, directory: &Directory, port: u16, processes: &mut Processes) -> Option<Server> {
        let name = file_name(port);
        let path = self.path().join(&name);
        let (info, state) = match look(directory, port, &name, &path, processes) {
            Ok(found) => found?,
            Err(_) => {
                let owner = directory.owner(&name);
                (None, ServerState::Unreadable { owner })
            }
        };
        Some(Server {
            port,
            path,
            info,
            state,
        })
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

/// One look at a lock file; `None` where there is none.
fn look(
    directory: &Directory,
    port: u16,
    name: &str,
    path: &Path,
    processes: &mut Processes,
) -> io::Result<Option<(Option<LockInfo>, ServerState)>> {
    let Some(file) = directory.open_lock(name)? else {
        return Ok(None);
    };
    let record = Content::parse(&file.read()?, port).holder();
    if let Some(record) = &record
        && processes.is_live_holder(record, &file)?
    {
        return Ok(Some((Some(record.info.clone()), ServerState::Running)));
    }
    // Nobody is known for certain: now, and only now, the kernel is asked.
    let held = file.is_held()?;
    if !held && !file.is_at(path)? {
        return Ok(None);
    }
    if let Some(record) = &record
        && held
        && processes.is_holder(record, &file)?
    {
        return Ok(Some((Some(record.info.clone()), ServerState::Running)));
    }
    let state = match held {
        true => ServerState::Held,
        false => ServerState::Stale,
    };
    let shown = record.filter(|record| processes.may_be_shown(record, &file));
    Ok(Some((shown.map(|record| record.info), state)))
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
