//! The log, on stderr: what is logged, and what a line of it looks like. Apart from results and
//! remarks, which are for whoever has typed a command.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, OnceLock};

use chrono::{SecondsFormat, Utc};
use indicatif::MultiProgress;
use llmlb_gateway::ACCESS_LOG;
use tracing::Metadata;
use tracing::level_filters::{LevelFilter, ParseLevelFilterError};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

mod lost;
mod queue;

#[cfg(unix)]
pub(crate) use lost::Lost;
use queue::Queue;

/// A warning as it stands in the log, for who writes past it.
pub(crate) fn warning(text: &str) -> String {
    format!("{}  WARN {text}\n", now())
}

/// In UTC, and as exact as in the access log.
fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// What moves on the terminal while something is waited for.
static MOVING: OnceLock<MultiProgress> = OnceLock::new();

/// From here on each line of the log stands above that, whole.
pub(crate) fn keep_above(moving: &MultiProgress) {
    let _ = MOVING.set(moving.clone());
}

/// Set where nobody is to wait for the log's reader.
static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// From here on what is logged is written by a thread of its own. A fork takes no thread along.
pub(crate) fn hold_nobody_up() {
    // Without one, those who log write themselves.
    if let Ok(queue) = Queue::start() {
        let _ = QUEUE.set(queue);
    }
}

/// Writes what is no line of the log after those that have gone before.
pub(crate) fn put(line: &[u8]) {
    match QUEUE.get() {
        Some(queue) => queue.put(line),
        // One that nobody can read is no reason to fail.
        None => drop(io::stderr().write_all(line)),
    }
}

/// Before the process ends, or its output goes elsewhere: waits until all is written, a second at
/// most.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            queue.offer(line);
            return Ok(line.len());
        }
        let write = || io::stderr().write(line);
        match MOVING.get() {
            Some(moving) => moving.suspend(write),
            None => write(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

struct Stamp;

impl FormatTime for Stamp {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&now())
    }
}

/// Logs to stderr, in colours where that is a terminal and stays one: what `LLMLB_LOG` asks for, else
/// what the command needs.
pub(crate) fn start(default: LevelFilter, may_colour: bool) {
    let wanted = env::var("LLMLB_LOG").ok().filter(|text| !text.is_empty());
    // A bare word is a level; as a target, which it could be too, it would silence all others.
    let level = |text: &str| {
        let level: LevelFilter = text.parse()?;
        Ok::<_, ParseLevelFilterError>(Targets::new().with_default(level))
    };
    let parse = |text: &str| match level(text) {
        Ok(filter) => Ok(filter),
        Err(e) if !text.contains('=') => Err(e.to_string()),
        Err(_) => text.parse::<Targets>().map_err(|e| e.to_string()),
    };
    let (filter, mistake) = match wanted.as_deref().map(parse).transpose() {
        Ok(filter) => (filter, None),
        Err(e) => (None, Some(e)),
    };
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(default));
    let colour = may_colour
        && io::stderr().is_terminal()
        && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let is_access = |metadata: &Metadata<'_>| metadata.target() == ACCESS_LOG;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(|| Stderr)
        .with_timer(Stamp)
        .with_ansi(colour)
        .with_target(false)
        .with_filter(filter_fn(move |metadata| !is_access(metadata)));
    // Lines of JSON, for programs: nothing stands before them.
    let access = tracing_subscriber::fmt::layer()
        .with_writer(|| Stderr)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_filter(filter_fn(is_access));
    tracing_subscriber::registry()
        .with(layer)
        .with(access)
        .with(filter)
        .init();
    if let Some(e) = mistake {
        tracing::warn!("LLMLB_LOG is not understood and has no effect: {e}");
    }
}
