//! After the server's end: what it left behind is ended, and its file seen to go.

use std::process;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::attempt::Stop;
use super::target::Target;
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
    /// After the server's end: ends what it left behind, and sees the file go.
    pub(super) fn clear_up(&mut self, target: &Target, grace: Duration) -> Result<(), LockError> {
        let path = self.locks.lock_path(self.port);
        let left = Utc::now();
        let started = Instant::now();
        let marker = self.marker();
        if let Some(pid) = target.keeper.filter(|&pid| pid != process::id()) {
            self.resume(pid, target)?;
        }
        let own = process::id();
        let mut left_behind = LeftBehind::default();
        let mut searched: Option<Instant> = None;
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
            if keeper.is_none() && due {
                searched = Some(Instant::now());
                let mut found = Vec::new();
                let group = target.info.pid;
                // All in a group that was made for the server came from it.
                let marker = (!target.led_group).then_some(&*marker);
                for pid in sys::stragglers(group, marker, left) {
                    if let Some(handle) = ProcessHandle::open(pid).map_err(LockError::StopFailed)?
                        && sys::is_straggler(pid, group, marker, left)
                        && let Some(file) = &target.file
                        && sys::owned_alike(pid, file).map_err(LockError::StopFailed)?
                    {
                        found.push(handle);
                    }
                }
                if let Some(file) = file.as_ref().filter(|_| held && target.taker.is_some()) {
                    found.extend(self.holders(file, target.taker)?);
                }
                for handle in found {
                    let pid = handle.pid();
                    left_behind.add(handle).map_err(|e| self.failed(pid, e))?;
                }
            }
            let ended = left_behind.end(grace).map_err(LockError::StopFailed)?;
            // Its own lock is the caller's to give back.
            if (!held || keeper == Some(own)) && ended {
                return Ok(());
            }
            if started.elapsed() >= 2 * GRACE {
                // A keeper that clears up names itself meanwhile; another one just keeps the lock.
                let named = self.locks.read_lock_info(self.port).ok().flatten();
                let clearing = named.filter(|info| Some(info.pid) == keeper);
                let patient = keeper.is_none() || clearing.is_some();
                if !patient || started.elapsed().saturating_sub(grace) >= 2 * KILL_WAIT {
                    return Err(match clearing {
                        Some(info) => LockError::already_running(info),
                        None => LockError::HeldByUnknown {
                            port: self.port,
                            path,
                        },
                    });
                }
            }
            drop(file);
            self.pause(step)?;
            step = (step * 2).min(Duration::from_millis(5));
        }
    }

    /// A keeper that was stopped together with its server could not clear up.
    fn resume(&self, keeper: u32, target: &Target) -> Result<(), LockError> {
        let failed = LockError::StopFailed;
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
