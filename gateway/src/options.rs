//! What a gateway is told to do, whatever its backends are.

use std::num::NonZeroUsize;
use std::time::Duration;

use serde_json::Value;

use crate::auth::ApiKey;
use crate::naming::Naming;
use crate::tls::{BackendTls, ServerTls};

/// What makes requests go to the backend where those before them went, whose memory has what they
/// begin with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Affinity {
    /// Their session (`X-Session-ID`, `prompt_cache_key` or `user`), else the conversation that they
    /// go on with.
    #[default]
    Prefix,
    /// Their session alone.
    Session,
    /// Nothing.
    Off,
}

/// What a [`Gateway`](crate::Gateway) is told to do. The defaults are those of `llmlb serve`,
/// but for [`workers`](Self::workers).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) backend_api_key: Option<ApiKey>,
    pub(crate) max_requests: usize,
    pub(crate) workers: NonZeroUsize,
    pub(crate) connect_timeout: Duration,
    pub(crate) health_interval: Duration,
    pub(crate) health_rise: u32,
    pub(crate) health_fall: u32,
    pub(crate) busy_timeout: Duration,
    pub(crate) ejection_time: Duration,
    pub(crate) first_byte_timeout: Option<Duration>,
    pub(crate) stream_idle_timeout: Option<Duration>,
    pub(crate) access_log: bool,
    pub(crate) affinity: Affinity,
    pub(crate) naming: Naming,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) backend_tls: BackendTls,
    pub(crate) queue: usize,
    pub(crate) queue_timeout: Duration,
    pub(crate) description: Vec<(String, Value)>,
    pub(crate) no_backends_hint: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: None,
            backend_api_key: None,
            max_requests: 1024,
            workers: NonZeroUsize::MIN,
            connect_timeout: Duration::from_secs(2),
            health_interval: Duration::from_secs(2),
            health_rise: 2,
            health_fall: 3,
            busy_timeout: Duration::from_secs(300),
            ejection_time: Duration::from_secs(10),
            first_byte_timeout: None,
            stream_idle_timeout: None,
            access_log: false,
            affinity: Affinity::default(),
            naming: Naming::default(),
            tls: None,
            backend_tls: BackendTls::default(),
            queue: 512,
            queue_timeout: Duration::from_secs(30),
            description: Vec::new(),
            no_backends_hint: "no backends: none is configured".to_owned(),
        }
    }
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What clients have to show (default: nothing).
    #[must_use]
    pub fn api_key(mut self, key: Option<ApiKey>) -> Self {
        self.api_key = key;
        self
    }

    /// What backends without a key of their own are shown (default: what the client showed).
    #[must_use]
    pub fn backend_api_key(mut self, key: Option<ApiKey>) -> Self {
        self.backend_api_key = key;
        self
    }

    /// How many requests may be in flight; more are answered with 503 (default: 1024).
    #[must_use]
    pub fn max_requests(mut self, count: usize) -> Self {
        self.max_requests = count;
        self
    }

    /// How many threads serve clients in [`Gateway::serve`](crate::Gateway::serve): the one that calls
    /// it, and others that have a runtime of their own (default: 1). Fewer where there are not 32 file
    /// descriptors for each. All limits are for all of them together.
    #[must_use]
    pub fn workers(mut self, count: NonZeroUsize) -> Self {
        self.workers = count;
        self
    }

    /// How long connecting to a backend may take (default: 2 s).
    #[must_use]
    pub fn connect_timeout(mut self, patience: Duration) -> Self {
        self.connect_timeout = patience;
        self
    }

    /// How often to look whether a backend is up (default: 2 s).
    #[must_use]
    pub fn health_interval(mut self, interval: Duration) -> Self {
        self.health_interval = interval;
        self
    }

    /// How many good looks in a row bring a backend up that had failed (default: 2). One that only
    /// was not there is up after one.
    #[must_use]
    pub fn health_rise(mut self, count: u32) -> Self {
        self.health_rise = count;
        self
    }

    /// How many failures in a row bring a backend down (default: 3).
    #[must_use]
    pub fn health_fall(mut self, count: u32) -> Self {
        self.health_fall = count;
        self
    }

    /// Whether each request is told of at its end: one line of JSON, as an event at level info with
    /// the target [`ACCESS_LOG`](crate::ACCESS_LOG) (default: no).
    #[must_use]
    pub fn access_log(mut self, wanted: bool) -> Self {
        self.access_log = wanted;
        self
    }

    /// What makes requests go where those before them went (default: prefix). It gives way to the
    /// load: see `docs/gateway.md`.
    #[must_use]
    pub fn affinity(mut self, affinity: Affinity) -> Self {
        self.affinity = affinity;
        self
    }

    /// How many requests may wait for backends that have as many as they may, see
    /// [`BackendSpec::max`](crate::BackendSpec::max); more are answered with 429 (default: 512). With 0,
    /// none waits, and the answer is 503.
    #[must_use]
    pub fn queue(mut self, count: usize) -> Self {
        self.queue = count;
        self
    }

    /// How long each of them may wait; then the answer is 503 (default: 30 s).
    #[must_use]
    pub fn queue_timeout(mut self, patience: Duration) -> Self {
        self.queue_timeout = patience;
        self
    }

    /// How long a backend that has requests in hand, and is not known to answer health checks
    /// meanwhile, may say nothing at all before it is taken for hung (default: 300 s).
    #[must_use]
    pub fn busy_timeout(mut self, patience: Duration) -> Self {
        self.busy_timeout = patience;
        self
    }

    /// How long a backend is left out at first that answers health checks and fails requests which
    /// others answer (default: 10 s). It is doubled each time, up to 300 s.
    #[must_use]
    pub fn ejection_time(mut self, time: Duration) -> Self {
        self.ejection_time = time;
        self
    }

    /// How long a backend may take, once it has the whole request, to begin with its answer; after
    /// that, the answer is 504 (default: for ever).
    #[must_use]
    pub fn first_byte_timeout(mut self, patience: Option<Duration>) -> Self {
        self.first_byte_timeout = patience;
        self
    }

    /// How long an answer that has begun may pause before it is broken off (default: for ever).
    #[must_use]
    pub fn stream_idle_timeout(mut self, patience: Option<Duration>) -> Self {
        self.stream_idle_timeout = patience;
        self
    }

    /// By which other names models are asked for, and which may stand in for others (default: none).
    #[must_use]
    pub fn naming(mut self, naming: Naming) -> Self {
        self.naming = naming;
        self
    }

    /// What [`Gateway::serve`](crate::Gateway::serve) shows clients, which speak TLS then (default:
    /// they do not).
    #[must_use]
    pub fn tls(mut self, tls: Option<ServerTls>) -> Self {
        self.tls = tls;
        self
    }

    /// How `https://` backends are spoken to (default: their certificates are of whom the system
    /// trusts, and they are shown none).
    #[must_use]
    pub fn backend_tls(mut self, tls: BackendTls) -> Self {
        self.backend_tls = tls;
        self
    }

    /// What `/health` says of this server beside its state, in the order given: its port, say.
    #[must_use]
    pub fn describe(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.description.push((name.into(), value.into()));
        self
    }

    /// What is told to who asks while there is no backend, such as how to configure one.
    #[must_use]
    pub fn no_backends_hint(mut self, hint: impl Into<String>) -> Self {
        self.no_backends_hint = hint.into();
        self
    }
}
