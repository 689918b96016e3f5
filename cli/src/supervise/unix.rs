//! The server leads a process group and takes the lock over.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use llmlb_lock_core::{LockError, ServerLock};
use nix::errno::Errno;
use nix::sys::signal::{self, SigHandler, SigSet, Signal, killpg, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::SignalKind;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::{cannot_run, command};
use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::guard::{announce_shutdown, notify_ready, watch};
use crate::signals::{Shutdown, Stream};

/// How long what the server leaves behind may take to end.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    mut lock: ServerLock,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot watch server: {e}"));
    let mut child_changed = tokio::signal::unix::signal(SignalKind::child()).map_err(failed)?;
    let mut passed_on = PassedOn::listen().map_err(failed)?;
    let terminal = Terminal::find();
    let mut handled = passed_on.listened_to();
    handled.extend(
        shutdown
            .listened_to()
            .into_iter()
            .flat_map(Signal::try_from),
    );
    let server = spawn(&mut lock, args, &handled)?;
    if let Some(terminal) = &terminal {
        terminal.give_to(server);
        // It may have asked to read before it was its turn.
        send(server, Signal::SIGCONT);
    }
    match lock.hand_over(server.as_raw().unsigned_abs()) {
        Ok(()) => {}
        // It has ended already, and is reaped below.
        Err(LockError::NoSuchProcess { .. }) => {}
        Err(e) => {
            let _ = killpg(server, Signal::SIGKILL);
            return Err(e.into());
        }
    }
    info!(
        "Guarding port {} for {:?} (PID: {server})",
        lock.info().port,
        args.command[0]
    );
    notify_ready();

    let mut ending = Ending::new(args.drain_timeout);
    let mut watching = Box::pin(watch(&lock));
    let status = loop {
        match reap(server).map_err(failed)? {
            Some(WaitStatus::Stopped(..)) => {
                if let Some(terminal) = &terminal {
                    terminal.stop_with(server);
                }
            }
            Some(status) => break status,
            None => {}
        }
        tokio::select! {
            _ = child_changed.recv() => {}
            never = &mut watching => match never {},
            number = passed_on.recv() => send(server, number),
            number = shutdown.recv() => ending.signalled(server, number),
            () = ending.expired() => {
                warn!("Server still runs after {:?}, killing it", args.drain_timeout);
                ending.kill(server);
            }
        }
    };
    drop(watching);
    if let Some(terminal) = &terminal {
        terminal.take_back(server);
    }
    match status {
        WaitStatus::Signaled(_, signal, _) => info!("Server was ended by {signal}"),
        WaitStatus::Exited(_, code) => info!("Server ended with exit code {code}"),
        _ => {}
    }
    // Whoever is refused from here on is told of this process.
    if let Err(e) = lock.adopt() {
        warn!("{e}");
    }
    end_group(server, &mut ending, &mut shutdown).await;
    if let Err(e) = lock.reclaim(GRACE).and_then(|()| lock.release()) {
        // The server's exit code tells its caller more than ours would.
        warn!("{e}");
    }
    Ok(match status {
        WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        WaitStatus::Signaled(_, signal, _) => exit::signalled(signal as i32),
        _ => exit::FAILURE,
    })
}

/// How far the ending of a server has come.
struct Ending {
    drain_timeout: Duration,
    /// When its group was asked to end.
    asked: Option<Instant>,
    killed: bool,
}

impl Ending {
    fn new(drain_timeout: Duration) -> Self {
        Self {
            drain_timeout,
            asked: None,
            killed: false,
        }
    }

    /// A first signal asks, a second one kills.
    fn signalled(&mut self, group: Pid, number: i32) {
        if self.asked.is_some() {
            warn!("Second signal, ending at once");
            self.kill(group);
            return;
        }
        announce_shutdown();
        self.ask(group, Signal::try_from(number).unwrap_or(Signal::SIGTERM));
    }

    fn ask(&mut self, group: Pid, signal: Signal) {
        self.asked = Some(Instant::now());
        send(group, signal);
        // What is stopped can't react.
        send(group, Signal::SIGCONT);
    }

    fn kill(&mut self, group: Pid) {
        self.killed = true;
        send(group, Signal::SIGKILL);
    }

    /// Completes when those who were asked have had their time.
    async fn expired(&self) {
        match self.asked {
            Some(asked) if !self.killed => {
                sleep(self.drain_timeout.saturating_sub(asked.elapsed())).await;
            }
            _ => std::future::pending().await,
        }
    }
}

/// What became of the server, if it has ended or was stopped. As PID 1 of a container, llmlb is
/// the parent of all orphans and takes them away as well.
fn reap(server: Pid) -> io::Result<Option<WaitStatus>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(status) if status.pid() == Some(server) => return Ok(Some(status)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Starts the server as the leader of a process group of its own; it inherits the lock, and is
/// named by it from before it runs.
fn spawn(lock: &mut ServerLock, args: &ServeArgs, handled: &[Signal]) -> Result<Pid, Failure> {
    let mut command = command(lock, args)?;
    command.process_group(0);
    let hook = lock.child_hook()?;
    let handled = handled.to_vec();
    // SAFETY: all of it is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // Our handlers would swallow a signal that comes before the exec.
            for &number in &handled {
                signal::signal(number, SigHandler::SigDfl)?;
            }
            hook.run()
        });
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            // The file may name the child that could not become the server.
            lock.adopt()?;
            return Err(cannot_run(args, &e));
        }
    };
    // It is reaped by hand, as only that tells when it is stopped.
    Ok(Pid::from_raw(child.id().cast_signed()))
}

fn send(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => warn!("Cannot send {signal} to process group {group}: {e}"),
    }
}

/// Ends what the server left behind in its process group. Members keep the group's number from
/// being used again, so that it can't come to mean another one.
async fn end_group(group: Pid, ending: &mut Ending, shutdown: &mut Shutdown) {
    let mut step = Duration::from_micros(200);
    let mut killed: Option<Instant> = None;
    loop {
        // Orphans are ours to take away if we are their new parent, and members until then.
        let members = Pid::from_raw(-group.as_raw());
        while waitpid(members, Some(WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status != WaitStatus::StillAlive)
        {}
        if killpg(group, None) == Err(Errno::ESRCH) {
            return;
        }
        if ending.killed {
            let killed = killed.get_or_insert_with(Instant::now);
            if killed.elapsed() >= GRACE {
                // Zombies whose parent does not take them away count as well.
                debug!("Process group {group} has members yet");
                return;
            }
        } else if ending.asked.is_none() {
            warn!(
                "The server left processes behind, ending them: a COMMAND has to stay in the \
                 foreground"
            );
            ending.ask(group, Signal::SIGTERM);
        }
        tokio::select! {
            () = sleep(step) => {}
            number = shutdown.recv() => ending.signalled(group, number),
            () = ending.expired() => ending.kill(group),
        }
        step = (step * 2).min(Duration::from_millis(10));
    }
}

/// Signals that mean something to servers and nothing to llmlb.
struct PassedOn([(Signal, Stream); 4]);

impl PassedOn {
    fn listen() -> io::Result<Self> {
        let listen = |number| {
            let kind = SignalKind::from_raw(number as i32);
            Ok::<_, io::Error>((number, Stream::listen(kind)?))
        };
        Ok(Self([
            listen(Signal::SIGHUP)?,
            listen(Signal::SIGQUIT)?,
            listen(Signal::SIGUSR1)?,
            listen(Signal::SIGUSR2)?,
        ]))
    }

    fn listened_to(&self) -> Vec<Signal> {
        let listening = self.0.iter().filter(|(_, stream)| stream.is_listening());
        listening.map(|(number, _)| *number).collect()
    }

    async fn recv(&mut self) -> Signal {
        let [hup, quit, usr1, usr2] = &mut self.0;
        tokio::select! {
            () = hup.1.recv() => hup.0,
            () = quit.1.recv() => quit.0,
            () = usr1.1.recv() => usr1.0,
            () = usr2.1.recv() => usr2.0,
        }
    }
}

/// The terminal that llmlb was started on, in the foreground. The server's group gets it, so that
/// it can read, and that Ctrl-C reaches it once and directly.
struct Terminal {
    own: Pid,
    /// Whether the server has it from us, and the shell has not taken it back.
    given: Cell<bool>,
}

impl Terminal {
    fn find() -> Option<Self> {
        let stdin = io::stdin();
        let own = getpgrp();
        let foreground = stdin.is_terminal() && tcgetpgrp(&stdin) == Ok(own);
        foreground.then_some(Self {
            own,
            given: Cell::new(false),
        })
    }

    fn give_to(&self, server: Pid) {
        self.set_foreground(server);
        self.given.set(true);
    }

    /// Not from anybody else: in the background the terminal belongs to the shell.
    fn take_back(&self, server: Pid) {
        let given = self.given.replace(false);
        let holder = tcgetpgrp(io::stdin());
        // A server that is an interactive shell gives it to groups of its own, and may be gone.
        let orphaned = holder.is_ok_and(|group| killpg(group, None) == Err(Errno::ESRCH));
        if given && (holder == Ok(server) || orphaned) {
            self.set_foreground(self.own);
        }
    }

    fn set_foreground(&self, group: Pid) {
        // Without this, asking from the background would stop us.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTTOU);
        let restore = blocked.thread_block().is_ok();
        if let Err(e) = tcsetpgrp(io::stdin(), group) {
            debug!("Cannot give the terminal to process group {group}: {e}");
        }
        if restore {
            let _ = blocked.thread_unblock();
        }
    }

    /// Ctrl-Z stopped the server: stop as well, for the shell to notice, and go on together.
    fn stop_with(&self, server: Pid) {
        self.take_back(server);
        // Comes back when the shell continues us; at once where no shell could.
        if raise(Signal::SIGTSTP).is_ok() {
            if tcgetpgrp(io::stdin()) == Ok(self.own) {
                self.give_to(server);
            }
            send(server, Signal::SIGCONT);
        }
    }
}
