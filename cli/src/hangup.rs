//! SIGHUP to the built-in server: read again what can be read again. Apart from the signals that ask
//! it to end, though it is one of them when it comes because the terminal has gone.

use std::io;

/// Listens from its creation on.
#[cfg(unix)]
pub(crate) struct Hangups {
    stream: crate::signals::Stream,
    has_terminal: bool,
}

#[cfg(unix)]
impl Hangups {
    pub(crate) fn listen() -> io::Result<Self> {
        use std::io::IsTerminal;
        Ok(Self {
            stream: crate::signals::Stream::listen(nix::sys::signal::Signal::SIGHUP)?,
            has_terminal: io::stderr().is_terminal(),
        })
    }

    /// Waits for the next one. One that the end of our terminal brings is a request to end.
    pub(crate) async fn recv(&mut self) {
        use nix::sys::signal::{Signal, raise};
        use nix::sys::termios::tcgetattr;
        loop {
            self.stream.recv().await;
            let gone = self.has_terminal && tcgetattr(io::stderr()).is_err();
            if !gone || raise(Signal::SIGTERM).is_err() {
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

    pub(crate) async fn recv(&mut self) {
        std::future::pending().await
    }
}
