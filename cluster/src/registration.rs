//! Being found: a record under a lease, kept up by a thread of its own through any outage. It never
//! ends a server.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::error::{ClusterError, code};
use crate::etcd::{Do, If, lease_id};
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::record::Record;

/// In how many renewals the record is looked at once: someone may have removed it by hand.
const LOOK_EVERY: u32 = 6;
/// How long giving it back may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// A server that is found as long as this lives: see
/// [`Cluster::register`](crate::Cluster::register).
///
/// When etcd is away the server serves on, and is registered anew when it returns.
#[must_use = "the server is withdrawn when this is dropped"]
pub struct Registration {
    orders: Sender<Order>,
    shared: Arc<Shared>,
    stop: Interrupt,
    thread: Option<JoinHandle<()>>,
    service: String,
}

enum Order {
    Update(Box<Record>, String),
    Leave,
    End,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    registered: bool,
    ended: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Whether `done` came true.
    fn wait(
        &self,
        timeout: Duration,
        interrupt: Option<&Interrupt>,
        done: impl Fn(&State) -> bool,
    ) -> bool {
        let until = Instant::now() + timeout;
        let mut state = self.lock();
        while !done(&state) && !interrupt.is_some_and(Interrupt::is_interrupted) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        done(&state)
    }
}

impl Registration {
    pub(crate) fn start(
        config: &Arc<Config>,
        key: String,
        leaving: String,
        record: Record,
        ttl: Duration,
    ) -> Result<Self, ClusterError> {
        let json = record.to_json()?;
        let service = record.service.clone();
        let (orders, received) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let stop = Interrupt::new();
        // A renewal may fail on every member of three and still be in time.
        let attempt = (ttl / 6).min(Duration::from_secs(3));
        let worker = Worker {
            http: Http::new(config, attempt, None),
            key,
            leaving: Some(leaving),
            what: format!(
                "Registration of {} on {}",
                record.service,
                record.instance()
            ),
            nonce: record.nonce,
            json,
            ttl,
            lease: None,
            looked: 0,
            stop: stop.clone(),
            orders: received,
            shared: Arc::clone(&shared),
            backoff: Backoff::new((ttl / 3).min(Duration::from_secs(5))),
        };
        let thread = thread::Builder::new()
            .name("llmlb-register".into())
            .spawn(move || worker.run())
            .map_err(ClusterError::Thread)?;
        Ok(Self {
            orders,
            shared,
            stop,
            thread: Some(thread),
            service,
        })
    }

    /// Whether etcd has the record, as far as is known.
    pub fn is_registered(&self) -> bool {
        self.shared.lock().registered
    }

    /// Waits until etcd has the record, at most `timeout`, and says whether it has.
    ///
    /// # Errors
    ///
    /// [`ClusterError::Interrupted`].
    pub fn wait_registered(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> Result<bool, ClusterError> {
        let shared = Arc::clone(&self.shared);
        let _hooked = interrupt.hook(move || shared.changed.notify_all());
        // A notification that comes between look and wait must not be missed: look again.
        let until = Instant::now() + timeout;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let slice = left.min(Duration::from_millis(200));
            let registered = self
                .shared
                .wait(slice, Some(interrupt), |state| state.registered);
            if interrupt.is_interrupted() {
                return Err(ClusterError::Interrupted);
            }
            if registered || left.is_zero() {
                return Ok(registered);
            }
        }
    }

    /// Writes another record in place of the present one: other models, or slots. Does not wait
    /// for etcd.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`], also for another service, host or port.
    pub fn update(&self, record: Record) -> Result<(), ClusterError> {
        let json = record.to_json()?;
        if record.service != self.service {
            return Err(ClusterError::InvalidRecord {
                what: "service name",
                reason: format!("{} is registered as {}", record.service, self.service),
            });
        }
        // It only fails when the thread is gone, which then has nothing to update.
        let _ = self.orders.send(Order::Update(Box::new(record), json));
        Ok(())
    }

    /// Takes the server off the list, as it is about to drain. Until it has ended, and is
    /// [`withdraw`](Self::withdraw)n, who asked it to stop sees that it has not. Does not wait for
    /// etcd.
    pub fn leave(&self) {
        let _ = self.orders.send(Order::Leave);
    }

    /// Takes the server off the list, as it has ended. Bounded to about 2 s: after that the lease
    /// ends it.
    pub fn withdraw(self) {
        // Dropping does.
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::End);
        if self.shared.wait(GOODBYE, None, |state| state.ended) {
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        } else {
            self.stop.interrupt();
        }
    }
}

struct Worker {
    http: Http,
    key: String,
    /// Where the record goes when the server leaves.
    leaving: Option<String>,
    what: String,
    nonce: String,
    json: String,
    ttl: Duration,
    lease: Option<u64>,
    looked: u32,
    stop: Interrupt,
    orders: Receiver<Order>,
    shared: Arc<Shared>,
    backoff: Backoff,
}

impl Worker {
    fn run(mut self) {
        loop {
            let wait = match self.keep() {
                Ok(()) => {
                    self.backoff.succeeded(&self.what);
                    self.shared.set(|state| state.registered = true);
                    // Servers that were started together don't renew together for ever.
                    (self.ttl / 3).mul_f64(fastrand::f64().mul_add(0.1, 0.9))
                }
                Err(error) => {
                    self.shared.set(|state| state.registered = false);
                    self.backoff.failed(&self.what, &error)
                }
            };
            match self.orders.recv_timeout(wait) {
                Ok(Order::Update(record, json)) => self.update(*record, json),
                Ok(Order::Leave) => self.leave(),
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.stop.is_interrupted() {
                break;
            }
        }
        self.end();
    }

    fn update(&mut self, record: Record, json: String) {
        self.nonce = record.nonce;
        self.json = json;
        // What is written is compared at the next look.
        self.looked = 0;
        if let Some(lease) = self.lease
            && let Err(error) = self.http.put(&self.key, &self.json, lease)
        {
            // Written with the next renewal.
            if !matches!(
                error,
                ClusterError::Refused {
                    code: code::NOT_FOUND,
                    ..
                }
            ) {
                warn!("{}: {error}", self.what);
            }
        }
    }

    fn leave(&mut self) {
        let Some(leaving) = self.leaving.take() else {
            return;
        };
        let from = std::mem::replace(&mut self.key, leaving);
        self.looked = 1;
        let Some(lease) = self.lease else { return };
        if let Err(error) = self.move_from(&from, lease) {
            debug!(%error, "registering anew, as one that leaves");
            // With it goes the record that is found.
            let _ = self.http.revoke(lease);
            self.lease = None;
        }
    }

    fn move_from(&self, from: &str, lease: u64) -> Result<(), ClusterError> {
        let put = Do::Put(&self.key, &self.json, lease);
        // Another may have registered the same host and port since.
        if let Some(kv) = self.http.get(from)?.filter(|kv| kv.lease == lease) {
            let ours = [If::Modified(from, kv.mod_revision)];
            let put = Do::Put(&self.key, &self.json, lease);
            if self
                .http
                .txn(&ours, &[Do::Delete(from), put], &[])?
                .succeeded
            {
                return Ok(());
            }
        }
        self.http.txn(&[], &[put], &[]).map(drop)
    }

    /// Renews, or registers.
    fn keep(&mut self) -> Result<(), ClusterError> {
        if let Some(lease) = self.lease {
            if self.http.keep_alive(lease)? {
                return self.look(lease);
            }
            info!("{}: its lease had ended, registering anew", self.what);
            self.lease = None;
        }
        let lease = lease_id();
        self.http
            .grant(lease, self.ttl.as_secs().max(1))
            .and_then(|_| self.http.put(&self.key, &self.json, lease))
            .inspect_err(|_| {
                // Whatever became of it, it is not used.
                let _ = self.http.revoke(lease);
            })?;
        self.lease = Some(lease);
        self.looked = 1;
        Ok(())
    }

    /// Puts right, now and then, what others did to the record.
    fn look(&mut self, lease: u64) -> Result<(), ClusterError> {
        let due = self.looked.is_multiple_of(LOOK_EVERY);
        self.looked = self.looked.wrapping_add(1);
        if !due {
            return Ok(());
        }
        let found = self.http.get(&self.key)?;
        match found {
            Some(kv) if kv.lease == lease && kv.value == self.json.as_bytes() => Ok(()),
            Some(kv) if kv.lease != lease && !self.is_ours(&kv.value) => {
                warn!(
                    "{}: another server has registered the same host and port; \
                     give each host a name of its own",
                    self.what
                );
                Ok(())
            }
            _ => self.http.put(&self.key, &self.json, lease).map(drop),
        }
    }

    fn is_ours(&self, value: &[u8]) -> bool {
        serde_json::from_slice::<Record>(value).is_ok_and(|record| record.nonce == self.nonce)
    }

    /// Revoking removes what the lease has, and nothing that another wrote.
    fn end(&mut self) {
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.http.revoke(lease)
        {
            warn!(
                "{}: not withdrawn, its lease ends within {} s: {error}",
                self.what,
                self.ttl.as_secs()
            );
        }
        self.shared.set(|state| {
            state.registered = false;
            state.ended = true;
        });
    }
}
