//! When backends were there last: what is told of those that are gone has an end.
//!
//! Apart from the backends, as it outlasts them, and from the metrics, which know only names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::Backend;
use crate::metrics::Metrics;

/// By then whoever reads metrics has seen the last of them, and a backend that was only restarted is
/// back.
const TOLD: Duration = Duration::from_secs(600);

/// By name.
#[derive(Default)]
pub(crate) struct Bygone(Mutex<HashMap<String, Instant>>);

impl Bygone {
    /// It has been there until now.
    pub(crate) fn note(&self, name: &str) {
        self.last_seen().insert(name.to_owned(), Instant::now());
    }

    /// These are there, with those that finish what they have. Of those that have not been for long,
    /// nothing is told any more.
    pub(crate) fn see(&self, backends: &[Arc<Backend>], metrics: &Metrics) {
        let mut seen = self.last_seen();
        let now = Instant::now();
        for backend in backends {
            match seen.get_mut(&backend.name) {
                Some(when) => *when = now,
                None => drop(seen.insert(backend.name.clone(), now)),
            }
        }
        let known = seen.len();
        seen.retain(|_, when| now.duration_since(*when) < TOLD);
        if seen.len() < known {
            metrics.forget(|name| !seen.contains_key(name));
        }
    }

    fn last_seen(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::options::Options;
    use crate::pick::{Tried, Wanted};
    use crate::set::BackendSet;
    use crate::shared::Shared;
    use crate::url::BackendUrl;
    use crate::usage::Usage;

    const MINUTE: Duration = Duration::from_secs(60);

    /// With these, which are up.
    fn now_before(shared: &Shared, names: &[&str]) {
        let url = |name: &&str| format!("http://{name}").parse::<BackendUrl>().unwrap();
        let set: BackendSet = names.iter().map(url).collect();
        let change = shared.live.apply(&set);
        change.added.iter().for_each(|backend| backend.succeeded());
        let removed = change.removed.iter();
        removed.for_each(|backend| shared.bygone.note(&backend.name));
    }

    /// All that may be told of a backend, told once.
    fn tell(shared: &Shared, name: &str) {
        let all = shared.live.all();
        let mut all = all.iter();
        let backend = all.find(|one| one.name.ends_with(name)).unwrap();
        let metrics = &shared.metrics;
        let usage = Usage {
            input: 3,
            output: 5,
        };
        for code in [200, 500] {
            metrics.ended(backend, code, Some(MINUTE), MINUTE);
            metrics.model_ended("m", backend, code, Some(usage));
        }
        metrics.first_token("m", backend, MINUTE).observe(1.0);
        metrics.failed(&backend.name, "reset");
        metrics.retried(&backend.name);
    }

    /// How many samples there are of a backend.
    fn count(shared: &Shared, name: &str) -> usize {
        let text = shared.metrics.text(&shared.live.all(), 0).unwrap();
        let text = String::from_utf8(text).unwrap();
        let name = format!("backend=\"http://{name}\"");
        text.lines().filter(|line| line.contains(&name)).count()
    }

    fn pass(shared: &Shared, minutes: u32) -> impl Future<Output = ()> {
        shared.sample();
        async move {
            advance(minutes * MINUTE).await;
            shared.sample();
        }
    }

    /// How many requests a backend has served, as far as that is told.
    fn requests(shared: &Shared, name: &str) -> u64 {
        let of = &shared.metrics.summary().backends;
        of.get(&format!("http://{name}"))
            .map_or(0, |of| of.requests)
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_backend_that_is_gone_nothing_is_told_after_a_while() {
        let shared = Shared::new(Options::new()).unwrap();
        now_before(&shared, &["b0", "b1"]);
        tell(&shared, "b0");
        tell(&shared, "b1");
        shared.metrics.answered(401);
        let told = count(&shared, "b0");
        now_before(&shared, &["b1"]);
        pass(&shared, 9).await;
        // As it is gone, neither of its gauges is told.
        assert_eq!(
            (count(&shared, "b0"), count(&shared, "b1")),
            (told - 2, told)
        );
        let before = shared.metrics.summary();
        pass(&shared, 2).await;
        assert_eq!((count(&shared, "b0"), count(&shared, "b1")), (0, told));
        // Totals go on, for those who take differences.
        let after = shared.metrics.summary();
        let sums = |sum: &crate::summary::Sum| {
            let tokens = (sum.tokens_in, sum.tokens_out);
            (sum.requests, sum.failures, tokens, sum.first_token_count)
        };
        assert_eq!(sums(&after.all), sums(&before.all));
        assert_eq!(sums(&after.models["m"]), sums(&before.models["m"]));
        assert_eq!(after.all.requests, 5);
        // One that comes again begins anew.
        now_before(&shared, &["b0", "b1"]);
        tell(&shared, "b0");
        assert_eq!((requests(&shared, "b0"), count(&shared, "b0")), (2, told));
        assert_eq!(shared.metrics.summary().all.requests, 7);
    }

    #[tokio::test(start_paused = true)]
    async fn the_counters_of_a_backend_that_comes_back_in_time_go_on() {
        let shared = Shared::new(Options::new()).unwrap();
        now_before(&shared, &["b0", "b1"]);
        tell(&shared, "b0");
        for _ in 0..3 {
            now_before(&shared, &["b1"]);
            pass(&shared, 8).await;
            now_before(&shared, &["b0", "b1"]);
            pass(&shared, 8).await;
        }
        tell(&shared, "b0");
        assert_eq!(requests(&shared, "b0"), 4);
        pass(&shared, 60).await;
        assert_eq!(requests(&shared, "b0"), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn who_finishes_what_it_has_is_not_gone_yet() {
        let shared = Shared::new(Options::new()).unwrap();
        now_before(&shared, &["b0"]);
        tell(&shared, "b0");
        let place = shared.live.take(&Wanted::default(), &Tried::default());
        now_before(&shared, &["b1"]);
        for _ in 0..3 {
            pass(&shared, 8).await;
        }
        assert_eq!(requests(&shared, "b0"), 2);
        tell(&shared, "b0");
        drop(place);
        pass(&shared, 9).await;
        assert_eq!(requests(&shared, "b0"), 4);
        pass(&shared, 9).await;
        assert_eq!(requests(&shared, "b0"), 0);
    }
}
