//! The guardian's side: starts the watchdog, tells it the deadline, and notices when it is gone.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_lock_core::Kin;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

use crate::clock::BootTime;
use crate::error::ClusterError;
use crate::watchdog::channel::{Channel, Message, ServerKin};
use crate::watchdog::gate::Gate;

/// A machine under load takes this long to start a process, not longer.
const START: Duration = Duration::from_secs(10);

type OnFailure = Box<dyn FnOnce(String) + Send>;

/// The watchdog of this process; see [the module](crate::watchdog).
///
/// When it is killed, or does not answer, that counts as the loss of the lease, and another takes
/// its place at once, so that the server does not drain unwatched. If that can't be started, or
/// ends too, the server is killed.
///
/// Dropping it ends the server that it watches, as the end of this process would.
pub struct Watchdog {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    command: Mutex<Command>,
}

/// One watchdog process, and the way to it.
struct Link {
    pid: u32,
    /// Whoever reaps all children of this process may take its exit status first, and its number is
    /// another's then: only this is still its own.
    handle: OwnedFd,
    channel: Arc<Channel>,
}

impl Link {
    /// Of a child that nobody can have waited for yet.
    fn new(mut child: Child, channel: Arc<Channel>) -> io::Result<Self> {
        let pid = child.id();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(handle) => Ok(Self {
                pid,
                handle,
                channel,
            }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(e.into())
            }
        }
    }

    fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Waits for its end, and takes its exit status if nobody has.
    fn wait(&self) {
        let handle = WaitId::PidFd(self.handle.as_fd());
        while let Err(Errno::INTR) = waitid(handle.clone(), WaitIdOptions::EXITED) {}
    }
}

/// The server.
struct Guarded {
    pid: u32,
    handle: OwnedFd,
    kin: Option<ServerKin>,
}

#[derive(Default)]
struct State {
    link: Option<Link>,
    /// For a successor, or to kill it ourselves.
    server: Option<Guarded>,
    ready: Option<bool>,
    guarding: bool,
    /// The server that was watched has ended.
    ended: bool,
    fired: bool,
    /// The deadline that was told last, and when the oldest that was not answered yet was told.
    told: Option<BootTime>,
    unanswered: Option<Instant>,
    failure: Option<String>,
    /// We are going: its end is no failure.
    closing: bool,
    /// It is gone, and no other comes.
    closed: bool,
    on_failure: Option<OnFailure>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, reason: &str) {
        let mut state = self.lock();
        if state.failure.is_some() || state.closing {
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

    /// Whether `done` came true before all watchdogs were gone.
    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while !done(&state) && !state.closed {
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

    /// Starts a watchdog process.
    fn spawn(&self) -> io::Result<Arc<Channel>> {
        let (ours, theirs) = Channel::pair()?;
        let mut command = self.command.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.stdin(Stdio::from(theirs)).spawn()?;
        // The command has a copy of their end: while it is there, its end is not seen.
        command.stdin(Stdio::null());
        drop(command);
        let channel = Arc::new(ours);
        let link = Link::new(child, Arc::clone(&channel))?;
        let old = self.lock().link.replace(link);
        if let Some(old) = old {
            // Its channel has ended, and it with that, or it will now.
            old.kill();
            old.wait();
        }
        Ok(channel)
    }

    fn channel(&self) -> Option<Arc<Channel>> {
        Some(Arc::clone(&self.lock().link.as_ref()?.channel))
    }

    fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        match self.channel() {
            Some(channel) => channel.send(message, fd),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Gives a successor what the last one knew.
    fn hand_on(&self) -> io::Result<()> {
        let state = self.lock();
        let Some(link) = &state.link else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if let Some(told) = state.told {
            link.channel.send(&Message::Deadline(told), None)?;
        }
        if let Some(server) = state.server.as_ref().filter(|_| !state.ended) {
            let message = Message::Guard(server.kin.clone());
            link.channel.send(&message, Some(server.handle.as_fd()))?;
        }
        Ok(())
    }

    /// The last resort.
    fn kill_server(&self) {
        let state = self.lock();
        if let Some(server) = state.server.as_ref().filter(|_| !state.ended) {
            let kin = server.kin.as_ref();
            let kin = kin.map(|kin| Kin::new(&kin.id, server.pid, kin.told_by_descent));
            // First those who descend from it.
            let kin = kin.and_then(Result::ok).map(|mut kin| {
                kin.look();
                kin
            });
            let _ = pidfd_send_signal(&server.handle, Signal::KILL);
            if let Some(mut kin) = kin {
                let _ = kin.kill();
            }
        }
    }
}

/// Hears one watchdog after the other.
fn listen(shared: &Shared, mut channel: Arc<Channel>) {
    let mut successors = 1;
    loop {
        let reason = loop {
            match channel.receive(true) {
                Ok(Some((message, _))) => shared.hear(&message),
                Ok(None) => break "the watchdog has ended".to_owned(),
                Err(error) => break format!("the watchdog can't be heard: {error}"),
            }
        };
        let started = shared.lock().ready.is_some() && !shared.lock().closing;
        let next = if started && successors > 0 {
            successors -= 1;
            shared
                .spawn()
                .and_then(|next| shared.hand_on().map(|()| next))
        } else {
            Err(io::ErrorKind::NotConnected.into())
        };
        if next.is_err() && started {
            shared.kill_server();
        }
        // When this is known, the server is watched again, or dead.
        shared.fail(&reason);
        match next {
            Ok(next) => channel = next,
            Err(_) => {
                shared.lock().closed = true;
                shared.changed.notify_all();
                return;
            }
        }
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
        command.stdout(Stdio::null()).process_group(0);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            command: Mutex::new(command),
        });
        let watchdog = Self {
            shared: Arc::clone(&shared),
        };
        let channel = shared.spawn().map_err(ClusterError::Watchdog)?;
        thread::Builder::new()
            .name("llmlb-watchdog".into())
            .spawn(move || listen(&shared, channel))
            .map_err(ClusterError::Thread)?;
        let shared = &watchdog.shared;
        if shared.wait(START, |state| state.ready.is_some()) {
            return Ok(watchdog);
        }
        Err(watchdog.failed("it did not start"))
    }

    /// The process id.
    pub fn pid(&self) -> Option<u32> {
        Some(self.shared.lock().link.as_ref()?.pid)
    }

    /// Whether it has real-time priority: without, a machine under heavy load may delay it.
    pub fn is_real_time(&self) -> bool {
        self.shared.lock().ready == Some(true)
    }

    /// Whether it had to kill the server, as the time was over.
    pub fn has_fired(&self) -> bool {
        self.shared.lock().fired
    }

    /// Why the server has to be ended, if the watchdog is the reason.
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
    pub(crate) fn guard(&self, pid: u32, kin: Option<ServerKin>) -> Result<(), ClusterError> {
        let valid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = valid else {
            return Err(ClusterError::Watchdog(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{pid} is not the id of a process"),
            )));
        };
        let handle =
            pidfd_open(raw, PidfdFlags::empty()).map_err(|e| ClusterError::Watchdog(e.into()))?;
        let message = Message::Guard(kin.clone());
        let sent = {
            let mut state = self.shared.lock();
            state.guarding = false;
            state.ended = false;
            let sent = match &state.link {
                Some(link) => link.channel.send(&message, Some(handle.as_fd())),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            state.server = Some(Guarded { pid, handle, kin });
            sent
        };
        sent.map_err(ClusterError::Watchdog)?;
        if self
            .shared
            .wait(START, |state| state.guarding || state.failure.is_some())
            && self.failure().is_none()
        {
            return Ok(());
        }
        Err(self.failed("it did not take the server"))
    }

    /// Kills the server, and says whether it is gone, or was never there.
    pub fn end_server(&self, within: Duration) -> bool {
        if self.shared.lock().server.is_none() {
            return true;
        }
        let _ = self.shared.send(&Message::Kill, None);
        self.shared.wait(within, |state| state.ended)
    }

    /// Tells the time at which the server is to be killed.
    pub(crate) fn extend(&self, kill_at: BootTime) {
        {
            let mut state = self.shared.lock();
            state.told = Some(kill_at);
            state.unanswered.get_or_insert_with(Instant::now);
        }
        // One that is gone is seen to be; one that takes nothing any more does not answer.
        let _ = self.shared.send(&Message::Deadline(kill_at), None);
    }

    /// Tells it again, to see whether it answers; replaces it if it has not for longer than
    /// `patience`.
    pub(crate) fn ping(&self, patience: Duration) {
        let (told, unanswered) = {
            let state = self.shared.lock();
            (state.told, state.unanswered)
        };
        if unanswered.is_some_and(|since| since.elapsed() > patience) {
            self.shared.fail("the watchdog does not answer");
            let mut state = self.shared.lock();
            // Its successor gets as much time.
            state.unanswered = Some(Instant::now());
            if let Some(link) = &state.link {
                // Its end is heard, and another started.
                link.kill();
            }
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
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let channel = {
            let mut state = self.shared.lock();
            state.closing = true;
            state.link.as_ref().map(|link| Arc::clone(&link.channel))
        };
        // It sees our end, kills the server if there still is one, and ends.
        if let Some(channel) = channel {
            let _ = rustix::net::shutdown(&*channel, rustix::net::Shutdown::Write);
        }
        let gone = self
            .shared
            .wait(Duration::from_secs(2), |state| state.closed);
        // It may be stopped or stuck, or was killed this very moment.
        self.shared.kill_server();
        if let Some(link) = self.shared.lock().link.take() {
            if !gone {
                link.kill();
            }
            link.wait();
        }
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
