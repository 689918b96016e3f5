//! A request from its arrival until its answer has gone out, or nobody waits for it any more.
//!
//! Whatever ends it, it is counted and told of once, and its place is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{Method, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{Level, enabled};

use super::tally::Tally;
use super::trace::Trace;
use crate::admission;
use crate::backend::Place;
use crate::error::Refusal;
use crate::peer::Peer;
use crate::report::{self, Ended, Reason};
use crate::shared::Shared;
use crate::verdict;

pub(super) struct Flight {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Arc<Peer>,
    /// One of those that may be passed on, once its body is here.
    slot: Option<OwnedSemaphorePermit>,
    /// It is a preflight of somebody who shows no key.
    pub(super) is_strangers: bool,
    /// Its answer may tell of something that the backend has made.
    pub(super) makes: bool,
    /// Where it asks for a model that is listed.
    pub(super) tally: Option<Tally>,
    pub(super) started: Instant,
    pub(super) trace: Arc<Trace>,
    /// For the log, if that is on: method, and path without the query, which may hold a key.
    line: Option<(Method, String)>,
    pub(super) place: Option<Place>,
    pub(super) upgrade: Option<OnUpgrade>,
    /// What its answer is to call the model.
    pub(super) called: Option<String>,
    pub(super) version: Version,
    pub(super) status: Option<StatusCode>,
    pub(super) first_byte: Option<Duration>,
    pub(super) end: &'static str,
}

impl Flight {
    pub(super) fn begin(
        shared: Arc<Shared>,
        peer: Arc<Peer>,
        request: &Request,
        trace: Arc<Trace>,
    ) -> Self {
        shared.life.enter();
        peer.busy.fetch_add(1, Ordering::AcqRel);
        let line = || (request.method().clone(), request.uri().path().to_owned());
        let is_strangers = admission::is_strangers(&shared, request);
        let logged = shared.options.access_log || enabled!(Level::DEBUG);
        Self {
            slot: None,
            is_strangers,
            makes: false,
            tally: None,
            started: Instant::now(),
            trace,
            line: logged.then(line),
            place: None,
            upgrade: None,
            called: None,
            version: request.version(),
            status: None,
            first_byte: None,
            end: "",
            shared,
            peer,
        }
    }

    /// A piece of its answer has come.
    pub(super) fn tell(&mut self, data: &[u8], now: Instant) {
        self.first_byte.get_or_insert_with(|| now - self.started);
        let Some(place) = &self.place else {
            return;
        };
        place.answering(now);
        if let Some(tally) = &mut self.tally {
            tally.piece(data, (self.started, now), place, &self.shared.metrics);
        }
    }

    /// It has been answered to the end.
    pub(super) fn succeeded(&mut self) {
        if let Some(place) = &mut self.place {
            place.succeeded();
        }
    }

    /// Its backend failed it in the midst of the answer.
    pub(super) fn failed(&mut self, reason: Reason, problem: &str) {
        if let Some(place) = &mut self.place {
            verdict::failed(&self.shared, place, reason, problem);
        }
    }

    /// From here on it counts among the requests in flight, or among the strangers'.
    pub(super) fn take_slot(&mut self) -> Result<(), Refusal> {
        let slots = Arc::clone(if self.is_strangers {
            &self.shared.preflights
        } else {
            &self.shared.slots
        });
        let slot = slots.try_acquire_owned().map_err(|_| Refusal::Overloaded)?;
        self.slot = Some(slot);
        Ok(())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let line = self.line.as_ref();
        report::ended(
            &self.shared,
            &Ended {
                id: self.trace.id(),
                line: line.map(|(method, path)| (method.as_str(), path.as_str())),
                peer: self.peer.address,
                backend: self.place.as_ref().map(|place| &***place),
                status: self.status,
                first_byte: self.first_byte,
                total: self.started.elapsed(),
                end: self.end,
                model: self.tally.as_ref().map(Tally::model),
                usage: self.tally.as_ref().and_then(Tally::usage),
            },
        );
        self.slot = None;
        // Its place before the count that the end waits for.
        self.place = None;
        self.peer.busy.fetch_sub(1, Ordering::AcqRel);
        self.shared.life.leave();
    }
}
