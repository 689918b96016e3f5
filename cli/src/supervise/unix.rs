//! The server leads a process group and takes the lock over.

use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use llmlb_lock_core::{LockError, ServerLock};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::ended::Ended;
use super::terminal::{self, Terminal};
use super::{cannot_run, command, notify_ready};
use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::serve::{announce_shutdown, watch};
use crate::signals::{Inherited, Shutdown, Stream, die_of};

/// How long what the server leaves behind may take to end.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    mut lock: ServerLock,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot watch server: {e}"));
    let mut child_changed = Stream::listen_anyway(Signal::SIGCHLD).map_err(failed)?;
    let mut passed_on = PassedOn::listen().map_err(failed)?;
    let terminal = Terminal::find();
    let server = spawn(&mut lock, args)?;
    if terminal
        .as_ref()
        .is_some_and(|terminal| terminal.offer(server))
    {
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

    let ended = Ended::of(server);
    let mut ending = Ending::new(args.drain_timeout);
    let mut watching = Box::pin(watch(&lock));
    let status = loop {
        match reap(server).map_err(failed)? {
            Some(WaitStatus::Stopped(_, by)) => {
                let terminal = terminal.as_ref();
                if terminal.is_some_and(|terminal| terminal.stopped(server, by)) {
                    send(server, Signal::SIGCONT);
                }
            }
            Some(status) => break status,
            None => {}
        }
        tokio::select! {
            () = child_changed.recv() => {}
            () = ended.wait() => {}
            never = &mut watching => match never {},
            number = passed_on.recv() => {
                send(server, number);
                if number == Signal::SIGTSTP {
                    // With the others of our group.
                    terminal::stop();
                    if let Some(terminal) = &terminal {
                        terminal.offer(server);
                    }
                    send(server, Signal::SIGCONT);
                }
            }
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
        WaitStatus::Signaled(_, signal, _) if asks_to_end(signal) => die_of(signal as i32),
        WaitStatus::Signaled(_, signal, _) => exit::signalled(signal as i32),
        _ => exit::FAILURE,
    })
}

/// Those that end a program at somebody's request; the others tell of a fault.
fn asks_to_end(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM
    )
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
fn spawn(lock: &mut ServerLock, args: &ServeArgs) -> Result<Pid, Failure> {
    let mut command = command(lock, args)?;
    command.process_group(0);
    let hook = lock.child_hook()?;
    let inherited = Inherited::get();
    // SAFETY: all of it is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            inherited.restore()?;
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

/// Signals that mean something to servers and nothing to llmlb; SIGTSTP stops both.
struct PassedOn([(Signal, Stream); 5]);

impl PassedOn {
    fn listen() -> io::Result<Self> {
        let listen = |number| Ok::<_, io::Error>((number, Stream::listen(number)?));
        Ok(Self([
            listen(Signal::SIGHUP)?,
            listen(Signal::SIGQUIT)?,
            listen(Signal::SIGUSR1)?,
            listen(Signal::SIGUSR2)?,
            listen(Signal::SIGTSTP)?,
        ]))
    }

    async fn recv(&mut self) -> Signal {
        let [hup, quit, usr1, usr2, stop] = &mut self.0;
        tokio::select! {
            () = hup.1.recv() => hup.0,
            () = quit.1.recv() => quit.0,
            () = usr1.1.recv() => usr1.0,
            () = usr2.1.recv() => usr2.0,
            () = stop.1.recv() => stop.0,
        }
    }
}
