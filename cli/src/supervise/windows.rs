//! The server lives in a job object that ends with llmlb, which stays the holder of the lock.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use llmlb_lock_core::{ServerJob, ServerLock, StopEvent};
use process_wrap::tokio::{
    ChildWrapper, CommandWrap, CommandWrapper, CreationFlags, JobObject, KillOnDrop,
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};
use windows::Win32::System::Console::{CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;

use super::{cannot_run, command, readying};
use crate::args::ServeArgs;
use crate::cluster::Active;
use crate::exit::{self, Failure};
use crate::guard::announce_shutdown;
use crate::hangup::Hangups;
use crate::ready::Readiness;
use crate::signals::Shutdown;

/// How long what was killed may take to be gone, as processes inside a driver do.
const GRACE: Duration = Duration::from_secs(10);

/// How long what belongs to a server that has ended by itself, such as its console, may outlive it.
const SETTLE: Duration = Duration::from_millis(200);

pub(crate) async fn run(
    mut lock: ServerLock,
    args: &ServeArgs,
    readiness: &Readiness,
    _: Option<Active>,
    mut shutdown: Shutdown,
    _: Hangups,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot watch server: {e}"));
    let job = Arc::new(ServerJob::create().map_err(failed)?);
    let mut child = spawn(&lock, &job, command(&lock, args, None)?, args)?;
    let server = child.id().unwrap_or_default();
    info!(
        "Guarding port {} for {:?} (PID: {server})",
        lock.info().port,
        args.command[0]
    );

    let probe = readying::probe(server, lock.info().port, args);
    let mut following = Box::pin(readying::follow(probe, readiness, args, || {}));
    let mut too_late = None;
    let mut deadline: Option<Instant> = None;
    let status = loop {
        let drained = async {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The server's own end; the job's would be that of all it has started.
            status = child.inner_mut().wait() => break status.map_err(failed)?,
            late = &mut following, if too_late.is_none() => {
                warn!("{}", late.remark());
                too_late = Some(late.failure());
                deadline = Some(Instant::now() + args.drain_timeout);
                if ask_to_end(server).is_err() {
                    job.terminate().map_err(failed)?;
                }
            }
            _ = shutdown.recv() => {
                if deadline.is_some() {
                    warn!("Second signal, ending at once");
                    job.terminate().map_err(failed)?;
                    continue;
                }
                announce_shutdown();
                deadline = Some(Instant::now() + args.drain_timeout);
                if let Err(e) = ask_to_end(server) {
                    warn!("Cannot ask the server to end, killing it: {e}");
                    job.terminate().map_err(failed)?;
                }
            }
            () = drained => {
                warn!("Server still runs after {:?}, killing it", args.drain_timeout);
                job.terminate().map_err(failed)?;
                // Only a process that can't be killed for now comes here again.
                deadline = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    };
    // A COMMAND that went to the background was to serve, and does so no longer.
    let escaped = deadline.is_none()
        && emptied(&job, SETTLE, false)
            .await
            .map_err(failed)?
            .is_some();
    if escaped {
        warn!(
            "The server left processes behind, ending them: a COMMAND has to stay in the foreground"
        );
    }
    // A process counts as a member of its job until nobody has it open.
    drop(child);
    match emptied(&job, GRACE, true).await.map_err(failed)? {
        None => lock.release()?,
        // It has the lock, which it inherited: the file says so, and stays.
        Some(left) => {
            warn!("PID {left} can't be killed for now, and keeps the port");
            lock.hand_over(left)?;
        }
    }
    readiness.lost();
    if let Some(failure) = too_late {
        return Err(failure);
    }
    // Codes above 255, such as those of crashes, don't fit an exit code of ours.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(match code {
        Some(exit::OK) if escaped => exit::FAILURE,
        code => code.unwrap_or(exit::FAILURE),
    })
}

/// Waits until nothing in the job lives. One that still does after `patience` is told.
async fn emptied(job: &ServerJob, patience: Duration, kill: bool) -> io::Result<Option<u32>> {
    let started = Instant::now();
    let mut step = Duration::from_micros(200);
    while let Some(&pid) = job.processes()?.first() {
        if started.elapsed() >= patience {
            return Ok(Some(pid));
        }
        if kill {
            // Again and again: one may have been started meanwhile.
            job.terminate()?;
        }
        sleep(step).await;
        step = (step * 2).min(Duration::from_millis(10));
    }
    Ok(None)
}

/// Puts the server into a job before it runs.
#[derive(Debug)]
struct Enter(Arc<ServerJob>);

impl CommandWrapper for Enter {
    fn wrap_child(
        &mut self,
        mut child: Box<dyn ChildWrapper>,
        _: &CommandWrap,
    ) -> io::Result<Box<dyn ChildWrapper>> {
        let handle = child.process_handle().ok_or(io::ErrorKind::Unsupported)?;
        if let Err(e) = self.0.add(handle) {
            child.start_kill()?;
            return Err(e);
        }
        Ok(child)
    }
}

/// Starts the server in a job object and in a process group of its own, for Ctrl-Break. It
/// inherits the lock: should llmlb be killed, the port stays guarded until the job has ended.
fn spawn(
    lock: &ServerLock,
    job: &Arc<ServerJob>,
    command: Command,
    args: &ServeArgs,
) -> Result<Box<dyn ChildWrapper>, Failure> {
    let mut command = CommandWrap::from(tokio::process::Command::from(command));
    command
        .wrap(KillOnDrop)
        .wrap(CreationFlags(CREATE_NEW_PROCESS_GROUP))
        // Before the next one, which has it start suspended and lets it go on.
        .wrap(Enter(Arc::clone(job)))
        .wrap(JobObject);
    // Nothing else is started meanwhile that could inherit it.
    lock.set_inheritable(true)?;
    let spawned = command.spawn();
    lock.set_inheritable(false)?;
    spawned.map_err(|e| cannot_run(&args.command[0], &e))
}

/// By its stop event if it listens there, else by Ctrl-Break, which needs a console.
fn ask_to_end(server: u32) -> io::Result<()> {
    match StopEvent::request(server) {
        Ok(true) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()), // it has just ended
        Ok(false) | Err(_) => {}
    }
    // SAFETY: takes numbers alone, and an unknown group is an error.
    unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, server) }.map_err(io::Error::other)
}
