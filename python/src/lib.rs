//! `llmlb_lock._native`: core for Python. What a user sees is in `llmlb_lock/__init__.py`.

mod arguments;
#[cfg(target_os = "linux")]
mod cluster;
#[cfg(target_os = "linux")]
mod entry;
mod errors;
mod exit;
#[cfg(target_os = "linux")]
mod fork;
mod info;
mod lock;
#[cfg(target_os = "linux")]
mod log_queue;
mod logging;
#[cfg(windows)]
mod stop_event;
mod wait;

use std::path::PathBuf;

use llmlb_lock_core::{LockDir, Server, ServerState, StopOptions, StopOutcome};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::arguments::{Pid, Port, Seconds};
use crate::errors::to_python;
use crate::info::LockInfo;
use crate::wait::{Cancel, Interruption, detached};

/// Everything is behind a mutex or immutable, so free-threaded interpreters need no lock around it.
#[pymodule(gil_used = false)]
mod _native {
    use super::*;

    #[cfg(target_os = "linux")]
    #[pymodule_export]
    use crate::cluster::{
        Cluster, Exclusive, Interrupt, Registration, StopRequests, StopTicket, Watch,
    };
    #[pymodule_export]
    use crate::info::LockInfo;
    #[pymodule_export]
    use crate::lock::{Lock, acquire};
    #[cfg(windows)]
    #[pymodule_export]
    use crate::stop_event::StopEvent;
    #[pymodule_export]
    use crate::wait::Cancel;

    #[pymodule_export]
    use super::{
        check_port, end_left_overs, is_process_running, list_all_locks, lock_dir, lock_path,
        read_lock_info, server, servers, stop_process, stop_server,
    };

    #[pymodule_export]
    const GUARDED_PORT_ENV: &str = llmlb_lock_core::GUARDED_PORT_ENV;
    #[pymodule_export]
    const SERVER_ID_ENV: &str = llmlb_lock_core::SERVER_ID_ENV;
    #[pymodule_export]
    const LOCK_DIR_ENV: &str = llmlb_lock_core::LOCK_DIR_ENV;
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_init]
    fn init(m: &Bound<'_, PyModule>) -> PyResult<()> {
        #[cfg(target_os = "linux")]
        fork::register(m)?;
        exit::register(m)
    }
}

/// `None` is the default directory, which the environment may change from call to call.
fn locks_in(directory: Option<PathBuf>) -> LockDir {
    directory.map_or_else(LockDir::default, LockDir::new)
}

#[pyfunction]
fn check_port(port: Port) -> u16 {
    port.0
}

#[pyfunction]
fn lock_dir(directory: Option<PathBuf>) -> PathBuf {
    locks_in(directory).path().to_path_buf()
}

#[pyfunction]
fn lock_path(directory: Option<PathBuf>, port: Port) -> PathBuf {
    locks_in(directory).lock_path(port.0)
}

#[pyfunction]
fn read_lock_info(
    py: Python<'_>,
    directory: Option<PathBuf>,
    port: Port,
) -> PyResult<Option<LockInfo>> {
    let read = detached(py, || locks_in(directory).read_lock_info(port.0))?;
    let info = read.map_err(|e| to_python(py, &e))?;
    Ok(info.map(LockInfo::from))
}

#[pyfunction]
fn list_all_locks(py: Python<'_>, directory: Option<PathBuf>) -> PyResult<Vec<LockInfo>> {
    let locks = detached(py, || locks_in(directory).list_all_locks())?;
    Ok(locks.into_iter().map(LockInfo::from).collect())
}

/// Port, path, info, state, owner: the fields of Python's `Server`.
type ServerFields = (u16, PathBuf, Option<LockInfo>, &'static str, Option<String>);

fn fields(server: Server) -> ServerFields {
    let (state, owner) = match server.state {
        ServerState::Running => ("running", None),
        ServerState::Held => ("held", None),
        ServerState::Stale => ("stale", None),
        ServerState::Unreadable { owner } => ("unreadable", owner),
        // A state that a newer core adds: there is a file, and that is all that can be said.
        _ => ("held", None),
    };
    let info = server.info.map(LockInfo::from);
    (server.port, server.path, info, state, owner)
}

#[pyfunction]
fn servers(py: Python<'_>, directory: Option<PathBuf>) -> PyResult<Vec<ServerFields>> {
    let servers = detached(py, || locks_in(directory).servers())?;
    let servers = servers.map_err(|e| to_python(py, &e))?;
    Ok(servers.into_iter().map(fields).collect())
}

#[pyfunction]
fn server(
    py: Python<'_>,
    directory: Option<PathBuf>,
    port: Port,
) -> PyResult<Option<ServerFields>> {
    let server = detached(py, || locks_in(directory).server(port.0))?;
    Ok(server.map_err(|e| to_python(py, &e))?.map(fields))
}

#[pyfunction]
fn is_process_running(pid: Pid) -> bool {
    pid.0.is_some_and(llmlb_lock_core::is_process_running)
}

#[pyfunction]
fn stop_process(py: Python<'_>, pid: Pid) -> PyResult<()> {
    // 0 is refused by core, as every number that is no process id.
    let Err(e) = detached(py, || llmlb_lock_core::stop_process(pid.0.unwrap_or(0)))? else {
        return Ok(());
    };
    Err(match e.raw_os_error() {
        // OSError itself becomes ProcessLookupError, PermissionError and so on.
        Some(errno) => PyOSError::new_err((errno, strerror(py, errno)?)),
        None => PyValueError::new_err(e.to_string()),
    })
}

fn strerror(py: Python<'_>, errno: i32) -> PyResult<String> {
    py.import("os")?
        .call_method1("strerror", (errno,))?
        .extract()
}

/// The PIDs of those that were ended.
#[pyfunction]
fn end_left_overs(
    py: Python<'_>,
    directory: Option<PathBuf>,
    port: Port,
    grace: Seconds,
) -> PyResult<Vec<u32>> {
    let ended = detached(py, || locks_in(directory).end_left_overs(port.0, grace.0))?;
    let ended = ended.map_err(|e| to_python(py, &e))?;
    Ok(ended.into_iter().map(|left_over| left_over.pid).collect())
}

/// Kind, info and whether it was forced: what Python's outcome classes are made of.
type OutcomeFields = (&'static str, Option<LockInfo>, bool);

#[pyfunction]
fn stop_server(
    py: Python<'_>,
    directory: Option<PathBuf>,
    port: Port,
    timeout: Seconds,
    force: bool,
) -> PyResult<OutcomeFields> {
    let options = StopOptions::default().timeout(timeout.0).force(force);
    let mut interruption = Interruption::new(None::<&Cancel>);
    let stopped = detached(py, || {
        locks_in(directory).stop_interruptible(port.0, &options, || interruption.happened())
    })?;
    let outcome = stopped.map_err(|e| interruption.error().unwrap_or_else(|| to_python(py, &e)))?;
    match outcome {
        StopOutcome::Stopped { info, forced, .. } => Ok(("stopped", Some(info.into()), forced)),
        StopOutcome::NotRunning => Ok(("not_running", None, false)),
        StopOutcome::StaleCleaned { info } => {
            Ok(("stale_cleaned", info.map(LockInfo::from), false))
        }
        StopOutcome::LeftOversEnded { .. } => Ok(("left_overs_ended", None, false)),
        StopOutcome::TimedOut { info } => Ok(("timed_out", Some(info.into()), false)),
        other => Err(PyOSError::new_err(format!("unknown outcome: {other:?}"))),
    }
}
