//! Whose connection a request came on, as the one who took the connection tells.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use axum::extract::Request;
use tokio::sync::OwnedSemaphorePermit;

/// The address that a request came from. A program that serves [`Gateway::router`] itself puts it
/// into the request's extensions; without it, backends are not told who asked.
///
/// [`Gateway::router`]: crate::Gateway::router
#[derive(Debug, Clone, Copy)]
pub struct ClientAddress(pub SocketAddr);

#[derive(Clone, Default)]
pub(crate) struct Peer {
    pub(crate) address: Option<SocketAddr>,
    /// How many of its requests are in flight.
    pub(crate) busy: Arc<AtomicUsize>,
    /// Its last answer broke off, and only the way in which the connection ends can tell.
    pub(crate) broken: Arc<AtomicBool>,
    /// The room it takes: also as a tunnel, which outlasts the connection's HTTP.
    pub(crate) _permit: Option<Arc<OwnedSemaphorePermit>>,
}

impl Peer {
    pub(crate) fn of(request: &mut Request) -> Self {
        let extensions = request.extensions_mut();
        extensions.remove().unwrap_or_else(|| Self {
            address: extensions.get().map(|ClientAddress(address)| *address),
            ..Self::default()
        })
    }
}
