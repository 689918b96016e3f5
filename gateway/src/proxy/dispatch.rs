//! A request's way from backend to backend, until one has answered it or none is left to ask.
//!
//! Apart from the attempt at one of them, which knows nothing of the others.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderMap, StatusCode};
use hyper::body::Incoming;

use super::attempt::{Attempt, Outgoing, attempt, out_of_descriptors};
use super::flight::Flight;
use super::waiting::{self, Patience, Without};
use crate::affinity::Conversation;
use crate::backend::{Connection, Place};
use crate::error::Refusal;
use crate::pick::{Tried, Wanted};
use crate::report::{self, Again, Reason};
use crate::verdict;

pub(super) type Answer = (hyper::Response<Incoming>, Connection);

/// How long one that has enough is spared, if it does not say.
const SPARED: Duration = Duration::from_secs(1);

/// The longest time that is believed.
const SPARED_AT_MOST: Duration = Duration::from_secs(60);

/// Leaves the flight with its place at the backend that answered.
pub(super) async fn dispatch(
    flight: &mut Flight,
    outgoing: &mut Outgoing,
    wanted: &Wanted<'_>,
    conversation: Option<&Conversation>,
) -> Result<Answer, Refusal> {
    let shared = Arc::clone(&flight.shared);
    let first_byte = shared.options.first_byte_timeout;
    let upgrade = flight.upgrade.is_some();
    let mut tried = Tried::default();
    let mut patience = Patience::default();
    let mut problem = None;
    // What one said that has enough, for when nobody has anything better to say.
    let mut spare: Option<(Place, Answer)> = None;
    loop {
        let place = if flight.is_strangers {
            shared.live.aside(wanted, &tried).map_err(Without::Place)
        } else {
            waiting::place(&shared, &flight.peer, wanted, &tried, &mut patience).await
        };
        let place = match place {
            Ok(place) => place,
            Err(without) => {
                if let Some((place, answer)) = spare {
                    flight.place = Some(place);
                    return Ok(answer);
                }
                return Err(match without {
                    Without::Wait(refusal) => refusal,
                    Without::Place(none) => super::refusal(&shared, none, problem, wanted.model),
                });
            }
        };
        let backend = Arc::clone(&place);
        if let Some(conversation) = conversation {
            shared.homes.note(conversation, &backend);
        }
        let is_evidence = !flight.is_strangers;
        let place = flight.place.insert(place);
        match attempt(&shared, &backend, outgoing, upgrade, first_byte).await? {
            Attempt::Answered(response, connection) => {
                verdict::answered(&shared, place, response.status());
                let has_enough = has_enough(&response);
                if let Some(time) = has_enough
                    && is_evidence
                {
                    backend.cool(time);
                }
                // What only one has made, no other can answer for.
                let anyone = wanted.affine.is_none();
                let again = anyone && outgoing.whole && !upgrade && !tried.turned_away;
                if has_enough.is_none() || !again {
                    return Ok((response, connection));
                }
                tried.turned_away = true;
                spare = flight.place.take().map(|mut place| {
                    place.give_back();
                    (place, (response, connection))
                });
                report::sent_again(&shared.metrics, &backend.name, Again::TurnedAway);
            }
            Attempt::Unreachable(e) => {
                problem = Some(format!("{}: {e}", backend.name));
                if !out_of_descriptors(&e) {
                    verdict::unreachable(&shared, &backend, &e);
                }
                report::sent_again(&shared.metrics, &backend.name, Again::Unreachable);
                flight.place = None;
            }
            Attempt::Failed(reason, problem) => {
                verdict::failed(&shared, place, reason, &problem);
                return Err(match reason {
                    Reason::Timeout => Refusal::TooLate(problem),
                    _ => Refusal::Broken(problem),
                });
            }
        }
        tried.add(backend);
    }
}

/// Whether it says that it has as much to do as it can, and for how long.
fn has_enough(response: &hyper::Response<Incoming>) -> Option<Duration> {
    let status = response.status();
    let says_so = matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
    );
    says_so.then(|| {
        retry_after(response.headers())
            .unwrap_or(SPARED)
            .min(SPARED_AT_MOST)
    })
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn when_to_come_again_is_said_in_seconds_or_by_a_date() {
        let read = |value: &str| {
            let value = HeaderValue::try_from(value).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]))
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        let soon = SystemTime::now() + Duration::from_secs(100);
        let left = read(&httpdate::fmt_http_date(soon)).unwrap();
        assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(100));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
