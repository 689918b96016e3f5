//! A request from its arrival until its answer has gone out, or nobody waits for it any more.
//!
//! Whatever ends it, it is counted and told of once, and its place is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use tracing::{Level, enabled};

use crate::backend::Place;
use crate::peer::Peer;
use crate::report::{self, Ended};
use crate::shared::Shared;

pub(super) struct Flight {
    pub(super) shared: Arc<Shared>,
    pub(super) peer: Peer,
    /// It was this many in flight when it came, itself included.
    pub(super) number: usize,
    pub(super) started: Instant,
    /// For the access log, if that is on.
    line: Option<String>,
    pub(super) place: Option<Place>,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) version: Version,
    pub(super) status: Option<StatusCode>,
    pub(super) first_byte: Option<Duration>,
    pub(super) end: &'static str,
}

impl Flight {
    pub(super) fn begin(shared: Arc<Shared>, request: &mut Request) -> Self {
        let peer = Peer::of(request);
        let number = shared.life.enter();
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
            shared,
            peer,
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        report::ended(
            &self.shared.metrics,
            &Ended {
                line: self.line.as_deref(),
                peer: self.peer.address,
                backend: self.place.as_ref().map(|place| place.name.as_str()),
                status: self.status,
                first_byte: self.first_byte,
                total: self.started.elapsed(),
                end: self.end,
            },
        );
        // Its place before the count that the end waits for.
        self.place = None;
        self.peer.busy.fetch_sub(1, Ordering::AcqRel);
        self.shared.life.leave();
    }
}
