//! Ends processes that a server left behind. Apart from stopping, because whoever takes a lock back
//! from a server needs it too.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use tracing::debug;

use crate::error::context;
use crate::sys::{self, LockFile, ProcessHandle};

/// How long a killed process may take to die.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(5);

/// Processes that a server left behind.
#[derive(Default)]
pub(crate) struct LeftBehind {
    handles: Vec<ProcessHandle>,
    asked: Option<Instant>,
}

impl LeftBehind {
    /// Asks a process to end that was not asked before.
    pub(crate) fn add(&mut self, handle: ProcessHandle) -> io::Result<()> {
        if self.knows(handle.pid())? {
            return Ok(());
        }
        debug!("Ending PID {}, left behind by the server", handle.pid());
        handle.terminate()?;
        // What is stopped can't react.
        handle.resume()?;
        self.asked.get_or_insert_with(Instant::now);
        self.handles.push(handle);
        Ok(())
    }

    /// Whether a process was asked to end, and has not.
    pub(crate) fn knows(&self, pid: u32) -> io::Result<bool> {
        for known in self.handles.iter().filter(|known| known.pid() == pid) {
            if !known.wait(Duration::ZERO)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many were asked to end.
    pub(crate) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Who does not end, for an error.
    pub(crate) fn describe(&self) -> String {
        let alive = |handle: &&ProcessHandle| !handle.wait(Duration::ZERO).unwrap_or(true);
        let pids = self.handles.iter().filter(alive);
        let pids: Vec<_> = pids.map(|handle| handle.pid().to_string()).collect();
        format!("PID {} was killed and does not end", pids.join(", "))
    }

    /// Whether they have had their time.
    pub(crate) fn is_expired(&self, grace: Duration) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() >= grace)
    }

    /// Whether all have ended; kills those that have not when `grace` has run out.
    pub(crate) fn end(&self, grace: Duration) -> io::Result<bool> {
        let expired = self.is_expired(grace);
        let mut ended = true;
        for handle in &self.handles {
            let failed = |e| of(handle.pid(), e);
            if !handle.wait(Duration::ZERO).map_err(failed)? {
                ended = false;
                if expired {
                    handle.kill().map_err(failed)?;
                }
            }
        }
        Ok(ended)
    }
}

fn of(pid: u32, e: io::Error) -> io::Error {
    context(e, format!("PID {pid}"))
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
                left_behind.add(handle).map_err(|e| of(pid, e))?;
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
