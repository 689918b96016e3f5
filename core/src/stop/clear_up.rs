//! After the server's end: what it left behind is ended, and its file seen to go.

use std::io;
use std::process;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::attempt::Stop;
use super::target::Target;
use crate::dir::SETTLE;
use crate::error::LockError;
use crate::left_behind::{KILL_WAIT, LeftBehind};
use crate::process::{find, is_holder};
use crate::record::Content;
use crate::sys::{self, LockFile, ProcessHandle};

/// How long processes that a server left behind get between SIGTERM and SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(1);
/// How often all processes are searched for ones left behind.
const SEARCH_STEP: Duration = Duration::from_millis(20);

impl Stop<'_> {
    /// All that belong to the server beside itself: they are known by what its launcher has put
    /// into their environment.
    pub(super) fn family(&mut self, target: &Target) -> Result<Vec<ProcessHandle>, LockError> {
        let mut family = self.find_marked(target)?;
        family.retain(|handle| {
            !target
                .handles
                .iter()
                .any(|server| server.pid() == handle.pid())
        });
        Ok(family)
    }

    fn find_marked(&mut self, target: &Target) -> Result<Vec<ProcessHandle>, LockError> {
        if let Some(id) = &target.id {
            let searched = self.marked.search(id.owner(), &|found| found == id);
            searched.map_err(LockError::StopFailed)?;
        }
        let found = self.marked.found.drain(..);
        Ok(found.map(|(handle, _)| handle).collect())
    }

    /// After the server's end: ends what it left behind, and sees the file go. Tells how many were
    /// left of its family and of others.
    pub(super) fn clear_up(
        &mut self,
        target: &Target,
        family: &[ProcessHandle],
        grace: Duration,
    ) -> Result<usize, LockError> {
        let left = Utc::now();
        let started = Instant::now();
        // At once: a keeper has begun to end them.
        let left_by_family = alive(family).map_err(LockError::StopFailed)?;
        self.resume_keeper(target)?;
        let own = process::id();
        let mut left_behind = LeftBehind::default();
        let mut searched: Option<Instant> = None;
        let mut kept: Option<Instant> = None;
        let mut step = Duration::from_micros(100);
        loop {
            let keeper = target
                .keeper
                .filter(|&pid| pid == own || !matches!(find(pid), Ok(None)));
            let file = self
                .directory
                .open_lock(&self.name)
                .map_err(LockError::ReadFailed)?;
            let held = match &file {
                Some(file) => self.still_held(file, target, keeper)?,
                None => false,
            };
            let due = searched.is_none_or(|at| at.elapsed() >= SEARCH_STEP);
            let expired = left_behind.is_expired(grace);
            let mut ended = left_behind.end(grace).map_err(LockError::StopFailed)?;
            // A keeper ends them as long as it holds the lock. As long as one of those who are
            // known is there, no other is looked for: unless they are to be killed.
            let to_search = keeper.is_none() || !held;
            if to_search && due && (ended || expired) {
                searched = Some(Instant::now());
                let file = file.as_ref().filter(|_| held);
                let found = self.left_behind(target, file, keeper, left, expired)?;
                for handle in found {
                    let pid = handle.pid();
                    left_behind.add(handle).map_err(|e| self.failed(pid, e))?;
                    ended = false;
                }
            } else if to_search {
                ended = false;
            }
            // Its own lock is the caller's to give back.
            if (!held || keeper == Some(own)) && ended {
                self.marked.close();
                return Ok(match target.keeper {
                    Some(_) => left_by_family.max(left_behind.len()),
                    None => left_behind.len(),
                });
            }
            if started.elapsed() >= 2 * GRACE {
                let over = started.elapsed().saturating_sub(grace);
                self.check_patience(target, file.as_ref(), keeper, over, &mut kept)?;
            }
            drop(file);
            self.pause(step)?;
            step = (step * 2).min(Duration::from_millis(5));
        }
    }

    fn check_patience(
        &self,
        target: &Target,
        file: Option<&LockFile>,
        keeper: Option<u32>,
        over: Duration,
        kept: &mut Option<Instant>,
    ) -> Result<(), LockError> {
        // A keeper that clears up names itself meanwhile; another one just keeps the lock. One look,
        // as the next one comes soon: a caller that interrupts is not to wait for a writer.
        let text = file.and_then(|file| file.read().ok()).unwrap_or_default();
        let named = Content::parse(&text, self.port).holder();
        let named = named.map(|record| record.info);
        let clears = keeper.or(target.launcher);
        let clearing = named.filter(|info| Some(info.pid) == clears);
        if keeper.is_none() || clearing.is_some() {
            *kept = None;
        } else {
            kept.get_or_insert_with(Instant::now);
        }
        // One that gives the lock back this very moment names nobody.
        let patient = kept.is_none_or(|kept| kept.elapsed() < SETTLE);
        if patient && over < 2 * KILL_WAIT {
            return Ok(());
        }
        Err(match clearing {
            Some(info) => LockError::already_running(info),
            None => LockError::HeldByUnknown {
                port: self.port,
                path: self.locks.lock_path(self.port),
            },
        })
    }

    /// One search for what the server left behind; `file` is that of its lock if it is held still.
    fn left_behind(
        &mut self,
        target: &Target,
        file: Option<&LockFile>,
        keeper: Option<u32>,
        left: DateTime<Utc>,
        to_be_killed: bool,
    ) -> Result<Vec<ProcessHandle>, LockError> {
        let failed = LockError::StopFailed;
        let mut found = self.find_marked(target)?;
        if to_be_killed {
            self.marked.kill();
        }
        if keeper.is_some() {
            return Ok(found);
        }
        let marker = self.marker();
        let group = target.info.pid;
        // All in a group that was made for the server came from it.
        let marker = (!target.led_group).then_some(&*marker);
        for pid in sys::stragglers(group, marker, left) {
            if let Some(handle) = ProcessHandle::open(pid).map_err(failed)?
                && sys::is_straggler(pid, group, marker, left)
                && let Some(file) = &target.file
                && sys::owned_alike(pid, file).map_err(failed)?
            {
                found.push(handle);
            }
        }
        if let Some(file) = file.filter(|_| target.taker.is_some()) {
            found.extend(self.holders(file, target.taker)?);
        }
        Ok(found)
    }

    /// A keeper that was stopped together with its server could not clear up.
    pub(super) fn resume_keeper(&self, target: &Target) -> Result<(), LockError> {
        let failed = LockError::StopFailed;
        let Some(keeper) = target.keeper.filter(|&pid| pid != process::id()) else {
            return Ok(());
        };
        if let Some(handle) = ProcessHandle::open(keeper).map_err(failed)?
            && let Some(file) = &target.file
            && sys::holds(keeper, file).map_err(failed)? == Some(true)
            && sys::owned_alike(keeper, file).map_err(failed)?
        {
            handle.resume().map_err(|e| self.failed(keeper, e))?;
        }
        Ok(())
    }

    /// Whether the stopped server's lock is held yet; removes the file if it is not.
    fn still_held(
        &self,
        file: &LockFile,
        target: &Target,
        keeper: Option<u32>,
    ) -> Result<bool, LockError> {
        let failed = LockError::ReadFailed;
        let locked = file.retry().map_err(failed)?;
        if !file
            .is_at(&self.locks.lock_path(self.port))
            .map_err(failed)?
        {
            return Ok(false);
        }
        let stopped = |pid| target.handles.iter().any(|handle| handle.pid() == pid);
        let bytes = file.read().map_err(failed)?;
        if let Content::Holder(record) = Content::parse(&bytes, self.port)
            && !stopped(record.info.pid)
            && Some(record.info.pid) != keeper
            && Some(record.info.pid) != target.launcher
            && is_holder(&record, file).map_err(failed)?
        {
            return Ok(false); // the next server's already
        }
        if locked {
            file.remove(&self.directory, &self.name)
                .map_err(LockError::StopFailed)?;
        }
        Ok(!locked)
    }
}

fn alive(handles: &[ProcessHandle]) -> io::Result<usize> {
    let mut alive = 0;
    for handle in handles {
        alive += usize::from(!handle.wait(Duration::ZERO)?);
    }
    Ok(alive)
}
