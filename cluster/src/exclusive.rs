//! Being the active server: renewing, knowing the deadline, giving it back. Apart from becoming it,
//! since all of this goes by a clock and asks nobody's leave.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::clock::BootTime;
use crate::error::ClusterError;
use crate::etcd::{Do, If};
use crate::fence::Fence;
use crate::fuse::Fuse;
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::record::Record;
use crate::timing::Timing;
use crate::watchdog::Watchdog;

/// How long dropping it tries to give it back.
const GOODBYE: Duration = Duration::from_secs(2);
/// Between two tries when etcd does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// So often time that passed in suspend is noticed, at least.
const LOOK: Duration = Duration::from_secs(1);

/// What taking the key has given.
pub(crate) struct Held {
    pub(crate) token: u64,
    pub(crate) lease: u64,
    pub(crate) sent: BootTime,
}

/// Who kills the server in time.
pub(crate) struct Guards {
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) fuse: Option<Fuse>,
}

/// This server is the active one: see [`Cluster::acquire`](crate::Cluster::acquire).
///
/// A thread renews. When [`wait_lost`](Self::wait_lost) says so the server has to be ended, and at
/// the [`deadline`](Self::deadline) it is dead: another may be active from then on. A
/// [`Watchdog`] sees to that even if this process is killed or stopped; of a server that is this
/// process the kernel does, see [`Options::with_self_fencing`](crate::Options::with_self_fencing).
///
/// Dropping it gives the lease back if the server has ended. Where that is not known (a panic, a
/// server that the watchdog still sees) the server is killed first, and without a watchdog the
/// lease is left to end by itself.
#[must_use = "the lease is given back when this is dropped"]
pub struct Exclusive {
    config: Arc<Config>,
    holder: String,
    fence: String,
    /// As it was when the key was taken.
    record: Record,
    timing: Timing,
    token: u64,
    lease: u64,
    shared: Arc<Shared>,
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
    watchdog: Option<Arc<Watchdog>>,
    fuse: Option<Arc<Fuse>>,
    released: bool,
}

/// The server has to be ended, and by when.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lost {
    /// What happened.
    pub reason: String,
    /// When the server has to be dead.
    pub deadline: BootTime,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    deadline: BootTime,
    /// Stays, once it is said.
    lost: Option<String>,
    /// A record that has yet to be written.
    update: Option<String>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self, reason: impl Into<String>) {
        let mut state = self.lock();
        if state.lost.is_none() {
            let reason = reason.into();
            debug!(reason, "the lease is lost");
            state.lost = Some(reason);
        }
        self.changed.notify_all();
    }

    /// Writes the record that waits for it. `false`: the key is ours no longer.
    fn write(
        &self,
        http: &Http,
        holder: &str,
        token: u64,
        lease: u64,
    ) -> Result<bool, ClusterError> {
        let Some(json) = self.lock().update.clone() else {
            return Ok(true);
        };
        let ours = [If::Created(holder, token)];
        let txn = http.txn(&ours, &[Do::Put(holder, &json, lease)], &[])?;
        // Unless there is another by now.
        self.lock().update.take_if(|update| *update == json);
        Ok(txn.succeeded)
    }
}

impl Exclusive {
    pub(crate) fn start(
        config: &Arc<Config>,
        holder: String,
        fence: String,
        record: Record,
        timing: Timing,
        held: Held,
        guards: Guards,
    ) -> Result<Self, ClusterError> {
        let deadline = timing.deadline(held.sent);
        let watchdog = guards.watchdog.map(Arc::new);
        let fuse = guards.fuse.map(Arc::new);
        let mut exclusive = Self {
            config: Arc::clone(config),
            holder,
            fence,
            record: record.with_token(held.token),
            timing,
            token: held.token,
            lease: held.lease,
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    deadline,
                    lost: None,
                    update: None,
                }),
                changed: Condvar::new(),
            }),
            stop: Interrupt::new(),
            thread: None,
            watchdog,
            fuse,
            released: false,
        };
        if let Some(fuse) = &exclusive.fuse {
            let set = fuse.set(timing.kill_at(deadline));
            set.map_err(ClusterError::Watchdog)?;
        }
        if let Some(watchdog) = &exclusive.watchdog {
            watchdog.extend(timing.kill_at(deadline));
            let shared = Arc::clone(&exclusive.shared);
            watchdog.on_failure(move |reason| shared.lose(reason));
        }
        let renewer = exclusive.renewer(held.sent);
        let thread = thread::Builder::new()
            .name("llmlb-renew".into())
            .spawn(move || renewer.run())
            .map_err(ClusterError::Thread)?;
        exclusive.thread = Some(thread);
        Ok(exclusive)
    }

    fn renewer(&self, sent: BootTime) -> Renewer {
        Renewer {
            http: Http::new(&self.config, self.timing.request(), Some(&self.stop)),
            holder: self.holder.clone(),
            fence: self.fence.clone(),
            service: self.record.service.clone(),
            nonce: self.record.nonce.clone(),
            timing: self.timing,
            token: self.token,
            lease: self.lease,
            beat: 0,
            revision: self.token,
            sent,
            shared: Arc::clone(&self.shared),
            stop: self.stop.clone(),
            watchdog: self.watchdog.clone(),
            fuse: self.fuse.clone(),
            failing: false,
        }
    }

    /// The fencing token: higher than that of any server before. A resource that remembers the
    /// highest it has seen, and refuses lower ones, is safe from a server that was cut off.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The server's record, with its token.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Writes another record in place of the present one, so that who is refused is told of the
    /// server: its PID is known only now. One try; where etcd does not answer, it is written with a
    /// renewal.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`], also for another service; [`ClusterError::Lost`].
    pub fn update(&self, record: Record) -> Result<(), ClusterError> {
        if record.service != self.record.service {
            return Err(ClusterError::InvalidRecord {
                what: "service name",
                reason: format!("{} is active as {}", record.service, self.record.service),
            });
        }
        let mut record = record.with_token(self.token);
        record.exclusive = true;
        record.nonce.clone_from(&self.record.nonce);
        let json = record.to_json()?;
        self.shared.lock().update = Some(json.clone());
        let http = Http::new(&self.config, self.timing.request(), Some(&self.stop));
        match self
            .shared
            .write(&http, &self.holder, self.token, self.lease)
        {
            Ok(true) => Ok(()),
            Ok(false) => Err(ClusterError::Lost {
                service: self.record.service.clone(),
                token: self.token,
                reason: "another has the service, or its key was removed".into(),
            }),
            Err(error) => {
                debug!(%error, "the record is written with a renewal");
                Ok(())
            }
        }
    }

    /// When the server has to be dead, unless a renewal succeeds before.
    pub fn deadline(&self) -> BootTime {
        self.shared.lock().deadline
    }

    /// How long until the [`deadline`](Self::deadline).
    pub fn remaining(&self) -> Duration {
        self.deadline().remaining()
    }

    /// When the server has to be killed, to be dead at the deadline.
    pub fn kill_at(&self) -> BootTime {
        self.timing.kill_at(self.deadline())
    }

    /// The watchdog that was given for it.
    pub fn watchdog(&self) -> Option<&Watchdog> {
        self.watchdog.as_deref()
    }

    /// Waits until the server has to be ended, for ever or at most `timeout`; `None` if it need not
    /// be until then. That leaves the whole drain before the kill, unless the key was taken away.
    ///
    /// # Errors
    ///
    /// None without an interrupt: see [`wait_lost_or`](Self::wait_lost_or).
    pub fn wait_lost(&self, timeout: Option<Duration>) -> Result<Option<Lost>, ClusterError> {
        self.wait_lost_or(timeout, &Interrupt::new())
    }

    /// The same, until it is interrupted.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`].
    pub fn wait_lost_or(
        &self,
        timeout: Option<Duration>,
        interrupt: &Interrupt,
    ) -> Result<Option<Lost>, ClusterError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let (flag, shared) = (Arc::clone(&interrupted), Arc::clone(&self.shared));
        let _hooked = interrupt.hook(move || {
            // Under the lock, so not between a look and a wait.
            let _state = shared.lock();
            flag.store(true, Ordering::Relaxed);
            shared.changed.notify_all();
        });
        let until = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.shared.lock();
        loop {
            let drain = self.timing.drain_at(state.deadline).remaining();
            if drain.is_zero() && state.lost.is_none() {
                state.lost = Some("etcd has not answered a renewal in time".into());
            }
            if let Some(reason) = &state.lost {
                return Ok(Some(Lost {
                    reason: reason.clone(),
                    deadline: state.deadline,
                }));
            }
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return Ok(None);
            }
            if interrupted.load(Ordering::Relaxed) {
                return Err(ClusterError::Interrupted);
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left.min(drain).min(LOOK))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Gives the lease back: a standby starts at once. Only when the server has ended. Tries as long
    /// as the lease lasts, at most its TTL.
    ///
    /// # Errors
    ///
    /// [`ClusterError::ReleaseFailed`]: it ends by itself. [`ClusterError::Lost`]: it was not ours
    /// any more.
    pub fn release(mut self) -> Result<(), ClusterError> {
        let most = self.remaining();
        self.give_back(most)
    }

    /// Renews no longer, and leaves the lease to end by itself, within its TTL: where it is not known
    /// whether the server has ended. A watchdog ends it, and self-fencing this process.
    pub fn abandon(mut self) {
        self.released = true;
        self.stop_renewing();
        std::mem::forget(self.fuse.take());
    }

    fn give_back(&mut self, most: Duration) -> Result<(), ClusterError> {
        self.released = true;
        if let Some(fuse) = &self.fuse {
            fuse.defuse();
        }
        self.stop_renewing();
        let http = Http::new(&self.config, self.timing.request(), None);
        let until = Instant::now() + most;
        let result = loop {
            match self.remove(&http) {
                Err(error) if error.is_outage() && Instant::now() < until => thread::sleep(RETRY),
                other => break other,
            }
        };
        // What is left of it; the record that is no longer ours is not.
        let revoked = http.revoke(self.lease);
        match result {
            Ok(true) => {
                if let Err(error) = revoked {
                    debug!(%error, "the empty lease ends by itself");
                }
                Ok(())
            }
            Ok(false) => Err(ClusterError::Lost {
                service: self.record.service.clone(),
                token: self.token,
                reason: "another has the service, or its key was removed".into(),
            }),
            Err(source) => Err(ClusterError::ReleaseFailed {
                service: self.record.service.clone(),
                ttl: self.timing.ttl(),
                source: Box::new(source),
            }),
        }
    }

    /// Whether the key was ours to remove.
    fn remove(&self, http: &Http) -> Result<bool, ClusterError> {
        let fence = Fence::held(&self.record.nonce, self.timing.ttl(), 0).freed();
        let json = fence.to_json();
        let steps = [Do::Delete(&self.holder), Do::Put(&self.fence, &json, 0)];
        let ours = [If::Created(&self.holder, self.token)];
        #[cfg(feature = "planted-faults")]
        let ours = if crate::faults::release_by_name() {
            &[][..]
        } else {
            &ours[..]
        };
        #[cfg(not(feature = "planted-faults"))]
        let ours = &ours[..];
        let txn = http.txn(ours, &steps, &[Do::Get(&self.fence)])?;
        // A try whose answer was lost has done it.
        let done = || {
            let kv = txn.found.first()?.as_ref()?;
            Some(Fence::read(&kv.value).ok()? == fence)
        };
        Ok(txn.succeeded || done() == Some(true))
    }

    fn stop_renewing(&mut self) {
        self.stop.interrupt();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    /// Whether the server that the watchdog sees is gone, if need be by its hand; without one, what
    /// the caller's being here says.
    fn server_has_ended(&self) -> bool {
        match &self.watchdog {
            Some(watchdog) => watchdog.end_server(self.timing.kill()),
            None => !thread::panicking(),
        }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        if !self.server_has_ended() {
            self.stop_renewing();
            std::mem::forget(self.fuse.take());
            warn!(
                "The lease of {} is not given back, as its server may still run: it ends by itself",
                self.record.service
            );
            return;
        }
        if let Err(error) = self.give_back(GOODBYE.min(self.remaining())) {
            warn!("{error}");
        }
    }
}

impl fmt::Debug for Exclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exclusive")
            .field("service", &self.record.service)
            .field("token", &self.token)
            .field("remaining", &self.remaining())
            .finish_non_exhaustive()
    }
}

struct Renewer {
    http: Http,
    holder: String,
    fence: String,
    service: String,
    nonce: String,
    timing: Timing,
    token: u64,
    lease: u64,
    beat: u64,
    /// Of the last beat.
    revision: u64,
    /// The last renewal that succeeded.
    sent: BootTime,
    shared: Arc<Shared>,
    stop: Interrupt,
    watchdog: Option<Arc<Watchdog>>,
    fuse: Option<Arc<Fuse>>,
    failing: bool,
}

impl Renewer {
    fn run(mut self) {
        let mut wait = (self.sent + self.timing.renew()).remaining();
        while !self.stop.sleep(wait.min(LOOK)) {
            wait = wait.saturating_sub(LOOK);
            if let Some(watchdog) = &self.watchdog {
                watchdog.ping(self.timing.renew());
            }
            if !wait.is_zero() && !(self.sent + self.timing.renew()).remaining().is_zero() {
                continue;
            }
            match self.renew() {
                Ok(true) => wait = (self.sent + self.timing.renew()).remaining(),
                Ok(false) => return,
                Err(ClusterError::Interrupted) => return,
                Err(error) => {
                    self.fail(&error);
                    wait = RETRY;
                }
            }
        }
    }

    /// `false`: it is ours no longer.
    fn renew(&mut self) -> Result<bool, ClusterError> {
        self.beat += 1;
        let beat = Fence::held(&self.nonce, self.timing.ttl(), self.beat).to_json();
        let txn = self.http.txn(
            &[If::Created(&self.holder, self.token)],
            &[Do::Put(&self.fence, &beat, 0)],
            &[],
        )?;
        if !txn.succeeded {
            self.shared
                .lose("another has the service, or its key was removed");
            return Ok(false);
        }
        // Each beat makes a revision: what shows none is the answer to something else.
        if txn.revision <= self.revision {
            return Err(ClusterError::NotEtcd {
                address: "etcd".into(),
                reason: format!("revision {} was given before", txn.revision),
            });
        }
        self.revision = txn.revision;
        self.succeed(txn.sent);
        // The key's lease only cleans up after us; but without the key the next beat fails.
        match self.http.keep_alive(self.lease) {
            Ok(true) => {}
            Ok(false) => self.shared.lose("its lease in etcd has ended"),
            Err(ClusterError::Interrupted) => return Err(ClusterError::Interrupted),
            Err(error) => debug!(%error, "the lease was not renewed, the next time will do"),
        }
        let written = self
            .shared
            .write(&self.http, &self.holder, self.token, self.lease);
        if let Err(error) = written {
            debug!(%error, "the record was not written, the next time will do");
        }
        Ok(true)
    }

    fn succeed(&mut self, sent: BootTime) {
        #[cfg(feature = "planted-faults")]
        let sent = if crate::faults::deadline_from_answer() {
            BootTime::now()
        } else {
            sent
        };
        if self.failing {
            self.failing = false;
            info!("Lease of {}: etcd answers again", self.service);
        }
        self.sent = self.sent.max(sent);
        let deadline = self.timing.deadline(self.sent);
        let mut state = self.shared.lock();
        // Time is over when it is over: what comes after that is too late.
        if state.deadline.remaining().is_zero() {
            drop(state);
            self.shared.lose("a renewal came too late");
            return;
        }
        state.deadline = deadline;
        drop(state);
        if let Some(fuse) = &self.fuse
            && let Err(error) = fuse.set(self.timing.kill_at(deadline))
        {
            self.shared
                .lose(format!("its end can't be put off: {error}"));
        }
        if let Some(watchdog) = &self.watchdog {
            watchdog.extend(self.timing.kill_at(deadline));
        }
    }

    fn fail(&mut self, error: &ClusterError) {
        if !self.failing {
            self.failing = true;
            warn!("Lease of {}: {error}; trying on", self.service);
        }
        let deadline = self.shared.lock().deadline;
        if self.timing.drain_at(deadline).remaining().is_zero() {
            self.shared.lose("etcd has not answered a renewal in time");
        }
    }
}
