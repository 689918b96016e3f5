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
    pub(crate) fn end(&self, grace: Duration) -> io::Result<bool> {
        let expired = self.asked.is_some_and(|asked| asked.elapsed() >= grace);
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
