//! Passes requests on to backends, and their answers back.

mod attempt;
mod flight;
mod headers;
mod relay;
mod tunnel;

use std::borrow::Cow;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::Version;
use axum::http::header::AUTHORIZATION;
use axum::http::uri::PathAndQuery;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use tracing::debug;

use crate::backend::{Backend, Connection};
use crate::body::Received;
use crate::error::Refusal;
use crate::live::{NoPlace, Wanted};
use crate::shared::Shared;
use crate::{admission, catalog, model};
use attempt::{Attempt, Outgoing, attempt, out_of_descriptors};
use flight::Flight;

pub(crate) async fn handler(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    let mut flight = Flight::begin(shared, &mut request);
    match forward(&mut flight, request).await {
        Ok((response, connection)) => relay::relay(flight, response, connection),
        Err(refusal) => {
            flight.status = Some(refusal.status());
            refusal.into_response()
        }
    }
}

async fn forward(
    flight: &mut Flight,
    request: Request,
) -> Result<(hyper::Response<Incoming>, Connection), Refusal> {
    let path = admission::admit(&flight.shared, &request, flight.number)?;
    let mut outgoing = receive(flight, path, request).await?;
    let strict = admission::is_openai(&outgoing.path);
    // Borrows the body, which may be taken below.
    let model = model::named(outgoing.path.path(), &outgoing.body).map(Cow::into_owned);
    let wanted = Wanted {
        model: model.as_deref(),
        strict,
        affine: None,
    };
    let shared = Arc::clone(&flight.shared);
    let mut tried: Vec<Arc<Backend>> = Vec::new();
    let mut problem = None;
    loop {
        let place = shared.live.take(&wanted, &tried);
        let place = place.map_err(|none| refusal(&shared, none, problem.take(), wanted.model))?;
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

/// Reads what is to be kept of a request, and makes its headers the gateway's.
async fn receive(
    flight: &mut Flight,
    path: PathAndQuery,
    mut request: Request,
) -> Result<Outgoing, Refusal> {
    if headers::ask_for_upgrade(request.headers()) && request.version() == Version::HTTP_11 {
        flight.upgrade = Some(hyper::upgrade::on(&mut request));
    }
    let (mut parts, body) = request.into_parts();
    headers::forward(
        &mut parts.headers,
        flight.peer.address,
        flight.upgrade.is_some(),
    );
    if flight.shared.options.api_key.is_some() {
        // It is the gateway's, and no business of a backend's.
        parts.headers.remove(AUTHORIZATION);
    }
    Ok(Outgoing {
        method: parts.method,
        path,
        headers: parts.headers,
        body: Received::read(body).await?,
    })
}

/// What is said when no place was to be had, the last of those tried having had this problem.
fn refusal(
    shared: &Shared,
    none: NoPlace,
    problem: Option<String>,
    model: Option<&str>,
) -> Refusal {
    let retry_after = shared.options.health_interval;
    match (problem, none, model) {
        (Some(problem), ..) => Refusal::Unreachable(problem, retry_after),
        (None, NoPlace::NoSuchModel, Some(model)) => {
            Refusal::NoSuchModel(model.to_owned(), catalog::names(&shared.live))
        }
        (None, NoPlace::Full, _) => Refusal::Full,
        (None, ..) => Refusal::AllDown(retry_after),
    }
}
