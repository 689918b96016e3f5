//! What benchmarks reach into. No part of what this crate promises.

use std::time::Duration;

use crate::backend::models::Models;
use crate::backend::{Care, Thresholds};
use crate::live::{Live, Wanted};
use crate::set::BackendSpec;

/// Backends that are up, to choose among.
#[allow(missing_debug_implementations)]
pub struct Choosing(Live);

impl Choosing {
    /// This many, each with `listed` models of its own and one, "shared", of all.
    #[must_use]
    pub fn among(count: usize, listed: usize) -> Option<Self> {
        let live = Live::new(Care {
            thresholds: Thresholds { rise: 1, fall: 1 },
            connect_timeout: Duration::from_secs(1),
            key: None,
        });
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
        self.0.take(&wanted, &[]).is_ok()
    }
}
