//! A client's socket, which can be looked at while hyper has it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::backend::keep_alive;

pub(crate) struct Socket {
    stream: TcpStream,
    /// The client does not read what is to be sent.
    blocked: AtomicBool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Arc<Self> {
        // Chunks are sent as they come.
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        Arc::new(Self {
            stream,
            blocked: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Waits until the client has closed its end. What it sent before need not have been read:
    /// hyper reads nothing while it has a request that waits its turn.
    pub(crate) async fn left(&self) {
        // Only there can one wait for the end without waiting for data.
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            let ready = self.stream.ready(tokio::io::Interest::PRIORITY).await;
            if ready.is_ok_and(|ready| ready.is_read_closed()) {
                return;
            }
        }
        std::future::pending().await
    }

    /// Lets the end of the connection be an abortion.
    pub(crate) fn abort_at_end(&self) {
        let _ = SockRef::from(&self.stream).set_linger(Some(std::time::Duration::ZERO));
    }

    fn poll_send(
        &self,
        context: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = self.stream.poll_write_ready(context);
            self.blocked.store(ready.is_pending(), Ordering::Relaxed);
            ready!(ready)?;
            match send(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

/// What hyper has of it.
pub(crate) struct Shared(pub(super) Arc<Socket>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.stream.poll_read_ready(context))?;
            match self.0.stream.try_read_buf(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_send(context, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0
            .poll_send(context, |stream| stream.try_write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&self.0.stream).shutdown(Shutdown::Write))
    }
}
