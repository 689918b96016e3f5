//! What the gateway itself answers when it can't pass a request on, in OpenAI's error shape.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONNECTION, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// Tells OpenAI's clients, which send again what got a 5xx unless they are told not to.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// A request that goes no further.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is nothing at this path, nor a backend that might know it.
    NoSuchPath(String),
    /// There are none; what to do about it.
    NoBackends(String),
    /// The bearer token is missing or not the key.
    Unauthorized,
    /// It asks for something a reverse proxy can't do.
    Unsupported(&'static str),
    /// Its body was not to be read.
    BadBody(String),
    /// Its body stopped coming, or came too slowly.
    BodyTimedOut,
    /// It is no proper HTTP.
    Malformed(&'static str),
    /// It is proper HTTP, of a kind that is not spoken here.
    Unimplemented(&'static str),
    /// It speaks a version of HTTP that is not spoken here.
    VersionNotSupported,
    /// This is no way to ask for what is here.
    MethodNotAllowed,
    /// Its head is too big.
    HeadTooLarge,
    /// Its path is too long.
    PathTooLong,
    /// It names a model that is not to be read, which matters for this reason.
    UnknowableModel(&'static str),
    /// As many bodies are on their way as may be.
    TooManyUploads,
    /// No backend serves this model; these are served, and so many more.
    NoSuchModel(String, Vec<String>, usize),
    /// No backend that could serve it is up.
    AllDown(Duration),
    /// All of them refused the connection.
    Unreachable(String, Duration),
    /// The backend took the request and did not answer it.
    Broken(String),
    /// The backend took the request and did not answer it in time.
    TooLate(String),
    /// It has been here before.
    Loop,
    /// All that could serve it have as many as they may have.
    Full,
    /// And as many wait for them as may; when it may have gone on.
    QueueFull(Duration),
    /// It has waited for them as long as it may.
    QueueTimedOut,
    /// As many are in flight as may be.
    Overloaded,
    /// The gateway is about to end.
    Draining,
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchPath(_) | Self::NoSuchModel(..) => StatusCode::NOT_FOUND,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Unsupported(_) | Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadBody(_) | Self::Malformed(_) | Self::UnknowableModel(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Unimplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::VersionNotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::PathTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable(..) | Self::Broken(_) => StatusCode::BAD_GATEWAY,
            Self::TooLate(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Loop => StatusCode::LOOP_DETECTED,
            Self::QueueFull(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoBackends(_)
            | Self::Full
            | Self::QueueTimedOut
            | Self::AllDown(_)
            | Self::Overloaded
            | Self::TooManyUploads
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::NoSuchPath(_) => "not_found",
            Self::NoBackends(_) => "no_backends",
            Self::Unauthorized => "invalid_api_key",
            Self::Unsupported(_) => "unsupported",
            Self::BadBody(_) => "invalid_body",
            Self::BodyTimedOut => "request_timeout",
            Self::Malformed(_) => "malformed_request",
            Self::Unimplemented(_) => "unsupported",
            Self::VersionNotSupported => "http_version_not_supported",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::HeadTooLarge => "headers_too_large",
            Self::PathTooLong => "path_too_long",
            Self::UnknowableModel(_) => "unreadable_model",
            Self::NoSuchModel(..) => "model_not_found",
            Self::AllDown(_) => "backends_down",
            Self::Unreachable(..) => "backend_unreachable",
            Self::Broken(_) => "backend_failed",
            Self::TooLate(_) => "backend_timeout",
            Self::Loop => "loop_detected",
            Self::Full | Self::Overloaded | Self::TooManyUploads => "overloaded",
            Self::QueueFull(_) => "queue_full",
            Self::QueueTimedOut => "queue_timeout",
            Self::Draining => "shutting_down",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoSuchPath(path) => format!("no such path: {path}"),
            Self::NoBackends(hint) => hint.clone(),
            Self::Unauthorized => {
                "wrong or missing API key: send it as Authorization: Bearer KEY, or as x-api-key"
                    .to_owned()
            }
            Self::Unsupported(what) => format!("not supported: {what}"),
            Self::BadBody(problem) => format!("cannot read the request body: {problem}"),
            Self::BodyTimedOut => "the request body stopped coming, or comes too slowly".to_owned(),
            Self::Malformed(what) => format!("this is no proper request: {what}"),
            Self::Unimplemented(what) => format!("not supported: {what}"),
            Self::VersionNotSupported => "HTTP/2 is not spoken here: ask by HTTP/1.1".to_owned(),
            Self::MethodNotAllowed => "this path does not take that method".to_owned(),
            Self::HeadTooLarge => "the request's headers are too many, or too long".to_owned(),
            Self::PathTooLong => "the request's path is too long".to_owned(),
            Self::UnknowableModel(why) => format!(
                "cannot tell which model this asks for, and {why}: send it as a string, early in a \
                 whole body, plain or gzip"
            ),
            Self::TooManyUploads => "too many request bodies are on their way".to_owned(),
            Self::NoSuchModel(model, served, more) => no_such_model(model, served, *more),
            Self::AllDown(_) => "no backend that could serve this is up".to_owned(),
            Self::Unreachable(problem, _) => format!("no backend can be reached: {problem}"),
            Self::Broken(problem) => format!("the backend did not answer: {problem}"),
            Self::TooLate(problem) => format!("the backend is too slow: {problem}"),
            Self::Loop => {
                "this request has come back to where it came from: a backend is this very \
                           server, or has it among its own backends"
                    .to_owned()
            }
            Self::Full => {
                "every backend that could serve this has as many requests as it may".to_owned()
            }
            Self::QueueFull(_) => {
                "every backend that could serve this has as many requests as it may, \
                and so has the queue"
                    .to_owned()
            }
            Self::QueueTimedOut => {
                "every backend that could serve this has as many requests as it \
                may, or has yet to be found up, and this has waited as long as it may"
                    .to_owned()
            }
            Self::Overloaded => "too many requests in flight".to_owned(),
            Self::Draining => "the gateway is shutting down".to_owned(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoBackends(_)
            | Self::Full
            | Self::QueueTimedOut
            | Self::Overloaded
            | Self::TooManyUploads
            | Self::Draining => Some(Duration::ZERO),
            Self::QueueFull(time) => Some(*time),
            Self::AllDown(interval) | Self::Unreachable(_, interval) => Some(*interval),
            _ => None,
        }
    }
}

/// At most so much of a name is repeated.
const NAME: usize = 200;

fn no_such_model(model: &str, served: &[String], more: usize) -> String {
    let model: String = model.chars().take(NAME).collect();
    if served.is_empty() {
        return format!("the model `{model}` does not exist: no backend serves any");
    }
    let served = served.join(", ");
    let more = if more > 0 {
        format!(", and {more} more: see /v1/models")
    } else {
        String::new()
    };
    format!("the model `{model}` does not exist; these do: {served}{more}")
}

impl Refusal {
    /// In OpenAI's shape.
    pub(crate) fn json(&self) -> Value {
        let kind = if self.status().is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        let about_model = matches!(self, Self::NoSuchModel(..) | Self::UnknowableModel(_));
        json!({ "error": {
            "message": self.message(),
            "type": kind,
            "param": about_model.then_some("model"),
            "code": self.code(),
        }})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.json())).into_response();
        let headers = response.headers_mut();
        if let Some(delay) = self.retry_after() {
            // Whole seconds are all that the header can say.
            let seconds = delay.as_secs_f64().ceil().clamp(1.0, 3600.0) as u64;
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match self {
            // It may have died of it, and so would the next.
            Self::Broken(_) | Self::Loop => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Self::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Draining
            | Self::BodyTimedOut
            | Self::Malformed(_)
            | Self::Unimplemented(_)
            | Self::TooManyUploads => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
