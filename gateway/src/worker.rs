//! Which of the workers a thread is. What belongs to one of them (the connections that its runtime
//! drives) is found by that.

use std::cell::Cell;

thread_local! {
    /// A program's own threads are all the first.
    static INDEX: Cell<usize> = const { Cell::new(0) };
}

/// Makes this thread one of the workers.
pub(crate) fn become_worker(index: usize) {
    INDEX.set(index);
}

pub(crate) fn index() -> usize {
    INDEX.get()
}
