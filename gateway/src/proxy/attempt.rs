//! One request to one backend: what can be sent again, what can't, and what a failure says.

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Method};
use hyper::body::Incoming;
use tracing::debug;

use crate::backend::{Backend, Connection};
use crate::body::{Received, Upload};
use crate::error::Refusal;

/// What is the same for every backend that is tried.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    pub(super) body: Received,
}

impl Outgoing {
    /// As it is sent to this one. What is not kept of the body goes with it.
    fn request(&mut self, backend: &Backend) -> hyper::Request<Upload> {
        let body = Upload::new(self.body.start.clone(), self.body.rest.take());
        let mut request = hyper::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = backend.url.uri(&self.path);
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, backend.host_header.clone());
        if let Some(key) = backend.key() {
            headers.insert(AUTHORIZATION, key);
        }
        request
    }
}

pub(super) enum Attempt {
    Answered(hyper::Response<Incoming>, Connection),
    /// It has seen nothing of the request.
    Unreachable(std::io::Error),
}

/// Sends a request to one backend, on a pooled connection if that will do.
pub(super) async fn attempt(
    backend: &Backend,
    outgoing: &mut Outgoing,
    upgrade: bool,
) -> Result<Attempt, Refusal> {
    // Only what can be sent again goes out on a connection that may have died meanwhile.
    let pooled = match outgoing.body.rest {
        None if !upgrade => backend.pool.take(),
        _ => None,
    };
    let mut next = pooled;
    // Why the first one failed, if it may have been what made it fail.
    let mut taken = None;
    loop {
        let mut connection = match next.take() {
            Some(connection) => connection,
            None => match backend.connect().await {
                Ok(connection) => connection,
                Err(e) => match taken {
                    None => return Ok(Attempt::Unreachable(e)),
                    // It may have died of this request, and so would the next.
                    Some(first) => {
                        if !out_of_descriptors(&e) {
                            backend.failed(e.to_string());
                        }
                        return Err(Refusal::Broken(format!("{first}; then: {e}")));
                    }
                },
            },
        };
        match connection.send(outgoing.request(backend)).await {
            Ok(response) => return Ok(Attempt::Answered(response, connection)),
            Err(e) if e.stale => {
                debug!("A pooled connection to {} was dead", backend.name);
                taken = (!e.unsent).then_some(e.error);
            }
            // Ours is the body, and it failed because the client did.
            Err(e) if e.error.is_user() => return Err(Refusal::BodyTimedOut),
            Err(e) => return Err(Refusal::Broken(e.error.to_string())),
        }
    }
}

/// Running out of them here says nothing about a backend.
pub(super) fn out_of_descriptors(e: &std::io::Error) -> bool {
    #[cfg(unix)]
    {
        use nix::errno::Errno;
        let errno = e.raw_os_error().map(Errno::from_raw);
        matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
    }
    #[cfg(not(unix))]
    {
        let _ = e;
        false
    }
}
