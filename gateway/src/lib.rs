//! The built-in server: a load balancer for servers that speak OpenAI's API.

mod auth;
mod backend;
mod body;
mod connection;
mod error;
mod health;
mod listen;
mod metrics;
mod proxy;
mod socket;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use llmlb_lock_core::LockInfo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};

pub use auth::ApiKey;
pub use backend::BackendUrl;
use backend::{Backend, Backends, Thresholds};
use listen::Limits;
use metrics::Metrics;
use proxy::Peer;

/// What it is told to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where requests are passed on to.
    pub backends: Vec<BackendUrl>,
    /// What clients have to show.
    pub api_key: Option<ApiKey>,
    /// What backends are shown.
    pub backend_api_key: Option<ApiKey>,
    /// How many requests may be in flight.
    pub max_requests: usize,
    /// How long connecting to a backend may take.
    pub connect_timeout: Duration,
    /// How often to look whether a backend is up.
    pub health_interval: Duration,
    /// How many good looks in a row bring a backend up.
    pub health_rise: u32,
    /// How many failures in a row bring a backend down.
    pub health_fall: u32,
}

/// How far it has come. Only ever moves on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Serving,
    /// No new connections, no new requests.
    Draining,
    /// Nothing is in flight any more: connections end.
    Closing,
    /// What is in flight ends now.
    Cut,
}

/// A load balancer.
pub struct Gateway {
    info: LockInfo,
    since: Instant,
    options: Options,
    limits: Limits,
    backends: Backends,
    backend_key: Option<HeaderValue>,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    in_flight: AtomicUsize,
    /// Told when nothing is in flight.
    idle: Notify,
}

impl Gateway {
    /// One that serves nobody yet.
    pub fn new(info: LockInfo, options: Options) -> io::Result<Arc<Self>> {
        let thresholds = Thresholds {
            rise: options.health_rise,
            fall: options.health_fall,
        };
        let mut urls: Vec<&BackendUrl> = Vec::new();
        for url in &options.backends {
            // Twice the same server is one server.
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        let backend = |url| Arc::new(Backend::new(url, thresholds, options.connect_timeout));
        Ok(Arc::new(Self {
            info,
            since: Instant::now(),
            backends: Backends::new(urls.into_iter().map(backend).collect()),
            backend_key: options.backend_api_key.as_ref().and_then(ApiKey::header),
            metrics: Metrics::new().map_err(io::Error::other)?,
            phase: watch::Sender::new(Phase::Serving),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            limits: Limits::find(options.max_requests),
            options,
        }))
    }

    /// Whether there is nowhere to pass requests on to.
    pub fn has_no_backends(&self) -> bool {
        self.backends.all().is_empty()
    }

    /// Begins to watch the backends, and waits (not for long) until their state is known.
    pub async fn look_around(self: &Arc<Self>) {
        health::watch(self).await;
    }

    /// Serves until [drained](Self::drain) or [cut off](Self::cut).
    pub async fn serve(self: &Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut guarded = Router::new()
            .route("/metrics", get(metrics::handler))
            .route("/v1/models", get(models).fallback(proxy::handler))
            .route("/v1/models/{*id}", get(model).fallback(proxy::handler))
            .fallback(proxy::handler);
        if self.options.api_key.is_some() {
            let require = middleware::from_fn_with_state(Arc::clone(self), auth::require);
            guarded = guarded.layer(require);
        }
        let app = guarded
            .route("/health", get(health))
            .with_state(Arc::clone(self));
        listen::serve(listener, app, self).await
    }

    /// Takes no more, and lets what is in flight finish.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends what is in flight.
    pub fn cut(&self) {
        self.phase.send_replace(Phase::Cut);
    }

    async fn wait_until_idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // From here on none is missed.
            idle.as_mut().enable();
            if self.in_flight.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    /// Of all backends that are up, each once.
    fn listed_models(&self) -> Vec<(String, Value)> {
        let mut all: Vec<(String, Value)> = Vec::new();
        let up = self.backends.all().iter().filter(|b| b.is_up());
        for models in up.filter_map(|backend| backend.models()) {
            for (id, entry) in models.entries() {
                if !all.iter().any(|(known, _)| known == id) {
                    all.push((id.clone(), entry.clone()));
                }
            }
        }
        all
    }

    fn model_names(&self) -> Vec<String> {
        let models = self.listed_models();
        models.into_iter().map(|(id, _)| id).collect()
    }
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    #[serde(flatten)]
    info: LockInfo,
    /// In seconds.
    uptime: f64,
    backends: Vec<BackendHealth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

#[derive(Serialize)]
struct BackendHealth {
    url: String,
    state: backend::State,
    in_flight: usize,
    /// Null when it does not say.
    models: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

async fn health(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let (code, status) = match *gateway.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ok"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
    };
    let backends = gateway.backends.all().iter().map(|backend| {
        let (state, problem) = backend.state();
        let models = backend.models();
        BackendHealth {
            url: backend.name.clone(),
            state,
            in_flight: backend.in_flight(),
            models: models.map(|models| models.names().map(str::to_owned).collect()),
            problem,
        }
    });
    let backends: Vec<_> = backends.collect();
    let hint = "no backends: start llmlb serve with --backend URL";
    let health = Health {
        status,
        info: gateway.info.clone(),
        uptime: gateway.since.elapsed().as_secs_f64(),
        hint: backends.is_empty().then_some(hint),
        backends,
    };
    (code, Json(health))
}

/// `GET /v1/models`: what all backends list; where none lists any, a backend's own answer.
async fn models(state: State<Arc<Gateway>>, peer: Extension<Peer>, request: Request) -> Response {
    let gateway = &state.0;
    let serving = *gateway.phase.borrow() == Phase::Serving;
    let backends = gateway.backends.all();
    let listed = || backends.iter().any(|b| b.is_up() && b.models().is_some());
    if !serving || !listed() {
        return proxy::handler(state, peer, request).await;
    }
    let entries = gateway.listed_models();
    let data: Vec<Value> = entries.into_iter().map(|(_, entry)| entry).collect();
    gateway.metrics.count("", StatusCode::OK.as_u16());
    Json(json!({ "object": "list", "data": data })).into_response()
}

/// `GET /v1/models/ID`, from the same lists: not all servers that have the one have the other.
async fn model(state: State<Arc<Gateway>>, peer: Extension<Peer>, request: Request) -> Response {
    let gateway = &state.0;
    let serving = *gateway.phase.borrow() == Phase::Serving;
    let listed = gateway.listed_models();
    let id = proxy::model_in_path(request.uri().path()).unwrap_or_default();
    match listed.into_iter().find(|(known, _)| *known == id) {
        Some((_, entry)) if serving => {
            gateway.metrics.count("", StatusCode::OK.as_u16());
            Json(entry).into_response()
        }
        _ => proxy::handler(state, peer, request).await,
    }
}
