//! What benchmarks reach into. No part of what this crate promises.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::task::{Context, Waker};

use axum::http::{HeaderMap, HeaderValue};

use crate::backend::models::Models;
use crate::backend::{Care, Place};
use crate::desk::{Arrival, Asked, Ticket};
use crate::live::Live;
use crate::model::{Found, Search};
use crate::options::Options;
use crate::pick::{Tried, Wanted};
use crate::set::{BackendSet, BackendSpec};

/// Backends that are up, to choose among.
#[allow(missing_debug_implementations)]
pub struct Choosing(Live);

impl Choosing {
    /// This many, each with `listed` models of its own and one, "shared", of all.
    #[must_use]
    pub fn among(count: usize, listed: usize) -> Option<Self> {
        let via = HeaderValue::from_static("1.1 measured");
        let live = Live::new(Care::of(&Options::new(), 1, via), 0);
        let urls = (0..count).map(|index| format!("http://backend-{index}:8000").parse());
        let specs: Vec<_> = urls
            .map(|url| Some(BackendSpec::new(url.ok()?)))
            .collect::<Option<_>>()?;
        for (index, backend) in live
            .apply(&specs.into_iter().collect())
            .added
            .iter()
            .enumerate()
        {
            let own = (0..listed).map(|model| format!("{{\"id\":\"model-{index}-{model}\"}}"));
            let all: Vec<_> = own.chain(["{\"id\":\"shared\"}".to_owned()]).collect();
            backend.set_models(Models::parse(
                format!("{{\"data\":[{}]}}", all.join(",")).as_bytes(),
            ));
            backend.succeeded();
        }
        live.relist();
        Some(Self(live))
    }

    /// Takes a place for this model and gives it back. Returns whether there was one.
    #[must_use]
    pub fn take(&self, model: Option<&str>) -> bool {
        self.0.take(&wanted(model), &Tried::default()).is_ok()
    }

    /// The same for a conversation that is not known yet.
    #[must_use]
    pub fn begin(&self, model: Option<&str>, anchor: u64) -> bool {
        let wanted = Wanted {
            anchor: Some(anchor),
            ..wanted(model)
        };
        self.0.take(&wanted, &Tried::default()).is_ok()
    }
}

/// A server that is busy, with a queue before it, and one that is not.
#[allow(missing_debug_implementations)]
pub struct Waiting {
    live: Live,
    _busy: Place,
    _waiting: Vec<Ticket>,
}

impl Waiting {
    /// A request for each of so many models waits for the server that is busy.
    #[must_use]
    pub fn for_models(count: usize) -> Option<Self> {
        let via = HeaderValue::from_static("1.1 measured");
        let live = Live::new(Care::of(&Options::new(), 1, via), count);
        let specs = ["http://busy:8000", "http://free:8000"].map(|url| {
            let spec = BackendSpec::new(url.parse().ok()?);
            Some(spec.max(NonZeroUsize::new(1)))
        });
        let specs: BackendSet = specs.into_iter().collect::<Option<_>>()?;
        let names: Vec<_> = (0..=count).map(|model| format!("model-{model}")).collect();
        let listed = [names.clone(), vec!["free".to_owned()]];
        for (backend, names) in live.apply(&specs).added.iter().zip(listed) {
            let entries: Vec<_> = names
                .iter()
                .map(|id| format!("{{\"id\":\"{id}\"}}"))
                .collect();
            let list = format!("{{\"data\":[{}]}}", entries.join(","));
            backend.set_models(Models::parse(list.as_bytes()));
            backend.succeeded();
        }
        live.relist();
        let ask = |model| {
            let mut arrival = Arrival::default();
            live.take_or_wait(&wanted(Some(model)), &Tried::default(), &mut arrival)
        };
        let busy = live.take(&wanted(Some(names.first()?)), &Tried::default());
        let waiting = names[1..].iter().map(|model| match ask(model) {
            Ok(Asked::Waits(ticket)) => Some(ticket),
            _ => None,
        });
        Some(Self {
            _waiting: waiting.collect::<Option<_>>()?,
            _busy: busy.ok()?,
            live,
        })
    }

    /// Takes a place at the server that is free, and gives it back. Returns whether there was one.
    #[must_use]
    pub fn pass_by(&self) -> bool {
        let free = wanted(Some("free"));
        self.live.take(&free, &Tried::default()).is_ok()
    }
}

fn wanted(model: Option<&str>) -> Wanted<'_> {
    Wanted {
        model,
        strict: true,
        ..Wanted::default()
    }
}

/// What a body that is sent to a chat's path names, in pieces of this size.
#[must_use]
pub fn model_in(body: &[u8], piece: usize) -> Option<String> {
    let mut search = Search::new("/v1/chat/completions", &HeaderMap::new());
    let mut kept = 0;
    for piece in body.chunks(piece) {
        kept += piece.len();
        let read = pin!(search.read(piece, &body[..kept]));
        // Only what is packed is read in turns.
        if read
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
        {
            return None;
        }
    }
    match search.asked(true).model {
        Found::Text(model) => Some(model),
        _ => None,
    }
}
