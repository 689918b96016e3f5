//! Asking a server of another host to stop, and being asked. A host's name is a claim, not a proof:
//! nobody signals a process of another machine. The request is written beside the server's record,
//! and the llmlb that guards the server carries it out against its own child.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use crate::error::ClusterError;
use crate::etcd::{Do, If, Kv, lease_id};
use crate::http::{Config, Http};
use crate::interrupt::{Hooked, Interrupt};
use crate::keys::Keys;
use crate::record::{Record, nonce};
use crate::stream::{Event, Stream};

/// A request that nobody carries out is gone after this.
const LIFE: u64 = 120;
const SILENCE: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(2);

/// A request to stop one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StopRequest {
    /// The version of this format.
    version: u32,
    /// Unique to this request.
    id: String,
    /// The `nonce` of the server's record: a server that was started since is not meant.
    server: String,
    /// The host that asks, as it calls itself.
    pub from: String,
    /// When it was asked.
    pub at: DateTime<Utc>,
    /// The guarding llmlb has seen it.
    #[serde(default)]
    accepted: bool,
}

impl StopRequest {
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > 4096 {
            return None;
        }
        let request: Self = serde_json::from_slice(bytes).ok()?;
        // It ends up in logs.
        let valid = request.version >= 1 && crate::record::check_host(&request.from).is_ok();
        valid.then_some(request)
    }
}

enum Message {
    Event(Event),
    Interrupted,
}

/// A prefix that is followed, with an interrupt beside it.
struct Inbox {
    messages: Receiver<Message>,
    tell: Sender<Message>,
    _stream: Stream,
}

impl Inbox {
    fn open(config: &Arc<Config>, prefix: String) -> Result<Self, ClusterError> {
        let (tell, messages) = mpsc::channel();
        let sender = tell.clone();
        let stream = Stream::start(config, prefix, SILENCE, move |event| {
            sender.send(Message::Event(event)).is_ok()
        })?;
        Ok(Self {
            messages,
            tell,
            _stream: stream,
        })
    }

    fn hook(&self, interrupt: &Interrupt) -> Hooked {
        let tell = self.tell.clone();
        interrupt.hook(move || drop(tell.send(Message::Interrupted)))
    }

    fn next(
        &self,
        until: Option<Instant>,
        interrupt: &Interrupt,
    ) -> Result<Option<Event>, ClusterError> {
        loop {
            let message = match until {
                None => self
                    .messages
                    .recv()
                    .map_err(|_| RecvTimeoutError::Disconnected),
                Some(until) => self
                    .messages
                    .recv_timeout(until.saturating_duration_since(Instant::now())),
            };
            match message {
                Ok(Message::Event(event)) => return Ok(Some(event)),
                Ok(Message::Interrupted) if !interrupt.is_interrupted() => {}
                Ok(Message::Interrupted) => return Err(ClusterError::Interrupted),
                Err(_) => return Ok(None),
            }
        }
    }
}

/// The guardian's side: hears of requests to stop its server. See
/// [`Cluster::stop_requests`](crate::Cluster::stop_requests).
pub struct StopRequests {
    config: Arc<Config>,
    key: String,
    server: String,
    inbox: Inbox,
}

impl StopRequests {
    pub(crate) fn start(
        config: &Arc<Config>,
        keys: &Keys,
        record: &Record,
    ) -> Result<Self, ClusterError> {
        let key = keys.stop(&record.service, &record.instance());
        Ok(Self {
            config: Arc::clone(config),
            // A prefix, with the slash that ends it, so that no other instance's is meant.
            inbox: Inbox::open(config, format!("{key}/"))?,
            server: record.nonce.clone(),
            key,
        })
    }

    /// Waits for a request, for ever or at most `timeout`, and tells who asked that it was heard.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`]. An outage of etcd is none.
    pub fn next(
        &self,
        timeout: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Option<StopRequest>, ClusterError> {
        let _hooked = self.inbox.hook(interrupt);
        let until = timeout.map(|timeout| Instant::now() + timeout);
        while let Some(event) = self.inbox.next(until, interrupt)? {
            let kvs = match event {
                Event::All(kvs) => kvs,
                Event::Put(kv) => vec![kv],
                _ => continue,
            };
            if let Some(request) = kvs.into_iter().find_map(|kv| self.accept(&kv)) {
                return Ok(Some(request));
            }
        }
        Ok(None)
    }

    fn accept(&self, kv: &Kv) -> Option<StopRequest> {
        let Some(mut request) = StopRequest::read(&kv.value) else {
            warn!(
                "{} in etcd is no request to stop: ignored",
                kv.key.escape_debug()
            );
            return None;
        };
        if request.server != self.server || request.accepted {
            debug!(key = self.key, "a request that is not for this server");
            return None;
        }
        request.accepted = true;
        let json = serde_json::json!(request).to_string();
        // That it was heard is for the other side's eyes; the server is stopped all the same.
        let unchanged = [If::Modified(&kv.key, kv.mod_revision)];
        let answer = [Do::Put(&kv.key, &json, kv.lease)];
        let http = Http::new(&self.config, ATTEMPT, None);
        if let Err(error) = http.txn(&unchanged, &answer, &[]) {
            debug!(%error, "who asked is not told");
        }
        Some(request)
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopAnswer {
    /// The server's record is gone from etcd.
    Stopped,
    /// The guarding llmlb has heard it; the server has not ended yet.
    Accepted,
    /// The guarding llmlb has said nothing: it is hung, or cut off from etcd. Its record goes with
    /// its lease, and an exclusive server with it.
    Unanswered,
}

/// A request that was written: see [`Cluster::request_stop`](crate::Cluster::request_stop).
/// Dropping it takes it back, if it was not heard yet.
#[must_use = "the request is taken back when this is dropped"]
pub struct StopTicket {
    config: Arc<Config>,
    keys: Keys,
    record: Record,
    key: String,
    lease: u64,
}

impl StopTicket {
    pub(crate) fn write(
        config: &Arc<Config>,
        keys: &Keys,
        record: &Record,
        from: &str,
        interrupt: &Interrupt,
    ) -> Result<Self, ClusterError> {
        crate::record::check_host(from).map_err(|reason| ClusterError::InvalidRecord {
            what: "host name",
            reason,
        })?;
        let id = nonce();
        let key = format!("{}/{id}", keys.stop(&record.service, &record.instance()));
        let request = StopRequest {
            version: 1,
            id,
            server: record.nonce.clone(),
            from: from.to_owned(),
            at: Utc::now().trunc_subsecs(6),
            accepted: false,
        };
        let lease = lease_id();
        let ticket = Self {
            config: Arc::clone(config),
            keys: keys.clone(),
            record: record.clone(),
            key,
            lease,
        };
        let http = Http::new(config, ATTEMPT, Some(interrupt));
        http.grant(lease, LIFE)?;
        http.put(&ticket.key, &serde_json::json!(request).to_string(), lease)?;
        Ok(ticket)
    }

    /// Whom it asks to stop.
    pub fn server(&self) -> &Record {
        &self.record
    }

    /// Waits until the server's records are gone, at most `timeout`, and says how far it came.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`]; what etcd says.
    pub fn wait(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> Result<StopAnswer, ClusterError> {
        let until = Instant::now() + timeout;
        let http = Http::new(&self.config, ATTEMPT, Some(interrupt));
        loop {
            if self.has_ended(&http)? {
                return Ok(StopAnswer::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(if self.was_heard(&http)? {
                    StopAnswer::Accepted
                } else {
                    StopAnswer::Unanswered
                });
            }
            if interrupt.sleep(left.min(Duration::from_millis(100))) {
                return Err(ClusterError::Interrupted);
            }
        }
    }

    /// Neither registered nor leaving nor active.
    fn has_ended(&self, http: &Http) -> Result<bool, ClusterError> {
        let server = self
            .keys
            .server(&self.record.service, &self.record.instance());
        let holder = self.keys.holder(&self.record.service);
        let leaving = self
            .keys
            .leaving(&self.record.service, &self.record.instance());
        let looks = [Do::Get(&server), Do::Get(&leaving), Do::Get(&holder)];
        let found = http.txn(&[], &looks, &[])?.found;
        Ok(!found.iter().flatten().any(|kv| {
            Record::read(&kv.value, &self.record.service, None)
                .is_ok_and(|record| record.nonce == self.record.nonce)
        }))
    }

    fn was_heard(&self, http: &Http) -> Result<bool, ClusterError> {
        let found = http.get(&self.key)?;
        Ok(found
            .and_then(|kv| StopRequest::read(&kv.value))
            .is_some_and(|request| request.accepted))
    }
}

impl Drop for StopTicket {
    fn drop(&mut self) {
        if let Err(error) = Http::new(&self.config, ATTEMPT, None).revoke(self.lease) {
            debug!(%error, "the request ends by itself");
        }
    }
}
