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
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::backend::keep_alive;

pub(crate) struct Socket {
    /// Of a stream's two halves the one that can be shared, until the end: reading takes the other
    /// for itself.
    half: Option<OwnedWriteHalf>,
    /// The client does not read what is to be sent.
    blocked: AtomicBool,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(half) = self.half.take() {
            // Dropped, it would say that all has been sent, also where the connection is aborted.
            half.forget();
        }
    }
}

impl Socket {
    /// Whether one [that has left](Self::left) is told from one that sends more: only there can one
    /// wait for the end without waiting for data.
    pub(crate) const TELLS_THE_END: bool = cfg!(any(target_os = "linux", target_os = "android"));

    /// And what hyper has of it.
    pub(crate) fn new(stream: TcpStream) -> (Arc<Self>, Shared) {
        // Chunks are sent as they come.
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        let (reading, writing) = stream.into_split();
        let socket = Arc::new(Self {
            half: Some(writing),
            blocked: AtomicBool::new(false),
        });
        let shared = Shared {
            reading,
            socket: Arc::clone(&socket),
        };
        (socket, shared)
    }

    fn stream(&self) -> io::Result<&TcpStream> {
        let half = self.half.as_ref();
        half.map(AsRef::as_ref)
            .ok_or(io::ErrorKind::NotConnected.into())
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Waits until there is something to read, the end included.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        // The runtime takes a socket that is new to it for readable until that is tried.
        self.stream()?.peek(&mut [0]).await.map(drop)
    }

    /// Waits until the client has closed its end. What it sent before need not have been read:
    /// hyper reads nothing while it has a request that waits its turn.
    pub(crate) async fn left(&self) {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            if let Ok(stream) = self.stream()
                && let Ok(ready) = stream.ready(tokio::io::Interest::PRIORITY).await
                && ready.is_read_closed()
            {
                return;
            }
        }
        std::future::pending().await
    }

    /// Lets the end of the connection be an abortion.
    pub(crate) fn abort_at_end(&self) {
        if let Ok(stream) = self.stream() {
            let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    fn poll_send(
        &self,
        context: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let stream = self.stream()?;
        loop {
            let ready = stream.poll_write_ready(context);
            self.blocked.store(ready.is_pending(), Ordering::Relaxed);
            ready!(ready)?;
            match send(stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

/// What hyper has of it.
pub(crate) struct Shared {
    /// Knows, unlike what can be shared, that a read which left room has taken all there is.
    reading: OwnedReadHalf,
    socket: Arc<Socket>,
}

impl AsyncRead for Shared {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reading).poll_read(context, buffer)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket
            .poll_send(context, |stream| stream.try_write(data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket
            .poll_send(context, |stream| stream.try_write_vectored(data))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(self.socket.stream()?).shutdown(Shutdown::Write))
    }
}
