//! The server lives in a job object that ends with llmlb, which stays the holder of the lock.

use std::io;
use std::process::Command;
use std::time::Duration;

use llmlb_lock_core::{ServerLock, StopEvent};
use process_wrap::tokio::{ChildWrapper, CommandWrap, CreationFlags, JobObject, KillOnDrop};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use windows::Win32::System::Console::{CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;

use super::{cannot_run, command};
use crate::args::ServeArgs;
use crate::exit::{self, Failure};
use crate::guard::{announce_shutdown, notify_ready};
use crate::signals::Shutdown;

pub(crate) async fn run(
    lock: ServerLock,
    args: &ServeArgs,
    mut shutdown: Shutdown,
) -> Result<u8, Failure> {
    let failed = |e: io::Error| Failure::new(exit::FAILURE, format!("cannot watch server: {e}"));
    let mut job = spawn(&lock, command(&lock, args)?, args)?;
    let server = job.id().unwrap_or_default();
    info!(
        "Guarding port {} for {:?} (PID: {server})",
        lock.info().port,
        args.command[0]
    );
    notify_ready();

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
            status = job.inner_mut().wait() => break status.map_err(failed)?,
            _ = shutdown.recv() => {
                if deadline.is_some() {
                    warn!("Second signal, ending at once");
                    job.start_kill().map_err(failed)?;
                    continue;
                }
                announce_shutdown();
                deadline = Some(Instant::now() + args.drain_timeout);
                if let Err(e) = ask_to_end(server) {
                    warn!("Cannot ask the server to end, killing it: {e}");
                    job.start_kill().map_err(failed)?;
                }
            }
            () = drained => {
                warn!("Server still runs after {:?}, killing it", args.drain_timeout);
                job.start_kill().map_err(failed)?;
                // Only a process that can't be killed for now comes here again.
                deadline = Some(Instant::now() + Duration::from_secs(1));
            }
        }
    };
    // What the server leaves behind.
    job.start_kill().map_err(failed)?;
    lock.release()?;
    // Codes above 255, such as those of crashes, don't fit an exit code of ours.
    let code = status.code().map(u8::try_from);
    Ok(code.and_then(Result::ok).unwrap_or(exit::FAILURE))
}

/// Starts the server in a job object and in a process group of its own, for Ctrl-Break. It
/// inherits the lock: should llmlb be killed, the port stays guarded until the job has ended.
fn spawn(
    lock: &ServerLock,
    command: Command,
    args: &ServeArgs,
) -> Result<Box<dyn ChildWrapper>, Failure> {
    let mut command = CommandWrap::from(tokio::process::Command::from(command));
    command
        .wrap(KillOnDrop)
        .wrap(CreationFlags(CREATE_NEW_PROCESS_GROUP))
        .wrap(JobObject);
    // Nothing else is started meanwhile that could inherit it.
    lock.set_inheritable(true)?;
    let spawned = command.spawn();
    lock.set_inheritable(false)?;
    spawned.map_err(|e| cannot_run(args, &e))
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
