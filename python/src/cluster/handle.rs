//! What lives in threads of Rust, as Python's objects have it: used by several threads at once,
//! closed by any of them, and untouched in a forked child, where those threads are not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use llmlb_lock_cluster::{ClusterError, Interrupt};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::cluster::call::{Ends, in_background, run};
use crate::fork;

pub(crate) struct Handle<T: Send + Sync + 'static> {
    state: Mutex<State<T>>,
    what: &'static str,
    generation: usize,
    /// What becomes of it without a word: in the background, as nobody waits for that.
    discard: fn(T),
}

struct State<T> {
    value: Option<Arc<T>>,
    /// By number: those who wait, to be ended when it is closed.
    waits: BTreeMap<u64, Interrupt>,
    next: u64,
}

impl<T: Send + Sync + 'static> Handle<T> {
    pub(crate) fn new(what: &'static str, value: T, discard: fn(T)) -> Self {
        Self {
            state: Mutex::new(State {
                value: Some(Arc::new(value)),
                waits: BTreeMap::new(),
                next: 0,
            }),
            what,
            generation: fork::generation(),
            discard,
        }
    }

    /// Held for an instant alone, and by nobody who waits for the interpreter.
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_ours() && self.state().value.is_some()
    }

    pub(crate) fn get(&self) -> PyResult<Arc<T>> {
        if !self.is_ours() {
            return Err(PyRuntimeError::new_err(format!(
                "the {} is the parent's, in whose threads it lives",
                self.what
            )));
        }
        let value = self.state().value.clone();
        value.ok_or_else(|| PyRuntimeError::new_err(format!("the {} is closed", self.what)))
    }

    /// Looks at it, without the interpreter's lock: it may be busy for an instant.
    pub(crate) fn look<R: Send>(
        &self,
        py: Python<'_>,
        look: impl FnOnce(&T) -> R + Send,
    ) -> PyResult<R> {
        let value = self.get()?;
        crate::wait::detached(py, || look(&value))
    }

    /// Waits, until signals, an interrupt or its end come between.
    pub(crate) fn wait<R: Send + 'static>(
        &self,
        py: Python<'_>,
        ends: &Ends,
        wait: impl FnOnce(&T, &Interrupt) -> Result<R, ClusterError> + Send + 'static,
    ) -> PyResult<R> {
        let value = self.get()?;
        let number = {
            let mut state = self.state();
            state.next += 1;
            let number = state.next;
            state.waits.insert(number, ends.interrupt.clone());
            number
        };
        let interrupt = ends.interrupt.clone();
        let result = run(py, ends, false, move || wait(&value, &interrupt));
        if self.is_ours() {
            self.state().waits.remove(&number);
        }
        result
    }

    /// Closes it, and is there when nobody has it any more.
    pub(crate) fn close(&self, py: Python<'_>) {
        if let Some(taken) = self.take() {
            py.detach(|| drop(taken.owned()));
        }
    }

    /// Closes it: whoever waits on it waits no longer, and nobody else has it.
    pub(crate) fn take(&self) -> Option<Taken<T>> {
        if !self.is_ours() {
            return None;
        }
        let (value, waits) = {
            let mut state = self.state();
            (state.value.take()?, std::mem::take(&mut state.waits))
        };
        Some(Taken { value, waits })
    }
}

/// What was closed, and those who still have it.
pub(crate) struct Taken<T> {
    value: Arc<T>,
    waits: BTreeMap<u64, Interrupt>,
}

impl<T> Taken<T> {
    /// Its only owner, when the others are gone.
    pub(crate) fn owned(self) -> T {
        for interrupt in self.waits.values() {
            interrupt.interrupt();
        }
        let mut value = self.value;
        loop {
            match Arc::try_unwrap(value) {
                Ok(value) => return value,
                Err(shared) => value = shared,
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl<T: Send + Sync + 'static> Drop for Handle<T> {
    fn drop(&mut self) {
        if let Some(taken) = self.take() {
            let discard = self.discard;
            in_background(move || discard(taken.owned()));
        } else if !self.is_ours() {
            let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(state.value.take());
        }
    }
}
