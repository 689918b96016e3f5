//! The signals that ask a server to end.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from its creation on: none is missed, and none ends the process by itself any more.
#[cfg(unix)]
pub(crate) struct Shutdown {
    terminate: Signal,
    interrupt: Signal,
}

#[cfg(unix)]
impl Shutdown {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and tells its number.
    pub(crate) async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        }
    }
}

/// Listens from its creation on.
#[cfg(windows)]
pub(crate) struct Shutdown {
    ctrl_c: tokio::signal::windows::CtrlC,
    ctrl_break: tokio::signal::windows::CtrlBreak,
    ctrl_close: tokio::signal::windows::CtrlClose,
}

#[cfg(windows)]
impl Shutdown {
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_break, ctrl_c, ctrl_close};
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
            ctrl_close: ctrl_close()?,
        })
    }

    /// Waits for the next one and tells the number of the signal it stands for.
    pub(crate) async fn recv(&mut self) -> i32 {
        tokio::select! {
            _ = self.ctrl_c.recv() => 2,
            _ = self.ctrl_break.recv() => 15,
            _ = self.ctrl_close.recv() => 15,
        }
    }
}
