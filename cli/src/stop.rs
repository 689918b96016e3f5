//! `llmlb stop`: core's `stop_server` in words, for one port or all.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use llmlb_lock_core::{LockDir, ServerState, StopOptions, StopOutcome};

use crate::args::StopArgs;
use crate::exit::{self, Failure};
use crate::output;

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
    let mut named = false;
    if let Some(server) = locks.server(port)?
        && server.state == ServerState::Running
        && let Some(info) = server.info
    {
        named = true;
        output::line(&format!(
            "Stopping server on port {port} (PID: {})...",
            info.pid
        ))?;
    }
    let spinner = ProgressBar::new_spinner().with_message(format!("waiting for port {port}"));
    let spinner = progress.add(spinner);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let outcome = locks.stop_server(port, options);
    spinner.finish_and_clear();
    let outcome = outcome?;
    if let (StopOutcome::Stopped { info, .. }, false) = (&outcome, named) {
        output::line(&format!("Port {port} was held by PID {}", info.pid))?;
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
        output::line(&format!(
            "Ended {left_overs} {processes} that the server left behind"
        ))?;
    }
    match outcome {
        StopOutcome::Stopped { forced: false, .. } => output::line("Server stopped successfully"),
        // Without being told to, core kills on Windows alone.
        StopOutcome::Stopped {
            info, forced: true, ..
        } if !options.force => output::line(&format!(
            "Server terminated: it does not listen for stop requests (PID: {})",
            info.pid
        )),
        StopOutcome::Stopped {
            info, forced: true, ..
        } => output::line(&format!(
            "Server killed: it did not stop within {:?} (PID: {})",
            options.timeout, info.pid
        )),
        StopOutcome::LeftOversEnded { left_overs } => output::line(&format!(
            "No server running on port {port}; ended {}, left behind by a killed one",
            output::processes(&left_overs)
        )),
        StopOutcome::NotRunning => output::line(&format!("No server running on port {port}")),
        StopOutcome::StaleCleaned { .. } => output::line(&format!(
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
    }
}

fn stop_all(locks: &LockDir, options: &StopOptions) -> Result<u8, Failure> {
    let servers = locks.servers()?;
    // Another user's is not ours to stop, and no reason to fail.
    let mut ports: Vec<u16> = servers
        .iter()
        .filter(|server| !matches!(server.state, ServerState::Unreadable { .. }))
        .map(|server| server.port)
        .collect();
    // What killed servers have left needs no lock file.
    ports.extend(locks.left_overs()?.iter().map(|left_over| left_over.port));
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        output::line("No servers running")?;
        return Ok(exit::OK);
    }
    let progress = &progress();
    let failures: Vec<Failure> = thread::scope(|scope| {
        let stops: Vec<_> = ports
            .iter()
            .map(|&port| scope.spawn(move || stop_one(locks, port, options, progress)))
            .collect();
        let results = stops.into_iter().map(|stop| {
            stop.join()
                .unwrap_or_else(|_| Err(Failure::new(exit::FAILURE, "a stop panicked")))
        });
        results.filter_map(Result::err).collect()
    });
    if failures.is_empty() {
        return Ok(exit::OK);
    }
    let messages: Vec<_> = failures
        .into_iter()
        .map(|failure| failure.message)
        .collect();
    Err(Failure::new(exit::FAILURE, messages.join("\n\nError: ")))
}

/// Moves on a terminal alone.
fn progress() -> MultiProgress {
    MultiProgress::with_draw_target(if io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    })
}
