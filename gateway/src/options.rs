//! What a gateway is told to do, whatever its backends are.

use std::time::Duration;

use serde_json::Value;

use crate::auth::ApiKey;

/// What a [`Gateway`](crate::Gateway) is told to do. The defaults are those of `llmlb serve`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    pub(crate) api_key: Option<ApiKey>,
    pub(crate) backend_api_key: Option<ApiKey>,
    pub(crate) max_requests: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) health_interval: Duration,
    pub(crate) health_rise: u32,
    pub(crate) health_fall: u32,
    pub(crate) description: Vec<(String, Value)>,
    pub(crate) no_backends_hint: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: None,
            backend_api_key: None,
            max_requests: 1024,
            connect_timeout: Duration::from_secs(2),
            health_interval: Duration::from_secs(2),
            health_rise: 2,
            health_fall: 3,
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

    /// How many good looks in a row bring a backend up (default: 2).
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
