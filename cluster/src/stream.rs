//! What changes below a prefix, seen without a gap: list, watch from that revision on, and again
//! when the stream breaks. Apart, as everything that follows etcd (balancers, standbys, those who
//! wait for a request to stop) follows it this way.

use std::io::{BufRead, Read};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::debug;

use crate::backoff::Backoff;
use crate::error::{ClusterError, UnreachableEndpoint};
use crate::etcd::{Kv, encode, number, read_kv};
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::keys::end_of;

/// A line of a watch has at most the events of one revision.
const MAX_LINE: u64 = 64 * 1024 * 1024;
const ATTEMPT: Duration = Duration::from_secs(2);

/// What a stream tells.
#[derive(Debug)]
pub(crate) enum Event {
    /// All there is; what was known before is forgotten.
    All(Vec<Kv>),
    Put(Kv),
    Deleted(String),
    /// Nothing is heard of etcd: what is known stays, and may be old.
    Outage(String),
    /// Heard of it again.
    Back,
}

/// A thread that follows a prefix, until it is dropped or its listener says that it has enough.
pub(crate) struct Stream {
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// `tell` says whether to go on. After `silence` another member is asked, as one that was cut
    /// off from the others may not know.
    pub(crate) fn start(
        config: &Arc<Config>,
        prefix: String,
        silence: Duration,
        tell: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<Self, ClusterError> {
        let stop = Interrupt::new();
        let follower = Follower {
            http: Http::new(config, ATTEMPT, Some(&stop)),
            stop: stop.clone(),
            prefix,
            silence,
            tell,
            position: None,
        };
        let thread = thread::Builder::new()
            .name("llmlb-watch".into())
            .spawn(move || follower.run())
            .map_err(ClusterError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.interrupt();
        // It may be connecting, which takes its time; it touches nothing of ours any more.
        drop(self.thread.take());
    }
}

struct Follower<T> {
    http: Http,
    stop: Interrupt,
    prefix: String,
    silence: Duration,
    tell: T,
    /// The next revision that is of interest, and whose.
    position: Option<(u64, u64)>,
}

/// Why a stream ended.
enum End {
    /// The listener has enough.
    Enough,
    /// What follows is gone: list again.
    Gap,
    /// Nothing was said for a while: ask another.
    Silence,
    Broken(ClusterError),
}

impl<T: FnMut(Event) -> bool> Follower<T> {
    fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(2));
        while !self.stop.is_interrupted() {
            let end = self.follow(&mut backoff);
            if self.stop.is_interrupted() {
                return;
            }
            match end {
                End::Enough => return,
                End::Gap => self.position = None,
                End::Silence => self.http.turn(),
                End::Broken(error) => {
                    if !backoff.is_failing() && !(self.tell)(Event::Outage(error.to_string())) {
                        return;
                    }
                    let wait = backoff.failed(format!("Lost sight of {}", self.prefix), &error);
                    self.http.turn();
                    self.stop.sleep(wait);
                }
            }
        }
    }

    fn follow(&mut self, backoff: &mut Backoff) -> End {
        let resumed = match self.resume() {
            Ok(resumed) => resumed,
            Err(error) => return End::Broken(error),
        };
        let lines = match self.open() {
            Ok(lines) => lines,
            Err(error) => return End::Broken(error),
        };
        if backoff.is_failing() {
            backoff.succeeded(format!("Following {}", self.prefix));
            if !(self.tell)(Event::Back) {
                return End::Enough;
            }
        }
        if let Some(all) = resumed
            && !(self.tell)(Event::All(all))
        {
            return End::Enough;
        }
        self.read(lines)
    }

    /// Where to go on from: where it was left, unless etcd was set up anew or set back meanwhile.
    fn resume(&mut self) -> Result<Option<Vec<Kv>>, ClusterError> {
        if let Some((next, cluster)) = self.position {
            let (now, whose) = self.http.revision(&self.prefix)?;
            if whose == cluster && now + 1 >= next {
                return Ok(None);
            }
        }
        let all = self.http.list(&self.prefix)?;
        self.position = Some((all.revision + 1, all.cluster_id));
        Ok(Some(all.kvs))
    }

    fn open(&self) -> Result<impl BufRead + use<T>, ClusterError> {
        let next = self.position.map_or(0, |(next, _)| next);
        let body = json!({"create_request": {
            "key": encode(&self.prefix),
            "range_end": encode(end_of(&self.prefix)),
            "start_revision": next.to_string(),
        }});
        self.http.stream("/v3/watch", &body, self.silence)
    }

    fn read(&mut self, mut lines: impl BufRead) -> End {
        let mut line = Vec::new();
        loop {
            line.clear();
            match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => return self.broken("it ended the watch"),
                Ok(_) => {}
                Err(e) if is_silence(&e) => return End::Silence,
                Err(e) => return self.broken(&e.to_string()),
            }
            let Ok(message) = serde_json::from_slice::<Value>(&line) else {
                return self.broken("it cut the watch");
            };
            if let Some(end) = self.take(&message) {
                return end;
            }
        }
    }

    fn take(&mut self, message: &Value) -> Option<End> {
        let result = &message["result"];
        if !result.is_object() {
            let error = &message["error"]["message"];
            return Some(self.broken(error.as_str().unwrap_or("it ended the watch")));
        }
        if number(&result["compact_revision"]) > 0 {
            debug!(prefix = self.prefix, "compacted meanwhile");
            return Some(End::Gap);
        }
        if result["canceled"] == true {
            let why = result["cancel_reason"].as_str();
            return Some(self.broken(why.unwrap_or("it ended the watch")));
        }
        for event in result["events"].as_array().into_iter().flatten() {
            let Some(kv) = read_kv(&event["kv"]) else {
                return Some(End::Gap);
            };
            let revision = kv.mod_revision;
            let deleted = event["type"] == "DELETE";
            let event = if deleted {
                Event::Deleted(kv.key)
            } else {
                Event::Put(kv)
            };
            if !(self.tell)(event) {
                return Some(End::Enough);
            }
            // All events of a revision come in one message.
            if let Some((next, _)) = &mut self.position {
                *next = (*next).max(revision + 1);
            }
        }
        None
    }

    fn broken(&self, reason: &str) -> End {
        End::Broken(ClusterError::Unreachable {
            endpoints: vec![UnreachableEndpoint {
                address: self.http.address(),
                reason: reason.to_owned(),
            }],
        })
    }
}

fn is_silence(e: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
        || e.get_ref()
            .and_then(|e| e.downcast_ref::<ureq::Error>())
            .is_some_and(|e| matches!(e, ureq::Error::Timeout(_)))
}
