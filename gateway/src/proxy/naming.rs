//! Asks for the model that a name stands for, and for others while nobody serves that.
//!
//! Apart from choosing a backend, which knows models as backends list them.

use std::sync::Arc;

use axum::http::Method;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use axum::http::uri::PathAndQuery;
use bytes::Bytes;

use super::ask;
use super::attempt::Outgoing;
use super::dispatch::Answer;
use super::flight::Flight;
use super::repeat::is_inference;
use crate::backend::Backend;
use crate::error::Refusal;
use crate::model::place::{Place, add_to_query, put_in_path, takes_query, unpacked};
use crate::shared::Shared;

/// What a request says of its model, as the client wrote it.
pub(super) struct Wording {
    asked: Option<String>,
    /// It names no model.
    is_silent: bool,
    /// It has a model compute something: another may do that in its place, or a default.
    computes: bool,
    place: Option<Place>,
    path: PathAndQuery,
    body: Bytes,
}

impl Wording {
    pub(super) fn new(
        outgoing: &Outgoing,
        asked: Option<String>,
        is_silent: bool,
        place: Option<Place>,
    ) -> Self {
        let path = &outgoing.path;
        let is_sent = outgoing.method == Method::POST && is_inference(path.path());
        Self {
            computes: is_sent || takes_query(path.path()),
            is_silent,
            asked,
            place,
            path: path.clone(),
            body: outgoing.start().clone(),
        }
    }

    /// Has this model asked for.
    async fn put(
        &self,
        outgoing: &mut Outgoing,
        shared: &Shared,
        model: &str,
    ) -> Result<(), Refusal> {
        if self.asked.as_deref() == Some(model) {
            return outgoing.replace(self.path.clone(), self.body.clone(), shared);
        }
        let path = match &self.asked {
            Some(asked) => put_in_path(&self.path, asked, model),
            None if takes_query(self.path.path()) => add_to_query(&self.path, model),
            None => Some(self.path.clone()),
        };
        let path = path.ok_or(Refusal::PathTooLong)?;
        let body = match &self.place {
            None => self.body.clone(),
            Some(place) if place.packed => {
                let plain = self.unpacked(outgoing, shared).await?;
                // It can't be packed again as it was.
                outgoing.headers.remove(CONTENT_ENCODING);
                place.put_into(plain, model).ok_or_else(gone)?
            }
            Some(place) => {
                // Both are there until the last name has been tried.
                outgoing.keep(2 * self.body.len(), shared)?;
                place.put(&self.body, model).ok_or_else(gone)?
            }
        };
        outgoing.replace(path, body, shared)
    }

    async fn unpacked(&self, outgoing: &mut Outgoing, shared: &Shared) -> Result<Vec<u8>, Refusal> {
        if !outgoing.whole {
            return Err(Refusal::BadBody(UNPACKED.to_owned()));
        }
        let unpacked = unpacked(&self.body, |len| outgoing.keep(len, shared)).await?;
        unpacked.ok_or_else(|| Refusal::BadBody(UNPACKED.to_owned()))
    }
}

const UNPACKED: &str = "its model has another name here, which can be put into a gzip body that is \
    whole and unpacks to 16 MiB at most: send it without compression";

/// Where it was found, it is.
fn gone() -> Refusal {
    Refusal::BadBody("its model is not where it was".to_owned())
}

/// Leaves the flight with its place at the backend that answered, and with the name that the answer
/// is to say.
pub(super) async fn ask_by_name(
    flight: &mut Flight,
    outgoing: &mut Outgoing,
    wording: Wording,
    maker: Option<&Arc<Backend>>,
) -> Result<Answer, Refusal> {
    let shared = Arc::clone(&flight.shared);
    let naming = &shared.options.naming;
    let may_default = wording.is_silent && wording.computes;
    let default = naming.default_name().filter(|_| may_default);
    let Some(name) = wording.asked.clone().or(default.map(str::to_owned)) else {
        return ask(flight, outgoing, None, maker).await;
    };
    let order = naming.order(&name);
    let model = order[0];
    let mut served = served(&shared, &order);
    // Nobody is to delete or train another than was meant.
    if maker.is_some() || !wording.computes || served.is_empty() {
        served = vec![model];
    }
    let last = served.pop().unwrap_or(model);
    for one in served {
        match ask_for(flight, outgoing, &wording, (one, model), maker).await {
            // Nobody has taken it.
            Err(Refusal::Unreachable(..) | Refusal::AllDown(_)) => {}
            answer => return answer,
        }
    }
    ask_for(flight, outgoing, &wording, (last, model), maker).await
}

/// Asks for one, where the name stands for `model`.
async fn ask_for(
    flight: &mut Flight,
    outgoing: &mut Outgoing,
    wording: &Wording,
    (one, model): (&str, &str),
    maker: Option<&Arc<Backend>>,
) -> Result<Answer, Refusal> {
    let shared = Arc::clone(&flight.shared);
    wording.put(outgoing, &shared, one).await?;
    let asked = wording.asked.as_deref().filter(|asked| *asked != one);
    flight.called = asked.filter(|_| one == model).map(str::to_owned);
    if flight.called.is_some() {
        // Nothing is put into what is packed.
        outgoing.headers.remove(ACCEPT_ENCODING);
    }
    ask(flight, outgoing, Some(one), maker).await
}

/// Those that a backend that is up serves, or may serve.
fn served<'a>(shared: &Shared, order: &[&'a str]) -> Vec<&'a str> {
    let roster = shared.live.roster();
    let models = order.iter().copied();
    models.filter(|model| roster.is_served(model)).collect()
}
