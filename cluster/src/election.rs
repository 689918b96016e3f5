//! Becoming the active server: looking, waiting without a herd, taking the key. Apart from keeping
//! it (`exclusive.rs`): here others may win, there only time can.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tracing::debug;

use crate::backoff::Backoff;
use crate::clock::BootTime;
use crate::error::ClusterError;
use crate::etcd::{Do, If, Kv, lease_id};
use crate::exclusive::{Exclusive, Guards, Held};
use crate::fence::Fence;
use crate::fuse::Fuse;
use crate::http::{Config, Http};
use crate::interrupt::{Hooked, Interrupt};
use crate::keys::Keys;
use crate::record::Record;
use crate::stream::{Event, Stream};
use crate::timing::Timing;
use crate::watchdog::Watchdog;

/// Standbys spread over this time, so that most see the winner before they try.
const JITTER: Duration = Duration::from_millis(100);

type OnWait = Box<dyn FnMut(&ClusterError) + Send>;

/// How to be the active server of a service.
pub struct Options {
    pub(crate) record: Record,
    pub(crate) timing: Timing,
    lock_delay: Duration,
    interrupt: Interrupt,
    on_wait: Option<OnWait>,
    watchdog: Option<Watchdog>,
    fuse: Option<Fuse>,
}

impl Options {
    /// As this server, with these times.
    pub fn new(record: Record, timing: Timing) -> Self {
        Self {
            record,
            timing,
            lock_delay: Duration::ZERO,
            interrupt: Interrupt::new(),
            on_wait: None,
            watchdog: None,
            fuse: None,
        }
    }

    /// Waits so much longer after a holder that vanished without goodbye: for resources that can't
    /// check tokens. After one that ended in good order nothing is waited for.
    #[must_use]
    pub fn with_lock_delay(mut self, delay: Duration) -> Self {
        self.lock_delay = delay;
        self
    }

    /// Ends the wait when triggered.
    #[must_use]
    pub fn with_interrupt(mut self, interrupt: &Interrupt) -> Self {
        self.interrupt = interrupt.clone();
        self
    }

    /// Is called with the reason whenever that for which is waited has changed.
    #[must_use]
    pub fn on_wait(mut self, call: impl FnMut(&ClusterError) + Send + 'static) -> Self {
        self.on_wait = Some(Box::new(call));
        self
    }

    /// Has the server killed in time, whatever becomes of this process.
    #[must_use]
    pub fn with_watchdog(mut self, watchdog: Watchdog) -> Self {
        self.watchdog = Some(watchdog);
        self
    }

    /// For a server that is this process: the kernel kills it (SIGKILL) at
    /// [`Exclusive::kill_at`], however stopped or hung it is, unless a renewal succeeds or the lease
    /// is released before. What it has started is not killed.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Watchdog`] where this process is the first of its container, which the kernel
    /// does not kill, or the system has no timer left.
    pub fn with_self_fencing(mut self) -> Result<Self, ClusterError> {
        self.fuse = Some(Fuse::new().map_err(ClusterError::Watchdog)?);
        Ok(self)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("record", &self.record)
            .field("timing", &self.timing)
            .field("lock_delay", &self.lock_delay)
            .finish_non_exhaustive()
    }
}

/// How long to wait for a living holder.
#[derive(Clone, Copy)]
pub(crate) enum Patience {
    /// Not at all.
    None,
    Until(Instant),
    ForEver,
}

pub(crate) fn acquire(
    config: &Arc<Config>,
    keys: &Keys,
    service: &str,
    mut options: Options,
    patience: Patience,
) -> Result<Exclusive, ClusterError> {
    service.clone_into(&mut options.record.service);
    options.record.exclusive = true;
    let json = options.record.to_json()?;
    let (tell, events) = mpsc::channel();
    let teller = tell.clone();
    let hooked = options
        .interrupt
        .hook(move || drop(teller.send(Message::Interrupted)));
    Candidate {
        http: Http::new(config, options.timing.request(), Some(&options.interrupt)),
        holder: keys.holder(service),
        fence: keys.fence(service),
        prefix: keys.exclusive(Some(service)),
        config: Arc::clone(config),
        service: service.to_owned(),
        json,
        options,
        patience,
        seen: Seen::default(),
        told: None,
        tell,
        events,
        stream: None,
        _hooked: hooked,
    }
    .run()
}

enum Message {
    Event(Event),
    Interrupted,
}

struct Candidate {
    http: Http,
    config: Arc<Config>,
    holder: String,
    fence: String,
    prefix: String,
    service: String,
    json: String,
    options: Options,
    patience: Patience,
    seen: Seen,
    /// What was said last of whom is waited for.
    told: Option<String>,
    tell: Sender<Message>,
    events: Receiver<Message>,
    stream: Option<Stream>,
    _hooked: Hooked,
}

/// What is known of the service.
#[derive(Default)]
struct Seen {
    holder: Option<Kv>,
    fence: Option<Kv>,
    /// When this fence was first seen: not earlier than it was written.
    since: Option<BootTime>,
}

impl Seen {
    fn set_fence(&mut self, fence: Option<Kv>) {
        let revision = |fence: &Option<Kv>| fence.as_ref().map(|kv| kv.mod_revision);
        if self.since.is_none() || revision(&self.fence) != revision(&fence) {
            self.since = Some(BootTime::now());
        }
        self.fence = fence;
    }

    fn fence_revision(&self) -> u64 {
        self.fence.as_ref().map_or(0, |kv| kv.mod_revision)
    }

    fn holder_revision(&self) -> u64 {
        self.holder.as_ref().map_or(0, |kv| kv.create_revision)
    }
}

/// May we?
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Nobody is active.
    Free,
    /// Not before then, unless a beat is seen.
    Until(BootTime),
    /// As long as the lease of its key lasts, for all we know.
    Held,
}

fn judge(seen: &Seen, lock_delay: Duration) -> Result<Verdict, String> {
    let Some(fence) = &seen.fence else {
        return Ok(if seen.holder.is_some() {
            Verdict::Held
        } else {
            Verdict::Free
        });
    };
    let fence = match Fence::read(&fence.value) {
        Ok(fence) => fence,
        // As long as its lease lasts, the holder says more than we can read here.
        Err(_) if seen.holder.is_some() => return Ok(Verdict::Held),
        Err(reason) => return Err(reason),
    };
    Ok(match (&seen.holder, fence.free) {
        (None, true) => Verdict::Free,
        // One transaction writes both: somebody else wrote here.
        (Some(_), true) => Verdict::Held,
        (_, false) => {
            let since = seen.since.unwrap_or_else(BootTime::now);
            Verdict::Until(fence.over_at(since) + lock_delay)
        }
    })
}

impl Candidate {
    fn run(mut self) -> Result<Exclusive, ClusterError> {
        self.look()?;
        let mut backoff = Backoff::new(Duration::from_secs(1));
        loop {
            let verdict = judge(&self.seen, self.options.lock_delay).map_err(|reason| {
                ClusterError::Corrupt {
                    key: self.fence.clone(),
                    reason,
                }
            })?;
            let now = BootTime::now();
            match verdict {
                Verdict::Held => self.wait(None)?,
                Verdict::Until(then) if now < then => self.wait(Some(then))?,
                // Where others wait too, most see who was first before their own turn comes.
                Verdict::Free | Verdict::Until(_) if self.stream.is_some() && self.jitter()? => {}
                Verdict::Free | Verdict::Until(_) => match self.take() {
                    Ok(Some(held)) => return self.win(held),
                    Ok(None) => {}
                    Err(error) if error.is_outage() && !matches!(self.patience, Patience::None) => {
                        let wait = backoff.failed(format!("Waiting for {}", self.service), &error);
                        if self.options.interrupt.sleep(wait) {
                            return Err(ClusterError::Interrupted);
                        }
                        self.check_patience(&error.to_string())?;
                    }
                    Err(error) => return Err(error),
                },
            }
        }
    }

    /// Holder and fence at one revision.
    fn look(&mut self) -> Result<(), ClusterError> {
        let txn = self
            .http
            .txn(&[], &[Do::Get(&self.holder), Do::Get(&self.fence)], &[])?;
        let mut found = txn.found.into_iter();
        self.seen.holder = found.next().flatten();
        self.seen.set_fence(found.next().flatten());
        Ok(())
    }

    /// Waits until something is seen, or `then`.
    fn wait(&mut self, then: Option<BootTime>) -> Result<(), ClusterError> {
        // Holder and fence change at once, and are heard of one after the other.
        let left = then.map_or(Duration::ZERO, BootTime::remaining);
        if self.seen.holder.is_none() && self.told.is_some() && self.hear(left.min(JITTER))? {
            return Ok(());
        }
        let refusal = self.refusal(then);
        let end = match (self.patience, &self.seen.holder) {
            // Its lease lives: that is an answer. Without one, its time has to run out.
            (Patience::None, Some(_)) => return Err(refusal),
            (Patience::None, None) | (Patience::ForEver, _) => None,
            (Patience::Until(end), _) if end <= Instant::now() => return Err(refusal),
            (Patience::Until(end), _) => Some(end),
        };
        self.tell_whom(&refusal);
        self.follow()?;
        let left = [
            end.map(|end| end.saturating_duration_since(Instant::now())),
            then.map(BootTime::remaining),
            // So that time spent in suspend is noticed.
            Some(Duration::from_secs(5)),
        ];
        let left = left.into_iter().flatten().min().unwrap_or_default();
        self.hear(left).map(drop)
    }

    /// Lets others go first. `true`: something has changed meanwhile.
    fn jitter(&mut self) -> Result<bool, ClusterError> {
        self.hear(JITTER.mul_f64(fastrand::f64()))
    }

    /// Takes in what is seen within `time`, and says whether anything was.
    fn hear(&mut self, time: Duration) -> Result<bool, ClusterError> {
        let mut message = match self.events.recv_timeout(time) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return Ok(false),
        };
        loop {
            match message {
                Message::Interrupted => return Err(ClusterError::Interrupted),
                Message::Event(event) => self.take_in(event),
            }
            match self.events.try_recv() {
                Ok(next) => message = next,
                Err(_) => return Ok(true),
            }
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::All(kvs) => {
                let find = |key: &str| kvs.iter().find(|kv| kv.key == key).cloned();
                self.seen.holder = find(&self.holder);
                self.seen.set_fence(find(&self.fence));
            }
            Event::Put(kv) if kv.key == self.holder => self.seen.holder = Some(kv),
            Event::Put(kv) if kv.key == self.fence => self.seen.set_fence(Some(kv)),
            Event::Deleted(key) if key == self.holder => self.seen.holder = None,
            Event::Deleted(key) if key == self.fence => self.seen.set_fence(None),
            // The stream says so itself; nothing is decided by what is not seen.
            Event::Put(_) | Event::Deleted(_) | Event::Outage(_) | Event::Back => {}
        }
    }

    fn follow(&mut self) -> Result<(), ClusterError> {
        if self.stream.is_none() {
            // A living holder is seen at each renewal.
            let silence = (self.options.timing.renew() * 3 / 2).max(Duration::from_secs(1));
            let tell = self.tell.clone();
            let stream = Stream::start(&self.config, self.prefix.clone(), silence, move |event| {
                tell.send(Message::Event(event)).is_ok()
            })?;
            self.stream = Some(stream);
        }
        Ok(())
    }

    /// Tries, and takes in what is there if another was faster.
    fn take(&mut self) -> Result<Option<Held>, ClusterError> {
        let lease = lease_id();
        let timing = self.options.timing;
        let granted = self.http.grant(lease, timing.lease_seconds())?;
        if Duration::from_secs(granted) < timing.ttl() {
            let _ = self.http.revoke(lease);
            return Err(ClusterError::InvalidTiming {
                reason: format!("etcd grants a TTL of {granted} s alone"),
            });
        }
        match self.put(lease) {
            Ok(None) => {
                let _ = self.http.revoke(lease);
                Ok(None)
            }
            Ok(Some(held)) => Ok(Some(held)),
            Err(error) => {
                if let Err(error) = self.take_back(lease) {
                    debug!(%error, "others wait until its time is over");
                }
                Err(error)
            }
        }
    }

    /// After a try of which nothing is known.
    fn take_back(&self, lease: u64) -> Result<(), ClusterError> {
        let timing = self.options.timing;
        let http = Http::new(&self.config, timing.request(), None);
        // What may still be on its way finds no lease.
        http.revoke(lease)?;
        // What has arrived is given back, as nobody has served by it.
        let ours = Fence::held(&self.options.record.nonce, timing.ttl(), 0);
        let Some(kv) = http.get(&self.fence)? else {
            return Ok(());
        };
        if Fence::read(&kv.value).as_ref() == Ok(&ours) {
            let unchanged = If::Modified(&self.fence, kv.mod_revision);
            let free = ours.freed().to_json();
            http.txn(&[unchanged], &[Do::Put(&self.fence, &free, 0)], &[])?;
        }
        Ok(())
    }

    fn put(&mut self, lease: u64) -> Result<Option<Held>, ClusterError> {
        let unchanged = If::Modified(&self.fence, self.seen.fence_revision());
        let over = self.seen.holder_revision();
        if over != 0 {
            // Its time is over, its key is not. Gone by itself meanwhile is as good.
            let its = If::Created(&self.holder, over);
            let same = If::Modified(&self.fence, self.seen.fence_revision());
            self.http
                .txn(&[its, same], &[Do::Delete(&self.holder)], &[])?;
        }
        let timing = self.options.timing;
        let nonce = &self.options.record.nonce;
        let fence = Fence::held(nonce, timing.ttl(), 0).to_json();
        // Of several tries the first may be the one that counts.
        let sent = BootTime::now();
        let txn = self.http.txn(
            &[If::Created(&self.holder, 0), unchanged],
            &[
                Do::Put(&self.holder, &self.json, lease),
                Do::Put(&self.fence, &fence, 0),
            ],
            &[Do::Get(&self.holder), Do::Get(&self.fence)],
        )?;
        let mut found = txn.found.into_iter();
        let holder: Option<Kv> = found.next().flatten();
        // An answer that was lost, and a try that found ourselves.
        let ours = holder
            .as_ref()
            .filter(|kv| kv.lease == lease)
            .map(|kv| kv.create_revision);
        let token = if txn.succeeded {
            Some(txn.revision)
        } else {
            ours
        };
        if let Some(token) = token {
            return Ok(Some(Held {
                token,
                lease,
                sent: sent.min(txn.sent),
            }));
        }
        self.seen.holder = holder;
        self.seen.set_fence(found.next().flatten());
        Ok(None)
    }

    fn win(self, held: Held) -> Result<Exclusive, ClusterError> {
        Exclusive::start(
            &self.config,
            self.holder,
            self.fence,
            self.options.record,
            self.options.timing,
            held,
            Guards {
                watchdog: self.options.watchdog,
                fuse: self.options.fuse,
            },
        )
    }

    fn tell_whom(&mut self, refusal: &ClusterError) {
        let text = match refusal {
            // The seconds change; whom it is about does not.
            ClusterError::NotYet { .. } => "not yet".to_owned(),
            other => other.to_string(),
        };
        if self.told.as_ref() != Some(&text) {
            self.told = Some(text);
            if let Some(call) = &mut self.options.on_wait {
                call(refusal);
            }
        }
    }

    fn check_patience(&self, why: &str) -> Result<(), ClusterError> {
        match self.patience {
            Patience::Until(end) if end <= Instant::now() => Err(ClusterError::Unreachable {
                endpoints: vec![crate::error::UnreachableEndpoint {
                    address: self.http.address(),
                    reason: why.to_owned(),
                }],
            }),
            _ => Ok(()),
        }
    }

    /// Why not now.
    fn refusal(&self, then: Option<BootTime>) -> ClusterError {
        let service = self.service.clone();
        let Some(kv) = &self.seen.holder else {
            return ClusterError::NotYet {
                service,
                wait: then.map_or(Duration::ZERO, BootTime::remaining),
            };
        };
        match Record::read(&kv.value, &service, None) {
            Ok(record) => ClusterError::AlreadyActive {
                service,
                host: record.host,
                port: record.port,
                pid: record.pid,
                started_at: record.started_at,
                token: kv.create_revision,
            },
            Err(reason) => ClusterError::ActiveUnknown {
                service,
                key: self.holder.clone(),
                reason,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &str) -> Option<Kv> {
        Some(Kv {
            key: String::new(),
            value: value.into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 1,
        })
    }

    #[test]
    fn who_may_start_and_when() {
        let held = Fence::held("n", Duration::from_secs(3), 0);
        let since = BootTime::from_nanos(1_000_000_000);
        let over = since + Duration::from_secs(4);
        let delay = Duration::from_secs(1);
        let fences = [
            None,
            kv(&held.clone().freed().to_json()),
            kv(&held.to_json()),
        ];
        let verdict = |holder: Option<Kv>, fence: Option<Kv>| {
            let seen = Seen {
                holder,
                fence,
                since: Some(since),
            };
            judge(&seen, delay)
        };
        let [none, free, held] = fences;
        assert_eq!(verdict(None, none.clone()), Ok(Verdict::Free));
        assert_eq!(verdict(None, free.clone()), Ok(Verdict::Free));
        assert_eq!(verdict(None, held.clone()), Ok(Verdict::Until(over)));
        assert_eq!(verdict(kv("x"), none), Ok(Verdict::Held));
        assert_eq!(verdict(kv("x"), free), Ok(Verdict::Held));
        assert_eq!(verdict(kv("x"), held), Ok(Verdict::Until(over)));
        assert_eq!(verdict(kv("x"), kv("junk")), Ok(Verdict::Held));
        assert!(verdict(None, kv("junk")).is_err());
    }

    #[test]
    fn a_beat_starts_the_wait_anew_and_the_same_fence_seen_again_does_not() {
        let mut seen = Seen::default();
        let mut beat = kv("a");
        seen.set_fence(beat.clone());
        let first = seen.since;
        seen.set_fence(beat.clone());
        assert_eq!(seen.since, first);
        if let Some(kv) = &mut beat {
            kv.mod_revision += 1;
        }
        seen.set_fence(beat);
        assert!(seen.since > first);
    }
}
