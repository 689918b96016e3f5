//! Who has the terminal: the server while it runs, llmlb otherwise. Apart from the supervision, as
//! job control has rules of its own.

use std::cell::Cell;
use std::io::{self, IsTerminal};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, raise, sigaction};
use nix::unistd::{Pid, getpgrp, getpid, tcgetpgrp, tcsetpgrp};
use tracing::{debug, warn};

/// The terminal that llmlb was started on. While llmlb has the foreground and leads its process
/// group, as what a shell starts does, the server's group gets it, so that it can read, and that
/// Ctrl-C reaches it once and directly. Whoever shares a group with others (a script, a REPL that
/// started it) would take it from them: there Ctrl-C reaches llmlb, which passes it on.
pub(super) struct Terminal {
    own: Pid,
    leads: bool,
    /// Whether the server has it from us, and the shell has not taken it back.
    given: Cell<bool>,
    warned: Cell<bool>,
}

impl Terminal {
    pub(super) fn find() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        // In the background neither a log line (`stty tostop`) nor asking for the terminal back
        // may stop us.
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring is no code of ours.
        let _ = unsafe { sigaction(Signal::SIGTTOU, &ignore) };
        let own = getpgrp();
        Some(Self {
            own,
            leads: own == getpid(),
            given: Cell::new(false),
            warned: Cell::new(false),
        })
    }

    /// Gives it to the server, if it is ours to give. Who had asked for it too early has to be
    /// continued.
    pub(super) fn offer(&self, server: Pid) -> bool {
        let ours = self.leads && tcgetpgrp(io::stdin()) == Ok(self.own);
        if ours {
            self.set_foreground(server);
            self.given.set(true);
        }
        ours
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
        if let Err(e) = tcsetpgrp(io::stdin(), group) {
            debug!("Cannot give the terminal to process group {group}: {e}");
        }
    }

    /// The server was stopped: tells whether it is to be continued, after llmlb was stopped and
    /// continued as well, or once it has the terminal it asked for.
    pub(super) fn stopped(&self, server: Pid, by: Signal) -> bool {
        let asked = matches!(by, Signal::SIGTTIN | Signal::SIGTTOU);
        if !self.leads {
            if asked && !self.warned.replace(true) {
                warn!(
                    "The server is stopped ({by}): it wants the terminal, which belongs to what \
                     started llmlb; redirect its input or output"
                );
            }
            return false;
        }
        if asked && self.offer(server) {
            return true;
        }
        self.take_back(server);
        // All of the shell's job (`llmlb … | cat`), or the shell would wait for the rest of it.
        stop_by(|| killpg(self.own, Signal::SIGTSTP));
        self.offer(server);
        true
    }
}

/// Stops this process until it is continued; not at all where no shell could do that.
pub(super) fn stop() {
    stop_by(|| raise(Signal::SIGTSTP));
}

fn stop_by(send: impl FnOnce() -> nix::Result<()>) {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action is no code of ours.
    let Ok(before) = (unsafe { sigaction(Signal::SIGTSTP, &default) }) else {
        return;
    };
    if !matches!(before.handler(), SigHandler::SigIgn)
        && let Err(e) = send()
    {
        debug!("Cannot stop: {e}");
    }
    // Here again when the shell continues us.
    // SAFETY: it is what was there before.
    let _ = unsafe { sigaction(Signal::SIGTSTP, &before) };
}
