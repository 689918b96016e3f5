//! Runs any server command under the guard.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use llmlb_lock_core::{GUARDED_PORT_ENV, LockError, ServerLock};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, killpg, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::serve::announce_shutdown;
use crate::signals::Shutdown;

/// How long what the server leaves behind may take to end.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    mut lock: ServerLock,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot watch server: {e}"));
    let mut child_changed = signal(SignalKind::child()).map_err(failed)?;
    let mut passed_on = PassedOn::listen().map_err(failed)?;
    let terminal = Terminal::find();
    let server = spawn(&mut lock, args)?;
    if let Some(terminal) = &terminal {
        terminal.give_to(server);
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

    let mut deadline: Option<Instant> = None;
    let status = loop {
        match waitpid(server, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Stopped(..)) => {
                if let Some(terminal) = &terminal {
                    terminal.stop_with(server);
                }
            }
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => break status,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(failed(e.into())),
        }
        let drained = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = child_changed.recv() => {}
            number = passed_on.recv() => send(server, number),
            number = shutdown.recv() => {
                if deadline.is_some() {
                    warn!("Second signal, ending at once");
                    send(server, Signal::SIGKILL);
                } else {
                    announce_shutdown();
                    deadline = Some(Instant::now() + args.drain_timeout);
                    if let Ok(signal) = Signal::try_from(number) {
                        send(server, signal);
                    }
                }
            }
            () = drained => {
                warn!("Server still runs after {:?}, killing it", args.drain_timeout);
                send(server, Signal::SIGKILL);
                // Only a process that can't be killed for now comes here again.
                deadline = Some(Instant::now() + GRACE);
            }
        }
    };
    if let Some(terminal) = &terminal {
        terminal.take_back();
    }
    end_group(server).await;
    if let Err(e) = lock.reclaim(GRACE) {
        warn!("{e}");
    }
    lock.release()?;
    Ok(match status {
        WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).unwrap_or(u8::MAX),
        WaitStatus::Signaled(_, signal, _) => exit::signalled(signal as i32),
        _ => exit::FAILURE,
    })
}

/// Starts the server as the leader of a process group of its own; it inherits the lock, and is
/// named by it from before it runs.
fn spawn(lock: &mut ServerLock, args: &ServeArgs) -> Result<Pid, Failure> {
    let port = lock.info().port.to_string();
    let fill = |arg: &OsString| {
        let arg = replace(arg.as_bytes(), b"{port}", port.as_bytes());
        OsString::from_vec(replace(&arg, b"{host}", args.host.as_bytes()))
    };
    let (program, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| Failure::new(exit::USAGE, "no command to run"))?;
    let mut command = Command::new(program);
    command
        .args(arguments.iter().map(fill))
        .env("PORT", &port)
        .env("HOST", &args.host)
        .env("LLMLB_PORT", &port)
        .env("LLMLB_HOST", &args.host)
        .env(GUARDED_PORT_ENV, &port)
        .process_group(0);
    let hook = lock.child_hook()?;
    // SAFETY: the hook is async-signal-safe.
    unsafe { command.pre_exec(move || hook.run()) };
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            // The file may name the child that could not become the server.
            lock.adopt()?;
            return Err(cannot_run(program, &e));
        }
    };
    // It is reaped by hand, as only that tells when it is stopped.
    Ok(Pid::from_raw(child.id().cast_signed()))
}

fn cannot_run(program: &OsStr, e: &io::Error) -> Failure {
    let program = program.display();
    if e.kind() == io::ErrorKind::NotFound {
        let hint = "check its spelling and PATH";
        let message = format!("cannot run {program}: no such command; {hint}");
        return Failure::new(exit::NOT_FOUND, message);
    }
    Failure::new(exit::NOT_EXECUTABLE, format!("cannot run {program}: {e}"))
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            result.extend_from_slice(to);
            rest = after;
        } else {
            result.push(first);
            rest = tail;
        }
    }
    result
}

fn send(group: Pid, signal: Signal) {
    match killpg(group, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => warn!("Cannot send {signal} to process group {group}: {e}"),
    }
}

/// Ends what the server left behind in its process group. Members keep the group's number from
/// being used again, so that it can't come to mean another one.
async fn end_group(group: Pid) {
    let started = Instant::now();
    let mut asked = false;
    let mut step = Duration::from_micros(200);
    while killpg(group, None) != Err(Errno::ESRCH) {
        if !asked {
            debug!("Ending what the server left behind");
            send(group, Signal::SIGTERM);
            asked = true;
        }
        if started.elapsed() >= GRACE {
            send(group, Signal::SIGKILL);
        }
        if started.elapsed() >= 2 * GRACE {
            warn!("Process group {group} can't be ended");
            return;
        }
        sleep(step).await;
        step = (step * 2).min(Duration::from_millis(10));
    }
}

/// Signals that mean something to servers and nothing to llmlb.
struct PassedOn(Vec<(Signal, tokio::signal::unix::Signal)>);

impl PassedOn {
    fn listen() -> io::Result<Self> {
        let signals = [
            Signal::SIGHUP,
            Signal::SIGQUIT,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
        ];
        let listen = |number| Ok((number, signal(SignalKind::from_raw(number as i32))?));
        signals
            .into_iter()
            .map(listen)
            .collect::<io::Result<_>>()
            .map(Self)
    }

    async fn recv(&mut self) -> Signal {
        std::future::poll_fn(|context| {
            for (number, stream) in &mut self.0 {
                if stream.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// The terminal that llmlb was started on, in the foreground. The server's group gets it, so that
/// it can read, and that Ctrl-C reaches it once and directly.
struct Terminal {
    own: Pid,
}

impl Terminal {
    fn find() -> Option<Self> {
        let stdin = io::stdin();
        let own = getpgrp();
        let foreground = stdin.is_terminal() && tcgetpgrp(&stdin) == Ok(own);
        foreground.then_some(Self { own })
    }

    fn give_to(&self, group: Pid) {
        self.set_foreground(group);
        // It may have asked to read before it was its turn.
        send(group, Signal::SIGCONT);
    }

    fn take_back(&self) {
        self.set_foreground(self.own);
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
        self.take_back();
        // Comes back when the shell continues us, in the foreground or in the background.
        if raise(Signal::SIGSTOP).is_ok() {
            if tcgetpgrp(io::stdin()) == Ok(self.own) {
                self.set_foreground(server);
            }
            send(server, Signal::SIGCONT);
        }
    }
}

/// Tells systemd, where it asked (`Type=notify`).
pub(crate) fn notify_ready() {
    #[cfg(target_os = "linux")]
    notify(sd_notify::NotifyState::Ready);
}

/// Tells systemd, where it asked.
pub(crate) fn notify_stopping() {
    #[cfg(target_os = "linux")]
    notify(sd_notify::NotifyState::Stopping);
}

#[cfg(target_os = "linux")]
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        warn!("Cannot notify systemd: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn placeholders_are_replaced_wherever_they_stand() {
        let fill = |text: &str| replace(text.as_bytes(), b"{port}", b"8000");
        assert_eq!(
            fill("--url=http://h:{port}/{port}"),
            b"--url=http://h:8000/8000"
        );
        assert_eq!(fill("{port"), b"{port");
        assert_eq!(fill(""), b"");
    }
}
