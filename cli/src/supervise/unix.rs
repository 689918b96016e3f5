//! The server leads a process group and takes the lock over.

use std::cell::RefCell;
use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use chrono::{SubsecRound, Utc};
use llmlb_lock_core::{LockError, Offspring, SERVER_ID_ENV, ServerLock};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info, warn};

use super::ended::Ended;
use super::ending::{Ending, send};
#[cfg(target_os = "linux")]
use super::is_typed;
use super::left_behind::{self, LeftBehind};
use super::passed_through::PassedThrough;
use super::readying;
use super::restart::{Next, Restarts};
use super::terminal::{self, Terminal};
use super::{cannot_run, command, name};
use crate::args::{Restart, ServeArgs};
use crate::cluster::{Active, Hearing};
use crate::exit::{self, Failure};
use crate::guard::{announce_shutdown, watch};
use crate::hangup::Hangups;
use crate::ready::Readiness;
use crate::signals::{Inherited, Shutdown, Stream, asks_to_end, die_of};
use crate::state::{LastEnd, StateFile};

/// How long those may take to end that hold the lock still, when all else has ended.
const GRACE: Duration = Duration::from_secs(1);

/// How long a server may take to end that somebody else may have asked to.
const REJOIN: Duration = Duration::from_secs(10);

/// How long after a shell has continued llmlb that is what has woken it.
const SAME_WAKE: Duration = Duration::from_millis(500);

pub(crate) async fn run(
    mut lock: ServerLock,
    args: &ServeArgs,
    readiness: &Readiness,
    active: Option<Active>,
    shutdown: Shutdown,
    hangups: Hangups,
) -> Result<u8, Failure> {
    let mut told = Told {
        shutdown,
        child_changed: Stream::listen_anyway(Signal::SIGCHLD).map_err(failed)?,
        passed_on: PassedOn::listen(args.detach, hangups).map_err(failed)?,
        woken: Stream::listen_anyway(Signal::SIGCONT).map_err(failed)?,
        resumed: None,
    };
    let terminal = Terminal::find();
    let mut restarts = match args.supervision.restart {
        Restart::No => Restarts::new(0),
        Restart::OnFailure => Restarts::new(args.supervision.restart_max),
    };
    let mut state = StateFile::beside(&lock);
    loop {
        let mut life = live(
            &mut lock,
            &mut state,
            args,
            readiness,
            active.as_ref(),
            &mut told,
            terminal.as_ref(),
        )
        .await?;
        let lost = active.as_ref().and_then(Active::failure);
        if args.supervision.restart == Restart::OnFailure && life.has_failed() && lost.is_none() {
            match restarts.failed(Instant::now()) {
                // The lock is ours meanwhile: nobody else gets the port.
                Next::Pause(pause, number) => {
                    state.ended(lock.info(), life.end());
                    let max = args.supervision.restart_max;
                    warn!(
                        "{}; it is started again in {pause:?} (restart {number} of {max} within 10 \
                         minutes)",
                        life.why()
                    );
                    if told.pause(pause).await {
                        if let Some(lost) = active.as_ref().and_then(Active::failure) {
                            drop(state);
                            lock.release()?;
                            return Err(lost);
                        }
                        state.restarted();
                        continue;
                    }
                    announce_shutdown();
                    drop(state);
                    lock.release()?;
                    return Ok(exit::OK);
                }
                Next::GiveUp => error!(
                    "{}; it has failed too often to be started again (--restart-max {})",
                    life.why(),
                    args.supervision.restart_max
                ),
            }
        }
        readiness.untold().await;
        drop(state);
        if !give_back(lock) {
            life.left_behind = LeftBehind::Alive;
        }
        if let Some(active) = active {
            let has_ended = !matches!(life.left_behind, LeftBehind::Alive);
            active.release(has_ended).await;
        }
        return match lost {
            Some(lost) => Err(lost),
            None => life.outcome(),
        };
    }
}

/// Whether nobody holds the lock any more; else the file stays. What the server started as another
/// user may neither be seen nor ended.
fn give_back(mut lock: ServerLock) -> bool {
    let reclaimed = lock.reclaim(GRACE);
    let released = lock.release();
    let is_held = matches!(&released, Err(LockError::ReleaseFailed(e)) if is_busy(e));
    let is_told = |e: &LockError| is_held && matches!(e, LockError::StopFailed(e) if is_busy(e));
    // The server's exit code tells its caller more than these would.
    let reclaimed = reclaimed.err().filter(|e| !is_told(e));
    for e in reclaimed.into_iter().chain(released.err()) {
        warn!("{e}");
    }
    !is_held
}

fn is_busy(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::ResourceBusy
}

fn failed(e: io::Error) -> Failure {
    Failure::new(exit::FAILURE, format!("cannot watch server: {e}"))
}

/// What llmlb is told while it supervises.
struct Told {
    shutdown: Shutdown,
    child_changed: Stream,
    passed_on: PassedOn,
    /// `llmlb stop` wakes us before it asks the server.
    woken: Stream,
    /// When a shell has continued us, which wakes us as well.
    resumed: Option<Instant>,
}

impl Told {
    /// Whether a wake is that of a shell.
    fn is_resumed(&self) -> bool {
        self.resumed.is_some_and(|at| at.elapsed() < SAME_WAKE)
    }

    /// Whether nobody wants an end meanwhile.
    async fn pause(&mut self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(until) => return true,
                _ = self.shutdown.recv() => return false,
                () = self.woken.recv() => {
                    if !self.is_resumed() {
                        return false;
                    }
                }
                // There is nobody to pass it on to.
                _ = self.passed_on.recv() => {}
                // As PID 1 of a container.
                () = self.child_changed.recv() => drop(reap(Pid::from_raw(0))),
            }
        }
    }
}

/// How one start of the server went.
struct Life {
    status: WaitStatus,
    left_behind: LeftBehind,
    /// Whether anybody has asked for its end.
    requested: bool,
    too_late: Option<Failure>,
}

impl Life {
    /// As systemd sees it.
    fn has_failed(&self) -> bool {
        let clean = match self.status {
            WaitStatus::Exited(_, code) => code == 0,
            WaitStatus::Signaled(_, signal, _) => {
                asks_to_end(signal) && signal != Signal::SIGQUIT || signal == Signal::SIGPIPE
            }
            _ => false,
        };
        !self.requested
            && !matches!(self.left_behind, LeftBehind::Alive)
            && (!clean || self.too_late.is_some())
    }

    fn why(&self) -> String {
        match self.status {
            _ if self.too_late.is_some() => "Server was not ready in time".to_owned(),
            WaitStatus::Signaled(_, signal, _) => format!("Server was ended by {signal}"),
            WaitStatus::Exited(_, code) => format!("Server ended with exit code {code}"),
            _ => "Server ended".to_owned(),
        }
    }

    fn end(&self) -> LastEnd {
        let (exit_code, signal) = match self.status {
            WaitStatus::Exited(_, code) => (Some(code), None),
            WaitStatus::Signaled(_, signal, _) => (None, Some(signal.as_str().to_owned())),
            _ => (None, None),
        };
        LastEnd {
            at: Utc::now().trunc_subsecs(6),
            exit_code,
            signal,
            too_late: self.too_late.is_some(),
        }
    }

    /// The exit code that says the same; or dies of the same signal.
    fn outcome(self) -> Result<u8, Failure> {
        if let Some(failure) = self.too_late {
            return Err(failure);
        }
        Ok(match self.status {
            // All seems well, and is not: who asked for a server has none.
            WaitStatus::Exited(_, 0) if !matches!(self.left_behind, LeftBehind::Ended) => {
                exit::FAILURE
            }
            WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
            WaitStatus::Signaled(_, signal, _) if asks_to_end(signal) => die_of(signal as i32),
            WaitStatus::Signaled(_, signal, _) => exit::signalled(signal as i32),
            _ => exit::FAILURE,
        })
    }
}

/// From the server's start until all that it has left behind is gone. The lock is ours again then.
async fn live(
    lock: &mut ServerLock,
    state: &mut StateFile,
    args: &ServeArgs,
    readiness: &Readiness,
    active: Option<&Active>,
    told: &mut Told,
    terminal: Option<&Terminal>,
) -> Result<Life, Failure> {
    let watchdog = || active.and_then(Active::watchdog);
    let mut offspring = Offspring::prepare_beside(lock, watchdog().as_slice())?;
    let Spawned {
        server,
        output,
        mut hearing,
    } = spawn(lock, args, &offspring, active)?;
    offspring.started(server.as_raw().unsigned_abs());
    if terminal.is_some_and(|terminal| terminal.offer(server)) {
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
        "Guarding port {} for {} (PID: {server})",
        lock.info().port,
        name(args)
    );

    let probe = readying::probe(server.as_raw().unsigned_abs(), lock.info().port, args);
    state.begins(lock.info(), probe.url.as_ref());
    let state = RefCell::new(state);
    let following = readying::follow(probe, readiness, args, || state.borrow_mut().ready());
    let mut following = Box::pin(following);
    let mut too_late = None;
    readiness.begin();
    let ended = Ended::of(server);
    let mut ending = Ending::new(args.drain_timeout);
    let mut is_lost = false;
    let (mut rejoin, never) = (None, Instant::now());
    let mut watching = Box::pin(watch(lock));
    let status = loop {
        match reap(server).map_err(failed)? {
            // A stop that the terminal has nothing to do with is no end.
            #[allow(clippy::collapsible_match)]
            Some(WaitStatus::Stopped(_, by)) => {
                let continues = terminal.is_some_and(|terminal| terminal.stopped(server, by));
                if continues {
                    told.resumed = Some(Instant::now());
                    send(server, Signal::SIGCONT);
                }
            }
            Some(status) => break status,
            None => {}
        }
        tokio::select! {
            // Before the server's end that follows it.
            biased;
            () = told.woken.recv() => {
                if !told.is_resumed() {
                    ending.stopped();
                    readiness.leave();
                    // Should it be somebody else's SIGCONT, the server serves on.
                    rejoin = Some(Instant::now() + args.drain_timeout.max(REJOIN));
                }
            }
            () = sleep_until(rejoin.unwrap_or(never)), if rejoin.is_some() => {
                rejoin = None;
                if !ending.is_asked() && !ending.is_killed() {
                    readiness.rejoin();
                }
            }
            () = told.child_changed.recv() => {}
            () = ended.wait() => {}
            never = &mut watching => match never {},
            late = &mut following, if too_late.is_none() => {
                warn!("{}", late.remark());
                readiness.leave();
                ending.ask(server, Signal::SIGTERM);
                too_late = Some(late.failure());
            }
            (up, all) = heard(hearing.as_mut()) => state.borrow_mut().backends(up, all),
            number = told.passed_on.recv() => {
                send(server, number);
                if number == Signal::SIGTSTP {
                    // With the others of our group.
                    terminal::stop();
                    told.resumed = Some(Instant::now());
                    if let Some(terminal) = terminal {
                        terminal.offer(server);
                    }
                    send(server, Signal::SIGCONT);
                }
            }
            time = lost(active), if !is_lost => {
                is_lost = true;
                readiness.leave();
                ending.ask_within(server, time);
            }
            number = told.shutdown.recv() => {
                // Whoever finds it elsewhere is to look for another now.
                readiness.leave();
                ending.signalled(server, number);
            }
            () = ending.expired() => {
                warn!("Server still runs after {:?}, killing it", args.drain_timeout);
                ending.kill(server);
            }
        }
    };
    drop(watching);
    drop(following);
    readiness.lost();
    tokio::select! {
        biased;
        () = told.woken.recv() => {
            if !told.is_resumed() {
                ending.stopped();
            }
        }
        () = tokio::task::yield_now() => {}
    }
    if let Some(terminal) = terminal {
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
    let succeeded = matches!(status, WaitStatus::Exited(_, 0));
    let left_behind = left_behind::end(
        server,
        &mut offspring,
        &watchdog,
        &mut ending,
        succeeded,
        &mut told.shutdown,
        &mut told.child_changed,
    )
    .await;
    drop(offspring);
    readiness.ended();
    if let Some(output) = output {
        output.finish();
    }
    Ok(Life {
        status,
        left_behind,
        requested: ending.is_requested(),
        too_late,
    })
}

/// How many backends the load balancer says are up, of how many; never of another server.
async fn heard(hearing: Option<&mut Hearing>) -> (usize, usize) {
    match hearing {
        Some(hearing) => hearing.next().await,
        None => std::future::pending().await,
    }
}

/// Completes when the server has to end for another's sake, with the time that it has.
async fn lost(active: Option<&Active>) -> Duration {
    match active {
        Some(active) => active.lost().await,
        None => std::future::pending().await,
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

/// A server that has been started.
struct Spawned {
    server: Pid,
    output: Option<PassedThrough>,
    /// Of the load balancer.
    hearing: Option<Hearing>,
}

/// Starts the server as the leader of a process group of its own; it inherits the lock, and is
/// named by it from before it runs.
fn spawn(
    lock: &mut ServerLock,
    args: &ServeArgs,
    offspring: &Offspring,
    active: Option<&Active>,
) -> Result<Spawned, Failure> {
    let mut command = command(lock, args, active)?;
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot pass output on: {e}"));
    let mut output = None;
    if args.detach {
        let (writer, through) = PassedThrough::start().map_err(failed)?;
        command.stdout(writer.try_clone().map_err(failed)?);
        command.stderr(writer);
        output = Some(through);
    }
    #[cfg(target_os = "linux")]
    let hearing = match is_typed(args) {
        true => None,
        false => Some(Hearing::prepare(&mut command).map_err(failed)?),
    };
    #[cfg(not(target_os = "linux"))]
    let hearing = None;
    command.env(SERVER_ID_ENV, offspring.id().as_str());
    command.process_group(0);
    let hook = lock.child_hook()?;
    let entrance = offspring.entrance();
    let inherited = Inherited::get();
    // SAFETY: all of it is async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            inherited.restore()?;
            entrance.enter();
            hook.run()
        });
    }
    let spawned = match active {
        Some(active) => active.spawn(&mut command, offspring)?,
        None => command.spawn(),
    };
    let child = match spawned {
        Ok(child) => child,
        Err(e) => {
            // The file may name the child that could not become the server.
            lock.adopt()?;
            return Err(cannot_run(&args.command[0], &e));
        }
    };
    // It is reaped by hand, as only that tells when it is stopped.
    Ok(Spawned {
        server: Pid::from_raw(child.id().cast_signed()),
        output,
        hearing,
    })
}

/// Signals that mean something to servers and nothing to llmlb; SIGTSTP stops both.
struct PassedOn([(Signal, Stream); 5]);

impl PassedOn {
    /// In the background SIGHUP is for the log.
    fn listen(detached: bool, hangups: Hangups) -> io::Result<Self> {
        let listen = |number| Ok::<_, io::Error>((number, Stream::listen(number)?));
        Ok(Self([
            match detached {
                true => (Signal::SIGHUP, Stream::none()),
                false => (Signal::SIGHUP, hangups.into_stream()),
            },
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
