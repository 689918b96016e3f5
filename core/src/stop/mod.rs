//! Stopping a server: asked, waited for, killed where that is wanted, and cleared up behind.

mod attempt;
mod clear_up;
mod options;
mod target;

use std::time::{Duration, Instant};

use tracing::{debug, warn};

pub use attempt::GUARDED_PORT_ENV;
pub use options::{StopOptions, StopOutcome};

use crate::dir::{LockDir, check_port, file_name};
use crate::error::LockError;
use crate::left_behind::KILL_WAIT;
use crate::sys::Marked;
use attempt::Stop;
use clear_up::GRACE;
use target::{Found, Target};

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
    /// Processes it leaves behind are ended with it: those that hold the lock, and all that its
    /// launcher has marked by [`SERVER_ID_ENV`](crate::SERVER_ID_ENV).
    ///
    /// On Windows it is asked through its `StopEvent`; a process that does not listen there is
    /// terminated at once, with or without [`force`](StopOptions::force).
    ///
    /// # Errors
    ///
    /// - [`LockError::NotHolder`]: the named process is not, or not provably, the holder.
    /// - [`LockError::HeldByUnknown`]: the holder can't be found, or the lock is still held after
    ///   the server has ended.
    /// - [`LockError::StopFailed`]: it may not be signalled, is the calling process itself, or has
    ///   given the port back without ending, and is not killed.
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
                marked: Marked::default(),
                interrupted,
            },
            None => return Ok(StopOutcome::NotRunning),
        };
        let mut left_overs = Vec::new();
        let mut target = loop {
            match stop.find_target()? {
                // The lock is held by what a killed server has left.
                Found::Target(target) if target.is_left_over() && left_overs.is_empty() => {
                    left_overs = self.end_left_overs(port, GRACE)?;
                    if left_overs.is_empty() {
                        break target;
                    }
                }
                Found::Target(target) => break target,
                Found::Nobody(outcome) => {
                    if options.left_overs {
                        left_overs.extend(self.end_left_overs(port, GRACE)?);
                    }
                    return Ok(match left_overs.is_empty() {
                        true => outcome,
                        false => StopOutcome::LeftOversEnded { left_overs },
                    });
                }
            }
        };
        let family = stop.family(&target)?;
        let asked = Instant::now();
        let Some(forced) = stop.end(&mut target, options)? else {
            return Ok(StopOutcome::TimedOut { info: target.info });
        };
        let left = options.timeout.saturating_sub(asked.elapsed());
        let grace = if forced {
            Duration::ZERO
        } else {
            left.max(GRACE)
        };
        let left_overs = stop.clear_up(&target, &family, grace)?;
        Ok(StopOutcome::Stopped {
            info: target.info,
            forced,
            left_overs,
        })
    }
}

impl Stop<'_> {
    /// Asks, waits, and kills if that is wanted. Tells whether it had to be forced; `None` if it
    /// runs on.
    fn end(
        &mut self,
        target: &mut Target,
        options: &StopOptions,
    ) -> Result<Option<bool>, LockError> {
        // A launcher that stays learns by this that its server is being stopped.
        self.resume_keeper(target)?;
        let mut forced = false;
        for handle in &target.handles {
            let asked = handle
                .terminate()
                .map_err(|e| self.failed(handle.pid(), e))?;
            forced |= !asked;
            handle.resume().map_err(|e| self.failed(handle.pid(), e))?;
        }
        let (port, pid) = (self.port, target.info.pid);
        debug!("Asked server on port {port} to stop (PID: {pid})");
        if self.wait_for(&target.handles, options.timeout)? {
            return Ok(Some(forced));
        }
        if !options.force {
            return Ok(None);
        }
        if let Err(gave_back) = self.keep_guards(target) {
            // A server on its way out gives the port back an instant before it has ended.
            let ended = self.wait_for(&target.handles, KILL_WAIT)?;
            return if ended {
                Ok(Some(forced))
            } else {
                Err(gave_back)
            };
        }
        let pid = target.info.pid;
        warn!("Server on port {port} (PID: {pid}) did not stop in time, killing it");
        for handle in &target.handles {
            handle.kill().map_err(|e| self.failed(handle.pid(), e))?;
        }
        Ok(self.wait_for(&target.handles, KILL_WAIT)?.then_some(true))
    }
}
