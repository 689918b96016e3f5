//! Whose connection a request came on, as the one who took the connection tells.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use axum::extract::Request;
use axum::http::HeaderValue;
use tokio::sync::OwnedSemaphorePermit;

/// The address that a request came from. A program that serves [`Gateway::router`] itself puts it
/// into the request's extensions; without it, backends are not told who asked.
///
/// [`Gateway::router`]: crate::Gateway::router
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub SocketAddr);

#[derive(Default)]
pub(crate) struct Peer {
    pub(crate) address: Option<SocketAddr>,
    /// The same as `X-Forwarded-For` says it.
    pub(crate) forwarded: Option<HeaderValue>,
    /// How many of its requests are in flight.
    pub(crate) busy: AtomicUsize,
    /// One of them waits for a place at a backend, or is being told that there will be none.
    pub(crate) waits: AtomicBool,
    /// Its last answer broke off, and only the way in which the connection ends can tell.
    pub(crate) broken: AtomicBool,
    /// The room it takes: also as a tunnel, which outlasts the connection's HTTP.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Peer {
    pub(crate) fn new(address: Option<SocketAddr>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let ip = address.map(|address| address.ip().to_canonical().to_string());
        Self {
            address,
            forwarded: ip.and_then(|ip| HeaderValue::try_from(ip).ok()),
            _permit: permit,
            ..Self::default()
        }
    }

    pub(crate) fn of(request: &mut Request) -> Arc<Self> {
        let extensions = request.extensions_mut();
        extensions.remove().unwrap_or_else(|| {
            let address = extensions.get().map(|ClientAddress(address)| *address);
            Arc::new(Self::new(address, None))
        })
    }
}
