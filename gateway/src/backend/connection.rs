//! A connection to a backend.
//!
//! hyper's client connections are used directly: the pooled client of hyper-util tells neither
//! whether the connection that broke had been used before, nor gives the body back when none is
//! made, and a response that is dropped while nothing comes leaves its connection, and so the
//! backend's work, running until the next byte. Here the connection ends with the request.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::io::InspectReader;

use crate::body::Upload;

/// An idle connection that its other end has closed shows that within milliseconds. What took longer
/// has been taken, and perhaps done.
const RACE: Duration = Duration::from_secs(1);

/// Finds out about an end that vanished without a word, be it in a minute.
pub(crate) fn keep_alive(stream: &TcpStream) {
    let probes = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    // Without, it works all the same.
    let _ = SockRef::from(stream).set_tcp_keepalive(&probes);
}

/// Ends with its last owner, whatever it is in the midst of.
pub(crate) struct Connection {
    sender: SendRequest<Upload>,
    driver: JoinHandle<()>,
    used: bool,
    /// Whether a byte has come since the last request was sent.
    heard: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Why a request got no answer.
pub(crate) struct SendError {
    pub(crate) error: hyper::Error,
    /// A used connection had died meanwhile, as idle ones do: nobody has answered, try a new one.
    pub(crate) stale: bool,
    /// None of it can have arrived.
    pub(crate) unsent: bool,
}

impl Connection {
    /// Speaks HTTP on this one.
    pub(crate) async fn over(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> io::Result<Self> {
        let heard = Arc::new(AtomicBool::new(false));
        let hears = Arc::clone(&heard);
        let stream = InspectReader::new(stream, move |bytes: &[u8]| {
            if !bytes.is_empty() {
                hears.store(true, Ordering::Relaxed);
            }
        });
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // What goes wrong is told to whoever waits for the answer.
            let _ = connection.with_upgrades().await;
        });
        Ok(Self {
            sender,
            driver,
            used: false,
            heard,
        })
    }

    /// Whether it can take a request now.
    pub(crate) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until it can take a request, and tells whether it ever will.
    pub(crate) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, SendError> {
        let used = std::mem::replace(&mut self.used, true);
        let sent = Instant::now();
        self.heard.store(false, Ordering::Relaxed);
        self.sender
            .try_send_request(request)
            .await
            .map_err(|mut e| {
                let unsent = e.take_message().is_some();
                let error = e.into_error();
                // The beginning of an answer is one too, and so is what is no HTTP.
                let silent = !error.is_user() && !self.heard.load(Ordering::Relaxed);
                let raced = silent && sent.elapsed() < RACE;
                SendError {
                    stale: used && (unsent || raced),
                    unsent,
                    error,
                }
            })
    }
}
