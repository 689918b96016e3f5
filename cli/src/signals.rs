//! The signals that ask a server to end, on Windows the events that stand for them; and what a
//! process inherits of signals. Apart from what they lead to, which differs by the command.

#[cfg(windows)]
use std::io;

#[cfg(unix)]
pub(crate) use unix::{Inherited, Shutdown, Stream, asks_to_end, die_of, survive_file_size_limit};

#[cfg(unix)]
mod unix {
    use std::io;
    use std::sync::LazyLock;
    use std::time::{Duration, Instant};

    use nix::libc;
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::signal::{
        SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, raise,
        sigaction,
    };
    use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

    use crate::{exit, log};

    /// `timeout` signals its child and then the child's group: the same signal twice within this
    /// time is one request.
    const SAME_REQUEST: Duration = Duration::from_millis(500);

    /// Listens from its creation on: none is missed, and none ends the process by itself any more.
    pub(crate) struct Shutdown {
        terminate: Stream,
        interrupt: Stream,
        last: Option<(i32, Instant)>,
    }

    impl Shutdown {
        pub(crate) fn listen() -> io::Result<Self> {
            Ok(Self {
                terminate: Stream::listen(Signal::SIGTERM)?,
                interrupt: Stream::listen(Signal::SIGINT)?,
                last: None,
            })
        }

        /// Waits for the next request and tells its number.
        pub(crate) async fn recv(&mut self) -> i32 {
            loop {
                let signal = tokio::select! {
                    () = self.terminate.recv() => Signal::SIGTERM as i32,
                    () = self.interrupt.recv() => Signal::SIGINT as i32,
                };
                let now = Instant::now();
                let again = |(last, at): (i32, Instant)| last == signal && now - at < SAME_REQUEST;
                if !self.last.is_some_and(again) {
                    self.last = Some((signal, now));
                    return signal;
                }
            }
        }
    }

    /// A signal to listen to; none where it was ignored when the program started, as `nohup` and
    /// shells' background jobs want it.
    pub(crate) struct Stream(Option<Signals>);

    impl Stream {
        pub(crate) fn listen(number: Signal) -> io::Result<Self> {
            if Inherited::get().ignores(number) {
                return Ok(Self(None));
            }
            Self::listen_anyway(number)
        }

        /// One that nothing comes from.
        pub(crate) fn none() -> Self {
            Self(None)
        }

        /// Also where it was ignored.
        pub(crate) fn listen_anyway(number: Signal) -> io::Result<Self> {
            // What is to be restored has to be known before it is changed.
            Inherited::get();
            let signals = signal(SignalKind::from_raw(number as i32))?;
            // Whoever started us may have blocked it.
            unblock(number)?;
            Ok(Self(Some(signals)))
        }

        pub(crate) async fn recv(&mut self) {
            let received = match &mut self.0 {
                Some(signal) => signal.recv().await,
                None => None,
            };
            if received.is_none() {
                std::future::pending().await
            }
        }
    }

    fn unblock(number: Signal) -> nix::Result<()> {
        let mut set = SigSet::empty();
        set.add(number);
        set.thread_unblock()
    }

    /// What this program was started with, and its children are to be started with too.
    pub(crate) struct Inherited {
        blocked: SigSet,
        /// Whether it was ignored.
        signals: [(Signal, bool); CHANGED.len()],
    }

    /// All that llmlb listens to, or ignores itself.
    const CHANGED: [Signal; 10] = [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGTSTP,
        Signal::SIGTTOU,
        Signal::SIGCHLD,
        Signal::SIGXFSZ,
    ];

    impl Inherited {
        /// Looked up once, at the first call.
        pub(crate) fn get() -> &'static Self {
            static INHERITED: LazyLock<Inherited> = LazyLock::new(|| Inherited {
                blocked: SigSet::thread_get_mask().unwrap_or_else(|_| SigSet::empty()),
                signals: CHANGED.map(|number| (number, is_ignored(number))),
            });
            &INHERITED
        }

        fn ignores(&self, number: Signal) -> bool {
            self.signals.contains(&(number, true))
        }

        /// For a child, before it becomes another program. Safe after a fork.
        pub(crate) fn restore(&self) -> nix::Result<()> {
            // Our handlers would swallow a signal that comes before the exec.
            for &(number, ignored) in &self.signals {
                let handler = if ignored {
                    SigHandler::SigIgn
                } else {
                    SigHandler::SigDfl
                };
                let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
                // SAFETY: neither ignoring nor the default action is code of ours.
                unsafe { sigaction(number, &action) }?;
            }
            pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None)
        }
    }

    /// A file that may not grow any more (`ulimit -f`) is an error of the write to it, as a full
    /// disk is.
    pub(crate) fn survive_file_size_limit() {
        // What is to be restored has to be known before it is changed.
        Inherited::get();
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring a signal runs no code of ours.
        let _ = unsafe { sigaction(Signal::SIGXFSZ, &ignore) };
    }

    /// Those that end a program at somebody's request; the others tell of a fault.
    pub(crate) fn asks_to_end(signal: Signal) -> bool {
        matches!(
            signal,
            Signal::SIGHUP | Signal::SIGINT | Signal::SIGQUIT | Signal::SIGTERM
        )
    }

    fn is_ignored(number: Signal) -> bool {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: nothing is set, and the action is ours to be written.
        let asked =
            unsafe { libc::sigaction(number as i32, std::ptr::null(), action.as_mut_ptr()) } == 0;
        // SAFETY: all zeroes is an action, and so is what the call wrote.
        asked && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
    }

    /// Ends this process by the signal that ended what it ran or waited for, so that whoever
    /// started it can tell: a shell leaves its loop at Ctrl-C. Without dumping core. Returns where
    /// a signal does not end the process (PID 1), with the exit code that says the same.
    pub(crate) fn die_of(number: i32) -> u8 {
        log::flush();
        if let Ok(signal) = Signal::try_from(number) {
            let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
            // Where cores are piped to a program, the limit is not looked at.
            #[cfg(target_os = "linux")]
            let _ = nix::sys::prctl::set_dumpable(false);
            let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default action is no code of ours.
            let _ = unsafe { sigaction(signal, &action) };
            let _ = unblock(signal);
            let _ = raise(signal);
        }
        exit::signalled(number)
    }
}

/// There is nothing like it here: the exit code tells.
#[cfg(windows)]
pub(crate) fn die_of(number: i32) -> u8 {
    crate::exit::signalled(number)
}

/// Listens from its creation on.
#[cfg(windows)]
pub(crate) struct Shutdown {
    ctrl_c: tokio::signal::windows::CtrlC,
    ctrl_break: tokio::signal::windows::CtrlBreak,
    ctrl_close: tokio::signal::windows::CtrlClose,
    ctrl_shutdown: tokio::signal::windows::CtrlShutdown,
    requests: tokio::sync::mpsc::UnboundedReceiver<()>,
}

#[cfg(windows)]
impl Shutdown {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close, ctrl_shutdown};
        let event = llmlb_lock_core::StopEvent::listen()?;
        let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
        // Ends with the process.
        std::thread::Builder::new()
            .name("stop-requests".to_owned())
            .spawn(
                move || {
                    while event.wait(None).is_ok() && sender.send(()).is_ok() {}
                },
            )?;
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
            ctrl_close: ctrl_close()?,
            ctrl_shutdown: ctrl_shutdown()?,
            requests,
        })
    }

    /// Waits for the next one and tells the number of the signal it stands for.
    pub(crate) async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.ctrl_c.recv() => 2,
            _ = self.ctrl_break.recv() => 15,
            _ = self.ctrl_close.recv() => 15,
            _ = self.ctrl_shutdown.recv() => 15,
            Some(()) = self.requests.recv() => 15,
        }
    }
}
