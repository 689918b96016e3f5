//! What killed servers have left: seen, and ended. Apart from stopping, as there is no server any
//! more, and often no lock: these processes are known by the identity in their environment alone.

use std::collections::HashSet;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::debug;

use crate::dir::{LockDir, check_port, file_name};
use crate::error::{LockError, context};
use crate::left_behind::{KILL_WAIT, LeftBehind};
use crate::list::ServerState;
use crate::process::find;
use crate::server_id::ServerId;
use crate::sys::{self, Directory, Marked};

/// A process that a killed server has left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeftOver {
    /// The server's port.
    pub port: u16,
    /// The process.
    pub pid: u32,
    /// When it started, where the system tells.
    pub started_at: Option<DateTime<Utc>>,
}

impl LeftOver {
    fn new(port: u16, pid: u32) -> Self {
        let process = find(pid).ok().flatten();
        Self {
            port,
            pid,
            started_at: process.and_then(|process| process.started),
        }
    }
}

impl LockDir {
    /// Processes of this user that servers in this directory have left behind, by port: their
    /// launcher, which would have ended them, has been killed. On Linux; elsewhere there are none to
    /// be seen.
    ///
    /// # Errors
    ///
    /// [`LockError::ReadFailed`] if the directory or the processes can't be looked at.
    pub fn left_overs(&self) -> Result<Vec<LeftOver>, LockError> {
        let Some(directory) = self.open().map_err(LockError::ReadFailed)? else {
            return Ok(Vec::new());
        };
        let abandoned = self.abandoned(&directory, None);
        let abandoned = abandoned.map_err(LockError::ReadFailed)?;
        let mut found: Vec<_> = abandoned
            .into_iter()
            .map(|(pid, id)| LeftOver::new(id.port(), pid))
            .collect();
        found.sort_by_key(|left_over| (left_over.port, left_over.pid));
        Ok(found)
    }

    /// Ends what killed servers of this port have left behind: SIGTERM, and SIGKILL when `grace` has
    /// run out. Nothing is touched that belongs to a server which lives, or whose launcher does.
    /// Tells who they were.
    ///
    /// # Errors
    ///
    /// - [`LockError::InvalidPort`] for port 0.
    /// - [`LockError::ReadFailed`] as for [`left_overs`](Self::left_overs).
    /// - [`LockError::StopFailed`] if one may not be signalled, or does not end though killed.
    pub fn end_left_overs(&self, port: u16, grace: Duration) -> Result<Vec<LeftOver>, LockError> {
        check_port(port)?;
        let Some(directory) = self.open().map_err(LockError::ReadFailed)? else {
            return Ok(Vec::new());
        };
        let abandoned = self.abandoned(&directory, Some(port));
        let abandoned = abandoned.map_err(LockError::ReadFailed)?;
        if abandoned.is_empty() || !self.is_left_alone(&directory, port, &abandoned)? {
            return Ok(Vec::new());
        }
        // A server that starts meanwhile has an ID of its own.
        let ids: HashSet<ServerId> = abandoned.into_iter().map(|(_, id)| id).collect();
        let (user, _) = of_here(&directory).map_err(LockError::ReadFailed)?;
        end_marked(user, port, grace, &|id| ids.contains(id))
    }

    /// Processes of servers whose port has no live server, or another one than theirs.
    fn abandoned(
        &self,
        directory: &Directory,
        port: Option<u16>,
    ) -> io::Result<Vec<(u32, ServerId)>> {
        let (user, of_here) = of_here(directory)?;
        let wanted = |id: &ServerId| of_here(id) && port.is_none_or(|port| id.port() == port);
        let mut marked = Marked::default();
        marked.search(user, &wanted)?;
        let mut abandoned = Vec::new();
        for (handle, id) in &marked.found {
            // Looked at only now: who was there before the port was free has been left behind.
            let server = self.server(id.port()).map_err(io::Error::other)?;
            let is_abandoned = match server {
                None => true,
                Some(server) => match (server.state, server.info) {
                    (ServerState::Stale | ServerState::Held, _) => true,
                    (ServerState::Running, Some(info)) => {
                        // A launcher that clears up behind its server has no ID itself.
                        sys::server_id(info.pid).is_some_and(|current| current != *id)
                    }
                    _ => false,
                },
            };
            if is_abandoned && !handle.wait(Duration::ZERO)? {
                abandoned.push((handle.pid(), id.clone()));
            }
        }
        Ok(abandoned)
    }

    /// Whether nobody but the abandoned holds the port's lock: no launcher that could not clear up
    /// yet, and no server that starts this very moment.
    fn is_left_alone(
        &self,
        directory: &Directory,
        port: u16,
        abandoned: &[(u32, ServerId)],
    ) -> Result<bool, LockError> {
        let failed = LockError::ReadFailed;
        let file = directory.open_lock(&file_name(port)).map_err(failed)?;
        let Some(file) = file else {
            return Ok(true);
        };
        if !file.is_held().map_err(failed)? {
            return Ok(true);
        }
        let holders = sys::holders(&file).map_err(failed)?;
        let is_known = |pid| abandoned.iter().any(|(known, _)| *known == pid);
        Ok(!holders.is_empty() && holders.into_iter().all(|(pid, _)| is_known(pid)))
    }
}

/// For the holder of the port's lock, who alone can start a server there.
pub(crate) fn end_before_start(
    directory: &Directory,
    port: u16,
    grace: Duration,
) -> Result<Vec<LeftOver>, LockError> {
    let (user, of_here) = of_here(directory).map_err(LockError::ReadFailed)?;
    end_marked(user, port, grace, &|id| of_here(id) && id.port() == port)
}

/// This user, and which servers were started by him in this directory.
fn of_here(directory: &Directory) -> io::Result<(u32, impl Fn(&ServerId) -> bool + use<>)> {
    let (user, place) = sys::user_and_place(directory)?;
    Ok((user, move |id: &ServerId| id.is_of(user, &place)))
}

/// Ends all of the user's that carry such an ID, until there is none left.
pub(crate) fn end_marked(
    user: u32,
    port: u16,
    grace: Duration,
    wanted: &dyn Fn(&ServerId) -> bool,
) -> Result<Vec<LeftOver>, LockError> {
    let failed =
        |e: io::Error| LockError::StopFailed(context(e, format!("port {port}, left-overs")));
    let started = Instant::now();
    let mut left_behind = LeftBehind::default();
    let mut ended = Vec::new();
    let mut marked = Marked::default();
    loop {
        marked.search(user, wanted).map_err(failed)?;
        if marked.found.is_empty() {
            marked.close();
            return Ok(ended);
        }
        let expired = started.elapsed() >= grace;
        if expired {
            marked.kill();
        }
        for (handle, id) in marked.found.drain(..) {
            let pid = handle.pid();
            // It may have ended since it was found.
            let ended_by_now = handle.wait(Duration::ZERO).map_err(failed)?;
            if ended_by_now || left_behind.knows(pid).map_err(failed)? {
                continue;
            }
            debug!("Ending PID {pid}, left behind by a killed server on port {port}");
            ended.push(LeftOver::new(id.port(), pid));
            left_behind.add(handle).map_err(failed)?;
        }
        // No search as long as it is only a matter of waiting.
        let mut step = Duration::from_micros(200);
        while !left_behind.end(grace).map_err(failed)? {
            if started.elapsed().saturating_sub(grace) >= KILL_WAIT {
                let e = io::Error::from(io::ErrorKind::TimedOut);
                return Err(failed(context(e, left_behind.describe())));
            }
            if !expired && started.elapsed() >= grace {
                break;
            }
            thread::sleep(step);
            step = (step * 2).min(Duration::from_millis(10));
        }
        if started.elapsed().saturating_sub(grace) >= KILL_WAIT {
            let e = io::Error::from(io::ErrorKind::TimedOut);
            return Err(failed(context(e, "new ones are started without end")));
        }
    }
}
