//! An answer on its way to the client, piece by piece as it comes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::Body;
use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use axum::http::{HeaderValue, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::deadline::Pauses;
use super::flight::Flight;
use super::headers;
use super::tunnel::tunnel;
use crate::backend::Connection;
use crate::error::Refusal;
use crate::model::{Answer, Called};
use crate::report::Reason;

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
    headers::say_length_once(&mut parts.headers);
    headers::remove_hop_by_hop(&mut parts.headers);
    if let Some(place) = &flight.place {
        headers::relocate(&mut parts.headers, &place.url);
    }
    if switched {
        let (Some(client), Some(protocol)) = (flight.upgrade.take(), protocol) else {
            let refusal = Refusal::Broken("it switched protocols unasked".to_owned());
            flight.failed(Reason::Reset, "it switched protocols unasked");
            flight.status = Some(refusal.status());
            return refusal.into_response();
        };
        parts
            .headers
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol);
        flight.succeeded();
        let mut response = hyper::Response::from_parts(parts, body);
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(tunnel(flight, client, backend, connection));
        return response.map(|_| Body::empty());
    }
    flight.end = "client left";
    if let Some(tally) = &mut flight.tally {
        tally.begin(parts.status, &parts.headers);
    }
    let answer = if flight.makes {
        Answer::new(parts.status, &parts.headers)
    } else {
        None
    };
    let name = flight.called.as_deref();
    let called = name.and_then(|name| Called::new(&parts.headers, name));
    if called.is_some() {
        // Another name has another length.
        parts.headers.remove(CONTENT_LENGTH);
    }
    // The server speaks its own version of HTTP to the client.
    parts.version = Version::HTTP_11;
    let mut relay = Relay {
        pauses: Pauses::limited(&flight.shared.options),
        body,
        answer,
        called,
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
    pauses: Pauses,
    /// What may be told in it.
    answer: Option<Answer>,
    /// What puts the model's name in that was asked for.
    called: Option<Called>,
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
            flight.succeeded();
        }
    }

    /// Keeps the client from taking a broken answer for a whole one.
    fn break_off(&mut self, reason: Reason, problem: &str) {
        if let Some((mut flight, _connection)) = self.flight.take() {
            flight.end = "broken";
            if flight.version < Version::HTTP_11 {
                flight.peer.broken.store(true, Ordering::Relaxed);
            }
            flight.failed(reason, problem);
        }
    }
}

/// Before the client gets to know it: it may ask at once.
fn note(flight: &Flight, made: Vec<String>) {
    for id in made {
        if let Some(place) = &flight.place {
            flight.shared.made.note(&id, place);
        }
    }
}

type Piece = Option<Result<Frame<Bytes>, BoxError>>;

impl Relay {
    fn poll_piece(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            let problem = ready!(self.pauses.poll_too_long(context));
            self.break_off(Reason::Timeout, &problem);
            return Poll::Ready(Some(Err(problem.into())));
        };
        match &frame {
            Some(Ok(frame)) => {
                let relay = &mut *self;
                relay.pauses.end();
                if let Some((flight, _)) = &mut relay.flight {
                    if let Some((answer, data)) = relay.answer.as_mut().zip(frame.data_ref()) {
                        note(flight, answer.read(data));
                    }
                    let data = frame.data_ref().map_or(&[][..], |data| data);
                    flight.tell(data, Instant::now());
                }
                if self.body.is_end_stream() {
                    self.complete();
                }
            }
            Some(Err(e)) => self.break_off(Reason::BrokenStream, &e.to_string()),
            None => self.complete(),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }
}

impl http_body::Body for Relay {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Piece> {
        loop {
            let piece = ready!(self.as_mut().poll_piece(context));
            let (Some(called), Some(Ok(frame))) = (&mut self.called, &piece) else {
                return Poll::Ready(piece);
            };
            let Some(data) = frame.data_ref() else {
                return Poll::Ready(piece);
            };
            let data = called.read(data);
            // All of it was the name that another has taken the place of.
            if !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.called.is_some() {
            return SizeHint::default();
        }
        self.body.size_hint()
    }
}
