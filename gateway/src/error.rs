//! What the gateway itself answers when it can't pass a request on, in OpenAI's error shape.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

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
    /// Its body stopped coming.
    BodyTimedOut,
    /// No backend serves this model; these are served.
    NoSuchModel(String, Vec<String>),
    /// No backend that could serve it is up.
    AllDown(Duration),
    /// All of them refused the connection.
    Unreachable(String, Duration),
    /// The backend took the request and did not answer it.
    Broken(String),
    /// All that could serve it have as many as they may have.
    Full,
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
            Self::Unsupported(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadBody(_) => StatusCode::BAD_REQUEST,
            Self::BodyTimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable(..) | Self::Broken(_) => StatusCode::BAD_GATEWAY,
            Self::NoBackends(_)
            | Self::Full
            | Self::AllDown(_)
            | Self::Overloaded
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
            Self::NoSuchModel(..) => "model_not_found",
            Self::AllDown(_) => "backends_down",
            Self::Unreachable(..) => "backend_unreachable",
            Self::Broken(_) => "backend_failed",
            Self::Full | Self::Overloaded => "overloaded",
            Self::Draining => "shutting_down",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::NoSuchPath(path) => format!("no such path: {path}"),
            Self::NoBackends(hint) => hint.clone(),
            Self::Unauthorized => {
                "wrong or missing API key: send it as Authorization: Bearer KEY".to_owned()
            }
            Self::Unsupported(what) => format!("not supported: {what}"),
            Self::BadBody(problem) => format!("cannot read the request body: {problem}"),
            Self::BodyTimedOut => "the request body stopped coming".to_owned(),
            Self::NoSuchModel(model, served) if served.is_empty() => {
                format!("the model `{model}` does not exist: no backend serves any")
            }
            Self::NoSuchModel(model, served) => format!(
                "the model `{model}` does not exist; these do: {}",
                served.join(", ")
            ),
            Self::AllDown(_) => "no backend that could serve this is up".to_owned(),
            Self::Unreachable(problem, _) => format!("no backend can be reached: {problem}"),
            Self::Broken(problem) => format!("the backend did not answer: {problem}"),
            Self::Full => {
                "every backend that could serve this has as many requests as it may".to_owned()
            }
            Self::Overloaded => "too many requests in flight".to_owned(),
            Self::Draining => "the gateway is shutting down".to_owned(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::NoBackends(_) | Self::Full | Self::Overloaded | Self::Draining => {
                Some(Duration::ZERO)
            }
            Self::AllDown(interval) | Self::Unreachable(_, interval) => Some(*interval),
            _ => None,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let kind = if status.is_server_error() {
            "server_error"
        } else {
            "invalid_request_error"
        };
        let param = matches!(self, Self::NoSuchModel(..)).then_some("model");
        let error = json!({ "error": {
            "message": self.message(), "type": kind, "param": param, "code": self.code(),
        }});
        let mut response = (status, Json(error)).into_response();
        let headers = response.headers_mut();
        if let Some(delay) = self.retry_after() {
            // Whole seconds are all that the header can say.
            let seconds = delay.as_secs_f64().ceil().clamp(1.0, 3600.0) as u64;
            headers.insert(RETRY_AFTER, seconds.into());
        }
        match self {
            Self::Unauthorized => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Draining | Self::BodyTimedOut => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
