//! An answer on its way to the client, piece by piece as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderValue, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::flight::Flight;
use super::headers;
use super::tunnel::tunnel;
use crate::backend::Connection;
use crate::error::Refusal;

/// Passes an answer on, and keeps the flight until its end.
pub(super) fn relay(
    mut flight: Flight,
    response: hyper::Response<Incoming>,
    connection: Connection,
) -> Response {
    let (mut parts, body) = response.into_parts();
    flight.status = Some(parts.status);
    let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    let protocol = parts.headers.get(UPGRADE).cloned();
    if parts.headers.contains_key(TRANSFER_ENCODING) {
        // Overridden by it (RFC 9112, 6.3), and not to be passed on alone.
        parts.headers.remove(CONTENT_LENGTH);
    }
    headers::remove_hop_by_hop(&mut parts.headers);
    if switched {
        let (Some(client), Some(protocol)) = (flight.upgrade.take(), protocol) else {
            let refusal = Refusal::Broken("it switched protocols unasked".to_owned());
            flight.status = Some(refusal.status());
            return refusal.into_response();
        };
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        let mut response = hyper::Response::from_parts(parts, body);
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel(flight, client, backend, connection));
        return response.map(|_| Body::empty());
    }
    flight.end = "client left";
    // The server speaks its own version of HTTP to the client.
    parts.version = Version::HTTP_11;
    let mut relay = Relay {
        body,
        flight: Some((flight, connection)),
    };
    if relay.body.is_end_stream() {
        relay.complete();
    }
    Response::from_parts(parts, Body::new(relay))
}

/// The body of an answer on its way to the client.
struct Relay {
    body: Incoming,
    /// Until its end. Dropped before, it ends the connection, and so the backend's work.
    flight: Option<(Flight, Connection)>,
}

impl Relay {
    fn complete(&mut self) {
        if let Some((mut flight, connection)) = self.flight.take() {
            if let Some(place) = &flight.place {
                Arc::clone(&place.pool).put(connection);
            }
            flight.end = "";
        }
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(_)) => {
                if let Some((flight, _)) = &mut self.flight {
                    let started = flight.started;
                    flight.first_byte.get_or_insert_with(|| started.elapsed());
                    if let Some(place) = &flight.place {
                        place.answering();
                    }
                }
                if self.body.is_end_stream() {
                    self.complete();
                }
            }
            // Passed on, it keeps the client from taking a broken answer for a whole one.
            Some(Err(_)) => {
                if let Some((flight, _)) = &mut self.flight {
                    flight.end = "broken";
                    if flight.version < Version::HTTP_11 {
                        flight.peer.broken.store(true, Ordering::Relaxed);
                    }
                }
                self.flight = None;
            }
            None => self.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
