//! The signals that ask a server to end.

use std::io;
#[cfg(unix)]
use std::sync::LazyLock;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from its creation on: none is missed, and none ends the process by itself any more.
#[cfg(unix)]
pub(crate) struct Shutdown {
    terminate: Stream,
    interrupt: Stream,
}

/// A signal to listen to; none where it was ignored when the program started, as `nohup` and
/// shells' background jobs want it.
#[cfg(unix)]
pub(crate) struct Stream(Option<Signal>);

#[cfg(unix)]
impl Stream {
    pub(crate) fn listen(kind: SignalKind) -> io::Result<Self> {
        if is_ignored(kind.as_raw_value()) {
            return Ok(Self(None));
        }
        Ok(Self(Some(signal(kind)?)))
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

    pub(crate) fn is_listening(&self) -> bool {
        self.0.is_some()
    }
}

/// Whether the program was started with this signal ignored. Told by Linux alone.
#[cfg(unix)]
fn is_ignored(number: i32) -> bool {
    static IGNORED: LazyLock<Option<u64>> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    IGNORED.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

#[cfg(unix)]
impl Shutdown {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: Stream::listen(SignalKind::terminate())?,
            interrupt: Stream::listen(SignalKind::interrupt())?,
        })
    }

    /// The numbers of those that are listened to.
    pub(crate) fn listened_to(&self) -> Vec<i32> {
        [
            (&self.terminate, SignalKind::terminate()),
            (&self.interrupt, SignalKind::interrupt()),
        ]
        .into_iter()
        .filter(|(stream, _)| stream.is_listening())
        .map(|(_, kind)| kind.as_raw_value())
        .collect()
    }

    /// Waits for the next one and tells its number.
    pub(crate) async fn recv(&mut self) -> i32 {
        tokio::select! {
            () = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            () = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
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
