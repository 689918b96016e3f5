//! Passes requests on to backends, and their answers back.

mod attempt;
mod deadline;
mod dispatch;
mod flight;
mod headers;
mod naming;
mod relay;
mod repeat;
mod tally;
mod trace;
mod tunnel;
mod waiting;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::TRANSFER_ENCODING;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderValue, Version};
use axum::response::{IntoResponse, Response};

use crate::affinity::Conversation;
use crate::backend::Backend;
use crate::body::Received;
use crate::desk::NoPlace;
use crate::error::Refusal;
use crate::model::place::Place;
use crate::model::{Asked, Found, Search};
use crate::peer::Peer;
use crate::pick::Wanted;
use crate::shared::Shared;
use crate::{admission, model, slots, via};
use attempt::Outgoing;
use dispatch::{Answer, dispatch};
use flight::Flight;
use naming::{Wording, ask_by_name};
use tally::Tally;
use trace::Trace;

pub(crate) async fn handler(State(shared): State<Arc<Shared>>, mut request: Request) -> Response {
    let peer = Peer::of(&mut request);
    pass_on(shared, peer, request).await
}

/// The same for a request that has not come through the router.
pub(crate) async fn direct(shared: Arc<Shared>, peer: Arc<Peer>, request: Request) -> Response {
    if let Err(refusal) = admission::check_key(&shared, &request) {
        return refusal.into_response();
    }
    pass_on(shared, peer, request).await
}

async fn pass_on(shared: Arc<Shared>, peer: Arc<Peer>, mut request: Request) -> Response {
    let trace = Arc::new(Trace::of(&mut request));
    let mut flight = Flight::begin(shared, peer, &request, Arc::clone(&trace));
    let forwarded = forward(&mut flight, request).await;
    let place = flight.place.as_ref();
    let backend = place.map(|place| Arc::clone(place));
    let mut response = match forwarded {
        Ok((response, connection)) => relay::relay(flight, response, connection),
        Err(refusal) => {
            flight.status = Some(refusal.status());
            refusal.into_response()
        }
    };
    let backend = backend.as_ref().map(|backend| backend.name.as_str());
    trace.tell(response.headers_mut(), backend);
    response
}

async fn forward(flight: &mut Flight, request: Request) -> Result<Answer, Refusal> {
    if via::has_been_here(request.headers(), &flight.shared.via) {
        return Err(Refusal::Loop);
    }
    if slots::is_asked(request.uri().path(), request.headers()) {
        return Err(Refusal::NoSuchPath(request.uri().path().to_owned()));
    }
    let path = admission::admit(&flight.shared, &request)?;
    flight.makes = model::makes(path.path());
    let (mut outgoing, asked, place) = receive(flight, path, request).await?;
    let shared = Arc::clone(&flight.shared);
    flight.take_slot()?;
    let maker = asked.follows.and_then(|id| shared.made.maker(&id));
    let is_silent = asked.model == Found::Nothing;
    let model = match asked.model {
        Found::Text(model) => Some(model),
        Found::Nothing => None,
        Found::Unreadable if maker.is_some() => None,
        Found::Unreadable => match why_names_matter(&shared) {
            Some(why) => return Err(Refusal::UnknowableModel(why)),
            None => None,
        },
    };
    if shared.options.naming.is_empty() {
        return ask(flight, &mut outgoing, model.as_deref(), maker.as_ref()).await;
    }
    let wording = Wording::new(&outgoing, model, is_silent, place);
    // On the heap, as most gateways have none.
    Box::pin(ask_by_name(flight, &mut outgoing, wording, maker.as_ref())).await
}

/// Asks the backends for an answer, or the one that made what this follows up on.
async fn ask(
    flight: &mut Flight,
    outgoing: &mut Outgoing,
    model: Option<&str>,
    maker: Option<&Arc<Backend>>,
) -> Result<Answer, Refusal> {
    let shared = Arc::clone(&flight.shared);
    flight.tally = model
        .filter(|model| shared.live.roster().lists(model))
        .map(|model| Tally::new(model.into()));
    // Where there is a choice, and it is worth to remember it.
    let has_choice =
        maker.is_none() && !flight.is_strangers && shared.live.roster().members().len() > 1;
    let conversation = has_choice.then(|| outgoing.conversation(&shared, model));
    let conversation = conversation.flatten();
    let conversation = conversation.as_ref();
    let home = conversation.and_then(|c| shared.homes.find(c));
    let wanted = Wanted {
        model,
        strict: admission::is_openai(&outgoing.path),
        affine: maker.map(|maker| maker.name.as_str()),
        anchor: conversation.map(Conversation::anchor),
        home: home.as_ref(),
    };
    dispatch(flight, outgoing, &wanted, conversation).await
}

/// Reads what is to be kept of a request, and makes its headers the gateway's.
async fn receive(
    flight: &mut Flight,
    path: PathAndQuery,
    mut request: Request,
) -> Result<(Outgoing, Asked, Option<Place>), Refusal> {
    if headers::ask_for_upgrade(request.headers()) && request.version() == Version::HTTP_11 {
        flight.upgrade = Some(hyper::upgrade::on(&mut request));
    }
    let asked = Asked::by_uri(request.uri());
    let mut search = Search::new(path.path(), request.headers());
    let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
    let (mut parts, body) = request.into_parts();
    let shared = &flight.shared;
    headers::forward(
        &mut parts.headers,
        flight.peer.forwarded.as_ref(),
        flight.upgrade.is_some(),
        if shared.options.tls.is_some() {
            "https"
        } else {
            "http"
        },
    );
    via::add(&mut parts.headers, &shared.via);
    flight.trace.carry(&mut parts.headers);
    if shared.options.api_key.is_some() {
        // It is the gateway's, and no business of a backend's.
        headers::remove_keys(&mut parts.headers);
    }
    let is_named = !shared.options.naming.is_empty();
    let needed = asked.model == Found::Nothing && why_names_matter(shared).is_some();
    let body = Received::read(body, &mut search, &shared.intake, needed).await?;
    if is_chunked && !body.has_length() {
        // For some methods it would be left out otherwise, and the body with it.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.insert(TRANSFER_ENCODING, chunked);
    }
    let is_all = body.rest.is_none() || !needed;
    let outgoing = Outgoing::new(parts.method, path, parts.headers, body);
    let in_body = search.asked(is_all);
    let names_it = in_body.model != Found::Nothing;
    let asked = asked.unless(in_body);
    // A body that leaves it to the query stays as it is.
    let in_place = is_named && (names_it || asked.model == Found::Nothing);
    let place = if in_place { Place::of(&search) } else { None };
    Ok((outgoing, asked, place))
}

/// Why it matters which model is asked for, if it does.
fn why_names_matter(shared: &Shared) -> Option<&'static str> {
    if shared.live.roster().differ() {
        Some("the backends serve different ones")
    } else if !shared.options.naming.is_empty() {
        Some("some names stand for other models here (an alias, a fallback or a default)")
    } else {
        None
    }
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
            let catalog = shared.catalog();
            let (names, more) = catalog.names.clone();
            Refusal::NoSuchModel(model.to_owned(), names, more)
        }
        (None, NoPlace::Full, _) => Refusal::Full,
        (None, ..) => Refusal::AllDown(retry_after),
    }
}
