//! A stream that hyper has for a while. With upgrades hyper gives none back, so it comes back by
//! itself when hyper's part ends.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Where a stream is while nobody has it.
pub(super) struct Home<S>(Arc<Mutex<Option<S>>>);

impl<S> Home<S> {
    pub(super) fn of(stream: S) -> Self {
        Self(Arc::new(Mutex::new(Some(stream))))
    }

    /// None while another has it.
    pub(super) fn lend(&self) -> Option<Lent<S>> {
        let mut home = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = home.take()?;
        Some(Lent {
            stream: Some(stream),
            home: Self(Arc::clone(&self.0)),
        })
    }
}

/// Goes home when it is dropped.
pub(super) struct Lent<S> {
    /// Always there until then.
    stream: Option<S>,
    home: Home<S>,
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        let mut home = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        *home = self.stream.take();
    }
}

impl<S: Unpin> Lent<S> {
    fn stream(&mut self) -> io::Result<Pin<&mut S>> {
        let stream = self.stream.as_mut().map(Pin::new);
        stream.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lent<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(S::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(context)
    }
}
