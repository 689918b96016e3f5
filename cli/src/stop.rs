//! `llmlb stop`: core's `stop_server` in words, for one port or all.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use llmlb_lock_core::{LockDir, LockError, Server, ServerState, StopOptions, StopOutcome};
use tracing::subscriber::NoSubscriber;

use crate::args::StopArgs;
use crate::exit::{self, Failure};
#[cfg(unix)]
use crate::state::Beside;
use crate::{log, output, owner, pool};

/// How many are stopped side by side.
const STOPS: usize = 128;

pub(crate) fn run(args: &StopArgs) -> Result<u8, Failure> {
    let locks = LockDir::default();
    let options = StopOptions::default()
        .timeout(args.timeout)
        .force(args.force);
    match args.port {
        Some(port) => {
            stop_one(&locks, port, &options, &progress())?;
            Ok(exit::OK)
        }
        None => stop_all(&locks, &options),
    }
}

fn stop_one(
    locks: &LockDir,
    port: u16,
    options: &StopOptions,
    progress: &MultiProgress,
) -> Result<(), Failure> {
    // Above what moves, or it would be torn.
    let line = |text: &str| progress.suspend(|| output::line(text));
    // What can't be said keeps nobody from being stopped: that is told afterwards.
    let mut said = None;
    let server = locks.server(port)?;
    if let Some(server) = &server
        && server.state == ServerState::Running
        && let Some(info) = &server.info
    {
        said = Some(line(&format!(
            "Stopping server on port {port} (PID: {})...",
            info.pid
        )));
    }
    // What is left behind is not waited for.
    let spinner = server
        .filter(|server| server.state != ServerState::Stale)
        .map(|_| spin(progress, port));
    let outcome = stop_and_clear(locks, port, options);
    if let Some(spinner) = spinner {
        spinner.finish_and_clear();
        progress.remove(&spinner);
    }
    let outcome = outcome?;
    if let (StopOutcome::Stopped { info, .. }, None) = (&outcome, &said) {
        line(&format!("Port {port} was held by PID {}", info.pid))?;
    }
    if let StopOutcome::Stopped {
        left_overs: left_overs @ 1..,
        ..
    } = outcome
    {
        let processes = if left_overs == 1 {
            "process"
        } else {
            "processes"
        };
        line(&format!(
            "Ended {left_overs} {processes} that the server left behind"
        ))?;
    }
    let told = match outcome {
        StopOutcome::Stopped { forced: false, .. } => line("Server stopped successfully"),
        // Without being told to, core kills on Windows alone.
        StopOutcome::Stopped {
            info, forced: true, ..
        } if !options.force => line(&format!(
            "Server terminated: it does not listen for stop requests (PID: {})",
            info.pid
        )),
        StopOutcome::Stopped {
            info, forced: true, ..
        } => line(&format!(
            "Server killed: it did not stop within {:?} (PID: {})",
            options.timeout, info.pid
        )),
        StopOutcome::LeftOversEnded { left_overs } => line(&format!(
            "No server running on port {port}; ended {}, left behind by a killed one",
            output::processes(&left_overs)
        )),
        StopOutcome::NotRunning => line(&format!("No server running on port {port}")),
        StopOutcome::StaleCleaned { .. } => line(&format!(
            "No server running on port {port}; removed the lock file it left behind"
        )),
        StopOutcome::TimedOut { info } => Err(Failure::new(
            exit::FAILURE,
            format!(
                "Server on port {port} (PID: {pid}) still runs after {timeout:?}\n\n{hint}",
                pid = info.pid,
                timeout = options.timeout,
                hint = if options.force {
                    "It was killed and has not ended: it may be waiting for a device".to_owned()
                } else {
                    format!(
                        "To wait longer: llmlb stop --port {port} --timeout SECS\n\
                         To kill it:     llmlb stop --port {port} --force"
                    )
                },
            ),
        )),
        other => Err(Failure::new(
            exit::FAILURE,
            format!("unexpected outcome: {other:?}"),
        )),
    };
    told.and(said.unwrap_or(Ok(())))
}

fn stop_and_clear(
    locks: &LockDir,
    port: u16,
    options: &StopOptions,
) -> Result<StopOutcome, LockError> {
    #[cfg(unix)]
    let beside = Beside::of(&locks.lock_path(port));
    let outcome = locks.stop_server(port, options);
    // A guard that was killed could not clear up, also where its server ended well.
    #[cfg(unix)]
    if let Ok(
        StopOutcome::Stopped { .. }
        | StopOutcome::StaleCleaned { .. }
        | StopOutcome::LeftOversEnded { .. },
    ) = outcome
    {
        beside.clear();
    }
    outcome
}

fn spin(progress: &MultiProgress, port: u16) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(format!("waiting for port {port}"));
    let spinner = progress.add(spinner);
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// Removes what servers left behind, in one line for all of it. A server that has such a port by now
/// is stopped, as all are. What fails is told of each.
fn remove_stale(locks: &LockDir, ports: &[u16], options: &StopOptions) -> Vec<Result<(), Failure>> {
    // They have been looked for, for all ports at once.
    let options = &options.clone().left_overs(false);
    let removed = pool::map(ports, STOPS, |&port| {
        // Each would be a line of its own.
        tracing::subscriber::with_default(NoSubscriber::default(), || {
            stop_and_clear(locks, port, options)
        })
    });
    let mut count = 0;
    let mut results = Vec::new();
    for outcome in removed {
        match outcome {
            Ok(outcome) => {
                count += usize::from(matches!(outcome, StopOutcome::StaleCleaned { .. }))
            }
            Err(e) => results.push(Err(e.into())),
        }
    }
    results.push(output::line(&format!(
        "Removed {count} lock files that servers left behind"
    )));
    results
}

fn stop_all(locks: &LockDir, options: &StopOptions) -> Result<u8, Failure> {
    let servers = locks.servers()?;
    let (stale, live): (Vec<_>, Vec<_>) = servers
        .iter()
        // Another user's is not ours to stop, and no reason to fail.
        .filter(|server| !matches!(server.state, ServerState::Unreadable { .. }))
        .filter(|server| owner::is_ours(&server.path))
        .partition(|server| server.state == ServerState::Stale);
    let ports_of = |servers: Vec<&Server>| servers.iter().map(|server| server.port).collect();
    let (mut stale, mut ports): (Vec<u16>, Vec<u16>) = (ports_of(stale), ports_of(live));
    // What killed servers have left needs no lock file. Who lives is stopped, whatever fails here.
    let left_overs = locks.left_overs();
    let mut results: Vec<Result<(), Failure>> = Vec::new();
    let left_overs = left_overs.unwrap_or_else(|e| {
        results.push(Err(e.into()));
        Vec::new()
    });
    ports.extend(left_overs.iter().map(|left_over| left_over.port));
    ports.sort_unstable();
    ports.dedup();
    stale.retain(|port| ports.binary_search(port).is_err());
    if stale.len() == 1 {
        ports.append(&mut stale);
    }
    if ports.is_empty() && stale.is_empty() && results.is_empty() {
        output::line("No servers running")?;
        return Ok(exit::OK);
    }
    let is_unnamed = |port: &u16| {
        let found = servers.binary_search_by_key(port, |server| server.port);
        found.is_ok_and(|index| servers[index].state == ServerState::Held)
    };
    let (unnamed, ports): (Vec<u16>, Vec<u16>) = ports.into_iter().partition(is_unnamed);
    let progress = &progress();
    let stop = |&port: &u16| stop_one(locks, port, options, progress);
    results.extend(pool::map(&ports, STOPS, stop));
    // All processes are gone through to find who is named nowhere, and one may hold many locks.
    for port in unnamed {
        match locks.server(port) {
            Ok(Some(server)) if server.state == ServerState::Stale => stale.push(port),
            Ok(None) => {}
            _ => results.push(stop(&port)),
        }
    }
    if !stale.is_empty() {
        results.extend(remove_stale(locks, &stale, options));
    }
    output::joined(results)?;
    Ok(exit::OK)
}

/// Moves on a terminal alone.
fn progress() -> MultiProgress {
    let target = match io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let progress = MultiProgress::with_draw_target(target);
    log::keep_above(&progress);
    progress
}
