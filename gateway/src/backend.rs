//! A model server: where it is, how it is, what it serves.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::uri::{Authority, PathAndQuery, Scheme};
use axum::http::{HeaderValue, Uri};
use serde::Serialize;
use serde_json::Value;
use tracing::{info, warn};

use crate::connection::{Connection, Pool};

/// `http://HOST[:PORT][/BASE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendUrl {
    authority: Authority,
    base: String,
}

impl FromStr for BackendUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|e| format!("{e}"))?;
        match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return Err("https is not supported: put a TLS proxy in between".to_owned());
            }
            _ => return Err("a URL begins with http://".to_owned()),
        }
        let parts = uri.into_parts();
        let authority = parts.authority.ok_or("there is no host in it")?;
        if authority.host().is_empty() {
            return Err("there is no host in it".to_owned());
        }
        if authority.as_str().contains('@') {
            return Err("credentials belong into --backend-api-key".to_owned());
        }
        let has_port = authority.as_str().len() > authority.host().len();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err("a port is a number from 1 to 65535".to_owned());
        }
        let path = parts
            .path_and_query
            .unwrap_or(PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err("a query has no place in it".to_owned());
        }
        // The base URL that OpenAI's clients are given means the same server.
        let base = path.path().trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        Ok(Self { authority, base })
    }
}

impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

/// The models a backend lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Models(Vec<(String, Value)>);

impl Models {
    /// Reads the answer to `GET /v1/models`.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut list: Value = serde_json::from_slice(body).ok()?;
        let Some(Value::Array(entries)) = list.get_mut("data").map(Value::take) else {
            return None;
        };
        let named = entries.into_iter().filter_map(|entry| {
            let id = entry.get("id")?.as_str()?.to_owned();
            Some((id, entry))
        });
        Some(Self(named.collect()))
    }

    pub(crate) fn entries(&self) -> &[(String, Value)] {
        &self.0
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(id, _)| id.as_str())
    }

    fn contains(&self, model: &str) -> bool {
        // Ollama lists "name:latest" and answers to "name".
        self.names()
            .any(|id| id == model || id.strip_suffix(":latest") == Some(model))
    }
}

/// Whether a backend serves a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    Listed,
    /// It does not say what it serves.
    Unknown,
    NotListed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Not looked at yet.
    Unknown,
    Up,
    Down,
}

#[derive(Debug)]
struct Health {
    state: State,
    /// How many times in a row it was found otherwise.
    streak: u32,
    problem: Option<String>,
    /// None when it does not say. Outlasts being down.
    models: Option<Arc<Models>>,
}

/// How many times in a row it takes to be believed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thresholds {
    pub(crate) rise: u32,
    pub(crate) fall: u32,
}

pub(crate) struct Backend {
    /// As metrics and logs call it.
    pub(crate) name: String,
    pub(crate) host_header: HeaderValue,
    pub(crate) pool: Arc<Pool>,
    host: String,
    port: u16,
    base: String,
    thresholds: Thresholds,
    connect_timeout: Duration,
    up: AtomicBool,
    health: Mutex<Health>,
    in_flight: AtomicUsize,
    since: Instant,
    /// Of an answer's body, in milliseconds after `since`; 0: there was none.
    last_byte: AtomicU64,
}

impl Backend {
    pub(crate) fn new(url: &BackendUrl, thresholds: Thresholds, connect_timeout: Duration) -> Self {
        let host = url.authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_header = HeaderValue::from_str(url.authority.as_str());
        Self {
            name: url.to_string(),
            #[expect(clippy::expect_used, reason = "an authority has no control characters")]
            host_header: host_header.expect("an authority is a valid header value"),
            pool: Arc::default(),
            host: bare.unwrap_or(host).to_owned(),
            port: url.authority.port_u16().unwrap_or(80),
            base: url.base.clone(),
            thresholds,
            connect_timeout,
            up: AtomicBool::new(false),
            health: Mutex::new(Health {
                state: State::Unknown,
                streak: 0,
                problem: None,
                models: None,
            }),
            in_flight: AtomicUsize::new(0),
            since: Instant::now(),
            last_byte: AtomicU64::new(0),
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<Connection> {
        Connection::open(&self.host, self.port, self.connect_timeout).await
    }

    /// Where a request's path is found on the backend.
    pub(crate) fn uri(&self, path: &PathAndQuery) -> Uri {
        if self.base.is_empty() {
            return path.clone().into();
        }
        let joined = PathAndQuery::try_from(format!("{}{path}", self.base));
        joined.unwrap_or_else(|_| path.clone()).into()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> (State, Option<String>) {
        let health = self.health();
        (health.state, health.problem.clone())
    }

    pub(crate) fn models(&self) -> Option<Arc<Models>> {
        self.health().models.clone()
    }

    pub(crate) fn set_models(&self, models: Option<Models>) {
        self.health().models = models.map(Arc::new);
    }

    pub(crate) fn fit(&self, model: Option<&str>) -> Fit {
        let Some(model) = model else {
            return Fit::Listed;
        };
        match &self.health().models {
            Some(models) if models.contains(model) => Fit::Listed,
            Some(_) => Fit::NotListed,
            None => Fit::Unknown,
        }
    }

    /// It was found in order.
    pub(crate) fn succeeded(&self) {
        let mut health = self.health();
        health.streak = match health.state {
            State::Up => 0,
            State::Unknown => self.thresholds.rise,
            State::Down => health.streak + 1,
        };
        if health.state != State::Up && health.streak >= self.thresholds.rise {
            info!("Backend {} is up", self.name);
            health.state = State::Up;
            health.streak = 0;
            health.problem = None;
            self.up.store(true, Ordering::Relaxed);
        }
    }

    /// It was found out of order.
    pub(crate) fn failed(&self, problem: String) {
        let mut health = self.health();
        health.streak = match health.state {
            State::Down => 0,
            State::Unknown => self.thresholds.fall,
            State::Up => health.streak + 1,
        };
        if health.state != State::Down && health.streak >= self.thresholds.fall {
            warn!("Backend {} is down: {problem}", self.name);
            health.state = State::Down;
            health.streak = 0;
            self.up.store(false, Ordering::Relaxed);
        }
        health.problem = Some(problem);
    }

    /// Notes that a piece of an answer has come.
    pub(crate) fn answering(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte.store(now.max(1), Ordering::Relaxed);
    }

    /// Whether a piece of an answer came within this time.
    pub(crate) fn answered_within(&self, time: Duration) -> bool {
        let last = Duration::from_millis(self.last_byte.load(Ordering::Relaxed));
        !last.is_zero() && self.since.elapsed().saturating_sub(last) < time
    }
}

/// A request's place at a backend: it is in flight there until this is dropped.
pub(crate) struct Place(Arc<Backend>);

impl std::ops::Deref for Place {
    type Target = Arc<Backend>;

    fn deref(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no place for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// Backends that might serve it are down, or have been tried.
    Unavailable,
    /// No backend serves this model.
    NoSuchModel,
}

/// All backends.
pub(crate) struct Backends {
    all: Vec<Arc<Backend>>,
    /// Whose turn it is, among equals. Held while choosing, so that a burst spreads out.
    turn: Mutex<usize>,
}

impl Backends {
    pub(crate) fn new(all: Vec<Arc<Backend>>) -> Self {
        Self {
            all,
            turn: Mutex::new(0),
        }
    }

    pub(crate) fn all(&self) -> &[Arc<Backend>] {
        &self.all
    }

    /// Takes a place at the backend with the fewest requests in flight that serves this model,
    /// leaving out those that were `tried`. Not `strict`, any will do when none serves it.
    pub(crate) fn choose(
        &self,
        model: Option<&str>,
        strict: bool,
        tried: &[Arc<Backend>],
    ) -> Result<Place, NoPlace> {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut best: Option<((Fit, usize), usize)> = None;
        let mut served = false;
        for index in (*turn..self.all.len()).chain(0..*turn) {
            let backend = &self.all[index];
            let fit = backend.fit(model);
            let eligible = fit != Fit::NotListed || !strict;
            // One that is down counts by what it listed last; one that listed nothing yet may serve it.
            served |= fit != Fit::NotListed || (eligible && backend.is_up());
            if !eligible || !backend.is_up() || tried.iter().any(|t| Arc::ptr_eq(t, backend)) {
                continue;
            }
            let cost = (fit, backend.in_flight());
            if best.is_none_or(|(least, _)| cost < least) {
                best = Some((cost, index));
            }
        }
        let Some((_, index)) = best else {
            let any_up = self.all.iter().any(|backend| backend.is_up());
            return Err(if served || !any_up {
                NoPlace::Unavailable
            } else {
                NoPlace::NoSuchModel
            });
        };
        *turn = (index + 1) % self.all.len();
        let backend = &self.all[index];
        backend.in_flight.fetch_add(1, Ordering::Relaxed);
        Ok(Place(Arc::clone(backend)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

    fn backends(models: &[Option<&[&str]>]) -> Backends {
        let backend = |(index, models): (usize, &Option<&[&str]>)| {
            let url = format!("http://b{index}").parse().unwrap();
            let backend = Backend::new(&url, THRESHOLDS, Duration::from_secs(1));
            backend.succeeded();
            backend.set_models(models.map(|ids| {
                Models(
                    ids.iter()
                        .map(|id| ((*id).to_owned(), Value::Null))
                        .collect(),
                )
            }));
            Arc::new(backend)
        };
        Backends::new(models.iter().enumerate().map(backend).collect())
    }

    fn name(place: &Place) -> &str {
        place.name.strip_prefix("http://").unwrap()
    }

    #[test]
    fn urls_are_checked() {
        let parse = |text: &str| text.parse::<BackendUrl>();
        for (text, shown) in [
            ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
            ("http://h/", "http://h"),
            ("http://h:1/v1/", "http://h:1"),
            ("http://[::1]:8000/a/v1", "http://[::1]:8000/a"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "h",
            "h:1",
            "/",
            "ftp://h",
            "https://h",
            "http://",
            "http://:1",
            "http://h:0",
            "http://h:99999",
            "http://h:",
            "http://u:p@h",
            "http://h?q",
            "http://a b",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_least_loaded_is_chosen_and_equals_take_turns() {
        let backends = backends(&[None, None, None]);
        let places: Vec<_> = (0..3)
            .map(|_| backends.choose(None, true, &[]).unwrap())
            .collect();
        assert_eq!(
            places.iter().map(name).collect::<Vec<_>>(),
            ["b0", "b1", "b2"]
        );
        let [first, second, _third]: [Place; 3] = places.try_into().ok().unwrap();
        drop(second);
        let again = backends.choose(None, true, &[]).unwrap();
        assert_eq!(name(&again), "b1");
        drop((first, again));
        // Though all in flight are gone, the turn goes on.
        let counted: Vec<_> = (0..2)
            .map(|_| name(&backends.choose(None, true, &[]).unwrap()).to_owned())
            .collect();
        assert_eq!(counted, ["b0", "b1"]);
    }

    #[test]
    fn a_model_goes_where_it_is_listed_else_where_it_may_be() {
        let listed = backends(&[Some(&["a"]), Some(&["b:latest"]), None]);
        for _ in 0..3 {
            assert_eq!(name(&listed.choose(Some("a"), true, &[]).unwrap()), "b0");
            assert_eq!(name(&listed.choose(Some("b"), true, &[]).unwrap()), "b1");
            assert_eq!(name(&listed.choose(Some("c"), true, &[]).unwrap()), "b2");
        }
        let tried = [Arc::clone(&listed.all()[0])];
        assert_eq!(name(&listed.choose(Some("a"), true, &tried).unwrap()), "b2");
    }

    #[test]
    fn a_model_nobody_serves_is_told_from_one_that_is_down() {
        let backends = backends(&[Some(&["a"]), Some(&["b"])]);
        let choose = |model, strict| backends.choose(Some(model), strict, &[]).err();
        assert_eq!(choose("c", true), Some(NoPlace::NoSuchModel));
        assert_eq!(choose("c", false), None);
        for _ in 0..THRESHOLDS.fall {
            assert_eq!(choose("a", true), None);
            backends.all()[0].failed("gone".to_owned());
        }
        assert_eq!(choose("a", true), Some(NoPlace::Unavailable));
        assert_eq!(choose("c", true), Some(NoPlace::NoSuchModel));
        let tried = [Arc::clone(&backends.all()[1])];
        let none = backends.choose(Some("b"), true, &tried).err();
        assert_eq!(none, Some(NoPlace::Unavailable));
    }

    #[test]
    fn it_takes_some_times_in_a_row_to_fall_and_to_rise() {
        let backends = backends(&[None]);
        let backend = &backends.all()[0];
        for _ in 0..5 {
            backend.failed("1".to_owned());
            backend.failed("2".to_owned());
            assert!(backend.is_up());
            backend.succeeded();
        }
        for _ in 0..3 {
            backend.failed("3".to_owned());
        }
        assert!(!backend.is_up());
        assert_eq!(backend.state(), (State::Down, Some("3".to_owned())));
        backend.succeeded();
        backend.failed("4".to_owned());
        backend.succeeded();
        assert!(!backend.is_up());
        backend.succeeded();
        assert_eq!(backend.state(), (State::Up, None));
    }

    #[test]
    fn the_first_look_decides() {
        let url = "http://h".parse().unwrap();
        let look = || Backend::new(&url, THRESHOLDS, Duration::from_secs(1));
        let (good, bad) = (look(), look());
        assert!(!good.is_up());
        good.succeeded();
        bad.failed("refused".to_owned());
        assert_eq!((good.state().0, bad.state().0), (State::Up, State::Down));
    }

    #[test]
    fn only_lists_of_models_are_understood() {
        let parse = |text: &str| Models::parse(text.as_bytes());
        let models = parse(r#"{"data":[{"id":"a","x":1},{"no":"id"},7]}"#).unwrap();
        assert_eq!(models.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(models.entries()[0].1["x"], 1);
        for text in ["", "[]", "{}", r#"{"data":{}}"#, r#"{"error":"x"}"#] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
