//! Whom a stop ends: found beyond doubt, or nobody.

use std::io;
use std::mem;
use std::process;
use std::time::{Duration, Instant};

use chrono::Utc;
use tracing::warn;

use super::attempt::Stop;
use super::options::StopOutcome;
use crate::dir::SETTLE;
use crate::error::LockError;
use crate::info::LockInfo;
use crate::process::{could_be, find, is_holder, is_live_holder, may_be_shown};
use crate::record::{Content, Record};
use crate::server_id::ServerId;
use crate::sys::{self, LockFile, ProcessHandle};

/// How long a lock's holders must stay the same before they are taken for the server.
const SETTLE_HOLDERS: Duration = Duration::from_millis(20);

/// Whom a stop ends.
pub(super) struct Target {
    pub(super) info: LockInfo,
    /// What the file says of it; `None` where it names one that is gone.
    record: Option<Record>,
    /// The server; or, where the named one is gone, all that hold its lock.
    pub(super) handles: Vec<ProcessHandle>,
    /// An ancestor of the server that holds the lock as well, and clears up behind it.
    pub(super) keeper: Option<u32>,
    /// Its parent, where it was named: a launcher that takes the lock back when it has ended.
    pub(super) launcher: Option<u32>,
    /// What its launcher has put into its environment.
    pub(super) id: Option<ServerId>,
    /// The lock's file, which tells its owner also when it has lost its name. Not on Windows, where
    /// it would keep the next server out.
    pub(super) file: Option<LockFile>,
    /// Whether its launcher had made a process group for it.
    pub(super) led_group: bool,
    /// The process that took the lock: whoever takes it later is not the server's offspring.
    pub(super) taker: Option<u32>,
}

impl Target {
    /// Whether it is nothing but what a killed server has left behind.
    pub(super) fn is_left_over(&self) -> bool {
        self.record.is_none() && self.id.is_some()
    }
}

pub(super) enum Found {
    Target(Box<Target>),
    Nobody(StopOutcome),
}

impl Stop<'_> {
    pub(super) fn find_target(&mut self) -> Result<Found, LockError> {
        let path = self.locks.lock_path(self.port);
        let mut unclear = None;
        loop {
            let file = self.directory.open_lock(&self.name);
            let Some(file) = file.map_err(LockError::ReadFailed)? else {
                return Ok(Found::Nobody(StopOutcome::NotRunning));
            };
            let bytes = file.read().map_err(LockError::ReadFailed)?;
            let record = Content::parse(&bytes, self.port).holder();
            if file.retry().map_err(LockError::ReadFailed)? {
                if let Some(outcome) = self.clean_stale(&file)? {
                    return Ok(Found::Nobody(outcome));
                }
            } else if let Some(record) = &record
                && let Some((handle, keeper)) = self.identify(record, &file)?
            {
                let info = &record.info;
                let holder = keeper.unwrap_or(info.pid);
                let taker = sys::taker(holder, &file).map_err(LockError::StopFailed)?;
                let launcher = find(info.pid).ok().flatten();
                return Ok(Found::Target(Box::new(Target {
                    info: info.clone(),
                    record: Some(record.clone()),
                    id: sys::server_id_of(info.pid, &file, &self.directory, self.port),
                    launcher: launcher.map(|process| process.parent),
                    handles: vec![handle],
                    keeper,
                    led_group: sys::leads_group(info.pid, &self.marker()),
                    file: cfg!(unix).then_some(file),
                    taker,
                })));
            }
            // Someone is starting, stopping or recovering this very moment.
            if unclear.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
                let mut handles = self.holders(&file, None)?;
                // Who has only just taken the lock writes its name, given time.
                self.pause(SETTLE_HOLDERS)?;
                let now = file.read().map_err(LockError::ReadFailed)?;
                let is_at = file.is_at(&path).map_err(LockError::ReadFailed)?;
                if now != bytes || !is_at || file.retry().map_err(LockError::ReadFailed)? {
                    unclear = None;
                    continue;
                }
                // Who has let go of it meanwhile is spared.
                (handles, _) = holding(handles, &file).map_err(LockError::StopFailed)?;
                let Some(first) = handles.first() else {
                    let named = match &record {
                        Some(record) => is_holder(record, &file).map_err(LockError::ReadFailed)?,
                        None => false,
                    };
                    return Err(match record {
                        Some(record) if named => LockError::NotHolder {
                            port: self.port,
                            pid: record.info.pid,
                            path,
                            reason: "the lock is held by a process that cannot be seen from here",
                        },
                        _ => LockError::HeldByUnknown {
                            port: self.port,
                            path,
                        },
                    });
                };
                let info = self.info_of(first)?;
                let taker = sys::taker(first.pid(), &file).map_err(LockError::StopFailed)?;
                let id = sys::server_id_of(first.pid(), &file, &self.directory, self.port);
                return Ok(Found::Target(Box::new(Target {
                    info,
                    record: None,
                    id,
                    launcher: None,
                    handles,
                    keeper: None,
                    led_group: false,
                    file: cfg!(unix).then_some(file),
                    taker,
                })));
            }
            drop(file);
            self.pause(Duration::from_millis(2))?;
        }
    }

    /// With the lock in hand: removes what was left behind. `None` if the file has moved on.
    fn clean_stale(&self, file: &LockFile) -> Result<Option<StopOutcome>, LockError> {
        let path = self.locks.lock_path(self.port);
        if !file.is_at(&path).map_err(LockError::ReadFailed)? {
            return Ok(None);
        }
        let bytes = file.read().map_err(LockError::ReadFailed)?;
        let info = match Content::parse(&bytes, self.port) {
            Content::Holder(record)
                if record.info.pid != process::id()
                    && is_live_holder(&record, file).map_err(LockError::ReadFailed)? =>
            {
                return Err(LockError::NotHolder {
                    port: self.port,
                    pid: record.info.pid,
                    path,
                    reason: "it does not hold the lock",
                });
            }
            // Whom a stranger names is nobody's business.
            Content::Holder(record) if !may_be_shown(&record, file) => {
                warn!(
                    "Stale lock file detected (it names another user's process), cleaning up port {}",
                    self.port
                );
                None
            }
            Content::Holder(record) => {
                let what = match could_be(&record) {
                    true => "runs, but does not hold the lock",
                    false => "not running",
                };
                let info = record.info;
                warn!(
                    "Stale lock file detected (PID {} {what}), cleaning up port {}",
                    info.pid, self.port
                );
                Some(info)
            }
            Content::Empty | Content::Blank => None,
            Content::Corrupt(why) => {
                warn!(
                    "Stale lock file detected ({why}), cleaning up port {}",
                    self.port
                );
                None
            }
        };
        file.remove(&self.directory, &self.name)
            .map_err(LockError::StopFailed)?;
        Ok(Some(StopOutcome::StaleCleaned { info }))
    }

    /// The named process, if it is beyond doubt the one that guards the port, and its keeper.
    fn identify(
        &self,
        record: &Record,
        file: &LockFile,
    ) -> Result<Option<(ProcessHandle, Option<u32>)>, LockError> {
        let info = &record.info;
        if info.pid == process::id() {
            return Err(LockError::StopFailed(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "this very process guards port {}: release its lock instead",
                    self.port
                ),
            )));
        }
        let failed = LockError::StopFailed;
        if find(info.pid).map_err(failed)?.is_none() {
            return Ok(None);
        }
        let Some(handle) = ProcessHandle::open(info.pid).map_err(failed)? else {
            return Ok(None);
        };
        // Only now that the handle can't change its meaning do the checks hold.
        let path = self.locks.lock_path(self.port);
        let bytes = file.read().map_err(LockError::ReadFailed)?;
        if Content::parse(&bytes, self.port) != Content::Holder(record.clone())
            || !file.is_at(&path).map_err(LockError::ReadFailed)?
            || !is_holder(record, file).map_err(failed)?
        {
            return Ok(None);
        }
        if !sys::owned_alike(info.pid, file).map_err(failed)? {
            return Err(LockError::NotHolder {
                port: self.port,
                pid: info.pid,
                path,
                reason: "it belongs to another user than the file",
            });
        }
        let keeper = keeper_of(info.pid, file).map_err(failed)?;
        if keeper.is_none() && sys::holds(info.pid, file).map_err(failed)? == Some(false) {
            return Ok(None);
        }
        Ok(Some((handle, keeper)))
    }

    /// How one that is named by no file is shown.
    fn info_of(&self, handle: &ProcessHandle) -> Result<LockInfo, LockError> {
        let found = find(handle.pid()).map_err(LockError::StopFailed)?;
        let started = found.and_then(|process| process.started);
        Ok(LockInfo {
            pid: handle.pid(),
            started_at: started.unwrap_or_else(Utc::now),
            port: self.port,
        })
    }

    /// Of those who were asked to end, leaves the ones in `target` who guard the port still: another
    /// may do that by now. An error if there is none.
    pub(super) fn keep_guards(&self, target: &mut Target) -> Result<(), LockError> {
        // What it ran is ended with it there, and may outlive it: its handle stands for both.
        #[cfg(windows)]
        for handle in &target.handles {
            if handle.has_ended_itself().map_err(LockError::StopFailed)? {
                return Ok(());
            }
        }
        let file = self.directory.open_lock(&self.name);
        let file = file.map_err(LockError::ReadFailed)?;
        let guards = match (&file, &target.record) {
            (None, _) => false,
            (Some(file), Some(record)) => self.identify(record, file)?.is_some(),
            (Some(file), None) => self.keep_holders(target, file)?,
        };
        if guards {
            return Ok(());
        }
        let pid = target.info.pid;
        let what = "it has given the port back since it was asked to end, and runs on: it was not \
                    killed; end it by its PID if it is yours";
        Err(self.failed(pid, io::Error::other(what)))
    }

    /// False if there is none of them.
    fn keep_holders(&self, target: &mut Target, file: &LockFile) -> Result<bool, LockError> {
        let handles = mem::take(&mut target.handles);
        let (holding, others) = holding(handles, file).map_err(LockError::StopFailed)?;
        let Some(first) = holding.first() else {
            target.handles = others;
            return Ok(false);
        };
        target.info = self.info_of(first)?;
        target.handles = holding;
        Ok(true)
    }

    /// Handles of all processes that hold the lock, as `taken_by` took it, and belong to the
    /// file's owner.
    pub(super) fn holders(
        &self,
        file: &LockFile,
        taken_by: Option<u32>,
    ) -> Result<Vec<ProcessHandle>, LockError> {
        let failed = LockError::StopFailed;
        // 0 is one that has ended: nobody new.
        let taken = |taker| taker == 0 || taken_by.is_none_or(|taken_by| taker == taken_by);
        let mut handles = Vec::new();
        for (pid, taker) in sys::holders(file).map_err(failed)? {
            if !taken(taker) {
                continue;
            }
            if let Some(handle) = ProcessHandle::open(pid).map_err(failed)?
                && sys::taker(pid, file).map_err(failed)? == Some(taker)
                && sys::owned_alike(pid, file).map_err(failed)?
            {
                handles.push(handle);
            }
        }
        Ok(handles)
    }
}

/// Those of them who hold the lock still, and the others.
fn holding(
    handles: Vec<ProcessHandle>,
    file: &LockFile,
) -> io::Result<(Vec<ProcessHandle>, Vec<ProcessHandle>)> {
    let (mut holding, mut others) = (Vec::new(), Vec::new());
    for handle in handles {
        match sys::holds(handle.pid(), file)? {
            Some(true) => holding.push(handle),
            _ => others.push(handle),
        }
    }
    Ok((holding, others))
}

/// The nearest ancestor of a process that holds the lock: the launcher that stays with its server.
fn keeper_of(pid: u32, file: &LockFile) -> io::Result<Option<u32>> {
    let mut pid = pid;
    // A chain longer than this is a changing one.
    for _ in 0..64 {
        let Some(parent) = find(pid)?.map(|process| process.parent) else {
            return Ok(None);
        };
        if parent == 0 {
            return Ok(None);
        }
        if sys::holds(parent, file)? == Some(true) {
            return Ok(Some(parent));
        }
        pid = parent;
    }
    Ok(None)
}
