//! Follows the sources of backends, and tells of each new set.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_gateway::{BackendSet, BackendSpec, BackendUrl};
use tokio::sync::watch;
use tracing::{info, warn};

use super::document::{Document, Setting};
use super::entry::{Backend, Place};
use super::file::{BackendsFile, Stamp};
use super::names::{self, Found};
use super::repeated;
use crate::output::count;
use crate::said::Said;

/// How often to look whether the file has changed.
const STEP: Duration = Duration::from_secs(1);
/// Who has named what no file does.
const TYPED: &str = "command line";
/// How long a start waits for the first answer to a name.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that was given.
#[derive(Default)]
pub(crate) struct Sources {
    pub(crate) listed: Vec<Backend>,
    pub(crate) files: Vec<BackendsFile>,
    /// Whose servers are backends.
    pub(crate) services: Vec<String>,
    /// The etcd that knows them.
    pub(crate) cluster: Option<String>,
}

impl Sources {
    /// All that are named, a name in DNS as one, where the sources can be used. Asks nobody.
    ///
    /// # Errors
    ///
    /// What is wrong with a file, or with the way to etcd.
    pub(crate) fn named(&self) -> Result<Vec<BackendSpec>, String> {
        let documents = self.files.iter().map(BackendsFile::read);
        let documents: Vec<Document> = documents.collect::<Result<_, _>>()?;
        let in_files = self.files.iter().zip(&documents);
        let in_files = in_files.map(|(file, document)| (file.path(), &*document.backends));
        let (all, remarks) = repeated::first(by_source(&self.listed, in_files));
        let exposures = self.files.iter().zip(&documents);
        let exposures = exposures.filter_map(|(file, document)| file.exposure(document));
        for remark in remarks.into_iter().chain(exposures) {
            warn!("{remark}");
        }
        if !self.services.is_empty() {
            etcd(self.cluster.as_deref())?;
        }
        let spec = |backend: &Backend| BackendSpec::new(backend.place.url().clone());
        Ok(all.into_iter().map(spec).collect())
    }

    /// No file may have a backend at one of these addresses.
    pub(crate) fn refuse_own(&mut self, listening: &[SocketAddr]) {
        for file in &mut self.files {
            file.set_listening(listening);
        }
    }
}

fn by_source<'a>(
    listed: &'a [Backend],
    in_files: impl Iterator<Item = (&'a Path, &'a [Backend])>,
) -> impl Iterator<Item = (String, &'a [Backend])> {
    let in_files = in_files.map(|(path, backends)| (path.display().to_string(), backends));
    std::iter::once((format!("the {TYPED}"), listed)).chain(in_files)
}

/// The way to the etcd that knows services.
#[cfg(target_os = "linux")]
fn etcd(url: Option<&str>) -> Result<crate::cluster::connection::Connection, String> {
    crate::cluster::connection::Connection::open(url).map_err(|failure| failure.message)
}

#[cfg(not(target_os = "linux"))]
fn etcd(_: Option<&str>) -> Result<(), String> {
    Err("--backends-of is there on Linux alone, so far".to_owned())
}

/// What happens to the sources.
pub(super) enum News {
    /// The files are to be read again.
    Reload,
    /// What the name of this URL stands for.
    Addresses(String, Found),
    /// A name was looked up, and stands for what it did. Tells its thread whether anybody listens.
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
    has_files: bool,
    is_expecting: bool,
}

impl Follower {
    /// Reads what there is, and waits, not for long, for the names in it.
    ///
    /// # Errors
    ///
    /// What is wrong with a file.
    pub(crate) fn start(sources: Sources) -> Result<Self, String> {
        let (news, received) = channel();
        let has_files = !sources.files.is_empty();
        let mut state = State::new(sources, news.clone())?;
        state.wait_for_names(&received);
        let is_expecting = !state.names.is_empty() || !state.servers.is_empty();
        let (sets, followed) = watch::channel(state.set());
        let follow = move || state.follow(&received, &sets);
        let thread = thread::Builder::new().name("backends".to_owned());
        thread.spawn(follow).map_err(|e| e.to_string())?;
        Ok(Self {
            news,
            sets: followed,
            has_files,
            is_expecting,
        })
    }

    /// Whether names or services were given, be it that none had a backend at the start.
    pub(crate) fn is_expecting(&self) -> bool {
        self.is_expecting
    }

    pub(crate) fn sets(&self) -> watch::Receiver<BackendSet> {
        self.sets.clone()
    }

    /// Reads the files again, if there are any.
    pub(crate) fn reload(&self) -> bool {
        // It follows as long as this is here.
        let _ = self.news.send(News::Reload);
        self.has_files
    }
}

struct State {
    listed: Vec<Backend>,
    files: Vec<Followed>,
    /// What each name stands for; nothing yet where it was never answered.
    names: BTreeMap<String, Option<BTreeSet<String>>>,
    /// The servers of each service; nothing yet where etcd has not answered.
    servers: BTreeMap<String, Option<Vec<BackendSpec>>>,
    news: Sender<News>,
}

impl State {
    fn new(sources: Sources, news: Sender<News>) -> Result<Self, String> {
        let files = sources.files.into_iter().map(Followed::new);
        let mut state = Self {
            listed: sources.listed,
            files: files.collect::<Result<_, _>>()?,
            names: BTreeMap::new(),
            servers: BTreeMap::new(),
            news,
        };
        state.tell_of_repeated();
        state.watch_names().map_err(|e| e.to_string())?;
        if !sources.services.is_empty() {
            state.watch_services(sources.cluster.as_deref(), sources.services)?;
        }
        Ok(state)
    }

    /// Begins to look up what is new. A name that is gone is looked up on, to no effect.
    fn watch_names(&mut self) -> io::Result<()> {
        let in_files = self.files.iter().flat_map(|file| &file.content.backends);
        for backend in self.listed.iter().chain(in_files) {
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
        use crate::cluster::backends;
        let etcd = etcd(url)?;
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
    fn watch_services(&mut self, url: Option<&str>, _: Vec<String>) -> Result<(), String> {
        etcd(url)
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
        let mut next_look = Instant::now() + STEP;
        loop {
            let left = next_look.saturating_duration_since(Instant::now());
            let mut changed = match received.recv_timeout(left) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // However much news there is.
            if Instant::now() >= next_look {
                changed |= self.read_files(Followed::look);
                next_look = Instant::now() + STEP;
            }
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
            News::Reload => self.read_files(Followed::read_now),
            News::Same => false,
            News::Servers(service, servers) => {
                info!("Service {service} has {}", count(servers.len(), "server"));
                self.servers.insert(service, Some(servers));
                true
            }
            News::Addresses(name, Ok(addresses)) => {
                if addresses.is_empty() {
                    self.lacks_address(name, "it has none");
                    return false;
                }
                info!("{name} stands for {}", count(addresses.len(), "backend"));
                self.names.insert(name, Some(addresses));
                true
            }
            News::Addresses(name, Err(problem)) => {
                self.lacks_address(name, &problem);
                false
            }
        }
    }

    fn lacks_address(&mut self, name: String, problem: &str) {
        let known = self.names.get(&name).and_then(Option::as_ref);
        if known.is_some_and(|known| !known.is_empty()) {
            warn!("Cannot look up {name}, its backends stay as they are: {problem}");
        } else {
            warn!("{name} has no address yet and is asked for again and again: {problem}");
        }
        self.names.entry(name).or_default().get_or_insert_default();
    }

    /// Whether `read` has taken what one of them says.
    fn read_files(&mut self, read: fn(&mut Followed) -> bool) -> bool {
        // Each of them, whatever became of the others.
        let was_read = self.files.iter_mut().fold(false, |any, f| read(f) | any);
        if was_read {
            self.tell_of_repeated();
            if let Err(e) = self.watch_names() {
                warn!("Names of backends are not looked up: {e}");
            }
        }
        was_read
    }

    fn tell_of_repeated(&self) {
        let in_files = self.files.iter();
        let in_files = in_files.map(|f| (f.file.path(), &*f.content.backends));
        for remark in repeated::first(by_source(&self.listed, in_files)).1 {
            warn!("{remark}");
        }
    }

    fn set(&self) -> BackendSet {
        let from = |backends: &[Backend], origin: &str| -> Vec<BackendSpec> {
            backends
                .iter()
                .flat_map(|b| self.specs(b, origin))
                .collect()
        };
        let mut all = from(&self.listed, TYPED);
        for file in &self.files {
            let path = file.file.path().display().to_string();
            all.extend(from(&file.content.backends, &path));
        }
        all.extend(self.servers.values().flatten().flatten().cloned());
        all.into_iter().collect()
    }

    fn specs(&self, backend: &Backend, origin: &str) -> Vec<BackendSpec> {
        let named = match &backend.place {
            Place::One(url) => return vec![backend.at(url.clone(), origin)],
            Place::Each(url) => url,
        };
        let name = named.to_string();
        let addresses = self.names.get(&name).and_then(Option::as_ref);
        let urls = addresses
            .into_iter()
            .flatten()
            .filter_map(|url| url.parse::<BackendUrl>().ok())
            .map(|url| url.certified_as(named));
        let origin = format!("dns+{name}");
        urls.map(|url| backend.at(url, &origin)).collect()
    }
}

/// A file and what it said last.
struct Followed {
    file: BackendsFile,
    stamp: Option<Stamp>,
    content: Document,
    /// Whether it was found empty at the last look, as files are while they are written in place.
    is_doubted: bool,
    /// What was said of it last, as it was then.
    said: Said<(String, Option<Stamp>)>,
}

impl Followed {
    fn new(file: BackendsFile) -> Result<Self, String> {
        // Looked at before it is read: what changes meanwhile is seen later.
        let stamp = file.stamp();
        let content = file.read()?;
        if let Some(remark) = file.exposure(&content) {
            warn!("{remark}");
        }
        Ok(Self {
            file,
            stamp,
            content,
            is_doubted: false,
            said: Said::new(STEP),
        })
    }

    /// Whether that was not said just now: of a change that comes with SIGHUP, a look may have told
    /// a moment before.
    fn is_news(&mut self, text: &str) -> bool {
        self.said.is_news((text.to_owned(), self.stamp.clone()))
    }

    /// Takes what it says, if it has changed. Whether it was taken.
    fn look(&mut self) -> bool {
        let stamp = self.file.stamp();
        let is_same = stamp == self.stamp;
        if is_same && !self.is_doubted {
            return false;
        }
        self.stamp = stamp;
        self.read(is_same)
    }

    /// Takes what it says, whatever that is. Whether it was taken.
    fn read_now(&mut self) -> bool {
        self.stamp = self.file.stamp();
        self.read(true)
    }

    /// That there are no backends any more counts only where that `is_sure`.
    fn read(&mut self, is_sure: bool) -> bool {
        self.is_doubted = false;
        let content = match self.file.read() {
            Ok(content) => content,
            Err(problem) => {
                if self.is_news(&problem) {
                    warn!("The backends stay as they are: {problem}");
                }
                return false;
            }
        };
        let path = self.file.path().display().to_string();
        let is_emptied = content.backends.is_empty() && !self.content.backends.is_empty();
        if is_emptied && !is_sure {
            warn!(
                "{path} names no backends any more; they stay as they are, in case it is being \
                 written, until the next look finds the same. SIGHUP takes it at once"
            );
            self.is_doubted = true;
            return false;
        }
        let named = format!("{path} names {}", count(content.backends.len(), "backend"));
        if self.is_news(&named) {
            info!("{named}");
            for name in changed(&self.content.settings, &content.settings) {
                let takes = match name {
                    // On another port, that would start a second server.
                    "port" => "llmlb stop, and a start",
                    _ => "llmlb serve --replace",
                };
                warn!("{path} says something else of {name}: that takes {takes}");
            }
            if let Some(remark) = self.file.exposure(&content) {
                warn!("{remark}");
            }
        }
        self.content.backends = content.backends;
        true
    }
}

/// The names of which `new` says something else.
fn changed<'a>(old: &'a [Setting], new: &'a [Setting]) -> BTreeSet<&'a str> {
    fn says<'a>(settings: &'a [Setting], name: &str) -> Option<&'a toml::Value> {
        let said = settings.iter().find(|setting| setting.name == name);
        said.map(|setting| &setting.value)
    }
    let names = old.iter().chain(new).map(|setting| &*setting.name);
    names
        .filter(|name| says(old, name) != says(new, name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_file_that_is_being_written_empties_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        let put = |text: &str| fs::write(&path, text).unwrap();
        let names = |file: &Followed| file.content.backends.len();
        put("http://a\nhttp://b\n");
        let mut file = Followed::new(BackendsFile::new(&path)).unwrap();
        // Opened to be written, and then written.
        put("");
        assert!(!file.look() && names(&file) == 2);
        put("http://a\n");
        assert!(file.look() && names(&file) == 1);
        // A new doubt for each other state of it.
        put("");
        assert!(!file.look());
        put("# written");
        assert!(!file.look() && names(&file) == 1);
        assert!(file.look() && names(&file) == 0);
        assert!(!file.look());
        // Whoever asks for it means it.
        put("http://a\n");
        assert!(file.look());
        put("");
        assert!(file.read_now() && names(&file) == 0);
        assert!(!file.look());
        // Nothing is lost where there was nothing.
        put("# still none");
        assert!(file.look());
    }

    #[test]
    fn what_was_just_said_of_a_file_is_not_said_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("backends");
        fs::write(&path, "").unwrap();
        let mut file = Followed::new(BackendsFile::new(&path)).unwrap();
        // By a look, and by the signal that comes right behind it.
        assert!(file.is_news("names 1 backend"));
        assert!(!file.is_news("names 1 backend"));
        fs::write(&path, "# changed").unwrap();
        file.stamp = file.file.stamp();
        assert!(file.is_news("names 1 backend"));
    }
}
