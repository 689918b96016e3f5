//! The guardian's side: starts the watchdog, tells it the deadline, and notices when it is gone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clock::BootTime;
use crate::error::ClusterError;
use crate::watchdog::channel::{Channel, Message};
use crate::watchdog::gate::Gate;

/// A machine under load takes this long to start a process, not longer.
const START: Duration = Duration::from_secs(10);

type OnFailure = Box<dyn FnOnce(String) + Send>;

/// The watchdog of this process; see [the module](self).
///
/// Dropping it ends the server that it watches, as the end of this process would.
pub struct Watchdog {
    child: Mutex<Child>,
    channel: Arc<Channel>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Option<bool>,
    guarding: bool,
    /// The server that was watched has ended.
    ended: bool,
    fired: bool,
    /// The deadline that was told last, and when the oldest that was not answered yet was told.
    told: Option<BootTime>,
    unanswered: Option<Instant>,
    failure: Option<String>,
    /// Its end of the channel is gone, and it with that.
    closed: bool,
    on_failure: Option<OnFailure>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: &str) {
        let mut state = self.lock();
        if state.failure.is_some() {
            return;
        }
        state.failure = Some(reason.to_owned());
        let call = state.on_failure.take();
        drop(state);
        self.changed.notify_all();
        if let Some(call) = call {
            call(reason.to_owned());
        }
    }

    /// Whether `done` came true before the watchdog failed.
    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        self.wait_or(timeout, &done, |state| state.failure.is_some())
    }

    fn wait_closed(&self, timeout: Duration) -> bool {
        self.wait_or(timeout, |state| state.closed, |_| false)
    }

    fn wait_or(
        &self,
        timeout: Duration,
        done: impl Fn(&State) -> bool,
        over: impl Fn(&State) -> bool,
    ) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while !done(&state) && !over(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        done(&state)
    }

    fn hear(&self, message: &Message) {
        let mut state = self.lock();
        match message {
            Message::Ready(real_time) => state.ready = Some(*real_time),
            Message::Armed(at) if state.told == Some(*at) => state.unanswered = None,
            Message::Guarding => state.guarding = true,
            Message::Ended(_) => state.ended = true,
            Message::Fired => {
                state.fired = true;
                drop(state);
                self.fail("its time was over, and the watchdog had to kill the server");
                return;
            }
            _ => {}
        }
        drop(state);
        self.changed.notify_all();
    }
}

impl Watchdog {
    /// Starts `command`, which has to call [`run`](crate::watchdog::run) before anything else, and
    /// waits until it is there. It gets a process group of its own, so that what is sent to this
    /// process's does not end both.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watchdog`].
    pub fn start(mut command: Command) -> Result<Self, ClusterError> {
        let (ours, theirs) = Channel::pair().map_err(ClusterError::Watchdog)?;
        let child = command
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(ClusterError::Watchdog)?;
        // The command has a copy of their end: while it is there, its end is not seen.
        drop(command);
        let channel = Arc::new(ours);
        let shared = Arc::new(Shared::default());
        let watchdog = Self {
            child: Mutex::new(child),
            channel: Arc::clone(&channel),
            shared: Arc::clone(&shared),
        };
        thread::Builder::new()
            .name("llmlb-watchdog".into())
            .spawn(move || listen(&channel, &shared))
            .map_err(ClusterError::Thread)?;
        if watchdog.shared.wait(START, |state| state.ready.is_some()) {
            return Ok(watchdog);
        }
        Err(watchdog.failed("it did not start"))
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// Whether it has real-time priority: without, a machine under heavy load may delay it.
    pub fn is_real_time(&self) -> bool {
        self.shared.lock().ready == Some(true)
    }

    /// Whether it had to kill the server, as the time was over.
    pub fn has_fired(&self) -> bool {
        self.shared.lock().fired
    }

    /// Why it does not watch any more, if so.
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    /// Has the server started by `launcher` (the program with its hidden subcommand for
    /// [`pass_gate`](crate::watchdog::pass_gate)), behind a gate that opens when it is watched. The
    /// launcher's standard input is the gate's; the server gets `stdin`, or `/dev/null`.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watchdog`].
    pub fn gate(
        &self,
        launcher: &mut Command,
        stdin: Option<OwnedFd>,
    ) -> Result<Gate<'_>, ClusterError> {
        Gate::new(self, launcher, stdin).map_err(ClusterError::Watchdog)
    }

    /// Watches this process, which is a child that has not been waited for.
    pub(crate) fn guard(&self, pid: u32, cgroup: Option<&Path>) -> Result<(), ClusterError> {
        let valid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = valid else {
            return Err(ClusterError::Watchdog(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{pid} is not the id of a process"),
            )));
        };
        let handle =
            pidfd_open(raw, PidfdFlags::empty()).map_err(|e| ClusterError::Watchdog(e.into()))?;
        let message = Message::Guard(cgroup.map(Path::to_owned));
        {
            let mut state = self.shared.lock();
            state.guarding = false;
            state.ended = false;
        }
        self.channel
            .send(&message, Some(handle.as_fd()))
            .map_err(ClusterError::Watchdog)?;
        if self.shared.wait(START, |state| state.guarding) {
            return Ok(());
        }
        Err(self.failed("it did not take the server"))
    }

    /// Kills the server, and says whether it is gone, or was never there.
    pub fn end_server(&self, within: Duration) -> bool {
        if !self.shared.lock().guarding {
            return true;
        }
        let _ = self.channel.send(&Message::Kill, None);
        self.shared.wait(within, |state| state.ended)
    }

    /// Tells the time at which the server is to be killed.
    pub(crate) fn extend(&self, kill_at: BootTime) {
        {
            let mut state = self.shared.lock();
            state.told = Some(kill_at);
            state.unanswered.get_or_insert_with(Instant::now);
        }
        if let Err(error) = self.channel.send(&Message::Deadline(kill_at), None) {
            self.shared
                .fail(&format!("the watchdog does not listen: {error}"));
        }
    }

    /// Tells it again, to see whether it answers; fails it if it has not for longer than `patience`.
    pub(crate) fn ping(&self, patience: Duration) {
        let (told, unanswered) = {
            let state = self.shared.lock();
            (state.told, state.unanswered)
        };
        if unanswered.is_some_and(|since| since.elapsed() > patience) {
            self.shared.fail("the watchdog does not answer");
        } else if let Some(told) = told {
            self.extend(told);
        }
    }

    /// Calls back, at most once, when it is gone, does not answer, or had to kill the server.
    pub(crate) fn on_failure(&self, call: impl FnOnce(String) + Send + 'static) {
        let mut state = self.shared.lock();
        match state.failure.clone() {
            Some(reason) => {
                drop(state);
                call(reason);
            }
            None => state.on_failure = Some(Box::new(call)),
        }
    }

    fn failed(&self, otherwise: &str) -> ClusterError {
        let reason = self.failure().unwrap_or_else(|| otherwise.to_owned());
        ClusterError::Watchdog(io::Error::other(reason))
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(channel: &Channel, shared: &Shared) {
    let reason = loop {
        match channel.receive(true) {
            Ok(Some((message, _))) => shared.hear(&message),
            Ok(None) => break "the watchdog has ended".to_owned(),
            Err(error) => break format!("the watchdog can't be heard: {error}"),
        }
    };
    shared.lock().closed = true;
    shared.fail(&reason);
    shared.changed.notify_all();
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // It sees our end, kills the server if there still is one, and ends.
        let _ = rustix::net::shutdown(&*self.channel, rustix::net::Shutdown::Write);
        let gone = self.shared.wait_closed(Duration::from_secs(2));
        let mut child = self.child();
        if !gone {
            // Stopped or stuck: without it the server is nobody's.
            let _ = child.kill();
        }
        let _ = child.wait();
    }
}

impl fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchdog")
            .field("pid", &self.pid())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}
