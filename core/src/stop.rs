use std::io;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use chrono::Utc;
use tracing::{debug, warn};

use crate::dir::{LockDir, check_port, file_name};
use crate::error::{LockError, context};
use crate::info::{Content, LockInfo};
use crate::lock::{SETTLE, already_running};
use crate::process::{find, is_consistent, is_holder};
use crate::sys::{self, Directory, LockFile, ProcessHandle};

/// A launcher that makes its server the leader of a process group of its own sets this variable
/// to the port in the server's environment: what the server leaves behind in that group is then
/// ended with it.
pub const GUARDED_PORT_ENV: &str = "LLMLB_GUARDED_PORT";

/// How long processes that a server left behind get between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(1);
/// How long a killed process may take to die.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long a lock's holders must stay the same before they are taken for the server.
const SETTLE_HOLDERS: Duration = Duration::from_millis(20);
/// How often a wait looks at its `interrupted` callback.
const INTERRUPT_STEP: Duration = Duration::from_millis(50);
/// Longer waits are cut into pieces: a clock need not reach to the end of an endless timeout.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How often all processes are searched for ones left behind.
const SEARCH_STEP: Duration = Duration::from_millis(20);

/// How [`stop_server`] stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOptions {
    /// How long the server may take to end after it was asked to. 5 seconds by default.
    pub timeout: Duration,
    /// Whether it is killed when the time has run out. Not by default.
    pub force: bool,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            force: false,
        }
    }
}

/// What [`stop_server`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopOutcome {
    /// The server has ended, and its lock file is gone.
    Stopped {
        /// Who it was.
        info: LockInfo,
        /// Whether it had to be killed: the time had run out, or, on Windows, it does not listen.
        forced: bool,
    },
    /// There was no server, nor a lock file.
    NotRunning,
    /// There was no server; the lock file it left behind was removed.
    StaleCleaned {
        /// What the file said, if it could be read.
        info: Option<LockInfo>,
    },
    /// The server still runs.
    TimedOut {
        /// Who it is.
        info: LockInfo,
    },
}

/// [`LockDir::stop_server`] in the default directory.
///
/// # Errors
///
/// As [`LockDir::stop_server`].
pub fn stop_server(port: u16, options: &StopOptions) -> Result<StopOutcome, LockError> {
    LockDir::default().stop_server(port, options)
}

impl LockDir {
    /// Stops the server that guards `port` and waits until it has ended and its file is gone.
    ///
    /// It is asked with SIGTERM, through a handle that cannot come to mean another process, and
    /// only if it can be shown to hold the lock and belongs to the owner of the lock file.
    /// Processes it leaves behind that hold the lock are ended with it.
    ///
    /// On Windows it is asked through its `StopEvent`; a process that does not listen there is
    /// terminated at once, with or without [`force`](StopOptions::force).
    ///
    /// # Errors
    ///
    /// - [`LockError::NotHolder`]: the named process is not, or not provably, the holder.
    /// - [`LockError::HeldByUnknown`]: the holder can't be found, or the lock is still held after
    ///   the server has ended.
    /// - [`LockError::StopFailed`]: it may not be signalled, or is the calling process itself.
    /// - [`LockError::InvalidPort`], [`LockError::ReadFailed`].
    pub fn stop_server(&self, port: u16, options: &StopOptions) -> Result<StopOutcome, LockError> {
        self.stop(port, options, None)
    }

    /// [`stop_server`](Self::stop_server), its waits ended by `interrupted` when that returns
    /// true. It is called at least every 50 ms while waiting. A server that was asked to end
    /// before the interruption ends all the same.
    ///
    /// # Errors
    ///
    /// As [`stop_server`](Self::stop_server), and [`LockError::Interrupted`].
    pub fn stop_interruptible(
        &self,
        port: u16,
        options: &StopOptions,
        mut interrupted: impl FnMut() -> bool,
    ) -> Result<StopOutcome, LockError> {
        self.stop(port, options, Some(&mut interrupted))
    }

    fn stop<'a>(
        &'a self,
        port: u16,
        options: &StopOptions,
        interrupted: Option<&'a mut dyn FnMut() -> bool>,
    ) -> Result<StopOutcome, LockError> {
        check_port(port)?;
        let mut stop = match self.open().map_err(LockError::ReadFailed)? {
            Some(directory) => Stop {
                locks: self,
                directory,
                port,
                name: file_name(port),
                interrupted,
            },
            None => return Ok(StopOutcome::NotRunning),
        };
        let target = match stop.find_target()? {
            Found::Target(target) => target,
            Found::Nobody(outcome) => return Ok(outcome),
        };
        let mut forced = false;
        for handle in &target.handles {
            let asked = handle
                .terminate()
                .map_err(|e| stop.failed(handle.pid(), e))?;
            forced |= !asked;
            handle.resume().map_err(|e| stop.failed(handle.pid(), e))?;
        }
        debug!(
            "Asked server on port {port} to stop (PID: {})",
            target.info.pid
        );
        let asked = Instant::now();
        if !stop.wait_for(&target.handles, options.timeout)? {
            if !options.force {
                return Ok(StopOutcome::TimedOut { info: target.info });
            }
            warn!(
                "Server on port {port} (PID: {}) did not stop in time, killing it",
                target.info.pid
            );
            for handle in &target.handles {
                handle.kill().map_err(|e| stop.failed(handle.pid(), e))?;
            }
            forced = true;
            if !stop.wait_for(&target.handles, KILL_WAIT)? {
                return Ok(StopOutcome::TimedOut { info: target.info });
            }
        }
        let left = options.timeout.saturating_sub(asked.elapsed());
        let grace = if forced {
            Duration::ZERO
        } else {
            left.max(GRACE)
        };
        stop.clear_up(&target, grace)?;
        Ok(StopOutcome::Stopped {
            info: target.info,
            forced,
        })
    }
}

/// Whom a stop ends.
struct Target {
    info: LockInfo,
    /// The server; or, where the named one is gone, all that hold its lock.
    handles: Vec<ProcessHandle>,
    /// An ancestor of the server that holds the lock as well, and clears up behind it.
    keeper: Option<u32>,
    /// The lock's file, which tells its owner also when it has lost its name. Not on Windows, where
    /// it would keep the next server out.
    file: Option<LockFile>,
    /// Whether its launcher had made a process group for it.
    led_group: bool,
    /// The process that took the lock: whoever takes it later is not the server's offspring.
    taker: Option<u32>,
}

enum Found {
    Target(Target),
    Nobody(StopOutcome),
}

struct Stop<'a> {
    locks: &'a LockDir,
    directory: Directory,
    port: u16,
    name: String,
    interrupted: Option<&'a mut dyn FnMut() -> bool>,
}

impl Stop<'_> {
    fn find_target(&mut self) -> Result<Found, LockError> {
        let path = self.locks.lock_path(self.port);
        let mut unclear = None;
        loop {
            let file = self.directory.open_lock(&self.name);
            let Some(file) = file.map_err(LockError::ReadFailed)? else {
                return Ok(Found::Nobody(StopOutcome::NotRunning));
            };
            let bytes = file.read().map_err(LockError::ReadFailed)?;
            let info = Content::parse(&bytes, self.port).holder();
            if file.retry().map_err(LockError::ReadFailed)? {
                if let Some(outcome) = self.clean_stale(&file)? {
                    return Ok(Found::Nobody(outcome));
                }
            } else if let Some(info) = &info
                && let Some((handle, keeper)) = self.identify(info, &file)?
            {
                let holder = keeper.unwrap_or(info.pid);
                let taker = sys::taker(holder, &file).map_err(LockError::StopFailed)?;
                return Ok(Found::Target(Target {
                    info: info.clone(),
                    handles: vec![handle],
                    keeper,
                    led_group: sys::leads_group(info.pid, &self.marker()),
                    file: cfg!(unix).then_some(file),
                    taker,
                }));
            }
            // Someone is starting, stopping or recovering this very moment.
            if unclear.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
                let handles = self.holders(&file, None)?;
                // Who has only just taken the lock writes its name, given time.
                self.pause(SETTLE_HOLDERS)?;
                let now = file.read().map_err(LockError::ReadFailed)?;
                let is_at = file.is_at(&path).map_err(LockError::ReadFailed)?;
                if now != bytes || !is_at || file.retry().map_err(LockError::ReadFailed)? {
                    unclear = None;
                    continue;
                }
                let Some(first) = handles.first() else {
                    return Err(match info {
                        Some(info) if is_consistent(&info) => LockError::NotHolder {
                            port: self.port,
                            pid: info.pid,
                            path,
                            reason: "the lock is held by a process that cannot be seen from here",
                        },
                        _ => LockError::HeldByUnknown {
                            port: self.port,
                            path,
                        },
                    });
                };
                let started = find(first.pid()).and_then(|process| process.started);
                let info = LockInfo {
                    pid: first.pid(),
                    started_at: started.unwrap_or_else(Utc::now),
                    port: self.port,
                };
                let taker = sys::taker(first.pid(), &file).map_err(LockError::StopFailed)?;
                return Ok(Found::Target(Target {
                    info,
                    handles,
                    keeper: None,
                    led_group: false,
                    file: cfg!(unix).then_some(file),
                    taker,
                }));
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
            Content::Holder(info) if info.pid != process::id() && is_consistent(&info) => {
                return Err(LockError::NotHolder {
                    port: self.port,
                    pid: info.pid,
                    path,
                    reason: "it does not hold the lock",
                });
            }
            Content::Holder(info) => {
                warn!(
                    "Stale lock file detected (PID {} not running), cleaning up",
                    info.pid
                );
                Some(info)
            }
            Content::Empty => None,
            Content::Corrupt(why) => {
                warn!("Stale lock file detected ({why}), cleaning up");
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
        info: &LockInfo,
        file: &LockFile,
    ) -> Result<Option<(ProcessHandle, Option<u32>)>, LockError> {
        if info.pid == process::id() {
            return Err(LockError::StopFailed(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "this very process guards port {}: release its lock instead",
                    self.port
                ),
            )));
        }
        if find(info.pid).is_none() {
            return Ok(None);
        }
        let failed = LockError::StopFailed;
        let Some(handle) = ProcessHandle::open(info.pid).map_err(failed)? else {
            return Ok(None);
        };
        // Only now that the handle can't change its meaning do the checks hold.
        let path = self.locks.lock_path(self.port);
        let bytes = file.read().map_err(LockError::ReadFailed)?;
        if Content::parse(&bytes, self.port) != Content::Holder(info.clone())
            || !file.is_at(&path).map_err(LockError::ReadFailed)?
            || !is_holder(info, file)
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

    /// Handles of all processes that hold the lock, as `taken_by` took it, and belong to the
    /// file's owner.
    fn holders(
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

    /// After the server's end: ends what it left behind, and sees the file go.
    fn clear_up(&mut self, target: &Target, grace: Duration) -> Result<(), LockError> {
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
                .filter(|&pid| pid == own || find(pid).is_some());
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
                        Some(info) => already_running(info),
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

    fn marker(&self) -> String {
        format!("{GUARDED_PORT_ENV}={}", self.port)
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
        if let Content::Holder(info) = Content::parse(&bytes, self.port)
            && !stopped(info.pid)
            && Some(info.pid) != keeper
            && is_holder(&info, file)
        {
            return Ok(false); // the next server's already
        }
        if locked {
            file.remove(&self.directory, &self.name)
                .map_err(LockError::StopFailed)?;
        }
        Ok(!locked)
    }

    /// False when `timeout` ran out first.
    fn wait_for(
        &mut self,
        handles: &[ProcessHandle],
        timeout: Duration,
    ) -> Result<bool, LockError> {
        let started = Instant::now();
        for handle in handles {
            loop {
                let left = timeout.saturating_sub(started.elapsed()).min(LONGEST_WAIT);
                let step = match self.interrupted {
                    Some(_) => left.min(INTERRUPT_STEP),
                    None => left,
                };
                if handle
                    .wait(step)
                    .map_err(|e| self.failed(handle.pid(), e))?
                {
                    break;
                }
                self.check_interrupted()?;
                if started.elapsed() >= timeout {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn pause(&mut self, step: Duration) -> Result<(), LockError> {
        self.check_interrupted()?;
        thread::sleep(step);
        Ok(())
    }

    fn check_interrupted(&mut self) -> Result<(), LockError> {
        if let Some(interrupted) = &mut self.interrupted
            && interrupted()
        {
            return Err(LockError::Interrupted { port: self.port });
        }
        Ok(())
    }

    fn failed(&self, pid: u32, e: io::Error) -> LockError {
        let what = format!("port {}, PID {pid}", self.port);
        LockError::StopFailed(context(e, what))
    }
}

/// Processes that a server left behind.
#[derive(Default)]
struct LeftBehind {
    handles: Vec<ProcessHandle>,
    asked: Option<Instant>,
}

impl LeftBehind {
    /// Asks a process to end that was not asked before.
    fn add(&mut self, handle: ProcessHandle) -> io::Result<()> {
        if self.handles.iter().any(|known| known.pid() == handle.pid()) {
            return Ok(());
        }
        debug!("Ending PID {}, left behind by the server", handle.pid());
        handle.terminate()?;
        self.asked.get_or_insert_with(Instant::now);
        self.handles.push(handle);
        Ok(())
    }

    /// Whether all have ended; kills those that have not when `grace` has run out.
    fn end(&self, grace: Duration) -> io::Result<bool> {
        let expired = self.asked.is_some_and(|asked| asked.elapsed() >= grace);
        let mut ended = true;
        for handle in &self.handles {
            if !handle.wait(Duration::ZERO)? {
                ended = false;
                if expired {
                    handle.kill()?;
                }
            }
        }
        Ok(ended)
    }
}

/// Ends all other processes that hold the lock of this file: SIGTERM, and SIGKILL when `grace` has
/// run out.
pub(crate) fn end_other_holders(file: &LockFile, grace: Duration) -> io::Result<()> {
    let mut left_behind = LeftBehind::default();
    let started = Instant::now();
    loop {
        for (pid, taker) in sys::holders(file)? {
            if let Some(handle) = ProcessHandle::open(pid)?
                && sys::taker(pid, file)? == Some(taker)
            {
                left_behind.add(handle)?;
            }
        }
        if left_behind.end(grace)? {
            return Ok(());
        }
        if started.elapsed().saturating_sub(grace) >= KILL_WAIT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The nearest ancestor of a process that holds the lock: the launcher that stays with its server.
fn keeper_of(pid: u32, file: &LockFile) -> io::Result<Option<u32>> {
    let mut pid = pid;
    // A chain longer than this is a changing one.
    for _ in 0..64 {
        let Some(parent) = find(pid).map(|process| process.parent) else {
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
