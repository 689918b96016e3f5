//! SIGHUP to the built-in server: read again what can be read again. Apart from the signals that ask
//! it to end, though it is one of them when it comes because the terminal has gone.

#[cfg(unix)]
use std::fs::File;
use std::io;
#[cfg(unix)]
use std::io::IsTerminal;

#[cfg(unix)]
use nix::sys::signal::{Signal, raise};
#[cfg(unix)]
use nix::sys::termios::tcgetattr;

#[cfg(unix)]
use crate::signals::Stream;

/// Listens from its creation on.
#[cfg(unix)]
pub(crate) struct Hangups {
    stream: Stream,
    /// Of this session: no other's end brings a hangup. There is none in the background.
    terminal: Option<File>,
    /// Whether it is where llmlb speaks; else a server may be meant to outlive it.
    is_spoken_to: bool,
    /// Whether one has come that nobody has heard of.
    is_kept: bool,
}

#[cfg(unix)]
impl Hangups {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            stream: Stream::listen(Signal::SIGHUP)?,
            terminal: File::open("/dev/tty").ok(),
            is_spoken_to: io::stderr().is_terminal(),
            is_kept: false,
        })
    }

    /// Does this, which nobody can be told of yet: those that come meanwhile are one afterwards.
    pub(crate) async fn during<T>(&mut self, preparation: impl Future<Output = T>) -> T {
        let mut preparation = std::pin::pin!(preparation);
        loop {
            tokio::select! {
                result = &mut preparation => return result,
                () = self.next(true) => self.is_kept = true,
            }
        }
    }

    /// Waits for the next one.
    pub(crate) async fn recv(&mut self) {
        if !std::mem::take(&mut self.is_kept) {
            self.next(self.is_spoken_to).await;
        }
    }

    /// For a server that is told of all that come from now on.
    pub(crate) fn into_stream(self) -> Stream {
        self.stream
    }

    /// One that the end of our terminal brings is a request to end, if it `binds`.
    async fn next(&mut self, binds: bool) {
        loop {
            self.stream.recv().await;
            let is_gone = |terminal| tcgetattr(terminal).is_err();
            if !binds
                || !self.terminal.as_ref().is_some_and(is_gone)
                || raise(Signal::SIGTERM).is_err()
            {
                return;
            }
        }
    }
}

/// There are none.
#[cfg(not(unix))]
pub(crate) struct Hangups;

#[cfg(not(unix))]
impl Hangups {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn during<T>(&mut self, preparation: impl Future<Output = T>) -> T {
        preparation.await
    }

    pub(crate) async fn recv(&mut self) {
        std::future::pending().await
    }
}
