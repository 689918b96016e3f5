//! Who has the terminal: the server while it runs, llmlb otherwise. Apart from the supervision, as
//! job control has rules of its own.

use std::cell::Cell;
use std::io::{self, IsTerminal};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, killpg, raise};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use tracing::debug;

/// The terminal that llmlb was started on, in the foreground. The server's group gets it, so that
/// it can read, and that Ctrl-C reaches it once and directly.
pub(super) struct Terminal {
    own: Pid,
    /// Whether the server has it from us, and the shell has not taken it back.
    given: Cell<bool>,
}

impl Terminal {
    pub(super) fn find() -> Option<Self> {
        let stdin = io::stdin();
        let own = getpgrp();
        let foreground = stdin.is_terminal() && tcgetpgrp(&stdin) == Ok(own);
        foreground.then_some(Self {
            own,
            given: Cell::new(false),
        })
    }

    pub(super) fn give_to(&self, server: Pid) {
        self.set_foreground(server);
        self.given.set(true);
    }

    /// Not from anybody else: in the background the terminal belongs to the shell.
    pub(super) fn take_back(&self, server: Pid) {
        let given = self.given.replace(false);
        let holder = tcgetpgrp(io::stdin());
        // A server that is an interactive shell gives it to groups of its own, and may be gone.
        let orphaned = holder.is_ok_and(|group| killpg(group, None) == Err(Errno::ESRCH));
        if given && (holder == Ok(server) || orphaned) {
            self.set_foreground(self.own);
        }
    }

    fn set_foreground(&self, group: Pid) {
        // Without this, asking from the background would stop us.
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGTTOU);
        let restore = blocked.thread_block().is_ok();
        if let Err(e) = tcsetpgrp(io::stdin(), group) {
            debug!("Cannot give the terminal to process group {group}: {e}");
        }
        if restore {
            let _ = blocked.thread_unblock();
        }
    }

    /// Ctrl-Z stopped the server: stop as well, for the shell to notice, and go on together.
    pub(super) fn stop_with(&self, server: Pid) {
        self.take_back(server);
        // Comes back when the shell continues us; at once where no shell could.
        if raise(Signal::SIGTSTP).is_ok() && tcgetpgrp(io::stdin()) == Ok(self.own) {
            self.give_to(server);
        }
    }
}
