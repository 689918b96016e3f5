//! Servers as they come and go, for balancers: a snapshot, then changes, through any outage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tracing::warn;

use crate::error::ClusterError;
use crate::http::Config;
use crate::interrupt::Interrupt;
use crate::keys::Keys;
use crate::record::Record;
use crate::stream::{Event, Stream};
use crate::view::{Found, judge};

/// After this time without news another member of etcd is asked.
const SILENCE: Duration = Duration::from_secs(10);

/// What a [`Watch`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// All servers there are: at the start, and whenever what happened meanwhile is unknown.
    Snapshot(Vec<Record>),
    /// A server is there, or its record is another.
    Up(Record),
    /// A server is gone.
    Down {
        /// Its service.
        service: String,
        /// Its `HOST:PORT`.
        instance: String,
    },
    /// etcd is away. The last set stays good until further notice.
    Outage(String),
    /// etcd is back.
    Back,
}

/// Follows the servers of one service, or of all; see [`Cluster::watch`](crate::Cluster::watch).
pub struct Watch {
    changes: Receiver<Message>,
    tell: Sender<Message>,
    _stream: Stream,
}

enum Message {
    Change(Change),
    Interrupted,
}

impl Watch {
    pub(crate) fn start(
        config: &Arc<Config>,
        keys: &Keys,
        service: Option<&str>,
    ) -> Result<Self, ClusterError> {
        let (tell, changes) = mpsc::channel();
        let keys = keys.clone();
        let sender = tell.clone();
        let prefix = keys.servers(service);
        let mut known = Known::default();
        let stream = Stream::start(config, prefix, SILENCE, move |event| {
            known
                .change(&keys, event)
                .is_none_or(|change| sender.send(Message::Change(change)).is_ok())
        })?;
        Ok(Self {
            changes,
            tell,
            _stream: stream,
        })
    }

    /// Waits for the next change, at most `timeout`; `None` if there is none until then.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`]. An outage is none: see [`Change::Outage`].
    pub fn next(
        &self,
        timeout: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Option<Change>, ClusterError> {
        let tell = self.tell.clone();
        let _hooked = interrupt.hook(move || drop(tell.send(Message::Interrupted)));
        let until = timeout.map(|timeout| std::time::Instant::now() + timeout);
        loop {
            let message = match until {
                None => self
                    .changes
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self
                    .changes
                    .recv_timeout(until.saturating_duration_since(std::time::Instant::now())),
            };
            match message {
                Ok(Message::Change(change)) => return Ok(Some(change)),
                // Another's, from before.
                Ok(Message::Interrupted) if !interrupt.is_interrupted() => {}
                Ok(Message::Interrupted) => return Err(ClusterError::Interrupted),
                // We have a sender ourselves: it is never disconnected.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

/// What was told so far, by key.
#[derive(Default)]
struct Known {
    records: BTreeMap<String, Record>,
    /// Foreign keys that were spoken of.
    warned: std::collections::BTreeSet<String>,
}

impl Known {
    fn change(&mut self, keys: &Keys, event: Event) -> Option<Change> {
        match event {
            Event::All(all) => {
                self.records = all
                    .iter()
                    .filter_map(|kv| Some((kv.key.clone(), self.read(keys, kv)?)))
                    .collect();
                Some(Change::Snapshot(self.records.values().cloned().collect()))
            }
            Event::Put(kv) => match self.read(keys, &kv) {
                Some(record) => {
                    let old = self.records.insert(kv.key, record.clone());
                    (old.as_ref() != Some(&record)).then_some(Change::Up(record))
                }
                // Overwritten with what is no record.
                None => self.gone(&kv.key),
            },
            Event::Deleted(key) => self.gone(&key),
            Event::Outage(why) => Some(Change::Outage(why)),
            Event::Back => Some(Change::Back),
        }
    }

    fn gone(&mut self, key: &str) -> Option<Change> {
        self.warned.remove(key);
        self.records.remove(key).map(|record| Change::Down {
            instance: record.instance(),
            service: record.service,
        })
    }

    fn read(&mut self, keys: &Keys, kv: &crate::etcd::Kv) -> Option<Record> {
        match judge(keys, kv) {
            Found::Server(server) => Some(server.record),
            Found::Skipped(skipped) => {
                // Bounded, as a stranger may write many.
                if self.warned.len() < 100 && self.warned.insert(kv.key.clone()) {
                    warn!("{skipped}");
                }
                None
            }
            Found::Other => None,
        }
    }
}
