//! How far the ending of a server has come: asked, waited for, killed. Apart from supervising,
//! because what the server leaves behind ends in the same steps.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::guard::announce_shutdown;

/// How far the ending of a server has come.
pub(super) struct Ending {
    drain_timeout: Duration,
    /// When its group was asked to end.
    asked: Option<Instant>,
    killed: bool,
    /// Whether `llmlb stop` is at work, which asks the server itself.
    stopped: bool,
    /// Whether a signal has come for it.
    signalled: bool,
}

impl Ending {
    pub(super) fn new(drain_timeout: Duration) -> Self {
        Self {
            drain_timeout,
            asked: None,
            killed: false,
            stopped: false,
            signalled: false,
        }
    }

    /// A first signal asks, a second one kills.
    pub(super) fn signalled(&mut self, group: Pid, number: i32) {
        self.signalled = true;
        if self.asked.is_some() {
            warn!("Second signal, ending at once");
            self.kill(group);
            return;
        }
        announce_shutdown();
        self.ask(group, Signal::try_from(number).unwrap_or(Signal::SIGTERM));
    }

    pub(super) fn ask(&mut self, group: Pid, signal: Signal) {
        self.asked = Some(Instant::now());
        send(group, signal);
        // What is stopped can't react.
        send(group, Signal::SIGCONT);
    }

    /// Asks it, and leaves it no more than this time.
    pub(super) fn ask_within(&mut self, group: Pid, time: Duration) {
        let asked = self.asked.unwrap_or_else(Instant::now);
        self.drain_timeout = self.drain_timeout.min(asked.elapsed() + time);
        if self.asked.is_none() {
            self.ask(group, Signal::SIGTERM);
        }
    }

    pub(super) fn kill(&mut self, group: Pid) {
        self.killed = true;
        send(group, Signal::SIGKILL);
    }

    pub(super) fn stopped(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn is_killed(&self) -> bool {
        self.killed
    }

    /// Whether anybody wants the server to end.
    pub(super) fn is_wanted(&self) -> bool {
        self.asked.is_some() || self.killed || self.stopped
    }

    /// Whether somebody else than llmlb wants it to end.
    pub(super) fn is_requested(&self) -> bool {
        self.signalled || self.stopped
    }

    /// Completes when those who were asked have had their time.
    pub(super) async fn expired(&self) {
        match self.asked {
            Some(asked) if !self.killed => {
                sleep(self.drain_timeout.saturating_sub(asked.elapsed())).await;
            }
            _ => std::future::pending().await,
        }
    }
}

pub(super) fn send(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => warn!("Cannot send {signal} to process group {group}: {e}"),
    }
}
