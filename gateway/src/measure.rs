//! What benchmarks reach into. No part of what this crate promises.

use axum::http::HeaderValue;

use crate::backend::Care;
use crate::backend::models::Models;
use crate::live::{Live, Tried, Wanted};
use crate::options::Options;
use crate::set::BackendSpec;

/// Backends that are up, to choose among.
#[allow(missing_debug_implementations)]
pub struct Choosing(Live);

impl Choosing {
    /// This many, each with `listed` models of its own and one, "shared", of all.
    #[must_use]
    pub fn among(count: usize, listed: usize) -> Option<Self> {
        let via = HeaderValue::from_static("1.1 measured");
        let live = Live::new(Care::of(&Options::new(), via));
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
        let wanted = Wanted {
            model,
            strict: true,
            affine: None,
        };
        self.0.take(&wanted, &Tried::default()).is_ok()
    }
}
