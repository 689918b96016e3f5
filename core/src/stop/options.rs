//! How a stop is asked for, and what it found and did.

use std::time::Duration;

use crate::info::LockInfo;

/// How [`stop_server`](crate::stop_server) stops.
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

/// What [`stop_server`](crate::stop_server) found and did.
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
