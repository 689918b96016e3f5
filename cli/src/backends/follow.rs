//! Follows the sources of backends, and tells of each new set.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_gateway::{BackendSet, BackendSpec};
use tokio::sync::watch;
use tracing::{info, warn};

use super::entry::{Backend, Place};
use super::file::{BackendsFile, Stamp};
use super::names::{self, Found};

/// How often to look whether the file has changed.
const STEP: Duration = Duration::from_secs(1);
/// How long a start waits for the first answer to a name.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that was given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) listed: Vec<Backend>,
    pub(crate) file: Option<PathBuf>,
    /// Whose servers are backends.
    pub(crate) services: Vec<String>,
    /// The etcd that knows them.
    pub(crate) cluster: Option<String>,
}

/// What happens to the sources.
pub(super) enum News {
    /// The file is to be read again.
    Reload,
    /// What the name of this URL stands for.
    Addresses(String, Found),
    /// A name was looked up, and stands for what it did.
    Same,
    /// The servers of a service.
    #[cfg_attr(
        not(target_os = "linux"),
        allow(dead_code, reason = "nobody follows them")
    )]
    Servers(String, Vec<BackendSpec>),
}

/// Follows them for as long as it lives.
pub(crate) struct Follower {
    news: Sender<News>,
    sets: watch::Receiver<BackendSet>,
    has_file: bool,
}

impl Follower {
    /// Reads what there is, and waits, not for long, for the names in it.
    ///
    /// # Errors
    ///
    /// What is wrong with the file.
    pub(crate) fn start(sources: Sources) -> Result<Self, String> {
        let (news, received) = channel();
        let has_file = sources.file.is_some();
        let mut state = State::new(sources, news.clone())?;
        state.wait_for_names(&received);
        let (sets, followed) = watch::channel(state.set());
        let follow = move || state.follow(&received, &sets);
        let thread = thread::Builder::new().name("backends".to_owned());
        thread.spawn(follow).map_err(|e| e.to_string())?;
        Ok(Self {
            news,
            sets: followed,
            has_file,
        })
    }

    pub(crate) fn sets(&self) -> watch::Receiver<BackendSet> {
        self.sets.clone()
    }

    /// Reads the file again.
    pub(crate) fn reload(&self) {
        if !self.has_file {
            info!("There is no file to read again: see --backends-file");
        }
        // It follows as long as this is here.
        let _ = self.news.send(News::Reload);
    }
}

struct State {
    listed: Vec<Backend>,
    file: Option<BackendsFile>,
    stamp: Option<Stamp>,
    in_file: Vec<Backend>,
    /// What each name stands for; nothing yet where it was never answered.
    names: BTreeMap<String, Option<BTreeSet<String>>>,
    /// The servers of each service; nothing yet where etcd has not answered.
    servers: BTreeMap<String, Option<Vec<BackendSpec>>>,
    news: Sender<News>,
}

impl State {
    fn new(sources: Sources, news: Sender<News>) -> Result<Self, String> {
        let file = sources.file.as_deref().map(BackendsFile::new);
        // Looked at before it is read: what changes meanwhile is seen later.
        let stamp = file.as_ref().and_then(BackendsFile::stamp);
        let in_file = file.as_ref().map(BackendsFile::read).transpose()?;
        let mut state = Self {
            listed: sources.listed,
            file,
            stamp,
            in_file: in_file.unwrap_or_default(),
            names: BTreeMap::new(),
            servers: BTreeMap::new(),
            news,
        };
        state.watch_names().map_err(|e| e.to_string())?;
        if !sources.services.is_empty() {
            state.watch_services(sources.cluster.as_deref(), sources.services)?;
        }
        Ok(state)
    }

    /// Begins to look up what is new. A name that is gone is looked up on, to no effect.
    fn watch_names(&mut self) -> io::Result<()> {
        for backend in self.listed.iter().chain(&self.in_file) {
            if let Place::Each(url) = &backend.place
                && !self.names.contains_key(&url.to_string())
            {
                names::watch(url.clone(), self.news.clone())?;
                self.names.insert(url.to_string(), None);
            }
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn watch_services(&mut self, url: Option<&str>, services: Vec<String>) -> Result<(), String> {
        use crate::cluster::{backends, connection::Connection};
        let etcd = Connection::open(url).map_err(|failure| failure.message)?;
        for service in services {
            let (news, name) = (self.news.clone(), service.clone());
            let tell = move |servers| news.send(News::Servers(name.clone(), servers)).is_ok();
            let following = backends::follow(&etcd.cluster, service.clone(), tell);
            following.map_err(|e| e.to_string())?;
            self.servers.insert(service, None);
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn watch_services(&mut self, _: Option<&str>, _: Vec<String>) -> Result<(), String> {
        Err("--backends-of is there on Linux alone, so far".to_owned())
    }

    fn wait_for_names(&mut self, received: &Receiver<News>) {
        let until = Instant::now() + PATIENCE;
        while self.names.values().any(Option::is_none) || self.servers.values().any(Option::is_none)
        {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(news) = received.recv_timeout(left) else {
                warn!("Not all names and services of backends are known yet");
                return;
            };
            self.take(news);
        }
    }

    fn follow(mut self, received: &Receiver<News>, sets: &watch::Sender<BackendSet>) {
        loop {
            let changed = match received.recv_timeout(STEP) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => self.look_at_file(),
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if changed {
                sets.send_replace(self.set());
            }
            if sets.is_closed() {
                return;
            }
        }
    }

    /// Whether that changes anything.
    fn take(&mut self, news: News) -> bool {
        match news {
            News::Reload => self.read_file(),
            News::Same => self.look_at_file(),
            News::Servers(service, servers) => {
                info!("Service {service} has {} servers", servers.len());
                self.servers.insert(service, Some(servers));
                true
            }
            News::Addresses(name, Ok(addresses)) => {
                if addresses.is_empty() {
                    warn!("{name} stands for no address, its backends stay as they are");
                    return false;
                }
                info!("{name} stands for {} backends", addresses.len());
                self.names.insert(name, Some(addresses));
                true
            }
            News::Addresses(name, Err(problem)) => {
                warn!("Cannot look up {name}, its backends stay as they are: {problem}");
                self.names.entry(name).or_default().get_or_insert_default();
                false
            }
        }
    }

    fn look_at_file(&mut self) -> bool {
        let stamp = self.file.as_ref().and_then(BackendsFile::stamp);
        stamp != self.stamp && self.read_file()
    }

    fn read_file(&mut self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        self.stamp = file.stamp();
        match file.read() {
            Ok(backends) => {
                info!(
                    "{} names {} backends",
                    file.path().display(),
                    backends.len()
                );
                self.in_file = backends;
                if let Err(e) = self.watch_names() {
                    warn!("Names of backends are not looked up: {e}");
                }
                true
            }
            Err(problem) => {
                warn!("The backends stay as they are: {problem}");
                false
            }
        }
    }

    fn set(&self) -> BackendSet {
        let from = |backends: &[Backend], origin: &str| -> Vec<BackendSpec> {
            backends
                .iter()
                .flat_map(|b| self.specs(b, origin))
                .collect()
        };
        let path = self.file.as_ref().map(BackendsFile::path);
        let path = path.map(Path::display).map(|path| path.to_string());
        let mut all = from(&self.listed, "command line");
        all.extend(from(&self.in_file, &path.unwrap_or_default()));
        all.extend(self.servers.values().flatten().flatten().cloned());
        all.into_iter().collect()
    }

    fn specs(&self, backend: &Backend, origin: &str) -> Vec<BackendSpec> {
        let name = match &backend.place {
            Place::One(url) => return vec![backend.at(url.clone(), origin)],
            Place::Each(url) => url.to_string(),
        };
        let addresses = self.names.get(&name).and_then(Option::as_ref);
        let urls = addresses
            .into_iter()
            .flatten()
            .filter_map(|url| url.parse().ok());
        let origin = format!("dns+{name}");
        urls.map(|url| backend.at(url, &origin)).collect()
    }
}
