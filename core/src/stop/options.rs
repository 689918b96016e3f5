//! How a stop is asked for, and what it found and did.

use std::time::Duration;

use crate::info::LockInfo;
use crate::left_over::LeftOver;

/// How [`stop_server`](crate::stop_server) stops.
///
/// ```
/// # use std::time::Duration;
/// use llmlb_lock_core::StopOptions;
///
/// let patient = StopOptions::default().timeout(Duration::from_secs(60));
/// assert!(!patient.force);
/// ```
///
/// They may come to be more, so that no program may name them all:
///
/// ```compile_fail,E0639
/// use llmlb_lock_core::StopOptions;
///
/// let patient = StopOptions { force: false, ..StopOptions::default() };
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopOptions {
    /// How long the server may take to end after it was asked to. 5 seconds by default.
    pub timeout: Duration,
    /// Whether it is killed when the time has run out. Not by default.
    pub force: bool,
    /// Whether what a killed server has left is looked for, among all processes, where there is no
    /// server. By default it is.
    pub left_overs: bool,
}

impl Default for StopOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            force: false,
            left_overs: true,
        }
    }
}

impl StopOptions {
    /// Sets the field `timeout`.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets the field `left_overs`.
    #[must_use]
    pub fn left_overs(mut self, left_overs: bool) -> Self {
        self.left_overs = left_overs;
        self
    }

    /// Sets the field `force`.
    #[must_use]
    pub fn force(mut self, force: bool) -> Self {
        self.force = force;
        self
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
        /// How many processes were there still when it had ended, and have been ended too.
        left_overs: usize,
    },
    /// There was no server, but what a killed one had left behind: that was ended.
    LeftOversEnded {
        /// Who they were.
        left_overs: Vec<LeftOver>,
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
