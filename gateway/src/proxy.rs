//! Passes requests on to backends, and their answers back.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Level, debug, enabled};

use crate::backend::{Backend, NoPlace, Place};
use crate::body::{Received, Upload};
use crate::connection::Connection;
use crate::error::Refusal;
use crate::metrics::CLIENT_LEFT;
use crate::{Gateway, Phase};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whose connection a request came on.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// How many of its requests are in flight.
    pub(crate) busy: Arc<AtomicUsize>,
    /// Its last answer broke off, and only the way in which the connection ends can tell.
    pub(crate) broken: Arc<AtomicBool>,
    /// The room it takes: also as a tunnel, which outlasts the connection's HTTP.
    pub(crate) _permit: Arc<OwnedSemaphorePermit>,
}

pub(crate) async fn handler(
    State(gateway): State<Arc<Gateway>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let mut flight = Flight::begin(gateway, peer, &request);
    match forward(&mut flight, request).await {
        Ok((response, connection)) => flight.relay(response, connection),
        Err(refusal) => {
            flight.status = Some(refusal.status());
            refusal.into_response()
        }
    }
}

/// What is the same for every backend that is tried.
struct Outgoing {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Received,
}

async fn forward(
    flight: &mut Flight,
    mut request: Request,
) -> Result<(hyper::Response<Incoming>, Connection), Refusal> {
    let gateway = Arc::clone(&flight.gateway);
    let path = match request.uri().path_and_query() {
        Some(path) if request.method() != Method::CONNECT && path.as_str().starts_with('/') => {
            path.clone()
        }
        _ => return Err(Refusal::Unsupported("anything but a path to ask for")),
    };
    let openai = path.path().starts_with("/v1/");
    if *gateway.phase.borrow() != Phase::Serving {
        return Err(Refusal::Draining);
    }
    if gateway.has_no_backends() {
        return Err(if openai || path.path().starts_with("/api/") {
            Refusal::NoBackends
        } else {
            Refusal::NoSuchPath(path.path().to_owned())
        });
    }
    if flight.number > gateway.limits.requests {
        return Err(Refusal::Overloaded);
    }
    if asks_for_upgrade(request.headers()) && request.version() == Version::HTTP_11 {
        flight.upgrade = Some(hyper::upgrade::on(&mut request));
    }
    let (mut parts, body) = request.into_parts();
    forward_headers(
        &mut parts.headers,
        flight.peer.address,
        flight.upgrade.is_some(),
    );
    if let Some(key) = &gateway.backend_key {
        parts.headers.insert(AUTHORIZATION, key.clone());
    } else if gateway.options.api_key.is_some() {
        // It is the gateway's, and no business of a backend's.
        parts.headers.remove(AUTHORIZATION);
    }
    let body = Received::read(body).await?;
    let mut outgoing = Outgoing {
        method: parts.method,
        path,
        headers: parts.headers,
        body,
    };
    let model = model_in_path(outgoing.path.path()).or_else(|| outgoing.body.model());
    // Borrows the body, which may be taken below.
    let model = model.map(Cow::into_owned);
    let mut tried: Vec<Arc<Backend>> = Vec::new();
    let mut problem = None;
    loop {
        let retry_after = gateway.options.health_interval;
        let place = match gateway.backends.choose(model.as_deref(), openai, &tried) {
            Ok(place) => place,
            Err(none) => {
                return Err(match (problem, none, model) {
                    (Some(problem), ..) => Refusal::Unreachable(problem, retry_after),
                    (None, NoPlace::NoSuchModel, Some(model)) => {
                        Refusal::NoSuchModel(model, gateway.model_names())
                    }
                    (None, ..) => Refusal::AllDown(retry_after),
                });
            }
        };
        let backend = Arc::clone(&place);
        flight.place = Some(place);
        match attempt(&backend, &mut outgoing, flight.upgrade.is_some()).await? {
            Attempt::Answered(response, connection) => return Ok((response, connection)),
            Attempt::Unreachable(e) => {
                let problem = &*problem.insert(format!("{}: {e}", backend.name));
                debug!("Cannot connect to {problem}");
                if !out_of_descriptors(&e) {
                    backend.failed(e.to_string());
                }
                flight.place = None;
                tried.push(backend);
            }
        }
    }
}

enum Attempt {
    Answered(hyper::Response<Incoming>, Connection),
    /// It has seen nothing of the request.
    Unreachable(std::io::Error),
}

async fn attempt(
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
        let body = Upload::new(outgoing.body.start.clone(), outgoing.body.rest.take());
        let mut request = hyper::Request::new(body);
        *request.method_mut() = outgoing.method.clone();
        *request.uri_mut() = backend.uri(&outgoing.path);
        *request.headers_mut() = outgoing.headers.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, backend.host_header.clone());
        match connection.send(request).await {
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
fn out_of_descriptors(e: &std::io::Error) -> bool {
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

/// A request from its arrival until its answer has gone out, or nobody waits for it any more.
pub(crate) struct Flight {
    gateway: Arc<Gateway>,
    peer: Peer,
    /// It was this many in flight when it came, itself included.
    number: usize,
    started: Instant,
    /// For the access log, if that is on.
    line: Option<String>,
    place: Option<Place>,
    upgrade: Option<OnUpgrade>,
    version: Version,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    end: &'static str,
}

impl Flight {
    fn begin(gateway: Arc<Gateway>, peer: Peer, request: &Request) -> Self {
        let number = gateway.in_flight.fetch_add(1, Ordering::AcqRel) + 1;
        peer.busy.fetch_add(1, Ordering::AcqRel);
        // Without the query, which may hold a key.
        let line = || format!("{} {}", request.method(), request.uri().path());
        Self {
            number,
            started: Instant::now(),
            line: enabled!(Level::DEBUG).then(line),
            place: None,
            upgrade: None,
            version: request.version(),
            status: None,
            first_byte: None,
            end: "",
            gateway,
            peer,
        }
    }

    fn relay(mut self, response: hyper::Response<Incoming>, connection: Connection) -> Response {
        let (mut parts, body) = response.into_parts();
        self.status = Some(parts.status);
        let switched = parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = parts.headers.get(UPGRADE).cloned();
        if parts.headers.contains_key(TRANSFER_ENCODING) {
            // Overridden by it (RFC 9112, 6.3), and not to be passed on alone.
            parts.headers.remove(CONTENT_LENGTH);
        }
        remove_hop_by_hop(&mut parts.headers);
        if switched {
            let (Some(client), Some(protocol)) = (self.upgrade.take(), protocol) else {
                let refusal = Refusal::Broken("it switched protocols unasked".to_owned());
                self.status = Some(refusal.status());
                return refusal.into_response();
            };
            let headers = &mut parts.headers;
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol);
            let mut response = hyper::Response::from_parts(parts, body);
            let backend = hyper::upgrade::on(&mut response);
            tokio::spawn(self.tunnel(client, backend, connection));
            return response.map(|_| Body::empty());
        }
        self.end = "client left";
        // The server speaks its own version of HTTP to the client.
        parts.version = Version::HTTP_11;
        let mut relay = Relay {
            body,
            flight: Some((self, connection)),
        };
        if relay.body.is_end_stream() {
            relay.complete();
        }
        Response::from_parts(parts, Body::new(relay))
    }

    async fn tunnel(mut self, client: OnUpgrade, backend: OnUpgrade, connection: Connection) {
        let mut phase = self.gateway.phase.subscribe();
        let copy = async {
            let (client, backend) = tokio::try_join!(client, backend).ok()?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::io::copy_bidirectional(&mut client, &mut backend)
                .await
                .ok()
        };
        tokio::select! {
            done = copy => self.end = if done.is_some() { "" } else { "broken" },
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => self.end = "cut",
        }
        drop(connection);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let code = self.status.map_or(CLIENT_LEFT, |status| status.as_u16());
        let total = self.started.elapsed();
        let metrics = &self.gateway.metrics;
        let backend = match &self.place {
            Some(place) => {
                metrics.ended(&place.name, code, self.first_byte, total);
                place.name.as_str()
            }
            None => {
                metrics.count("", code);
                "-"
            }
        };
        if let Some(line) = &self.line {
            let peer = self.peer.address;
            let first = self.first_byte.unwrap_or_default();
            let end = self.end;
            debug!("{peer} {line} {code} {backend} first={first:?} total={total:?} {end}");
        }
        // Its place before the count that the end waits for.
        self.place = None;
        self.peer.busy.fetch_sub(1, Ordering::AcqRel);
        if self.gateway.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.gateway.idle.notify_waiters();
        }
    }
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

/// Makes a client's headers the gateway's.
fn forward_headers(headers: &mut HeaderMap, peer: SocketAddr, upgrade: bool) {
    let protocol = if upgrade {
        headers.remove(UPGRADE)
    } else {
        None
    };
    remove_hop_by_hop(headers);
    // Answered by this server already.
    headers.remove(EXPECT);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    let ip = peer.ip().to_canonical();
    let mut path = String::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        if let Ok(value) = value.to_str() {
            path.push_str(value);
            path.push_str(", ");
        }
    }
    path.push_str(&ip.to_string());
    if let Ok(value) = HeaderValue::try_from(path) {
        headers.insert(X_FORWARDED_FOR, value);
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    // Says the same as those, and would say it wrong now.
    headers.remove(FORWARDED);
}

/// Removes what is meant for this connection alone (RFC 9110, 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|name| name.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    // The only one that is known to bring no request past the gateway.
    let mut protocols = headers.get_all(UPGRADE).iter();
    protocols
        .next()
        .is_some_and(|first| first.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && protocols.next().is_none()
        && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// The ID in `/v1/models/ID`.
pub(crate) fn model_in_path(path: &str) -> Option<Cow<'_, str>> {
    let id = path.strip_prefix("/v1/models/")?;
    (!id.is_empty()).then(|| percent_decoded(id))
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn forwarded(pairs: &[(&'static str, &'static str)], upgrade: bool) -> HeaderMap {
        let peer = "10.0.0.9:1".parse().unwrap();
        let mut headers = headers(pairs);
        forward_headers(&mut headers, peer, upgrade);
        headers
    }

    #[test]
    fn hop_by_hop_headers_stay_and_all_else_goes_on() {
        let out = forwarded(
            &[
                ("connection", "close, X-Mine"),
                ("connection", "x-too"),
                ("x-mine", "1"),
                ("x-too", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("authorization", "Bearer k"),
                ("x-other", "1"),
            ],
            false,
        );
        let mut names: Vec<_> = out.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "x-forwarded-for",
                "x-forwarded-proto",
                "x-other"
            ]
        );
    }

    #[test]
    fn who_asked_is_added_to_who_is_said_to_have() {
        let out = forwarded(
            &[
                ("host", "llm.example"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-for", "5.6.7.8"),
                ("x-forwarded-proto", "https"),
            ],
            false,
        );
        assert_eq!(out["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.0.0.9");
        assert_eq!(out["x-forwarded-host"], "llm.example");
        assert_eq!(out["x-forwarded-proto"], "https");
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_headers() {
        let asks = |pairs| asks_for_upgrade(&headers(pairs));
        assert!(asks(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket")
        ]));
        assert!(!asks(&[
            ("connection", "keep-alive"),
            ("upgrade", "websocket")
        ]));
        assert!(!asks(&[("connection", "upgrade")]));
        assert!(!asks(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        let out = forwarded(&[("connection", "Upgrade"), ("upgrade", "websocket")], true);
        assert_eq!(out["upgrade"], "websocket");
        assert_eq!(out["connection"], "upgrade");
    }

    #[test]
    fn model_names_in_paths_are_decoded() {
        for (path, name) in [
            ("meta/llama", "meta/llama"),
            ("meta%2Fllama", "meta/llama"),
            ("a%3Ab%", "a:b%"),
            ("%zz%4", "%zz%4"),
        ] {
            assert_eq!(percent_decoded(path), name);
        }
    }
}
