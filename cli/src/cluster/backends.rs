//! The servers of a service as backends: who is there now, by weight, and of an exclusive service
//! only the one with the highest token. Apart from the other sources, as it alone follows etcd.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_gateway::BackendSpec;
use llmlb_lock_cluster::{Change, Cluster, ClusterError, Interrupt, Record, Watch};
use tracing::warn;

use super::foreign::printable;

/// Who is gone when etcd is back is kept for so long: everyone has to register anew, if etcd has
/// forgotten them.
const GRACE: Duration = Duration::from_secs(20);

/// Tells of each new set of a service's servers, until nobody listens.
pub(crate) fn follow(
    cluster: &Cluster,
    service: String,
    tell: impl Fn(Vec<BackendSpec>) -> bool + Send + 'static,
) -> Result<(), ClusterError> {
    let watch = cluster.watch(Some(&service))?;
    let cluster = cluster.clone();
    let follow = move || {
        let mut known = Known::default();
        while let Some(change) = next(&watch, known.kept_until) {
            if matches!(change, Some(Change::Snapshot(_))) {
                known.seen_tokens(&cluster, &service);
            }
            if known.take(change, Instant::now()) && !tell(known.backends(&service)) {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("service".to_owned());
    thread.spawn(follow).map_err(ClusterError::Thread).map(drop)
}

/// The next change, or nothing when that time has come.
fn next(watch: &Watch, until: Option<Instant>) -> Option<Option<Change>> {
    let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
    watch.next(timeout, &Interrupt::new()).ok()
}

#[derive(Default)]
struct Known {
    servers: BTreeMap<String, Record>,
    /// Of those that etcd may have forgotten.
    kept: BTreeMap<String, Record>,
    kept_until: Option<Instant>,
    /// The highest that was ever seen.
    token: Option<u64>,
    after_outage: bool,
}

impl Known {
    /// Who is active may not be registered yet, when this begins.
    fn seen_tokens(&mut self, cluster: &Cluster, service: &str) {
        if let Ok(listing) = cluster.servers(Some(service), &Interrupt::new()) {
            let tokens = listing.servers.iter().map(|server| server.record.token);
            self.token = tokens.max().flatten().max(self.token);
        }
    }

    /// Whether that changes anything.
    fn take(&mut self, change: Option<Change>, now: Instant) -> bool {
        match change {
            Some(Change::Snapshot(records)) => self.snapshot(records, now),
            Some(Change::Up(record)) => self.up(record),
            Some(Change::Down { instance, .. }) => drop(self.servers.remove(&instance)),
            Some(Change::Outage(_)) => {
                self.after_outage = true;
                return false;
            }
            None if self.kept_until.is_some_and(|until| until <= now) => {
                self.kept_until = None;
                self.kept.clear();
            }
            _ => return false,
        }
        true
    }

    fn snapshot(&mut self, records: Vec<Record>, now: Instant) {
        let before = std::mem::take(&mut self.servers);
        if std::mem::take(&mut self.after_outage) {
            self.kept.extend(before);
            self.kept_until = now.checked_add(GRACE);
        }
        for record in records {
            self.up(record);
        }
    }

    fn up(&mut self, record: Record) {
        self.token = self.token.max(record.token);
        self.kept.remove(&record.instance());
        self.servers.insert(record.instance(), record);
    }

    fn backends(&self, service: &str) -> Vec<BackendSpec> {
        let records = self.servers.values().chain(self.kept.values());
        // None, where none was ever seen: the service is not exclusive.
        let current = records.filter(|record| record.token == self.token);
        current
            .filter_map(|record| backend(record, service))
            .collect()
    }
}

fn backend(record: &Record, service: &str) -> Option<BackendSpec> {
    let url = record
        .url
        .parse()
        .map_err(|problem| {
            let url = printable(&record.url);
            let server = record.instance();
            warn!("The server of {service} at {server} is left out: {url:?}: {problem}");
        })
        .ok()?;
    let weight = record.slots.and_then(NonZeroU32::new);
    let spec = BackendSpec::new(url).weight(weight.unwrap_or(NonZeroU32::MIN));
    let max = weight.and_then(|slots| NonZeroUsize::try_from(slots).ok());
    Some(spec.max(max).origin(origin(service)))
}

fn origin(service: &str) -> String {
    format!("service {service}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(host: &str) -> Record {
        Record::new("chat", host, 8000)
    }

    fn urls(known: &Known) -> Vec<String> {
        let backends = known.backends("chat");
        backends.iter().map(|spec| spec.url.to_string()).collect()
    }

    #[test]
    fn only_the_highest_token_counts_and_never_a_lower_one_again() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.take(Some(Change::Up(record("gpu1").with_token(7))), now);
        known.take(Some(Change::Up(record("gpu2").with_token(9))), now);
        assert_eq!(urls(&known), ["http://gpu2:8000"]);
        let snapshot = vec![record("gpu1").with_token(7), record("gpu3")];
        known.take(Some(Change::Snapshot(snapshot)), now);
        assert!(urls(&known).is_empty(), "{:?}", urls(&known));
    }

    #[test]
    fn who_is_gone_after_an_outage_is_kept_for_a_while() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.take(
            Some(Change::Snapshot(vec![record("gpu1"), record("gpu2")])),
            now,
        );
        assert!(!known.take(Some(Change::Outage("away".into())), now));
        known.take(Some(Change::Snapshot(vec![])), now);
        assert_eq!(urls(&known).len(), 2);
        known.take(Some(Change::Up(record("gpu2"))), now);
        assert_eq!(urls(&known).len(), 2);
        assert!(known.take(None, now + GRACE));
        assert_eq!(urls(&known), ["http://gpu2:8000"]);
        known.take(Some(Change::Snapshot(vec![])), now);
        assert!(urls(&known).is_empty());
    }

    #[test]
    fn weights_come_from_slots() {
        let mut known = Known::default();
        known.take(
            Some(Change::Up(record("gpu1").with_slots(4))),
            Instant::now(),
        );
        assert_eq!(known.backends("chat")[0].weight.get(), 4);
    }
}
