//! What threads of Rust log, on its way to Python. Apart from the log itself, since such a thread
//! never waits for the interpreter: one renews a lease, another may hold what a getter waits for.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use log::{Level, Record};
use pyo3::prelude::*;

use crate::entry::Entry;
use crate::fork;

/// A handler that hangs must not take all memory.
const LENGTH: usize = 1000;
/// A child that was forked has a queue of its own, for so many generations.
const GENERATIONS: usize = 16;

static QUEUES: [OnceLock<Option<SyncSender<Message>>>; GENERATIONS] =
    [const { OnceLock::new() }; GENERATIONS];

thread_local! {
    static PYTHON: Cell<bool> = const { Cell::new(false) };
}

struct Message {
    level: Level,
    text: String,
    file: Option<String>,
    line: Option<u32>,
}

/// Whether this thread has come from Python, and may go back there to log.
pub(crate) fn is_python_thread() -> bool {
    PYTHON.get()
}

/// Runs `f` as a part of the Python thread that this is.
pub(crate) fn in_python_thread<T>(f: impl FnOnce() -> T) -> T {
    let before = PYTHON.replace(true);
    let value = f();
    PYTHON.set(before);
    value
}

/// Does not wait: when the queue is full, that is that.
pub(crate) fn put(record: &Record<'_>) {
    let Some(queue) = QUEUES.get(fork::generation()) else {
        return;
    };
    if let Some(queue) = queue.get_or_init(start) {
        let _ = queue.try_send(Message {
            level: record.level(),
            text: record.args().to_string(),
            file: record.file().map(ToOwned::to_owned),
            line: record.line(),
        });
    }
}

fn start() -> Option<SyncSender<Message>> {
    let (queue, messages) = mpsc::sync_channel(LENGTH);
    thread::Builder::new()
        .name("llmlb-log".into())
        .spawn(move || pass_on(&messages))
        .ok()?;
    Some(queue)
}

fn pass_on(messages: &Receiver<Message>) {
    for message in messages {
        let Some(_entry) = Entry::new() else { return };
        Python::try_attach(|py| {
            in_python_thread(|| log(&message));
            // What a handler raises has nobody to go to.
            if let Some(raised) = PyErr::take(py) {
                raised.write_unraisable(py, None);
            }
        });
    }
}

fn log(message: &Message) {
    log::logger().log(
        &Record::builder()
            .args(format_args!("{}", message.text))
            .level(message.level)
            .target(crate::logging::NAME)
            .file(message.file.as_deref())
            .line(message.line)
            .build(),
    );
}
