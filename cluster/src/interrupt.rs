//! One way to end every wait: a handle that can be triggered from any thread. Apart, since waits
//! are of two kinds, on conditions and on sockets, and both are ended by it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Ends the waits it was given to, now and in future.
///
/// Clones are the same handle. [`interrupt`](Self::interrupt) takes a lock: from a signal handler,
/// wake a thread that calls it.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    set: bool,
    next: u64,
    hooks: BTreeMap<u64, Box<dyn Fn() + Send>>,
}

impl Interrupt {
    /// One that nobody has triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all waits that have this handle.
    pub fn interrupt(&self) {
        let mut state = self.state();
        state.set = true;
        for hook in state.hooks.values() {
            hook();
        }
        self.0.changed.notify_all();
    }

    /// Whether it was triggered.
    pub fn is_interrupted(&self) -> bool {
        self.state().set
    }

    /// Sleeps, and says whether it was interrupted.
    pub fn sleep(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut state = self.state();
        while !state.set {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .0
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Calls `hook` at the interrupt, at once if that has been, until the guard is dropped. A hook
    /// must not wait, and not come back here.
    pub(crate) fn hook(&self, hook: impl Fn() + Send + 'static) -> Hooked {
        let mut state = self.state();
        if state.set {
            hook();
        }
        let id = state.next;
        state.next += 1;
        state.hooks.insert(id, Box::new(hook));
        Hooked {
            interrupt: self.clone(),
            id,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that panics leaves it half written.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Interrupt")
            .field(&self.is_interrupted())
            .finish()
    }
}

/// Takes its hook away when dropped.
pub(crate) struct Hooked {
    interrupt: Interrupt,
    id: u64,
}

impl Drop for Hooked {
    fn drop(&mut self) {
        self.interrupt.state().hooks.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_sleep_ends_at_the_interrupt() {
        let interrupt = Interrupt::new();
        let other = interrupt.clone();
        let sleeper = thread::spawn(move || other.sleep(Duration::from_secs(3600)));
        interrupt.interrupt();
        assert!(sleeper.join().unwrap());
        assert!(interrupt.sleep(Duration::from_secs(3600)), "and ever after");
    }

    #[test]
    fn hooks_are_called_once_they_are_there_and_not_when_they_are_gone() {
        let (tell, told) = mpsc::channel();
        let interrupt = Interrupt::new();
        let gone = tell.clone();
        drop(interrupt.hook(move || gone.send("gone").unwrap()));
        let there = tell.clone();
        let _hooked = interrupt.hook(move || there.send("there").unwrap());
        interrupt.interrupt();
        let _late = interrupt.hook(move || tell.send("late").unwrap());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["there", "late"]);
    }
}
