//! One attempt to stop a port's server: where it looks, and how it waits.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::dir::LockDir;
use crate::error::{LockError, context};
use crate::sys::{Directory, Marked, ProcessHandle};

/// A launcher that makes its server the leader of a process group of its own sets this variable
/// to the port in the server's environment: what the server leaves behind in that group is then
/// ended with it.
pub const GUARDED_PORT_ENV: &str = "LLMLB_GUARDED_PORT";

/// How often a wait looks at its `interrupted` callback.
const INTERRUPT_STEP: Duration = Duration::from_millis(50);
/// Longer waits are cut into pieces: a clock need not reach to the end of an endless timeout.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

pub(super) struct Stop<'a> {
    pub(super) locks: &'a LockDir,
    pub(super) directory: Directory,
    pub(super) port: u16,
    pub(super) name: String,
    /// Processes that carry the server's identity, and where they were.
    pub(super) marked: Marked,
    pub(super) interrupted: Option<&'a mut dyn FnMut() -> bool>,
}

impl Stop<'_> {
    pub(super) fn marker(&self) -> String {
        format!("{GUARDED_PORT_ENV}={}", self.port)
    }

    /// False when `timeout` ran out first.
    pub(super) fn wait_for(
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

    pub(super) fn pause(&mut self, step: Duration) -> Result<(), LockError> {
        self.check_interrupted()?;
        thread::sleep(step);
        Ok(())
    }

    pub(super) fn check_interrupted(&mut self) -> Result<(), LockError> {
        if let Some(interrupted) = &mut self.interrupted
            && interrupted()
        {
            return Err(LockError::Interrupted { port: self.port });
        }
        Ok(())
    }

    pub(super) fn failed(&self, pid: u32, e: io::Error) -> LockError {
        let what = format!("port {}, PID {pid}", self.port);
        LockError::StopFailed(context(e, what))
    }
}
