//! One request to one backend: what can be sent again, what can't, and what a failure says.

use std::time::Duration;

use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, Method};
use bytes::Bytes;
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::repeat::may_be_repeated;
use super::{deadline, headers};
use crate::affinity::Conversation;
use crate::backend::{Backend, Connection};
use crate::body::{Received, Upload, upload_failed};
use crate::error::Refusal;
use crate::report::{self, Again, Reason};
use crate::shared::Shared;
use crate::verdict;

/// What is the same for every backend that is tried.
pub(super) struct Outgoing {
    pub(super) method: Method,
    pub(super) path: PathAndQuery,
    pub(super) headers: HeaderMap,
    body: Received,
    /// All of the body is kept, so that it can be sent again.
    pub(super) whole: bool,
}

impl Outgoing {
    pub(super) fn new(
        method: Method,
        path: PathAndQuery,
        headers: HeaderMap,
        body: Received,
    ) -> Self {
        Self {
            method,
            path,
            headers,
            whole: body.rest.is_none(),
            body,
        }
    }

    /// What is kept of its body.
    pub(super) fn start(&self) -> &Bytes {
        &self.body.start
    }

    /// Has so much memory counted for its body.
    pub(super) fn keep(&mut self, len: usize, shared: &Shared) -> Result<(), Refusal> {
        self.body.keep(len, &shared.intake)
    }

    /// Has another path and another beginning of the body sent.
    pub(super) fn replace(
        &mut self,
        path: PathAndQuery,
        start: Bytes,
        shared: &Shared,
    ) -> Result<(), Refusal> {
        self.path = path;
        self.body.keep(start.len(), &shared.intake)?;
        self.body.start = start;
        if self.headers.contains_key(CONTENT_LENGTH)
            && let Some(len) = self.body.length()
        {
            self.headers.insert(CONTENT_LENGTH, len.into());
        }
        Ok(())
    }

    /// What it goes on with.
    pub(super) fn conversation(
        &self,
        shared: &Shared,
        model: Option<&str>,
    ) -> Option<Conversation> {
        let affinity = shared.options.affinity;
        Conversation::of(affinity, model, &self.headers, &self.body.start)
    }

    /// As it is sent to this one; and, if that is asked for, what tells when all of it is. What is
    /// not kept of the body goes with it.
    fn request(
        &mut self,
        backend: &Backend,
        told: bool,
    ) -> (hyper::Request<Upload>, Option<oneshot::Receiver<()>>) {
        let mut body = self.body.upload();
        let uploaded = told.then(|| body.tell_end());
        let mut request = hyper::Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = backend.url.uri(&self.path);
        *request.headers_mut() = self.headers.clone();
        let sent = request.headers_mut();
        sent.insert(HOST, backend.host_header.clone());
        if let Some(key) = backend.key() {
            headers::remove_keys(sent);
            sent.insert(AUTHORIZATION, key);
        }
        (request, uploaded)
    }
}

pub(super) enum Attempt {
    Answered(hyper::Response<Incoming>, Connection),
    /// It has seen nothing of the request.
    Unreachable(std::io::Error),
    /// It has taken the request, and there is no answer.
    Failed(Reason, String),
}

/// Sends a request to one backend, on a pooled connection if that will do.
pub(super) async fn attempt(
    shared: &Shared,
    backend: &Backend,
    outgoing: &mut Outgoing,
    upgrade: bool,
    first_byte: Option<Duration>,
) -> Result<Attempt, Refusal> {
    // Only what can be sent again goes out on a connection that may have died meanwhile.
    let again = outgoing.whole && !upgrade && may_be_repeated(&outgoing.method, &outgoing.path);
    let mut next = if again { backend.pool.take() } else { None };
    // Why the first one failed, if it may have been what made it fail.
    let mut taken = None;
    loop {
        let mut connection = match next.take() {
            Some(connection) => connection,
            // On the heap, as most requests need none, and would carry the room for it along.
            None => match Box::pin(backend.connect()).await {
                Ok(connection) => connection,
                Err(e) => match taken {
                    None => return Ok(Attempt::Unreachable(e)),
                    // It may have died of this request, and so would the next.
                    Some(first) => {
                        if !out_of_descriptors(&e) {
                            verdict::unreachable(shared, backend, &e);
                        }
                        let problem = format!("{first}; then: {e}");
                        return Ok(Attempt::Failed(Reason::Reset, problem));
                    }
                },
            },
        };
        let (request, uploaded) = outgoing.request(backend, first_byte.is_some());
        let sent = match first_byte {
            None => connection.send(request).await,
            Some(patience) => {
                let sending = connection.send(request);
                let in_time = deadline::first_byte(patience, uploaded, sending);
                match Box::pin(in_time).await {
                    Ok(sent) => sent,
                    Err(problem) => return Ok(Attempt::Failed(Reason::Timeout, problem)),
                }
            }
        };
        match sent {
            Ok(response) => return Ok(Attempt::Answered(response, connection)),
            Err(e) if e.stale => {
                report::sent_again(&shared.metrics, &backend.name, Again::Stale);
                taken = (!e.unsent).then_some(e.error);
            }
            // Ours is the body, and it failed because the client did.
            Err(e) if e.error.is_user() => return Err(upload_failed(&e.error)),
            Err(e) => return Ok(Attempt::Failed(Reason::Reset, e.error.to_string())),
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
