//! Results go to stdout; everything else goes to stderr.

use std::collections::HashSet;
use std::io::{self, Write};
use std::process::ExitCode;

use llmlb_lock_core::LeftOver;

use crate::exit::{FAILURE, Failure, OK};
use crate::log;

/// Prints a result. A reader that has left (`llmlb status | head -1`) has all it wanted.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    match try_write(bytes) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(failed(&e)),
        _ => Ok(()),
    }
}

/// One line of it.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// For output without end: a reader that has left ends the program.
pub(crate) fn write_or_exit(bytes: &[u8]) -> Result<(), Failure> {
    match try_write(bytes) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(OK.into()),
        result => result.map_err(|e| failed(&e)),
    }
}

/// A remark, on stderr. One that nobody can read is no reason to fail.
pub(crate) fn note(text: &str) {
    log::put(format!("{text}\n").as_bytes());
}

/// Says why the program fails, which it then does.
pub(crate) fn report(failure: Failure) -> ExitCode {
    note(&format!("Error: {}", failure.message));
    failure.code.into()
}

/// "1 backend", "2 backends"
pub(crate) fn count(count: usize, what: &str) -> String {
    let end = if count == 1 { "" } else { "s" };
    format!("{count} {what}{end}")
}

/// One failure for all of those, none where there is none. What several failed of is said once.
pub(crate) fn joined(
    results: impl IntoIterator<Item = Result<(), Failure>>,
) -> Result<(), Failure> {
    let failures = results.into_iter().filter_map(Result::err);
    let mut seen = HashSet::new();
    let messages: Vec<_> = failures
        .map(|failure| failure.message)
        .filter(|message| seen.insert(message.clone()))
        .collect();
    match messages.is_empty() {
        true => Ok(()),
        false => Err(Failure::new(FAILURE, messages.join("\n\nError: "))),
    }
}

/// "1 process (PID: 12)", "2 processes (PIDs: 12, 13)"
pub(crate) fn processes(processes: &[LeftOver]) -> String {
    let pids: Vec<_> = processes
        .iter()
        .map(|process| process.pid.to_string())
        .collect();
    match &*pids {
        [pid] => format!("1 process (PID: {pid})"),
        pids => format!("{} processes (PIDs: {})", pids.len(), pids.join(", ")),
    }
}

fn try_write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

fn failed(e: &io::Error) -> Failure {
    Failure::new(FAILURE, format!("cannot write to stdout: {e}"))
}
