//! Between those who log and where the log goes. A reader that has stopped, as a pipe's or a
//! terminal's may, stops the thread that writes and nobody else; what does not fit in between
//! is lost, and counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::lost::Lost;

/// Bytes that may wait, some thousand requests' lines.
const ROOM: usize = 1024 * 1024;

/// How long those who end wait for the last words to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often a descriptor that does not block is tried.
const STEP: Duration = Duration::from_millis(10);

pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<Line>,
    /// Of all lines.
    bytes: usize,
    /// Lines that found no room after the last one that did.
    lost: usize,
    is_writing: bool,
}

struct Line {
    text: Vec<u8>,
    lost_before: usize,
}

impl State {
    fn push(&mut self, text: &[u8]) {
        self.bytes += text.len();
        let text = text.to_vec();
        let lost_before = mem::take(&mut self.lost);
        self.lines.push_back(Line { text, lost_before });
    }

    fn is_drained(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.is_writing
    }
}

impl Queue {
    /// With a thread that writes what is put into it, for as long as the process lives.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let queue = Arc::new(Self {
            state: Mutex::default(),
            filled: Condvar::new(),
            drained: Condvar::new(),
        });
        let own = Arc::clone(&queue);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || own.write())?;
        Ok(queue)
    }

    /// Takes the line if there is room. Once one was lost the next ones are, until half is free: a
    /// few long gaps, no many short ones.
    pub(super) fn offer(&self, line: &[u8]) {
        let mut state = self.state();
        let room = match state.lost {
            0 => ROOM,
            _ => ROOM / 2,
        };
        if state.bytes > 0 && state.bytes + line.len() > room {
            state.lost += 1;
            return;
        }
        state.push(line);
        self.filled.notify_one();
    }

    /// Takes it in any case.
    pub(super) fn put(&self, line: &[u8]) {
        self.state().push(line);
        self.filled.notify_one();
    }

    /// Waits until all is written, if it is read.
    pub(super) fn flush(&self) {
        let waits = |state: &mut State| !state.is_drained();
        let waited = self
            .drained
            .wait_timeout_while(self.state(), LAST_WORDS, waits);
        drop(waited);
    }

    fn write(&self) {
        let mut lost = Lost::new("lines of the log", |_| 1);
        loop {
            let line = self.next();
            lost.add(line.lost_before, "nobody has read them in time");
            lost.write(&line.text, write);
        }
    }

    /// The one before it is written. There is none with what was lost last.
    fn next(&self) -> Line {
        let mut state = self.state();
        state.is_writing = false;
        if state.is_drained() {
            self.drained.notify_all();
        }
        let waits = |state: &mut State| state.is_drained();
        let waited = self.filled.wait_while(state, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_writing = true;
        let line = state.lines.pop_front();
        let line = line.unwrap_or_else(|| Line {
            text: Vec::new(),
            lost_before: mem::take(&mut state.lost),
        });
        state.bytes -= line.text.len();
        line
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(text: &[u8]) -> io::Result<usize> {
    loop {
        match io::stderr().write(text) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(STEP),
            result => return result,
        }
    }
}
